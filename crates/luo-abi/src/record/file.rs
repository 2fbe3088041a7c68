//! A file's record.
//!
//! One is written for every file that is preserved, so writing it allocates nothing but its bytes.

use alloc::{borrow::Cow, string::String, vec::Vec};
use core::mem::offset_of;
use zerocopy::{FromBytes, IntoBytes, little_endian::U64};

use super::{
    RecordError, RecordErrorKind as Kind, check_handles, flag, header, name, open, optional,
    optional_word, pad, put_handles, raw, word,
};
use crate::{Arrival, Criticality, Level, Side, State, check_compatible};

/// The version of the record of a file that is bound to no other.
pub const FILE_RECORD: &str = "file-record-v1";
/// The version of the record of a file that is bound to others.
pub const BOUND_FILE_RECORD: &str = "file-record-v2";

const VERSION: [u8; raw::VERSION_SIZE] = pad(FILE_RECORD.as_bytes());
const BOUND_VERSION: [u8; raw::VERSION_SIZE] = pad(BOUND_FILE_RECORD.as_bytes());

/// The bit of `present`.
const DATA: u8 = 1;

/// Linux's error numbers end here.
const ERRNO_MAX: u32 = 4095;

/// A failure to retrieve a file: whoever asks for the file again gets it again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RememberedFailure<'a> {
    /// Linux's error number, 1 to 4095.
    pub errno: u32,
    /// The reason in words, at most [`REASON_MAX`](Self::REASON_MAX) bytes.
    pub reason: Cow<'a, str>,
    /// Whether the file's owner has been told.
    pub told: bool,
}

impl<'a> RememberedFailure<'a> {
    /// The longest reason, in bytes.
    pub const REASON_MAX: usize = 1024;

    /// Remembers a failure; a reason that is too long ends early, between two characters, with
    /// `…`.
    #[must_use]
    pub fn new(errno: u32, reason: &'a str, told: bool) -> Self {
        if reason.len() <= Self::REASON_MAX {
            return Self { errno, reason: reason.into(), told };
        }
        let room = Self::REASON_MAX - '…'.len_utf8();
        let end = (0..=room).rev().find(|&end| reason.is_char_boundary(end)).unwrap_or(0);
        let mut short = String::with_capacity(Self::REASON_MAX);
        short.push_str(reason.get(..end).unwrap_or_default());
        short.push('…');
        Self { errno, reason: short.into(), told }
    }
}

/// How far an incoming file is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Incoming<'a> {
    /// Nobody has it yet.
    Waiting,
    /// It was retrieved.
    Retrieved,
    /// It cannot be had.
    Failed(RememberedFailure<'a>),
}

impl Incoming<'_> {
    const fn word(&self) -> Arrival {
        match self {
            Self::Waiting => Arrival::Waiting,
            Self::Retrieved => Arrival::Retrieved,
            Self::Failed(_) => Arrival::Failed,
        }
    }
}

/// A file, as the daemon's keeper holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileRecord<'a> {
    /// The daemon's number of its session.
    pub session: u64,
    /// Which of the session's two sets it is in.
    pub side: Side,
    /// Its token within that set.
    pub token: u64,
    /// Which handler's it is, and of which layout; see [`check_compatible`].
    pub compatible: Cow<'a, str>,
    /// What its failure means.
    pub criticality: Criticality,
    /// Where it is in the cycle.
    pub state: State,
    /// Whose event brought it to its state.
    pub level: Level,
    /// What the handler returned last; `None` where nothing was kept, or nobody can tell.
    pub data: Option<u64>,
    /// What was kept for it: at most [`HANDLES_MAX`](Self::HANDLES_MAX) handles, none of them
    /// zero.
    pub handles: Cow<'a, [u64]>,
    /// How far it is, of an incoming file.
    pub incoming: Option<Incoming<'a>>,
    /// Whether its owner has taken it.
    pub reclaimed: bool,
    /// Bytes that stay in use because of it.
    pub pinned: u64,
    /// The request that registered it; zero if none did.
    pub request: u64,
    /// Which of that request's files it is, from zero.
    pub index: u32,
    /// The tokens of the files that it needs. These and the next are at most
    /// [`BONDS_MAX`](Self::BONDS_MAX).
    pub needs: Cow<'a, [u64]>,
    /// The tokens of the files that it is kept with, or not at all.
    pub with: Cow<'a, [u64]>,
}

