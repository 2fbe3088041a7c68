//! Files with one identity, in the host's order.
//!
//! To compare two of them may be a system call, and always is what a search costs. So they are
//! sorted, in chunks, and searched by halving: about log2(n) comparisons, where a tree of the
//! standard library takes half as many again; and what is fetched from memory is less.
//!
//! Invariants:
//! - No chunk is empty or longer than [`CHUNK`], and the first file of each is in `firsts` too: no
//!   file is held here that is not an entry.
//! - One more entry moves at most a chunk, and a reference for every chunk.

use alloc::vec::Vec;

use crate::{File, identity::Place};

/// Entries in a chunk before it is split.
const CHUNK: usize = 128;

/// See the module.
pub(crate) struct Ties<F> {
    firsts: Vec<F>,
    chunks: Vec<Vec<(F, Place)>>,
}

/// Where a file is, or would be.
#[derive(Clone, Copy)]
pub(crate) struct Spot {
    chunk: usize,
    at: usize,
}

impl<F> Default for Ties<F> {
    fn default() -> Self {
        Self { firsts: Vec::new(), chunks: Vec::new() }
    }
}

impl<F: File> Ties<F> {
    /// Where the file is with its place, or where it would be.
    pub(crate) fn search(&self, file: &F) -> Result<(Spot, Place), Spot> {
        let chunk = match self.firsts.binary_search_by(|first| first.order(file)) {
            Ok(chunk) => chunk,
            // Before all others, or among those that follow this first one.
            Err(after) => after.saturating_sub(1),
        };
        let entries = self.chunks.get(chunk).map_or(&[][..], Vec::as_slice);
        match entries.binary_search_by(|(there, _)| there.order(file)) {
            Ok(at) => match entries.get(at) {
                Some((_, place)) => Ok((Spot { chunk, at }, *place)),
                None => Err(Spot { chunk, at }),
            },
            Err(at) => Err(Spot { chunk, at }),
        }
    }

    /// Adds a file where [`search`](Self::search) says that it would be, before anything changes.
    pub(crate) fn insert(&mut self, spot: Spot, file: F, place: Place) {
        let Some(entries) = self.chunks.get_mut(spot.chunk) else {
            self.firsts.push(file.clone());
            self.chunks.push(alloc::vec![(file, place)]);
            return;
        };
        if spot.at == 0
            && let Some(first) = self.firsts.get_mut(spot.chunk)
        {
            *first = file.clone();
        }
        entries.insert(spot.at.min(entries.len()), (file, place));
        if entries.len() > CHUNK {
            let upper = entries.split_off(CHUNK / 2);
            if let Some((first, _)) = upper.first() {
                self.firsts.insert(spot.chunk + 1, first.clone());
                self.chunks.insert(spot.chunk + 1, upper);
            }
        }
    }

    /// Takes a file out, where it is there.
    pub(crate) fn remove(&mut self, file: &F) {
        let Ok((Spot { chunk, at }, _)) = self.search(file) else { return };
        let Some(entries) = self.chunks.get_mut(chunk) else { return };
        entries.remove(at);
        match (entries.first(), self.firsts.get_mut(chunk)) {
            (None, _) => {
                self.chunks.remove(chunk);
                self.firsts.remove(chunk);
            }
            (Some((next, _)), Some(first)) if at == 0 => *first = next.clone(),
            _ => {}
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use alloc::{collections::BTreeMap, sync::Arc};
    use core::cmp::Ordering;

    use super::*;
    use crate::{Identity, SessionId, Token};

    #[derive(Clone)]
    struct Number(Arc<u64>);

    impl File for Number {
        fn identity(&self) -> Identity {
            Identity([0, 0])
        }
        fn order(&self, other: &Self) -> Ordering {
            self.0.cmp(&other.0)
        }
        fn pinned(&self) -> u64 {
            0
        }
    }

    fn place(n: u64) -> Place {
        (SessionId(1), Token(n))
    }

    #[test]
    fn what_comes_and_goes_in_no_order_is_as_in_a_map_and_nothing_else_is_held() {
        let (mut ties, mut map) = (Ties::default(), BTreeMap::new());
        let mut random = 1_u64;
        for round in 0..60_000_u64 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            // It grows to some thousands, and shrinks to nothing again.
            let (number, grows) = (random >> 50, round < 30_000);
            if (random >> 20) % 10 < if grows { 8 } else { 2 } {
                let file = Number(Arc::new(number));
                match (ties.search(&file), map.get(&number)) {
                    (Ok((_, there)), Some((expected, _))) => assert_eq!(there, *expected),
                    (Err(spot), None) => {
                        map.insert(number, (place(round), Arc::downgrade(&file.0)));
                        ties.insert(spot, file, place(round));
                    }
                    _ => panic!("{number} is in one of both alone"),
                }
            } else {
                // The next one that is there, so that all go in the end.
                let number = map.range(number..).next().or(map.first_key_value());
                let Some(number) = number.map(|(number, _)| *number) else { continue };
                ties.remove(&Number(Arc::new(number)));
                let gone = map.remove(&number);
                assert!(gone.is_some_and(|(_, file)| file.strong_count() == 0));
            }
            assert_eq!(ties.is_empty(), map.is_empty());
        }
        let all = ties.chunks.iter().flatten().map(|(file, place)| (*file.0, *place));
        assert!(all.eq(map.iter().map(|(number, (place, _))| (*number, *place))));
        assert!(ties.chunks.iter().all(|chunk| (1..=CHUNK).contains(&chunk.len())));
    }

    #[test]
    fn files_that_come_in_their_order_are_found() {
        let mut ties = Ties::default();
        for n in 0..1_000 {
            let file = Number(Arc::new(n));
            let Err(spot) = ties.search(&file) else { panic!("{n} is not there yet") };
            ties.insert(spot, file, place(n));
        }
        for n in 0..1_000 {
            let found = ties.search(&Number(Arc::new(n)));
            assert_eq!(found.ok().map(|(_, place)| place), Some(place(n)));
        }
    }
}
