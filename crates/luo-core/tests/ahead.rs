//! Sessions and files that go through their phases ahead of the machine, sessions that are updated
//! alone, and sessions that are given up.

mod common;

use common::*;
use luo_core::*;

/// Session `a` with files 1 and 2, session `b` with file 3.
fn world() -> (World, SessionId, SessionId) {
    let mut world = World::new();
    let (a, b) = (world.session("a"), world.session("b"));
    world.give(a, 1);
    world.give(a, 2);
    world.give(b, 3);
    (world, a, b)
}

fn state(world: &World, session: SessionId) -> State {
    world.core.session(session).unwrap().status.state
}

#[test]
fn what_is_ahead_is_passed_over_by_the_machine() {
    let (mut world, a, b) = world();
    world.event(Scope::File(a, Token(2)), Event::Prepare);
    world.event(Scope::Session(b), Event::Prepare);
    world.event(Scope::Session(b), Event::Freeze);
    assert_eq!(world.log(), words("prepare 2, prepare 3, freeze 3"));
    assert_eq!((state(&world, a), state(&world, b)), (State::Normal, State::Frozen));

    assert!(world.machine(Event::Prepare).result.is_ok());
    assert_eq!(world.log(), ["prepare 1"]);
    assert!(world.machine(Event::Freeze).result.is_ok());
    assert_eq!(world.log(), words("freeze 1, freeze 2, keep tree"));
    assert!(world.machine(Event::Cancel).result.is_ok());
    assert_eq!(world.log(), words("cancel 3, cancel 2, cancel 1"), "an explicit one takes all");
    assert_eq!((state(&world, a), state(&world, b)), (State::Normal, State::Normal));
    assert_eq!(world.carrier.kept(), 0);
}

#[test]
fn a_prepare_of_the_machine_that_fails_leaves_what_was_ahead() {
    let (mut world, a, b) = world();
    world.event(Scope::File(a, Token(1)), Event::Prepare);
    world.event(Scope::Session(b), Event::Prepare);
    world.log();
    world.script.fail("prepare s");
    world.subsystem("s", SubsystemOptions::default());
    assert!(world.machine(Event::Prepare).result.is_err());
    assert_eq!(world.log(), words("prepare 2, prepare s, cancel 2"));
    assert_eq!(world.file_states(a), [State::Prepared, State::Normal]);
    assert_eq!((state(&world, a), state(&world, b)), (State::Normal, State::Prepared));
}

#[test]
fn a_freeze_of_the_machine_that_fails_takes_what_it_froze_and_leaves_what_was_frozen_ahead() {
    let (mut world, a, b) = world();
    world.event(Scope::Session(a), Event::Prepare);
    world.event(Scope::File(b, Token(3)), Event::Prepare);
    world.event(Scope::File(b, Token(3)), Event::Freeze);
    assert!(world.machine(Event::Prepare).result.is_ok());
    world.log();
    world.script.fail("freeze 2");
    assert!(world.machine(Event::Freeze).result.is_err());
    assert_eq!(world.log(), words("freeze 1, freeze 2, cancel 2, cancel 1"));
    assert_eq!(world.file_states(b), [State::Frozen], "frozen ahead, and not by the machine");
    assert_eq!((state(&world, a), state(&world, b)), (State::Normal, State::Normal));
    world.event(Scope::File(b, Token(3)), Event::Cancel);
    assert_eq!(world.carrier.kept(), 0);
}

#[test]
fn nothing_goes_ahead_of_what_is_prepared() {
    let (mut world, a, _) = world();
    world.event(Scope::Session(a), Event::Prepare);
    for event in [Event::Prepare, Event::Freeze, Event::Cancel] {
        let error = world.core.begin(Scope::File(a, Token(1)), event).unwrap_err();
        assert_eq!(error.errno(), Errno::Busy, "{event}");
    }
    assert_eq!(world.core.unpreserve(a, Token(1)).unwrap_err().errno(), Errno::Busy);
    world.machine(Event::Prepare);
    for event in [Event::Freeze, Event::Cancel, Event::Depart, Event::Arrive, Event::Finish] {
        let error = world.core.begin(Scope::Session(a), event).unwrap_err();
        assert_eq!(error.errno(), Errno::Busy, "{event}");
        assert!(error.advice().is_some());
    }
}

#[test]
fn events_that_make_no_sense_for_a_file_are_einval_and_unknown_ones_enoent() {
    let (mut world, a, _) = world();
    for event in [Event::Depart, Event::Arrive] {
        let error = world.core.begin(Scope::File(a, Token(1)), event).unwrap_err();
        assert_eq!(error.errno(), Errno::Inval);
    }
    for event in [Event::Prepare, Event::Finish] {
        let error = world.core.begin(Scope::File(a, Token(9)), event).unwrap_err();
        assert_eq!(error.errno(), Errno::NoEnt);
        let error = world.core.begin(Scope::Session(SessionId(9)), event).unwrap_err();
        assert_eq!(error.errno(), Errno::NoEnt);
    }
}

