//! The other side: from a handover to sessions and files that can be retrieved.
//!
//! Invariants:
//! - A handover whose header is damaged is refused whole, and nothing has changed.
//! - A file with an unknown handler or a damaged record is that file's error; data of a subsystem
//!   that nobody registered stays until `finish`.

use alloc::vec::Vec;

use crate::{
    Bond, Compatible, Criticality, Error, Event, Failure, File, FileKey, Location, Orchestrator,
    Phase, Scope, SessionId, Side, State, Token, TransitionId,
    cycle::{Job, Transition},
    registry::unknown_handler,
    table::{Arrival, Arrived, Queue, Session},
    tree::{self, FileIn, FilesIn, SessionIn},
};

/// Stands for the string of a record that is damaged.
const DAMAGED: &str = "damaged-record";

impl<F: File> Orchestrator<F> {
    /// As `begin(Scope::Machine, Event::Arrive)`, with the handover at hand instead of the one that
    /// the carrier has committed.
    ///
    /// # Errors
    /// EBUSY where the machine is not `normal` or has sessions; EINVAL where the handover is
    /// damaged.
    pub fn arrive(&mut self, handover: &[u8]) -> Result<TransitionId, Error> {
        self.may_begin(Scope::Machine, Event::Arrive)?;
        let found = tree::read_machine(handover).map_err(damaged_whole)?;
        let mut transition = Transition::new(Scope::Machine, Event::Arrive);
        transition.found = true;
        transition.left_out = self.take_machine(found);
        transition.stages = self.plan_boot();
        Ok(self.launch(transition))
    }

    /// The carrier had a handover.
    pub(crate) fn handover_found(
        &mut self,
        owner: Option<TransitionId>,
        handover: &[u8],
    ) -> Result<(), Error> {
        let found = tree::read_machine(handover).map_err(damaged_whole)?;
        let left_out = self.take_machine(found);
        let stages = self.plan_boot();
        if let Some(transition) = self.cycle.get(owner) {
            transition.found = true;
            transition.left_out.extend(left_out);
            transition.stages = stages;
        }
        Ok(())
    }

    /// Takes the machine's tree; gives what of it cannot be used.
    fn take_machine(&mut self, found: tree::MachineIn) -> Vec<Error> {
        let boot = |failure, location| Error::from_failure(failure, Phase::Boot, location);
        self.number = found.number;
        self.boot = found.subsystems;
        let mut left_out: Vec<Error> =
            found.damaged.into_iter().map(|f| boot(f, Location::default())).collect();
        for (compatible, data) in found.shared {
            let shared = self.handlers.find(&compatible).and_then(|id| self.handlers.shared(id));
            match shared {
                Some(shared) => {
                    shared.data = Some(data);
                    shared.frozen = true;
                    shared.arrived = true;
                }
                None => {
                    let failure = unknown_handler(&compatible);
                    let handler = Some(compatible);
                    left_out.push(boot(failure, Location { handler, ..Location::default() }));
                }
            }
        }
        let data = self.files_name.as_ref().and_then(|name| self.boot.get(name).copied());
        if let (Some(data), Some(files)) = (data, self.files_sub()) {
            files.data = data;
        }
        self.dirty.machine = true;
        left_out
    }

    /// The files' tree could not be read: no file can be had, and everything else goes on.
    pub(crate) fn boot_failed(&mut self, job: Job, error: Error) {
        if let Some(files) = self.files_sub() {
            files.state = State::Updated;
            files.left_out = Some(error.clone());
        }
        if let Some(transition) = self.cycle.get(job.owner) {
            transition.left_out.push(error);
        }
    }

    /// The files' tree was read.
    pub(crate) fn files_arrived(&mut self, job: Job, arrived: FilesIn) {
        if let Some(files) = self.files_sub() {
            files.state = State::Updated;
        }
        let location = Location { subsystem: self.files_name.clone(), ..Location::default() };
        let mut left_out: Vec<Error> = arrived
            .damaged
            .into_iter()
            .map(|failure| Error::from_failure(failure, Phase::Boot, location.clone()))
            .collect();
        for session in arrived.sessions {
            if let Err(error) = self.session_found(session) {
                left_out.push(error);
            }
        }
        if let Some(transition) = self.cycle.get(job.owner) {
            transition.left_out.extend(left_out);
        }
    }

