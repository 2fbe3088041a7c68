//! Where the blocking and the asynchronous API differ: how they wait.
//!
//! Everything else is written once, as futures over a [`Drive`]: it decides what to send and what
//! an answer means in steps that never wait, and leaves all waiting to the drive. The futures of a
//! drive that blocks are ready at once (see [`crate::blocking`]).
//!
//! Invariants: a [`Job`] does what it can and then says what it waits for; between two steps all
//! of its state is in what it borrows, so a future that is dropped while it waits leaves that
//! state whole. Every wait has a deadline, or is one that the caller asked to be without.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use crate::error::Error;

/// Between two attempts to reach a luod that does not listen at the moment.
pub(crate) const RETRY_PAUSE: Duration = Duration::from_millis(2);

/// How far a job came.
#[derive(Debug)]
pub(crate) enum Step<T> {
    /// To its end.
    Done(T),
    /// The socket has nothing to read and, where `writing`, takes nothing more.
    Wait {
        /// Whether there is something to be sent.
        writing: bool,
    },
    /// Something that the socket does not announce stands in the way; try again after
    /// [`RETRY_PAUSE`].
    Pause,
}

/// Something to be done on a socket, in steps that never wait.
pub(crate) trait Job {
    /// What it comes to.
    type Output;

    /// Does all that can be done without waiting.
    fn step(&mut self, socket: BorrowedFd<'_>) -> Result<Step<Self::Output>, Error>;
}

/// A way to wait.
pub(crate) trait Drive: fmt::Debug {
    /// A socket that can be waited for.
    type Socket: AsFd + fmt::Debug;

    /// Takes over a socket that does not block.
    fn register(socket: OwnedFd) -> Result<Self::Socket, Error>;

    /// Steps through a job; `None` when `until` has passed before its end. A job has at least one
    /// step.
    async fn drive<J: Job>(
        socket: &Self::Socket,
        until: Option<Instant>,
        job: &mut J,
    ) -> Result<Option<J::Output>, Error>;

    /// Lets time pass.
    async fn pause(time: Duration);
}

/// When a call must be over. A limit too long for the clock is none.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Deadline {
    limit: Duration,
    at: Option<Instant>,
}

impl Deadline {
    pub(crate) fn after(limit: Duration) -> Self {
        Self { limit, at: Instant::now().checked_add(limit) }
    }

    pub(crate) fn at(&self) -> Option<Instant> {
        self.at
    }

    pub(crate) fn left(&self) -> Duration {
        self.at.map_or(self.limit, |at| at.saturating_duration_since(Instant::now()))
    }

    pub(crate) fn has_passed(&self) -> bool {
        self.left().is_zero()
    }

    pub(crate) fn exceeded(&self, method: &str, last: Option<Error>) -> Error {
        Error::DeadlineExceeded {
            method: method.to_owned(),
            deadline: self.limit,
            source: last.map(Box::new),
        }
    }

    /// Lets a moment pass before another attempt, no longer than is left.
    pub(crate) async fn pause<D: Drive>(&self) {
        D::pause(RETRY_PAUSE.min(self.left())).await;
    }
}

/// When a wait is over; `None`, or one too long for the clock, is for ever.
pub(crate) fn until(wait: Option<Duration>) -> Option<Instant> {
    wait.and_then(|wait| Instant::now().checked_add(wait))
}
