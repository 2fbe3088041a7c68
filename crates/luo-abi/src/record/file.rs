//! A file's record.

use alloc::{borrow::ToOwned, string::String, vec::Vec};
use core::mem::offset_of;
use zerocopy::{FromBytes, FromZeros, IntoBytes, little_endian::U64};

use super::{RecordError, RecordErrorKind as Kind, open, pad, padded, raw, reserved, seal};
use crate::{Criticality, Direction, Phase, check_compatible};

/// The version of a file's record that is written.
pub const FILE_RECORD: &str = "file-record-v1";

/// Linux's error numbers end here.
const ERRNO_MAX: u32 = 4095;

/// A failure to retrieve a file: whoever asks for the file again gets it again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RememberedFailure {
    /// Linux's error number, 1 to 4095.
    pub errno: u32,
    /// The reason in words, at most [`TEXT_MAX`](Self::TEXT_MAX) bytes.
    pub text: String,
}

impl RememberedFailure {
    /// The longest reason, in bytes.
    pub const TEXT_MAX: usize = 1024;

    /// Remembers a failure; a reason that is too long ends early, between two characters, with
    /// `…`.
    #[must_use]
    pub fn new(errno: u32, text: &str) -> Self {
        if text.len() <= Self::TEXT_MAX {
            return Self { errno, text: text.to_owned() };
        }
        let room = Self::TEXT_MAX - '…'.len_utf8();
        let end = (0..=room).rev().find(|&end| text.is_char_boundary(end)).unwrap_or(0);
        let mut text = text.get(..end).unwrap_or_default().to_owned();
        text.push('…');
        Self { errno, text }
    }
}

/// A file, as the daemon's keeper holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileRecord {
    /// The daemon's number of its session.
    pub session: u64,
    /// Its token within the session.
    pub token: u64,
    /// Which handler's it is, and of which layout; see [`check_compatible`].
    pub compatible: String,
    /// What its failure means.
    pub criticality: Criticality,
    /// Where it is in the cycle.
    pub phase: Phase,
    /// Which way it crosses.
    pub direction: Direction,
    /// Whether its owner has taken it.
    pub reclaimed: bool,
    /// What the handler returned last; zero before.
    pub data: u64,
    /// The request that registered it; zero if none did.
    pub request: u64,
    /// What was kept for it: at most [`HANDLES_MAX`](Self::HANDLES_MAX) handles, none of them
    /// zero.
    pub handles: Vec<u64>,
    /// Why it could not be retrieved.
    pub failure: Option<RememberedFailure>,
}

impl FileRecord {
    /// How many handles a record can hold.
    pub const HANDLES_MAX: usize = 256;

    /// The size of the largest record, in bytes.
    pub const MAX_SIZE: usize =
        size_of::<raw::File>() + 8 * Self::HANDLES_MAX + RememberedFailure::TEXT_MAX;

    fn check(&self) -> Result<(), RecordError> {
        check_compatible(self.compatible.as_bytes())
            .map_err(|error| Kind::Name(error).at(offset_of!(raw::File, compatible)))?;
        if let Some(failure) = &self.failure {
            if !(1..=ERRNO_MAX).contains(&failure.errno) {
                return Err(Kind::Failure.at(offset_of!(raw::File, failure_errno)));
            }
            let (found, max) = (failure.text.len(), RememberedFailure::TEXT_MAX);
            if found > max {
                let offset = offset_of!(raw::File, failure_length);
                return Err(Kind::TooLong { found, max }.at(offset));
            }
        }
        let (found, max) = (self.handles.len(), Self::HANDLES_MAX);
        if found > max {
            return Err(Kind::TooMany { found, max }.at(offset_of!(raw::File, handles)));
        }
        match self.handles.iter().position(|&handle| handle == 0) {
            Some(at) => Err(Kind::Handle.at(size_of::<raw::File>() + 8 * at)),
            None => Ok(()),
        }
    }

