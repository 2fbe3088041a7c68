//! An arena in use: objects come and go while the workload runs.
//!
//! Invariants:
//! - Nothing that a superblock on the medium leads to is ever written over: whatever is new goes
//!   into free space, and space is free only when no superblock on the medium leads to it.
//! - The next catalogue has its space before an object is kept, so that a commit does not fail for
//!   want of it.
//! - What was kept and not committed vanishes with the process.

mod memory;
mod opening;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use luo_abi::arena::{
    BLOCK, Catalogue, Kind, Object, SPACE, Superblock, VERSION, blocks, encoded_len, handle,
};
use luo_core::{Errno, Failure, Handle};

use super::measure::Measured;
use super::medium::Medium;
use super::object::{self, Stored};
use super::space::{Region, Space};

pub use memory::Lent;

/// The most bytes that go into the catalogue itself; longer ones get blocks of their own.
pub const MAX_INLINE: usize = 2048;

/// What the next catalogue has room for beside its objects: for the handover.
const HANDOVER_ROOM: u64 = 64 << 10;

/// An arena that this process alone has open. (Other processes may have ranges of it:
/// [`resident`](super::resident).)
pub struct Arena {
    pub(super) medium: Arc<dyn Medium>,
    pub(super) space: Arc<Space>,
    pub(super) state: Mutex<State>,
    /// Held for the whole of a commit or retire.
    pub(super) switching: Mutex<()>,
    /// The handover that was there at the beginning, until it is ended.
    pub(super) found: Mutex<Option<Vec<u8>>>,
}

/// How full an arena is, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// All of it.
    pub size: u64,
    /// What is kept, and what the arena itself needs.
    pub used: u64,
    /// What somebody has to write it where it lies, kept or not.
    pub lent: u64,
    /// The rest.
    pub free: u64,
}

pub(super) struct State {
    /// The one that counts.
    pub(super) superblock: Superblock,
    /// Where it is.
    pub(super) place: usize,
    /// It is at the other place too.
    pub(super) mirrored: bool,
    /// The highest generation that may be on the medium.
    pub(super) generation: u64,
    /// What it leads to.
    pub(super) standing: Standing,
    /// What another superblock that may be on the medium leads to.
    pub(super) held: Vec<Standing>,
    pub(super) live: BTreeMap<u64, Live>,
    /// The length of the next catalogue without its handover, in bytes.
    pub(super) needed: u64,
    /// Where the next catalogue will be.
    pub(super) reserve: Region,
    /// The number of the next handle.
    pub(super) next: u64,
    /// How many flushes have failed.
    pub(super) failures: u64,
    /// Ranges that are lent, by their offsets, as far as this process has seen.
    pub(super) lent: BTreeMap<u64, Arc<Region>>,
}

/// What a superblock leads to: it keeps its space.
#[derive(Debug, Default)]
pub(super) struct Standing {
    pub(super) objects: Vec<Arc<Stored>>,
    pub(super) catalogue: Option<Region>,
}

pub(super) enum Live {
    Here(Arc<Stored>),
    /// Its content is being brought up to date.
    Busy,
}

impl fmt::Debug for Arena {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Arena").field("medium", &self.medium).finish_non_exhaustive()
    }
}

impl Arena {
    /// The handover that was there when the arena was opened, until it is ended.
    #[must_use]
    pub fn found(&self) -> Option<Vec<u8>> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Where its bytes are.
    #[must_use]
    pub fn medium(&self) -> &dyn Medium {
        &*self.medium
    }

