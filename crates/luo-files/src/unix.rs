//! `unix-v1`: unix sockets that are connected to one another: both ends of a pair, or of a connection
//! through a listener.
//!
//! Kept: what was not read, in both directions, with its boundaries (packets, datagrams); the
//! descriptors that wait in a queue, at the byte they were sent with; which side reads or writes no
//! more; O_NONBLOCK, the options in the table of [`luo_sys::SOCKET_OPTIONS`]; the user and group that
//! each end tells as its peer's. Of one whose peer was closed: what is left to read, and then the
//! end.
//!
//! Reset: FD_CLOEXEC (it is set), what `F_SETOWN` and its like have set, names, the process id in
//! `SO_PEERCRED` (it is luod's), its supplementary groups (luod's), the sender of what waits in a
//! queue (it is nobody's, and never luod's), `SO_PEEK_OFF`, urgent bytes of a stream, ECONNRESET that was
//! not told yet (by a cancelled update too). Of a queue whose sender is gone: messages without a byte.
//!
//! Refused, with a reason: an end whose peer is open and not in the session, or was not accepted yet; a
//! descriptor in a queue that is not in the session itself (what lies in a queue has no token of its
//! own, and a handler cannot give it one), and an end that lies in its own queue; filters;
//! `SO_PASSPIDFD`; ends that tell of different users; a message without a byte that was looked at
//! before, by an update that was cancelled.
//!
//! Invariants:
//! - Of the two ends in one session the one with the smaller token is the maker: it makes both, and
//!   the other one needs it.
//! - A queue is looked at in `freeze` only, and by peeking, which changes nothing in it; where peeking
//!   begins (`SO_PEEK_OFF`) is afterwards as it was.

use std::cell::RefCell;
use std::cmp::Ordering;
use std::os::fd::OwnedFd;

use luo_abi::record::{
    OptionRecord, SocketKind, UNIX_COMPATIBLE, UnixEnd, UnixMaker, UnixMessage, UnixRecord,
};
use luo_carriers::{FileKind, HostFile};
use luo_core::{Caps, Errno, Failure, File, Handle, Handler, Identity, Keep, Recall, Token};
use luo_sys::UnixSocket;
use rustix::net::{
    AddressFamily, Shutdown, SocketType, getpeername, getsockname, shutdown, sockopt,
};

use crate::anew::{damaged, indescribable};
use crate::fail::{system, unsupported};
use crate::fdinfo::is_nonblocking;
use crate::queue;
use crate::socket::{known, options, restore};

/// Takes unix sockets that are connected.
#[derive(Debug, Clone, Copy, Default)]
pub struct UnixHandler;

impl Handler<HostFile> for UnixHandler {
    fn compatible(&self) -> &str {
        UNIX_COMPATIBLE
    }

    fn requires(&self) -> Caps {
        Caps::BYTES
    }

    /// Datagrams of a socket with a name come from anywhere: that is `socket-v1`'s.
    fn can_preserve(&self, file: &HostFile) -> bool {
        file.kind() == FileKind::Socket
            && sockopt::socket_domain(file).is_ok_and(|domain| domain == AddressFamily::UNIX)
            && getpeername(file).is_ok_and(|peer| peer.is_some())
            && (sockopt::socket_type(file).is_ok_and(|kind| kind != SocketType::DGRAM)
                || getsockname(file).is_ok_and(|name| name.addr_len() <= 2))
    }

    fn refers(&self) -> bool {
        true
    }

    fn prepare(&self, file: &HostFile, keep: &dyn Keep<HostFile>) -> Result<u64, Failure> {
        let end = End::new(file, keep)?;
        match &end.other {
            Some((other, _)) if end.is_maker(keep) => keep.bind(*other)?,
            Some((other, _)) => keep.need(*other)?,
            None => {}
        }
        Ok(0)
    }

    fn freeze(
        &self,
        file: &HostFile,
        _data: u64,
        keep: &dyn Keep<HostFile>,
    ) -> Result<u64, Failure> {
        let end = End::new(file, keep)?;
        let record = match &end.other {
            Some((other, _)) if !end.is_maker(keep) => UnixRecord::Along { maker: other.0 },
            _ => UnixRecord::Maker(end.describe(keep)?),
        };
        let bytes = record.encode().map_err(indescribable("the unix socket"))?;
        keep.keep_bytes(&bytes).map(|handle| handle.0)
    }

