//! The end of a live update.
//!
//! ```text
//! carry: retrieve what nobody has │ can_finish of every file │ ── no way back from here ──
//!   │ finish of every file │ shared states │ (machine:) the files' tree │ each subsystem
//!   │ the handover is retired
//! ```
//!
//! Invariants:
//! - Everything that can refuse is asked before anything is finished: unclaimed files, handlers,
//!   tokens and identities that are taken, limits.
//! - A file is finished after those that need it.
//! - A file that is carried on is an outgoing file in the moment it stops being an incoming one.

use alloc::{collections::BTreeMap, format, vec::Vec};

use crate::{
    DUPLICATE_COMPATIBLE, Errno, Error, Event, File, FileKey, FinishOptions, Orchestrator, Scope,
    SessionId, Side, Token, TransitionId, UnclaimedFiles,
    cycle::{FileStep, HandoverStep, Mode, SharedStage, Stage, SubStep, Transition, TreeStep},
    identity::Key,
    table::{Arrival, Arrived, Outgoing, token_list},
};

impl<F: File> Orchestrator<F> {
    /// As `begin` with [`Event::Finish`], with options.
    ///
    /// # Errors
    /// As `begin`; EBUSY with the tokens where files are unclaimed and this is refused. In the
    /// report, and nothing was finished: EBUSY where `can_finish` of a file says no or its file is
    /// already preserved elsewhere, EEXIST where a carried token is taken, ENOSPC where what is
    /// carried exceeds a limit, the failure of a file that was to be carried.
    pub fn finish(&mut self, scope: Scope, options: FinishOptions) -> Result<TransitionId, Error> {
        self.may_begin(scope, Event::Finish)?;
        for id in self.scope_sessions(scope) {
            self.may_finish_session(scope, id, options)?;
        }
        let mut transition = Transition::new(scope, Event::Finish);
        transition.options = options;
        if options.unclaimed == UnclaimedFiles::Carry {
            transition.stages.push_back(Stage::Files(FileStep::Retrieve));
        }
        transition.stages.extend([
            Stage::Files(FileStep::CanFinish),
            Stage::CommitToFinish,
            Stage::Files(FileStep::Finish),
            Stage::Shared(SharedStage::Drop),
        ]);
        if scope == Scope::Machine {
            transition.stages.push_back(Stage::Tree(TreeStep::Release));
            self.plan_subsystems(&mut transition.stages, SubStep::Finish);
            transition.stages.push_back(Stage::Handover(HandoverStep::Retire));
        }
        Ok(self.launch(transition))
    }

    fn may_finish_session(
        &self,
        scope: Scope,
        id: SessionId,
        options: FinishOptions,
    ) -> Result<(), Error> {
        let session = self.sessions.get(id)?;
        let mine = |token: &Token| !matches!(scope, Scope::File(_, only) if only != *token);
        let files = || session.incoming.iter().filter(|(token, _)| mine(token));
        if let Some((token, file)) = files().find(|(_, file)| file.busy()) {
            return Err(Error::new(Errno::Busy, "the file is being retrieved")
                .at(self.file_location(id, *token, file.handler))
                .advise("try again when it is"));
        }
        if let Scope::File(_, token) = scope {
            self.nobody_waits_for(id, token)?;
        }
        if options.unclaimed != UnclaimedFiles::Refuse {
            return Ok(());
        }
        let unclaimed: Vec<Token> =
            files().filter(|(_, file)| file.unclaimed()).map(|(token, _)| *token).collect();
        if unclaimed.is_empty() {
            return Ok(());
        }
        let reason = format!("nobody has retrieved {}", token_list(&unclaimed));
        Err(Error::new(Errno::Busy, reason)
            .at(self.session_location(id))
            .advise("retrieve them, or say whether to release or to carry them"))
    }

    /// Refuses with EBUSY to finish a file alone that another one needs to be retrieved.
    fn nobody_waits_for(&self, id: SessionId, token: Token) -> Result<(), Error> {
        let session = self.sessions.get(id)?;
        let mut by = session.incoming_bonds.needed_by(token);
        let waits = |by: &Token| {
            let file = session.incoming.get(by);
            file.is_some_and(|f| matches!(f.arrival, Arrival::Waiting | Arrival::Retrieving))
        };
        match by.find(waits) {
            None => Ok(()),
            Some(by) => Err(Error::new(Errno::Busy, format!("token {by} needs it"))
                .at(self.file_location(id, token, None))
                .advise("retrieve that one first, or finish the session")),
        }
    }

    /// The last check before there is no way back: decides which files are carried on.
    pub(crate) fn commit_to_finish(&mut self, id: TransitionId) {
        let Some(transition) = self.cycle.transitions.get(&id) else { return };
        let (scope, options) = (transition.scope, transition.options);
        match self.choose_carried(scope, options) {
            Err(error) => self.fail(Some(id), error),
            Ok(carried) => {
                for (session, token) in carried {
                    if let Some(file) = self.sessions.incoming(session, token) {
                        file.carry = true;
                    }
                }
                if let Some(transition) = self.cycle.transitions.get_mut(&id) {
                    transition.mode = Mode::Final;
                }
            }
        }
    }

