//! The server: one thread, one loop, and the hand-over.
//!
//! ```text
//!            start                                    suspend
//! (nothing) ───────> serving ─────────────────────────────────> Suspended ──> next process
//!            resume  │  turn: wait, accept, serve, settle  │                     │
//!           <────────┴─────────────────────────────────────┘ <───────────────────┘
//! ```
//!
//! # What outlives the process
//!
//! Between two connections' turns all state is in the memfd: the data, and what each connection has under way
//! (`journal.rs`). So a planned hand-over has nothing to write, and taking over after a kill is the same path.
//!
//! | | lost |
//! | --- | --- |
//! | [`Server::suspend`] | nothing |
//! | SIGKILL | the one connection that was being served at that instant is closed when the next process resumes, because it cannot be known which of its requests were executed; connections accepted and not yet in custody; no data |
//!
//! Invariants:
//! - The store's busy note names a connection from before its bytes are read until what it has under way is in
//!   the journal.
//! - A connection is read only once its custody has settled, or the grace is over.
//! - Nothing in a turn waits for a client, or for the custody.

use std::collections::HashMap;
use std::fmt;
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant, SystemTime};

use luo_sys::Memory;
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::{Shutdown, SocketFlags};

use crate::commands::ServerInfo;
use crate::connection::{Connection, Fate, Watch};
use crate::custody::{Custody, LISTENER};
use crate::journal::{Inheritance, UnderWay};
use crate::store::{Store, StoreError};
use crate::wake::{WakeSource, Waker, wake_pair};

/// The epoll data of the waker; no connection has it.
const WAKER: u64 = u64::MAX;
/// Connections served in one turn.
const EVENTS: usize = 128;
/// Connections accepted in one turn.
const ACCEPT_BATCH: usize = 64;
/// How long accepting rests when no descriptors are left.
const ACCEPT_REST: Duration = Duration::from_millis(100);
/// Flushed entries freed in one turn.
const RECLAIM_BATCH: usize = 128;
/// Buckets searched for expired keys in one turn.
const SWEEP_BATCH: u64 = 16;
/// The longest wait while keys may expire.
const SWEEP_WAIT: Duration = Duration::from_millis(50);
/// How long a hand-over waits for the custody of connections that were just accepted or closed.
const DRAIN: Duration = Duration::from_secs(1);

/// Why the server cannot go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServerError {
    /// The store failed as a whole.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The event loop cannot be set up or used (EMFILE, ENFILE, ENOMEM).
    #[error("cannot wait for events; check the limit on open files")]
    Events(#[source] Errno),
    /// The custody or the waker cannot be set up.
    #[error("cannot set up the server")]
    Setup(#[source] std::io::Error),
    /// The listener is no listening stream socket.
    #[error("the listener cannot accept connections; pass a listening TCP socket")]
    Listener(#[source] Errno),
}

/// How the server behaves.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Options {
    /// Shown by INFO as `version_label`.
    pub version_label: String,
    /// Bound on the memory for data, in bytes.
    pub memory_limit: u64,
    /// Bound on connections; more are told so and closed.
    pub max_connections: usize,
    /// How long a new connection waits for its custody before it is served without.
    pub custody_grace: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            version_label: env!("CARGO_PKG_VERSION").into(),
            memory_limit: 4 << 30,
            max_connections: 10_000,
            custody_grace: Duration::from_millis(100),
        }
    }
}

/// Everything the next process needs, and nothing else of this one.
#[derive(Debug)]
pub struct Suspended {
    /// The memfd with all data and with what connections have under way ([`custody::MEMORY`](crate::custody::MEMORY)).
    pub memory: OwnedFd,
    /// The listening socket ([`LISTENER`]).
    pub listener: OwnedFd,
    /// The connections and their tokens.
    pub connections: Vec<(u64, OwnedFd)>,
    /// Whether the custody had done all it was asked; if not, it may lack the newest connections.
    pub custody_settled: bool,
    mapping: Option<Memory>,
}