    /// Its size in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.space.size()
    }

    /// How many bytes are free.
    #[must_use]
    pub fn free(&self) -> u64 {
        self.space.free()
    }

    /// How full it is.
    #[must_use]
    pub fn usage(&self) -> Usage {
        self.take_back();
        let state = self.state();
        let lent = state.lent.values().map(|region| region.len()).sum();
        let (size, free) = (self.size(), self.free());
        Usage { size, used: size.saturating_sub(free).saturating_sub(lent), lent, free }
    }

    /// How much of the arena a kept object takes; nothing where there is none.
    #[must_use]
    pub fn takes(&self, handle: Handle) -> Measured {
        match self.state().live.get(&handle.0) {
            Some(Live::Here(stored)) => {
                Measured { objects: stored.region.len(), catalogue: stored.object.encoded_len() }
            }
            Some(Live::Busy) | None => Measured::default(),
        }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a copy of `bytes`.
    ///
    /// # Errors
    /// ENOSPC with the bytes needed and free, EIO.
    pub fn put_bytes(&self, bytes: &[u8]) -> Result<Handle, Failure> {
        let failures = self.state().failures;
        if bytes.len() <= MAX_INLINE {
            return self.insert(failures, Region::empty(&self.space), |handle| {
                Object::new_inline(handle, bytes.to_vec())
            });
        }
        let region = self.space.allocate(bytes.len() as u64)?;
        let (pieces, sums) = object::write_bytes(&*self.medium, &region, bytes)?;
        self.insert(failures, region, |handle| Object {
            handle,
            kind: Kind::Bytes,
            len: bytes.len() as u64,
            pieces: Cow::Owned(pieces),
            sums: Cow::Owned(sums),
        })
    }

    /// Removes a kept object; unknown handles are ignored. Its space is free once no handover on
    /// the medium refers to it.
    pub fn remove(&self, handle: Handle) {
        let mut state = self.state();
        if let Some(Live::Here(stored)) = state.live.remove(&handle.0) {
            state.needed -= stored.object.encoded_len();
        }
    }

    /// The kept bytes of that handle, verified.
    ///
    /// # Errors
    /// ENOENT where there are none, EIO where they are damaged.
    pub fn bytes(&self, handle: Handle) -> Result<Vec<u8>, Failure> {
        let stored = self.stored(handle)?;
        if !matches!(stored.object.kind, Kind::Bytes | Kind::Inline(_)) {
            return Err(missing(handle));
        }
        object::read_bytes(&*self.medium, &stored.object)
    }

    pub(super) fn stored(&self, handle: Handle) -> Result<Arc<Stored>, Failure> {
        match self.state().live.get(&handle.0) {
            Some(Live::Here(stored)) => Ok(Arc::clone(stored)),
            Some(Live::Busy) => Err(busy(handle)),
            None => Err(missing(handle)),
        }
    }

    fn insert(
        &self,
        failures: u64,
        region: Region,
        object: impl FnOnce(u64) -> Object<'static>,
    ) -> Result<Handle, Failure> {
        self.insert_stored(failures, |handle| Stored::new(object(handle), region))
    }

    pub(super) fn insert_stored(
        &self,
        failures: u64,
        stored: impl FnOnce(u64) -> Stored,
    ) -> Result<Handle, Failure> {
        let mut state = self.state();
        if state.failures != failures {
            return Err(lost());
        }
        let handle = handle(state.next);
        let stored = stored(handle);
        self.make_room(&mut state, stored.object.encoded_len())?;
        state.next += 1;
        state.live.insert(handle, Live::Here(Arc::new(stored)));
        Ok(Handle(handle))
    }

    /// Sees to it that the next catalogue has room for so many bytes more.
    fn make_room(&self, state: &mut State, more: u64) -> Result<(), Failure> {
        let needed = state.needed.saturating_add(more);
        let with_handover = needed.saturating_add(HANDOVER_ROOM);
        if state.reserve.len() < with_handover {
            // Twice that, so that it is moved only a few times.
            let region = self
                .space
                .allocate_whole(with_handover.saturating_mul(2))
                .or_else(|_| self.space.allocate_whole(with_handover))?;
            state.reserve = region;
        }
        state.needed = needed;
        Ok(())
    }

    /// After a failed flush: nobody knows what of that is on the medium which was written since
    /// the last one.
    pub(super) fn unsettle(&self) {
        let mut state = self.state();
        state.failures += 1;
        for live in state.live.values() {
            if let Live::Here(stored) = live {
                stored.unsettle();
            }
        }
    }
}

/// How many bytes an arena sets aside for the catalogue of objects that take so many bytes of it,
/// and for its handover.
pub(super) fn catalogue_room(objects: u64) -> u64 {
    let len = objects.saturating_add(Catalogue::FIXED_LEN).saturating_add(HANDOVER_ROOM);
    blocks(len).unwrap_or(u64::MAX)
}

fn microseconds() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(0)
}

pub(super) fn seconds() -> u64 {
    microseconds() / 1_000_000
}

pub(super) fn missing(handle: Handle) -> Failure {
    Failure::new(Errno::NoEnt, format!("nothing of that kind is kept under {:#x}", handle.0))
}

fn busy(handle: Handle) -> Failure {
    Failure::new(Errno::Busy, format!("kept object {:#x} is being brought up to date", handle.0))
}

/// What was written may be lost, since a flush failed meanwhile.
pub(super) fn lost() -> Failure {
    Failure::new(
        Errno::Io,
        "the arena could not be flushed, and what was written before may be lost: keep it again",
    )
}

const _: () = assert!(VERSION == 3 && SPACE != 0 && encoded_len(0, 0, 0) < BLOCK);
