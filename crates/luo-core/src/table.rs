//! The sessions and their files, as the framework holds them.
//!
//! Invariants:
//! - Ids ascend and are never used twice; a name leads to one session.
//! - Every lookup is O(1) or O(log n). What there may be very much of is in ordered maps or in
//!   [`pages`](crate::pages), where little that is there moves when more comes; only names are in
//!   a plain hash table, because comparing them costs more than growing it.

use alloc::{
    boxed::Box,
    collections::{BTreeMap, BTreeSet},
    format,
    string::ToString,
    sync::Arc,
    vec::Vec,
};

use hashbrown::HashMap;

use crate::{
    Bond, CallId, CarrierId, Compatible, Criticality, Errno, Error, File, Handle, Identity, Level,
    Owner, Policy, SessionId, SessionName, State, Token, TransitionId, bonds::Bonds, cycle::Job,
    peers::Peers, registry::HandlerId,
};

/// A file that is preserved for the next live update.
pub(crate) struct Outgoing<F> {
    pub(crate) file: F,
    /// `None` after a restore without its handler.
    pub(crate) handler: Option<HandlerId>,
    pub(crate) compatible: Compatible,
    /// The identity its handler gave, where it gave one.
    pub(crate) own_identity: Option<Identity>,
    pub(crate) criticality: Criticality,
    /// `Normal`, `Prepared` or `Frozen`.
    pub(crate) state: State,
    pub(crate) level: Level,
    pub(crate) data: u64,
    pub(crate) kept: Vec<Handle>,
    pub(crate) pinned: u64,
    /// The call in flight, late ones included.
    pub(crate) call: Option<CallId>,
    /// What a late call did is to be undone when it returns, or is being undone.
    pub(crate) doomed: bool,
    /// It counts among the users of its handler's shared state.
    pub(crate) holds_shared: bool,
    /// The transition of its own that is going on.
    pub(crate) transition: Option<TransitionId>,
    pub(crate) left_out: Option<Error>,
    /// The carrier that its handler was chosen for.
    pub(crate) carrier: CarrierId,
    /// Of a duplicate, the file that it is one of.
    pub(crate) original: Option<Token>,
}

impl<F: File> Outgoing<F> {
    /// A file that has just been registered: nothing is going on with it yet.
    pub(crate) fn registered(
        file: F,
        handler: HandlerId,
        compatible: Compatible,
        own_identity: Option<Identity>,
        criticality: Criticality,
    ) -> Self {
        Self {
            pinned: file.pinned(),
            file,
            handler: Some(handler),
            compatible,
            own_identity,
            criticality,
            state: State::Normal,
            level: Level::File,
            data: 0,
            kept: Vec::new(),
            call: None,
            doomed: false,
            holds_shared: false,
            transition: None,
            left_out: None,
            carrier: CarrierId::NEAR,
            original: None,
        }
    }
}

impl<F> Outgoing<F> {
    /// Nothing is going on with it and nothing is kept for it.
    pub(crate) fn at_rest(&self) -> bool {
        self.state == State::Normal
            && self.call.is_none()
            && !self.doomed
            && self.transition.is_none()
    }
}

/// How far the retrieval of an incoming file is.
#[derive(Debug, Clone)]
pub(crate) enum Arrival<F> {
    Waiting,
    Retrieving,
    Retrieved(F),
    Failed { error: Error, told: bool },
}

/// A file that came with the last live update.
pub(crate) struct Arrived<F> {
    pub(crate) handler: Option<HandlerId>,
    pub(crate) compatible: Compatible,
    pub(crate) criticality: Criticality,
    /// `None` where the record was damaged, or where nothing was kept.
    pub(crate) data: Option<u64>,
    pub(crate) kept: Vec<Handle>,
    pub(crate) pinned: u64,
    pub(crate) arrival: Arrival<F>,
    pub(crate) reclaimed: bool,
    pub(crate) call: Option<CallId>,
    pub(crate) holds_shared: bool,
    pub(crate) transition: Option<TransitionId>,
    /// Its `finish` makes an outgoing file of it.
    pub(crate) carry: bool,
    /// While it is being retrieved, who does; see [`start_retrieve`](crate::Orchestrator).
    pub(crate) queue: Queue,
}

/// Who retrieves a file, and who waits for that.
#[derive(Default)]
pub(crate) struct Queue {
    /// Whose job it is, once it has been begun.
    pub(crate) owner: Option<Option<TransitionId>>,
    /// How many of the files that it needs are known to be there.
    pub(crate) there: usize,
    /// What goes on when it is there, or is known not to come.
    pub(crate) waiters: Vec<Job>,
}

