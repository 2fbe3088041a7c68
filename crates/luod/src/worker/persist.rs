//! Writes what has changed in the framework to the keeper: one slot for each session and file, one
//! for the machine.
//!
//! Invariants:
//! - A slot's record and its descriptor change together, in one batch of the keeper's.
//! - A file's descriptor goes to the keeper once. When the file changes sides (it goes over, comes
//!   back, is carried on) its new record takes over the slot that has the descriptor, also while
//!   nobody has retrieved it.
//! - A slot whose file has gone stays, with an empty record, as long as something kept refers to
//!   its descriptor: an *orphan*.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use hashbrown::{HashMap, HashSet};
use luo_carriers::HostFile;
use luo_core::{FileKey, FileRecord, Orchestrator, SessionId, SessionRecord, Side, Token};

use super::custody::{Custody, space};
use super::records::{self, FileExtra, SessionExtra};
use super::sessions::Holders;

/// Where the records of sessions and files are, and what luod notes beside the framework's.
#[derive(Debug, Default)]
pub(crate) struct Persisted {
    machine: Option<u64>,
    sessions: HashMap<SessionId, SessionSlot>,
    /// In the order in which changes are told.
    files: BTreeMap<FileKey, FileSlot>,
    orphans: HashSet<u64>,
    /// What requests made files, noted before their records are written, which is soon.
    made_by: Vec<(FileKey, FileExtra)>,
    /// What requests of the worker before made, by place and token: a client whose connection
    /// broke sends its last requests again.
    repeatable: HashMap<(SessionId, u64), HashMap<u32, Token>>,
    /// The bytes of the record that is being written.
    buffer: Vec<u8>,
}

#[derive(Debug, Default)]
struct SessionSlot {
    key: u64,
    extra: SessionExtra,
}

#[derive(Debug, Clone, Copy)]
struct FileSlot {
    key: u64,
    /// The slot has the file's descriptor; of a file that went over, the one it went over with.
    has_file: bool,
    extra: FileExtra,
}

/// Slots with a descriptor whose files have gone.
#[derive(Debug, Default)]
struct Freed {
    keys: HashSet<u64>,
    /// Those of outgoing files.
    outgoing: HashMap<(SessionId, Token), u64>,
}

impl Persisted {
    /// The machine's record was found in this slot.
    pub(crate) fn found_machine(&mut self, key: u64) {
        self.machine = Some(key);
    }

    /// A session's record was found in this slot.
    pub(crate) fn found_session(&mut self, id: SessionId, key: u64, extra: SessionExtra) {
        self.sessions.insert(id, SessionSlot { key, extra });
    }

    /// A file's record was found in this slot.
    pub(crate) fn found_file(&mut self, file: FileKey, key: u64, has_file: bool, extra: FileExtra) {
        self.files.insert(file, FileSlot { key, has_file, extra });
        if extra.request != 0 && file.side == Side::Outgoing {
            let made = self.repeatable.entry((file.session, extra.request)).or_default();
            made.insert(extra.index, file.token);
        }
    }

    /// Clients have had the time to send their last requests again.
    pub(crate) fn forget_requests(&mut self) {
        self.repeatable = HashMap::new();
    }

    /// A slot without a record was found: it goes unless something refers to its descriptor.
    pub(crate) fn found_orphan(&mut self, key: u64, custody: &Custody) {
        self.orphan(key, custody);
    }

    /// What luod notes of a session beside the framework's record.
    pub(crate) fn session_extra(&mut self, id: SessionId) -> &mut SessionExtra {
        &mut self.sessions.entry(id).or_default().extra
    }

    /// The tokens that this request has made before the connection broke, by their place in it.
    pub(crate) fn made_before(
        &self,
        session: SessionId,
        request: u64,
    ) -> Option<HashMap<u32, Token>> {
        self.repeatable.get(&(session, request)).cloned()
    }

    /// Notes what request made a file.
    pub(crate) fn made_by(&mut self, file: FileKey, extra: FileExtra) {
        self.made_by.push((file, extra));
    }

