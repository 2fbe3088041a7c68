//! The orchestrator: the framework's one entry, which owns everything.
//!
//! What it offers is spread over the modules that do it: `subsystems`, `sessions`, `preserve`,
//! `retrieve`, `cycle` (begin, next_call, complete), `arrive`, `finish` and `persist`.
//!
//! Invariants: no method panics, whatever it is given; a method that returns an error has changed
//! nothing.

use alloc::{
    collections::{BTreeMap, VecDeque},
    format,
    sync::Arc,
    vec::Vec,
};

use crate::{
    Caps, CarrierId, Criticality, Errno, Error, File, Handler, Level, Limits, Location, Notice,
    SessionId, State, Status, SubsystemName, Token, Usage,
    cycle::{Cycle, Mode},
    duplicate::DuplicateHandler,
    identity::Index,
    limits::Ledger,
    persist::Changes,
    registry::{HandlerId, Registry},
    subsystems::{FILES, Sub, SubKind},
    table::Sessions,
};

/// How a subsystem takes part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SubsystemOptions {
    /// What its failure means.
    pub criticality: Criticality,
    /// Neighbours in registration order that are all concurrent are called side by side; others
    /// strictly one after the other.
    pub concurrent: bool,
    /// It is called after all that are not: in `cancel`, which goes backwards, before them.
    pub last: bool,
}

/// A subsystem as it stands.
#[derive(Debug, Clone)]
pub struct SubsystemInfo {
    /// Its name.
    pub name: SubsystemName,
    /// How it takes part.
    pub options: SubsystemOptions,
    /// A participant, whose calls the driver answers.
    pub remote: bool,
    /// `normal`, `prepared`, `frozen`, or `updated` while it has not been finished.
    pub state: State,
    /// Its data, while not `normal`.
    pub data: Option<u64>,
    /// Why the current or last update went on without it.
    pub left_out: Option<Error>,
    /// The participant has gone; it is taken out as soon as it can be.
    pub gone: bool,
}

/// What becomes of files that nobody has retrieved when a session is finished.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum UnclaimedFiles {
    /// The session is not finished: EBUSY, with their tokens.
    #[default]
    Refuse,
    /// They are released, for ever.
    Release,
    /// They are retrieved and go on as outgoing files under the same tokens.
    Carry,
}

/// How a session is finished.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct FinishOptions {
    /// What becomes of files that no owner has: not reclaimed, and not known to their owner to
    /// have failed.
    pub unclaimed: UnclaimedFiles,
    /// A reclaimed file goes on as an outgoing file under the same token, without being given
    /// again. Where its owner has given that token, or that file, again already, that one goes on.
    pub carry_reclaimed: bool,
}

/// What asking for a file gives.
#[derive(Debug, Clone)]
pub enum Retrieval<F> {
    /// The file.
    Ready(F),
    /// It cannot be had; the same failure every time.
    Failed(Error),
    /// A call is on its way; [`Notice::Retrieved`] will say when to ask again.
    Pending,
}

/// The framework: every session, file, handler and subsystem, and the cycle they go through.
///
/// `F` is the host's file type.
pub struct Orchestrator<F: File> {
    /// What each carrier can do; the first is the near one.
    pub(crate) carriers: Vec<Caps>,
    /// The one that the machine's update goes through.
    pub(crate) carrier: CarrierId,
    pub(crate) ledger: Ledger,
    pub(crate) state: State,
    pub(crate) departed: bool,
    pub(crate) number: u64,
    pub(crate) handlers: Registry<F>,
    pub(crate) subsystems: Vec<Sub<F>>,
    pub(crate) next_sub: u32,
    /// Data that arrived for subsystems.
    pub(crate) boot: BTreeMap<SubsystemName, u64>,
    pub(crate) sessions: Sessions<F>,
    pub(crate) index: Index<F>,
    pub(crate) cycle: Cycle,
    pub(crate) notices: VecDeque<Notice>,
    pub(crate) dirty: Changes,
    /// What a restored record says was cut short; `resume` settles it.
    pub(crate) interrupted: Option<crate::persist::Interrupted>,
    /// The name of the files' subsystem, for locations.
    pub(crate) files_name: Option<SubsystemName>,
}

impl<F: File> core::fmt::Debug for Orchestrator<F> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Orchestrator").field("status", &self.status()).finish_non_exhaustive()
    }
}

