//! What waits in the queue of a unix socket: read without taking it, and put into a new one.
//!
//! Invariants: reading leaves every message where it is, and `SO_PEEK_OFF` as it was; descriptors that
//! are seen on the way are duplicates, close-on-exec from birth.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use luo_abi::record::SocketKind;
use luo_carriers::HostFile;
use luo_core::{Errno, Failure};
use luo_sys::SocketOption;
use rustix::io::{Errno as Raw, ioctl_fionread};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg,
    sendmsg, socketpair,
};

use crate::fail::{system, unsupported};

/// Enough for 253 descriptors and what else the kernel tells of a message.
const CONTROL: usize = 8192;
/// What is read at once; a message that is longer takes another turn.
const AT_ONCE: usize = 256 << 10;
/// No message weighs less than its own description in the kernel.
const LIGHTEST: u32 = 512;

/// A message, or of a stream, bytes that descriptors come with, or none.
pub(crate) struct Queued {
    pub(crate) bytes: Vec<u8>,
    pub(crate) files: Vec<OwnedFd>,
}

/// Peeks at a queue from any place on; drop it, and peeking is as it was.
struct Peeking<'a> {
    file: &'a HostFile,
    before: i32,
}

impl<'a> Peeking<'a> {
    fn new(file: &'a HostFile) -> Result<Self, Failure> {
        let before =
            luo_sys::peek_offset(file).map_err(system("the socket's queue cannot be looked at"))?;
        Ok(Self { file, before })
    }

    /// What is there from `offset` on; `None` where nothing is. Whether it did not fit, too.
    fn at(&self, offset: usize, len: usize) -> Result<Option<(Queued, bool)>, Failure> {
        let failed = system("the socket's queue cannot be looked at");
        let place = i32::try_from(offset)
            .map_err(|_| Failure::new(Errno::TooBig, "too much lies in the socket's queue"))?;
        luo_sys::set_peek_offset(self.file, place).map_err(&failed)?;
        let mut bytes = vec![0; len];
        let mut room = [MaybeUninit::uninit(); CONTROL];
        let mut control = RecvAncillaryBuffer::new(&mut room);
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let mut received =
            recvmsg(self.file, &mut [IoSliceMut::new(&mut bytes)], &mut control, flags);
        if matches!(received, Err(Raw::CONNRESET)) {
            // Told once, before the queue itself, which is there.
            received = recvmsg(self.file, &mut [IoSliceMut::new(&mut bytes)], &mut control, flags);
        }
        let received = match received {
            Ok(received) => received,
            Err(Raw::AGAIN) => return Ok(None),
            Err(error) => return Err(failed(error.into())),
        };
        let mut files = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                files.extend(rights);
            }
        }
        if received.flags.contains(ReturnFlags::CTRUNC) {
            let reason = "not every descriptor in the socket's queue can be had: give luod more \
                          descriptors (LimitNOFILE)";
            return Err(Failure::new(Errno::MFile, reason));
        }
        bytes.truncate(received.bytes);
        Ok(Some((Queued { bytes, files }, received.flags.contains(ReturnFlags::TRUNC))))
    }

    /// Of so many bytes of a stream, how many lie before the piece that they end with.
    fn before_last_piece(&self, offset: usize, len: usize) -> Result<usize, Failure> {
        let failed = system("the socket's queue cannot be looked at");
        let place = i32::try_from(offset).unwrap_or(i32::MAX);
        luo_sys::set_peek_offset(self.file, place).map_err(&failed)?;
        luo_sys::bytes_before_last_piece(self.file, len).map_err(failed)
    }
}

impl Drop for Peeking<'_> {
    fn drop(&mut self) {
        // It is what was read from the same socket.
        let _ = luo_sys::set_peek_offset(self.file, self.before);
    }
}

