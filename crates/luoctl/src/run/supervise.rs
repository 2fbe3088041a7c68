//! Watches over the program: reads what it says, passes signals on, and sees its end.
//!
//! Invariants: nothing here waits for luod. A program that has named another process as its main one
//! has ended when that has; what was sent before the end is read before the end is told.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, ExitStatus};
use std::sync::Arc;

use luo_sys::Signals;
use rustix::event::{PollFd, PollFlags, Timespec, epoll, poll};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitOptions, getpgrp, kill_process, pidfd_open, test_kill_process,
    wait,
};
use rustix::termios::tcgetpgrp;

use super::Line;
use super::message::Asked;
use super::notify::{Came, Notify, Outer, descends};
use super::store::Op;
use crate::failure::Failure;
use crate::output::complain;

/// Signals that the program gets.
const PASSED_ON: [Signal; 7] = [
    Signal::HUP,
    Signal::INT,
    Signal::QUIT,
    Signal::TERM,
    Signal::USR1,
    Signal::USR2,
    Signal::WINCH,
];

/// With so many requests before the store, the program's next message waits in its socket.
const WAITING_MAX: usize = 64;

/// How soon it is looked again then.
const SOON: Timespec = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };

/// See the module.
#[derive(Debug)]
pub(crate) struct Supervisor {
    notify: Notify,
    outer: Option<Outer>,
    watch: Arc<OwnedFd>,
    signals: Signals,
    /// The process that is the program.
    main: Option<Pid>,
    /// Tells its end where another process than this one's child is the program.
    end: Option<OwnedFd>,
    /// How the process that is the program has ended.
    status: Option<u8>,
    /// Said once.
    outer_failed: bool,
}

impl Supervisor {
    /// From here on signals that this process gets are the program's.
    pub(crate) fn new(
        notify: Notify,
        outer: Option<Outer>,
        watch: Arc<OwnedFd>,
    ) -> Result<Self, Failure> {
        let mut caught: Vec<i32> = PASSED_ON.iter().map(|signal| signal.as_raw()).collect();
        caught.push(Signal::CHILD.as_raw());
        let signals = Signals::install(&caught).map_err(Failure::Signals)?;
        let (main, end, status) = (None, None, None);
        Ok(Self { notify, outer, watch, signals, main, end, status, outer_failed: false })
    }

    pub(crate) fn notify_path(&self) -> PathBuf {
        self.notify.path()
    }

    pub(crate) fn watch_over(&mut self, program: Child) {
        self.main = Some(Pid::from_child(&program));
    }

    /// Until the program has ended; gives its status, 128 and the signal's number where one killed it.
    pub(crate) fn run(mut self, line: &Line) -> Result<u8, Failure> {
        let failed = || Failure::program("the program cannot be watched over");
        loop {
            self.wait(line.waiting()).map_err(failed())?;
            self.pass_signals_on();
            self.reap();
            self.hang_ups(line);
            self.messages(line, WAITING_MAX);
            if !self.has_ended() {
                continue;
            }
            // Nothing that it has sent is lost, and it may have named its successor in that.
            self.messages(line, usize::MAX);
            if self.has_ended() {
                return Ok(self.status.unwrap_or_default());
            }
        }
    }

