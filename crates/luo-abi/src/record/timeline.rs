//! How long a live update took, as the two sides of it write it down.
//!
//! The side that departs keeps it, through the carrier, as the data of the subsystem `timeline`; the
//! side that arrives adds what it sees, and holds it in its keeper.
//!
//! Invariants: no part of a handover depends on it; a span's name is one that the record has; times
//! are microseconds, those of a boot count from its start and are compared within it alone.

use alloc::{borrow::Cow, vec::Vec};
use core::mem::offset_of;
use zerocopy::{FromBytes, IntoBytes};

use super::{
    RecordError, RecordErrorKind as Kind, flag, header, name, open, pad, raw, reserved, word,
};
use crate::{TimelinePhase, check_name};

/// The version of a timeline that is written.
pub const TIMELINE_RECORD: &str = "timeline-v1";

const VERSION: [u8; raw::VERSION_SIZE] = pad(TIMELINE_RECORD.as_bytes());

/// The longest name of a carrier, in bytes.
const CARRIER_MAX: usize = 16;

/// Two clocks, read together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Reading {
    /// Microseconds since 1970: goes on over boots, and may be set.
    pub realtime: u64,
    /// Microseconds since the kernel began: is never set, and begins again with each boot.
    pub boottime: u64,
}

/// What the side that arrived adds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TimelineArrival {
    /// The boot's id; zeros where it is not known.
    pub boot: [u8; 16],
    /// When it began to arrive.
    pub began: Reading,
    /// The clocks at the last change: tells whether one was set meanwhile.
    pub last: Reading,
}

/// Whom a span is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TimelineName<'a> {
    /// A session's or participant's name.
    pub name: Cow<'a, str>,
    /// It is a participant.
    pub participant: bool,
}

/// What took how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TimelineSpan {
    /// What was done.
    pub phase: TimelinePhase,
    /// For whom, as the place in the list of names; `None` is the machine.
    pub name: Option<u32>,
    /// When it began, in microseconds since the boot that it was done in.
    pub began: u64,
    /// How long it took, in microseconds.
    pub length: u64,
}

/// A live update's times.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TimelineRecord<'a> {
    /// The live update's number.
    pub number: u64,
    /// The name of the carrier that it went through.
    pub carrier: Cow<'a, str>,
    /// The id of the boot that departed; zeros where it is not known.
    pub boot: [u8; 16],
    /// When `freeze` began.
    pub frozen: Reading,
    /// When this was kept: at the end of `freeze`.
    pub kept: Reading,
    /// What the side that arrived has added.
    pub arrival: Option<TimelineArrival>,
    /// Sessions and participants that there was no room for.
    pub unlisted: u32,
    /// Sessions and participants.
    pub names: Vec<TimelineName<'a>>,
    /// What took how long.
    pub spans: Vec<TimelineSpan>,
}

fn read(reading: &raw::Reading) -> Reading {
    Reading { realtime: reading.realtime.get(), boottime: reading.boottime.get() }
}

fn put(reading: Reading) -> raw::Reading {
    raw::Reading { realtime: reading.realtime.into(), boottime: reading.boottime.into() }
}

impl<'a> TimelineRecord<'a> {
    /// The most names.
    pub const NAMES_MAX: usize = 128;
    /// The most spans.
    pub const SPANS_MAX: usize = 1024;
    /// The size of the largest record, in bytes.
    pub const MAX_SIZE: usize = size_of::<raw::Timeline>()
        + Self::NAMES_MAX * size_of::<raw::TimelineName>()
        + Self::SPANS_MAX * size_of::<raw::TimelineSpan>();

    fn size(names: usize, spans: usize) -> usize {
        size_of::<raw::Timeline>()
            + names * size_of::<raw::TimelineName>()
            + spans * size_of::<raw::TimelineSpan>()
    }

    fn counts(names: usize, spans: usize) -> Result<(), RecordError> {
        for (found, max, at) in [
            (names, Self::NAMES_MAX, offset_of!(raw::Timeline, names)),
            (spans, Self::SPANS_MAX, offset_of!(raw::Timeline, spans)),
        ] {
            if found > max {
                return Err(Kind::TooMany { found, max }.at(at));
            }
        }
        Ok(())
    }

