//! The record of the handler for TCP connections.

use alloc::vec::Vec;
use core::mem::offset_of;
use core::net::{Ipv6Addr, SocketAddrV6};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use super::{RecordError, RecordErrorKind as Kind, padded, raw, reserved};

/// The version of the record, which is also the file's `compatible` string.
pub const TCP_COMPATIBLE: &str = "tcp-v1";

/// The flags that are known.
pub const TCP_KNOWN_FLAGS: u32 = 0x7f;

/// The most socket options of one record.
pub const TCP_OPTIONS_MAX: usize = 64;

/// The largest shift of a window.
const SCALE_MAX: u8 = 14;

/// A socket option and its value. Numbers stand for options in the records of all sockets; who does
/// not know one leaves it out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OptionValue {
    /// Which option, of [`option`].
    pub option: u16,
    /// Its value.
    pub value: i32,
}

/// The numbers of socket options. Their values are those of the system call, as one integer, unless
/// it says otherwise.
pub mod option {
    /// `SO_REUSEADDR`.
    pub const REUSE_ADDRESS: u16 = 1;
    /// `SO_KEEPALIVE`.
    pub const KEEP_ALIVE: u16 = 2;
    /// `SO_LINGER`, in seconds; -1: off.
    pub const LINGER: u16 = 3;
    /// `SO_OOBINLINE`.
    pub const OUT_OF_BAND_INLINE: u16 = 4;
    /// `SO_PRIORITY`.
    pub const PRIORITY: u16 = 5;
    /// `SO_MARK`.
    pub const MARK: u16 = 6;
    /// `SO_RCVBUF` in bytes, half of what the call tells; there only where the owner has set it.
    pub const RECEIVE_BUFFER: u16 = 7;
    /// `SO_SNDBUF`, likewise.
    pub const SEND_BUFFER: u16 = 8;
    /// `SO_RCVTIMEO` in milliseconds; 0: none.
    pub const RECEIVE_TIMEOUT: u16 = 9;
    /// `SO_SNDTIMEO`, likewise.
    pub const SEND_TIMEOUT: u16 = 10;
    /// `TCP_NODELAY`.
    pub const NO_DELAY: u16 = 16;
    /// `TCP_CORK`.
    pub const CORK: u16 = 17;
    /// `TCP_KEEPIDLE` in seconds.
    pub const KEEP_IDLE: u16 = 18;
    /// `TCP_KEEPINTVL` in seconds.
    pub const KEEP_INTERVAL: u16 = 19;
    /// `TCP_KEEPCNT`.
    pub const KEEP_COUNT: u16 = 20;
    /// `TCP_USER_TIMEOUT` in milliseconds.
    pub const USER_TIMEOUT: u16 = 21;
    /// `IP_TOS`.
    pub const TYPE_OF_SERVICE: u16 = 32;
    /// `IP_TTL`.
    pub const TIME_TO_LIVE: u16 = 33;
    /// `IPV6_TCLASS`.
    pub const TRAFFIC_CLASS: u16 = 48;
    /// `IPV6_UNICAST_HOPS`.
    pub const HOPS: u16 = 49;
}

/// A TCP connection, as its handler keeps it. Sequence numbers count modulo 2^32, windows in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TcpRecord {
    /// Of [`TCP_KNOWN_FLAGS`].
    pub flags: u32,
    /// This side's address; one of IPv4 is mapped.
    pub local: SocketAddrV6,
    /// The peer's.
    pub remote: SocketAddrV6,
    /// The largest segment that the peer takes, in bytes.
    pub mss: u16,
    /// By how many bits windows that the peer tells are shifted, at most 14.
    pub send_scale: u8,
    /// By how many bits windows that the peer is told are shifted, at most 14.
    pub receive_scale: u8,
    /// The sequence number after the last byte that was written.
    pub send_sequence: u32,
    /// The sequence number after the last byte that has come.
    pub receive_sequence: u32,
    /// The clock of its time stamps.
    pub timestamp: u32,
    /// The segment that last changed the send window.
    pub send_update: u32,
    /// What the peer takes.
    pub send_window: u32,
    /// The most that it has ever taken.
    pub send_window_max: u32,
    /// What the peer was told it may send.
    pub receive_window: u32,
    /// What it had sent when it was told so.
    pub receive_update: u32,
    /// The handle of the bytes that have come and were not read; zero where there are none.
    pub unread: u64,
    /// How many these are.
    pub unread_length: u32,
    /// The handle of the bytes that were written and not acknowledged; zero where there are none.
    pub written: u64,
    /// How many these are.
    pub written_length: u32,
    /// How many of these, the last ones, were never sent.
    pub unsent_length: u32,
    /// The name of its congestion control, at most 15 bytes, none of them zero.
    pub congestion: Vec<u8>,
    /// Its options, in increasing order of their numbers.
    pub options: Vec<OptionValue>,
}

