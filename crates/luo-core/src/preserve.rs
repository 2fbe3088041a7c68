//! Registering files for the next live update, and taking them out again.
//!
//! Invariants: what is refused leaves no trace; a file that is registered is in its session, in the
//! index of identities and in its owner's usage, or in none of them.

use alloc::{boxed::Box, collections::btree_map::Entry, format};

use crate::{
    Bond, Criticality, Errno, Error, File, FileKey, Orchestrator, SessionId, Side, State, Token,
    identity::Key,
    table::{Outgoing, no_token, token_refused},
};

impl<F: File> Orchestrator<F> {
    /// Registers a file for the next live update; `None` assigns a token.
    ///
    /// # Errors
    /// EBUSY outside `normal` and `updated`, in a transition, or where the same open file
    /// description is already preserved; EEXIST where the token is taken; ENOENT where there is
    /// no such session or no handler takes the file; ENOSPC over a limit.
    pub fn preserve(
        &mut self,
        session: SessionId,
        token: Option<Token>,
        file: F,
        criticality: Criticality,
    ) -> Result<Token, Error> {
        self.may_register(session)?;
        let caps = self.caps();
        let there = self.sessions.get_mut(session)?;
        let uid = there.owner.uid;
        let token = match token {
            None => there.assign_token()?,
            Some(token) => token,
        };
        // Looked for once: there may be very many.
        let Entry::Vacant(place) = there.outgoing.entry(token) else {
            return Err(token_refused(&there.name, token));
        };
        let handler = self.handlers.choose(&file, caps)?;
        let Some(entry) = self.handlers.get_mut(handler) else {
            return Err(Error::new(Errno::NoEnt, "the handler has gone"));
        };
        let own_identity = entry.handler.identity(&file);
        let compatible = entry.compatible.clone();
        let outgoing = Outgoing::registered(file, handler, compatible, own_identity, criticality);
        let pinned = outgoing.pinned;
        let vacancy = match self.index.vacancy(Key::of(&outgoing.file, handler, own_identity)) {
            Ok(vacancy) => vacancy,
            Err((other, taken)) => return Err(self.already_preserved(uid, other, taken)),
        };
        self.ledger.check_files(uid, 1, pinned)?;

        // Nothing can fail any more.
        vacancy.insert((session, token));
        self.ledger.add_file(uid, pinned);
        entry.uses += 1;
        place.insert(Box::new(outgoing));
        there.peers_changed();
        there.token_used(token);
        there.pinned = there.pinned.saturating_add(pinned);
        self.dirty.files.insert(FileKey { session, side: Side::Outgoing, token });
        self.dirty.sessions.insert(session);
        Ok(token)
    }

    /// Refuses with EBUSY where files may not come and go.
    pub(crate) fn may_register(&self, id: SessionId) -> Result<(), Error> {
        let session = self.sessions.get(id)?;
        self.machine_at_rest("change the files")?;
        if let Some(event) =
            session.transition.and_then(|id| self.cycle.transitions.get(&id)).map(|t| t.event)
        {
            let reason = format!("{event} of the session is going on");
            return Err(Error::new(Errno::Busy, reason)
                .at(self.session_location(id))
                .advise("try again when it has ended"));
        }
        match session.state {
            State::Normal | State::Updated => Ok(()),
            State::Prepared | State::Frozen => {
                let reason = format!("the session is {}", session.state);
                Err(Error::new(Errno::Busy, reason)
                    .at(self.session_location(id))
                    .advise("wait for its update, or cancel it"))
            }
        }
    }

    fn already_preserved(&self, uid: u32, session: SessionId, token: Token) -> Error {
        let theirs = self.sessions.peek(session).filter(|there| there.owner.uid == uid);
        let reason = match theirs {
            Some(there) => {
                format!("this file is already preserved, in session {} as {token}", there.name)
            }
            None => "this file is already preserved, by another user".into(),
        };
        Error::new(Errno::Busy, reason)
            .advise("take it out there first, or preserve this one as its duplicate")
    }

    /// Takes an outgoing file out again.
    ///
    /// # Errors
    /// ENOENT; EBUSY where it is prepared or frozen, or in a transition.
    pub fn unpreserve(&mut self, session: SessionId, token: Token) -> Result<(), Error> {
        let there = self.sessions.get(session)?;
        let Some(file) = there.outgoing.get(&token) else {
            return Err(no_token(&there.name, token, "preserved"));
        };
        self.may_register(session)?;
        if !file.at_rest() {
            let reason = match file.state {
                State::Normal => "a call for the file has not returned".into(),
                state => format!("the file is {state}"),
            };
            return Err(Error::new(Errno::Busy, reason)
                .at(self.file_location(session, token, file.handler))
                .advise("cancel it first"));
        }
        self.no_duplicates(session, token)?;
        self.take_outgoing(session, token);
        Ok(())
    }

    /// Takes an outgoing file out of everything that knows it.
    pub(crate) fn take_outgoing(
        &mut self,
        session: SessionId,
        token: Token,
    ) -> Option<(Box<Outgoing<F>>, Bond)> {
        let there = self.sessions.peek_mut(session)?;
        let (file, bond) = there.remove_outgoing(token)?;
        there.pinned = there.pinned.saturating_sub(file.pinned);
        let uid = there.owner.uid;
        self.forget_outgoing(session, token, &file, uid);
        Some((file, bond))
    }
}
