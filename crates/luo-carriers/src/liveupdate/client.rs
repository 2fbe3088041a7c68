//! Kernel sessions that their owners fill by themselves.
//!
//! Some descriptors cannot be passed to luod, and memory is charged to who preserves it. So the owner
//! of a luo session can have a kernel session beside that one, on which it calls the kernel itself.
//!
//! It is not the one in which luod keeps that session's files: of what is in there, the kernel frees
//! nothing before the last copy of the descriptor is closed, so after a `cancel` luod could not take
//! its own files out of a session that somebody else holds as well.
//!
//! Invariants:
//! - One for each owner and session, under a name that follows from these alone.
//! - It is there, and in each catalogue, from the first time it is asked for until it is given back.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::{Mutex, MutexGuard, PoisonError};

use luo_abi::liveupdate::{CLIENT_PREFIX, KERNEL_NAME_MAX, ioctl::Name};
use luo_core::{Errno, Failure};

use super::kernel::{Kernel, Session};
use super::words;

/// The name of the kernel session that the owner `uid` of a luo session fills.
///
/// # Errors
/// EINVAL for what can be no session's name.
pub fn client_name(uid: u32, session: &str) -> Result<Name, Failure> {
    let whole = format!("{CLIENT_PREFIX}{uid}/{session}");
    let text = if whole.len() <= KERNEL_NAME_MAX {
        whole
    } else {
        // Of names that are cut, this tells them apart. (No name that is not cut has its `~` so far
        // to the right and 64 bits of another's checksum behind it.)
        let tail = format!("~{:016x}", luo_abi::arena::checksum(session.as_bytes()));
        let mut end = KERNEL_NAME_MAX.saturating_sub(tail.len());
        while !whole.is_char_boundary(end) {
            end -= 1;
        }
        format!("{}{tail}", whole.get(..end).unwrap_or_default())
    };
    Name::new(text.as_bytes())
        .ok_or_else(|| Failure::new(Errno::Inval, "not the name of a kernel session"))
}

/// Those for the next kernel.
#[derive(Default)]
pub(super) struct Clients(Mutex<BTreeMap<Vec<u8>, (Name, Session)>>);

/// By what a kernel session is found: the kernel takes a name up to its first zero byte.
pub(super) fn key(name: &Name) -> Vec<u8> {
    name.as_bytes_without_nul().to_vec()
}

impl Clients {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<Vec<u8>, (Name, Session)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The one of that name, made where it is not there; and whether it was made.
    pub(super) fn get(&self, kernel: &dyn Kernel, name: Name) -> Result<(Session, bool), Failure> {
        match self.lock().entry(key(&name)) {
            Entry::Occupied(there) => Ok((Session::clone(&there.get().1), false)),
            Entry::Vacant(place) => {
                let text = String::from_utf8_lossy(name.as_bytes_without_nul()).into_owned();
                let made =
                    kernel.create(name).map_err(|error| words::create_failed(&text, error))?;
                place.insert((name, Session::clone(&made)));
                Ok((made, true))
            }
        }
    }

    /// One that an agent before this one has made.
    pub(super) fn adopt(&self, name: Name, session: Session) {
        self.lock().insert(key(&name), (name, session));
    }

    pub(super) fn has(&self, name: &Name) -> bool {
        self.lock().contains_key(name.as_bytes_without_nul())
    }

    /// Lets go of it; says whether it was there.
    pub(super) fn forget(&self, name: &Name) -> bool {
        // The kernel may undo it, which takes a while: without the lock.
        let gone = self.lock().remove(&key(name));
        gone.is_some()
    }

    pub(super) fn all(&self) -> Vec<(Name, Session)> {
        self.lock().values().map(|(name, session)| (*name, Session::clone(session))).collect()
    }
}
