//! The process may die between any two calls: what was recorded up to then is all it takes to go
//! on.

mod common;

use std::collections::BTreeMap;

use common::*;
use luo_core::*;

/// The records as a daemon would keep them, and the descriptors.
#[derive(Default, Clone)]
struct Store {
    machine: Option<MachineRecord>,
    sessions: BTreeMap<SessionId, SessionRecord>,
    files: BTreeMap<FileKey, (FileRecord, Option<Toy>)>,
}

impl Store {
    /// Writes only what changed.
    fn write(&mut self, core: &mut Core) {
        let dirty = core.take_dirty();
        if dirty.machine {
            self.machine = Some(core.machine_record());
        }
        for id in dirty.sessions {
            match core.session_record(id) {
                Some(record) => self.sessions.insert(id, record),
                None => self.sessions.remove(&id),
            };
        }
        for key in dirty.files {
            match core.file_record(key) {
                Some(record) => self.files.insert(key, (record, core.file_ref(key))),
                None => self.files.remove(&key),
            };
        }
    }

    /// All that is there, written anew.
    fn whole(core: &Core) -> Self {
        let mut store = Self { machine: Some(core.machine_record()), ..Self::default() };
        for session in core.sessions() {
            store.sessions.insert(session.id, core.session_record(session.id).unwrap());
            for file in core.files(session.id) {
                let key = FileKey { session: session.id, side: file.side, token: file.token };
                let record = core.file_record(key).unwrap();
                store.files.insert(key, (record, core.file_ref(key)));
            }
        }
        store
    }

    fn restore(&self, carrier: &ToyCarrier, shared: bool) -> World {
        let mut world = World::bare(carrier.clone());
        if shared {
            world.shared_handler("toy")
        } else {
            world.handler("toy")
        }
        world.subsystem("s1", SubsystemOptions::default());
        world.subsystem("s2", SubsystemOptions::default());
        world.core.restore_machine(self.machine.clone().unwrap()).unwrap();
        for record in self.sessions.values() {
            world.core.restore_session(record.clone()).unwrap();
        }
        for (record, file) in self.files.values() {
            world.core.restore_file(record.clone(), file.clone()).unwrap();
        }
        world
    }

    fn same(&self, other: &Self) {
        assert_eq!(self.machine, other.machine);
        assert_eq!(self.sessions, other.sessions);
        let records = |store: &Self| -> Vec<FileRecord> {
            store.files.values().map(|(record, _)| record.clone()).collect()
        };
        assert_eq!(records(self), records(other));
    }
}

fn world(shared: bool) -> World {
    let mut world = World::bare(ToyCarrier::default());
    if shared {
        world.shared_handler("toy")
    } else {
        world.handler("toy")
    }
    world.subsystem("s1", SubsystemOptions::default());
    world.subsystem("s2", SubsystemOptions::default());
    let (a, b) = (world.session("a"), world.session("b"));
    world.give(a, 1);
    world.give(a, 2);
    world.give(b, 3);
    world
}

/// Runs calls one by one until `calls` were made, with a record written after each; then the
/// process is dead.
fn die_after(world: &mut World, store: &mut Store, calls: usize) -> bool {
    for _ in 0..calls {
        store.write(&mut world.core);
        let Some(call) = world.core.next_call() else { return false };
        store.write(&mut world.core);
        world.complete(&call);
        store.write(&mut world.core);
        store.same(&Store::whole(&world.core));
    }
    store.write(&mut world.core);
    true
}

#[test]
fn a_machine_whose_process_dies_in_a_transition_undoes_it_and_goes_on() {
    for shared in [false, true] {
        for event in [Event::Prepare, Event::Freeze, Event::Cancel] {
            for calls in 0.. {
                let mut world = world(shared);
                world.event(Scope::File(SessionId(1), Token(1)), Event::Prepare);
                if event != Event::Prepare {
                    world.machine(Event::Prepare);
                }
                let mut store = Store::default();
                world.core.begin(Scope::Machine, event).unwrap();
                let midway = die_after(&mut world, &mut store, calls);
                if !midway || world.core.status().transition.is_none() {
                    break;
                }
                let context = format!("{event} after {calls} calls, shared {shared}");
                let mut next = store.restore(&world.carrier, shared);
                let begun = next.core.resume();
                assert_eq!(begun.len(), 1, "{context}");
                next.run();
                assert!(next.report(begun[0]).result.is_ok());
                assert_eq!(next.state(), State::Normal, "{context}");
                let left = if event == Event::Prepare { State::Prepared } else { State::Normal };
                assert_eq!(
                    next.file_states(SessionId(1)),
                    [left, State::Normal],
                    "{context}: what was ahead stays unless it was frozen or cancelled"
                );
                if event == Event::Prepare {
                    next.event(Scope::File(SessionId(1), Token(1)), Event::Cancel);
                }
                assert_eq!(next.carrier.kept(), 0, "{context}");
                for event in [Event::Prepare, Event::Freeze, Event::Cancel] {
                    assert!(next.machine(event).result.is_ok(), "{context}");
                }
                assert_eq!(next.carrier.kept(), 0, "{context}");
            }
        }
    }
}