impl Suspended {
    /// Puts together what a process before left.
    pub fn new(memory: OwnedFd, listener: OwnedFd, connections: Vec<(u64, OwnedFd)>) -> Self {
        Self { memory, listener, connections, custody_settled: true, mapping: None }
    }

    /// Unmaps the memory, in time proportional to the data; so hand over first.
    pub fn unmap(&mut self) {
        self.mapping = None;
    }
}

/// Why [`Server::run`] returned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// [`Waker::stop`]: the state is to be handed over.
    Asked,
    /// A client's SHUTDOWN: the data is to be dropped.
    Shutdown,
}

/// The server.
pub struct Server {
    store: Store,
    listener: OwnedFd,
    connections: HashMap<u64, Connection>,
    /// Connections whose custody has not settled, and when they are served all the same.
    waiting: Vec<(u64, Instant)>,
    custody: Box<dyn Custody>,
    epoll: OwnedFd,
    /// What has something to do in this turn, as epoll data.
    ready: Vec<u64>,
    /// Connections taken over with input that may hold whole requests; no event will tell of those.
    inherited: Vec<u64>,
    waker: Waker,
    wake: WakeSource,
    options: Options,
    info: ServerInfo,
    accept_rests_until: Option<Instant>,
    /// It was stopped while it stood still: what is kept of it must not change any more.
    still: bool,
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { listener, options, info, .. } = self;
        f.debug_struct("Server")
            .field("listener", listener)
            .field("options", options)
            .field("info", info)
            .finish_non_exhaustive()
    }
}

impl Server {
    /// Serves a store on a listening socket.
    ///
    /// `custody` makes the custody; it may keep the waker to tell that something settled.
    ///
    /// # Errors
    /// [`ServerError`], before anything was accepted.
    pub fn start(
        store: Store,
        listener: OwnedFd,
        options: Options,
        custody: impl FnOnce(&Waker) -> std::io::Result<Box<dyn Custody>>,
    ) -> Result<Self, ServerError> {
        let (waker, wake) = wake_pair().map_err(ServerError::Setup)?;
        let custody = custody(&waker).map_err(ServerError::Setup)?;
        rustix::io::ioctl_fionbio(&listener, true).map_err(ServerError::Listener)?;
        let epoll = epoll::create(CreateFlags::CLOEXEC).map_err(ServerError::Events)?;
        epoll::add(&epoll, &wake, EventData::new_u64(WAKER), EventFlags::IN)
            .map_err(ServerError::Events)?;
        epoll::add(&epoll, &listener, EventData::new_u64(LISTENER), EventFlags::IN)
            .map_err(ServerError::Listener)?;
        let info = ServerInfo {
            version_label: options.version_label.clone(),
            started: Instant::now(),
            connections: 0,
            accepted: 0,
            served: 0,
            in_doubt: 0,
            slowest_turn: Duration::ZERO,
            resumed_in: Duration::ZERO,
        };
        Ok(Self {
            store,
            listener,
            connections: HashMap::new(),
            waiting: Vec::new(),
            custody,
            epoll,
            ready: Vec::new(),
            inherited: Vec::new(),
            waker,
            wake,
            options,
            info,
            accept_rests_until: None,
            still: false,
        })
    }

    /// Goes on where another process stopped, or was killed.
    ///
    /// The connections are taken to be in `custody` already. The one that was being served when the process
    /// before was killed is closed.
    ///
    /// # Errors
    /// [`ServerError`]; what was passed is closed, and luo's keeper still has it.
    pub fn resume(
        suspended: Suspended,
        options: Options,
        custody: impl FnOnce(&Waker) -> std::io::Result<Box<dyn Custody>>,
    ) -> Result<Self, ServerError> {
        let begun = Instant::now();
        let Suspended { memory, listener, connections, .. } = suspended;
        let mut store = Store::from_fd(memory, options.memory_limit)?;
        let mut inheritance = Inheritance::read(&mut store)?;
        let busy = store.busy()?;
        let mut server = Self::start(store, listener, options, custody)?;
        let mut lost = Vec::new();
        for (token, socket) in connections {
            if busy == Some(token) {
                lost.push((token, socket));
                continue;
            }
            match inheritance.take(token) {
                Ok(under_way) => server.adopt(token, socket, under_way)?,
                Err(error) => {
                    tracing::warn!(token, %error, "a connection cannot be taken over");
                    lost.push((token, socket));
                }
            }
        }
        inheritance.erase_rest(&mut server.store)?;
        server.info.in_doubt = lost.len() as u64;
        for (token, socket) in lost {
            server.end(token, &socket);
        }
        server.store.set_busy(None)?;
        server.custody.flush();
        server.info.resumed_in = begun.elapsed();
        Ok(server)
    }

