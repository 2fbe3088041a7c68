//! The carrier `keeper`: live descriptors and memory stay where they are, in a process that
//! outlives the agent. Nothing is copied.
//!
//! Everything kept is one slot, whose key is the [`Handle`]; its record is a
//! [`Kept`].
//!
//! Invariants:
//! - A descriptor that already sits in a slot of its own is not sent again: the new slot is an
//!   alias, and the other one stays as long as an alias of it does
//!   ([`KeeperCarrier::forget_slot`]). What is an alias of what is in the slots themselves, so it
//!   outlives the agent too.
//! - The handover is one slot: replacing it is atomic.

use std::collections::HashMap;
use std::fmt;
use std::fs::File as StdFile;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use luo_abi::keeper::{Kept, kept, key};
use luo_core::{Caps, Carrier, Errno, Failure, Handle, Keep, Reach, Recall};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fstat, memfd_create};
use zerocopy::{FromBytes, IntoBytes};

use crate::{HostFile, io_failure};

#[cfg(test)]
mod tests;

/// The most bytes that a slot's record takes inline; longer ones go into a memfd.
pub const MAX_INLINE: usize = 4096;

/// What a slot has.
#[derive(Debug, Clone)]
pub struct Slot {
    /// Its record.
    pub record: Vec<u8>,
    /// Its descriptors.
    pub files: Vec<HostFile>,
}

/// Where the carrier keeps things. Calls do not wait: whoever owns the slots sends them on, and
/// tells nobody that something is kept before the keeper has it.
pub trait Slots: Send + Sync {
    /// A key of that space that was never used before.
    fn allocate(&self, space: u8) -> u64;

    /// Creates or replaces a slot.
    ///
    /// # Errors
    /// ENOSPC where the keeper's limits would be passed, E2BIG for a record longer than a message.
    fn put(&self, key: u64, record: &[u8], files: &[&HostFile]) -> Result<(), Failure>;

    /// Replaces the record of a slot; its descriptors stay.
    ///
    /// # Errors
    /// As [`put`](Self::put), and ENOENT where there is no such slot.
    fn rewrite(&self, key: u64, record: &[u8]) -> Result<(), Failure>;

    /// What the slot has, `None` where there is no such slot.
    fn get(&self, key: u64) -> Option<Slot>;

    /// Looks at what the slot has where it is, `None` where there is no such slot. No other call
    /// may be made meanwhile.
    fn look<R>(&self, key: u64, look: impl FnOnce(&[u8], &[HostFile]) -> R) -> Option<R>
    where
        Self: Sized,
    {
        self.get(key).map(|slot| look(&slot.record, &slot.files))
    }

    /// Deletes a slot; unknown keys are ignored.
    fn forget(&self, key: u64);

    /// The keys of a space, in any order.
    fn keys(&self, space: u8) -> Vec<u64>;
}

impl<S: Slots> Slots for Arc<S> {
    fn allocate(&self, space: u8) -> u64 {
        (**self).allocate(space)
    }

    fn put(&self, key: u64, record: &[u8], files: &[&HostFile]) -> Result<(), Failure> {
        (**self).put(key, record, files)
    }

    fn rewrite(&self, key: u64, record: &[u8]) -> Result<(), Failure> {
        (**self).rewrite(key, record)
    }

    fn get(&self, key: u64) -> Option<Slot> {
        (**self).get(key)
    }

    fn look<R>(&self, key: u64, look: impl FnOnce(&[u8], &[HostFile]) -> R) -> Option<R> {
        (**self).look(key, look)
    }

    fn forget(&self, key: u64) {
        (**self).forget(key);
    }

    fn keys(&self, space: u8) -> Vec<u64> {
        (**self).keys(space)
    }
}

/// Asked during long work, see [`Keep::progress`].
pub type Progress = dyn Fn(u64, u64) -> Result<(), Failure> + Send + Sync;

/// The carrier `keeper`.
pub struct KeeperCarrier<S> {
    slots: S,
    /// Slots that aliases refer to.
    targets: Mutex<HashMap<u64, Target>>,
    /// The handover that was there at the beginning.
    found: Option<Vec<u8>>,
    progress: Option<Box<Progress>>,
}

/// Where a kept file is.
enum Found {
    File(HostFile),
    /// In this slot.
    Alias(u64),
}

