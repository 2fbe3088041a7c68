//! Starting a unit: its call is queued, or it is settled at once, or it waits for another call.
//!
//! Invariants:
//! - A unit for something whose earlier, late call has not returned is refused with EBUSY: nothing
//!   is ever called twice at once.
//! - A shared state has at most one call queued or in flight; who needs it meanwhile waits.

use crate::{
    Errno, Error, Failure, File, Orchestrator, Phase, SessionId, State, Token,
    cycle::{FileStep, Job, SharedStep, SubStep, TreeStep, Unit},
    registry::{HandlerId, SharedRetrieval, unknown_handler},
};

impl<F: File> Orchestrator<F> {
    /// Starts a unit: queues its call, or settles it at once, or lets it wait for another call.
    pub(crate) fn start(&mut self, job: Job) {
        match job.unit {
            Unit::File(session, token, step) => self.start_file(job, session, token, step),
            Unit::Shared(handler, step) => self.start_shared(job, handler, step),
            Unit::Subsystem(id, step) => {
                let boot = self
                    .subsystems
                    .iter()
                    .find(|sub| sub.id == id)
                    .and_then(|sub| self.boot.get(&sub.name).copied());
                let Some(sub) = self.sub(id) else { return self.cycle.settled(job.owner) };
                if step == SubStep::Boot
                    && let Some(data) = boot
                {
                    sub.data = data;
                }
                let undoing = job.owner.is_none() && step == SubStep::Cancel;
                let late = sub.call.is_some() || sub.doomed;
                match step {
                    _ if undoing => self.cycle.queue.push_back(job),
                    SubStep::Prepare if late => self.settle(job, Err(not_returned()), None),
                    // What is late is undone when it returns, and takes no part until then.
                    SubStep::Freeze | SubStep::Cancel if late => self.cycle.settled(job.owner),
                    _ if Self::takes_part(sub.state, step, boot.is_some()) => {
                        self.cycle.queue.push_back(job);
                    }
                    _ => self.cycle.settled(job.owner),
                }
            }
            Unit::Tree(step) => {
                let data = self.files_name.as_ref().is_some_and(|n| self.boot.contains_key(n));
                let Some(files) = self.files_sub() else { return self.cycle.settled(job.owner) };
                let wanted = match step {
                    TreeStep::Keep => true,
                    TreeStep::Read => data,
                    TreeStep::Forget => files.state == State::Frozen,
                    TreeStep::ForgetStray => !files.kept.is_empty(),
                    TreeStep::Release => files.state == State::Updated,
                };
                if !wanted {
                    self.cycle.settled(job.owner);
                } else if step == TreeStep::Keep && files.call.is_some() {
                    self.settle(job, Err(not_returned()), None);
                } else {
                    self.cycle.queue.push_back(job);
                }
            }
            Unit::Handover(_) => self.cycle.queue.push_back(job),
        }
    }

    pub(crate) fn start_file(
        &mut self,
        job: Job,
        session: SessionId,
        token: Token,
        step: FileStep,
    ) {
        match step {
            FileStep::Prepare | FileStep::Freeze | FileStep::Cancel => {
                self.start_outgoing(job, session, token, step);
            }
            FileStep::Retrieve => self.start_retrieve(job, session, token),
            FileStep::CanFinish | FileStep::Finish => {
                let Some(file) = self.sessions.incoming(session, token) else {
                    return self.cycle.settled(job.owner);
                };
                if file.call.is_some() && step == FileStep::CanFinish {
                    return self.settle(job, Err(not_returned()), None);
                }
                // Without a handler or data there is nobody to ask.
                let call = match step {
                    FileStep::CanFinish => file.handler.is_some() && file.data.is_some(),
                    _ => (file.handler.is_some() && file.data.is_some()) || !file.kept.is_empty(),
                };
                if call {
                    self.cycle.queue.push_back(job);
                } else if step == FileStep::CanFinish {
                    self.cycle.settled(job.owner);
                } else {
                    self.settle(job, Ok(crate::call::Answer::Done), None);
                }
            }
        }
    }

