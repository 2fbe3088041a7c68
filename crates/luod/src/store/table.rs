//! The worker's picture of the slots, and the one place where they are changed.
//!
//! Invariants:
//! - The picture is ahead of the store by the changes that have not been
//!   [submitted](Table::submit): whoever promises that something is kept submits first, and waits.
//! - Changes are submitted in the order in which they were made.
//! - The limits are checked here too, with the errno that the store would give later.

use std::collections::HashMap;
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
    slots: HashMap<u64, Slot>,
    fds: usize,
    bytes: usize,
    /// The last number that was allocated, of any space.
    last: u64,
    unsubmitted: Batch,
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
        inner.set(key, slot);
    }

    /// Submits the changes made since the last time, as one batch.
    pub fn submit(&self) -> Ticket {
        // Under the lock: batches must reach the store in the order of the changes.
        let mut inner = self.inner();
        let batch = std::mem::take(&mut inner.unsubmitted);
        self.store.submit(batch)
    }

    /// What is in use: slots, descriptors, record bytes.
    #[must_use]
    pub fn used(&self) -> Limits {
        let inner = self.inner();
        Limits { slots: inner.slots.len(), fds: inner.fds, bytes: inner.bytes }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn check(&self, inner: &Inner, key: u64, record: usize, fds: usize) -> Result<(), Failure> {
        let new = usize::from(!inner.slots.contains_key(&key));
        for (used, more, limit, what) in [
            (inner.slots.len(), new, self.limits.slots, "objects"),
            (inner.fds, fds, self.limits.fds, "descriptors"),
            (inner.bytes, record, self.limits.bytes, "bytes of records"),
        ] {
            if used + more > limit {
                return Err(Failure::new(
                    Errno::NoSpc,
                    format!(
                        "luod holds {used} {what}, and {more} more would pass its limit of {limit}"
                    ),
                ));
            }
        }
        Ok(())
    }
}

impl Inner {
    fn set(&mut self, key: u64, slot: Option<Slot>) {
        if let Some(slot) = &slot {
            self.fds += slot.files.len();
            self.bytes += slot.record.len();
        }
        let old = match slot {
            Some(slot) => self.slots.insert(key, slot),
            None => self.slots.remove(&key),
        };
        if let Some(old) = old {
            self.fds -= old.files.len();
            self.bytes -= old.record.len();
        }
    }
}

impl Slots for Table {
    fn allocate(&self, space: u8) -> u64 {
        let mut inner = self.inner();
        inner.last += 1;
        key::make(space, inner.last)
    }

    fn put(&self, key: u64, record: &[u8], files: &[&HostFile]) -> Result<(), Failure> {
        let mut inner = self.inner();
        self.check(&inner, key, record.len(), files.len())?;
        inner.unsubmitted.put(key, record, files.iter().copied())?;
        let files = files.iter().map(|file| (*file).clone()).collect();
        inner.set(key, Some(Slot { record: record.to_vec(), files }));
        Ok(())
    }

    fn rewrite(&self, key: u64, record: &[u8]) -> Result<(), Failure> {
        let mut inner = self.inner();
        self.check(&inner, key, record.len(), 0)?;
        let Some(files) = inner.slots.get(&key).map(|slot| slot.files.clone()) else {
            return Err(Failure::new(Errno::NoEnt, format!("there is no slot {key:#x}")));
        };
        inner.unsubmitted.rewrite(key, record)?;
        inner.set(key, Some(Slot { record: record.to_vec(), files }));
        Ok(())
    }

    fn get(&self, key: u64) -> Option<Slot> {
        self.inner().slots.get(&key).cloned()
    }

    fn forget(&self, key: u64) {
        let mut inner = self.inner();
        if inner.slots.contains_key(&key) {
            inner.unsubmitted.delete(key);
            inner.set(key, None);
        }
    }

    fn keys(&self, space: u8) -> Vec<u64> {
        self.inner().slots.keys().copied().filter(|at| key::space(*at) == space).collect()
    }
}
