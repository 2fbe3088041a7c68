//! kv: an in-memory store with the Redis protocol that lives through updates of itself.
//!
//! All its data lies in one memfd ([`store`]), and so do its notes about connections whose requests or replies
//! are under way. Whoever has that memfd, the listener and the connections goes on where the process before
//! stopped, in a time that does not depend on the size of the data.

pub mod commands;
mod connection;
pub mod custody;
mod glob;
pub mod handover;
mod journal;
pub mod load;
pub mod participant;
pub mod resp;
pub mod server;
pub mod store;
pub mod wake;
