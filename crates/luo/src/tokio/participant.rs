//! Participants, for tokio.

use std::time::Duration;

use super::drive::Tokio;
use crate::client;
use crate::drive::until;
use crate::error::Error;
use crate::options::ParticipantOptions;
use crate::protocol::ParticipantCall;

/// A subscription to the phases of the cycle under a name. Its methods are those of
/// [`luo::Participant`](crate::Participant), as futures; what they do, their errors and deadlines
/// are told there.
#[derive(Debug)]
pub struct Participant {
    client: client::Participant<Tokio>,
}

impl Participant {
    /// Subscribes under a name of 1 to 63 letters, digits and `,._+-`. See
    /// [`luo::Participant::join`](crate::Participant::join).
    ///
    /// # Errors
    /// As there.
    pub async fn join(name: &str, how: ParticipantOptions) -> Result<Self, Error> {
        Ok(Self { client: client::Participant::join(name, how).await? })
    }

    /// The next call; `None` if none came in this time. See
    /// [`luo::Participant::next_call`](crate::Participant::next_call).
    ///
    /// # Errors
    /// As there.
    pub async fn next_call(
        &mut self,
        wait: Option<Duration>,
    ) -> Result<Option<ParticipantCall>, Error> {
        self.client.next_call(until(wait)).await
    }

    /// Says that the work of a call is done. See
    /// [`luo::Participant::agree`](crate::Participant::agree).
    ///
    /// # Errors
    /// As there.
    pub async fn agree(&mut self, call: &ParticipantCall, data: u64) -> Result<(), Error> {
        self.client.answer(call, Some(data), None).await
    }

    /// Says that the update must not take place, and why. See
    /// [`luo::Participant::veto`](crate::Participant::veto).
    ///
    /// # Errors
    /// As there.
    pub async fn veto(&mut self, call: &ParticipantCall, reason: &str) -> Result<(), Error> {
        self.client.answer(call, None, Some(reason)).await
    }
}