    /// Writes what has changed. It is in the keeper when the batch is, see [`Custody::commit`].
    pub(crate) fn write(
        &mut self,
        core: &mut Orchestrator<HostFile>,
        holders: &mut Holders,
        custody: &Custody,
    ) {
        let mut dirty = core.take_dirty();
        let given = holders.take_changed();
        dirty.sessions.extend(given.iter().copied());
        dirty.sessions.sort_unstable();
        dirty.sessions.dedup();
        if dirty.machine {
            let key = *self.machine.get_or_insert_with(|| custody.allocate(space::MACHINE));
            match records::machine(&core.machine_record()) {
                Ok(bytes) => custody.put(key, &bytes, &[]),
                Err(error) => custody.note_unwritable(&error),
            }
        }
        for id in dirty.sessions {
            match core.session_record(id) {
                Some(record) => {
                    let descriptor = given.contains(&id).then(|| holders.descriptor(id));
                    self.write_session(&record, descriptor, custody);
                }
                None => {
                    if let Some(slot) = self.sessions.remove(&id) {
                        custody.forget(slot.key);
                    }
                }
            }
        }
        // Slots of files that are gone first: records of files that stay may take them over.
        let mut freed = Freed::default();
        let mut there = Vec::with_capacity(dirty.files.len());
        for file in dirty.files {
            if let Some((record, held)) = core.file_with_record(file) {
                there.push((file, record, held));
            } else if let Some(slot) = self.files.remove(&file) {
                if !slot.has_file {
                    custody.forget(slot.key);
                    continue;
                }
                freed.keys.insert(slot.key);
                if file.side == Side::Outgoing {
                    freed.outgoing.insert((file.session, file.token), slot.key);
                }
            }
        }
        // Whatever was made has changed, so that nobody asks for what was noted of it later. Of a
        // file that was made twice, the last note is true.
        let mut made_by = std::mem::take(&mut self.made_by);
        made_by.sort_by_key(|(file, _)| *file);
        for (file, record, held) in there {
            let last = made_by.partition_point(|(made, _)| *made <= file).checked_sub(1);
            let made = last.and_then(|last| made_by.get(last)).filter(|(made, _)| *made == file);
            self.write_file(file, &record, made.map(|made| made.1), held, &mut freed, custody);
        }
        made_by.clear();
        // Its space is used again.
        self.made_by = made_by;
        for key in freed.keys {
            self.orphan(key, custody);
        }
    }

    /// `descriptor`: `None` if the one in the keeper is right, `Some(None)` if there is none.
    fn write_session(
        &mut self,
        record: &SessionRecord,
        descriptor: Option<Option<&HostFile>>,
        custody: &Custody,
    ) {
        let slot = self.sessions.entry(record.id).or_default();
        let bytes = match records::session(record, &slot.extra) {
            Ok(bytes) => bytes,
            Err(error) => return custody.note_unwritable(&error),
        };
        let new = slot.key == 0;
        if new {
            slot.key = custody.allocate(space::SESSION);
        }
        match descriptor {
            Some(server) => custody.put(slot.key, &bytes, server.as_slice()),
            None if new => custody.put(slot.key, &bytes, &[]),
            None => custody.rewrite(slot.key, &bytes),
        }
    }

    fn write_file(
        &mut self,
        file: FileKey,
        record: &FileRecord,
        made: Option<FileExtra>,
        held: Option<HostFile>,
        freed: &mut Freed,
        custody: &Custody,
    ) {
        // Looked for once: there may be very many.
        let place = self.files.entry(file);
        let old = match &place {
            Entry::Vacant(_) => None,
            Entry::Occupied(slot) => Some(*slot.get()),
        };
        let extra = made.or(old.map(|slot| slot.extra)).unwrap_or_default();
        if let Err(error) = records::file(record, &extra, &mut self.buffer) {
            return custody.note_unwritable(&error);
        }
        let bytes = self.buffer.as_slice();
        if let Some(slot) = old.filter(|slot| slot.has_file)
            && held.as_ref().is_none_or(|held| held.slot() == Some(slot.key))
        {
            custody.rewrite(slot.key, bytes);
            if slot.extra != extra {
                fill(place, FileSlot { extra, ..slot });
            }
            return;
        }
        let Some(held) = held else {
            // It went over, and what was kept for it refers to the slot that it had before.
            let before = (record.side == Side::Incoming && old.is_none())
                .then(|| freed.outgoing.get(&(file.session, file.token)).copied())
                .flatten()
                .filter(|key| record.kept.iter().any(|kept| custody.refers(*kept, *key)))
                .filter(|key| freed.keys.remove(key));
            if let Some(key) = before {
                custody.rewrite(key, bytes);
                fill(place, FileSlot { key, has_file: true, extra });
                return;
            }
            let key = old.map_or_else(|| custody.allocate(space::FILE), |slot| slot.key);
            custody.put(key, bytes, &[]);
            fill(place, FileSlot { key, has_file: false, extra });
            return;
        };
        // It came back as another open file description than it went over.
        let old = match old {
            Some(slot) if slot.has_file => {
                freed.keys.insert(slot.key);
                None
            }
            old => old,
        };
        // What referred to an orphan may have gone in the same breath, and the orphan with it.
        let theirs = held.slot().filter(|key| freed.keys.remove(key) || self.orphans.remove(key));
        let key = match theirs.filter(|key| custody.has(*key)) {
            Some(key) => {
                custody.adopt(key);
                custody.rewrite(key, bytes);
                if let Some(slot) = old {
                    custody.forget(slot.key);
                }
                key
            }
            None => {
                let key = old.map_or_else(|| custody.allocate(space::FILE), |slot| slot.key);
                custody.put(key, bytes, &[&held]);
                held.set_slot(Some(key));
                key
            }
        };
        fill(place, FileSlot { key, has_file: true, extra });
    }

    /// Lets go of a slot with a descriptor, now or with the last thing that refers to it.
    fn orphan(&mut self, key: u64, custody: &Custody) {
        if !custody.forget_or_keep(key) {
            custody.rewrite(key, &[]);
            self.orphans.insert(key);
        }
    }
}

fn fill(place: Entry<'_, FileKey, FileSlot>, slot: FileSlot) {
    match place {
        Entry::Vacant(vacant) => {
            vacant.insert(slot);
        }
        Entry::Occupied(mut there) => *there.get_mut() = slot,
    }
}
