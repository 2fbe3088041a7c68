//! Builds the framework's state from what the store holds.
//!
//! ```text
//! slots ──▶ Loaded (everything decoded, nothing done) ──▶ Restored (a framework that can serve)
//! ```
//!
//! Invariants:
//! - All records are decoded before the first one takes effect.
//! - What one damaged record describes is lost to this luod, and to no other: its slot stays as it
//!   is. A candidate refuses instead, so that the luod that can read it serves on; and also where
//!   it lacks the handler of a file.
//! - What a worker that died in the middle of something had kept, and nothing refers to, goes.

use std::collections::HashSet;

use luo_abi::keeper::key;
use luo_carriers::HostFile;
use luo_core::{
    Caps, Carrier, CarrierId, Event, FileKey, Handle, MachineRecord, Orchestrator, SessionRecord,
    State,
};

use super::carriers::{self, Carriers};
use super::custody::{Custody, space};
use super::persist::Persisted;
use super::records::{self, FileExtra, SessionExtra};
use crate::config::Config;

/// A session's slot, decoded.
#[derive(Debug)]
struct FoundSession {
    key: u64,
    record: SessionRecord,
    extra: SessionExtra,
    server: Option<HostFile>,
}

/// A file's slot, decoded.
#[derive(Debug)]
struct FoundFile {
    key: u64,
    record: luo_core::FileRecord,
    extra: FileExtra,
    file: Option<HostFile>,
}

/// Everything that the store holds, decoded.
#[derive(Debug, Default)]
pub(crate) struct Loaded {
    machine: Option<(u64, MachineRecord)>,
    sessions: Vec<FoundSession>,
    files: Vec<FoundFile>,
    orphans: Vec<u64>,
    /// What cannot be read, and why.
    pub(crate) damaged: Vec<String>,
}

/// A framework that can serve, and what belongs to it.
#[derive(Debug)]
pub(crate) struct Restored {
    pub(crate) core: Orchestrator<HostFile>,
    pub(crate) persisted: Persisted,
    /// Sessions that somebody holds, and luod's ends of their descriptors.
    pub(crate) held: Vec<(luo_core::SessionId, HostFile)>,
    /// The machine has departed, through that carrier: its handover is to be taken up.
    pub(crate) departed: Option<CarrierId>,
    /// What could not be restored, and why.
    pub(crate) failed: Vec<String>,
    /// Files that are there, but of handlers that this luod does not have.
    pub(crate) unknown: Vec<String>,
}

impl Loaded {
    /// Decodes every slot.
    pub(crate) fn read(custody: &Custody) -> Self {
        let mut loaded = Self::default();
        for key in custody.keys(space::MACHINE) {
            let Some(slot) = custody.get(key) else { continue };
            match records::read_machine(&slot.record) {
                Ok(record) => loaded.machine = Some((key, record)),
                Err(error) => loaded.damaged.push(format!("the machine's record: {error}")),
            }
        }
        for key in custody.keys(space::SESSION) {
            let Some(slot) = custody.get(key) else { continue };
            match records::read_session(&slot.record) {
                Ok((record, extra)) => {
                    let server = slot.files.into_iter().next();
                    loaded.sessions.push(FoundSession { key, record, extra, server });
                }
                Err(error) => loaded.damaged.push(format!("a session's record: {error}")),
            }
        }
        for key in custody.keys(space::FILE) {
            let Some(slot) = custody.get(key) else { continue };
            if slot.record.is_empty() {
                loaded.orphans.push(key);
                continue;
            }
            match records::read_file(&slot.record) {
                Ok((record, extra)) => {
                    let file = slot.files.into_iter().next();
                    loaded.files.push(FoundFile { key, record, extra, file });
                }
                Err(error) => loaded.damaged.push(format!("a file's record: {error}")),
            }
        }
        loaded.sessions.sort_by_key(|session| session.record.id);
        loaded.files.sort_by_key(|file| file.key);
        loaded
    }

    /// Whether what came from the kernel before is to be taken up. Until the machine's first record,
    /// and while it was being taken up when the worker before died.
    fn has_come(&self, carriers: &Carriers) -> bool {
        let came = carriers.liveupdate().and_then(|carrier| Carrier::committed(&*carrier).ok()?);
        let untouched = match &self.machine {
            None => self.sessions.is_empty(),
            Some((_, record)) => {
                record.departed && record.carrier == carriers::LIVEUPDATE
                    || record.transition == Some(Event::Arrive)
            }
        };
        came.is_some() && untouched
    }

