//! The record of tun and tap interfaces.

use alloc::vec::Vec;
use core::mem::offset_of;
use zerocopy::{FromZeros, IntoBytes};

use super::{Kind, OpenFlags, RecordError, known, sole};
use crate::record::{pad, padded, raw};

/// A descriptor of `/dev/net/tun`, as its handler keeps it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TunRecord {
    /// The interface's name, at most 15 bytes; none where it is attached to no interface, and then
    /// everything else but `open` is zero.
    pub name: Vec<u8>,
    /// The user who may attach to it; the highest number is nobody.
    pub owner: u32,
    /// The group that may.
    pub group: u32,
    /// The limit of what waits to be sent, in bytes.
    pub send_buffer: u32,
    /// The length of the header before each packet, in bytes.
    pub header: u32,
    /// What is left to the reader of a packet: bits of Linux's `TUN_F_*`.
    pub offload: u32,
    /// How it is open.
    pub open: OpenFlags,
    /// What kind of interface it is.
    pub flags: u32,
    /// The type of its link, by Linux's number.
    pub link: u16,
    /// The address of a tap; of a tun, zeros.
    pub address: [u8; 6],
}

impl TunRecord {
    /// It takes packets of the Internet.
    pub const TUN: u32 = 1;
    /// It takes frames of Ethernet.
    pub const TAP: u32 = 2;
    /// No information comes before a packet.
    pub const NO_PI: u32 = 4;
    /// A header of virtio comes before a packet.
    pub const HEADER: u32 = 8;
    /// It has several queues.
    pub const QUEUES: u32 = 16;
    /// This queue is detached.
    pub const DETACHED: u32 = 32;
    /// It stays when nobody has it open.
    pub const PERSIST: u32 = 64;
    /// `IFF_NAPI`.
    pub const NAPI: u32 = 128;
    /// `IFF_NAPI_FRAGS`.
    pub const NAPI_FRAGS: u32 = 256;
    /// Headers are little-endian whatever the machine is.
    pub const LITTLE_ENDIAN: u32 = 512;
    /// Headers are big-endian.
    pub const BIG_ENDIAN: u32 = 1024;
    /// All of them.
    pub const KNOWN_FLAGS: u32 = 2047;
    /// The bits of `offload` that are known.
    pub const KNOWN_OFFLOAD: u32 = 0x7f;
    /// The longest name, in bytes.
    pub const NAME_MAX: usize = 15;

    fn check(&self) -> Result<(), RecordError> {
        known(self.flags, Self::KNOWN_FLAGS, "flags", offset_of!(raw::Tun, flags))?;
        known(self.offload, Self::KNOWN_OFFLOAD, "offload", offset_of!(raw::Tun, offload))?;
        self.open.check(offset_of!(raw::Tun, open))?;
        let (found, max) = (self.name.len(), Self::NAME_MAX);
        if found > max {
            return Err(Kind::TooLong { found, max }.at(0));
        }
        let one_kind = matches!(self.flags & (Self::TUN | Self::TAP), Self::TUN | Self::TAP);
        if one_kind == self.name.is_empty() {
            return Err(Kind::Flag { field: "flags" }.at(offset_of!(raw::Tun, flags)));
        }
        if self.name.contains(&0) || self.name.contains(&b'/') {
            return Err(Kind::Text.at(0));
        }
        let bare = Self { open: self.open, ..Self::bare() };
        if self.name.is_empty() && *self != bare {
            return Err(Kind::Absent { field: "name" }.at(0));
        }
        Ok(())
    }

    /// That of a descriptor that is attached to no interface.
    #[must_use]
    pub const fn bare() -> Self {
        Self {
            name: Vec::new(),
            owner: 0,
            group: 0,
            send_buffer: 0,
            header: 0,
            offload: 0,
            open: OpenFlags(OpenFlags::READ | OpenFlags::WRITE),
            flags: 0,
            link: 0,
            address: [0; 6],
        }
    }

    /// The record's bytes.
    ///
    /// # Errors
    /// [`Kind::Flag`], [`Kind::TooLong`], [`Kind::Text`]; [`Kind::Absent`] without a name.
    pub fn encode(&self) -> Result<Vec<u8>, RecordError> {
        self.check()?;
        let mut raw = raw::Tun::new_zeroed();
        raw.name = pad(&self.name);
        raw.owner.set(self.owner);
        raw.group.set(self.group);
        raw.send_buffer.set(self.send_buffer);
        raw.header.set(self.header);
        raw.offload.set(self.offload);
        raw.open.set(self.open.0);
        raw.flags.set(self.flags);
        raw.link.set(self.link);
        raw.address = self.address;
        Ok(raw.as_bytes().to_vec())
    }

    /// Decodes a record of this version.
    ///
    /// # Errors
    /// [`RecordError`] with the first thing that is wrong.
    pub fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        let raw: &raw::Tun = sole(bytes)?;
        let record = Self {
            name: padded(&raw.name, 0)?.to_vec(),
            owner: raw.owner.get(),
            group: raw.group.get(),
            send_buffer: raw.send_buffer.get(),
            header: raw.header.get(),
            offload: raw.offload.get(),
            open: OpenFlags(raw.open.get()),
            flags: raw.flags.get(),
            link: raw.link.get(),
            address: raw.address,
        };
        record.check()?;
        Ok(record)
    }
}
