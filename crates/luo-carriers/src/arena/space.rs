//! Which bytes of an arena are free.
//!
//! Nothing of this is on the medium: it is rebuilt from the catalogue when the arena is opened.
//!
//! Invariants:
//! - Every block is free, or belongs to one [`Region`], and becomes free when that is dropped. So
//!   whatever still needs a block holds on to its region: an object that lives, a handover that
//!   stands, somebody who reads.
//! - Free extents do not touch each other.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use luo_abi::arena::{BLOCK, DATA_START, blocks};
use luo_core::{Errno, Failure};

use super::medium::Extent;

#[cfg(test)]
mod tests;

/// Extents at least that long begin at a multiple of it where one is free: they can be mapped with
/// huge pages then.
const HUGE: u64 = 2 << 20;

/// The free space of an arena.
#[derive(Debug)]
pub struct Space {
    size: u64,
    free: Mutex<Free>,
}

#[derive(Debug, Default)]
struct Free {
    /// Offset and length, in bytes.
    extents: BTreeMap<u64, u64>,
    total: u64,
    /// Where the last search ended: the next one begins there, so that the full beginning of an
    /// arena is not searched again and again.
    next: u64,
}

impl Space {
    /// All of an arena of `size` bytes but its superblocks, free.
    #[must_use]
    pub fn new(size: u64) -> Arc<Self> {
        let size = size - size % BLOCK;
        let mut free = Free::default();
        free.give(DATA_START, size.saturating_sub(DATA_START));
        Arc::new(Self { size, free: Mutex::new(free) })
    }

    /// How many bytes are free.
    pub fn free(&self) -> u64 {
        self.lock().total
    }

    /// The longest extent that is free, in bytes.
    pub fn longest(&self) -> u64 {
        self.lock().extents.values().copied().max().unwrap_or(0)
    }

    /// The size of the arena in bytes.
    #[must_use]
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// Takes what is known to be in use.
    ///
    /// # Errors
    /// EINVAL where a part of it is not free; nothing is taken then.
    pub fn claim(self: &Arc<Self>, extents: &[Extent]) -> Result<Region, Failure> {
        let mut region = Region { space: Arc::clone(self), extents: Vec::new() };
        let mut free = self.lock();
        for extent in extents {
            let whole = Extent { offset: extent.offset, len: blocks(extent.len).unwrap_or(0) };
            if !free.take_at(whole) {
                drop(free);
                return Err(Failure::new(
                    Errno::Inval,
                    format!("bytes {}..{} of the arena are in use", whole.offset, whole.end()),
                ));
            }
            region.extents.push(whole);
        }
        drop(free);
        Ok(region)
    }

    /// Takes at least `len` bytes, in as few extents as there must be.
    ///
    /// # Errors
    /// ENOSPC, with the bytes needed and free; nothing is taken then.
    pub fn allocate(self: &Arc<Self>, len: u64) -> Result<Region, Failure> {
        let mut region = Region { space: Arc::clone(self), extents: Vec::new() };
        let mut free = self.lock();
        let Some(mut rest) = blocks(len).filter(|len| *len <= free.total) else {
            return Err(self.full(len, free.total));
        };
        while rest > 0 {
            let extent = free.take(rest).or_else(|| free.take_longest(rest));
            let Some(extent) = extent else {
                let total = free.total;
                drop(free);
                return Err(self.full(len, total));
            };
            rest -= extent.len;
            region.extents.push(extent);
        }
        drop(free);
        Ok(region)
    }

    /// Takes at least `len` bytes in one extent.
    ///
    /// # Errors
    /// As [`allocate`](Self::allocate), also where only the extents together are long enough.
    pub fn allocate_whole(self: &Arc<Self>, len: u64) -> Result<Region, Failure> {
        let mut free = self.lock();
        match blocks(len).and_then(|len| free.take(len)) {
            Some(extent) => {
                drop(free);
                Ok(Region { space: Arc::clone(self), extents: vec![extent] })
            }
            None => Err(self.full(len, free.total)),
        }
    }