impl<F> Arrived<F> {
    /// Nobody has it, and whoever could know that it cannot be had does not.
    pub(crate) fn unclaimed(&self) -> bool {
        !self.reclaimed && !matches!(self.arrival, Arrival::Failed { told: true, .. })
    }

    /// A call for it is in flight or waits for its turn.
    pub(crate) fn busy(&self) -> bool {
        self.call.is_some() || matches!(self.arrival, Arrival::Retrieving)
    }
}

pub(crate) struct Session<F> {
    pub(crate) name: SessionName,
    pub(crate) owner: Owner,
    pub(crate) policy: Policy,
    pub(crate) state: State,
    /// Who brought it to `state`, where that is `Prepared` or `Frozen`.
    pub(crate) level: Level,
    pub(crate) transition: Option<TransitionId>,
    /// How many of its files have a transition of their own.
    pub(crate) file_transitions: usize,
    /// Each in a place of its own: a map moves its entries, and these are large.
    pub(crate) outgoing: BTreeMap<Token, Box<Outgoing<F>>>,
    pub(crate) incoming: BTreeMap<Token, Arrived<F>>,
    pub(crate) outgoing_bonds: Bonds,
    pub(crate) incoming_bonds: Bonds,
    /// The outgoing files, for handlers that refer to others; made when the first one asks.
    peers: Option<Arc<Peers<F>>>,
    pub(crate) next_token: u64,
    pub(crate) pinned: u64,
    pub(crate) unclaimed: bool,
    pub(crate) expires: Option<u64>,
}

impl<F: File> Session<F> {
    pub(crate) fn new(name: SessionName, owner: Owner, policy: Policy) -> Self {
        Self {
            name,
            owner,
            policy,
            state: State::Normal,
            level: Level::File,
            transition: None,
            file_transitions: 0,
            outgoing: BTreeMap::new(),
            incoming: BTreeMap::new(),
            outgoing_bonds: Bonds::default(),
            incoming_bonds: Bonds::default(),
            peers: None,
            next_token: 1,
            pinned: 0,
            unclaimed: false,
            expires: None,
        }
    }

    /// Registers a file under a token that is free.
    pub(crate) fn insert_outgoing(&mut self, token: Token, file: Outgoing<F>) {
        self.peers_changed();
        self.outgoing.insert(token, Box::new(file));
    }

    /// Takes a file out, with what bound it to others.
    pub(crate) fn remove_outgoing(&mut self, token: Token) -> Option<(Box<Outgoing<F>>, Bond)> {
        let file = self.outgoing.remove(&token)?;
        self.peers_changed();
        Some((file, self.outgoing_bonds.remove(token).unwrap_or_default()))
    }

    /// The outgoing files, by what they are.
    pub(crate) fn peers(&mut self) -> Arc<Peers<F>> {
        let originals = self.outgoing.iter().filter(|(_, file)| file.original.is_none());
        let files = || Peers::new(originals.map(|(token, file)| (*token, file.file.clone())));
        self.peers.get_or_insert_with(|| Arc::new(files())).clone()
    }

    /// A file has come or gone.
    pub(crate) fn peers_changed(&mut self) {
        self.peers = None;
    }

    fn token_taken(&self, token: Token) -> bool {
        self.outgoing.contains_key(&token) || self.incoming.contains_key(&token)
    }

    /// A token that neither set has; given ones are skipped, and none is assigned twice.
    pub(crate) fn assign_token(&mut self) -> Result<Token, Error> {
        while self.token_taken(Token(self.next_token)) && self.next_token < u64::MAX {
            self.next_token += 1;
        }
        let token = Token(self.next_token);
        if token.0 == u64::MAX {
            let reason = format!("session {} has no token left to assign", self.name);
            return Err(Error::new(Errno::NoSpc, reason).advise("give a token that is free"));
        }
        Ok(token)
    }

    /// After `assign_token`, once the token is used.
    pub(crate) fn token_used(&mut self, token: Token) {
        if token.0 == self.next_token {
            self.next_token = self.next_token.saturating_add(1);
        }
    }
}

pub(crate) struct Sessions<F> {
    map: BTreeMap<SessionId, Session<F>>,
    names: HashMap<SessionName, SessionId>,
    expiry: BTreeSet<(u64, SessionId)>,
    pub(crate) next: u64,
}

impl<F: File> Sessions<F> {
    pub(crate) fn new() -> Self {
        Self { map: BTreeMap::new(), names: HashMap::new(), expiry: BTreeSet::new(), next: 1 }
    }

