//! The record of inotify's watches.

use alloc::vec::Vec;
use core::mem::offset_of;
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use super::{Kind, PathRecord, RecordError, known};
use crate::record::{raw, reserved};

/// An inotify with its watches, as its handler keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct InotifyRecord {
    /// How it is open, and what was in it, of [`InotifyRecord::KNOWN_FLAGS`].
    pub flags: u32,
    /// By rising numbers.
    pub watches: Vec<WatchRecord>,
}

/// A watch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WatchRecord {
    /// Its number, from 1 to [`WatchRecord::NUMBER_MAX`].
    pub number: u32,
    /// What is watched for, and how, as Linux lists it.
    pub mask: u32,
    /// What is watched.
    pub target: WatchTarget,
}

/// What is watched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WatchTarget {
    /// A file of the same session.
    File {
        /// Its token.
        token: u64,
    },
    /// What is found under a path.
    Path {
        /// The number of its device: the major one in the upper half.
        device: u64,
        /// The number of its inode.
        inode: u64,
        /// The id of its file system; zero where it has none.
        filesystem: u64,
        /// When it was made, in nanoseconds since 1970; zero where that is not known.
        born: u64,
        /// Absolute, without a zero byte.
        path: Vec<u8>,
    },
}

const FILE: u8 = 1;
const PATH: u8 = 2;

impl WatchRecord {
    /// The largest number.
    pub const NUMBER_MAX: u32 = i32::MAX as u32;

    fn check(&self, at: usize) -> Result<(), RecordError> {
        if !(1..=Self::NUMBER_MAX).contains(&self.number) {
            return Err(Kind::Range { field: "number" }.at(at + offset_of!(raw::Watch, number)));
        }
        let WatchTarget::Path { path, .. } = &self.target else { return Ok(()) };
        let (found, max) = (path.len(), PathRecord::PATH_MAX);
        if found > max {
            return Err(Kind::TooLong { found, max }.at(at + offset_of!(raw::Watch, path_length)));
        }
        if path.first() != Some(&b'/') || path.contains(&0) {
            return Err(Kind::Value { field: "path" }.at(at + size_of::<raw::Watch>()));
        }
        Ok(())
    }
}

impl InotifyRecord {
    /// It is open with `O_NONBLOCK`.
    pub const NONBLOCK: u32 = 1;
    /// Events may have been missed.
    pub const MISSED: u32 = 2;
    /// The flags that are known.
    pub const KNOWN_FLAGS: u32 = Self::NONBLOCK | Self::MISSED;
    /// The most watches.
    pub const WATCHES_MAX: usize = 1 << 16;

    fn check(&self) -> Result<(), RecordError> {
        known(self.flags, Self::KNOWN_FLAGS, "flags", offset_of!(raw::Inotify, flags))?;
        let (found, max) = (self.watches.len(), Self::WATCHES_MAX);
        if found > max {
            return Err(Kind::TooMany { found, max }.at(offset_of!(raw::Inotify, watches)));
        }
        let mut at = size_of::<raw::Inotify>();
        let mut before = 0;
        for watch in &self.watches {
            watch.check(at)?;
            if watch.number <= before {
                let offset = at + offset_of!(raw::Watch, number);
                return Err(Kind::Range { field: "number" }.at(offset));
            }
            before = watch.number;
            at += size_of::<raw::Watch>();
            if let WatchTarget::Path { path, .. } = &watch.target {
                at += path.len();
            }
        }
        Ok(())
    }

    /// The record's bytes.
    ///
    /// # Errors
    /// [`Kind::Flag`], [`Kind::TooMany`], [`Kind::TooLong`], [`Kind::Value`]; [`Kind::Range`] where the
    /// watches are not in order.
    pub fn encode(&self) -> Result<Vec<u8>, RecordError> {
        self.check()?;
        let mut raw = raw::Inotify::new_zeroed();
        raw.watches.set(self.watches.len() as u32);
        raw.flags.set(self.flags);
        let mut bytes = raw.as_bytes().to_vec();
        for watch in &self.watches {
            let mut raw = raw::Watch::new_zeroed();
            raw.number.set(watch.number);
            raw.mask.set(watch.mask);
            match &watch.target {
                WatchTarget::File { token } => {
                    raw.kind = FILE;
                    raw.token.set(*token);
                    bytes.extend_from_slice(raw.as_bytes());
                }
                WatchTarget::Path { device, inode, filesystem, born, path } => {
                    raw.kind = PATH;
                    raw.device.set(*device);
                    raw.inode.set(*inode);
                    raw.filesystem.set(*filesystem);
                    raw.born.set(*born);
                    raw.path_length.set(path.len() as u16);
                    bytes.extend_from_slice(raw.as_bytes());
                    bytes.extend_from_slice(path);
                }
            }
        }
        Ok(bytes)
    }

    /// Decodes a record of this version.
    ///
    /// # Errors
    /// [`RecordError`] with the first thing that is wrong.
    pub fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        let short = || Kind::Short.at(bytes.len());
        let (raw, mut rest) = raw::Inotify::ref_from_prefix(bytes).map_err(|_| short())?;
        let count = raw.watches.get() as usize;
        if count > Self::WATCHES_MAX {
            let kind = Kind::TooMany { found: count, max: Self::WATCHES_MAX };
            return Err(kind.at(offset_of!(raw::Inotify, watches)));
        }
        let mut record = Self { flags: raw.flags.get(), watches: Vec::new() };
        for _ in 0..count {
            let at = bytes.len() - rest.len();
            let (raw, behind) = raw::Watch::ref_from_prefix(rest).map_err(|_| short())?;
            reserved(&raw.reserved, at + offset_of!(raw::Watch, reserved))?;
            let (path, behind) =
                behind.split_at_checked(raw.path_length.get().into()).ok_or_else(short)?;
            let numbers = [raw.device.get(), raw.inode.get(), raw.filesystem.get(), raw.born.get()];
            let target = match raw.kind {
                FILE if numbers == [0; 4] && path.is_empty() => {
                    WatchTarget::File { token: raw.token.get() }
                }
                PATH if raw.token.get() == 0 => {
                    let [device, inode, filesystem, born] = numbers;
                    WatchTarget::Path { device, inode, filesystem, born, path: path.to_vec() }
                }
                FILE | PATH => {
                    return Err(Kind::Absent { field: "token" }.at(at));
                }
                found => {
                    let offset = at + offset_of!(raw::Watch, kind);
                    return Err(Kind::Word { field: "kind", found }.at(offset));
                }
            };
            record.watches.push(WatchRecord {
                number: raw.number.get(),
                mask: raw.mask.get(),
                target,
            });
            rest = behind;
        }
        if !rest.is_empty() {
            let claimed = bytes.len() - rest.len();
            let kind = Kind::Length { claimed: claimed as u32, found: bytes.len() };
            return Err(kind.at(claimed));
        }
        record.check()?;
        Ok(record)
    }
}
