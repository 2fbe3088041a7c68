//! The wire between the keeper and its workers, and the layout of what the carrier `keeper` keeps.
//!
//! The wire is a `SOCK_SEQPACKET` pair of Unix sockets; the worker finds its end as its standard
//! input. One message is a [`Header`], then `count` [`Entry`]s, then the body (the entries' record
//! bytes one after the other, or a text, or a [`Hello`] or [`Attach`]), with the descriptors of
//! the entries, in their order, beside it as `SCM_RIGHTS`.
//!
//! ```text
//! keeper                                worker
//!   HELLO {role, limits} + listeners  →
//!                                     ←  ATTACH {range of wire versions}
//!                                     ←  LOAD
//!   SLOTS, SLOTS, …, END              →
//!                                     ←  READY                      (it serves from here)
//!                                     ←  CHANGE [MORE], CHANGE, …   (batches, pipelined)
//!   ACK                               →
//!
//! upgrade:  old                     keeper                      candidate
//!           UPGRADE + binary     →
//!                                     HELLO, SLOTS…, END     →
//!                                ←                              READY   (everything restored)
//!                                ←    QUIESCE (to old)
//!           QUIESCED             →
//!                                     SLOTS (delta), GO      →
//!                                ←                              READY   (its ACK makes it the worker)
//!                                ←    RETIRE (to old)
//! ```
//!
//! Invariants:
//! - Integers are little-endian, structs have no padding, reserved fields are zero; anything else
//!   is refused. The keeper compares numbers, it never looks into a record.
//! - [`Header`], [`Hello`] and [`Attach`] never change: they are how the two sides find a wire
//!   version that both speak. All other messages may change with the version.
//! - An [`op::ACK`] of sequence `n` answers `n` with its errno and everything unanswered before
//!   `n` with success. A batch is answered by the ACK of its last message.

use zerocopy::byteorder::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Marks a message of this wire: `luoK`.
pub const MAGIC: u32 = u32::from_le_bytes(*b"luoK");
/// The oldest wire version that this build speaks.
pub const VERSION_MIN: u16 = 1;
/// The newest wire version that this build speaks.
pub const VERSION_MAX: u16 = 1;
/// The version of messages that are sent before a version is agreed upon: HELLO and ATTACH.
pub const VERSION_NONE: u16 = 0;
/// The most descriptors in one message, and in one slot: the kernel's `SCM_MAX_FD`.
pub const MAX_FDS: usize = 253;
/// The most bytes in one message.
pub const MAX_MESSAGE: usize = 128 * 1024;
/// The most record bytes in one slot; what is longer goes into a memfd.
pub const MAX_RECORD: usize = MAX_MESSAGE - size_of::<Header>() - size_of::<Entry>();
/// The most bytes of a text (a reason).
pub const MAX_TEXT: usize = 1024;

/// What a message is. Zero is invalid.
pub mod op {
    /// Worker: the first message; the body is an [`Attach`](super::Attach).
    pub const ATTACH: u16 = 1;
    /// Worker: creates, replaces and deletes slots. With [`flag::MORE`](super::flag::MORE) it is
    /// staged until the first CHANGE without it, which applies them all at once.
    pub const CHANGE: u16 = 2;
    /// Worker: asks for all slots.
    pub const LOAD: u16 = 3;
    /// Worker: it holds everything and serves; a candidate says it twice.
    pub const READY: u16 = 4;
    /// Worker: asks for an upgrade to the binary whose descriptor comes with it. `argument` is the
    /// deadline in ms, `flags` what to upgrade ([`flag::WORKER`](super::flag::WORKER),
    /// [`flag::KEEPER`](super::flag::KEEPER)).
    pub const UPGRADE: u16 = 5;
    /// Worker: the answer to QUIESCE; nothing will change from here.
    pub const QUIESCED: u16 = 6;
    /// Candidate: it cannot take over; the body says why.
    pub const REFUSE: u16 = 7;
    /// Worker: everything is in a carrier that reaches farther than the keeper; stop, as if the
    /// service was being stopped.
    pub const LEAVE: u16 = 8;
    /// Worker: asks for a slot with a kernel session that came from the kernel before. One entry,
    /// whose descriptor is the device and whose record, 64 bytes, is the session's name: the keeper
    /// retrieves it, so that it is in no process that may die, and it takes the device's place in
    /// the slot. A keeper that does not know this answers EINVAL or EOPNOTSUPP.
    pub const RETRIEVE: u16 = 9;

