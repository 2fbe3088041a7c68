//! The worker's end of the keeper's wire.
//!
//! Invariants:
//! - Messages are sent in the order in which they were submitted, and numbered as they are sent;
//!   so answers, which come in order, find their tickets at the front of a queue.
//! - One task reads; whoever submits sends at once what the socket takes, and leaves the rest to
//!   that task. A batch and its files are held until the kernel has taken them.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use luo_abi::keeper::{
    Attach, Entry, Header, Hello, MAX_FDS, MAX_MESSAGE, Message, Role, VERSION_MAX, VERSION_MIN,
    VERSION_NONE, agree, entry_flag, flag, op, text,
};
use luo_abi::liveupdate::ioctl::Name;
use luo_carriers::{HostFile, Slot};
use rustix::io::Errno;
use tokio::io::Interest;
use tokio::net::UnixDatagram;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::AbortHandle;
use zerocopy::{FromBytes, IntoBytes};

use super::{Batch, Event, Events, Limits, Store, StoreError, Ticket, Upgrade, Waiting};
use crate::keeper::wire::{Received, Scratch, send};

/// [`Store::room`] waits while more bytes than this are unsent.
const ROOM: usize = 4 * MAX_MESSAGE;
/// HELLO is sent before the worker is started, so it is there at once, or never.
const HELLO_DEADLINE: Duration = Duration::from_secs(10);
/// After a send that failed for lack of kernel resources it is tried again so much later.
const RETRY: Duration = Duration::from_millis(10);

type Answer = oneshot::Sender<Result<(), StoreError>>;

/// The store behind the keeper's socket.
#[derive(Debug)]
pub struct KeeperStore {
    shared: Arc<Shared>,
    reader: AbortHandle,
}

/// A worker's place at its keeper.
#[derive(Debug)]
pub struct Attached {
    /// The store.
    pub store: KeeperStore,
    /// What happens there.
    pub events: Events,
    /// Whether this worker serves or is to take over.
    pub role: Role,
    /// Counts the workers that the keeper has started, this one included.
    pub incarnation: u64,
    /// The listening sockets, in the order of the keeper's settings.
    pub listeners: Vec<OwnedFd>,
}

#[derive(Debug)]
struct Shared {
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
enum What {
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

impl KeeperStore {
    /// Takes this worker's place at the keeper whose socket this is: the worker finds it as its
    /// standard input ([`luo_sys::adopt_stdin`]). Within a tokio runtime.
    ///
    /// # Errors
    /// [`StoreError::Version`], [`StoreError::Protocol`] where there is no keeper,
    /// [`StoreError::Lost`], [`StoreError::System`].
    pub async fn attach(socket: OwnedFd) -> Result<Attached, StoreError> {
        let failed = || StoreError::system("the keeper's socket");
        let socket = std::os::unix::net::UnixDatagram::from(socket);
        socket.set_nonblocking(true).map_err(failed())?;
        // A seqpacket socket in fact: tokio only has to watch it, the messages are read here.
        let socket = UnixDatagram::from_std(socket).map_err(failed())?;
        let mut scratch = Scratch::new();
        let hello = tokio::time::timeout(HELLO_DEADLINE, hello(&socket, &mut scratch)).await;
        let (hello, role) = hello.map_err(|_| StoreError::Protocol("no HELLO in time"))??;
        let range = (hello.wire_min.get(), hello.wire_max.get());
        let wire = agree((VERSION_MIN, VERSION_MAX), range)
            .ok_or(StoreError::Version(range.0, range.1))?;
        let limit = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
        let limits = Limits {
            slots: limit(hello.max_slots.get()),
            fds: limit(hello.max_fds.get()),
            bytes: limit(hello.max_bytes.get()),
        };
        let listeners = std::mem::take(&mut scratch.fds);
        let shared = Arc::new(Shared {
            socket,
            limits,
            state: Mutex::new(State {
                wire: VERSION_NONE,
                sequence: 0,
                unsent: VecDeque::new(),
                unsent_bytes: 0,
                waiting: VecDeque::new(),
                lost: None,
            }),
            blocked: Notify::new(),
            room: Notify::new(),
        });
        let attach = Attach {
            wire_min: VERSION_MIN.into(),
            wire_max: VERSION_MAX.into(),
            reserved: 0.into(),
        };
        let ticket = shared.say(op::ATTACH, 0, 0, attach.as_bytes(), None);
        // From here in the agreed version: nothing else has been submitted yet.
        shared.state().wire = wire;
        let (sender, receiver) = mpsc::unbounded_channel();
        let reader = tokio::spawn(Arc::clone(&shared).serve(scratch, sender)).abort_handle();
        let store = Self { shared, reader };
        ticket.await?;
        let incarnation = hello.incarnation.get();
        Ok(Attached { store, events: Events(receiver), role, incarnation, listeners })
    }
}

impl Drop for KeeperStore {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

impl Store for KeeperStore {
    fn limits(&self) -> Limits {
        self.shared.limits
    }

