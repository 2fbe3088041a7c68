//! The keeper's messages, read and written.
//!
//! Invariants:
//! - A message of a batch holds as many slots as fit it, each whole.
//! - What cannot be understood is an error of the protocol: the keeper is of this crate.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use luo_abi::keeper::{
    Entry, Header, Hello, MAX_FDS, MAX_MESSAGE, Message, Role, entry_flag, flag, op,
};
use luo_carriers::{HostFile, Slot};
use rustix::io::Errno;
use tokio::io::Interest;
use tokio::net::UnixDatagram;
use zerocopy::{FromBytes, IntoBytes};

use crate::keeper::wire::{Received, Scratch, send};
use crate::store::{Batch, Event, StoreError};

/// Reads HELLO; the listeners are in the scratch buffer then.
pub(super) async fn hello(
    socket: &UnixDatagram,
    scratch: &mut Scratch,
) -> Result<(Hello, Role), StoreError> {
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

/// Sends the next message of a batch; gives the bytes that went and whether it was the last.
pub(super) fn send_part(
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
pub(super) fn understand(
    message: &Message<'_>,
    fds: &mut Vec<OwnedFd>,
) -> Result<Vec<Event>, StoreError> {
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
