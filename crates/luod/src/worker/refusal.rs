//! Refusals: the framework's errors in the words of the interface.

use luo::protocol::Failure;
use luo_core::{Errno, Error};

/// Why a request is refused, as the client will read it.
#[derive(Debug, Clone)]
pub(crate) struct Refusal(pub(crate) Box<Failure>);

impl Refusal {
    pub(crate) fn new(errno: Errno, reason: impl Into<String>) -> Self {
        Self(Box::new(Failure {
            errno: errno.name().to_owned(),
            reason: reason.into(),
            phase: None,
            subsystem: None,
            session: None,
            token: None,
            handler: None,
        }))
    }

    pub(crate) fn errno(&self) -> &str {
        &self.0.errno
    }

    pub(crate) fn reason(&self) -> &str {
        &self.0.reason
    }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        (&error).into()
    }
}

impl From<&Error> for Refusal {
    fn from(error: &Error) -> Self {
        let location = error.location();
        let mut reason = error.reason().to_owned();
        // What lies beneath is part of the answer: a client cannot ask for it.
        let mut source = std::error::Error::source(error);
        while let Some(cause) = source {
            let text = cause.to_string();
            if !reason.contains(&text) {
                reason = format!("{reason}: {text}");
            }
            source = cause.source();
        }
        if let Some(advice) = error.advice() {
            reason = format!("{reason}; {advice}");
        }
        Self(Box::new(Failure {
            errno: error.errno().name().to_owned(),
            reason,
            phase: error.phase().map(|phase| phase.name().to_owned()),
            subsystem: location.subsystem.as_ref().map(ToString::to_string),
            session: location.session.as_ref().map(|(_, name)| name.to_string()),
            token: location.token.map(|token| token.0),
            handler: location.handler.as_ref().map(ToString::to_string),
        }))
    }
}
