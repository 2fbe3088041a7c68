//! Which event may begin where.
//!
//! Invariants: an event ahead of the machine, or of a session, is legal only where that is at rest;
//! so there is never a session that is behind a prepared machine.

use alloc::format;

use crate::{
    Errno, Error, Event, File, FinishOptions, Orchestrator, Scope, SessionId, State, Token,
    TransitionId,
    cycle::{Mode, Transition},
    table::no_token,
};

fn busy(reason: alloc::string::String) -> Error {
    Error::new(Errno::Busy, reason)
}

/// The refusal of an event that the state does not allow.
fn not_from(what: &str, state: State, event: Event) -> Error {
    let advice = match (state, event) {
        (State::Updated, Event::Prepare | Event::Freeze | Event::Depart) => {
            Some("finish the last update first")
        }
        (State::Normal, Event::Freeze) => Some("prepare it first"),
        (State::Normal | State::Prepared, Event::Depart) => Some("freeze it first"),
        (State::Prepared | State::Frozen, Event::Prepare | Event::Arrive | Event::Finish) => {
            Some("cancel the update that is under way first")
        }
        _ => None,
    };
    let error = busy(format!("{what} is {state}, which {event} cannot start from"));
    match advice {
        Some(advice) => error.advise(advice),
        None => error,
    }
}

impl<F: File> Orchestrator<F> {
    /// Begins a transition. Its calls come from [`next_call`](Self::next_call), its end is a
    /// [`Notice::Ended`](crate::Notice::Ended). `cancel` of a scope whose transition is going on
    /// stops and undoes that one, and gives its id.
    ///
    /// An event of a session or file alone needs everything above it to be `normal` or `updated`.
    /// [`Event::Depart`] of a session runs what is left of `prepare` and `freeze`;
    /// [`Event::Arrive`] of it then makes its files incoming ones.
    ///
    /// # Errors
    /// EBUSY where the state does not allow it or another transition is in the way; ENOENT no such
    /// session or file; EINVAL where the event makes no sense for the scope.
    pub fn begin(&mut self, scope: Scope, event: Event) -> Result<TransitionId, Error> {
        if event == Event::Finish {
            return self.finish(scope, FinishOptions::default());
        }
        if event == Event::Cancel
            && let Some(running) = self.running(scope)?
        {
            return self.interrupt(running);
        }
        self.may_begin(scope, event)?;
        let mut transition = Transition::new(scope, event);
        transition.stages = self.plan(scope, event);
        Ok(self.launch(transition))
    }

    /// The transition of exactly this scope.
    fn running(&self, scope: Scope) -> Result<Option<TransitionId>, Error> {
        Ok(match scope {
            Scope::Machine => self.cycle.machine,
            Scope::Session(session) => self.sessions.get(session)?.transition,
            Scope::File(session, token) => {
                let there = self.sessions.get(session)?;
                let outgoing = there.outgoing.get(&token).and_then(|file| file.transition);
                let incoming = there.incoming.get(&token).and_then(|file| file.transition);
                outgoing.or(incoming)
            }
        })
    }

    /// Whether the event may begin now.
    pub(crate) fn may_begin(&self, scope: Scope, event: Event) -> Result<(), Error> {
        if let Scope::Session(session) | Scope::File(session, _) = scope {
            self.sessions.get(session)?;
        }
        if let Some(running) = self.cycle.machine.and_then(|id| self.cycle.transitions.get(&id)) {
            return Err(busy(format!("{} of the machine is going on", running.event))
                .advise("wait until it has ended, or cancel it"));
        }
        match scope {
            Scope::Machine => self.may_begin_machine(event),
            Scope::Session(session) => {
                self.above_at_rest(event, None)?;
                self.may_begin_session(session, event)
            }
            Scope::File(session, token) => {
                self.above_at_rest(event, Some(session))?;
                self.may_begin_file(session, token, event)
            }
        }
    }

