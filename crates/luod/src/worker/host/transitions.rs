//! Transitions: begun for who asks, awaited, and told.
//!
//! Invariants:
//! - A transition's end is told only after the keeper has its records, but for a
//!   [step](Host::run_step), whose end is told to nobody but the one who commits it.
//! - What goes on does so when the one who asked has gone.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use luo::protocol;
use luo_carriers::HostFile;
use luo_core::{Error, FinishOptions, Notice, Orchestrator, Report, SessionId, TransitionId};
use tokio::sync::oneshot;

use super::Host;
use crate::worker::moments;
use crate::worker::refusal::Refusal;
use crate::worker::timing::{Timings, micros};

/// How a transition ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) report: Report,
    pub(crate) total: Duration,
    pub(crate) timings: RefCell<Option<Timings>>,
}

impl Ended {
    /// Whether it was stopped in the middle, by a cancel, and undone.
    fn was_cancelled(&self) -> bool {
        self.report.state == luo_core::State::Normal
            && matches!(&self.report.result, Err(error) if error.errno() == luo_core::Errno::Canceled)
    }

    /// As the interface tells it.
    pub(crate) fn to_protocol(&self) -> Result<protocol::Report, Refusal> {
        if let Err(error) = &self.report.result {
            return Err(error.into());
        }
        Ok(self.told_as(self.report.event.name()))
    }

    /// As the interface tells it to who has cancelled it.
    pub(crate) fn told_as(&self, event: &str) -> protocol::Report {
        let timings = self.timings.borrow_mut().take();
        protocol::Report {
            event: event.to_owned(),
            state: state(self.report.state),
            microseconds: micros(self.total),
            timings: timings.map(Timings::into_protocol).unwrap_or_default(),
            left_out: self.report.left_out.iter().map(|error| *Refusal::from(error).0).collect(),
            needs: None,
        }
    }
}

/// The framework's state in the words of the interface.
pub(crate) fn state(state: luo_core::State) -> protocol::State {
    match state {
        luo_core::State::Normal => protocol::State::Normal,
        luo_core::State::Prepared => protocol::State::Prepared,
        luo_core::State::Frozen => protocol::State::Frozen,
        luo_core::State::Updated => protocol::State::Updated,
    }
}

/// A transition that has begun.
#[derive(Debug)]
pub(crate) struct Awaited(oneshot::Receiver<Result<Rc<Ended>, Refusal>>);

impl Awaited {
    /// Its end, once the keeper has its records.
    pub(crate) async fn end(self) -> Result<Rc<Ended>, Refusal> {
        self.0.await.unwrap_or_else(|_| {
            Err(Refusal::new(luo_core::Errno::Canceled, "luod is being stopped; ask again"))
        })
    }
}

/// What a transition is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    /// Itself.
    Own,
    /// One step of several, which are kept together: its end is told at once.
    Step,
    /// To finish a session, as this request asks.
    Finish(SessionId, u64),
}

#[derive(Debug)]
pub(super) struct Transition {
    pub(super) timings: Timings,
    waiters: Vec<oneshot::Sender<Result<Rc<Ended>, Refusal>>>,
    purpose: Purpose,
}

impl Host {
    /// Begins a transition; what comes out is told once the keeper has its records.
    fn begin(
        self: &Rc<Self>,
        purpose: Purpose,
        start: impl FnOnce(&mut Orchestrator<HostFile>) -> Result<TransitionId, Error>,
    ) -> Result<Awaited, Refusal> {
        let id = start(&mut self.core.borrow_mut())?;
        self.time_machine(id);
        let (waiter, waiting) = oneshot::channel();
        // A cancel of what is going on is that transition: both wait for its end.
        self.transitions
            .borrow_mut()
            .entry(id)
            .or_insert_with(|| Transition {
                timings: Timings::new(Instant::now()),
                waiters: Vec::new(),
                purpose,
            })
            .waiters
            .push(waiter);
        self.pump();
        Ok(Awaited(waiting))
    }

    /// Finishes a session's live update. The request is noted with the records of its end, and
    /// neither sooner nor later: a repetition is known by it.
    pub(crate) async fn finish_session(
        self: &Rc<Self>,
        id: SessionId,
        options: FinishOptions,
        request: u64,
    ) -> Result<(), Refusal> {
        let start =
            |core: &mut Orchestrator<HostFile>| core.finish(luo_core::Scope::Session(id), options);
        succeeded(self.begin(Purpose::Finish(id, request), start)?.end().await?).map(drop)
    }

    /// A participant that has just come may be taking its boot data: who finishes now waits for that, as
    /// long as the participant may take for it, and is refused then.
    pub(crate) async fn participants_have_booted(&self) {
        let wait = Duration::from_millis(self.config.participants.deadline_milliseconds);
        let booted = async {
            loop {
                let changed = self.idle.notified();
                tokio::pin!(changed);
                // From here on no change is missed.
                changed.as_mut().enable();
                if !self.core.borrow().is_booting() {
                    return;
                }
                changed.await;
            }
        };
        // What is refused then says who is late.
        let _ = tokio::time::timeout(wait, booted).await;
    }

