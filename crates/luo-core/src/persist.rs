//! Giving out and taking back records.
//!
//! Invariants: see [`record`](crate::FileRecord); what is restored is checked like anything else
//! that comes from outside, and refused without a trace where it does not fit.

use alloc::{collections::BTreeSet, format, string::ToString, vec::Vec};

use crate::{
    CarrierId, Compatible, DUPLICATE_COMPATIBLE, Dirty, Errno, Error, Event, Failure, File,
    FileKey, FileRecord, IncomingRecord, Level, MachineRecord, Orchestrator, Phase, Scope,
    SessionId, SessionRecord, SharedRecord, Side, State, SubsystemOptions, SubsystemRecord, Token,
    TransitionId,
    cycle::{Transition, Undo},
    identity::Key,
    registry::SharedRetrieval,
    subsystems::{SubId, SubKind},
    table::{Arrival, Arrived, Outgoing, Session},
};

/// What changed since it was last asked.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    pub(crate) machine: bool,
    pub(crate) sessions: BTreeSet<SessionId>,
    pub(crate) files: Touched,
}

/// Files that have changed, each once where it is told.
#[derive(Debug, Default)]
pub(crate) struct Touched {
    keys: Vec<FileKey>,
}

impl Touched {
    /// At least so many are noted before it is looked for those noted twice.
    const FEW: usize = 64;

    pub(crate) fn insert(&mut self, key: FileKey) {
        if self.keys.len() == self.keys.capacity() && self.keys.len() >= Self::FEW {
            self.settle();
            // It is looked again when as many more have come.
            self.keys.reserve(self.keys.len());
        }
        if self.keys.last() != Some(&key) {
            self.keys.push(key);
        }
    }

    /// Sorts them, and leaves each once.
    fn settle(&mut self) {
        // Of a few runs that ascend, as files are noted, this makes one by merging.
        self.keys.sort();
        self.keys.dedup();
    }

    fn into_sorted(mut self) -> Vec<FileKey> {
        self.settle();
        self.keys
    }
}

/// What restored records say was going on.
#[derive(Debug, Default)]
pub(crate) struct Interrupted {
    machine: Option<Event>,
    sessions: Vec<(SessionId, Event)>,
}

impl<F: File> Orchestrator<F> {
    /// What changed since this was last asked.
    pub fn take_dirty(&mut self) -> Dirty {
        let changes = core::mem::take(&mut self.dirty);
        Dirty {
            machine: changes.machine,
            sessions: changes.sessions.into_iter().collect(),
            files: changes.files.into_sorted(),
        }
    }

    /// The machine's record.
    #[must_use]
    pub fn machine_record(&self) -> MachineRecord {
        let status = self.status();
        MachineRecord {
            state: self.state,
            transition: status.transition,
            // Until an arrival has ended all of it is in the handover, and only part of it in records.
            departed: self.departed
                || matches!(status.transition, Some(Event::Depart | Event::Arrive)),
            carrier: self.carrier,
            number: self.number,
            next_session: self.sessions.next,
            boot_data: self.boot.iter().map(|(name, data)| (name.clone(), *data)).collect(),
            subsystems: self
                .subsystems
                .iter()
                .map(|sub| SubsystemRecord {
                    name: sub.name.clone(),
                    criticality: sub.options.criticality,
                    concurrent: sub.options.concurrent,
                    state: sub.state,
                    data: sub.data,
                    kept: sub.kept.clone(),
                })
                .collect(),
            shared: self
                .handlers
                .iter()
                .filter_map(|(_, entry)| {
                    let shared = entry.shared.as_ref()?;
                    Some(SharedRecord {
                        compatible: entry.compatible.to_string(),
                        data: shared.data?,
                        frozen: shared.frozen,
                        arrived: shared.arrived,
                        retrieved: matches!(shared.retrieval, SharedRetrieval::Yes),
                        kept: shared.kept.clone(),
                    })
                })
                .collect(),
        }
    }

    /// A session's record.
    #[must_use]
    pub fn session_record(&self, session: SessionId) -> Option<SessionRecord> {
        let there = self.sessions.peek(session)?;
        let transition = there.transition.and_then(|id| self.cycle.transitions.get(&id));
        Some(SessionRecord {
            id: session,
            name: there.name.clone(),
            owner: there.owner,
            policy: there.policy,
            state: there.state,
            transition: transition.map(|transition| transition.event),
            level: there.level,
            next_token: there.next_token,
            unclaimed: there.unclaimed,
            expires: there.expires,
        })
    }

