//! The keeper's state over its own `execve`: numbers and records in a memfd, the descriptors
//! themselves by being left open.
//!
//! [`StateHeader`], [`Core`], the listeners' numbers, then per slot a [`SlotHeader`], the numbers
//! of its descriptors, its record.
//!
//! Invariants: the version is looked at before anything else, and the checksum before anything
//! behind the header; a state is decoded whole before a single descriptor is adopted.

use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use luo_abi::keeper::{VERSION_MAX, VERSION_MIN, checksum};
use luo_sys::adopt as adopt_fd;
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::process::Pid;
use zerocopy::byteorder::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::peer::Peer;
use super::process::Process;
use super::slots::{Fds, Slot, Slots};

const MAGIC: [u8; 8] = *b"luokeep\0";
/// The layout that is written. Those that are read: this one.
const VERSION: u32 = 1;

#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct StateHeader {
    magic: [u8; 8],
    version: U32,
    reserved: U32,
    /// Bytes behind this header, and their checksum.
    length: U64,
    checksum: U64,
}

#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Core {
    incarnation: U64,
    /// The last message received from the worker.
    sequence: U64,
    slots: U64,
    /// Descriptor of the worker's program.
    program: U32,
    /// Zero: no worker; then what follows about it is zero too.
    worker_pid: U32,
    worker_socket: U32,
    listeners: U32,
    /// What the worker is told to have been upgraded.
    upgraded: U32,
    worker_wire: U16,
    worker_ready: U16,
}

#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct SlotHeader {
    key: U64,
    record: U32,
    fds: U32,
}

/// Why the state of the keeper before cannot be taken over.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StateError {
    /// Reading it, or a descriptor that it names.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// It is no state of a keeper.
    #[error("not the state of a keeper")]
    Magic,
    /// Another version wrote it.
    #[error(
        "the state has layout {found}, this luod reads {VERSION}: upgrade to a luod that reads both first"
    )]
    Version {
        /// Its layout.
        found: u32,
    },
    /// Cut short or changed.
    #[error("the state is damaged at byte {offset}")]
    Damaged {
        /// Where.
        offset: usize,
    },
    /// The worker that runs and this keeper would not understand each other.
    #[error(
        "the worker speaks wire version {found}, this luod {VERSION_MIN} to {VERSION_MAX}: upgrade the worker first"
    )]
    Wire {
        /// The worker's.
        found: u16,
    },
}

/// What is written.
pub(super) struct Parts<'a> {
    pub(super) incarnation: u64,
    pub(super) program: &'a OwnedFd,
    pub(super) worker: Option<&'a Peer>,
    pub(super) listeners: &'a [OwnedFd],
    pub(super) slots: &'a Slots,
    pub(super) upgraded: u32,
}

fn number(fd: &OwnedFd) -> U32 {
    fd.as_raw_fd().unsigned_abs().into()
}

pub(super) fn write(parts: &Parts<'_>) -> io::Result<OwnedFd> {
    let worker = parts.worker;
    let mut body = Vec::new();
    let core = Core {
        incarnation: parts.incarnation.into(),
        sequence: worker.map_or(0, |worker| worker.sequence).into(),
        slots: (parts.slots.len() as u64).into(),
        program: number(parts.program),
        worker_pid: worker
            .map_or(0, |w| w.process.pid.as_raw_nonzero().get().unsigned_abs())
            .into(),
        worker_socket: worker.map_or(0.into(), |worker| number(&worker.socket)),
        listeners: (parts.listeners.len() as u32).into(),
        upgraded: parts.upgraded.into(),
        worker_wire: worker.and_then(|worker| worker.wire).unwrap_or(0).into(),
        worker_ready: u16::from(worker.is_some_and(|worker| worker.ready.is_some())).into(),
    };
    body.extend_from_slice(core.as_bytes());
    for listener in parts.listeners {
        body.extend_from_slice(number(listener).as_bytes());
    }
    for (key, slot) in parts.slots.from(0) {
        let (record, fds) = slot.parts();
        let header = SlotHeader {
            key: key.into(),
            record: (record.len() as u32).into(),
            fds: (fds.len() as u32).into(),
        };
        body.extend_from_slice(header.as_bytes());
        for fd in fds {
            body.extend_from_slice(number(fd).as_bytes());
        }
        body.extend_from_slice(record);
    }
    let header = StateHeader {
        magic: MAGIC,
        version: VERSION.into(),
        reserved: 0.into(),
        length: (body.len() as u64).into(),
        checksum: checksum(&body).into(),
    };
    let memfd = std::fs::File::from(memfd_create("luod-state", MemfdFlags::CLOEXEC)?);
    // The offset stays at the beginning: the check reads it as its standard input.
    std::os::unix::fs::FileExt::write_all_at(&memfd, header.as_bytes(), 0)?;
    std::os::unix::fs::FileExt::write_all_at(&memfd, &body, size_of::<StateHeader>() as u64)?;
    Ok(memfd.into())
}

/// What is decoded: numbers still, nothing adopted.
struct State<'a> {
    core: &'a Core,
    listeners: &'a [U32],
    slots: Vec<(u64, &'a [U32], &'a [u8])>,
}