    /// Takes exactly `len` bytes, rounded up to blocks, in one extent that begins at a multiple of
    /// `align`.
    ///
    /// # Errors
    /// As [`allocate_whole`](Self::allocate_whole).
    pub fn allocate_aligned(self: &Arc<Self>, len: u64, align: u64) -> Result<Region, Failure> {
        if align <= BLOCK {
            return self.allocate_whole(len);
        }
        let mut free = self.lock();
        let found = blocks(len).filter(|len| *len > 0).and_then(|len| {
            let offset = free.search(|offset, free| fits_aligned(offset, free, len, align))?;
            Some(Extent { offset, len })
        });
        match found.filter(|extent| free.take_at(*extent)) {
            Some(extent) => {
                drop(free);
                Ok(Region { space: Arc::clone(self), extents: vec![extent] })
            }
            None => Err(self.full(len, free.total)),
        }
    }

    /// Takes what is free of these bytes.
    pub fn claim_free(self: &Arc<Self>, within: Extent) -> Region {
        let mut region = Region { space: Arc::clone(self), extents: Vec::new() };
        let begin = within.offset - within.offset % BLOCK;
        let end = blocks(within.end()).unwrap_or(u64::MAX);
        let mut free = self.lock();
        let parts: Vec<Extent> = free
            .extents
            .range(..end)
            .rev()
            .map(|(&offset, &len)| (offset.max(begin), (offset + len).min(end)))
            .take_while(|(from, to)| from < to)
            .map(|(from, to)| Extent { offset: from, len: to - from })
            .collect();
        for part in parts.into_iter().rev() {
            if free.take_at(part) {
                region.extents.push(part);
            }
        }
        drop(free);
        region
    }

    fn full(&self, needed: u64, free: u64) -> Failure {
        Failure::new(
            Errno::NoSpc,
            format!(
                "the arena is full: {needed} bytes needed, {free} of {} free; keep less, or create \
                 a larger arena (`luoctl arena create`)",
                self.size
            ),
        )
    }

    fn lock(&self) -> MutexGuard<'_, Free> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Free {
    /// Takes one extent of exactly `len` bytes.
    fn take(&mut self, len: u64) -> Option<Extent> {
        if len == 0 || len > self.total {
            return None;
        }
        let aligned = (len >= HUGE)
            .then(|| self.search(|offset, free| fits_aligned(offset, free, len, HUGE)))
            .flatten();
        let offset =
            aligned.or_else(|| self.search(|offset, free| (free >= len).then_some(offset)))?;
        let extent = Extent { offset, len };
        self.take_at(extent).then(|| {
            self.next = extent.end();
            extent
        })
    }

    /// Takes the longest extent that is free, or `max` bytes of it.
    fn take_longest(&mut self, max: u64) -> Option<Extent> {
        let (&offset, &len) = self.extents.iter().max_by_key(|(_, len)| **len)?;
        let extent = Extent { offset, len: len.min(max) };
        self.take_at(extent).then_some(extent)
    }

    /// The first free extent, from where the last search ended, for which `fits` gives a place.
    fn search(&self, fits: impl Fn(u64, u64) -> Option<u64>) -> Option<u64> {
        let fits = |(offset, len): (&u64, &u64)| fits(*offset, *len);
        let later = self.extents.range(self.next..).find_map(fits);
        later.or_else(|| self.extents.range(..self.next).find_map(fits))
    }

    /// Takes these bytes, if all of them are free.
    fn take_at(&mut self, wanted: Extent) -> bool {
        let Some((&offset, &len)) = self.extents.range(..=wanted.offset).next_back() else {
            return false;
        };
        let end = offset + len;
        if wanted.len == 0 || wanted.end() > end {
            return false;
        }
        if offset == wanted.offset {
            self.extents.remove(&offset);
        } else {
            self.extents.insert(offset, wanted.offset - offset);
        }
        if wanted.end() < end {
            self.extents.insert(wanted.end(), end - wanted.end());
        }
        self.total -= wanted.len;
        true
    }

