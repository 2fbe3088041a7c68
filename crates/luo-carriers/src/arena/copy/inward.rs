//! From a memory file into the medium: what changed, and nothing else.
//!
//! The threads take segments of the memory in turn, from data to data, and work through each in
//! batches. What they find is put together in the end, in one step: until then the chunks are
//! what they were, but for those that have been written over.
//!
//! Invariants:
//! - Space that the chunks had is released only when everything else has succeeded.
//! - The checksum of a chunk that was written over is marked as unknown when the work fails.

use std::os::fd::BorrowedFd;
use std::sync::{Mutex, PoisonError};

use luo_core::{Errno, Failure};

use super::chunks::{Chunks, Index, page_ceil, push};
use super::source::{Source, Window};
use super::threads::{self, Shared};
use super::{BATCH, CHUNK, Extent, Medium, PAGE, Progress, Space, failed, sum};

/// What a thread takes at once, in bytes.
const SEGMENT: u64 = 16 * BATCH;
const CHUNK_PAGES: usize = (CHUNK / PAGE) as usize;
const PAGE_BYTES: usize = PAGE as usize;

/// See [`super::refresh`].
pub(super) fn refresh(
    window: &Window,
    chunks: &mut Chunks,
    source: BorrowedFd<'_>,
    len: u64,
    medium: &dyn Medium,
    space: &dyn Space,
    progress: Progress<'_>,
) -> Result<(), Failure> {
    if page_ceil(len).is_none_or(|end| end > i64::MAX as u64) {
        return Err(Failure::new(Errno::Inval, format!("no memory file has {len} bytes")));
    }
    let before = chunks.index()?;
    let source = Source::new(source, len, window)?;
    let shared = Shared::new(len);
    let next = Mutex::new(0);
    let job = Job { source, len, before, medium, space, shared, next };
    let used = job.source.used.min(len);
    let (made, result) =
        threads::run(&job.shared, used, progress, &|made, tick| Worker::new(&job, made).work(tick));
    match result {
        Ok(()) => {
            let (after, surplus) = put_together(&job, made);
            *chunks = after;
            surplus.into_iter().for_each(|extent| space.release(extent));
            Ok(())
        }
        Err(failure) => {
            for made in made {
                made.fresh.into_iter().for_each(|extent| space.release(extent));
                for at in made.overwritten {
                    if let Some(sum) = chunks.sums.get_mut(at) {
                        *sum = sum::UNKNOWN;
                    }
                }
            }
            Err(failure)
        }
    }
}

/// One refresh, shared by its threads.
struct Job<'a> {
    source: Source<'a>,
    len: u64,
    before: Index<'a>,
    medium: &'a dyn Medium,
    space: &'a dyn Space,
    shared: Shared,
    /// Where the memory begins that no thread has taken.
    next: Mutex<u64>,
}

/// What one thread has made.
#[derive(Debug, Default)]
struct Made {
    pieces: Vec<Piece>,
    /// What it allocated.
    fresh: Vec<Extent>,
    /// What need not be stored any more.
    surplus: Vec<Extent>,
    /// The positions of the checksums of chunks that it wrote over.
    overwritten: Vec<usize>,
}

/// What is to be stored of one range of the memory.
#[derive(Debug)]
struct Piece {
    start: u64,
    /// Of the last page.
    end: u64,
    extents: Vec<(u64, Extent)>,
    sums: Vec<u64>,
}

impl Job<'_> {
    /// The next range that has data, of whole chunks but for the last.
    fn take(&self) -> Option<(u64, u64)> {
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        if self.shared.stopped() {
            return None;
        }
        let start = self.data_from(*next).unwrap_or(self.len);
        let end = self.len.min(start.saturating_add(SEGMENT));
        self.shared.advance(start - *next);
        *next = end;
        (start < end).then_some((start, end))
    }

    /// The first chunk from `offset` on that holds data.
    fn data_from(&self, offset: u64) -> Option<u64> {
        if offset >= self.len {
            return None;
        }
        let data = self.source.next_data(offset)?;
        Some(offset.max(data - data % CHUNK)).filter(|start| *start < self.len)
    }
}

