//! Batches of changes, in the form in which they are sent.
//!
//! Invariants: every change in a batch fits into one message, so a batch can be cut between any
//! two changes.

use luo_abi::keeper::{Entry, MAX_FDS, MAX_RECORD, entry_flag};
use luo_carriers::HostFile;

use super::StoreError;

/// Changes that are kept together or not at all.
#[derive(Debug, Default)]
pub struct Batch {
    pub(super) entries: Vec<Entry>,
    pub(super) records: Vec<u8>,
    pub(super) files: Vec<HostFile>,
}

/// One change of a batch.
#[derive(Debug)]
pub enum Change<'a> {
    /// Creates or replaces the slot.
    Put(&'a [u8], &'a [HostFile]),
    /// Replaces the slot's record.
    Rewrite(&'a [u8]),
    /// Deletes the slot.
    Delete,
}

impl Batch {
    /// An empty one.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty one with space for so many changes, with one descriptor and that many record bytes
    /// each.
    #[must_use]
    pub fn with_capacity(changes: usize, record: usize) -> Self {
        Self {
            entries: Vec::with_capacity(changes),
            records: Vec::with_capacity(changes * record),
            files: Vec::with_capacity(changes),
        }
    }

    /// An empty one with space for as much as is in this one, within reason.
    #[must_use]
    pub(super) fn of_the_same_size(&self) -> Self {
        const MOST: usize = 1024;
        let changes = self.entries.len();
        Self::with_capacity(changes.min(MOST), self.records.len().checked_div(changes).unwrap_or(0))
    }

    /// Whether nothing is in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// How many changes are in it.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Creates or replaces a slot.
    ///
    /// # Errors
    /// [`StoreError::TooLarge`] beyond [`MAX_RECORD`] bytes or [`MAX_FDS`] files; the batch is as
    /// it was.
    pub fn put<'f>(
        &mut self,
        key: u64,
        record: &[u8],
        files: impl IntoIterator<Item = &'f HostFile>,
    ) -> Result<(), StoreError> {
        let before = self.files.len();
        self.files.extend(files.into_iter().cloned());
        let fds = self.files.len() - before;
        if record.len() > MAX_RECORD || fds > MAX_FDS {
            self.files.truncate(before);
            return Err(StoreError::TooLarge { bytes: record.len(), fds });
        }
        self.push(key, record, fds, 0);
        Ok(())
    }

    /// Replaces a slot's record; its descriptors stay.
    ///
    /// # Errors
    /// [`StoreError::TooLarge`].
    pub fn rewrite(&mut self, key: u64, record: &[u8]) -> Result<(), StoreError> {
        if record.len() > MAX_RECORD {
            return Err(StoreError::TooLarge { bytes: record.len(), fds: 0 });
        }
        self.push(key, record, 0, entry_flag::KEEP_FDS);
        Ok(())
    }

    /// Deletes a slot; unknown keys are ignored.
    pub fn delete(&mut self, key: u64) {
        self.push(key, &[], 0, entry_flag::DELETE);
    }

    fn push(&mut self, key: u64, record: &[u8], fds: usize, flags: u16) {
        self.records.extend_from_slice(record);
        // Both have been checked against limits that are far below these types'.
        let (length, fds) = (record.len() as u32, fds as u16);
        self.entries.push(Entry {
            key: key.into(),
            length: length.into(),
            fds: fds.into(),
            flags: flags.into(),
        });
    }

    /// The changes, in order.
    pub fn changes(&self) -> impl Iterator<Item = (u64, Change<'_>)> {
        let (mut records, mut files) = (self.records.as_slice(), self.files.as_slice());
        self.entries.iter().map(move |entry| {
            let (record, rest) = records.split_at(records.len().min(entry.length.get() as usize));
            records = rest;
            let (own, rest) = files.split_at(files.len().min(entry.fds.get().into()));
            files = rest;
            let change = match entry.flags.get() {
                entry_flag::DELETE => Change::Delete,
                entry_flag::KEEP_FDS => Change::Rewrite(record),
                _ => Change::Put(record, own),
            };
            (entry.key.get(), change)
        })
    }
}
