//! Messages in and out of a worker's socket, without ever waiting.
//!
//! Invariants: received descriptors are close-on-exec from birth and owned at once; what does not
//! fit is closed, never kept half.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use luo_abi::keeper::{MAX_FDS, MAX_MESSAGE};
use luo_carriers::closer;
use rustix::cmsg_space;
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

/// Buffers that all sockets share, used for one message at a time.
#[derive(Debug)]
pub(crate) struct Scratch {
    data: Vec<u8>,
    control: Vec<MaybeUninit<u8>>,
    /// The descriptors of the message received last.
    pub(crate) fds: Vec<OwnedFd>,
}

/// What came of a receive.
#[derive(Debug)]
pub(crate) enum Received<'a> {
    /// A message; its descriptors beside it.
    Message(&'a [u8], &'a mut Vec<OwnedFd>),
    /// A message for whose descriptors this process had no room; they are closed.
    NoRoom(&'a [u8]),
    /// A message longer than any may be.
    TooLong,
    /// Nothing now.
    Empty,
    /// The other end is closed.
    Closed,
}

impl Default for Scratch {
    /// Without buffers: a stand-in while the real one is in use.
    fn default() -> Self {
        Self { data: Vec::new(), control: Vec::new(), fds: Vec::new() }
    }
}

impl Scratch {
    pub(crate) fn new() -> Self {
        Self {
            data: vec![0; MAX_MESSAGE],
            control: vec![MaybeUninit::uninit(); cmsg_space!(ScmRights(MAX_FDS))],
            fds: Vec::with_capacity(MAX_FDS),
        }
    }

    pub(crate) fn receive(&mut self, socket: impl AsFd) -> Result<Received<'_>, Errno> {
        closer::close_all(self.fds.drain(..));
        let mut control = RecvAncillaryBuffer::new(&mut self.control);
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let got = loop {
            match recvmsg(&socket, &mut [IoSliceMut::new(&mut self.data)], &mut control, flags) {
                Ok(got) => break got,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(Received::Empty),
                Err(Errno::CONNRESET) => return Ok(Received::Closed),
                Err(error) => return Err(error),
            }
        };
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = message {
                self.fds.extend(fds);
            }
        }
        let bytes = self.data.get(..got.bytes).unwrap_or_default();
        if got.flags.contains(ReturnFlags::CTRUNC) {
            closer::close_all(self.fds.drain(..));
            return Ok(Received::NoRoom(bytes));
        }
        if got.flags.contains(ReturnFlags::TRUNC) {
            closer::close_all(self.fds.drain(..));
            return Ok(Received::TooLong);
        }
        if bytes.is_empty() {
            return Ok(Received::Closed);
        }
        Ok(Received::Message(bytes, &mut self.fds))
    }
}

/// Sends one message; `Ok(false)`: the socket is full, try again later.
pub(crate) fn send(
    socket: impl AsFd,
    parts: &[IoSlice<'_>],
    fds: &[BorrowedFd<'_>],
) -> Result<bool, Errno> {
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(Errno::TOOBIG);
    }
    loop {
        match sendmsg(&socket, parts, &mut control, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
            Ok(_) => return Ok(true),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => return Ok(false),
            Err(error) => return Err(error),
        }
    }
}
