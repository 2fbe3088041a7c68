//! Names that come from outside: untrusted until they are one of these types.
//!
//! Invariants: a value of one of these types satisfies its rule, and is cheap to clone.

use alloc::{format, string::String, sync::Arc};
use core::{borrow::Borrow, fmt, ops::Deref};

use crate::{Errno, Failure};

macro_rules! name {
    ($(#[$doc:meta])* $type:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $type(Arc<str>);

        impl $type {
            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl Deref for $type {
            type Target = str;
            fn deref(&self) -> &str {
                &self.0
            }
        }

        impl Borrow<str> for $type {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl AsRef<str> for $type {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&*self.0, f)
            }
        }
    };
}

name! {
    /// The name of a session: 1 to 63 bytes of printable ASCII and the space, without `/`, and
    /// neither `.` nor `..`.
    SessionName
}

name! {
    /// The name of a subsystem: 1 to 63 bytes of `a-z A-Z 0-9 , . _ + -`, and not
    /// `compatible` (it becomes a property beside that one in the handover).
    SubsystemName
}

name! {
    /// A handler's `compatible` string: 1 to 47 bytes of `a-z A-Z 0-9 , . _ + -`.
    Compatible
}

impl Compatible {
    /// The text itself, shared with this.
    pub(crate) fn shared(&self) -> Arc<str> {
        Arc::clone(&self.0)
    }
}

fn check_len(what: &str, name: &str, max: usize) -> Result<(), Failure> {
    if name.is_empty() {
        return Err(Failure::new(Errno::Inval, format!("a {what} must not be empty")));
    }
    if name.len() > max {
        let reason = format!("a {what} has at most {max} bytes, this one {}", name.len());
        return Err(Failure::new(Errno::NameTooLong, reason));
    }
    Ok(())
}

fn check_chars(what: &str, name: &str, extra: &str) -> Result<(), Failure> {
    match name.chars().find(|c| !c.is_ascii_alphanumeric() && !extra.contains(*c)) {
        None => Ok(()),
        Some(c) => {
            let reason = format!("a {what} is made of letters, digits and {extra}, not of {c:?}");
            Err(Failure::new(Errno::Inval, reason))
        }
    }
}

impl SessionName {
    /// The most bytes a name has.
    pub const MAX: usize = 63;

    /// Checks and takes a name.
    ///
    /// # Errors
    /// ENAMETOOLONG over 63 bytes; EINVAL where it is empty, `.` or `..`, or has a `/` or a
    /// character that does not print.
    pub fn new(name: &str) -> Result<Self, Failure> {
        check_len("session name", name, Self::MAX)?;
        if name == "." || name == ".." {
            return Err(Failure::new(Errno::Inval, "a session name is neither . nor .."));
        }
        if let Some(c) = name.chars().find(|c| *c == '/' || !matches!(c, ' '..='~')) {
            let reason = format!("a session name is printable ASCII without /, not {c:?}");
            return Err(Failure::new(Errno::Inval, reason));
        }
        Ok(Self(name.into()))
    }
}

impl SubsystemName {
    /// The most bytes a name has.
    pub const MAX: usize = 63;

    /// Checks and takes a name.
    ///
    /// # Errors
    /// ENAMETOOLONG over 63 bytes; EINVAL where it is empty, `compatible`, or has another
    /// character.
    pub fn new(name: &str) -> Result<Self, Failure> {
        check_len("subsystem name", name, Self::MAX)?;
        check_chars("subsystem name", name, ",._+-")?;
        if name == "compatible" {
            let reason = "`compatible` is reserved in the handover; choose another name";
            return Err(Failure::new(Errno::Inval, reason));
        }
        Ok(Self(name.into()))
    }
}

impl Compatible {
    /// The most bytes a string has.
    pub const MAX: usize = 47;

    /// Checks and takes a string.
    ///
    /// # Errors
    /// ENAMETOOLONG over 47 bytes; EINVAL where it is empty or has another character.
    pub fn new(name: &str) -> Result<Self, Failure> {
        check_len("compatible string", name, Self::MAX)?;
        check_chars("compatible string", name, ",._+-")?;
        Ok(Self(name.into()))
    }
}

impl From<SessionName> for String {
    fn from(name: SessionName) -> Self {
        Self::from(&*name)
    }
}

impl From<SubsystemName> for String {
    fn from(name: SubsystemName) -> Self {
        Self::from(&*name)
    }
}
