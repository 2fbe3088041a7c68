//! The record of epoll sets.

use alloc::vec::Vec;
use core::mem::offset_of;
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use super::{Kind, RecordError, known, list};
use crate::record::{flag, raw, reserved};

/// An epoll set, as its handler keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct EpollRecord {
    /// How it is open, of [`EpollRecord::KNOWN_FLAGS`].
    pub flags: u32,
    /// For how many microseconds it polls network devices itself.
    pub busy_usecs: u32,
    /// How many packets it takes then at once.
    pub busy_budget: u16,
    /// It puts off interrupts meanwhile.
    pub busy_prefer: bool,
    /// What is in it, by number and token.
    pub members: Vec<EpollMemberRecord>,
}

/// What is in an epoll set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EpollMemberRecord {
    /// The token of the file.
    pub token: u64,
    /// What comes with its events.
    pub data: u64,
    /// What is waited for, and how, as Linux lists it. A member of which one event alone was wanted
    /// and has come waits for nothing.
    pub events: u32,
    /// The number of the descriptor that it was added by, at most [`EpollRecord::NUMBER_MAX`].
    pub number: u32,
}

impl EpollRecord {
    /// It is open with `O_NONBLOCK`.
    pub const NONBLOCK: u32 = 1;
    /// The flags that are known.
    pub const KNOWN_FLAGS: u32 = Self::NONBLOCK;
    /// The most members.
    pub const MEMBERS_MAX: usize = 1 << 16;
    /// The largest number of a descriptor.
    pub const NUMBER_MAX: u32 = i32::MAX as u32;

    fn check(&self) -> Result<(), RecordError> {
        known(self.flags, Self::KNOWN_FLAGS, "flags", offset_of!(raw::Epoll, flags))?;
        let (found, max) = (self.members.len(), Self::MEMBERS_MAX);
        if found > max {
            return Err(Kind::TooMany { found, max }.at(offset_of!(raw::Epoll, members)));
        }
        let mut at = size_of::<raw::Epoll>();
        let mut before = None;
        for member in &self.members {
            let place = Some((member.number, member.token));
            if member.number > Self::NUMBER_MAX || place <= before {
                let offset = at + offset_of!(raw::EpollMember, number);
                return Err(Kind::Range { field: "number" }.at(offset));
            }
            before = place;
            at += size_of::<raw::EpollMember>();
        }
        Ok(())
    }

    /// The record's bytes.
    ///
    /// # Errors
    /// [`Kind::Flag`], [`Kind::TooMany`]; [`Kind::Range`] where the members are not in order, or one is
    /// there twice.
    pub fn encode(&self) -> Result<Vec<u8>, RecordError> {
        self.check()?;
        let mut raw = raw::Epoll::new_zeroed();
        raw.members.set(self.members.len() as u32);
        raw.flags.set(self.flags);
        raw.busy_usecs.set(self.busy_usecs);
        raw.busy_budget.set(self.busy_budget);
        raw.busy_prefer = u8::from(self.busy_prefer);
        let mut bytes = raw.as_bytes().to_vec();
        for member in &self.members {
            let mut raw = raw::EpollMember::new_zeroed();
            raw.token.set(member.token);
            raw.data.set(member.data);
            raw.events.set(member.events);
            raw.number.set(member.number);
            bytes.extend_from_slice(raw.as_bytes());
        }
        Ok(bytes)
    }

    /// Decodes a record of this version.
    ///
    /// # Errors
    /// [`RecordError`] with the first thing that is wrong.
    pub fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        let (raw, rest) =
            raw::Epoll::ref_from_prefix(bytes).map_err(|_| Kind::Short.at(bytes.len()))?;
        reserved(&raw.reserved, offset_of!(raw::Epoll, reserved))?;
        let (members, rest) = list::<raw::EpollMember>(bytes, rest, raw.members.get() as usize)?;
        if !rest.is_empty() {
            let claimed = bytes.len() - rest.len();
            let kind = Kind::Length { claimed: claimed as u32, found: bytes.len() };
            return Err(kind.at(claimed));
        }
        let record = Self {
            flags: raw.flags.get(),
            busy_usecs: raw.busy_usecs.get(),
            busy_budget: raw.busy_budget.get(),
            busy_prefer: flag(raw.busy_prefer, "busy_prefer", offset_of!(raw::Epoll, busy_prefer))?,
            members: members
                .iter()
                .map(|member| EpollMemberRecord {
                    token: member.token.get(),
                    data: member.data.get(),
                    events: member.events.get(),
                    number: member.number.get(),
                })
                .collect(),
        };
        record.check()?;
        Ok(record)
    }
}
