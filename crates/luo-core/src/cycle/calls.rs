//! From units to calls: what a driver gets to run.
//!
//! Invariants: a call is built when it is given out, from how things stand then; whoever is called
//! has at most one call in flight.

use alloc::{string::ToString, vec::Vec};

use crate::{
    Call, CallKind, CarrierId, Criticality, File, Handle, Location, Orchestrator, Phase, SessionId,
    State, Token,
    call::{Bound, Target, Task},
    cycle::{FileStep, HandoverStep, InFlight, Job, SharedStep, SubStep, TreeStep, Unit},
    registry::HandlerId,
    subsystems::{SubId, SubKind, gone_failure},
    table::Arrival,
    tree::{self, FileOut, SessionOut},
};

/// A call without its id.
struct Draft<F: File> {
    phase: Phase,
    kind: CallKind,
    location: Location,
    criticality: Criticality,
    data: Option<u64>,
    target: Target<F>,
}

impl<F: File> Orchestrator<F> {
    /// The next call that may run now. Ask until `None`, after everything that can start calls:
    /// `begin`, `finish`, `arrive`, `release_session`, `retrieve`, `register_subsystem`,
    /// `subsystem_gone`, `complete`, `resume`.
    pub fn next_call(&mut self) -> Option<Call<F>> {
        loop {
            let Some(job) = self.cycle.queue.pop_front() else {
                self.pump();
                if self.cycle.queue.is_empty() {
                    return None;
                }
                continue;
            };
            let Some(draft) = self.draft(job) else { continue };
            let id = self.cycle.call_id();
            self.set_call(job.unit, Some(id));
            self.cycle.in_flight.insert(id, InFlight { job, late: false });
            let Draft { phase, kind, location, criticality, data, target } = draft;
            let transition = job.owner;
            let carrier = self.carrier_of(job.unit);
            return Some(Call {
                id,
                transition,
                phase,
                kind,
                location,
                criticality,
                data,
                carrier,
                target,
            });
        }
    }

    /// The carrier that a unit's call keeps things in.
    fn carrier_of(&self, unit: Unit) -> CarrierId {
        match unit {
            Unit::File(session, token, FileStep::Prepare | FileStep::Freeze | FileStep::Cancel) => {
                let there = self.sessions.peek(session);
                let file = there.and_then(|session| session.outgoing.get(&token));
                file.map_or(CarrierId::NEAR, |file| file.carrier)
            }
            // Of files that go ahead of the machine.
            Unit::Shared(_, SharedStep::Prepare | SharedStep::Freeze { .. })
                if self.cycle.machine.is_none() =>
            {
                CarrierId::NEAR
            }
            _ => self.carrier,
        }
    }

    /// The call of a unit; `None` where it was settled instead.
    fn draft(&mut self, job: Job) -> Option<Draft<F>> {
        match job.unit {
            Unit::File(session, token, step) => {
                let draft = self.draft_file(session, token, step);
                if draft.is_none() {
                    self.cycle.settled(job.owner);
                }
                draft
            }
            Unit::Shared(handler, step) => self.draft_shared(job, handler, step),
            Unit::Subsystem(id, step) => self.draft_subsystem(job, id, step),
            Unit::Tree(step) => Some(self.draft_tree(step)),
            Unit::Handover(step) => Some(self.draft_handover(step)),
        }
    }

