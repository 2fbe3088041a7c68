//! How much of an arena something would take, without one: the same copying, into nothing.
//!
//! Invariants: what is measured is what the same calls of an
//! [`ArenaCarrier`](super::ArenaCarrier) would take of an arena, to the byte, while the memory
//! stays as it is; nothing is written anywhere.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use luo_abi::arena::{blocks, encoded_len, handle};
use luo_core::{Caps, Errno, Failure, Handle, Keep};

use super::carrier::no_live;
use super::copy::{self, Chunks};
use super::medium::{Extent, Medium};
use super::store::{MAX_INLINE, catalogue_room};
use crate::HostFile;

/// What is to be kept, measured instead.
#[derive(Debug, Default)]
pub struct Measure {
    kept: Mutex<Vec<Entry>>,
}

/// One object: the bytes of blocks that it takes, and those of the catalogue.
#[derive(Debug, Clone, Copy, Default)]
struct Entry {
    blocks: u64,
    catalogue: u64,
}

/// How much an arena would have to hold, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Measured {
    /// Whole blocks of objects.
    pub objects: u64,
    /// What the objects take of the catalogue.
    pub catalogue: u64,
}

impl Measured {
    /// Both together.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        self.objects.saturating_add(self.catalogue)
    }

    /// With another one.
    #[must_use]
    pub const fn and(&self, other: Self) -> Self {
        Self {
            objects: self.objects.saturating_add(other.objects),
            catalogue: self.catalogue.saturating_add(other.catalogue),
        }
    }

    /// What a whole handover of these objects takes: they, the catalogue, and its handover.
    #[must_use]
    pub fn whole(&self) -> u64 {
        self.objects.saturating_add(catalogue_room(self.catalogue))
    }
}

impl Measure {
    /// Nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// What everything that is kept so far would take.
    #[must_use]
    pub fn measured(&self) -> Measured {
        self.entries().iter().fold(Measured::default(), |sum, entry| {
            sum.and(Measured { objects: entry.blocks, catalogue: entry.catalogue })
        })
    }

    fn entries(&self) -> std::sync::MutexGuard<'_, Vec<Entry>> {
        self.kept.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn keep(&self, entry: Entry) -> Handle {
        let mut kept = self.entries();
        kept.push(entry);
        Handle(handle(kept.len() as u64))
    }

    fn change(&self, handle: Handle, entry: Entry) -> Result<(), Failure> {
        let index = luo_abi::keeper::key::number(handle.0).wrapping_sub(1);
        let mut kept = self.entries();
        let there = usize::try_from(index).ok().and_then(|index| kept.get_mut(index));
        *there.ok_or_else(|| Failure::new(Errno::NoEnt, "nothing is kept under that"))? = entry;
        Ok(())
    }
}

/// What this memory would take.
fn memory(memory: &HostFile, len: u64) -> Result<Entry, Failure> {
    memory.has_memory(len)?;
    let endless = Endless::default();
    let chunks = copy::copy_in(memory.as_fd(), len, &Nowhere, &endless, &|_, _| Ok(()))?;
    Ok(Entry {
        blocks: stored(&chunks),
        catalogue: encoded_len(chunks.extents.len(), chunks.sums.len(), 0),
    })
}

fn stored(chunks: &Chunks) -> u64 {
    chunks.extents.iter().map(|(_, extent)| blocks(extent.len).unwrap_or(u64::MAX)).sum()
}

impl Keep<HostFile> for Measure {
    fn caps(&self) -> Caps {
        Caps::MEMORY | Caps::BYTES | Caps::RESIDENT
    }

    fn keep_memory(&self, file: &HostFile, len: u64) -> Result<Handle, Failure> {
        Ok(self.keep(memory(file, len)?))
    }

    fn refresh_memory(&self, handle: Handle, file: &HostFile, len: u64) -> Result<(), Failure> {
        self.change(handle, memory(file, len)?)
    }