    fn session_found(&mut self, found: SessionIn) -> Result<(), Error> {
        let owner = found.owner;
        let mut session = Session::new(found.name, owner, found.policy);
        session.state = State::Updated;
        session.next_token = found.next_token.max(1);
        session.unclaimed = true;
        session.expires = found.expires;
        let id = self.sessions.insert(session)?;
        self.ledger.add_session(owner.uid);
        self.dirty.sessions.insert(id);
        for (token, record) in found.files {
            self.file_found(id, token, record);
        }
        self.refuse_circles(id);
        Ok(())
    }

    fn file_found(&mut self, id: SessionId, token: Token, record: Result<FileIn, Failure>) {
        let mut arrived = match record {
            Ok(file) => {
                if let Some(session) = self.sessions.peek_mut(id) {
                    session.incoming_bonds.set(token, Bond { needs: file.needs, with: Vec::new() });
                }
                Arrived::waiting(file.compatible, file.criticality, Some(file.data))
            }
            Err(failure) => {
                let Ok(compatible) = Compatible::new(DAMAGED) else { return };
                let mut file = Arrived::waiting(compatible, Criticality::Required, None);
                let location = self.file_location(id, token, None);
                let error = Error::from_failure(failure, Phase::Boot, location);
                file.arrival = Arrival::Failed { error, told: false };
                file
            }
        };
        if arrived.data.is_some() {
            self.find_handler(id, token, &mut arrived);
        }
        if let Some(session) = self.sessions.peek_mut(id) {
            session.incoming.insert(token, arrived);
        }
        self.dirty.files.insert(FileKey { session: id, side: Side::Incoming, token });
    }

    /// Gives an incoming file its handler, or the failure that there is none.
    pub(crate) fn find_handler(&mut self, id: SessionId, token: Token, file: &mut Arrived<F>) {
        let Some(handler) = self.handlers.find(&file.compatible) else {
            let mut location = self.file_location(id, token, None);
            location.handler = Some(file.compatible.clone());
            let failure = unknown_handler(&file.compatible);
            let error = Error::from_failure(failure, Phase::Retrieve, location)
                .advise("start a version that knows it, or release the file");
            file.arrival = Arrival::Failed { error, told: false };
            return;
        };
        file.handler = Some(handler);
        let Some(entry) = self.handlers.get_mut(handler) else { return };
        entry.uses += 1;
        if let Some(shared) = entry.shared.as_mut().filter(|shared| shared.data.is_some()) {
            shared.incoming += 1;
            file.holds_shared = true;
        }
    }

    /// An outgoing file of a session that arrives alone becomes an incoming one.
    pub(crate) fn file_arrived(&mut self, id: SessionId, token: Token) {
        let held = self.sessions.outgoing(id, token).is_some_and(|file| file.holds_shared);
        self.let_go(id, token);
        let Some((file, bond)) = self.take_outgoing(id, token) else { return };
        let frozen = file.state == State::Frozen;
        let mut arrived =
            Arrived::waiting(file.compatible, file.criticality, frozen.then_some(file.data));
        arrived.kept = file.kept;
        arrived.pinned = file.pinned;
        arrived.handler = file.handler;
        if let Some(entry) = file.handler.and_then(|handler| self.handlers.get_mut(handler)) {
            entry.uses += 1;
            if held && let Some(shared) = &mut entry.shared {
                shared.incoming += 1;
                shared.arrived = true;
                arrived.holds_shared = true;
            }
        }
        if let Some(error) = file.left_out.filter(|_| !frozen) {
            arrived.arrival = Arrival::Failed { error, told: false };
        }
        if let Some(session) = self.sessions.peek_mut(id) {
            session.pinned = session.pinned.saturating_add(arrived.pinned);
            session.incoming.insert(token, arrived);
            if frozen {
                session.incoming_bonds.set(token, Bond { needs: bond.needs, with: Vec::new() });
            }
        }
    }
}

impl<F> Arrived<F> {
    pub(crate) fn waiting(
        compatible: Compatible,
        criticality: Criticality,
        data: Option<u64>,
    ) -> Self {
        Self {
            handler: None,
            compatible,
            criticality,
            data,
            kept: Vec::new(),
            pinned: 0,
            arrival: Arrival::Waiting,
            reclaimed: false,
            call: None,
            holds_shared: false,
            transition: None,
            carry: false,
            queue: Queue::default(),
        }
    }
}

fn damaged_whole(failure: Failure) -> Error {
    let advice = "start the version that wrote it, or retire it and go on without";
    Error::from_failure(failure, Phase::Arrive, Location::default()).advise(advice)
}
