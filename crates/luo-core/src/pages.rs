//! A hash table whose entries stay where they are, and which grows a page at a time (extendible
//! hashing).
//!
//! Entries are in a slab. What is hashed are their numbers, eight bytes each: so little that a
//! hundred thousand of them need not be fetched from far, which costs more than all the rest. A
//! directory leads from some bits of a hash to a page of them; a page that is full is split by one
//! bit more, and the directory doubles where it has not so many.
//!
//! Invariants:
//! - One more entry moves the numbers of at most [`PAGE`] others, and copies four bytes of the
//!   directory for every few hundred: nobody waits until a large table has been hashed anew.
//! - Every number is in the page to which the directory leads from its hash.
//! - Hashes that agree in too many bits make one page larger, never the directory longer than the
//!   number of entries justifies.

use alloc::{vec, vec::Vec};

use hashbrown::HashTable;

/// Numbers in a page before it is split: what a table of 512 buckets holds.
const PAGE: usize = 448;
/// The bits of a hash from this one on lead to the page; the table in it uses those below, and the
/// highest seven.
const FIRST_BIT: u32 = 10;
/// Bits that there are for it.
const MOST_BITS: u32 = 15;
/// A directory has at most so many places for each page.
const PLACES: usize = 16;
/// Entries of the slab that are allocated at once.
const CHUNK: usize = 128;

/// Where an entry is, until it is removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Number(u32);

/// An entry's number, and its hash cut to what is used of it.
struct Found {
    hash: u32,
    number: Number,
}

/// The 64 bits that the page's table wants, and of which it uses the lowest and the highest.
fn widened(hash: u32) -> u64 {
    u64::from(hash) << 32 | u64::from(hash)
}

struct Page {
    table: HashTable<Found>,
    /// So many bits of the hash are the same for all in it.
    bits: u32,
}

enum Slot<T> {
    Full(T),
    /// Free, and the next free one.
    Free(Option<Number>),
}

/// The table; whoever uses it hashes and compares.
pub(crate) struct Pages<T> {
    /// As long as 2 to the number of bits that lead to a page.
    directory: Vec<u32>,
    pages: Vec<Page>,
    slab: Vec<Vec<Slot<T>>>,
    free: Option<Number>,
    len: usize,
}

impl<T> Pages<T> {
    pub(crate) fn new() -> Self {
        Self {
            directory: vec![0],
            pages: vec![Page { table: HashTable::new(), bits: 0 }],
            slab: Vec::new(),
            free: None,
            len: 0,
        }
    }

    /// The page of a hash.
    fn page(&self, hash: u32) -> usize {
        let place = (hash >> FIRST_BIT) as usize & (self.directory.len() - 1);
        self.directory.get(place).map_or(0, |page| *page as usize)
    }

    fn slot(&mut self, number: Number) -> Option<&mut Slot<T>> {
        let at = number.0 as usize;
        self.slab.get_mut(at / CHUNK)?.get_mut(at % CHUNK)
    }

    pub(crate) fn get(&self, number: Number) -> Option<&T> {
        let at = number.0 as usize;
        match self.slab.get(at / CHUNK)?.get(at % CHUNK)? {
            Slot::Full(entry) => Some(entry),
            Slot::Free(_) => None,
        }
    }

    pub(crate) fn get_mut(&mut self, number: Number) -> Option<&mut T> {
        match self.slot(number)? {
            Slot::Full(entry) => Some(entry),
            Slot::Free(_) => None,
        }
    }

    /// The entry with that hash of which `is_it` is true.
    pub(crate) fn find(&self, hash: u32, mut is_it: impl FnMut(&T) -> bool) -> Option<Number> {
        let page = self.pages.get(self.page(hash))?;
        let is_it =
            |found: &Found| found.hash == hash && self.get(found.number).is_some_and(&mut is_it);
        page.table.find(widened(hash), is_it).map(|found| found.number)
    }

    /// Adds an entry, which is not there yet.
    pub(crate) fn insert(&mut self, hash: u32, entry: T) {
        let number = self.store(entry);
        while self.pages.get(self.page(hash)).is_some_and(|page| page.table.len() >= PAGE)
            && self.split(hash)
        {}
        let page = self.page(hash);
        if let Some(page) = self.pages.get_mut(page) {
            let rehash = |found: &Found| widened(found.hash);
            page.table.insert_unique(widened(hash), Found { hash, number }, rehash);
        }
    }

    /// Takes out the entry with that hash and number.
    pub(crate) fn remove(&mut self, hash: u32, number: Number) {
        let page = self.page(hash);
        let is_it = |found: &Found| found.number == number;
        let found = match self.pages.get_mut(page) {
            Some(page) => page.table.find_entry(widened(hash), is_it),
            None => return,
        };
        let Ok(found) = found else { return };
        found.remove();
        self.len -= 1;
        if self.len == 0 {
            // What many have needed is given back.
            *self = Self::new();
            return;
        }
        let next = self.free.replace(number);
        if let Some(slot) = self.slot(number) {
            *slot = Slot::Free(next);
        }
    }

