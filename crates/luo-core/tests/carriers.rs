//! An update of the machine through a carrier that reaches farther and keeps less.

mod common;

use std::sync::Arc;

use common::*;
use luo_core::*;

/// Keeps the number of a toy as bytes: what needs no live descriptor can do.
struct Far {
    compatible: &'static str,
    own_identity: bool,
}

impl Handler<Toy> for Far {
    fn compatible(&self) -> &str {
        self.compatible
    }
    fn requires(&self) -> Caps {
        Caps::BYTES
    }
    fn can_preserve(&self, file: &Toy) -> bool {
        file.kind() == "toy"
    }
    fn identity(&self, file: &Toy) -> Option<Identity> {
        self.own_identity.then_some(Identity([7, file.id()]))
    }
    fn prepare(&self, file: &Toy, keep: &dyn Keep<Toy>) -> Result<u64, Failure> {
        keep.keep_bytes(&file.id().to_le_bytes()).map(|handle| handle.0)
    }
    fn retrieve(&self, data: u64, recall: &dyn Recall<Toy>) -> Result<Toy, Failure> {
        let bytes = recall.bytes(Handle(data))?;
        let bytes = bytes.try_into().map_err(|_| Failure::new(Errno::Inval, "not a number"))?;
        Ok(Toy::new(u64::from_le_bytes(bytes)))
    }
    fn finish(&self, _: Option<&Toy>, data: u64, _: bool, recall: &dyn Recall<Toy>) {
        recall.release(Handle(data));
    }
}

const FAR: CarrierId = CarrierId(1);

/// A world with a near carrier, and a far one that holds no live descriptors.
struct Two {
    world: World,
    far: ToyCarrier,
}

impl Two {
    fn new(far: ToyCarrier, own_identity: bool) -> Self {
        let mut world = World::new();
        world.handler("pipe");
        let handler = Far { compatible: "far-toy-v1", own_identity };
        world.core.register_handler(Arc::new(handler)).unwrap();
        assert_eq!(world.core.add_carrier(Caps::BYTES).unwrap(), FAR);
        Self { world, far }
    }

    /// Runs every call with the carrier it names.
    fn run(&mut self) {
        while let Some(call) = self.world.core.next_call() {
            let carrier = if call.carrier() == FAR { &self.far } else { &self.world.carrier };
            let outcome = call.run(carrier);
            self.world.core.complete(call.id(), outcome).unwrap();
        }
        self.world.collect();
    }

    fn through(&mut self, event: Event) -> Report {
        let id = self.world.core.begin_through(event, FAR).unwrap();
        self.run();
        self.world.report(id)
    }

    fn event(&mut self, event: Event) -> Report {
        let id = self.world.core.begin(Scope::Machine, event).unwrap();
        self.run();
        self.world.report(id)
    }

    /// Through which handler each file of a session goes.
    fn handlers(&self, session: SessionId) -> Vec<String> {
        let files = self.world.core.files(session);
        files.map(|file| file.compatible.to_string()).collect()
    }
}

