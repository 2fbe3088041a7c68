//! An arena in use: objects come and go while the workload runs.
//!
//! Invariants:
//! - Nothing that a superblock on the medium leads to is ever written over: whatever is new goes
//!   into free space, and space is free only when no superblock on the medium leads to it.
//! - The next catalogue has its space before an object is kept, so that a commit does not fail for
//!   want of it.
//! - What was kept and not committed vanishes with the process.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use luo_abi::arena::{
    BLOCK, Catalogue, Found, Kind, Object, SIZE_MIN, SPACE, SUPERBLOCKS, Superblock, VERSION,
    blocks, encoded_len, handle,
};
use luo_abi::keeper::key;
use luo_core::{Errno, Failure, Handle};

use super::copy::{self, Chunks};
use super::measure::Measured;
use super::medium::{Extent, Medium};
use super::object::{self, Stored};
use super::space::{Region, Space};
use super::view::{self, View};
use crate::io_failure;

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
    /// Makes an empty arena of a medium, which belongs to that machine from then on.
    ///
    /// # Errors
    /// EEXIST where there is an arena already, whole or damaged, of any version, unless `force` is
    /// given; EINVAL where the medium is too small; EIO.
    pub fn create(
        medium: Arc<dyn Medium>,
        machine: [u8; 16],
        force: bool,
    ) -> Result<Self, Failure> {
        let size = medium.size() - medium.size() % BLOCK;
        if size < SIZE_MIN {
            return Err(Failure::new(
                Errno::Inval,
                format!("an arena has at least {SIZE_MIN} bytes, and this would have {size}"),
            ));
        }
        let before = view::superblock(&*medium, None);
        let never = before.as_ref().err().and_then(view::cause)
            == Some(&luo_abi::arena::ArenaError::NeverFormatted);
        if !never && !force {
            let what = match &before {
                Ok(found) if found.superblock.catalogue.is_some() => "that holds a handover".into(),
                Ok(_) => "that is empty".into(),
                Err(error) => format!("that cannot be used: {}", error.reason()),
            };
            return Err(Failure::new(
                Errno::Exist,
                format!("there is an arena already, {what}; add --force to discard it"),
            ));
        }
        // One that is newer than what is there, so that each of the two writes is a switch.
        let generation = before.map_or(0, |found| found.superblock.generation).saturating_add(1);
        let superblock = Superblock {
            arena: random_id()?,
            machine,
            generation,
            size,
            written: seconds(),
            next_handle: 1,
            catalogue: None,
        };
        let bytes = superblock.encode();
        for place in SUPERBLOCKS.iter().rev() {
            medium
                .write_at(*place, &bytes)
                .and_then(|()| medium.flush())
                .map_err(|error| io_failure(error, "the arena cannot be created"))?;
        }
        Self::open(medium, machine)
    }

    /// Opens an arena of that machine, to change it.
    ///
    /// # Errors
    /// As [`View::read`].
    pub fn open(medium: Arc<dyn Medium>, machine: [u8; 16]) -> Result<Self, Failure> {
        let view = View::read(&*medium, Some(&machine))?;
        let found = view.handover(&*medium)?;
        let space = Space::new(view.superblock().size);
        let Found { superblock, place, mirrored } = view.found;
        let mut standing = Standing::default();
        if let Some(place) = &superblock.catalogue {
            let extent = Extent { offset: place.offset, len: place.len };
            standing.catalogue = Some(space.claim(&[extent])?);
        }
        let (mut live, mut needed) = (BTreeMap::new(), Catalogue::FIXED_LEN);
        for object in view.catalogue.objects {
            // Read from an older arena, whose catalogue's checksum was that of its bytes too; the
            // next one is written in the version of today.
            let object = match object {
                Object { kind: Kind::Inline(bytes), handle, sums, .. } if sums.is_empty() => {
                    Object::new_inline(handle, bytes.into_owned())
                }
                object => object,
            };
            let extents: Vec<Extent> = object
                .pieces
                .iter()
                .map(|piece| Extent { offset: piece.offset, len: piece.len })
                .collect();
            let handle = object.handle;
            let region = space.claim(&extents)?;
            let stored = if object.kind == Kind::Resident {
                Stored::resident(object, Region::empty(&space), Arc::new(region))
            } else {
                Stored::new(object, region)
            };
            let stored = Arc::new(stored);
            stored.settle();
            standing.objects.push(Arc::clone(&stored));
            // The handover is nobody's object: the next one takes its place.
            if superblock.catalogue.is_none_or(|place| place.handover != handle) {
                needed += stored.object.encoded_len();
                live.insert(handle, Live::Here(stored));
            }
        }
        let state = State {
            place,
            mirrored,
            generation: superblock.generation,
            standing,
            held: Vec::new(),
            live,
            needed,
            reserve: Region::empty(&space),
            // What was never committed may still be named by somebody who outlived the process:
            // numbers that follow the clock are not given out again.
            next: superblock.next_handle.max(microseconds() << 2).min(key::number(u64::MAX) >> 1),
            failures: 0,
            lent: BTreeMap::new(),
            superblock,
        };
        let arena = Self {
            medium,
            space,
            state: Mutex::new(state),
            switching: Mutex::new(()),
            found: Mutex::new(found),
        };
        arena.leave_what_is_lent()?;
        // What the other superblock leads to is free space here, so it must not count any more
        // when that is written over.
        arena.mirror()?;
        Ok(arena)
    }

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

/// How many bytes an arena sets aside for the catalogue of objects that take so many bytes of it,
/// and for its handover.
pub(super) fn catalogue_room(objects: u64) -> u64 {
    let len = objects.saturating_add(Catalogue::FIXED_LEN).saturating_add(HANDOVER_ROOM);
    blocks(len).unwrap_or(u64::MAX)
}

fn random_id() -> Result<[u8; 16], Failure> {
    let mut id = [0; 16];
    let flags = rustix::rand::GetRandomFlags::empty();
    match rustix::rand::getrandom(&mut id, flags) {
        Ok(16) => Ok(id),
        Ok(_) => Err(Failure::new(Errno::Io, "the kernel gave too little randomness")),
        Err(error) => Err(io_failure(error.into(), "no randomness")),
    }
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
