//! Upgrades: of the worker, by a candidate beside it; of the keeper, by `execve` in place.
//!
//! ```text
//! worker:  Restoring ──READY──→ Quiescing ──QUIESCED──→ TakingOver ──READY──→ done, RETIRE
//!              │                    │                       │
//!              └────────────────────┴───────────────────────┴── exit, REFUSE, deadline:
//!                                      candidate killed, RESUME to the old worker
//! keeper:  Checking ──exit 0──→ Waiting ──between two batches──→ execve
//!              └── other exit, deadline ──┴── execve fails: everything as it was, UPGRADED says why
//! ```
//!
//! Invariants:
//! - Until the candidate's second READY the old worker is the only one whose changes count.
//! - If the old worker dies meanwhile, it counts as quiesced: the candidate takes over as soon as
//!   it has everything. If the candidate fails too, the old program is started again.
//! - What was half done is never carried into another image: the keeper calls `execve` only where
//!   no upgrade, batch or message is under way.

use std::collections::BTreeSet;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{ChildStdout, Stdio};
use std::time::{Duration, Instant};

use luo_abi::keeper::{Header, Role, flag, op};
use luo_sys::{blocked, close_on_exec};
use rustix::io::Errno;

use super::peer::Peer;
use super::process::{self, Process};
use super::{Keeper, SIGNALS, Who, carry, log};

/// The longest deadline of an upgrade.
const MAX_DEADLINE: Duration = Duration::from_secs(3600);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Restoring,
    Quiescing,
    TakingOver,
}

/// A candidate beside the worker.
#[derive(Debug)]
pub(super) struct Upgrade {
    pub(super) candidate: Peer,
    program: OwnedFd,
    phase: Phase,
    /// Of the upgrade as a whole.
    overall: Instant,
    /// Of this phase.
    step: Instant,
    /// The candidate has asked for the slots; from there changes are noted.
    loaded: bool,
    /// Slots that changed since.
    changed: BTreeSet<u64>,
    /// Afterwards the keeper is upgraded too.
    keeper: bool,
}

impl Upgrade {
    pub(super) fn deadline(&self) -> Instant {
        let deadline = self.overall.min(self.step);
        self.candidate.closed.map_or(deadline, |closed| closed.min(deadline))
    }

    /// What to say when the deadline has passed.
    pub(super) fn late(&self) -> &'static str {
        match self.phase {
            _ if self.candidate.closed.is_some() => "the new worker closed its socket",
            Phase::Restoring => "the new worker did not restore everything in time",
            Phase::Quiescing => "the old worker did not come to rest in time",
            Phase::TakingOver => "the new worker did not take over in time",
        }
    }

    pub(super) fn loading(&mut self) {
        self.loaded = true;
        self.changed.clear();
    }

    pub(super) fn note(&mut self, key: u64) {
        if self.loaded {
            self.changed.insert(key);
        }
    }
}

/// The keeper's own upgrade.
#[derive(Debug)]
pub(super) struct Exec {
    program: OwnedFd,
    /// The new program decoding the state; `None` once it has.
    check: Option<(Process, ChildStdout)>,
    /// What it has to say: see [`carry::check`].
    proof: String,
    pub(super) deadline: Instant,
    /// What has been upgraded already, for the report.
    done: u32,
}

impl Exec {
    pub(super) fn check(&self) -> Option<&Process> {
        self.check.as_ref().map(|(process, _)| process)
    }

    /// What to say when the deadline has passed.
    pub(super) fn late(&self) -> &'static str {
        match self.check {
            Some(_) => "the new keeper did not check the state in time",
            None => {
                "there was no moment between two batches in time, or a file that was let go is still being closed"
            }
        }
    }
}

impl Keeper {
    /// Whether an upgrade can begin, and to which program, until when.
    pub(super) fn check_upgrade(
        &self,
        header: &Header,
        fds: &mut Vec<OwnedFd>,
    ) -> Result<(OwnedFd, Instant), Errno> {
        let ready = self.worker.as_ref().is_some_and(|worker| worker.ready.is_some());
        // A keeper that is to be replaced waits for the worker before to end: no need to refuse.
        let retiring = self.retiring.is_some() && header.flags.get() & flag::WORKER != 0;
        let busy =
            self.upgrade.is_some() || self.exec.is_some() || retiring || self.stopping.is_some();
        if busy || !ready {
            return Err(Errno::BUSY);
        }
        let deadline = Duration::from_millis(header.argument.get());
        if header.flags.get() == 0 || deadline.is_zero() || deadline > MAX_DEADLINE {
            return Err(Errno::INVAL);
        }
        let (Some(program), true) = (fds.pop(), fds.is_empty()) else { return Err(Errno::BADF) };
        Ok((program, Instant::now() + deadline))
    }

