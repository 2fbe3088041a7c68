//! Varlink framing with descriptors: JSON text ended by a zero byte, over a Unix stream socket.
//!
//! Both sides use it: it decides nothing, and waits for nothing.
//!
//! Invariants:
//! - Descriptors are borrowed to send and owned on receipt, close-on-exec from birth. Whatever is
//!   not taken is closed when its frame or receiver is dropped.
//! - What a peer can make a receiver hold is bounded: bytes of one frame by [`Limits::bytes`],
//!   descriptors by [`MAX_DESCRIPTORS`].
//! - Descriptors belong to the frame that contains the last byte of the read they came with: Linux
//!   ends a read at the write that carried descriptors, and a sender gives them with the first
//!   byte of a frame, in a write of its own.

use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};

use crate::protocol::MAX_DESCRIPTORS;

/// Bytes asked of the socket at once.
const READ_SIZE: usize = 16 * 1024;

/// One message and the descriptors that came with it.
#[derive(Debug)]
pub struct Frame {
    /// The JSON text, without the zero byte.
    pub text: Vec<u8>,
    /// Its descriptors.
    pub descriptors: Vec<OwnedFd>,
}

/// What a peer may make a [`Receiver`] hold.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Bytes of one frame.
    pub bytes: usize,
}

/// Why a connection cannot be read any further.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WireError {
    /// The peer closed the connection between two frames.
    #[error("the connection was closed")]
    Closed,
    /// The peer closed the connection in the middle of a frame.
    #[error("the connection was closed in the middle of a message")]
    Torn,
    /// A frame is longer than the limit.
    #[error("a message is longer than {limit} bytes; split it")]
    TooLong {
        /// The limit in bytes.
        limit: usize,
    },
    /// More descriptors came with one frame than a message can carry.
    #[error("more than {MAX_DESCRIPTORS} descriptors came with one message; split it")]
    TooManyDescriptors,
    /// The kernel could not install all descriptors of a message.
    #[error("descriptors of a message were lost; is the limit of open files reached?")]
    DescriptorsLost,
    /// The socket failed.
    #[error("the socket failed: {0}")]
    Io(#[from] io::Error),
}

/// Takes frames out of a stream of bytes.
#[derive(Debug)]
pub struct Receiver {
    buffer: Vec<u8>,
    /// Start of the first frame that was not taken yet.
    start: usize,
    /// Up to here no zero byte was found.
    searched: usize,
    /// Descriptors, by the position in `buffer` of the byte they belong to.
    descriptors: VecDeque<(usize, Vec<OwnedFd>)>,
    limits: Limits,
}

impl Receiver {
    /// A receiver within these limits.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self { buffer: Vec::new(), start: 0, searched: 0, descriptors: VecDeque::new(), limits }
    }

    /// Whether part of a frame is here and the rest is not.
    #[must_use]
    pub fn is_mid_frame(&self) -> bool {
        self.start < self.buffer.len()
    }

    /// The next whole frame that is already here.
    ///
    /// # Errors
    /// [`WireError::TooManyDescriptors`].
    pub fn next_frame(&mut self) -> Result<Option<Frame>, WireError> {
        let Some(length) = self.buffer[self.searched..].iter().position(|byte| *byte == 0) else {
            self.searched = self.buffer.len();
            return Ok(None);
        };
        let end = self.searched + length;
        let text = self.buffer[self.start..end].to_vec();
        let mut descriptors = Vec::new();
        while let Some((position, _)) = self.descriptors.front() {
            if *position > end {
                break;
            }
            if let Some((_, more)) = self.descriptors.pop_front() {
                if descriptors.is_empty() {
                    descriptors = more;
                } else {
                    descriptors.extend(more);
                }
            }
        }
        if descriptors.len() > MAX_DESCRIPTORS {
            self.descriptors.push_front((end, descriptors));
            return Err(WireError::TooManyDescriptors);
        }
        self.start = end + 1;
        self.searched = self.start;
        if self.start == self.buffer.len() {
            self.buffer.clear();
            self.start = 0;
            self.searched = 0;
        }
        Ok(Some(Frame { text, descriptors }))
    }

    /// Reads once from the socket, without waiting.
    ///
    /// # Errors
    /// `Io` with `WouldBlock` where nothing is there now; every other error is final.
    pub fn fill(&mut self, socket: BorrowedFd<'_>) -> Result<(), WireError> {
        if self.start > 0 {
            self.buffer.drain(..self.start);
            for (position, _) in &mut self.descriptors {
                *position -= self.start;
            }
            self.searched -= self.start;
            self.start = 0;
        }
        let before = self.buffer.len();
        if before > self.limits.bytes {
            return Err(WireError::TooLong { limit: self.limits.bytes });
        }
        self.buffer.resize(before + READ_SIZE, 0);
        let mut came = Vec::new();
        let result = receive(socket, &mut self.buffer[before..], &mut came);
        self.buffer.truncate(before + result.as_ref().copied().unwrap_or(0));
        if !came.is_empty() {
            self.descriptors.push_back((self.buffer.len().saturating_sub(1), came));
            let held: usize = self.descriptors.iter().map(|(_, list)| list.len()).sum();
            if held > MAX_DESCRIPTORS && !self.buffer[before..].contains(&0) {
                return Err(WireError::TooManyDescriptors);
            }
        }
        match result? {
            0 if before > 0 => Err(WireError::Torn),
            0 => Err(WireError::Closed),
            _ => Ok(()),
        }
    }

    /// The descriptors of frames that were not taken. For whoever must not wait for their close
    /// when the connection ends.
    pub fn abandon(&mut self) -> Vec<OwnedFd> {
        self.descriptors.drain(..).flat_map(|(_, descriptors)| descriptors).collect()
    }
}