    /// Through which carrier the machine has committed a handover that nobody has taken up. The
    /// record may be of a commit that was cut short: what counts is the handover. A candidate
    /// leaves the arena to the worker that has it open.
    fn departed(
        &mut self,
        custody: &Custody,
        carriers: &Carriers,
        candidate: bool,
    ) -> Option<CarrierId> {
        if !candidate && self.has_come(carriers) {
            return Some(carriers::LIVEUPDATE);
        }
        match &self.machine {
            Some((_, record)) if !record.departed => None,
            Some((_, record)) if record.carrier == carriers::LIVEUPDATE => None,
            Some((_, record)) if record.carrier == CarrierId::NEAR => {
                custody.has(key::HANDOVER).then_some(CarrierId::NEAR)
            }
            // With records of sessions this is no fresh luod: what is in the arena is another's.
            None if !self.sessions.is_empty() => None,
            _ if candidate || !carriers.has_arena() => None,
            _ => match carriers.arena().and_then(|arena| arena.committed()) {
                Ok(Some(_)) => Some(carriers::ARENA),
                Ok(None) => {
                    carriers.close_arena();
                    None
                }
                Err(failure) => {
                    carriers.close_arena();
                    self.damaged.push(format!("the arena: {}", failure.reason()));
                    None
                }
            },
        }
    }

    /// Builds the framework, and takes up a committed handover. `candidate`: this is a rehearsal.
    pub(crate) fn restore(
        mut self,
        config: &Config,
        custody: &Custody,
        carriers: &Carriers,
        candidate: bool,
    ) -> Result<Restored, String> {
        let departed = self.departed(custody, carriers, candidate);
        let mut core = new_core(config)?;
        let mut persisted = Persisted::default();
        let mut failed = std::mem::take(&mut self.damaged);
        let mut unknown = Vec::new();
        let mut held = Vec::new();
        if departed.is_some() {
            // Everything is in the handover; the records of before end with it.
            let number = self.machine.as_ref().map_or(0, |(_, record)| record.number);
            let fresh = MachineRecord {
                state: State::Normal,
                transition: None,
                departed: false,
                carrier: CarrierId::NEAR,
                number,
                next_session: 1,
                boot_data: Vec::new(),
                subsystems: Vec::new(),
                shared: Vec::new(),
            };
            core.restore_machine(fresh).map_err(|error| error.to_string())?;
            if let Some((key, _)) = self.machine {
                persisted.found_machine(key);
            }
            for session in self.sessions {
                custody.forget(session.key);
            }
            for file in self.files {
                persisted.found_orphan(file.key, custody);
            }
            for key in self.orphans {
                persisted.found_orphan(key, custody);
            }
            return Ok(Restored { core, persisted, held, departed, failed, unknown });
        }
        let mut machine_normal = true;
        let mut in_use: HashSet<u64> = HashSet::from([key::HANDOVER]);
        if let Some((key, mut record)) = self.machine {
            // Nobody but the kernel takes it from here; until then it can be taken back.
            record.departed &= record.carrier == carriers::LIVEUPDATE && custody.holds_departed();
            machine_normal = record.state == State::Normal && record.transition.is_none();
            for shared in &record.shared {
                in_use.extend(shared.kept.iter().map(|Handle(handle)| *handle));
            }
            core.restore_machine(record).map_err(|error| error.to_string())?;
            persisted.found_machine(key);
        }
        for FoundSession { key, record, extra, server } in self.sessions {
            let id = record.id;
            let name = record.name.to_string();
            if let Err(error) = core.restore_session(record) {
                failed.push(format!("session {name}: {error}"));
                continue;
            }
            persisted.found_session(id, key, extra);
            held.extend(server.map(|server| (id, server)));
        }
        for FoundFile { key, record, extra, file } in self.files {
            in_use.extend(record.kept.iter().map(|Handle(handle)| *handle));
            let place = FileKey { session: record.session, side: record.side, token: record.token };
            let has_file = file.is_some();
            if !core.knows(&record.compatible) {
                unknown.push(format!(
                    "token {} of session {} is of the handler {}, which luod {} does not have",
                    place.token,
                    place.session.0,
                    record.compatible,
                    crate::version()
                ));
            }
            if let Err(error) = core.restore_file(record, file) {
                failed
                    .push(format!("token {} of session {}: {error}", place.token, place.session.0));
                continue;
            }
            persisted.found_file(place, key, has_file, extra);
        }
        for key in self.orphans {
            persisted.found_orphan(key, custody);
        }
        if machine_normal && failed.is_empty() {
            for key in custody.keys(key::CARRIER) {
                if !in_use.contains(&key) {
                    custody.forget_kept(key);
                }
            }
        }
        Ok(Restored { core, persisted, held, departed, failed, unknown })
    }
}

