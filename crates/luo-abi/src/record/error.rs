//! What can be wrong with a record.

use alloc::{borrow::ToOwned, string::String};
use core::fmt;

use crate::NameError;

/// The first thing that is wrong with a record, and where. `encode` gives it as well, for a value
/// that cannot be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordError {
    /// What is wrong.
    pub kind: RecordErrorKind,
    /// The byte of the record where it is.
    pub offset: usize,
}

/// What can be wrong with a record.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum RecordErrorKind {
    /// It is shorter than its fixed part. The offset is its length.
    Short,
    /// It does not begin with a version's text.
    VersionText,
    /// It is of a version that is not known here.
    Version {
        /// The version it names.
        found: String,
        /// The versions that are read.
        known: &'static [&'static str],
    },
    /// It has another length than it says, or than follows from its counts.
    Length {
        /// What it says.
        claimed: u32,
        /// What it has.
        found: usize,
    },
    /// A reserved byte is not zero.
    Reserved,
    /// The bytes behind a text are not zero.
    Padding,
    /// A name or `compatible` string is not allowed.
    Name(NameError),
    /// A word's number stands for nothing.
    Word {
        /// Which word.
        field: &'static str,
        /// Its number.
        found: u8,
    },
    /// A flag or bit is set that means nothing.
    Flag {
        /// Which field.
        field: &'static str,
    },
    /// A value that is marked as absent is not zero.
    Absent {
        /// Which field.
        field: &'static str,
    },
    /// A number is out of range.
    Range {
        /// Which field.
        field: &'static str,
    },
    /// A handle is zero.
    Handle,
    /// More entries than are allowed.
    TooMany {
        /// How many.
        found: usize,
        /// How many are allowed.
        max: usize,
    },
    /// A text is longer than allowed.
    TooLong {
        /// Its length in bytes.
        found: usize,
        /// The longest that is allowed.
        max: usize,
    },
    /// A remembered failure without an error number, or with one out of range.
    Failure,
    /// A number is out of its range, or does not fit the others.
    Value {
        /// Which field.
        field: &'static str,
    },
    /// A text is no UTF-8.
    Text,
    /// Two entries of a list have the same name. The offset is that of the second.
    Duplicate,
}

impl RecordErrorKind {
    pub(super) const fn at(self, offset: usize) -> RecordError {
        RecordError { kind: self, offset }
    }
}

pub(super) fn unknown_version(found: &str, known: &'static [&'static str]) -> RecordError {
    RecordErrorKind::Version { found: found.to_owned(), known }.at(0)
}

impl fmt::Display for RecordErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Short => f.write_str("the record is too short"),
            Self::VersionText => f.write_str("the record does not begin with a version"),
            Self::Version { found, known } => {
                write!(f, "the record is of version {found:?}, this luo reads ")?;
                for (i, version) in known.iter().enumerate() {
                    write!(f, "{}{version:?}", if i > 0 { ", " } else { "" })?;
                }
                f.write_str(": start a luo that knows that version")
            }
            Self::Length { claimed, found } => {
                write!(f, "the record has {found} bytes where {claimed} belong")
            }
            Self::Reserved => f.write_str("a reserved byte is not zero"),
            Self::Padding => f.write_str("the bytes behind a text are not zero"),
            Self::Name(error) => write!(f, "{error}"),
            Self::Word { field, found } => write!(f, "{found} is no {field}"),
            Self::Flag { field } => write!(f, "{field} has a bit that means nothing"),
            Self::Absent { field } => write!(f, "{field} is absent, yet not zero"),
            Self::Range { field } => write!(f, "{field} is out of range"),
            Self::Handle => f.write_str("a handle is zero"),
            Self::TooMany { found, max } => {
                write!(f, "the record has {found} entries, at most {max} are allowed")
            }
            Self::TooLong { found, max } => {
                write!(f, "a text has {found} bytes, at most {max} are allowed")
            }
            Self::Failure => f.write_str("a remembered failure has no valid error number"),
            Self::Value { field } => write!(f, "{field} is out of range"),
            Self::Text => f.write_str("a text is no UTF-8"),
            Self::Duplicate => f.write_str("two entries have the same name"),
        }
    }
}

impl fmt::Display for RecordError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (at byte {})", self.kind, self.offset)
    }
}

impl core::error::Error for RecordError {
    fn source(&self) -> Option<&(dyn core::error::Error + 'static)> {
        match &self.kind {
            RecordErrorKind::Name(error) => Some(error),
            _ => None,
        }
    }
}