    pub(super) fn begin_upgrade(&mut self, what: u32, program: OwnedFd, overall: Instant) {
        if what & flag::WORKER == 0 {
            return self.begin_exec(program, overall, 0);
        }
        self.incarnation += 1;
        match self.spawn(&program, Role::Candidate) {
            Ok(candidate) => {
                log(&format!("upgrade: worker {} started beside the old one", self.incarnation));
                self.upgrade = Some(Upgrade {
                    candidate,
                    program,
                    phase: Phase::Restoring,
                    overall,
                    step: overall,
                    loaded: false,
                    changed: BTreeSet::new(),
                    keeper: what & flag::KEEPER != 0,
                });
            }
            Err(error) => self.resume_old(&format!("the new worker cannot be started: {error}")),
        }
    }

    /// The candidate has said READY: the first time it has restored everything, the second time it
    /// takes over.
    pub(super) fn candidate_ready(&mut self) {
        let Some(upgrade) = &mut self.upgrade else { return };
        match upgrade.phase {
            Phase::Restoring if upgrade.loaded => {
                upgrade.candidate.acknowledge(Ok(()));
                match &mut self.worker {
                    Some(worker) => {
                        worker.tell(op::QUIESCE, 0, "");
                        upgrade.phase = Phase::Quiescing;
                        upgrade.step = Instant::now() + self.settings.timing.step;
                        self.flush(Who::Worker);
                    }
                    None => self.send_changes(),
                }
            }
            Phase::TakingOver if !upgrade.candidate.streaming() => self.take_over(),
            _ => upgrade.candidate.acknowledge(Err(Errno::INVAL)),
        }
    }

    pub(super) fn worker_quiesced(&mut self) -> Result<(), Errno> {
        let phase = self.upgrade.as_ref().map(|upgrade| upgrade.phase);
        let (Some(worker), Some(Phase::Quiescing)) = (&mut self.worker, phase) else {
            return Err(Errno::INVAL);
        };
        worker.quiesced = true;
        worker.staged = Default::default();
        self.send_changes();
        Ok(())
    }

    /// The old worker changes nothing any more: the candidate gets what has changed.
    fn send_changes(&mut self) {
        let Some(upgrade) = &mut self.upgrade else { return };
        upgrade.candidate.send_changed(std::mem::take(&mut upgrade.changed));
        upgrade.phase = Phase::TakingOver;
        upgrade.step = Instant::now() + self.settings.timing.step;
        self.flush(Who::Candidate);
    }

    /// From here the candidate is the worker.
    fn take_over(&mut self) {
        let Some(Upgrade { mut candidate, program, overall, keeper, .. }) = self.upgrade.take()
        else {
            return;
        };
        candidate.acknowledge(Ok(()));
        candidate.ready = Some(Instant::now());
        self.program = program;
        self.deaths = 0;
        if let Some(mut old) = self.worker.replace(candidate) {
            old.tell(op::RETIRE, 0, "");
            self.retiring = Some((old, Instant::now() + self.settings.timing.step));
            self.flush(Who::Retiring);
        }
        log(&format!("upgrade: worker {} has taken over", self.incarnation));
        match keeper.then(|| self.program.try_clone()) {
            None => self.upgraded(flag::WORKER, ""),
            Some(Ok(program)) => self.begin_exec(program, overall, flag::WORKER),
            Some(Err(error)) => {
                self.upgraded(flag::WORKER, &format!("no descriptor for the new keeper: {error}"));
            }
        }
        self.flush(Who::Worker);
    }

    /// The old worker has died during the upgrade.
    pub(super) fn old_worker_gone(&mut self) {
        if self.upgrade.as_ref().is_some_and(|upgrade| upgrade.phase == Phase::Quiescing) {
            self.send_changes();
        }
    }

    /// The candidate cannot take over: it is killed, and the old worker serves on.
    pub(super) fn fail_upgrade(&mut self, reason: &str) {
        if let Some(upgrade) = self.upgrade.take() {
            self.kill(upgrade.candidate.process);
            self.resume_old(reason);
        }
    }

    /// The candidate has ended, and been reaped.
    pub(super) fn candidate_gone(&mut self, reason: &str) {
        if self.upgrade.take().is_some() {
            self.resume_old(reason);
        }
    }

    fn resume_old(&mut self, reason: &str) {
        log(&format!("upgrade failed: {reason}"));
        match &mut self.worker {
            Some(worker) => {
                worker.quiesced = false;
                worker.tell(op::RESUME, 0, reason);
                self.flush(Who::Worker);
            }
            None => self.start = Some(Instant::now()),
        }
    }