    pub(crate) fn insert(&mut self, session: Session<F>) -> Result<SessionId, Error> {
        let id = SessionId(self.next);
        self.insert_at(id, session)?;
        Ok(id)
    }

    pub(crate) fn insert_at(&mut self, id: SessionId, session: Session<F>) -> Result<(), Error> {
        self.check_name(&session.name)?;
        let next = id.0.checked_add(1);
        let (Some(next), false) = (next, self.map.contains_key(&id)) else {
            return Err(Error::new(Errno::Exist, format!("session id {} is taken", id.0)));
        };
        self.next = self.next.max(next);
        self.names.insert(session.name.clone(), id);
        if let Some(at) = session.expires {
            self.expiry.insert((at, id));
        }
        self.map.insert(id, session);
        Ok(())
    }

    pub(crate) fn check_name(&self, name: &SessionName) -> Result<(), Error> {
        if self.names.contains_key(name) {
            let reason = format!("there is already a session named {name}");
            let advice = "choose another name, or claim that one if it is yours";
            return Err(Error::new(Errno::Exist, reason).advise(advice));
        }
        Ok(())
    }

    pub(crate) fn remove(&mut self, id: SessionId) -> Option<Session<F>> {
        let session = self.map.remove(&id)?;
        self.names.remove(&session.name);
        if let Some(at) = session.expires {
            self.expiry.remove(&(at, id));
        }
        Some(session)
    }

    pub(crate) fn set_expiry(&mut self, id: SessionId, expires: Option<u64>) {
        if let Some(session) = self.map.get_mut(&id) {
            if let Some(at) = session.expires {
                self.expiry.remove(&(at, id));
            }
            session.expires = expires;
            if let Some(at) = expires {
                self.expiry.insert((at, id));
            }
        }
    }

    pub(crate) fn expired(&self, now: u64) -> Vec<SessionId> {
        self.expiry.range(..=(now, SessionId(u64::MAX))).map(|(_, id)| *id).collect()
    }

    pub(crate) fn next_expiry(&self) -> Option<u64> {
        self.expiry.first().map(|(at, _)| *at)
    }

    pub(crate) fn by_name(&self, name: &str) -> Option<SessionId> {
        self.names.get(name).copied()
    }

    pub(crate) fn peek(&self, id: SessionId) -> Option<&Session<F>> {
        self.map.get(&id)
    }

    pub(crate) fn peek_mut(&mut self, id: SessionId) -> Option<&mut Session<F>> {
        self.map.get_mut(&id)
    }

    pub(crate) fn get(&self, id: SessionId) -> Result<&Session<F>, Error> {
        self.map.get(&id).ok_or_else(|| no_session(id))
    }

    pub(crate) fn get_mut(&mut self, id: SessionId) -> Result<&mut Session<F>, Error> {
        self.map.get_mut(&id).ok_or_else(|| no_session(id))
    }

    pub(crate) fn outgoing(&mut self, id: SessionId, token: Token) -> Option<&mut Outgoing<F>> {
        self.map.get_mut(&id)?.outgoing.get_mut(&token).map(Box::as_mut)
    }

    pub(crate) fn incoming(&mut self, id: SessionId, token: Token) -> Option<&mut Arrived<F>> {
        self.map.get_mut(&id)?.incoming.get_mut(&token)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (SessionId, &Session<F>)> {
        self.map.iter().map(|(id, session)| (*id, session))
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = (SessionId, &mut Session<F>)> {
        self.map.iter_mut().map(|(id, session)| (*id, session))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.map.is_empty()
    }
}

fn no_session(id: SessionId) -> Error {
    Error::new(Errno::NoEnt, format!("there is no session {}", id.0))
        .advise("it may have expired or been released")
}

/// The refusal of a token that is not there.
pub(crate) fn no_token(session: &SessionName, token: Token, side: &str) -> Error {
    let reason = format!("session {session} has no {side} file with token {token}");
    Error::new(Errno::NoEnt, reason)
}

/// The refusal of a token that another file has.
pub(crate) fn token_refused(session: &SessionName, token: Token) -> Error {
    let reason = format!("token {token} is taken in session {session}");
    let advice = "give another token, or none to have one assigned";
    Error::new(Errno::Exist, reason).advise(advice)
}

/// Tokens in words: the first few, and how many more.
pub(crate) fn token_list(tokens: &[Token]) -> alloc::string::String {
    const SHOWN: usize = 16;
    let mut words: Vec<_> = tokens.iter().take(SHOWN).map(ToString::to_string).collect();
    if tokens.len() > SHOWN {
        words.push(format!("and {} more", tokens.len() - SHOWN));
    }
    words.join(", ")
}
