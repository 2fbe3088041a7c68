//! Sessions and what they are made of, as the outside sees them.
//!
//! Invariants: ids are never used twice in the life of an orchestrator and its records; a token is
//! unique within its session and [`Side`].

use core::fmt;

use crate::{Compatible, Error, SessionName, State, Status};

/// Names a session within one orchestrator and its records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionId(pub u64);

/// Names a file within its session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Token(pub u64);

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// Whom a session belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Owner {
    /// The user.
    pub uid: u32,
    /// The user's group.
    pub gid: u32,
}

/// What happens when the last copy of a session's capability is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum OnClose {
    /// The session and its files are released: the kernel's way.
    #[default]
    Release,
    /// It is kept until it is claimed.
    Keep {
        /// For how long at most, in seconds; `None` is without limit.
        ttl_seconds: Option<u64>,
    },
}

/// How a session is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Policy {
    /// What happens when its owner goes.
    pub on_close: OnClose,
}

/// What a file's failure means for the update. The same of a subsystem's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Criticality {
    /// It cancels the update.
    #[default]
    Required,
    /// It is reported, and the update goes on without the file or subsystem.
    Optional,
}

impl Criticality {
    /// The word for it in reports and on the wire.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Required => "required",
            Self::Optional => "optional",
        }
    }
}

/// The two sets of files that a session has: those given for the next live update, and those
/// that came with the last one. The same token may be in both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Side {
    /// Preserved here, to be carried over.
    Outgoing,
    /// Carried here, to be retrieved.
    Incoming,
}

/// A session as it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionInfo {
    /// Its id.
    pub id: SessionId,
    /// Its name.
    pub name: SessionName,
    /// Whom it belongs to.
    pub owner: Owner,
    /// How it is kept.
    pub policy: Policy,
    /// Its state, and the transition of its own that is going on.
    pub status: Status,
    /// How many files are preserved in it for the next live update.
    pub outgoing: usize,
    /// How many files came with the last one and are not finished.
    pub incoming: usize,
    /// Bytes that stay in use because of its files, on both sides.
    pub pinned: u64,
    /// Its owner has gone and nobody has claimed it yet.
    pub unclaimed: bool,
    /// When it expires if nobody claims it, in the driver's seconds.
    pub expires: Option<u64>,
}

/// Where an incoming file is.
#[derive(Debug, Clone)]
pub enum Incoming {
    /// Nobody has asked for it yet.
    Waiting,
    /// A call for it is in flight, or waits for its turn.
    Retrieving,
    /// It is here.
    Retrieved,
    /// It cannot be had, for ever.
    Failed(Error),
}

/// A file as it stands.
#[derive(Debug, Clone)]
pub struct FileInfo {
    /// Its token.
    pub token: Token,
    /// Which of the session's two sets it is in.
    pub side: Side,
    /// The handler's string.
    pub compatible: Compatible,
    /// What its failure means.
    pub criticality: Criticality,
    /// `normal`, `prepared` or `frozen` for an outgoing file, `updated` for an incoming one.
    pub state: State,
    /// Of an incoming file, how far its retrieval is.
    pub incoming: Option<Incoming>,
    /// Its owner has got it back. Incoming files only.
    pub reclaimed: bool,
    /// Why the last update went on without it. Outgoing, optional files only.
    pub left_out: Option<Error>,
    /// Bytes that stay in use because of it; 0 where nobody knows yet.
    pub pinned: u64,
}
