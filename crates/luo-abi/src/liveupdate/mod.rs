//! `/dev/liveupdate` of Linux 6.19 and later: the kernel's ioctls ([`ioctl`]), and what luo lays
//! down in kernel sessions ([`Catalogue`]).
//!
//! ```text
//! kernel session "luod"        token 0   the catalogue, with the handover at its end
//!                              token 1   kept bytes, one after the other
//!                              token 2   the catalogue again
//!                              token 3   the first of the kept bytes again
//! kernel session "luo/NAME"    tokens with the topmost bit: what luod preserved for session NAME
//!                              other tokens: what the owner of the session preserved itself
//! ```
//!
//! All numbers of the catalogue are little-endian; the tables are in `docs/abi.md`. Those of the
//! ioctls are the machine's.
//!
//! Invariants:
//! - Magic, version, length and checksum of a catalogue mean the same in every version, and are
//!   read before anything else of it.
//! - What has been decoded can be used without a further look: sessions are there, handles are
//!   there once, and ranges lie within the file of bytes.
//! - What `encode` gives, `decode` takes, and gives the same values.

mod catalogue;
pub mod ioctl;
mod raw;

use crate::keeper::key;

pub use catalogue::{Catalogue, CatalogueError, Object, Place};

/// What a catalogue begins with.
pub const MAGIC: [u8; 8] = *b"luolvupd";

/// The version that is written, and the only one that is read.
pub const VERSION: u32 = 1;

/// The kernel session that has the catalogue.
pub const AGENT_SESSION: &str = "luod";

/// The token of the catalogue, in the kernel session [`AGENT_SESSION`].
pub const CATALOGUE_TOKEN: u64 = 0;

/// The token of the kept bytes, in the kernel session [`AGENT_SESSION`].
pub const BYTES_TOKEN: u64 = 1;

/// The token of the same bytes as the catalogue's: who finds one damaged takes the other.
pub const CATALOGUE_COPY_TOKEN: u64 = 2;

/// The token of the same bytes as those with which the kept bytes begin: what belongs to no session,
/// on which all depend, and what is short ([`COPIED_MAX`]). Where there are none of them, or where the
/// catalogue is an older luod's, it is not there.
pub const BYTES_COPY_TOKEN: u64 = 3;

/// The most bytes of a session's that are laid down twice: its memory files' descriptions have fewer.
pub const COPIED_MAX: usize = 1024;

/// The kernel session of luo's session NAME is `luo/NAME`: no name of a session has a `/`, so that
/// nothing else of luo's clashes with it.
pub const SESSION_PREFIX: &str = "luo/";

/// The kernel session that the owner with this uid fills by itself, for its session NAME, is
/// `luo-own/UID/NAME`: with the uid, since in the next kernel anybody may take the name.
pub const CLIENT_PREFIX: &str = "luo-own/";

/// The bit that luod's tokens in sessions of clients have; theirs are below it.
pub const OWN_TOKENS: u64 = 1 << 63;

/// The longest name of a kernel session, in bytes.
pub const KERNEL_NAME_MAX: usize = 63;

/// The most bytes of a catalogue that are read: 1 GiB.
pub const CATALOGUE_MAX: u64 = 1 << 30;

/// The top byte of this carrier's handles, which no key of a slot in the keeper has.
pub const SPACE: u8 = 0xb0;

/// The handle of that number.
#[must_use]
pub const fn handle(number: u64) -> u64 {
    key::make(SPACE, number)
}

#[cfg(test)]
mod tests;