    /// A file's record.
    #[must_use]
    pub fn file_record(&self, key: FileKey) -> Option<FileRecord> {
        self.file_with_record(key).map(|(record, _)| record)
    }

    /// A file's record, and the file where it is held here: what [`file_ref`](Self::file_ref)
    /// gives.
    #[must_use]
    pub fn file_with_record(&self, key: FileKey) -> Option<(FileRecord, Option<F>)> {
        let session = self.sessions.peek(key.session)?;
        match key.side {
            Side::Outgoing => {
                let file = session.outgoing.get(&key.token)?;
                let record = FileRecord {
                    session: key.session,
                    side: key.side,
                    token: key.token,
                    compatible: file.compatible.shared(),
                    criticality: file.criticality,
                    state: file.state,
                    level: file.level,
                    data: Some(file.data),
                    kept: file.kept.clone(),
                    incoming: None,
                    reclaimed: false,
                    pinned: file.pinned,
                    bond: session.outgoing_bonds.get(key.token).cloned().unwrap_or_default(),
                };
                Some((record, Some(file.file.clone())))
            }
            Side::Incoming => {
                let file = session.incoming.get(&key.token)?;
                let (incoming, held) = match &file.arrival {
                    Arrival::Waiting | Arrival::Retrieving => (IncomingRecord::Waiting, None),
                    Arrival::Retrieved(held) => (IncomingRecord::Retrieved, Some(held.clone())),
                    Arrival::Failed { error, told } => {
                        let (errno, reason) = (error.errno(), error.reason().to_string());
                        (IncomingRecord::Failed { errno, reason, told: *told }, None)
                    }
                };
                let record = FileRecord {
                    session: key.session,
                    side: key.side,
                    token: key.token,
                    compatible: file.compatible.shared(),
                    criticality: file.criticality,
                    state: State::Updated,
                    level: Level::Session,
                    data: file.data,
                    kept: file.kept.clone(),
                    incoming: Some(incoming),
                    reclaimed: file.reclaimed,
                    pinned: file.pinned,
                    bond: session.incoming_bonds.get(key.token).cloned().unwrap_or_default(),
                };
                Some((record, held))
            }
        }
    }

    /// Takes the machine's record, first of all. Handlers and local subsystems are registered
    /// before; a subsystem of the record that is not registered waits for its participant.
    ///
    /// # Errors
    /// EBUSY where something was restored or begun already.
    pub fn restore_machine(&mut self, record: MachineRecord) -> Result<(), Error> {
        let fresh = self.interrupted.is_none()
            && self.sessions.is_empty()
            && self.cycle.transitions.is_empty()
            && self.state == State::Normal;
        if !fresh {
            let reason = "the machine's record must be restored before anything else";
            return Err(Error::new(Errno::Busy, reason));
        }
        self.state = record.state;
        self.departed = record.departed && record.state == State::Frozen;
        self.carrier = record.carrier;
        self.number = record.number;
        self.sessions.next = self.sessions.next.max(record.next_session);
        self.boot = record.boot_data.into_iter().collect();
        let mut order: Vec<SubId> = Vec::new();
        for sub in record.subsystems {
            let there = self.subsystems.iter().find(|s| s.name == sub.name).map(|s| s.id);
            let id = there.unwrap_or_else(|| {
                let options = SubsystemOptions {
                    criticality: sub.criticality,
                    concurrent: sub.concurrent,
                    last: false,
                };
                self.add_sub(sub.name.clone(), SubKind::Awaited, options)
            });
            order.push(id);
            if let Some(there) = self.sub(id) {
                there.state = sub.state;
                there.data = sub.data;
                there.kept = sub.kept;
            }
        }
        let place = |id: SubId| order.iter().position(|other| *other == id);
        self.subsystems.sort_by_key(|sub| place(sub.id).unwrap_or(usize::MAX));
        for record in record.shared {
            let handler = self.handlers.find(&record.compatible);
            if let Some(shared) = handler.and_then(|id| self.handlers.shared(id)) {
                shared.data = Some(record.data);
                shared.frozen = record.frozen;
                shared.arrived = record.arrived;
                if record.retrieved {
                    shared.retrieval = SharedRetrieval::Yes;
                }
                shared.kept = record.kept;
            }
        }
        self.interrupted = Some(Interrupted { machine: record.transition, sessions: Vec::new() });
        self.dirty.machine = true;
        Ok(())
    }

