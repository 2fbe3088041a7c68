//! The superblocks, and which of the two counts.
//!
//! ```text
//!            first        second
//! at rest    N            N
//! commit     N + 1, torn  N         the one of generation N counts
//!            N + 1        N         the one of generation N + 1 counts
//!            N + 1        N, torn   as well
//! at rest    N + 1        N + 1
//! ```
//!
//! Invariants: a superblock counts only if it is whole; of two whole ones the one of the higher
//! generation counts; one that a newer luo has written is never taken for damage.

use zerocopy::{FromBytes, FromZeros, IntoBytes};

use super::{
    ArenaError, BLOCK, DATA_START, Damage, MAGIC, SIZE_MIN, SPACE, SUPERBLOCK_SIZE, SUPERBLOCKS,
    VERSION, VERSION_PLAIN, checksum, raw,
};
use crate::keeper::key;

/// States of an arena on its medium.
mod state {
    pub(super) const EMPTY: u32 = 1;
    pub(super) const HANDOVER: u32 = 2;
}

/// Where the catalogue is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CataloguePlace {
    /// Where it begins, in bytes of the arena.
    pub offset: u64,
    /// Its length in bytes.
    pub len: u64,
    /// Its checksum, as [`Catalogue::checksum`](super::Catalogue::checksum) gives it.
    pub checksum: u64,
    /// The handle of the handover.
    pub handover: u64,
    /// The version of a superblock that leads to it, as
    /// [`Catalogue::version`](super::Catalogue::version) gives it.
    pub version: u32,
}

/// Of an arena that was made on a machine without an identity: any machine may use it.
pub const NO_MACHINE: [u8; 16] = [0; 16];

/// A superblock: what there is to know of an arena.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Superblock {
    /// Which arena it is; given when it was created.
    pub arena: [u8; 16],
    /// The machine it belongs to, as `/etc/machine-id` says, or [`NO_MACHINE`].
    pub machine: [u8; 16],
    /// Grows with every change of the arena; never zero.
    pub generation: u64,
    /// The size of the arena in bytes, a multiple of [`BLOCK`].
    pub size: u64,
    /// When it was written, in seconds since 1970 by the clock of the machine.
    pub written: u64,
    /// The number of the next handle to be given out; never zero.
    pub next_handle: u64,
    /// Where the catalogue of the objects is; `None` where the arena holds no handover.
    pub catalogue: Option<CataloguePlace>,
}

impl Superblock {
    /// The version that it is written in: the oldest that can say all of it, so that a luo of
    /// before reads whatever it can.
    #[must_use]
    pub fn version(&self) -> u32 {
        self.catalogue.map_or(VERSION_PLAIN, |place| place.version)
    }