/// A slot that aliases refer to.
#[derive(Debug, Default)]
struct Target {
    aliases: usize,
    /// Its owner has forgotten it; it goes with the last alias.
    forgotten: bool,
}

impl<S> fmt::Debug for KeeperCarrier<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeeperCarrier")
            .field("found", &self.found.is_some())
            .finish_non_exhaustive()
    }
}

impl<S: Slots> KeeperCarrier<S> {
    /// A carrier over slots that have been loaded.
    ///
    /// # Errors
    /// EINVAL, EIO where the handover in them cannot be read. (Kept objects that are damaged fail
    /// one by one, when they are recalled.)
    pub fn new(slots: S) -> Result<Self, Failure> {
        let mut carrier = Self { slots, targets: Mutex::default(), found: None, progress: None };
        let mut targets: HashMap<u64, Target> = HashMap::new();
        for key in carrier.slots.keys(key::CARRIER) {
            if let Some(target) = carrier.slots.look(key, |record, _| alias_of(record)).flatten() {
                targets.entry(target).or_default().aliases += 1;
            }
        }
        carrier.targets = Mutex::new(targets);
        carrier.found = match carrier.slots.get(key::HANDOVER) {
            Some(slot) => Some(read_bytes(&slot)?),
            None => None,
        };
        Ok(carrier)
    }

    /// With somebody to ask during long work.
    #[must_use]
    pub fn with_progress(mut self, progress: Box<Progress>) -> Self {
        self.progress = Some(progress);
        self
    }

    /// The slots.
    pub fn slots(&self) -> &S {
        &self.slots
    }

    /// Deletes the slot of a file (not one of the carrier's own): at once, or with the last alias
    /// of it.
    pub fn forget_slot(&self, key: u64) {
        match self.targets().get_mut(&key) {
            Some(target) => target.forgotten = true,
            None => self.slots.forget(key),
        }
    }

    /// A slot that was kept only for its aliases ([`forget_slot`](Self::forget_slot)) has an owner
    /// again.
    pub fn adopt_slot(&self, key: u64) {
        if let Some(target) = self.targets().get_mut(&key) {
            target.forgotten = false;
        }
    }

    /// The slot that a kept object refers to; `None` where it has its own descriptor, or none.
    pub fn target(&self, handle: Handle) -> Option<u64> {
        let ours = key::space(handle.0) == key::CARRIER;
        ours.then(|| self.slots.look(handle.0, |record, _| alias_of(record)).flatten()).flatten()
    }

