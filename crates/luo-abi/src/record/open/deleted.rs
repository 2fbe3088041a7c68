//! The record of regular files that have no name any more.

use alloc::vec::Vec;
use core::mem::offset_of;
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use super::{Kind, LockRecord, OpenFlags, RecordError, list, locks};
use crate::record::{raw, reserved};

/// An open file description of a deleted file, as its handler keeps it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeletedRecord {
    /// The one that makes the file.
    Maker(DeletedMaker),
    /// One that is made along with another one.
    Along {
        /// The token of the maker.
        maker: u64,
    },
}

/// A deleted file, and how it is open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeletedMaker {
    /// Its size in bytes.
    pub size: u64,
    /// The handle of its content; zero only where it is nothing but a hole.
    pub memory: u64,
    /// The id of the file system; zero where it has none.
    pub filesystem: u64,
    /// The number of its device.
    pub device: u64,
    /// When its content was last changed, in nanoseconds since 1970.
    pub modified: u64,
    /// Its owner.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// Its permissions.
    pub mode: u32,
    /// Its open file descriptions, at least one: the maker's first, the others with their tokens.
    pub ends: Vec<DeletedEnd>,
    /// Where it has data, in order: start and length. Everything else is a hole.
    pub extents: Vec<(u64, u64)>,
    /// The directory that it was in: an absolute path.
    pub directory: Vec<u8>,
}

/// An open file description of a deleted file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeletedEnd {
    /// Its token; of the maker, zero.
    pub token: u64,
    /// Its position.
    pub position: u64,
    /// How it is open.
    pub open: OpenFlags,
    /// Its locks.
    pub locks: Vec<LockRecord>,
}

const MAKER: u8 = 1;
const ALONG: u8 = 2;

impl DeletedMaker {
    /// How many bytes of it are data.
    #[must_use]
    pub fn content(&self) -> u64 {
        self.extents.iter().fold(0, |sum, (_, len)| sum.saturating_add(*len))
    }

    fn check(&self) -> Result<(), RecordError> {
        let many = |found, max, at| Err(Kind::TooMany { found, max }.at(at));
        let (found, max) = (self.ends.len(), DeletedRecord::ENDS_MAX);
        if found > max || found == 0 {
            return many(found, max, offset_of!(raw::Deleted, ends));
        }
        let mut at = size_of::<raw::Deleted>();
        for (nth, end) in self.ends.iter().enumerate() {
            end.open.check(at + offset_of!(raw::DeletedEnd, open))?;
            if nth == 0 && end.token != 0 {
                return Err(Kind::Absent { field: "token" }.at(at));
            }
            at = locks::check(
                &end.locks,
                at + offset_of!(raw::DeletedEnd, locks),
                at + size_of::<raw::DeletedEnd>(),
            )?;
        }
        let (found, max) = (self.extents.len(), DeletedRecord::EXTENTS_MAX);
        if found > max {
            return many(found, max, offset_of!(raw::Deleted, extents));
        }
        let mut behind = 0;
        for (start, len) in &self.extents {
            let end = start.checked_add(*len).filter(|end| *end <= self.size);
            match end {
                Some(end) if *start >= behind && *len > 0 => behind = end,
                _ => return Err(Kind::Range { field: "start" }.at(at)),
            }
            at += size_of::<raw::Extent>();
        }
        if self.extents.is_empty() != (self.memory == 0) {
            return Err(Kind::Absent { field: "memory" }.at(offset_of!(raw::Deleted, memory)));
        }
        let (found, max) = (self.directory.len(), DeletedRecord::PATH_MAX);
        if found > max {
            return Err(Kind::TooLong { found, max }.at(offset_of!(raw::Deleted, path_length)));
        }
        if self.directory.first() != Some(&b'/') || self.directory.contains(&0) {
            return Err(Kind::Text.at(at));
        }
        Ok(())
    }
}

impl DeletedRecord {
    /// The most open file descriptions of one file.
    pub const ENDS_MAX: usize = 4096;
    /// The most pieces between holes.
    pub const EXTENTS_MAX: usize = 1 << 16;
    /// The longest path, in bytes.
    pub const PATH_MAX: usize = 4095;

