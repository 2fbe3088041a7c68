//! What can be wrong with an arena.

use core::fmt;

/// Why a region is no arena that can be used here. Each says what to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ArenaError {
    /// Nothing of luo's is in it.
    NeverFormatted,
    /// A newer luo has written it.
    Version {
        /// The version it has.
        found: u32,
        /// The version that is read here.
        known: u32,
    },
    /// It belongs to another machine.
    OtherMachine {
        /// The machine that it belongs to.
        found: [u8; 16],
        /// This machine.
        ours: [u8; 16],
    },
    /// Both superblocks are damaged.
    Superblocks {
        /// What is wrong with the first.
        first: Damage,
        /// What is wrong with the second.
        second: Damage,
    },
    /// The region is shorter than the arena.
    Truncated {
        /// The size of the arena in bytes.
        claimed: u64,
        /// The size of the region in bytes.
        found: u64,
    },
    /// The catalogue is damaged.
    Catalogue {
        /// What is wrong with it.
        error: CatalogueError,
        /// The byte of the catalogue where it is.
        offset: u64,
    },
}

/// What is wrong with a superblock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Damage {
    /// The region ends within it.
    Short,
    /// It has no magic number.
    Magic,
    /// Its checksum is wrong.
    Checksum,
    /// Its checksum is right and this field cannot be.
    Field(&'static str),
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Short => f.write_str("cut off"),
            Self::Magic => f.write_str("no magic number"),
            Self::Checksum => f.write_str("wrong checksum"),
            Self::Field(field) => write!(f, "impossible {field}"),
        }
    }
}

/// What is wrong with a catalogue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum CatalogueError {
    /// Its checksum is not the one in the superblock.
    Checksum,
    /// It has not the length that follows from its counts.
    Length,
    /// It does not begin with its magic number.
    Magic,
    /// It is of another arena, or another generation, than the superblock.
    Foreign,
    /// An object has a handle that is none of an arena, or was never given out.
    Handle,
    /// Two objects have the same handle, or they are out of order.
    Order,
    /// An object is of no known kind.
    Kind,
    /// A reserved field is not zero.
    Reserved,
    /// The counts of an object do not add up to those of the catalogue, or to its length.
    Count,
    /// A piece is empty, misaligned, out of order, or beyond the end of its object.
    Piece,
    /// A piece is not within the arena.
    Range,
    /// Two pieces share bytes of the arena.
    Overlap,
    /// Bytes have a hole.
    Hole,
    /// The handover is no object of bytes.
    Handover,
}

impl CatalogueError {
    pub(super) const fn at(self, offset: usize) -> ArenaError {
        ArenaError::Catalogue { error: self, offset: offset as u64 }
    }
}

impl fmt::Display for CatalogueError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Checksum => "its checksum is wrong",
            Self::Length => "its length does not follow from its counts",
            Self::Magic => "it has no magic number",
            Self::Foreign => "it is of another arena or generation",
            Self::Handle => "an object's handle was never given out",
            Self::Order => "an object is there twice or out of order",
            Self::Kind => "an object is of no known kind",
            Self::Reserved => "a reserved field is not zero",
            Self::Count => "an object's counts do not add up",
            Self::Piece => "a piece of an object is empty, misaligned or out of order",
            Self::Range => "a piece of an object is not within the arena",
            Self::Overlap => "two pieces of objects overlap",
            Self::Hole => "bytes have a hole",
            Self::Handover => "the handover is no object of bytes",
        })
    }
}

/// 16 bytes as the 32 digits of `/etc/machine-id`.
struct Id<'a>(&'a [u8; 16]);

impl fmt::Display for Id<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Display for ArenaError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NeverFormatted => f.write_str(
                "it was never formatted as an arena: do so with `luoctl arena create`, if nothing \
                 else is in it",
            ),
            Self::Version { found, known } => write!(
                f,
                "the arena is of version {found}, this luo reads version {known}: start a luo that \
                 knows that version; the arena was not touched",
            ),
            Self::OtherMachine { found, ours } => write!(
                f,
                "the arena belongs to machine {}, this is {}: bring it back to that machine, or \
                 discard what is in it with `luoctl arena create --force`",
                Id(found),
                Id(ours),
            ),
            Self::Superblocks { first, second } => write!(
                f,
                "both superblocks of the arena are damaged ({first}; {second}): restore it from a \
                 copy, or discard what is in it with `luoctl arena create --force`",
            ),
            Self::Truncated { claimed, found } => write!(
                f,
                "the arena has {claimed} bytes and only {found} of them are there: give it its full \
                 size again, restore it from a copy, or discard what is in it with `luoctl arena \
                 create --force`",
            ),
            Self::Catalogue { error, offset } => write!(
                f,
                "the catalogue of the arena is damaged (at byte {offset}: {error}): restore the \
                 arena from a copy, or discard what is in it with `luoctl arena create --force`",
            ),
        }
    }
}

impl core::error::Error for ArenaError {}
