//! How many descriptors a second another process can be given at all: the limit of everything
//! that luo does with descriptors.
//!
//! The sender may be two windows ahead of the receiver. That keeps both busy, and keeps the number
//! of descriptors that are on their way below the limit of 1,024 that an ordinary user has.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Instant;

use rustix::net::{
    RecvAncillaryBuffer, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    SocketType, recv, recvmsg, send, sendmsg,
};

use super::helper::Peer;
use super::{Bencher, Row};
use crate::failure::{Context as _, Failed, Result};

/// The most descriptors that the kernel takes in one message.
const MAX: usize = 253;
/// Descriptors between two acknowledgements.
const WINDOW: usize = 256;
/// What a message says: whether an acknowledgement is wanted.
const MORE: &[u8; 1] = b"m";
const LAST: &[u8; 1] = b"l";

/// Descriptors a second in batches of 1, 16 and 253.
pub(super) fn run(bencher: &Bencher<'_>) -> Result<Vec<Row>> {
    [1, 16, MAX]
        .into_iter()
        .map(|batch| {
            let what = format!("descriptors to another process, {batch} a message");
            bencher.measuring(&what);
            let value = per_second(bencher, batch)?;
            Ok(Row::limit(what, "bare SCM_RIGHTS", value, "descriptors/s"))
        })
        .collect()
}

/// The bare limit: descriptors a second, `batch` in a message.
fn per_second(bencher: &Bencher<'_>, batch: usize) -> Result<f64> {
    // The same file each time: what is measured is the way, and nothing of the files.
    let file = rustix::fs::memfd_create("luo-bench", rustix::fs::MemfdFlags::CLOEXEC)
        .context(|| "make a memfd".into())?;
    let descriptors = bencher.times(2_000_000).min(bencher.times(400_000) * batch);
    let files = vec![file.as_fd(); descriptors];
    let bare = Bare::start(bencher, batch)?;
    bare.round(&files[..1])?;
    let value = bare.round(&files)?;
    bare.end()?;
    Ok(value)
}

/// A bare socket with a helper at its other end, which receives and closes.
#[derive(Debug)]
pub(super) struct Bare {
    peer: Peer,
    batch: usize,
    window: usize,
}

impl Bare {
    /// For messages of `batch` descriptors.
    pub(super) fn start(bencher: &Bencher<'_>, batch: usize) -> Result<Self> {
        let window = (WINDOW / batch).max(1);
        let args = ["receive-descriptors".into()];
        let peer = Peer::start(&bencher.xtask, &args, SocketType::SEQPACKET)?;
        Ok(Self { peer, batch, window })
    }

    /// Sends these, and gives how many a second went.
    pub(super) fn round(&self, files: &[BorrowedFd<'_>]) -> Result<f64> {
        let socket = self.peer.socket()?.as_fd();
        let began = Instant::now();
        let mut unanswered = 0;
        for files in files.chunks(self.window * self.batch) {
            if unanswered == 2 {
                acknowledged(socket)?;
                unanswered -= 1;
            }
            send_window(socket, files, self.batch)?;
            unanswered += 1;
        }
        for _ in 0..unanswered {
            acknowledged(socket)?;
        }
        Ok(files.len() as f64 / began.elapsed().as_secs_f64())
    }

    pub(super) fn end(self) -> Result<()> {
        self.peer.end()
    }
}

/// Sends some messages, of which the last one asks for an acknowledgement.
fn send_window(socket: BorrowedFd<'_>, files: &[BorrowedFd<'_>], batch: usize) -> Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX))];
    let messages = files.len().div_ceil(batch);
    for (number, files) in files.chunks(batch).enumerate() {
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !control.push(SendAncillaryMessage::ScmRights(files)) {
            return Err(Failed::new("more descriptors than a message holds"));
        }
        let message = if number + 1 == messages { LAST } else { MORE };
        sendmsg(socket, &[IoSlice::new(message)], &mut control, SendFlags::NOSIGNAL)
            .context(|| "send descriptors".into())?;
    }
    Ok(())
}

fn acknowledged(socket: BorrowedFd<'_>) -> Result<()> {
    let mut byte = [0];
    let (read, _) =
        recv(socket, &mut byte, RecvFlags::empty()).context(|| "wait for the helper".into())?;
    if read == 0 {
        return Err(Failed::new("the helper went away"));
    }
    Ok(())
}

/// The helper: receives until the other end is closed.
pub(super) fn receive() -> Result<()> {
    let stdin = std::io::stdin();
    let socket = stdin.as_fd();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX))];
    loop {
        let mut byte = [0];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = recvmsg(
            socket,
            &mut [IoSliceMut::new(&mut byte)],
            &mut control,
            RecvFlags::CMSG_CLOEXEC,
        )
        .context(|| "receive descriptors".into())?;
        if received.bytes == 0 {
            return Ok(());
        }
        // Dropping what is left in the buffer closes the descriptors.
        drop(control);
        if byte == *LAST {
            send(socket, b"x", SendFlags::NOSIGNAL).context(|| "acknowledge".into())?;
        }
    }
}