    /// Takes a session's record.
    ///
    /// # Errors
    /// EEXIST where the name or id is taken.
    pub fn restore_session(&mut self, record: SessionRecord) -> Result<(), Error> {
        let mut session = Session::new(record.name, record.owner, record.policy);
        session.state = record.state;
        session.level = record.level;
        session.next_token = record.next_token.max(1);
        session.unclaimed = record.unclaimed;
        session.expires = record.expires;
        self.sessions.insert_at(record.id, session)?;
        self.ledger.add_session(record.owner.uid);
        if let Some(event) = record.transition {
            self.interrupted
                .get_or_insert_with(Interrupted::default)
                .sessions
                .push((record.id, event));
        }
        self.dirty.sessions.insert(record.id);
        Ok(())
    }

    /// Takes a file's record, with its descriptor where it has one: every outgoing file, and every
    /// retrieved one. Where no handler has its string, the file is kept with that error.
    ///
    /// # Errors
    /// ENOENT no such session, EEXIST the token is taken, EINVAL without its descriptor or with a
    /// string that is none, EBUSY where the same open file description is already there.
    pub fn restore_file(&mut self, record: FileRecord, file: Option<F>) -> Result<(), Error> {
        let session = self.sessions.get(record.session)?;
        let taken = match record.side {
            Side::Outgoing => session.outgoing.contains_key(&record.token),
            Side::Incoming => session.incoming.contains_key(&record.token),
        };
        if taken {
            let reason = format!("token {} is taken in session {}", record.token, session.name);
            return Err(Error::new(Errno::Exist, reason));
        }
        let compatible = Compatible::new(&record.compatible).map_err(Error::refused)?;
        match record.side {
            Side::Outgoing => self.restore_outgoing(record, compatible, file),
            Side::Incoming => self.restore_incoming(record, compatible, file),
        }
    }

    fn restore_outgoing(
        &mut self,
        record: FileRecord,
        compatible: Compatible,
        file: Option<F>,
    ) -> Result<(), Error> {
        let (id, token) = (record.session, record.token);
        let Some(file) = file else { return Err(self.no_descriptor(id, token)) };
        let handler = self.handlers.find(&compatible);
        let entry = handler.and_then(|handler| self.handlers.get_mut(handler));
        let own_identity = entry.as_ref().and_then(|entry| entry.handler.identity(&file));
        let duplicate = *compatible == *DUPLICATE_COMPATIBLE;
        let original = record.bond.needs.first().copied().filter(|_| duplicate);
        if let Some(handler) = handler.filter(|_| original.is_none()) {
            match self.index.vacancy(Key::of(&file, handler, own_identity)) {
                Ok(vacancy) => {
                    vacancy.insert((id, token));
                }
                Err(_) => {
                    return Err(Error::new(Errno::Busy, "the file was restored already")
                        .at(self.file_location(id, token, Some(handler))));
                }
            }
        }
        let state = match record.state {
            State::Updated => State::Normal,
            state => state,
        };
        // Only what the machine's update has prepared is in its carrier.
        let carrier = match (state, record.level) {
            (State::Prepared | State::Frozen, Level::Machine) => self.carrier,
            _ => CarrierId::NEAR,
        };
        let mut holds_shared = false;
        if let Some(entry) = entry {
            entry.uses += 1;
            if state != State::Normal
                && let Some(shared) = &mut entry.shared
            {
                shared.outgoing += 1;
                shared.frozen_files += usize::from(state == State::Frozen);
                holds_shared = true;
            }
        }
        let Some(session) = self.sessions.peek_mut(id) else { return Ok(()) };
        self.ledger.add_file(session.owner.uid, record.pinned);
        session.pinned = session.pinned.saturating_add(record.pinned);
        session.insert_outgoing(
            token,
            Outgoing {
                file,
                handler,
                compatible,
                own_identity,
                criticality: record.criticality,
                state,
                level: record.level,
                data: record.data.unwrap_or(0),
                kept: record.kept,
                pinned: record.pinned,
                call: None,
                doomed: false,
                holds_shared,
                transition: None,
                left_out: None,
                carrier,
                original,
            },
        );
        session.outgoing_bonds.set(token, record.bond);
        self.dirty.files.insert(FileKey { session: id, side: Side::Outgoing, token });
        Ok(())
    }