#[test]
fn a_machine_at_rest_in_every_state_is_the_same_after_a_restore() {
    for shared in [false, true] {
        let mut world = world(shared);
        for event in [Event::Prepare, Event::Freeze, Event::Depart] {
            assert!(world.machine(event).result.is_ok());
            let store = Store::whole(&world.core);
            let mut next = store.restore(&world.carrier, shared);
            assert!(next.core.resume().is_empty());
            assert_eq!(next.core.status(), world.core.status());
            store.same(&Store::whole(&next.core));
            world = next;
            world.core.take_dirty();
        }
        let mut other = World::bare(world.carrier.clone());
        if shared {
            other.shared_handler("toy")
        } else {
            other.handler("toy")
        }
        other.machine(Event::Arrive);
        let a = other.core.session_by_name("a").unwrap();
        other.retrieve(a, 1).unwrap();
        other.core.mark_reclaimed(a, Token(1)).unwrap();
        other.core.preserve(a, Some(Token(1)), Toy::new(50), Criticality::Optional).unwrap();
        other.script.fail("retrieve 2");
        let error = other.retrieve(a, 2).unwrap_err();
        let store = Store::whole(&other.core);
        other.log();
        let mut next = store.restore(&other.carrier, shared);
        next.script.heal();
        // The other side's subsystems had not registered: they get their data now.
        next.core.resume();
        next.run();
        assert_eq!(next.log(), words("boot s1, boot s2"));
        assert_eq!(next.retrieve(a, 1).unwrap().id(), 1);
        let again = next.retrieve(a, 2).unwrap_err();
        assert_eq!((again.errno(), again.reason()), (error.errno(), error.reason()));
        assert!(next.log().is_empty(), "nothing is retrieved twice");
        assert_eq!(next.core.usage(ALICE.uid), other.core.usage(ALICE.uid));
        let options = FinishOptions { unclaimed: UnclaimedFiles::Carry, ..Default::default() };
        let id = next.core.finish(Scope::Machine, options).unwrap();
        next.run();
        assert!(next.report(id).result.is_ok());
        let log = next.log();
        let calls = |call: &str| log.iter().filter(|made| *made == call).count();
        assert_eq!(calls("retrieve shared toy"), 0, "it was retrieved on the side before");
        assert_eq!(calls("finish shared toy"), usize::from(shared));
    }
}

#[test]
fn a_session_whose_process_dies_while_it_departs_is_undone() {
    for calls in 0.. {
        let mut world = world(false);
        let mut store = Store::default();
        world.core.begin(Scope::Session(SessionId(1)), Event::Depart).unwrap();
        if !die_after(&mut world, &mut store, calls)
            || world.core.session(SessionId(1)).unwrap().status.transition.is_none()
        {
            assert_eq!(calls, 4, "two files, prepared and frozen");
            break;
        }
        let mut next = store.restore(&world.carrier, false);
        let begun = next.core.resume();
        next.run();
        assert!(next.report(begun[0]).result.is_ok());
        assert_eq!(next.carrier.kept(), 0);
        assert!(next.event(Scope::Session(SessionId(1)), Event::Depart).result.is_ok());
    }
}

#[test]
fn a_finish_that_was_cut_short_can_be_asked_for_again() {
    for calls in 0.. {
        let mut world = world(false);
        world.event(Scope::Session(SessionId(1)), Event::Depart);
        world.event(Scope::Session(SessionId(1)), Event::Arrive);
        let mut store = Store::default();
        let options = FinishOptions { unclaimed: UnclaimedFiles::Release, ..Default::default() };
        world.core.finish(Scope::Session(SessionId(1)), options).unwrap();
        if !die_after(&mut world, &mut store, calls)
            || world.core.session(SessionId(1)).unwrap().status.transition.is_none()
        {
            assert_eq!(calls, 4);
            break;
        }
        let mut next = store.restore(&world.carrier, false);
        assert!(next.core.resume().is_empty());
        let id = next.core.finish(Scope::Session(SessionId(1)), options).unwrap();
        next.run();
        assert!(next.report(id).result.is_ok());
        assert_eq!(next.carrier.kept(), 0);
    }
}

