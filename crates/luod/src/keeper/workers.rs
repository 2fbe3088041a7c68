//! Workers are started, end, and are started again.
//!
//! Invariants:
//! - There is one worker, but while one takes over from another.
//! - One that dies is started again: at once, then after pauses that grow, then not at all until
//!   somebody asks for it.
//! - What a worker has not completed goes with it.

use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use luo_abi::keeper::Role;

use super::peer::Peer;
use super::process::Process;
use super::settings::Settings;
use super::{Keeper, log};

impl Keeper {
    pub(super) fn start_worker(&mut self) {
        self.incarnation += 1;
        match self.spawn(&self.program, Role::Primary) {
            Ok(worker) => {
                log(&format!(
                    "worker {} started, process {}",
                    self.incarnation,
                    worker.process.pid.as_raw_nonzero(),
                ));
                self.worker = Some(worker);
            }
            Err(error) => {
                log(&format!("the worker cannot be started: {error}"));
                self.died_quickly();
            }
        }
    }

    pub(super) fn spawn(&self, program: &OwnedFd, role: Role) -> io::Result<Peer> {
        let Settings { worker, listeners, .. } = &self.settings;
        Peer::spawn(program, worker, role, self.incarnation, listeners, &self.slots)
    }

    /// The worker has ended; its staged batch goes with it.
    pub(super) fn worker_gone(&mut self, how: &str) {
        let Some(worker) = self.worker.take() else { return };
        log(&format!("worker {how}"));
        if self.stopping.is_some() {
            return;
        }
        if self.upgrade.is_some() {
            // Its successor is there already: let that one finish, or fail.
            return self.old_worker_gone();
        }
        if worker.ready.is_some_and(|at| at.elapsed() >= self.settings.timing.settled) {
            self.deaths = 0;
        }
        self.died_quickly();
    }

    /// Kills a worker that cannot be relied upon any more; then it is as if it had died.
    pub(super) fn kill_worker(&mut self, why: &str) {
        let Some(worker) = &self.worker else { return };
        match worker.process.try_clone() {
            Ok(process) => self.kill(process),
            // Without a descriptor to wait for its end it is reaped with this process.
            Err(_) => worker.process.kill(),
        }
        self.worker_gone(&format!("{why}; it was killed"));
    }

    /// Plans the next start: at once, then after a pause that doubles, then not at all.
    pub(super) fn died_quickly(&mut self) {
        self.deaths += 1;
        let timing = &self.settings.timing;
        if self.deaths >= timing.deaths {
            return log(&format!(
                "the worker died at once {} times in a row: it is not started again. What was \
                 preserved is held, clients are turned away. Send SIGHUP to try again",
                self.deaths,
            ));
        }
        let pause = match self.deaths {
            1 => Duration::ZERO,
            deaths => (timing.backoff * 2_u32.saturating_pow(deaths - 2)).min(timing.backoff_max),
        };
        self.start = Some(Instant::now() + pause);
    }

    pub(super) fn kill(&mut self, process: Process) {
        process.kill();
        self.dying.push(process);
    }
}
