//! Client library of luo: open files that survive the restart of their service, of luod, and as
//! far as the carrier reaches, of the kernel.
//!
//! ```no_run
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let listener = std::net::TcpListener::bind("[::1]:0")?;
//! # let connection = std::net::TcpStream::connect(listener.local_addr()?)?;
//! # let memory = std::fs::File::open("/dev/null")?;
//! let session = luo::Session::open("shop")?;
//! if session.is_updated()? {
//!     let _listener = std::net::TcpListener::from(session.retrieve(1)?);
//!     let _connection = std::net::TcpStream::from(session.retrieve(2)?);
//!     let _memory = std::fs::File::from(session.retrieve(3)?);
//!     session.finish_and_carry()?;
//! } else {
//!     session.preserve_many(&[(1, &listener as &dyn std::os::fd::AsFd), (2, &connection), (3, &memory)])?;
//! }
//! # Ok(()) }
//! ```
#![forbid(unsafe_code)]

mod blocking;
mod calls;
mod client;
mod drive;
mod error;
mod exchange;
mod manager;
mod options;
mod participant;
pub mod protocol;
mod request;
mod session;
#[cfg(feature = "tokio")]
pub mod tokio;
pub mod wire;

pub use calls::{Recalled, Verdict};
pub use error::{Error, Refusal};
pub use luo_sys::{Memory, MemoryError};
pub use manager::{Manager, Watch};
pub use options::{DEFAULT_DEADLINE, Options, ParticipantOptions};
pub use participant::Participant;
pub use protocol::{OnClose, Policy, State, Unclaimed};
pub use session::Session;
