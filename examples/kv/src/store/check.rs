//! A full check of a store against itself, for tests and for an operator in doubt. Takes time in proportion to
//! the number of keys.

use std::collections::BTreeMap;

use super::layout::{
    CLASSES, EXPIRING, HEAP, HEAP_TOP, LIVE_BYTES, Table, bucket_of, class_of, class_size,
    free_head, place, segment_size,
};
use super::region::Region;
use super::{Store, StoreError, corrupt, hash::siphash13};

impl<R: Region> Store<R> {
    /// Checks that every block of the heap is in exactly one place, every entry in its bucket, every count right.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] names the first contradiction; [`StoreError::Region`].
    pub fn check(&self) -> Result<(), StoreError> {
        let mut blocks = BTreeMap::new();
        let mut live = 0;
        for table in [Table::Data, Table::Journal, Table::Condemned] {
            live += self.check_table(table, &mut blocks)?;
        }
        if live != self.region.load_u64(LIVE_BYTES)? {
            return Err(corrupt("the count of bytes in use is wrong"));
        }
        for class in 0..CLASSES {
            let mut at = self.region.load_u64(free_head(class))?;
            while at != 0 {
                claim(&mut blocks, at, class_size(class))?;
                at = self.region.load_u64(at)?;
            }
        }
        let mut end = HEAP;
        for (offset, size) in blocks {
            if offset != end {
                return Err(corrupt("blocks overlap, or one is lost"));
            }
            end = offset + size;
        }
        if end != self.region.load_u64(HEAP_TOP)? {
            return Err(corrupt("the last block is lost"));
        }
        Ok(())
    }

    /// Checks one table and returns the bytes of its entries' blocks.
    fn check_table(
        &self,
        table: Table,
        blocks: &mut BTreeMap<u64, u64>,
    ) -> Result<u64, StoreError> {
        let buckets = self.region.load_u64(table.buckets())?;
        if buckets > 0 {
            for segment in 0..=place(buckets - 1).0 {
                let size = class_size(class_of(segment_size(segment)));
                claim(blocks, self.region.load_u64(table.segment(segment))?, size)?;
            }
        }
        let (mut entries, mut expiring, mut live) = (0, 0, 0);
        let mut key = Vec::new();
        for bucket in 0..buckets {
            let mut at = self.region.load_u64(self.bucket_word(table, bucket)?)?;
            while at != 0 {
                let entry = self.entry_at(at)?;
                claim(blocks, at, class_size(entry.class))?;
                self.read_key(&entry, &mut key)?;
                let hash = siphash13(self.hash_key, &key);
                if hash != self.region.load_u64(at + 8)? || bucket_of(hash, buckets) != bucket {
                    return Err(corrupt("an entry is in another bucket than its key's"));
                }
                entries += 1;
                expiring += u64::from(entry.expires().is_some());
                live += class_size(entry.class);
                at = entry.next;
            }
        }
        if entries != self.region.load_u64(table.entries())? {
            return Err(corrupt("a table's count of entries is wrong"));
        }
        if table == Table::Data && expiring != self.region.load_u64(EXPIRING)? {
            return Err(corrupt("the count of keys that expire is wrong"));
        }
        Ok(live)
    }
}

fn claim(blocks: &mut BTreeMap<u64, u64>, offset: u64, size: u64) -> Result<(), StoreError> {
    match blocks.insert(offset, size) {
        None => Ok(()),
        Some(_) => Err(corrupt("a block is in two places")),
    }
}
