//! Participants: client processes that take part in the cycle with work of their own.
//!
//! ```text
//! subscribed ── prepare ──▶ prepared ── freeze ──▶ frozen
//!     ▲                        │                      │
//!     └──────── cancel ────────┴──────── cancel ──────┤
//!     └───────────────────────── finish ◀── boot ◀────┘
//! ```

use std::time::Duration;

use crate::blocking::{Blocking, now};
use crate::client;
use crate::drive::until;
use crate::error::Error;
use crate::options::ParticipantOptions;
use crate::protocol::ParticipantCall;

/// A subscription to the phases of the cycle under a name.
///
/// Each call that [`next_call`](Self::next_call) gives is answered with [`agree`](Self::agree) or
/// [`veto`](Self::veto) before the deadline that was agreed; one that is not cancels the update,
/// and the error names this participant. While a participant is away it takes no part; its
/// subscription is made again by itself when luod is restarted.
#[derive(Debug)]
pub struct Participant {
    client: client::Participant<Blocking>,
}

impl Participant {
    /// Subscribes under a name of 1 to 63 letters, digits and `,._+-`.
    ///
    /// # Errors
    /// [`Error::Unavailable`] where no luod runs; EEXIST if the name is taken, EBUSY while an
    /// update goes on, EINVAL for a bad name.
    pub fn join(name: &str, how: ParticipantOptions) -> Result<Self, Error> {
        Ok(Self { client: now(client::Participant::join(name, how))? })
    }

    /// The next call; `None` if none came in this time. With `None` it waits for ever.
    ///
    /// A call whose phase is [`Subscribed`] says that luod was restarted and the subscription made
    /// again. It needs no answer; what this participant had prepared or frozen before is void, as
    /// after `cancel`, unless a call for `boot` follows.
    ///
    /// [`Subscribed`]: crate::protocol::ParticipantPhase::Subscribed
    ///
    /// # Errors
    /// [`Error::Unavailable`] if luod is away for longer than the deadline of the options;
    /// EEXIST or EBUSY if it is there again and refuses the subscription for that long.
    pub fn next_call(&mut self, wait: Option<Duration>) -> Result<Option<ParticipantCall>, Error> {
        now(self.client.next_call(until(wait)))
    }

    /// Says that the work of a call is done. `data` is handed over and comes back with `boot`.
    ///
    /// # Errors
    /// ENOENT if luod no longer waits for this call: it was late, or the update was cancelled.
    pub fn agree(&mut self, call: &ParticipantCall, data: u64) -> Result<(), Error> {
        now(self.client.answer(call, Some(data), None))
    }

    /// Says that the update must not take place, and why.
    ///
    /// # Errors
    /// As [`agree`](Self::agree).
    pub fn veto(&mut self, call: &ParticipantCall, reason: &str) -> Result<(), Error> {
        now(self.client.answer(call, None, Some(reason)))
    }
}
