//! The store: where the worker keeps what must outlive it.
//!
//! Two implementations: [`KeeperStore`] talks to the keeper process, [`SystemdStore`] uses the fd
//! store of systemd. A store holds slots: a key, a record, descriptors. [`Table`] is the worker's
//! own picture of them, and what the carrier `keeper` works on.
//!
//! Invariants:
//! - A [`Batch`] is kept whole or not at all, and batches in the order in which they were
//!   submitted. When its [`Ticket`] says so, and not before, it is kept.
//! - Submitting never waits; what is under way is bounded by whoever asks for
//!   [`room`](Store::room) before taking on more.

mod batch;
mod keeper;
mod systemd;
mod table;

use std::future::Future;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use luo_abi::liveupdate::ioctl::Name;
use luo_carriers::Slot;
use luo_core::{Errno, Failure};
use tokio::sync::{mpsc, oneshot};

pub use crate::keeper::Limits;
pub use batch::{Batch, Change};
pub use keeper::{Attached, KeeperStore};
pub use systemd::{Inherited, Started, SystemdStore};
pub use table::Table;

/// Why the store could not do something.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The keeper refused: ENOSPC at a limit, EMFILE, EBUSY, EINVAL.
    #[error("the keeper refused: {}", std::io::Error::from_raw_os_error(*.errno))]
    Refused {
        /// Linux's number.
        errno: i32,
    },
    /// The keeper is gone, or does not speak to this worker any more.
    #[error("the keeper is gone")]
    Lost,
    /// No version of the wire that both sides speak.
    #[error(
        "the keeper speaks wire versions {0} to {1}, which this luod does not: start both from one build"
    )]
    Version(u16, u16),
    /// What came is not what a keeper sends.
    #[error("not a keeper at the other end: {0}")]
    Protocol(&'static str),
    /// A record or a slot that fits into no message.
    #[error("a slot of {bytes} bytes and {fds} descriptors is more than a message holds")]
    TooLarge {
        /// Bytes of its record.
        bytes: usize,
        /// Its descriptors.
        fds: usize,
    },
    /// This store does not do that.
    #[error("{0}")]
    Unsupported(&'static str),
    /// A system call failed.
    #[error("{what}: {}", std::io::Error::from_raw_os_error(*.errno))]
    System {
        /// What was tried.
        what: &'static str,
        /// Linux's number.
        errno: i32,
    },
}

impl StoreError {
    pub(crate) fn system(what: &'static str) -> impl Fn(std::io::Error) -> Self {
        move |error| Self::System { what, errno: error.raw_os_error().unwrap_or(5) }
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        let errno = match &error {
            StoreError::Refused { errno } | StoreError::System { errno, .. } => {
                Errno::from_raw(*errno)
            }
            StoreError::TooLarge { .. } => Errno::TooBig,
            StoreError::Unsupported(_) => Errno::OpNotSupp,
            _ => Errno::Io,
        };
        Failure::new(errno, error.to_string()).because(error)
    }
}

/// Says when what was submitted is done. Dropping it loses the answer only.
#[derive(Debug)]
#[must_use = "nothing is kept before the ticket says so"]
pub struct Ticket(Promise);

#[derive(Debug)]
enum Promise {
    Waiting(oneshot::Receiver<Result<(), StoreError>>),
    Done(Option<StoreError>),
}

impl Ticket {
    /// One that is done.
    pub fn done(result: Result<(), StoreError>) -> Self {
        Self(Promise::Done(result.err()))
    }

    pub(crate) fn waiting() -> (oneshot::Sender<Result<(), StoreError>>, Self) {
        let (sender, receiver) = oneshot::channel();
        (sender, Self(Promise::Waiting(receiver)))
    }
}

impl Future for Ticket {
    type Output = Result<(), StoreError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.0 {
            Promise::Done(error) => Poll::Ready(error.clone().map_or(Ok(()), Err)),
            Promise::Waiting(receiver) => Pin::new(receiver)
                .poll(context)
                .map(|answer| answer.unwrap_or(Err(StoreError::Lost))),
        }
    }
}

