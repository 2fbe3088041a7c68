//! The keeper: the parent process of luod's worker, which holds what must outlive it.
//!
//! ```text
//!            spawn          READY
//!   (none) ────────→ started ────→ serving ──UPGRADE──→ serving + candidate ──→ (see upgrade.rs)
//!     ↑                 │             │
//!     │   back-off      │  it dies    │
//!     ├─────────────────┴─────────────┘
//!     │ SIGHUP
//!   failed   five quick deaths: connections are accepted and answered with an error
//! ```
//!
//! Invariants:
//! - Nothing here waits for a worker, and nothing grows with what a worker sends beyond the
//!   [`Limits`]: the only place where the process sleeps is one `poll`.
//! - There is no parser: messages are structs of fixed layout, records are never looked into.
//! - A worker owns nothing: it may die, or be killed, after any instruction. What was acknowledged
//!   to it is held; a batch that was not complete is dropped.
//! - One thread: no lock, no other `execve` or `fork` at the same time.

mod carry;
#[doc(hidden)]
pub mod fuzzing;
mod kernel;
mod messages;
mod peer;
mod process;
mod settings;
mod slots;
mod upgrade;
pub(crate) mod wire;
mod workers;

use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::time::Instant;

use luo_abi::keeper::op;
use luo_sys::Signals;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{SendFlags, SocketFlags, accept_with, send};
use rustix::process::Signal;

use peer::Peer;
use process::Process;
use settings::spare_fds;
use slots::Slots;
use upgrade::{Exec, Upgrade};
use wire::Scratch;

pub use carry::{StateError, check};
pub use settings::{Error, Settings, Timing};
pub use slots::Limits;

/// What a client reads that connects while no worker can be started.
const WORKER_FAILED: &[u8] =
    b"{\"error\":\"io.luo.WorkerFailed\",\"parameters\":{\"reason\":\"the \
    worker of luod dies at once, again and again; what was preserved is held; see the log of \
    luod, and send SIGHUP to the keeper to try again\"}}\0";
/// So many messages of one worker are taken before others have their turn.
const TURN: usize = 32;
/// The signals that the keeper acts on.
const SIGNALS: [i32; 3] = [Signal::TERM.as_raw(), Signal::INT.as_raw(), Signal::HUP.as_raw()];

/// Why a keeper has stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stopped {
    /// A signal said so.
    Asked,
    /// The machine has departed through a carrier that reaches farther: nothing is held here any
    /// more that is not there.
    Departed,
}

/// Keeps until SIGTERM or SIGINT, or until the machine has departed elsewhere; then the worker has been stopped, and what was held is closed
/// with this process.
///
/// # Errors
/// [`Error`], before anything is held, or when the kernel refuses what cannot be done without.
pub fn run(settings: Settings) -> Result<Stopped, Error> {
    let path = &settings.program;
    let program = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
        .map_err(|error| Error::Program { path: path.clone(), source: error.into() })?;
    if settings.listeners.len() > luo_abi::keeper::MAX_FDS {
        return Err(Error::Listeners(settings.listeners.len()));
    }
    Keeper::new(settings, program)?.keep()
}

/// Goes on where the keeper before has called `execve`: `state` is the descriptor's number that it
/// has appended to [`Settings::resume`]. To be called before anything else opens descriptors.
///
/// # Errors
/// As [`run`], and [`Error::State`].
pub fn resume(mut settings: Settings, state: i32) -> Result<Stopped, Error> {
    let carried = carry::adopt(state)?;
    settings.listeners = carried.listeners;
    let mut keeper = Keeper::new(settings, carried.program)?;
    keeper.incarnation = carried.incarnation;
    keeper.worker = carried.worker;
    for (key, slot) in carried.slots {
        keeper.slots.insert(key, slot);
    }
    log(&format!(
        "took over {} slots with {} descriptors from the keeper before",
        keeper.slots.len(),
        keeper.slots.fds(),
    ));
    keeper.upgraded(carried.upgraded, "");
    keeper.keep()
}

struct Keeper {
    settings: Settings,
    program: OwnedFd,
    signals: Signals,
    slots: Slots,
    worker: Option<Peer>,
    upgrade: Option<Upgrade>,
    exec: Option<Exec>,
    /// A worker that was replaced, and when it is killed.
    retiring: Option<(Peer, Instant)>,
    /// Children that were killed and have not ended yet.
    dying: Vec<Process>,
    incarnation: u64,
    /// Quick deaths in a row.
    deaths: u32,
    /// When the next worker is started, where there is none.
    start: Option<Instant>,
    /// SIGTERM has come; the worker is killed then.
    stopping: Option<Instant>,
    /// The worker has left with everything.
    departed: bool,
    scratch: Scratch,
}

