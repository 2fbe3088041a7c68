//! How many descriptors a second another process can be given at all: the limit of everything
//! that luo does with descriptors.
//!
//! The sender may be two windows ahead of the receiver. That keeps both busy, and keeps the number
//! of descriptors that are on their way below the limit of 1,024 that an ordinary user has.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
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

/// Descriptors a second in batches of 1, 16 and 253.
pub(super) fn run(bencher: &Bencher) -> Result<Vec<Row>> {
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
fn per_second(bencher: &Bencher, batch: usize) -> Result<f64> {
    let mut bare = Bare::start(bencher, batch)?;
    let descriptors = bencher.times(2_000_000).min(bencher.times(400_000) * batch);
    let value = bare.round(descriptors)?;
    bare.end()?;
    Ok(value)
}

/// A bare socket with a helper at its other end, which receives and closes.
#[derive(Debug)]
pub(super) struct Bare {
    peer: Peer,
    /// The same file each time: what is measured is the way, not opening and closing files.
    file: OwnedFd,
    batch: usize,
    window: usize,
}

impl Bare {
    /// For messages of `batch` descriptors.
    pub(super) fn start(bencher: &Bencher, batch: usize) -> Result<Self> {
        let window = (WINDOW / batch).max(1);
        let args = ["receive-descriptors".into(), format!("--window={window}")];
        let peer = Peer::start(&bencher.xtask, &args, SocketType::SEQPACKET)?;
        let file = rustix::fs::memfd_create("luo-bench", rustix::fs::MemfdFlags::CLOEXEC)
            .context(|| "make a memfd".into())?;
        let mut bare = Self { peer, file, batch, window };
        // Not measured: the helper may not have started yet.
        bare.round(1)?;
        Ok(bare)
    }

    /// Sends at least so many, and gives how many a second went.
    pub(super) fn round(&mut self, descriptors: usize) -> Result<f64> {
        let (batch, window) = (self.batch, self.window);
        let files = vec![self.file.as_fd(); batch];
        let socket = self.peer.socket()?.as_fd();
        let windows = descriptors.div_ceil(window * batch).max(2);
        let began = Instant::now();
        send_window(socket, &files, window)?;
        for _ in 1..windows {
            send_window(socket, &files, window)?;
            acknowledged(socket)?;
        }
        acknowledged(socket)?;
        let took = began.elapsed();
        Ok((windows * window * batch) as f64 / took.as_secs_f64())
    }

    pub(super) fn end(self) -> Result<()> {
        self.peer.end()
    }
}

fn send_window(socket: BorrowedFd<'_>, files: &[BorrowedFd<'_>], window: usize) -> Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX))];
    for _ in 0..window {
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !control.push(SendAncillaryMessage::ScmRights(files)) {
            return Err(Failed::new("more descriptors than a message holds"));
        }
        sendmsg(socket, &[IoSlice::new(b"x")], &mut control, SendFlags::NOSIGNAL)
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
pub(super) fn receive(window: usize) -> Result<()> {
    let stdin = std::io::stdin();
    let socket = stdin.as_fd();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX))];
    let mut messages = 0;
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
        messages += 1;
        if messages == window {
            messages = 0;
            send(socket, b"x", SendFlags::NOSIGNAL).context(|| "acknowledge".into())?;
        }
    }
}
