//! From the medium into a fresh memory file.
//!
//! Invariants: nothing is written where nothing is stored, so holes stay holes; with
//! verification, no byte of a chunk is written before its checksum was found right.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::{Mutex, PoisonError};

use luo_core::{Errno, Failure};
use rustix::fs::ftruncate;
use rustix::io::pwrite;

use super::chunks::{Chunks, Index};
use super::threads::{self, Shared};
use super::{BATCH, CHUNK, Medium, PAGE, Progress, failed, sum};

/// How many batches a thread takes at once.
const TAKE: usize = 16;

/// See [`super::copy_out`].
pub(super) fn copy_out(
    chunks: &Chunks,
    medium: &dyn Medium,
    target: BorrowedFd<'_>,
    verify: bool,
    progress: Progress<'_>,
) -> Result<(), Failure> {
    let index = chunks.index()?;
    ftruncate(target, chunks.len)
        .map_err(io::Error::from)
        .map_err(failed(format!("the memory file cannot be made {} bytes long", chunks.len)))?;
    let stored = chunks.stored();
    let shared = Shared::new(stored);
    let job = Job { chunks, index, medium, target, verify, shared, next: Mutex::new(0) };
    let work = |_: &mut (), tick: &dyn Fn() -> Result<(), Failure>| job.work(tick);
    threads::run(&job.shared, stored, progress, &work).1
}

/// One copy, shared by its threads.
struct Job<'a> {
    chunks: &'a Chunks,
    index: Index<'a>,
    medium: &'a dyn Medium,
    target: BorrowedFd<'a>,
    verify: bool,
    shared: Shared,
    /// The position of the first chunk that no thread has taken.
    next: Mutex<usize>,
}

impl Job<'_> {
    fn work(&self, tick: &dyn Fn() -> Result<(), Failure>) -> Result<(), Failure> {
        let mut buffer = vec![0; BATCH as usize];
        loop {
            let batches = self.take();
            if batches.is_empty() {
                return Ok(());
            }
            for (start, count) in batches {
                if self.shared.stopped() {
                    return Ok(());
                }
                tick()?;
                self.batch(start, count, &mut buffer)?;
            }
        }
    }

    /// The next batches: positions of their first chunks, and how many chunks each has.
    fn take(&self) -> Vec<(usize, usize)> {
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let mut batches = Vec::with_capacity(TAKE);
        while batches.len() < TAKE
            && let Some(rest) = self.index.numbers.get(*next..)
            && let Some(first) = rest.first()
        {
            let within = |number: &&u64| **number - first < BATCH / CHUNK;
            let count = rest.iter().take((BATCH / CHUNK) as usize).take_while(within).count();
            batches.push((*next, count));
            *next += count;
        }
        batches
    }

    fn batch(&self, at: usize, count: usize, buffer: &mut [u8]) -> Result<(), Failure> {
        let numbers = self.index.numbers.get(at..at + count).unwrap_or_default();
        let (Some(first), Some(last)) = (numbers.first(), numbers.last()) else { return Ok(()) };
        let (start, end) = (first * CHUNK, (last + 1) * CHUNK);
        let range = |from: u64, len: u64| (from - start) as usize..(from - start + len) as usize;
        let mut filled = start;
        for (logical, extent) in self.index.within(start, end) {
            if let Some(hole) = buffer.get_mut(range(filled, logical - filled)) {
                hole.fill(0);
            }
            filled = logical + extent.len;
            let bytes = buffer.get_mut(range(logical, extent.len)).unwrap_or_default();
            self.medium
                .read_at(extent.offset, bytes)
                .map_err(failed(format!("the medium cannot be read at {}", extent.offset)))?;
        }
        if let Some(hole) = buffer.get_mut(range(filled, end - filled)) {
            hole.fill(0);
        }
        if self.verify {
            let sums = self.chunks.sums.get(at..at + count).unwrap_or_default();
            for (number, stored) in numbers.iter().zip(sums) {
                let bytes = range(number * CHUNK, self.index.chunk_len(*number));
                let found = sum::sum(buffer.get(bytes).unwrap_or_default());
                if found != *stored {
                    return Err(Failure::new(
                        Errno::Io,
                        format!(
                            "the stored memory is damaged in the {CHUNK} bytes at {}: their \
                             checksum is {found:#018x}, not {stored:#018x}",
                            number * CHUNK
                        ),
                    ));
                }
            }
        }
        let mut run: Option<(u64, u64)> = None;
        for (logical, extent) in self.index.within(start, end) {
            run = match run {
                Some((from, to)) if to == logical => Some((from, logical + extent.len)),
                Some((from, to)) => {
                    self.put(from, to, buffer, start)?;
                    Some((logical, logical + extent.len))
                }
                None => Some((logical, logical + extent.len)),
            };
        }
        run.map_or(Ok(()), |(from, to)| self.put(from, to, buffer, start))
    }

    /// Writes a run of stored pages, and of the last one only what is below the length.
    fn put(&self, from: u64, to: u64, buffer: &[u8], start: u64) -> Result<(), Failure> {
        debug_assert!((to - from).is_multiple_of(PAGE), "runs are of whole pages");
        let end = to.min(self.chunks.len);
        let mut bytes =
            buffer.get((from - start) as usize..(end - start) as usize).unwrap_or_default();
        let mut offset = from;
        while !bytes.is_empty() {
            match pwrite(self.target, bytes, offset) {
                Ok(0) => {
                    let reason = format!("the memory file takes nothing at {offset}");
                    return Err(Failure::new(Errno::Io, reason));
                }
                Ok(written) => {
                    bytes = bytes.get(written..).unwrap_or_default();
                    offset += written as u64;
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(errno) => {
                    let what = format!("the memory file cannot be written at {offset}");
                    return Err(failed(what)(errno.into()));
                }
            }
        }
        self.shared.advance(to - from);
        Ok(())
    }
}
