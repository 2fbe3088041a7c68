//! How long a service with many listeners takes to become its next image: through luod, by execve
//! in place, and by the crate ecdysis.
//!
//! Measured from the moment the old image begins to leave until the new one holds every listener
//! as a value of its own. Both ends are the same program and the same kind of listener (unix stream
//! sockets with a path). The moment is written down by the processes themselves, on the monotonic
//! clock, which all processes share.
//!
//! Through luod it is another process. In a restart the old one closes its session, starts the new
//! one and ends; the new one claims the session and retrieves all listeners. In a planned update,
//! as the guide for authors of services has it, the old one starts the new one, serves on until
//! that is about to claim the session, and prepares its session; only then it begins to leave. Both
//! are beside the same execve, for in place there is no other order.
//!
//! ecdysis' `upgrade` itself returns half a second later, because its thread that looks after
//! the child sleeps that long; the figure here is the child's, so that it is as good as it can be.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{ChildStdout, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use luo::{Options, Session};
use rustix::io::{FdFlags, fcntl_dupfd_cloexec, fcntl_getfd, fcntl_setfd};
use rustix::time::{ClockId, clock_gettime};
use tempfile::TempDir;

use super::daemon::{self, Daemon};
use super::report::Better;
use super::stats::{Samples, micros};
use super::{Bencher, Row, helper};
use crate::failure::{Context as _, Failed, Result};

/// Restarts of one helper, in a row.
const ROUNDS: usize = 50;
/// The session that luod keeps the listeners in.
const SESSION: &str = "bench-restart";
/// How long one process waits for the other.
const PATIENCE: Duration = Duration::from_secs(10);
/// Of execve in place.
const GOAL: f64 = 1.5;

/// A service with 1, 100 and 1,000 listeners.
pub(super) fn run(bencher: &Bencher<'_>) -> Result<Vec<Row>> {
    let daemon = Daemon::start(bencher, None)?;
    let mut rows = Vec::new();
    for listeners in [1, 100, 1000] {
        let what = match listeners {
            1 => "restart of a service with 1 listener".into(),
            many => format!("restart of a service with {many} listeners"),
        };
        // In turns, so that what else the machine does bears on both.
        let (mut luo, mut ahead, mut execve) = (Duration::MAX, Duration::MAX, Duration::MAX);
        for _ in 0..bencher.times(5) {
            bencher.measuring(&format!("{what} by execve"));
            execve = execve.min(by_execve_median(bencher, listeners)?);
            bencher.measuring(&format!("{what} through luod"));
            luo = luo.min(by_luo_median(bencher, &daemon, listeners, false)?);
            bencher.measuring(&format!("{what} through luod, started ahead"));
            ahead = ahead.min(by_luo_median(bencher, &daemon, listeners, true)?);
        }
        bencher.measuring(&format!("{what} by ecdysis"));
        let ecdysis = by_ecdysis_median(bencher, listeners)?;
        let beside = |peer: &str, value, goal| Row {
            what: what.clone(),
            ours: Some(micros(luo)),
            peer: peer.into(),
            peer_value: micros(value),
            unit: "µs",
            better: Better::Lower,
            goal,
        };
        rows.push(beside("execve in place", execve, Some(GOAL)));
        rows.push(beside("ecdysis", ecdysis, None));
        rows.push(Row {
            what: what.replacen("restart", "planned update", 1),
            ours: Some(micros(ahead)),
            ..beside("execve in place", execve, Some(GOAL))
        });
    }
    Ok(rows)
}

/// The median time of a restart through luod.
fn by_luo_median(
    bencher: &Bencher<'_>,
    daemon: &Daemon,
    listeners: usize,
    ahead: bool,
) -> Result<Duration> {
    let dir = TempDir::new().context(|| "make a directory".into())?;
    let rounds = bencher.times(ROUNDS);
    let mut more =
        vec![format!("--rounds={rounds}"), format!("--socket={}", daemon.socket().display())];
    if ahead {
        more.push("--ahead".into());
    }
    median(helper_lines(bencher, "restart-by-luo", dir.path(), listeners, &more)?)
}

