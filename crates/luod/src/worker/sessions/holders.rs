//! The descriptors by which sessions are held, and the connections that come through them.
//!
//! A session's descriptor is one end of a socket of packets; the other end is here, and in the
//! keeper. A packet on it brings a stream socket, which luod serves as a connection of that
//! session.
//!
//! Invariants:
//! - A session has at most one holder; one that has gone is told from the one after it by its number.
//! - With a holder end its watch and its connections.
//! - A packet that brings no connection changes nothing, and what it brought is closed.

use std::collections::{HashMap, HashSet};
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::rc::Rc;

use luo::protocol::CONNECT_PACKET;
use luo_carriers::{HostFile, closer};
use luo_core::{Errno, SessionId};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketFlags, SocketType,
};
use tokio::io::{Interest, unix::AsyncFd};
use tokio::task::AbortHandle;

use crate::worker::access::Peer;
use crate::worker::host::Host;
use crate::worker::refusal::Refusal;
use crate::worker::server;

/// luod's end of a session's descriptor.
#[derive(Debug)]
struct Holder {
    /// Tells it from one of the same session before it.
    number: u64,
    server: HostFile,
    watch: AbortHandle,
    connections: Vec<AbortHandle>,
}

impl Drop for Holder {
    fn drop(&mut self) {
        self.watch.abort();
        for connection in &self.connections {
            connection.abort();
        }
    }
}

/// luod's end of a session's descriptor, as the runtime watches it.
#[derive(Debug)]
struct Watched(HostFile);

impl AsRawFd for Watched {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

/// All sessions that somebody holds.
#[derive(Debug, Default)]
pub(crate) struct Holders {
    all: HashMap<SessionId, Holder>,
    /// Counts the holders.
    last: u64,
    /// Sessions whose descriptor in the keeper is not the one here.
    changed: HashSet<SessionId>,
    /// Sessions that somebody is claiming at this moment.
    pub(super) claiming: HashSet<SessionId>,
    /// Sessions that depart at this moment because nobody holds them any more.
    pub(super) departing: HashSet<SessionId>,
}

impl Holders {
    pub(crate) fn is_held(&self, id: SessionId) -> bool {
        self.all.contains_key(&id)
    }

    /// Sessions whose slot has to be written because their descriptor has changed.
    pub(crate) fn take_changed(&mut self) -> HashSet<SessionId> {
        std::mem::take(&mut self.changed)
    }

    /// luod's end of a session's descriptor.
    pub(crate) fn descriptor(&self, id: SessionId) -> Option<&HostFile> {
        self.all.get(&id).map(|holder| &holder.server)
    }

    pub(super) fn let_go(&mut self, id: SessionId) {
        if self.all.remove(&id).is_some() {
            self.changed.insert(id);
        }
    }

    pub(super) fn number(&self, id: SessionId) -> Option<u64> {
        self.all.get(&id).map(|holder| holder.number)
    }
}

impl Host {
    /// Makes a descriptor for a session that nobody holds; gives the client's end.
    pub(crate) fn hold(self: &Rc<Self>, id: SessionId) -> Result<OwnedFd, Refusal> {
        let pair = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        );
        let (server, client) = pair.map_err(|error| {
            let reason = format!("no descriptor for the session: {error}");
            Refusal::new(Errno::from_raw(error.raw_os_error()), reason)
        })?;
        self.watch_holder(id, HostFile::from(server), true)?;
        Ok(client)
    }

