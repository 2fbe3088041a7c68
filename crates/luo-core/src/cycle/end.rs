//! The end of a transition: the state it leads to, and its report.
//!
//! Invariants: this is the only place where the state of the machine or of a session changes,
//! apart from restoring it; a session is `normal` exactly when nothing of its own level or above
//! is prepared in it.

use alloc::vec::Vec;

use crate::{
    Event, File, FileKey, Level, Notice, Orchestrator, Report, Scope, SessionId, Side, State,
    Token, TransitionId, cycle::Transition,
};

impl<F: File> Orchestrator<F> {
    /// Ends a transition whose last stage is done.
    pub(crate) fn end(&mut self, id: TransitionId) {
        let Some(mut transition) = self.cycle.transitions.remove(&id) else { return };
        if self.cycle.machine == Some(id) {
            self.cycle.machine = None;
        }
        self.mark(transition.scope, None);
        let mut removed = false;
        let state = match transition.scope {
            Scope::Machine => {
                self.end_machine(&transition);
                self.state
            }
            Scope::Session(session) => {
                self.end_session(session, &transition);
                if transition.remove && transition.failure.is_none() {
                    // What is late is still being undone: the session stays until that is over.
                    match self.nothing_in_flight(session) {
                        Ok(()) => {
                            self.drop_session(session);
                            removed = true;
                        }
                        Err(error) => transition.failure = Some(error),
                    }
                }
                self.sessions.peek(session).map_or(State::Normal, |session| session.state)
            }
            Scope::File(session, token) => self.file_state(session, token, &transition),
        };
        self.touch(transition.scope);
        self.notices.push_back(Notice::Ended(Report {
            id,
            scope: transition.scope,
            event: transition.event,
            state,
            result: transition.failure.map_or(Ok(()), Err),
            left_out: transition.left_out,
            removed,
        }));
        self.remove_gone();
    }

    fn file_state(&self, session: SessionId, token: Token, transition: &Transition) -> State {
        let there = self.sessions.peek(session);
        match transition.event {
            Event::Finish if transition.failure.is_some() => State::Updated,
            Event::Finish => State::Normal,
            _ => there.and_then(|s| s.outgoing.get(&token)).map_or(State::Normal, |f| f.state),
        }
    }

    fn end_machine(&mut self, transition: &Transition) {
        let ok = transition.failure.is_none();
        let undone = match transition.event {
            Event::Prepare | Event::Freeze => !ok,
            Event::Cancel => !transition.stuck,
            Event::Depart => !ok && transition.undo_all && !transition.stuck,
            Event::Arrive | Event::Finish => false,
        };
        if undone {
            self.state = State::Normal;
            self.sessions_to(State::Normal, |session_level, state| {
                matches!(state, State::Prepared | State::Frozen)
                    && (transition.undo_all || session_level == Level::Machine)
            });
            if let Some(files) = self.files_sub() {
                files.state = State::Normal;
                files.data = 0;
            }
            self.come_near();
            return;
        }
        if !ok {
            if transition.event == Event::Arrive && self.state == State::Normal {
                self.come_near();
            }
            return;
        }
        match transition.event {
            Event::Prepare => {
                self.state = State::Prepared;
                self.sessions_to(State::Prepared, |_, state| state == State::Normal);
                if let Some(files) = self.files_sub() {
                    files.state = State::Prepared;
                }
            }
            Event::Freeze => {
                self.state = State::Frozen;
                self.sessions_to(State::Frozen, |_, state| state == State::Prepared);
            }
            Event::Arrive if transition.found => self.state = State::Updated,
            Event::Arrive => self.come_near(),
            Event::Finish => {
                self.state = State::Normal;
                self.boot.clear();
                self.come_near();
                self.sessions_to(State::Normal, |_, state| state == State::Updated);
            }
            Event::Depart | Event::Cancel => {}
        }
    }

    /// Moves the sessions that `which` picks along with the machine.
    fn sessions_to(&mut self, state: State, which: impl Fn(Level, State) -> bool) {
        for (id, session) in self.sessions.iter_mut() {
            if which(session.level, session.state) {
                session.state = state;
                session.level = Level::Machine;
                self.dirty.sessions.insert(id);
            }
        }
    }

    fn end_session(&mut self, id: SessionId, transition: &Transition) {
        let ok = transition.failure.is_none();
        let state = match (transition.event, ok) {
            (Event::Prepare, true) => State::Prepared,
            (Event::Freeze | Event::Depart, true) => State::Frozen,
            (Event::Arrive, true) => {
                self.session_arrived(id);
                State::Updated
            }
            (Event::Finish, false) => State::Updated,
            _ => State::Normal,
        };
        if let Some(session) = self.sessions.peek_mut(id) {
            session.state = state;
            session.level = Level::Session;
        }
    }

    /// A session alone has arrived: what was frozen waits to be retrieved, and what was left out
    /// is known to have been.
    fn session_arrived(&mut self, id: SessionId) {
        let Some(session) = self.sessions.peek(id) else { return };
        let moving: Vec<Token> = session
            .outgoing
            .iter()
            .filter(|(_, f)| {
                f.call.is_none()
                    && !f.doomed
                    && (f.state == State::Frozen
                        || (f.state == State::Normal && f.left_out.is_some()))
            })
            .map(|(token, _)| *token)
            .collect();
        for token in moving {
            self.file_arrived(id, token);
            self.dirty.files.insert(FileKey { session: id, side: Side::Incoming, token });
        }
    }
}