/// Whose descriptor a poll is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Who {
    Signals,
    Worker,
    WorkerExit,
    Candidate,
    CandidateExit,
    Retiring,
    RetiringExit,
    CheckExit,
    Dying,
    Listener(usize),
}

impl Keeper {
    fn new(settings: Settings, program: OwnedFd) -> Result<Self, Error> {
        let signals = Signals::install(&SIGNALS)
            .map_err(|source| Error::System { what: "cannot catch signals", source })?;
        for listener in &settings.listeners {
            // In the end state the keeper accepts, and it must never wait.
            rustix::io::ioctl_fionbio(listener, true).map_err(|error| Error::System {
                what: "cannot make a listening socket non-blocking",
                source: error.into(),
            })?;
        }
        let mut limits = settings.limits;
        limits.fds = limits.fds.min(spare_fds()?);
        Ok(Self {
            settings,
            program,
            signals,
            slots: Slots::new(limits),
            worker: None,
            upgrade: None,
            exec: None,
            retiring: None,
            dying: Vec::new(),
            incarnation: 0,
            deaths: 0,
            start: Some(Instant::now()),
            stopping: None,
            departed: false,
            scratch: Scratch::new(),
        })
    }

    fn keep(mut self) -> Result<Stopped, Error> {
        loop {
            self.deadlines();
            self.execute_next_keeper();
            if self.stopping.is_some() && self.worker.is_none() {
                return Ok(if self.departed { Stopped::Departed } else { Stopped::Asked });
            }
            for (who, ready) in self.wait()? {
                self.handle(who, ready);
            }
        }
    }

