//! How units end: what a call's outcome changes. Files are here, the rest in `settle_parts`.
//!
//! Invariants:
//! - A failure of something optional never fails the transition; a failure of something required
//!   always does.
//! - What hangs on shared state lets go of it exactly once: when it is not prepared any more.

use alloc::{format, vec::Vec};

use crate::{
    CallId, CarrierId, Criticality, Errno, Error, Failure, File, FileKey, Handle, Level, Location,
    Notice, Orchestrator, Outcome, Phase, SessionId, Side, State, Token,
    call::Answer,
    cycle::{FileStep, Job, SharedStep, Unit},
    registry::HandlerId,
    table::Arrival,
};

pub(crate) type Settled<F> = Result<Answer<F>, Failure>;

/// What data an answer gave; a driver that answers `done` to a `prepare` means none.
pub(crate) fn data<F: File>(answer: &Answer<F>) -> u64 {
    match answer {
        Answer::Data(data) => *data,
        _ => 0,
    }
}

impl<F: File> Orchestrator<F> {
    /// A call has ended, or ([`Outcome::late`]) has not.
    ///
    /// # Errors
    /// ENOENT where no such call is in flight; EBUSY where it was reported late already.
    pub fn complete(&mut self, call: CallId, outcome: Outcome<F>) -> Result<(), Error> {
        let Some(flight) = self.cycle.in_flight.get_mut(&call) else {
            return Err(Error::new(Errno::NoEnt, format!("no call {} is in flight", call.0)));
        };
        let job = flight.job;
        match (outcome.late, flight.late) {
            (true, true) => {
                return Err(Error::new(Errno::Busy, "the call was reported late already"));
            }
            (true, false) => {
                flight.late = true;
                self.mark_late(job.unit);
                self.settle(job, outcome.result, None);
            }
            (false, late) => {
                self.cycle.in_flight.remove(&call);
                self.set_call(job.unit, None);
                if late {
                    self.returned(job.unit, outcome.result, outcome.kept);
                } else {
                    if let (Unit::File(session, token, _), Ok(_)) = (job.unit, &outcome.result) {
                        self.take_bond(session, token, outcome.bond, outcome.given);
                    }
                    self.settle(job, outcome.result, outcome.kept);
                }
            }
        }
        if let Unit::Shared(handler, _) = job.unit {
            self.restart_waiters(handler);
        }
        self.pump();
        self.remove_gone();
        Ok(())
    }

    /// Settles a unit with how its call ended, or with why there is no call.
    pub(crate) fn settle(&mut self, job: Job, result: Settled<F>, kept: Option<Vec<Handle>>) {
        match job.unit {
            Unit::File(session, token, FileStep::Prepare | FileStep::Freeze) => {
                self.settle_keep(job, session, token, result, kept);
            }
            Unit::File(session, token, FileStep::Cancel) => {
                self.settle_cancel(job, session, token, result);
            }
            Unit::File(session, token, FileStep::Retrieve) => {
                self.settle_retrieve(job, session, token, result, kept);
            }
            Unit::File(session, token, FileStep::CanFinish) => {
                self.settle_can_finish(job, session, token, result);
            }
            Unit::File(session, token, FileStep::Finish) => {
                self.settle_finish(job, session, token, result);
            }
            Unit::Shared(handler, step) => self.settle_shared(job, handler, step, result, kept),
            Unit::Subsystem(id, step) => self.settle_subsystem(job, id, step, result, kept),
            Unit::Tree(step) => self.settle_tree(job, step, result),
            Unit::Handover(step) => self.settle_handover(job, step, result),
        }
    }

    /// As `settle`, of a file whose failure is already an error.
    pub(crate) fn settle_error(&mut self, job: Job, error: Error) {
        match job.unit {
            Unit::File(session, token, FileStep::Retrieve) => {
                self.retrieve_failed(job, session, token, error);
            }
            Unit::File(session, token, _) => self.keep_failed(job, session, token, error),
            _ => {
                self.fail(job.owner, error);
                self.cycle.settled(job.owner);
            }
        }
    }

    fn level(&mut self, job: Job) -> Level {
        self.cycle.get(job.owner).map_or(Level::File, |transition| transition.level())
    }

    pub(crate) fn file_dirty(&mut self, session: SessionId, side: Side, token: Token) {
        self.dirty.files.insert(FileKey { session, side, token });
    }

