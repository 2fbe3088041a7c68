//! The tables as a whole: growth, walks, flushing, expiry.
//!
//! Invariants:
//! - A table has at most one bucket more after an insertion than before; each step here touches a bounded number
//!   of words.
//! - The condemned table is emptied from bucket 0 upwards and then given back; it is absent (no buckets) in
//!   between.

use super::entries::Link;
use super::heap::{Block, Purpose};
use super::layout::{
    CONDEMNED_CURSOR, EXPIRING, LIVE_BYTES, MAX_BUCKETS, SEGMENTS, Table, bucket_of, class_of,
    class_size, place, segment_size,
};
use super::region::Region;
use super::{Store, StoreError, corrupt};

/// No chain of a bucket is this long unless the store is damaged.
pub(super) const MAX_CHAIN: usize = 1 << 16;

impl<R: Region> Store<R> {
    /// The word that heads a bucket.
    pub(super) fn bucket_word(&self, table: Table, bucket: u64) -> Result<u64, StoreError> {
        let (segment, index) = place(bucket);
        if segment >= SEGMENTS {
            return Err(corrupt("a bucket lies beyond the last segment"));
        }
        let base = self.region.load_u64(table.segment(segment))?;
        base.checked_add(index * 8).ok_or(corrupt("a segment lies outside the memory"))
    }

    /// Adds a bucket where there are more entries than buckets.
    pub(super) fn grow_table(&mut self, table: Table) -> Result<(), StoreError> {
        let buckets = self.region.load_u64(table.buckets())?;
        if buckets >= MAX_BUCKETS || self.region.load_u64(table.entries())? <= buckets {
            return Ok(());
        }
        self.begin()?;
        let (segment, index) = place(buckets);
        let purpose = if table == Table::Journal { Purpose::Journal } else { Purpose::Data };
        let base = if index == 0 {
            match self.take(segment_size(segment), purpose) {
                Ok(block) => {
                    self.log.store(table.segment(segment), block.offset);
                    block.offset
                }
                // Without a new segment chains grow longer, and all is well otherwise.
                Err(StoreError::Full { .. }) => return Ok(()),
                Err(error) => return Err(error),
            }
        } else {
            self.region.load_u64(table.segment(segment))?
        };
        let source = self.bucket_word(table, buckets - (1 << buckets.ilog2()))?;
        // Appends each entry to one of two chains, and so keeps their order.
        let mut tails = [source, base + index * 8];
        let mut at = self.region.load_u64(source)?;
        while at != 0 {
            // Chains too long for one change are rare enough to stay as they are.
            if !self.log.has_room(8) {
                return Ok(());
            }
            let next = self.region.load_u64(at)?;
            let moves = bucket_of(self.region.load_u64(at + 8)?, buckets + 1) == buckets;
            let tail = &mut tails[usize::from(moves)];
            self.log.store(*tail, at);
            *tail = at;
            at = next;
        }
        for tail in tails {
            self.log.store(tail, 0);
        }
        self.log.store(table.buckets(), buckets + 1);
        self.commit()
    }

    /// Visits the entries of one bucket of clients' keys after another, at least `count` of them if there are so
    /// many, and returns where to go on, or 0 at the end.
    ///
    /// A key that is there from the first call (with cursor 0) to the last is visited at least once, although
    /// other keys come and go.
    ///
    /// # Errors
    /// [`StoreError::Region`], [`StoreError::Corrupt`].
    pub fn scan(
        &mut self,
        cursor: u64,
        count: usize,
        now_ms: u64,
        visit: &mut dyn FnMut(&[u8]),
    ) -> Result<u64, StoreError> {
        let buckets = self.region.load_u64(Table::Data.buckets())?;
        let (mut bucket, mut visited) = (cursor, 0);
        // Buckets split to higher places only, so an upward walk misses none.
        while bucket < buckets {
            let mut at = self.region.load_u64(self.bucket_word(Table::Data, bucket)?)?;
            for step in 0.. {
                if at == 0 {
                    break;
                }
                if step == MAX_CHAIN {
                    return Err(corrupt("a bucket's chain does not end"));
                }
                let entry = self.entry_at(at)?;
                if !entry.expired(now_ms) {
                    let mut key = std::mem::take(&mut self.scratch);
                    let read = self.read_key(&entry, &mut key);
                    if read.is_ok() {
                        visit(&key);
                    }
                    self.scratch = key;
                    read?;
                }
                visited += 1;
                at = entry.next;
            }
            bucket += 1;
            if visited >= count {
                break;
            }
        }
        Ok(if bucket < buckets { bucket } else { 0 })
    }