    fn submit(&self, batch: Batch) -> Ticket {
        if batch.is_empty() {
            return Ticket::done(Ok(()));
        }
        let bytes = batch.entries.len() * size_of::<Entry>() + batch.records.len();
        self.shared.send(What::Batch { batch, entries: 0, records: 0, files: 0 }, bytes)
    }

    fn room(&self) -> Waiting<'_> {
        Box::pin(async {
            loop {
                let room = self.shared.room.notified();
                tokio::pin!(room);
                room.as_mut().enable();
                if self.shared.state().unsent_bytes <= ROOM {
                    return;
                }
                room.await;
            }
        })
    }

    fn load(&self) -> Ticket {
        self.shared.say(op::LOAD, 0, 0, &[], None)
    }

    fn ready(&self) -> Ticket {
        self.shared.say(op::READY, 0, 0, &[], None)
    }

    fn quiesced(&self) -> Ticket {
        self.shared.say(op::QUIESCED, 0, 0, &[], None)
    }

    fn leave(&self) -> Ticket {
        self.shared.say(op::LEAVE, 0, 0, &[], None)
    }

    fn retrieve(&self, key: u64, device: OwnedFd, name: Name) -> Ticket {
        let length = (size_of::<Name>() as u32).into();
        let entry = Entry { key: key.into(), length, fds: 1.into(), flags: 0.into() };
        let mut header = Header::new(VERSION_NONE, op::RETRIEVE, 0);
        header.count = 1.into();
        let body = [entry.as_bytes(), name.as_bytes()].concat();
        let bytes = body.len();
        self.shared.send(What::Plain { header, body, fd: Some(device) }, bytes)
    }

    fn refuse(&self, reason: &str) -> Ticket {
        self.shared.say(op::REFUSE, 0, 0, text(reason), None)
    }

