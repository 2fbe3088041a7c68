//! Locks a connection: nothing comes to it, and nothing goes out.
//!
//! Invariants: what [`lock`] has changed, [`unlock`] takes back, however far that came: it asks the
//! socket, whose filter has the note of how it was.

use std::os::fd::AsFd;

use luo_core::Failure;
use luo_sys::tcp::{self, Repair, TcpQueue};
use rustix::net::sockopt;

use super::failed;

/// In the note: the socket had `SO_REUSEADDR`, which repair mode changes.
const REUSED: u16 = 1;

/// Locks it; what is locked stays so.
pub(super) fn lock(socket: impl AsFd) -> Result<(), Failure> {
    let socket = socket.as_fd();
    let cannot = |error| failed("the connection cannot be locked", error);
    if tcp::incoming_dropped(socket).map_err(cannot)?.is_none() {
        let reused = sockopt::socket_reuseaddr(socket).map_err(|error| cannot(error.into()))?;
        lock_new(socket, reused)?;
    }
    tcp::set_repair(socket, Repair::On).map_err(cannot)
}

/// Keeps the network away from a socket that is to have `SO_REUSEADDR`, or not, once it is unlocked.
pub(super) fn lock_new(socket: impl AsFd, reused: bool) -> Result<(), Failure> {
    tcp::drop_incoming(socket, if reused { REUSED } else { 0 })
        .map_err(|error| failed("the connection cannot be locked", error))
}

/// Undoes [`lock`], as far as it came. What the peer has sent meanwhile it sends again.
pub(super) fn unlock(socket: impl AsFd) {
    let socket = socket.as_fd();
    // Without its filter it was never locked; that of somebody else stays.
    let Some(reused) = reused(socket) else { return };
    // Each of these has succeeded before the other way round, and there is nobody to tell.
    let _ = tcp::choose_queue(socket, TcpQueue::None);
    if tcp::is_in_repair(socket).unwrap_or(true) {
        let _ = tcp::set_repair(socket, Repair::Off);
        let _ = sockopt::set_socket_reuseaddr(socket, reused);
    }
    let _ = tcp::accept_incoming(socket);
}

/// Of a locked socket, whether it had `SO_REUSEADDR`.
pub(super) fn reused(socket: impl AsFd) -> Option<bool> {
    let note = tcp::incoming_dropped(socket).ok()??;
    note.map(|note| note & REUSED != 0)
}