/// The median time of a restart in place.
fn by_execve_median(bencher: &Bencher<'_>, listeners: usize) -> Result<Duration> {
    let dir = TempDir::new().context(|| "make a directory".into())?;
    let rounds = bencher.times(ROUNDS);
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
fn by_ecdysis_median(bencher: &Bencher<'_>, listeners: usize) -> Result<Duration> {
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
    bencher: &Bencher<'_>,
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
            daemon::raise_descriptor_limit()?;
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

/// The process before this one.
#[derive(Debug)]
pub(super) enum Before {
    /// This is the first.
    None,
    /// It began to leave then, and has closed its session.
    Began(u64),
    /// It serves until it is told that this one is ready.
    Waits,
}

/// Tells the process before that this one is ready.
fn tell_ready() -> Result<UnixStream> {
    let stdin = std::io::stdin().as_fd().try_clone_to_owned();
    let mut before = UnixStream::from(stdin.context(|| "take the standard input".into())?);
    before.set_read_timeout(Some(PATIENCE)).context(|| "set a deadline".into())?;
    before.write_all(&[1]).context(|| "tell the process before".into())?;
    Ok(before)
}

/// Waits until the next process is ready.
fn wait_ready(next: &mut UnixStream) -> Result<()> {
    next.set_read_timeout(Some(PATIENCE)).context(|| "set a deadline".into())?;
    next.read_exact(&mut [0]).context(|| "wait for the next process".into())
}

/// The helper: luod keeps its listeners, and it is followed by its next process until no round is
/// left.
pub(super) fn by_luo(
    dir: &Path,
    count: usize,
    rounds: usize,
    socket: &Path,
    before: &Before,
    ahead: bool,
) -> Result<()> {
    let options = Options::new().socket(socket);
    let (session, listeners) = match before {
        Before::None => {
            daemon::raise_descriptor_limit()?;
            let listeners = (0..count).map(|at| bind(dir, at)).collect::<Result<Vec<_>>>()?;
            let session =
                Session::create_with(SESSION, options).context(|| "make a session".into())?;
            let files: Vec<_> = (1..).zip(&listeners).collect();
            daemon::preserve(&session, &files)?;
            (session, listeners)
        }
        Before::Began(_) | Before::Waits => {
            let waiting = matches!(before, Before::Waits).then(tell_ready).transpose()?;
            let session =
                Session::claim_with(SESSION, options).context(|| "claim the session".into())?;
            let tokens: Vec<u64> = (1..).take(count).collect();
            let listeners: Vec<UnixListener> =
                daemon::retrieve(&session, &tokens)?.into_iter().map(UnixListener::from).collect();
            let ended = now();
            let mut told = [0; 8];
            if let Before::Began(began) = before {
                told = began.to_ne_bytes();
            }
            if let Some(mut waiting) = waiting {
                waiting.read_exact(&mut told).context(|| "read when it began".into())?;
            }
            say(ended - u64::from_ne_bytes(told))?;
            session.finish_and_carry().context(|| "finish the update".into())?;
            (session, listeners)
        }
    };
    if rounds == 0 {
        return session.release().context(|| "release the session".into());
    }
    let xtask = std::env::current_exe().context(|| "find this program".into())?;
    let mut next = Command::new(xtask);
    next.args(["helper", "restart-by-luo", "--dir"])
        .arg(dir)
        .arg(format!("--listeners={count}"))
        .arg(format!("--rounds={}", rounds - 1))
        .arg("--socket")
        .arg(socket);
    let start = |next: &mut Command| next.spawn().context(|| "start the next process".into());
    if ahead {
        let (mut ours, theirs) = UnixStream::pair().context(|| "make a pair of sockets".into())?;
        start(next.args(["--ahead", "--follows"]).stdin(OwnedFd::from(theirs)))?;
        wait_ready(&mut ours)?;
        // The workload runs while a session is being prepared.
        session.prepare().context(|| "prepare the session".into())?;
        let began = now();
        drop(session);
        ours.write_all(&began.to_ne_bytes()).context(|| "tell when it began".into())?;
    } else {
        let began = now();
        drop(session);
        start(next.arg(format!("--began={began}")))?;
    }
    drop(listeners);
    Ok(())
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
        daemon::raise_descriptor_limit()?;
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
