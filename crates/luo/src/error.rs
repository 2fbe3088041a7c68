//! What can go wrong for a client, and what to do about it.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::protocol;
use crate::wire::WireError;

/// A call to luod failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No luod listens there.
    #[error("no luod at {}: {source}; start it, or name its socket in LUO_SOCKET", socket.display())]
    Unavailable {
        /// The socket that was tried.
        socket: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// luod's socket cannot be reached, for another reason than that no luod runs: EACCES where its
    /// directory or the socket itself is closed to this user, ENAMETOOLONG for a path of more than
    /// 107 bytes.
    #[error(
        "cannot connect to luod at {}: {source}; check the path and who may use it", socket.display()
    )]
    Unreachable {
        /// The socket that was tried.
        socket: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Nothing came in time. Whether the request took effect is not known.
    #[error(
        "luod did not answer {method} within {} ms{}; whether it took effect is not known: ask for \
         the state, then try again or allow more time", deadline.as_millis(), and_last(source)
    )]
    DeadlineExceeded {
        /// The method that was called.
        method: String,
        /// How long was waited.
        deadline: Duration,
        /// What happened last, where something did.
        source: Option<Box<Error>>,
    },
    /// luod refused the request.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The session is gone: it was released, or luod was stopped for good.
    #[error("the session is gone: luod has ended it or was stopped; open it anew by its name")]
    SessionGone,
    /// The descriptor is not a session's.
    #[error("the descriptor is not a session's; pass on what `Session::descriptor` gives")]
    NotASession,
    /// luod holds everything but cannot serve.
    #[error("luod cannot serve: {reason}")]
    WorkerFailed {
        /// Why, and what to do.
        reason: String,
    },
    /// luod said something that this version does not understand.
    #[error(
        "luod's answer to {method} cannot be understood: {reason}; are both of the same version?"
    )]
    Protocol {
        /// The method that was called.
        method: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The connection cannot be read.
    #[error("the connection to luod failed: {0}")]
    Wire(#[from] WireError),
    /// Memory cannot be made or mapped on this side.
    #[error("memory: {0}")]
    Memory(#[from] luo_sys::MemoryError),
    /// A system call failed on this side.
    #[error("{doing}: {source}")]
    System {
        /// What was tried.
        doing: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

impl Error {
    /// The kernel ABI's name for the error, where luod refused the request.
    #[must_use]
    pub fn errno(&self) -> Option<&str> {
        match self {
            Self::Refused(refusal) => Some(&refusal.errno),
            _ => None,
        }
    }

    /// Whether luod refused the request with this errno.
    pub(crate) fn is(&self, errno: &str) -> bool {
        self.errno() == Some(errno)
    }

    pub(crate) fn protocol(method: &str, reason: impl Into<String>) -> Self {
        Self::Protocol { method: method.to_owned(), reason: reason.into() }
    }

    pub(crate) fn system(doing: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::System { doing, source }
    }
}

fn and_last(last: &Option<Box<Error>>) -> String {
    last.as_ref().map_or_else(String::new, |last| format!(" (last: {last})"))
}

/// luod refused a request, or one file of it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason} ({errno})")]
pub struct Refusal {
    /// The kernel ABI's name for it, `EBUSY` for example.
    pub errno: String,
    /// A sentence a person understands.
    pub reason: String,
    /// The file it is about, where it is about one.
    pub token: Option<u64>,
    /// Where it happened, in more detail, where luod told.
    pub failure: Option<Box<protocol::Failure>>,
}

impl From<protocol::Failure> for Refusal {
    fn from(failure: protocol::Failure) -> Self {
        Self {
            errno: failure.errno.clone(),
            reason: failure.reason.clone(),
            token: failure.token,
            failure: Some(Box::new(failure)),
        }
    }
}

impl From<protocol::Refused> for Refusal {
    fn from(refused: protocol::Refused) -> Self {
        Self { errno: refused.errno, reason: refused.reason, token: refused.token, failure: None }
    }
}
