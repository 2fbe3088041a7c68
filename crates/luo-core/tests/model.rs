//! The whole core against a simple model: random operations, each run to its end with random
//! failures, after each of which the model and the core must agree on everything that shows.
//!
//! The model knows no calls, no stages and no order: it says what must come out.

mod common;

use std::collections::{BTreeMap, BTreeSet};

use common::*;
use luo_core::{Criticality::*, State::*, *};
use proptest::prelude::*;

#[derive(Debug, Clone, Copy, PartialEq)]
enum Got {
    Waiting,
    Here,
    Failed { told: bool },
}

#[derive(Debug, Clone)]
struct Out {
    id: u64,
    state: State,
    level: Level,
    optional: bool,
    left_out: bool,
}

#[derive(Debug, Clone)]
struct In {
    id: u64,
    optional: bool,
    got: Got,
    reclaimed: bool,
    /// It was frozen, so its handler has something to finish.
    data: bool,
}

#[derive(Debug, Clone)]
struct Sess {
    state: State,
    level: Level,
    out: BTreeMap<u64, Out>,
    inc: BTreeMap<u64, In>,
    next: u64,
}

#[derive(Debug, Clone)]
struct Model {
    state: State,
    sessions: BTreeMap<u64, Sess>,
    next: u64,
}

type Fails = BTreeSet<String>;

#[derive(Debug, Clone, Copy, PartialEq)]
enum At {
    Machine,
    Session(u64),
    File(u64, u64),
}

impl At {
    fn level(self) -> Level {
        match self {
            At::Machine => Level::Machine,
            At::Session(_) => Level::Session,
            At::File(..) => Level::File,
        }
    }
    fn has(self, session: u64, token: u64) -> bool {
        match self {
            At::Machine => true,
            At::Session(s) => s == session,
            At::File(s, t) => s == session && t == token,
        }
    }
    fn scope(self) -> Scope {
        match self {
            At::Machine => Scope::Machine,
            At::Session(s) => Scope::Session(SessionId(s)),
            At::File(s, t) => Scope::File(SessionId(s), Token(t)),
        }
    }
}

fn still(state: State) -> bool {
    matches!(state, Normal | Updated)
}

impl Model {
    fn new() -> Self {
        Self { state: Normal, sessions: BTreeMap::new(), next: 1 }
    }

    /// Whether an event may begin; `Err` is the refusal.
    fn may(&self, at: At, event: Event) -> Result<(), Errno> {
        use Event::*;
        let ok = |yes: bool| if yes { Ok(()) } else { Err(Errno::Busy) };
        let legal = |state: State| match event {
            Prepare => state == Normal,
            Freeze => state == Prepared,
            Cancel => matches!(state, Prepared | Frozen),
            Finish => state == Updated,
            _ => false,
        };
        match at {
            At::Machine => ok(legal(self.state)
                && (event != Prepare || self.sessions.values().all(|s| s.state != Updated))),
            At::Session(s) => {
                let session = self.sessions.get(&s).ok_or(Errno::NoEnt)?;
                ok(still(self.state))?;
                ok(match event {
                    Depart => session.state != Updated,
                    Arrive => session.state == Frozen,
                    _ => legal(session.state),
                })
            }
            At::File(s, t) => {
                let session = self.sessions.get(&s).ok_or(Errno::NoEnt)?;
                ok(still(self.state))?;
                ok(still(session.state))?;
                if event == Finish {
                    return session.inc.get(&t).map(|_| ()).ok_or(Errno::NoEnt);
                }
                let file = session.out.get(&t).ok_or(Errno::NoEnt)?;
                match event {
                    Depart | Arrive => Err(Errno::Inval),
                    _ => ok(legal(file.state)),
                }
            }
        }
    }

    fn files(&mut self, at: At) -> impl Iterator<Item = &mut Out> {
        self.sessions.iter_mut().flat_map(move |(s, session)| {
            let s = *s;
            session.out.iter_mut().filter(move |(t, _)| at.has(s, **t)).map(|(_, file)| file)
        })
    }