    /// The record's bytes.
    ///
    /// # Errors
    /// [`Kind::TooMany`], [`Kind::TooLong`], [`Kind::Flag`], [`Kind::Range`], [`Kind::Absent`];
    /// [`Kind::Text`] for a path that is not absolute.
    pub fn encode(&self) -> Result<Vec<u8>, RecordError> {
        let mut raw = raw::Deleted::new_zeroed();
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
        raw.size.set(maker.size);
        raw.memory.set(maker.memory);
        raw.filesystem.set(maker.filesystem);
        raw.device.set(maker.device);
        raw.modified.set(maker.modified);
        raw.uid.set(maker.uid);
        raw.gid.set(maker.gid);
        raw.mode.set(maker.mode);
        raw.extents.set(maker.extents.len() as u32);
        raw.ends.set(maker.ends.len() as u16);
        raw.path_length.set(maker.directory.len() as u16);
        let mut bytes = raw.as_bytes().to_vec();
        for end in &maker.ends {
            let mut raw = raw::DeletedEnd::new_zeroed();
            raw.token.set(end.token);
            raw.position.set(end.position);
            raw.open.set(end.open.0);
            raw.locks.set(end.locks.len() as u16);
            bytes.extend_from_slice(raw.as_bytes());
            locks::write(&end.locks, &mut bytes);
        }
        for (start, len) in &maker.extents {
            let mut raw = raw::Extent::new_zeroed();
            raw.start.set(*start);
            raw.length.set(*len);
            bytes.extend_from_slice(raw.as_bytes());
        }
        bytes.extend_from_slice(&maker.directory);
        Ok(bytes)
    }

    /// Decodes a record of this version.
    ///
    /// # Errors
    /// [`RecordError`] with the first thing that is wrong.
    pub fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        let short = || Kind::Short.at(bytes.len());
        let (raw, mut rest) = raw::Deleted::ref_from_prefix(bytes).map_err(|_| short())?;
        reserved(&raw.reserved, offset_of!(raw::Deleted, reserved))?;
        match raw.role {
            ALONG => {
                let whole = Self::Along { maker: raw.maker.get() };
                // Nothing else has a meaning then.
                let same = whole.encode().is_ok_and(|again| again == bytes);
                return if same { Ok(whole) } else { Err(Kind::Reserved.at(8)) };
            }
            MAKER if raw.maker.get() == 0 => {}
            MAKER => return Err(Kind::Absent { field: "maker" }.at(0)),
            found => {
                return Err(Kind::Word { field: "role", found }.at(offset_of!(raw::Deleted, role)));
            }
        }
        let mut ends = Vec::new();
        for _ in 0..raw.ends.get() {
            let at = bytes.len() - rest.len();
            let (end, behind) = raw::DeletedEnd::ref_from_prefix(rest).map_err(|_| short())?;
            reserved(&end.reserved, at + offset_of!(raw::DeletedEnd, reserved))?;
            let (locks, behind) = locks::read(bytes, behind, end.locks.get().into())?;
            ends.push(DeletedEnd {
                token: end.token.get(),
                position: end.position.get(),
                open: OpenFlags(end.open.get()),
                locks,
            });
            rest = behind;
        }
        let count = raw.extents.get() as usize;
        let (extents, directory) = list::<raw::Extent>(bytes, rest, count)?;
        let claimed = u32::from(raw.path_length.get());
        if directory.len() != claimed as usize {
            let at = offset_of!(raw::Deleted, path_length);
            return Err(Kind::Length { claimed, found: directory.len() }.at(at));
        }
        let maker = DeletedMaker {
            size: raw.size.get(),
            memory: raw.memory.get(),
            filesystem: raw.filesystem.get(),
            device: raw.device.get(),
            modified: raw.modified.get(),
            uid: raw.uid.get(),
            gid: raw.gid.get(),
            mode: raw.mode.get(),
            ends,
            extents: extents.iter().map(|raw| (raw.start.get(), raw.length.get())).collect(),
            directory: directory.to_vec(),
        };
        maker.check()?;
        Ok(Self::Maker(maker))
    }
}