    fn targets(&self) -> MutexGuard<'_, HashMap<u64, Target>> {
        self.targets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, kept: Kept, tail: &[u8], files: &[&HostFile]) -> Result<Handle, Failure> {
        let key = self.slots.allocate(key::CARRIER);
        match tail {
            [] => self.slots.put(key, kept.as_bytes(), files)?,
            tail => self.slots.put(key, &[kept.as_bytes(), tail].concat(), files)?,
        }
        Ok(Handle(key))
    }

    /// Keeps a descriptor: in a slot of its own, or as an alias of the slot where it is.
    fn put_file(&self, file: &HostFile, memory: Option<u64>) -> Result<Handle, Failure> {
        let Some(target) = file.slot() else {
            let kind = if memory.is_some() { kept::MEMORY } else { kept::LIVE };
            return self.put(record(kind, memory.unwrap_or(0)), &[], &[file]);
        };
        let handle = match memory {
            None => self.put(record(kept::LIVE_ALIAS, target), &[], &[])?,
            Some(len) => self.put(record(kept::MEMORY_ALIAS, target), &len.to_le_bytes(), &[])?,
        };
        self.targets().entry(target).or_default().aliases += 1;
        Ok(handle)
    }

    /// Deletes a slot of the carrier's own.
    fn drop_slot(&self, handle: Handle) {
        if key::space(handle.0) != key::CARRIER || handle.0 == key::HANDOVER {
            return;
        }
        let Some(alias) = self.slots.look(handle.0, |record, _| alias_of(record)) else { return };
        self.slots.forget(handle.0);
        let Some(key) = alias else { return };
        let mut targets = self.targets();
        let Some(target) = targets.get_mut(&key) else { return };
        target.aliases = target.aliases.saturating_sub(1);
        if target.aliases == 0 {
            let forgotten = target.forgotten;
            targets.remove(&key);
            drop(targets);
            if forgotten {
                self.slots.forget(key);
            }
        }
    }

    fn find(&self, handle: Handle) -> Result<(Kept, Slot), Failure> {
        let slot = (key::space(handle.0) == key::CARRIER)
            .then(|| self.slots.get(handle.0))
            .flatten()
            .ok_or_else(|| missing(handle))?;
        let (kept, _) = decode(&slot.record)?;
        Ok((kept, slot))
    }

    /// The only file of a slot, or of the slot that it is an alias of.
    fn file(&self, handle: Handle, own: u16, alias: u16) -> Result<HostFile, Failure> {
        if key::space(handle.0) != key::CARRIER {
            return Err(missing(handle));
        }
        let only = |files: &[HostFile]| match files {
            [file] => Ok(file.clone()),
            files => Err(Failure::new(
                Errno::Inval,
                format!(
                    "kept object {:#x} has {} descriptors instead of one",
                    handle.0,
                    files.len()
                ),
            )),
        };
        let found = self.slots.look(handle.0, |record, files| {
            let (kept, _) = decode(record)?;
            match kept.kind.get() {
                kind if kind == own => only(files).map(Found::File),
                kind if kind == alias => Ok(Found::Alias(kept.value.get())),
                _ => Err(missing(handle)),
            }
        });
        match found.unwrap_or_else(|| Err(missing(handle)))? {
            Found::File(file) => Ok(file),
            Found::Alias(target) => {
                self.slots.look(target, |_, files| only(files)).unwrap_or_else(|| {
                    Err(Failure::new(
                        Errno::Inval,
                        format!(
                            "kept object {:#x} refers to slot {target:#x}, which is gone",
                            handle.0
                        ),
                    ))
                })
            }
        }
    }

    fn write_bytes(bytes: &[u8]) -> Result<(Kept, Option<HostFile>), Failure> {
        let length = bytes.len() as u64;
        if bytes.len() <= MAX_INLINE {
            return Ok((record(kept::BYTES, length), None));
        }
        let fd = memfd_create("luo-kept", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)
            .map_err(|e| io_failure(e.into(), "no memfd for kept bytes"))?;
        let file = StdFile::from(fd);
        file.write_all_at(bytes, 0)
            .map_err(|e| io_failure(e, &format!("no memory for {length} kept bytes")))?;
        fcntl_add_seals(
            &file,
            SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL,
        )
        .map_err(|e| io_failure(e.into(), "kept bytes cannot be sealed"))?;
        Ok((
            record(kept::BYTES_MEMFD, length),
            Some(HostFile::from(std::os::fd::OwnedFd::from(file))),
        ))
    }
}

impl<S: Slots> Keep<HostFile> for KeeperCarrier<S> {
    fn caps(&self) -> Caps {
        Caps::LIVE | Caps::MEMORY | Caps::BYTES
    }

    fn keep_memory(&self, memory: &HostFile, len: u64) -> Result<Handle, Failure> {
        memory.has_memory(len)?;
        self.put_file(memory, Some(len))
    }

    fn refresh_memory(&self, handle: Handle, memory: &HostFile, len: u64) -> Result<(), Failure> {
        memory.has_memory(len)?;
        let (kept, slot) = self.find(handle)?;
        let renewed = match kept.kind.get() {
            kept::MEMORY => record(kept::MEMORY, len).as_bytes().to_vec(),
            kept::MEMORY_ALIAS => [kept.as_bytes(), &len.to_le_bytes()].concat(),
            _ => return Err(missing(handle)),
        };
        if renewed == slot.record { Ok(()) } else { self.slots.rewrite(handle.0, &renewed) }
    }

    fn keep_bytes(&self, bytes: &[u8]) -> Result<Handle, Failure> {
        match Self::write_bytes(bytes)? {
            (kept, None) => self.put(kept, bytes, &[]),
            (kept, Some(file)) => self.put(kept, &[], &[&file]),
        }
    }

    fn keep_live(&self, file: &HostFile) -> Result<Handle, Failure> {
        self.put_file(file, None)
    }

    fn forget(&self, handle: Handle) {
        self.drop_slot(handle);
    }

