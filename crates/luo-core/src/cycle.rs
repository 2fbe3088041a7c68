//! The cycle's machinery: transitions, the stages they consist of, and the calls in flight.
//!
//! A transition is a row of stages. A stage is expanded into units when it starts, from how things
//! stand then; its units do not depend on each other, so their calls may run side by side. When the
//! last of them has ended, the next stage starts. Files that need each other are finished in several
//! stages of the same kind, and wait for each other where they are retrieved, see `bound`.
//!
//! ```text
//!            begin                       last stage done
//!   (none) ────────▶ forward ───────────────────────────────▶ report: ok
//!                       │ a required call fails, or cancel:
//!                       │ nothing more is started, what is in flight is awaited
//!                       ▼
//!                    undoing ───────────────────────────────▶ report: the failure
//! ```
//!
//! Invariants:
//! - A unit is settled exactly once: at once, or when its call is completed or reported late.
//! - What is undone is found by looking at what is prepared, not by replaying a log, so a rollback
//!   after a restore undoes the same as one before it.
//! - A transition of the machine excludes all others; one of a session those of its files; apart
//!   from that, transitions run side by side and meet only in shared states, where they wait for
//!   each other's calls.

mod begin;
mod bound;
mod calls;
mod end;
mod late;
mod plan;
mod settle;
mod settle_parts;
mod start;
mod units;

use alloc::{
    collections::{BTreeMap, VecDeque},
    vec::Vec,
};

use crate::{
    CallId, Error, Event, FinishOptions, Level, Scope, SessionId, Token, TransitionId,
    registry::HandlerId, subsystems::SubId,
};

/// What a file's handler is called for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FileStep {
    Prepare,
    Freeze,
    Cancel,
    Retrieve,
    CanFinish,
    Finish,
}

/// What a shared state is called for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SharedStep {
    Prepare,
    Freeze {
        /// Also where not every file of the handler is frozen: those that are go away now.
        force: bool,
    },
    /// Cancel or finish it, if nothing hangs on it any more.
    Drop,
    Retrieve,
}

/// What a subsystem is called for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SubStep {
    Prepare,
    Freeze,
    Cancel,
    Boot,
    Finish,
}

/// What is done with the files' tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TreeStep {
    Keep,
    Forget,
    /// Forgets a tree that was kept too late.
    ForgetStray,
    Read,
    Release,
}

/// What is done with the handover.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HandoverStep {
    Find,
    Commit,
    /// Take a committed one back.
    Revoke,
    /// End it after `finish`.
    Retire,
}

/// One thing to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unit {
    File(SessionId, Token, FileStep),
    Shared(HandlerId, SharedStep),
    Subsystem(SubId, SubStep),
    Tree(TreeStep),
    Handover(HandoverStep),
}

/// A unit, and the transition that waits for it; `None` where nobody does.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Job {
    pub(crate) owner: Option<TransitionId>,
    pub(crate) unit: Unit,
}

/// Which files a `cancel` is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Undo {
    /// What an event of this level moved.
    Level(Level),
    /// Everything.
    All,
}

#[derive(Debug, Clone)]
pub(crate) enum Stage {
    Shared(SharedStage),
    Files(FileStep),
    /// `Files(Cancel)`, of these.
    CancelFiles(Undo),
    /// Finds what would be kept without a file that it is bound to.
    Together(FileStep),
    /// `Files(Finish)`, of these.
    Finish(Vec<Unit>),
    /// Cancels what was left out after it had been prepared.
    CancelLeftOut,
    Subsystems(Vec<SubId>, SubStep),
    Tree(TreeStep),
    Handover(HandoverStep),
    /// Every file may be finished: decides which are carried on. From here there is no way back.
    CommitToFinish,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SharedStage {
    Prepare,
    Freeze { force: bool },
    Drop,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    Forward,
    /// Undoing what `Forward` did.
    Undo,
    /// Past the point of no return of `finish`, or of `cancel`: failures are only reported.
    Final,
}

pub(crate) struct Transition {
    pub(crate) scope: Scope,
    pub(crate) event: Event,
    pub(crate) mode: Mode,
    pub(crate) stages: VecDeque<Stage>,
    /// Units of the current stage that are not settled.
    pub(crate) pending: usize,
    pub(crate) failure: Option<Error>,
    pub(crate) left_out: Vec<Error>,
    /// Left out after they had been prepared: to be cancelled.
    pub(crate) to_cancel: Vec<Unit>,
    pub(crate) options: FinishOptions,
    /// The session is removed at the end.
    pub(crate) remove: bool,
    /// An explicit `cancel`: everything in the scope is undone.
    pub(crate) undo_all: bool,
    /// The undoing could not be begun (the handover could not be revoked): the state stays.
    pub(crate) stuck: bool,
    /// `arrive` found a handover.
    pub(crate) found: bool,
}

impl Transition {
    pub(crate) fn new(scope: Scope, event: Event) -> Self {
        let mode = if event == Event::Cancel { Mode::Final } else { Mode::Forward };
        Self {
            scope,
            event,
            mode,
            stages: VecDeque::new(),
            pending: 0,
            failure: None,
            left_out: Vec::new(),
            to_cancel: Vec::new(),
            options: FinishOptions::default(),
            remove: false,
            undo_all: event == Event::Cancel,
            stuck: false,
            found: false,
        }
    }

    pub(crate) fn level(&self) -> Level {
        match self.scope {
            Scope::Machine => Level::Machine,
            Scope::Session(_) => Level::Session,
            Scope::File(..) => Level::File,
        }
    }
}

pub(crate) struct InFlight {
    pub(crate) job: Job,
    pub(crate) late: bool,
}

/// Everything that is going on.
#[derive(Default)]
pub(crate) struct Cycle {
    pub(crate) transitions: BTreeMap<TransitionId, Transition>,
    /// The machine's transition.
    pub(crate) machine: Option<TransitionId>,
    /// Units whose call may be given out.
    pub(crate) queue: VecDeque<Job>,
    pub(crate) in_flight: BTreeMap<CallId, InFlight>,
    /// Transitions whose stage has ended.
    pub(crate) wake: VecDeque<TransitionId>,
    next_transition: u64,
    next_call: u64,
}

impl Cycle {
    pub(crate) fn add(&mut self, transition: Transition) -> TransitionId {
        self.next_transition += 1;
        let id = TransitionId(self.next_transition);
        if transition.scope == Scope::Machine {
            self.machine = Some(id);
        }
        self.transitions.insert(id, transition);
        self.wake.push_back(id);
        id
    }

    pub(crate) fn call_id(&mut self) -> CallId {
        self.next_call += 1;
        CallId(self.next_call)
    }

    pub(crate) fn get(&mut self, id: Option<TransitionId>) -> Option<&mut Transition> {
        self.transitions.get_mut(&id?)
    }

    /// One unit of a transition is settled.
    pub(crate) fn settled(&mut self, owner: Option<TransitionId>) {
        if let Some(id) = owner
            && let Some(transition) = self.transitions.get_mut(&id)
        {
            transition.pending = transition.pending.saturating_sub(1);
            if transition.pending == 0 {
                self.wake.push_back(id);
            }
        }
    }
}