    /// Tells the worker that serves now how an upgrade ended.
    pub(super) fn upgraded(&mut self, done: u32, reason: &str) {
        if let Some(worker) = self.worker.as_mut().filter(|worker| worker.wire.is_some()) {
            worker.tell(op::UPGRADED, done, reason);
            self.flush(Who::Worker);
        }
    }

    fn begin_exec(&mut self, program: OwnedFd, deadline: Instant, done: u32) {
        let check = self.state(done | flag::KEEPER).and_then(|state| {
            let proof = carry::expected_proof(&state)?;
            let mut command = process::command(&program);
            command.args(&self.settings.check).stdin(Stdio::from(state)).stdout(Stdio::piped());
            let (process, mut child) = Process::spawn(&mut command)?;
            let stdout = child.stdout.take().ok_or_else(|| io::Error::other("no standard output"));
            stdout.map(|stdout| ((process, stdout), proof))
        });
        match check {
            Ok((check, proof)) => {
                self.exec = Some(Exec { program, check: Some(check), proof, deadline, done });
            }
            Err(error) => {
                let reason = format!("the new keeper cannot be checked: {error}");
                log(&reason);
                self.upgraded(done, &reason);
            }
        }
    }

    /// The new program has ended its check.
    pub(super) fn checked(&mut self) {
        let Some(exec) = &mut self.exec else { return };
        let Some((process, stdout)) = &mut exec.check else { return };
        let Some(how) = process.ended() else { return };
        // What it said is in the pipe by now; whoever else holds the pipe is not waited for.
        let mut said = [0; luo_abi::keeper::MAX_TEXT];
        let read = rustix::io::ioctl_fionbio(&*stdout, true)
            .map_err(io::Error::from)
            .and_then(|()| stdout.read(&mut said));
        let said = String::from_utf8_lossy(said.get(..read.unwrap_or(0)).unwrap_or_default());
        exec.check = None;
        if how == process::SUCCESS && said.lines().any(|line| line.ends_with(&exec.proof)) {
            return;
        }
        let reason = format!("the new keeper cannot take over: its check {how}: {}", said.trim());
        self.fail_exec(&reason);
    }

    pub(super) fn fail_exec(&mut self, reason: &str) {
        let Some(exec) = self.exec.take() else { return };
        log(&format!("upgrade of the keeper failed: {reason}"));
        if let Some((process, _)) = exec.check {
            self.kill(process);
        }
        self.upgraded(exec.done, reason);
    }

    /// Becomes the next keeper, where one was checked and nothing is under way.
    pub(super) fn execute_next_keeper(&mut self) {
        let Some(exec) = self.exec.as_ref().filter(|exec| exec.check.is_none()) else { return };
        let idle = self.worker.as_ref().is_none_or(Peer::idle)
            && self.upgrade.is_none()
            && self.retiring.is_none()
            && self.dying.is_empty()
            // A thread that waits in `close` may hold up `execve` for as long.
            && luo_carriers::closer::waiting() == 0
            && self.stopping.is_none();
        if idle {
            let reason = self.execute(&exec.program, exec.done | flag::KEEPER);
            self.fail_exec(&format!("the new keeper cannot be executed: {reason}"));
        }
    }

    /// Returns only if it fails, and then everything is as it was.
    fn execute(&self, program: &OwnedFd, done: u32) -> io::Error {
        let state = match self.state(done) {
            Ok(state) => state,
            Err(error) => return error,
        };
        let mut through: Vec<&OwnedFd> = vec![&self.program, &state];
        through.extend(&self.settings.listeners);
        through.extend(self.worker.as_ref().map(|worker| &worker.socket));
        through.extend(self.slots.from(0).flat_map(|(_, slot)| slot.fds.as_slice()));
        let mut command = process::command(program);
        command.args(&self.settings.resume).arg(state.as_raw_fd().to_string());
        log("upgrade: executing the new keeper");
        let opened = through.iter().try_for_each(|fd| close_on_exec(fd, false));
        let error = match opened {
            // Signals stay pending until the new image catches them.
            Ok(()) => blocked(&SIGNALS, || command.exec()).unwrap_or_else(|error| error),
            Err(error) => error,
        };
        for fd in through {
            // It cannot fail on an open descriptor, and every one of these is open.
            let _ = close_on_exec(fd, true);
        }
        error
    }

    fn state(&self, upgraded: u32) -> io::Result<OwnedFd> {
        carry::write(&carry::Parts {
            incarnation: self.incarnation,
            program: &self.program,
            worker: self.worker.as_ref().filter(|worker| worker.wire.is_some()),
            listeners: &self.settings.listeners,
            slots: &self.slots,
            upgraded,
        })
    }
}