    /// Visits every entry of the journal.
    pub(crate) fn scan_journal(
        &mut self,
        visit: &mut dyn FnMut(&[u8], &[u8]),
    ) -> Result<(), StoreError> {
        let (mut key, mut value) = (Vec::new(), Vec::new());
        for bucket in 0..self.region.load_u64(Table::Journal.buckets())? {
            let mut at = self.region.load_u64(self.bucket_word(Table::Journal, bucket)?)?;
            for step in 0.. {
                if at == 0 {
                    break;
                }
                if step == MAX_CHAIN {
                    return Err(corrupt("a bucket's chain does not end"));
                }
                let entry = self.entry_at(at)?;
                self.read_key(&entry, &mut key)?;
                value.clear();
                self.read_value(&entry, &mut value)?;
                visit(&key, &value);
                at = entry.next;
            }
        }
        Ok(())
    }

    /// Removes all keys of clients. Their blocks become free in later calls of [`reclaim`](Self::reclaim).
    ///
    /// # Errors
    /// [`StoreError::Region`], [`StoreError::Corrupt`].
    pub fn flush_all(&mut self) -> Result<(), StoreError> {
        while self.reclaim(1024)? {}
        self.begin()?;
        for index in 0..SEGMENTS {
            let segment = self.region.load_u64(Table::Data.segment(index))?;
            self.log.store(Table::Condemned.segment(index), segment);
            self.log.store(Table::Data.segment(index), 0);
        }
        self.log.store(Table::Condemned.buckets(), self.region.load_u64(Table::Data.buckets())?);
        self.log.store(Table::Condemned.entries(), self.region.load_u64(Table::Data.entries())?);
        self.log.store(CONDEMNED_CURSOR, 0);
        self.log.store(EXPIRING, 0);
        self.stage_empty(Table::Data, Purpose::Flush)?;
        self.commit()
    }

    /// Frees up to `steps` entries (or empty buckets) that were flushed; false where nothing is left to free.
    ///
    /// # Errors
    /// [`StoreError::Region`], [`StoreError::Corrupt`].
    pub fn reclaim(&mut self, steps: usize) -> Result<bool, StoreError> {
        let buckets = self.region.load_u64(Table::Condemned.buckets())?;
        if buckets == 0 {
            return Ok(false);
        }
        let mut cursor = self.region.load_u64(CONDEMNED_CURSOR)?;
        for _ in 0..steps {
            if cursor >= buckets {
                self.give_back_segments(buckets)?;
                return Ok(true);
            }
            let word = self.bucket_word(Table::Condemned, cursor)?;
            let at = self.region.load_u64(word)?;
            if at == 0 {
                cursor += 1;
                continue;
            }
            let entry = self.entry_at(at)?;
            self.begin()?;
            self.log.store(word, entry.next);
            self.log.add(&self.region, Table::Condemned.entries(), 1_u64.wrapping_neg())?;
            self.log.add(&self.region, LIVE_BYTES, class_size(entry.class).wrapping_neg())?;
            self.give(Block { offset: at, class: entry.class })?;
            self.commit()?;
        }
        // All buckets below are empty, so a cursor that lags after a kill costs only time.
        self.region.store_u64(CONDEMNED_CURSOR, cursor)?;
        Ok(true)
    }

    fn give_back_segments(&mut self, buckets: u64) -> Result<(), StoreError> {
        let (last, _) = place(buckets - 1);
        self.begin()?;
        for index in 0..=last {
            let offset = self.region.load_u64(Table::Condemned.segment(index))?;
            self.give(Block { offset, class: class_of(segment_size(index)) })?;
            self.log.store(Table::Condemned.segment(index), 0);
        }
        self.log.store(Table::Condemned.buckets(), 0);
        self.log.store(CONDEMNED_CURSOR, 0);
        self.commit()
    }

    /// Removes expired keys from the next `buckets` buckets.
    ///
    /// # Errors
    /// [`StoreError::Region`], [`StoreError::Corrupt`].
    pub fn sweep(&mut self, buckets: u64, now_ms: u64) -> Result<(), StoreError> {
        if self.region.load_u64(EXPIRING)? == 0 {
            return Ok(());
        }
        let end = self.region.load_u64(Table::Data.buckets())?;
        for _ in 0..buckets.min(end) {
            self.sweep_cursor = (self.sweep_cursor + 1) % end;
            let mut link = self.bucket_word(Table::Data, self.sweep_cursor)?;
            for step in 0.. {
                let at = self.region.load_u64(link)?;
                if at == 0 {
                    break;
                }
                if step == MAX_CHAIN {
                    return Err(corrupt("a bucket's chain does not end"));
                }
                let entry = self.entry_at(at)?;
                if entry.expired(now_ms) {
                    self.remove(Table::Data, Link { word: link, entry })?;
                } else {
                    link = at;
                }
            }
        }
        Ok(())
    }
}