    fn may_begin_machine(&self, event: Event) -> Result<(), Error> {
        if let Some(running) = self.cycle.transitions.values().next() {
            let whose = match running.scope {
                Scope::Session(session) | Scope::File(session, _) => self.session_location(session),
                Scope::Machine => crate::Location::default(),
            };
            return Err(busy(format!("{} of this one is going on", running.event))
                .at(whose)
                .advise("try again when it has ended"));
        }
        self.state.after(event).map_err(|_| not_from("the machine", self.state, event))?;
        match event {
            Event::Prepare => {
                let updated = self.sessions.iter().find(|(_, s)| s.state == State::Updated);
                if let Some((id, _)) = updated {
                    return Err(busy("the session is updated and not finished".into())
                        .at(self.session_location(id))
                        .advise("finish or release it first"));
                }
                self.no_subsystem_busy()
            }
            Event::Depart if self.departed => Err(busy("the handover is already committed".into())
                .advise("go on to the other side, or cancel")),
            Event::Depart => self.handover_not_busy(),
            Event::Arrive if !self.sessions.is_empty() => {
                Err(busy("there are sessions here already".into())
                    .advise("arrive before any session is made"))
            }
            Event::Finish => self.no_subsystem_busy(),
            _ => Ok(()),
        }
    }

    /// A subsystem whose late call has not returned keeps a new update from beginning only if it
    /// is a boot: everything else fails when its turn comes.
    fn no_subsystem_busy(&self) -> Result<(), Error> {
        match self.booting() {
            Some(sub) => Err(busy("it is still taking its boot data".into())
                .at(sub.location())
                .advise("try again when it has")),
            None => Ok(()),
        }
    }

    /// Whether a subsystem is still taking its boot data: until it has, nothing can be finished.
    #[must_use]
    pub fn is_booting(&self) -> bool {
        self.booting().is_some()
    }

    fn booting(&self) -> Option<&crate::subsystems::Sub<F>> {
        let booting = |sub: &&crate::subsystems::Sub<F>| {
            sub.call.is_some() && !sub.doomed && self.state == State::Updated
        };
        self.subsystems.iter().find(booting)
    }

    fn handover_not_busy(&self) -> Result<(), Error> {
        let flying = self.cycle.in_flight.values().map(|flight| flight.job);
        let mut jobs = flying.chain(self.cycle.queue.iter().copied());
        if jobs.any(|job| matches!(job.unit, crate::cycle::Unit::Handover(_))) {
            return Err(busy("an earlier commit of the handover has not returned".into())
                .advise("try again when it has"));
        }
        Ok(())
    }

    /// What is above the scope must be at rest for an event ahead of it.
    fn above_at_rest(&self, event: Event, session: Option<SessionId>) -> Result<(), Error> {
        if matches!(self.state, State::Prepared | State::Frozen) {
            let advice = "cancel the machine's update first";
            return Err(busy(format!("the machine is {}: no {event} ahead of it", self.state))
                .advise(advice));
        }
        let Some(id) = session else { return Ok(()) };
        let there = self.sessions.get(id)?;
        if there.transition.is_some() || matches!(there.state, State::Prepared | State::Frozen) {
            let reason = format!("the session is {}: no {event} ahead of it", there.state);
            return Err(busy(reason)
                .at(self.session_location(id))
                .advise("cancel the session's update first"));
        }
        Ok(())
    }

    fn may_begin_session(&self, id: SessionId, event: Event) -> Result<(), Error> {
        self.session_idle(id)?;
        let session = self.sessions.get(id)?;
        let legal = match event {
            Event::Prepare => session.state == State::Normal,
            Event::Freeze => session.state == State::Prepared,
            Event::Depart => session.state != State::Updated,
            Event::Arrive => session.state == State::Frozen,
            Event::Finish => session.state == State::Updated,
            Event::Cancel => matches!(session.state, State::Prepared | State::Frozen),
        };
        if legal {
            return Ok(());
        }
        Err(not_from("the session", session.state, event).at(self.session_location(id)))
    }

