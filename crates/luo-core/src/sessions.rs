//! Making, finding, keeping and removing sessions.
//!
//! Invariants: a session is removed only when nothing of it is kept by the carrier; what it used
//! of its owner's limits is given back with it.

use alloc::{format, vec::Vec};

use crate::{
    Compatible, Errno, Error, Event, File, FileInfo, FileKey, FinishOptions, Incoming, OnClose,
    Orchestrator, Owner, Policy, Scope, SessionId, SessionInfo, SessionName, Side, State, Status,
    Token, TransitionId, UnclaimedFiles,
    cycle::{FileStep, Mode, SharedStage, Stage, Transition, Undo},
    table::{Arrival, Arrived, Outgoing, Session},
};

impl<F: File> Orchestrator<F> {
    /// Makes a session.
    ///
    /// # Errors
    /// EEXIST where the name is taken, EINVAL or ENAMETOOLONG where it is no such name, ENOSPC over
    /// the limit, EBUSY outside `normal` and `updated` or in a transition of the machine.
    pub fn create_session(
        &mut self,
        name: &str,
        owner: Owner,
        policy: Policy,
    ) -> Result<SessionId, Error> {
        let name = SessionName::new(name).map_err(Error::refused)?;
        self.machine_at_rest("create a session")?;
        self.sessions.check_name(&name)?;
        self.ledger.check_session(owner.uid)?;
        let id = self.sessions.insert(Session::new(name, owner, policy))?;
        self.ledger.add_session(owner.uid);
        self.dirty.sessions.insert(id);
        self.dirty.machine = true;
        Ok(id)
    }

    /// Removes a session with which no call is needed any more: its files are dropped.
    ///
    /// # Errors
    /// ENOENT; EBUSY while something of it is prepared, frozen, incoming or in flight: use
    /// [`release_session`](Self::release_session).
    pub fn remove_session(&mut self, session: SessionId) -> Result<(), Error> {
        self.session_idle(session)?;
        let there = self.sessions.get(session)?;
        let busy = !there.incoming.is_empty()
            || there.state != State::Normal
            || there.outgoing.values().any(|file| !file.at_rest());
        if busy {
            let reason = "files of the session are prepared, frozen or not finished";
            return Err(Error::new(Errno::Busy, reason)
                .at(self.session_location(session))
                .advise("release the session instead"));
        }
        self.drop_session(session);
        Ok(())
    }

    /// Refuses with EBUSY while a transition has to do with the session.
    pub(crate) fn session_idle(&self, id: SessionId) -> Result<(), Error> {
        let session = self.sessions.get(id)?;
        let whose = if self.cycle.machine.is_some() {
            "the machine"
        } else if session.transition.is_some() {
            "the session"
        } else if session.file_transitions > 0 {
            "a file of the session"
        } else {
            return Ok(());
        };
        Err(Error::new(Errno::Busy, format!("a transition of {whose} is going on"))
            .at(self.session_location(id))
            .advise("try again when it has ended"))
    }

    /// Takes a session out with everything that is left in it.
    pub(crate) fn drop_session(&mut self, id: SessionId) {
        let tokens: Vec<Token> =
            self.sessions.peek(id).into_iter().flat_map(|s| s.outgoing.keys().copied()).collect();
        for token in tokens {
            self.let_go(id, token);
        }
        let Some(session) = self.sessions.remove(id) else { return };
        for (token, file) in session.outgoing {
            self.forget_outgoing(id, token, &file, session.owner.uid);
        }
        for (token, file) in session.incoming {
            self.forget_incoming(&file);
            self.dirty.files.insert(FileKey { session: id, side: Side::Incoming, token });
        }
        self.ledger.remove_session(session.owner.uid);
        self.dirty.sessions.insert(id);
    }

    /// What an outgoing file that has been taken out of its session leaves elsewhere.
    pub(crate) fn forget_outgoing(
        &mut self,
        session: SessionId,
        token: Token,
        file: &Outgoing<F>,
        uid: u32,
    ) {
        if let Some(handler) = file.handler {
            let key = crate::identity::Key::of(&file.file, handler, file.own_identity);
            if self.index.find(&key) == Some((session, token)) {
                self.index.remove(&key);
            }
            if let Some(entry) = self.handlers.get_mut(handler) {
                entry.uses = entry.uses.saturating_sub(1);
            }
        }
        self.ledger.remove_file(uid, file.pinned);
        self.dirty.files.insert(FileKey { session, side: Side::Outgoing, token });
    }

