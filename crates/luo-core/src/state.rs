//! The state machine: which event is legal where, and where it leads.
//!
//! The machine, every session and every file go through the same states. A session may be ahead
//! of the machine, a file ahead of its session; what is ahead is passed over when the rest
//! follows.
//!
//! ```text
//!              prepare            freeze            depart
//!   ┌────────┐ ──────▶ ┌──────────┐ ──────▶ ┌────────┐ ──────▶ (gone: the other side begins)
//!   │ normal │ ◀────── │ prepared │         │ frozen │
//!   └────────┘ cancel  └──────────┘         └────────┘
//!     ▲  ▲ ▲                                     │
//!     │  │ └────────────── cancel ───────────────┘
//!     │  │ finish
//!     │  └──────── ┌─────────┐
//!     │            │ updated │ ◀── arrive, with a handover
//!     │            └─────────┘
//!     └── arrive, without one
//! ```
//!
//! Invariants:
//! - A failed `prepare` or `freeze` leads to `normal`, never to something in between.
//! - A failed `depart` leaves `frozen`, a refused `finish` leaves `updated`, and nothing was done.
//! - What is not drawn is refused: EBUSY where another state would allow it, EINVAL where no state
//!   would (a file cannot `arrive`).

use core::fmt;

use crate::{Errno, SessionId, Token};

/// Where the machine, a session or a file is in the cycle.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum State {
    /// No live update is going on.
    Normal,
    /// Kept as far as it can be while the workload runs.
    Prepared,
    /// Kept whole; nothing may change any more.
    Frozen,
    /// Arrived on the other side; files can be retrieved until `finish`.
    Updated,
}

impl State {
    /// The word for it in reports and on the wire.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Normal => "normal",
            Self::Prepared => "prepared",
            Self::Frozen => "frozen",
            Self::Updated => "updated",
        }
    }

    /// The state of that name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Normal, Self::Prepared, Self::Frozen, Self::Updated]
            .into_iter()
            .find(|state| state.name() == name)
    }

    /// The state that `event` leads to from here when it succeeds.
    ///
    /// # Errors
    /// [`Errno::Busy`] where the event is not legal in this state.
    pub const fn after(self, event: Event) -> Result<Self, Errno> {
        match (self, event) {
            (Self::Normal, Event::Prepare) => Ok(Self::Prepared),
            (Self::Prepared, Event::Freeze) => Ok(Self::Frozen),
            (Self::Frozen, Event::Depart) => Ok(Self::Frozen),
            (Self::Normal, Event::Arrive) => Ok(Self::Updated),
            (Self::Updated, Event::Finish) | (Self::Prepared | Self::Frozen, Event::Cancel) => {
                Ok(Self::Normal)
            }
            _ => Err(Errno::Busy),
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What moves the machine, a session or a file from one state to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Event {
    /// Keep what can be kept while the workload runs.
    Prepare,
    /// Keep the rest; from here nothing changes.
    Freeze,
    /// Commit the handover; the other side begins. Of a session alone: run what is left of
    /// `prepare` and `freeze`, because its owner has gone.
    Depart,
    /// Begin on the other side. Of a session alone: its new owner has claimed it.
    Arrive,
    /// The live update is over.
    Finish,
    /// Undo `prepare` and `freeze`.
    Cancel,
}

impl Event {
    /// The word for it in reports and on the wire.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Prepare => "prepare",
            Self::Freeze => "freeze",
            Self::Depart => "depart",
            Self::Arrive => "arrive",
            Self::Finish => "finish",
            Self::Cancel => "cancel",
        }
    }

    /// The event of that name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Prepare, Self::Freeze, Self::Depart, Self::Arrive, Self::Finish, Self::Cancel]
            .into_iter()
            .find(|event| event.name() == name)
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What an event is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Scope {
    /// The whole machine: every subsystem, and with `files` every session.
    Machine,
    /// One session, ahead of the machine.
    Session(SessionId),
    /// One file, ahead of its session.
    File(SessionId, Token),
}

/// Where the machine or a session is, and what is going on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Status {
    /// The state before the transition that is going on, or the state where none is.
    pub state: State,
    /// The event whose transition has begun and not ended.
    pub transition: Option<Event>,
    /// The transition is undoing what it did, after a failure or a `cancel`.
    pub undoing: bool,
    /// The handover is committed: the other side may begin at any moment. Only while `frozen`.
    pub departed: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exactly_the_drawn_transitions_are_legal() {
        use Event::*;
        use State::*;
        let drawn = [
            (Normal, Prepare, Prepared),
            (Prepared, Freeze, Frozen),
            (Frozen, Depart, Frozen),
            (Normal, Arrive, Updated),
            (Updated, Finish, Normal),
            (Prepared, Cancel, Normal),
            (Frozen, Cancel, Normal),
        ];
        for state in [Normal, Prepared, Frozen, Updated] {
            for event in [Prepare, Freeze, Depart, Arrive, Finish, Cancel] {
                let to = drawn.iter().find(|(from, by, _)| (*from, *by) == (state, event));
                assert_eq!(state.after(event), to.map(|(.., to)| *to).ok_or(Errno::Busy));
            }
        }
    }

    #[test]
    fn words_lead_back_to_what_they_name() {
        for state in [State::Normal, State::Prepared, State::Frozen, State::Updated] {
            assert_eq!(State::from_name(state.name()), Some(state));
        }
        for event in [Event::Prepare, Event::Freeze, Event::Depart, Event::Cancel] {
            assert_eq!(Event::from_name(event.name()), Some(event));
        }
        assert_eq!((State::from_name("Normal"), Event::from_name("")), (None, None));
    }
}
