//! State that a handler shares among its files: there while at least one of them is preserved,
//! whatever fails.

mod common;

use common::*;
use luo_core::*;

/// Files 1 and 2 of a handler with shared state in session `a`, 3 in `b`; file 4, of another
/// handler without, in `b`.
fn world() -> (World, SessionId, SessionId) {
    let mut world = World::bare(ToyCarrier::default());
    world.shared_handler("toy");
    world.handler("plain");
    let (a, b) = (world.session("a"), world.session("b"));
    world.give(a, 1);
    world.give(a, 2);
    world.give(b, 3);
    world.core.preserve(b, Some(Token(4)), Toy::of("plain", 4), Criticality::Required).unwrap();
    (world, a, b)
}

fn arrived(world: &World) -> (World, SessionId, SessionId) {
    let mut other = World::bare(world.carrier.clone());
    other.shared_handler("toy");
    other.handler("plain");
    assert!(other.machine(Event::Arrive).result.is_ok());
    other.log();
    let find = |name| other.core.session_by_name(name).unwrap();
    let (a, b) = (find("a"), find("b"));
    (other, a, b)
}

#[test]
fn it_comes_before_the_first_file_and_goes_after_the_last() {
    let (mut world, ..) = world();
    world.machine(Event::Prepare);
    assert_eq!(
        world.log(),
        words("prepare shared toy, prepare 1, prepare 2, prepare 3, prepare 4")
    );
    world.machine(Event::Freeze);
    assert_eq!(
        world.log(),
        words("freeze 1, freeze 2, freeze 3, freeze 4, freeze shared toy, keep tree")
    );
    world.machine(Event::Cancel);
    assert_eq!(world.log(), words("cancel 4, cancel 3, cancel 2, cancel 1, cancel shared toy"));
    assert_eq!(world.carrier.kept(), 0);
}

#[test]
fn it_crosses_is_retrieved_once_and_is_finished_after_the_last_file() {
    let (mut world, ..) = world();
    for event in [Event::Prepare, Event::Freeze, Event::Depart] {
        assert!(world.machine(event).result.is_ok());
    }
    let (mut other, a, b) = arrived(&world);
    for (session, token) in [(b, 3), (a, 1), (a, 2), (b, 4)] {
        other.retrieve(session, token).unwrap();
        other.core.mark_reclaimed(session, Token(token)).unwrap();
    }
    assert_eq!(
        other.log(),
        words("retrieve shared toy, retrieve 3, retrieve 1, retrieve 2, retrieve 4")
    );
    assert!(other.event(Scope::Session(a), Event::Finish).result.is_ok());
    assert!(!other.log().iter().any(|call| call.contains("shared")));
    assert!(other.event(Scope::Session(b), Event::Finish).result.is_ok());
    let log = other.log();
    assert_eq!(log.last().unwrap(), "finish shared toy");
}

#[test]
fn files_asked_for_at_once_wait_for_one_retrieval_of_it() {
    for fails in [false, true] {
        let (mut world, ..) = world();
        for event in [Event::Prepare, Event::Freeze, Event::Depart] {
            world.machine(event);
        }
        let (mut other, a, b) = arrived(&world);
        if fails {
            other.script.fail("retrieve shared toy");
        }
        for (session, token) in [(a, 1), (a, 2), (b, 3), (b, 4)] {
            let asked = other.core.retrieve(session, Token(token));
            assert!(matches!(asked, Ok(Retrieval::Pending)));
        }
        let calls = other.calls();
        assert_eq!(calls.len(), 2, "the shared state, and the file that needs none");
        for call in &calls {
            other.complete(call);
        }
        other.run();
        let log = other.log();
        assert_eq!(log.iter().filter(|call| call.contains("shared")).count(), 1);
        for (session, token) in [(a, 1), (a, 2), (b, 3)] {
            match other.retrieve(session, token) {
                Ok(_) => assert!(!fails),
                Err(error) => {
                    assert!(fails && error.reason().contains("shared"));
                    assert_eq!(error.location().token, Some(Token(token)));
                }
            }
        }
        assert!(other.retrieve(b, 4).is_ok(), "no file of its own");
        assert_eq!(log.len(), if fails { 2 } else { 5 });
    }
}

