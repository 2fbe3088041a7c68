//! The format of an arena, versions 1 to 3: a region that outlives the kernel, and the power.
//!
//! Two superblocks lie at its beginning. Each describes the whole arena: whether it holds a
//! handover, and where the catalogue of the kept objects is. Whoever changes the arena lays down
//! everything new in free space, then one superblock of the next generation, then the other; so at
//! every moment one of them is whole, and everything it leads to as well.
//!
//! All numbers are little-endian. The tables are in `docs/abi.md`.
//!
//! Invariants:
//! - Magic, version and checksum of a superblock are read before anything else of it, and mean the
//!   same in every version.
//! - What has been decoded can be used without a further look: all ranges lie within the arena
//!   and behind the superblocks, no two of them overlap, nothing is there twice, and all lengths
//!   add up.
//! - What `encode` gives, `decode` takes, and gives the same values.

mod catalogue;
mod checksum;
mod error;
mod raw;
mod superblock;

use crate::keeper::key;

pub use catalogue::{Catalogue, Damaged, Kind, Object, Placed, encoded_len};
pub use checksum::{checksum, chunk_sum};
pub use error::{ArenaError, CatalogueError, Damage};
pub use superblock::{CataloguePlace, Found, NO_MACHINE, Superblock, Unusable, find};

/// What a superblock begins with.
pub const MAGIC: [u8; 8] = *b"luoarena";

/// The newest version: written where bytes are in the catalogue that have a checksum of their own,
/// so that damage to them is theirs alone.
pub const VERSION: u32 = 3;

/// The version that is written where there is resident memory, and no such checksum.
pub const VERSION_RESIDENT: u32 = 2;

/// The version that is written where there is neither.
pub const VERSION_PLAIN: u32 = 1;

/// The size of a superblock in bytes.
pub const SUPERBLOCK_SIZE: usize = 4096;

/// Where the superblocks are.
pub const SUPERBLOCKS: [u64; 2] = [0, 4096];

/// Where objects and the catalogue may begin.
pub const DATA_START: u64 = 8192;

/// The granularity of everything in an arena but its lengths, in bytes.
pub const BLOCK: u64 = 4096;

/// Memory has a checksum for every so many bytes of it.
pub const CHUNK: u64 = 65536;

/// The smallest arena in bytes.
pub const SIZE_MIN: u64 = 1 << 20;

/// The top byte of an arena's handles, which no key of a slot in the keeper has.
pub const SPACE: u8 = 0xa0;

/// The handle of that number.
#[must_use]
pub const fn handle(number: u64) -> u64 {
    key::make(SPACE, number)
}

/// `len` rounded up to whole blocks; `None` where that is no `u64`.
#[must_use]
pub const fn blocks(len: u64) -> Option<u64> {
    len.checked_next_multiple_of(BLOCK)
}

#[cfg(test)]
mod tests;