    /// Keeper: the first message; the body is a [`Hello`](super::Hello), beside it the listeners.
    pub const HELLO: u16 = 64;
    /// Keeper: slots; an entry with [`entry_flag::DELETE`](super::entry_flag::DELETE) is one that
    /// is gone.
    pub const SLOTS: u16 = 65;
    /// Keeper: all slots have been sent; `argument` is their number.
    pub const END: u16 = 66;
    /// Keeper: the answer to the message of that `sequence`; `argument` is 0 or an errno.
    pub const ACK: u16 = 67;
    /// Keeper, to a worker being replaced: stop changing anything and answer QUIESCED.
    pub const QUIESCE: u16 = 68;
    /// Keeper, to a worker that was to be replaced: serve on; the body says why.
    pub const RESUME: u16 = 69;
    /// Keeper, to a candidate: it now has every change; READY again takes over.
    pub const GO: u16 = 70;
    /// Keeper: another worker has taken over; exit.
    pub const RETIRE: u16 = 71;
    /// Keeper: the service is being stopped; exit.
    pub const STOP: u16 = 72;
    /// Keeper, to the worker that serves after an upgrade: `flags` say what was upgraded, the
    /// body why the rest was not.
    pub const UPGRADED: u16 = 73;
}

/// Flags of a message.
pub mod flag {
    /// Of CHANGE: the batch goes on with the next CHANGE.
    pub const MORE: u32 = 1;
    /// Of UPGRADE and UPGRADED: the worker.
    pub const WORKER: u32 = 1;
    /// Of UPGRADE and UPGRADED: the keeper.
    pub const KEEPER: u32 = 2;
}

/// Flags of an entry.
pub mod entry_flag {
    /// The record is replaced, the descriptors stay (none, where the slot is new).
    pub const KEEP_FDS: u16 = 1;
    /// The slot is deleted; neither record nor descriptors.
    pub const DELETE: u16 = 2;
}

/// The beginning of every message.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Header {
    /// [`MAGIC`].
    pub magic: U32,
    /// The agreed wire version, or [`VERSION_NONE`].
    pub version: U16,
    /// One of [`op`].
    pub op: U16,
    /// Of the worker's messages: 1, 2, 3, … Of an ACK, END: the message that is answered.
    pub sequence: U64,
    /// Entries that follow.
    pub count: U32,
    /// Of [`flag`].
    pub flags: U32,
    /// What it means, the op says.
    pub argument: U64,
}

impl Header {
    /// A header without entries, flags and argument.
    #[must_use]
    pub const fn new(version: u16, op: u16, sequence: u64) -> Self {
        Self {
            magic: U32::new(MAGIC),
            version: U16::new(version),
            op: U16::new(op),
            sequence: U64::new(sequence),
            count: U32::new(0),
            flags: U32::new(0),
            argument: U64::new(0),
        }
    }

    /// With that argument.
    #[must_use]
    pub const fn argument(mut self, argument: u64) -> Self {
        self.argument = U64::new(argument);
        self
    }

    /// With these flags.
    #[must_use]
    pub const fn flags(mut self, flags: u32) -> Self {
        self.flags = U32::new(flags);
        self
    }
}

/// One slot in a message.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Entry {
    /// The slot's key, not zero.
    pub key: U64,
    /// Bytes of its record in the body.
    pub length: U32,
    /// Descriptors of it beside the message.
    pub fds: U16,
    /// Of [`entry_flag`].
    pub flags: U16,
}

/// What the worker is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// It serves as soon as it is ready.
    Primary,
    /// Another one serves; it is to take over.
    Candidate,
}

/// The body of HELLO.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Hello {
    /// The oldest wire version that the keeper speaks.
    pub wire_min: U16,
    /// The newest.
    pub wire_max: U16,
    /// 1: primary, 2: candidate.
    pub role: U32,
    /// Counts the workers that the keeper has started, this one included.
    pub incarnation: U64,
    /// The most slots the keeper holds.
    pub max_slots: U64,
    /// The most descriptors the keeper holds.
    pub max_fds: U64,
    /// The most record bytes the keeper holds.
    pub max_bytes: U64,
}

impl Hello {
    /// The role, `None` for a number that this build does not know.
    #[must_use]
    pub const fn role(&self) -> Option<Role> {
        match self.role.get() {
            1 => Some(Role::Primary),
            2 => Some(Role::Candidate),
            _ => None,
        }
    }
}

impl Role {
    /// Its number on the wire.
    #[must_use]
    pub const fn number(self) -> u32 {
        match self {
            Self::Primary => 1,
            Self::Candidate => 2,
        }
    }
}

/// The body of ATTACH.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Attach {
    /// The oldest wire version that the worker speaks.
    pub wire_min: U16,
    /// The newest.
    pub wire_max: U16,
    /// Zero.
    pub reserved: U32,
}

/// The newest version in both ranges (each `(oldest, newest)`), `None` where they do not meet.
#[must_use]
pub const fn agree(one: (u16, u16), other: (u16, u16)) -> Option<u16> {
    let newest = if one.1 < other.1 { one.1 } else { other.1 };
    let oldest = if one.0 > other.0 { one.0 } else { other.0 };
    if newest >= oldest && oldest != 0 { Some(newest) } else { None }
}

