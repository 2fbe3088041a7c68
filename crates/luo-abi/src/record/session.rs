//! A session's record.

use alloc::{borrow::Cow, vec::Vec};
use core::mem::offset_of;
use zerocopy::IntoBytes;

use super::{
    RecordError, RecordErrorKind as Kind, flag, header, name, open, optional, optional_word, pad,
    raw, reserved, word,
};
use crate::{Event, Level, OnClose, Owner, State, check_name};

/// The version of a session's record that is written.
pub const SESSION_RECORD: &str = "session-record-v1";

const VERSION: [u8; raw::VERSION_SIZE] = pad(SESSION_RECORD.as_bytes());

/// Bits of `present`.
const TTL: u8 = 1;
const EXPIRES: u8 = 2;

/// A session, as the daemon's keeper holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionRecord<'a> {
    /// The daemon's number for it.
    pub id: u64,
    /// Its name; see [`check_name`].
    pub name: Cow<'a, str>,
    /// Whose it is.
    pub owner: Owner,
    /// What happens when the last copy of its socket is closed.
    pub on_close: OnClose,
    /// How long it is kept unclaimed, in seconds; `None` is for ever. Only with
    /// [`OnClose::Keep`].
    pub ttl: Option<u64>,
    /// Where it is in the cycle.
    pub state: State,
    /// The event of its own that was going on.
    pub transition: Option<Event>,
    /// Whose event brought it to its state.
    pub level: Level,
    /// The next token to be assigned.
    pub next_token: u64,
    /// Its owner has gone and nobody has claimed it yet.
    pub unclaimed: bool,
    /// When it ends unless it is claimed, in seconds of the daemon's clock.
    pub expires: Option<u64>,
    /// The request that created it; zero if none did.
    pub created_by: u64,
    /// The request that finished it; zero if none did.
    pub finished_by: u64,
}

impl<'a> SessionRecord<'a> {
    /// The size of every record, in bytes.
    pub const MAX_SIZE: usize = size_of::<raw::Session>();

    fn check(&self) -> Result<(), RecordError> {
        check_name(self.name.as_bytes())
            .map_err(|error| Kind::Name(error).at(offset_of!(raw::Session, name)))?;
        if self.on_close == OnClose::Release && self.ttl.is_some() {
            return Err(Kind::Flag { field: "present" }.at(offset_of!(raw::Session, present)));
        }
        Ok(())
    }

    /// The record's bytes.
    ///
    /// # Errors
    /// [`Kind::Name`]; [`Kind::Flag`] for a `ttl` of a session that is not kept.
    pub fn encode(&self) -> Result<Vec<u8>, RecordError> {
        let mut out = Vec::with_capacity(Self::MAX_SIZE);
        self.encode_into(&mut out)?;
        Ok(out)
    }

    /// Appends the record's bytes, or nothing where it is refused.
    ///
    /// # Errors
    /// Those of [`encode`](Self::encode).
    pub fn encode_into(&self, out: &mut Vec<u8>) -> Result<(), RecordError> {
        self.check()?;
        let present = if self.ttl.is_some() { TTL } else { 0 }
            | if self.expires.is_some() { EXPIRES } else { 0 };
        let raw = raw::Session {
            header: header(&VERSION, Self::MAX_SIZE),
            id: self.id.into(),
            name: pad(self.name.as_bytes()),
            uid: self.owner.uid.into(),
            gid: self.owner.gid.into(),
            ttl: self.ttl.unwrap_or(0).into(),
            expires: self.expires.unwrap_or(0).into(),
            next_token: self.next_token.into(),
            created_by: self.created_by.into(),
            finished_by: self.finished_by.into(),
            on_close: self.on_close.raw(),
            state: self.state.raw(),
            transition: self.transition.map_or(0, Event::raw),
            level: self.level.raw(),
            unclaimed: u8::from(self.unclaimed),
            present,
            reserved: [0; 2],
        };
        out.extend_from_slice(raw.as_bytes());
        Ok(())
    }

    /// Decodes a record of any version that was ever written.
    ///
    /// # Errors
    /// [`RecordError`] with the first thing that is wrong.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, RecordError> {
        let (raw, rest): (&raw::Session, _) = open(bytes, &[SESSION_RECORD])?;
        if !rest.is_empty() {
            let claimed = Self::MAX_SIZE as u32;
            return Err(Kind::Length { claimed, found: bytes.len() }.at(raw::VERSION_SIZE));
        }
        let ttl = raw.present & TTL != 0;
        let expires = raw.present & EXPIRES != 0;
        if raw.present & !(TTL | EXPIRES) != 0 {
            return Err(Kind::Flag { field: "present" }.at(offset_of!(raw::Session, present)));
        }
        reserved(&raw.reserved, offset_of!(raw::Session, reserved))?;
        macro_rules! field {
            ($check:ident, $field:ident $(, $from_raw:expr)?) => {
                $check(
                    raw.$field, $($from_raw,)? stringify!($field), offset_of!(raw::Session, $field),
                )?
            };
        }
        let record = Self {
            id: raw.id.get(),
            name: name(&raw.name, check_name, offset_of!(raw::Session, name))?.into(),
            owner: Owner { uid: raw.uid.get(), gid: raw.gid.get() },
            on_close: field!(word, on_close, OnClose::from_raw),
            ttl: optional(ttl, raw.ttl.get(), "ttl", offset_of!(raw::Session, ttl))?,
            state: field!(word, state, State::from_raw),
            transition: field!(optional_word, transition, Event::from_raw),
            level: field!(word, level, Level::from_raw),
            next_token: raw.next_token.get(),
            unclaimed: field!(flag, unclaimed),
            expires: optional(
                expires,
                raw.expires.get(),
                "expires",
                offset_of!(raw::Session, expires),
            )?,
            created_by: raw.created_by.get(),
            finished_by: raw.finished_by.get(),
        };
        record.check()?;
        Ok(record)
    }
}
