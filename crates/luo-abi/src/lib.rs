//! Everything that crosses a boundary in luo: what one system writes and another one reads.
//!
//! - [`fdt`] writes and reads flattened device trees.
//! - [`handover`] puts the two trees of a handover on top: the machine's and the files'.
//! - [`arena`] is the format of a region that outlives the kernel.
//! - [`liveupdate`] is `/dev/liveupdate`: its ioctls, and what luo lays down in kernel sessions.
//! - [`record`] holds the fixed records: the daemon's state in its keeper, and handlers' records.
//!
//! The contract is `docs/abi.md`; a test compares its tables with this code.
//!
//! Invariants: `no_std`, no I/O, no `unsafe`; whatever is read is untrusted until it has been
//! validated whole, and only validated data has accessors; no input makes this crate panic; a
//! changed layout is a new `compatible` string.
#![no_std]

extern crate alloc;

#[macro_use]
mod layout;

pub mod arena;
pub mod fdt;
pub mod handover;
pub mod keeper;
pub mod liveupdate;
mod names;
pub mod record;
mod words;

pub use names::{
    COMPATIBLE_MAX, NAME_MAX, NameError, check_compatible, check_name, is_compatible_byte,
    is_name_byte,
};
pub use words::{Arrival, Criticality, Event, Level, OnClose, Owner, Side, State, TimelinePhase};