    /// Its bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; SUPERBLOCK_SIZE] {
        let mut raw = raw::Superblock::new_zeroed();
        raw.magic = MAGIC;
        raw.version.set(self.version());
        raw.length.set(SUPERBLOCK_SIZE as u32);
        raw.arena = self.arena;
        raw.machine = self.machine;
        raw.generation.set(self.generation);
        raw.size.set(self.size);
        raw.written.set(self.written);
        raw.next_handle.set(self.next_handle);
        raw.state.set(state::EMPTY);
        if let Some(catalogue) = &self.catalogue {
            raw.state.set(state::HANDOVER);
            raw.catalogue_offset.set(catalogue.offset);
            raw.catalogue_length.set(catalogue.len);
            raw.catalogue_checksum.set(catalogue.checksum);
            raw.handover.set(catalogue.handover);
        }
        raw.checksum.set(checksum(raw.as_bytes()));
        let mut bytes = [0; SUPERBLOCK_SIZE];
        bytes.copy_from_slice(raw.as_bytes());
        bytes
    }

    /// Decodes a superblock. Whether the arena is as long as it says, and of this machine, is for
    /// [`find`] to check.
    ///
    /// # Errors
    /// The version, where it is whole and of another version; else what is wrong with it.
    pub fn decode(bytes: &[u8]) -> Result<Self, Unusable> {
        if !bytes.starts_with(&MAGIC) {
            return Err(Unusable::Damaged(Damage::Magic));
        }
        let Ok((raw, _)) = raw::Superblock::read_from_prefix(bytes) else {
            return Err(Unusable::Damaged(Damage::Short));
        };
        let mut unsigned = raw;
        unsigned.checksum.set(0);
        if checksum(unsigned.as_bytes()) != raw.checksum.get() {
            return Err(Unusable::Damaged(Damage::Checksum));
        }
        if !(VERSION_PLAIN..=VERSION).contains(&raw.version.get()) {
            return Err(Unusable::Version(raw.version.get()));
        }
        let field = |name| Err(Unusable::Damaged(Damage::Field(name)));
        if raw.length.get() as usize != SUPERBLOCK_SIZE {
            return field("length");
        }
        if raw.generation.get() == 0 {
            return field("generation");
        }
        let size = raw.size.get();
        if size < SIZE_MIN || !size.is_multiple_of(BLOCK) {
            return field("size");
        }
        if raw.next_handle.get() == 0 || raw.next_handle.get() > key::number(u64::MAX) {
            return field("next_handle");
        }
        if raw.reserved_state.get() != 0 || raw.reserved.iter().any(|byte| *byte != 0) {
            return field("reserved");
        }
        let place = CataloguePlace {
            offset: raw.catalogue_offset.get(),
            len: raw.catalogue_length.get(),
            checksum: raw.catalogue_checksum.get(),
            handover: raw.handover.get(),
            version: raw.version.get(),
        };
        let catalogue = match raw.state.get() {
            state::EMPTY if place.version != VERSION_PLAIN => {
                return field("version of an empty arena");
            }
            state::EMPTY
                if (place.offset, place.len, place.checksum, place.handover) == (0, 0, 0, 0) =>
            {
                None
            }
            state::EMPTY => return field("catalogue of an empty arena"),
            state::HANDOVER => {
                let end = place.offset.checked_add(place.len);
                if place.offset < DATA_START
                    || !place.offset.is_multiple_of(BLOCK)
                    || place.len == 0
                    || end.is_none_or(|end| end > size)
                {
                    return field("place of the catalogue");
                }
                if key::space(place.handover) != SPACE {
                    return field("handover");
                }
                Some(place)
            }
            _ => return field("state"),
        };
        Ok(Self {
            arena: raw.arena,
            machine: raw.machine,
            generation: raw.generation.get(),
            size,
            written: raw.written.get(),
            next_handle: raw.next_handle.get(),
            catalogue,
        })
    }
}

/// Why a superblock does not count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unusable {
    /// It is whole, and of that version.
    Version(u32),
    /// It is not whole.
    Damaged(Damage),
}

/// The superblock that counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    /// What it says.
    pub superblock: Superblock,
    /// Which of [`SUPERBLOCKS`] it is.
    pub place: usize,
    /// The other one says the same. Where it does not, a change was interrupted or the other one
    /// is damaged; it is to be written anew before anything else is changed.
    pub mirrored: bool,
}

/// Which superblock counts, of the two beginnings of a region of `size` bytes. `ours` is this
/// machine; `None` takes an arena of any.
///
/// # Errors
/// All of [`ArenaError`] but [`Catalogue`](ArenaError::Catalogue).
pub fn find(
    first: &[u8],
    second: &[u8],
    size: u64,
    ours: Option<&[u8; 16]>,
) -> Result<Found, ArenaError> {
    let decoded = [Superblock::decode(first), Superblock::decode(second)];
    // A newer luo may have written one of them and been stopped before the other: what this one
    // reads in the other is old then.
    for superblock in &decoded {
        if let Err(Unusable::Version(found)) = superblock {
            return Err(ArenaError::Version { found: *found, known: VERSION });
        }
    }
    let damage = |result: &Result<_, _>| match result {
        Err(Unusable::Damaged(damage)) => *damage,
        _ => Damage::Checksum,
    };
    let (superblock, place, mirrored) = match &decoded {
        [Ok(first), Ok(second)] if second.generation > first.generation => (*second, 1, false),
        [Ok(first), Ok(second)] => (*first, 0, first == second),
        [Ok(first), Err(_)] => (*first, 0, false),
        [Err(_), Ok(second)] => (*second, 1, false),
        [first, second] => {
            let (first, second) = (damage(first), damage(second));
            return Err(if (first, second) == (Damage::Magic, Damage::Magic) {
                ArenaError::NeverFormatted
            } else {
                ArenaError::Superblocks { first, second }
            });
        }
    };
    if let Some(ours) = ours
        && superblock.machine != NO_MACHINE
        && superblock.machine != *ours
    {
        return Err(ArenaError::OtherMachine { found: superblock.machine, ours: *ours });
    }
    if superblock.size > size {
        return Err(ArenaError::Truncated { claimed: superblock.size, found: size });
    }
    Ok(Found { superblock, place, mirrored })
}

const _: () = assert!(SUPERBLOCKS[1] + SUPERBLOCK_SIZE as u64 == DATA_START);
