//! How units end that are not files: shared states, subsystems, the files' tree, the handover.
//!
//! Invariants: a failure of shared state in `freeze`, of the files' tree or of the handover fails
//! the transition; one of a subsystem that is optional, or that cannot boot, is only reported.

use alloc::vec::Vec;

use crate::{
    Criticality, Errno, Error, Failure, File, Handle, Location, Notice, Orchestrator, Phase, State,
    call::Answer,
    cycle::{
        HandoverStep, Job, Mode, SharedStep, SubStep, TreeStep, Unit,
        settle::{Settled, data},
    },
    registry::{HandlerId, SharedRetrieval},
    subsystems::SubId,
};

impl<F: File> Orchestrator<F> {
    // --- Shared state.

    pub(crate) fn settle_shared(
        &mut self,
        job: Job,
        id: HandlerId,
        step: SharedStep,
        result: Settled<F>,
        kept: Option<Vec<Handle>>,
    ) {
        let location =
            Location { subsystem: self.files_name.clone(), ..self.handlers.location(Some(id)) };
        let Some(shared) = self.handlers.shared(id) else {
            return self.cycle.settled(job.owner);
        };
        if let Some(kept) = kept {
            shared.kept = kept;
        }
        let mut failed = None;
        match (step, result) {
            (SharedStep::Prepare, Ok(answer)) => {
                shared.data = Some(data(&answer));
                shared.frozen = false;
            }
            // The files that asked for it fail with it, when their turn comes.
            (SharedStep::Prepare, Err(failure)) => {
                shared.failed = Some(Error::from_failure(failure, Phase::Prepare, location));
            }
            (SharedStep::Freeze { .. }, Ok(answer)) => {
                shared.data = Some(data(&answer));
                shared.frozen = true;
            }
            (SharedStep::Freeze { .. }, Err(failure)) => {
                failed = Some(Error::from_failure(failure, Phase::Freeze, location));
            }
            (SharedStep::Retrieve, Ok(_)) => shared.retrieval = SharedRetrieval::Yes,
            (SharedStep::Retrieve, Err(failure)) => {
                let error = Error::from_failure(failure, Phase::Retrieve, location);
                shared.retrieval = SharedRetrieval::Failed(error);
            }
            (SharedStep::Drop, Ok(_)) => shared.clear(),
            (SharedStep::Drop, Err(failure)) => {
                let phase = if shared.arrived { Phase::Finish } else { Phase::Cancel };
                if !shared.late {
                    shared.clear();
                }
                failed = Some(Error::from_failure(failure, phase, location));
            }
        }
        if let Some(error) = failed {
            self.fail(job.owner, error);
        }
        self.dirty.machine = true;
        self.cycle.settled(job.owner);
    }

    // --- Subsystems.

    pub(crate) fn settle_subsystem(
        &mut self,
        job: Job,
        id: SubId,
        step: SubStep,
        result: Settled<F>,
        kept: Option<Vec<Handle>>,
    ) {
        self.dirty.machine = true;
        let Some(sub) = self.sub(id) else { return self.cycle.settled(job.owner) };
        let (location, name) = (sub.location(), sub.name.clone());
        let optional = sub.options.criticality == Criticality::Optional;
        if let Some(kept) = kept {
            sub.kept = kept;
        }
        match (step, result) {
            (SubStep::Prepare | SubStep::Freeze, Ok(answer)) => {
                sub.data = data(&answer);
                sub.left_out = None;
                sub.state = if step == SubStep::Freeze { State::Frozen } else { State::Prepared };
            }
            (SubStep::Prepare | SubStep::Freeze, Err(failure)) => {
                let freeze = step == SubStep::Freeze;
                let phase = if freeze { Phase::Freeze } else { Phase::Prepare };
                let error = Error::from_failure(failure, phase, location);
                if optional {
                    sub.left_out = Some(error.clone());
                    if let Some(transition) = self.cycle.get(job.owner) {
                        transition.left_out.push(error);
                        if freeze {
                            transition.to_cancel.push(Unit::Subsystem(id, SubStep::Cancel));
                        }
                    }
                } else {
                    self.fail(job.owner, error);
                }
            }
            (SubStep::Cancel | SubStep::Finish, result) => {
                if sub.call.is_none() {
                    sub.state = State::Normal;
                    sub.data = 0;
                    sub.kept = Vec::new();
                    sub.doomed = false;
                    if job.owner.is_none() {
                        self.undone(Phase::Cancel, location.clone());
                    }
                }
                if let Err(failure) = result {
                    let phase = if step == SubStep::Cancel { Phase::Cancel } else { Phase::Finish };
                    self.fail(job.owner, Error::from_failure(failure, phase, location));
                }
            }
            (SubStep::Boot, result) => {
                // Also after a failure: what was handed over to it is released by `finish`.
                sub.state = State::Updated;
                let result = result
                    .map(|_| ())
                    .map_err(|failure| Error::from_failure(failure, Phase::Boot, location));
                sub.left_out = result.as_ref().err().cloned();
                match (self.cycle.get(job.owner), result) {
                    (Some(transition), Err(error)) => transition.left_out.push(error),
                    (Some(_), Ok(())) => {}
                    (None, result) => {
                        self.notices.push_back(Notice::Booted { subsystem: name, result });
                    }
                }
            }
        }
        self.cycle.settled(job.owner);
    }

