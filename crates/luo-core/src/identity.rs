//! Which open file descriptions are preserved, and where.
//!
//! Invariants: at most one entry for one open file description, or for one identity that a handler
//! gave. Identities are hashed; files with the same one are [sorted](Ties), and [`File::order`]
//! is asked of these alone: a search costs O(1), and O(log n) among n files with one identity.
//! What is there does not move when more comes, see [`pages`](crate::pages).

use alloc::collections::{BTreeMap, btree_map};
use core::cmp::Ordering;
use core::hash::BuildHasher;

use hashbrown::DefaultHashBuilder;

use crate::{
    File, Identity, SessionId, Token,
    pages::{Number, Pages},
    registry::HandlerId,
    ties::{Spot, Ties},
};

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

impl<F> Key<F> {
    /// It stands for an open file description, not for what a handler makes of it.
    pub(crate) fn is_of_host(&self) -> bool {
        matches!(self, Self::Host(..))
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

/// What is preserved of one identity.
pub(crate) enum Seat<F> {
    /// One file.
    Lone(Identity, F, Place),
    /// Several, or what is left of several: they are with the ties.
    Tied(Identity),
}

impl<F> Seat<F> {
    fn identity(&self) -> &Identity {
        match self {
            Self::Lone(identity, ..) | Self::Tied(identity) => identity,
        }
    }
}

/// Everything that is preserved, by what it is.
pub(crate) struct Index<F> {
    seats: Pages<Seat<F>>,
    ties: BTreeMap<Identity, Ties<F>>,
    own: BTreeMap<(HandlerId, Identity), Place>,
    hasher: DefaultHashBuilder,
}

/// Where something is not preserved yet.
pub(crate) enum Vacancy<'a, F> {
    /// Nothing has its identity.
    Alone(&'a mut Pages<Seat<F>>, u32, Identity, F),
    /// One file has its identity, and is another.
    Second(&'a mut Index<F>, Number, Identity, F),
    /// Several have.
    Among(&'a mut Ties<F>, Spot, F),
    /// Its handler has given it one.
    Own(btree_map::VacantEntry<'a, (HandlerId, Identity), Place>),
}

impl<F: File> Vacancy<'_, F> {
    pub(crate) fn insert(self, place: Place) {
        match self {
            Self::Alone(seats, hash, identity, file) => {
                seats.insert(hash, Seat::Lone(identity, file, place));
            }
            Self::Second(index, there, identity, file) => {
                let ties = index.ties.entry(identity).or_default();
                if let Err(spot) = ties.search(&file) {
                    ties.insert(spot, file, place);
                }
                if let Some(seat) = index.seats.get_mut(there)
                    && let Seat::Lone(_, first, its) =
                        core::mem::replace(seat, Seat::Tied(identity))
                    && let Err(spot) = ties.search(&first)
                {
                    ties.insert(spot, first, its);
                }
            }
            Self::Among(ties, spot, file) => ties.insert(spot, file, place),
            Self::Own(vacant) => {
                vacant.insert(place);
            }
        }
    }
}

impl<F: File> Index<F> {
    pub(crate) fn new() -> Self {
        Self {
            seats: Pages::new(),
            ties: BTreeMap::new(),
            own: BTreeMap::new(),
            hasher: DefaultHashBuilder::default(),
        }
    }

    /// The number of an identity's seat, and the hash that leads to it.
    fn seat(&self, identity: &Identity) -> (u32, Option<(Number, &Seat<F>)>) {
        let hash = self.hasher.hash_one(identity);
        let hash = (hash ^ hash >> 32) as u32;
        let number = self.seats.find(hash, |seat| seat.identity() == identity);
        (hash, number.and_then(|number| Some((number, self.seats.get(number)?))))
    }

    /// The place for a key, or where the thing already is.
    pub(crate) fn vacancy(&mut self, key: Key<F>) -> Result<Vacancy<'_, F>, Place> {
        let (identity, file) = match key {
            Key::Host(identity, file) => (identity, file),
            Key::Own(handler, identity) => {
                return match self.own.entry((handler, identity)) {
                    btree_map::Entry::Vacant(vacant) => Ok(Vacancy::Own(vacant)),
                    btree_map::Entry::Occupied(there) => Err(*there.get()),
                };
            }
        };
        match self.seat(&identity) {
            (hash, None) => Ok(Vacancy::Alone(&mut self.seats, hash, identity, file)),
            (_, Some((_, Seat::Lone(_, there, place)))) if there.order(&file).is_eq() => {
                Err(*place)
            }
            (_, Some((number, Seat::Lone(..)))) => {
                Ok(Vacancy::Second(self, number, identity, file))
            }
            (_, Some((_, Seat::Tied(_)))) => {
                let ties = self.ties.entry(identity).or_default();
                match ties.search(&file) {
                    Err(spot) => Ok(Vacancy::Among(ties, spot, file)),
                    Ok((_, place)) => Err(place),
                }
            }
        }
    }

    pub(crate) fn find(&self, key: &Key<F>) -> Option<Place> {
        match key {
            Key::Host(identity, file) => match self.seat(identity).1?.1 {
                Seat::Lone(_, there, place) => there.order(file).is_eq().then_some(*place),
                Seat::Tied(_) => self.ties.get(identity)?.search(file).ok().map(|(_, place)| place),
            },
            Key::Own(handler, identity) => self.own.get(&(*handler, *identity)).copied(),
        }
    }

    pub(crate) fn remove(&mut self, key: &Key<F>) {
        let (identity, file) = match key {
            Key::Host(identity, file) => (identity, file),
            Key::Own(handler, identity) => {
                self.own.remove(&(*handler, *identity));
                return;
            }
        };
        let (hash, Some((number, seat))) = self.seat(identity) else { return };
        let last = match seat {
            Seat::Lone(_, there, _) => there.order(file).is_eq(),
            Seat::Tied(_) => match self.ties.entry(*identity) {
                btree_map::Entry::Vacant(_) => true,
                btree_map::Entry::Occupied(mut ties) => {
                    ties.get_mut().remove(file);
                    let last = ties.get().is_empty();
                    if last {
                        ties.remove();
                    }
                    last
                }
            },
        };
        if last {
            self.seats.remove(hash, number);
        }
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
        assert!(ORDERED.get() < 20, "{} comparisons among 10,000", ORDERED.get());
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