/// What was not read. Where `over`, the socket reads no more after that.
pub(crate) fn unread(
    file: &HostFile,
    kind: SocketKind,
    over: bool,
) -> Result<Vec<Queued>, Failure> {
    let peeking = Peeking::new(file)?;
    let (mut all, mut offset, mut len) = (Vec::new(), 0, AT_ONCE);
    while let Some((queued, truncated)) = peeking.at(offset, len)? {
        if truncated && kind != SocketKind::Stream {
            len *= 2;
            continue;
        }
        // The end looks like a message without a byte.
        if queued.bytes.is_empty() && (over || kind == SocketKind::Stream) {
            break;
        }
        let begun = offset;
        offset += queued.bytes.len();
        if kind == SocketKind::Stream && !queued.files.is_empty() {
            // Bytes that were sent before them are read along with them, and come without.
            let first = peeking.before_last_piece(begun, queued.bytes.len())?;
            let (before, with) = queued.bytes.split_at_checked(first).unwrap_or_default();
            if !before.is_empty() {
                all.push(Queued { bytes: before.to_vec(), files: Vec::new() });
            }
            all.push(Queued { bytes: with.to_vec(), files: queued.files });
        } else {
            all.push(queued);
        }
    }
    let there = ioctl_fionread(file).map_err(system("the socket's queue cannot be looked at"))?;
    if kind != SocketKind::Datagram && there != offset as u64 {
        let reason = format!(
            "the socket's queue has {there} bytes, and {offset} could be looked at: it changed \
             meanwhile, or has an urgent byte"
        );
        return Err(Failure::new(Errno::Busy, reason));
    }
    Ok(all)
}

/// Two new sockets that are connected to one another, and do not block.
pub(crate) fn pair(kind: SocketKind) -> Result<(OwnedFd, OwnedFd), Failure> {
    let kind = match kind {
        SocketKind::Stream => SocketType::STREAM,
        SocketKind::Datagram => SocketType::DGRAM,
        SocketKind::Packets => SocketType::SEQPACKET,
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    socketpair(AddressFamily::UNIX, kind, flags, None).map_err(system("no new sockets"))
}

/// Sees that what was looked at is all that `sender` has sent: a message without a byte is seen once,
/// and never again by peeking, but weighs as much as before.
pub(crate) fn check_weight(
    sender: &HostFile,
    kind: SocketKind,
    queued: &[Queued],
) -> Result<(), Failure> {
    let failed = system("the socket's queue cannot be weighed");
    let weight = luo_sys::unread_weight(sender).map_err(&failed)?;
    let mut seen = 0;
    if !queued.is_empty() {
        let (copy, _receiver) = pair(kind)?;
        make_room(&copy, queued.iter().map(|message| message.bytes.len()))?;
        for message in queued {
            send(&copy, &message.bytes, &[])?;
        }
        seen = luo_sys::unread_weight(&copy).map_err(&failed)?;
    }
    if weight >= seen.saturating_add(LIGHTEST) {
        return Err(unsupported(
            "a message without a byte lies in the socket's queue, which cannot be seen a second \
             time: receive it before the update",
        ));
    }
    Ok(())
}

/// Lets messages of these lengths into the queue, which may have been smaller when they were sent;
/// the option is set to what it was afterwards.
pub(crate) fn make_room(
    sender: &OwnedFd,
    lengths: impl Iterator<Item = usize>,
) -> Result<(), Failure> {
    const SNDBUF: (u16, u16) = (1, 7);
    let failed = system("the socket cannot be given more room");
    let needed = lengths.fold(0_usize, |sum, len| sum.saturating_add(2 * len + 4096));
    let needed = i32::try_from(needed.min(1 << 30)).unwrap_or(i32::MAX);
    let Some(option) = SocketOption::find(SNDBUF.0, SNDBUF.1) else { return Ok(()) };
    let now = option.get(sender).map_err(&failed)?.unwrap_or_default();
    let now = now.first_chunk().map_or(0, |bytes| i32::from_ne_bytes(*bytes));
    if needed > now {
        // Where less is allowed, and that is too little, sending says so.
        option.set(sender, &needed.to_ne_bytes()).map_err(&failed)?;
    }
    Ok(())
}

/// Sends one message, with these files.
pub(crate) fn send(sender: &OwnedFd, bytes: &[u8], files: &[HostFile]) -> Result<(), Failure> {
    let failed = system("what was in the socket's queue cannot be put back");
    let files: Vec<BorrowedFd<'_>> = files.iter().map(AsFd::as_fd).collect();
    let mut room = [MaybeUninit::uninit(); CONTROL];
    let mut control = SendAncillaryBuffer::new(&mut room);
    if !files.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&files)) {
        return Err(Failure::new(Errno::TooBig, "too many descriptors come with one message"));
    }
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    let sent = sendmsg(sender, &[IoSlice::new(bytes)], &mut control, flags).map_err(failed)?;
    if sent == bytes.len() {
        return Ok(());
    }
    Err(Failure::new(Errno::NoSpc, "the new socket has no room for what was in the queue"))
}
