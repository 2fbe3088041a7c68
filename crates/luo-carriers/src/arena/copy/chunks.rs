//! What is stored of one memory file.
//!
//! Invariants: a [`Chunks`] from outside is used only through an [`Index`], and an index exists
//! only of chunks that passed every check.

use luo_core::{Errno, Failure};

use super::{CHUNK, Extent, PAGE, sum};

/// What is stored of one memory file: where its pages are, and the checksums of its chunks.
///
/// Pages that are not stored read as zeros, so holes and pages of zeros need not be; a stored page
/// may hold zeros.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Chunks {
    /// The memory's length in bytes, of any value.
    pub len: u64,
    /// By offset in the memory, ascending: the extents of the medium that hold it from there.
    /// Offsets and lengths are multiples of [`PAGE`], nothing overlaps, and all begin below
    /// `len`; what the last page holds beyond `len` is zeros.
    pub extents: Vec<(u64, Extent)>,
    /// A checksum (CRC-64/NVME) for each chunk of which some page is stored, ascending; a chunk
    /// of which nothing is stored has none, so holes cost nothing here either.
    ///
    /// It is that of the chunk's bytes below `len`, where pages that are not stored are zeros. Two
    /// values stand for something else: 0 is never stored, and 1 is of a chunk whose content is
    /// not known, after a refresh that failed. A checksum that would be one of the two is 2 more.
    pub sums: Vec<u64>,
}

impl Chunks {
    /// How much of the medium it takes up, in bytes.
    #[must_use]
    pub fn stored(&self) -> u64 {
        self.extents.iter().fold(0, |sum, (_, extent)| sum.saturating_add(extent.len))
    }

    /// Whether this can be what is stored of a memory file: order, bounds and counts. Whether the
    /// extents lie within the medium is known only to it.
    ///
    /// # Errors
    /// EINVAL, with the first thing that is wrong.
    pub fn check(&self) -> Result<(), Failure> {
        let wrong = |what: String| {
            Err(Failure::new(Errno::Inval, format!("the stored memory is damaged: {what}")))
        };
        let mut after = 0;
        let mut chunks: u64 = 0;
        for &(logical, extent) in &self.extents {
            let whole = [logical, extent.offset, extent.len].iter().all(|n| n.is_multiple_of(PAGE));
            if !whole || extent.len == 0 {
                return wrong(format!("the extent at {logical} is not of whole pages"));
            }
            if logical < after {
                return wrong(format!("the extent at {logical} overlaps the one before"));
            }
            if extent.offset.checked_add(extent.len).is_none() {
                return wrong(format!("the extent at {logical} lies beyond every medium"));
            }
            let Some(end) =
                page_ceil(self.len).filter(|end| logical < *end && extent.len <= *end - logical)
            else {
                return wrong(format!("the extent at {logical} ends beyond the memory"));
            };
            let end = end.min(logical + extent.len);
            chunks += (end - 1) / CHUNK - logical / CHUNK + 1;
            if after > 0 && (after - 1) / CHUNK == logical / CHUNK {
                chunks -= 1;
            }
            after = end;
        }
        if chunks != self.sums.len() as u64 {
            return wrong(format!("{} checksums for {chunks} chunks", self.sums.len()));
        }
        if self.sums.contains(&sum::NOTHING) {
            return wrong("a checksum of nothing".into());
        }
        Ok(())
    }

    /// The checked chunks, by number.
    pub(super) fn index(&self) -> Result<Index<'_>, Failure> {
        self.check()?;
        let mut numbers: Vec<u64> = Vec::with_capacity(self.sums.len());
        for (logical, extent) in &self.extents {
            let mut first = logical / CHUNK;
            if numbers.last() == Some(&first) {
                first += 1;
            }
            numbers.extend(first..(logical + extent.len).div_ceil(CHUNK));
        }
        Ok(Index { chunks: self, numbers })
    }
}

/// Checked [`Chunks`], and the numbers of those that have a checksum.
#[derive(Debug)]
pub(super) struct Index<'a> {
    chunks: &'a Chunks,
    /// Those of which something is stored, ascending; as many as there are checksums.
    pub(super) numbers: Vec<u64>,
}

impl<'a> Index<'a> {
    /// The position and the checksum of the chunk of that number; `None` where nothing of it is
    /// stored.
    pub(super) fn find(&self, number: u64) -> Option<(usize, u64)> {
        let at = self.numbers.binary_search(&number).ok()?;
        Some((at, *self.chunks.sums.get(at)?))
    }

    /// How many bytes of the chunk of that number are below the length.
    pub(super) fn chunk_len(&self, number: u64) -> u64 {
        self.chunks.len.saturating_sub(number.saturating_mul(CHUNK)).min(CHUNK)
    }

    /// What is stored of the range, in pieces that end with it.
    pub(super) fn within(&self, start: u64, end: u64) -> impl Iterator<Item = (u64, Extent)> + 'a {
        let extents: &'a [(u64, Extent)] = &self.chunks.extents;
        let first = extents.partition_point(|(logical, extent)| logical + extent.len <= start);
        extents.get(first..).unwrap_or_default().iter().map_while(move |(logical, extent)| {
            let (from, to) = (start.max(*logical), end.min(logical + extent.len));
            let len = to.checked_sub(from).filter(|len| *len > 0)?;
            Some((from, Extent { offset: extent.offset + (from - logical), len }))
        })
    }
}

/// Appends an extent, as a part of the last one where they lie together in both places.
pub(super) fn push(extents: &mut Vec<(u64, Extent)>, logical: u64, extent: Extent) {
    if let Some((last_logical, last)) = extents.last_mut()
        && *last_logical + last.len == logical
        && last.end() == extent.offset
    {
        last.len += extent.len;
    } else {
        extents.push((logical, extent));
    }
}

/// The end of the page that the byte before `len` is in; `None` beyond what a file can be.
pub(super) fn page_ceil(len: u64) -> Option<u64> {
    len.checked_next_multiple_of(PAGE)
}