    /// Begins a transition and waits for its end; a failed one is a refusal.
    pub(crate) async fn run(
        self: &Rc<Self>,
        start: impl FnOnce(&mut Orchestrator<HostFile>) -> Result<TransitionId, Error>,
    ) -> Result<Rc<Ended>, Refusal> {
        succeeded(self.begin(Purpose::Own, start)?.end().await?)
    }

    /// Cancels what is going on or what was reached; the end of either is what was asked for.
    pub(crate) async fn cancel(
        self: &Rc<Self>,
        scope: luo_core::Scope,
    ) -> Result<Rc<Ended>, Refusal> {
        let start = |core: &mut Orchestrator<HostFile>| core.begin(scope, luo_core::Event::Cancel);
        if scope == luo_core::Scope::Machine {
            self.take_departure_back().await?;
        }
        let cancelling = self.begin(Purpose::Own, start)?;
        if scope == luo_core::Scope::Machine {
            // Not before it is allowed: what arrived would not be copied back any more.
            self.carriers.copying.cancel();
        }
        let ended = cancelling.end().await?;
        if ended.was_cancelled() { Ok(ended) } else { succeeded(ended) }
    }

    /// As [`run`](Self::run), for one step of several: the keeper gets its records with those of
    /// the steps after it. Whoever asks for it commits before anybody is told.
    pub(crate) async fn run_step(
        self: &Rc<Self>,
        start: impl FnOnce(&mut Orchestrator<HostFile>) -> Result<TransitionId, Error>,
    ) -> Result<Rc<Ended>, Refusal> {
        succeeded(self.begin(Purpose::Step, start)?.end().await?)
    }

    pub(super) fn notice(self: &Rc<Self>, notice: Notice) {
        match notice {
            Notice::Ended(report) => self.ended(report),
            Notice::Retrieved { .. } => {}
            Notice::Booted { subsystem, result } => {
                let text = match result {
                    Ok(()) => format!("{subsystem} has got its data"),
                    Err(error) => format!("{subsystem} could not take its data: {error}"),
                };
                self.tell("participant", None, text);
            }
            Notice::Undone(error) => self.tell("failure", None, format!("undone: {error}")),
            Notice::Removed(subsystem) => {
                self.tell("participant", None, format!("{subsystem} has gone"));
            }
            _ => {}
        }
    }

    fn ended(self: &Rc<Self>, report: Report) {
        let transition = self.transitions.borrow_mut().remove(&report.id);
        let (total, timings, waiters, purpose) = match transition {
            Some(Transition { timings, waiters, purpose }) => {
                (timings.total(Instant::now()), Some(timings), waiters, purpose)
            }
            None => (Duration::ZERO, None, Vec::new(), Purpose::Own),
        };
        self.time_ended(&report, timings.as_ref(), total);
        if let (Purpose::Finish(id, request), Ok(())) = (purpose, &report.result) {
            self.persisted.borrow_mut().session_extra(id).finished_by = request;
        }
        let (session, what) = match report.scope {
            luo_core::Scope::Machine => (None, Some("machine".to_owned())),
            luo_core::Scope::Session(id) | luo_core::Scope::File(id, _) => {
                let name = self.core.borrow().session(id).map(|info| info.name.to_string());
                let what = name.as_ref().map(|name| format!("session {name}"));
                (name, what)
            }
        };
        // That a session has ended is told by whoever ended it.
        if let Some(what) = what {
            self.tell_ended(&report, session, &what, total);
        }
        if report.scope == luo_core::Scope::Machine {
            self.close_arena_after_use();
        }
        self.sessions_changed.notify_waiters();
        let ended = Rc::new(Ended { report, total, timings: RefCell::new(timings) });
        if purpose == Purpose::Step {
            for waiter in waiters {
                // Who asked may have gone.
                let _ = waiter.send(Ok(Rc::clone(&ended)));
            }
            return;
        }
        let event = ended.report.event.name();
        moments::reach("ended", event);
        self.note_departure(&ended.report);
        let ticket = self.commit();
        let host = Rc::clone(self);
        tokio::task::spawn_local(async move {
            let kept = ticket.await.map(|()| ended);
            moments::reach("kept", event);
            if kept.is_ok() {
                host.end_arrival().await;
            }
            if let Err(refusal) = &kept {
                let reason = refusal.reason();
                tracing::error!(reason, "the keeper did not take the records of a transition");
            }
            for waiter in waiters {
                // Who asked may have gone.
                let _ = waiter.send(kept.clone());
            }
        });
    }

    fn tell_ended(&self, report: &Report, session: Option<String>, what: &str, total: Duration) {
        let text = match &report.result {
            Ok(()) => format!(
                "{what}: {} done in {} us, state {}",
                report.event,
                micros(total),
                report.state
            ),
            Err(error) => format!("{what}: {} failed: {error}", report.event),
        };
        self.tell(if report.result.is_ok() { "state" } else { "failure" }, session, text);
        for error in &report.left_out {
            self.tell("failure", None, format!("{} goes on without: {error}", report.event));
        }
    }
}

/// A failed transition is a refusal.
fn succeeded(ended: Rc<Ended>) -> Result<Rc<Ended>, Refusal> {
    match &ended.report.result {
        Ok(()) => Ok(ended),
        Err(error) => Err(error.into()),
    }
}