/// Receives bytes and descriptors once; `descriptors` gets what came.
fn receive(
    socket: BorrowedFd<'_>,
    bytes: &mut [u8],
    descriptors: &mut Vec<OwnedFd>,
) -> Result<usize, WireError> {
    let mut space =
        [const { MaybeUninit::uninit() }; rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = retry(|| {
        rustix::net::recvmsg(
            socket,
            &mut [IoSliceMut::new(bytes)],
            &mut control,
            RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT,
        )
    })?;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(list) = message {
            descriptors.extend(list);
        }
    }
    if received.flags.contains(ReturnFlags::CTRUNC) {
        return Err(WireError::DescriptorsLost);
    }
    Ok(received.bytes)
}

/// Sends bytes once, with descriptors if there are any. Gives the number of bytes sent.
///
/// # Errors
/// `WouldBlock` where the socket takes nothing now, E2BIG for more than [`MAX_DESCRIPTORS`], and
/// see [`is_crowded`].
pub fn send(
    socket: BorrowedFd<'_>,
    bytes: &[u8],
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<usize> {
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    if descriptors.is_empty() {
        return retry(|| rustix::net::send(socket, bytes, flags));
    }
    let mut space =
        [const { MaybeUninit::uninit() }; rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::Error::from_raw_os_error(rustix::io::Errno::TOOBIG.raw_os_error()));
    }
    retry(|| rustix::net::sendmsg(socket, &[IoSlice::new(bytes)], &mut control, flags))
}

/// Whether sending failed because too many descriptors of this user are on their way between
/// processes (ETOOMANYREFS; the kernel allows as many as `RLIMIT_NOFILE`). It passes when their
/// receivers have read them, which no socket announces: try again after a moment.
#[must_use]
pub fn is_crowded(error: &io::Error) -> bool {
    rustix::io::Errno::from_io_error(error) == Some(rustix::io::Errno::TOOMANYREFS)
}

/// Frames on their way out. `D` is what holds their descriptors meanwhile.
#[derive(Debug)]
pub struct Sender<D> {
    queue: VecDeque<Outgoing<D>>,
    queued: usize,
}

#[derive(Debug)]
struct Outgoing<D> {
    bytes: Vec<u8>,
    sent: usize,
    descriptors: Vec<D>,
}

impl<D> Default for Sender<D> {
    fn default() -> Self {
        Self { queue: VecDeque::new(), queued: 0 }
    }
}

impl<D: AsFd> Sender<D> {
    /// Adds a frame; the zero byte is added here.
    pub fn push(&mut self, mut text: Vec<u8>, descriptors: Vec<D>) {
        text.push(0);
        self.queued += text.len();
        self.queue.push_back(Outgoing { bytes: text, sent: 0, descriptors });
    }

    /// Bytes that wait.
    #[must_use]
    pub fn queued(&self) -> usize {
        self.queued
    }

    /// Sends what the socket takes now. Done when nothing waits any more.
    ///
    /// # Errors
    /// `WouldBlock` where the socket takes nothing now; every other error is final.
    pub fn flush(&mut self, socket: BorrowedFd<'_>) -> io::Result<()> {
        while let Some(front) = self.queue.front_mut() {
            let list: Vec<BorrowedFd<'_>> = if front.sent == 0 {
                front.descriptors.iter().map(AsFd::as_fd).collect()
            } else {
                Vec::new()
            };
            let sent = send(socket, &front.bytes[front.sent..], &list)?;
            if sent > 0 {
                front.descriptors.clear();
            }
            front.sent += sent;
            self.queued -= sent;
            if front.sent == front.bytes.len() {
                self.queue.pop_front();
            }
        }
        Ok(())
    }
}

