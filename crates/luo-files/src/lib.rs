//! luo's file handlers, one module a file type.
//!
//! | `compatible` | takes | needs of the carrier |
//! | --- | --- | --- |
//! | [`live-v1`](LiveHandler) | any open file | live descriptors |
//! | [`record-v1`](RecordHandler) | small sealed memfds: a service's own bytes | bytes |
//! | [`arena-memory-v1`](ArenaMemoryHandler) | memory that the arena has lent | resident memory |
//! | [`memfd-v1`](MemfdHandler) | memfds | memory, bytes |
//! | [`tcp-v1`](TcpHandler) | TCP connections | bytes |
//! | [`kernel-live-v1`](KernelHandler) | what the running kernel can keep itself | some live descriptors |
//!
//! Where several could take a file, the one that was registered first does, in the order of this
//! table: `live-v1` keeps more of it, the others keep it farther.
//!
//! Invariants: a handler has no state of its own between two calls, so it does not matter whether
//! the process that freezes is the one that prepared; what it cannot keep whole it refuses with a
//! reason.

mod kernel;
mod live;
mod memfd;
mod record;
mod resident;
mod tcp;

pub use kernel::{KERNEL_LIVE_COMPATIBLE, KernelHandler};
pub use live::{LIVE_COMPATIBLE, LiveHandler};
pub use memfd::MemfdHandler;
pub use record::RecordHandler;
pub use resident::{ARENA_MEMORY_COMPATIBLE, ArenaMemoryHandler};
pub use tcp::TcpHandler;
