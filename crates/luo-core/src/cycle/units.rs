//! From stages to units: what is to be done, as things stand when a stage starts.
//!
//! Invariants:
//! - Files are taken in the order of session and token, and in reverse for `cancel`.
//! - What a transition has not given out when it fails is taken back, and leaves no trace.

use alloc::{collections::BTreeSet, vec::Vec};

use crate::{
    Error, File, Level, Orchestrator, Scope, SessionId, State, Token, TransitionId,
    cycle::{FileStep, Job, Mode, SharedStage, SharedStep, Stage, Undo, Unit},
    registry::HandlerId,
    table::Arrival,
};

impl<F: File> Orchestrator<F> {
    /// Starts a stage.
    pub(crate) fn expand(&mut self, id: TransitionId, stage: Stage) {
        let Some(transition) = self.cycle.transitions.get_mut(&id) else { return };
        // A guard, so that a unit that is settled at once does not end the stage.
        transition.pending = 1;
        let (scope, level) = (transition.scope, transition.level());
        let units = match stage {
            Stage::Shared(stage) => self.shared_units(scope, stage),
            Stage::Files(step) => {
                let units = self.file_units(scope, step, level);
                if step == FileStep::Finish { self.in_finishing_order(id, units) } else { units }
            }
            Stage::Finish(units) => units,
            Stage::Together(step) => {
                self.keep_together(id, scope, step);
                Vec::new()
            }
            Stage::CancelFiles(undo) => self.cancel_units(scope, undo),
            Stage::CancelLeftOut => core::mem::take(&mut transition.to_cancel),
            Stage::Subsystems(ids, step) => {
                ids.into_iter().map(|id| Unit::Subsystem(id, step)).collect()
            }
            Stage::Tree(step) => alloc::vec![Unit::Tree(step)],
            Stage::Handover(step) => alloc::vec![Unit::Handover(step)],
            Stage::CommitToFinish => {
                self.commit_to_finish(id);
                Vec::new()
            }
        };
        for unit in units {
            let Some(transition) = self.cycle.transitions.get_mut(&id) else { return };
            if transition.failure.is_some() && transition.mode == Mode::Forward {
                break;
            }
            transition.pending += 1;
            self.start(Job { owner: Some(id), unit });
        }
        self.cycle.settled(Some(id));
    }

    /// The sessions of a scope.
    pub(crate) fn scope_sessions(&self, scope: Scope) -> Vec<SessionId> {
        match scope {
            Scope::Machine => self.sessions.iter().map(|(id, _)| id).collect(),
            Scope::Session(session) | Scope::File(session, _) => alloc::vec![session],
        }
    }

    pub(crate) fn in_scope(scope: Scope, token: Token) -> bool {
        !matches!(scope, Scope::File(_, only) if only != token)
    }

    fn file_units(&mut self, scope: Scope, step: FileStep, level: Level) -> Vec<Unit> {
        let mut units = Vec::new();
        for id in self.scope_sessions(scope) {
            let Some(session) = self.sessions.peek_mut(id) else { continue };
            match step {
                FileStep::Prepare => {
                    units.extend(
                        session
                            .outgoing
                            .iter()
                            .filter(|(token, f)| {
                                Self::in_scope(scope, **token)
                                    && (f.state == State::Normal || f.doomed)
                            })
                            .map(|(token, _)| Unit::File(id, *token, step)),
                    );
                }
                FileStep::Freeze => {
                    // From here on this level answers for them: if it fails, it cancels them.
                    if session.state == State::Prepared && level > Level::File {
                        session.level = level;
                    }
                    for (token, file) in &mut session.outgoing {
                        if Self::in_scope(scope, *token)
                            && file.state == State::Prepared
                            && !file.doomed
                        {
                            file.level = level;
                            units.push(Unit::File(id, *token, step));
                        }
                    }
                }
                FileStep::Retrieve | FileStep::CanFinish | FileStep::Finish => {
                    units.extend(
                        session
                            .incoming
                            .iter()
                            .filter(|(token, _)| Self::in_scope(scope, **token))
                            .filter(|(_, f)| {
                                step != FileStep::Retrieve || matches!(f.arrival, Arrival::Waiting)
                            })
                            .map(|(token, _)| Unit::File(id, *token, step)),
                    );
                }
                FileStep::Cancel => {}
            }
        }
        units
    }

