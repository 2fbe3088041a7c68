//! Where everything lies in the store's memory. All offsets are bytes from its start.
//!
//! ```text
//! 0      header: one word each
//! 128    three tables (data, journal, condemned): bucket count, entry count, offsets of segments
//! 2048   heads of the free lists, one word a size class
//! 4096   redo log: pairs of (offset, value)
//! 8192   heap: blocks of entries and of bucket segments
//! ```
//!
//! An **entry** is one block: four words, the key (padded to 8 bytes), the value.
//!
//! | word | in use | free |
//! | --- | --- | --- |
//! | 0 | next entry of its bucket, or 0 | next block of its free list, or 0 |
//! | 1 | hash of the key | – |
//! | 2 | value length (bits 0–31), key length (32–55), size class (56–63) | – |
//! | 3 | when it expires, in ms since 1970, or 0 | – |
//!
//! A **table** is a linear hash table: `n` buckets, each a word with the offset of its first entry. Bucket `n` is
//! made by splitting bucket `n - 2^floor(log2 n)`, so the table grows by one bucket at a time. Segment 0 has 64
//! buckets and each further segment doubles the table; buckets never move.
//!
//! Invariants:
//! - Words are in the machine's byte order: the memory never leaves the machine.
//! - A changed layout is a new [`VERSION`].

/// "luo-kv" and two bytes that tell a swapped byte order.
pub(super) const MAGIC_VALUE: u64 = u64::from_be_bytes(*b"luo-kv\x01\x02");
/// Version of this layout.
pub(super) const VERSION_VALUE: u64 = 1;

pub(super) const MAGIC: u64 = 0;
pub(super) const VERSION: u64 = 8;
pub(super) const HASH_KEY: [u64; 2] = [16, 24];
/// End of the part of the heap that was ever used.
pub(super) const HEAP_TOP: u64 = 32;
/// Bytes in blocks that hold entries of any table.
pub(super) const LIVE_BYTES: u64 = 40;
/// The token that the next accepted connection gets.
pub(super) const NEXT_TOKEN: u64 = 48;
/// The token of the connection being served, or 0.
pub(super) const BUSY: u64 = 56;
/// How many entries of the data table may expire.
pub(super) const EXPIRING: u64 = 64;
/// The next bucket of the condemned table to be emptied.
pub(super) const CONDEMNED_CURSOR: u64 = 72;
/// How many pairs of the redo log are valid: non-zero from the publication of a change until it is applied.
pub(super) const LOG_COUNT: u64 = 80;
/// How often the memory was opened.
pub(super) const GENERATION: u64 = 88;

const TABLES: u64 = 128;
const TABLE_SIZE: u64 = 512;
/// Heads of the free lists.
const FREE: u64 = 2048;
/// Where the redo log starts.
pub(super) const LOG: u64 = 4096;
/// How many pairs it holds.
pub(super) const LOG_CAPACITY: usize = 256;
/// Where the heap starts.
pub(super) const HEAP: u64 = 8192;

/// Bytes of an entry before its key.
pub(super) const ENTRY_HEADER: u64 = 32;

/// Which table an entry is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Table {
    /// What clients store.
    Data,
    /// What the server notes about its connections.
    Journal,
    /// A former data table that was flushed and is being emptied step by step.
    Condemned,
}

impl Table {
    const fn base(self) -> u64 {
        TABLES + self as u64 * TABLE_SIZE
    }

    /// The word with the number of buckets.
    pub(super) const fn buckets(self) -> u64 {
        self.base()
    }

    /// The word with the number of entries.
    pub(super) const fn entries(self) -> u64 {
        self.base() + 8
    }

    /// The word with the offset of segment `index`.
    pub(super) const fn segment(self, index: u64) -> u64 {
        self.base() + 16 + index * 8
    }
}