/// Why the bytes of a message are not one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Malformed {
    /// Shorter than its header and entries say.
    Short,
    /// Not the magic number.
    Magic,
    /// The records, or the descriptors, of the entries do not add up to what came.
    Sum,
    /// An entry with key zero, an unknown flag, or a flag that contradicts what came with it.
    Entry,
}

impl core::fmt::Display for Malformed {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::Short => "message shorter than its header says",
            Self::Magic => "message without the magic number",
            Self::Sum => "entries do not add up to the message",
            Self::Entry => "entry with key zero or contradicting flags",
        })
    }
}

impl core::error::Error for Malformed {}

/// A message whose shape has been checked: entries, body and descriptors fit together.
#[derive(Debug, Clone, Copy)]
pub struct Message<'a> {
    /// Its header.
    pub header: &'a Header,
    /// Its entries.
    pub entries: &'a [Entry],
    /// What follows them.
    pub body: &'a [u8],
}

impl<'a> Message<'a> {
    /// Checks the shape of a message that came with `fds` descriptors.
    ///
    /// # Errors
    /// [`Malformed`].
    pub fn parse(bytes: &'a [u8], fds: usize) -> Result<Self, Malformed> {
        let (header, rest) = Header::ref_from_prefix(bytes).map_err(|_| Malformed::Short)?;
        if header.magic.get() != MAGIC {
            return Err(Malformed::Magic);
        }
        let count = usize::try_from(header.count.get()).map_err(|_| Malformed::Short)?;
        let (entries, body) =
            <[Entry]>::ref_from_prefix_with_elems(rest, count).map_err(|_| Malformed::Short)?;
        if count > 0 {
            let (mut length, mut carried) = (0_usize, 0_usize);
            for entry in entries {
                let flags = entry.flags.get();
                let bare = entry.fds.get() == 0
                    && (flags == entry_flag::KEEP_FDS || entry.length.get() == 0);
                let known =
                    flags == 0 || flags == entry_flag::KEEP_FDS || flags == entry_flag::DELETE;
                if entry.key.get() == 0 || !known || (flags != 0 && !bare) {
                    return Err(Malformed::Entry);
                }
                length = length.saturating_add(entry.length.get() as usize);
                carried += usize::from(entry.fds.get());
            }
            if length != body.len() || carried != fds {
                return Err(Malformed::Sum);
            }
        }
        Ok(Self { header, entries, body })
    }

    /// The entries with their records, in order.
    pub fn slots(&self) -> impl Iterator<Item = (&'a Entry, &'a [u8])> + use<'a> {
        let mut body = self.body;
        self.entries.iter().map(move |entry| {
            // `parse` has added the lengths up: a record is never cut short here.
            let at = body.len().min(entry.length.get() as usize);
            let (record, rest) = body.split_at(at);
            body = rest;
            (entry, record)
        })
    }
}

/// The body of a text message, cut at [`MAX_TEXT`] bytes between two characters.
#[must_use]
pub fn text(reason: &str) -> &[u8] {
    let mut end = reason.len().min(MAX_TEXT);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    reason.as_bytes().get(..end).unwrap_or_default()
}

/// A checksum against torn writes and bit rot, not against malice: FNV-1a over 8-byte words.
#[must_use]
pub fn checksum(bytes: &[u8]) -> u64 {
    const PRIME: u64 = 0x0000_0100_0000_01b3;
    let mut sum = 0xcbf2_9ce4_8422_2325 ^ bytes.len() as u64;
    let (words, tail) = bytes.as_chunks::<8>();
    for word in words {
        sum = (sum ^ u64::from_le_bytes(*word)).wrapping_mul(PRIME);
        sum ^= sum >> 32;
    }
    for byte in tail {
        sum = (sum ^ u64::from(*byte)).wrapping_mul(PRIME);
    }
    sum
}

/// How the keys of slots are divided: the topmost byte says whose slot it is, so that a worker
/// sorts what it loads without decoding a record.
pub mod key {
    /// Kept by the carrier `keeper`: [`Kept`](super::Kept) and what follows it.
    pub const CARRIER: u8 = 1;
    /// The carrier's handover.
    pub const HANDOVER: u64 = (CARRIER as u64) << 56 | 1;
    /// The first number that is allocated; those below have fixed meanings.
    pub const FIRST: u64 = 0x100;

    /// The space a key belongs to.
    #[must_use]
    pub const fn space(key: u64) -> u8 {
        (key >> 56) as u8
    }

    /// The number of a key within its space.
    #[must_use]
    pub const fn number(key: u64) -> u64 {
        key & (u64::MAX >> 8)
    }

    /// The key of that number in that space.
    #[must_use]
    pub const fn make(space: u8, number: u64) -> u64 {
        (space as u64) << 56 | number & (u64::MAX >> 8)
    }
}