#[test]
fn a_file_alone_that_fails_fails_even_where_it_is_optional() {
    let (mut world, a, _) = world();
    world.core.preserve(a, Some(Token(4)), Toy::new(4), Criticality::Optional).unwrap();
    world.script.fail("prepare 4");
    let report = world.event(Scope::File(a, Token(4)), Event::Prepare);
    assert_eq!(report.result.unwrap_err().errno(), Errno::Io);
    assert_eq!(report.state, State::Normal);
}

#[test]
fn sessions_go_ahead_side_by_side_and_the_machine_waits_for_them() {
    let (mut world, a, b) = world();
    let first = world.core.begin(Scope::Session(a), Event::Prepare).unwrap();
    let second = world.core.begin(Scope::Session(b), Event::Prepare).unwrap();
    let calls = world.calls();
    assert_eq!(calls.len(), 3);
    assert_eq!(world.core.begin(Scope::Machine, Event::Prepare).unwrap_err().errno(), Errno::Busy);
    assert_eq!(
        world.core.begin(Scope::File(a, Token(1)), Event::Prepare).unwrap_err().errno(),
        Errno::Busy
    );
    assert_eq!(
        world.core.preserve(a, None, Toy::new(9), Criticality::Required).unwrap_err().errno(),
        Errno::Busy
    );
    for call in calls.iter().rev() {
        world.complete(call);
    }
    assert!(world.report(first).result.is_ok() && world.report(second).result.is_ok());
    assert!(world.machine(Event::Prepare).result.is_ok());
}

#[test]
fn a_session_alone_is_updated_while_the_machine_stays_normal() {
    let (mut world, a, b) = world();
    for ahead in [None, Some(Event::Prepare), Some(Event::Freeze)] {
        world.log();
        let mut expected = words("prepare 1, prepare 2, freeze 1, freeze 2");
        if ahead.is_some() {
            world.event(Scope::Session(a), Event::Prepare);
        }
        if ahead == Some(Event::Freeze) {
            world.event(Scope::Session(a), Event::Freeze);
        }
        let report = world.event(Scope::Session(a), Event::Depart);
        assert!(report.result.is_ok());
        assert_eq!(report.state, State::Frozen);
        let report = world.event(Scope::Session(a), Event::Arrive);
        assert_eq!((report.result.is_ok(), report.state), (true, State::Updated));
        assert_eq!(world.log(), expected, "{ahead:?}");
        assert_eq!((world.state(), state(&world, b)), (State::Normal, State::Normal));

        let info = world.core.session(a).unwrap();
        assert_eq!((info.outgoing, info.incoming, info.pinned), (0, 2, 20));
        assert_eq!(world.core.usage(ALICE.uid).files, 1, "only b's file is on its way");
        // The machine waits for the session's finish.
        let error = world.core.begin(Scope::Machine, Event::Prepare).unwrap_err();
        assert_eq!(error.location().session.as_ref().unwrap().0, a);
        // Both sets have their own tokens and identities.
        world.core.preserve(a, Some(Token(1)), Toy::new(1), Criticality::Required).unwrap();
        world.core.unpreserve(a, Token(1)).unwrap();

        for id in [2, 1] {
            assert_eq!(world.retrieve(a, id).unwrap().id(), id);
            world.core.mark_reclaimed(a, Token(id)).unwrap();
        }
        let options = FinishOptions { carry_reclaimed: true, ..FinishOptions::default() };
        let id = world.core.finish(Scope::Session(a), options).unwrap();
        world.run();
        assert!(world.report(id).result.is_ok());
        expected = words("retrieve 2, retrieve 1, can_finish 1, can_finish 2");
        expected.extend(words("finish 1 reclaimed, finish 2 reclaimed"));
        assert_eq!(world.log(), expected);
        assert_eq!(state(&world, a), State::Normal);
        assert_eq!(world.core.usage(ALICE.uid).files, 3);
        assert_eq!(world.carrier.kept(), 0, "what the handler forgot to release is released");
    }
}

#[test]
fn a_session_that_cannot_depart_is_normal_again() {
    for victim in ["prepare 1", "prepare 2", "freeze 1", "freeze 2"] {
        let (mut world, a, _) = world();
        world.script.fail(victim);
        let report = world.event(Scope::Session(a), Event::Depart);
        assert!(report.result.is_err());
        assert_eq!((report.state, state(&world, a)), (State::Normal, State::Normal));
        assert_eq!(world.carrier.kept(), 0);
        assert_eq!(world.file_states(a), [State::Normal; 2]);
    }
}

#[test]
fn an_optional_file_that_was_left_out_says_so_to_whoever_asks_for_it() {
    for victim in ["prepare 4", "freeze 4"] {
        let (mut world, a, _) = world();
        world.core.preserve(a, Some(Token(4)), Toy::new(4), Criticality::Optional).unwrap();
        world.script.fail(victim);
        let report = world.event(Scope::Session(a), Event::Depart);
        assert!(report.result.is_ok());
        assert_eq!(report.left_out.len(), 1);
        world.event(Scope::Session(a), Event::Arrive);
        let error = world.retrieve(a, 4).unwrap_err();
        assert_eq!(error.errno(), Errno::Io);
        assert!(error.reason().contains(victim));
        assert_eq!(world.retrieve(a, 1).unwrap().id(), 1);
    }
}