impl Restored {
    /// Whether this luod can do all that the one before could.
    ///
    /// # Errors
    /// What it cannot restore, in words.
    pub(crate) fn check(&self) -> Result<(), String> {
        if self.failed.is_empty() && self.unknown.is_empty() {
            return Ok(());
        }
        let all: Vec<&str> = self.failed.iter().chain(&self.unknown).map(String::as_str).collect();
        Err(all.join("; "))
    }
}

/// An empty framework with every handler this luod knows.
fn new_core(config: &Config) -> Result<Orchestrator<HostFile>, String> {
    let limits = luo_core::Limits {
        sessions: Some(config.limits.sessions),
        files: Some(config.limits.files),
        bytes: Some(config.limits.bytes),
        exempt_root: true,
    };
    let mut core = Orchestrator::new(Caps::LIVE | Caps::MEMORY | Caps::BYTES, limits);
    let arena = core.add_carrier(carriers::ARENA_CAPS).map_err(|error| error.to_string())?;
    debug_assert_eq!(arena, carriers::ARENA);
    let liveupdate =
        core.add_carrier(carriers::LIVEUPDATE_CAPS).map_err(|error| error.to_string())?;
    debug_assert_eq!(liveupdate, carriers::LIVEUPDATE);
    for handler in luo_files::handlers() {
        core.register_handler(handler).map_err(|error| error.to_string())?;
    }
    Ok(core)
}

#[cfg(test)]
mod tests {
    use luo_core::{
        Criticality, FileRecord, Level, OnClose, Owner, Policy, SessionId, SessionName, Side, Token,
    };

    use std::sync::Arc;

    use super::*;
    use crate::store::{Store, Table};
    use crate::worker::fuzzing::Nowhere;

    /// What a worker finds that is given one file of this handler.
    fn restored(compatible: &str) -> Restored {
        let store: Arc<dyn Store> = Arc::new(Nowhere::default());
        let table = Arc::new(Table::new(Arc::clone(&store)));
        let custody = Custody::new(store, table, 1).unwrap();
        let session = SessionRecord {
            id: SessionId(1),
            name: SessionName::new("shop").unwrap(),
            owner: Owner { uid: 1, gid: 1 },
            policy: Policy { on_close: OnClose::Keep { ttl_seconds: None } },
            state: State::Normal,
            transition: None,
            level: Level::Session,
            next_token: 2,
            unclaimed: true,
            expires: None,
        };
        let bytes = records::session(&session, &SessionExtra::default()).unwrap();
        custody.put(custody.allocate(space::SESSION), &bytes, &[]);
        let file = FileRecord {
            session: session.id,
            side: Side::Outgoing,
            token: Token(1),
            compatible: compatible.into(),
            criticality: Criticality::Required,
            state: State::Normal,
            level: Level::Session,
            data: None,
            kept: Vec::new(),
            incoming: None,
            reclaimed: false,
            pinned: 0,
            bond: luo_core::Bond::default(),
        };
        let mut bytes = Vec::new();
        records::file(&file, &FileExtra::default(), &mut bytes).unwrap();
        let (reader, _writer) = rustix::pipe::pipe().unwrap();
        custody.put(custody.allocate(space::FILE), &bytes, &[&HostFile::from(reader)]);
        let none = luo_core::Failure::new(luo_core::Errno::NoEnt, "no device");
        let near = Arc::clone(custody.carrier());
        let carriers = Carriers::new(near, None, Err(none), Arc::default());
        Loaded::read(&custody).restore(&Config::default(), &custody, &carriers, true).unwrap()
    }

    #[test]
    fn a_candidate_without_the_handler_of_a_file_does_not_take_over() {
        let reason = restored("future-v1").check().unwrap_err();
        assert!(reason.contains("future-v1"), "{reason}");
        restored(luo_files::LIVE_COMPATIBLE).check().unwrap();
    }

    #[test]
    fn a_file_without_its_handler_is_still_there() {
        let restored = restored("future-v1");
        assert!(restored.failed.is_empty(), "{:?}", restored.failed);
        assert_eq!(restored.core.files(SessionId(1)).count(), 1);
    }
}