    fn cancel_units(&mut self, scope: Scope, undo: Undo) -> Vec<Unit> {
        let mut units = Vec::new();
        for id in self.scope_sessions(scope).into_iter().rev() {
            let Some(session) = self.sessions.peek_mut(id) else { continue };
            for (token, file) in session.outgoing.iter_mut().rev() {
                if !Self::in_scope(scope, *token) {
                    continue;
                }
                if file.state != State::Normal && Self::undoes(undo, file.level) {
                    units.push(Unit::File(id, *token, FileStep::Cancel));
                } else if file.state == State::Normal && file.call.is_none() && file.holds_shared {
                    // It was to be prepared and never was.
                    file.holds_shared = false;
                    if let Some(shared) = file.handler.and_then(|h| self.handlers.shared(h)) {
                        shared.outgoing = shared.outgoing.saturating_sub(1);
                    }
                }
            }
        }
        units
    }

    fn shared_units(&mut self, scope: Scope, stage: SharedStage) -> Vec<Unit> {
        let some = match stage {
            SharedStage::Prepare => self.shared_of_files(scope, true),
            SharedStage::Freeze { .. } if scope != Scope::Machine => {
                self.shared_of_files(scope, false)
            }
            SharedStage::Freeze { .. } | SharedStage::Drop => {
                self.handlers.iter().filter(|(_, e)| e.shared.is_some()).map(|(id, _)| id).collect()
            }
        };
        let step = match stage {
            SharedStage::Prepare => SharedStep::Prepare,
            SharedStage::Freeze { force } => SharedStep::Freeze { force },
            SharedStage::Drop => SharedStep::Drop,
        };
        some.into_iter().map(|id| Unit::Shared(id, step)).collect()
    }

    /// The handlers with shared state among the files that are to be prepared, or that are frozen.
    /// Those to be prepared begin to hang on it here, so that nobody drops it under them.
    fn shared_of_files(&mut self, scope: Scope, prepare: bool) -> BTreeSet<HandlerId> {
        let mut handlers = BTreeSet::new();
        if !self.handlers.iter().any(|(_, entry)| entry.shared.is_some()) {
            return handlers;
        }
        let wanted = if prepare { State::Normal } else { State::Frozen };
        for id in self.scope_sessions(scope) {
            let Some(session) = self.sessions.peek_mut(id) else { continue };
            for (token, file) in &mut session.outgoing {
                let Some(handler) = file.handler else { continue };
                let idle = file.call.is_none() && !file.doomed;
                if !Self::in_scope(scope, *token) || file.state != wanted || !idle {
                    continue;
                }
                let Some(shared) = self.handlers.shared(handler) else { continue };
                if prepare && !file.holds_shared {
                    file.holds_shared = true;
                    shared.outgoing += 1;
                    shared.frozen = false;
                }
                handlers.insert(handler);
            }
        }
        handlers
    }

    /// A required call failed, or somebody cancelled: nothing more of the transition is started.
    pub(crate) fn fail(&mut self, id: Option<TransitionId>, error: Error) {
        let Some(transition) = self.cycle.get(id) else { return };
        if transition.mode != Mode::Forward {
            return transition.left_out.push(error);
        }
        if transition.failure.is_some() {
            return transition.left_out.push(error);
        }
        transition.failure = Some(error);
        self.withdraw(id);
    }

    /// Takes back what a transition has queued.
    fn withdraw(&mut self, id: Option<TransitionId>) {
        let mut withdrawn = Vec::new();
        self.cycle.queue.retain(|job| {
            let mine = job.owner == id;
            if mine {
                withdrawn.push(*job);
            }
            !mine
        });
        let mut freed = Vec::new();
        for job in &withdrawn {
            if let Unit::Shared(handler, _) = job.unit
                && let Some(shared) = self.handlers.shared(handler)
            {
                shared.busy = false;
                freed.push(handler);
            }
        }
        for (_, entry) in self.handlers.iter_mut() {
            if let Some(shared) = &mut entry.shared {
                shared.waiters.retain(|job| {
                    let mine = job.owner == id;
                    if mine {
                        withdrawn.push(*job);
                    }
                    !mine
                });
            }
        }
        for job in withdrawn {
            if let Unit::File(session, token, FileStep::Retrieve) = job.unit {
                self.retrieve_withdrawn(session, token);
            }
            self.cycle.settled(job.owner);
        }
        // Whoever waited for a call that will not be made now makes it.
        for handler in freed {
            self.restart_waiters(handler);
        }
        if let Some(transition) = self.cycle.get(id)
            && transition.pending == 0
            && let Some(id) = id
        {
            self.cycle.wake.push_back(id);
        }
    }

    /// A shared state's call has ended: what waited for it goes on.
    pub(crate) fn restart_waiters(&mut self, handler: HandlerId) {
        let waiters = self.handlers.shared(handler).map(|s| core::mem::take(&mut s.waiters));
        for job in waiters.unwrap_or_default() {
            self.start(job);
        }
    }
}
