//! Reports: how transitions and retrievals ended, for whoever waits for them.
//!
//! Invariants: every transition that `begin` and its like accepted ends with exactly one
//! [`Report`], also one that needed no call.

use alloc::vec::Vec;

use crate::{Error, Event, Scope, SessionId, State, SubsystemName, Token};

/// Names a transition, from `begin` to its [`Report`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TransitionId(pub u64);

/// How a transition ended.
#[derive(Debug, Clone)]
pub struct Report {
    /// Which.
    pub id: TransitionId,
    /// What it was about.
    pub scope: Scope,
    /// What was asked for.
    pub event: Event,
    /// Where the scope is now: after success the event's state; after a failed `prepare` or
    /// `freeze` `normal`, after a failed `depart` `frozen`, after a refused `finish` `updated`.
    pub state: State,
    /// The first failure of something required, or ECANCELED.
    pub result: Result<(), Error>,
    /// Failures that the transition went on without: optional files and subsystems that were left
    /// out, a subsystem that could not boot, an undo that was late.
    pub left_out: Vec<Error>,
    /// The session was removed with it ([`release_session`](crate::Orchestrator::release_session)).
    pub removed: bool,
}

/// Something that a driver wants to tell its clients.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Notice {
    /// A transition ended.
    Ended(Report),
    /// A retrieval ended: asking again gives the file or its failure.
    Retrieved {
        /// The session.
        session: SessionId,
        /// The file.
        token: Token,
    },
    /// A subsystem that was registered after `arrive` has got its boot data.
    Booted {
        /// Which.
        subsystem: SubsystemName,
        /// How it took it.
        result: Result<(), Error>,
    },
    /// A call that was late has returned after all, and what it did was undone.
    Undone(Error),
    /// A participant that had gone was taken out.
    Removed(SubsystemName),
}