/// One thread's work.
struct Worker<'a> {
    job: &'a Job<'a>,
    made: &'a mut Made,
    buffer: Vec<u8>,
    pages: Vec<Page>,
}

/// A page of the batch.
#[derive(Debug, Clone, Copy, Default)]
struct Page {
    /// Where it is stored, if it is.
    place: Option<u64>,
    /// Whether it is to be written.
    dirty: bool,
}

impl<'a> Worker<'a> {
    fn new(job: &'a Job<'a>, made: &'a mut Made) -> Self {
        Self { job, made, buffer: vec![0; BATCH as usize], pages: Vec::new() }
    }

    fn work(&mut self, tick: &dyn Fn() -> Result<(), Failure>) -> Result<(), Failure> {
        while let Some((mut start, end)) = self.job.take() {
            let mut piece = Piece::at(start);
            while start < end {
                if self.job.shared.stopped() {
                    return Ok(());
                }
                tick()?;
                let stop = end.min(start + BATCH);
                let some = self.batch(start, stop, &mut piece)?;
                self.job.shared.advance(stop - start);
                start = stop;
                if !some && start < end {
                    // Perhaps the beginning of a long hole.
                    let data = self.job.data_from(start).unwrap_or(end).min(end);
                    if data > start {
                        self.job.shared.advance(data - start);
                        self.made.pieces.push(std::mem::replace(&mut piece, Piece::at(data)));
                        start = data;
                    }
                }
            }
            self.made.pieces.push(piece);
        }
        Ok(())
    }

    /// Copies the batch from `start` to `stop`, and says whether any byte of it was not zero.
    fn batch(&mut self, start: u64, stop: u64, piece: &mut Piece) -> Result<bool, Failure> {
        let end = page_ceil(stop).unwrap_or(stop);
        piece.end = end;
        self.locate(start, end);
        let (bytes, whole) = ((stop - start) as usize, (end - start) as usize);
        let Some((data, rest)) =
            self.buffer.get_mut(..whole).and_then(|buffer| buffer.split_at_mut_checked(bytes))
        else {
            return Err(Failure::new(Errno::Inval, "a batch larger than its buffer"));
        };
        self.job.source.read(start, data)?;
        rest.fill(0);
        let before = piece.sums.len();
        let missing = self.compare(start, stop, piece);
        self.place(missing)?;
        self.write()?;
        for (page, logical) in self.pages.iter().zip((start..).step_by(PAGE_BYTES)) {
            if let Some(offset) = page.place {
                push(&mut piece.extents, logical, Extent { offset, len: PAGE });
            }
        }
        Ok(piece.sums.len() > before)
    }

    /// Where the pages of the batch are stored as yet.
    fn locate(&mut self, start: u64, end: u64) {
        self.pages.clear();
        for (logical, extent) in self.job.before.within(start, end) {
            let skipped = ((logical - start) / PAGE) as usize;
            self.pages.resize(skipped, Page::default());
            self.pages.extend(
                (extent.offset..extent.end())
                    .step_by(PAGE_BYTES)
                    .map(|offset| Page { place: Some(offset), dirty: false }),
            );
        }
        self.pages.resize(((end - start) / PAGE) as usize, Page::default());
    }

    /// Finds what must be written, and notes the checksums; gives the number of pages that need
    /// a place.
    fn compare(&mut self, start: u64, stop: u64, piece: &mut Piece) -> u64 {
        let first = start / CHUNK;
        let chunks = self.buffer.chunks(CHUNK as usize).zip(self.pages.chunks_mut(CHUNK_PAGES));
        let mut missing = 0;
        for (number, (bytes, pages)) in (first..).zip(chunks) {
            let len = (stop - number * CHUNK).min(CHUNK);
            let bytes = bytes.get(..pages.len() * PAGE_BYTES).unwrap_or(bytes);
            let data = bytes.get(..len as usize).unwrap_or(bytes);
            let sum = if sum::is_zero(data) { sum::NOTHING } else { sum::sum(data) };
            let old = self.job.before.find(number);
            if let Some((_, old)) = old
                && old == sum
                && self.job.before.chunk_len(number) == len
            {
                piece.sums.push(sum);
                continue;
            }
            if sum == sum::NOTHING {
                for offset in pages.iter_mut().filter_map(|page| page.place.take()) {
                    add(&mut self.made.surplus, Extent { offset, len: PAGE });
                }
                continue;
            }
            piece.sums.push(sum);
            let mut overwritten = false;
            for (page, bytes) in pages.iter_mut().zip(bytes.chunks(PAGE_BYTES)) {
                overwritten |= page.place.is_some();
                page.dirty = page.place.is_some() || !sum::is_zero(bytes);
                missing += u64::from(page.dirty && page.place.is_none());
            }
            if let Some((at, _)) = old.filter(|_| overwritten) {
                self.made.overwritten.push(at);
            }
        }
        missing
    }

