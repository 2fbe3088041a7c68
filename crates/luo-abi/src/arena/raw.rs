//! An arena as it lies on its medium.
//!
//! Invariants: the first 24 bytes of a superblock, its size, and what its checksum covers are the
//! same in every version; everything else may change with the version.

use zerocopy::little_endian::{U32, U64};

/// How much of a superblock is reserved.
pub(super) const RESERVED: usize = super::SUPERBLOCK_SIZE - 128;

layout! {
    /// A superblock.
    Superblock {
        magic: [u8; 8],
        version: U32,
        length: U32,
        checksum: U64,
        arena: [u8; 16],
        machine: [u8; 16],
        generation: U64,
        size: U64,
        written: U64,
        next_handle: U64,
        state: U32,
        reserved_state: U32,
        catalogue_offset: U64,
        catalogue_length: U64,
        catalogue_checksum: U64,
        handover: U64,
        reserved: [u8; RESERVED],
    }

    /// What the catalogue begins with.
    Catalogue {
        magic: [u8; 8],
        arena: [u8; 16],
        generation: U64,
        objects: U64,
        extents: U64,
        sums: U64,
        inline: U64,
    }

    /// One object of the catalogue.
    Object {
        handle: U64,
        length: U64,
        extents: U64,
        sums: U64,
        kind: U32,
        reserved: U32,
    }

    /// Where a piece of an object is.
    Extent {
        logical: U64,
        offset: U64,
        length: U64,
    }
}
