//! The record of sockets that are no connections.

use alloc::vec::Vec;
use core::mem::offset_of;
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use super::{Kind, RecordError, options};
use crate::record::{flag, raw, reserved};

macro_rules! words {
    ($(#[$doc:meta])* $type:ident { $($(#[$each:meta])* $word:ident = $number:literal,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum $type { $($(#[$each])* $word = $number,)* }

        impl $type {
            pub(super) const fn from_raw(raw: u8) -> Option<Self> {
                match raw { $($number => Some(Self::$word),)* _ => None }
            }
        }
    };
}

words! {
    /// What addresses a socket has.
    SocketFamily {
        /// Internet, version 4.
        V4 = 1,
        /// Internet, version 6.
        V6 = 2,
        /// Of this machine: paths and abstract names.
        Unix = 3,
    }
}

words! {
    /// How a socket takes data.
    SocketKind {
        /// As a stream.
        Stream = 1,
        /// As datagrams.
        Datagram = 2,
        /// As packets of a connection.
        Packets = 3,
    }
}

words! {
    /// How a socket stands.
    SocketState {
        /// It has no address.
        New = 1,
        /// It has an address.
        Bound = 2,
        /// It waits for connections.
        Listening = 3,
        /// Its datagrams have one peer.
        Connected = 4,
    }
}

/// An address of the Internet; one of version 4 in the first four bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Endpoint {
    /// The address.
    pub address: [u8; 16],
    /// The number of the interface, for addresses that mean something on one alone.
    pub scope: u32,
    /// The flow, of version 6.
    pub flow: u32,
    /// The port.
    pub port: u16,
}

/// An option of a socket, by Linux's numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OptionRecord {
    /// Its level.
    pub level: u16,
    /// Its number there.
    pub name: u16,
    /// Its value as it is read, at most [`SocketRecord::VALUE_MAX`] bytes.
    pub value: Vec<u8>,
}

/// A socket, as its handler keeps it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SocketRecord {
    /// What addresses it has.
    pub family: SocketFamily,
    /// How it takes data.
    pub kind: SocketKind,
    /// How it stands.
    pub state: SocketState,
    /// It is open with `O_NONBLOCK`.
    pub nonblocking: bool,
    /// Its address, of one of the Internet.
    pub local: Endpoint,
    /// Its peer's, of one that is connected.
    pub peer: Endpoint,
    /// Of a path, the number of the device that it is on.
    pub device: u64,
    /// Of a path, the number of its inode.
    pub inode: u64,
    /// The user who made it.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// Of a path, its permissions.
    pub mode: u32,
    /// How many connections may wait.
    pub backlog: u32,
    /// How many waited when this was written; they are lost.
    pub waiting: u32,
    /// Its options, each once.
    pub options: Vec<OptionRecord>,
    /// Of one of this machine, its path, or a zero byte and its abstract name.
    pub name: Vec<u8>,
}

impl SocketRecord {
    /// The longest name, in bytes: Linux's limit.
    pub const NAME_MAX: usize = 108;
    /// The most options.
    pub const OPTIONS_MAX: usize = 256;
    /// The longest value of an option, in bytes.
    pub const VALUE_MAX: usize = 64;

    fn check(&self) -> Result<(), RecordError> {
        let word = |field, found: u8, offset| Err(Kind::Word { field, found }.at(offset));
        let unix = self.family == SocketFamily::Unix;
        let stream = self.kind != SocketKind::Datagram;
        if self.kind == SocketKind::Packets && !unix {
            return word("kind", self.kind as u8, offset_of!(raw::Socket, kind));
        }
        if matches!(
            (self.state, stream),
            (SocketState::Listening, false) | (SocketState::Connected, true)
        ) || unix && matches!(self.state, SocketState::Connected | SocketState::New)
        {
            return word("state", self.state as u8, offset_of!(raw::Socket, state));
        }
        let at = options::check(
            &self.options,
            offset_of!(raw::Socket, options),
            size_of::<raw::Socket>(),
        )?;
        let (found, max) = (self.name.len(), Self::NAME_MAX);
        if found > max {
            return Err(Kind::TooLong { found, max }.at(offset_of!(raw::Socket, name_length)));
        }
        let path = self.name.first().is_some_and(|first| *first != 0);
        if unix == self.name.is_empty()
            || path && (!self.name.starts_with(b"/") || self.name.contains(&0))
        {
            return Err(Kind::Text.at(at));
        }
        Ok(())
    }

