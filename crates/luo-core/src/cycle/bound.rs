//! Files that are bound to each other: which are kept together, and in which order they come back.
//!
//! ```text
//! prepare, freeze   each file for itself, side by side │ what is bound to a file that is not kept
//!                   fails, and what is bound to that: a required one cancels the update, an
//!                   optional one is left out
//! retrieve          what a file needs, side by side │ the file; a failure of the first is its own
//! finish            what nobody needs │ what these need │ …
//! ```
//!
//! Invariants:
//! - A file waits for one other file at a time, and never in a circle: what is in one, or needs more
//!   than [`DEPTH_MAX`] files in a row, is refused in prepare, and where it arrives.
//! - A file that is being retrieved is retrieved by one job; every other job waits for that.

use alloc::{
    collections::{BTreeMap, BTreeSet},
    format,
    vec::Vec,
};

use crate::{
    Bond, Errno, Error, Failure, File, Orchestrator, Phase, Scope, SessionId, Side, State, Token,
    TransitionId,
    bonds::Bonds,
    call::Bound,
    cycle::{FileStep, Job, Mode, Stage, Unit},
    table::Arrival,
};

/// So many files in a row can need each other. Epoll sets in epoll sets end at five.
const DEPTH_MAX: usize = 16;

/// The files of one session that cannot be restored, because of what they need.
fn unorderable(bonds: &Bonds) -> BTreeMap<Token, Failure> {
    let circle = || {
        let reason = "files need each other in a circle, so none of them can be the first";
        Failure::new(Errno::Inval, reason)
    };
    let deep = || {
        let reason = format!("more than {DEPTH_MAX} files in a row need each other");
        Failure::new(Errno::Inval, reason)
    };
    let depths = bonds.depths();
    let circles = bonds.needing().filter(|token| !depths.contains_key(token));
    let circles = circles.map(|token| (token, circle()));
    let deeps = depths.iter().filter(|(_, depth)| **depth > DEPTH_MAX);
    circles.chain(deeps.map(|(token, _)| (*token, deep()))).collect()
}

/// Why a file fails for another's sake.
fn for_want_of(other: Token, error: Option<&Error>) -> Failure {
    match error {
        Some(error) => {
            let reason = format!("it is bound to {other}, which failed: {}", error.reason());
            Failure::new(error.errno(), reason).because(error.clone())
        }
        None => Failure::new(Errno::NoEnt, format!("it is bound to {other}, which is not there")),
    }
}

impl<F: File> Orchestrator<F> {
    // --- Outgoing files.

    /// A call that succeeded has found what its file is bound to, or made other files along.
    pub(crate) fn take_bond(
        &mut self,
        session: SessionId,
        token: Token,
        bond: Bond,
        given: Vec<(Token, F)>,
    ) {
        if !bond.is_empty()
            && let Some(session) = self.sessions.peek_mut(session)
        {
            session.outgoing_bonds.add(token, bond);
        }
        for (sibling, file) in given {
            let waits = self.sessions.incoming(session, sibling).is_some_and(|file| {
                file.call.is_none()
                    && matches!(file.arrival, Arrival::Waiting | Arrival::Retrieving)
            });
            if waits {
                self.retrieved(session, sibling, file, None);
                self.tell_retrieved(session, sibling);
            }
        }
    }

    /// Nothing is kept for an outgoing file any more, so it is bound to nothing; a duplicate stays
    /// one.
    pub(crate) fn unbind(&mut self, session: SessionId, token: Token) {
        let Some(there) = self.sessions.peek_mut(session) else { return };
        let original = there.outgoing.get(&token).and_then(|file| file.original);
        let needs = original.into_iter().collect();
        there.outgoing_bonds.set(token, Bond { needs, with: Vec::new() });
    }

    /// After all files were prepared or frozen: fails those that would be kept without a file that
    /// they are bound to.
    pub(crate) fn keep_together(&mut self, id: TransitionId, scope: Scope, step: FileStep) {
        for session in self.scope_sessions(scope) {
            for (token, failure) in self.torn_apart(session, scope, step) {
                let Some(transition) = self.cycle.transitions.get_mut(&id) else { return };
                if transition.failure.is_some() {
                    return;
                }
                transition.pending += 1;
                let job = Job { owner: Some(id), unit: Unit::File(session, token, step) };
                let handler = self.sessions.outgoing(session, token).and_then(|f| f.handler);
                let location = self.file_location(session, token, handler);
                let phase = if step == FileStep::Freeze { Phase::Freeze } else { Phase::Prepare };
                let error = Error::from_failure(failure, phase, location)
                    .advise("preserve both in one session, or make both optional");
                self.keep_failed(job, session, token, error);
            }
        }
    }

