//! Which carrier the machine's update goes through, and which handler takes each file there.
//!
//! The first carrier is the *near* one: it takes what does not leave this system, the restart of a
//! service or of the agent. An update of the machine may go through another one, which reaches
//! farther and may keep less: then each file is asked for again, and may get another handler until
//! the update is cancelled or over.
//!
//! Invariants:
//! - Everything but an update of the machine goes through the near carrier.
//! - A file's handler is one that finds what it needs in the file's carrier. A file that has no
//!   such handler keeps the one it had, and fails when its turn comes.
//! - What is prepared or frozen is never given another handler.

use alloc::{format, vec::Vec};

use crate::{
    Caps, CarrierId, Errno, Error, Event, File, FileKey, Orchestrator, Phase, Scope, SessionId,
    Side, State, Token, TransitionId, cycle::Transition, identity::Key, registry::HandlerId,
};

impl<F: File> Orchestrator<F> {
    /// Adds a carrier that an update of the machine can go through.
    ///
    /// # Errors
    /// ENOSPC where there are 255 already.
    pub fn add_carrier(&mut self, caps: Caps) -> Result<CarrierId, Error> {
        let id = u8::try_from(self.carriers.len()).map_err(|_| {
            Error::new(Errno::NoSpc, "more carriers were added than can be numbered")
        })?;
        self.carriers.push(caps);
        Ok(CarrierId(id))
    }

    /// The carrier that the machine's update goes through; the near one where there is none.
    #[must_use]
    pub fn carrier(&self) -> CarrierId {
        self.carrier
    }

    /// As [`begin`](Self::begin) of the machine's `prepare`, or of its `arrive`, through this
    /// carrier. What follows (`freeze`, `depart`, `cancel`, `finish`) goes the same way.
    ///
    /// # Errors
    /// As `begin`; ENOENT where there is no such carrier; EINVAL for any other event; EBUSY where
    /// a session or file is ahead of the machine, because what it keeps is in the near carrier.
    pub fn begin_through(
        &mut self,
        event: Event,
        carrier: CarrierId,
    ) -> Result<TransitionId, Error> {
        if !matches!(event, Event::Prepare | Event::Arrive) {
            let reason = format!("{event} goes through the carrier that prepare went through");
            return Err(Error::new(Errno::Inval, reason));
        }
        if self.caps_of(carrier).is_none() {
            return Err(Error::new(Errno::NoEnt, "there is no such carrier"));
        }
        self.may_begin(Scope::Machine, event)?;
        if event == Event::Prepare && carrier != CarrierId::NEAR {
            self.nobody_ahead()?;
        }
        self.carrier = carrier;
        if event == Event::Prepare && carrier != CarrierId::NEAR {
            self.choose_all(carrier);
        }
        let mut transition = Transition::new(Scope::Machine, event);
        transition.stages = self.plan(Scope::Machine, event);
        Ok(self.launch(transition))
    }

    /// What a carrier can do.
    pub(crate) fn caps_of(&self, carrier: CarrierId) -> Option<Caps> {
        self.carriers.get(usize::from(carrier.0)).copied()
    }

    fn nobody_ahead(&self) -> Result<(), Error> {
        for (id, session) in self.sessions.iter() {
            let ahead = session.outgoing.iter().find(|(_, file)| !file.at_rest());
            if let Some((token, file)) = ahead {
                let reason = "the file is ahead of the machine, in another carrier";
                return Err(Error::new(Errno::Busy, reason)
                    .at(self.file_location(id, *token, file.handler))
                    .advise("let its update end, or cancel it"));
            }
        }
        Ok(())
    }

    /// Gives every file that is at rest the handler that takes it through `carrier`.
    pub(crate) fn choose_all(&mut self, carrier: CarrierId) {
        let places: Vec<(SessionId, Token)> = self
            .sessions
            .iter()
            .flat_map(|(id, session)| {
                let moving = session.outgoing.iter().filter(|(_, file)| file.carrier != carrier);
                moving.map(move |(token, _)| (id, *token))
            })
            .collect();
        for (session, token) in places {
            self.choose_one(session, token, carrier);
        }
    }

    /// Gives a file at rest the handler that takes it through `carrier`; the one it had where
    /// there is none.
    pub(crate) fn choose_one(&mut self, session: SessionId, token: Token, carrier: CarrierId) {
        let Some(caps) = self.caps_of(carrier) else { return };
        let Some(file) = self.sessions.outgoing(session, token) else { return };
        if file.state != State::Normal || file.call.is_some() || file.doomed || file.holds_shared {
            return;
        }
        let Some(old) = file.handler else { return };
        file.carrier = carrier;
        if file.original.is_some() {
            // Wherever its original goes, a duplicate is one.
            return;
        }
        let Ok(new) = self.handlers.choose(&file.file, caps) else { return };
        if new != old {
            self.change_handler(session, token, old, new);
        }
    }

    fn change_handler(&mut self, session: SessionId, token: Token, old: HandlerId, new: HandlerId) {
        let Some(file) = self.sessions.outgoing(session, token) else { return };
        let Some(entry) = self.handlers.get(new) else { return };
        let own_identity = entry.handler.identity(&file.file);
        if own_identity.is_some() || file.own_identity.is_some() {
            let key = Key::of(&file.file, new, own_identity);
            let before = Key::of(&file.file, old, file.own_identity);
            match self.index.vacancy(key) {
                Ok(vacancy) => {
                    vacancy.insert((session, token));
                }
                // Two files are one to that handler: this one keeps what it has.
                Err(_) => return,
            }
            self.index.remove(&before);
        }
        file.handler = Some(new);
        file.compatible = entry.compatible.clone();
        file.own_identity = own_identity;
        if let Some(entry) = self.handlers.get_mut(old) {
            entry.uses = entry.uses.saturating_sub(1);
        }
        if let Some(entry) = self.handlers.get_mut(new) {
            entry.uses += 1;
        }
        self.dirty.files.insert(FileKey { session, side: Side::Outgoing, token });
    }

    /// Why a file cannot be prepared through its carrier, where its handler does not find there
    /// what it needs.
    pub(crate) fn out_of_reach(&self, session: SessionId, token: Token) -> Option<Error> {
        let file = self.sessions.peek(session)?.outgoing.get(&token)?;
        let (handler, caps) = (file.handler?, self.caps_of(file.carrier)?);
        if caps.contains(self.handlers.get(handler)?.handler.requires()) {
            return None;
        }
        let error = self.handlers.choose(&file.file, caps).err()?;
        let location = self.file_location(session, token, None);
        Some(
            error
                .in_phase(Phase::Prepare)
                .at(location)
                .advise("make it optional, take it out, or choose another carrier"),
        )
    }

    /// The machine's update is over: everything goes through the near carrier again.
    pub(crate) fn come_near(&mut self) {
        if self.carrier != CarrierId::NEAR {
            self.choose_all(CarrierId::NEAR);
            self.carrier = CarrierId::NEAR;
        }
    }
}
