//! Failures of system calls, as handlers report them.

use std::fmt;

use luo_core::{Errno, Failure};

/// A failure for what the system has refused: `what`, then the system's own words.
pub(crate) fn system<E>(what: impl fmt::Display) -> impl Fn(E) -> Failure
where
    E: Into<std::io::Error>,
{
    move |error| {
        let error: std::io::Error = error.into();
        let errno = error.raw_os_error().map_or(Errno::Io, Errno::from_raw);
        Failure::new(errno, format!("{what}: {error}")).because(error)
    }
}

/// A refusal: what cannot be kept, and what to do.
pub(crate) fn unsupported(reason: impl Into<String>) -> Failure {
    Failure::new(Errno::OpNotSupp, reason.into())
}
