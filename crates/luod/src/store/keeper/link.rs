//! The connection to the keeper: what is to be sent, what waits for an answer, and the task that reads.
//!
//! Invariants:
//! - Messages are sent in the order in which they were submitted, and numbered as they are sent;
//!   so answers, which come in order, find their tickets at the front of a queue.
//! - One task reads; whoever submits sends at once what the socket takes, and leaves the rest to
//!   that task. A batch and its files are held until the kernel has taken them.
//! - When the connection is lost every ticket ends, and so does each that comes later.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use luo_abi::keeper::{Header, MAX_MESSAGE, Message, VERSION_NONE, op};
use rustix::io::Errno;
use tokio::io::Interest;
use tokio::net::UnixDatagram;
use tokio::sync::{Notify, mpsc, oneshot};
use zerocopy::IntoBytes;

use super::messages::{send_part, understand};
use crate::keeper::wire::{Received, Scratch, send};
use crate::store::{Batch, Event, Limits, StoreError, Ticket};

/// [`Store::room`] waits while more bytes than this are unsent.
const ROOM: usize = 4 * MAX_MESSAGE;

/// After a send that failed for lack of kernel resources it is tried again so much later.
const RETRY: Duration = Duration::from_millis(10);

type Answer = oneshot::Sender<Result<(), StoreError>>;

#[derive(Debug)]
pub(super) struct Link {
    socket: UnixDatagram,
    limits: Limits,
    state: Mutex<State>,
    /// Something could not be sent at once.
    blocked: Notify,
    /// Less is unsent.
    room: Notify,
}

#[derive(Debug)]
struct State {
    wire: u16,
    /// The number of the message sent last.
    sequence: u64,
    unsent: VecDeque<Unsent>,
    unsent_bytes: usize,
    /// Who waits for the answer to which message, in order.
    waiting: VecDeque<(u64, Answer)>,
    lost: Option<StoreError>,
}

#[derive(Debug)]
struct Unsent {
    what: What,
    answer: Answer,
}

#[derive(Debug)]
pub(super) enum What {
    Plain {
        header: Header,
        body: Vec<u8>,
        fd: Option<OwnedFd>,
    },
    /// With what has been sent of it already.
    Batch {
        batch: Batch,
        entries: usize,
        records: usize,
        files: usize,
    },
}

/// How far sending came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pace {
    /// Everything is sent.
    Done,
    /// The socket is full.
    Full,
    /// The kernel lacks something, and nothing tells when that changes.
    Later,
}

impl Link {
    /// Of a keeper that has said HELLO.
    pub(super) fn new(socket: UnixDatagram, limits: Limits) -> Self {
        let state = State {
            wire: VERSION_NONE,
            sequence: 0,
            unsent: VecDeque::new(),
            unsent_bytes: 0,
            waiting: VecDeque::new(),
            lost: None,
        };
        let state = Mutex::new(state);
        Self { socket, limits, state, blocked: Notify::new(), room: Notify::new() }
    }

    pub(super) fn limits(&self) -> Limits {
        self.limits
    }

    /// What is sent from now on has this version.
    pub(super) fn agreed(&self, wire: u16) {
        self.state().wire = wire;
    }

