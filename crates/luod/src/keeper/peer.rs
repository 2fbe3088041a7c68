//! A worker as the keeper sees it: a process, a socket, and what is on its way to it.
//!
//! Invariants:
//! - What waits to be sent is bounded: a peer that does not read is not read from either, and
//!   slots are streamed from where they are held, one message at a time.
//! - A peer is heard only in the agreed wire version and in sequence; anything else is a breach,
//!   for which it is killed.

use std::collections::{BTreeSet, VecDeque};
use std::ffi::OsString;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::Stdio;
use std::time::{Duration, Instant};

use luo_abi::keeper::{
    Attach, Entry, Header, Hello, MAX_FDS, MAX_MESSAGE, Message, Role, VERSION_MAX, VERSION_MIN,
    VERSION_NONE, agree, entry_flag, op, text,
};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use zerocopy::{FromBytes, IntoBytes};

use super::process::{self, Process};
use super::slots::{Slot, Slots, Staged};
use super::wire::send;

/// Beyond so many unsent messages a peer is not read from.
const MAX_UNSENT: usize = 64;
/// After a send that failed for lack of kernel resources it is tried again so much later.
const RETRY: Duration = Duration::from_millis(10);
/// So many messages of slots are sent before others have their turn.
const BURST: usize = 8;