#[test]
fn when_it_cannot_be_prepared_its_files_fail_and_no_other() {
    let (mut world, a, _) = world();
    world.script.fail("prepare shared toy");
    let report = world.machine(Event::Prepare);
    let error = report.result.unwrap_err();
    assert_eq!(error.location().token, Some(Token(1)), "the first file that asked for it");
    assert!(error.reason().contains("shared"));
    assert_eq!(world.log(), ["prepare shared toy"], "no file was begun");

    let mut world = World::bare(ToyCarrier::default());
    world.shared_handler("toy");
    world.handler("plain");
    let a2 = world.session("a");
    assert_eq!(a, a2);
    world.core.preserve(a, Some(Token(1)), Toy::new(1), Criticality::Optional).unwrap();
    world.core.preserve(a, Some(Token(2)), Toy::of("plain", 2), Criticality::Required).unwrap();
    world.script.fail("prepare shared toy");
    let report = world.machine(Event::Prepare);
    assert!(report.result.is_ok());
    assert_eq!(report.left_out[0].location().token, Some(Token(1)));
    assert_eq!(world.log(), words("prepare shared toy, prepare 2"));
    assert!(world.machine(Event::Freeze).result.is_ok());
    assert!(world.machine(Event::Cancel).result.is_ok());
    assert_eq!(world.log(), words("freeze 2, keep tree, cancel 2"));
    world.script.heal();
    assert!(world.machine(Event::Prepare).result.is_ok());
    assert_eq!(world.log(), words("prepare shared toy, prepare 1, prepare 2"));
}

#[test]
fn it_goes_with_its_last_file_at_every_failure_position() {
    let prepares = ["prepare 1", "prepare 2", "prepare 3", "prepare 4"];
    let freezes =
        ["freeze 1", "freeze 2", "freeze 3", "freeze 4", "freeze shared toy", "keep tree"];
    for victim in prepares.iter().chain(&freezes) {
        let (mut world, ..) = world();
        world.script.fail(victim);
        let mut report = world.machine(Event::Prepare);
        if report.result.is_ok() {
            report = world.machine(Event::Freeze);
        }
        assert!(report.result.is_err(), "{victim}");
        let log = world.log();
        assert_eq!(log.last().unwrap(), "cancel shared toy", "{victim}");
        assert_eq!(log.iter().filter(|call| *call == "cancel shared toy").count(), 1);
        assert_eq!(world.carrier.kept(), 0, "{victim}");
        world.script.heal();
        assert!(world.machine(Event::Prepare).result.is_ok());
        assert_eq!(world.log()[0], "prepare shared toy", "{victim}");
    }
}

#[test]
fn it_stays_while_another_session_holds_it() {
    let (mut world, a, b) = world();
    world.event(Scope::Session(a), Event::Prepare);
    world.event(Scope::Session(b), Event::Prepare);
    world.event(Scope::Session(a), Event::Cancel);
    assert_eq!(
        world.log(),
        words("prepare shared toy, prepare 1, prepare 2, prepare 3, prepare 4, cancel 2, cancel 1")
    );
    world.event(Scope::Session(b), Event::Cancel);
    assert_eq!(world.log(), words("cancel 4, cancel 3, cancel shared toy"));
    assert_eq!(world.carrier.kept(), 0);
}

#[test]
fn two_sessions_that_need_it_at_once_share_one_call() {
    let (mut world, a, b) = world();
    world.core.begin(Scope::Session(a), Event::Prepare).unwrap();
    world.core.begin(Scope::Session(b), Event::Prepare).unwrap();
    let calls = world.calls();
    assert_eq!(calls.len(), 1);
    // The session whose transition asked for it is cancelled before it comes.
    world.core.begin(Scope::Session(a), Event::Cancel).unwrap();
    world.complete(&calls[0]);
    world.run();
    assert_eq!(world.log(), words("prepare shared toy, prepare 3, prepare 4"));
    assert_eq!(world.core.session(b).unwrap().status.state, State::Prepared);
    world.event(Scope::Session(b), Event::Cancel);
    assert_eq!(world.log().last().unwrap(), "cancel shared toy");
}

#[test]
fn a_call_that_was_withdrawn_is_made_by_whoever_waited_for_it() {
    let (mut world, a, b) = world();
    world.core.begin(Scope::Session(a), Event::Prepare).unwrap();
    world.core.begin(Scope::Session(b), Event::Prepare).unwrap();
    // Nothing was given out yet: the first session takes its call back.
    world.core.begin(Scope::Session(a), Event::Cancel).unwrap();
    world.run();
    assert_eq!(world.log(), words("prepare shared toy, prepare 3, prepare 4"));
    assert_eq!(world.core.session(a).unwrap().status.state, State::Normal);
    assert_eq!(world.core.session(b).unwrap().status.state, State::Prepared);
}