    /// Gives a session up, whatever state it is in: cancels what is prepared or frozen, finishes
    /// what is incoming, and removes it. The report's event is `finish` where it was `updated`,
    /// `cancel` elsewhere. A prepared machine goes on without it.
    ///
    /// # Errors
    /// ENOENT; EBUSY while the machine is frozen or in transition, or something of the session is
    /// in flight. In the report: EBUSY where `can_finish` of a file says no.
    pub fn release_session(&mut self, session: SessionId) -> Result<TransitionId, Error> {
        self.session_idle(session)?;
        if self.state == State::Frozen {
            let reason = "the machine is frozen: nothing may change any more";
            return Err(Error::new(Errno::Busy, reason)
                .at(self.session_location(session))
                .advise("cancel the update first"));
        }
        self.nothing_in_flight(session)?;
        let updated = self.sessions.get(session)?.state == State::Updated;
        let event = if updated { Event::Finish } else { Event::Cancel };
        let mut transition = Transition::new(Scope::Session(session), event);
        transition.remove = true;
        transition.undo_all = true;
        if updated {
            transition.options =
                FinishOptions { unclaimed: UnclaimedFiles::Release, carry_reclaimed: false };
            transition.mode = Mode::Forward;
            transition.stages.extend([
                Stage::Files(FileStep::CanFinish),
                Stage::CommitToFinish,
                Stage::Files(FileStep::Finish),
            ]);
        }
        transition.stages.extend([Stage::CancelFiles(Undo::All), Stage::Shared(SharedStage::Drop)]);
        Ok(self.launch(transition))
    }

    /// Refuses with EBUSY while a call of a file of the session is in flight or late.
    pub(crate) fn nothing_in_flight(&self, id: SessionId) -> Result<(), Error> {
        let session = self.sessions.get(id)?;
        let outgoing = session.outgoing.iter().find(|(_, f)| f.call.is_some() || f.doomed);
        let incoming = session.incoming.iter().find(|(_, f)| f.busy());
        let busy = outgoing
            .map(|(token, file)| (*token, file.handler))
            .or(incoming.map(|(token, file)| (*token, file.handler)));
        match busy {
            None => Ok(()),
            Some((token, handler)) => {
                Err(Error::new(Errno::Busy, "a call for the file has not returned")
                    .at(self.file_location(id, token, handler))
                    .advise("try again when it has"))
            }
        }
    }

    /// Changes how a session is kept.
    ///
    /// # Errors
    /// ENOENT.
    pub fn set_policy(&mut self, session: SessionId, policy: Policy) -> Result<(), Error> {
        self.sessions.get_mut(session)?.policy = policy;
        self.dirty.sessions.insert(session);
        Ok(())
    }

    /// The session of that name.
    #[must_use]
    pub fn session_by_name(&self, name: &str) -> Option<SessionId> {
        self.sessions.by_name(name)
    }

    /// A session as it stands.
    #[must_use]
    pub fn session(&self, session: SessionId) -> Option<SessionInfo> {
        self.sessions.peek(session).map(|there| self.session_info(session, there))
    }

    fn session_info(&self, id: SessionId, session: &Session<F>) -> SessionInfo {
        let transition = session.transition.and_then(|id| self.cycle.transitions.get(&id));
        SessionInfo {
            id,
            name: session.name.clone(),
            owner: session.owner,
            policy: session.policy,
            status: Status {
                state: session.state,
                transition: transition.map(|transition| transition.event),
                undoing: transition.is_some_and(|transition| transition.mode == Mode::Undo),
                departed: false,
            },
            outgoing: session.outgoing.len(),
            incoming: session.incoming.len(),
            pinned: session.pinned,
            unclaimed: session.unclaimed,
            expires: session.expires,
        }
    }

