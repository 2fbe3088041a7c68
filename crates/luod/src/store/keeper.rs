//! The worker's end of the keeper's wire: a store that is in the keeper.
//!
//! Invariants:
//! - Nothing is submitted before the keeper has said HELLO and a version was agreed upon.
//! - What is told of a batch is told by its ticket; what happens without being asked for is an event.

mod link;
mod messages;

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use luo_abi::keeper::{
    Attach, Entry, Header, Role, VERSION_MAX, VERSION_MIN, VERSION_NONE, agree, flag, op, text,
};
use luo_abi::liveupdate::ioctl::Name;
use rustix::io::Errno;
use tokio::net::UnixDatagram;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use zerocopy::IntoBytes;

use super::{Batch, Events, Limits, Store, StoreError, Ticket, Upgrade, Waiting};
use crate::keeper::wire::Scratch;
use link::{Link, What};
use messages::hello;

/// HELLO is sent before the worker is started, so it is there at once, or never.
const HELLO_DEADLINE: Duration = Duration::from_secs(10);

/// The store behind the keeper's socket.
#[derive(Debug)]
pub struct KeeperStore {
    link: Arc<Link>,
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
        let link = Arc::new(Link::new(socket, limits));
        let attach = Attach {
            wire_min: VERSION_MIN.into(),
            wire_max: VERSION_MAX.into(),
            reserved: 0.into(),
        };
        let ticket = link.say(op::ATTACH, 0, 0, attach.as_bytes(), None);
        // From here in the agreed version: nothing else has been submitted yet.
        link.agreed(wire);
        let (sender, receiver) = mpsc::unbounded_channel();
        let reader = tokio::spawn(Arc::clone(&link).serve(scratch, sender)).abort_handle();
        let store = Self { link, reader };
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
        self.link.limits()
    }

    fn submit(&self, batch: Batch) -> Ticket {
        if batch.is_empty() {
            return Ticket::done(Ok(()));
        }
        let bytes = batch.entries.len() * size_of::<Entry>() + batch.records.len();
        self.link.send(What::Batch { batch, entries: 0, records: 0, files: 0 }, bytes)
    }

    fn room(&self) -> Waiting<'_> {
        Box::pin(self.link.room())
    }

    fn load(&self) -> Ticket {
        self.link.say(op::LOAD, 0, 0, &[], None)
    }

    fn ready(&self) -> Ticket {
        self.link.say(op::READY, 0, 0, &[], None)
    }

    fn quiesced(&self) -> Ticket {
        self.link.say(op::QUIESCED, 0, 0, &[], None)
    }

    fn leave(&self) -> Ticket {
        self.link.say(op::LEAVE, 0, 0, &[], None)
    }

    fn retrieve(&self, key: u64, device: OwnedFd, name: Name) -> Ticket {
        let length = (size_of::<Name>() as u32).into();
        let entry = Entry { key: key.into(), length, fds: 1.into(), flags: 0.into() };
        let mut header = Header::new(VERSION_NONE, op::RETRIEVE, 0);
        header.count = 1.into();
        let body = [entry.as_bytes(), name.as_bytes()].concat();
        let bytes = body.len();
        self.link.send(What::Plain { header, body, fd: Some(device) }, bytes)
    }

    fn refuse(&self, reason: &str) -> Ticket {
        self.link.say(op::REFUSE, 0, 0, text(reason), None)
    }

    fn upgrade(&self, program: OwnedFd, deadline: Duration, what: Upgrade) -> Ticket {
        let flags = match what {
            Upgrade::Worker => flag::WORKER,
            Upgrade::Keeper => flag::KEEPER,
            Upgrade::Both => flag::WORKER | flag::KEEPER,
        };
        let deadline = u64::try_from(deadline.as_millis()).unwrap_or(u64::MAX);
        self.link.say(op::UPGRADE, flags, deadline, &[], Some(program))
    }
}

impl From<Errno> for StoreError {
    fn from(errno: Errno) -> Self {
        Self::system("the keeper's socket")(io::Error::from(errno))
    }
}