impl<'a> FileRecord<'a> {
    /// How many handles a record can hold.
    pub const HANDLES_MAX: usize = 1024;

    /// How many tokens a record can hold, of both kinds together.
    pub const BONDS_MAX: usize = 4096;

    /// The size of the largest record, in bytes.
    pub const MAX_SIZE: usize = size_of::<raw::File>()
        + 8 * (Self::HANDLES_MAX + Self::BONDS_MAX)
        + RememberedFailure::REASON_MAX;

    fn failure(&self) -> Option<&RememberedFailure<'a>> {
        match &self.incoming {
            Some(Incoming::Failed(failure)) => Some(failure),
            _ => None,
        }
    }

    fn size(&self) -> usize {
        let reason = self.failure().map_or(0, |failure| failure.reason.len());
        let words = self.handles.len() + self.needs.len() + self.with.len();
        size_of::<raw::File>() + 8 * words + reason
    }

    /// Checks all but the `compatible` string.
    fn check(&self) -> Result<(), RecordError> {
        if let Some(failure) = self.failure() {
            if !(1..=ERRNO_MAX).contains(&failure.errno) {
                return Err(Kind::Failure.at(offset_of!(raw::File, errno)));
            }
            let (found, max) = (failure.reason.len(), RememberedFailure::REASON_MAX);
            if found > max {
                let offset = offset_of!(raw::File, reason_length);
                return Err(Kind::TooLong { found, max }.at(offset));
            }
        }
        let (found, max) = (self.needs.len().saturating_add(self.with.len()), Self::BONDS_MAX);
        if found > max {
            return Err(Kind::TooMany { found, max }.at(offset_of!(raw::File, needs)));
        }
        let (count, first) = (offset_of!(raw::File, handles), size_of::<raw::File>());
        check_handles(&self.handles, Self::HANDLES_MAX, count, first)
    }

    /// The record's bytes.
    ///
    /// # Errors
    /// [`Kind::Name`], [`Kind::Failure`], [`Kind::TooLong`], [`Kind::TooMany`], [`Kind::Handle`].
    pub fn encode(&self) -> Result<Vec<u8>, RecordError> {
        let mut out = Vec::with_capacity(self.size());
        self.encode_into(&mut out)?;
        Ok(out)
    }

    /// Appends the record's bytes, or nothing where it is refused.
    ///
    /// # Errors
    /// Those of [`encode`](Self::encode).
    pub fn encode_into(&self, out: &mut Vec<u8>) -> Result<(), RecordError> {
        check_compatible(self.compatible.as_bytes())
            .map_err(|error| Kind::Name(error).at(offset_of!(raw::File, compatible)))?;
        self.check()?;
        let failure = self.failure();
        let reason = failure.map_or("", |failure| &failure.reason);
        let size = self.size();
        let bound = !(self.needs.is_empty() && self.with.is_empty());
        let raw = raw::File {
            header: header(if bound { &BOUND_VERSION } else { &VERSION }, size),
            session: self.session.into(),
            token: self.token.into(),
            compatible: pad(self.compatible.as_bytes()),
            data: self.data.unwrap_or(0).into(),
            pinned: self.pinned.into(),
            request: self.request.into(),
            index: self.index.into(),
            errno: failure.map_or(0, |failure| failure.errno).into(),
            reason_length: (reason.len() as u16).into(),
            handles: (self.handles.len() as u16).into(),
            side: self.side.raw(),
            criticality: self.criticality.raw(),
            state: self.state.raw(),
            level: self.level.raw(),
            incoming: self.incoming.as_ref().map_or(0, |incoming| incoming.word().raw()),
            told: failure.map_or(0, |failure| u8::from(failure.told)),
            reclaimed: u8::from(self.reclaimed),
            present: if self.data.is_some() { DATA } else { 0 },
            needs: (self.needs.len() as u16).into(),
            with: (self.with.len() as u16).into(),
        };
        out.reserve(size);
        out.extend_from_slice(raw.as_bytes());
        put_handles(out, &self.handles);
        put_handles(out, &self.needs);
        put_handles(out, &self.with);
        out.extend_from_slice(reason.as_bytes());
        Ok(())
    }

    /// Decodes a record of any version that was ever written.
    ///
    /// # Errors
    /// [`RecordError`] with the first thing that is wrong.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, RecordError> {
        let (raw, rest): (&raw::File, _) = open(bytes, &[FILE_RECORD, BOUND_FILE_RECORD])?;
        let reason_len = usize::from(raw.reason_length.get());
        let counts = [raw.handles, raw.needs, raw.with].map(|count| usize::from(count.get()));
        let bound = counts[1] + counts[2] > 0;
        if bound != (raw.header.version == BOUND_VERSION) {
            // What the first version reserves, and what the second one is for.
            return Err(Kind::Reserved.at(offset_of!(raw::File, needs)));
        }
        let fixed = size_of::<raw::File>();
        let reason_at = fixed + 8 * counts.iter().sum::<usize>();
        let size = reason_at + reason_len;
        if size != bytes.len() {
            let kind = Kind::Length { claimed: size as u32, found: bytes.len() };
            return Err(kind.at(raw::VERSION_SIZE));
        }
        let mut rest = rest;
        let mut words = |count| match <[U64]>::ref_from_prefix_with_elems(rest, count) {
            Ok((words, behind)) => {
                rest = behind;
                Ok(words.iter().map(|word| word.get()).collect::<Vec<_>>())
            }
            Err(_) => Err(Kind::Short.at(bytes.len())),
        };
        let [handles, needs, with] = [words(counts[0])?, words(counts[1])?, words(counts[2])?];
        let reason = rest;
        if raw.present & !DATA != 0 {
            return Err(Kind::Flag { field: "present" }.at(offset_of!(raw::File, present)));
        }
        macro_rules! field {
            ($check:ident, $field:ident $(, $from_raw:expr)?) => {
                $check(
                    raw.$field, $($from_raw,)? stringify!($field), offset_of!(raw::File, $field),
                )?
            };
        }
        let data = raw.present & DATA != 0;
        let at = offset_of!(raw::File, compatible);
        let record = Self {
            session: raw.session.get(),
            side: field!(word, side, Side::from_raw),
            token: raw.token.get(),
            compatible: name(&raw.compatible, check_compatible, at)?.into(),
            criticality: field!(word, criticality, Criticality::from_raw),
            state: field!(word, state, State::from_raw),
            level: field!(word, level, Level::from_raw),
            data: optional(data, raw.data.get(), "data", offset_of!(raw::File, data))?,
            handles: handles.into(),
            incoming: incoming(raw, reason, reason_at)?,
            reclaimed: field!(flag, reclaimed),
            pinned: raw.pinned.get(),
            request: raw.request.get(),
            index: raw.index.get(),
            needs: needs.into(),
            with: with.into(),
        };
        record.check()?;
        Ok(record)
    }
}

