//! The names that cross a boundary: of sessions, of subsystems, and `compatible` strings.
//!
//! Invariants: what passes these checks can be written in every tree and record of this crate and
//! comes back the same.

use core::fmt;

/// The longest name of a session or a subsystem, in bytes.
pub const NAME_MAX: usize = 63;

/// The longest `compatible` string, in bytes.
pub const COMPATIBLE_MAX: usize = 47;

/// Why a name was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum NameError {
    /// It has no bytes.
    Empty,
    /// It has `len` bytes, more than `max`.
    TooLong {
        /// Its length in bytes.
        len: usize,
        /// The longest that is allowed.
        max: usize,
    },
    /// The byte at `at` is not allowed.
    Byte {
        /// Its value.
        byte: u8,
        /// Its index within the name.
        at: usize,
    },
}

impl fmt::Display for NameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("the name is empty"),
            Self::TooLong { len, max } => {
                write!(f, "the name has {len} bytes, at most {max} are allowed")
            }
            Self::Byte { byte, at } => write!(
                f,
                "the name has '{}' at index {at}, which is not allowed",
                byte.escape_ascii()
            ),
        }
    }
}

impl core::error::Error for NameError {}

/// Whether a name of a session or subsystem may hold this byte: printable ASCII and the space,
/// without `/`.
#[inline]
#[must_use]
pub const fn is_name_byte(byte: u8) -> bool {
    matches!(byte, b' '..=b'~') && byte != b'/'
}

/// Whether a `compatible` string may hold this byte: `a-z A-Z 0-9 , . _ + -`.
#[inline]
#[must_use]
pub const fn is_compatible_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b',' | b'.' | b'_' | b'+' | b'-')
}

/// Whether this names a session or a subsystem: 1 to [`NAME_MAX`] bytes of [`is_name_byte`].
///
/// # Errors
/// [`NameError`] with the first thing that is wrong.
pub fn check_name(name: &[u8]) -> Result<(), NameError> {
    check(name, NAME_MAX, is_name_byte)
}

/// Whether this is a `compatible` string: 1 to [`COMPATIBLE_MAX`] bytes of
/// [`is_compatible_byte`].
///
/// # Errors
/// [`NameError`] with the first thing that is wrong.
#[inline]
pub fn check_compatible(name: &[u8]) -> Result<(), NameError> {
    check(name, COMPATIBLE_MAX, is_compatible_byte)
}

#[inline]
fn check(name: &[u8], max: usize, allowed: impl Fn(u8) -> bool) -> Result<(), NameError> {
    if name.is_empty() {
        return Err(NameError::Empty);
    }
    if name.len() > max {
        return Err(NameError::TooLong { len: name.len(), max });
    }
    match name.iter().position(|&byte| !allowed(byte)) {
        Some(at) => Err(NameError::Byte { byte: name.get(at).copied().unwrap_or(0), at }),
        None => Ok(()),
    }
}
