//! Kept memory: copied into the arena, brought up to date while it is in use, and read.
//!
//! Invariants: whatever happens while memory is brought up to date, it is put back, or gone.

use std::sync::{Arc, Mutex, PoisonError};

use luo_abi::arena::Kind;
use luo_core::{Failure, Handle};

use super::{Arena, Live, busy, lost, missing};
use crate::arena::copy::{self, Chunks};
use crate::arena::medium::{Extent, Medium};
use crate::arena::object::{self, Stored};
use crate::arena::space::{Region, Space};

impl Arena {
    /// Keeps memory that `copy` writes into the arena, into space that it asks for.
    ///
    /// # Errors
    /// As [`put_bytes`](Self::put_bytes), and what `copy` answers; nothing is kept then.
    pub fn put_memory(
        &self,
        copy: impl FnOnce(&dyn Medium, &dyn copy::Space) -> Result<Chunks, Failure>,
    ) -> Result<Handle, Failure> {
        let failures = self.state().failures;
        let growing = Growing::new(&self.space, Region::empty(&self.space));
        let chunks = copy(&*self.medium, &growing)?;
        let mut region = growing.into_region();
        region.keep_only(chunks.extents.iter().map(|(_, extent)| *extent))?;
        self.insert(failures, region, |handle| object::memory(handle, chunks))
    }

    /// Brings kept memory up to date: `copy` changes what is stored. Memory that a handover on the
    /// medium refers to is copied anew instead, from nothing.
    ///
    /// # Errors
    /// ENOENT where `handle` is no kept memory, EBUSY where this is being done already, and as
    /// [`put_memory`](Self::put_memory). After an error the memory can be brought up to date again,
    /// or removed; until then, [`commit`](Self::commit) refuses.
    pub fn renew_memory(
        &self,
        handle: Handle,
        copy: impl FnOnce(&mut Chunks, &dyn Medium, &dyn copy::Space) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let (before, failures) = self.take(handle)?;
        let busy = BusyGuard { arena: self, handle: handle.0 };
        match Arc::try_unwrap(before) {
            Ok(Stored { object, region, .. }) => {
                let mut chunks = object::chunks(&object);
                let growing = Growing::new(&self.space, region);
                let copied = copy(&mut chunks, &*self.medium, &growing);
                let mut region = growing.into_region();
                // Also after a failure, the chunks name all that is theirs, and nothing else.
                let trimmed = region.keep_only(chunks.extents.iter().map(|(_, extent)| *extent));
                let stored = Stored::new(object::memory(handle.0, chunks), region);
                busy.put_back(stored, failures, copied.and(trimmed))
            }
            Err(shared) => {
                let mut chunks = Chunks::default();
                let growing = Growing::new(&self.space, Region::empty(&self.space));
                let copied = copy(&mut chunks, &*self.medium, &growing);
                let mut region = growing.into_region();
                let trimmed = copied.and_then(|()| {
                    region.keep_only(chunks.extents.iter().map(|(_, extent)| *extent))
                });
                drop(shared);
                let stored = Stored::new(object::memory(handle.0, chunks), region);
                busy.put_back(stored, failures, trimmed)
            }
        }
    }

    /// Takes kept memory out for a while.
    fn take(&self, handle: Handle) -> Result<(Arc<Stored>, u64), Failure> {
        let mut state = self.state();
        let failures = state.failures;
        let entry = state.live.get_mut(&handle.0).ok_or_else(|| missing(handle))?;
        match std::mem::replace(entry, Live::Busy) {
            Live::Here(stored) if matches!(stored.object.kind, Kind::Memory) => {
                state.needed -= stored.object.encoded_len();
                Ok((stored, failures))
            }
            Live::Here(stored) => {
                *entry = Live::Here(stored);
                Err(missing(handle))
            }
            Live::Busy => Err(busy(handle)),
        }
    }

    /// The kept memory of that handle.
    ///
    /// # Errors
    /// ENOENT where there is none, EBUSY where it is being brought up to date.
    pub fn memory(&self, handle: Handle) -> Result<Lent, Failure> {
        let stored = self.stored(handle)?;
        if !matches!(stored.object.kind, Kind::Memory) {
            return Err(missing(handle));
        }
        Ok(Lent { medium: Arc::clone(&self.medium), stored })
    }
}

/// Puts an object back where it was taken from, whatever happens.
struct BusyGuard<'a> {
    arena: &'a Arena,
    handle: u64,
}

impl BusyGuard<'_> {
    fn put_back(
        self,
        stored: Stored,
        failures: u64,
        mut result: Result<(), Failure>,
    ) -> Result<(), Failure> {
        let mut state = self.arena.state();
        // It may have been removed meanwhile.
        if !matches!(state.live.get(&self.handle), Some(Live::Busy)) {
            return result;
        }
        if result.is_ok() && state.failures != failures {
            result = Err(lost());
        }
        let len = stored.object.encoded_len();
        match self.arena.make_room(&mut state, len) {
            Ok(()) => {}
            Err(failure) => {
                // It counts all the same: whoever commits finds that it is spoiled.
                state.needed += len;
                result = result.and(Err(failure));
            }
        }
        if result.is_err() {
            stored.spoil();
        }
        state.live.insert(self.handle, Live::Here(Arc::new(stored)));
        result
    }
}

impl Drop for BusyGuard<'_> {
    fn drop(&mut self) {
        // Only if `copy` has panicked is it still busy: then nobody knows what it is.
        if std::thread::panicking() {
            self.arena.state().live.remove(&self.handle);
        }
    }
}

/// Kept memory that somebody reads; its space stays as it is until this is dropped.
#[derive(Debug, Clone)]
pub struct Lent {
    medium: Arc<dyn Medium>,
    stored: Arc<Stored>,
}

impl Lent {
    /// Where its bytes are.
    #[must_use]
    pub fn medium(&self) -> &dyn Medium {
        &*self.medium
    }

    /// What is stored of it.
    #[must_use]
    pub fn chunks(&self) -> Chunks {
        self.stored.chunks()
    }

    /// Its length in bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.stored.object.len
    }

    /// Whether it has no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Space that the copying engine asks for.
struct Growing<'a> {
    space: &'a Arc<Space>,
    region: Mutex<Region>,
}

impl<'a> Growing<'a> {
    fn new(space: &'a Arc<Space>, region: Region) -> Self {
        Self { space, region: Mutex::new(region) }
    }

    fn into_region(self) -> Region {
        self.region.into_inner().unwrap_or_else(PoisonError::into_inner)
    }
}

impl copy::Space for Growing<'_> {
    fn allocate(&self, len: u64) -> Result<Vec<Extent>, Failure> {
        let region = self.space.allocate(len)?;
        let extents = region.extents().to_vec();
        self.region.lock().unwrap_or_else(PoisonError::into_inner).absorb(region);
        Ok(extents)
    }

    /// Nothing yet: what is not used in the end is freed in the end.
    fn release(&self, _: Extent) {}
}
