//! Flattened device trees: a writer that streams, and a reader that validates before it reads.
//!
//! The format is that of the Devicetree Specification 0.4, chapter 5, version 17. Two things
//! differ on purpose: names may have up to [`MAX_NAME`] bytes and begin with any allowed one, and
//! blobs that reserve memory are refused.
//!
//! Invariants: only [`Blob::validate`] makes a [`Tree`], and only of bytes that are valid in
//! whole; reading a tree cannot fail and does not allocate; neither side needs more than
//! O(n log n) time, whatever the input.

mod error;
mod layout;
mod siblings;
mod strings;
mod tree;
mod validate;
mod write;

pub use error::{Block, DecodeError, DecodeErrorKind, WriteError};
pub use layout::{LAST_COMPATIBLE, MAGIC, MAX_DEPTH, MAX_NAME, MAX_SIZE, VERSION};
pub use tree::{Children, Event, Events, Node, Properties, Property, Tree};
pub use validate::Blob;
pub use write::{PropertyName, Writer};
