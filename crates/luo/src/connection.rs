//! A connection to luod that blocks, with a deadline on everything.
//!
//! Invariants: the socket never blocks by itself, all waiting is done in [`wait`]; a connection
//! that broke is made again until the deadline, and the exchange goes on where it was.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use crate::error::Error;
use crate::exchange::{Answer, Exchange, Prepared};
use crate::protocol::CONNECT_PACKET;
use crate::wire::{self, Frame, Limits, Receiver, WireError};

/// Bytes of one message that a client takes from luod.
pub(crate) const CLIENT_LIMITS: Limits = Limits { bytes: 64 * 1024 * 1024 };
/// Between two attempts to reach a luod that does not listen at the moment.
pub(crate) const RETRY_PAUSE: Duration = Duration::from_millis(2);

/// Where connections are made.
#[derive(Debug)]
pub(crate) enum Target {
    /// luod's socket.
    Socket(PathBuf),
    /// A session's descriptor.
    Session(OwnedFd),
}

impl Target {
    /// Makes a connection, without waiting.
    pub(crate) fn connect(&self) -> Result<OwnedFd, Error> {
        match self {
            Self::Socket(path) => connect_path(path)
                .map_err(|error| Error::Unavailable { socket: path.clone(), source: error }),
            Self::Session(session) => connect_session(session.as_fd()),
        }
    }
}

fn connect_path(path: &PathBuf) -> io::Result<OwnedFd> {
    let address = SocketAddrUnix::new(path)?;
    let socket = rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    )?;
    rustix::net::connect(&socket, &address)?;
    Ok(socket)
}

fn connect_session(session: BorrowedFd<'_>) -> Result<OwnedFd, Error> {
    let (ours, theirs) = rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    )
    .map_err(|error| Error::System { doing: "making a socket pair", source: error.into() })?;
    match wire::send(session, CONNECT_PACKET, &[theirs.as_fd()]) {
        Ok(_) => Ok(ours),
        Err(error) => match Errno::from_io_error(&error) {
            Some(Errno::PIPE | Errno::CONNRESET | Errno::NOTCONN | Errno::CONNREFUSED) => {
                Err(Error::SessionGone)
            }
            _ => Err(Error::System { doing: "connecting to the session", source: error }),
        },
    }
}

/// Whether trying again may help.
pub(crate) fn is_transient(error: &Error) -> bool {
    match error {
        Error::Unavailable { source, .. } => matches!(
            source.kind(),
            io::ErrorKind::WouldBlock | io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound
        ),
        Error::System { source, .. } => source.kind() == io::ErrorKind::WouldBlock,
        Error::Wire(WireError::Closed | WireError::Torn) => true,
        Error::Wire(WireError::Io(source)) => matches!(
            source.kind(),
            io::ErrorKind::BrokenPipe
                | io::ErrorKind::ConnectionReset
                | io::ErrorKind::ConnectionAborted
                | io::ErrorKind::NotConnected
        ),
        _ => false,
    }
}

/// Waits until `socket` is ready; `false` when the deadline has passed.
pub(crate) fn wait(
    socket: BorrowedFd<'_>,
    flags: PollFlags,
    deadline: Option<Instant>,
) -> Result<bool, Error> {
    loop {
        let timeout = match deadline {
            None => None,
            Some(deadline) => {
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return Ok(false);
                }
                Timespec::try_from(left).ok()
            }
        };
        let mut poll = [PollFd::from_borrowed_fd(socket, flags)];
        match rustix::event::poll(&mut poll, timeout.as_ref()) {
            Ok(0) | Err(Errno::INTR) => {}
            Ok(_) => return Ok(true),
            Err(error) => {
                return Err(Error::System { doing: "waiting for luod", source: error.into() });
            }
        }
    }
}

/// An open connection.
#[derive(Debug)]
pub(crate) struct Stream {
    socket: OwnedFd,
    receiver: Receiver,
}

impl Stream {
    pub(crate) fn new(socket: OwnedFd) -> Self {
        Self { socket, receiver: Receiver::new(CLIENT_LIMITS) }
    }