    /// Prepares or freezes; whether nothing required failed.
    fn keep(&mut self, at: At, freeze: bool, fails: &Fails) -> bool {
        let (from, to, phase) =
            if freeze { (Prepared, Frozen, "freeze") } else { (Normal, Prepared, "prepare") };
        let alone = matches!(at, At::File(..));
        let level = at.level();
        if freeze {
            for (s, session) in &mut self.sessions {
                let whole = at == At::Machine || at == At::Session(*s);
                if whole && session.state == Prepared {
                    session.level = level;
                }
            }
            self.files(at).filter(|file| file.state == from).for_each(|file| file.level = level);
        }
        for file in self.files(at).filter(|file| file.state == from) {
            if !fails.contains(&format!("{phase} {}", file.id)) {
                file.state = to;
                file.level = level;
                file.left_out = false;
            } else if file.optional && !alone {
                file.left_out = true;
                file.state = Normal;
            } else {
                // What comes after it is not asked any more.
                return false;
            }
        }
        true
    }

    /// Undoes what `level` did, or everything.
    fn undo(&mut self, at: At, all: bool) {
        let level = at.level();
        self.files(at)
            .filter(|file| all || file.level == level)
            .for_each(|file| file.state = Normal);
        for (s, session) in &mut self.sessions {
            let whole = at == At::Machine || at == At::Session(*s);
            if whole
                && matches!(session.state, Prepared | Frozen)
                && (all || session.level == level)
            {
                session.state = Normal;
            }
        }
    }

    fn move_sessions(&mut self, at: At, from: &[State], to: State) {
        for (s, session) in &mut self.sessions {
            let whole = at == At::Machine || at == At::Session(*s);
            if whole && from.contains(&session.state) {
                session.state = to;
                session.level = at.level();
            }
        }
        if at == At::Machine {
            self.state = to;
        }
    }

    /// Runs an event to its end; whether it succeeded.
    fn event(&mut self, at: At, event: Event, fails: &Fails) -> bool {
        let before = self.clone();
        let ok = match event {
            Event::Prepare => self.keep(at, false, fails),
            Event::Freeze => self.keep(at, true, fails),
            Event::Depart => self.keep(at, false, fails) && self.keep(at, true, fails),
            Event::Arrive => {
                if let At::Session(s) = at {
                    self.arrive(s);
                }
                true
            }
            Event::Cancel => {
                self.undo(at, true);
                if at == At::Machine {
                    self.state = Normal;
                }
                return true;
            }
            Event::Finish => unreachable!("finish has its own operation"),
        };
        match event {
            _ if !ok => {
                // What did not fail of its own is as before; what this level moved is undone.
                let left_out: BTreeSet<u64> =
                    self.files(at).filter(|file| file.left_out).map(|file| file.id).collect();
                let levels: BTreeMap<u64, Level> =
                    self.files(at).map(|file| (file.id, file.level)).collect();
                let sessions: BTreeMap<u64, Level> =
                    self.sessions.iter().map(|(s, session)| (*s, session.level)).collect();
                *self = before;
                let normal: BTreeSet<u64> = self
                    .files(at)
                    .filter(|file| file.state == Normal)
                    .map(|file| file.id)
                    .collect();
                for file in self.files(at) {
                    file.level = levels[&file.id];
                    file.left_out = left_out.contains(&file.id);
                }
                for (s, session) in &mut self.sessions {
                    session.level = sessions[s];
                }
                if event != Event::Prepare {
                    self.undo(at, false);
                    if let At::Session(s) = at {
                        self.sessions.get_mut(&s).unwrap().state = Normal;
                    }
                }
                for file in self.files(at) {
                    if normal.contains(&file.id) {
                        file.state = Normal;
                    }
                }
                if at == At::Machine {
                    self.state = Normal;
                }
            }
            Event::Prepare => self.move_sessions(at, &[Normal], Prepared),
            Event::Freeze => self.move_sessions(at, &[Prepared], Frozen),
            Event::Depart => self.move_sessions(at, &[Normal, Prepared, Frozen], Frozen),
            _ => {}
        }
        ok
    }

    fn arrive(&mut self, s: u64) {
        let session = self.sessions.get_mut(&s).unwrap();
        session.state = Updated;
        let moving: Vec<u64> = session
            .out
            .iter()
            .filter(|(_, f)| f.state == Frozen || (f.state == Normal && f.left_out))
            .map(|(t, _)| *t)
            .collect();
        for token in moving {
            let file = session.out.remove(&token).unwrap();
            let data = file.state == Frozen;
            let got = if data { Got::Waiting } else { Got::Failed { told: false } };
            let arrived = In { id: file.id, optional: file.optional, got, reclaimed: false, data };
            session.inc.insert(token, arrived);
        }
    }

    fn out_ids(&self) -> BTreeSet<u64> {
        self.sessions.values().flat_map(|s| s.out.values().map(|file| file.id)).collect()
    }

