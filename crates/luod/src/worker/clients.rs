//! How many connections each user has.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

/// Counts connections; admits no more than the limit for each user.
#[derive(Debug, Clone)]
pub(crate) struct Clients {
    limit: usize,
    open: Rc<RefCell<HashMap<u32, usize>>>,
}

/// One admitted connection; dropping it makes room.
#[derive(Debug)]
pub(crate) struct Admission {
    uid: u32,
    open: Rc<RefCell<HashMap<u32, usize>>>,
}

impl Clients {
    pub(crate) fn new(limit: usize) -> Self {
        Self { limit, open: Rc::default() }
    }

    /// Admits a connection of this user, if the limit allows.
    pub(crate) fn admit(&self, uid: u32) -> Option<Admission> {
        let mut open = self.open.borrow_mut();
        let count = open.entry(uid).or_insert(0);
        if *count >= self.limit {
            return None;
        }
        *count += 1;
        Some(Admission { uid, open: Rc::clone(&self.open) })
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
