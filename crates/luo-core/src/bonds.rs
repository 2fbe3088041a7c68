//! What binds files of a session to each other.
//!
//! ```text
//! epoll ──needs──▶ socket        the socket is retrieved first, and no update goes without it
//! pipe's writer ──needs──▶ pipe's reader ──with──▶ writer
//!                                the reader is made first and makes the writer too; both or none
//! ```
//!
//! Invariants:
//! - A bond names tokens of its own session and side, each once, never its own.
//! - What is read of a handover may name anything, in circles too: these have no
//!   [depth](Bonds::depths).
//! - Finding what a file needs, and what needs it, is O(log n) among n bonds.

use alloc::{
    collections::{BTreeMap, BTreeSet},
    vec::Vec,
};

use crate::Token;

/// What a file is bound to, as its handler has found it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Bond {
    /// Files that are retrieved before it, and that no update may go without.
    pub needs: Vec<Token>,
    /// Files that no update may go without, in whatever order they are retrieved.
    pub with: Vec<Token>,
}

impl Bond {
    /// How many files one file can be bound to.
    pub const MAX: usize = 4096;

    /// Bound to nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.needs.is_empty() && self.with.is_empty()
    }

    pub(crate) fn tokens(&self) -> impl Iterator<Item = Token> + '_ {
        self.needs.iter().chain(&self.with).copied()
    }
}

/// The bonds of one side of a session.
#[derive(Debug, Default)]
pub(crate) struct Bonds {
    of: BTreeMap<Token, Bond>,
    /// What is needed, or to be there too, and by whom.
    back: BTreeSet<(Token, Token)>,
}

impl Bonds {
    pub(crate) fn is_empty(&self) -> bool {
        self.of.is_empty()
    }

    pub(crate) fn get(&self, token: Token) -> Option<&Bond> {
        self.of.get(&token)
    }

    pub(crate) fn needs(&self, token: Token) -> &[Token] {
        self.of.get(&token).map_or(&[], |bond| &bond.needs)
    }

    /// Replaces what binds a file.
    pub(crate) fn set(&mut self, token: Token, mut bond: Bond) {
        self.remove(token);
        for tokens in [&mut bond.needs, &mut bond.with] {
            tokens.retain(|other| *other != token);
            tokens.sort_unstable();
            tokens.dedup();
        }
        bond.with.retain(|other| bond.needs.binary_search(other).is_err());
        if bond.is_empty() {
            return;
        }
        self.back.extend(bond.tokens().map(|other| (other, token)));
        self.of.insert(token, bond);
    }

    /// Adds to what binds a file.
    pub(crate) fn add(&mut self, token: Token, more: Bond) {
        if more.is_empty() {
            return;
        }
        let mut bond = self.remove(token).unwrap_or_default();
        bond.needs.extend(more.needs);
        bond.with.extend(more.with);
        self.set(token, bond);
    }

    pub(crate) fn remove(&mut self, token: Token) -> Option<Bond> {
        let bond = self.of.remove(&token)?;
        for other in bond.tokens() {
            self.back.remove(&(other, token));
        }
        Some(bond)
    }

    /// Whoever is bound to a file.
    pub(crate) fn bound_to(&self, token: Token) -> impl Iterator<Item = Token> + '_ {
        let range = (token, Token(0))..=(token, Token(u64::MAX));
        self.back.range(range).map(|(_, by)| *by)
    }

    /// Whoever needs a file.
    pub(crate) fn needed_by(&self, token: Token) -> impl Iterator<Item = Token> + '_ {
        self.bound_to(token).filter(move |by| self.needs(*by).binary_search(&token).is_ok())
    }

    /// All files that are bound to others.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (Token, &Bond)> {
        self.of.iter().map(|(token, bond)| (*token, bond))
    }

    /// How deep each file is: what needs nothing is at 0 and is not listed, what needs it is
    /// deeper. Files that need each other in a circle, and what needs one of these, have no depth.
    pub(crate) fn depths(&self) -> BTreeMap<Token, usize> {
        let mut depths = BTreeMap::new();
        let mut open: BTreeMap<Token, usize> = BTreeMap::new();
        let mut ready = Vec::new();
        for (token, bond) in self.iter().filter(|(_, bond)| !bond.needs.is_empty()) {
            let waits = bond.needs.iter().filter(|other| !self.needs(**other).is_empty()).count();
            if waits == 0 {
                ready.push((token, 1));
            } else {
                open.insert(token, waits);
            }
        }
        // First come the shallow ones: what is ready is taken level by level.
        while !ready.is_empty() {
            let mut next = Vec::new();
            for (token, depth) in ready {
                depths.insert(token, depth);
                for by in self.needed_by(token) {
                    if let Some(waits) = open.get_mut(&by) {
                        *waits -= 1;
                        if *waits == 0 {
                            open.remove(&by);
                            next.push((by, depth + 1));
                        }
                    }
                }
            }
            ready = next;
        }
        depths
    }

    /// The files that need others.
    pub(crate) fn needing(&self) -> impl Iterator<Item = Token> + '_ {
        self.iter().filter(|(_, bond)| !bond.needs.is_empty()).map(|(token, _)| token)
    }
}

#[cfg(test)]
mod tests {
    use std::vec;

    use super::*;

    fn needs(tokens: &[u64]) -> Bond {
        Bond { needs: tokens.iter().copied().map(Token).collect(), with: Vec::new() }
    }

    #[test]
    fn depth_grows_along_needs_and_a_circle_has_none() {
        let mut bonds = Bonds::default();
        bonds.set(Token(5), needs(&[1, 2]));
        bonds.set(Token(6), needs(&[5, 1]));
        bonds.set(Token(7), needs(&[6, 5]));
        bonds.set(Token(8), needs(&[9]));
        bonds.set(Token(9), needs(&[8]));
        bonds.set(Token(10), needs(&[9, 1]));
        let depths: Vec<_> = bonds.depths().into_iter().collect();
        assert_eq!(depths, [(Token(5), 1), (Token(6), 2), (Token(7), 3)]);
        assert_eq!(bonds.needing().count(), 6);
        bonds.set(Token(8), needs(&[1]));
        assert_eq!(bonds.depths().get(&Token(10)), Some(&3));
    }

    #[test]
    fn what_is_removed_is_bound_to_nothing_and_nothing_stays_behind() {
        let mut bonds = Bonds::default();
        bonds.add(Token(2), Bond { needs: vec![Token(1), Token(1), Token(2)], with: vec![] });
        bonds.add(Token(2), Bond { needs: vec![], with: vec![Token(3), Token(1)] });
        let bond = Bond { needs: vec![Token(1)], with: vec![Token(3)] };
        assert_eq!(bonds.get(Token(2)), Some(&bond));
        assert_eq!(bonds.bound_to(Token(3)).collect::<Vec<_>>(), [Token(2)]);
        assert_eq!(bonds.needed_by(Token(3)).count(), 0);
        assert_eq!(bonds.needed_by(Token(1)).collect::<Vec<_>>(), [Token(2)]);
        assert_eq!(bonds.remove(Token(2)), Some(bond));
        assert!(bonds.is_empty() && bonds.back.is_empty());
    }
}
