//! The store: a hash table and its heap that live in place in one memfd, so that a new process maps it and goes
//! on at once, whatever its size. The layout is in `layout.rs`.
//!
//! # What a kill leaves behind
//!
//! New bytes are written to a block that nothing refers to. Then the words that make it visible (link, free
//! list, counts) are put into the redo log and published by one store of a word (`log.rs`). Killed before that
//! store, the memory holds the old value; after it, the new one. No block leaks, no count is off. Each key of a
//! request of several keys (MSET, DEL) is a change of its own.
//!
//! # How long things take
//!
//! Opening, and every operation on one key, is O(1) plus the length of the value. The table grows by splitting
//! one bucket with each insertion, and FLUSHALL sets the table aside to be emptied a few entries at a time, so
//! neither makes a long pause.
//!
//! Invariants:
//! - One process writes at a time.
//! - A block is in one place: below an entry's link, a segment, or a free list. Blocks of one class are reused
//!   for that class; they are not split or joined.
//! - After an error in the middle of a change the store refuses everything until it is opened anew.

mod check;
mod entries;
mod hash;
mod heap;
mod layout;
mod log;
mod region;
mod tables;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use luo_sys::{Memory, MemoryError};

pub use self::entries::{Entry, Expiry};
pub use self::region::{Region, RegionError};

use self::layout::{
    BUSY, FIRST_BUCKETS, GENERATION, HASH_KEY, HEAP, HEAP_TOP, LIVE_BYTES, MAGIC, MAGIC_VALUE,
    MAX_BUCKETS, NEXT_TOKEN, Table, VERSION, VERSION_VALUE, class_of, class_size, segment_size,
};
use self::log::Log;

/// Longest key, in bytes.
pub const MAX_KEY: usize = 64 << 10;
/// Longest value, in bytes.
pub const MAX_VALUE: usize = 64 << 20;
/// The least memory limit, in bytes.
pub const MIN_LIMIT: u64 = 1 << 20;
/// The token of the first connection; lower ones name the other files that kv hands over.
pub const FIRST_CONNECTION: u64 = 16;

/// How far the server's notes about its connections may exceed the limit for data, in bytes.
const JOURNAL_ALLOWANCE: u64 = 256 << 20;
/// How far a flush may exceed it, so that a full store can be flushed.
const FLUSH_ALLOWANCE: u64 = 64 << 10;

/// Why the store refuses, in words for the client or the operator.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The memory below failed.
    #[error("the store's memory failed: {0}")]
    Region(#[from] RegionError),
    /// The memory could not be made or mapped.
    #[error("the store's memory cannot be set up: {0}")]
    Memory(#[from] MemoryError),
    /// No random bytes for the hash key.
    #[error("the kernel gives no random bytes: {0}")]
    Random(#[source] rustix::io::Errno),
    /// What is in the memory is no store.
    #[error("the memory holds no store; it was not made by kv")]
    NoStore,
    /// The store was written by a version of kv with another layout.
    #[error(
        "the store has layout version {found} and this kv reads {VERSION_VALUE}; run a kv that reads it"
    )]
    Version {
        /// The version found.
        found: u64,
    },
    /// The store contradicts itself.
    #[error("the store is damaged: {0}")]
    Corrupt(&'static str),
    /// An earlier change failed half-way.
    #[error("the store failed earlier and must be opened anew")]
    Poisoned,
    /// No room for the value within the memory limit.
    #[error("the memory limit of {limit} bytes is reached; delete keys or raise --memory-limit")]
    Full {
        /// The limit in bytes.
        limit: u64,
    },
    /// The key is longer than [`MAX_KEY`].
    #[error("a key has at most {MAX_KEY} bytes")]
    KeyTooLong,
    /// The value is longer than [`MAX_VALUE`].
    #[error("a value has at most {MAX_VALUE} bytes")]
    ValueTooLong,
}

pub(crate) fn corrupt(what: &'static str) -> StoreError {
    StoreError::Corrupt(what)
}

/// Figures about a store, as INFO shows them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct StoreStats {
    /// Keys of clients, with those that expired and were not yet removed.
    pub keys: u64,
    /// Keys that may expire.
    pub expiring: u64,
    /// Bytes in blocks that are in use by entries.
    pub live_bytes: u64,
    /// Bytes of the heap that were ever used.
    pub heap_bytes: u64,
    /// The limit, in bytes.
    pub limit: u64,
    /// Entries flushed and not yet freed.
    pub condemned: u64,
    /// How often the memory was opened, 1 for a fresh one.
    pub generation: u64,
}

/// The store, over a memfd unless a test says otherwise.
#[derive(Debug)]
pub struct Store<R = Memory> {
    region: R,
    limit: u64,
    log: Log,
    hash_key: [u64; 2],
    /// Holds keys and values that are on their way.
    scratch: Vec<u8>,
    /// The next bucket to be searched for expired entries. Not kept: where a sweep starts does not matter.
    sweep_cursor: u64,
    poisoned: bool,
}

impl Store<Memory> {
    /// Makes an empty store in a new memfd. `limit` (bytes, at least [`MIN_LIMIT`]) bounds its memory.
    ///
    /// # Errors
    /// [`StoreError::Memory`], [`StoreError::Random`].
    pub fn create(limit: u64) -> Result<Self, StoreError> {
        Self::format(Memory::create("kv-store", 1 << 20)?, limit)
    }

    /// Takes over the memfd of a store, in time independent of its size.
    ///
    /// # Errors
    /// [`StoreError::Memory`], and those of [`open`](Store::open).
    pub fn from_fd(fd: OwnedFd, limit: u64) -> Result<Self, StoreError> {
        Self::open(Memory::from_fd(fd)?, limit)
    }

