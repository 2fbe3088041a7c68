//! The engine beside a plain model: the memory's bytes in a vector, and a set of allocated pages.

mod faults;
mod model;
mod owners;

use std::cell::Cell;
use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Mutex;
use std::sync::atomic::{AtomicI64, Ordering};

use luo_core::{Errno, Failure};
use rustix::fs::{MemfdFlags, fstat, ftruncate, memfd_create};
use rustix::io::{pread, pwrite};

use super::*;

/// Counts down to a call that fails; negative: none does.
#[derive(Debug)]
struct Fuse(AtomicI64);

impl Fuse {
    fn blows(&self) -> bool {
        self.0.fetch_sub(1, Ordering::Relaxed) == 0
    }
}

/// A medium in memory, and its space; each can be told to fail.
#[derive(Debug)]
struct Store {
    bytes: Mutex<Vec<u8>>,
    /// The numbers of the pages that are allocated, and the state of the allocator's dice.
    taken: Mutex<(BTreeSet<u64>, u64)>,
    /// The most pages in an extent.
    run: u64,
    writes: Fuse,
    reads: Fuse,
    allocations: Fuse,
}

impl Store {
    fn new(pages: u64, run: u64, seed: u64) -> Self {
        let never = || Fuse(AtomicI64::new(-1));
        Self {
            // What nobody has written is never zero, so that a page that was not written shows.
            bytes: Mutex::new(vec![0xa5; (pages * PAGE) as usize]),
            taken: Mutex::new((BTreeSet::new(), seed | 1)),
            run,
            writes: never(),
            reads: never(),
            allocations: never(),
        }
    }

    fn taken(&self) -> BTreeSet<u64> {
        self.taken.lock().expect("no panic").0.clone()
    }

    /// The pages that the chunks name: each is allocated, and named once.
    fn assert_holds_exactly(&self, chunks: &Chunks) {
        let mut named = BTreeSet::new();
        for (_, extent) in &chunks.extents {
            for page in extent.offset / PAGE..extent.end() / PAGE {
                assert!(named.insert(page), "page {page} is named twice");
            }
        }
        assert_eq!(named, self.taken(), "allocated is what is named");
    }
}

impl Medium for Store {
    fn size(&self) -> u64 {
        self.bytes.lock().expect("no panic").len() as u64
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        if self.reads.blows() {
            return Err(io::Error::from_raw_os_error(5));
        }
        let bytes = self.bytes.lock().expect("no panic");
        buffer.copy_from_slice(&bytes[offset as usize..][..buffer.len()]);
        Ok(())
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let fails = self.writes.blows();
        // A write that fails may have written a part.
        let bytes = if fails { &bytes[..bytes.len() / 2] } else { bytes };
        self.bytes.lock().expect("no panic")[offset as usize..][..bytes.len()]
            .copy_from_slice(bytes);
        if fails { Err(io::Error::from_raw_os_error(5)) } else { Ok(()) }
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

impl Space for Store {
    fn allocate(&self, len: u64) -> Result<Vec<Extent>, Failure> {
        assert!(len > 0 && len.is_multiple_of(PAGE), "{len} is not of whole pages");
        let all = self.size() / PAGE;
        let mut guard = self.taken.lock().expect("no panic");
        let (taken, dice) = &mut *guard;
        let mut missing = len / PAGE;
        if self.allocations.blows() || all - (taken.len() as u64) < missing {
            return Err(Failure::new(Errno::NoSpc, "full"));
        }
        let mut extents = Vec::new();
        while missing > 0 {
            *dice ^= *dice << 13;
            *dice ^= *dice >> 7;
            *dice ^= *dice << 17;
            let from = *dice % all;
            let Some(first) = (from..all).chain(0..from).find(|page| !taken.contains(page)) else {
                panic!("there is a free page");
            };
            let most = missing.min(1 + *dice / all % self.run);
            let mut count = 0;
            while count < most && first + count < all && taken.insert(first + count) {
                count += 1;
            }
            extents.push(Extent { offset: first * PAGE, len: count * PAGE });
            missing -= count;
        }
        Ok(extents)
    }

    fn release(&self, extent: Extent) {
        let mut guard = self.taken.lock().expect("no panic");
        for page in extent.offset / PAGE..extent.end() / PAGE {
            assert!(guard.0.remove(&page), "page {page} was not allocated");
        }
    }
}

fn memfd() -> OwnedFd {
    memfd_create("luo-copy-test", MemfdFlags::CLOEXEC).expect("a memfd")
}

fn content(file: &OwnedFd) -> Vec<u8> {
    let mut bytes = vec![0; fstat(file).expect("stat").st_size as usize];
    let mut done = 0;
    while done < bytes.len() {
        done += pread(file, &mut bytes[done..], done as u64).expect("read");
    }
    bytes
}

/// Makes the file hold these bytes, with a hole for each page that `hole` names.
fn fill(file: &OwnedFd, bytes: &[u8], hole: impl Fn(usize) -> bool) {
    ftruncate(file, 0).expect("truncate");
    ftruncate(file, bytes.len() as u64).expect("truncate");
    for (number, page) in bytes.chunks(PAGE as usize).enumerate().filter(|(at, _)| !hole(*at)) {
        let offset = number as u64 * PAGE;
        assert_eq!(pwrite(file, page, offset).expect("write"), page.len());
    }
}

fn blocks(file: &OwnedFd) -> i64 {
    fstat(file).expect("stat").st_blocks
}

fn go_on(_: u64, _: u64) -> Result<(), Failure> {
    Ok(())
}

/// Copies out with verification, and gives the content and how much memory the file takes up.
fn out(chunks: &Chunks, store: &Store) -> (Vec<u8>, u64) {
    let target = memfd();
    copy_out(chunks, store, target.as_fd(), true, &go_on).expect("copies out");
    (content(&target), blocks(&target) as u64 * 512)
}

/// Fails at the call of that number.
fn fail_at(call: i64) -> impl Fn(u64, u64) -> Result<(), Failure> {
    let left = Cell::new(call);
    move |done, total| {
        assert!(done <= total, "{done} of {total}");
        left.set(left.get() - 1);
        if left.get() == -1 { Err(Failure::new(Errno::Canceled, "enough")) } else { Ok(()) }
    }
}