    /// Waits until there is something to do.
    fn wait(&self, waiting: usize) -> std::io::Result<()> {
        let mut fds = vec![
            PollFd::new(&self.signals, PollFlags::IN),
            PollFd::new(&*self.watch, PollFlags::IN),
        ];
        if let Some(end) = &self.end {
            fds.push(PollFd::new(end, PollFlags::IN));
        }
        let full = waiting >= WAITING_MAX;
        if !full {
            fds.push(PollFd::new(&self.notify, PollFlags::IN));
        }
        match poll(&mut fds, full.then_some(&SOON)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn pass_signals_on(&mut self) {
        while let Some(number) = self.signals.next() {
            let signal = PASSED_ON.into_iter().find(|signal| signal.as_raw() == number);
            let (Some(signal), Some(main)) = (signal, self.main) else { continue };
            // A terminal's keys are for the whole process group, the program included.
            let by_key = matches!(signal, Signal::INT | Signal::QUIT | Signal::WINCH);
            if !(by_key && in_foreground()) {
                // It may just have ended.
                let _ = kill_process(main, signal);
            }
        }
    }

    /// Takes note of every child that has ended, orphans of the program included.
    fn reap(&mut self) {
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
            let status = ExitStatus::from_raw(status.as_raw());
            let code = match (status.code(), status.signal()) {
                (Some(code), _) => code as u8,
                (None, Some(signal)) => 128_u8.saturating_add(signal as u8),
                (None, None) => continue,
            };
            if Some(pid) == self.main {
                self.status = Some(code);
            }
        }
    }

    /// Whether the program has. (That of a process which is nobody's child here has no status.)
    fn has_ended(&self) -> bool {
        self.status.is_some() || self.main.is_none_or(|main| !is_there(main))
    }

    fn hang_ups(&mut self, line: &Line) {
        let mut events = Vec::with_capacity(64);
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        let space = rustix::buffer::spare_capacity(&mut events);
        if epoll::wait(&*self.watch, space, Some(&now)).is_err() {
            return;
        }
        for event in events {
            line.send(Op::HungUp { token: event.data.u64() });
        }
    }

    /// Reads messages as long as fewer than so many requests wait.
    fn messages(&mut self, line: &Line, most: usize) {
        while line.waiting() < most {
            match self.notify.next() {
                Ok(Came::Message(message, files)) => {
                    if let Some(odd) = message.odd {
                        complain(odd);
                    }
                    self.pass_on(&message.passed_on);
                    self.name(message.main);
                    act(line, message.asked, files);
                }
                Ok(Came::Ignored(what)) => complain(&format!("ignored: {what}")),
                Ok(Came::Nothing) => return,
                Err(error) => {
                    complain(&format!("a message is lost: {error}"));
                    return;
                }
            }
        }
    }

    fn pass_on(&mut self, text: &str) {
        let Some(outer) = self.outer.as_ref().filter(|_| !text.is_empty()) else { return };
        match outer.send(text) {
            Ok(()) => self.outer_failed = false,
            Err(error) => {
                if !std::mem::replace(&mut self.outer_failed, true) {
                    complain(&format!("the service manager of luoctl does not hear: {error}"));
                }
            }
        }
    }

    /// The program is that process from now on, if it is there and came out of it.
    fn name(&mut self, main: Option<i32>) {
        let Some(pid) = main.and_then(Pid::from_raw).filter(|pid| Some(*pid) != self.main) else {
            return;
        };
        if descends(pid) && is_there(pid) {
            // Where there is none, the end of a child is told all the same.
            self.end = pidfd_open(pid, PidfdFlags::empty()).ok();
            (self.main, self.status) = (Some(pid), None);
        }
    }
}

fn act(line: &Line, asked: Asked, files: Vec<OwnedFd>) {
    match asked {
        Asked::Nothing => {}
        Asked::Store { .. } if files.is_empty() => {
            complain("FDSTORE=1 came without a descriptor");
        }
        Asked::Store { name, watched } => line.send(Op::Store { files, name, watched }),
        Asked::Remove { name } => line.send(Op::Remove { name }),
        Asked::Barrier => line.send(Op::Barrier { _held: files }),
        Asked::Wrong(why) => complain(&format!("ignored: {why}")),
    }
}

fn is_there(pid: Pid) -> bool {
    test_kill_process(pid) != Err(rustix::io::Errno::SRCH)
}

/// Whether a terminal's keys reach this process's group.
fn in_foreground() -> bool {
    tcgetpgrp(std::io::stdin().as_fd()).is_ok_and(|group| group == getpgrp())
}