/// What happens on the store's side. In order.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event {
    /// A slot: after [`Store::load`], and to a candidate a changed one before [`Event::Go`].
    Slot(u64, Slot),
    /// To a candidate: a slot that is gone.
    Removed(u64),
    /// All slots have been given.
    Loaded,
    /// To a candidate: every change has been given; [`Store::ready`] again takes over.
    Go,
    /// Another worker is to take over: submit what is unfinished, then [`Store::quiesced`].
    Quiesce,
    /// The upgrade has failed: serve on.
    Resume {
        /// Why.
        reason: String,
    },
    /// Another worker has taken over: exit.
    Retire,
    /// The service is being stopped: exit.
    Stop,
    /// An upgrade has ended.
    Upgraded {
        /// The worker is the new one.
        worker: bool,
        /// The keeper is the new one.
        keeper: bool,
        /// Why the rest is not; empty where there is no rest.
        reason: String,
    },
    /// The store is gone: this worker can keep nothing any more, and has to exit.
    Lost(StoreError),
}

/// The [`Event`]s of a store.
#[derive(Debug)]
pub struct Events(mpsc::UnboundedReceiver<Event>);

impl Events {
    /// The next one. What waits here is bounded by what the keeper holds.
    pub async fn next(&mut self) -> Event {
        self.0.recv().await.unwrap_or(Event::Lost(StoreError::Lost))
    }

    /// The next one, `None` where none is there yet.
    pub fn try_next(&mut self) -> Option<Event> {
        self.0.try_recv().ok()
    }
}

/// What to upgrade.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Upgrade {
    /// The worker.
    Worker,
    /// The keeper.
    Keeper,
    /// The worker, then the keeper.
    Both,
}

/// A future in a box.
pub type Waiting<'a> = Pin<Box<dyn Future<Output = ()> + Send + 'a>>;

/// Where the worker keeps what must outlive it.
pub trait Store: Send + Sync {
    /// The most it holds.
    fn limits(&self) -> Limits;

    /// Keeps a batch. The ticket gives ENOSPC where a limit would be passed (a batch needs room
    /// beside what it replaces), EMFILE, EBUSY where another worker is taking over.
    fn submit(&self, batch: Batch) -> Ticket;

    /// Waits until less than a few messages' worth is unsent.
    fn room(&self) -> Waiting<'_>;

    /// Asks for all slots: they come as [`Event::Slot`], then [`Event::Loaded`].
    fn load(&self) -> Ticket;

    /// Says that this worker has restored everything: it serves, or, where it is a candidate, is
    /// ready to take over. A candidate says it again after [`Event::Go`], and is the worker when
    /// that ticket is done.
    fn ready(&self) -> Ticket;

    /// Answers [`Event::Quiesce`]: this worker changes nothing any more.
    fn quiesced(&self) -> Ticket;

    /// Says that the machine has departed through a carrier that reaches farther: what is kept
    /// here is not needed any more, and luod stops.
    fn leave(&self) -> Ticket;

    /// Retrieves a kernel session that came from the kernel before into a slot of that key, whose
    /// record is the name; the slot comes with the next [`load`](Self::load). So that it is in the
    /// store from the beginning, and never in this worker alone. The ticket gives the kernel's
    /// errno, or says that this store cannot do it: EINVAL, EOPNOTSUPP.
    fn retrieve(&self, _key: u64, _device: OwnedFd, _name: Name) -> Ticket {
        Ticket::done(Err(StoreError::Unsupported("this store retrieves no kernel sessions")))
    }

    /// Says why this worker cannot restore what is kept. Then it has to exit.
    fn refuse(&self, reason: &str) -> Ticket;

    /// Asks for an upgrade to that program. The ticket says whether it has begun (EBUSY where
    /// another is under way, EINVAL for a deadline of zero or above an hour); an event says how it
    /// ended.
    fn upgrade(&self, program: OwnedFd, deadline: Duration, what: Upgrade) -> Ticket;
}
