//! Client library of luo: open files that survive the restart of their service, of luod, and as
//! far as the carrier reaches, of the kernel.
//!
//! A service gives luo its listener, a connection and the memory that holds its state, and takes
//! them back when it has been restarted:
//!
//! ```no_run
//! # use std::net::{TcpListener, TcpStream};
//! # use std::os::fd::AsFd;
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let mut listener = TcpListener::bind("[::1]:0")?;
//! # let mut connection = TcpStream::connect(listener.local_addr()?)?;
//! # let mut memory = luo::Memory::create("state", 1 << 20)?;
//! let session = luo::Session::open("shop")?;
//! if session.is_updated()? {
//!     listener = session.retrieve(1)?.into();
//!     connection = session.retrieve(2)?.into();
//!     memory = session.retrieve(3)?.try_into()?;
//!     session.finish_and_carry()?;
//! } else {
//!     session.preserve_all(&[(1, listener.as_fd()), (2, connection.as_fd()), (3, memory.as_fd())])?;
//! }
//! # drop((listener, connection, memory));
//! # Ok(()) }
//! ```
//!
//! The numbers are **tokens**, of the service's own choosing: they name its files within its
//! session, and mean the same to the next version. `examples/counter.rs` is a whole service.
//!
//! # How an update of a service goes
//!
//! luod holds a duplicate of every file from the moment it is preserved. So there are two ways, and
//! the program that comes after cannot tell them apart: it opens the session by its name, finds it
//! [`updated`](Session::is_updated), [retrieves](Session::retrieve) its files, in any order and as
//! often as it likes, and then [finishes](Session::finish_and_carry).
//!
//! *Planned.* The old program stops taking on work, calls [`Session::prepare`] and
//! [`Session::freeze`], and exits. Between the two the workload may still run; after the second
//! nothing may change. What cannot be kept is refused here, while the old program is still there to
//! serve on: each of them either does its work or leaves everything as it was.
//!
//! *After a crash*, a `kill` or a plain restart, nothing was said to luod: it notices that nobody
//! holds the session any more, and hands the files over as they are. State that is to survive this
//! must be whole at every moment; [`Memory`] gives atomic words and an order of writes for that.
//!
//! The new program may be started before the old one is gone: [`Session::open`] waits for it.
//!
//! [`finish_and_carry`](Session::finish_and_carry) keeps the retrieved files for the next update
//! under their tokens; after [`finish`](Session::finish) they belong to the program alone.
//! [`Session::unpreserve`] takes out one that is not needed any more: luod's duplicate keeps a
//! connection open although the program has closed it.
//!
//! # Policies
//!
//! What becomes of a session when nobody holds it is its [`Policy`], given when it is made by
//! [`Options::policy`]: it is kept until somebody claims it, for ever or for so many seconds (the
//! default is for ever), or it is released at once, as the kernel does. `luoctl status` shows
//! sessions that nobody has claimed, and the memory that they pin.
//!
//! # When luod restarts
//!
//! A connection that breaks is made again by itself; what had no answer is sent again under the
//! number of the first request, so that luod can tell. What turns out to have taken effect the first
//! time is a success. The caller sees a call that took longer. Calls that change nothing are
//! repeated in the same way. [`Watch`] and [`Participant`] subscribe again, and tell that they did.
//!
//! If luod was stopped for good, and started later without what it held, calls fail with
//! [`Error::SessionGone`], and the session is made anew by opening it.
//!
//! # Deadlines
//!
//! Every call ends within [`Options::deadline`], [`DEFAULT_DEADLINE`] unless it is set, the time to
//! reach luod included. [`Error::DeadlineExceeded`] says that no answer came: whether the request
//! took effect is not known, and the answer, if it still comes, is thrown away. Only
//! [`Watch::next_event`] and [`Participant::next_call`] wait for ever, if they are told to.
//!
//! # Running without luod
//!
//! [`Session::connect_or_none`] gives `None` where no luod runs, and the service goes on without. A
//! luod that is there but cannot be used is an error: its socket may not be opened, it does not
//! answer, the session is another user's.
//!
//! # Passing a session on
//!
//! A session is a capability: whoever has its [descriptor](Session::descriptor) may use it, and
//! nothing else. Send it to a less privileged process over a Unix socket;
//! [`Session::from_descriptor`] makes a session of it there, with connections of its own.
//!
//! # Batches
//!
//! [`Session::preserve_many`], [`retrieve_many`](Session::retrieve_many) and
//! [`unpreserve_many`](Session::unpreserve_many) take any number of files and are many times faster
//! than one call each. They give a verdict for each file;
//! [`preserve_all`](Session::preserve_all) wants all or an error. A file without which an update
//! may go on is given with [`preserve_optional`](Session::preserve_optional).
//! [`retrieve_each`](Session::retrieve_each) is for memory that may have to be copied back: it gives
//! each file as soon as it is there.
//!
//! # Asynchronous
//!
//! With the feature `tokio`, the module `luo::tokio` has the same types with the same methods as
//! futures.
#![forbid(unsafe_code)]

mod blocking;
mod calls;
mod client;
mod drive;
mod error;
mod exchange;
mod kernel_session;
mod manager;
mod options;
mod participant;
pub mod protocol;
mod record;
mod request;
mod session;
#[cfg(feature = "tokio")]
pub mod tokio;
pub mod wire;

pub use calls::{Recalled, Verdict};
pub use error::{Error, Refusal};
pub use kernel_session::{ArrivedKernelSession, KernelSession};
pub use luo_sys::{Memory, MemoryError};
pub use manager::{Manager, Watch};
pub use options::{DEFAULT_DEADLINE, Options, ParticipantOptions};
pub use participant::Participant;
pub use protocol::{OnClose, Policy, State, Unclaimed};
pub use record::Record;
pub use session::{Retrieval, Session};

/// The examples of the pages for authors of services are compiled. (The attributes of blocks that
/// `cargo xtask test` runs mean nothing to rustdoc.)
#[cfg(doctest)]
#[allow(rustdoc::invalid_codeblock_attributes)]
mod pages {
    #[doc = include_str!("../../../README.md")]
    mod readme {}
    #[doc = include_str!("../../../docs/guide-services.md")]
    mod guide {}
}
