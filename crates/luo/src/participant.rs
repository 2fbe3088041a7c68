//! Participants: client processes that take part in the cycle with work of their own.
//!
//! ```text
//! subscribed ── prepare ──▶ prepared ── freeze ──▶ frozen
//!     ▲                        │                      │
//!     └──────── cancel ────────┴──────── cancel ──────┤
//!     └───────────────────────── finish ◀── boot ◀────┘
//! ```

use std::time::Duration;

use crate::connection::{Connection, Target};
use crate::error::Error;
use crate::exchange::Prepared;
use crate::manager::Feed;
use crate::options::Options;
use crate::protocol::{Answer, MANAGER, Nothing, ParticipantCall, ParticipantPhase, Participate};

/// A subscription to the phases of the cycle under a name.
///
/// Each call that [`next_call`](Self::next_call) gives is answered with
/// [`agree`](Self::agree) or [`veto`](Self::veto) before the deadline that was agreed; one that
/// is not cancels the update, and the error names this participant. While a participant is away
/// it takes no part; its subscription is made again by itself when luod is restarted.
#[derive(Debug)]
pub struct Participant {
    feed: Feed,
    answers: Connection,
    patience: Duration,
}

/// How a participant takes part.
#[derive(Debug, Clone)]
pub struct ParticipantOptions {
    /// How to reach luod.
    pub options: Options,
    /// Whether its failure cancels an update. Default true.
    pub required: bool,
    /// How long each of its calls may take. Default luod's own.
    pub deadline: Option<Duration>,
}

impl Default for ParticipantOptions {
    fn default() -> Self {
        Self { options: Options::default(), required: true, deadline: None }
    }
}

impl Participant {
    /// Subscribes under a name.
    ///
    /// # Errors
    /// [`Error::Unavailable`] where no luod runs; EEXIST if the name is taken, EBUSY while an
    /// update goes on, EINVAL for a bad name.
    pub fn join(name: &str, how: ParticipantOptions) -> Result<Self, Error> {
        let parameters = Participate {
            name: name.to_owned(),
            required: Some(how.required),
            deadline_milliseconds: how
                .deadline
                .map(|deadline| u64::try_from(deadline.as_millis()).unwrap_or(u64::MAX)),
        };
        let call = Prepared::streaming(MANAGER, "Participate", &parameters)?;
        let patience = how.options.deadline;
        let target = || Target::Socket(how.options.socket.clone());
        let mut joined = Self {
            feed: Feed::new(target(), call, patience),
            answers: Connection::new(target()),
            patience,
        };
        match joined.feed.next::<ParticipantCall>(Some(patience))? {
            Some(_) => Ok(joined),
            None => Err(Error::DeadlineExceeded {
                method: "io.luo.Participate".to_owned(),
                deadline: patience,
                source: None,
            }),
        }
    }

    /// The next call; `None` if none came in this time. With `None` it waits for ever.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if luod is away for longer than the deadline of the options.
    pub fn next_call(&mut self, wait: Option<Duration>) -> Result<Option<ParticipantCall>, Error> {
        loop {
            match self.feed.next::<ParticipantCall>(wait)? {
                Some(call) if call.phase == ParticipantPhase::Subscribed => {}
                other => return Ok(other),
            }
        }
    }

    /// Says that the work of a call is done. `data` is handed over and comes back with `boot`.
    ///
    /// # Errors
    /// ENOENT if luod no longer waits for this call: it was late, or the update was cancelled.
    pub fn agree(&mut self, call: &ParticipantCall, data: u64) -> Result<(), Error> {
        self.answer(call, Some(data), None)
    }

    /// Says that the update must not take place, and why.
    ///
    /// # Errors
    /// As [`agree`](Self::agree).
    pub fn veto(&mut self, call: &ParticipantCall, reason: &str) -> Result<(), Error> {
        self.answer(call, None, Some(reason.to_owned()))
    }

    fn answer(
        &mut self,
        call: &ParticipantCall,
        data: Option<u64>,
        veto: Option<String>,
    ) -> Result<(), Error> {
        let parameters = Answer { participant: call.participant, call: call.call, data, veto };
        let call = Prepared::new(MANAGER, "Answer", &parameters, Vec::new())?;
        self.answers.call(call, self.patience)?.decode::<Nothing>().map(|_| ())
    }
}
