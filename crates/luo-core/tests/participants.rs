//! Participants: their calls are answered by the driver, and they may go at any moment.

mod common;

use common::*;
use luo_core::*;

fn join(world: &mut World, name: &str, criticality: Criticality) {
    let options = SubsystemOptions { criticality, concurrent: true, last: false };
    world.core.register_subsystem(name, SubsystemKind::Remote, options).unwrap();
}

fn answer(world: &mut World, call: &Call<Toy>, outcome: Outcome<Toy>) {
    assert_eq!(call.kind(), CallKind::Remote);
    world.core.complete(call.id(), outcome).unwrap();
    world.collect();
}

fn names(world: &World) -> Vec<String> {
    world.core.subsystems().map(|sub| sub.name.to_string()).collect()
}

#[test]
fn participants_take_part_with_data_of_their_own() {
    let mut world = World::new();
    join(&mut world, "p", Criticality::Required);
    for (event, phase, told) in [
        (Event::Prepare, Phase::Prepare, None),
        (Event::Freeze, Phase::Freeze, Some(41)),
        (Event::Cancel, Phase::Cancel, Some(42)),
    ] {
        let id = world.core.begin(Scope::Machine, event).unwrap();
        let call = loop {
            let call = world.core.next_call().unwrap();
            if call.kind() == CallKind::Remote {
                break call;
            }
            world.complete(&call);
        };
        assert_eq!((call.phase(), call.data()), (phase, told));
        assert!(call.run(&world.carrier).result().is_err(), "nobody here can run it");
        let outcome = match event {
            Event::Prepare => Outcome::data(41),
            Event::Freeze => Outcome::data(42),
            _ => Outcome::done(),
        };
        answer(&mut world, &call, outcome);
        world.run();
        assert!(world.report(id).result.is_ok());
    }
}

/// Runs an event, the participant's part by its name; what was called, in its order.
fn order_of(world: &mut World, event: Event, succeeds: bool) -> Vec<String> {
    let id = world.core.begin(Scope::Machine, event).unwrap();
    while let Some(call) = world.core.next_call() {
        if call.kind() == CallKind::Remote {
            world.script.call(format!("{} p", call.phase())).unwrap();
            answer(world, &call, Outcome::data(1));
        } else {
            world.complete(&call);
        }
    }
    world.collect();
    assert_eq!(world.report(id).result.is_ok(), succeeds);
    world.log()
}

#[test]
fn who_uses_files_stands_still_before_they_are_frozen_and_goes_on_after_they_live_again() {
    let mut world = World::new();
    world.subsystem("s", SubsystemOptions::default());
    join(&mut world, "p", Criticality::Required);
    let session = world.session("a");
    world.give(session, 1);
    let prepared = ["prepare 1", "prepare s", "prepare p"];
    assert_eq!(order_of(&mut world, Event::Prepare, true), prepared);
    let frozen = ["freeze p", "freeze 1", "keep tree", "freeze s"];
    assert_eq!(order_of(&mut world, Event::Freeze, true), frozen);
    let cancelled = ["cancel s", "cancel 1", "cancel p"];
    assert_eq!(order_of(&mut world, Event::Cancel, true), cancelled);
    // A freeze that fails in a file undoes the participant's too, behind the file's.
    assert_eq!(order_of(&mut world, Event::Prepare, true), prepared);
    world.script.fail("freeze 1");
    let undone = ["freeze p", "freeze 1", "cancel s", "cancel 1", "cancel p"];
    assert_eq!(order_of(&mut world, Event::Freeze, false), undone);
}

#[test]
fn a_veto_names_the_participant_and_its_reason() {
    let mut world = World::new();
    join(&mut world, "p", Criticality::Required);
    let id = world.core.begin(Scope::Machine, Event::Prepare).unwrap();
    let call = world.calls().remove(0);
    answer(&mut world, &call, Outcome::failed(Failure::new(Errno::Busy, "a backup is running")));
    let error = world.report(id).result.unwrap_err();
    assert_eq!(error.to_string(), "prepare of subsystem p: a backup is running (EBUSY)");
}

#[test]
fn a_participant_that_goes_at_rest_is_taken_out_at_once() {
    let mut world = World::new();
    join(&mut world, "p", Criticality::Required);
    world.core.subsystem_gone("p").unwrap();
    world.collect();
    assert_eq!(names(&world), ["files"]);
    assert!(world.notices.iter().any(|n| matches!(n, Notice::Removed(name) if &**name == "p")));
    assert_eq!(world.core.subsystem_gone("p").unwrap_err().errno(), Errno::NoEnt);
    world.subsystem("s", SubsystemOptions::default());
    assert_eq!(world.core.subsystem_gone("s").unwrap_err().errno(), Errno::NoEnt);
}

