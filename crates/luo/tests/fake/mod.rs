//! A luod that does what a test tells it, over real sockets.
//!
//! Invariants: every wait ends, after [`PATIENCE`] with a panic; descriptors that a test does not
//! take are closed.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::time::Duration;

use luo::Options;
use luo::protocol::CONNECT_PACKET;
use luo::wire::{self, Limits, Receiver, Sender, WireError};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketFlags, SocketType,
};
use serde_json::{Value, json};

/// How long the other side may take: longer than any machine needs.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Options of a client for a test in which no deadline matters.
pub(crate) fn patient() -> Options {
    Options::new().deadline(PATIENCE)
}

fn wait(socket: BorrowedFd<'_>, flags: PollFlags) {
    let timeout = Timespec::try_from(PATIENCE).unwrap();
    let mut poll = [PollFd::from_borrowed_fd(socket, flags)];
    assert_eq!(rustix::event::poll(&mut poll, Some(&timeout)), Ok(1), "the client did nothing");
}

/// luod's socket.
#[derive(Debug)]
pub(crate) struct Luod {
    directory: tempfile::TempDir,
    listener: Option<UnixListener>,
}

impl Luod {
    pub(crate) fn new() -> Self {
        let mut luod = Self { directory: tempfile::tempdir().unwrap(), listener: None };
        luod.start();
        luod
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.directory.path().join("sock")
    }

    pub(crate) fn options(&self) -> Options {
        patient().socket(self.socket())
    }

    pub(crate) fn accept(&self) -> Peer {
        let listener = self.listener.as_ref().unwrap();
        wait(listener.as_fd(), PollFlags::IN);
        Peer::new(listener.accept().unwrap().0.into())
    }

    pub(crate) fn start(&mut self) {
        self.listener = Some(UnixListener::bind(self.socket()).unwrap());
    }

    /// Nobody listens any more; the socket's file stays if `leave` is true.
    pub(crate) fn stop(&mut self, leave: bool) {
        self.listener = None;
        if !leave {
            std::fs::remove_file(self.socket()).unwrap();
        }
    }
}

/// luod's end of a session.
#[derive(Debug)]
pub(crate) struct SessionEnd(OwnedFd);

impl SessionEnd {
    /// With the client's descriptor.
    pub(crate) fn pair() -> (Self, OwnedFd) {
        let (ours, theirs) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .unwrap();
        (Self(ours), theirs)
    }

    /// The next connection that is made through the session's descriptor.
    pub(crate) fn accept(&self) -> Peer {
        self.accept_until_end().expect("a connection before the end")
    }

    /// As `accept`, or `None` when the client has closed the session.
    pub(crate) fn accept_until_end(&self) -> Option<Peer> {
        wait(self.0.as_fd(), PollFlags::IN);
        let mut bytes = [0; 64];
        let mut space = [const { MaybeUninit::uninit() }; rustix::cmsg_space!(ScmRights(2))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = rustix::net::recvmsg(
            &self.0,
            &mut [IoSliceMut::new(&mut bytes)],
            &mut control,
            RecvFlags::CMSG_CLOEXEC,
        )
        .unwrap();
        if received.bytes == 0 {
            return None;
        }
        assert_eq!(&bytes[..received.bytes], CONNECT_PACKET);
        let mut streams: Vec<OwnedFd> = control
            .drain()
            .filter_map(|message| match message {
                RecvAncillaryMessage::ScmRights(list) => Some(list),
                _ => None,
            })
            .flatten()
            .collect();
        assert_eq!(streams.len(), 1);
        Some(Peer::new(streams.remove(0)))
    }
}

/// A call that a client made.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) method: String,
    pub(crate) parameters: Value,
    pub(crate) more: bool,
    pub(crate) descriptors: Vec<OwnedFd>,
}

impl Call {
    pub(crate) fn request(&self) -> u64 {
        self.parameters["request"].as_u64().expect("the call has a request number")
    }

    pub(crate) fn tokens(&self) -> Vec<u64> {
        self.parameters["tokens"].as_array().unwrap().iter().map(|t| t.as_u64().unwrap()).collect()
    }
}

/// A client's connection. Dropping it closes it.
#[derive(Debug)]
pub(crate) struct Peer {
    socket: OwnedFd,
    receiver: Receiver,
}

impl Peer {
    pub(crate) fn new(socket: OwnedFd) -> Self {
        Self { socket, receiver: Receiver::new(Limits { bytes: 1 << 20 }) }
    }