    /// All sessions, by id.
    pub fn sessions(&self) -> impl Iterator<Item = SessionInfo> + '_ {
        self.sessions.iter().map(|(id, session)| self.session_info(id, session))
    }

    /// The files of a session, by side and token. Empty where there is no such session.
    pub fn files(&self, session: SessionId) -> impl Iterator<Item = FileInfo> + '_ {
        self.files_after(session, None)
    }

    /// As [`files`](Self::files), from the one that comes after `last` on, whether that one is still
    /// there or not: so a long list can be read in parts, each found in O(log n).
    pub fn files_after(
        &self,
        session: SessionId,
        last: Option<(Side, Token)>,
    ) -> impl Iterator<Item = FileInfo> + '_ {
        use core::ops::Bound::{Excluded, Unbounded};
        self.sessions.peek(session).into_iter().flat_map(move |session| {
            let (outgoing_from, incoming_from) = match last {
                None => (Some(Unbounded), Unbounded),
                Some((Side::Outgoing, token)) => (Some(Excluded(token)), Unbounded),
                Some((Side::Incoming, token)) => (None, Excluded(token)),
            };
            let before = outgoing_from
                .into_iter()
                .flat_map(|from| session.outgoing.range((from, Unbounded)))
                .map(|(token, file)| outgoing(*token, file));
            let after = session.incoming.range((incoming_from, Unbounded));
            before.chain(after.map(|(token, file)| incoming(*token, file)))
        })
    }

    /// One file as it stands.
    #[must_use]
    pub fn file(&self, key: FileKey) -> Option<FileInfo> {
        let session = self.sessions.peek(key.session)?;
        match key.side {
            Side::Outgoing => session.outgoing.get(&key.token).map(|f| outgoing(key.token, f)),
            Side::Incoming => session.incoming.get(&key.token).map(|f| incoming(key.token, f)),
        }
    }

    /// Whether there is such a file.
    #[must_use]
    pub fn has_file(&self, key: FileKey) -> bool {
        self.sessions.peek(key.session).is_some_and(|session| match key.side {
            Side::Outgoing => session.outgoing.contains_key(&key.token),
            Side::Incoming => session.incoming.contains_key(&key.token),
        })
    }

    /// Another reference to a file that is held here: an outgoing one, or one retrieved.
    #[must_use]
    pub fn file_ref(&self, key: FileKey) -> Option<F> {
        let session = self.sessions.peek(key.session)?;
        match key.side {
            Side::Outgoing => session.outgoing.get(&key.token).map(|file| file.file.clone()),
            Side::Incoming => match &session.incoming.get(&key.token)?.arrival {
                Arrival::Retrieved(file) => Some(file.clone()),
                _ => None,
            },
        }
    }

    /// The owner has gone, at `now` in the driver's seconds: the session is unclaimed, and expires
    /// as its policy says. What to do with [`OnClose::Release`] is up to the driver.
    ///
    /// # Errors
    /// ENOENT.
    pub fn owner_gone(&mut self, session: SessionId, now_seconds: u64) -> Result<(), Error> {
        let there = self.sessions.get_mut(session)?;
        there.unclaimed = true;
        let expires = match there.policy.on_close {
            OnClose::Keep { ttl_seconds: Some(ttl) } => Some(now_seconds.saturating_add(ttl)),
            OnClose::Keep { ttl_seconds: None } | OnClose::Release => None,
        };
        self.sessions.set_expiry(session, expires);
        self.dirty.sessions.insert(session);
        Ok(())
    }

    /// Somebody has claimed the session. What the owner before had retrieved has gone with it, so
    /// that nothing counts as reclaimed.
    ///
    /// # Errors
    /// ENOENT.
    pub fn owner_back(&mut self, session: SessionId) -> Result<(), Error> {
        let there = self.sessions.get_mut(session)?;
        there.unclaimed = false;
        for (token, file) in &mut there.incoming {
            if core::mem::take(&mut file.reclaimed) {
                let key = FileKey { session, side: Side::Incoming, token: *token };
                self.dirty.files.insert(key);
            }
        }
        self.sessions.set_expiry(session, None);
        self.dirty.sessions.insert(session);
        Ok(())
    }

    /// Unclaimed sessions whose time limit has passed at `now`, the longest overdue first.
    #[must_use]
    pub fn expired(&self, now_seconds: u64) -> Vec<SessionId> {
        self.sessions.expired(now_seconds)
    }

    /// When the next unclaimed session expires, in the driver's seconds.
    #[must_use]
    pub fn next_expiry(&self) -> Option<u64> {
        self.sessions.next_expiry()
    }

    /// Bytes that stay in use because of all sessions.
    #[must_use]
    pub fn pinned(&self) -> u64 {
        self.sessions.iter().fold(0, |sum, (_, session)| sum.saturating_add(session.pinned))
    }
}

fn outgoing<F>(token: Token, file: &Outgoing<F>) -> FileInfo {
    FileInfo {
        token,
        side: Side::Outgoing,
        compatible: Compatible::clone(&file.compatible),
        criticality: file.criticality,
        state: file.state,
        incoming: None,
        reclaimed: false,
        left_out: file.left_out.clone(),
        pinned: file.pinned,
    }
}

fn incoming<F>(token: Token, file: &Arrived<F>) -> FileInfo {
    FileInfo {
        token,
        side: Side::Incoming,
        compatible: Compatible::clone(&file.compatible),
        criticality: file.criticality,
        state: State::Updated,
        incoming: Some(match &file.arrival {
            Arrival::Waiting => Incoming::Waiting,
            Arrival::Retrieving => Incoming::Retrieving,
            Arrival::Retrieved(_) => Incoming::Retrieved,
            Arrival::Failed { error, .. } => Incoming::Failed(error.clone()),
        }),
        reclaimed: file.reclaimed,
        left_out: None,
        pinned: file.pinned,
    }
}
