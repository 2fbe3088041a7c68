//! One client's connection: reads calls, has them handled, sends replies in order.
//!
//! Invariants:
//! - A client can hold back nobody but itself. What it can make luod hold is bounded: one message
//!   ([`Limits`]), [`WINDOW`] calls, [`UNREAD`] bytes of replies; beyond that its calls are not
//!   read.
//! - A message left half sent, and replies left unread, end the connection after the patience that
//!   is configured.
//! - Descriptors of a call are owned by its frame: what a handler does not take is closed when the
//!   call is done.

use std::collections::VecDeque;
use std::future::pending;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use luo::wire::{Frame, Limits, Receiver, Sender, WireError};
use luo_carriers::closer;
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::time::{Instant, sleep_until};

use super::reply::{Descriptor, Pending, Reply};

/// Calls of one client that are read ahead of their replies.
const WINDOW: usize = 8;
/// Bytes of replies that wait for a client, above which no more of its calls are read.
const UNREAD: usize = 1 << 20;

/// What a connection is for.
pub(super) trait Service {
    /// Handles one call; what it does to the state is done when this returns.
    fn call(&mut self, text: &[u8], descriptors: Given) -> Pending;

    /// Whether calls may be handled now; otherwise wait for [`resumed`](Self::resumed).
    fn is_paused(&self) -> bool;

    /// Comes back when calls may be handled again.
    fn resumed(&self) -> impl Future<Output = ()>;
}

/// The descriptors of a call: those that nobody takes are closed without waiting.
#[derive(Debug, Default)]
pub(super) struct Given(pub(super) Vec<OwnedFd>);

impl Drop for Given {
    fn drop(&mut self) {
        closer::close_all(self.0.drain(..));
    }
}

/// Bounds on one connection.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    pub(super) message_bytes: usize,
    pub(super) patience: Duration,
}

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum End {
    #[error("the client closed it")]
    Closed,
    #[error("{0}")]
    Wire(WireError),
    #[error("the client left a message half sent for {} ms", .0.as_millis())]
    HalfSent(Duration),
    #[error("the client left replies unread for {} ms", .0.as_millis())]
    Unread(Duration),
    #[error("a stream of replies ended")]
    StreamEnded,
}

impl From<WireError> for End {
    fn from(error: WireError) -> Self {
        match error {
            WireError::Closed => Self::Closed,
            error => Self::Wire(error),
        }
    }
}

struct Connection<S> {
    socket: UnixStream,
    receiver: Receiver,
    sender: Sender<Descriptor>,
    waiting: VecDeque<Pending>,
    /// What to do when everything in `sender` has been taken.
    delivered: Vec<Box<dyn FnOnce()>>,
    service: S,
    bounds: Bounds,
    /// Since when a message is half here, or replies wait.
    half_since: Option<Instant>,
    unread_since: Option<Instant>,
}

impl<S> Drop for Connection<S> {
    /// A client's files may take their time to close.
    fn drop(&mut self) {
        closer::close_all(self.receiver.abandon());
    }
}

/// Serves a connection until it ends.
pub(super) async fn serve(socket: OwnedFd, service: impl Service, bounds: Bounds) -> End {
    let socket = std::os::unix::net::UnixStream::from(socket);
    let socket = match socket.set_nonblocking(true).and_then(|()| UnixStream::from_std(socket)) {
        Ok(socket) => socket,
        Err(error) => return End::Wire(WireError::Io(error)),
    };
    let mut connection = Connection {
        socket,
        receiver: Receiver::new(Limits { bytes: bounds.message_bytes }),
        sender: Sender::default(),
        waiting: VecDeque::new(),
        delivered: Vec::new(),
        service,
        bounds,
        half_since: None,
        unread_since: None,
    };
    loop {
        if let Err(end) = connection.turn().await {
            return end;
        }
    }
}