    /// Stops between two requests and gives away everything. Nothing is read any more; replies that cannot be
    /// sent without waiting stay under way.
    ///
    /// # Errors
    /// [`ServerError::Store`] when a descriptor cannot be duplicated (EMFILE).
    pub fn suspend(mut self) -> Result<Suspended, ServerError> {
        if !self.still {
            self.flush_replies()?;
        }
        let custody_settled = self.still || self.custody.drain(Instant::now() + DRAIN);
        let connections = self
            .connections
            .drain()
            .map(|(token, connection)| (token, connection.socket))
            .collect();
        let mapping = self.store.into_memory();
        let memory = mapping.as_fd().try_clone_to_owned().map_err(ServerError::Setup)?;
        Ok(Suspended {
            memory,
            listener: self.listener,
            connections,
            custody_settled,
            mapping: Some(mapping),
        })
    }

    /// Wakes and stops this server, from any thread.
    pub fn waker(&self) -> Waker {
        self.waker.clone()
    }

    /// The store.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// How long [`resume`](Self::resume) took; zero after [`start`](Self::start).
    pub fn resumed_in(&self) -> Duration {
        self.info.resumed_in
    }

    /// Connections that were closed by [`resume`](Self::resume) because a kill had left them in doubt.
    pub fn in_doubt(&self) -> u64 {
        self.info.in_doubt
    }

    /// The address that clients connect to.
    ///
    /// # Errors
    /// [`ServerError::Listener`] where it is no internet socket.
    pub fn local_addr(&self) -> Result<SocketAddr, ServerError> {
        let address = rustix::net::getsockname(&self.listener).map_err(ServerError::Listener)?;
        SocketAddr::try_from(address).map_err(ServerError::Listener)
    }

    /// The listener and all connections with their tokens, to be given to a keeper.
    pub fn connections(&self) -> impl Iterator<Item = (u64, std::os::fd::BorrowedFd<'_>)> {
        self.connections.iter().map(|(token, connection)| (*token, connection.socket.as_fd()))
    }

    /// Serves until it is stopped.
    ///
    /// # Errors
    /// [`ServerError`]: the store or the event loop failed as a whole.
    pub fn run(&mut self) -> Result<Stop, ServerError> {
        loop {
            if let Some(stop) = self.turn(None)? {
                return Ok(stop);
            }
        }
    }