#[test]
fn the_machine_crosses_by_the_handler_that_its_carrier_can_serve() {
    for own_identity in [false, true] {
        let mut here = Two::new(ToyCarrier::default(), own_identity);
        let session = here.world.session("shop");
        here.world.give(session, 3);
        assert_eq!(here.handlers(session), ["toy"]);
        here.through(Event::Prepare).result.unwrap();
        assert_eq!(here.handlers(session), ["far-toy-v1"]);
        assert_eq!(here.world.core.carrier(), FAR);
        here.event(Event::Freeze).result.unwrap();
        here.event(Event::Depart).result.unwrap();
        assert_eq!(here.world.carrier.kept(), 0, "the near carrier has nothing of it");

        let mut there = Two::new(here.far.clone(), own_identity);
        there.through(Event::Arrive).result.unwrap();
        let session = there.world.core.session_by_name("shop").unwrap();
        assert!(matches!(
            there.world.core.retrieve(session, Token(3)).unwrap(),
            Retrieval::Pending
        ));
        there.run();
        let Retrieval::Ready(file) = there.world.core.retrieve(session, Token(3)).unwrap() else {
            panic!("it is there");
        };
        assert_eq!(file.id(), 3);
        there.world.core.mark_reclaimed(session, Token(3)).unwrap();
        let options = FinishOptions { carry_reclaimed: true, ..FinishOptions::default() };
        let id = there.world.core.finish(Scope::Machine, options).unwrap();
        there.run();
        assert_eq!(there.world.report(id).state, State::Normal);
        assert_eq!(there.far.kept(), 0);
        assert_eq!(there.far.0.lock().unwrap().committed, None);
        assert_eq!(there.world.core.carrier(), CarrierId::NEAR);
        assert_eq!(there.handlers(session), ["toy"], "it goes on through the near carrier");
        // It is preserved, and under the identity that its handler gives it now.
        let again = Toy::new(3);
        let refused = there.world.core.preserve(session, None, again, Criticality::Required);
        assert_eq!(refused.unwrap_err().errno(), Errno::Busy);
    }
}

#[test]
fn a_cancel_gives_every_file_its_handler_back() {
    for own_identity in [false, true] {
        for frozen in [false, true] {
            let mut here = Two::new(ToyCarrier::default(), own_identity);
            let session = here.world.session("shop");
            here.world.give(session, 1);
            here.world.give(session, 2);
            here.through(Event::Prepare).result.unwrap();
            if frozen {
                here.event(Event::Freeze).result.unwrap();
            }
            here.event(Event::Cancel).result.unwrap();
            assert_eq!(here.handlers(session), ["toy", "toy"]);
            assert_eq!((here.far.kept(), here.world.core.carrier()), (0, CarrierId::NEAR));
            // The near carrier takes them as if nothing had been.
            here.event(Event::Prepare).result.unwrap();
            assert_eq!(here.world.carrier.kept(), 2);
            here.event(Event::Cancel).result.unwrap();
            here.world.core.unpreserve(session, Token(1)).unwrap();
            here.world.give(session, 1);
            here.world.core.unregister_handler("far-toy-v1").unwrap();
        }
    }
}

#[test]
fn a_required_file_out_of_reach_cancels_the_update_by_name() {
    let mut here = Two::new(ToyCarrier::default(), false);
    let session = here.world.session("shop");
    here.world.give(session, 1);
    let pipe = Toy::of("pipe", 2);
    here.world.core.preserve(session, Some(Token(2)), pipe, Criticality::Required).unwrap();
    let error = here.through(Event::Prepare).result.unwrap_err();
    assert_eq!(error.errno(), Errno::NoEnt);
    let text = error.to_string();
    assert!(text.contains("live descriptors") && text.contains("shop"), "{text}");
    assert_eq!(here.world.state(), State::Normal);
    assert_eq!(here.handlers(session), ["toy", "pipe"]);
    assert_eq!((here.far.kept(), here.world.core.carrier()), (0, CarrierId::NEAR));
}

#[test]
fn an_optional_file_out_of_reach_is_left_out_and_reported() {
    let mut here = Two::new(ToyCarrier::default(), false);
    let session = here.world.session("shop");
    here.world.give(session, 1);
    let pipe = Toy::of("pipe", 2);
    here.world.core.preserve(session, Some(Token(2)), pipe, Criticality::Optional).unwrap();
    let report = here.through(Event::Prepare);
    report.result.unwrap();
    assert_eq!(report.left_out.len(), 1);
    here.event(Event::Freeze).result.unwrap();
    here.event(Event::Depart).result.unwrap();
    let mut there = Two::new(here.far.clone(), false);
    there.through(Event::Arrive).result.unwrap();
    let session = there.world.core.session_by_name("shop").unwrap();
    assert_eq!(there.handlers(session), ["far-toy-v1"]);
}