    fn draft_file(&mut self, session: SessionId, token: Token, step: FileStep) -> Option<Draft<F>> {
        let there = self.sessions.peek(session)?;
        let (handler, criticality, data, phase, file, kept, reclaimed) = match step {
            FileStep::Prepare | FileStep::Freeze | FileStep::Cancel => {
                let file = there.outgoing.get(&token)?;
                let phase = match step {
                    FileStep::Prepare => Phase::Prepare,
                    FileStep::Freeze => Phase::Freeze,
                    _ => Phase::Cancel,
                };
                let there = Some(file.file.clone());
                (file.handler, file.criticality, file.data, phase, there, &file.kept, None)
            }
            FileStep::Retrieve | FileStep::CanFinish | FileStep::Finish => {
                let file = there.incoming.get(&token)?;
                let phase = match step {
                    FileStep::Retrieve => Phase::Retrieve,
                    FileStep::CanFinish => Phase::CanFinish,
                    _ => Phase::Finish,
                };
                let there = match &file.arrival {
                    Arrival::Retrieved(file) => Some(file.clone()),
                    _ => None,
                };
                // A file that is carried on was taken on its owner's behalf.
                let reclaimed = Some(file.reclaimed || file.carry);
                let data = file.data.unwrap_or(0);
                let handler = file.handler.filter(|_| file.data.is_some());
                (handler, file.criticality, data, phase, there, &file.kept, reclaimed)
            }
        };
        let kept = kept.clone();
        let location = self.file_location(session, token, handler);
        let handler = handler.and_then(|id| self.handlers.get(id)).map(|e| e.handler.clone());
        let target = match (reclaimed, file) {
            (Some(reclaimed), file) => {
                let bound = match step {
                    FileStep::Retrieve => self.bound(session, token),
                    _ => Bound::default(),
                };
                Target::Incoming { handler, file, data, kept, reclaimed, bound }
            }
            (None, Some(file)) => {
                let refers =
                    step != FileStep::Cancel && handler.as_ref().is_some_and(|h| h.refers());
                let there = self.sessions.peek_mut(session).filter(|_| refers);
                let peers = there.map(|session| session.peers());
                Target::Outgoing { handler, file, data, kept, peers }
            }
            (None, None) => return None,
        };
        let data = (phase != Phase::Prepare).then_some(data);
        Some(Draft { phase, kind: CallKind::File, location, criticality, data, target })
    }

    fn draft_shared(&mut self, job: Job, id: HandlerId, step: SharedStep) -> Option<Draft<F>> {
        let location =
            Location { subsystem: self.files_name.clone(), ..self.handlers.location(Some(id)) };
        let entry = self.handlers.get_mut(id)?;
        let handler = entry.handler.clone();
        let shared = entry.shared.as_mut()?;
        if step == SharedStep::Drop && shared.users() > 0 {
            // Somebody began to hang on it since this was queued.
            shared.busy = false;
            self.cycle.settled(job.owner);
            self.restart_waiters(id);
            return None;
        }
        let phase = match step {
            SharedStep::Prepare => Phase::Prepare,
            SharedStep::Freeze { .. } => Phase::Freeze,
            SharedStep::Drop if shared.arrived => Phase::Finish,
            SharedStep::Drop => Phase::Cancel,
            SharedStep::Retrieve => Phase::Retrieve,
        };
        let target =
            Target::Shared { handler, data: shared.data.unwrap_or(0), kept: shared.kept.clone() };
        Some(Draft {
            phase,
            kind: CallKind::Shared,
            location,
            criticality: Criticality::Required,
            data: shared.data,
            target,
        })
    }

    fn draft_subsystem(&mut self, job: Job, id: SubId, step: SubStep) -> Option<Draft<F>> {
        let Some(sub) = self.sub(id) else {
            self.cycle.settled(job.owner);
            return None;
        };
        let phase = match step {
            SubStep::Prepare => Phase::Prepare,
            SubStep::Freeze => Phase::Freeze,
            SubStep::Cancel => Phase::Cancel,
            SubStep::Boot => Phase::Boot,
            SubStep::Finish => Phase::Finish,
        };
        if sub.gone {
            // Nobody is there to undo or finish anything; to keep something it is needed.
            let result = match step {
                SubStep::Cancel | SubStep::Finish => Ok(crate::call::Answer::Done),
                _ => Err(gone_failure(&sub.name)),
            };
            self.settle(job, result, None);
            return None;
        }
        let (kind, target) = match &sub.kind {
            SubKind::Local(subsystem) => (
                CallKind::Local,
                Target::Local {
                    subsystem: subsystem.clone(),
                    data: sub.data,
                    kept: sub.kept.clone(),
                },
            ),
            _ => (CallKind::Remote, Target::Remote),
        };
        Some(Draft {
            phase,
            kind,
            location: sub.location(),
            criticality: sub.options.criticality,
            data: (step != SubStep::Prepare).then_some(sub.data),
            target,
        })
    }

    fn draft_tree(&mut self, step: TreeStep) -> Draft<F> {
        let handle = self.files_sub().map_or(Handle(0), |files| match step {
            TreeStep::ForgetStray => files.kept.pop().unwrap_or(Handle(0)),
            _ => Handle(files.data),
        });
        let (phase, kind, task) = match step {
            TreeStep::Keep => {
                (Phase::Freeze, CallKind::KeepFilesTree, Task::KeepTree(self.sessions_out()))
            }
            TreeStep::Forget | TreeStep::ForgetStray => {
                (Phase::Cancel, CallKind::KeepFilesTree, Task::ForgetTree(handle))
            }
            TreeStep::Read => (Phase::Boot, CallKind::BootFiles, Task::ReadTree(handle)),
            TreeStep::Release => (Phase::Finish, CallKind::BootFiles, Task::ReleaseTree(handle)),
        };
        Draft {
            phase,
            kind,
            location: Location { subsystem: self.files_name.clone(), ..Location::default() },
            criticality: Criticality::Required,
            data: (step != TreeStep::Keep).then_some(handle.0),
            target: Target::Task(task),
        }
    }