    fn retrieve(&self, data: u64, recall: &dyn Recall<HostFile>) -> Result<HostFile, Failure> {
        let bytes = recall.bytes(Handle(data))?;
        match UnixRecord::decode(&bytes).map_err(damaged("the unix socket"))? {
            UnixRecord::Maker(maker) => make(&maker, recall),
            UnixRecord::Along { maker } => Err(Failure::new(
                Errno::Inval,
                format!("token {maker}, which makes both ends, did not make this one"),
            )),
        }
    }

    fn finish(
        &self,
        _file: Option<&HostFile>,
        data: u64,
        _reclaimed: bool,
        recall: &dyn Recall<HostFile>,
    ) {
        recall.release(Handle(data));
    }
}

/// A connection, as one of its ends sees it.
struct End<'a> {
    own: &'a HostFile,
    state: UnixSocket,
    kind: SocketKind,
    other: Option<(Token, HostFile)>,
}

impl<'a> End<'a> {
    /// Finds the peer, and sees that the connection can be kept.
    fn new(own: &'a HostFile, keep: &dyn Keep<HostFile>) -> Result<Self, Failure> {
        let failed = system("the socket cannot be looked at");
        let kind = match sockopt::socket_type(own).map_err(&failed)? {
            SocketType::STREAM => SocketKind::Stream,
            SocketType::DGRAM => SocketKind::Datagram,
            _ => SocketKind::Packets,
        };
        let state = look(own)?;
        let mut end = Self { own, state, kind, other: None };
        end.check(own)?;
        let Some(inode) = end.state.peer.filter(|inode| *inode != 0) else {
            let over = end.state.reads_no_more && end.state.writes_no_more;
            if kind != SocketKind::Datagram && !over {
                return Err(unsupported(
                    "nobody has accepted this unix connection yet: it cannot be made again before \
                     somebody has",
                ));
            }
            return Ok(end);
        };
        let Identity([device, _]) = own.identity();
        let found = RefCell::new(None);
        let token = keep.find(Identity([device, inode.into()]), &|other| {
            found.replace(Some(other.clone()));
            Ordering::Equal
        });
        let (Some(token), Some(other)) = (token, found.into_inner()) else {
            let pid = sockopt::socket_peercred(own).map_err(&failed)?.pid;
            return Err(unsupported(format!(
                "the peer of this unix socket (inode {inode}, made by process {}) is open and is \
                 not in the session: preserve both ends, close that one, or preserve this one as \
                 optional",
                pid.as_raw_nonzero()
            )));
        };
        if Some(token) == keep.token() {
            return Err(unsupported("a unix socket that is connected to itself"));
        }
        end.check(&other)?;
        let back = look(&other)?.peer.map(u64::from);
        let Identity([_, own_inode]) = own.identity();
        if back != Some(own_inode) {
            return Err(unsupported(
                "the socket's peer is connected to another one: only two that are connected to \
                 one another are kept",
            ));
        }
        end.other = Some((token, other));
        Ok(end)
    }

    fn check(&self, file: &HostFile) -> Result<(), Failure> {
        let failed = system("the socket cannot be looked at");
        if luo_sys::has_filter(file).map_err(&failed)? {
            return Err(unsupported(
                "the socket has a filter (SO_ATTACH_FILTER), which unix-v1 does not keep: take it \
                 off before the update",
            ));
        }
        let passes = luo_sys::SocketOption::find(1, 76).map(|option| option.get(file));
        match passes.transpose().map_err(&failed)?.flatten() {
            Some(value) if value.iter().any(|byte| *byte != 0) => Err(unsupported(
                "the socket takes descriptors of its peers' processes (SO_PASSPIDFD), which \
                 unix-v1 does not keep: turn it off before the update",
            )),
            _ => Ok(()),
        }
    }

    fn is_maker(&self, keep: &dyn Keep<HostFile>) -> bool {
        self.other.as_ref().is_none_or(|(other, _)| keep.token().is_some_and(|own| own < *other))
    }

    fn describe(&self, keep: &dyn Keep<HostFile>) -> Result<UnixMaker, Failure> {
        let failed = system("the socket cannot be looked at");
        let user = |file: &HostFile| -> Result<(u32, u32), Failure> {
            let peer = sockopt::socket_peercred(file).map_err(&failed)?;
            Ok((peer.uid.as_raw(), peer.gid.as_raw()))
        };
        let (uid, gid) = user(self.own)?;
        let mut other = None;
        if let Some((token, file)) = &self.other {
            if user(file)? != (uid, gid) {
                return Err(unsupported(
                    "the two ends of this connection tell of different users (SO_PEERCRED), which \
                     cannot be made again: connect again after the update",
                ));
            }
            let state = look(file)?;
            other = Some((token.0, self.end(file, Some(self.own), &state, keep)?));
        }
        let sender = self.other.as_ref().map(|(_, file)| file);
        let own = self.end(self.own, sender, &self.state, keep)?;
        Ok(UnixMaker { kind: self.kind, uid, gid, own, other })
    }