    fn choose_carried(
        &self,
        scope: Scope,
        options: FinishOptions,
    ) -> Result<Vec<(SessionId, Token)>, Error> {
        let mut carried: Vec<(SessionId, Token)> = Vec::new();
        let mut keys: BTreeMap<Key<F>, SessionId> = BTreeMap::new();
        let mut more: BTreeMap<u32, (u64, u64)> = BTreeMap::new();
        for id in self.scope_sessions(scope) {
            let Some(session) = self.sessions.peek(id) else { continue };
            for (token, file) in &session.incoming {
                if matches!(scope, Scope::File(_, only) if only != *token) {
                    continue;
                }
                let wanted = if file.reclaimed {
                    options.carry_reclaimed
                } else {
                    options.unclaimed == UnclaimedFiles::Carry
                };
                let (true, Some(handler), Arrival::Retrieved(there)) =
                    (wanted, file.handler, &file.arrival)
                else {
                    continue;
                };
                let own = self.handlers.get(handler).and_then(|e| e.handler.identity(there));
                let key = Key::of(there, handler, own);
                let token_taken = session.outgoing.contains_key(token);
                // Two descriptors of one description are carried as such.
                let twin = keys.get(&key).is_some_and(|with| !key.is_of_host() || *with != id);
                let elsewhere = twin || self.index.find(&key).is_some();
                if token_taken || elsewhere {
                    // Its owner has given it, or its successor, again: that one goes on.
                    if file.reclaimed {
                        continue;
                    }
                    let (errno, reason) = if token_taken {
                        (Errno::Exist, "another file is preserved under its token by now")
                    } else {
                        (Errno::Busy, "it is preserved under another token by now")
                    };
                    return Err(Error::new(errno, reason)
                        .at(self.file_location(id, *token, file.handler))
                        .advise("release it instead of carrying it"));
                }
                keys.insert(key, id);
                let sum = more.entry(session.owner.uid).or_default();
                *sum = (sum.0 + 1, sum.1.saturating_add(there.pinned()));
                carried.push((id, *token));
            }
        }
        for (uid, (files, bytes)) in more {
            self.ledger.check_files(uid, files, bytes)?;
        }
        Ok(carried)
    }

    /// A file's live update is over.
    pub(crate) fn finished(&mut self, session: SessionId, token: Token) {
        let Some(there) = self.sessions.peek_mut(session) else { return };
        let Some(file) = there.incoming.remove(&token) else { return };
        there.incoming_bonds.remove(token);
        there.pinned = there.pinned.saturating_sub(file.pinned);
        self.forget_incoming(&file);
        self.dirty.files.insert(FileKey { session, side: Side::Incoming, token });
        if file.carry {
            self.carry_on(session, token, file);
        }
    }

    /// What an incoming file that has been taken out of its session leaves elsewhere.
    pub(crate) fn forget_incoming(&mut self, file: &Arrived<F>) {
        if let Some(entry) = file.handler.and_then(|handler| self.handlers.get_mut(handler)) {
            entry.uses = entry.uses.saturating_sub(1);
            if file.holds_shared
                && let Some(shared) = &mut entry.shared
            {
                shared.incoming = shared.incoming.saturating_sub(1);
            }
        }
    }

    /// A finished file becomes an outgoing one; `choose_carried` has made sure that it can.
    fn carry_on(&mut self, session: SessionId, token: Token, arrived: Arrived<F>) {
        let (Some(handler), Arrival::Retrieved(file)) = (arrived.handler, arrived.arrival) else {
            return;
        };
        // What came through another carrier may have come by another handler.
        let handler = self.handlers.choose(&file, self.caps()).unwrap_or(handler);
        let Some(entry) = self.handlers.get_mut(handler) else { return };
        let own_identity = entry.handler.identity(&file);
        let key = Key::of(&file, handler, own_identity);
        let Some(there) = self.sessions.peek_mut(session) else { return };
        let vacancy = match self.index.vacancy(key) {
            Ok(vacancy) => vacancy,
            Err((_, original)) => {
                // The other descriptor of the same description has been carried on before.
                self.ledger.add_file(there.owner.uid, 0);
                let Some(handler) = self.handlers.find(DUPLICATE_COMPATIBLE) else { return };
                let criticality = arrived.criticality;
                self.insert_duplicate(session, token, original, file, handler, criticality);
                return;
            }
        };
        vacancy.insert((session, token));
        entry.uses += 1;
        let outgoing = Outgoing::registered(
            file,
            handler,
            entry.compatible.clone(),
            own_identity,
            arrived.criticality,
        );
        let pinned = outgoing.pinned;
        self.ledger.add_file(there.owner.uid, pinned);
        there.pinned = there.pinned.saturating_add(pinned);
        there.insert_outgoing(token, outgoing);
        self.dirty.files.insert(FileKey { session, side: Side::Outgoing, token });
    }
}
