//! Calls: what the framework wants done next, and how it ended.
//!
//! A driver takes calls from [`Orchestrator::next_call`](crate::Orchestrator::next_call), runs
//! each where and when it likes ([`Call::run`], in a thread perhaps), and gives the [`Outcome`]
//! back to [`Orchestrator::complete`](crate::Orchestrator::complete). Calls of participants
//! ([`CallKind::Remote`]) it answers itself, from what the participant said.
//!
//! Invariants:
//! - All calls that are given out and not completed may run side by side.
//! - A call has all it needs; it holds no reference into the orchestrator.
//! - What was kept during a call that failed is forgotten before `run` returns; what is kept
//!   after one that succeeded is in its outcome.

mod run;

use alloc::{string::String, sync::Arc, vec::Vec};
use core::fmt;

use crate::{
    Bond, CarrierId, Criticality, Errno, Failure, File, Handle, Handler, Location, Subsystem,
    Token, TransitionId,
    peers::Peers,
    tree::{FilesIn, SessionOut},
};

/// Names a call, from `next_call` to `complete`. Never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CallId(pub u64);

/// What a call is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Phase {
    /// Keep what can be kept while the workload runs.
    Prepare,
    /// Keep the rest.
    Freeze,
    /// Undo `prepare` and `freeze`.
    Cancel,
    /// Commit the handover.
    Depart,
    /// Find the handover.
    Arrive,
    /// Give a subsystem its data on the other side.
    Boot,
    /// Make a file again.
    Retrieve,
    /// Ask whether a file may be finished.
    CanFinish,
    /// End the live update.
    Finish,
}

impl Phase {
    /// The word for it in reports and on the wire.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Prepare => "prepare",
            Self::Freeze => "freeze",
            Self::Cancel => "cancel",
            Self::Depart => "depart",
            Self::Arrive => "arrive",
            Self::Boot => "boot",
            Self::Retrieve => "retrieve",
            Self::CanFinish => "can_finish",
            Self::Finish => "finish",
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Who is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum CallKind {
    /// A handler, for one file.
    File,
    /// A handler's shared state.
    Shared,
    /// A subsystem of this process.
    Local,
    /// A participant: the driver answers for it. `prepare` and `freeze` are answered with
    /// [`Outcome::data`], everything else with [`Outcome::done`].
    Remote,
    /// `files` itself: its tree is built and kept (`freeze`), or forgotten (`cancel`).
    KeepFilesTree,
    /// `files` itself: its tree is read back (`boot`), or released (`finish`).
    BootFiles,
    /// The carrier: commits the handover (`depart`), takes it back (`cancel`), finds it
    /// (`arrive`), or ends it (`finish`).
    Handover,
}

/// What a call has to run with.
pub(crate) enum Target<F: File> {
    Outgoing {
        /// `None`: only what was kept is forgotten.
        handler: Option<Arc<dyn Handler<F>>>,
        file: F,
        data: u64,
        kept: Vec<Handle>,
        /// The other files of its session, where the handler refers to some.
        peers: Option<Arc<Peers<F>>>,
    },
    Incoming {
        /// `None`: only what was kept is released.
        handler: Option<Arc<dyn Handler<F>>>,
        file: Option<F>,
        data: u64,
        kept: Vec<Handle>,
        reclaimed: bool,
        /// Of a retrieval, what it is bound to.
        bound: Bound<F>,
    },
    Shared {
        handler: Arc<dyn Handler<F>>,
        data: u64,
        kept: Vec<Handle>,
    },
    Local {
        subsystem: Arc<dyn Subsystem<F>>,
        data: u64,
        kept: Vec<Handle>,
    },
    Remote,
    Task(Task),
}

/// What a retrieval has to do with other files.
pub(crate) struct Bound<F> {
    /// What it needs, as it was retrieved.
    pub(crate) needs: Vec<(Token, F)>,
    /// What needs it and is not there yet: it may be made along with it.
    pub(crate) needed_by: Vec<Token>,
}

impl<F> Default for Bound<F> {
    fn default() -> Self {
        Self { needs: Vec::new(), needed_by: Vec::new() }
    }
}

/// What the framework itself does through the carrier.
pub(crate) enum Task {
    KeepTree(Vec<SessionOut>),
    ForgetTree(Handle),
    ReadTree(Handle),
    ReleaseTree(Handle),
    Find,
    /// The handover, or why it could not be built.
    Commit(Result<Vec<u8>, String>),
    Retire,
}

/// One call, ready to be run.
pub struct Call<F: File> {
    pub(crate) id: CallId,
    pub(crate) transition: Option<TransitionId>,
    pub(crate) phase: Phase,
    pub(crate) kind: CallKind,
    pub(crate) location: Location,
    pub(crate) criticality: Criticality,
    pub(crate) data: Option<u64>,
    pub(crate) carrier: CarrierId,
    pub(crate) target: Target<F>,
}

impl<F: File> Call<F> {
    /// Its id, for `complete`.
    #[must_use]
    pub fn id(&self) -> CallId {
        self.id
    }