    /// The one place where the process sleeps.
    fn wait(&self) -> Result<Vec<(Who, PollFlags)>, Error> {
        let mut whose = vec![Who::Signals];
        let mut fds = vec![PollFd::new(&self.signals, PollFlags::IN)];
        let now = Instant::now();
        let candidate = self.upgrade.as_ref().map(|upgrade| &upgrade.candidate);
        let retiring = self.retiring.as_ref().map(|(peer, _)| peer);
        for (who, exit, peer) in [
            (Who::Worker, Who::WorkerExit, self.worker.as_ref()),
            (Who::Candidate, Who::CandidateExit, candidate),
            (Who::Retiring, Who::RetiringExit, retiring),
        ] {
            let Some(peer) = peer else { continue };
            let hear = who != Who::Retiring && peer.listens();
            let mut flags = PollFlags::empty();
            flags.set(PollFlags::IN, hear);
            flags.set(PollFlags::OUT, peer.sends(now));
            if !flags.is_empty() {
                whose.push(who);
                fds.push(PollFd::new(&peer.socket, flags));
            }
            // After the socket: what a worker said before it ended counts.
            whose.push(exit);
            fds.push(PollFd::new(&peer.process, PollFlags::IN));
        }
        for process in &self.dying {
            whose.push(Who::Dying);
            fds.push(PollFd::new(process, PollFlags::IN));
        }
        if let Some(check) = self.exec.as_ref().and_then(Exec::check) {
            whose.push(Who::CheckExit);
            fds.push(PollFd::new(check, PollFlags::IN));
        }
        if self.failed() {
            for (number, listener) in self.settings.listeners.iter().enumerate() {
                whose.push(Who::Listener(number));
                fds.push(PollFd::new(listener, PollFlags::IN));
            }
        }
        let pause = self.next_deadline().map(|at| at.saturating_duration_since(now));
        let timeout = pause.and_then(|pause| Timespec::try_from(pause).ok());
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => {
                return Err(Error::System { what: "cannot wait for events", source: error.into() });
            }
        }
        let ready = whose.iter().zip(&fds).filter(|(_, fd)| !fd.revents().is_empty());
        Ok(ready.map(|(who, fd)| (*who, fd.revents())).collect())
    }

    fn handle(&mut self, who: Who, ready: PollFlags) {
        match who {
            Who::Signals => {
                while let Some(signal) = self.signals.next() {
                    self.signal(signal);
                }
            }
            Who::Worker | Who::Candidate | Who::Retiring => {
                if ready.contains(PollFlags::OUT) {
                    self.flush(who);
                }
                if ready.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) {
                    self.hear(who);
                }
            }
            Who::WorkerExit => {
                if let Some(how) = self.worker.as_ref().and_then(|worker| worker.process.ended()) {
                    self.worker_gone(&how);
                }
            }
            Who::CandidateExit => {
                let candidate = self.upgrade.as_ref().map(|upgrade| &upgrade.candidate);
                if let Some(how) = candidate.and_then(|candidate| candidate.process.ended()) {
                    self.candidate_gone(&format!("the new worker {how}"));
                }
            }
            Who::RetiringExit => {
                if self.retiring.as_ref().is_some_and(|(peer, _)| peer.process.ended().is_some()) {
                    self.retiring = None;
                }
            }
            Who::CheckExit => self.checked(),
            Who::Dying => self.dying.retain(|process| process.ended().is_none()),
            Who::Listener(number) => self.turn_away(number),
        }
    }

    /// The end state: dead at once, too often in a row.
    fn failed(&self) -> bool {
        self.worker.is_none() && self.deaths >= self.settings.timing.deaths
    }

    fn signal(&mut self, signal: i32) {
        if signal != Signal::HUP.as_raw() {
            self.stop("stopping");
        } else if self.failed() {
            log("SIGHUP: trying to start the worker again");
            self.deaths = 0;
            self.start = Some(Instant::now());
        }
    }

    fn stop(&mut self, why: &str) {
        log(why);
        let now = Instant::now();
        self.stopping.get_or_insert(now + self.settings.timing.stop);
        self.fail_upgrade("luod is being stopped");
        self.fail_exec("luod is being stopped");
        if let Some(worker) = &mut self.worker {
            worker.tell(op::STOP, 0, "");
            self.flush(Who::Worker);
        }
    }

    /// Acts on what is due.
    fn deadlines(&mut self) {
        let now = Instant::now();
        let timing = self.settings.timing;
        if let Some(worker) = &self.worker {
            if worker.closed.is_some_and(|at| at <= now) {
                self.kill_worker("closed its socket");
            } else if worker.ready.is_none() && worker.started + timing.ready <= now {
                self.kill_worker("was not ready in time");
            } else if self.stopping.is_some_and(|at| at <= now) {
                self.kill_worker("did not stop in time");
            }
        }
        if let Some(upgrade) = self.upgrade.as_ref().filter(|upgrade| upgrade.deadline() <= now) {
            let reason = upgrade.late();
            self.fail_upgrade(reason);
        }
        if let Some(exec) = self.exec.as_ref().filter(|exec| exec.deadline <= now) {
            let reason = exec.late();
            self.fail_exec(reason);
        }
        if self.retiring.as_ref().is_some_and(|(_, at)| *at <= now) {
            log("the old worker did not exit in time and is killed");
            if let Some((peer, _)) = self.retiring.take() {
                self.kill(peer.process);
            }
        }
        if self.start.is_some_and(|at| at <= now) {
            self.start = None;
            if self.worker.is_none() && self.upgrade.is_none() && self.stopping.is_none() {
                self.start_worker();
            }
        }
    }

    fn next_deadline(&self) -> Option<Instant> {
        let timing = &self.settings.timing;
        let worker = self.worker.as_ref();
        let candidate = self.upgrade.as_ref().map(|upgrade| &upgrade.candidate);
        [
            self.start,
            worker.filter(|peer| peer.ready.is_none()).map(|peer| peer.started + timing.ready),
            worker.and_then(|peer| peer.paused),
            worker.and_then(|peer| peer.closed),
            candidate.and_then(|peer| peer.paused),
            self.upgrade.as_ref().map(Upgrade::deadline),
            self.exec.as_ref().map(|exec| exec.deadline),
            self.retiring.as_ref().map(|(_, at)| *at),
            self.stopping,
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Answers connections in the end state, a few at a time.
    fn turn_away(&mut self, number: usize) {
        let Some(listener) = self.settings.listeners.get(number) else { return };
        for _ in 0..TURN {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let Ok(client) = accept_with(listener, flags) else { return };
            let _ = send(&client, WORKER_FAILED, SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
        }
    }
}

/// One line on standard error. Dropped where nobody reads it: the keeper waits for no one.
fn log(line: &str) {
    let stderr = io::stderr();
    let mut fds = [PollFd::new(&stderr, PollFlags::OUT)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    if matches!(poll(&mut fds, Some(&now)), Ok(1)) {
        // So much a pipe that is ready takes without waiting.
        let line = format!("luod keeper: {line:.1000}\n");
        let _ = stderr.lock().write_all(line.as_bytes());
    }
}
