//! The asynchronous API, for tokio. Its types and methods have the names, options, errors and
//! deadlines of the blocking ones.
//!
//! ```no_run
//! # async fn service() -> Result<(), Box<dyn std::error::Error>> {
//! let session = luo::tokio::Session::open("shop").await?;
//! let memory = luo::Memory::create("state", 1 << 20)?;
//! session.preserve(1, &memory).await?;
//! # Ok(()) }
//! ```
//!
//! It runs on any runtime of tokio whose I/O and time are enabled, a current-thread one too; its
//! futures are [`Send`]. A value belongs to the runtime on which it was first used: connections
//! that it keeps end with that runtime. Outside of a runtime a call is [`Error::System`].
//!
//! **Futures may be dropped** at any point, by `select!` or a timeout of your own. A call then
//! closes its connection, so that its answer is never mistaken for another's; as with a deadline,
//! whether it took effect is not known. [`Watch::next_event`], [`Participant::next_call`] and
//! [`Retrieval::next`] lose nothing: what had come is given next time.
//!
//! # Panics
//! As tokio does, on a runtime whose I/O or time is not enabled.
//!
//! [`Error::System`]: crate::Error::System

mod drive;
mod manager;
mod participant;
mod session;

pub use manager::{Manager, Watch};
pub use participant::Participant;
pub use session::{Retrieval, Session};
