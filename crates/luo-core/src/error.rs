//! Failures: what a handler, carrier or subsystem answers when it cannot do what it was asked.
//!
//! Invariants: a failure has the kernel ABI's errno, a sentence a person understands, and keeps
//! its cause. Where it happened (session, token, handler, subsystem) is added by the framework,
//! which knows, not by the handler, which would have to guess.

use alloc::{boxed::Box, string::String};
use core::fmt;

/// A cause of any type.
pub type BoxError = Box<dyn core::error::Error + Send + Sync + 'static>;

macro_rules! errno {
    ($($(#[$doc:meta])* $variant:ident = $value:literal, $name:literal;)*) => {
        /// The errors of the kernel's ABI that luo uses, with Linux's numbers.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[non_exhaustive]
        #[repr(i32)]
        pub enum Errno { $($(#[$doc])* $variant = $value,)* }

        impl Errno {
            /// Every value, in the order of their numbers.
            pub const ALL: &'static [Errno] = &[$(Errno::$variant,)*];

            /// The kernel's name, `EBUSY` for example.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Errno::$variant => $name,)* }
            }

            /// Linux's number, positive.
            #[must_use]
            pub const fn raw(self) -> i32 { self as i32 }

            /// The errno of that number; what luo has no word for is [`Errno::Io`].
            #[must_use]
            pub const fn from_raw(raw: i32) -> Self {
                match raw { $($value => Errno::$variant,)* _ => Errno::Io }
            }

            /// The errno of that name.
            #[must_use]
            pub fn from_name(name: &str) -> Option<Self> {
                match name { $($name => Some(Errno::$variant),)* _ => None }
            }
        }
    };
}

errno! {
    /// Not the owner, or the privilege is missing.
    Perm = 1, "EPERM";
    /// No handler takes the file, or there is no such token, session or subsystem.
    NoEnt = 2, "ENOENT";
    /// Input or output failed, for a reason that the cause tells.
    Io = 5, "EIO";
    /// More at once than a message or record can hold.
    TooBig = 7, "E2BIG";
    /// Not an open descriptor, or not one of the right kind.
    BadF = 9, "EBADF";
    /// No memory.
    NoMem = 12, "ENOMEM";
    /// Wrong state, or the file is already preserved, or the thing is in use.
    Busy = 16, "EBUSY";
    /// The token, session name, `compatible` string or subsystem name is taken.
    Exist = 17, "EEXIST";
    /// A value out of its range, or data that is damaged.
    Inval = 22, "EINVAL";
    /// Too many open descriptors in this process.
    MFile = 24, "EMFILE";
    /// No room in the carrier, or a limit is reached.
    NoSpc = 28, "ENOSPC";
    /// The name is too long.
    NameTooLong = 36, "ENAMETOOLONG";
    /// The carrier or the handler cannot do this.
    OpNotSupp = 95, "EOPNOTSUPP";
    /// The other side is gone: a participant closed its connection.
    NotConn = 107, "ENOTCONN";
    /// A deadline passed.
    TimedOut = 110, "ETIMEDOUT";
    /// The call was cancelled before it was done.
    Canceled = 125, "ECANCELED";
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Why a call failed: an errno, a reason in words, and the cause where there is one.
#[derive(Debug)]
pub struct Failure {
    errno: Errno,
    reason: String,
    source: Option<BoxError>,
}

impl Failure {
    /// A failure with a reason that a person understands, and where possible what to do next.
    pub fn new(errno: Errno, reason: impl Into<String>) -> Self {
        Self { errno, reason: reason.into(), source: None }
    }

    /// Keeps what caused it.
    #[must_use]
    pub fn because(mut self, source: impl Into<BoxError>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// The kernel ABI's number for it.
    #[must_use]
    pub const fn errno(&self) -> Errno {
        self.errno
    }

    /// The reason, without errno and cause.
    #[must_use]
    pub fn reason(&self) -> &str {
        &self.reason
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.reason, self.errno)
    }
}

impl core::error::Error for Failure {
    fn source(&self) -> Option<&(dyn core::error::Error + 'static)> {
        self.source.as_ref().map(|source| &**source as &(dyn core::error::Error + 'static))
    }
}
