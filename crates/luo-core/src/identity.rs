//! Which open file descriptions are preserved, and where.
//!
//! Invariants: at most one entry for one open file description, or for one identity that a handler
//! gave. One ordered map serves both the hash of the kernel's design and its search within equal
//! identities: files are compared by their identities first and by [`File::order`] only where
//! these are equal, so a search costs O(log n) and growth never moves what is already there.
//! (Measured against a hash table: that is faster while it is small, but identities count up as
//! files are opened, and here neighbours stay neighbours; at 100,000 files one more costs 1.0 to
//! 1.2 times what the first ones cost, with a table 1.7 to 2.6 times.)

use alloc::collections::{BTreeMap, btree_map};
use core::cmp::Ordering;

use crate::{File, Identity, SessionId, Token, registry::HandlerId};

/// What tells one preserved thing from another.
#[derive(Clone)]
pub(crate) enum Key<F> {
    /// The host's identity, and the file to settle what it leaves open.
    Host(Identity, F),
    /// A handler's own: equal means the same.
    Own(HandlerId, Identity),
}

impl<F: File> Key<F> {
    pub(crate) fn of(file: &F, handler: HandlerId, own: Option<Identity>) -> Self {
        match own {
            Some(identity) => Self::Own(handler, identity),
            None => Self::Host(file.identity(), file.clone()),
        }
    }
}

impl<F: File> Ord for Key<F> {
    fn cmp(&self, other: &Self) -> Ordering {
        match (self, other) {
            (Self::Host(a, file), Self::Host(b, other)) => a.cmp(b).then_with(|| file.order(other)),
            (Self::Own(a, x), Self::Own(b, y)) => (a, x).cmp(&(b, y)),
            (Self::Host(..), Self::Own(..)) => Ordering::Less,
            (Self::Own(..), Self::Host(..)) => Ordering::Greater,
        }
    }
}

impl<F: File> PartialOrd for Key<F> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<F: File> PartialEq for Key<F> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl<F: File> Eq for Key<F> {}

/// Where something is preserved.
pub(crate) type Place = (SessionId, Token);

/// Where something is not preserved yet.
pub(crate) type Vacancy<'a, F> = btree_map::VacantEntry<'a, Key<F>, Place>;

/// Everything that is preserved, by what it is.
pub(crate) struct Index<F> {
    map: BTreeMap<Key<F>, Place>,
}

impl<F: File> Index<F> {
    pub(crate) const fn new() -> Self {
        Self { map: BTreeMap::new() }
    }

    /// The place for a key, or where the thing already is.
    pub(crate) fn vacancy(&mut self, key: Key<F>) -> Result<Vacancy<'_, F>, Place> {
        match self.map.entry(key) {
            btree_map::Entry::Vacant(vacant) => Ok(vacant),
            btree_map::Entry::Occupied(there) => Err(*there.get()),
        }
    }

    pub(crate) fn find(&self, key: &Key<F>) -> Option<Place> {
        self.map.get(key).copied()
    }

    pub(crate) fn remove(&mut self, key: &Key<F>) {
        self.map.remove(key);
    }
}

#[cfg(test)]
mod tests {
    use core::{cell::Cell, cmp::Ordering};

    use super::*;

    std::thread_local! {
        static ORDERED: Cell<usize> = const { Cell::new(0) };
    }

    /// An identity, and what tells files with the same one apart.
    #[derive(Clone)]
    struct Pair(u64, u64);

    impl File for Pair {
        fn identity(&self) -> Identity {
            Identity([0, self.0])
        }
        fn order(&self, other: &Self) -> Ordering {
            assert_eq!(self.0, other.0, "only files with equal identities are compared");
            ORDERED.set(ORDERED.get() + 1);
            self.1.cmp(&other.1)
        }
        fn pinned(&self) -> u64 {
            0
        }
    }

    fn add(index: &mut Index<Pair>, file: Pair, at: u64) -> Result<(), Place> {
        let vacancy = index.vacancy(Key::of(&file, HandlerId(0), None))?;
        vacancy.insert((SessionId(1), Token(at)));
        Ok(())
    }

    #[test]
    fn a_file_among_many_with_the_same_identity_is_found_without_walking() {
        let mut index = Index::new();
        for n in 0..10_000 {
            add(&mut index, Pair(7, n * 7919 % 10_007), n).unwrap();
        }
        ORDERED.set(0);
        assert_eq!(add(&mut index, Pair(7, 7919), 0), Err((SessionId(1), Token(1))));
        assert!(ORDERED.get() < 100, "{} comparisons among 10,000", ORDERED.get());
    }

    #[test]
    fn what_is_removed_is_gone_and_its_twins_stay() {
        let mut index = Index::new();
        for n in 0..4 {
            add(&mut index, Pair(7, n), n).unwrap();
        }
        let key = |n| Key::of(&Pair(7, n), HandlerId(0), None);
        for n in 0..4 {
            index.remove(&key(n));
            index.remove(&key(99));
            assert_eq!(index.find(&key(n)), None);
            for left in n + 1..4 {
                assert_eq!(index.find(&key(left)), Some((SessionId(1), Token(left))));
            }
        }
    }

    #[test]
    fn a_handlers_own_identity_is_of_that_handler_alone_and_needs_no_order() {
        let mut index = Index::new();
        let own = |handler, n| Key::of(&Pair(n, n), HandlerId(handler), Some(Identity([1, 1])));
        ORDERED.set(0);
        let Ok(vacancy) = index.vacancy(own(1, 0)) else { panic!("nothing is there yet") };
        vacancy.insert((SessionId(1), Token(0)));
        assert_eq!(index.find(&own(1, 5)), Some((SessionId(1), Token(0))));
        assert_eq!(index.find(&own(2, 0)), None);
        index.remove(&own(1, 5));
        assert_eq!((index.find(&own(1, 0)), ORDERED.get()), (None, 0));
    }

    #[test]
    fn files_with_different_identities_are_never_compared() {
        let mut index = Index::new();
        ORDERED.set(0);
        for n in 0..1000 {
            add(&mut index, Pair(n, 0), n).unwrap();
        }
        assert_eq!(ORDERED.get(), 0);
        let gone = Key::of(&Pair(5, 0), HandlerId(0), None);
        index.remove(&gone);
        assert_eq!(index.find(&gone), None);
        add(&mut index, Pair(5, 0), 5).unwrap();
    }
}