    // --- The files' tree and the handover.

    pub(crate) fn settle_tree(&mut self, job: Job, step: TreeStep, result: Settled<F>) {
        self.dirty.machine = true;
        let location = Location { subsystem: self.files_name.clone(), ..Location::default() };
        let at = location.clone();
        let failed = |failure, phase| Error::from_failure(failure, phase, at);
        match (step, result) {
            (TreeStep::Keep, Ok(answer)) => {
                if let Some(files) = self.files_sub() {
                    files.data = data(&answer);
                    files.state = State::Frozen;
                }
            }
            (TreeStep::Keep, Err(failure)) => {
                let error = failed(failure, Phase::Freeze);
                self.fail(job.owner, error);
            }
            (TreeStep::Read, Ok(Answer::Files(arrived))) => self.files_arrived(job, arrived),
            (TreeStep::Read, Ok(_)) => {
                let failure = Failure::new(Errno::Inval, "the driver answered without the tree");
                let error = failed(failure, Phase::Boot);
                self.boot_failed(job, error);
            }
            (TreeStep::Read, Err(failure)) => {
                let error = failed(failure, Phase::Boot);
                self.boot_failed(job, error);
            }
            (TreeStep::ForgetStray, _) => self.undone(Phase::Freeze, location),
            (TreeStep::Forget | TreeStep::Release, result) => {
                if let Some(files) = self.files_sub() {
                    files.state = State::Normal;
                    files.data = 0;
                    files.left_out = None;
                }
                if let Err(failure) = result {
                    let phase =
                        if step == TreeStep::Forget { Phase::Cancel } else { Phase::Finish };
                    let error = failed(failure, phase);
                    self.fail(job.owner, error);
                }
            }
        }
        self.cycle.settled(job.owner);
    }

    pub(crate) fn settle_handover(&mut self, job: Job, step: HandoverStep, result: Settled<F>) {
        self.dirty.machine = true;
        let failed = |failure, phase| Error::from_failure(failure, phase, Location::default());
        match (step, result) {
            // Nothing was handed over: a plain start.
            (HandoverStep::Find, Ok(Answer::Handover(None))) => {}
            (HandoverStep::Find, Ok(Answer::Handover(Some(blob)))) => {
                if let Err(error) = self.handover_found(job.owner, &blob) {
                    self.fail(job.owner, error);
                }
            }
            (HandoverStep::Find, Ok(_)) => {
                let failure = Failure::new(Errno::Inval, "the driver answered without a handover");
                self.fail(job.owner, failed(failure, Phase::Arrive));
            }
            (HandoverStep::Find, Err(failure)) => {
                self.fail(job.owner, failed(failure, Phase::Arrive));
            }
            (HandoverStep::Commit, Ok(_)) => self.departed = true,
            (HandoverStep::Commit, Err(failure)) => {
                let error = failed(failure, Phase::Depart)
                    .advise("everything is still frozen: depart again, or cancel");
                self.fail(job.owner, error);
            }
            (HandoverStep::Revoke, Ok(_)) => {
                self.departed = false;
                if job.owner.is_none() {
                    self.undone(Phase::Depart, Location::default());
                }
            }
            (HandoverStep::Revoke, Err(failure)) => {
                // Nothing may be undone while the other side could still find the handover.
                let error = failed(failure, Phase::Cancel)
                    .advise("everything is still frozen: cancel again");
                if let Some(transition) = self.cycle.get(job.owner) {
                    transition.stuck = true;
                    transition.stages.clear();
                    if transition.mode == Mode::Final {
                        transition.failure = Some(error);
                    } else {
                        transition.left_out.push(error);
                    }
                }
            }
            (HandoverStep::Retire, Ok(_)) => {}
            (HandoverStep::Retire, Err(failure)) => {
                let error = failed(failure, Phase::Finish)
                    .advise("the next handover that is committed replaces the finished one");
                self.fail(job.owner, error);
            }
        }
        self.cycle.settled(job.owner);
    }
}
