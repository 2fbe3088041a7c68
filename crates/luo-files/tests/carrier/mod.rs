//! A carrier that copies what it is given, for tests of handlers.
#![allow(dead_code, reason = "each test program uses a part of it")]

use std::collections::BTreeMap;
use std::fs::File as StdFile;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use luo_carriers::HostFile;
use luo_core::{Caps, Errno, Failure, Handle, Keep, Recall};
use rustix::fs::{MemfdFlags, memfd_create};

/// Copies memory, in whole pages, as a carrier does that cannot hold descriptors.
#[derive(Default)]
pub(crate) struct Copier {
    kept: Mutex<BTreeMap<u64, Vec<u8>>>,
    last: AtomicU64,
    /// How many objects it takes.
    room: Option<usize>,
}

impl Copier {
    pub(crate) fn put(&self, bytes: Vec<u8>) -> Handle {
        let handle = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        self.kept.lock().unwrap().insert(handle, bytes);
        Handle(handle)
    }

    /// One that takes only so many objects.
    pub(crate) fn with_room(room: usize) -> Self {
        Self { room: Some(room), ..Self::default() }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.kept.lock().unwrap().is_empty()
    }

    /// As if the other system had written something else.
    pub(crate) fn replace(&self, handle: Handle, bytes: Vec<u8>) {
        self.kept.lock().unwrap().insert(handle.0, bytes);
    }

    pub(crate) fn copy(memory: &HostFile, len: u64) -> Vec<u8> {
        let mut bytes = vec![0; len as usize];
        StdFile::from(memory.try_clone_fd().unwrap()).read_exact_at(&mut bytes, 0).unwrap();
        bytes
    }

    pub(crate) fn get(&self, handle: Handle) -> Result<Vec<u8>, Failure> {
        let kept = self.kept.lock().unwrap().get(&handle.0).cloned();
        kept.ok_or_else(|| Failure::new(Errno::NoEnt, "nothing there"))
    }
}

impl Keep<HostFile> for Copier {
    fn caps(&self) -> Caps {
        Caps::MEMORY | Caps::BYTES
    }
    fn keep_memory(&self, memory: &HostFile, len: u64) -> Result<Handle, Failure> {
        Ok(self.put(Self::copy(memory, len)))
    }
    fn refresh_memory(&self, handle: Handle, memory: &HostFile, len: u64) -> Result<(), Failure> {
        self.get(handle)?;
        self.kept.lock().unwrap().insert(handle.0, Self::copy(memory, len));
        Ok(())
    }
    fn keep_bytes(&self, bytes: &[u8]) -> Result<Handle, Failure> {
        if self.room.is_some_and(|room| self.kept.lock().unwrap().len() >= room) {
            return Err(Failure::new(Errno::NoSpc, "no room"));
        }
        Ok(self.put(bytes.to_vec()))
    }
    fn keep_live(&self, _: &HostFile) -> Result<Handle, Failure> {
        Err(Failure::new(Errno::OpNotSupp, "no live descriptors"))
    }
    fn forget(&self, handle: Handle) {
        self.kept.lock().unwrap().remove(&handle.0);
    }
    fn progress(&self, _: u64, _: u64) -> Result<(), Failure> {
        Ok(())
    }
}

impl Recall<HostFile> for Copier {
    fn caps(&self) -> Caps {
        Keep::caps(self)
    }
    fn memory(&self, handle: Handle) -> Result<HostFile, Failure> {
        let bytes = self.get(handle)?;
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = StdFile::from(memfd_create("recalled", flags).unwrap());
        file.write_all_at(&bytes, 0).unwrap();
        file.set_len((bytes.len() as u64).next_multiple_of(4096)).unwrap();
        Ok(HostFile::from(OwnedFd::from(file)))
    }
    fn bytes(&self, handle: Handle) -> Result<Vec<u8>, Failure> {
        self.get(handle)
    }
    fn live(&self, _: Handle) -> Result<HostFile, Failure> {
        Err(Failure::new(Errno::OpNotSupp, "no live descriptors"))
    }
    fn release(&self, handle: Handle) {
        self.forget(handle);
    }
    fn progress(&self, _: u64, _: u64) -> Result<(), Failure> {
        Ok(())
    }
}
