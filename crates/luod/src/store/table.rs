//! The worker's picture of the slots, and the one place where they are changed.
//!
//! Invariants:
//! - The picture is ahead of the store by the changes that have not been
//!   [submitted](Table::submit): whoever promises that something is kept submits first, and waits.
//! - Changes are submitted in the order in which they were made.
//! - The limits are checked here as the store does it, so that it never refuses a batch for them:
//!   what a batch adds needs room beside everything that is there when it begins.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use luo_abi::keeper::key;
use luo_carriers::{HostFile, Slot, Slots};
use luo_core::{Errno, Failure};

use super::{Batch, Limits, Store, Ticket};

/// The slots, as this worker sees them.
pub struct Table {
    store: Arc<dyn Store>,
    limits: Limits,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    /// Keys ascend as slots are made, and those made together are looked for together.
    slots: BTreeMap<u64, Seen>,
    used: Used,
    /// What was in use when the batch that is being collected began, and what it adds.
    before: Used,
    added: Used,
    /// Counts the batches.
    batch: u64,
    /// The last number that was allocated, of any space.
    last: u64,
    unsubmitted: Batch,
}

#[derive(Debug, Clone)]
struct Seen {
    record: Box<[u8]>,
    files: Files,
    /// The batch that has created it.
    born: u64,
}

/// The descriptors of a slot; most slots have one, and then no allocation.
#[derive(Debug, Clone)]
enum Files {
    None,
    One(HostFile),
    Many(Box<[HostFile]>),
}

impl Files {
    fn as_slice(&self) -> &[HostFile] {
        match self {
            Self::None => &[],
            Self::One(file) => std::slice::from_ref(file),
            Self::Many(files) => files,
        }
    }
}

impl From<&[&HostFile]> for Files {
    fn from(files: &[&HostFile]) -> Self {
        match files {
            [] => Self::None,
            [file] => Self::One((*file).clone()),
            files => Self::Many(files.iter().map(|file| (*file).clone()).collect()),
        }
    }
}

impl From<Vec<HostFile>> for Files {
    fn from(mut files: Vec<HostFile>) -> Self {
        match (files.len(), files.pop()) {
            (1, Some(file)) => Self::One(file),
            (_, None) => Self::None,
            (_, Some(file)) => {
                files.push(file);
                Self::Many(files.into())
            }
        }
    }
}

#[derive(Debug, Default, Clone, Copy)]
struct Used {
    slots: usize,
    fds: usize,
    bytes: usize,
}

impl std::fmt::Debug for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Table").field("limits", &self.limits).finish_non_exhaustive()
    }
}

impl Table {
    /// An empty picture; what the store gives is [put in](Self::loaded) as it comes.
    #[must_use]
    pub fn new(store: Arc<dyn Store>) -> Self {
        let limits = store.limits();
        let inner = Inner { last: key::FIRST, ..Inner::default() };
        Self { store, limits, inner: Mutex::new(inner) }
    }

    /// Notes a slot that the store has given, or has told to be gone.
    pub fn loaded(&self, key: u64, slot: Option<Slot>) {
        let mut inner = self.inner();
        if let [file] = slot.as_ref().map_or(&[][..], |slot| &slot.files) {
            file.set_slot(Some(key));
        }
        inner.last = inner.last.max(key::number(key));
        match slot {
            Some(Slot { record, files }) => inner.set(key, record.into(), files.into()),
            None => inner.remove(key),
        }
        inner.begin();
    }

    /// Submits the changes made since the last time, as one batch.
    pub fn submit(&self) -> Ticket {
        // Under the lock: batches must reach the store in the order of the changes.
        let mut inner = self.inner();
        let batch = std::mem::take(&mut inner.unsubmitted);
        // The next one may well be as large.
        inner.unsubmitted = batch.of_the_same_size();
        inner.begin();
        self.store.submit(batch)
    }

    /// Whether there are changes that were not submitted.
    #[must_use]
    pub fn has_unsubmitted(&self) -> bool {
        !self.inner().unsubmitted.is_empty()
    }

    /// A picture of its own, with what has been loaded: for trying out what would come of it.
    #[must_use]
    pub fn copy(&self) -> Self {
        let inner = self.inner();
        let copy = Inner {
            slots: inner.slots.clone(),
            used: inner.used,
            before: inner.used,
            last: inner.last,
            ..Inner::default()
        };
        Self { store: Arc::clone(&self.store), limits: self.limits, inner: Mutex::new(copy) }
    }