    fn restore_incoming(
        &mut self,
        record: FileRecord,
        compatible: Compatible,
        file: Option<F>,
    ) -> Result<(), Error> {
        let (id, token) = (record.session, record.token);
        let mut arrived = Arrived::waiting(compatible, record.criticality, record.data);
        arrived.kept = record.kept;
        arrived.pinned = record.pinned;
        if record.data.is_some() {
            self.find_handler(id, token, &mut arrived);
        }
        match record.incoming.unwrap_or(IncomingRecord::Waiting) {
            IncomingRecord::Waiting => {}
            IncomingRecord::Retrieved => {
                let Some(file) = file else {
                    self.forget_incoming(&arrived);
                    return Err(self.no_descriptor(id, token));
                };
                // It is here, whether or not its handler is.
                arrived.arrival = Arrival::Retrieved(file);
                arrived.reclaimed = record.reclaimed;
            }
            IncomingRecord::Failed { errno, reason, told } => {
                let location = self.file_location(id, token, arrived.handler);
                let failure = Failure::new(errno, reason);
                let error = Error::from_failure(failure, Phase::Retrieve, location);
                arrived.arrival = Arrival::Failed { error, told };
            }
        }
        if let Some(session) = self.sessions.peek_mut(id) {
            session.pinned = session.pinned.saturating_add(arrived.pinned);
            session.incoming.insert(token, arrived);
            session.incoming_bonds.set(token, record.bond);
        }
        self.dirty.files.insert(FileKey { session: id, side: Side::Incoming, token });
        Ok(())
    }

    fn no_descriptor(&self, session: SessionId, token: Token) -> Error {
        Error::new(Errno::Inval, "the file's record came without its descriptor")
            .at(self.file_location(session, token, None))
    }

    /// After the last record: undoes what was cut short, gives boot data to whom it was not given
    /// yet. Its calls come from `next_call`; the ends of what it begins are reported as those of
    /// `cancel`.
    pub fn resume(&mut self) -> Vec<TransitionId> {
        let Some(interrupted) = self.interrupted.take() else { return Vec::new() };
        let sessions: Vec<SessionId> = self.sessions.iter().map(|(id, _)| id).collect();
        sessions.into_iter().for_each(|id| self.refuse_circles(id));
        let mut begun = Vec::new();
        match interrupted.machine {
            Some(Event::Prepare | Event::Freeze) => {
                begun.push(self.undo(Scope::Machine, Undo::Level(Level::Machine)));
            }
            Some(Event::Cancel) => begun.push(self.undo(Scope::Machine, Undo::All)),
            Some(Event::Arrive) if !self.sessions.is_empty() => self.state = State::Updated,
            _ => {}
        }
        if self.state == State::Updated {
            let waiting: Vec<(SubId, u64)> = self
                .subsystems
                .iter()
                .filter(|sub| sub.state == State::Normal && !matches!(sub.kind, SubKind::Files))
                .filter_map(|sub| Some((sub.id, *self.boot.get(&sub.name)?)))
                .collect();
            for (id, data) in waiting {
                self.queue_boot(id, data);
            }
        }
        for (session, event) in interrupted.sessions {
            let undo = match event {
                Event::Prepare | Event::Freeze | Event::Depart => Undo::Level(Level::Session),
                Event::Cancel => Undo::All,
                Event::Arrive | Event::Finish => continue,
            };
            begun.push(self.undo(Scope::Session(session), undo));
        }
        begun
    }

    /// Begins a `cancel` that was not asked for.
    fn undo(&mut self, scope: Scope, undo: Undo) -> TransitionId {
        let mut transition = Transition::new(scope, Event::Cancel);
        transition.undo_all = undo == Undo::All;
        transition.stages = self.undo_stages(scope, undo);
        self.launch(transition)
    }
}
