//! The record of unix sockets that are connected to one another.

use alloc::vec::Vec;
use core::mem::offset_of;
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use super::{Kind, OptionRecord, RecordError, SocketKind, list, options};
use crate::record::{flag, raw, reserved};

/// One end of a unix connection, as its handler keeps it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UnixRecord {
    /// The one that makes the connection.
    Maker(UnixMaker),
    /// The other end, which is made along with it.
    Along {
        /// The token of the maker.
        maker: u64,
    },
}

/// A connection, with everything that is in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnixMaker {
    /// How it takes data.
    pub kind: SocketKind,
    /// Who made it, as its ends tell (`SO_PEERCRED`).
    pub uid: u32,
    /// And in which group.
    pub gid: u32,
    /// The maker's own end.
    pub own: UnixEnd,
    /// The other end and its token; `None` where that was closed.
    pub other: Option<(u64, UnixEnd)>,
}

/// One end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnixEnd {
    /// It is open with `O_NONBLOCK`.
    pub nonblocking: bool,
    /// It reads no more, once what there is has been read.
    pub reads_no_more: bool,
    /// It writes no more.
    pub writes_no_more: bool,
    /// Its options, each once.
    pub options: Vec<OptionRecord>,
    /// What it has not read yet. Of a stream, a new one begins where descriptors begin or end.
    pub messages: Vec<UnixMessage>,
}

/// A message in a queue.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct UnixMessage {
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// The tokens of the descriptors that come with it.
    pub files: Vec<u64>,
}

const MAKER: u8 = 1;
const ALONG: u8 = 2;
const READS_NO_MORE: u8 = 1;
const WRITES_NO_MORE: u8 = 2;

impl UnixEnd {
    /// Checks it where it lies; gives where it ends.
    fn check(&self, at: usize) -> Result<usize, RecordError> {
        let (found, max) = (self.messages.len(), UnixRecord::MESSAGES_MAX);
        if found > max {
            let kind = Kind::TooMany { found, max };
            return Err(kind.at(at + offset_of!(raw::UnixEnd, messages)));
        }
        let mut at = options::check(
            &self.options,
            at + offset_of!(raw::UnixEnd, options),
            at + size_of::<raw::UnixEnd>(),
        )?;
        for message in &self.messages {
            let (found, max) = (message.files.len(), UnixRecord::FILES_MAX);
            if found > max {
                return Err(Kind::TooMany { found, max }.at(at));
            }
            at += size_of::<raw::UnixMessage>() + 8 * found + message.bytes.len();
        }
        Ok(at)
    }

    fn write(&self, bytes: &mut Vec<u8>) {
        let mut raw = raw::UnixEnd::new_zeroed();
        raw.messages.set(self.messages.len() as u32);
        raw.options.set(self.options.len() as u16);
        raw.nonblocking = u8::from(self.nonblocking);
        raw.shut = match (self.reads_no_more, self.writes_no_more) {
            (false, false) => 0,
            (true, false) => READS_NO_MORE,
            (false, true) => WRITES_NO_MORE,
            (true, true) => READS_NO_MORE | WRITES_NO_MORE,
        };
        bytes.extend_from_slice(raw.as_bytes());
        options::write(&self.options, bytes);
        for message in &self.messages {
            let mut raw = raw::UnixMessage::new_zeroed();
            raw.length.set(message.bytes.len() as u32);
            raw.files.set(message.files.len() as u16);
            bytes.extend_from_slice(raw.as_bytes());
            for token in &message.files {
                bytes.extend_from_slice(&token.to_le_bytes());
            }
            bytes.extend_from_slice(&message.bytes);
        }
    }

