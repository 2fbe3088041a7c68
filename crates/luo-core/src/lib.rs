//! The live update framework: states, sessions, tokens, handlers, subsystems and rollback.
//!
//! Invariants: no I/O, no clock, no thread, no `unsafe`. The framework does not call: it says
//! which calls come next, and is told how each ended. It is generic over the host's [`File`], so
//! that it can live in a daemon as well as in a kernel.
#![no_std]

extern crate alloc;

mod carrier;
mod error;
mod file;
mod handler;
mod subsystem;

pub use carrier::{Caps, Carrier, Handle, Keep, Reach, Recall};
pub use error::{BoxError, Errno, Failure};
pub use file::{File, Identity};
pub use handler::{Handler, SharedState};
pub use subsystem::Subsystem;