    fn upgrade(&self, program: OwnedFd, deadline: Duration, what: Upgrade) -> Ticket {
        let flags = match what {
            Upgrade::Worker => flag::WORKER,
            Upgrade::Keeper => flag::KEEPER,
            Upgrade::Both => flag::WORKER | flag::KEEPER,
        };
        let deadline = u64::try_from(deadline.as_millis()).unwrap_or(u64::MAX);
        self.shared.say(op::UPGRADE, flags, deadline, &[], Some(program))
    }
}

/// Reads HELLO; the listeners are in the scratch buffer then.
async fn hello(socket: &UnixDatagram, scratch: &mut Scratch) -> Result<(Hello, Role), StoreError> {
    let failed = || StoreError::system("no keeper on standard input");
    loop {
        socket.readable().await.map_err(failed())?;
        let got = socket.try_io(Interest::READABLE, || match scratch.receive(socket) {
            Ok(Received::Message(bytes, _)) => Ok(bytes.to_vec()),
            Ok(Received::Empty) => Err(io::ErrorKind::WouldBlock.into()),
            Ok(Received::Closed) => Err(Errno::CONNRESET.into()),
            Ok(Received::NoRoom(_)) => Err(Errno::MFILE.into()),
            Ok(Received::TooLong) => Err(Errno::MSGSIZE.into()),
            Err(errno) => Err(errno.into()),
        });
        let bytes = match got {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            got => got.map_err(failed())?,
        };
        let message = Message::parse(&bytes, 0).map_err(|_| StoreError::Protocol("no HELLO"))?;
        let hello = Hello::read_from_bytes(message.body)
            .ok()
            .filter(|_| message.header.op.get() == op::HELLO)
            .ok_or(StoreError::Protocol("something else than HELLO"))?;
        let role = hello.role().ok_or(StoreError::Protocol("a role that is unknown here"))?;
        return Ok((hello, role));
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn say(&self, op: u16, flags: u32, argument: u64, body: &[u8], fd: Option<OwnedFd>) -> Ticket {
        let header = Header::new(VERSION_NONE, op, 0).flags(flags).argument(argument);
        self.send(What::Plain { header, body: body.to_vec(), fd }, body.len())
    }

    fn send(&self, what: What, bytes: usize) -> Ticket {
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
    async fn serve(self: Arc<Self>, mut scratch: Scratch, events: mpsc::UnboundedSender<Event>) {
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

/// Sends the next message of a batch; gives the bytes that went and whether it was the last.
fn send_part(
    socket: &UnixDatagram,
    wire: u16,
    sequence: u64,
    batch: &Batch,
    (entries, records, files): (&mut usize, &mut usize, &mut usize),
) -> Result<Option<(usize, bool)>, Errno> {
    let rest = batch.entries.get(*entries..).unwrap_or_default();
    let (mut count, mut length, mut fds) = (0, 0, 0);
    for entry in rest {
        let (bytes, own) = (entry.length.get() as usize, usize::from(entry.fds.get()));
        let message = size_of::<Header>() + (count + 1) * size_of::<Entry>() + length + bytes;
        if fds + own > MAX_FDS || message > MAX_MESSAGE {
            break;
        }
        (count, length, fds) = (count + 1, length + bytes, fds + own);
    }
    let last = count == rest.len();
    let mut header = Header::new(wire, op::CHANGE, sequence);
    header.count = (count as u32).into();
    header.flags = if last { 0 } else { flag::MORE }.into();
    let parts = [
        IoSlice::new(header.as_bytes()),
        IoSlice::new(rest.get(..count).unwrap_or_default().as_bytes()),
        IoSlice::new(batch.records.get(*records..*records + length).unwrap_or_default()),
    ];
    let own = batch.files.get(*files..*files + fds).unwrap_or_default();
    let own: Vec<BorrowedFd<'_>> = own.iter().map(AsFd::as_fd).collect();
    if !send(socket, &parts, &own)? {
        return Ok(None);
    }
    (*entries, *records, *files) = (*entries + count, *records + length, *files + fds);
    Ok(Some((count * size_of::<Entry>() + length, last)))
}

/// What a message of the keeper's means.
fn understand(message: &Message<'_>, fds: &mut Vec<OwnedFd>) -> Result<Vec<Event>, StoreError> {
    let flags = message.header.flags.get();
    let reason = || String::from_utf8_lossy(message.body).into_owned();
    Ok(vec![match message.header.op.get() {
        op::SLOTS => {
            let mut fds = fds.drain(..);
            return Ok(message
                .slots()
                .map(|(entry, record)| match entry.flags.get() {
                    entry_flag::DELETE => Event::Removed(entry.key.get()),
                    _ => {
                        let own = fds.by_ref().take(entry.fds.get().into());
                        let files = own.map(HostFile::from).collect();
                        Event::Slot(entry.key.get(), Slot { record: record.to_vec(), files })
                    }
                })
                .collect());
        }
        op::END => Event::Loaded,
        op::GO => Event::Go,
        op::QUIESCE => Event::Quiesce,
        op::RESUME => Event::Resume { reason: reason() },
        op::RETIRE => Event::Retire,
        op::STOP => Event::Stop,
        op::UPGRADED => Event::Upgraded {
            worker: flags & flag::WORKER != 0,
            keeper: flags & flag::KEEPER != 0,
            reason: reason(),
        },
        _ => return Err(StoreError::Protocol("a message of an unknown kind")),
    }])
}

impl From<Errno> for StoreError {
    fn from(errno: Errno) -> Self {
        Self::system("the keeper's socket")(io::Error::from(errno))
    }
}