    /// The next call, or `None` when the client has closed the connection.
    pub(crate) fn next(&mut self) -> Option<Call> {
        loop {
            if let Some(frame) = self.receiver.next_frame().unwrap() {
                let call: Value = serde_json::from_slice(&frame.text).unwrap();
                return Some(Call {
                    method: call["method"].as_str().unwrap().to_owned(),
                    parameters: call["parameters"].clone(),
                    more: call["more"].as_bool().unwrap_or(false),
                    descriptors: frame.descriptors,
                });
            }
            match self.receiver.fill(self.socket.as_fd()) {
                Ok(()) => {}
                Err(WireError::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => {
                    wait(self.socket.as_fd(), PollFlags::IN);
                }
                Err(WireError::Io(error)) if error.kind() == io::ErrorKind::ConnectionReset => {
                    return None;
                }
                Err(WireError::Closed | WireError::Torn) => return None,
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// The next call, which is to this method.
    pub(crate) fn take(&mut self, method: &str) -> Call {
        let call = self.next().expect("a call before the end");
        assert_eq!(call.method, method);
        call
    }

    /// The client closes the connection without another call.
    pub(crate) fn ends(&mut self) {
        let next = self.next();
        assert!(next.is_none(), "{next:?}");
    }

    /// Sends bytes as they are, as far as the client takes them.
    pub(crate) fn raw(&self, mut bytes: &[u8], descriptors: &[BorrowedFd<'_>]) {
        let mut descriptors = descriptors;
        while !bytes.is_empty() {
            match wire::send(self.socket.as_fd(), bytes, descriptors) {
                Ok(count) => {
                    bytes = &bytes[count..];
                    descriptors = &[];
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    wait(self.socket.as_fd(), PollFlags::OUT);
                }
                // It has read enough.
                Err(_) => return,
            }
        }
    }

    fn send(&self, message: &Value, descriptors: &[BorrowedFd<'_>]) {
        let mut sender = Sender::default();
        sender.push(message.to_string().into_bytes(), descriptors.to_vec());
        sender.flush(self.socket.as_fd()).unwrap();
    }

    pub(crate) fn reply(&self, parameters: Value) {
        self.reply_with(parameters, &[]);
    }

    pub(crate) fn reply_with(&self, parameters: Value, descriptors: &[BorrowedFd<'_>]) {
        self.send(&json!({ "parameters": parameters }), descriptors);
    }

    /// A reply after which more follow.
    pub(crate) fn part(&self, parameters: Value) {
        self.send(&json!({ "parameters": parameters, "continues": true }), &[]);
    }

    /// Refuses a call to a session.
    pub(crate) fn refuse(&self, errno: &str) {
        let parameters = json!({ "errno": errno, "reason": "as the test says" });
        self.send(&json!({ "error": "io.luo.Session.Failed", "parameters": parameters }), &[]);
    }

    /// Refuses a call to luod.
    pub(crate) fn refuse_manager(&self, errno: &str) {
        let parameters = json!({ "failure": { "errno": errno, "reason": "as the test says" } });
        self.send(&json!({ "error": "io.luo.Failed", "parameters": parameters }), &[]);
    }
}

/// Reply of a session's `GetInfo`.
pub(crate) fn info(state: &str) -> Value {
    json!({ "name": "shop", "state": state, "files": [], "incoming": [] })
}

/// Reply of `CreateSession` and `ClaimSession`.
pub(crate) fn given() -> Value {
    json!({ "session": {
        "id": 1, "name": "shop", "uid": 0, "gid": 0, "policy": { "on_close": "keep" },
        "state": "normal", "held": true, "files": 0, "incoming": 0, "retrieved": 0, "pinned": 0
    } })
}

/// Reply of luod's `GetStatus`.
pub(crate) fn status(state: &str, transition: Option<&str>) -> Value {
    json!({
        "version": "1", "pid": 1, "incarnation": 1, "keeper": "builtin", "carrier": "keeper",
        "reach": "agent", "state": state, "transition": transition, "liveupdate_number": 0,
        "sessions": 0, "files": 0, "pinned": 0, "unclaimed": 0, "unclaimed_pinned": 0,
        "subsystems": [], "limits": { "sessions": 1, "files": 1, "bytes": 1 }
    })
}

/// Reply of an event of the cycle.
pub(crate) fn report(event: &str, state: &str) -> Value {
    json!({ "report": {
        "event": event, "state": state, "microseconds": 7, "timings": [], "left_out": []
    } })
}

/// A file that is told from others by its name, and how many descriptors of it are open here.
pub(crate) fn marked(name: &str) -> OwnedFd {
    rustix::fs::memfd_create(name, rustix::fs::MemfdFlags::CLOEXEC).unwrap()
}

pub(crate) fn open_count(name: &str) -> usize {
    let link = format!("/memfd:{name} (deleted)");
    let list = std::fs::read_dir("/proc/self/fd").unwrap();
    list.filter_map(Result::ok)
        .filter_map(|entry| std::fs::read_link(entry.path()).ok())
        .filter(|target| target.as_os_str() == link.as_str())
        .count()
}
