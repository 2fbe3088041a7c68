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
mod open;
mod raw;
mod session;
mod tcp;
mod timeline;

use alloc::vec::Vec;
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use crate::NameError;

pub use error::{RecordError, RecordErrorKind};
pub use file::{BOUND_FILE_RECORD, FILE_RECORD, FileRecord, Incoming, RememberedFailure};
pub use machine::{MACHINE_RECORD, MachineRecord, SharedRecord, SubsystemData, SubsystemRecord};
pub use memfd::{
    MEMFD_COMPATIBLE, MEMFD_KNOWN_FLAGS, MEMFD_KNOWN_SEALS, MEMFD_NAME_MAX, MemfdRecord,
};
pub use open::{
    DELETED_COMPATIBLE, DEVICE_COMPATIBLE, DeletedEnd, DeletedMaker, DeletedRecord, DeviceRecord,
    EPOLL_COMPATIBLE, EVENTFD_COMPATIBLE, Endpoint, EpollMemberRecord, EpollRecord, EventfdRecord,
    FIFO_COMPATIBLE, FifoMaker, FifoRecord, INOTIFY_COMPATIBLE, InotifyRecord, LockRecord,
    MQUEUE_COMPATIBLE, MqueueRecord, OpenFlags, OptionRecord, PATH_COMPATIBLE, PIPE_COMPATIBLE,
    PathRecord, PipeEnd, PipeMaker, PipeRecord, SIGNALFD_COMPATIBLE, SOCKET_COMPATIBLE,
    SignalfdRecord, SocketFamily, SocketKind, SocketRecord, SocketState, TIMERFD_COMPATIBLE,
    TUN_COMPATIBLE, TimerfdRecord, TunRecord, UNIX_COMPATIBLE, UnixEnd, UnixMaker, UnixMessage,
    UnixRecord, WatchRecord, WatchTarget,
};
pub use session::{SESSION_RECORD, SessionRecord};
pub use tcp::{
    OptionValue, TCP_COMPATIBLE, TCP_KNOWN_FLAGS, TCP_OPTIONS_MAX, TcpRecord,
    option as socket_option,
};
pub use timeline::{
    Reading, TIMELINE_RECORD, TimelineArrival, TimelineName, TimelineRecord, TimelineSpan,
};

/// The `compatible` string of small bytes of a service's own. What is kept of such a file are the
/// bytes themselves.
pub const BYTES_COMPATIBLE: &str = "record-v1";

/// The most bytes of a `record-v1`: 64 KiB.
pub const BYTES_MAX: usize = 64 << 10;

/// The name of the memory file that holds a `record-v1`.
pub const BYTES_NAME: &str = "luo-record";

/// A record of the daemon, of any kind.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Record<'a> {
    /// The machine's.
    Machine(MachineRecord<'a>),
    /// A session's.
    Session(SessionRecord<'a>),
    /// A file's.
    File(FileRecord<'a>),
    /// A live update's times.
    Timeline(TimelineRecord<'a>),
}

impl<'a> Record<'a> {
    /// The versions that are read, of all kinds.
    pub const KNOWN: &'static [&'static str] =
        &[MACHINE_RECORD, SESSION_RECORD, FILE_RECORD, BOUND_FILE_RECORD, TIMELINE_RECORD];

    /// Decodes a record of whatever kind and version it says it is.
    ///
    /// # Errors
    /// [`RecordError`].
    pub fn decode(bytes: &'a [u8]) -> Result<Self, RecordError> {
        match version_of(bytes)? {
            MACHINE_RECORD => MachineRecord::decode(bytes).map(Self::Machine),
            SESSION_RECORD => SessionRecord::decode(bytes).map(Self::Session),
            FILE_RECORD | BOUND_FILE_RECORD => FileRecord::decode(bytes).map(Self::File),
            TIMELINE_RECORD => TimelineRecord::decode(bytes).map(Self::Timeline),
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

/// The name in a field that is filled up with zeros.
fn name(
    field: &[u8],
    check: fn(&[u8]) -> Result<(), NameError>,
    offset: usize,
) -> Result<&str, RecordError> {
    let text = padded(field, offset)?;
    check(text).map_err(|error| RecordErrorKind::Name(error).at(offset))?;
    core::str::from_utf8(text).map_err(|_| RecordErrorKind::Text.at(offset))
}

/// The word that `found` is the number of.
fn word<T>(
    found: u8,
    from_raw: fn(u8) -> Option<T>,
    field: &'static str,
    offset: usize,
) -> Result<T, RecordError> {
    from_raw(found).ok_or(RecordErrorKind::Word { field, found }.at(offset))
}

/// The word that `found` is the number of; zero is none.
fn optional_word<T>(
    found: u8,
    from_raw: fn(u8) -> Option<T>,
    field: &'static str,
    offset: usize,
) -> Result<Option<T>, RecordError> {
    match found {
        0 => Ok(None),
        found => word(found, from_raw, field, offset).map(Some),
    }
}

/// A byte that is 1 for yes and 0 for no.
fn flag(found: u8, field: &'static str, offset: usize) -> Result<bool, RecordError> {
    match found {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(RecordErrorKind::Flag { field }.at(offset)),
    }
}

/// A value that is there only where its bit of `present` is set.
fn optional(
    present: bool,
    value: u64,
    field: &'static str,
    offset: usize,
) -> Result<Option<u64>, RecordError> {
    match (present, value) {
        (false, 0) => Ok(None),
        (false, _) => Err(RecordErrorKind::Absent { field }.at(offset)),
        (true, value) => Ok(Some(value)),
    }
}

/// Refuses a handle that is zero, and more than `max` of them; `count` is where the record says
/// how many there are, `first` where the first of them lies.
fn check_handles(
    handles: &[u64],
    max: usize,
    count: usize,
    first: usize,
) -> Result<(), RecordError> {
    let found = handles.len();
    if found > max {
        return Err(RecordErrorKind::TooMany { found, max }.at(count));
    }
    match handles.iter().position(|&handle| handle == 0) {
        Some(at) => Err(RecordErrorKind::Handle.at(first + 8 * at)),
        None => Ok(()),
    }
}

/// `text` filled up with zeros; what does not fit was refused before.
const fn pad<const N: usize>(text: &[u8]) -> [u8; N] {
    let mut field = [0; N];
    let len = if text.len() < N { text.len() } else { N };
    let (to, _) = field.split_at_mut(len);
    let (from, _) = text.split_at(len);
    to.copy_from_slice(from);
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

/// What a record of `size` bytes begins with.
fn header(version: &[u8; raw::VERSION_SIZE], size: usize) -> raw::Header {
    raw::Header { version: *version, length: (size as u32).into(), reserved: [0; 4] }
}

/// Appends handles.
fn put_handles(out: &mut Vec<u8>, handles: &[u64]) {
    for handle in handles {
        out.extend_from_slice(&handle.to_le_bytes());
    }
}

#[cfg(test)]
pub(crate) mod tests;
