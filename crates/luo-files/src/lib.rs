//! luo's file handlers, one module a file type.
//!
//! | `compatible` | takes | needs of the carrier |
//! | --- | --- | --- |
//! | [`live-v1`](LiveHandler) | any open file | live descriptors |
//! | [`record-v1`](RecordHandler) | small sealed memfds: a service's own bytes | bytes |
//! | [`arena-memory-v1`](ArenaMemoryHandler) | memory that the arena has lent | resident memory |
//! | [`memfd-v1`](MemfdHandler) | memfds | memory, bytes |
//! | [`tcp-v1`](TcpHandler) | TCP connections | bytes |
//! | [`eventfd-v1`](Eventfd) | event counters | bytes |
//! | [`timerfd-v1`](Timerfd) | timers | bytes |
//! | [`signalfd-v1`](Signalfd) | what signals are read from | bytes |
//! | [`epoll-v1`](EpollHandler) | epoll sets | bytes |
//! | [`inotify-v1`](InotifyHandler) | inotify with its watches | bytes |
//! | [`pipe-v1`](PipeHandler) | pipes | bytes |
//! | [`fifo-v1`](FifoHandler) | pipes that have a path | bytes |
//! | [`mqueue-v1`](MqueueHandler) | POSIX message queues | bytes |
//! | [`deleted-v1`](DeletedHandler) | regular files without a name | memory, bytes |
//! | [`path-v1`](Path) | files and directories that have a path | bytes |
//! | [`device-v1`](Device) | devices without a state: `/dev/null` | bytes |
//! | [`tun-v1`](Tun) | interfaces of tun and tap | bytes |
//! | [`unix-v1`](UnixHandler) | unix sockets that are connected | bytes |
//! | [`socket-v1`](Socket) | TCP that listens, UDP, unix sockets that listen | bytes |
//! | [`kernel-live-v1`](KernelHandler) | what the running kernel can keep itself | some live descriptors |
//!
//! Where several could take a file, the one that was registered first does, in the order of this
//! table, which is that of [`handlers`]: `live-v1` keeps more of it, the others keep it farther.
//!
//! Invariants: a handler has no state of its own between two calls, so it does not matter whether
//! the process that freezes is the one that prepared; what it cannot keep whole it refuses with a
//! reason; which type a file is, is looked at only where a carrier cannot hold the file itself.

mod anew;
mod deleted;
mod device;
mod epoll;
mod eventfd;
mod fail;
mod fdinfo;
mod fifo;
mod inotify;
mod kernel;
mod live;
mod memfd;
mod mqueue;
mod netlink;
mod open;
mod path;
mod pipe;
mod place;
mod queue;
mod record;
mod resident;
mod siblings;
mod signalfd;
mod socket;
mod tcp;
mod timerfd;
mod tun;
mod unix;

use std::sync::Arc;

use luo_carriers::HostFile;
use luo_core::Handler;

pub use anew::{Anew, Described};
pub use deleted::DeletedHandler;
pub use device::Device;
pub use epoll::EpollHandler;
pub use eventfd::Eventfd;
pub use fifo::FifoHandler;
pub use inotify::InotifyHandler;
pub use kernel::{KERNEL_LIVE_COMPATIBLE, KernelHandler};
pub use live::{LIVE_COMPATIBLE, LiveHandler};
pub use memfd::MemfdHandler;
pub use mqueue::MqueueHandler;
pub use path::Path;
pub use pipe::PipeHandler;
pub use record::RecordHandler;
pub use resident::{ARENA_MEMORY_COMPATIBLE, ArenaMemoryHandler};
pub use signalfd::Signalfd;
pub use socket::Socket;
pub use tcp::TcpHandler;
pub use timerfd::Timerfd;
pub use tun::Tun;
pub use unix::UnixHandler;

/// Every handler, in the order in which they are to be asked.
#[must_use]
pub fn handlers() -> Vec<Arc<dyn Handler<HostFile>>> {
    vec![
        Arc::new(LiveHandler),
        Arc::new(RecordHandler),
        Arc::new(ArenaMemoryHandler),
        Arc::new(MemfdHandler),
        Arc::new(Anew::<Eventfd>::new()),
        Arc::new(Anew::<Timerfd>::new()),
        Arc::new(Anew::<Signalfd>::new()),
        Arc::new(EpollHandler),
        Arc::new(InotifyHandler),
        Arc::new(PipeHandler),
        Arc::new(FifoHandler),
        Arc::new(MqueueHandler),
        Arc::new(DeletedHandler),
        Arc::new(Anew::<Path>::new()),
        Arc::new(Anew::<Device>::new()),
        Arc::new(Anew::<Tun>::new()),
        Arc::new(TcpHandler),
        Arc::new(UnixHandler),
        Arc::new(Anew::<Socket>::new()),
        Arc::new(KernelHandler),
    ]
}