fn retry<T>(mut call: impl FnMut() -> rustix::io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(rustix::io::Errno::INTR) => {}
            other => return other.map_err(Into::into),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    fn pair() -> (UnixStream, UnixStream, Receiver) {
        let (a, b) = UnixStream::pair().unwrap();
        (a, b, Receiver::new(Limits { bytes: 64 * 1024 }))
    }

    fn push(socket: &UnixStream, text: &str, descriptors: usize) {
        let held: Vec<OwnedFd> =
            (0..descriptors).map(|_| socket.as_fd().try_clone_to_owned().unwrap()).collect();
        let mut sender = Sender::default();
        sender.push(text.as_bytes().to_vec(), held);
        sender.flush(socket.as_fd()).unwrap();
    }

    #[test]
    fn frames_come_out_as_they_went_in() {
        let (a, b, mut receiver) = pair();
        push(&a, "one", 0);
        push(&a, "two", 0);
        receiver.fill(b.as_fd()).unwrap();
        assert_eq!(receiver.next_frame().unwrap().unwrap().text, b"one");
        assert_eq!(receiver.next_frame().unwrap().unwrap().text, b"two");
        assert!(receiver.next_frame().unwrap().is_none());
        assert!(!receiver.is_mid_frame());
    }

    #[test]
    fn descriptors_stay_with_their_frame_among_frames_without_any() {
        let (a, b, mut receiver) = pair();
        push(&a, "plain", 0);
        push(&a, "three", 3);
        push(&a, "plain again", 0);
        push(&a, "two", 2);
        let mut counts = Vec::new();
        while counts.len() < 4 {
            match receiver.next_frame().unwrap() {
                Some(frame) => counts.push((frame.text, frame.descriptors.len())),
                None => receiver.fill(b.as_fd()).unwrap(),
            }
        }
        let expected: Vec<(Vec<u8>, usize)> =
            [("plain", 0), ("three", 3), ("plain again", 0), ("two", 2)]
                .map(|(text, count)| (text.as_bytes().to_vec(), count))
                .to_vec();
        assert_eq!(counts, expected);
    }

    #[test]
    fn received_descriptors_are_close_on_exec() {
        let (a, b, mut receiver) = pair();
        push(&a, "x", 1);
        receiver.fill(b.as_fd()).unwrap();
        let frame = receiver.next_frame().unwrap().unwrap();
        let flags = rustix::io::fcntl_getfd(&frame.descriptors[0]).unwrap();
        assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
    }

    #[test]
    fn a_frame_over_the_limit_is_refused() {
        let (a, b, _) = pair();
        let mut receiver = Receiver::new(Limits { bytes: 1024 });
        a.set_nonblocking(true).unwrap();
        push(&a, &"x".repeat(40_000), 0);
        let error = loop {
            assert!(receiver.next_frame().unwrap().is_none());
            if let Err(error) = receiver.fill(b.as_fd()) {
                break error;
            }
        };
        assert!(matches!(error, WireError::TooLong { limit: 1024 }), "{error}");
    }

    #[test]
    fn descriptors_cannot_pile_up_before_a_frame_ends() {
        let (a, b, mut receiver) = pair();
        let held: Vec<BorrowedFd<'_>> = (0..200).map(|_| a.as_fd()).collect();
        send(a.as_fd(), b"x", &held).unwrap();
        send(a.as_fd(), b"x", &held).unwrap();
        receiver.fill(b.as_fd()).unwrap();
        assert!(matches!(receiver.fill(b.as_fd()), Err(WireError::TooManyDescriptors)));
    }

    #[test]
    fn half_a_frame_then_the_end_is_torn_and_nothing_then_the_end_is_closed() {
        let (a, b, mut receiver) = pair();
        send(a.as_fd(), b"half", &[]).unwrap();
        drop(a);
        receiver.fill(b.as_fd()).unwrap();
        assert!(receiver.next_frame().unwrap().is_none());
        assert!(matches!(receiver.fill(b.as_fd()), Err(WireError::Torn)));
        let (a, b, mut receiver) = pair();
        drop(a);
        assert!(matches!(receiver.fill(b.as_fd()), Err(WireError::Closed)));
    }

    #[test]
    fn nothing_there_would_block() {
        let (_a, b, mut receiver) = pair();
        match receiver.fill(b.as_fd()) {
            Err(WireError::Io(error)) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
            other => panic!("{other:?}"),
        }
    }
}
