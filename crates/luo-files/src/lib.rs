//! luo's file handlers, one module a file type.
//!
//! | `compatible` | takes | needs of the carrier |
//! | --- | --- | --- |
//! | [`live-v1`](LiveHandler) | any open file | live descriptors |
//! | [`memfd-v1`](MemfdHandler) | memfds | memory, bytes |
//!
//! Where both could take a file, the one that was registered first does: `live-v1` keeps more of
//! it, `memfd-v1` keeps it farther.
//!
//! Invariants: a handler has no state of its own between two calls, so it does not matter whether
//! the process that freezes is the one that prepared; what it cannot keep whole it refuses with a
//! reason.

mod live;
mod memfd;

pub use live::{LIVE_COMPATIBLE, LiveHandler};
pub use memfd::MemfdHandler;
