//! A real luod for benchmarks, and the files that it is given.
//!
//! Invariants: it runs in a directory of its own, and is stopped when this is dropped; what is
//! measured is the luod that was built with this program.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use luo::{Manager, Options, Session};
use rustix::event::EventfdFlags;
use rustix::fs::MemfdFlags;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, setrlimit};
use tempfile::TempDir;

use super::{Bencher, helper};
use crate::failure::{Context as _, Failed, Result};

/// How long anything may take on a machine that does other things too.
const PATIENCE: Duration = Duration::from_secs(60);

/// A running luod, keeper and worker.
#[derive(Debug)]
pub(super) struct Daemon {
    dir: TempDir,
    keeper: Child,
}

impl Daemon {
    /// Starts it with the default configuration, on one processor where one is named.
    pub(super) fn start(bencher: &Bencher<'_>, cpu: Option<usize>) -> Result<Self> {
        let dir = TempDir::new().context(|| "make a directory".into())?;
        let config = dir.path().join("luod.toml");
        // Ordinary users are limited for the sake of others; what is measured is luod itself.
        fs::write(&config, "[limits]\nsessions = 1000000\nfiles = 1000000\n")
            .context(|| "write a configuration".into())?;
        let log = fs::File::create(dir.path().join("log")).context(|| "make a log".into())?;
        let mut command = Command::new(&bencher.luod);
        command
            .arg("--config")
            .arg(&config)
            .arg("--runtime-dir")
            .arg(dir.path())
            .env("LUOD_LOG", "warn")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        // A child inherits the processors of the thread that starts it.
        let keeper = thread::scope(|scope| {
            scope
                .spawn(|| {
                    cpu.map_or(Ok(()), helper::pin)?;
                    command.spawn().context(|| format!("start {}", bencher.luod.display()))
                })
                .join()
                .map_err(|_| Failed::new("the starting thread panicked"))?
        })?;
        let daemon = Self { dir, keeper };
        let deadline = Instant::now() + PATIENCE;
        while let Err(error) = Manager::connect(daemon.options()).and_then(|luod| luod.status()) {
            if Instant::now() > deadline {
                let log = fs::read_to_string(daemon.dir.path().join("log")).unwrap_or_default();
                return Err(error).context(|| format!("luod does not serve; it says: {log}"));
            }
            thread::sleep(Duration::from_millis(5));
        }
        Ok(daemon)
    }

    /// How to reach it.
    pub(super) fn options(&self) -> Options {
        Options::new().socket(self.socket()).deadline(PATIENCE)
    }

    /// Where it listens.
    pub(super) fn socket(&self) -> PathBuf {
        self.dir.path().join("io.luo.sock")
    }

    /// A new session.
    pub(super) fn session(&self, name: &str) -> Result<Session> {
        Session::create_with(name, self.options()).context(|| "make a session".into())
    }

    /// The session after its holder has gone.
    pub(super) fn claim(&self, name: &str) -> Result<Session> {
        Session::claim_with(name, self.options()).context(|| "claim a session".into())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = kill_process(Pid::from_child(&self.keeper), Signal::TERM);
        let _ = helper::wait(&mut self.keeper, Duration::from_secs(15));
    }
}

/// Gives files to a session as one request of the library; each must be taken.
pub(super) fn preserve<F: AsFd>(session: &Session, files: &[(u64, F)]) -> Result<()> {
    let verdicts = session.preserve_many(files).context(|| "preserve files".into())?;
    for verdict in &verdicts {
        if let Err(refusal) = verdict {
            return Err(Failed::new(format!("a file was refused: {refusal:?}")));
        }
    }
    if verdicts.len() == files.len() {
        Ok(())
    } else {
        Err(Failed::new("luod did not speak of every file"))
    }
}

/// Takes files back as one request of the library; each must come.
pub(super) fn retrieve(session: &Session, tokens: &[u64]) -> Result<Vec<OwnedFd>> {
    session
        .retrieve_many(tokens)
        .context(|| "retrieve files".into())?
        .into_iter()
        .map(|file| {
            file.map_err(|refusal| Failed::new(format!("a file did not come back: {refusal:?}")))
        })
        .collect()
}

/// A type of file that benchmarks make many of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Every one has an inode of its own.
    Sockets,
    /// As `Sockets`; their memory is accounted.
    Memfds,
    /// All of them share one inode, so that only the kernel can tell them apart.
    Eventfds,
}

impl Kind {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Sockets => "sockets",
            Self::Memfds => "memfds",
            Self::Eventfds => "eventfds",
        }
    }

    fn make(self) -> io::Result<OwnedFd> {
        Ok(match self {
            // UDP: unlike unix sockets they can be sent without the kernel's looking for cycles.
            Self::Sockets => rustix::net::socket_with(
                AddressFamily::INET,
                SocketType::DGRAM,
                SocketFlags::CLOEXEC,
                None,
            )?,
            Self::Memfds => rustix::fs::memfd_create("luo-bench", MemfdFlags::CLOEXEC)?,
            Self::Eventfds => rustix::event::eventfd(0, EventfdFlags::CLOEXEC)?,
        })
    }

    /// So many, with tokens that ascend.
    pub(super) fn files(self, first: u64, count: usize) -> Result<Vec<(u64, OwnedFd)>> {
        (first..)
            .take(count)
            .map(|token| {
                let file = self.make().context(|| format!("make {count} {}", self.name()))?;
                Ok((token, file))
            })
            .collect()
    }
}

/// Allows this process as many descriptors as the system does, and gives their number.
pub(super) fn raise_descriptor_limit() -> Result<u64> {
    let now = getrlimit(Resource::Nofile);
    let most = fs::read_to_string("/proc/sys/fs/nr_open")
        .ok()
        .and_then(|text| text.trim().parse::<u64>().ok());
    // More than the hard limit only with CAP_SYS_RESOURCE.
    for maximum in [most, now.maximum].into_iter().flatten() {
        let limit = Rlimit { current: Some(maximum), maximum: Some(maximum) };
        if setrlimit(Resource::Nofile, limit).is_ok() {
            return Ok(maximum);
        }
    }
    Err(Failed::new("the limit of open descriptors cannot be raised: raise `ulimit -Hn`"))
}
