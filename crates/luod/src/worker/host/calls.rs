//! The framework's calls: quick ones run here, others on threads, participants' in their processes.
//!
//! Invariants:
//! - Each call that was taken from the framework is completed: by its outcome, by its deadline, or
//!   because the thread that ran it has gone.
//! - A handler's panic is a failure of its call, and of nothing else.
//! - A handover that outlives this worker is noted in the keeper before it is laid down.

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use luo_carriers::HostFile;
use luo_core::{Call, CallId, CarrierId, Failure, Location, Outcome, Phase, TransitionId};
use tokio::sync::mpsc;

use super::Host;
use crate::worker::carriers::Shared;
use crate::worker::moments;

/// Handler calls that one thread gets at a time.
pub(super) const CALLS_PER_THREAD: usize = 512;

/// How long a handler may take without a sign of life before its call counts as late.
const HANDLER_DEADLINE: Duration = Duration::from_secs(60);

/// A participant's call that is on its way.
#[derive(Debug)]
pub(super) struct Remote {
    phase: Phase,
    location: Location,
    transition: Option<TransitionId>,
    start: Instant,
}

/// What one handler call gave, from its thread.
struct Done {
    id: CallId,
    outcome: Outcome<HostFile>,
    start: Instant,
    end: Instant,
}

impl Host {
    pub(super) fn call_participant(self: &Rc<Self>, call: &Call<HostFile>) {
        let name = call.location().subsystem.as_ref().map(ToString::to_string).unwrap_or_default();
        let (id, phase) = (call.id(), call.phase());
        let remote = Remote {
            phase,
            location: call.location().clone(),
            transition: call.transition(),
            start: Instant::now(),
        };
        self.remote.borrow_mut().insert(id, remote);
        let called =
            self.participants.borrow_mut().call(&name, id, phase, call.data().unwrap_or(0));
        match called {
            Err(failure) => self.answered(id, Outcome::failed(failure)),
            Ok(deadline) => {
                let host = Rc::clone(self);
                tokio::task::spawn_local(async move {
                    tokio::time::sleep(deadline).await;
                    if host.participants.borrow().is_open(id) {
                        let reason = format!(
                            "participant {name} did not answer {phase} within {} ms",
                            deadline.as_millis()
                        );
                        host.answered(id, Outcome::late(reason));
                        host.pump();
                        host.commit();
                    }
                });
            }
        }
    }

    /// A participant's call has ended, or is late.
    pub(crate) fn answered(&self, id: CallId, outcome: Outcome<HostFile>) {
        if let Some(remote) = self.remote.borrow_mut().remove(&id) {
            self.time(
                remote.transition,
                remote.phase,
                &remote.location,
                remote.start,
                Instant::now(),
            );
        }
        // An answer to a call that the framework has given up is no error of anybody's.
        if let Err(error) = self.core.borrow_mut().complete(id, outcome) {
            tracing::debug!(%error, "an answer came too late");
        }
    }

    /// Runs a handler call that waits for nobody.
    pub(super) fn call_quickly(&self, call: &Call<HostFile>) {
        // Only what a transition takes is told to anybody.
        let start = call.transition().map(|_| Instant::now());
        let carrier = self.carriers.through(call.carrier());
        let ran = std::panic::catch_unwind(AssertUnwindSafe(|| run(call, &*carrier)));
        let outcome = ran.unwrap_or_else(|_| Outcome::failed(no_result()));
        if let Some(start) = start {
            self.time(call.transition(), call.phase(), call.location(), start, Instant::now());
        }
        if let Err(error) = self.core.borrow_mut().complete(call.id(), outcome) {
            tracing::debug!(%error, "a call ended that was not open any more");
        }
    }

