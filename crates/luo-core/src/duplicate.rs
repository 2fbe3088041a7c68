//! `duplicate-v1`: a second token for an open file description that is preserved already.
//!
//! Two descriptors of one description come back as two descriptors of one: the duplicate needs its
//! original, its data is the original's token, and what is retrieved is the original.
//!
//! Invariants: each of both is a reference of its own ([`File::twin`]); an original stays preserved for
//! as long as it has a duplicate; the index of identities knows the original alone, and its owner's
//! bytes are counted once.

use alloc::{format, vec::Vec};

use crate::{
    Bond, Caps, Criticality, Errno, Error, Failure, File, FileKey, Handler, Keep, Orchestrator,
    Recall, SessionId, Side, Token,
    registry::HandlerId,
    table::{Outgoing, no_token, token_refused},
};

/// The `compatible` string of duplicates.
pub const DUPLICATE_COMPATIBLE: &str = "duplicate-v1";

/// Keeps duplicates; part of the framework, and chosen for what is said to be one only.
pub(crate) struct DuplicateHandler;

impl<F: File> Handler<F> for DuplicateHandler {
    fn compatible(&self) -> &str {
        DUPLICATE_COMPATIBLE
    }

    fn requires(&self) -> Caps {
        Caps::empty()
    }

    fn can_preserve(&self, _file: &F) -> bool {
        false
    }

    fn refers(&self) -> bool {
        true
    }

    fn prepare(&self, file: &F, keep: &dyn Keep<F>) -> Result<u64, Failure> {
        let original = keep.token_of(file).filter(|found| keep.token() != Some(*found));
        let Some(original) = original else {
            let reason = "the file that this one is a duplicate of is not in the session";
            return Err(Failure::new(Errno::NoEnt, reason));
        };
        keep.need(original)?;
        Ok(original.0)
    }

    fn retrieve(&self, data: u64, recall: &dyn Recall<F>) -> Result<F, Failure> {
        recall.file(Token(data))?.twin()
    }

    fn finish(&self, _file: Option<&F>, _data: u64, _reclaimed: bool, _recall: &dyn Recall<F>) {}

    fn is_quick(&self) -> bool {
        true
    }
}

impl<F: File> Orchestrator<F> {
    /// Registers another token for a file that is preserved in the same session: on the other side
    /// both are descriptors of one open file description. Of a duplicate's duplicate the original
    /// is taken.
    ///
    /// # Errors
    /// As [`preserve`](Self::preserve), and ENOENT where `original` is not preserved there; EMFILE.
    pub fn preserve_duplicate(
        &mut self,
        session: SessionId,
        token: Option<Token>,
        original: Token,
        criticality: Criticality,
    ) -> Result<Token, Error> {
        self.may_register(session)?;
        let there = self.sessions.get_mut(session)?;
        let uid = there.owner.uid;
        let token = match token {
            None => there.assign_token()?,
            Some(token) => token,
        };
        if there.outgoing.contains_key(&token) {
            return Err(token_refused(&there.name, token));
        }
        let Some(first) = there.outgoing.get(&original) else {
            return Err(no_token(&there.name, original, "preserved"));
        };
        let original = first.original.unwrap_or(original);
        let twin = first.file.twin();
        let file = twin.map_err(|failure| {
            Error::new(failure.errno(), failure.reason())
                .at(self.file_location(session, original, None))
        })?;
        self.ledger.check_files(uid, 1, 0)?;
        let Some(handler) = self.handlers.find(DUPLICATE_COMPATIBLE) else {
            return Err(Error::new(Errno::NoEnt, "there is no handler for duplicates"));
        };

        // Nothing can fail any more.
        self.ledger.add_file(uid, 0);
        self.insert_duplicate(session, token, original, file, handler, criticality);
        if let Some(there) = self.sessions.peek_mut(session) {
            there.token_used(token);
        }
        self.dirty.sessions.insert(session);
        Ok(token)
    }

    /// Puts a duplicate into its session; its owner's usage has it already.
    pub(crate) fn insert_duplicate(
        &mut self,
        session: SessionId,
        token: Token,
        original: Token,
        file: F,
        handler: HandlerId,
        criticality: Criticality,
    ) {
        let Some(entry) = self.handlers.get_mut(handler) else { return };
        let Some(there) = self.sessions.peek_mut(session) else { return };
        entry.uses += 1;
        let compatible = entry.compatible.clone();
        let outgoing = Outgoing::registered(file, handler, compatible, None, criticality);
        let outgoing = Outgoing { original: Some(original), pinned: 0, ..outgoing };
        there.insert_outgoing(token, outgoing);
        there.outgoing_bonds.set(token, Bond { needs: alloc::vec![original], with: Vec::new() });
        self.dirty.files.insert(FileKey { session, side: Side::Outgoing, token });
    }

    /// Refuses with EBUSY to take out a file that has duplicates.
    pub(crate) fn no_duplicates(&self, session: SessionId, token: Token) -> Result<(), Error> {
        let there = self.sessions.get(session)?;
        let duplicate = there
            .outgoing_bonds
            .needed_by(token)
            .find(|by| there.outgoing.get(by).is_some_and(|file| file.original == Some(token)));
        match duplicate {
            None => Ok(()),
            Some(by) => Err(Error::new(Errno::Busy, format!("token {by} is a duplicate of it"))
                .at(self.file_location(session, token, None))
                .advise("take the duplicate out first")),
        }
    }
}