fn decode(bytes: &[u8]) -> Result<State<'_>, StateError> {
    let damaged = |rest: &[u8]| StateError::Damaged { offset: bytes.len() - rest.len() };
    let (header, body) = StateHeader::ref_from_prefix(bytes).map_err(|_| StateError::Magic)?;
    if header.magic != MAGIC {
        return Err(StateError::Magic);
    }
    if header.version.get() != VERSION {
        return Err(StateError::Version { found: header.version.get() });
    }
    if header.reserved.get() != 0
        || header.length.get() != body.len() as u64
        || header.checksum.get() != checksum(body)
    {
        return Err(damaged(body));
    }
    let (core, rest) = Core::ref_from_prefix(body).map_err(|_| damaged(body))?;
    let wire = core.worker_wire.get();
    if core.worker_pid.get() != 0 && !(VERSION_MIN..=VERSION_MAX).contains(&wire) {
        return Err(StateError::Wire { found: wire });
    }
    let (listeners, mut rest) =
        <[U32]>::ref_from_prefix_with_elems(rest, core.listeners.get() as usize)
            .map_err(|_| damaged(rest))?;
    let mut slots = Vec::new();
    for _ in 0..core.slots.get() {
        let at = rest;
        let (slot, rest1) = SlotHeader::ref_from_prefix(at).map_err(|_| damaged(at))?;
        let (fds, rest2) = <[U32]>::ref_from_prefix_with_elems(rest1, slot.fds.get() as usize)
            .map_err(|_| damaged(at))?;
        let (record, rest3) =
            rest2.split_at_checked(slot.record.get() as usize).ok_or_else(|| damaged(at))?;
        slots.push((slot.key.get(), fds, record));
        rest = rest3;
    }
    if rest.is_empty() { Ok(State { core, listeners, slots }) } else { Err(damaged(rest)) }
}

/// What has been taken over.
pub(super) struct Carried {
    pub(super) incarnation: u64,
    pub(super) program: OwnedFd,
    pub(super) worker: Option<Peer>,
    pub(super) listeners: Vec<OwnedFd>,
    pub(super) slots: Vec<(u64, Slot)>,
    pub(super) upgraded: u32,
}

/// Takes over from the image before: reads the state, then adopts what it names.
pub(super) fn adopt(state: RawFd) -> Result<Carried, StateError> {
    let error = |what| move |source| StateError::Io { what, source };
    let memfd = adopt_fd(state).map_err(error("the state's descriptor did not come along"))?;
    let mut bytes = Vec::new();
    std::fs::File::from(memfd)
        .read_to_end(&mut bytes)
        .map_err(error("the state is not readable"))?;
    let State { core, listeners, slots } = decode(&bytes)?;
    let own = |number: &U32| {
        adopt_fd(RawFd::try_from(number.get()).unwrap_or(-1))
            .map_err(error("a descriptor did not come along"))
    };
    let mut carried = Carried {
        incarnation: core.incarnation.get(),
        program: own(&core.program)?,
        worker: None,
        listeners: listeners.iter().map(own).collect::<Result<_, _>>()?,
        slots: Vec::with_capacity(slots.len()),
        upgraded: core.upgraded.get(),
    };
    for (key, fds, record) in slots {
        let fds = fds.iter().map(own).collect::<Result<Vec<_>, _>>()?;
        let fds = Fds::take(fds.len(), &mut fds.into_iter());
        carried.slots.push((key, Slot { record: record.into(), fds }));
    }
    if let Some(pid) = i32::try_from(core.worker_pid.get()).ok().and_then(Pid::from_raw) {
        let socket = own(&core.worker_socket)?;
        let process = Process::of(pid).map_err(error("the worker cannot be watched"))?;
        let (wire, ready) = (core.worker_wire.get(), core.worker_ready.get() != 0);
        carried.worker =
            Some(Peer::carried(process, socket, Some(wire), core.sequence.get(), ready));
    }
    Ok(carried)
}

/// What a program says that could take over a state with this checksum. Exiting with 0 proves
/// nothing: many programs do that whatever they are given.
fn proof(checksum: u64) -> String {
    format!("this luod can take over the keeper's state {checksum:016x}")
}

/// The proof that is expected of a program which is given this state.
pub(super) fn expected_proof(state: &OwnedFd) -> io::Result<String> {
    let mut header = [0; size_of::<StateHeader>()];
    rustix::io::pread(state, &mut header, 0)?;
    let header = StateHeader::read_from_bytes(&header)
        .map_err(|_| io::Error::other("the state has no header"))?;
    Ok(proof(header.checksum.get()))
}

/// Whether this luod could take over the state on its standard input. The program prints what this
/// gives, the proof or the error, on its standard output, and exits with 0 or another status: the
/// keeper that asked compares both.
///
/// # Errors
/// [`StateError`]: why it could not.
pub fn check() -> Result<String, StateError> {
    let mut bytes = Vec::new();
    io::stdin()
        .lock()
        .read_to_end(&mut bytes)
        .map_err(|source| StateError::Io { what: "the state is not readable", source })?;
    decode(&bytes)?;
    Ok(proof(checksum(bytes.get(size_of::<StateHeader>()..).unwrap_or_default())))
}

#[cfg(test)]
mod tests;