    /// The record's bytes.
    ///
    /// # Errors
    /// [`Kind::Word`] for a combination that no socket has; [`Kind::TooMany`], [`Kind::TooLong`],
    /// [`Kind::Duplicate`]; [`Kind::Text`] for a path that is not absolute.
    pub fn encode(&self) -> Result<Vec<u8>, RecordError> {
        self.check()?;
        let mut raw = raw::Socket::new_zeroed();
        for (to, from) in [(&mut raw.local, &self.local), (&mut raw.peer, &self.peer)] {
            to.address = from.address;
            to.scope.set(from.scope);
            to.flow.set(from.flow);
            to.port.set(from.port);
        }
        raw.device.set(self.device);
        raw.inode.set(self.inode);
        raw.uid.set(self.uid);
        raw.gid.set(self.gid);
        raw.mode.set(self.mode);
        raw.backlog.set(self.backlog);
        raw.waiting.set(self.waiting);
        raw.options.set(self.options.len() as u16);
        raw.name_length.set(self.name.len() as u16);
        raw.family = self.family as u8;
        raw.kind = self.kind as u8;
        raw.state = self.state as u8;
        raw.nonblocking = u8::from(self.nonblocking);
        let mut bytes = raw.as_bytes().to_vec();
        options::write(&self.options, &mut bytes);
        bytes.extend_from_slice(&self.name);
        Ok(bytes)
    }

    /// Decodes a record of this version.
    ///
    /// # Errors
    /// [`RecordError`] with the first thing that is wrong.
    pub fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        let short = || Kind::Short.at(bytes.len());
        let (raw, rest) = raw::Socket::ref_from_prefix(bytes).map_err(|_| short())?;
        reserved(&raw.local.reserved, 26)?;
        reserved(&raw.peer.reserved, 54)?;
        let (options, rest) = options::read(raw.options.get(), rest).ok_or_else(short)?;
        let claimed = u32::from(raw.name_length.get());
        if rest.len() != claimed as usize {
            let at = offset_of!(raw::Socket, name_length);
            return Err(Kind::Length { claimed, found: rest.len() }.at(at));
        }
        let word = |field, found, offset| Kind::Word { field, found }.at(offset);
        let endpoint = |raw: &raw::Endpoint| Endpoint {
            address: raw.address,
            scope: raw.scope.get(),
            flow: raw.flow.get(),
            port: raw.port.get(),
        };
        let record = Self {
            family: SocketFamily::from_raw(raw.family).ok_or(word(
                "family",
                raw.family,
                offset_of!(raw::Socket, family),
            ))?,
            kind: SocketKind::from_raw(raw.kind).ok_or(word(
                "kind",
                raw.kind,
                offset_of!(raw::Socket, kind),
            ))?,
            state: SocketState::from_raw(raw.state).ok_or(word(
                "state",
                raw.state,
                offset_of!(raw::Socket, state),
            ))?,
            nonblocking: flag(
                raw.nonblocking,
                "nonblocking",
                offset_of!(raw::Socket, nonblocking),
            )?,
            local: endpoint(&raw.local),
            peer: endpoint(&raw.peer),
            device: raw.device.get(),
            inode: raw.inode.get(),
            uid: raw.uid.get(),
            gid: raw.gid.get(),
            mode: raw.mode.get(),
            backlog: raw.backlog.get(),
            waiting: raw.waiting.get(),
            options,
            name: rest.to_vec(),
        };
        record.check()?;
        Ok(record)
    }
}