    /// The record's bytes.
    ///
    /// # Errors
    /// [`Kind::Name`], [`Kind::Failure`], [`Kind::TooLong`], [`Kind::TooMany`], [`Kind::Handle`].
    pub fn encode(&self) -> Result<Vec<u8>, RecordError> {
        self.check()?;
        let mut raw = raw::File::new_zeroed();
        let text = self.failure.as_ref().map_or("", |failure| &failure.text);
        raw.session.set(self.session);
        raw.token.set(self.token);
        raw.compatible = pad(self.compatible.as_bytes());
        raw.data.set(self.data);
        raw.request.set(self.request);
        raw.failure_errno.set(self.failure.as_ref().map_or(0, |failure| failure.errno));
        raw.failure_length.set(text.len() as u16);
        raw.handles.set(self.handles.len() as u16);
        raw.criticality = self.criticality.raw();
        raw.phase = self.phase.raw();
        raw.direction = self.direction.raw();
        raw.reclaimed = u8::from(self.reclaimed);
        let handles: Vec<U64> = self.handles.iter().copied().map(U64::new).collect();
        Ok(seal(&mut raw, FILE_RECORD, &[handles.as_bytes(), text.as_bytes()]))
    }

    /// Decodes a record of any version that was ever written.
    ///
    /// # Errors
    /// [`RecordError`] with the first thing that is wrong.
    pub fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        let (raw, rest): (&raw::File, _) = open(bytes, &[FILE_RECORD])?;
        let (count, text_len) =
            (usize::from(raw.handles.get()), usize::from(raw.failure_length.get()));
        let fixed = size_of::<raw::File>();
        let size = fixed + 8 * count + text_len;
        if size != bytes.len() {
            let kind = Kind::Length { claimed: size as u32, found: bytes.len() };
            return Err(kind.at(raw::VERSION_SIZE));
        }
        let at = offset_of!(raw::File, compatible);
        let compatible = padded(&raw.compatible, at)?;
        check_compatible(compatible).map_err(|error| Kind::Name(error).at(at))?;
        let compatible = core::str::from_utf8(compatible).map_err(|_| Kind::Text.at(at))?;
        let errno = raw.failure_errno.get();
        if errno == 0 && text_len > 0 {
            return Err(Kind::Failure.at(offset_of!(raw::File, failure_errno)));
        }
        let criticality = Criticality::from_raw(raw.criticality)
            .ok_or(Kind::Word { field: "criticality", found: raw.criticality })
            .map_err(|kind| kind.at(offset_of!(raw::File, criticality)))?;
        let phase = Phase::from_raw(raw.phase)
            .ok_or(Kind::Word { field: "phase", found: raw.phase })
            .map_err(|kind| kind.at(offset_of!(raw::File, phase)))?;
        let direction = Direction::from_raw(raw.direction)
            .ok_or(Kind::Word { field: "direction", found: raw.direction })
            .map_err(|kind| kind.at(offset_of!(raw::File, direction)))?;
        let reclaimed = match raw.reclaimed {
            0 => false,
            1 => true,
            _ => {
                let offset = offset_of!(raw::File, reclaimed);
                return Err(Kind::Flag { field: "reclaimed" }.at(offset));
            }
        };
        reserved(&raw.reserved, offset_of!(raw::File, reserved))?;
        let Ok((handles, text)) = <[U64]>::ref_from_prefix_with_elems(rest, count) else {
            return Err(Kind::Short.at(bytes.len()));
        };
        let text = core::str::from_utf8(text)
            .map_err(|error| Kind::Text.at(fixed + 8 * count + error.valid_up_to()))?;
        let record = Self {
            session: raw.session.get(),
            token: raw.token.get(),
            compatible: compatible.to_owned(),
            criticality,
            phase,
            direction,
            reclaimed,
            data: raw.data.get(),
            request: raw.request.get(),
            handles: handles.iter().map(|handle| handle.get()).collect(),
            failure: (errno != 0).then(|| RememberedFailure { errno, text: text.to_owned() }),
        };
        record.check()?;
        Ok(record)
    }
}