    /// The files of a session that would be kept without one that they are bound to, causes first.
    fn torn_apart(&self, id: SessionId, scope: Scope, step: FileStep) -> Vec<(Token, Failure)> {
        let Some(session) = self.sessions.peek(id) else { return Vec::new() };
        let bonds = &session.outgoing_bonds;
        let mut torn: Vec<(Token, Failure)> = Vec::new();
        if bonds.is_empty() {
            return torn;
        }
        let kept = |token: Token| {
            session.outgoing.get(&token).is_some_and(|file| {
                let state = if step == FileStep::Freeze {
                    file.state == State::Frozen
                } else {
                    file.state != State::Normal
                };
                state && !file.doomed
            })
        };
        let at_stake = |token: Token| Self::in_scope(scope, token) && kept(token);
        let mut gone: BTreeSet<Token> = BTreeSet::new();
        let mut fail = |token: Token, failure, torn: &mut Vec<_>| {
            if at_stake(token) && gone.insert(token) {
                torn.push((token, failure));
            }
        };
        for (token, failure) in unorderable(bonds) {
            fail(token, failure, &mut torn);
        }
        for (token, bond) in bonds.iter() {
            if let Some(other) = bond.tokens().find(|other| !kept(*other)) {
                let why = session.outgoing.get(&other).and_then(|file| file.left_out.as_ref());
                fail(token, for_want_of(other, why), &mut torn);
            }
        }
        let mut next = 0;
        while let Some((token, failure)) = torn.get(next) {
            let (token, errno) = (*token, failure.errno());
            let reason = format!("it is bound to {token}, which failed: {}", failure.reason());
            for by in bonds.bound_to(token) {
                fail(by, Failure::new(errno, reason.as_str()), &mut torn);
            }
            next += 1;
        }
        torn
    }

    // --- Incoming files.

    /// Fails the incoming files of a session that would wait for each other for ever.
    pub(crate) fn refuse_circles(&mut self, session: SessionId) {
        let Some(there) = self.sessions.peek(session) else { return };
        if there.incoming_bonds.is_empty() {
            return;
        }
        for (token, failure) in unorderable(&there.incoming_bonds) {
            let location = self.file_location(session, token, None);
            let Some(file) = self.sessions.incoming(session, token) else { continue };
            if matches!(file.arrival, Arrival::Waiting) {
                let error = Error::from_failure(failure, Phase::Retrieve, location);
                file.arrival = Arrival::Failed { error, told: false };
                self.file_dirty(session, Side::Incoming, token);
            }
        }
    }

    /// Whether a file is retrieved now, by this job. Otherwise the job has ended, or waits for what
    /// the file needs or for the job that is about it already.
    pub(crate) fn takes_its_turn(&mut self, job: Job, session: SessionId, token: Token) -> bool {
        let over = self.cycle.get(job.owner).is_some_and(|transition| {
            transition.failure.is_some() || transition.mode != Mode::Forward
        });
        let Some(file) = self.sessions.incoming(session, token) else {
            self.cycle.settled(job.owner);
            return false;
        };
        match &file.arrival {
            Arrival::Retrieved(_) => {
                self.cycle.settled(job.owner);
                return false;
            }
            Arrival::Failed { error, .. } => {
                let error = error.clone();
                self.fail(job.owner, error);
                self.cycle.settled(job.owner);
                return false;
            }
            Arrival::Retrieving if file.queue.owner.is_some_and(|owner| owner != job.owner) => {
                file.queue.waiters.push(job);
                return false;
            }
            Arrival::Waiting | Arrival::Retrieving => {}
        }
        if over {
            self.retrieve_withdrawn(session, token);
            self.cycle.settled(job.owner);
            return false;
        }
        let first = file.queue.owner.is_none();
        file.arrival = Arrival::Retrieving;
        file.queue.owner = Some(job.owner);
        if first {
            self.start_needs(session, token);
        }
        match self.first_missing(session, token) {
            None => true,
            Some(Ok(other)) => {
                if let Some(other) = self.sessions.incoming(session, other) {
                    other.queue.waiters.push(job);
                }
                false
            }
            Some(Err(failure)) => {
                self.settle(job, Err(failure), None);
                false
            }
        }
    }

