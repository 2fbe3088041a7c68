//! The record of pipes.

use alloc::vec::Vec;
use core::mem::offset_of;
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use super::{Kind, OpenFlags, RecordError, list};
use crate::record::{flag, raw, reserved};

/// An open file description of a pipe, as its handler keeps it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PipeRecord {
    /// The one that makes the pipe.
    Maker(PipeMaker),
    /// One that is made along with another one.
    Along {
        /// The token of the maker.
        maker: u64,
    },
}

/// A pipe, with everything that is in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PipeMaker {
    /// Its capacity in bytes.
    pub capacity: u32,
    /// How the maker itself is open.
    pub open: OpenFlags,
    /// The others of the pipe.
    pub ends: Vec<PipeEnd>,
    /// Each chunk is a packet (`O_DIRECT`): else there is at most one.
    pub packets: bool,
    /// The bytes that were not read, none of the chunks empty.
    pub chunks: Vec<Vec<u8>>,
}

/// Another open file description of the same pipe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PipeEnd {
    /// Its token.
    pub token: u64,
    /// How it is open.
    pub open: OpenFlags,
}

const MAKER: u8 = 1;
const ALONG: u8 = 2;

impl PipeMaker {
    fn check(&self) -> Result<(), RecordError> {
        if self.ends.len() > PipeRecord::ENDS_MAX {
            let kind = Kind::TooMany { found: self.ends.len(), max: PipeRecord::ENDS_MAX };
            return Err(kind.at(offset_of!(raw::Pipe, ends)));
        }
        self.open.check(offset_of!(raw::Pipe, open))?;
        let mut at = size_of::<raw::Pipe>();
        for end in &self.ends {
            end.open.check(at + offset_of!(raw::PipeEnd, open))?;
            at += size_of::<raw::PipeEnd>();
        }
        let max = if self.packets { PipeRecord::CHUNKS_MAX } else { 1 };
        let found = self.chunks.len();
        if found > max {
            return Err(Kind::TooMany { found, max }.at(offset_of!(raw::Pipe, chunks)));
        }
        match self.chunks.iter().position(Vec::is_empty) {
            Some(empty) => Err(Kind::Range { field: "length" }.at(at + 4 * empty)),
            None => Ok(()),
        }
    }
}

impl PipeRecord {
    /// The most others of one pipe.
    pub const ENDS_MAX: usize = 4096;
    /// The most packets in one pipe: as many as Linux lets root have.
    pub const CHUNKS_MAX: usize = 1 << 20;

    /// The record's bytes.
    ///
    /// # Errors
    /// [`Kind::TooMany`], [`Kind::Flag`], [`Kind::Range`].
    pub fn encode(&self) -> Result<Vec<u8>, RecordError> {
        let mut raw = raw::Pipe::new_zeroed();
        let maker = match self {
            Self::Along { maker } => {
                raw.kind = ALONG;
                raw.maker.set(*maker);
                return Ok(raw.as_bytes().to_vec());
            }
            Self::Maker(maker) => maker,
        };
        maker.check()?;
        raw.kind = MAKER;
        raw.capacity.set(maker.capacity);
        raw.open.set(maker.open.0);
        raw.ends.set(maker.ends.len() as u16);
        raw.packets = u8::from(maker.packets);
        raw.chunks.set(maker.chunks.len() as u32);
        let mut bytes = raw.as_bytes().to_vec();
        for end in &maker.ends {
            let mut raw = raw::PipeEnd::new_zeroed();
            raw.token.set(end.token);
            raw.open.set(end.open.0);
            bytes.extend_from_slice(raw.as_bytes());
        }
        for chunk in &maker.chunks {
            bytes.extend_from_slice(&(chunk.len() as u32).to_le_bytes());
        }
        maker.chunks.iter().for_each(|chunk| bytes.extend_from_slice(chunk));
        Ok(bytes)
    }

    /// Decodes a record of this version.
    ///
    /// # Errors
    /// [`RecordError`] with the first thing that is wrong.
    pub fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        let (raw, rest) =
            raw::Pipe::ref_from_prefix(bytes).map_err(|_| Kind::Short.at(bytes.len()))?;
        match raw.kind {
            ALONG => {
                let maker = raw.maker.get();
                let whole = Self::Along { maker };
                // Nothing else has a meaning then.
                let same = whole.encode().is_ok_and(|again| again == bytes);
                return if same { Ok(whole) } else { Err(Kind::Reserved.at(8)) };
            }
            MAKER => {}
            found => {
                return Err(Kind::Word { field: "kind", found }.at(offset_of!(raw::Pipe, kind)));
            }
        }
        if raw.maker.get() != 0 {
            return Err(Kind::Absent { field: "maker" }.at(offset_of!(raw::Pipe, maker)));
        }
        let (ends, rest) = list::<raw::PipeEnd>(bytes, rest, raw.ends.get().into())?;
        let mut at = size_of::<raw::Pipe>();
        for end in ends {
            reserved(&end.reserved, at + offset_of!(raw::PipeEnd, reserved))?;
            at += size_of::<raw::PipeEnd>();
        }
        let count = raw.chunks.get() as usize;
        if count > Self::CHUNKS_MAX {
            let kind = Kind::TooMany { found: count, max: Self::CHUNKS_MAX };
            return Err(kind.at(offset_of!(raw::Pipe, chunks)));
        }
        let (lengths, mut content) = list::<[u8; 4]>(bytes, rest, count)?;
        let mut chunks = Vec::with_capacity(count);
        for length in lengths {
            let len = u32::from_le_bytes(*length) as usize;
            let Some((chunk, rest)) = content.split_at_checked(len) else {
                return Err(Kind::Short.at(bytes.len()));
            };
            chunks.push(chunk.to_vec());
            content = rest;
        }
        if !content.is_empty() {
            let claimed = (bytes.len() - content.len()) as u32;
            return Err(Kind::Length { claimed, found: bytes.len() }.at(claimed as usize));
        }
        let maker = PipeMaker {
            capacity: raw.capacity.get(),
            open: OpenFlags(raw.open.get()),
            ends: ends
                .iter()
                .map(|end| PipeEnd { token: end.token.get(), open: OpenFlags(end.open.get()) })
                .collect(),
            packets: flag(raw.packets, "packets", offset_of!(raw::Pipe, packets))?,
            chunks,
        };
        maker.check()?;
        Ok(Self::Maker(maker))
    }
}
