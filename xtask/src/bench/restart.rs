//! How long a service with many listeners takes to become its next image, by the ways that need
//! no luo: execve in place, and the crate ecdysis.
//!
//! Measured from the moment the old image begins to leave until the new one holds every listener
//! as a value of its own. Both ends are the same program and the same kind of listener (unix stream
//! sockets with a path). The moment is written down by the processes themselves, on the monotonic
//! clock, which all processes share.
//!
//! ecdysis' `upgrade` itself returns half a second later, because its thread that looks after
//! the child sleeps that long; the figure here is the child's, so that it is as good as it can be.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::fd::{AsFd, AsRawFd as _};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{ChildStdout, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::io::{FdFlags, fcntl_dupfd_cloexec, fcntl_getfd, fcntl_setfd};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::time::{ClockId, clock_gettime};
use tempfile::TempDir;

use super::stats::{Samples, micros};
use super::{Bencher, Row, helper};
use crate::failure::{Context as _, Failed, Result};

/// A service with 1, 100 and 1,000 listeners.
pub(super) fn run(bencher: &Bencher) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for listeners in [1, 100, 1000] {
        let what = match listeners {
            1 => "restart of a service with 1 listener".into(),
            many => format!("restart of a service with {many} listeners"),
        };
        bencher.measuring(&format!("{what} by execve"));
        let execve = execve(bencher, listeners)?;
        bencher.measuring(&format!("{what} by ecdysis"));
        let ecdysis = ecdysis(bencher, listeners)?;
        rows.push(Row::limit(what.clone(), "execve in place", micros(execve), "µs"));
        rows.push(Row::limit(what, "ecdysis", micros(ecdysis), "µs"));
    }
    Ok(rows)
}

/// The median time of a restart in place.
pub(crate) fn execve(bencher: &Bencher, listeners: usize) -> Result<Duration> {
    let dir = TempDir::new().context(|| "make a directory".into())?;
    let rounds = bencher.times(50);
    let lines = helper_lines(
        bencher,
        "restart-by-execve",
        dir.path(),
        listeners,
        &[format!("--rounds={rounds}")],
    )?;
    median(lines)
}

/// The median time until the child of an upgrade is ready.
pub(crate) fn ecdysis(bencher: &Bencher, listeners: usize) -> Result<Duration> {
    let mut all = Vec::new();
    // One upgrade costs ecdysis half a second whatever is done, so there are fewer of them.
    for _ in 0..bencher.times(10).max(3) {
        let dir = TempDir::new().context(|| "make a directory".into())?;
        all.extend(helper_lines(bencher, "restart-by-ecdysis", dir.path(), listeners, &[])?);
    }
    median(all)
}

fn median(nanos: Vec<u64>) -> Result<Duration> {
    Samples::new(nanos.into_iter().map(Duration::from_nanos).collect())
        .map(|samples| samples.median())
        .ok_or_else(|| Failed::new("nothing was measured"))
}

/// Runs a helper that writes a number of nanoseconds a line.
fn helper_lines(
    bencher: &Bencher,
    name: &str,
    dir: &Path,
    listeners: usize,
    more: &[String],
) -> Result<Vec<u64>> {
    let mut child = Command::new(&bencher.xtask)
        .args(["helper", name, "--dir"])
        .arg(dir)
        .arg(format!("--listeners={listeners}"))
        .args(more)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context(|| format!("start {name}"))?;
    let stdout = child.stdout.take().ok_or_else(|| Failed::new("a helper without output"))?;
    let (sent, received) = mpsc::channel();
    let reader = thread::spawn(move || {
        // The other end is gone only where the deadline below has passed.
        let _ = sent.send(numbers(stdout));
    });
    let lines = received
        .recv_timeout(Duration::from_secs(60))
        .map_err(|_| Failed::new(format!("{name} is not done after 60 s")));
    let status = helper::wait(&mut child, Duration::from_secs(10))?;
    let lines = lines??;
    reader.join().map_err(|_| Failed::new("the reading thread panicked"))?;
    if !status.success() {
        return Err(Failed::new(format!("{name} failed ({status})")));
    }
    Ok(lines)
}

fn numbers(stdout: ChildStdout) -> Result<Vec<u64>> {
    BufReader::new(stdout)
        .lines()
        .map(|line| {
            let line = line.context(|| "read from a helper".into())?;
            line.parse().context(|| format!("`{line}` is no number of nanoseconds"))
        })
        .collect()
}

fn now() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    // The clock counts from the start of the machine: never negative.
    (now.tv_sec.unsigned_abs() * 1_000_000_000).saturating_add(now.tv_nsec.unsigned_abs())
}