#[test]
fn an_interrupted_depart_counts_as_departed_so_that_cancel_takes_the_handover_back() {
    let mut world = world(false);
    world.machine(Event::Prepare);
    world.machine(Event::Freeze);
    world.core.begin(Scope::Machine, Event::Depart).unwrap();
    let call = world.calls().remove(0);
    let store = Store::whole(&world.core);
    world.complete(&call); // and nobody wrote that down
    let mut next = store.restore(&world.carrier, false);
    next.core.resume();
    assert!(next.core.status().departed);
    next.log();
    next.machine(Event::Cancel);
    assert_eq!(next.log()[0], "retire");
    assert_eq!(next.carrier.kept(), 0);
}

#[test]
fn a_file_whose_handler_is_gone_is_kept_with_its_error() {
    let mut world = world(false);
    world.event(Scope::Session(SessionId(1)), Event::Prepare);
    world.event(Scope::Session(SessionId(2)), Event::Depart);
    world.event(Scope::Session(SessionId(2)), Event::Arrive);
    let store = Store::whole(&world.core);
    let mut next = World::bare(world.carrier.clone());
    next.core.restore_machine(store.machine.clone().unwrap()).unwrap();
    for record in store.sessions.values() {
        next.core.restore_session(record.clone()).unwrap();
    }
    for (record, file) in store.files.values() {
        next.core.restore_file(record.clone(), file.clone()).unwrap();
    }
    next.core.resume();
    assert_eq!(next.core.session(SessionId(1)).unwrap().outgoing, 2);
    let error = next.retrieve(SessionId(2), 3).unwrap_err();
    assert_eq!(error.errno(), Errno::NoEnt);
    assert_eq!(error.location().handler.as_deref(), Some("toy"));
    let report = next.event(Scope::Session(SessionId(1)), Event::Freeze);
    assert!(report.result.unwrap_err().reason().contains("no handler for toy"));
    assert_eq!(next.core.session(SessionId(1)).unwrap().status.state, State::Normal);
    next.core.release_session(SessionId(2)).unwrap();
    next.run();
    assert_eq!(next.carrier.kept(), 0, "what was kept is given back without the handler");
}

#[test]
fn a_participant_that_registers_again_goes_on_where_it_was() {
    let mut world = World::new();
    let options =
        SubsystemOptions { criticality: Criticality::Optional, concurrent: true, last: false };
    world.core.register_subsystem("p", SubsystemKind::Remote, options).unwrap();
    world.core.begin(Scope::Machine, Event::Prepare).unwrap();
    let call = world.calls().remove(0);
    world.core.complete(call.id(), Outcome::data(5)).unwrap();
    let store = Store::whole(&world.core);

    let mut next = World::new();
    next.core.restore_machine(store.machine.unwrap()).unwrap();
    next.core.resume();
    next.core.register_subsystem("p", SubsystemKind::Remote, options).unwrap();
    let again = next.core.register_subsystem("p", SubsystemKind::Remote, options);
    assert_eq!(again.unwrap_err().errno(), Errno::Exist);
    next.core.begin(Scope::Machine, Event::Freeze).unwrap();
    let call = loop {
        let call = next.core.next_call().unwrap();
        if call.kind() == CallKind::Remote {
            break call;
        }
        next.complete(&call);
    };
    assert_eq!((call.phase(), call.data()), (Phase::Freeze, Some(5)));
}

#[test]
fn records_that_do_not_fit_are_refused_without_a_trace() {
    let world = world(false);
    let store = Store::whole(&world.core);
    let mut next = store.restore(&world.carrier, false);
    let before = Store::whole(&next.core);
    let machine = store.machine.clone().unwrap();
    assert_eq!(next.core.restore_machine(machine).unwrap_err().errno(), Errno::Busy);
    let session = store.sessions[&SessionId(1)].clone();
    assert_eq!(next.core.restore_session(session).unwrap_err().errno(), Errno::Exist);
    let (record, file) = store.files.values().next().unwrap().clone();
    let refused = |next: &mut World, record: FileRecord, file, errno| {
        assert_eq!(next.core.restore_file(record, file).unwrap_err().errno(), errno);
    };
    refused(&mut next, record.clone(), file.clone(), Errno::Exist);
    let other = FileRecord { token: Token(99), ..record.clone() };
    refused(&mut next, other.clone(), file.clone(), Errno::Busy);
    refused(&mut next, other.clone(), None, Errno::Inval);
    let unknown = FileRecord { session: SessionId(9), ..other.clone() };
    refused(&mut next, unknown, file.clone(), Errno::NoEnt);
    let bad = FileRecord { compatible: "a b".into(), ..other };
    refused(&mut next, bad, file, Errno::Inval);
    before.same(&Store::whole(&next.core));
    assert_eq!(next.core.usage(ALICE.uid), world.core.usage(ALICE.uid));
}
