//! How many connections each user has.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::os::fd::{AsRawFd, OwnedFd};
use std::rc::Rc;
use std::time::{Duration, Instant};

use luo_core::Errno;
use rustix::process::{Resource, getrlimit};

use super::refusal::Refusal;

/// Descriptors that connections leave free: for a message of 253, and a session's own.
const SPARE: u64 = luo::protocol::MAX_DESCRIPTORS as u64 + 32;
/// The same where the connection is an operator's: whoever is to see to it must get through.
const SPARE_FOR_OPERATORS: u64 = 16;
/// Between two lines in the log about refused connections: whoever floods luod with connections
/// must not flood the log.
const LOG_PAUSE: Duration = Duration::from_secs(1);

/// Counts connections; admits no more than the limit for each user.
#[derive(Debug, Clone)]
pub(crate) struct Clients {
    limit: usize,
    open: Rc<RefCell<HashMap<u32, usize>>>,
    logged: Rc<Cell<Option<Instant>>>,
    unlogged: Rc<Cell<u64>>,
}

/// One admitted connection; dropping it makes room.
#[derive(Debug)]
pub(crate) struct Admission {
    uid: u32,
    open: Rc<RefCell<HashMap<u32, usize>>>,
}

impl Clients {
    pub(crate) fn new(limit: usize) -> Self {
        Self { limit, open: Rc::default(), logged: Rc::default(), unlogged: Rc::default() }
    }

    /// Admits a connection of this user, if the limit allows, and if luod has descriptors to
    /// spare: what is kept and what is being received comes before more connections.
    ///
    /// # Errors
    /// ENOSPC, with the limit.
    pub(crate) fn admit(
        &self,
        uid: u32,
        is_operator: bool,
        socket: &OwnedFd,
    ) -> Result<Admission, Refusal> {
        let mut open = self.open.borrow_mut();
        let count = open.get(&uid).copied().unwrap_or(0);
        let reason = if count >= self.limit {
            format!(
                "uid {uid} has all of the {} connections that one user may have; close some, or \
                 raise clients.connections_per_user",
                self.limit
            )
        } else if let Some(limit) = scarce(socket, is_operator) {
            format!(
                "luod has few of its {limit} descriptors left, and needs them for files; try again \
                 later, or raise LimitNOFILE="
            )
        } else {
            open.insert(uid, count + 1);
            return Ok(Admission { uid, open: Rc::clone(&self.open) });
        };
        self.log(uid);
        Err(Refusal::new(Errno::NoSpc, reason))
    }

    fn log(&self, uid: u32) {
        let now = Instant::now();
        self.unlogged.set(self.unlogged.get() + 1);
        if self.logged.get().is_none_or(|last| now.duration_since(last) >= LOG_PAUSE) {
            let refused = self.unlogged.replace(0);
            tracing::warn!(uid, refused, "connections over the limit of a user were refused");
            self.logged.set(Some(now));
        }
    }
}

/// The limit of open files, where descriptors are scarce: the kernel gives the lowest number that
/// is free, so a high one tells that almost all are in use.
fn scarce(socket: &OwnedFd, is_operator: bool) -> Option<u64> {
    let spare = if is_operator { SPARE_FOR_OPERATORS } else { SPARE };
    let limit = getrlimit(Resource::Nofile).current?;
    let number = u64::from(socket.as_raw_fd().unsigned_abs());
    (number.saturating_add(spare) >= limit).then_some(limit)
}

impl Drop for Admission {
    fn drop(&mut self) {
        let mut open = self.open.borrow_mut();
        if let Some(count) = open.get_mut(&self.uid) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.uid);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_is_for_each_user_and_what_is_closed_makes_room() {
        let (socket, _other) = rustix::pipe::pipe().unwrap();
        let clients = Clients::new(2);
        let first = clients.admit(1, false, &socket).unwrap();
        let _second = clients.admit(1, false, &socket).unwrap();
        let refusal = clients.admit(1, false, &socket).unwrap_err();
        assert!(refusal.errno() == "ENOSPC" && refusal.reason().contains('2'), "{refusal:?}");
        assert!(clients.admit(2, false, &socket).is_ok());
        drop(first);
        assert!(clients.admit(1, false, &socket).is_ok());
    }
}
