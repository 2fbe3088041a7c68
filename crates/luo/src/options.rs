//! How a client reaches luod and how long it waits.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::protocol::{DEFAULT_SOCKET, Policy, SOCKET_ENV};

/// How long a call may take, the time to connect again included.
pub const DEFAULT_DEADLINE: Duration = Duration::from_secs(10);

/// How a client reaches luod, how long it waits, and what a session it makes is like.
#[derive(Debug, Clone)]
pub struct Options {
    pub(crate) socket: PathBuf,
    pub(crate) deadline: Duration,
    pub(crate) policy: Policy,
}

impl Default for Options {
    /// The socket that `LUO_SOCKET` names or [`DEFAULT_SOCKET`], [`DEFAULT_DEADLINE`], and a
    /// policy that keeps a session until it is claimed.
    fn default() -> Self {
        let socket = std::env::var_os(SOCKET_ENV)
            .map_or_else(|| PathBuf::from(DEFAULT_SOCKET), PathBuf::from);
        Self { socket, deadline: DEFAULT_DEADLINE, policy: Policy::default() }
    }
}

impl Options {
    /// The default options.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Another socket, a path of at most 107 bytes.
    #[must_use]
    pub fn socket(mut self, path: impl AsRef<Path>) -> Self {
        self.socket = path.as_ref().to_owned();
        self
    }

    /// Another deadline for every call, the time to connect again included. Zero asks, but does not
    /// wait for an answer; one of more than some centuries is none.
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// What becomes of a session that is created with these options when nobody holds it.
    #[must_use]
    pub fn policy(mut self, policy: Policy) -> Self {
        self.policy = policy;
        self
    }
}

/// How a participant takes part.
#[derive(Debug, Clone)]
pub struct ParticipantOptions {
    /// How to reach luod.
    pub options: Options,
    /// Whether its failure cancels an update. Default true.
    pub required: bool,
    /// How long each of its calls may take, in whole milliseconds on the wire. Default, and the
    /// most, is what luod is configured for.
    pub deadline: Option<Duration>,
}

impl Default for ParticipantOptions {
    fn default() -> Self {
        Self { options: Options::default(), required: true, deadline: None }
    }
}