impl<F: File> Orchestrator<F> {
    /// An orchestrator in `normal`, with `files` as its only subsystem, whose near carrier
    /// can do `caps`.
    #[must_use]
    pub fn new(caps: Caps, limits: Limits) -> Self {
        let mut handlers = Registry::new();
        let registered = handlers.register(Arc::new(DuplicateHandler));
        debug_assert!(registered.is_ok(), "an empty registry takes every handler");
        let mut orchestrator = Self {
            carriers: alloc::vec![caps],
            carrier: CarrierId::NEAR,
            ledger: Ledger::new(limits),
            state: State::Normal,
            departed: false,
            number: 0,
            handlers,
            subsystems: Vec::new(),
            next_sub: 0,
            boot: BTreeMap::new(),
            sessions: Sessions::new(),
            index: Index::new(),
            cycle: Cycle::default(),
            notices: VecDeque::new(),
            dirty: Changes::default(),
            interrupted: None,
            files_name: SubsystemName::new(FILES).ok(),
        };
        if let Some(name) = orchestrator.files_name.clone() {
            orchestrator.add_sub(name, SubKind::Files, SubsystemOptions::default());
        }
        orchestrator
    }

    /// Where the machine is.
    #[must_use]
    pub fn status(&self) -> Status {
        let transition = self.cycle.machine.and_then(|id| self.cycle.transitions.get(&id));
        Status {
            state: self.state,
            transition: transition.map(|transition| transition.event),
            undoing: transition.is_some_and(|transition| transition.mode == Mode::Undo),
            departed: self.departed,
        }
    }

    /// Completed live updates: counts up with every arrival.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.number
    }

    /// What the near carrier can do.
    #[must_use]
    pub fn caps(&self) -> Caps {
        self.caps_of(CarrierId::NEAR).unwrap_or(Caps::empty())
    }

    /// The limits.
    #[must_use]
    pub fn limits(&self) -> Limits {
        self.ledger.limits
    }

    /// Changes the limits; what exceeds the new ones stays, and nothing is added to it.
    pub fn set_limits(&mut self, limits: Limits) {
        self.ledger.limits = limits;
    }

    /// What a uid uses of its limits.
    #[must_use]
    pub fn usage(&self, uid: u32) -> Usage {
        self.ledger.usage(uid)
    }

    /// Adds a handler; handlers are asked in this order.
    ///
    /// # Errors
    /// EEXIST where its `compatible` is taken, EINVAL or ENAMETOOLONG where it is no such string.
    pub fn register_handler(&mut self, handler: Arc<dyn Handler<F>>) -> Result<(), Error> {
        self.handlers.register(handler)
    }

    /// Takes a handler out.
    ///
    /// # Errors
    /// ENOENT where there is none, EBUSY while a file uses it.
    pub fn unregister_handler(&mut self, compatible: &str) -> Result<(), Error> {
        self.handlers.unregister(compatible)
    }

    /// The handlers, in the order in which they are asked. The framework's own for
    /// [duplicates](crate::DUPLICATE_COMPATIBLE) is never asked.
    pub fn handlers(&self) -> impl Iterator<Item = &Arc<dyn Handler<F>>> {
        let asked = self.handlers.iter().filter(|(_, entry)| entry.is_asked());
        asked.map(|(_, entry)| &entry.handler)
    }

    /// Whether files of that `compatible` string can be retrieved and finished here.
    #[must_use]
    pub fn knows(&self, compatible: &str) -> bool {
        self.handlers.find(compatible).is_some()
    }

    /// What there is to tell. Ask until `None`, after the same as for `next_call`.
    pub fn take_notice(&mut self) -> Option<Notice> {
        self.notices.pop_front()
    }

    /// Refuses with EBUSY where the machine is in a transition or between `prepare` and the end of
    /// the update.
    pub(crate) fn machine_at_rest(&self, what: &str) -> Result<(), Error> {
        let status = self.status();
        if let Some(event) = status.transition {
            let reason = format!("cannot {what} while {event} is going on");
            return Err(Error::new(Errno::Busy, reason).advise("try again when it has ended"));
        }
        match self.state {
            State::Normal | State::Updated => Ok(()),
            State::Prepared | State::Frozen => {
                let reason = format!("cannot {what} while the machine is {}", self.state);
                Err(Error::new(Errno::Busy, reason).advise("wait for the update, or cancel it"))
            }
        }
    }

    /// Where a file is, for errors and calls.
    pub(crate) fn file_location(
        &self,
        session: SessionId,
        token: Token,
        handler: Option<HandlerId>,
    ) -> Location {
        Location {
            subsystem: self.files_name.clone(),
            session: self.sessions.peek(session).map(|s| (session, s.name.clone())),
            token: Some(token),
            ..self.handlers.location(handler)
        }
    }

    pub(crate) fn session_location(&self, session: SessionId) -> Location {
        Location {
            session: self.sessions.peek(session).map(|s| (session, s.name.clone())),
            ..Location::default()
        }
    }

    /// Whether a cancel of `level` takes what was moved by `by`.
    pub(crate) fn undoes(undo: crate::cycle::Undo, by: Level) -> bool {
        match undo {
            crate::cycle::Undo::All => true,
            crate::cycle::Undo::Level(level) => level == by,
        }
    }
}
