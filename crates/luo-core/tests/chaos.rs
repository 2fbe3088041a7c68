//! Whatever is begun, in whatever order calls are given out, end, fail, are late and come back:
//! every transition ends once, and when all is given up nothing is left of it anywhere.

mod common;

use std::collections::BTreeSet;

use common::*;
use luo_core::*;
use proptest::prelude::*;

#[derive(Debug, Clone)]
enum Op {
    Begin(Scope, Event),
    Finish(Scope, FinishOptions),
    Release(u64),
    Preserve {
        session: u64,
        id: u64,
        optional: bool,
    },
    Retrieve {
        session: u64,
        token: u64,
    },
    /// Takes a call and lets it be in flight.
    Take,
    /// One of the calls in flight ends well, or fails.
    End {
        which: usize,
        fails: bool,
    },
    /// One of the calls in flight passes its deadline.
    Late {
        which: usize,
    },
    /// One of the late calls returns.
    Return {
        which: usize,
        fails: bool,
    },
    Gone,
    Join,
}

fn scope() -> impl Strategy<Value = Scope> {
    prop_oneof![
        3 => Just(Scope::Machine),
        3 => (1..4_u64).prop_map(|s| Scope::Session(SessionId(s))),
        2 => (1..4_u64, 1..9_u64).prop_map(|(s, t)| Scope::File(SessionId(s), Token(t))),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    let event = prop::sample::select(vec![
        Event::Prepare,
        Event::Prepare,
        Event::Freeze,
        Event::Freeze,
        Event::Depart,
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
    let which = 0..8_usize;
    let ids = 1..9_u64;
    prop_oneof![
        8 => (scope(), event).prop_map(|(scope, event)| Op::Begin(scope, event)),
        2 => (scope(), options).prop_map(|(scope, options)| Op::Finish(scope, options)),
        1 => (1..4_u64).prop_map(Op::Release),
        3 => (1..4_u64, ids.clone(), any::<bool>())
            .prop_map(|(session, id, optional)| Op::Preserve { session, id, optional }),
        3 => (1..4_u64, ids).prop_map(|(session, token)| Op::Retrieve { session, token }),
        20 => Just(Op::Take),
        16 => (which.clone(), prop::bool::weighted(0.15))
            .prop_map(|(which, fails)| Op::End { which, fails }),
        2 => which.clone().prop_map(|which| Op::Late { which }),
        2 => (which, any::<bool>()).prop_map(|(which, fails)| Op::Return { which, fails }),
        1 => Just(Op::Gone),
        1 => Just(Op::Join),
    ]
}

struct Chaos {
    world: World,
    begun: BTreeSet<TransitionId>,
    ended: BTreeSet<TransitionId>,
    flying: Vec<Call<Toy>>,
    late: Vec<Call<Toy>>,
}

impl Chaos {
    fn new() -> Self {
        let mut world = World::bare(ToyCarrier::default());
        world.shared_handler("toy");
        world.handler("plain");
        for name in ["s1", "s2"] {
            world.subsystem(name, SubsystemOptions { concurrent: true, ..Default::default() });
        }
        for name in ["a", "b", "c"] {
            world.session(name);
        }
        let (begun, ended) = (BTreeSet::new(), BTreeSet::new());
        let mut chaos = Self { world, begun, ended, flying: Vec::new(), late: Vec::new() };
        chaos.apply(Op::Join);
        chaos
    }

    fn begun(&mut self, id: Result<TransitionId, Error>) {
        if let Ok(id) = id {
            self.begun.insert(id);
        }
    }

    /// What a call gives; a participant's is answered here.
    fn outcome(&self, call: &Call<Toy>, fails: bool) -> Outcome<Toy> {
        if call.kind() == CallKind::Remote {
            return match call.phase() {
                _ if fails => Outcome::failed(Failure::new(Errno::Busy, "no")),
                Phase::Prepare | Phase::Freeze => Outcome::data(3),
                _ => Outcome::done(),
            };
        }
        if fails {
            for id in 1..9 {
                for phase in ["prepare", "freeze", "retrieve", "can_finish"] {
                    self.world.script.fail(&format!("{phase} {id}"));
                }
            }
            for call in ["prepare s1", "freeze s2", "keep tree", "commit", "find", "read tree"] {
                self.world.script.fail(call);
            }
            for phase in ["prepare", "freeze", "retrieve"] {
                self.world.script.fail(&format!("{phase} shared toy"));
            }
        }
        let outcome = call.run(&self.world.carrier);
        self.world.script.heal();
        outcome
    }

    fn end(&mut self, call: &Call<Toy>, fails: bool) {
        let outcome = self.outcome(call, fails);
        // It may have ended with its participant.
        let _ = self.world.core.complete(call.id(), outcome);
    }

    fn apply(&mut self, op: Op) {
        let core = &mut self.world.core;
        match op {
            Op::Begin(scope, event) => {
                let id = core.begin(scope, event);
                self.begun(id);
            }
            Op::Finish(scope, options) => {
                let id = core.finish(scope, options);
                self.begun(id);
            }
            Op::Release(session) => {
                let id = core.release_session(SessionId(session));
                self.begun(id);
            }
            Op::Preserve { session, id, optional } => {
                let criticality =
                    if optional { Criticality::Optional } else { Criticality::Required };
                let kind = if id % 4 == 0 { "plain" } else { "toy" };
                let file = Toy::of(kind, id);
                let _ = core.preserve(SessionId(session), Some(Token(id)), file, criticality);
            }
            Op::Retrieve { session, token } => {
                if let Ok(Retrieval::Ready(_)) = core.retrieve(SessionId(session), Token(token)) {
                    core.mark_reclaimed(SessionId(session), Token(token)).unwrap();
                }
            }
            Op::Take => self.flying.extend(core.next_call()),
            Op::End { which, fails } => {
                if !self.flying.is_empty() {
                    let call = self.flying.remove(which % self.flying.len());
                    self.end(&call, fails);
                }
            }
            Op::Late { which } => {
                if !self.flying.is_empty() {
                    let call = self.flying.remove(which % self.flying.len());
                    if core.complete(call.id(), Outcome::late("late")).is_ok() {
                        self.late.push(call);
                    }
                }
            }
            Op::Return { which, fails } => {
                if !self.late.is_empty() {
                    let call = self.late.remove(which % self.late.len());
                    self.end(&call, fails);
                }
            }
            Op::Gone => {
                let _ = core.subsystem_gone("p");
            }
            Op::Join => {
                let options = SubsystemOptions::default();
                let _ = core.register_subsystem("p", SubsystemKind::Remote, options);
            }
        }
        self.notices();
    }

    fn notices(&mut self) {
        while let Some(notice) = self.world.core.take_notice() {
            if let Notice::Ended(report) = notice {
                assert!(self.begun.contains(&report.id), "{report:?} was begun");
                assert!(self.ended.insert(report.id), "{report:?} ended once");
            }
        }
    }

    /// Lets everything end well.
    fn settle(&mut self) {
        loop {
            while let Some(call) = self.world.core.next_call() {
                self.flying.push(call);
            }
            let calls: Vec<_> = self.flying.drain(..).chain(self.late.drain(..)).collect();
            if calls.is_empty() {
                break;
            }
            for call in calls {
                self.end(&call, false);
            }
        }
        self.notices();
    }

    /// Gives everything up.
    fn give_up(&mut self) {
        self.settle();
        let id = self.world.core.begin(Scope::Machine, Event::Cancel);
        self.begun(id);
        self.settle();
        let sessions: Vec<SessionId> = self.world.core.sessions().map(|s| s.id).collect();
        for session in sessions {
            let id = self.world.core.release_session(session);
            assert!(id.is_ok(), "{id:?}");
            self.begun(id);
            self.settle();
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(400) })]

    #[test]
    fn every_transition_ends_once_and_nothing_is_left(ops in prop::collection::vec(op(), 1..200)) {
        let mut chaos = Chaos::new();
        for id in 1..9 {
            chaos.apply(Op::Preserve { session: 1 + id % 3, id, optional: id % 3 == 0 });
        }
        for op in ops {
            chaos.apply(op);
        }
        chaos.give_up();
        assert_eq!(chaos.begun, chaos.ended, "every transition ended");
        let world = &mut chaos.world;
        assert_eq!(world.core.sessions().count(), 0);
        assert_eq!(world.state(), State::Normal);
        assert_eq!(world.core.usage(ALICE.uid), Usage::default());
        assert_eq!(world.carrier.kept(), 0);
        assert_eq!(world.carrier.0.lock().unwrap().committed, None);
        for handler in ["toy", "plain"] {
            world.core.unregister_handler(handler).unwrap();
        }
        for subsystem in world.core.subsystems() {
            assert_eq!(subsystem.state, State::Normal, "{}", subsystem.name);
        }
    }
}