    fn finish(&mut self, at: At, options: FinishOptions, fails: &Fails) -> Result<bool, Errno> {
        self.may(at, Event::Finish)?;
        let carry = options.unclaimed == UnclaimedFiles::Carry;
        let unclaimed = |f: &In| !f.reclaimed && !matches!(f.got, Got::Failed { told: true });
        let mut mine: Vec<(u64, u64)> = Vec::new();
        for (s, session) in &self.sessions {
            mine.extend(session.inc.keys().filter(|t| at.has(*s, **t)).map(|t| (*s, *t)));
        }
        let refuse = options.unclaimed == UnclaimedFiles::Refuse;
        if refuse && mine.iter().any(|(s, t)| unclaimed(&self.sessions[s].inc[t])) {
            return Err(Errno::Busy);
        }
        if carry {
            // One at a time, in order: the first that cannot be had ends it.
            for (s, t) in &mine {
                let file = self.sessions.get_mut(s).unwrap().inc.get_mut(t).unwrap();
                if file.got == Got::Waiting {
                    if fails.contains(&format!("retrieve {}", file.id)) {
                        file.got = Got::Failed { told: false };
                        return Ok(false);
                    }
                    file.got = Got::Here;
                }
            }
        }
        let refuses = |f: &In| f.data && fails.contains(&format!("can_finish {}", f.id));
        if mine.iter().any(|(s, t)| refuses(&self.sessions[s].inc[t])) {
            return Ok(false);
        }
        let mut taken = self.out_ids();
        let mut carried = Vec::new();
        for (s, t) in &mine {
            let session = &self.sessions[s];
            let file = &session.inc[t];
            let wanted = if file.reclaimed { options.carry_reclaimed } else { carry };
            if !wanted || file.got != Got::Here {
                continue;
            }
            if session.out.contains_key(t) || taken.contains(&file.id) {
                if file.reclaimed {
                    continue;
                }
                return Ok(false);
            }
            taken.insert(file.id);
            carried.push((*s, *t));
        }
        for (s, t) in &mine {
            let session = self.sessions.get_mut(s).unwrap();
            let file = session.inc.remove(t).unwrap();
            if carried.contains(&(*s, *t)) {
                let optional = file.optional;
                let out = Out {
                    id: file.id,
                    state: Normal,
                    level: Level::File,
                    optional,
                    left_out: false,
                };
                session.out.insert(*t, out);
            }
        }
        if let At::Session(s) = at {
            self.sessions.get_mut(&s).unwrap().state = Normal;
        }
        Ok(true)
    }
}

#[derive(Debug, Clone)]
enum Op {
    Create,
    Preserve { s: u64, token: Option<u64>, id: u64, optional: bool },
    Unpreserve { s: u64, token: u64 },
    Event { at: At, event: Event, fails: Fails },
    Finish { at: At, options: FinishOptions, fails: Fails },
    Retrieve { s: u64, token: u64, fails: Fails },
    Reclaim { s: u64, token: u64 },
    Release { s: u64, fails: Fails },
}

const IDS: std::ops::Range<u64> = 1..7;

fn fails() -> impl Strategy<Value = Fails> {
    let call = (prop::sample::select(vec!["prepare", "freeze", "retrieve", "can_finish"]), IDS)
        .prop_map(|(phase, id)| format!("{phase} {id}"));
    prop_oneof![
        3 => Just(Fails::new()),
        2 => prop::collection::btree_set(call, 1..3),
    ]
}