    fn may_begin_file(&self, id: SessionId, token: Token, event: Event) -> Result<(), Error> {
        let session = self.sessions.get(id)?;
        if event == Event::Finish {
            let Some(file) = session.incoming.get(&token) else {
                return Err(no_token(&session.name, token, "incoming"));
            };
            if file.transition.is_some() {
                return Err(busy("a transition of the file is going on".into())
                    .at(self.file_location(id, token, file.handler)));
            }
            return Ok(());
        }
        let Some(file) = session.outgoing.get(&token) else {
            return Err(no_token(&session.name, token, "preserved"));
        };
        let at = self.file_location(id, token, file.handler);
        if file.transition.is_some() {
            return Err(busy("a transition of the file is going on".into()).at(at));
        }
        match event {
            Event::Depart | Event::Arrive => {
                let reason = format!("a file alone does not {event}");
                Err(Error::new(Errno::Inval, reason).at(at).advise("use its session"))
            }
            _ => file
                .state
                .after(event)
                .map(|_| ())
                .map_err(|_| not_from("the file", file.state, event).at(at)),
        }
    }

    /// Takes a transition up and runs it as far as it goes without a call.
    pub(crate) fn launch(&mut self, transition: Transition) -> TransitionId {
        let scope = transition.scope;
        let id = self.cycle.add(transition);
        self.mark(scope, Some(id));
        self.touch(scope);
        self.pump();
        id
    }

    /// Notes at its scope that a transition is going on, or no more.
    pub(crate) fn mark(&mut self, scope: Scope, id: Option<TransitionId>) {
        match scope {
            Scope::Machine => {}
            Scope::Session(session) => {
                if let Some(session) = self.sessions.peek_mut(session) {
                    session.transition = id;
                }
            }
            Scope::File(session, token) => {
                let Some(session) = self.sessions.peek_mut(session) else { return };
                session.file_transitions = match id {
                    Some(_) => session.file_transitions + 1,
                    None => session.file_transitions.saturating_sub(1),
                };
                // The transition is of one side only; where both have the token, it is harmless
                // that the other one waits for it too.
                if let Some(file) = session.outgoing.get_mut(&token) {
                    file.transition = id;
                }
                if let Some(file) = session.incoming.get_mut(&token) {
                    file.transition = id;
                }
            }
        }
    }

    /// The scope's record changes.
    pub(crate) fn touch(&mut self, scope: Scope) {
        match scope {
            Scope::Machine => self.dirty.machine = true,
            Scope::Session(session) | Scope::File(session, _) => {
                self.dirty.sessions.insert(session);
            }
        }
    }

    /// `cancel` in the middle of a transition.
    fn interrupt(&mut self, id: TransitionId) -> Result<TransitionId, Error> {
        let Some(running) = self.cycle.transitions.get_mut(&id) else {
            return Err(Error::new(Errno::NoEnt, "the transition has ended"));
        };
        let event = running.event;
        if running.mode == Mode::Undo || event == Event::Cancel {
            return Err(busy(format!("{event} is being undone already"))
                .advise("wait until that has ended"));
        }
        let too_late = running.mode == Mode::Final
            || (event == Event::Arrive && running.scope == Scope::Machine);
        if too_late {
            return Err(busy(format!("{event} cannot be undone any more"))
                .advise("wait until it has ended"));
        }
        running.undo_all = true;
        let reason = format!("{event} was cancelled");
        self.fail(Some(id), Error::new(Errno::Canceled, reason));
        self.pump();
        Ok(id)
    }

    /// Runs every transition whose stage has ended, as far as it goes without a call.
    pub(crate) fn pump(&mut self) {
        while let Some(id) = self.cycle.wake.pop_front() {
            let Some(transition) = self.cycle.transitions.get_mut(&id) else { continue };
            if transition.pending > 0 {
                continue;
            }
            if transition.failure.is_some() && transition.mode == Mode::Forward {
                transition.mode = Mode::Undo;
                let stages = self.plan_undo(id);
                if let Some(transition) = self.cycle.transitions.get_mut(&id) {
                    transition.stages = stages;
                }
                self.cycle.wake.push_back(id);
                continue;
            }
            match transition.stages.pop_front() {
                Some(stage) => self.expand(id, stage),
                None => self.end(id),
            }
        }
    }
}