    /// Puts an entry into the slab.
    fn store(&mut self, entry: T) -> Number {
        self.len += 1;
        if let Some(number) = self.free
            && let Some(slot @ Slot::Free(_)) = self.slot(number)
        {
            if let Slot::Free(next) = core::mem::replace(slot, Slot::Full(entry)) {
                self.free = next;
            }
            return number;
        }
        if self.slab.last().is_none_or(|chunk| chunk.len() == CHUNK) {
            self.slab.push(Vec::with_capacity(CHUNK));
        }
        let before = (self.slab.len() - 1) * CHUNK;
        let at = self.slab.last_mut().map_or(0, |chunk| {
            chunk.push(Slot::Full(entry));
            before + chunk.len() - 1
        });
        // Memory ends long before the numbers do.
        Number(at as u32)
    }

    /// Splits the full page to which a hash leads; `false` where it is better made larger.
    fn split(&mut self, hash: u32) -> bool {
        let (number, added) = (self.page(hash), self.pages.len());
        let (Some(page), Ok(name)) = (self.pages.get_mut(number), u32::try_from(added)) else {
            return false;
        };
        let bit = 1 << page.bits;
        if bit == self.directory.len() {
            if page.bits == MOST_BITS || self.directory.len() >= PLACES * added {
                return false;
            }
            self.directory.extend_from_within(..);
        }
        page.bits += 1;
        let bits = page.bits;
        // Both are made anew: a table out of which much is taken has to be hashed anew too.
        let full = core::mem::replace(&mut page.table, HashTable::with_capacity(PAGE));
        let mut other = HashTable::with_capacity(PAGE);
        for found in full {
            let moves = (found.hash >> FIRST_BIT) as usize & bit != 0;
            let table = if moves { &mut other } else { &mut page.table };
            table.insert_unique(widened(found.hash), found, |found| widened(found.hash));
        }
        self.pages.push(Page { table: other, bits });
        let first = (hash >> FIRST_BIT) as usize & (bit - 1) | bit;
        for place in self.directory.iter_mut().skip(first).step_by(bit << 1) {
            *place = name;
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mix(number: u64) -> u32 {
        let mixed = (number + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (mixed ^ mixed >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9).to_be_bytes()[..4]
            .iter()
            .fold(0, |sum, byte| sum << 8 | u32::from(*byte))
    }

    fn find(pages: &Pages<u64>, number: u64, hash: u32) -> Option<Number> {
        let found = pages.find(hash, |there| *there == number);
        assert!(found.is_none_or(|found| pages.get(found) == Some(&number)));
        found
    }

    #[test]
    fn what_was_added_is_found_until_it_is_removed_and_its_place_is_used_again() {
        let mut pages = Pages::new();
        for number in 0..50_000 {
            pages.insert(mix(number), number);
        }
        assert!(pages.pages.len() > 100, "{} pages", pages.pages.len());
        let chunks = pages.slab.len();
        for number in (0..50_000).step_by(2) {
            let found = find(&pages, number, mix(number)).unwrap();
            pages.remove(mix(number), found);
        }
        for number in 0..50_000 {
            assert_eq!(find(&pages, number, mix(number)).is_some(), number % 2 == 1, "{number}");
        }
        for number in (0..50_000).step_by(2) {
            pages.insert(mix(number), number);
        }
        for number in 0..50_000 {
            assert!(find(&pages, number, mix(number)).is_some(), "{number}");
        }
        assert_eq!(pages.slab.len(), chunks);
    }

    #[test]
    fn what_is_empty_again_holds_nothing() {
        let mut pages = Pages::new();
        for number in 0..1_000 {
            pages.insert(mix(number), number);
        }
        for number in 0..1_000 {
            let found = find(&pages, number, mix(number)).unwrap();
            pages.remove(mix(number), found);
            pages.remove(mix(number), found);
        }
        assert_eq!((pages.pages.len(), pages.slab.len(), pages.len), (1, 0, 0));
    }

    #[test]
    fn one_more_splits_one_page_and_the_directory_stays_short() {
        let mut pages = Pages::new();
        for number in 0..100_000 {
            let before = pages.pages.len();
            pages.insert(mix(number), number);
            assert!(pages.pages.len() <= before + 1);
            assert!(pages.pages.iter().all(|page| page.table.len() <= PAGE));
        }
        assert!(pages.directory.len() <= PLACES * pages.pages.len());
    }

    #[test]
    fn hashes_that_agree_do_not_make_the_directory_long() {
        let mut pages = Pages::new();
        for number in 0..5_000 {
            pages.insert(7, number);
        }
        assert!(pages.directory.len() <= 2 * PLACES * pages.pages.len());
        for number in 0..5_000 {
            assert!(find(&pages, number, 7).is_some());
        }
    }
}
