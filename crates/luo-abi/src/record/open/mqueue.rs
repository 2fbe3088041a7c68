//! The record of POSIX message queues.

use alloc::vec::Vec;
use core::mem::offset_of;
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use super::{Kind, OpenFlags, RecordError};
use crate::record::raw;

/// An open file description of a message queue, as its handler keeps it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MqueueRecord {
    /// The token of the one of its queue that has the messages; zero: it is this one.
    pub maker: u64,
    /// The id of the boot that this was written in; zeros where it is not known.
    pub boot: [u8; 16],
    /// The queue's owner.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// Its permissions.
    pub mode: u32,
    /// The most messages.
    pub most: u32,
    /// The largest message, in bytes.
    pub largest: u32,
    /// How it is open.
    pub open: OpenFlags,
    /// Its name, with a slash at its beginning and none behind that.
    pub name: Vec<u8>,
    /// What nobody has received, in order: priority and content.
    pub messages: Vec<(u32, Vec<u8>)>,
}

impl MqueueRecord {
    /// The longest name, in bytes.
    pub const NAME_MAX: usize = 256;
    /// The greatest priority.
    pub const PRIORITY_MAX: u32 = 32767;

    fn check(&self) -> Result<(), RecordError> {
        self.open.check(offset_of!(raw::Mqueue, open))?;
        let (found, max) = (self.name.len(), Self::NAME_MAX);
        if found > max {
            return Err(Kind::TooLong { found, max }.at(offset_of!(raw::Mqueue, name_length)));
        }
        let mut at = size_of::<raw::Mqueue>();
        match self.name.split_first() {
            Some((b'/', name))
                if !name.is_empty() && !name.contains(&b'/') && !name.contains(&0) => {}
            _ => return Err(Kind::Text.at(at)),
        }
        if self.mode & !0o7777 != 0 {
            return Err(Kind::Range { field: "mode" }.at(offset_of!(raw::Mqueue, mode)));
        }
        let (found, max) = (self.messages.len(), self.most as usize);
        if found > max || found > 0 && self.maker != 0 {
            return Err(Kind::TooMany { found, max }.at(offset_of!(raw::Mqueue, messages)));
        }
        at += self.name.len();
        let mut before = Self::PRIORITY_MAX;
        for (priority, bytes) in &self.messages {
            if *priority > before {
                return Err(Kind::Range { field: "priority" }.at(at));
            }
            if bytes.len() > self.largest as usize {
                return Err(Kind::Range { field: "length" }.at(at));
            }
            before = *priority;
            at += size_of::<raw::QueueMessage>() + bytes.len();
        }
        Ok(())
    }

    /// The record's bytes.
    ///
    /// # Errors
    /// [`Kind::TooMany`], [`Kind::TooLong`], [`Kind::Flag`], [`Kind::Range`]; [`Kind::Text`] for a
    /// name that is none.
    pub fn encode(&self) -> Result<Vec<u8>, RecordError> {
        self.check()?;
        let mut raw = raw::Mqueue::new_zeroed();
        raw.maker.set(self.maker);
        raw.boot = self.boot;
        raw.uid.set(self.uid);
        raw.gid.set(self.gid);
        raw.mode.set(self.mode);
        raw.most.set(self.most);
        raw.largest.set(self.largest);
        raw.open.set(self.open.0);
        raw.messages.set(self.messages.len() as u32);
        raw.name_length.set(self.name.len() as u32);
        let mut bytes = raw.as_bytes().to_vec();
        bytes.extend_from_slice(&self.name);
        for (priority, message) in &self.messages {
            let mut raw = raw::QueueMessage::new_zeroed();
            raw.priority.set(*priority);
            raw.length.set(message.len() as u32);
            bytes.extend_from_slice(raw.as_bytes());
            bytes.extend_from_slice(message);
        }
        Ok(bytes)
    }

    /// Decodes a record of this version.
    ///
    /// # Errors
    /// [`RecordError`] with the first thing that is wrong.
    pub fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        let short = || Kind::Short.at(bytes.len());
        let (raw, rest) = raw::Mqueue::ref_from_prefix(bytes).map_err(|_| short())?;
        let name = rest.split_at_checked(raw.name_length.get() as usize);
        let (name, mut rest) = name.ok_or_else(short)?;
        let mut messages = Vec::new();
        for _ in 0..raw.messages.get() {
            let (head, behind) = raw::QueueMessage::ref_from_prefix(rest).map_err(|_| short())?;
            let message = behind.split_at_checked(head.length.get() as usize);
            let (message, behind) = message.ok_or_else(short)?;
            messages.push((head.priority.get(), message.to_vec()));
            rest = behind;
        }
        if !rest.is_empty() {
            let claimed = (bytes.len() - rest.len()) as u32;
            return Err(Kind::Length { claimed, found: bytes.len() }.at(claimed as usize));
        }
        let record = Self {
            maker: raw.maker.get(),
            boot: raw.boot,
            uid: raw.uid.get(),
            gid: raw.gid.get(),
            mode: raw.mode.get(),
            most: raw.most.get(),
            largest: raw.largest.get(),
            open: OpenFlags(raw.open.get()),
            name: name.to_vec(),
            messages,
        };
        record.check()?;
        Ok(record)
    }
}
