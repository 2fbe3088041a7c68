//! The files of one session, as a handler finds them while it keeps one of them.
//!
//! Invariants: sorted by identity, and by [`File::order`] among equal ones, so that a search takes
//! O(log n) comparisons; made once for as long as no file comes or goes, and only where a handler
//! [refers](crate::Handler::refers) to others.

use alloc::vec::Vec;
use core::{
    cmp::Ordering,
    ops::{ControlFlow, RangeInclusive},
};

use crate::{File, Identity, Token};

pub(crate) struct Peers<F> {
    files: Vec<(Identity, F, Token)>,
}

impl<F: File> Peers<F> {
    /// Of files that differ: of two descriptors of one description the first is taken.
    pub(crate) fn new(files: impl Iterator<Item = (Token, F)>) -> Self {
        let mut files: Vec<_> = files.map(|(token, file)| (file.identity(), file, token)).collect();
        let order = |(a, one, _): &(Identity, F, Token), (b, other, _): &(Identity, F, Token)| {
            a.cmp(b).then_with(|| one.order(other))
        };
        // Stable: among descriptors of one description the smallest token stays first.
        files.sort_by(order);
        files.dedup_by(|next, first| order(next, first) == Ordering::Equal);
        Self { files }
    }

    /// The file with this identity for which `order` says `Equal`.
    pub(crate) fn find(&self, identity: Identity, order: &dyn Fn(&F) -> Ordering) -> Option<Token> {
        let found = self
            .files
            .binary_search_by(|(own, file, _)| own.cmp(&identity).then_with(|| order(file)))
            .ok()?;
        self.files.get(found).map(|(_, _, token)| *token)
    }

    /// All files whose identities lie within these, until `visit` breaks.
    pub(crate) fn each_within(
        &self,
        identities: &RangeInclusive<Identity>,
        visit: &mut dyn FnMut(Token, &F) -> ControlFlow<()>,
    ) {
        let first = self.files.partition_point(|(own, _, _)| own < identities.start());
        let rest = self.files.get(first..).unwrap_or_default();
        for (_, file, token) in rest.iter().take_while(|(own, _, _)| identities.contains(own)) {
            if visit(*token, file).is_break() {
                return;
            }
        }
    }
}
