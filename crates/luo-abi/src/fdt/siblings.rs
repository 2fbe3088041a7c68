//! Finds two nodes of one name under one parent, for the writer and for the reader.
//!
//! Names that come in ascending order cost one comparison each; shorter names come first, so that
//! tokens (`0x9`, `0xa`, `0x10`) ascend with their numbers. Where a parent's children do not
//! ascend, they are sorted once when the parent ends, so no input costs more than O(n log n).
//!
//! Invariants: the names of one parent's children lie together on the stack, because a child's
//! own children have been taken off when the child ended.

use alloc::vec::Vec;
use core::cmp::Ordering;

/// One child's name: where it is in the blob, and enough of it to be compared quickly.
#[derive(Debug, Clone, Copy)]
pub(super) struct Name {
    /// The first eight bytes, big-endian, filled up with zeros.
    key: u64,
    start: u32,
    len: u32,
}

impl Name {
    /// The name that `blob` holds at `start`, with `len` bytes. `blob` is at most
    /// [`MAX_SIZE`](super::MAX_SIZE) long, so both fit.
    #[inline]
    pub(super) fn new(blob: &[u8], start: usize, len: usize) -> Self {
        let chunk = match blob.get(start..).and_then(<[u8]>::first_chunk::<8>) {
            Some(chunk) => *chunk,
            None => {
                let mut chunk = [0; 8];
                for (to, from) in chunk.iter_mut().zip(bytes(blob, start, len)) {
                    *to = *from;
                }
                chunk
            }
        };
        // What follows behind a short name does not belong to it.
        let behind = u64::MAX.checked_shr(8 * len as u32).unwrap_or(0);
        let key = u64::from_be_bytes(chunk) & !behind;
        Self { key, start: start as u32, len: len as u32 }
    }

    fn bytes<'a>(&self, blob: &'a [u8]) -> &'a [u8] {
        bytes(blob, self.start as usize, self.len as usize)
    }

    #[inline]
    fn order(&self, other: &Self, blob: &[u8]) -> Ordering {
        (self.len, self.key).cmp(&(other.len, other.key)).then_with(|| {
            if self.len <= 8 { Ordering::Equal } else { self.bytes(blob).cmp(other.bytes(blob)) }
        })
    }
}

fn bytes(blob: &[u8], start: usize, len: usize) -> &[u8] {
    blob.get(start..start.saturating_add(len)).unwrap_or_default()
}

/// What is known of one open node's children.
#[derive(Debug, Clone, Copy)]
pub(super) struct Family {
    /// Where they begin on the stack.
    base: usize,
    ascending: bool,
}

/// The names of the children of all open nodes.
#[derive(Debug, Default)]
pub(super) struct Siblings {
    stack: Vec<Name>,
}

impl Siblings {
    pub(super) const fn new() -> Self {
        Self { stack: Vec::new() }
    }

    /// A node begins, so far without children.
    #[inline]
    pub(super) fn open(&self) -> Family {
        Family { base: self.stack.len(), ascending: true }
    }

    /// The node gets one more child.
    #[inline]
    pub(super) fn add(&mut self, family: &mut Family, blob: &[u8], name: Name) {
        if self.stack.len() > family.base
            && let Some(last) = self.stack.last()
        {
            family.ascending &= last.order(&name, blob) == Ordering::Less;
        }
        self.stack.push(name);
    }

    /// The node ends. Gives where the first name starts that an earlier child already has; the
    /// family stays as it is then.
    #[inline]
    pub(super) fn close(&mut self, family: &Family, blob: &[u8]) -> Option<usize> {
        if !family.ascending
            && let Some(duplicate) = self.duplicate(family, self.stack.len(), blob)
        {
            return Some(duplicate);
        }
        self.stack.truncate(family.base);
        None
    }

    /// The first duplicate among all open families, given from the root on: an error further down
    /// the blob must not hide it.
    pub(super) fn pending(
        &mut self,
        families: impl DoubleEndedIterator<Item = Family>,
        blob: &[u8],
    ) -> Option<usize> {
        let mut end = self.stack.len();
        let mut first: Option<usize> = None;
        for family in families.rev() {
            if !family.ascending {
                let duplicate = self.duplicate(&family, end, blob);
                first = first.into_iter().chain(duplicate).min();
            }
            end = family.base;
        }
        first
    }

    #[cold]
    fn duplicate(&mut self, family: &Family, end: usize, blob: &[u8]) -> Option<usize> {
        let children = self.stack.get_mut(family.base..end)?;
        children.sort_unstable_by(|a, b| a.order(b, blob).then(a.start.cmp(&b.start)));
        children
            .windows(2)
            .filter_map(|pair| match pair {
                [a, b] if a.order(b, blob) == Ordering::Equal => Some(b.start as usize),
                _ => None,
            })
            .min()
    }
}
