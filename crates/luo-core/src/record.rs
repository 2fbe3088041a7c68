//! Records: what of the orchestrator must outlive its process, as plain data.
//!
//! The daemon writes what [`take_dirty`](crate::Orchestrator::take_dirty) names whenever something
//! has changed, and gives all of it back to a fresh orchestrator with `restore_machine`,
//! `restore_session` and `restore_file`, in this order, then `resume`.
//!
//! Invariants:
//! - A record is taken between calls, so it shows a file before or after a call, never within.
//! - A transition that was cut short by the end of the process is undone by `resume` where it can
//!   be undone, and can be asked for again where it cannot (`finish`).

use alloc::{string::String, sync::Arc, vec::Vec};

use crate::{
    Bond, CarrierId, Criticality, Errno, Event, Handle, Owner, Policy, SessionId, SessionName,
    Side, State, SubsystemName, Token,
};

/// Who moved a session or file to its state; a rollback undoes only what its own level did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Level {
    /// An event of this file alone.
    File,
    /// An event of its session alone.
    Session,
    /// An event of the machine.
    Machine,
}

/// The machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MachineRecord {
    /// Its state.
    pub state: State,
    /// The event that was going on.
    pub transition: Option<Event>,
    /// The handover was committed, or may have been.
    pub departed: bool,
    /// The carrier that its update goes through.
    pub carrier: CarrierId,
    /// Completed live updates.
    pub number: u64,
    /// The id that the next session will get.
    pub next_session: u64,
    /// Data that arrived for subsystems, until `finish`.
    pub boot_data: Vec<(SubsystemName, u64)>,
    /// The subsystems, in registration order, `files` among them.
    pub subsystems: Vec<SubsystemRecord>,
    /// State that handlers share among their files.
    pub shared: Vec<SharedRecord>,
}

/// A subsystem.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubsystemRecord {
    /// Its name.
    pub name: SubsystemName,
    /// What its failure means.
    pub criticality: Criticality,
    /// Called side by side with concurrent neighbours.
    pub concurrent: bool,
    /// `normal`, `prepared`, `frozen`, or `updated` while it has not been finished.
    pub state: State,
    /// Its data, while not `normal`.
    pub data: u64,
    /// Handles kept for it.
    pub kept: Vec<Handle>,
}

/// The state that a handler shares among its files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SharedRecord {
    /// The handler's string.
    pub compatible: String,
    /// Its data.
    pub data: u64,
    /// It was frozen, and nothing has joined since.
    pub frozen: bool,
    /// Files of it have arrived, so it ends with `finish`, not with `cancel`.
    pub arrived: bool,
    /// It has been retrieved.
    pub retrieved: bool,
    /// Handles kept for it.
    pub kept: Vec<Handle>,
}

/// A session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionRecord {
    /// Its id.
    pub id: SessionId,
    /// Its name.
    pub name: SessionName,
    /// Whom it belongs to.
    pub owner: Owner,
    /// How it is kept.
    pub policy: Policy,
    /// Its state.
    pub state: State,
    /// The event of its own that was going on.
    pub transition: Option<Event>,
    /// Who brought it to its state.
    pub level: Level,
    /// The token that the next file without one will get, where it is free.
    pub next_token: u64,
    /// Its owner has gone and nobody has claimed it yet.
    pub unclaimed: bool,
    /// When it expires if nobody claims it, in the driver's seconds.
    pub expires: Option<u64>,
}

/// How far an incoming file was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IncomingRecord {
    /// Nobody has it yet.
    Waiting,
    /// It was retrieved: the descriptor must come with the record.
    Retrieved,
    /// It cannot be had.
    Failed {
        /// The kernel ABI's number.
        errno: Errno,
        /// The sentence.
        reason: String,
        /// Its owner has been told.
        told: bool,
    },
}

/// A file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileRecord {
    /// Its session.
    pub session: SessionId,
    /// Which of the session's two sets it is in.
    pub side: Side,
    /// Its token.
    pub token: Token,
    /// The handler's string.
    pub compatible: Arc<str>,
    /// What its failure means.
    pub criticality: Criticality,
    /// `normal`, `prepared` or `frozen` for an outgoing file, `updated` for an incoming one.
    pub state: State,
    /// Who brought it there.
    pub level: Level,
    /// Its data; `None` of an incoming file whose record was damaged, or for which nothing was
    /// kept.
    pub data: Option<u64>,
    /// Handles kept for it.
    pub kept: Vec<Handle>,
    /// Of an incoming file, how far it was; `None` of an outgoing one.
    pub incoming: Option<IncomingRecord>,
    /// Its owner has got it back.
    pub reclaimed: bool,
    /// Bytes that stay in use because of it.
    pub pinned: u64,
    /// What it is bound to.
    pub bond: Bond,
}

/// Names a record of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileKey {
    /// The session.
    pub session: SessionId,
    /// Which of the session's two sets.
    pub side: Side,
    /// The token.
    pub token: Token,
}

/// What changed since it was last asked. A key whose record is not there any more was removed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Dirty {
    /// The machine's record changed.
    pub machine: bool,
    /// Sessions, ascending.
    pub sessions: Vec<SessionId>,
    /// Files, ascending.
    pub files: Vec<FileKey>,
}

impl Dirty {
    /// Nothing changed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        !self.machine && self.sessions.is_empty() && self.files.is_empty()
    }
}