    /// Reads the one at the beginning of `rest`; gives what is behind it.
    fn read<'a>(bytes: &[u8], rest: &'a [u8]) -> Result<(Self, &'a [u8]), RecordError> {
        let short = || Kind::Short.at(bytes.len());
        let at = bytes.len() - rest.len();
        let (raw, rest) = raw::UnixEnd::ref_from_prefix(rest).map_err(|_| short())?;
        if raw.shut & !(READS_NO_MORE | WRITES_NO_MORE) != 0 {
            return Err(Kind::Flag { field: "shut" }.at(at + offset_of!(raw::UnixEnd, shut)));
        }
        let (options, mut rest) = options::read(raw.options.get(), rest).ok_or_else(short)?;
        let mut messages = Vec::new();
        for _ in 0..raw.messages.get() {
            let at = bytes.len() - rest.len();
            let (message, behind) = raw::UnixMessage::ref_from_prefix(rest).map_err(|_| short())?;
            reserved(&message.reserved, at + offset_of!(raw::UnixMessage, reserved))?;
            let (files, behind) = list::<[u8; 8]>(bytes, behind, message.files.get().into())?;
            let len = message.length.get() as usize;
            let (content, behind) = behind.split_at_checked(len).ok_or_else(short)?;
            let files = files.iter().map(|token| u64::from_le_bytes(*token)).collect();
            messages.push(UnixMessage { bytes: content.to_vec(), files });
            rest = behind;
        }
        let nonblocking = at + offset_of!(raw::UnixEnd, nonblocking);
        let end = Self {
            nonblocking: flag(raw.nonblocking, "nonblocking", nonblocking)?,
            reads_no_more: raw.shut & READS_NO_MORE != 0,
            writes_no_more: raw.shut & WRITES_NO_MORE != 0,
            options,
            messages,
        };
        Ok((end, rest))
    }
}

impl UnixMaker {
    fn check(&self) -> Result<(), RecordError> {
        let at = self.own.check(size_of::<raw::Unix>())?;
        match &self.other {
            Some((_, other)) => other.check(at).map(|_| ()),
            None => Ok(()),
        }
    }
}

impl UnixRecord {
    /// The most messages in one queue.
    pub const MESSAGES_MAX: usize = 1 << 20;
    /// The most descriptors that come with one message: Linux's limit.
    pub const FILES_MAX: usize = 253;

    /// The record's bytes.
    ///
    /// # Errors
    /// [`Kind::TooMany`], [`Kind::TooLong`], [`Kind::Duplicate`].
    pub fn encode(&self) -> Result<Vec<u8>, RecordError> {
        let mut raw = raw::Unix::new_zeroed();
        let maker = match self {
            Self::Along { maker } => {
                raw.role = ALONG;
                raw.maker.set(*maker);
                return Ok(raw.as_bytes().to_vec());
            }
            Self::Maker(maker) => maker,
        };
        maker.check()?;
        raw.role = MAKER;
        raw.kind = maker.kind as u8;
        raw.uid.set(maker.uid);
        raw.gid.set(maker.gid);
        if let Some((token, _)) = &maker.other {
            raw.paired = 1;
            raw.other.set(*token);
        }
        let mut bytes = raw.as_bytes().to_vec();
        maker.own.write(&mut bytes);
        if let Some((_, other)) = &maker.other {
            other.write(&mut bytes);
        }
        Ok(bytes)
    }

    /// Decodes a record of this version.
    ///
    /// # Errors
    /// [`RecordError`] with the first thing that is wrong.
    pub fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        let (raw, rest) =
            raw::Unix::ref_from_prefix(bytes).map_err(|_| Kind::Short.at(bytes.len()))?;
        reserved(&[raw.reserved], offset_of!(raw::Unix, reserved))?;
        match raw.role {
            ALONG => {
                let whole = Self::Along { maker: raw.maker.get() };
                // Nothing else has a meaning then.
                let same = whole.encode().is_ok_and(|again| again == bytes);
                return if same { Ok(whole) } else { Err(Kind::Reserved.at(8)) };
            }
            MAKER => {}
            found => {
                return Err(Kind::Word { field: "role", found }.at(offset_of!(raw::Unix, role)));
            }
        }
        if raw.maker.get() != 0 {
            return Err(Kind::Absent { field: "maker" }.at(offset_of!(raw::Unix, maker)));
        }
        let kind = Kind::Word { field: "kind", found: raw.kind }.at(offset_of!(raw::Unix, kind));
        let kind = SocketKind::from_raw(raw.kind).ok_or(kind)?;
        let paired = flag(raw.paired, "paired", offset_of!(raw::Unix, paired))?;
        if !paired && raw.other.get() != 0 {
            return Err(Kind::Absent { field: "other" }.at(offset_of!(raw::Unix, other)));
        }
        let (own, mut rest) = UnixEnd::read(bytes, rest)?;
        let mut other = None;
        if paired {
            let (end, behind) = UnixEnd::read(bytes, rest)?;
            other = Some((raw.other.get(), end));
            rest = behind;
        }
        if !rest.is_empty() {
            let claimed = bytes.len() - rest.len();
            let kind = Kind::Length { claimed: claimed as u32, found: bytes.len() };
            return Err(kind.at(claimed));
        }
        let maker = UnixMaker { kind, uid: raw.uid.get(), gid: raw.gid.get(), own, other };
        maker.check()?;
        Ok(Self::Maker(maker))
    }
}
