//! The record of the handler for memory files.

use alloc::{borrow::ToOwned, vec::Vec};
use core::mem::offset_of;
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use super::{RecordError, RecordErrorKind as Kind, padded, raw, reserved};

/// The version of the record, which is also the file's `compatible` string.
pub const MEMFD_COMPATIBLE: &str = "memfd-v1";

/// The longest name of a memory file, in bytes: Linux's limit.
pub const MEMFD_NAME_MAX: usize = 249;

/// The seals that are known, by Linux's numbers: `SEAL` 1, `SHRINK` 2, `GROW` 4, `WRITE` 8,
/// `FUTURE_WRITE` 16, `EXEC` 32.
pub const MEMFD_KNOWN_SEALS: u32 = 0x3f;

/// The flags that are known.
pub const MEMFD_KNOWN_FLAGS: u32 =
    MemfdRecord::READ_ONLY | MemfdRecord::APPEND | MemfdRecord::NONBLOCK | MemfdRecord::NOATIME;

/// A memory file, as its handler keeps it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemfdRecord {
    /// Its size in bytes.
    pub size: u64,
    /// Its file position in bytes.
    pub position: u64,
    /// The handle under which its memory is kept; zero is none, which a file of size zero has.
    pub memory: u64,
    /// Its seals, of [`MEMFD_KNOWN_SEALS`].
    pub seals: u32,
    /// How it is open, of [`MEMFD_KNOWN_FLAGS`].
    pub flags: u32,
    /// Its name, any bytes but zero, at most [`MEMFD_NAME_MAX`] of them.
    pub name: Vec<u8>,
}

impl MemfdRecord {
    /// It is open for reading only.
    pub const READ_ONLY: u32 = 1;
    /// It is open with `O_APPEND`.
    pub const APPEND: u32 = 2;
    /// It is open with `O_NONBLOCK`.
    pub const NONBLOCK: u32 = 4;
    /// It is open with `O_NOATIME`.
    pub const NOATIME: u32 = 8;

    /// The size of every record, in bytes.
    pub const MAX_SIZE: usize = size_of::<raw::Memfd>();

    fn check(&self) -> Result<(), RecordError> {
        if self.memory == 0 && self.size != 0 {
            return Err(Kind::Handle.at(offset_of!(raw::Memfd, memory)));
        }
        if self.seals & !MEMFD_KNOWN_SEALS != 0 {
            return Err(Kind::Flag { field: "seals" }.at(offset_of!(raw::Memfd, seals)));
        }
        if self.flags & !MEMFD_KNOWN_FLAGS != 0 {
            return Err(Kind::Flag { field: "flags" }.at(offset_of!(raw::Memfd, flags)));
        }
        let (found, max) = (self.name.len(), MEMFD_NAME_MAX);
        if found > max {
            return Err(Kind::TooLong { found, max }.at(offset_of!(raw::Memfd, name_length)));
        }
        match self.name.iter().position(|&byte| byte == 0) {
            Some(at) => Err(Kind::Text.at(offset_of!(raw::Memfd, name) + at)),
            None => Ok(()),
        }
    }

    /// The record's bytes.
    ///
    /// # Errors
    /// [`Kind::Handle`], [`Kind::Flag`], [`Kind::TooLong`]; [`Kind::Text`] for a zero byte within
    /// the name.
    pub fn encode(&self) -> Result<Vec<u8>, RecordError> {
        self.check()?;
        let mut raw = raw::Memfd::new_zeroed();
        raw.size.set(self.size);
        raw.position.set(self.position);
        raw.memory.set(self.memory);
        raw.seals.set(self.seals);
        raw.flags.set(self.flags);
        raw.name_length.set(self.name.len() as u16);
        raw.name = super::pad(&self.name);
        Ok(raw.as_bytes().to_vec())
    }

    /// Decodes a record of this version.
    ///
    /// # Errors
    /// [`RecordError`] with the first thing that is wrong.
    pub fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        let (raw, rest) =
            raw::Memfd::ref_from_prefix(bytes).map_err(|_| Kind::Short.at(bytes.len()))?;
        if !rest.is_empty() {
            let kind = Kind::Length { claimed: Self::MAX_SIZE as u32, found: bytes.len() };
            return Err(kind.at(Self::MAX_SIZE));
        }
        let at = offset_of!(raw::Memfd, name_length);
        let len = usize::from(raw.name_length.get());
        if len > MEMFD_NAME_MAX {
            return Err(Kind::TooLong { found: len, max: MEMFD_NAME_MAX }.at(at));
        }
        let name = padded(&raw.name, offset_of!(raw::Memfd, name))?;
        if name.len() != len {
            return Err(Kind::Length { claimed: len as u32, found: name.len() }.at(at));
        }
        reserved(&raw.reserved, offset_of!(raw::Memfd, reserved))?;
        let record = Self {
            size: raw.size.get(),
            position: raw.position.get(),
            memory: raw.memory.get(),
            seals: raw.seals.get(),
            flags: raw.flags.get(),
            name: name.to_owned(),
        };
        record.check()?;
        Ok(record)
    }
}