    fn progress(&self, done: u64, total: u64) -> Result<(), Failure> {
        self.progress.as_ref().map_or(Ok(()), |ask| ask(done, total))
    }
}

impl<S: Slots> Recall<HostFile> for KeeperCarrier<S> {
    fn caps(&self) -> Caps {
        Keep::caps(self)
    }

    fn memory(&self, handle: Handle) -> Result<HostFile, Failure> {
        self.file(handle, kept::MEMORY, kept::MEMORY_ALIAS)
    }

    fn bytes(&self, handle: Handle) -> Result<Vec<u8>, Failure> {
        let (kept, slot) = self.find(handle)?;
        match kept.kind.get() {
            kept::BYTES | kept::BYTES_MEMFD => read_bytes(&slot),
            _ => Err(missing(handle)),
        }
    }

    fn live(&self, handle: Handle) -> Result<HostFile, Failure> {
        self.file(handle, kept::LIVE, kept::LIVE_ALIAS)
    }

    fn release(&self, handle: Handle) {
        self.drop_slot(handle);
    }

    fn progress(&self, done: u64, total: u64) -> Result<(), Failure> {
        Keep::progress(self, done, total)
    }
}

impl<S: Slots> Carrier<HostFile> for KeeperCarrier<S> {
    fn name(&self) -> &'static str {
        "keeper"
    }

    fn reach(&self) -> Reach {
        Reach::Agent
    }

    fn is_quick(&self) -> bool {
        true
    }

    fn commit(&self, handover: &[u8]) -> Result<(), Failure> {
        match Self::write_bytes(handover)? {
            (kept, None) => {
                self.slots.put(key::HANDOVER, &[kept.as_bytes(), handover].concat(), &[])
            }
            (kept, Some(file)) => self.slots.put(key::HANDOVER, kept.as_bytes(), &[&file]),
        }
    }

    fn committed(&self) -> Result<Option<Vec<u8>>, Failure> {
        Ok(self.found.clone())
    }

    fn retire(&self) -> Result<(), Failure> {
        self.slots.forget(key::HANDOVER);
        Ok(())
    }
}

fn record(kind: u16, value: u64) -> Kept {
    Kept { kind: kind.into(), reserved: [0; 6], value: value.into() }
}

fn decode(record: &[u8]) -> Result<(Kept, &[u8]), Failure> {
    match Kept::read_from_prefix(record) {
        Ok((kept, tail)) if kept.reserved == [0; 6] => Ok((kept, tail)),
        _ => Err(Failure::new(Errno::Inval, "the record of a kept object is damaged")),
    }
}

fn alias_of(record: &[u8]) -> Option<u64> {
    let (kept, _) = decode(record).ok()?;
    matches!(kept.kind.get(), kept::LIVE_ALIAS | kept::MEMORY_ALIAS).then(|| kept.value.get())
}

fn read_bytes(slot: &Slot) -> Result<Vec<u8>, Failure> {
    let (kept, tail) = decode(&slot.record)?;
    let length = kept.value.get();
    match (kept.kind.get(), slot.files.as_slice()) {
        (kept::BYTES, []) if tail.len() as u64 == length => Ok(tail.to_vec()),
        (kept::BYTES_MEMFD, [file]) => {
            let stat =
                fstat(file).map_err(|e| io_failure(e.into(), "kept bytes are not readable"))?;
            if u64::try_from(stat.st_size) != Ok(length) {
                return Err(Failure::new(
                    Errno::Inval,
                    format!("kept bytes are {} long and should be {length}", stat.st_size),
                ));
            }
            let mut bytes = vec![
                0;
                usize::try_from(length).map_err(|e| {
                    Failure::new(Errno::NoMem, "kept bytes do not fit into memory").because(e)
                })?
            ];
            let fd = file
                .try_clone_fd()
                .map_err(|e| io_failure(e, "no descriptor to read kept bytes"))?;
            StdFile::from(fd)
                .read_exact_at(&mut bytes, 0)
                .map_err(|e| io_failure(e, "kept bytes are not readable"))?;
            Ok(bytes)
        }
        _ => Err(Failure::new(Errno::Inval, "the record of kept bytes is damaged")),
    }
}

fn missing(handle: Handle) -> Failure {
    Failure::new(Errno::NoEnt, format!("nothing of that kind is kept under {:#x}", handle.0))
}
