//! The clients of luod, written once for every way to wait. What the crate shows are thin types
//! around these: [`crate::Session`] around one that blocks, `crate::tokio::Session` around one that
//! does not, and so on.

mod connections;
mod feed;
mod manager;
mod participant;
mod retrieval;
mod session;
mod stream;
mod target;

pub(crate) use feed::Feed;
pub(crate) use manager::Manager;
pub(crate) use participant::Participant;
pub(crate) use retrieval::Retrieval;
pub(crate) use session::Session;