    pub(crate) fn start_outgoing(
        &mut self,
        job: Job,
        session: SessionId,
        token: Token,
        step: FileStep,
    ) {
        let Some(file) = self.sessions.outgoing(session, token) else {
            return self.cycle.settled(job.owner);
        };
        let undoing = job.owner.is_none() && step == FileStep::Cancel;
        if step == FileStep::Cancel && file.state == State::Normal && file.call.is_none() {
            // What was late has returned and was undone already.
            return self.cycle.settled(job.owner);
        }
        if (file.call.is_some() || file.doomed) && !undoing {
            if step == FileStep::Cancel {
                // It is undone when its late call returns.
                file.doomed = true;
                return self.cycle.settled(job.owner);
            }
            return self.settle(job, Err(not_returned()), None);
        }
        let Some(handler) = file.handler else {
            if step == FileStep::Cancel {
                return self.cycle.queue.push_back(job);
            }
            let failure = unknown_handler(&file.compatible);
            return self.settle(job, Err(failure), None);
        };
        if step == FileStep::Prepare
            && let Some(error) = self.out_of_reach(session, token)
        {
            return self.settle_error(job, error);
        }
        if step == FileStep::Prepare
            && let Some(shared) = self.handlers.shared(handler)
            && (shared.data.is_none() || shared.late)
        {
            let error = shared.failed.clone();
            let location = self.file_location(session, token, Some(handler));
            let error = match error {
                Some(error) => error.hitting(location),
                None => Error::new(Errno::Busy, "the handler's shared state is not held")
                    .in_phase(Phase::Prepare)
                    .at(location),
            };
            return self.settle_error(job, error);
        }
        self.cycle.queue.push_back(job);
    }

    /// Before a file come those that it needs, and before the first retrieval of a handler's file
    /// comes the one of its shared state.
    pub(crate) fn start_retrieve(&mut self, job: Job, session: SessionId, token: Token) {
        if !self.takes_its_turn(job, session, token) {
            return;
        }
        let Some(file) = self.sessions.incoming(session, token) else {
            return self.cycle.settled(job.owner);
        };
        let (Some(handler), Some(_)) = (file.handler, file.data) else {
            let failure = unknown_handler(&file.compatible);
            return self.settle(job, Err(failure), None);
        };
        let Some(shared) = self.handlers.shared(handler) else {
            return self.cycle.queue.push_back(job);
        };
        match &shared.retrieval {
            SharedRetrieval::Yes => self.cycle.queue.push_back(job),
            SharedRetrieval::Failed(error) => {
                let error = error.clone();
                let location = self.file_location(session, token, Some(handler));
                self.settle_error(job, error.hitting(location));
            }
            // Nothing arrived for it: the other side's handler shared nothing.
            SharedRetrieval::No if shared.data.is_none() && !shared.busy => {
                self.cycle.queue.push_back(job);
            }
            SharedRetrieval::No if shared.late => self.settle(job, Err(not_returned()), None),
            SharedRetrieval::No => {
                shared.waiters.push(job);
                if !shared.busy {
                    let unit = Unit::Shared(handler, SharedStep::Retrieve);
                    self.start_shared(Job { owner: None, unit }, handler, SharedStep::Retrieve);
                }
            }
        }
    }

    pub(crate) fn start_shared(&mut self, job: Job, handler: HandlerId, step: SharedStep) {
        let Some(shared) = self.handlers.shared(handler) else {
            return self.cycle.settled(job.owner);
        };
        if step == SharedStep::Prepare && !shared.busy && shared.data.is_none() {
            shared.failed = None;
        }
        let needed = match step {
            SharedStep::Prepare => shared.data.is_none() && shared.outgoing > 0,
            SharedStep::Freeze { force } => {
                shared.data.is_some()
                    && !shared.frozen
                    && shared.outgoing > 0
                    && (force || shared.frozen_files == shared.outgoing)
            }
            SharedStep::Drop => shared.data.is_some() && shared.users() == 0 && !shared.busy,
            SharedStep::Retrieve => {
                shared.data.is_some() && matches!(shared.retrieval, SharedRetrieval::No)
            }
        };
        if shared.late && step != SharedStep::Drop && (needed || step == SharedStep::Prepare) {
            return self.settle(job, Err(not_returned()), None);
        }
        if shared.busy && step != SharedStep::Drop {
            return shared.waiters.push(job);
        }
        if !needed {
            return self.cycle.settled(job.owner);
        }
        shared.busy = true;
        self.cycle.queue.push_back(job);
    }
}

/// The refusal of a call while an earlier one has not returned.
pub(crate) fn not_returned() -> Failure {
    Failure::new(Errno::Busy, "an earlier call that was late has not returned")
}
