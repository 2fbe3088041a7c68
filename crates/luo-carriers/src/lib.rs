//! luo's carriers, one module a carrier, and the host's file type that they carry.
//!
//! Invariants: a carrier knows nothing of the daemon: where it keeps things is behind a small
//! trait of its own.

pub mod arena;
mod boot;
pub mod closer;
mod host;
pub mod keeper;
pub mod liveupdate;

pub use boot::boot_id;
pub use host::{Ahead, FileKind, HostFile, MemoryKind};
pub use keeper::{KeeperCarrier, Slot, Slots};

use luo_core::{Errno, Failure};

/// What the system said, as a failure with its errno.
fn io_failure(error: std::io::Error, what: &str) -> Failure {
    let errno = error.raw_os_error().map_or(Errno::Io, Errno::from_raw);
    Failure::new(errno, format!("{what}: {error}")).because(error)
}
