//! The records of what is found again by its path, and of devices that are found by their number.

use alloc::vec::Vec;
use core::mem::offset_of;
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use super::{Kind, OpenFlags, RecordError, locks, sole};
use crate::record::{flag, raw, reserved};

/// A regular file or directory, as its handler keeps it. Times are in nanoseconds since 1970.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathRecord {
    /// The number of its device: the major one in the upper half.
    pub device: u64,
    /// The number of its inode.
    pub inode: u64,
    /// The id of its file system; zero where it has none.
    pub filesystem: u64,
    /// When it was made; zero where that is not known.
    pub born: u64,
    /// Its size in bytes; of a directory, zero.
    pub size: u64,
    /// Its position.
    pub position: u64,
    /// When its content was last changed.
    pub modified: u64,
    /// How it is open.
    pub open: OpenFlags,
    /// It is a directory.
    pub directory: bool,
    /// The locks of the open file description.
    pub locks: Vec<LockRecord>,
    /// Its absolute path, at most [`PathRecord::PATH_MAX`] bytes.
    pub path: Vec<u8>,
}

/// A lock that hangs on an open file description.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LockRecord {
    /// Its first byte.
    pub start: u64,
    /// Its last byte; the highest number is the end of the file, however long it gets.
    pub end: u64,
    /// One of `flock(2)`, of the whole file; else of the description (`F_OFD_SETLK`).
    pub whole: bool,
    /// Nobody else may have it.
    pub exclusive: bool,
}

impl PathRecord {
    /// The longest path, in bytes: Linux's limit, without the zero behind it.
    pub const PATH_MAX: usize = 4095;
    /// The most locks of one description.
    pub const LOCKS_MAX: usize = 4096;

    fn check(&self) -> Result<(), RecordError> {
        self.open.check(offset_of!(raw::Path, open))?;
        let at = locks::check(&self.locks, offset_of!(raw::Path, locks), size_of::<raw::Path>())?;
        let (found, max) = (self.path.len(), Self::PATH_MAX);
        if found > max {
            return Err(Kind::TooLong { found, max }.at(offset_of!(raw::Path, path_length)));
        }
        if self.path.first() != Some(&b'/') {
            return Err(Kind::Text.at(at));
        }
        match self.path.iter().position(|byte| *byte == 0) {
            Some(zero) => Err(Kind::Text.at(at + zero)),
            None => Ok(()),
        }
    }

    /// The record's bytes.
    ///
    /// # Errors
    /// [`Kind::TooMany`], [`Kind::TooLong`], [`Kind::Flag`], [`Kind::Range`]; [`Kind::Text`] for a
    /// path that is not absolute, or has a zero byte.
    pub fn encode(&self) -> Result<Vec<u8>, RecordError> {
        self.check()?;
        let mut raw = raw::Path::new_zeroed();
        raw.device.set(self.device);
        raw.inode.set(self.inode);
        raw.filesystem.set(self.filesystem);
        raw.born.set(self.born);
        raw.size.set(self.size);
        raw.position.set(self.position);
        raw.modified.set(self.modified);
        raw.open.set(self.open.0);
        raw.locks.set(self.locks.len() as u16);
        raw.path_length.set(self.path.len() as u16);
        raw.directory = u8::from(self.directory);
        let mut bytes = raw.as_bytes().to_vec();
        locks::write(&self.locks, &mut bytes);
        bytes.extend_from_slice(&self.path);
        Ok(bytes)
    }

    /// Decodes a record of this version.
    ///
    /// # Errors
    /// [`RecordError`] with the first thing that is wrong.
    pub fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        let (raw, rest) =
            raw::Path::ref_from_prefix(bytes).map_err(|_| Kind::Short.at(bytes.len()))?;
        reserved(&raw.reserved, offset_of!(raw::Path, reserved))?;
        let (locks, path) = locks::read(bytes, rest, raw.locks.get().into())?;
        let claimed = u32::from(raw.path_length.get());
        if path.len() != claimed as usize {
            let at = offset_of!(raw::Path, path_length);
            return Err(Kind::Length { claimed, found: path.len() }.at(at));
        }
        let record = Self {
            device: raw.device.get(),
            inode: raw.inode.get(),
            filesystem: raw.filesystem.get(),
            born: raw.born.get(),
            size: raw.size.get(),
            position: raw.position.get(),
            modified: raw.modified.get(),
            open: OpenFlags(raw.open.get()),
            directory: flag(raw.directory, "directory", offset_of!(raw::Path, directory))?,
            locks,
            path: path.to_vec(),
        };
        record.check()?;
        Ok(record)
    }
}

/// A device without a state, as its handler keeps it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceRecord {
    /// The major number of the device.
    pub major: u32,
    /// The minor one.
    pub minor: u32,
    /// How it is open.
    pub open: OpenFlags,
}

impl DeviceRecord {
    /// The record's bytes.
    ///
    /// # Errors
    /// [`Kind::Flag`].
    pub fn encode(&self) -> Result<Vec<u8>, RecordError> {
        self.open.check(offset_of!(raw::Device, open))?;
        let mut raw = raw::Device::new_zeroed();
        raw.major.set(self.major);
        raw.minor.set(self.minor);
        raw.open.set(self.open.0);
        Ok(raw.as_bytes().to_vec())
    }

    /// Decodes a record of this version.
    ///
    /// # Errors
    /// [`RecordError`] with the first thing that is wrong.
    pub fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        let raw: &raw::Device = sole(bytes)?;
        reserved(&raw.reserved, offset_of!(raw::Device, reserved))?;
        let open = OpenFlags(raw.open.get());
        open.check(offset_of!(raw::Device, open))?;
        Ok(Self { major: raw.major.get(), minor: raw.minor.get(), open })
    }
}