/// Why a peer is killed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Breach {
    #[error("sent something that is no message: {0}")]
    Malformed(#[from] luo_abi::keeper::Malformed),
    #[error("sent a message longer than {MAX_MESSAGE} bytes")]
    TooLong,
    #[error("sent a message out of sequence or in another wire version")]
    Sequence,
    #[error("speaks wire versions {0} to {1}, the keeper {VERSION_MIN} to {VERSION_MAX}")]
    Version(u16, u16),
    #[error("closed its socket")]
    Closed,
    #[error("has a broken socket: {0}")]
    Socket(#[from] Errno),
}

/// Slots on their way to a peer, in order of their keys.
#[derive(Debug)]
struct Stream {
    /// The key to go on from; `None` after the last.
    next: Option<u64>,
    /// Only these, those gone included; `None`: all.
    only: Option<BTreeSet<u64>>,
    /// What is sent after the last slot.
    end: Header,
    sent: u64,
}

#[derive(Debug)]
pub(super) struct Peer {
    pub(super) process: Process,
    pub(super) socket: OwnedFd,
    /// The agreed wire version, once the peer has attached.
    pub(super) wire: Option<u16>,
    /// The sequence number of the last message received.
    pub(super) sequence: u64,
    pub(super) started: Instant,
    pub(super) ready: Option<Instant>,
    /// It was told to change nothing any more.
    pub(super) quiesced: bool,
    pub(super) staged: Staged,
    unsent: VecDeque<(Header, Vec<u8>)>,
    /// A success that has not been acknowledged.
    done: Option<u64>,
    stream: Option<Stream>,
    /// It has closed its socket. Most of the time because it is ending: how, is known soon. If it
    /// has not ended by then it is killed.
    pub(super) closed: Option<Instant>,
    /// The kernel lacked something for sending: not before then.
    pub(super) paused: Option<Instant>,
}

impl Peer {
    /// Starts a worker and says HELLO to it.
    pub(super) fn spawn(
        program: &OwnedFd,
        arguments: &[OsString],
        role: Role,
        incarnation: u64,
        listeners: &[OwnedFd],
        slots: &Slots,
    ) -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC;
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        let limits = slots.limits();
        let hello = Hello {
            wire_min: VERSION_MIN.into(),
            wire_max: VERSION_MAX.into(),
            role: role.number().into(),
            incarnation: incarnation.into(),
            max_slots: (limits.slots as u64).into(),
            max_fds: (limits.fds as u64).into(),
            max_bytes: (limits.bytes as u64).into(),
        };
        let header = Header::new(VERSION_NONE, op::HELLO, 0);
        let fds: Vec<BorrowedFd<'_>> = listeners.iter().map(AsFd::as_fd).collect();
        let parts = [IoSlice::new(header.as_bytes()), IoSlice::new(hello.as_bytes())];
        if !send(&ours, &parts, &fds)? {
            return Err(Errno::TOOMANYREFS.into());
        }
        let (process, _) =
            Process::spawn(process::command(program).args(arguments).stdin(Stdio::from(theirs)))?;
        Ok(Self::carried(process, ours, None, 0, false))
    }

    /// A worker that the image before has started.
    pub(super) fn carried(
        process: Process,
        socket: OwnedFd,
        wire: Option<u16>,
        sequence: u64,
        ready: bool,
    ) -> Self {
        let now = Instant::now();
        Self {
            process,
            socket,
            wire,
            sequence,
            started: now,
            ready: ready.then_some(now),
            quiesced: false,
            staged: Staged::default(),
            unsent: VecDeque::new(),
            done: None,
            stream: None,
            closed: None,
            paused: None,
        }
    }

    /// Whether it may be heard now.
    pub(super) fn listens(&self) -> bool {
        self.unsent.len() < MAX_UNSENT && self.closed.is_none()
    }

    /// Whether nothing is on its way in either direction that would have to be carried over.
    pub(super) fn idle(&self) -> bool {
        self.wire.is_some() && !self.sending() && self.staged.is_empty()
    }

    fn sending(&self) -> bool {
        !self.unsent.is_empty() || self.done.is_some() || self.streaming()
    }

    /// Whether slots are on their way to it.
    pub(super) fn streaming(&self) -> bool {
        self.stream.is_some()
    }

    /// Whether something waits for the socket to take it.
    pub(super) fn sends(&self, now: Instant) -> bool {
        self.sending() && self.paused.is_none_or(|until| until <= now)
    }

    /// Checks what every message must have: the agreed version and the next sequence number.
    pub(super) fn check<'a>(&mut self, bytes: &'a [u8], fds: usize) -> Result<Message<'a>, Breach> {
        let message = Message::parse(bytes, fds)?;
        self.check_header(message.header)?;
        if self.wire.is_none() {
            let attach = Attach::read_from_bytes(message.body).map_err(|_| Breach::Sequence)?;
            let range = (attach.wire_min.get(), attach.wire_max.get());
            let wire = agree(range, (VERSION_MIN, VERSION_MAX));
            self.wire = Some(wire.ok_or(Breach::Version(range.0, range.1))?);
        }
        Ok(message)
    }

    fn check_header(&mut self, header: &Header) -> Result<(), Breach> {
        let expected = self.sequence + 1;
        let version = self.wire.unwrap_or(VERSION_NONE);
        let attaching = self.wire.is_none() == (header.op.get() == op::ATTACH);
        if header.sequence.get() != expected || header.version.get() != version || !attaching {
            return Err(Breach::Sequence);
        }
        self.sequence = expected;
        Ok(())
    }

    /// Notes a message whose descriptors did not fit into this process: it is refused.
    pub(super) fn refuse_unread(&mut self, bytes: &[u8]) -> Result<(), Breach> {
        let (header, _) = Header::read_from_prefix(bytes)
            .map_err(|_| Breach::Malformed(luo_abi::keeper::Malformed::Short))?;
        self.check_header(&header)?;
        if header.op.get() == op::CHANGE {
            self.staged.fail(Errno::MFILE);
            if header.flags.get() & luo_abi::keeper::flag::MORE != 0 {
                self.acknowledge(Ok(()));
                return Ok(());
            }
            self.staged = Staged::default();
        }
        self.acknowledge(Err(Errno::MFILE));
        Ok(())
    }

    /// Answers the message received last.
    pub(super) fn acknowledge(&mut self, result: Result<(), Errno>) {
        let sequence = self.sequence;
        match result {
            Ok(()) => self.done = Some(sequence),
            Err(errno) => {
                // An ACK with an errno also says that everything before it succeeded.
                self.done = None;
                let header = self.header(op::ACK, sequence);
                let errno = u64::from(errno.raw_os_error().unsigned_abs());
                self.unsent.push_back((header.argument(errno), Vec::new()));
            }
        }
    }

    /// Tells it something; the flags and the text are what the op makes of them.
    pub(super) fn tell(&mut self, op: u16, flags: u32, reason: &str) {
        if let Some(sequence) = self.done.take() {
            self.unsent.push_back((self.header(op::ACK, sequence), Vec::new()));
        }
        let header = self.header(op, 0).flags(flags);
        self.unsent.push_back((header, text(reason).to_vec()));
    }

    /// Begins to send all slots, the answer to the message received last.
    pub(super) fn send_all(&mut self) {
        self.acknowledge(Ok(()));
        let end = self.header(op::END, self.sequence);
        self.stream = Some(Stream { next: Some(0), only: None, end, sent: 0 });
    }

    /// Begins to send these slots, and then GO.
    pub(super) fn send_changed(&mut self, changed: BTreeSet<u64>) {
        let end = self.header(op::GO, 0);
        self.stream = Some(Stream { next: Some(0), only: Some(changed), end, sent: 0 });
    }

    fn header(&self, op: u16, sequence: u64) -> Header {
        Header::new(self.wire.unwrap_or(VERSION_NONE), op, sequence)
    }

    /// Sends what the socket takes.
    pub(super) fn flush(&mut self, slots: &Slots) -> Result<(), Errno> {
        self.paused = None;
        match self.send_waiting(slots) {
            // As many descriptors are under way as this user may have, or memory is short: unlike
            // with a full socket, nothing tells when that changes.
            Err(Errno::TOOMANYREFS | Errno::NOBUFS | Errno::NOMEM) => {
                self.paused = Some(Instant::now() + RETRY);
                Ok(())
            }
            // Nobody reads there any more. What was said before may still be heard; after that,
            // the closed socket is a breach.
            Err(Errno::PIPE | Errno::CONNRESET) => {
                self.unsent.clear();
                self.done = None;
                self.stream = None;
                Ok(())
            }
            result => result,
        }
    }

    fn send_waiting(&mut self, slots: &Slots) -> Result<(), Errno> {
        while let Some((header, body)) = self.unsent.front() {
            if !send(&self.socket, &[IoSlice::new(header.as_bytes()), IoSlice::new(body)], &[])? {
                return Ok(());
            }
            self.unsent.pop_front();
        }
        if let Some(sequence) = self.done {
            let header = self.header(op::ACK, sequence);
            if !send(&self.socket, &[IoSlice::new(header.as_bytes())], &[])? {
                return Ok(());
            }
            self.done = None;
        }
        for _ in 0..BURST {
            let Some(stream) = &mut self.stream else { break };
            let Some(next) = stream.next else {
                let end = stream.end.argument(stream.sent);
                if send(&self.socket, &[IoSlice::new(end.as_bytes())], &[])? {
                    self.stream = None;
                }
                break;
            };
            let mut parcel = Parcel::default();
            let last = match &stream.only {
                None => parcel.fill(slots.from(next).map(|(key, slot)| (key, Some(slot)))),
                Some(keys) => parcel.fill(keys.range(next..).map(|key| (*key, slots.get(*key)))),
            };
            if last.is_some() {
                let mut header = Header::new(self.wire.unwrap_or(VERSION_NONE), op::SLOTS, 0);
                header.count = (parcel.entries.len() as u32).into();
                if !parcel.send(&self.socket, &header)? {
                    break;
                }
                stream.sent += parcel.entries.len() as u64;
            }
            stream.next = last.and_then(|last| last.checked_add(1));
        }
        Ok(())
    }
}

