//! The carrier `arena`.
//!
//! Invariants: every call may run beside every other one; what a call copies is its own until it
//! is done.

use std::collections::HashMap;
use std::fmt;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use luo_core::{Caps, Carrier, Errno, Failure, Handle, Keep, Reach, Recall};
use rustix::fs::{MemfdFlags, memfd_create};

use super::copy;
use super::copy::{Chunks, Window};
use super::file::{Access, FileMedium, machine_id};
use super::store::Arena;
use crate::keeper::Progress;
use crate::{HostFile, io_failure};

/// How many memory files stay mapped from `prepare` to `freeze` at the most: a process may have
/// 65,530 mappings.
const MAX_WINDOWS: usize = 4096;

/// An arena as a carrier.
pub struct ArenaCarrier {
    arena: Arc<Arena>,
    reach: Reach,
    verify: bool,
    progress: Option<Box<Progress>>,
    /// By the handle of kept memory: how it was read, from `prepare` to `freeze`.
    windows: Mutex<HashMap<u64, Arc<Window>>>,
}

impl fmt::Debug for ArenaCarrier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ArenaCarrier")
            .field("arena", &self.arena)
            .field("reach", &self.reach)
            .field("verify", &self.verify)
            .finish_non_exhaustive()
    }
}

impl ArenaCarrier {
    /// A carrier over an arena that has been opened, and survives that far.
    #[must_use]
    pub fn new(arena: Arc<Arena>, reach: Reach) -> Self {
        Self { arena, reach, verify: true, progress: None, windows: Mutex::default() }
    }

    /// Opens the arena at `path`, which belongs to this machine.
    ///
    /// # Errors
    /// As [`FileMedium::open`], [`machine_id`] and [`Arena::open`].
    pub fn open(path: &Path) -> Result<Self, Failure> {
        let medium = FileMedium::open(path, Access::Exclusive)?;
        let reach = medium.place().reach();
        Ok(Self::new(Arc::new(Arena::open(Arc::new(medium), machine_id()?)?), reach))
    }

    /// With somebody to ask during long work.
    #[must_use]
    pub fn with_progress(mut self, progress: Box<Progress>) -> Self {
        self.progress = Some(progress);
        self
    }

    /// Whether memory that is recalled is verified; it is unless this says otherwise. Kept bytes
    /// and the handover always are.
    #[must_use]
    pub fn with_verification(mut self, verify: bool) -> Self {
        self.verify = verify;
        self
    }

    /// The arena.
    #[must_use]
    pub const fn arena(&self) -> &Arc<Arena> {
        &self.arena
    }

    fn windows(&self) -> MutexGuard<'_, HashMap<u64, Arc<Window>>> {
        self.windows.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ask(&self, done: u64, total: u64) -> Result<(), Failure> {
        self.progress.as_ref().map_or(Ok(()), |ask| ask(done, total))
    }
}

impl Keep<HostFile> for ArenaCarrier {
    fn caps(&self) -> Caps {
        let resident = self.arena.medium().file().map_or(Caps::empty(), |_| Caps::RESIDENT);
        Caps::MEMORY | Caps::BYTES | resident
    }

    fn keep_memory(&self, memory: &HostFile, len: u64) -> Result<Handle, Failure> {
        memory.has_memory(len)?;
        let progress = |done, total| self.ask(done, total);
        let window = Arc::new(Window::default());
        let handle = self.arena.put_memory(|medium, space| {
            let (mut chunks, memory) = (Chunks::default(), memory.as_fd());
            copy::refresh_through(&window, &mut chunks, memory, len, medium, space, &progress)?;
            Ok(chunks)
        })?;
        let mut windows = self.windows();
        if window.is_open() && windows.len() < MAX_WINDOWS {
            windows.insert(handle.0, window);
        }
        Ok(handle)
    }

    fn refresh_memory(&self, handle: Handle, memory: &HostFile, len: u64) -> Result<(), Failure> {
        memory.has_memory(len)?;
        let progress = |done, total| self.ask(done, total);
        // What is frozen is not copied again.
        let window = self.windows().remove(&handle.0).unwrap_or_default();
        self.arena.renew_memory(handle, |chunks, medium, space| {
            let memory = memory.as_fd();
            copy::refresh_through(&window, chunks, memory, len, medium, space, &progress)
        })
    }

    fn keep_resident(&self, memory: &HostFile) -> Result<Handle, Failure> {
        self.arena.put_lent(memory.as_fd())
    }

    fn keep_bytes(&self, bytes: &[u8]) -> Result<Handle, Failure> {
        self.arena.put_bytes(bytes)
    }

    fn keep_live(&self, _: &HostFile) -> Result<Handle, Failure> {
        Err(no_live())
    }

    fn forget(&self, handle: Handle) {
        self.windows().remove(&handle.0);
        self.arena.remove(handle);
    }

    fn progress(&self, done: u64, total: u64) -> Result<(), Failure> {
        self.ask(done, total)
    }
}

impl Recall<HostFile> for ArenaCarrier {
    fn caps(&self) -> Caps {
        Keep::caps(self)
    }

    fn memory(&self, handle: Handle) -> Result<HostFile, Failure> {
        let lent = self.arena.memory(handle)?;
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file: OwnedFd = memfd_create("luo-arena", flags)
            .map_err(|error| io_failure(error.into(), "no memfd for kept memory"))?;
        let progress = |done, total| self.ask(done, total);
        copy::copy_out(&lent.chunks(), lent.medium(), file.as_fd(), self.verify, &progress)?;
        Ok(HostFile::from(file))
    }

    fn resident(&self, handle: Handle) -> Result<HostFile, Failure> {
        self.arena.lend_kept(handle).map(HostFile::from)
    }

    fn bytes(&self, handle: Handle) -> Result<Vec<u8>, Failure> {
        self.arena.bytes(handle)
    }

    fn live(&self, _: Handle) -> Result<HostFile, Failure> {
        Err(no_live())
    }

    fn release(&self, handle: Handle) {
        self.arena.remove(handle);
    }

    fn progress(&self, done: u64, total: u64) -> Result<(), Failure> {
        self.ask(done, total)
    }
}

impl Carrier<HostFile> for ArenaCarrier {
    fn name(&self) -> &'static str {
        "arena"
    }

    fn reach(&self) -> Reach {
        self.reach
    }

    fn commit(&self, handover: &[u8]) -> Result<(), Failure> {
        self.windows().clear();
        self.arena.commit(handover)
    }

    fn committed(&self) -> Result<Option<Vec<u8>>, Failure> {
        Ok(self.arena.found())
    }

    fn retire(&self) -> Result<(), Failure> {
        self.arena.retire()
    }
}

pub(super) fn no_live() -> Failure {
    Failure::new(
        Errno::OpNotSupp,
        "an arena keeps memory and bytes; an open descriptor does not outlive the kernel",
    )
}

#[cfg(test)]
mod tests;