    /// One turn of the loop: waits at most `timeout` for something to do, and does it.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn turn(&mut self, timeout: Option<Duration>) -> Result<Option<Stop>, ServerError> {
        self.wait(timeout)?;
        let ready = std::mem::take(&mut self.ready);
        let mut result = Ok(None);
        for data in &ready {
            result = match *data {
                WAKER => {
                    self.wake.clear();
                    continue;
                }
                LISTENER => self.accept().map(|()| None),
                token => self.serve(token),
            };
            if !matches!(result, Ok(None)) {
                break;
            }
        }
        self.ready = ready;
        if let Some(stop) = result? {
            return Ok(Some(stop));
        }
        self.settle()?;
        self.custody.flush();
        self.store.sweep(SWEEP_BATCH, now_ms())?;
        self.store.reclaim(RECLAIM_BATCH)?;
        self.still = self.wake.stand_still().map_err(ServerError::Setup)?;
        Ok(self.wake.stopped().then_some(Stop::Asked))
    }

    fn wait(&mut self, timeout: Option<Duration>) -> Result<(), ServerError> {
        let now = Instant::now();
        let stats = self.store.stats()?;
        let mut timeout = timeout;
        let mut at_most =
            |limit: Duration| timeout = Some(timeout.map_or(limit, |timeout| timeout.min(limit)));
        if self.wake.stopped() || !self.inherited.is_empty() || self.store.reclaiming()? {
            at_most(Duration::ZERO);
        }
        if stats.expiring > 0 {
            at_most(SWEEP_WAIT);
        }
        for until in self.waiting.iter().map(|(_, until)| *until).chain(self.accept_rests_until) {
            at_most(until.saturating_duration_since(now));
        }
        // Rounded up, so that the wait does not end just before its time.
        let timeout = timeout.map(|timeout| timeout + Duration::from_micros(50));
        let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        self.ready.clear();
        self.ready.append(&mut self.inherited);
        let mut events = [const { MaybeUninit::<Event>::uninit() }; EVENTS];
        match epoll::wait(&self.epoll, &mut events, timeout.as_ref()) {
            Ok((events, _)) => self.ready.extend(events.iter().map(|event| event.data.u64())),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(ServerError::Events(errno)),
        }
        if self.accept_rests_until.is_some_and(|until| until <= Instant::now()) {
            self.accept_rests_until = None;
            self.watch_listener(EventFlags::IN)?;
        }
        Ok(())
    }

    fn watch_listener(&self, events: EventFlags) -> Result<(), ServerError> {
        epoll::modify(&self.epoll, &self.listener, EventData::new_u64(LISTENER), events)
            .map_err(ServerError::Events)
    }

    fn accept(&mut self) -> Result<(), ServerError> {
        for _ in 0..ACCEPT_BATCH {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let socket = match rustix::net::accept_with(&self.listener, flags) {
                Ok(socket) => socket,
                Err(Errno::AGAIN) => return Ok(()),
                Err(errno @ (Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM)) => {
                    tracing::warn!(error = %errno, "cannot accept for now; check the limit on open files");
                    self.accept_rests_until = Some(Instant::now() + ACCEPT_REST);
                    return self.watch_listener(EventFlags::empty());
                }
                Err(errno @ (Errno::BADF | Errno::INVAL | Errno::NOTSOCK | Errno::OPNOTSUPP)) => {
                    return Err(ServerError::Listener(errno));
                }
                // All else is about the one connection, which is gone.
                Err(_) => continue,
            };
            if self.connections.len() >= self.options.max_connections {
                let text = b"-ERR max number of clients reached\r\n";
                // The client is sent away in any case.
                let _ = rustix::net::send(&socket, text, rustix::net::SendFlags::NOSIGNAL);
                continue;
            }
            // A connection that is no TCP socket, or just ended, has no such option.
            let _ = rustix::net::sockopt::set_tcp_nodelay(&socket, true);
            let token = self.store.next_token()?;
            self.custody.preserve(token, socket.as_fd());
            self.connections.insert(token, Connection::new(socket, UnderWay::default()));
            self.waiting.push((token, Instant::now() + self.options.custody_grace));
            self.info.accepted += 1;
            self.info.connections = self.connections.len() as u64;
        }
        Ok(())
    }

    /// Begins to serve connections whose custody settled, or that waited long enough.
    fn settle(&mut self) -> Result<(), ServerError> {
        if self.waiting.is_empty() {
            return Ok(());
        }
        self.custody.flush();
        let mut ready = Vec::new();
        for settled in self.custody.settled() {
            if let Err(error) = settled.result {
                tracing::warn!(token = settled.token, %error, "a connection is served without custody");
            }
            ready.push(settled.token);
        }
        let now = Instant::now();
        let waiting = std::mem::take(&mut self.waiting);
        for (token, until) in waiting {
            if ready.contains(&token) || until <= now {
                self.watch(token)?;
            } else {
                self.waiting.push((token, until));
            }
        }
        Ok(())
    }

    /// Takes over a connection of a process before.
    fn adopt(
        &mut self,
        token: u64,
        socket: OwnedFd,
        under_way: UnderWay,
    ) -> Result<(), ServerError> {
        rustix::io::ioctl_fionbio(&socket, true).map_err(ServerError::Events)?;
        if !under_way.input.is_empty() {
            self.inherited.push(token);
        }
        self.connections.insert(token, Connection::new(socket, under_way));
        self.info.connections = self.connections.len() as u64;
        self.watch(token)
    }

    fn serve(&mut self, token: u64) -> Result<Option<Stop>, ServerError> {
        let Some(connection) = self.connections.get_mut(&token) else { return Ok(None) };
        let begun = Instant::now();
        self.store.set_busy(Some(token))?;
        let mut fate = connection.serve(&mut self.store, &mut self.info, now_ms());
        if fate == Fate::Open {
            fate = match connection.under_way.save(&mut self.store, token) {
                Ok(()) => Fate::Open,
                Err(error @ StoreError::Full { .. }) => {
                    tracing::warn!(token, %error, "a connection has more under way than can be kept, and is closed");
                    Fate::Closed
                }
                Err(error) => return Err(error.into()),
            };
        }
        match fate {
            Fate::Open => self.watch(token)?,
            Fate::Closed => self.close(token)?,
            Fate::Shutdown => return Ok(Some(Stop::Shutdown)),
        }
        self.store.set_busy(None)?;
        self.info.slowest_turn = self.info.slowest_turn.max(begun.elapsed());
        Ok(None)
    }

    /// Waits for what the connection needs next.
    fn watch(&mut self, token: u64) -> Result<(), ServerError> {
        let Some(connection) = self.connections.get_mut(&token) else { return Ok(()) };
        let wanted = connection.watch();
        if connection.watched == Some(wanted) {
            return Ok(());
        }
        let events = match wanted {
            Watch::Readable => EventFlags::IN,
            Watch::Writable => EventFlags::OUT,
        };
        let data = EventData::new_u64(token);
        let done = match connection.watched {
            None => epoll::add(&self.epoll, &connection.socket, data, events),
            Some(_) => epoll::modify(&self.epoll, &connection.socket, data, events),
        };
        connection.watched = Some(wanted);
        done.map_err(ServerError::Events)
    }

    fn close(&mut self, token: u64) -> Result<(), ServerError> {
        let Some(mut connection) = self.connections.remove(&token) else { return Ok(()) };
        self.info.connections = self.connections.len() as u64;
        connection.under_way.erase(&mut self.store, token)?;
        // The custody's duplicate keeps the connection in the epoll set, so it must be taken out by hand.
        if connection.watched.is_some() {
            epoll::delete(&self.epoll, &connection.socket).map_err(ServerError::Events)?;
        }
        self.end(token, &connection.socket);
        Ok(())
    }

    /// Ends a connection for the client too, although the custody holds a duplicate for a moment.
    fn end(&mut self, token: u64, socket: &OwnedFd) {
        // A client that has already gone needs no end.
        let _ = rustix::net::shutdown(socket, Shutdown::Both);
        self.custody.forget(token);
    }

    /// Sends pending replies as far as it goes without waiting.
    fn flush_replies(&mut self) -> Result<(), ServerError> {
        let pending = |connection: &Connection| !connection.under_way.output.is_empty();
        let tokens: Vec<u64> =
            self.connections.iter().filter(|(_, c)| pending(c)).map(|(token, _)| *token).collect();
        for token in tokens {
            let Some(connection) = self.connections.get_mut(&token) else { continue };
            self.store.set_busy(Some(token))?;
            let open =
                connection.send().is_ok() && (pending(connection) || !connection.under_way.closing);
            if open {
                connection.under_way.save(&mut self.store, token)?;
            } else {
                self.close(token)?;
            }
            self.store.set_busy(None)?;
        }
        Ok(())
    }
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
