//! The heap: blocks of size classes, taken from free lists or from the unused end.
//!
//! Invariants:
//! - Taking and giving back a block are part of the staged change; until it is committed the block is free, and
//!   all of it but its first word (the link of the free list) may be written.

use super::layout::{CLASSES, FIRST_BUCKETS, HEAP_TOP, Table, class_of, class_size, free_head};
use super::region::Region;
use super::{FLUSH_ALLOWANCE, JOURNAL_ALLOWANCE, Store, StoreError};

/// The memory grows by at least this many bytes at a time, and by an eighth.
const GROWTH: u64 = 4 << 20;

/// A block that the staged change takes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Block {
    pub(super) offset: u64,
    pub(super) class: u64,
}

/// For whom a block is taken; some may exceed the limit a little.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    Data,
    Journal,
    Flush,
}

impl<R: Region> Store<R> {
    /// Takes a block of at least `size` bytes.
    pub(super) fn take(&mut self, size: u64, purpose: Purpose) -> Result<Block, StoreError> {
        let class = class_of(size);
        if let Some(block) = self.take_free(class)? {
            return Ok(block);
        }
        let allowance = match purpose {
            Purpose::Data => 0,
            Purpose::Journal => JOURNAL_ALLOWANCE,
            Purpose::Flush => FLUSH_ALLOWANCE,
        };
        let offset = self.log.load(&self.region, HEAP_TOP)?;
        let top = offset.saturating_add(class_size(class));
        if top <= self.limit.saturating_add(allowance) {
            self.reach(top)?;
            self.log.store(HEAP_TOP, top);
            return Ok(Block { offset, class });
        }
        for larger in class + 1..CLASSES {
            if let Some(block) = self.take_free(larger)? {
                return Ok(block);
            }
        }
        Err(StoreError::Full { limit: self.limit })
    }

    /// Gives a block back.
    pub(super) fn give(&mut self, block: Block) -> Result<(), StoreError> {
        let head = self.log.load(&self.region, free_head(block.class))?;
        self.log.store(block.offset, head);
        self.log.store(free_head(block.class), block.offset);
        Ok(())
    }

    fn take_free(&mut self, class: u64) -> Result<Option<Block>, StoreError> {
        let offset = self.log.load(&self.region, free_head(class))?;
        if offset == 0 {
            return Ok(None);
        }
        let next = self.log.load(&self.region, offset)?;
        self.log.store(free_head(class), next);
        Ok(Some(Block { offset, class }))
    }

    /// Makes the memory at least `top` bytes long. Not part of a change: longer memory harms nobody.
    fn reach(&mut self, top: u64) -> Result<(), StoreError> {
        let len = self.region.len();
        if top > len {
            let ahead = len.saturating_add((len / 8).max(GROWTH)).min(self.limit);
            self.region.grow(top.max(ahead).next_multiple_of(4096))?;
        }
        Ok(())
    }

    /// Stages an empty table in place of `table`'s present one.
    pub(super) fn stage_empty(&mut self, table: Table, purpose: Purpose) -> Result<(), StoreError> {
        let block = self.take(FIRST_BUCKETS * 8, purpose)?;
        // The first word still links the free list until the change is committed.
        self.region.write_at(block.offset + 8, &[0; (FIRST_BUCKETS as usize - 1) * 8])?;
        self.log.store(block.offset, 0);
        self.log.store(table.buckets(), FIRST_BUCKETS);
        self.log.store(table.entries(), 0);
        self.log.store(table.segment(0), block.offset);
        Ok(())
    }
}
