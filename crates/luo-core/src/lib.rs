//! The live update framework: states, sessions, tokens, handlers, subsystems and rollback.
//!
//! Invariants: no I/O, no clock, no thread, no `unsafe`. The framework does not call: it says
//! which calls come next, and is told how each ended. It is generic over the host's [`File`], so
//! that it can live in a daemon as well as in a kernel.
#![no_std]

extern crate alloc;
#[cfg(test)]
extern crate std;

mod arrive;
mod bonds;
mod call;
mod carrier;
mod cycle;
mod duplicate;
mod error;
mod fault;
mod file;
mod finish;
mod handler;
mod identity;
mod limits;
mod names;
mod orchestrator;
mod pages;
mod peers;
mod persist;
mod preserve;
mod record;
mod registry;
mod report;
mod retrieve;
mod session;
mod sessions;
mod state;
mod subsystem;
mod subsystems;
mod table;
mod through;
mod ties;
mod tree;

pub use bonds::Bond;
pub use call::{Call, CallId, CallKind, Outcome, Phase, SubsystemKind};
pub use carrier::{Caps, Carrier, CarrierId, Handle, Keep, Reach, Recall};
pub use duplicate::DUPLICATE_COMPATIBLE;
pub use error::{BoxError, Errno, Failure};
pub use fault::{Error, Location};
pub use file::{File, Identity};
pub use handler::{Handler, SharedState};
pub use limits::{Limits, Usage};
pub use names::{Compatible, SessionName, SubsystemName};
pub use orchestrator::{
    FinishOptions, Orchestrator, Retrieval, SubsystemInfo, SubsystemOptions, UnclaimedFiles,
};
pub use record::{
    Dirty, FileKey, FileRecord, IncomingRecord, Level, MachineRecord, SessionRecord, SharedRecord,
    SubsystemRecord,
};
pub use report::{Notice, Report, TransitionId};
pub use session::{
    Criticality, FileInfo, Incoming, OnClose, Owner, Policy, SessionId, SessionInfo, Side, Token,
};
pub use state::{Event, Scope, State, Status};
pub use subsystem::Subsystem;

/// The guide for authors of handlers: its example is compiled and run.
#[cfg(doctest)]
#[doc = include_str!("../../../docs/guide-handlers.md")]
mod guide {}