    /// Waits until not too much is unsent.
    pub(super) async fn room(&self) {
        loop {
            let room = self.room.notified();
            tokio::pin!(room);
            room.as_mut().enable();
            if self.state().unsent_bytes <= ROOM {
                return;
            }
            room.await;
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn say(
        &self,
        op: u16,
        flags: u32,
        argument: u64,
        body: &[u8],
        fd: Option<OwnedFd>,
    ) -> Ticket {
        let header = Header::new(VERSION_NONE, op, 0).flags(flags).argument(argument);
        self.send(What::Plain { header, body: body.to_vec(), fd }, body.len())
    }

    pub(super) fn send(&self, what: What, bytes: usize) -> Ticket {
        let (answer, ticket) = Ticket::waiting();
        let mut state = self.state();
        if let Some(lost) = &state.lost {
            return Ticket::done(Err(lost.clone()));
        }
        state.unsent.push_back(Unsent { what, answer });
        state.unsent_bytes += bytes;
        // Where others wait already the task is about to send them all.
        if state.unsent.len() == 1 && self.pump(&mut state) != Pace::Done {
            self.blocked.notify_one();
        }
        ticket
    }

    /// Sends what the socket takes. Errors show when the socket is read.
    fn pump(&self, state: &mut State) -> Pace {
        while let Some(unsent) = state.unsent.front_mut() {
            let sequence = state.sequence + 1;
            let sent = match &mut unsent.what {
                What::Plain { header, body, fd } => {
                    header.version = state.wire.into();
                    header.sequence = sequence.into();
                    let parts = [IoSlice::new(header.as_bytes()), IoSlice::new(body)];
                    let fd: Option<BorrowedFd<'_>> = fd.as_ref().map(AsFd::as_fd);
                    let bytes = body.len();
                    send(&self.socket, &parts, fd.as_slice())
                        .map(|sent| sent.then_some((bytes, true)))
                }
                What::Batch { batch, entries, records, files } => {
                    send_part(&self.socket, state.wire, sequence, batch, (entries, records, files))
                }
            };
            match sent {
                Ok(Some((bytes, whole))) => {
                    state.sequence = sequence;
                    state.unsent_bytes = state.unsent_bytes.saturating_sub(bytes);
                    if whole && let Some(Unsent { answer, .. }) = state.unsent.pop_front() {
                        state.waiting.push_back((sequence, answer));
                    }
                }
                Ok(None) => return Pace::Full,
                Err(Errno::TOOMANYREFS | Errno::NOBUFS | Errno::NOMEM) => return Pace::Later,
                // The reading side sees that the socket is closed, and ends all tickets.
                Err(_) => return Pace::Done,
            }
        }
        Pace::Done
    }

    /// Reads, and sends what could not be sent at once.
    pub(super) async fn serve(
        self: Arc<Self>,
        mut scratch: Scratch,
        events: mpsc::UnboundedSender<Event>,
    ) {
        let lost = loop {
            let pace = self.pump(&mut self.state());
            if self.state().unsent_bytes <= ROOM {
                self.room.notify_waiters();
            }
            let interest = match pace {
                Pace::Full => Interest::READABLE | Interest::WRITABLE,
                _ => Interest::READABLE,
            };
            let ready = tokio::select! {
                ready = self.socket.ready(interest) => ready,
                () = self.blocked.notified() => continue,
                () = tokio::time::sleep(RETRY), if pace == Pace::Later => continue,
            };
            let ready = match ready {
                Ok(ready) => ready,
                Err(error) => break StoreError::system("the keeper's socket")(error),
            };
            if ready.is_writable() {
                // Only to note that the socket is not writable any more; the loop pumps.
                let _ =
                    self.socket.try_io(Interest::WRITABLE, || match self.pump(&mut self.state()) {
                        Pace::Full => Err(io::Error::from(io::ErrorKind::WouldBlock)),
                        _ => Ok(()),
                    });
            }
            if ready.is_readable() || ready.is_read_closed() {
                let mut failed = None;
                let _ = self.socket.try_io(Interest::READABLE, || {
                    match self.receive(&mut scratch, &events) {
                        Ok(true) => Ok(()),
                        Ok(false) => Err(io::Error::from(io::ErrorKind::WouldBlock)),
                        Err(error) => {
                            failed = Some(error);
                            Ok(())
                        }
                    }
                });
                if let Some(error) = failed {
                    break error;
                }
            }
        };
        let mut state = self.state();
        state.lost = Some(lost.clone());
        state.unsent_bytes = 0;
        // Dropping the answers tells those who wait.
        state.unsent.clear();
        state.waiting.clear();
        drop(state);
        self.room.notify_waiters();
        let _ = events.send(Event::Lost(lost));
    }

    /// Takes some messages; `Ok(false)`: there are no more.
    fn receive(
        &self,
        scratch: &mut Scratch,
        events: &mpsc::UnboundedSender<Event>,
    ) -> Result<bool, StoreError> {
        for _ in 0..64 {
            let (bytes, fds) = match scratch.receive(&self.socket) {
                Ok(Received::Message(bytes, fds)) => (bytes, fds),
                Ok(Received::Empty) => return Ok(false),
                Ok(Received::Closed) => return Err(StoreError::Lost),
                Ok(Received::NoRoom(_)) => {
                    return Err(StoreError::System {
                        what: "no room for the descriptors that the keeper holds",
                        errno: Errno::MFILE.raw_os_error(),
                    });
                }
                Ok(Received::TooLong) => return Err(StoreError::Protocol("too long a message")),
                Err(errno) => return Err(StoreError::system("the keeper's socket")(errno.into())),
            };
            let message = Message::parse(bytes, fds.len())
                .map_err(|_| StoreError::Protocol("a malformed message"))?;
            if message.header.op.get() == op::ACK {
                self.answered(message.header.sequence.get(), message.header.argument.get());
                continue;
            }
            // Nobody listens any more where sending fails; the tickets still work.
            for event in understand(&message, fds)? {
                let _ = events.send(event);
            }
        }
        Ok(true)
    }

    fn answered(&self, sequence: u64, errno: u64) {
        let mut state = self.state();
        while state.waiting.front().is_some_and(|(number, _)| *number <= sequence) {
            let Some((number, answer)) = state.waiting.pop_front() else { break };
            let result = match i32::try_from(errno) {
                _ if number < sequence => Ok(()),
                Ok(0) => Ok(()),
                Ok(errno) => Err(StoreError::Refused { errno }),
                Err(_) => Err(StoreError::Protocol("an errno out of range")),
            };
            let _ = answer.send(result);
        }
    }
}
