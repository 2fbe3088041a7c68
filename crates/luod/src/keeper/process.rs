//! Child processes: started from a descriptor of their program, watched through a pidfd.
//!
//! Invariants:
//! - A child is reaped exactly once, by whoever holds its [`Process`]; nothing here waits.
//! - A child leads a process group, and whatever it has started there ends with it: a program that
//!   is a wrapper leaves no luod behind that nobody knows of. The group is killed before the child
//!   is reaped, so that its number is nobody else's.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command};

use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, kill_process_group, pidfd_open,
    pidfd_send_signal, waitid,
};

/// How [`Process::ended`] says that all went well.
pub(super) const SUCCESS: &str = "exited with status 0";

#[derive(Debug)]
pub(super) struct Process {
    pub(super) pid: Pid,
    pidfd: OwnedFd,
}

impl Process {
    pub(super) fn spawn(command: &mut Command) -> io::Result<(Self, Child)> {
        let child = command.process_group(0).spawn()?;
        Ok((Self::of(Pid::from_child(&child))?, child))
    }

    /// A child of this process that the image before has started.
    pub(super) fn of(pid: Pid) -> io::Result<Self> {
        // Nobody else reaps our children, so the pid is still this child's.
        Ok(Self { pid, pidfd: pidfd_open(pid, PidfdFlags::empty())? })
    }

    pub(super) fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { pid: self.pid, pidfd: self.pidfd.try_clone()? })
    }

    pub(super) fn kill(&self) {
        // Either fails only where the child is dead already. (A worker that a keeper before this
        // version has started leads no group: there is none of its number.)
        let _ = pidfd_send_signal(&self.pidfd, Signal::KILL);
        self.kill_group();
    }

    fn kill_group(&self) {
        let id = WaitId::PidFd(self.pidfd.as_fd());
        let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        // Not our child any more: its number may be anybody's.
        if waitid(id, look).is_ok() {
            let _ = kill_process_group(self.pid, Signal::KILL);
        }
    }

    /// How the child ended, `None` while it runs.
    pub(super) fn ended(&self) -> Option<String> {
        let id = || WaitId::PidFd(self.pidfd.as_fd());
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        if let Ok(None) = waitid(id(), options | WaitIdOptions::NOWAIT) {
            return None;
        }
        self.kill_group();
        match waitid(id(), options) {
            Ok(None) => None,
            Ok(Some(status)) => Some(match (status.exit_status(), status.terminating_signal()) {
                (Some(code), _) => format!("exited with status {code}"),
                (_, Some(signal)) => format!("was killed by signal {signal}"),
                _ => "ended".into(),
            }),
            // Not our child any more: something else has reaped it.
            Err(error) => Some(format!("is gone ({error})")),
        }
    }
}

impl AsFd for Process {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

/// A command that runs the program behind a descriptor.
///
/// By the program's path where that still leads to the same file: so a script finds itself, and
/// the process has the program's name. Otherwise (replaced or deleted since) by the descriptor,
/// which a script's interpreter could not open.
pub(super) fn command(program: &OwnedFd) -> Command {
    let link = PathBuf::from(format!("/proc/self/fd/{}", program.as_raw_fd()));
    let same = |path: &PathBuf| {
        let (there, here) = (rustix::fs::stat(path).ok()?, rustix::fs::fstat(program).ok()?);
        (there.st_dev == here.st_dev && there.st_ino == here.st_ino).then_some(())
    };
    let path = std::fs::read_link(&link).ok().filter(|path| same(path).is_some()).unwrap_or(link);
    let mut command = Command::new(path);
    command.arg0("luod");
    command
}