    /// What is in use: slots, descriptors, record bytes.
    #[must_use]
    pub fn used(&self) -> Limits {
        let Used { slots, fds, bytes } = self.inner().used;
        Limits { slots, fds, bytes }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the batch may add that, of which the slot may be new to it; gives what it adds then.
    fn check(
        &self,
        (before, added): (Used, Used),
        new: bool,
        bytes: usize,
        fds: usize,
    ) -> Result<Used, Failure> {
        let added = Used {
            slots: added.slots + usize::from(new),
            fds: added.fds + fds,
            bytes: added.bytes + bytes,
        };
        for (before, added, limit, what) in [
            (before.slots, added.slots, self.limits.slots, "objects"),
            (before.fds, added.fds, self.limits.fds, "descriptors"),
            (before.bytes, added.bytes, self.limits.bytes, "bytes of records"),
        ] {
            if before + added > limit {
                return Err(Failure::new(
                    Errno::NoSpc,
                    format!(
                        "luod holds {before} {what}, and {added} more would pass its limit of {limit}"
                    ),
                ));
            }
        }
        Ok(added)
    }
}

impl Inner {
    /// A new batch begins.
    fn begin(&mut self) {
        self.batch += 1;
        self.before = self.used;
        self.added = Used::default();
    }

    fn set(&mut self, key: u64, record: Box<[u8]>, files: Files) {
        self.used.set(self.slots.entry(key), self.batch, record, files);
    }

    /// A file that sat in the slot sits in none any more: who keeps it next sends it again, and
    /// does not refer to what is gone.
    fn remove(&mut self, key: u64) {
        if let Some(seen) = self.slots.remove(&key) {
            self.used.forget(&seen);
            for file in seen.files.as_slice() {
                if file.slot() == Some(key) {
                    file.set_slot(None);
                }
            }
        }
    }
}

impl Used {
    /// Fills a slot, and counts what is in it.
    fn set(&mut self, slot: Entry<'_, u64, Seen>, batch: u64, record: Box<[u8]>, files: Files) {
        self.slots += 1;
        self.fds += files.as_slice().len();
        self.bytes += record.len();
        match slot {
            Entry::Vacant(vacant) => {
                vacant.insert(Seen { record, files, born: batch });
            }
            Entry::Occupied(mut there) => {
                let seen = there.get_mut();
                self.forget(seen);
                // What is only replaced stays as old as it was.
                *seen = Seen { record, files, born: seen.born };
            }
        }
    }

    fn forget(&mut self, seen: &Seen) {
        self.slots -= 1;
        self.fds -= seen.files.as_slice().len();
        self.bytes -= seen.record.len();
    }
}

impl Slots for Table {
    fn allocate(&self, space: u8) -> u64 {
        let mut inner = self.inner();
        inner.last += 1;
        key::make(space, inner.last)
    }

    fn put(&self, key: u64, record: &[u8], files: &[&HostFile]) -> Result<(), Failure> {
        let inner = &mut *self.inner();
        // Looked for once: there may be very many.
        let there = inner.slots.entry(key);
        let new = match &there {
            Entry::Vacant(_) => true,
            Entry::Occupied(seen) => seen.get().born == inner.batch,
        };
        let so_far = (inner.before, inner.added);
        let added = self.check(so_far, new, record.len(), files.len())?;
        inner.unsubmitted.put(key, record, files.iter().copied())?;
        inner.added = added;
        inner.used.set(there, inner.batch, record.into(), files.into());
        Ok(())
    }

    fn rewrite(&self, key: u64, record: &[u8]) -> Result<(), Failure> {
        let inner = &mut *self.inner();
        let Some(born) = inner.slots.get(&key).map(|seen| seen.born) else {
            return Err(Failure::new(Errno::NoEnt, format!("there is no slot {key:#x}")));
        };
        let so_far = (inner.before, inner.added);
        let added = self.check(so_far, born == inner.batch, record.len(), 0)?;
        inner.unsubmitted.rewrite(key, record)?;
        inner.added = added;
        if let Some(seen) = inner.slots.get_mut(&key) {
            inner.used.bytes = inner.used.bytes + record.len() - seen.record.len();
            match seen.record.len() == record.len() {
                true => seen.record.copy_from_slice(record),
                false => seen.record = record.into(),
            }
        }
        Ok(())
    }

    fn get(&self, key: u64) -> Option<Slot> {
        self.look(key, |record, files| Slot { record: record.to_vec(), files: files.to_vec() })
    }

    fn look<R>(&self, key: u64, look: impl FnOnce(&[u8], &[HostFile]) -> R) -> Option<R> {
        self.inner().slots.get(&key).map(|seen| look(&seen.record, seen.files.as_slice()))
    }

    fn forget(&self, key: u64) {
        let mut inner = self.inner();
        if inner.slots.contains_key(&key) {
            inner.unsubmitted.delete(key);
            inner.remove(key);
        }
    }

    fn keys(&self, space: u8) -> Vec<u64> {
        self.inner().slots.keys().copied().filter(|at| key::space(*at) == space).collect()
    }
}