    fn end(
        &self,
        file: &HostFile,
        sender: Option<&HostFile>,
        state: &UnixSocket,
        keep: &dyn Keep<HostFile>,
    ) -> Result<UnixEnd, Failure> {
        let queued = queue::unread(file, self.kind, state.reads_no_more)?;
        if let Some(sender) = sender
            && self.kind != SocketKind::Stream
        {
            queue::check_weight(sender, self.kind, &queued)?;
        }
        let mut messages = Vec::with_capacity(queued.len());
        for message in queued {
            let mut files = Vec::with_capacity(message.files.len());
            for queued in message.files {
                let token = keep.token_of(&HostFile::from(queued)).ok_or_else(|| {
                    unsupported(
                        "a descriptor lies in the socket's queue that is not in the session: \
                         preserve it too, or receive it before the update",
                    )
                })?;
                let other = self.other.as_ref().map(|(token, _)| *token);
                if Some(token) == keep.token() || Some(token) == other {
                    return Err(unsupported(
                        "one end of the connection lies in its own queue: receive it before the \
                         update",
                    ));
                }
                keep.need(token)?;
                files.push(token.0);
            }
            messages.push(UnixMessage { bytes: message.bytes, files });
        }
        Ok(UnixEnd {
            nonblocking: is_nonblocking(file)?,
            reads_no_more: state.reads_no_more,
            writes_no_more: state.writes_no_more,
            options: options(file)?,
            messages,
        })
    }
}

/// What the kernel tells of a socket.
fn look(file: &HostFile) -> Result<UnixSocket, Failure> {
    luo_sys::unix_socket(file).map_err(system(
        "the socket's peer cannot be found (it is in another network namespace than luod's, or the \
         kernel has no unix_diag)",
    ))
}

/// Makes both ends; gives the maker's.
fn make(maker: &UnixMaker, recall: &dyn Recall<HostFile>) -> Result<HostFile, Failure> {
    // Whatever can be wrong with the record is found before anything is made.
    known(&maker.own.options)?;
    if let Some((_, end)) = &maker.other {
        known(&end.options)?;
    }
    let (own, other) = luo_sys::as_effective(maker.uid, maker.gid, || queue::pair(maker.kind))
        .map_err(system(format!(
        "the sockets cannot be made as those of user {} and group {}",
        maker.uid, maker.gid
    )))??;
    send(&other, &maker.own.messages, recall)?;
    if let Some((_, end)) = &maker.other {
        send(&own, &end.messages, recall)?;
        settle(&other, end, &end.options)?;
    }
    settle(&own, &maker.own, &maker.own.options)?;
    if let Some((token, _)) = &maker.other {
        recall.give(Token(*token), HostFile::from(other))?;
    }
    Ok(HostFile::from(own))
}

fn send(
    sender: &OwnedFd,
    messages: &[UnixMessage],
    recall: &dyn Recall<HostFile>,
) -> Result<(), Failure> {
    queue::make_room(sender, messages.iter().map(|message| message.bytes.len()))?;
    for message in messages {
        let files: Vec<HostFile> = message
            .files
            .iter()
            .map(|token| recall.file(Token(*token)))
            .collect::<Result<_, _>>()?;
        queue::send(sender, &message.bytes, &files)?;
    }
    Ok(())
}

/// Once everything is in the queues: before, options would tell who has sent it.
fn settle(file: &OwnedFd, end: &UnixEnd, options: &[OptionRecord]) -> Result<(), Failure> {
    for (option, value) in known(options)? {
        restore(file, option, value)?;
    }
    let failed = system("the socket's flags cannot be set");
    rustix::io::ioctl_fionbio(file, end.nonblocking).map_err(&failed)?;
    let how = match (end.reads_no_more, end.writes_no_more) {
        (false, false) => return Ok(()),
        (true, false) => Shutdown::Read,
        (false, true) => Shutdown::Write,
        (true, true) => Shutdown::Both,
    };
    shutdown(file, how).map_err(system("the socket cannot be shut down as it was"))
}