    /// Runs handler calls on a thread of their own.
    pub(super) fn call_handlers(self: &Rc<Self>, calls: Vec<Call<HostFile>>) {
        let mut open: HashMap<CallId, (Phase, Location, Option<TransitionId>)> = calls
            .iter()
            .map(|call| (call.id(), (call.phase(), call.location().clone(), call.transition())))
            .collect();
        let calls: Vec<(Call<HostFile>, Arc<Shared>)> = calls
            .into_iter()
            .map(|call| {
                let carrier = self.carriers.through(call.carrier());
                (call, carrier)
            })
            .collect();
        // A handover that outlives this worker is noted before it is laid down: the next one looks for
        // it only where it was noted.
        let commits = |(call, _): &(Call<_>, _)| {
            call.phase() == Phase::Depart && call.carrier() != CarrierId::NEAR
        };
        let noted = calls.iter().any(commits).then(|| self.commit());
        let (sender, mut receiver) = mpsc::unbounded_channel();
        self.running.set(self.running.get() + 1);
        let run = move || {
            for (call, carrier) in calls {
                let start = Instant::now();
                let outcome = run(&call, &*carrier);
                let done = Done { id: call.id(), outcome, start, end: Instant::now() };
                // Who learns of the end may open the arena again at once: it is let go of before.
                drop(carrier);
                if sender.send(done).is_err() {
                    return;
                }
            }
        };
        let host = Rc::clone(self);
        let waiting = match noted {
            Some(ticket) => Some((ticket, run)),
            None => {
                tokio::task::spawn_blocking(run);
                None
            }
        };
        tokio::task::spawn_local(async move {
            if let Some((ticket, run)) = waiting {
                match ticket.await {
                    Ok(()) => {
                        tokio::task::spawn_blocking(run);
                    }
                    Err(refusal) => {
                        // With it goes what would tell of an outcome.
                        drop(run);
                        for (id, _) in open.drain() {
                            let reason = format!("it cannot be noted: {}", refusal.reason());
                            let failure = Failure::new(luo_core::Errno::Io, reason);
                            host.answered(id, Outcome::failed(failure));
                        }
                    }
                }
            }
            let copying = Arc::clone(&host.carriers.copying);
            let mut beats = copying.beats();
            loop {
                match tokio::time::timeout(HANDLER_DEADLINE, receiver.recv()).await {
                    Ok(Some(done)) => {
                        host.handled(&mut open, done);
                        while let Ok(done) = receiver.try_recv() {
                            host.handled(&mut open, done);
                        }
                    }
                    Ok(None) => break,
                    Err(_) if copying.beats() != beats => beats = copying.beats(),
                    Err(_) => {
                        for (id, (phase, location, _)) in open.drain() {
                            let reason = format!(
                                "{phase} of {location} did not end within {} s",
                                HANDLER_DEADLINE.as_secs()
                            );
                            let late = Outcome::late(reason);
                            if let Err(error) = host.core.borrow_mut().complete(id, late) {
                                tracing::debug!(%error, "a late call was not open any more");
                            }
                        }
                    }
                }
                host.pump();
            }
            // A handler that panicked takes its thread along: its calls have failed.
            for (id, _) in open.drain() {
                let outcome = Outcome::failed(no_result());
                if let Err(error) = host.core.borrow_mut().complete(id, outcome) {
                    tracing::debug!(%error, "a failed call was not open any more");
                }
            }
            host.running.set(host.running.get() - 1);
            host.pump();
            host.commit();
            host.idle.notify_waiters();
        });
    }

    fn handled(
        &self,
        open: &mut HashMap<CallId, (Phase, Location, Option<TransitionId>)>,
        done: Done,
    ) {
        if let Some((phase, location, transition)) = open.remove(&done.id) {
            self.time(transition, phase, &location, done.start, done.end);
        }
        if let Err(error) = self.core.borrow_mut().complete(done.id, done.outcome) {
            tracing::debug!(%error, "a call ended that was not open any more");
        }
    }
}

/// Runs a handler call.
fn run(call: &Call<HostFile>, carrier: &Shared) -> Outcome<HostFile> {
    moments::reach("call", call.phase().name());
    let outcome = call.run(carrier);
    moments::reach("called", call.phase().name());
    outcome
}

/// A handler panicked.
fn no_result() -> Failure {
    let reason = "the handler ended without a result; this is a bug of the handler";
    Failure::new(luo_core::Errno::Io, reason)
}