/// How far an incoming file is; `at` is where its failure's reason lies.
fn incoming<'a>(
    raw: &raw::File,
    reason: &'a [u8],
    at: usize,
) -> Result<Option<Incoming<'a>>, RecordError> {
    let offset = offset_of!(raw::File, incoming);
    let told = flag(raw.told, "told", offset_of!(raw::File, told))?;
    let word = optional_word(raw.incoming, Arrival::from_raw, "incoming", offset)?;
    if word == Some(Arrival::Failed) {
        let reason = core::str::from_utf8(reason)
            .map_err(|error| Kind::Text.at(at + error.valid_up_to()))?;
        let errno = raw.errno.get();
        let failure = RememberedFailure { errno, reason: reason.into(), told };
        return Ok(Some(Incoming::Failed(failure)));
    }
    for (zero, field, offset) in [
        (raw.errno.get() == 0, "errno", offset_of!(raw::File, errno)),
        (reason.is_empty(), "reason_length", offset_of!(raw::File, reason_length)),
        (!told, "told", offset_of!(raw::File, told)),
    ] {
        if !zero {
            return Err(Kind::Absent { field }.at(offset));
        }
    }
    Ok(match word {
        None => None,
        Some(Arrival::Retrieved) => Some(Incoming::Retrieved),
        Some(Arrival::Waiting | Arrival::Failed) => Some(Incoming::Waiting),
    })
}