    // --- Outgoing files.

    fn settle_keep(
        &mut self,
        job: Job,
        session: SessionId,
        token: Token,
        result: Settled<F>,
        kept: Option<Vec<Handle>>,
    ) {
        let freeze = matches!(job.unit, Unit::File(_, _, FileStep::Freeze));
        let level = self.level(job);
        let Some(file) = self.sessions.outgoing(session, token) else {
            return self.cycle.settled(job.owner);
        };
        if let Some(kept) = kept {
            file.kept = kept;
        }
        match result {
            Ok(answer) => {
                file.data = data(&answer);
                file.level = level;
                file.left_out = None;
                file.state = if freeze { State::Frozen } else { State::Prepared };
                if freeze {
                    let handler = file.handler.filter(|_| file.holds_shared);
                    if let Some(shared) = handler.and_then(|id| self.handlers.shared(id)) {
                        shared.frozen_files += 1;
                    }
                }
                self.file_dirty(session, Side::Outgoing, token);
                self.cycle.settled(job.owner);
            }
            Err(failure) => {
                let phase = if freeze { Phase::Freeze } else { Phase::Prepare };
                let handler = file.handler;
                let location = self.file_location(session, token, handler);
                let error = Error::from_failure(failure, phase, location);
                self.keep_failed(job, session, token, error);
            }
        }
    }

    /// A `prepare` or `freeze` of a file failed.
    pub(crate) fn keep_failed(&mut self, job: Job, session: SessionId, token: Token, error: Error) {
        let alone = self.cycle.get(job.owner).is_some_and(|t| t.level() == Level::File);
        let Some(file) = self.sessions.outgoing(session, token) else {
            return self.cycle.settled(job.owner);
        };
        let optional = file.criticality == Criticality::Optional && !alone;
        let prepared = file.state != State::Normal;
        if optional {
            file.left_out = Some(error.clone());
        }
        if !prepared && file.call.is_none() && !file.doomed {
            self.let_go(session, token);
        }
        if optional {
            if let Some(transition) = self.cycle.get(job.owner) {
                transition.left_out.push(error);
                if prepared {
                    transition.to_cancel.push(Unit::File(session, token, FileStep::Cancel));
                }
            }
        } else {
            self.fail(job.owner, error);
        }
        self.file_dirty(session, Side::Outgoing, token);
        self.cycle.settled(job.owner);
    }

    /// An outgoing file does not hang on its handler's shared state any more.
    pub(crate) fn let_go(&mut self, session: SessionId, token: Token) {
        let Some(file) = self.sessions.outgoing(session, token) else { return };
        if !core::mem::take(&mut file.holds_shared) {
            return;
        }
        let frozen = usize::from(file.state == State::Frozen);
        if let Some(shared) = file.handler.and_then(|id| self.handlers.shared(id)) {
            shared.outgoing = shared.outgoing.saturating_sub(1);
            shared.frozen_files = shared.frozen_files.saturating_sub(frozen);
        }
    }

    fn settle_cancel(&mut self, job: Job, session: SessionId, token: Token, result: Settled<F>) {
        let Some(file) = self.sessions.outgoing(session, token) else {
            return self.cycle.settled(job.owner);
        };
        let handler = file.handler;
        match result {
            Err(failure) if file.call.is_some() => {
                // It is late: it is cancelled when it returns.
                let location = self.file_location(session, token, handler);
                let error = Error::from_failure(failure, Phase::Cancel, location);
                self.fail(job.owner, error);
            }
            result => {
                self.cancelled(session, token);
                if let Err(failure) = result {
                    let location = self.file_location(session, token, handler);
                    let error = Error::from_failure(failure, Phase::Cancel, location);
                    self.fail(job.owner, error);
                }
                if job.owner.is_none() {
                    self.undone(Phase::Cancel, self.file_location(session, token, handler));
                    self.drop_shared(handler);
                }
            }
        }
        self.cycle.settled(job.owner);
    }

    /// An outgoing file is back to being registered only.
    pub(crate) fn cancelled(&mut self, session: SessionId, token: Token) {
        self.let_go(session, token);
        if let Some(file) = self.sessions.outgoing(session, token) {
            file.state = State::Normal;
            file.data = 0;
            file.kept = Vec::new();
            file.doomed = false;
        }
        self.unbind(session, token);
        self.choose_one(session, token, CarrierId::NEAR);
        self.file_dirty(session, Side::Outgoing, token);
    }

