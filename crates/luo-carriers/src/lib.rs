//! luo's carriers, one module a carrier, and the host's file type that they carry.
//!
//! Invariants: a carrier knows nothing of the daemon: where it keeps things is behind a small
//! trait of its own.

pub mod arena;
pub mod closer;
mod host;
pub mod keeper;
pub mod liveupdate;

pub use host::{Ahead, HostFile, MemoryKind};
pub use keeper::{KeeperCarrier, Slot, Slots};
