//! What calls and transitions take: for who asked for a transition, and for the live update's timeline.
//!
//! Invariants:
//! - Both sides of the machine's update are timed; what sessions do for themselves is not in its
//!   timeline.
//! - Times are noted before the call that writes them down runs.

use std::time::{Duration, Instant};

use luo_abi::TimelinePhase;
use luo_carriers::HostFile;
use luo_core::{
    Call, Event as CycleEvent, Location, Phase, Report, Scope, SessionId, TransitionId,
};

use super::Host;
use crate::worker::timeline;
use crate::worker::timing::Timings;

impl Host {
    /// The machine's own transitions are timed for both sides of its update.
    pub(super) fn time_machine(&self, id: TransitionId) {
        if self.transitions.borrow().contains_key(&id) {
            return;
        }
        let core = self.core.borrow();
        let (number, carrier) = (core.number() + 1, self.carriers.name(core.carrier()));
        match core.status().transition {
            Some(CycleEvent::Prepare) => self.timeline.prepares(number, carrier),
            Some(CycleEvent::Freeze) => self.timeline.freezes(number, carrier),
            _ => {}
        }
    }

    /// Before the call that writes the times down: what was timed so far goes along.
    pub(super) fn note_times(&self, call: &Call<HostFile>) {
        let is_it = call.phase() == Phase::Freeze
            && call.location().subsystem.as_ref().is_some_and(|name| **name == *timeline::NAME);
        let transitions = self.transitions.borrow();
        let transition = call.transition().filter(|_| is_it).and_then(|id| transitions.get(&id));
        if let Some(transition) = transition {
            self.timeline.frozen(transition.timings.parts());
        }
    }

    /// A transition has ended: what of it belongs to a live update's times.
    pub(super) fn time_ended(&self, report: &Report, timings: Option<&Timings>, total: Duration) {
        let began = timings.map_or_else(Instant::now, Timings::began);
        let done = report.result.is_ok();
        let (event, scope) = (report.event, report.scope);
        match (event, scope) {
            (CycleEvent::Prepare, Scope::Machine) if done => {
                self.timeline.prepared(timings.map(Timings::parts).unwrap_or_default());
            }
            (CycleEvent::Prepare | CycleEvent::Freeze, Scope::Machine) if !done => {
                self.timeline.cancelled();
            }
            (CycleEvent::Cancel, Scope::Machine) => self.timeline.cancelled(),
            (CycleEvent::Arrive, Scope::Machine) if done => {
                self.timeline.took(TimelinePhase::Arrive, None, began, total);
            }
            (CycleEvent::Finish, Scope::Machine) if done => {
                self.timeline.took(TimelinePhase::Finish, None, began, total);
            }
            (CycleEvent::Finish, Scope::Session(id)) if done => {
                self.time_session(TimelinePhase::Finish, id, began);
            }
            _ => {}
        }
    }

    /// Something was done for a session, from `began` to now: told of the machine's update alone.
    pub(crate) fn time_session(&self, phase: TimelinePhase, id: SessionId, began: Instant) {
        let core = self.core.borrow();
        if core.status().state != luo_core::State::Updated {
            return;
        }
        if let Some(info) = core.session(id) {
            self.timeline.took(phase, Some(&info.name), began, began.elapsed());
        }
    }

    pub(super) fn time(
        &self,
        transition: Option<TransitionId>,
        phase: Phase,
        location: &Location,
        start: Instant,
        end: Instant,
    ) {
        let mut transitions = self.transitions.borrow_mut();
        if let Some(transition) = transition.and_then(|id| transitions.get_mut(&id)) {
            transition.timings.add(phase, location, start, end);
        }
    }
}