    /// Gives up the store and keeps its memfd.
    ///
    /// # Errors
    /// [`StoreError::Memory`] when the limit on open files is reached.
    pub fn into_fd(self) -> Result<OwnedFd, StoreError> {
        Ok(self.region.into_fd()?)
    }

    /// Gives up the store and keeps its memory, still mapped.
    pub fn into_memory(self) -> Memory {
        self.region
    }

    /// The store's memfd.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.region.as_fd()
    }
}

impl<R: Region> Store<R> {
    /// Makes an empty store in a region of zeros.
    ///
    /// # Errors
    /// [`StoreError::Region`], [`StoreError::Random`].
    pub fn format(mut region: R, limit: u64) -> Result<Self, StoreError> {
        let segment = class_size(class_of(segment_size(0)));
        let top = HEAP + segment;
        if region.len() < top {
            region.grow(top)?;
        }
        region.write_at(0, &vec![0; top as usize])?;
        let mut seed = [0; 16];
        rustix::rand::getrandom(&mut seed, rustix::rand::GetRandomFlags::empty())
            .map_err(StoreError::Random)?;
        region.write_at(HASH_KEY[0], &seed)?;
        region.store_u64(HEAP_TOP, top)?;
        region.store_u64(NEXT_TOKEN, FIRST_CONNECTION)?;
        region.store_u64(VERSION, VERSION_VALUE)?;
        region.store_u64(Table::Data.segment(0), HEAP)?;
        region.store_u64(Table::Data.buckets(), FIRST_BUCKETS)?;
        // The magic number comes last: a store is there whole or not at all.
        region.store_u64(MAGIC, MAGIC_VALUE)?;
        Self::open(region, limit)
    }

    /// Opens a store: checks the header, completes the change that a kill interrupted.
    ///
    /// # Errors
    /// [`StoreError::NoStore`], [`StoreError::Version`], [`StoreError::Corrupt`], [`StoreError::Region`].
    pub fn open(region: R, limit: u64) -> Result<Self, StoreError> {
        if region.len() < HEAP || region.load_u64(MAGIC)? != MAGIC_VALUE {
            return Err(StoreError::NoStore);
        }
        let found = region.load_u64(VERSION)?;
        if found != VERSION_VALUE {
            return Err(StoreError::Version { found });
        }
        log::replay(&region)?;
        let top = region.load_u64(HEAP_TOP)?;
        if !top.is_multiple_of(8) || top < HEAP || top > region.len() {
            return Err(corrupt("the heap does not lie within the memory"));
        }
        for table in [Table::Data, Table::Journal, Table::Condemned] {
            let buckets = region.load_u64(table.buckets())?;
            let absent = buckets == 0 && table != Table::Data;
            if !absent && !(FIRST_BUCKETS..=MAX_BUCKETS).contains(&buckets) {
                return Err(corrupt("a table's number of buckets is out of range"));
            }
        }
        region.store_u64(GENERATION, region.load_u64(GENERATION)?.wrapping_add(1))?;
        let hash_key = [region.load_u64(HASH_KEY[0])?, region.load_u64(HASH_KEY[1])?];
        let limit = limit.max(MIN_LIMIT);
        let (log, scratch) = (Log::default(), Vec::new());
        Ok(Self { region, limit, log, hash_key, scratch, sweep_cursor: 0, poisoned: false })
    }

    /// Figures about the store.
    ///
    /// # Errors
    /// [`StoreError::Region`].
    pub fn stats(&self) -> Result<StoreStats, StoreError> {
        Ok(StoreStats {
            keys: self.region.load_u64(Table::Data.entries())?,
            expiring: self.region.load_u64(layout::EXPIRING)?,
            live_bytes: self.region.load_u64(LIVE_BYTES)?,
            heap_bytes: self.region.load_u64(HEAP_TOP)?,
            limit: self.limit,
            condemned: self.region.load_u64(Table::Condemned.entries())?,
            generation: self.region.load_u64(GENERATION)?,
        })
    }

    /// Whether flushed entries are still to be freed.
    ///
    /// # Errors
    /// [`StoreError::Region`].
    pub fn reclaiming(&self) -> Result<bool, StoreError> {
        Ok(self.region.load_u64(Table::Condemned.buckets())? != 0)
    }

    /// A token that no connection of this store had before.
    ///
    /// # Errors
    /// [`StoreError::Region`].
    pub fn next_token(&mut self) -> Result<u64, StoreError> {
        let token = self.region.load_u64(NEXT_TOKEN)?.max(FIRST_CONNECTION);
        self.region.store_u64(NEXT_TOKEN, token + 1)?;
        Ok(token)
    }

    /// Notes which connection is being served, so that after a kill it is known which one is in doubt.
    ///
    /// # Errors
    /// [`StoreError::Region`].
    pub fn set_busy(&mut self, token: Option<u64>) -> Result<(), StoreError> {
        Ok(self.region.store_u64(BUSY, token.unwrap_or(0))?)
    }

    /// The connection that was being served when the last writer ended.
    ///
    /// # Errors
    /// [`StoreError::Region`].
    pub fn busy(&self) -> Result<Option<u64>, StoreError> {
        Ok(Some(self.region.load_u64(BUSY)?).filter(|token| *token != 0))
    }

    /// The memory below, for tests that look behind the store.
    pub fn region(&self) -> &R {
        &self.region
    }

    /// Makes the staged change take effect.
    fn commit(&mut self) -> Result<(), StoreError> {
        let result = self.log.commit(&self.region);
        self.poisoned |= result.is_err();
        result
    }

    fn begin(&mut self) -> Result<(), StoreError> {
        if self.poisoned {
            return Err(StoreError::Poisoned);
        }
        self.log.begin();
        Ok(())
    }
}