fn say(nanos: u64) -> Result<()> {
    writeln!(std::io::stdout(), "{nanos}").context(|| "tell the time".into())
}

/// A thousand listeners and their duplicates are more than the usual soft limit.
fn raise_descriptor_limit() -> Result<()> {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })
        .context(|| "raise the limit of open descriptors".into())
}

fn bind(dir: &Path, at: usize) -> Result<UnixListener> {
    let path = dir.join(at.to_string());
    UnixListener::bind(&path).context(|| format!("listen on {}", path.display()))
}

/// Where the row of descriptors begins that the next image takes: beyond all that a shell may have
/// left open in this process.
const ROW: i32 = 1200;

/// The same listener at the first free number from there on.
fn beyond(listener: &UnixListener, first: i32) -> Result<UnixListener> {
    fcntl_dupfd_cloexec(listener, first)
        .map(UnixListener::from)
        .context(|| "put the listeners into a row".into())
}

/// The helper: has its listeners, and becomes its next image until no round is left.
pub(super) fn by_execve(dir: &Path, count: usize, rounds: usize, began: Option<u64>) -> Result<()> {
    let listeners = match began {
        None => {
            raise_descriptor_limit()?;
            let bound = (0..count).map(|at| bind(dir, at)).collect::<Result<Vec<_>>>()?;
            bound.iter().map(|listener| beyond(listener, ROW)).collect::<Result<Vec<_>>>()?
        }
        Some(began) => {
            let mut inherited = listenfd::ListenFd::from_env();
            let listeners = (0..count)
                .map(|at| {
                    inherited
                        .take_unix_listener(at)
                        .context(|| "take an inherited listener".into())?
                        .ok_or_else(|| Failed::new("a listener did not arrive"))
                })
                .collect::<Result<Vec<_>>>()?;
            say(now() - began)?;
            listeners
        }
    };
    if rounds == 0 {
        return Ok(());
    }

    let began = now();
    let first = listeners.first().map_or(ROW, |listener| listener.as_raw_fd());
    for (at, listener) in listeners.iter().enumerate() {
        if usize::try_from(listener.as_raw_fd() - first) != Ok(at) {
            return Err(Failed::new("the listeners' descriptors do not follow each other"));
        }
        let fd = listener.as_fd();
        let flags = fcntl_getfd(fd).context(|| "read a descriptor's flags".into())?;
        fcntl_setfd(fd, flags - FdFlags::CLOEXEC).context(|| "keep a descriptor".into())?;
    }
    let xtask = std::env::current_exe().context(|| "find this program".into())?;
    let failed = Command::new(xtask)
        .args(["helper", "restart-by-execve", "--dir"])
        .arg(dir)
        .arg(format!("--listeners={count}"))
        .arg(format!("--rounds={}", rounds - 1))
        .arg(format!("--began={began}"))
        .env("LISTEN_FDS", count.to_string())
        .env("LISTEN_FDS_FIRST_FD", first.to_string())
        .env_remove("LISTEN_PID")
        .exec();
    Err(failed).context(|| "become the next image".into())
}

/// ecdysis takes a child that ends within half a second for one that failed.
fn outlive_parent() -> Result<()> {
    let parent = rustix::process::getppid();
    let deadline = Instant::now() + Duration::from_secs(10);
    while rustix::process::getppid() == parent {
        if Instant::now() > deadline {
            return Err(Failed::new("the image before does not end"));
        }
        thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// The helper: has its listeners through ecdysis, and restarts once. The child writes how long it
/// took; the parent tells it when it began through a file, for the child has the same arguments.
pub(super) fn by_ecdysis(dir: &Path, count: usize) -> Result<()> {
    let mut ecdysis = ecdysis::Ecdysis::new();
    if !ecdysis.is_child() {
        raise_descriptor_limit()?;
    }
    let listeners = (0..count)
        .map(|at| {
            let path = dir.join(at.to_string());
            ecdysis.listen_unix(&path).context(|| format!("listen on {}", path.display()))
        })
        .collect::<Result<Vec<_>>>()?;
    let note = dir.join("began");
    if ecdysis.is_child() {
        let ended = now();
        ecdysis.ready().context(|| "tell the parent".into())?;
        let began = fs::read_to_string(&note).context(|| "read when it began".into())?;
        let began: u64 = began.parse().context(|| "read when it began".into())?;
        say(ended - began)?;
        outlive_parent()?;
    } else {
        fs::write(&note, now().to_string()).context(|| "note when it begins".into())?;
        ecdysis.upgrade().map_err(|error| Failed::new(format!("ecdysis: {error}")))?;
    }
    drop(listeners);
    Ok(())
}