impl TcpRecord {
    /// The socket is one of IPv6, also where the addresses are mapped ones.
    pub const V6: u32 = 1;
    /// There is no connection any more: nothing but the options and flags counts.
    pub const ENDED: u32 = 2;
    /// The peer has said that it sends no more; that is counted in `receive_sequence`.
    pub const READ_ENDED: u32 = 4;
    /// Time stamps were agreed upon.
    pub const TIMESTAMPS: u32 = 8;
    /// Selective acknowledgements were agreed upon.
    pub const SACK: u32 = 16;
    /// Shifted windows were agreed upon.
    pub const SCALING: u32 = 32;
    /// It is open with `O_NONBLOCK`.
    pub const NONBLOCK: u32 = 64;

    /// The size of the largest record, in bytes.
    pub const MAX_SIZE: usize =
        size_of::<raw::Tcp>() + TCP_OPTIONS_MAX * size_of::<raw::TcpOption>();

    fn check(&self) -> Result<(), RecordError> {
        if self.flags & !TCP_KNOWN_FLAGS != 0 {
            return Err(Kind::Flag { field: "flags" }.at(offset_of!(raw::Tcp, flags)));
        }
        let v4 = |address: &SocketAddrV6| address.ip().to_ipv4_mapped().is_some();
        let value = |field, offset| Err(Kind::Value { field }.at(offset));
        if v4(&self.local) != v4(&self.remote) || !(self.is_v6() || v4(&self.local)) {
            return value("remote", offset_of!(raw::Tcp, remote));
        }
        for (scale, offset) in [
            (self.send_scale, offset_of!(raw::Tcp, send_scale)),
            (self.receive_scale, offset_of!(raw::Tcp, receive_scale)),
        ] {
            if scale > SCALE_MAX {
                return value("scale", offset);
            }
        }
        for (handle, length, offset) in [
            (self.unread, self.unread_length, offset_of!(raw::Tcp, unread)),
            (self.written, self.written_length, offset_of!(raw::Tcp, written)),
        ] {
            if (handle == 0) != (length == 0) {
                return Err(Kind::Handle.at(offset));
            }
        }
        if self.unsent_length > self.written_length {
            return value("unsent_length", offset_of!(raw::Tcp, unsent_length));
        }
        let (found, max) = (self.congestion.len(), raw::CONGESTION_SIZE - 1);
        if found > max {
            return Err(Kind::TooLong { found, max }.at(offset_of!(raw::Tcp, congestion)));
        }
        if let Some(at) = self.congestion.iter().position(|&byte| byte == 0) {
            return Err(Kind::Text.at(offset_of!(raw::Tcp, congestion) + at));
        }
        let (found, max) = (self.options.len(), TCP_OPTIONS_MAX);
        if found > max {
            return Err(Kind::TooMany { found, max }.at(offset_of!(raw::Tcp, options)));
        }
        let in_order = self.options.windows(2).position(|two| two[0].option >= two[1].option);
        match in_order {
            Some(at) => {
                let size = size_of::<raw::TcpOption>();
                Err(Kind::Duplicate.at(size_of::<raw::Tcp>() + (at + 1) * size))
            }
            None => Ok(()),
        }
    }

    const fn is_v6(&self) -> bool {
        self.flags & Self::V6 != 0
    }