    /// Gives bytes back.
    fn give(&mut self, mut offset: u64, mut len: u64) {
        if len == 0 {
            return;
        }
        self.total += len;
        if let Some((&before, &before_len)) = self.extents.range(..offset).next_back()
            && before + before_len == offset
        {
            offset = before;
            len += before_len;
        }
        if let Some(after_len) = self.extents.remove(&(offset + len)) {
            len += after_len;
        }
        self.extents.insert(offset, len);
    }
}

/// Where `len` bytes that begin at a multiple of `align` lie in a free extent.
fn fits_aligned(offset: u64, free: u64, len: u64, align: u64) -> Option<u64> {
    let aligned = offset.checked_next_multiple_of(align)?;
    (aligned.checked_add(len)? <= offset + free).then_some(aligned)
}

/// Blocks that belong to somebody; they are free once it is dropped.
pub struct Region {
    space: Arc<Space>,
    extents: Vec<Extent>,
}

impl Region {
    /// No blocks.
    #[must_use]
    pub fn empty(space: &Arc<Space>) -> Self {
        Self { space: Arc::clone(space), extents: Vec::new() }
    }

    /// Its extents: whole blocks, in the order in which they were taken.
    #[must_use]
    pub fn extents(&self) -> &[Extent] {
        &self.extents
    }

    /// Its length in bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.extents.iter().map(|extent| extent.len).sum()
    }

    /// Whether it has no blocks.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.extents.is_empty()
    }

    /// Takes over the blocks of another region of the same arena.
    pub fn absorb(&mut self, mut other: Self) {
        self.extents.append(&mut other.extents);
    }

    /// Keeps the blocks that hold these extents, and frees all others.
    ///
    /// # Errors
    /// EINVAL where one of them is not within the region; nothing is freed then.
    pub fn keep_only(&mut self, used: impl Iterator<Item = Extent>) -> Result<(), Failure> {
        let mut kept: Vec<Extent> = used
            .map(|extent| Extent { offset: extent.offset, len: blocks(extent.len).unwrap_or(0) })
            .collect();
        kept.sort_unstable();
        merge(&mut kept);
        self.extents.sort_unstable();
        merge(&mut self.extents);
        let mut unused = Vec::new();
        let mut kept_rest = kept.iter().copied().peekable();
        for extent in &self.extents {
            let mut at = extent.offset;
            while let Some(next) = kept_rest.next_if(|next| next.offset < extent.end()) {
                if next.offset < at || next.end() > extent.end() {
                    return Err(not_within(next));
                }
                unused.push(Extent { offset: at, len: next.offset - at });
                at = next.end();
            }
            unused.push(Extent { offset: at, len: extent.end() - at });
        }
        if let Some(next) = kept_rest.next() {
            return Err(not_within(next));
        }
        let mut free = self.space.lock();
        unused.iter().for_each(|extent| free.give(extent.offset, extent.len));
        drop(free);
        self.extents = kept;
        Ok(())
    }
}

fn not_within(extent: Extent) -> Failure {
    Failure::new(
        Errno::Inval,
        format!("bytes {}..{} of the arena were not allocated", extent.offset, extent.end()),
    )
}

/// Makes one of neighbours, in a sorted list.
fn merge(extents: &mut Vec<Extent>) {
    extents.dedup_by(|next, before| {
        let touch = before.end() == next.offset;
        if touch {
            before.len += next.len;
        }
        touch
    });
}

impl Drop for Region {
    fn drop(&mut self) {
        let mut free = self.space.lock();
        self.extents.iter().for_each(|extent| free.give(extent.offset, extent.len));
    }
}

impl fmt::Debug for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Region").field("extents", &self.extents).finish_non_exhaustive()
    }
}
