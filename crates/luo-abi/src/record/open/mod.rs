//! The records of handlers of files that are made anew from a description: events, pipes, paths,
//! sockets.
//!
//! Invariants: as of all [records](super): what one field says is checked against the others where
//! they are read, so that whoever has a record has one that makes sense.

mod events;

pub use events::{EventfdRecord, SignalfdRecord, TimerfdRecord};

use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use super::{RecordError, RecordErrorKind as Kind};

/// The `compatible` string of event counters.
pub const EVENTFD_COMPATIBLE: &str = "eventfd-v1";
/// The `compatible` string of timers.
pub const TIMERFD_COMPATIBLE: &str = "timerfd-v1";
/// The `compatible` string of descriptors that signals are read from.
pub const SIGNALFD_COMPATIBLE: &str = "signalfd-v1";

/// A record that is nothing but this.
fn sole<T>(bytes: &[u8]) -> Result<&T, RecordError>
where
    T: FromBytes + KnownLayout + Immutable + Unaligned,
{
    let (raw, rest) = T::ref_from_prefix(bytes).map_err(|_| Kind::Short.at(bytes.len()))?;
    if rest.is_empty() {
        return Ok(raw);
    }
    let claimed = size_of::<T>();
    Err(Kind::Length { claimed: claimed as u32, found: bytes.len() }.at(claimed))
}

/// Refuses bits that are not among the known ones.
fn known(found: u32, known: u32, field: &'static str, offset: usize) -> Result<(), RecordError> {
    if found & !known == 0 { Ok(()) } else { Err(Kind::Flag { field }.at(offset)) }
}