    /// The record's bytes.
    ///
    /// # Errors
    /// [`Kind::Name`], [`Kind::TooLong`], [`Kind::TooMany`]; [`Kind::Handle`] for a span of a name
    /// that is not in the list.
    pub fn encode(&self) -> Result<Vec<u8>, RecordError> {
        Self::counts(self.names.len(), self.spans.len())?;
        let at = offset_of!(raw::Timeline, carrier);
        check_name(self.carrier.as_bytes()).map_err(|error| Kind::Name(error).at(at))?;
        if self.carrier.len() > CARRIER_MAX {
            return Err(Kind::TooLong { found: self.carrier.len(), max: CARRIER_MAX }.at(at));
        }
        let size = Self::size(self.names.len(), self.spans.len());
        let arrival = self.arrival.unwrap_or(TimelineArrival {
            boot: [0; 16],
            began: Reading::default(),
            last: Reading::default(),
        });
        let raw = raw::Timeline {
            header: header(&VERSION, size),
            number: self.number.into(),
            carrier: pad(self.carrier.as_bytes()),
            boot: self.boot,
            frozen: put(self.frozen),
            kept: put(self.kept),
            arrived_boot: arrival.boot,
            arrived: put(arrival.began),
            last: put(arrival.last),
            names: (self.names.len() as u32).into(),
            spans: (self.spans.len() as u32).into(),
            unlisted: self.unlisted.into(),
            has_arrived: u8::from(self.arrival.is_some()),
            reserved: [0; 3],
        };
        let mut out = Vec::with_capacity(size);
        out.extend_from_slice(raw.as_bytes());
        for entry in &self.names {
            check_name(entry.name.as_bytes()).map_err(|error| Kind::Name(error).at(out.len()))?;
            let raw = raw::TimelineName {
                name: pad(entry.name.as_bytes()),
                participant: u8::from(entry.participant),
                reserved: [0; 7],
            };
            out.extend_from_slice(raw.as_bytes());
        }
        for span in &self.spans {
            if span.name.is_some_and(|name| name as usize >= self.names.len()) {
                return Err(Kind::Handle.at(out.len()));
            }
            let raw = raw::TimelineSpan {
                phase: span.phase.raw(),
                reserved: [0; 3],
                name: span.name.map_or(0, |name| name + 1).into(),
                began: span.began.into(),
                length: span.length.into(),
            };
            out.extend_from_slice(raw.as_bytes());
        }
        Ok(out)
    }

    /// Decodes a timeline of any version that was ever written.
    ///
    /// # Errors
    /// [`RecordError`] with the first thing that is wrong.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, RecordError> {
        let (raw, rest): (&raw::Timeline, _) = open(bytes, &[TIMELINE_RECORD])?;
        let (names, spans) = (raw.names.get() as usize, raw.spans.get() as usize);
        Self::counts(names, spans)?;
        let claimed = Self::size(names, spans);
        if claimed != bytes.len() {
            let kind = Kind::Length { claimed: claimed as u32, found: bytes.len() };
            return Err(kind.at(raw::VERSION_SIZE));
        }
        reserved(&raw.reserved, offset_of!(raw::Timeline, reserved))?;
        let at = offset_of!(raw::Timeline, has_arrived);
        let arrival = if flag(raw.has_arrived, "has_arrived", at)? {
            let (began, last) = (read(&raw.arrived), read(&raw.last));
            Some(TimelineArrival { boot: raw.arrived_boot, began, last })
        } else {
            let start = offset_of!(raw::Timeline, arrived_boot);
            let end = offset_of!(raw::Timeline, names);
            if bytes.get(start..end).is_none_or(|bytes| bytes.iter().any(|byte| *byte != 0)) {
                return Err(Kind::Absent { field: "arrived" }.at(start));
            }
            None
        };
        let carrier = name(&raw.carrier, check_name, offset_of!(raw::Timeline, carrier))?.into();
        let short = || Kind::Short.at(bytes.len());
        let (listed, rest) =
            <[raw::TimelineName]>::ref_from_prefix_with_elems(rest, names).map_err(|_| short())?;
        let timed =
            <[raw::TimelineSpan]>::ref_from_bytes_with_elems(rest, spans).map_err(|_| short())?;
        let listed = listed
            .iter()
            .enumerate()
            .map(|(index, entry)| {
                let at = Self::size(index, 0);
                reserved(&entry.reserved, at + offset_of!(raw::TimelineName, reserved))?;
                let participant = offset_of!(raw::TimelineName, participant);
                Ok(TimelineName {
                    name: name(&entry.name, check_name, at)?.into(),
                    participant: flag(entry.participant, "participant", at + participant)?,
                })
            })
            .collect::<Result<_, RecordError>>()?;
        let timed = timed
            .iter()
            .enumerate()
            .map(|(index, span)| {
                let at = Self::size(names, index);
                reserved(&span.reserved, at + offset_of!(raw::TimelineSpan, reserved))?;
                let name = span.name.get().checked_sub(1);
                if name.is_some_and(|name| name as usize >= names) {
                    return Err(Kind::Handle.at(at + offset_of!(raw::TimelineSpan, name)));
                }
                Ok(TimelineSpan {
                    phase: word(span.phase, TimelinePhase::from_raw, "phase", at)?,
                    name,
                    began: span.began.get(),
                    length: span.length.get(),
                })
            })
            .collect::<Result<_, RecordError>>()?;
        Ok(Self {
            number: raw.number.get(),
            carrier,
            boot: raw.boot,
            frozen: read(&raw.frozen),
            kept: read(&raw.kept),
            arrival,
            unlisted: raw.unlisted.get(),
            names: listed,
            spans: timed,
        })
    }

    /// The same, with text of its own.
    #[must_use]
    pub fn into_owned(self) -> TimelineRecord<'static> {
        let own = |text: Cow<'_, str>| Cow::Owned(text.into_owned());
        TimelineRecord {
            number: self.number,
            carrier: own(self.carrier),
            boot: self.boot,
            frozen: self.frozen,
            kept: self.kept,
            arrival: self.arrival,
            unlisted: self.unlisted,
            names: self
                .names
                .into_iter()
                .map(|entry| TimelineName { name: own(entry.name), participant: entry.participant })
                .collect(),
            spans: self.spans,
        }
    }
}
