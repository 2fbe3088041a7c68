//! Parts of benchmarks that are processes of their own: xtask run again with a hidden subcommand.
//!
//! Invariants: a helper's socket is its standard input, so that nothing has to be said about
//! descriptor numbers; it ends by itself when the other end of that socket is closed.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use super::{arena, files, restart, round_trip, scm_rights};
use crate::failure::{Context as _, Failed, Result};

/// The hidden subcommand.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    helper: Helper,
}

#[derive(Debug, clap::Subcommand)]
enum Helper {
    /// Sends every message back.
    Echo {
        #[arg(long)]
        cpu: Option<usize>,
    },
    /// Receives descriptors, closes them, and acknowledges where that is asked for.
    ReceiveDescriptors,
    /// A service with listeners that replaces its image with execve.
    RestartByExecve {
        #[arg(long)]
        dir: PathBuf,
        #[arg(long)]
        listeners: usize,
        #[arg(long)]
        rounds: usize,
        /// When the execve that led here began, in nanoseconds of the monotonic clock.
        #[arg(long)]
        began: Option<u64>,
    },
    /// A service whose listeners luod keeps, and that starts its next process and ends.
    RestartByLuo {
        #[arg(long)]
        dir: PathBuf,
        #[arg(long)]
        listeners: usize,
        #[arg(long)]
        rounds: usize,
        /// luod's socket.
        #[arg(long)]
        socket: PathBuf,
        /// When the process before began to leave, in nanoseconds of the monotonic clock.
        #[arg(long)]
        began: Option<u64>,
        /// Start the next process before leaving, and leave when it is ready to follow.
        #[arg(long)]
        ahead: bool,
        /// The process before waits on the standard input to be told that this one is ready.
        #[arg(long)]
        follows: bool,
    },
    /// A service with listeners that restarts itself through ecdysis.
    RestartByEcdysis {
        #[arg(long)]
        dir: PathBuf,
        #[arg(long)]
        listeners: usize,
    },
    /// A process with files of one type, for CRIU.
    HoldFiles {
        #[arg(long)]
        kind: String,
        #[arg(long)]
        count: usize,
        /// Where those go that have a path.
        #[arg(long)]
        dir: PathBuf,
        /// The file that it makes when it has them.
        #[arg(long)]
        ready: PathBuf,
    },
    /// A process with memory, for CRIU.
    HoldMemory {
        #[arg(long)]
        mib: usize,
        /// The file that it makes when it has the memory.
        #[arg(long)]
        ready: PathBuf,
    },
}

/// Runs a helper to its end.
pub(crate) fn run(args: &Args) -> Result<()> {
    match &args.helper {
        Helper::Echo { cpu } => {
            if let Some(cpu) = cpu {
                pin(*cpu)?;
            }
            round_trip::echo()
        }
        Helper::ReceiveDescriptors => scm_rights::receive(),
        Helper::RestartByExecve { dir, listeners, rounds, began } => {
            restart::by_execve(dir, *listeners, *rounds, *began)
        }
        Helper::RestartByLuo { dir, listeners, rounds, socket, began, ahead, follows } => {
            let before = match (began, follows) {
                (Some(began), _) => restart::Before::Began(*began),
                (None, true) => restart::Before::Waits,
                (None, false) => restart::Before::None,
            };
            restart::by_luo(dir, *listeners, *rounds, socket, &before, *ahead)
        }
        Helper::RestartByEcdysis { dir, listeners } => restart::by_ecdysis(dir, *listeners),
        Helper::HoldFiles { kind, count, dir, ready } => files::hold(kind, *count, dir, ready),
        Helper::HoldMemory { mib, ready } => arena::hold(*mib, ready),
    }
}

/// A helper at the other end of a socket.
#[derive(Debug)]
pub(super) struct Peer {
    child: Child,
    socket: Option<OwnedFd>,
}

impl Peer {
    /// Starts `xtask helper ARGS` with the other end of a new socket as its standard input.
    pub(super) fn start(xtask: &PathBuf, args: &[String], kind: SocketType) -> Result<Self> {
        let (ours, theirs) = socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)
            .context(|| "make a pair of sockets".into())?;
        let child = Command::new(xtask)
            .arg("helper")
            .args(args)
            .stdin(Stdio::from(theirs))
            .spawn()
            .context(|| "start a helper".into())?;
        Ok(Self { child, socket: Some(ours) })
    }

    /// This end of the socket.
    pub(super) fn socket(&self) -> Result<&OwnedFd> {
        self.socket.as_ref().ok_or_else(|| Failed::new("the helper's socket is closed"))
    }

    /// Closes the socket and waits for the helper to end.
    pub(super) fn end(mut self) -> Result<()> {
        drop(self.socket.take());
        let status = wait(&mut self.child, Duration::from_secs(10))?;
        if status.success() {
            Ok(())
        } else {
            Err(Failed::new(format!("a helper failed ({status})")))
        }
    }
}

impl Drop for Peer {
    /// On the ways out that are failures already.
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits for a program that is about to end.
pub(super) fn wait(child: &mut Child, within: Duration) -> Result<ExitStatus> {
    let deadline = Instant::now() + within;
    loop {
        if let Some(status) = child.try_wait().context(|| "wait for a helper".into())? {
            return Ok(status);
        }
        if Instant::now() > deadline {
            let _ = child.kill();
            let _ = child.wait();
            return Err(Failed::new("a helper did not end in time"));
        }
        thread::sleep(Duration::from_millis(1));
    }
}

/// The processors that this process may run on.
pub(super) fn cpus() -> Result<Vec<usize>> {
    let set = sched_getaffinity(None).context(|| "ask for the processors".into())?;
    Ok((0..CpuSet::MAX_CPU).filter(|cpu| set.is_set(*cpu)).collect())
}

/// Keeps the calling thread on one processor.
pub(super) fn pin(cpu: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu);
    sched_setaffinity(None, &set).context(|| format!("stay on processor {cpu}"))
}
