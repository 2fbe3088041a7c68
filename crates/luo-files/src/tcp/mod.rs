//! `tcp-v1`: TCP connections, taken apart and put together again by `TCP_REPAIR`.
//!
//! Kept: both addresses, both queues (what has come and was not read, what was written and not
//! acknowledged), sequence numbers, windows, segment size, window scaling, selective
//! acknowledgements, time stamps, `O_NONBLOCK`, congestion control, and the options of
//! [`OPTIONS`](options::OPTIONS). That the peer has closed its side: the next reads give what is
//! left, and then the end.
//!
//! Reset: FD_CLOEXEC (it is set), owner and times, segments that came out of order (the peer sends
//! them again), explicit congestion notification, urgent data, what the kernel has measured (round
//! trip, congestion window), statistics, every other option. A connection that has ended since it was
//! prepared comes back as a new socket that is not connected.
//!
//! Refused, with a reason: a connection that this side has closed, or shut down for writing, or that
//! is not there yet; one with a filter or with another protocol between it and its owner (TLS in
//! the kernel); bound to a device; of link-local addresses; where luod lacks `CAP_NET_ADMIN`.
//!
//! ```text
//!  prepare: can it be kept?      (the connection goes on)
//!  freeze:  lock ─▶ repair mode ─▶ read ─▶ record        cancel: leave repair mode ─▶ unlock
//!  retrieve: on arrival, before the network is there: lock ─▶ repair mode ─▶ sequence numbers ─▶
//!            connect, by a route of its own where there is none ─▶ queues ─▶ windows
//!  let_live: leave repair mode ─▶ unlock
//! ```
//!
//! Invariants:
//! - From `freeze` on nothing that comes from the peer is acknowledged, and nothing is sent: what the
//!   record does not have, the peer has. What is written to the socket all the same waits in it for
//!   a `cancel`, and goes with it otherwise; so does `shutdown(2)`.
//! - Closing it then says nothing to the peer. Only `cancel` brings it back to life.
//! - So it is after `retrieve`, until the connection outlives whoever has retrieved it: dropped
//!   before, it can be put together once more.
//! - What `freeze` has changed of the socket is told by the socket: whichever worker cancels finds
//!   what to undo.

mod dump;
mod lock;
mod options;
mod restore;
mod route;

use luo_abi::record::{TCP_COMPATIBLE, TcpRecord};
use luo_carriers::{FileKind, HostFile};
use luo_core::{Caps, Errno, Failure, Handle, Handler, Keep, Recall};
use luo_sys::tcp::{self, TcpState};
use rustix::net::{ipproto, sockopt};

/// Takes TCP connections, where the carrier keeps bytes.
#[derive(Debug, Clone, Copy, Default)]
pub struct TcpHandler;

impl Handler<HostFile> for TcpHandler {
    fn compatible(&self) -> &str {
        TCP_COMPATIBLE
    }

    fn requires(&self) -> Caps {
        Caps::BYTES
    }

    fn can_preserve(&self, file: &HostFile) -> bool {
        file.kind() == FileKind::Socket
            && sockopt::socket_protocol(file).is_ok_and(|protocol| protocol == Some(ipproto::TCP))
            && tcp::state(file)
                .is_ok_and(|state| !matches!(state, TcpState::Listen | TcpState::Close))
    }

    fn prepare(&self, file: &HostFile, _keep: &dyn Keep<HostFile>) -> Result<u64, Failure> {
        dump::check(file)?;
        Ok(0)
    }

    fn freeze(
        &self,
        file: &HostFile,
        _data: u64,
        keep: &dyn Keep<HostFile>,
    ) -> Result<u64, Failure> {
        dump::check(file)?;
        let kept = lock::lock(file).and_then(|()| {
            let mut connection = dump::read(file)?;
            let record = &mut connection.record;
            if !connection.unread.is_empty() {
                record.unread = keep.keep_bytes(&connection.unread)?.0;
            }
            if !connection.written.is_empty() {
                record.written = keep.keep_bytes(&connection.written)?.0;
            }
            let bytes = record.encode().map_err(|error| {
                Failure::new(Errno::Inval, "the connection cannot be described").because(error)
            })?;
            keep.keep_bytes(&bytes)
        });
        // The framework cancels what could not be frozen; until then it would stand still.
        kept.map(|handle| handle.0).inspect_err(|_| lock::unlock(file))
    }

    fn cancel(&self, file: &HostFile, _data: u64, _keep: &dyn Keep<HostFile>) {
        lock::unlock(file);
    }

    fn retrieve(&self, data: u64, recall: &dyn Recall<HostFile>) -> Result<HostFile, Failure> {
        let record = read(data, recall)?;
        let queue = |handle, length: u32| {
            let bytes = if handle == 0 { Vec::new() } else { recall.bytes(Handle(handle))? };
            if u32::try_from(bytes.len()) != Ok(length) {
                let reason = format!("a queue of the connection has {} bytes", bytes.len());
                return Err(Failure::new(Errno::Inval, format!("{reason} instead of {length}")));
            }
            Ok(bytes)
        };
        let unread = queue(record.unread, record.unread_length)?;
        let written = queue(record.written, record.written_length)?;
        restore::restore(&record, &unread, &written).map(HostFile::from)
    }

    fn finish(
        &self,
        _file: Option<&HostFile>,
        data: u64,
        _reclaimed: bool,
        recall: &dyn Recall<HostFile>,
    ) {
        if let Ok(record) = read(data, recall) {
            for handle in [record.unread, record.written] {
                if handle != 0 {
                    recall.release(Handle(handle));
                }
            }
        }
        recall.release(Handle(data));
    }

    fn retrieves_on_arrival(&self) -> bool {
        true
    }

    fn let_live(&self, file: &HostFile) {
        lock::unlock(file);
    }
}

fn read(data: u64, recall: &dyn Recall<HostFile>) -> Result<TcpRecord, Failure> {
    let bytes = recall.bytes(Handle(data))?;
    TcpRecord::decode(&bytes).map_err(|error| {
        Failure::new(Errno::Inval, format!("the connection's record is damaged: {error}"))
            .because(error)
    })
}

/// A failed system call, in words.
fn failed(what: &str, error: impl Into<std::io::Error>) -> Failure {
    let error = error.into();
    let errno = error.raw_os_error().map_or(Errno::Io, Errno::from_raw);
    let advice = match errno {
        Errno::Perm => ": TCP_REPAIR needs CAP_NET_ADMIN, give it to luod",
        _ => "",
    };
    Failure::new(errno, format!("{what}: {error}{advice}")).because(error)
}
