//! The carrier `liveupdate`: the kernel's own Live Update Orchestrator, `/dev/liveupdate` of Linux
//! 6.19 and later.
//!
//! Memory files go into kernel sessions as they are, nothing of them is copied. Bytes are laid one
//! after the other into a memory file of luo's own when the handover is committed. What goes where
//! is in [`luo_abi::liveupdate`].
//!
//! ```text
//!  keep ─▶ Outgoing (kernel sessions, made when first needed) ── commit ─▶ catalogue at token 0
//!                     │ forget: the last of a session drops it                   │ kexec
//!                     ▼                                                          ▼
//!                 undone by the kernel            Incoming (kernel sessions, catalogue) ─▶ recall
//!                                                     │ end, once everybody's records are kept
//!                                                     ▼
//!                                                 finished by the kernel
//! ```
//!
//! Invariants:
//! - A kernel session lives as long as a copy of its descriptor is open, whoever has it. This module
//!   drops its own copies and knows of no others: whoever has others
//!   ([`LiveUpdateCarrier::outgoing`]) lets go of them first.
//! - What came is fetched when it is asked for, and nothing is finished before
//!   [`LiveUpdateCarrier::end`]: closing a retrieved session frees what nobody has fetched, so its
//!   descriptor has to be held elsewhere before it is given to this module.
//! - What clients put into kernel sessions of their own (`client`) is theirs: the catalogue names
//!   those sessions, and nothing in them.
//! - The kernel cannot take one file out of a session. What was forgotten stays there, and is taken
//!   up again where the same file is kept again, until the last of that session is forgotten.

mod carrier;
mod client;
mod incoming;
mod kernel;
mod outgoing;
mod words;

#[cfg(test)]
mod double;
#[cfg(test)]
mod tests;

pub use carrier::{Ended, LiveUpdateCarrier};
pub use client::client_name;
pub use incoming::{Arrived, read_catalogue};
pub use kernel::{Kernel, KernelSession, Session};
pub use words::open_failed;