    /// The record's bytes.
    ///
    /// # Errors
    /// [`RecordError`] with the first value that no record can hold.
    pub fn encode(&self) -> Result<Vec<u8>, RecordError> {
        self.check()?;
        let mut raw = raw::Tcp::new_zeroed();
        raw.flags.set(self.flags);
        raw.local = self.local.ip().octets();
        raw.remote = self.remote.ip().octets();
        raw.local_port.set(self.local.port());
        raw.remote_port.set(self.remote.port());
        raw.mss.set(self.mss);
        raw.send_scale = self.send_scale;
        raw.receive_scale = self.receive_scale;
        raw.send_sequence.set(self.send_sequence);
        raw.receive_sequence.set(self.receive_sequence);
        raw.timestamp.set(self.timestamp);
        raw.send_update.set(self.send_update);
        raw.send_window.set(self.send_window);
        raw.send_window_max.set(self.send_window_max);
        raw.receive_window.set(self.receive_window);
        raw.receive_update.set(self.receive_update);
        raw.unread.set(self.unread);
        raw.unread_length.set(self.unread_length);
        raw.written.set(self.written);
        raw.written_length.set(self.written_length);
        raw.unsent_length.set(self.unsent_length);
        raw.congestion = super::pad(&self.congestion);
        raw.options.set(self.options.len() as u16);
        let mut bytes = raw.as_bytes().to_vec();
        for OptionValue { option, value } in &self.options {
            let mut raw = raw::TcpOption::new_zeroed();
            raw.option.set(*option);
            raw.value.set(value.cast_unsigned());
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
            raw::Tcp::ref_from_prefix(bytes).map_err(|_| Kind::Short.at(bytes.len()))?;
        let claimed = usize::from(raw.options.get());
        if claimed > TCP_OPTIONS_MAX {
            let kind = Kind::TooMany { found: claimed, max: TCP_OPTIONS_MAX };
            return Err(kind.at(offset_of!(raw::Tcp, options)));
        }
        let length = size_of::<raw::Tcp>() + claimed * size_of::<raw::TcpOption>();
        if length != bytes.len() {
            let kind = Kind::Length { claimed: length as u32, found: bytes.len() };
            return Err(kind.at(length.min(bytes.len())));
        }
        reserved(&raw.reserved, offset_of!(raw::Tcp, reserved))?;
        let mut options = Vec::with_capacity(claimed);
        let mut at = size_of::<raw::Tcp>();
        for entry in rest.chunks(size_of::<raw::TcpOption>()) {
            let entry = raw::TcpOption::ref_from_bytes(entry).map_err(|_| Kind::Short.at(at))?;
            reserved(&entry.reserved, at + offset_of!(raw::TcpOption, reserved))?;
            let value = entry.value.get().cast_signed();
            options.push(OptionValue { option: entry.option.get(), value });
            at += size_of::<raw::TcpOption>();
        }
        let address =
            |octets: [u8; 16], port| SocketAddrV6::new(Ipv6Addr::from(octets), port, 0, 0);
        let record = Self {
            flags: raw.flags.get(),
            local: address(raw.local, raw.local_port.get()),
            remote: address(raw.remote, raw.remote_port.get()),
            mss: raw.mss.get(),
            send_scale: raw.send_scale,
            receive_scale: raw.receive_scale,
            send_sequence: raw.send_sequence.get(),
            receive_sequence: raw.receive_sequence.get(),
            timestamp: raw.timestamp.get(),
            send_update: raw.send_update.get(),
            send_window: raw.send_window.get(),
            send_window_max: raw.send_window_max.get(),
            receive_window: raw.receive_window.get(),
            receive_update: raw.receive_update.get(),
            unread: raw.unread.get(),
            unread_length: raw.unread_length.get(),
            written: raw.written.get(),
            written_length: raw.written_length.get(),
            unsent_length: raw.unsent_length.get(),
            congestion: padded(&raw.congestion, offset_of!(raw::Tcp, congestion))?.to_vec(),
            options,
        };
        record.check()?;
        Ok(record)
    }
}
