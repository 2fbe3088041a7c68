//! Changes of several words that take effect as one: a redo log in the store's memory.
//!
//! ```text
//! stage … stage → write pairs to the log → publish their count → apply each → clear the count
//!                 └ killed here: nothing happened ┘└ killed here: done again at the next open ┘
//! ```
//!
//! Invariants:
//! - While the count is zero nothing reads the pairs; publishing it is a single store of a word.
//! - Pairs are absolute values, so applying them twice is the same as once.

use super::layout::{LOG, LOG_CAPACITY, LOG_COUNT};
use super::region::Region;
use super::{StoreError, corrupt};

/// The words of the change that is being put together.
#[derive(Debug, Default)]
pub(super) struct Log {
    staged: Vec<(u64, u64)>,
    bytes: Vec<u8>,
}

impl Log {
    /// Starts a change; what an earlier failure left staged is dropped.
    pub(super) fn begin(&mut self) {
        self.staged.clear();
    }

    /// The value a word has after the change as staged so far.
    pub(super) fn load(&self, region: &impl Region, offset: u64) -> Result<u64, StoreError> {
        match self.staged.iter().find(|(at, _)| *at == offset) {
            Some((_, value)) => Ok(*value),
            None => Ok(region.load_u64(offset)?),
        }
    }

    /// Makes a word part of the change.
    pub(super) fn store(&mut self, offset: u64, value: u64) {
        match self.staged.iter_mut().find(|(at, _)| *at == offset) {
            Some(pair) => pair.1 = value,
            None => self.staged.push((offset, value)),
        }
    }

    /// Adds to a word, modulo 2^64.
    pub(super) fn add(
        &mut self,
        region: &impl Region,
        offset: u64,
        delta: u64,
    ) -> Result<(), StoreError> {
        let value = self.load(region, offset)?;
        self.store(offset, value.wrapping_add(delta));
        Ok(())
    }

    /// Whether `more` further words fit.
    pub(super) fn has_room(&self, more: usize) -> bool {
        self.staged.len() + more <= LOG_CAPACITY
    }

    /// Makes the change take effect, whole or not at all.
    pub(super) fn commit(&mut self, region: &impl Region) -> Result<(), StoreError> {
        if !self.has_room(0) {
            return Err(corrupt("a change has more words than the redo log"));
        }
        self.bytes.clear();
        for (offset, value) in &self.staged {
            self.bytes.extend_from_slice(&offset.to_ne_bytes());
            self.bytes.extend_from_slice(&value.to_ne_bytes());
        }
        region.write_at(LOG, &self.bytes)?;
        region.store_u64(LOG_COUNT, self.staged.len() as u64)?;
        for (offset, value) in &self.staged {
            region.store_u64(*offset, *value)?;
        }
        region.store_u64(LOG_COUNT, 0)?;
        Ok(())
    }
}

/// Completes the change that was published but maybe not applied when the last writer ended.
pub(super) fn replay(region: &impl Region) -> Result<(), StoreError> {
    let count = region.load_u64(LOG_COUNT)?;
    if count > LOG_CAPACITY as u64 {
        return Err(corrupt("the redo log's count is out of range"));
    }
    let pair = |index: u64| -> Result<(u64, u64), StoreError> {
        Ok((region.load_u64(LOG + index * 16)?, region.load_u64(LOG + index * 16 + 8)?))
    };
    for index in 0..count {
        let (offset, _) = pair(index)?;
        if !offset.is_multiple_of(8) || offset.checked_add(8).is_none_or(|end| end > region.len()) {
            return Err(corrupt("the redo log names a word outside the memory"));
        }
    }
    for index in 0..count {
        let (offset, value) = pair(index)?;
        region.store_u64(offset, value)?;
    }
    region.store_u64(LOG_COUNT, 0)?;
    Ok(())
}