/// The record of a slot of the carrier `keeper`; inline bytes follow it.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Kept {
    /// One of [`kept`].
    pub kind: U16,
    /// Zero.
    pub reserved: [u8; 6],
    /// Of memory and bytes: their length. Of an alias: the key of the slot that has the
    /// descriptor.
    pub value: U64,
}

/// Kinds of [`Kept`].
pub mod kept {
    /// A live descriptor.
    pub const LIVE: u16 = 1;
    /// Memory: the descriptor of the memory file.
    pub const MEMORY: u16 = 2;
    /// Bytes that follow.
    pub const BYTES: u16 = 3;
    /// Bytes in a sealed memfd.
    pub const BYTES_MEMFD: u16 = 4;
    /// A live descriptor that sits in another slot.
    pub const LIVE_ALIAS: u16 = 5;
    /// Memory whose descriptor sits in another slot; its length follows as a `u64`.
    pub const MEMORY_ALIAS: u16 = 6;
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    fn message(entries: &[Entry], body: &[u8]) -> Vec<u8> {
        let mut header = Header::new(1, op::CHANGE, 1);
        header.count = U32::new(entries.len() as u32);
        [header.as_bytes(), entries.as_bytes(), body].concat()
    }

    fn entry(key: u64, length: u32, fds: u16, flags: u16) -> Entry {
        Entry { key: key.into(), length: length.into(), fds: fds.into(), flags: flags.into() }
    }

    #[test]
    fn entries_and_their_records_come_back_in_order() {
        let bytes = message(&[entry(7, 3, 2, 0), entry(8, 0, 0, 2), entry(9, 2, 0, 1)], b"abcde");
        let message = Message::parse(&bytes, 2).unwrap();
        let slots: Vec<_> = message.slots().map(|(e, r)| (e.key.get(), r)).collect();
        assert_eq!(slots, [(7, &b"abc"[..]), (8, b""), (9, b"de")]);
    }

    #[test]
    fn what_does_not_add_up_is_refused() {
        let case = |entry, body: &[u8], fds| Message::parse(&message(&[entry], body), fds).err();
        assert_eq!(case(entry(1, 4, 0, 0), b"abc", 0), Some(Malformed::Sum));
        assert_eq!(case(entry(1, 3, 1, 0), b"abc", 0), Some(Malformed::Sum));
        assert_eq!(case(entry(1, 3, 0, 0), b"abc", 1), Some(Malformed::Sum));
        assert_eq!(case(entry(0, 3, 0, 0), b"abc", 0), Some(Malformed::Entry));
        assert_eq!(case(entry(1, 3, 0, 4), b"abc", 0), Some(Malformed::Entry));
        assert_eq!(case(entry(1, 3, 0, 3), b"abc", 0), Some(Malformed::Entry));
        assert_eq!(case(entry(1, 3, 0, 2), b"abc", 0), Some(Malformed::Entry));
        assert_eq!(case(entry(1, 3, 1, 1), b"abc", 1), Some(Malformed::Entry));
        assert_eq!(case(entry(1, u32::MAX, 0, 0), b"", 0), Some(Malformed::Sum));
    }

    #[test]
    fn short_and_foreign_messages_are_refused() {
        let whole = message(&[entry(1, 0, 0, 0)], b"");
        for end in 0..whole.len() {
            assert_eq!(Message::parse(&whole[..end], 0).err(), Some(Malformed::Short));
        }
        let mut foreign = whole;
        foreign[0] ^= 1;
        assert_eq!(Message::parse(&foreign, 0).err(), Some(Malformed::Magic));
    }

    #[test]
    fn the_newest_common_version_is_agreed_upon() {
        assert_eq!(agree((1, 3), (2, 5)), Some(3));
        assert_eq!(agree((2, 5), (1, 3)), Some(3));
        assert_eq!(agree((1, 1), (1, 1)), Some(1));
        assert_eq!(agree((1, 2), (3, 4)), None);
        assert_eq!(agree((0, 0), (0, 0)), None);
    }

    #[test]
    fn every_flipped_bit_changes_the_checksum() {
        let data: Vec<u8> = (0..61).collect();
        let sum = checksum(&data);
        for bit in 0..data.len() * 8 {
            let mut damaged = data.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_ne!(checksum(&damaged), sum, "bit {bit}");
        }
        assert_ne!(checksum(&data[..60]), sum);
    }

    #[test]
    fn a_text_is_cut_between_characters() {
        let long = "ä".repeat(MAX_TEXT);
        assert_eq!(text(&long).len(), MAX_TEXT);
        let odd = alloc::format!("x{long}");
        assert!(core::str::from_utf8(text(&odd)).is_ok());
        assert_eq!(text(&odd).len(), MAX_TEXT - 1);
    }
}
