//! Who holds a session: the descriptor that makes a session a capability.
//!
//! A session's descriptor is one end of a socket of packets; the other end is here, and in the
//! keeper. A packet on it brings a stream socket, which luod serves as a connection of that
//! session: so any number of processes can share the descriptor, and a connection that breaks is
//! made again through it. When the last copy is closed, the session is held by nobody.
//!
//! ```text
//!            create, claim                      last copy closed
//! (no one) ───────────────▶ held ──────────────────────────────────▶ unclaimed ──▶ ended
//!                            ▲                                       │    policy: release,
//!                            └───────────────── claim ───────────────┘    or time limit
//! ```
//!
//! A session that waits to be claimed *departs* ahead, so that this is done by the time its next
//! owner has been started; the claim lets it *arrive*.

use std::collections::{HashMap, HashSet};
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::rc::Rc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use luo::protocol::CONNECT_PACKET;
use luo_abi::TimelinePhase;
use luo_carriers::{HostFile, closer};
use luo_core::{
    Errno, Event, FinishOptions, OnClose, Scope, SessionId, SessionInfo, State, UnclaimedFiles,
};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketFlags, SocketType,
};
use tokio::io::{Interest, unix::AsyncFd};
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::access::Peer;
use super::host::Host;
use super::refusal::Refusal;
use super::server;

/// Between two looks at whether a session's holder has gone, where nothing wakes the claim.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// Seconds since 1970, for time limits that outlive processes.
pub(crate) fn now_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

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
    claiming: HashSet<SessionId>,
    /// Sessions that depart at this moment because nobody holds them any more.
    departing: HashSet<SessionId>,
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

    fn let_go(&mut self, id: SessionId) {
        if self.all.remove(&id).is_some() {
            self.changed.insert(id);
        }
    }

    fn number(&self, id: SessionId) -> Option<u64> {
        self.all.get(&id).map(|holder| holder.number)
    }
}

/// A claim that is under way; no second one runs beside it.
struct Claiming {
    host: Rc<Host>,
    id: SessionId,
}

impl Drop for Claiming {
    fn drop(&mut self) {
        self.host.holders.borrow_mut().claiming.remove(&self.id);
        self.host.sessions_changed.notify_waiters();
    }
}

/// A departure that nobody has asked for; whoever needs the session waits for its end.
struct Departing {
    host: Rc<Host>,
    id: SessionId,
}