    fn keep_bytes(&self, bytes: &[u8]) -> Result<Handle, Failure> {
        let len = bytes.len();
        Ok(self.keep(if len <= MAX_INLINE {
            Entry { blocks: 0, catalogue: encoded_len(0, 1, len) }
        } else {
            let sums = len.div_ceil(copy::CHUNK as usize);
            let catalogue = encoded_len(1, sums, 0);
            Entry { blocks: blocks(len as u64).unwrap_or(u64::MAX), catalogue }
        }))
    }

    /// It has its blocks already.
    fn keep_resident(&self, _: &HostFile) -> Result<Handle, Failure> {
        Ok(self.keep(Entry { blocks: 0, catalogue: encoded_len(1, 0, 0) }))
    }

    fn keep_live(&self, _: &HostFile) -> Result<Handle, Failure> {
        Err(no_live())
    }

    fn forget(&self, handle: Handle) {
        // What is unknown is ignored.
        let _ = self.change(handle, Entry::default());
    }

    fn progress(&self, _: u64, _: u64) -> Result<(), Failure> {
        Ok(())
    }
}

/// Takes everything and holds nothing.
#[derive(Debug)]
struct Nowhere;

impl Medium for Nowhere {
    fn size(&self) -> u64 {
        u64::MAX
    }

    fn read_at(&self, _: u64, _: &mut [u8]) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn write_at(&self, _: u64, _: &[u8]) -> io::Result<()> {
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn discard(&self, _: Extent) -> io::Result<()> {
        Ok(())
    }

    fn file(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

/// Space without end, in one piece.
#[derive(Debug, Default)]
struct Endless(AtomicU64);

impl copy::Space for Endless {
    fn allocate(&self, len: u64) -> Result<Vec<Extent>, Failure> {
        Ok(vec![Extent { offset: self.0.fetch_add(len, Ordering::Relaxed), len }])
    }

    fn release(&self, _: Extent) {}
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
    use rustix::io::pwrite;

    use super::super::{Arena, ArenaCarrier, FileMedium};
    use super::*;

    /// Memory of 64 MiB with holes, a page of zeros, and so many pages of data.
    fn sparse(pages: u64) -> HostFile {
        let file = memfd_create("sparse", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&file, 64 << 20).unwrap();
        pwrite(&file, &[0; 4096], 40 << 20).unwrap();
        for page in 0..pages {
            pwrite(&file, &[7; 4096], page * (1 << 20)).unwrap();
        }
        HostFile::from(file)
    }

    #[test]
    fn what_is_measured_is_what_an_arena_takes() {
        let directory = tempfile::tempdir().unwrap();
        let medium = FileMedium::create(&directory.path().join("arena"), 16 << 20).unwrap();
        let arena = Arc::new(Arena::create(Arc::new(medium), [0; 16], false).unwrap());
        let carrier = ArenaCarrier::new(Arc::clone(&arena), luo_core::Reach::Power);
        let measure = Measure::new();
        let mut sum = Measured::default();
        let both: [&dyn Keep<HostFile>; 2] = [&measure, &carrier];
        for (len, pages) in [(64 << 20, 30), (64 << 20, 0), (8 << 20, 3)] {
            let file = sparse(pages);
            let [measured, kept] = both.map(|keep| keep.keep_memory(&file, len).unwrap());
            pwrite(&file, &[9; 4096], 2 << 20).unwrap();
            measure.refresh_memory(measured, &file, len).unwrap();
            carrier.refresh_memory(kept, &file, len).unwrap();
            sum = sum.and(arena.takes(kept));
            assert_eq!(measure.measured(), sum, "{len} {pages}");
        }
        for len in [0, 1, MAX_INLINE, MAX_INLINE + 1, 200_000] {
            let [_, kept] = both.map(|keep| keep.keep_bytes(&vec![1; len]).unwrap());
            sum = sum.and(arena.takes(kept));
            assert_eq!(measure.measured(), sum, "{len}");
        }
        assert!(sum.objects >= 34 * 4096 && sum.objects < 1 << 20, "{sum:?}");
        let kept = measure.keep_bytes(&[1; 100]).unwrap();
        measure.forget(kept);
        assert_eq!(measure.measured(), sum);
    }
}
