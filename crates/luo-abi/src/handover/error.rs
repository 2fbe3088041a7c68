//! What can be wrong with a handover, and with what is to be written into one.

use alloc::string::String;
use core::fmt;

use crate::{NameError, fdt};

/// Why a tree is refused whole.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum HandoverError {
    /// Its bytes are no valid device tree.
    Blob(fdt::DecodeError),
    /// It is of a version that is not known here.
    Version {
        /// The version it names.
        found: String,
        /// The versions that are read.
        known: &'static [&'static str],
        /// The byte where it names its version.
        offset: usize,
    },
    /// Its header is damaged.
    Header {
        /// What is wrong.
        kind: EntryErrorKind,
        /// The byte where it is.
        offset: usize,
    },
}

impl HandoverError {
    /// The byte of the blob where the error is.
    #[must_use]
    pub const fn offset(&self) -> usize {
        match self {
            Self::Blob(error) => error.offset,
            Self::Version { offset, .. } | Self::Header { offset, .. } => *offset,
        }
    }
}

impl fmt::Display for HandoverError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Blob(error) => write!(f, "the handover is damaged: {error}"),
            Self::Version { found, known, offset } => {
                write!(f, "the handover is of version {found:?}, this luo reads ")?;
                for (i, version) in known.iter().enumerate() {
                    write!(f, "{}{version:?}", if i > 0 { ", " } else { "" })?;
                }
                write!(f, ": start a luo that knows that version (at byte {offset})")
            }
            Self::Header { kind, offset } => {
                write!(f, "the handover's header is damaged: {kind} (at byte {offset})")
            }
        }
    }
}

impl core::error::Error for HandoverError {
    fn source(&self) -> Option<&(dyn core::error::Error + 'static)> {
        match self {
            Self::Blob(error) => Some(error),
            Self::Version { .. } | Self::Header { .. } => None,
        }
    }
}

impl From<fdt::DecodeError> for HandoverError {
    fn from(error: fdt::DecodeError) -> Self {
        Self::Blob(error)
    }
}

/// What is wrong with one session, file or subsystem.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum EntryErrorKind {
    /// A property is missing. The offset is that of the node.
    Missing {
        /// Its name.
        property: &'static str,
    },
    /// A property has the wrong size.
    Size {
        /// Its name; `data` for a subsystem's.
        property: &'static str,
        /// Its size in bytes.
        found: usize,
        /// The size it must have.
        expected: usize,
    },
    /// A property's value is none of the allowed ones.
    Value {
        /// Its name.
        property: &'static str,
    },
    /// A file's node is not named by a token: `0x`, then lower-case hexadecimal digits of a `u64`
    /// without leading zeros.
    Token,
    /// A session's or subsystem's name is not allowed, or not written as it must be.
    Name,
    /// A node is missing. The offset is that of its parent.
    MissingNode {
        /// Its name.
        node: &'static str,
    },
}

impl fmt::Display for EntryErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing { property } => write!(f, "the property {property:?} is missing"),
            Self::Size { property, found, expected } => {
                write!(f, "the property {property:?} has {found} bytes instead of {expected}")
            }
            Self::Value { property } => {
                write!(f, "the property {property:?} has a value that is not allowed")
            }
            Self::Token => f.write_str("the node is not named by a token"),
            Self::Name => f.write_str("the name is not allowed"),
            Self::MissingNode { node } => write!(f, "the node {node:?} is missing"),
        }
    }
}

/// One session, file or subsystem is damaged; what lies beside it stays usable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EntryError {
    /// The name as it stands in the tree.
    pub name: String,
    /// The token, where a file's could still be read.
    pub token: Option<u64>,
    /// What is wrong.
    pub kind: EntryErrorKind,
    /// The byte of the blob where it is.
    pub offset: usize,
}

impl fmt::Display for EntryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} is damaged: {} (at byte {})", self.name, self.kind, self.offset)
    }
}

impl core::error::Error for EntryError {}

/// Why a handover could not be written.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum WriteError {
    /// The tree could not be written; a token or name that is there twice, most likely.
    Tree(fdt::WriteError),
    /// A name of a session or subsystem is not allowed.
    Name {
        /// The name.
        name: String,
        /// What is wrong with it.
        error: NameError,
    },
    /// A `compatible` string is not allowed.
    Compatible {
        /// The token of the file.
        token: u64,
        /// The string.
        compatible: String,
        /// What is wrong with it.
        error: NameError,
    },
    /// A file before any session.
    NoSession,
}

impl fmt::Display for WriteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tree(error) => write!(f, "the handover cannot be written: {error}"),
            Self::Name { name, error } => write!(f, "{name:?} cannot be handed over: {error}"),
            Self::Compatible { token, compatible, error } => {
                write!(f, "file {token:#x} has the compatible string {compatible:?}: {error}")
            }
            Self::NoSession => f.write_str("a file was written before any session"),
        }
    }
}

impl core::error::Error for WriteError {
    fn source(&self) -> Option<&(dyn core::error::Error + 'static)> {
        match self {
            Self::Tree(error) => Some(error),
            Self::Name { error, .. } | Self::Compatible { error, .. } => Some(error),
            Self::NoSession => None,
        }
    }
}

impl From<fdt::WriteError> for WriteError {
    fn from(error: fdt::WriteError) -> Self {
        Self::Tree(error)
    }
}