#[test]
fn when_it_is_late_it_is_undone_after_all() {
    for step in ["prepare", "freeze"] {
        let (mut world, ..) = world();
        if step == "freeze" {
            world.machine(Event::Prepare);
        }
        let event = if step == "prepare" { Event::Prepare } else { Event::Freeze };
        let id = world.core.begin(Scope::Machine, event).unwrap();
        let mut late = None;
        while let Some(call) = world.core.next_call() {
            if call.kind() == CallKind::Shared && late.is_none() {
                world.late(&call);
                late = Some(call);
            } else {
                world.complete(&call);
            }
        }
        assert_eq!(world.report(id).result.unwrap_err().errno(), Errno::TimedOut);
        assert_eq!(world.state(), State::Normal);
        let error = world.machine(Event::Prepare).result.unwrap_err();
        assert_eq!(error.errno(), Errno::Busy, "it has not returned");
        world.log();
        world.complete(&late.unwrap());
        world.run();
        assert_eq!(world.log(), [format!("{step} shared toy"), "cancel shared toy".into()]);
        assert_eq!(world.carrier.kept(), 0);
        assert!(world.machine(Event::Prepare).result.is_ok());
    }
}

#[test]
fn a_session_alone_takes_it_along_and_it_ends_with_the_last_file_of_all() {
    let (mut world, a, b) = world();
    world.event(Scope::Session(b), Event::Prepare);
    world.log();
    world.event(Scope::Session(a), Event::Depart);
    assert_eq!(
        world.log(),
        words("prepare 1, prepare 2, freeze 1, freeze 2, freeze shared toy"),
        "frozen for what goes now"
    );
    world.event(Scope::Session(a), Event::Arrive);
    world.retrieve(a, 1).unwrap();
    assert_eq!(world.log(), words("retrieve shared toy, retrieve 1"));
    let options = FinishOptions { unclaimed: UnclaimedFiles::Release, carry_reclaimed: false };
    world.core.finish(Scope::Session(a), options).unwrap();
    world.run();
    assert!(!world.log().iter().any(|call| call.contains("shared")), "b still holds it");
    world.event(Scope::Session(b), Event::Freeze);
    world.event(Scope::Session(b), Event::Cancel);
    let log = world.log();
    assert_eq!(log.last().unwrap(), "finish shared toy");
    assert_eq!(world.carrier.kept(), 0);
}

#[test]
fn it_is_frozen_when_the_last_file_is_and_again_when_more_have_joined() {
    for restored in [false, true] {
        let (mut world, a, b) = world();
        for session in [a, b] {
            world.event(Scope::Session(session), Event::Prepare);
        }
        world.log();
        world.event(Scope::Session(a), Event::Freeze);
        assert_eq!(world.log(), words("freeze 1, freeze 2"), "b is not frozen");
        world.event(Scope::Session(b), Event::Freeze);
        assert_eq!(world.log(), words("freeze 3, freeze 4, freeze shared toy"));
        if restored {
            let mut next = World::bare(world.carrier.clone());
            next.shared_handler("toy");
            next.handler("plain");
            next.core.restore_machine(world.core.machine_record()).unwrap();
            for session in [a, b] {
                next.core.restore_session(world.core.session_record(session).unwrap()).unwrap();
                for file in world.core.files(session) {
                    let key = FileKey { session, side: file.side, token: file.token };
                    let record = world.core.file_record(key).unwrap();
                    next.core.restore_file(record, world.core.file_ref(key)).unwrap();
                }
            }
            assert!(next.core.resume().is_empty());
            world = next;
        }
        world.event(Scope::Session(a), Event::Cancel);
        world.event(Scope::Session(a), Event::Prepare);
        world.log();
        world.event(Scope::Session(a), Event::Freeze);
        assert_eq!(world.log(), words("freeze 1, freeze 2, freeze shared toy"));
        assert!(world.machine(Event::Prepare).result.is_ok());
        assert!(world.machine(Event::Freeze).result.is_ok());
        assert_eq!(world.log(), ["keep tree"], "everything was ahead");
        assert!(world.machine(Event::Cancel).result.is_ok());
        assert_eq!(world.carrier.kept(), 0);
    }
}