fn at() -> impl Strategy<Value = At> {
    prop_oneof![
        3 => Just(At::Machine),
        3 => (1..4_u64).prop_map(At::Session),
        2 => (1..4_u64, 0..5_u64).prop_map(|(s, t)| At::File(s, t)),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    let event = prop::sample::select(vec![
        Event::Prepare,
        Event::Prepare,
        Event::Freeze,
        Event::Depart,
        Event::Arrive,
        Event::Arrive,
        Event::Cancel,
    ]);
    let options = (
        prop::sample::select(vec![
            UnclaimedFiles::Refuse,
            UnclaimedFiles::Release,
            UnclaimedFiles::Carry,
        ]),
        any::<bool>(),
    )
        .prop_map(|(unclaimed, carry_reclaimed)| FinishOptions { unclaimed, carry_reclaimed });
    let token = 0..5_u64;
    prop_oneof![
        2 => Just(Op::Create),
        6 => (1..4_u64, prop::option::of(token.clone()), IDS, any::<bool>())
            .prop_map(|(s, token, id, optional)| Op::Preserve { s, token, id, optional }),
        1 => (1..4_u64, token.clone()).prop_map(|(s, token)| Op::Unpreserve { s, token }),
        10 => (at(), event, fails()).prop_map(|(at, event, fails)| Op::Event { at, event, fails }),
        3 => (at(), options, fails())
            .prop_map(|(at, options, fails)| Op::Finish { at, options, fails }),
        4 => (1..4_u64, token.clone(), fails())
            .prop_map(|(s, token, fails)| Op::Retrieve { s, token, fails }),
        3 => (1..4_u64, token).prop_map(|(s, token)| Op::Reclaim { s, token }),
        1 => (1..4_u64, fails()).prop_map(|(s, fails)| Op::Release { s, fails }),
    ]
}

/// Does an operation to both; they must answer alike.
fn step(world: &mut World, model: &mut Model, op: Op) {
    world.script.heal();
    let script = |world: &World, fails: &Fails| {
        fails.iter().for_each(|call| world.script.fail(call));
    };
    match op {
        Op::Create => {
            let name = format!("s{}", model.next);
            let made = world.core.create_session(&name, ALICE, Policy::default());
            assert_eq!(made.is_ok(), still(model.state));
            if let Ok(id) = made {
                assert_eq!(id.0, model.next);
                let session = Sess {
                    state: Normal,
                    level: Level::File,
                    out: BTreeMap::new(),
                    inc: BTreeMap::new(),
                    next: 1,
                };
                model.sessions.insert(model.next, session);
                model.next += 1;
            }
        }
        Op::Preserve { s, token, id, optional } => {
            let criticality = if optional { Optional } else { Required };
            let given =
                world.core.preserve(SessionId(s), token.map(Token), Toy::new(id), criticality);
            let known = model.out_ids();
            let at_rest = still(model.state);
            let expected = match model.sessions.get_mut(&s) {
                None => Err(Errno::NoEnt),
                Some(session) if !at_rest || !still(session.state) => Err(Errno::Busy),
                Some(session) => {
                    let next = (session.next..)
                        .find(|t| !session.out.contains_key(t) && !session.inc.contains_key(t))
                        .unwrap();
                    let place = token.unwrap_or(next);
                    if token.is_none() {
                        // It looks further only from where it looked before.
                        session.next = next;
                    }
                    if session.out.contains_key(&place) {
                        Err(Errno::Exist)
                    } else if known.contains(&id) {
                        Err(Errno::Busy)
                    } else {
                        if place == session.next {
                            session.next += 1;
                        }
                        let (state, level) = (Normal, Level::File);
                        session
                            .out
                            .insert(place, Out { id, state, level, optional, left_out: false });
                        Ok(Token(place))
                    }
                }
            };
            assert_eq!(given.map_err(|error| error.errno()), expected);
        }
        Op::Unpreserve { s, token } => {
            let done = world.core.unpreserve(SessionId(s), Token(token)).map_err(|e| e.errno());
            let state = model.state;
            let expected = match model.sessions.get_mut(&s) {
                None => Err(Errno::NoEnt),
                Some(session) => match session.out.get(&token) {
                    None => Err(Errno::NoEnt),
                    Some(file)
                        if !still(state) || !still(session.state) || file.state != Normal =>
                    {
                        Err(Errno::Busy)
                    }
                    Some(_) => {
                        session.out.remove(&token);
                        Ok(())
                    }
                },
            };
            assert_eq!(done, expected);
        }
        Op::Event { at, event, fails } => {
            if at == At::Machine && matches!(event, Event::Depart | Event::Arrive) {
                return; // the other side has its own tests
            }
            script(world, &fails);
            let begun = world.core.begin(at.scope(), event);
            let may = model.may(at, event);
            assert_eq!(begun.as_ref().map(|_| ()).map_err(Error::errno), may);
            if let Ok(id) = begun {
                world.run();
                let ok = model.event(at, event, &fails);
                assert_eq!(world.report(id).result.is_ok(), ok);
            }
        }
        Op::Finish { at, options, fails } => {
            if at == At::Machine {
                assert!(world.core.finish(Scope::Machine, options).is_err());
                return;
            }
            script(world, &fails);
            let begun = world.core.finish(at.scope(), options);
            let expected = model.finish(at, options, &fails);
            assert_eq!(begun.as_ref().map(|_| ()).map_err(Error::errno), expected.map(|_| ()));
            if let (Ok(id), Ok(ok)) = (begun, expected) {
                world.run();
                assert_eq!(world.report(id).result.is_ok(), ok);
            }
        }
        Op::Retrieve { s, token, fails } => {
            script(world, &fails);
            let got = world.retrieve(SessionId(s), token);
            let file = model
                .sessions
                .get_mut(&s)
                .filter(|session| session.state == Updated)
                .and_then(|session| session.inc.get_mut(&token));
            let Some(file) = file else {
                assert!(got.is_err());
                return;
            };
            if file.got == Got::Waiting {
                let broken = fails.contains(&format!("retrieve {}", file.id));
                file.got = if broken { Got::Failed { told: false } } else { Got::Here };
            }
            match &mut file.got {
                Got::Failed { told } => {
                    *told = true;
                    assert_eq!(got.unwrap_err().errno(), Errno::Io);
                }
                _ => assert_eq!(got.unwrap().id(), file.id),
            }
        }
        Op::Reclaim { s, token } => {
            let done = world.core.mark_reclaimed(SessionId(s), Token(token)).is_ok();
            let file = model.sessions.get_mut(&s).and_then(|session| session.inc.get_mut(&token));
            let there = file.filter(|file| file.got == Got::Here);
            assert_eq!(done, there.is_some());
            if let Some(file) = there {
                file.reclaimed = true;
            }
        }
        Op::Release { s, fails } => {
            script(world, &fails);
            let begun = world.core.release_session(SessionId(s));
            let Some(session) = model.sessions.get(&s) else {
                assert_eq!(begun.unwrap_err().errno(), Errno::NoEnt);
                return;
            };
            if model.state == Frozen {
                assert_eq!(begun.unwrap_err().errno(), Errno::Busy);
                return;
            }
            let refuses = |f: &In| f.data && fails.contains(&format!("can_finish {}", f.id));
            let ok = !session.inc.values().any(refuses);
            let id = begun.unwrap();
            world.run();
            assert_eq!(world.report(id).removed, ok);
            if ok {
                model.sessions.remove(&s);
            }
        }
    }
}

/// Everything that shows must be as the model has it.
fn compare(world: &World, model: &Model) {
    assert_eq!(world.state(), model.state);
    let shown: Vec<u64> = world.core.sessions().map(|session| session.id.0).collect();
    assert_eq!(shown, model.sessions.keys().copied().collect::<Vec<_>>());
    let mut kept = usize::from(model.state == Frozen);
    let mut files = 0;
    for (s, session) in &model.sessions {
        let info = world.core.session(SessionId(*s)).unwrap();
        assert_eq!(info.status.state, session.state, "session {s}");
        let mut shown = world.core.files(SessionId(*s));
        for (token, file) in &session.out {
            let info = shown.next().unwrap();
            assert_eq!((info.side, info.token), (Side::Outgoing, Token(*token)));
            assert_eq!(info.state, file.state, "session {s}, file {token}");
            assert_eq!(info.left_out.is_some(), file.left_out, "session {s}, file {token}");
            kept += match file.state {
                Prepared => 1,
                Frozen => 2,
                _ => 0,
            };
            files += 1;
        }
        for (token, file) in &session.inc {
            let info = shown.next().unwrap();
            assert_eq!((info.side, info.token), (Side::Incoming, Token(*token)));
            assert_eq!(info.reclaimed, file.reclaimed);
            let same = match info.incoming.unwrap() {
                Incoming::Waiting => file.got == Got::Waiting,
                Incoming::Retrieved => file.got == Got::Here,
                Incoming::Failed(_) => matches!(file.got, Got::Failed { .. }),
                Incoming::Retrieving => false,
            };
            assert!(same, "session {s}, incoming {token}");
            kept += if file.data { 2 } else { 0 };
        }
        assert!(shown.next().is_none());
    }
    assert_eq!(world.carrier.kept(), kept, "what the carrier holds is what is kept");
    let usage = Usage { sessions: model.sessions.len() as u64, files, bytes: files * 10 };
    assert_eq!(world.core.usage(ALICE.uid), usage);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(1000) })]

    #[test]
    fn the_core_does_what_the_model_says(ops in prop::collection::vec(op(), 1..60)) {
        let mut world = World::new();
        let mut model = Model::new();
        for op in ops {
            step(&mut world, &mut model, op);
            compare(&world, &model);
        }
    }
}