impl<S: Service> Connection<S> {
    /// Waits for one thing that can be done, and does it.
    async fn turn(&mut self) -> Result<(), End> {
        // Calls that are here already come first, one a turn, so that nobody else starves.
        let reading = self.may_read() && !self.service.is_paused();
        if reading && let Some(frame) = self.receiver.next_frame()? {
            self.half_since = None;
            let Frame { text, descriptors } = frame;
            let answer = self.service.call(&text, Given(descriptors));
            if !matches!(answer, Pending::None) {
                self.waiting.push_back(answer);
            }
            self.take_ready();
            self.flush()?;
            tokio::task::yield_now().await;
            return Ok(());
        }
        // What is here now and is no whole call is half a call. Where nothing is read the rest of it
        // may wait in the socket, and the client is not to blame.
        self.half_since = match reading && self.receiver.is_mid_frame() {
            true => Some(self.half_since.unwrap_or_else(Instant::now)),
            false => None,
        };
        let paused = self.service.is_paused();
        let writing = self.sender.queued() > 0;
        let half = self.half_since.map(|since| since + self.bounds.patience);
        let unread = self.unread_since.map(|since| since + self.bounds.patience);
        tokio::select! {
            // Beyond what may be unread, replies stay where they are made.
            reply = next_reply(&mut self.waiting), if self.sender.queued() < UNREAD => {
                match reply {
                    Some(None) => self.take_ready(),
                    Some(Some(reply)) => {
                        self.push(reply);
                        self.take_ready();
                        self.flush()?;
                    }
                    None => return Err(End::StreamEnded),
                }
            }
            ready = self.socket.readable(), if reading => {
                ready.map_err(WireError::Io)?;
                self.fill()?;
            }
            ready = self.socket.writable(), if writing => {
                ready.map_err(WireError::Io)?;
                self.flush()?;
            }
            () = self.service.resumed(), if paused => {}
            () = until(half), if half.is_some() => return Err(End::HalfSent(self.bounds.patience)),
            () = until(unread), if unread.is_some() => {
                return Err(End::Unread(self.bounds.patience));
            }
        }
        Ok(())
    }

    fn fill(&mut self) -> Result<(), End> {
        let receiver = &mut self.receiver;
        let filled =
            self.socket.try_io(Interest::READABLE, || match receiver.fill(self.socket.as_fd()) {
                Err(WireError::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => {
                    Err(error)
                }
                other => Ok(other),
            });
        match filled {
            Ok(result) => result?,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(WireError::Io(error).into()),
        }
        Ok(())
    }

    fn may_read(&self) -> bool {
        self.waiting.len() < WINDOW && self.sender.queued() < UNREAD
    }

    /// Moves replies that are here and whose turn it is.
    fn take_ready(&mut self) {
        while matches!(self.waiting.front(), Some(Pending::Ready(_))) {
            if let Some(Pending::Ready(reply)) = self.waiting.pop_front() {
                self.push(reply);
            }
        }
    }

    fn push(&mut self, reply: Reply) {
        self.sender.push(reply.text, reply.descriptors);
        self.delivered.extend(reply.delivered);
    }

    fn flush(&mut self) -> Result<(), End> {
        let before = self.sender.queued();
        if before == 0 {
            return Ok(());
        }
        let sender = &mut self.sender;
        match self.socket.try_io(Interest::WRITABLE, || sender.flush(self.socket.as_fd())) {
            Ok(()) => {
                self.unread_since = None;
                for done in self.delivered.drain(..) {
                    done();
                }
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let progress = self.sender.queued() < before;
                if progress || self.unread_since.is_none() {
                    self.unread_since = Some(Instant::now());
                }
                Ok(())
            }
            Err(error) => Err(WireError::Io(error).into()),
        }
    }
}

/// The next reply whose turn it is, `Some(None)` where a call wanted none; `None` when a stream has
/// ended. Dropped without loss.
async fn next_reply(waiting: &mut VecDeque<Pending>) -> Option<Option<Reply>> {
    let reply = match waiting.front_mut() {
        Some(Pending::Later(future)) => Some(future.await),
        Some(Pending::Silent(task)) => {
            // It has its turn whether it ended well or not.
            let _ = task.await;
            None
        }
        Some(Pending::Stream(channel)) => {
            let reply = channel.recv().await?;
            if reply.continues {
                return Some(Some(reply));
            }
            Some(reply)
        }
        // Ready ones are taken before anything is waited for.
        Some(Pending::Ready(_) | Pending::None) | None => pending().await,
    };
    waiting.pop_front();
    Some(reply)
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => pending().await,
    }
}
