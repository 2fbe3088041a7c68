//! The records of handlers of files that are made anew from a description: events, pipes, paths,
//! sockets.
//!
//! Invariants: as of all [records](super): what one field says is checked against the others where
//! they are read, so that whoever has a record has one that makes sense.

mod deleted;
mod epoll;
mod events;
mod fifo;
mod inotify;
mod locks;
mod mqueue;
mod options;
mod path;
mod pipe;
mod socket;
mod tun;
mod unix;

pub use deleted::{DeletedEnd, DeletedMaker, DeletedRecord};
pub use epoll::{EpollMemberRecord, EpollRecord};
pub use events::{EventfdRecord, SignalfdRecord, TimerfdRecord};
pub use fifo::{FifoMaker, FifoRecord};
pub use inotify::{InotifyRecord, WatchRecord, WatchTarget};
pub use mqueue::MqueueRecord;
pub use path::{DeviceRecord, LockRecord, PathRecord};
pub use pipe::{PipeEnd, PipeMaker, PipeRecord};
pub use socket::{Endpoint, OptionRecord, SocketFamily, SocketKind, SocketRecord, SocketState};
pub use tun::TunRecord;
pub use unix::{UnixEnd, UnixMaker, UnixMessage, UnixRecord};

use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use super::{RecordError, RecordErrorKind as Kind};

/// The `compatible` string of event counters.
pub const EVENTFD_COMPATIBLE: &str = "eventfd-v1";
/// The `compatible` string of timers.
pub const TIMERFD_COMPATIBLE: &str = "timerfd-v1";
/// The `compatible` string of descriptors that signals are read from.
pub const SIGNALFD_COMPATIBLE: &str = "signalfd-v1";

/// The `compatible` string of epoll sets.
pub const EPOLL_COMPATIBLE: &str = "epoll-v1";
/// The `compatible` string of inotify with its watches.
pub const INOTIFY_COMPATIBLE: &str = "inotify-v1";
/// The `compatible` string of pipes.
pub const PIPE_COMPATIBLE: &str = "pipe-v1";
/// The `compatible` string of FIFOs.
pub const FIFO_COMPATIBLE: &str = "fifo-v1";
/// The `compatible` string of files and directories with a path.
pub const PATH_COMPATIBLE: &str = "path-v1";
/// The `compatible` string of regular files that have no name any more.
pub const DELETED_COMPATIBLE: &str = "deleted-v1";
/// The `compatible` string of sockets that are no connections.
pub const SOCKET_COMPATIBLE: &str = "socket-v1";
/// The `compatible` string of unix sockets that are connected to one another.
pub const UNIX_COMPATIBLE: &str = "unix-v1";
/// The `compatible` string of POSIX message queues.
pub const MQUEUE_COMPATIBLE: &str = "mqueue-v1";
/// The `compatible` string of tun and tap interfaces.
pub const TUN_COMPATIBLE: &str = "tun-v1";
/// The `compatible` string of devices without a state.
pub const DEVICE_COMPATIBLE: &str = "device-v1";

/// How a file is open: its access mode and status flags, by numbers of luo's own, since Linux's
/// differ among processors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct OpenFlags(pub u32);

impl OpenFlags {
    /// It can be read.
    pub const READ: u32 = 1;
    /// It can be written.
    pub const WRITE: u32 = 2;
    /// `O_APPEND`.
    pub const APPEND: u32 = 4;
    /// `O_NONBLOCK`.
    pub const NONBLOCK: u32 = 8;
    /// `O_NOATIME`.
    pub const NOATIME: u32 = 16;
    /// `O_DIRECT`.
    pub const DIRECT: u32 = 32;
    /// `O_SYNC`.
    pub const SYNC: u32 = 64;
    /// `O_DSYNC`.
    pub const DSYNC: u32 = 128;
    /// `O_PATH`: it can be neither read nor written.
    pub const PATH: u32 = 256;

    /// Whether all of these are set.
    #[must_use]
    pub const fn has(self, flags: u32) -> bool {
        self.0 & flags == flags
    }

    fn check(self, offset: usize) -> Result<(), RecordError> {
        let path = self.has(Self::PATH);
        let access = self.0 & (Self::READ | Self::WRITE) != 0;
        if path && self.0 != Self::PATH || !path && !access {
            return Err(Kind::Flag { field: "open" }.at(offset));
        }
        known(self.0, 0x1ff, "open", offset)
    }
}

/// The first `count` entries of what follows, and what is behind them.
fn list<'a, T>(
    bytes: &[u8],
    rest: &'a [u8],
    count: usize,
) -> Result<(&'a [T], &'a [u8]), RecordError>
where
    T: FromBytes + KnownLayout + Immutable + Unaligned,
{
    <[T]>::ref_from_prefix_with_elems(rest, count).map_err(|_| Kind::Short.at(bytes.len()))
}

/// A record that is nothing but this.
fn sole<T>(bytes: &[u8]) -> Result<&T, RecordError>
where
    T: FromBytes + KnownLayout + Immutable + Unaligned,
{
    let (raw, rest) = T::ref_from_prefix(bytes).map_err(|_| Kind::Short.at(bytes.len()))?;
    if rest.is_empty() {
        return Ok(raw);
    }
    let claimed = size_of::<T>();
    Err(Kind::Length { claimed: claimed as u32, found: bytes.len() }.at(claimed))
}

/// Refuses bits that are not among the known ones.
fn known(found: u32, known: u32, field: &'static str, offset: usize) -> Result<(), RecordError> {
    if found & !known == 0 { Ok(()) } else { Err(Kind::Flag { field }.at(offset)) }
}