#[test]
fn what_is_ahead_in_the_near_carrier_keeps_the_machine_from_another() {
    let mut here = Two::new(ToyCarrier::default(), false);
    let session = here.world.session("shop");
    here.world.give(session, 1);
    let id = here.world.core.begin(Scope::Session(session), Event::Prepare).unwrap();
    here.run();
    here.world.report(id).result.unwrap();
    let error = here.world.core.begin_through(Event::Prepare, FAR).unwrap_err();
    assert_eq!(error.errno(), Errno::Busy);
    assert!(error.to_string().contains("shop"), "{error}");
    here.event(Event::Prepare).result.expect("the near one takes it along");
}

#[test]
fn an_unknown_carrier_or_another_event_is_refused() {
    let mut here = Two::new(ToyCarrier::default(), false);
    let core = &mut here.world.core;
    let unknown = core.begin_through(Event::Prepare, CarrierId(9)).unwrap_err();
    assert_eq!(unknown.errno(), Errno::NoEnt);
    for event in [Event::Freeze, Event::Depart, Event::Finish, Event::Cancel] {
        assert_eq!(core.begin_through(event, FAR).unwrap_err().errno(), Errno::Inval);
    }
    assert_eq!(core.carrier(), CarrierId::NEAR);
}

#[test]
fn an_arrival_without_a_handover_leaves_the_near_carrier() {
    let mut here = Two::new(ToyCarrier::default(), false);
    let report = here.through(Event::Arrive);
    report.result.unwrap();
    assert_eq!(report.state, State::Normal);
    assert_eq!(here.world.core.carrier(), CarrierId::NEAR);
}

/// Takes a framework down to its records and makes another one of them.
fn restarted(mut here: Two) -> Two {
    let mut next = Two::new(here.far.clone(), false);
    let dirty = here.world.core.take_dirty();
    assert!(dirty.machine);
    next.world.carrier = here.world.carrier.clone();
    next.world.core.restore_machine(here.world.core.machine_record()).unwrap();
    for session in &dirty.sessions {
        next.world.core.restore_session(here.world.core.session_record(*session).unwrap()).unwrap();
    }
    for file in &dirty.files {
        let record = here.world.core.file_record(*file).unwrap();
        let held = here.world.core.file_ref(*file);
        next.world.core.restore_file(record, held).unwrap();
    }
    next.world.core.resume();
    next.run();
    next
}

#[test]
fn the_records_know_the_carrier() {
    let mut here = Two::new(ToyCarrier::default(), false);
    let session = here.world.session("shop");
    here.world.give(session, 1);
    here.through(Event::Prepare).result.unwrap();
    let mut next = restarted(here);
    assert_eq!(next.world.core.carrier(), FAR);
    assert_eq!(next.handlers(session), ["far-toy-v1"]);
    // Whoever restored it can undo it, and then nothing is left of it.
    next.event(Event::Cancel).result.unwrap();
    assert_eq!(next.handlers(session), ["toy"]);
    assert_eq!((next.far.kept(), next.world.core.carrier()), (0, CarrierId::NEAR));
}

#[test]
fn a_failure_at_every_position_leaves_nothing_in_the_far_carrier() {
    for broken in ["keep tree", "commit"] {
        let far = ToyCarrier::default();
        let mut here = Two::new(far.clone(), false);
        let session = here.world.session("shop");
        here.world.give(session, 1);
        far.1.fail(broken);
        here.through(Event::Prepare).result.unwrap();
        let frozen = here.event(Event::Freeze);
        if frozen.result.is_ok() {
            assert!(here.event(Event::Depart).result.is_err());
            assert_eq!(here.world.state(), State::Frozen);
            here.event(Event::Cancel).result.unwrap();
        }
        assert_eq!(here.world.state(), State::Normal);
        assert_eq!(here.handlers(session), ["toy"]);
        assert_eq!((far.kept(), here.world.core.carrier()), (0, CarrierId::NEAR));
    }
}