    /// The transition it belongs to; `None` for a retrieval a client asked for, a late `boot`, and
    /// the undoing of a late call.
    #[must_use]
    pub fn transition(&self) -> Option<TransitionId> {
        self.transition
    }

    /// What it is for.
    #[must_use]
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// Who is called.
    #[must_use]
    pub fn kind(&self) -> CallKind {
        self.kind
    }

    /// The carrier that it keeps things in. What it names by a handle may be in any carrier: a host
    /// with several of them tells by the handle.
    #[must_use]
    pub fn carrier(&self) -> CarrierId {
        self.carrier
    }

    /// Whether its handler is [quick](Handler::is_quick). Of calls for files only: all others may
    /// take their time.
    #[must_use]
    pub fn is_quick(&self) -> bool {
        match &self.target {
            Target::Outgoing { handler, .. } | Target::Incoming { handler, .. } => {
                handler.as_ref().is_none_or(|handler| handler.is_quick())
            }
            Target::Shared { .. } | Target::Local { .. } | Target::Remote | Target::Task(_) => {
                false
            }
        }
    }

    /// Which subsystem, session, token and handler.
    #[must_use]
    pub fn location(&self) -> &Location {
        &self.location
    }

    /// What its failure means.
    #[must_use]
    pub fn criticality(&self) -> Criticality {
        self.criticality
    }

    /// The data of the file, shared state or subsystem, where it has some: what a participant is
    /// to be told with `freeze`, `cancel`, `boot` and `finish`.
    #[must_use]
    pub fn data(&self) -> Option<u64> {
        self.data
    }
}

impl<F: File> fmt::Debug for Call<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Call")
            .field("id", &self.id)
            .field("phase", &self.phase)
            .field("kind", &self.kind)
            .field("location", &self.location)
            .finish_non_exhaustive()
    }
}

/// How a call ended.
pub struct Outcome<F: File> {
    pub(crate) result: Result<Answer<F>, Failure>,
    /// What is kept now; `None` where that did not change.
    pub(crate) kept: Option<Vec<Handle>>,
    /// The call still runs.
    pub(crate) late: bool,
    /// What a file was found to be bound to.
    pub(crate) bond: Bond,
    /// Files that were made along with the one that was retrieved.
    pub(crate) given: Vec<(Token, F)>,
}

/// What a call that succeeded gave.
pub(crate) enum Answer<F: File> {
    Done,
    Data(u64),
    File(F),
    May(bool),
    Files(FilesIn),
    Handover(Option<Vec<u8>>),
}

impl<F: File> Outcome<F> {
    pub(crate) fn of(result: Result<Answer<F>, Failure>, kept: Option<Vec<Handle>>) -> Self {
        Self { result, kept, late: false, bond: Bond::default(), given: Vec::new() }
    }

    /// A participant's `prepare` or `freeze` succeeded, with its data.
    #[must_use]
    pub fn data(data: u64) -> Self {
        Self::of(Ok(Answer::Data(data)), None)
    }

    /// A participant's `cancel`, `boot` or `finish` succeeded.
    #[must_use]
    pub fn done() -> Self {
        Self::of(Ok(Answer::Done), None)
    }

    /// The call failed: a participant vetoed, or the driver could not run the call at all.
    #[must_use]
    pub fn failed(failure: Failure) -> Self {
        Self::of(Err(failure), None)
    }

    /// The deadline passed while the call still runs. The cycle goes on as if it had failed. When
    /// the call comes back after all, `complete` it once more, with the same id and what it gave:
    /// what it did is then undone. ETIMEDOUT.
    ///
    /// To report a call that will never come back (a participant that has gone), use
    /// [`subsystem_gone`](crate::Orchestrator::subsystem_gone) or [`Outcome::failed`].
    #[must_use]
    pub fn late(reason: impl Into<String>) -> Self {
        Self { late: true, ..Self::failed(Failure::new(Errno::TimedOut, reason)) }
    }

    /// Whether the call did what it was asked.
    ///
    /// # Errors
    /// The failure.
    pub fn result(&self) -> Result<(), &Failure> {
        self.result.as_ref().map(|_| ())
    }
}

impl<F: File> fmt::Debug for Outcome<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outcome").field("result", &self.result()).finish_non_exhaustive()
    }
}

/// How a subsystem is called.
pub enum SubsystemKind<F: File> {
    /// Part of this process: [`Call::run`] calls it.
    Local(Arc<dyn Subsystem<F>>),
    /// A participant: the driver answers its calls.
    Remote,
}

impl<F: File> fmt::Debug for SubsystemKind<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Local(_) => "Local",
            Self::Remote => "Remote",
        })
    }
}