impl Drop for Departing {
    fn drop(&mut self) {
        self.host.holders.borrow_mut().departing.remove(&self.id);
        self.host.sessions_changed.notify_waiters();
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

    /// The last copy of a session's descriptor was closed: what the policy says is done. Not where
    /// somebody else holds the session already: `holder` says who has gone.
    async fn holder_gone(self: &Rc<Self>, id: SessionId, holder: Option<u64>) {
        let _busy = self.busy_when_resumed().await;
        if self.holders.borrow().number(id) != holder {
            return;
        }
        self.holders.borrow_mut().let_go(id);
        let info = {
            let mut core = self.core.borrow_mut();
            if core.owner_gone(id, now_seconds()).is_err() {
                return;
            }
            core.session(id)
        };
        self.commit();
        self.sessions_changed.notify_waiters();
        let Some(info) = info else { return };
        let name = info.name.to_string();
        match info.policy.on_close {
            OnClose::Release => match self.release(id).await {
                Ok(()) => self.tell_end("session", &info, "closed and released".to_owned()),
                Err(refusal) => {
                    let text = format!("closed, but not released: {}", refusal.reason());
                    self.tell("failure", Some(name), text);
                }
            },
            OnClose::Keep { .. } => {
                let text = format!(
                    "nobody holds it; {} files wait, {} bytes stay in use",
                    info.outgoing + info.incoming,
                    info.pinned
                );
                self.tell("session", Some(name), text);
                self.depart_ahead(id).await;
            }
        }
    }

    /// Does what a claim would do first, while the next owner is still being started. Whoever waits
    /// for the session already has had its turn before this one, and does it itself. What fails
    /// here fails again in the claim, which says so.
    async fn depart_ahead(self: &Rc<Self>, id: SessionId) {
        tokio::task::yield_now().await;
        let departing = {
            let mut holders = self.holders.borrow_mut();
            if holders.is_held(id)
                || holders.claiming.contains(&id)
                || !holders.departing.insert(id)
            {
                return;
            }
            Departing { host: Rc::clone(self), id }
        };
        let machine = self.core.borrow().status().state;
        let at_rest = matches!(machine, State::Normal | State::Updated);
        let waits = self.session_info(id).is_ok_and(|info| {
            info.status.transition.is_none()
                && info.status.state == State::Normal
                && info.outgoing > 0
        });
        if at_rest && waits {
            let departed = self.run_step(|core| core.begin(Scope::Session(id), Event::Depart));
            if let Err(refusal) = departed.await {
                tracing::debug!(session = id.0, reason = refusal.reason(), "not departed yet");
            }
            self.commit();
        }
        drop(departing);
    }

    /// Sessions that wait to be claimed are taken back from where they are ahead of the machine: an
    /// update through another carrier takes what is at rest. What cannot be is refused by that
    /// update.
    pub(crate) async fn cancel_unclaimed(self: &Rc<Self>) {
        let ahead: Vec<SessionId> = {
            let (core, holders) = (self.core.borrow(), self.holders.borrow());
            core.sessions()
                .filter(|info| info.unclaimed && !holders.claiming.contains(&info.id))
                .filter(|info| matches!(info.status.state, State::Prepared | State::Frozen))
                .map(|info| info.id)
                .collect()
        };
        for id in ahead {
            let cancelled = self.run_step(|core| core.begin(Scope::Session(id), Event::Cancel));
            if let Err(refusal) = cancelled.await {
                tracing::debug!(session = id.0, reason = refusal.reason(), "still ahead");
            }
        }
        self.commit();
    }

    /// Waits until no session, or not this one, departs unasked.
    pub(crate) async fn departed_ahead(&self, id: Option<SessionId>) {
        loop {
            let changed = self.sessions_changed.notified();
            let departing = {
                let holders = self.holders.borrow();
                id.map_or(!holders.departing.is_empty(), |id| holders.departing.contains(&id))
            };
            if !departing {
                return;
            }
            changed.await;
        }
    }

    /// Ends a session, whatever state it is in, and the connections to it.
    pub(crate) async fn release(self: &Rc<Self>, id: SessionId) -> Result<(), Refusal> {
        self.end_session(id).await?;
        self.holders.borrow_mut().let_go(id);
        Ok(())
    }

    /// Ends a session; connections to it stay until their client closes them, so that the one that
    /// asked gets its answer.
    pub(crate) async fn end_session(self: &Rc<Self>, id: SessionId) -> Result<(), Refusal> {
        self.departed_ahead(Some(id)).await;
        let kernel_session = self.note_kernel_session(id);
        self.run(|core| core.release_session(id)).await?;
        if let Some(name) = kernel_session {
            self.forget_kernel_session(&name);
            self.commit();
        }
        self.sessions_changed.notify_waiters();
        Ok(())
    }

    /// Takes a session over for somebody new: when this is done it is `updated`, or `normal` where
    /// it has no files. Waits until the one before has let go of it.
    pub(crate) async fn claim(
        self: &Rc<Self>,
        name: &str,
        peer: Peer,
        wait: Duration,
    ) -> Result<(SessionId, OwnedFd), Refusal> {
        let deadline = Instant::now() + wait;
        let (claiming, _busy) = loop {
            let id = self.session_for(name, peer)?.id;
            self.departed_ahead(Some(id)).await;
            let busy_here = self.busy_when_resumed().await;
            let changed = self.sessions_changed.notified();
            let info = self.session_for(name, peer)?;
            let busy = {
                let mut holders = self.holders.borrow_mut();
                if !info.unclaimed || holders.is_held(info.id) {
                    Some("is held by another process")
                } else if !holders.claiming.insert(info.id) {
                    Some("is being claimed by another process")
                } else {
                    None
                }
            };
            let Some(busy) = busy else {
                break (Claiming { host: Rc::clone(self), id: info.id }, busy_here);
            };
            drop(busy_here);
            if Instant::now() >= deadline {
                let reason = format!("session {name} {busy}; wait until it has closed it");
                return Err(Refusal::new(Errno::Busy, reason));
            }
            let look = deadline.min(Instant::now() + LOOK_AGAIN);
            // Whether something has changed or not: it is looked at again.
            let _ = tokio::time::timeout_at(look, changed).await;
        };
        let id = claiming.id;
        let began = std::time::Instant::now();
        let brought = self.bring_back(id).await;
        // What it has changed is kept with the rest below, or where it failed, now.
        brought.inspect_err(|_| drop(self.commit()))?;
        self.core.borrow_mut().owner_back(id)?;
        let client = match self.hold(id) {
            Ok(client) => client,
            Err(refusal) => {
                self.core.borrow_mut().owner_gone(id, now_seconds())?;
                self.commit();
                return Err(refusal);
            }
        };
        drop(claiming);
        self.time_session(TimelinePhase::Claim, id, began);
        self.commit().await?;
        self.tell("session", Some(name.to_owned()), format!("claimed by process {}", peer.pid));
        Ok((id, client))
    }

    /// Brings an unclaimed session to where all its files can be retrieved. To be committed.
    async fn bring_back(self: &Rc<Self>, id: SessionId) -> Result<(), Refusal> {
        loop {
            let info = self.session_info(id)?;
            match info.status.state {
                State::Updated if info.outgoing == 0 => return Ok(()),
                // Its owner died between retrieving and finishing, and had preserved more
                // meanwhile: all of it goes over together.
                State::Updated => {
                    let options =
                        FinishOptions { unclaimed: UnclaimedFiles::Carry, carry_reclaimed: true };
                    self.run_step(|core| core.finish(Scope::Session(id), options)).await?;
                }
                State::Normal if info.outgoing == 0 => return Ok(()),
                State::Normal | State::Prepared | State::Frozen => {
                    let scope = Scope::Session(id);
                    self.run_step(|core| core.begin(scope, Event::Depart)).await?;
                    self.run_step(|core| core.begin(scope, Event::Arrive)).await?;
                    return Ok(());
                }
            }
        }
    }

    /// The session of this name, if the peer may use it.
    pub(crate) fn session_for(&self, name: &str, peer: Peer) -> Result<SessionInfo, Refusal> {
        let core = self.core.borrow();
        let info = core
            .session_by_name(name)
            .and_then(|id| core.session(id))
            .ok_or_else(|| Refusal::new(Errno::NoEnt, format!("there is no session {name}")))?;
        self.access.session(peer, info.owner, name)?;
        Ok(info)
    }

    pub(crate) fn session_info(&self, id: SessionId) -> Result<SessionInfo, Refusal> {
        self.core
            .borrow()
            .session(id)
            .ok_or_else(|| Refusal::new(Errno::NoEnt, "the session has ended"))
    }

    /// Notes the sessions that nobody holds: their holder went while no worker was there.
    pub(crate) fn note_unheld(self: &Rc<Self>) {
        let sessions: Vec<SessionInfo> = self.core.borrow().sessions().collect();
        for info in sessions {
            if !info.unclaimed && !self.holders.borrow().is_held(info.id) {
                let host = Rc::clone(self);
                tokio::task::spawn_local(async move { host.holder_gone(info.id, None).await });
            }
        }
    }

    /// Ends sessions whose time limit has passed, for ever.
    pub(crate) async fn expire(self: Rc<Self>) {
        loop {
            let next = self.core.borrow().next_expiry();
            let changed = self.sessions_changed.notified();
            match next {
                None => changed.await,
                Some(at) => {
                    let left = Duration::from_secs(at.saturating_sub(now_seconds()));
                    // The clock may be set meanwhile: look at least once a minute.
                    let left = left.min(Duration::from_secs(60));
                    let _ = tokio::time::timeout(left, changed).await;
                }
            }
            let busy = self.busy_when_resumed().await;
            let expired = self.core.borrow().expired(now_seconds());
            let mut failed = false;
            for id in expired {
                let Ok(info) = self.session_info(id) else { continue };
                let text = match self.release(id).await {
                    Ok(()) => "its time limit has passed; released".to_owned(),
                    Err(refusal) => {
                        failed = true;
                        format!("its time limit has passed, but: {}", refusal.reason())
                    }
                };
                self.tell_end("expired", &info, text);
            }
            drop(busy);
            if failed {
                // Not again at once.
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
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
