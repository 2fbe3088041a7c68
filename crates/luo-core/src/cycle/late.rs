//! Calls that come back after their deadline.
//!
//! A late call counted as failed when its deadline passed, and the cycle went on. What it works on
//! is left alone until it returns; then what it did is undone, outside any transition.
//!
//! Invariants: nothing is undone while it is still being done; a late call that returned leaves
//! things as they would be if it had failed in time, except that a late retrieval is not thrown
//! away: its file is there after all.

use alloc::vec::Vec;

use crate::{
    Failure, File, Handle, Notice, Orchestrator, Phase, State,
    call::Answer,
    cycle::{FileStep, HandoverStep, Job, SharedStep, SubStep, TreeStep, Unit},
    registry::SharedRetrieval,
    table::Arrival,
};

impl<F: File> Orchestrator<F> {
    /// A call's deadline has passed: what it works on is left alone from now on.
    pub(crate) fn mark_late(&mut self, unit: Unit) {
        match unit {
            Unit::File(session, token, FileStep::Prepare | FileStep::Freeze | FileStep::Cancel) => {
                if let Some(file) = self.sessions.outgoing(session, token) {
                    file.doomed = true;
                }
            }
            Unit::File(..) | Unit::Handover(_) => {}
            Unit::Shared(handler, _) => {
                if let Some(shared) = self.handlers.shared(handler) {
                    shared.late = true;
                }
            }
            Unit::Subsystem(id, SubStep::Prepare | SubStep::Freeze | SubStep::Cancel) => {
                if let Some(sub) = self.sub(id) {
                    sub.doomed = true;
                }
            }
            Unit::Subsystem(..) | Unit::Tree(_) => {}
        }
    }

    /// A late call has returned.
    pub(crate) fn returned(
        &mut self,
        unit: Unit,
        result: Result<Answer<F>, Failure>,
        kept: Option<Vec<Handle>>,
    ) {
        let alone = |unit| Job { owner: None, unit };
        match unit {
            Unit::File(session, token, step @ (FileStep::Prepare | FileStep::Freeze)) => {
                let Some(file) = self.sessions.outgoing(session, token) else { return };
                let handler = file.handler;
                if let Some(kept) = kept {
                    file.kept = kept;
                }
                if let Ok(Answer::Data(data)) = result {
                    file.data = data;
                    if file.state == State::Normal {
                        file.state = State::Prepared;
                    }
                }
                let undo = file.state != State::Normal;
                if undo {
                    self.start(alone(Unit::File(session, token, FileStep::Cancel)));
                } else {
                    debug_assert!(step == FileStep::Prepare, "a frozen file was prepared");
                    self.cancelled(session, token);
                    self.drop_shared(handler);
                }
            }
            Unit::File(session, token, FileStep::Cancel) => {
                let handler = self.sessions.outgoing(session, token).and_then(|f| f.handler);
                self.cancelled(session, token);
                self.undone(Phase::Cancel, self.file_location(session, token, handler));
                self.drop_shared(handler);
            }
            Unit::File(session, token, FileStep::Retrieve) => {
                if let Ok(Answer::File(file)) = result {
                    let waits = self
                        .sessions
                        .incoming(session, token)
                        .is_some_and(|file| matches!(file.arrival, Arrival::Failed { .. }));
                    if waits {
                        self.retrieved(session, token, file, kept);
                        self.notices.push_back(Notice::Retrieved { session, token });
                    }
                }
            }
            // An answer nobody waits for, and a file that is gone already.
            Unit::File(_, _, FileStep::CanFinish | FileStep::Finish) => {}
            Unit::Shared(handler, step) => {
                let Some(shared) = self.handlers.shared(handler) else { return };
                if let Some(kept) = kept {
                    shared.kept = kept;
                }
                match (step, result) {
                    (SharedStep::Prepare, Ok(Answer::Data(data)))
                    | (SharedStep::Freeze { .. }, Ok(Answer::Data(data))) => {
                        shared.data = Some(data);
                    }
                    (SharedStep::Retrieve, Ok(_)) => shared.retrieval = SharedRetrieval::Yes,
                    (SharedStep::Drop, _) => shared.clear(),
                    _ => {}
                }
                self.drop_shared(Some(handler));
            }
            Unit::Subsystem(id, step) => {
                let Some(sub) = self.sub(id) else { return };
                if let Some(kept) = kept {
                    sub.kept = kept;
                }
                match step {
                    SubStep::Prepare | SubStep::Freeze => {
                        if let Ok(Answer::Data(data)) = result {
                            sub.data = data;
                            if sub.state == State::Normal {
                                sub.state = State::Prepared;
                            }
                        }
                        if sub.state == State::Normal {
                            sub.doomed = false;
                        } else {
                            self.start(alone(Unit::Subsystem(id, SubStep::Cancel)));
                        }
                    }
                    SubStep::Cancel => {
                        let location = sub.location();
                        sub.state = State::Normal;
                        sub.data = 0;
                        sub.kept = Vec::new();
                        sub.doomed = false;
                        self.undone(Phase::Cancel, location);
                    }
                    SubStep::Boot => {
                        if result.is_ok() {
                            sub.left_out = None;
                        }
                    }
                    SubStep::Finish => {
                        sub.state = State::Normal;
                        sub.data = 0;
                        sub.kept = Vec::new();
                    }
                }
                self.dirty.machine = true;
            }
            Unit::Tree(step) => {
                let Some(files) = self.files_sub() else { return };
                if let (TreeStep::Keep, Ok(Answer::Data(data))) = (step, result) {
                    files.kept.push(Handle(data));
                    self.start(alone(Unit::Tree(TreeStep::ForgetStray)));
                }
            }
            Unit::Handover(step) => {
                if step == HandoverStep::Commit && result.is_ok() {
                    self.start(alone(Unit::Handover(HandoverStep::Revoke)));
                }
                if step == HandoverStep::Revoke && result.is_ok() {
                    self.departed = false;
                }
            }
        }
    }
}