/// Buckets of segment 0.
pub(super) const FIRST_BUCKETS: u64 = 64;
/// Segments of a table; the largest is 128 MiB.
pub(super) const SEGMENTS: u64 = 20;
/// Buckets of a table that is as large as it can be.
pub(super) const MAX_BUCKETS: u64 = FIRST_BUCKETS << (SEGMENTS - 1);

/// The segment of a bucket and the bucket's place in it.
pub(super) const fn place(bucket: u64) -> (u64, u64) {
    if bucket < FIRST_BUCKETS {
        return (0, bucket);
    }
    let segment = bucket.ilog2() as u64 - FIRST_BUCKETS.ilog2() as u64 + 1;
    (segment, bucket - (FIRST_BUCKETS << (segment - 1)))
}

/// How many bytes a segment takes.
pub(super) const fn segment_size(segment: u64) -> u64 {
    let doublings = segment.saturating_sub(1);
    (FIRST_BUCKETS << doublings) * 8
}

/// The bucket of a hash in a table of `buckets` (at least one) buckets.
pub(super) const fn bucket_of(hash: u64, buckets: u64) -> u64 {
    let half = 1 << buckets.ilog2();
    let bucket = hash & (half * 2 - 1);
    if bucket < buckets { bucket } else { hash & (half - 1) }
}

/// Size classes: 8 to each power of two from 64 bytes, so at most an eighth of a block is unused.
pub(super) const CLASSES: u64 = 176;
/// The largest block, in bytes.
pub(super) const MAX_BLOCK: u64 = class_size(CLASSES - 1);

/// The least class whose blocks hold `size` bytes (at most [`MAX_BLOCK`]).
pub(super) const fn class_of(size: u64) -> u64 {
    if size <= 64 {
        return 0;
    }
    let exponent = size.ilog2() as u64;
    let step = 1 << (exponent - 3);
    // A remainder that needs all eight steps is the first class of the next power of two.
    (exponent - 6) * 8 + (size - (1 << exponent)).div_ceil(step)
}

/// The size of a class's blocks, in bytes.
pub(super) const fn class_size(class: u64) -> u64 {
    (8 + class % 8) << (class / 8 + 3)
}

/// The word with the head of a class's free list.
pub(super) const fn free_head(class: u64) -> u64 {
    FREE + class * 8
}

// The parts of the header do not overlap, and the largest segment fits a block.
const _: () = {
    assert!(GENERATION < TABLES);
    assert!(Table::Condemned.segment(SEGMENTS) <= Table::Condemned.base() + TABLE_SIZE);
    assert!(Table::Condemned.base() + TABLE_SIZE <= FREE);
    assert!(free_head(CLASSES) <= LOG);
    assert!(LOG + LOG_CAPACITY as u64 * 16 <= HEAP);
    assert!(segment_size(SEGMENTS - 1) <= MAX_BLOCK);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_class_is_the_least_that_fits() {
        for size in (1..5000).chain((1..200).map(|i| i * 1_000_003)) {
            let class = class_of(size);
            assert!(class_size(class) >= size, "{size}");
            assert!(class == 0 || class_size(class - 1) < size, "{size}");
            assert!(class_size(class).is_multiple_of(8));
        }
    }

    #[test]
    fn every_bucket_has_one_place_within_its_segment() {
        let mut next = 0;
        for segment in 0..12 {
            for index in 0..segment_size(segment) / 8 {
                assert_eq!(place(next), (segment, index));
                next += 1;
            }
        }
        assert_eq!(place(MAX_BUCKETS - 1).0, SEGMENTS - 1);
    }

    #[test]
    fn a_split_moves_entries_only_to_the_new_bucket() {
        for buckets in 64..300_u64 {
            let source = buckets - (1 << buckets.ilog2());
            for hash in 0..2000_u64 {
                let hash = hash.wrapping_mul(0x9e37_79b9_7f4a_7c15);
                let (before, after) = (bucket_of(hash, buckets), bucket_of(hash, buckets + 1));
                assert!(after == before || (before == source && after == buckets));
            }
        }
    }
}