    /// Begins to retrieve what a file needs, all of it side by side.
    fn start_needs(&mut self, session: SessionId, token: Token) {
        let Some(there) = self.sessions.peek(session) else { return };
        for other in there.incoming_bonds.needs(token).to_vec() {
            self.start_waiting(session, other);
        }
    }

    /// Begins to retrieve a file that nobody retrieves yet.
    fn start_waiting(&mut self, session: SessionId, token: Token) {
        let file = self.sessions.incoming(session, token);
        if file.is_some_and(|file| matches!(file.arrival, Arrival::Waiting)) {
            let unit = Unit::File(session, token, FileStep::Retrieve);
            self.start(Job { owner: None, unit });
        }
    }

    /// The first of the files that a file needs which is not there: it is on its way, or has failed.
    fn first_missing(
        &mut self,
        session: SessionId,
        token: Token,
    ) -> Option<Result<Token, Failure>> {
        let there = self.sessions.peek_mut(session)?;
        let needs = there.incoming_bonds.needs(token);
        let mut known = there.incoming.get(&token)?.queue.there;
        let missing = loop {
            let Some(other) = needs.get(known) else { break None };
            match there.incoming.get(other).map(|file| &file.arrival) {
                Some(Arrival::Retrieved(_)) => known += 1,
                Some(Arrival::Failed { error, .. }) => {
                    break Some(Err(for_want_of(*other, Some(error))));
                }
                Some(Arrival::Waiting | Arrival::Retrieving) => break Some(Ok(*other)),
                None => break Some(Err(for_want_of(*other, None))),
            }
        };
        there.incoming.get_mut(&token)?.queue.there = known;
        missing
    }

    /// A retrieval that was not given out is taken back: whoever waits for it begins it anew.
    pub(crate) fn retrieve_withdrawn(&mut self, session: SessionId, token: Token) {
        if let Some(file) = self.sessions.incoming(session, token) {
            file.arrival = Arrival::Waiting;
        }
        self.restart_followers(session, token);
    }

    /// A retrieval has ended: what waited for it goes on.
    pub(crate) fn restart_followers(&mut self, session: SessionId, token: Token) {
        let Some(file) = self.sessions.incoming(session, token) else { return };
        let waiters = core::mem::take(&mut file.queue).waiters;
        for job in waiters {
            if !matches!(job.unit, Unit::File(_, follower, _) if follower == token) {
                // Where it was taken back, it is begun for the one that still wants it.
                self.start_waiting(session, token);
            }
            self.start(job);
        }
    }

    /// What a call that retrieves a file is to know of others.
    pub(crate) fn bound(&self, session: SessionId, token: Token) -> Bound<F> {
        let Some(there) = self.sessions.peek(session) else { return Bound::default() };
        let bonds = &there.incoming_bonds;
        if bonds.is_empty() {
            return Bound::default();
        }
        let held = |other: &Token| match &there.incoming.get(other)?.arrival {
            Arrival::Retrieved(file) => Some((*other, file.clone())),
            _ => None,
        };
        let waits = |other: &Token| {
            there
                .incoming
                .get(other)
                .is_some_and(|file| matches!(file.arrival, Arrival::Waiting | Arrival::Retrieving))
        };
        Bound {
            needs: bonds.needs(token).iter().filter_map(held).collect(),
            needed_by: bonds.needed_by(token).filter(waits).collect(),
        }
    }

    /// The first files that are to be finished; those that they need follow in stages of their own.
    pub(crate) fn in_finishing_order(&mut self, id: TransitionId, units: Vec<Unit>) -> Vec<Unit> {
        let mut depths: BTreeMap<SessionId, BTreeMap<Token, usize>> = BTreeMap::new();
        let mut by_depth: BTreeMap<usize, Vec<Unit>> = BTreeMap::new();
        for unit in units {
            let Unit::File(session, token, _) = unit else { continue };
            let depths = depths.entry(session).or_insert_with(|| {
                let there = self.sessions.peek(session);
                there.map(|there| there.incoming_bonds.depths()).unwrap_or_default()
            });
            by_depth.entry(depths.get(&token).copied().unwrap_or(0)).or_default().push(unit);
        }
        let first = by_depth.pop_last().map(|(_, units)| units).unwrap_or_default();
        if let Some(transition) = self.cycle.transitions.get_mut(&id) {
            for units in by_depth.into_values() {
                transition.stages.push_front(Stage::Finish(units));
            }
        }
        first
    }
}
