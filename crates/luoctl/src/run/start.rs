//! Starting the program with its descriptors: by way of a process of luoctl's own, which puts them
//! where `sd_listen_fds(3)` expects them, says for whom they are, and becomes the program.
//!
//! Invariants: the program gets the descriptors that are meant for it and those that luoctl was
//! started with, and no other; the one who started it knows whether it became the program.

use std::env;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command};

use luo_sys::{adopt, close_on_exec, settle};
use rustix::io::fcntl_dupfd_cloexec;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{
    Resource, Rlimit, Signal, getrlimit, set_parent_process_death_signal, setrlimit,
};

use super::arguments::StartArguments;
use super::names::is_name;
use super::notify::NOTIFY_SOCKET;
use super::store::Stored;
use crate::failure::Failure;

const LISTEN_PID: &str = "LISTEN_PID";
const LISTEN_FDS: &str = "LISTEN_FDS";
const LISTEN_FDNAMES: &str = "LISTEN_FDNAMES";
const WATCHDOG_PID: &str = "WATCHDOG_PID";
/// How many descriptors may be stored, as systemd tells its services.
const FDSTORE: &str = "FDSTORE";

/// The first number of passed descriptors.
const FIRST: RawFd = 3;

/// The hidden command of the process in between.
const START: &str = "start-program";

/// What a descriptor is called that came without a name.
const UNKNOWN: &str = "unknown";

/// Descriptors that luoctl itself was started with, by a service manager or the like.
pub(crate) fn passed_in() -> io::Result<Vec<Stored>> {
    let variable = |name| env::var(name).ok();
    let is_ours = variable(LISTEN_PID).is_some_and(|pid| pid == std::process::id().to_string());
    let count = variable(LISTEN_FDS).and_then(|count| count.parse::<RawFd>().ok());
    let (true, Some(count)) = (is_ours, count) else { return Ok(Vec::new()) };
    let names = variable(LISTEN_FDNAMES).unwrap_or_default();
    let mut names = names.split(':');
    (FIRST..FIRST.saturating_add(count.max(0)))
        .map(|number| {
            let name = names.next().filter(|name| is_name(name)).unwrap_or(UNKNOWN);
            Ok(Stored { name: name.to_owned(), file: adopt(number)? })
        })
        .collect()
}

/// What the program is started with.
#[derive(Debug)]
pub(crate) struct Setup<'a> {
    pub(crate) command: &'a [OsString],
    pub(crate) notify: &'a Path,
    pub(crate) store_max: u32,
    /// The soft limit of open files before this process raised its own.
    pub(crate) open_files: Option<u64>,
}

/// Starts the program; it has begun when this returns. This process must have one thread.
pub(crate) fn start(setup: &Setup<'_>, files: Vec<Stored>) -> Result<Child, Failure> {
    let failed = Failure::program("the program cannot be started");
    let (mut reader, child) = spawn(setup, files).map_err(failed)?;
    let mut errno = Vec::new();
    // The other end closes with the execve, or behind the reason why there is none.
    reader.read_to_end(&mut errno).map_err(Failure::program("the program cannot be started"))?;
    match errno.first_chunk() {
        None => Ok(child),
        Some(errno) => {
            let mut child = child;
            let _ = child.wait();
            Err(Failure::Path {
                path: setup.command.first().cloned().unwrap_or_default().into(),
                doing: "started",
                next: "name a program that can",
                source: io::Error::from_raw_os_error(i32::from_ne_bytes(*errno)),
            })
        }
    }
}

fn spawn(setup: &Setup<'_>, files: Vec<Stored>) -> io::Result<(File, Child)> {
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC)?;
    let numbers: Vec<String> = files.iter().map(|its| its.file.as_raw_fd().to_string()).collect();
    let names: Vec<&str> = files.iter().map(|its| its.name.as_str()).collect();
    let mut command = Command::new("/proc/self/exe");
    command.arg(START).arg(format!("--names={}", names.join(":")));
    command.arg(format!("--report={}", writer.as_raw_fd()));
    if !numbers.is_empty() {
        command.arg(format!("--descriptors={}", numbers.join(",")));
    }
    if let Some(limit) = setup.open_files {
        command.arg(format!("--open-files={limit}"));
    }
    command.arg("--").args(setup.command);
    command.env(NOTIFY_SOCKET, setup.notify).env(FDSTORE, setup.store_max.to_string());
    for file in files.iter().map(|its| &its.file).chain([&writer]) {
        close_on_exec(file, false)?;
    }
    // All of this process's copies are closed at the end.
    let child = command.spawn()?;
    Ok((reader.into(), child))
}

/// The process in between: becomes the program. Returns only if that fails.
pub(crate) fn become_program(arguments: &StartArguments) -> Failure {
    let report = adopt(arguments.report).and_then(|report| {
        // Out of the way of the program's descriptors.
        let above = FIRST.saturating_add(arguments.descriptors.len() as RawFd);
        Ok(File::from(fcntl_dupfd_cloexec(report, above)?))
    });
    let error = match prepare(arguments) {
        Ok(mut command) => command.exec(),
        Err(error) => error,
    };
    let errno = error.raw_os_error().unwrap_or(rustix::io::Errno::INVAL.raw_os_error());
    // Whoever waits for it has gone if this fails.
    let _ = report.and_then(|mut report| report.write_all(&errno.to_ne_bytes()));
    // It is said there.
    Failure::Ended(crate::exit::Exit::Failed.code())
}

fn prepare(arguments: &StartArguments) -> io::Result<Command> {
    let files: Vec<OwnedFd> =
        arguments.descriptors.iter().map(|number| adopt(*number)).collect::<io::Result<_>>()?;
    let count = files.len();
    settle(FIRST, files)?;
    let (program, rest) = arguments
        .command
        .split_first()
        .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
    let mut command = Command::new(program);
    command.args(rest);
    let pid = std::process::id().to_string();
    if count > 0 {
        command.env(LISTEN_FDS, count.to_string());
        command.env(LISTEN_FDNAMES, &arguments.names);
        command.env(LISTEN_PID, &pid);
    } else {
        command.env_remove(LISTEN_FDS).env_remove(LISTEN_FDNAMES).env_remove(LISTEN_PID);
    }
    // The watchdog of an outer service manager is for whoever feeds it, by way of luoctl.
    let parent = rustix::process::getppid().map(|pid| pid.as_raw_nonzero().to_string());
    if env::var(WATCHDOG_PID).ok().is_some_and(|its| Some(its) == parent) {
        command.env(WATCHDOG_PID, &pid);
    }
    if let Some(limit) = arguments.open_files {
        let now = getrlimit(Resource::Nofile);
        setrlimit(Resource::Nofile, Rlimit { current: Some(limit), maximum: now.maximum })?;
    }
    // Without luoctl there is nobody who keeps what the program gives.
    set_parent_process_death_signal(Some(Signal::TERM))?;
    Ok(command)
}

/// Lets this process open as many files as it may; gives the limit that was there before, where it
/// was another one.
pub(crate) fn raise_open_files() -> Option<u64> {
    let now = getrlimit(Resource::Nofile);
    let soft = now.current?;
    let more = Rlimit { current: now.maximum, maximum: now.maximum };
    (now.maximum != Some(soft) && setrlimit(Resource::Nofile, more).is_ok()).then_some(soft)
}