    /// Allocates a place for each page that has none and needs one.
    fn place(&mut self, missing: u64) -> Result<(), Failure> {
        if missing == 0 {
            return Ok(());
        }
        let fresh = self.job.space.allocate(missing * PAGE)?;
        let got = fresh.iter().fold(0_u64, |sum, extent| sum.saturating_add(extent.len));
        let whole = fresh.iter().all(|extent| extent.len.is_multiple_of(PAGE));
        let from = self.made.fresh.len();
        self.made.fresh.extend(fresh);
        if got != missing * PAGE || !whole {
            let asked = missing * PAGE;
            let reason = format!("{got} bytes of space were given for {asked}");
            return Err(Failure::new(Errno::Inval, reason));
        }
        let places = self
            .made
            .fresh
            .get(from..)
            .unwrap_or_default()
            .iter()
            .flat_map(|extent| (extent.offset..extent.end()).step_by(PAGE_BYTES));
        let homeless = self.pages.iter_mut().filter(|page| page.dirty && page.place.is_none());
        for (page, place) in homeless.zip(places) {
            page.place = Some(place);
        }
        Ok(())
    }

    /// Writes the pages that are to be written, those together that lie together.
    fn write(&self) -> Result<(), Failure> {
        let mut pages = self.pages.iter().enumerate().peekable();
        while let Some((first, page)) = pages.next() {
            let Some(place) = page.place.filter(|_| page.dirty) else { continue };
            let mut count = 1;
            while pages
                .next_if(|(_, next)| next.dirty && next.place == Some(place + count as u64 * PAGE))
                .is_some()
            {
                count += 1;
            }
            let range = first * PAGE_BYTES..(first + count) * PAGE_BYTES;
            self.job
                .medium
                .write_at(place, self.buffer.get(range).unwrap_or_default())
                .map_err(failed(format!("the medium cannot be written at {place}")))?;
        }
        Ok(())
    }
}

impl Piece {
    fn at(start: u64) -> Self {
        Self { start, end: start, extents: Vec::new(), sums: Vec::new() }
    }
}

/// What is stored after all threads have ended well, and what of before is not.
fn put_together(job: &Job<'_>, made: Vec<Made>) -> (Chunks, Vec<Extent>) {
    let mut after = Chunks { len: job.len, ..Chunks::default() };
    let mut pieces = Vec::new();
    let mut surplus = Vec::new();
    for made in made {
        pieces.extend(made.pieces);
        surplus.extend(made.surplus);
    }
    pieces.sort_unstable_by_key(|piece| piece.start);
    let mut hole = 0;
    for piece in pieces {
        // Between the pieces is nothing any more.
        surplus.extend(job.before.within(hole, piece.start).map(|(_, extent)| extent));
        hole = piece.end;
        after.sums.extend(piece.sums);
        for (logical, extent) in piece.extents {
            push(&mut after.extents, logical, extent);
        }
    }
    surplus.extend(job.before.within(hole, u64::MAX).map(|(_, extent)| extent));
    (after, surplus)
}

/// Appends an extent, as a part of the last one where they lie together.
fn add(extents: &mut Vec<Extent>, extent: Extent) {
    match extents.last_mut() {
        Some(last) if last.end() == extent.offset => last.len += extent.len,
        _ => extents.push(extent),
    }
}
