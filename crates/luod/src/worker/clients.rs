//! How many connections each user has.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::time::{Duration, Instant};

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

    /// Admits a connection of this user, if the limit allows.
    pub(crate) fn admit(&self, uid: u32) -> Option<Admission> {
        let mut open = self.open.borrow_mut();
        let count = open.entry(uid).or_insert(0);
        if *count >= self.limit {
            self.log(uid);
            return None;
        }
        *count += 1;
        Some(Admission { uid, open: Rc::clone(&self.open) })
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
        let clients = Clients::new(2);
        let first = clients.admit(1).unwrap();
        let _second = clients.admit(1).unwrap();
        assert!(clients.admit(1).is_none());
        assert!(clients.admit(2).is_some());
        drop(first);
        assert!(clients.admit(1).is_some());
    }
}