    /// Outside any transition: drops shared state that nothing hangs on any more.
    pub(crate) fn drop_shared(&mut self, handler: Option<HandlerId>) {
        if let Some(id) = handler {
            self.start(Job { owner: None, unit: Unit::Shared(id, SharedStep::Drop) });
        }
    }

    pub(crate) fn undone(&mut self, phase: Phase, location: Location) {
        let reason = "a call that was late has returned after all, and was undone";
        let error = Error::new(Errno::TimedOut, reason).in_phase(phase).at(location);
        self.notices.push_back(Notice::Undone(error));
    }

    // --- Incoming files.

    fn settle_retrieve(
        &mut self,
        job: Job,
        session: SessionId,
        token: Token,
        result: Settled<F>,
        kept: Option<Vec<Handle>>,
    ) {
        match result {
            Ok(Answer::File(file)) => {
                self.retrieved(session, token, file, kept);
                self.tell_retrieved(session, token);
                self.cycle.settled(job.owner);
            }
            Ok(_) => {
                let failure = Failure::new(Errno::Inval, "the driver answered without a file");
                self.settle_retrieve(job, session, token, Err(failure), kept);
            }
            Err(failure) => {
                let handler = self.sessions.incoming(session, token).and_then(|f| f.handler);
                let location = self.file_location(session, token, handler);
                let error = Error::from_failure(failure, Phase::Retrieve, location);
                self.retrieve_failed(job, session, token, error);
            }
        }
    }

    /// An incoming file is here.
    pub(crate) fn retrieved(
        &mut self,
        session: SessionId,
        token: Token,
        file: F,
        kept: Option<Vec<Handle>>,
    ) {
        let Some(there) = self.sessions.peek_mut(session) else { return };
        let Some(arrived) = there.incoming.get_mut(&token) else { return };
        let pinned = file.pinned();
        there.pinned = there.pinned.saturating_sub(arrived.pinned).saturating_add(pinned);
        arrived.pinned = pinned;
        arrived.arrival = Arrival::Retrieved(file);
        if let Some(kept) = kept {
            arrived.kept = kept;
        }
        self.file_dirty(session, Side::Incoming, token);
    }

    pub(crate) fn retrieve_failed(
        &mut self,
        job: Job,
        session: SessionId,
        token: Token,
        error: Error,
    ) {
        if let Some(file) = self.sessions.incoming(session, token) {
            file.arrival = Arrival::Failed { error: error.clone(), told: false };
        }
        self.file_dirty(session, Side::Incoming, token);
        self.tell_retrieved(session, token);
        if job.owner.is_some() {
            let error = error.advise("release the file instead of carrying it");
            self.fail(job.owner, error);
        }
        self.cycle.settled(job.owner);
    }

    /// A retrieval has ended: its owner is told, and who waited for it goes on.
    pub(crate) fn tell_retrieved(&mut self, session: SessionId, token: Token) {
        self.notices.push_back(Notice::Retrieved { session, token });
        self.restart_followers(session, token);
    }

    fn settle_can_finish(
        &mut self,
        job: Job,
        session: SessionId,
        token: Token,
        result: Settled<F>,
    ) {
        let refusal = match result {
            Ok(Answer::May(true)) => None,
            Ok(_) => {
                Some(Failure::new(Errno::Busy, "its handler says that it cannot be finished yet"))
            }
            Err(failure) => Some(failure),
        };
        if let Some(failure) = refusal {
            let handler = self.sessions.incoming(session, token).and_then(|f| f.handler);
            let location = self.file_location(session, token, handler);
            let error = Error::from_failure(failure, Phase::CanFinish, location)
                .advise("nothing was finished; try again later");
            self.fail(job.owner, error);
        }
        self.cycle.settled(job.owner);
    }

    fn settle_finish(&mut self, job: Job, session: SessionId, token: Token, result: Settled<F>) {
        let handler = self.sessions.incoming(session, token).and_then(|f| f.handler);
        if let Err(failure) = result {
            let location = self.file_location(session, token, handler);
            let error = Error::from_failure(failure, Phase::Finish, location);
            self.fail(job.owner, error);
        }
        self.finished(session, token);
        self.cycle.settled(job.owner);
    }
}