    /// The files' tree as it would be handed over now: while frozen what is frozen, otherwise
    /// all outgoing files, with the data they have.
    ///
    /// # Errors
    /// EINVAL for what no tree can hold.
    pub fn files_tree(&self) -> Result<Vec<u8>, crate::Error> {
        let frozen = self.state == State::Frozen;
        crate::tree::write_files(&self.sessions_with(|state| !frozen || state == State::Frozen))
            .map_err(|failure| crate::Error::new(failure.errno(), failure.reason()))
    }

    /// Everything that is frozen, as it is to be handed over.
    fn sessions_out(&self) -> Vec<SessionOut> {
        self.sessions_with(|state| state == State::Frozen)
    }

    fn sessions_with(&self, wanted: impl Fn(State) -> bool) -> Vec<SessionOut> {
        let sessions = self.sessions.iter().map(|(_, session)| SessionOut {
            name: session.name.clone(),
            owner: session.owner,
            policy: session.policy,
            expires: session.expires,
            next_token: session.next_token,
            files: session
                .outgoing
                .iter()
                .filter(|(_, file)| wanted(file.state) && !file.doomed)
                .map(|(token, file)| FileOut {
                    needs: session.outgoing_bonds.needs(*token).to_vec(),
                    token: *token,
                    compatible: file.compatible.clone(),
                    data: file.data,
                    criticality: file.criticality,
                })
                .collect(),
        });
        sessions.collect()
    }

    fn draft_handover(&mut self, step: HandoverStep) -> Draft<F> {
        let (phase, task) = match step {
            HandoverStep::Find => (Phase::Arrive, Task::Find),
            HandoverStep::Commit => {
                (Phase::Depart, Task::Commit(self.handover().map_err(|f| f.to_string())))
            }
            HandoverStep::Revoke => (Phase::Cancel, Task::Retire),
            HandoverStep::Retire => (Phase::Finish, Task::Retire),
        };
        Draft {
            phase,
            kind: CallKind::Handover,
            location: Location::default(),
            criticality: Criticality::Required,
            data: None,
            target: Target::Task(task),
        }
    }

    /// The handover, as things stand.
    fn handover(&self) -> Result<Vec<u8>, crate::Failure> {
        let frozen = |state: State| state == State::Frozen;
        let subsystems: Vec<_> = self
            .subsystems
            .iter()
            .filter(|sub| frozen(sub.state) && !sub.doomed)
            .map(|sub| (sub.name.clone(), sub.data))
            .collect();
        let shared: Vec<_> = self
            .handlers
            .iter()
            .filter_map(|(_, entry)| {
                let shared = entry.shared.as_ref().filter(|shared| shared.outgoing > 0)?;
                Some((entry.compatible.clone(), shared.data?))
            })
            .collect();
        tree::write_machine(self.number.saturating_add(1), &subsystems, &shared)
    }

    /// Notes at its target which call is in flight, or that none is.
    pub(crate) fn set_call(&mut self, unit: Unit, call: Option<crate::CallId>) {
        match unit {
            Unit::File(session, token, FileStep::Prepare | FileStep::Freeze | FileStep::Cancel) => {
                if let Some(file) = self.sessions.outgoing(session, token) {
                    file.call = call;
                }
            }
            Unit::File(session, token, _) => {
                if let Some(file) = self.sessions.incoming(session, token) {
                    file.call = call;
                }
            }
            Unit::Shared(handler, _) => {
                if let Some(shared) = self.handlers.shared(handler) {
                    shared.call = call;
                    shared.busy = call.is_some();
                    shared.late = false;
                }
            }
            Unit::Subsystem(id, _) => {
                if let Some(sub) = self.sub(id) {
                    sub.call = call;
                }
            }
            Unit::Tree(_) => {
                if let Some(files) = self.files_sub() {
                    files.call = call;
                }
            }
            Unit::Handover(_) => {}
        }
    }
}