/// Slots that go into one message.
#[derive(Debug, Default)]
struct Parcel<'a> {
    entries: Vec<Entry>,
    body: Vec<u8>,
    fds: Vec<BorrowedFd<'a>>,
}

impl<'a> Parcel<'a> {
    /// Takes as many as fit, and gives the key of the last. One slot always fits: it came in one
    /// message.
    fn fill(&mut self, slots: impl Iterator<Item = (u64, Option<&'a Slot>)>) -> Option<u64> {
        let mut last = None;
        for (key, slot) in slots {
            let (record, fds) = slot.map_or((&[][..], &[][..]), Slot::parts);
            let length = size_of::<Header>()
                + (self.entries.len() + 1) * size_of::<Entry>()
                + self.body.len()
                + record.len();
            if self.fds.len() + fds.len() > MAX_FDS || length > MAX_MESSAGE {
                break;
            }
            self.entries.push(Entry {
                key: key.into(),
                length: (record.len() as u32).into(),
                fds: (fds.len() as u16).into(),
                flags: if slot.is_some() { 0 } else { entry_flag::DELETE }.into(),
            });
            self.body.extend_from_slice(record);
            self.fds.extend(fds.iter().map(AsFd::as_fd));
            last = Some(key);
        }
        last
    }

    fn send(&self, socket: &OwnedFd, header: &Header) -> Result<bool, Errno> {
        let parts = [
            IoSlice::new(header.as_bytes()),
            IoSlice::new(self.entries.as_bytes()),
            IoSlice::new(&self.body),
        ];
        send(socket, &parts, &self.fds)
    }
}
