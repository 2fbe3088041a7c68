//! What the keeper holds: slots, each a key, opaque record bytes and descriptors.
//!
//! Invariants:
//! - What is held and what is staged together never pass the limits; that is checked before
//!   anything is taken over. A batch therefore needs room for its new slots beside the old ones.
//! - A batch is applied whole or not at all, and applying cannot fail.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;

use luo_abi::keeper::{Message, entry_flag};
use luo_carriers::closer;
use rustix::io::Errno;

/// The most that the keeper holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Slots.
    pub slots: usize,
    /// Descriptors. [`run`](super::run) lowers this to what RLIMIT_NOFILE leaves.
    pub fds: usize,
    /// Bytes of records.
    pub bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { slots: 1 << 20, fds: 1 << 19, bytes: 256 << 20 }
    }
}

/// The most changes in a batch, where the limit of slots is not above it anyway.
const MAX_BATCH: usize = 1 << 14;

/// The descriptors of a slot; most slots have one, and then no allocation.
#[derive(Debug, Default)]
pub(super) enum Fds {
    #[default]
    None,
    One(OwnedFd),
    Many(Box<[OwnedFd]>),
}

impl Fds {
    pub(super) fn take(count: usize, from: &mut impl Iterator<Item = OwnedFd>) -> Self {
        match count {
            0 => Self::None,
            1 => from.next().map_or(Self::None, Self::One),
            _ => Self::Many(from.take(count).collect()),
        }
    }

    pub(super) fn as_slice(&self) -> &[OwnedFd] {
        match self {
            Self::None => &[],
            Self::One(fd) => std::slice::from_ref(fd),
            Self::Many(fds) => fds,
        }
    }
}

