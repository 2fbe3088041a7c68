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

mod calls;
mod connection;
mod error;
mod exchange;
mod manager;
mod options;
mod participant;
pub mod protocol;
mod request;
mod session;
pub mod wire;

pub use calls::{Recalled, Verdict};
pub use error::{Error, Refusal};
pub use manager::{Manager, Watch};
pub use options::{DEFAULT_DEADLINE, Options};
pub use participant::{Participant, ParticipantOptions};
pub use protocol::{OnClose, Policy, State, Unclaimed};
pub use session::Session;

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