    /// Sends one call whole; `false` when the deadline has passed.
    pub(crate) fn send(
        &mut self,
        call: &Prepared<'_>,
        deadline: Option<Instant>,
    ) -> Result<bool, Error> {
        let mut sent = 0;
        while sent < call.bytes.len() {
            let descriptors = if sent == 0 { call.descriptors.as_slice() } else { &[] };
            match wire::send(self.socket.as_fd(), &call.bytes[sent..], descriptors) {
                Ok(count) => sent += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if !wait(self.socket.as_fd(), PollFlags::OUT, deadline)? {
                        return Ok(false);
                    }
                }
                Err(error) => return Err(WireError::Io(error).into()),
            }
        }
        Ok(true)
    }

    /// Receives one frame; `None` when the deadline has passed.
    pub(crate) fn receive(&mut self, deadline: Option<Instant>) -> Result<Option<Frame>, Error> {
        loop {
            if let Some(frame) = self.receiver.next_frame()? {
                return Ok(Some(frame));
            }
            match self.receiver.fill(self.socket.as_fd()) {
                Ok(()) => {}
                Err(WireError::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => {
                    if !wait(self.socket.as_fd(), PollFlags::IN, deadline)? {
                        return Ok(None);
                    }
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// A connection that is made when it is needed, and made again when it breaks.
#[derive(Debug)]
pub(crate) struct Connection {
    target: Target,
    stream: Option<Stream>,
    /// Whether luod was ever reached: then its absence is a restart, and is waited for.
    reached: bool,
}

impl Connection {
    pub(crate) fn new(target: Target) -> Self {
        let reached = matches!(target, Target::Session(_));
        Self { target, stream: None, reached }
    }

    pub(crate) fn target(&self) -> &Target {
        &self.target
    }

    /// Makes the connection now if there is none. The first time luod's absence is an error at
    /// once.
    pub(crate) fn open(&mut self) -> Result<&mut Stream, Error> {
        let stream = match self.stream.take() {
            Some(stream) => stream,
            None => Stream::new(self.target.connect()?),
        };
        self.reached = true;
        Ok(self.stream.insert(stream))
    }

    pub(crate) fn close(&mut self) {
        self.stream = None;
    }

    /// One call and its answer.
    pub(crate) fn call(&mut self, call: Prepared<'_>, limit: Duration) -> Result<Answer, Error> {
        let method = call.method.clone();
        let mut answers = self.exchange(vec![call], limit)?;
        answers.pop().ok_or(Error::Protocol { method, reason: "no answer".to_owned() })
    }

    /// Several calls and their answers, in order.
    pub(crate) fn exchange(
        &mut self,
        calls: Vec<Prepared<'_>>,
        limit: Duration,
    ) -> Result<Vec<Answer>, Error> {
        let deadline = Instant::now() + limit;
        let mut exchange = Exchange::new(calls);
        let mut last = None;
        while exchange.is_waiting() {
            match self.attempt(&mut exchange, Some(deadline)) {
                Ok(true) => {}
                Ok(false) => {
                    // The answer may still come and must not be taken for another call's.
                    self.close();
                    return Err(Error::DeadlineExceeded {
                        method: exchange.waiting_for().to_owned(),
                        deadline: limit,
                        source: last.map(Box::new),
                    });
                }
                Err(error) if self.reached && is_transient(&error) => {
                    let connected = self.stream.is_some();
                    self.close();
                    exchange.lost();
                    if Instant::now() >= deadline {
                        return Err(Error::DeadlineExceeded {
                            method: exchange.waiting_for().to_owned(),
                            deadline: limit,
                            source: Some(Box::new(error)),
                        });
                    }
                    if !connected {
                        thread::sleep(RETRY_PAUSE);
                    }
                    last = Some(error);
                }
                Err(error) => {
                    self.close();
                    return Err(error);
                }
            }
        }
        Ok(exchange.into_answers())
    }

    /// Sends and receives until all is answered; `false` when the deadline has passed.
    fn attempt(
        &mut self,
        exchange: &mut Exchange<'_>,
        deadline: Option<Instant>,
    ) -> Result<bool, Error> {
        let stream = self.open()?;
        while exchange.is_waiting() {
            while let Some(call) = exchange.to_send() {
                if !stream.send(call, deadline)? {
                    return Ok(false);
                }
                exchange.sent();
            }
            match stream.receive(deadline)? {
                Some(frame) => exchange.answered(frame),
                None => return Ok(false),
            }
        }
        Ok(true)
    }
}
