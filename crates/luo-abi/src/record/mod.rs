//! Records: what the daemon lays down in its keeper so that a restarted worker can rebuild
//! itself, and what handlers keep of their files.
//!
//! A record of the daemon begins with its version as text, then its length; so whoever finds one
//! can say what it is before anything else of it is believed. A handler's record has no such
//! beginning: the file's `compatible` string is its version.
//!
//! All numbers are little-endian. The tables are in `docs/abi.md`.
//!
//! Invariants: what a record's `encode` gives, its `decode` takes, and gives the same values; a
//! record that was changed in a byte that has one meaning only (reserved bytes, padding, lengths,
//! words) is refused, never guessed at; no record of any version is larger than its `MAX_SIZE`.

mod error;
mod file;
mod machine;
mod memfd;
mod raw;
mod session;

use alloc::vec::Vec;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

pub use error::{RecordError, RecordErrorKind};
pub use file::{FILE_RECORD, FileRecord, RememberedFailure};
pub use machine::{MACHINE_RECORD, MachineRecord, SubsystemData};
pub use memfd::{
    MEMFD_COMPATIBLE, MEMFD_KNOWN_FLAGS, MEMFD_KNOWN_SEALS, MEMFD_NAME_MAX, MemfdRecord,
};
pub use session::{SESSION_RECORD, SessionRecord};

/// A record of the daemon, of any kind.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Record {
    /// The machine's.
    Machine(MachineRecord),
    /// A session's.
    Session(SessionRecord),
    /// A file's.
    File(FileRecord),
}

impl Record {
    /// The versions that are read, of all kinds.
    pub const KNOWN: &'static [&'static str] = &[MACHINE_RECORD, SESSION_RECORD, FILE_RECORD];

    /// Decodes a record of whatever kind and version it says it is.
    ///
    /// # Errors
    /// [`RecordError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        match version_of(bytes)? {
            MACHINE_RECORD => MachineRecord::decode(bytes).map(Self::Machine),
            SESSION_RECORD => SessionRecord::decode(bytes).map(Self::Session),
            FILE_RECORD => FileRecord::decode(bytes).map(Self::File),
            found => Err(error::unknown_version(found, Self::KNOWN)),
        }
    }
}

/// The version that a record of the daemon names, known or not; nothing else of it is looked at.
///
/// # Errors
/// [`RecordErrorKind::Short`], [`RecordErrorKind::VersionText`].
pub fn version_of(bytes: &[u8]) -> Result<&str, RecordError> {
    let Some((text, _)) = bytes.split_first_chunk::<{ raw::VERSION_SIZE }>() else {
        return Err(RecordErrorKind::Short.at(bytes.len()));
    };
    let (version, padding) = split_padded(text);
    let plain = |byte: &u8| byte.is_ascii_graphic();
    if let Some(at) = version.iter().position(|byte| !plain(byte)) {
        return Err(RecordErrorKind::VersionText.at(at));
    }
    if version.is_empty() {
        return Err(RecordErrorKind::VersionText.at(0));
    }
    if let Some(at) = padding.iter().position(|&byte| byte != 0) {
        return Err(RecordErrorKind::VersionText.at(version.len() + at));
    }
    core::str::from_utf8(version).map_err(|_| RecordErrorKind::VersionText.at(0))
}

/// The text up to the first zero byte, and what follows.
fn split_padded(bytes: &[u8]) -> (&[u8], &[u8]) {
    let len = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
    bytes.split_at_checked(len).unwrap_or((bytes, &[]))
}

/// The text of a field that is filled up with zeros; `offset` is where the field lies.
fn padded(bytes: &[u8], offset: usize) -> Result<&[u8], RecordError> {
    let (text, padding) = split_padded(bytes);
    match padding.iter().position(|&byte| byte != 0) {
        Some(at) => Err(RecordErrorKind::Padding.at(offset + text.len() + at)),
        None => Ok(text),
    }
}

/// `text` filled up with zeros; what does not fit was refused before.
fn pad<const N: usize>(text: &[u8]) -> [u8; N] {
    let mut field = [0; N];
    for (to, from) in field.iter_mut().zip(text) {
        *to = *from;
    }
    field
}

/// Refuses bytes that must be zero and are not.
fn reserved(bytes: &[u8], offset: usize) -> Result<(), RecordError> {
    match bytes.iter().position(|&byte| byte != 0) {
        Some(at) => Err(RecordErrorKind::Reserved.at(offset + at)),
        None => Ok(()),
    }
}

/// Checks version and length, and gives the fixed part and what follows.
fn open<'a, T>(
    bytes: &'a [u8],
    version: &'static [&'static str],
) -> Result<(&'a T, &'a [u8]), RecordError>
where
    T: FromBytes + KnownLayout + Immutable + Unaligned,
{
    let found = version_of(bytes)?;
    if !version.contains(&found) {
        return Err(error::unknown_version(found, version));
    }
    let Ok((header, _)) = raw::Header::ref_from_prefix(bytes) else {
        return Err(RecordErrorKind::Short.at(bytes.len()));
    };
    let claimed = header.length.get();
    if claimed as usize != bytes.len() {
        let found = bytes.len();
        return Err(RecordErrorKind::Length { claimed, found }.at(raw::VERSION_SIZE));
    }
    reserved(&header.reserved, raw::VERSION_SIZE + 4)?;
    T::ref_from_prefix(bytes).map_err(|_| RecordErrorKind::Short.at(bytes.len()))
}

/// Writes the fixed part and `tail`, and sets the length.
fn seal<T>(fixed: &mut T, version: &str, tail: &[&[u8]]) -> Vec<u8>
where
    T: IntoBytes + FromBytes + KnownLayout,
{
    let size = size_of::<T>() + tail.iter().map(|part| part.len()).sum::<usize>();
    if let Ok((header, _)) = raw::Header::mut_from_prefix(fixed.as_mut_bytes()) {
        header.version = pad(version.as_bytes());
        header.length.set(size as u32);
    }
    let mut bytes = Vec::with_capacity(size);
    bytes.extend_from_slice(fixed.as_mut_bytes());
    tail.iter().for_each(|part| bytes.extend_from_slice(part));
    bytes
}

#[cfg(test)]
mod tests;