#[test]
fn a_participant_that_goes_while_it_is_called_fails_the_update_with_its_name() {
    for criticality in [Criticality::Required, Criticality::Optional] {
        for phase in [Phase::Prepare, Phase::Freeze] {
            let mut world = World::new();
            world.subsystem("s", SubsystemOptions::default());
            join(&mut world, "p", criticality);
            let mut id = world.core.begin(Scope::Machine, Event::Prepare).unwrap();
            let mut pending = None;
            loop {
                let Some(call) = world.core.next_call() else {
                    if pending.is_some() || world.core.status().state == State::Frozen {
                        break;
                    }
                    id = world.core.begin(Scope::Machine, Event::Freeze).unwrap();
                    continue;
                };
                match call.kind() {
                    CallKind::Remote if call.phase() == phase => pending = Some(call),
                    CallKind::Remote => answer(&mut world, &call, Outcome::data(1)),
                    _ => world.complete(&call),
                }
            }
            world.log();
            world.core.subsystem_gone("p").unwrap();
            assert!(
                world.core.complete(pending.unwrap().id(), Outcome::data(1)).is_err(),
                "the call has ended with it"
            );
            world.run();
            let report = world.report(id);
            let error = match criticality {
                Criticality::Required => report.result.unwrap_err(),
                Criticality::Optional => report.left_out[0].clone(),
            };
            assert_eq!(error.errno(), Errno::NotConn);
            assert_eq!(error.location().subsystem.as_deref(), Some("p"));
            if criticality == Criticality::Required {
                assert_eq!(world.log(), ["cancel s"], "it is not told to cancel: it is gone");
                assert_eq!(names(&world), ["files", "s"]);
            } else {
                assert_eq!(names(&world), ["files", "s", "p"], "it waits to be taken out");
                world.machine(Event::Cancel);
                assert_eq!(names(&world), ["files", "s"]);
            }
        }
    }
}

#[test]
fn a_participant_that_goes_while_prepared_fails_the_freeze() {
    let mut world = World::new();
    join(&mut world, "p", Criticality::Required);
    world.core.begin(Scope::Machine, Event::Prepare).unwrap();
    let call = world.calls().remove(0);
    answer(&mut world, &call, Outcome::data(1));
    world.core.subsystem_gone("p").unwrap();
    assert_eq!(names(&world), ["files", "p"]);
    assert!(world.core.subsystems().any(|sub| sub.gone));
    let report = world.machine(Event::Freeze);
    assert_eq!(report.result.unwrap_err().errno(), Errno::NotConn);
    assert_eq!(world.state(), State::Normal);
    assert_eq!(names(&world), ["files"]);
}

#[test]
fn a_late_participant_that_goes_is_forgotten() {
    let mut world = World::new();
    join(&mut world, "p", Criticality::Required);
    let id = world.core.begin(Scope::Machine, Event::Prepare).unwrap();
    let call = world.calls().remove(0);
    world.late(&call);
    assert_eq!(world.report(id).result.unwrap_err().errno(), Errno::TimedOut);
    world.core.subsystem_gone("p").unwrap();
    assert_eq!(names(&world), ["files"]);
    assert!(world.machine(Event::Prepare).result.is_ok());
}

#[test]
fn a_late_participant_that_answers_after_all_is_told_to_cancel() {
    let mut world = World::new();
    join(&mut world, "p", Criticality::Required);
    world.core.begin(Scope::Machine, Event::Prepare).unwrap();
    let call = world.calls().remove(0);
    world.late(&call);
    assert!(world.core.complete(call.id(), Outcome::late("again")).is_err());
    answer(&mut world, &call, Outcome::data(5));
    let undo = world.calls().remove(0);
    assert_eq!((undo.phase(), undo.data()), (Phase::Cancel, Some(5)));
    answer(&mut world, &undo, Outcome::done());
    assert!(world.notices.iter().any(|notice| matches!(notice, Notice::Undone(_))));
    world.core.begin(Scope::Machine, Event::Prepare).unwrap();
    assert_eq!(world.calls().len(), 1);
}

#[test]
fn a_participant_that_goes_in_updated_gets_its_data_again_when_it_is_back() {
    let mut world = World::new();
    join(&mut world, "p", Criticality::Required);
    for event in [Event::Prepare, Event::Freeze, Event::Depart] {
        world.core.begin(Scope::Machine, event).unwrap();
        while let Some(call) = world.core.next_call() {
            match call.kind() {
                CallKind::Remote => answer(&mut world, &call, Outcome::data(9)),
                _ => world.complete(&call),
            }
        }
    }
    let mut other = world.other_side();
    other.machine(Event::Arrive);
    for _ in 0..2 {
        join(&mut other, "p", Criticality::Required);
        let call = other.calls().remove(0);
        assert_eq!((call.phase(), call.data()), (Phase::Boot, Some(9)));
        answer(&mut other, &call, Outcome::done());
        other.core.subsystem_gone("p").unwrap();
        assert_eq!(names(&other), ["files"]);
    }
    assert!(other.machine(Event::Finish).result.is_ok());
}
