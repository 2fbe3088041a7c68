//! A session's record.

use alloc::{borrow::ToOwned, string::String, vec::Vec};
use core::mem::offset_of;
use zerocopy::FromZeros;

use super::{RecordError, RecordErrorKind as Kind, open, pad, padded, raw, reserved, seal};
use crate::{OnClose, Owner, Phase, check_name};

/// The version of a session's record that is written.
pub const SESSION_RECORD: &str = "session-record-v1";

/// Bits of `present`.
const TTL: u8 = 1;
const EXPIRY: u8 = 2;

/// A session, as the daemon's keeper holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionRecord {
    /// The daemon's number for it.
    pub id: u64,
    /// Its name; see [`check_name`].
    pub name: String,
    /// Whose it is.
    pub owner: Owner,
    /// What happens when the last copy of its socket is closed.
    pub on_close: OnClose,
    /// How long it is kept unclaimed, in seconds; `None` is for ever.
    pub ttl: Option<u64>,
    /// When it ends unless it is claimed, in seconds since 1970.
    pub expiry: Option<u64>,
    /// Where it is in the cycle.
    pub state: Phase,
    /// The next token to be assigned.
    pub next_token: u64,
    /// The last request of its client that was carried out; zero before the first.
    pub last_request: u64,
}

impl SessionRecord {
    /// The size of every record, in bytes.
    pub const MAX_SIZE: usize = size_of::<raw::Session>();

    fn check(&self) -> Result<(), RecordError> {
        check_name(self.name.as_bytes())
            .map_err(|error| Kind::Name(error).at(offset_of!(raw::Session, name)))
    }

    /// The record's bytes.
    ///
    /// # Errors
    /// [`Kind::Name`].
    pub fn encode(&self) -> Result<Vec<u8>, RecordError> {
        self.check()?;
        let mut raw = raw::Session::new_zeroed();
        raw.id.set(self.id);
        raw.name = pad(self.name.as_bytes());
        raw.uid.set(self.owner.uid);
        raw.gid.set(self.owner.gid);
        raw.ttl.set(self.ttl.unwrap_or(0));
        raw.expiry.set(self.expiry.unwrap_or(0));
        raw.next_token.set(self.next_token);
        raw.last_request.set(self.last_request);
        raw.on_close = self.on_close.raw();
        raw.state = self.state.raw();
        raw.present = if self.ttl.is_some() { TTL } else { 0 }
            | if self.expiry.is_some() { EXPIRY } else { 0 };
        Ok(seal(&mut raw, SESSION_RECORD, &[]))
    }

    /// Decodes a record of any version that was ever written.
    ///
    /// # Errors
    /// [`RecordError`] with the first thing that is wrong.
    pub fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        let (raw, rest): (&raw::Session, _) = open(bytes, &[SESSION_RECORD])?;
        if !rest.is_empty() {
            let claimed = Self::MAX_SIZE as u32;
            return Err(Kind::Length { claimed, found: bytes.len() }.at(raw::VERSION_SIZE));
        }
        let name = offset_of!(raw::Session, name);
        let text = padded(&raw.name, name)?;
        check_name(text).map_err(|error| Kind::Name(error).at(name))?;
        let text = core::str::from_utf8(text).map_err(|_| Kind::Text.at(name))?;
        let optional = |bit, value: u64, field, offset| match (raw.present & bit, value) {
            (0, 0) => Ok(None),
            (0, _) => Err(Kind::Absent { field }.at(offset)),
            (_, value) => Ok(Some(value)),
        };
        let ttl = optional(TTL, raw.ttl.get(), "ttl", offset_of!(raw::Session, ttl))?;
        let expiry =
            optional(EXPIRY, raw.expiry.get(), "expiry", offset_of!(raw::Session, expiry))?;
        let on_close = OnClose::from_raw(raw.on_close)
            .ok_or(Kind::Word { field: "on_close", found: raw.on_close })
            .map_err(|kind| kind.at(offset_of!(raw::Session, on_close)))?;
        let state = Phase::from_raw(raw.state)
            .ok_or(Kind::Word { field: "state", found: raw.state })
            .map_err(|kind| kind.at(offset_of!(raw::Session, state)))?;
        if raw.present & !(TTL | EXPIRY) != 0 {
            return Err(Kind::Flag { field: "present" }.at(offset_of!(raw::Session, present)));
        }
        reserved(&raw.reserved, offset_of!(raw::Session, reserved))?;
        Ok(Self {
            id: raw.id.get(),
            name: text.to_owned(),
            owner: Owner { uid: raw.uid.get(), gid: raw.gid.get() },
            on_close,
            ttl,
            expiry,
            state,
            next_token: raw.next_token.get(),
            last_request: raw.last_request.get(),
        })
    }
}