#[test]
fn one_incoming_file_can_be_finished_ahead_of_its_session() {
    let (mut world, a, _) = world();
    world.event(Scope::Session(a), Event::Depart);
    world.event(Scope::Session(a), Event::Arrive);
    let error = world.core.begin(Scope::File(a, Token(1)), Event::Finish).unwrap_err();
    assert_eq!(error.errno(), Errno::Busy, "nobody has it");
    world.retrieve(a, 1).unwrap();
    world.core.mark_reclaimed(a, Token(1)).unwrap();
    world.log();
    assert!(world.event(Scope::File(a, Token(1)), Event::Finish).result.is_ok());
    assert_eq!(world.log(), words("can_finish 1, finish 1 reclaimed"));
    assert_eq!(world.core.session(a).unwrap().incoming, 1);
    assert_eq!(world.core.retrieve(a, Token(1)).unwrap_err().errno(), Errno::NoEnt);
    assert_eq!(world.retrieve(a, 2).unwrap().id(), 2);
}

#[test]
fn a_session_is_given_up_from_every_state() {
    let (mut world, a, _) = world();
    let id = world.core.release_session(a).unwrap();
    world.run();
    let report = world.report(id);
    assert!(report.removed && report.result.is_ok());
    assert!(world.log().is_empty() && world.core.session(a).is_none());

    for events in
        [&[Event::Prepare][..], &[Event::Prepare, Event::Freeze], &[Event::Depart, Event::Arrive]]
    {
        let (mut world, a, b) = self::world();
        for event in events {
            world.event(Scope::Session(a), *event);
        }
        assert_eq!(world.core.remove_session(a).unwrap_err().errno(), Errno::Busy);
        world.log();
        let id = world.core.release_session(a).unwrap();
        world.run();
        assert!(world.report(id).removed);
        let expected = match events.len() {
            2 if events[1] == Event::Arrive => {
                words("can_finish 1, can_finish 2, finish 1, finish 2")
            }
            _ => words("cancel 2, cancel 1"),
        };
        assert_eq!(world.log(), expected);
        assert_eq!(world.core.session_by_name("a"), None);
        assert_eq!(world.core.usage(ALICE.uid), Usage { sessions: 1, files: 1, bytes: 10 });
        assert_eq!(world.carrier.kept(), 0);
        // Its name and its files are free.
        world.core.preserve(b, None, Toy::new(1), Criticality::Required).unwrap();
        world.session("a");
    }
}

#[test]
fn a_session_is_given_up_from_a_prepared_machine_which_goes_on_without_it() {
    let (mut world, a, _) = world();
    world.machine(Event::Prepare);
    world.log();
    world.core.release_session(a).unwrap();
    world.run();
    assert_eq!(world.log(), words("cancel 2, cancel 1"));
    assert_eq!(world.state(), State::Prepared);
    assert!(world.machine(Event::Freeze).result.is_ok());
    assert_eq!(world.log(), words("freeze 3, keep tree"));
    let b = world.core.session_by_name("b").unwrap();
    assert_eq!(world.core.release_session(b).unwrap_err().errno(), Errno::Busy);
}

#[test]
fn a_session_whose_file_refuses_to_be_finished_is_not_given_up() {
    let (mut world, a, _) = world();
    world.event(Scope::Session(a), Event::Depart);
    world.event(Scope::Session(a), Event::Arrive);
    world.script.fail("can_finish 2");
    let id = world.core.release_session(a).unwrap();
    world.run();
    let report = world.report(id);
    assert!(!report.removed);
    assert_eq!(report.result.unwrap_err().errno(), Errno::Busy);
    assert_eq!(world.core.session(a).unwrap().incoming, 2);
}

#[test]
fn what_is_unclaimed_expires_by_its_policy() {
    let (mut world, a, b) = world();
    let ttl = |seconds| Policy { on_close: OnClose::Keep { ttl_seconds: seconds } };
    world.core.set_policy(a, ttl(Some(60))).unwrap();
    world.core.set_policy(b, ttl(None)).unwrap();
    world.core.owner_gone(a, 1000).unwrap();
    world.core.owner_gone(b, 1000).unwrap();
    assert!(world.core.session(b).unwrap().unclaimed);
    assert_eq!(world.core.next_expiry(), Some(1060));
    assert!(world.core.expired(1059).is_empty());
    assert_eq!(world.core.expired(1060), [a]);
    world.core.owner_back(a).unwrap();
    assert!(world.core.expired(u64::MAX).is_empty());
    world.core.owner_gone(a, u64::MAX - 1).unwrap();
    assert_eq!(world.core.expired(u64::MAX), [a]);
    world.core.remove_session(a).unwrap();
    assert_eq!(world.core.next_expiry(), None);
    assert_eq!(world.core.pinned(), 10);
}