impl Drop for Slot {
    /// The keeper waits for nobody, not for the last close of a client's file either.
    fn drop(&mut self) {
        match std::mem::take(&mut self.fds) {
            Fds::None => {}
            Fds::One(fd) => closer::close(fd),
            Fds::Many(fds) => closer::close_all(fds),
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct Slot {
    pub(super) record: Box<[u8]>,
    pub(super) fds: Fds,
}

impl Slot {
    pub(super) fn parts(&self) -> (&[u8], &[OwnedFd]) {
        (&self.record, self.fds.as_slice())
    }
}

/// How much of the limits is used.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Used {
    slots: usize,
    fds: usize,
    bytes: usize,
}

/// A change that waits for the end of its batch.
#[derive(Debug)]
enum Change {
    Put(Slot),
    Rewrite(Box<[u8]>),
    Delete,
}

/// A batch that is not complete yet; dropped with the worker that sends it.
#[derive(Debug, Default)]
pub(super) struct Staged {
    changes: Vec<(u64, Change)>,
    used: Used,
    /// An earlier message of the batch was refused: so is the batch.
    failed: Option<Errno>,
}

impl Staged {
    pub(super) fn is_empty(&self) -> bool {
        self.changes.is_empty() && self.failed.is_none()
    }

    pub(super) fn fail(&mut self, errno: Errno) {
        *self = Self { failed: Some(self.failed.unwrap_or(errno)), ..Self::default() };
    }
}

#[derive(Debug)]
pub(super) struct Slots {
    map: BTreeMap<u64, Slot>,
    used: Used,
    limits: Limits,
}

impl Slots {
    pub(super) fn new(limits: Limits) -> Self {
        Self { map: BTreeMap::new(), used: Used::default(), limits }
    }

    pub(super) fn limits(&self) -> Limits {
        self.limits
    }

    pub(super) fn len(&self) -> usize {
        self.map.len()
    }

    pub(super) fn fds(&self) -> usize {
        self.used.fds
    }

    pub(super) fn get(&self, key: u64) -> Option<&Slot> {
        self.map.get(&key)
    }

    /// The slots from that key on, in order.
    pub(super) fn from(&self, key: u64) -> impl Iterator<Item = (u64, &Slot)> {
        self.map.range(key..).map(|(key, slot)| (*key, slot))
    }

    /// Takes a slot over from the image before, or one that was made here.
    pub(super) fn insert(&mut self, key: u64, slot: Slot) {
        self.used.slots += 1;
        self.used.fds += slot.fds.as_slice().len();
        self.used.bytes += slot.record.len();
        if let Some(old) = self.map.insert(key, slot) {
            self.uncount(&old);
        }
    }

    /// Whether one more slot with one descriptor fits.
    pub(super) fn has_room(&self, bytes: usize) -> bool {
        self.used.slots < self.limits.slots
            && self.used.fds + closer::waiting() < self.limits.fds
            && self.used.bytes + bytes <= self.limits.bytes
    }

    /// Adds a message of that many descriptors, whose shape has been checked, to the batch.
    pub(super) fn stage(&self, staged: &mut Staged, message: &Message<'_>, fds: &mut Vec<OwnedFd>) {
        if staged.failed.is_some() {
            return closer::close_all(fds.drain(..));
        }
        let puts = message.entries.iter().filter(|entry| entry.flags.get() != entry_flag::DELETE);
        let used = Used {
            slots: staged.used.slots + puts.clone().count(),
            fds: staged.used.fds + fds.len(),
            bytes: staged.used.bytes + message.body.len(),
        };
        // Close to the limit it matters which keys need a slot that is not there yet.
        let new_slots = || {
            let staged =
                staged.changes.iter().filter(|(_, change)| !matches!(change, Change::Delete));
            let keys = staged.map(|(key, _)| *key).chain(puts.map(|entry| entry.key.get()));
            keys.filter(|key| !self.map.contains_key(key)).count()
        };
        if (self.used.slots + used.slots > self.limits.slots
            && self.used.slots + new_slots() > self.limits.slots)
            || self.used.fds + used.fds + closer::waiting() > self.limits.fds
            || self.used.bytes + used.bytes > self.limits.bytes
            || staged.changes.len() + message.entries.len() > MAX_BATCH.max(self.limits.slots)
        {
            closer::close_all(fds.drain(..));
            return staged.fail(Errno::NOSPC);
        }
        staged.used = used;
        let mut fds = fds.drain(..);
        staged.changes.extend(message.slots().map(|(entry, record)| {
            let change = match entry.flags.get() {
                entry_flag::DELETE => Change::Delete,
                entry_flag::KEEP_FDS => Change::Rewrite(record.into()),
                _ => Change::Put(Slot {
                    record: record.into(),
                    fds: Fds::take(entry.fds.get().into(), &mut fds),
                }),
            };
            (entry.key.get(), change)
        }));
    }

    /// Applies the batch, and says which keys changed.
    ///
    /// # Errors
    /// Why a message of the batch was refused; nothing is changed then. Either way the next
    /// message begins a new batch.
    pub(super) fn apply(
        &mut self,
        staged: &mut Staged,
        mut changed: impl FnMut(u64),
    ) -> Result<(), Errno> {
        staged.used = Used::default();
        if let Some(errno) = staged.failed.take() {
            return Err(errno);
        }
        for (key, change) in staged.changes.drain(..) {
            changed(key);
            match change {
                Change::Put(slot) => self.insert(key, slot),
                Change::Delete => {
                    if let Some(old) = self.map.remove(&key) {
                        self.uncount(&old);
                    }
                }
                Change::Rewrite(record) => {
                    let slot = self.map.entry(key).or_insert_with(|| {
                        self.used.slots += 1;
                        Slot::default()
                    });
                    self.used.bytes = self.used.bytes + record.len() - slot.record.len();
                    slot.record = record;
                }
            }
        }
        Ok(())
    }

    fn uncount(&mut self, slot: &Slot) {
        self.used.slots -= 1;
        self.used.fds -= slot.fds.as_slice().len();
        self.used.bytes -= slot.record.len();
    }
}

#[cfg(test)]
mod tests;
