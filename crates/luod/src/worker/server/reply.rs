//! Replies on their way to a client, and what they wait for.

use std::future::Future;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::pin::Pin;

use luo::protocol::{self, Failed, MANAGER, Reply as Envelope, SESSION, SessionFailed};
use luo_carriers::HostFile;
use serde::Serialize;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::worker::refusal::Refusal;

/// A descriptor that goes out with a reply.
#[derive(Debug)]
pub(crate) enum Descriptor {
    /// One that luod goes on holding.
    Shared(HostFile),
    /// One made for the client.
    Own(OwnedFd),
}

impl AsFd for Descriptor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Shared(file) => file.as_fd(),
            Self::Own(descriptor) => descriptor.as_fd(),
        }
    }
}

/// One message to a client.
pub(crate) struct Reply {
    pub(super) text: Vec<u8>,
    pub(super) descriptors: Vec<Descriptor>,
    /// Whether more replies to the same call follow.
    pub(super) continues: bool,
    /// Done once the client's socket has taken the reply.
    pub(super) delivered: Option<Box<dyn FnOnce()>>,
}

impl std::fmt::Debug for Reply {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reply").field("continues", &self.continues).finish_non_exhaustive()
    }
}

impl Reply {
    pub(crate) fn new(parameters: &impl Serialize) -> Self {
        Self::build(parameters, None, false)
    }

    /// One of several replies.
    pub(crate) fn part(parameters: &impl Serialize, continues: bool) -> Self {
        Self::build(parameters, None, continues)
    }

    fn build(parameters: &impl Serialize, error: Option<&str>, continues: bool) -> Self {
        let envelope = Envelope { parameters, continues, error: error.map(Into::into) };
        // These types have no map with other keys than strings and no failing serializer.
        let text = serde_json::to_vec(&envelope).unwrap_or_else(|_| {
            br#"{"error":"org.varlink.service.InvalidParameter","parameters":{"parameter":""}}"#
                .to_vec()
        });
        Self { text, descriptors: Vec::new(), continues, delivered: None }
    }

    /// An error of the interface `io.luo`.
    pub(crate) fn refused_by_manager(refusal: Refusal) -> Self {
        let parameters = Failed { failure: *refusal.0 };
        Self::build(&parameters, Some(&format!("{MANAGER}.Failed")), false)
    }

    /// An error of the interface `io.luo.Session`.
    pub(crate) fn refused_by_session(refusal: Refusal) -> Self {
        let protocol::Failure { errno, reason, token, handler, .. } = *refusal.0;
        let parameters = SessionFailed { errno, reason, token, handler };
        Self::build(&parameters, Some(&format!("{SESSION}.Failed")), false)
    }

    /// An error that every Varlink service has.
    pub(crate) fn service_error(name: &str, parameter: &str, value: &str) -> Self {
        let parameters = serde_json::json!({ parameter: value });
        Self::build(&parameters, Some(&format!("org.varlink.service.{name}")), false)
    }

    /// As it goes out.
    pub(crate) fn into_text(self) -> Vec<u8> {
        self.text
    }

    pub(crate) fn with(mut self, descriptors: Vec<Descriptor>) -> Self {
        self.descriptors = descriptors;
        self
    }

    pub(crate) fn when_delivered(mut self, then: impl FnOnce() + 'static) -> Self {
        self.delivered = Some(Box::new(then));
        self
    }
}

/// The answer to one call.
pub(crate) enum Pending {
    /// It is here.
    Ready(Reply),
    /// It comes when something has happened.
    Later(Pin<Box<dyn Future<Output = Reply>>>),
    /// None comes, but the call takes its time, and its place among those that are waited for.
    Silent(JoinHandle<()>),
    /// It comes in parts; the last one says so, or the channel ends and the connection with it.
    Stream(mpsc::Receiver<Reply>),
    /// The client wants none.
    None,
}

impl Pending {
    pub(crate) fn later(future: impl Future<Output = Reply> + 'static) -> Self {
        Self::Later(Box::pin(future))
    }
}

impl std::fmt::Debug for Pending {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Ready(_) => "Ready",
            Self::Later(_) => "Later",
            Self::Silent(_) => "Silent",
            Self::Stream(_) => "Stream",
            Self::None => "None",
        })
    }
}