    /// Watches luod's end of a session's descriptor.
    pub(crate) fn watch_holder(
        self: &Rc<Self>,
        id: SessionId,
        server: HostFile,
        is_new: bool,
    ) -> Result<(), Refusal> {
        let refused = |error: io::Error| {
            let reason = format!("the session's descriptor cannot be watched: {error}");
            Refusal::new(error.raw_os_error().map_or(Errno::Io, Errno::from_raw), reason)
        };
        rustix::io::ioctl_fionbio(&server, true).map_err(|errno| refused(errno.into()))?;
        #[allow(
            deprecated,
            reason = "its successor is unsafe; this descriptor stays open as long as it is watched"
        )]
        let socket =
            AsyncFd::with_interest(Watched(server.clone()), Interest::READABLE).map_err(refused)?;
        let host = Rc::clone(self);
        let mut holders = self.holders.borrow_mut();
        holders.last += 1;
        let number = holders.last;
        let watch = tokio::task::spawn_local(async move {
            host.serve_holder(id, socket).await;
            // This task is about to be dropped with its holder: what follows runs by itself.
            let host = Rc::clone(&host);
            tokio::task::spawn_local(async move { host.holder_gone(id, Some(number)).await });
        });
        let watch = watch.abort_handle();
        let holder = Holder { number, server, watch, connections: Vec::new() };
        holders.all.insert(id, holder);
        if is_new {
            holders.changed.insert(id);
        }
        Ok(())
    }

    /// Serves connections until the last copy of the descriptor is closed.
    async fn serve_holder(self: &Rc<Self>, id: SessionId, socket: AsyncFd<Watched>) {
        loop {
            self.upgrades.resumed().await;
            let ready = tokio::select! {
                biased;
                () = self.upgrades.paused() => continue,
                ready = socket.readable() => ready,
            };
            let Ok(mut ready) = ready else { return };
            let Ok(packet) = ready.try_io(|socket| receive_packet(socket.get_ref().0.as_fd()))
            else {
                continue;
            };
            match packet {
                Ok(Packet::Connect(stream)) => self.connect_session(id, stream),
                Ok(Packet::Unknown) => {
                    tracing::debug!(session = id.0, "a packet that is no connection was ignored");
                }
                Ok(Packet::Closed) => return,
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {}
                Err(error) => {
                    tracing::warn!(session = id.0, %error, "a session's descriptor failed");
                    return;
                }
            }
        }
    }

    /// Serves a connection of a session: this is luod's end of it.
    pub(crate) fn connect_session(self: &Rc<Self>, id: SessionId, stream: OwnedFd) {
        let Some(owner) = self.core.borrow().session(id).map(|info| info.owner) else { return };
        let peer = Peer { uid: owner.uid, gid: owner.gid, pid: 0 };
        let is_operator = self.access.is_operator(peer);
        let admission = match self.clients.admit(owner.uid, is_operator, &stream) {
            Ok(admission) => admission,
            Err(refusal) => return server::refuse_session_connection(&stream, refusal),
        };
        // Whoever has the session may use it; the arena is for operators, whoever owns the session.
        let maker = rustix::net::sockopt::socket_peercred(&stream);
        let may_reach_arena = maker.is_ok_and(|maker| {
            let (uid, gid) = (maker.uid.as_raw(), maker.gid.as_raw());
            self.access.is_operator(Peer { uid, gid, pid: 0 })
        });
        let task = server::serve_session(Rc::clone(self), id, stream, admission, may_reach_arena);
        if let Some(holder) = self.holders.borrow_mut().all.get_mut(&id) {
            holder.connections.retain(|connection| !connection.is_finished());
            holder.connections.push(task);
        }
    }
}

enum Packet {
    Connect(OwnedFd),
    Unknown,
    Closed,
}

fn receive_packet(socket: BorrowedFd<'_>) -> io::Result<Packet> {
    let mut bytes = [0; 64];
    let mut space = [const { MaybeUninit::uninit() }; rustix::cmsg_space!(ScmRights(4))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = rustix::net::recvmsg(
        socket,
        &mut [IoSliceMut::new(&mut bytes)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT,
    )?;
    let mut descriptors: Vec<OwnedFd> = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(list) = message {
            descriptors.extend(list);
        }
    }
    if received.bytes == 0 && descriptors.is_empty() {
        // An empty packet looks the same as the end.
        let mut poll = [PollFd::from_borrowed_fd(socket, PollFlags::IN)];
        rustix::event::poll(&mut poll, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))?;
        let closed = poll[0].revents().intersects(PollFlags::HUP | PollFlags::ERR);
        return Ok(if closed { Packet::Closed } else { Packet::Unknown });
    }
    let connects = &bytes[..received.bytes] == CONNECT_PACKET
        && matches!(descriptors.as_slice(), [stream] if is_stream(stream));
    match descriptors.pop() {
        Some(stream) if connects => Ok(Packet::Connect(stream)),
        other => {
            closer::close_all(descriptors.into_iter().chain(other));
            Ok(Packet::Unknown)
        }
    }
}

/// Whether it is a connected Unix stream socket: nothing else can be served.
pub(crate) fn is_stream(descriptor: &OwnedFd) -> bool {
    use rustix::net::sockopt;
    sockopt::socket_domain(descriptor) == Ok(AddressFamily::UNIX)
        && sockopt::socket_type(descriptor) == Ok(SocketType::STREAM)
        && sockopt::socket_acceptconn(descriptor) == Ok(false)
}
