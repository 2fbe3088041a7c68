//! Depart, arrive, retrieve and finish, with every failure position.

mod common;

use common::*;
use luo_core::*;

const SUBSYSTEMS: [&str; 4] = ["s1", "s2", "s3", "s4"];

/// A frozen machine with files 1 to `files` in sessions `a` (the first two) and `b`.
fn frozen(files: u64, subsystems: usize) -> World {
    let mut world = World::new();
    for name in SUBSYSTEMS.iter().take(subsystems) {
        world.subsystem(name, SubsystemOptions::default());
    }
    let sessions = [world.session("a"), world.session("b")];
    for id in 1..=files {
        world.give(sessions[usize::from(id > 2)], id);
    }
    assert!(world.machine(Event::Prepare).result.is_ok());
    assert!(world.machine(Event::Freeze).result.is_ok());
    world.log();
    world
}

/// The other side, before it has arrived.
fn crossed(files: u64, subsystems: usize) -> World {
    let mut world = frozen(files, subsystems);
    assert!(world.machine(Event::Depart).result.is_ok());
    assert!(world.core.status().departed);
    assert_eq!(world.log(), ["commit"]);
    let mut other = world.other_side();
    for name in SUBSYSTEMS.iter().take(subsystems) {
        other.subsystem(name, SubsystemOptions::default());
    }
    other
}

/// The other side, arrived.
fn updated(files: u64, subsystems: usize) -> World {
    let mut other = crossed(files, subsystems);
    assert!(other.machine(Event::Arrive).result.is_ok());
    assert_eq!(other.state(), State::Updated);
    other.log();
    other
}

fn session_of(world: &World, id: u64) -> SessionId {
    world.core.session_by_name(if id > 2 { "b" } else { "a" }).unwrap()
}

fn reclaim(world: &mut World, files: u64) {
    for id in 1..=files {
        let session = session_of(world, id);
        assert_eq!(world.retrieve(session, id).unwrap().id(), id);
        world.core.mark_reclaimed(session, Token(id)).unwrap();
    }
}

#[test]
fn until_an_arrival_has_ended_the_records_say_that_all_is_in_the_handover() {
    let mut world = crossed(2, 2);
    let id = world.core.begin(Scope::Machine, Event::Arrive).unwrap();
    let mut steps = 0;
    loop {
        let calls = world.calls();
        if calls.is_empty() {
            break;
        }
        for call in calls {
            assert!(world.core.machine_record().departed, "before step {steps}");
            world.complete(&call);
            steps += 1;
        }
    }
    assert!(world.report(id).result.is_ok());
    assert_eq!(steps, 4, "find, read tree, boot twice");
    assert!(!world.core.machine_record().departed);
}

#[test]
fn what_is_to_be_last_is_called_behind_those_that_came_later() {
    let mut world = World::new();
    world.subsystem("times", SubsystemOptions { last: true, ..Default::default() });
    world.subsystem("later", SubsystemOptions::default());
    let of = |world: &mut World, event| {
        world.log();
        assert!(world.machine(event).result.is_ok());
        let log = world.log();
        let mut names = log.iter().filter_map(|call| call.rsplit(' ').next());
        (names.clone().position(|name| name == "times"), names.position(|name| name == "later"))
    };
    for event in [Event::Prepare, Event::Freeze] {
        let (times, later) = of(&mut world, event);
        assert!(times.unwrap() > later.unwrap(), "{event}");
    }
    let (times, later) = of(&mut world, Event::Cancel);
    assert!(times.unwrap() < later.unwrap());
}

#[test]
fn a_whole_live_update_leaves_nothing_kept() {
    for files in 0..=4 {
        for subsystems in 0..=4 {
            let mut world = crossed(files, subsystems);
            let report = world.machine(Event::Arrive);
            assert!(report.result.is_ok() && report.left_out.is_empty());
            let mut expected = vec!["find".to_string(), "read tree".into()];
            expected.extend(SUBSYSTEMS[..subsystems].iter().map(|name| format!("boot {name}")));
            assert_eq!(world.log(), expected);
            assert_eq!(world.core.number(), 1);
            assert!(world.core.sessions().all(|s| s.unclaimed && s.status.state == State::Updated));
            reclaim(&mut world, files);
            world.log();

            assert!(world.machine(Event::Finish).result.is_ok());
            let mut expected: Vec<String> =
                (1..=files).map(|id| format!("can_finish {id}")).collect();
            expected.extend((1..=files).map(|id| format!("finish {id} reclaimed")));
            expected.extend(SUBSYSTEMS[..subsystems].iter().map(|name| format!("finish {name}")));
            expected.push("retire".into());
            assert_eq!(world.log(), expected);
            assert_eq!(world.state(), State::Normal);
            assert_eq!(world.core.boot_data().count(), 0);
            assert!(world.core.sessions().all(|session| session.incoming == 0));
            assert_eq!(world.carrier.0.lock().unwrap().committed, None);
        }
    }
}

#[test]
fn a_failed_commit_leaves_everything_frozen_and_can_be_tried_again_or_cancelled() {
    for again in [true, false] {
        let mut world = frozen(3, 2);
        world.script.fail("commit");
        let report = world.machine(Event::Depart);
        let error = report.result.unwrap_err();
        assert_eq!((error.errno(), error.phase()), (Errno::Io, Some(Phase::Depart)));
        assert_eq!(report.state, State::Frozen);
        assert_eq!(world.log(), ["commit"]);
        world.script.heal();
        if again {
            assert!(world.machine(Event::Depart).result.is_ok());
        } else {
            assert!(world.machine(Event::Cancel).result.is_ok());
            assert_eq!(world.log(), words("cancel s2, cancel s1, cancel 3, cancel 2, cancel 1"));
            assert_eq!(world.carrier.kept(), 0);
        }
    }
}

#[test]
fn a_cancel_after_depart_takes_the_handover_back_first() {
    let mut world = frozen(1, 1);
    world.machine(Event::Depart);
    assert_eq!(world.core.begin(Scope::Machine, Event::Depart).unwrap_err().errno(), Errno::Busy);
    world.log();
    world.script.fail("retire");
    let report = world.machine(Event::Cancel);
    assert_eq!(report.result.unwrap_err().phase(), Some(Phase::Cancel));
    assert_eq!(report.state, State::Frozen);
    assert_eq!(world.log(), ["retire"], "nothing is undone while the other side could begin");
    assert!(world.core.status().departed);
    world.script.heal();
    assert!(world.machine(Event::Cancel).result.is_ok());
    assert_eq!(world.log(), words("retire, cancel s1, cancel 1"));
    assert_eq!(world.carrier.kept(), 0);
    assert!(!world.core.status().departed);
}

#[test]
fn a_cancel_in_the_middle_of_depart_waits_for_the_commit_and_takes_it_back() {
    for fails in [false, true] {
        let mut world = frozen(1, 0);
        if fails {
            world.script.fail("commit");
        }
        let id = world.core.begin(Scope::Machine, Event::Depart).unwrap();
        let call = world.calls().remove(0);
        assert_eq!(world.core.begin(Scope::Machine, Event::Cancel).unwrap(), id);
        assert!(world.calls().is_empty(), "what is in flight is awaited");
        world.complete(&call);
        world.run();
        let report = world.report(id);
        assert_eq!(report.result.unwrap_err().errno(), Errno::Canceled);
        assert_eq!(world.state(), State::Normal);
        let expected = if fails { "commit, cancel 1" } else { "commit, retire, cancel 1" };
        assert_eq!(world.log(), words(expected));
        assert_eq!(world.carrier.kept(), 0);
    }
}

#[test]
fn a_commit_that_is_late_is_taken_back_when_it_returns() {
    let mut world = frozen(1, 0);
    let id = world.core.begin(Scope::Machine, Event::Depart).unwrap();
    let call = world.calls().remove(0);
    world.late(&call);
    assert_eq!(world.report(id).result.unwrap_err().errno(), Errno::TimedOut);
    assert_eq!(world.state(), State::Frozen);
    assert_eq!(world.core.begin(Scope::Machine, Event::Depart).unwrap_err().errno(), Errno::Busy);
    assert!(world.machine(Event::Cancel).result.is_ok());
    world.log();
    world.complete(&call);
    world.run();
    assert_eq!(world.log(), ["commit", "retire"]);
    assert_eq!(world.carrier.0.lock().unwrap().committed, None);
}

#[test]
fn without_a_handover_the_machine_is_normal() {
    let mut world = World::new();
    let report = world.machine(Event::Arrive);
    assert!(report.result.is_ok());
    assert_eq!(report.state, State::Normal);
    assert_eq!(world.log(), ["find"]);
}

#[test]
fn a_handover_that_cannot_be_found_or_read_changes_nothing() {
    let mut world = crossed(1, 1);
    world.script.fail("find");
    let report = world.machine(Event::Arrive);
    assert_eq!(report.result.unwrap_err().errno(), Errno::Io);
    assert_eq!(world.state(), State::Normal);
    world.script.heal();

    let blob = world.carrier.0.lock().unwrap().committed.clone().unwrap();
    // All of the header but its version (any newer one that is compatible is read) and the number of
    // a processor.
    for at in (0..20).chain(24..28).chain(32..40) {
        let mut damaged = blob.clone();
        damaged[at] ^= 0x55;
        if let Err(error) = world.core.arrive(&damaged) {
            assert_eq!(error.errno(), Errno::Inval);
            assert_eq!(error.phase(), Some(Phase::Arrive));
            assert!(error.advice().is_some());
            assert_eq!(world.state(), State::Normal);
            assert_eq!((world.core.number(), world.core.boot_data().count()), (0, 0));
        } else {
            panic!("byte {at} of the header is not checked");
        }
    }
    assert!(world.machine(Event::Arrive).result.is_ok());
    assert_eq!(world.state(), State::Updated);
}

#[test]
fn a_subsystem_that_cannot_boot_harms_nobody_else_at_every_position() {
    for subsystems in 1..=4 {
        for victim in 0..=subsystems {
            let mut world = crossed(2, subsystems);
            let call = match victim {
                0 => "read tree".to_string(),
                n => format!("boot s{n}"),
            };
            world.script.fail(&call);
            let report = world.machine(Event::Arrive);
            assert!(report.result.is_ok());
            assert_eq!(world.state(), State::Updated);
            assert_eq!(report.left_out.len(), 1);
            let place = report.left_out[0].location().subsystem.clone().unwrap();
            assert_eq!(&*place, if victim == 0 { "files" } else { SUBSYSTEMS[victim - 1] });
            let booted = world.log().iter().filter(|call| call.starts_with("boot")).count();
            assert_eq!(booted, subsystems, "every subsystem was called");
            assert_eq!(world.core.sessions().count(), if victim == 0 { 0 } else { 2 });
        }
    }
}

#[test]
fn data_of_a_subsystem_waits_for_whoever_registers_until_finish() {
    let mut world = frozen(0, 2);
    world.machine(Event::Depart);
    let mut other = world.other_side();
    other.machine(Event::Arrive);
    let names: Vec<String> = other.core.boot_data().map(|(name, _)| name.to_string()).collect();
    assert_eq!(names, ["files", "s1", "s2"]);
    other.log();
    other.subsystem("s2", SubsystemOptions::default());
    other.script.fail("boot s2");
    other.run();
    assert_eq!(other.log(), ["boot s2"]);
    assert!(other.notices.iter().any(|notice| matches!(
        notice,
        Notice::Booted { subsystem, result: Err(error) }
            if &**subsystem == "s2" && error.errno() == Errno::Io
    )));
    other.script.heal();
    // It goes, comes again, and gets its data again.
    other.core.unregister_subsystem("s2").unwrap();
    other.subsystem("s2", SubsystemOptions::default());
    let call = other.calls().remove(0);
    assert_eq!(other.core.begin(Scope::Machine, Event::Finish).unwrap_err().errno(), Errno::Busy);
    assert_eq!(other.core.unregister_subsystem("s2").unwrap_err().errno(), Errno::Busy);
    other.complete(&call);
    assert!(other.machine(Event::Finish).result.is_ok());
    assert_eq!(other.log(), words("boot s2, finish s2, retire"));
    assert_eq!(other.core.boot_data().count(), 0);
    other.subsystem("s1", SubsystemOptions::default());
    other.run();
    assert!(other.log().is_empty(), "its data went with finish");
}

#[test]
fn a_retrieve_that_fails_is_remembered_and_harms_no_other_file() {
    for files in 1..=4 {
        for victim in 1..=files {
            let mut world = updated(files, 0);
            world.script.fail(&format!("retrieve {victim}"));
            for round in 0..2 {
                for id in 1..=files {
                    let session = session_of(&world, id);
                    match world.retrieve(session, id) {
                        Ok(file) => assert_eq!(file.id(), id),
                        Err(error) => {
                            assert_eq!(id, victim);
                            assert_eq!(error.errno(), Errno::Io);
                            assert_eq!(error.phase(), Some(Phase::Retrieve));
                            assert_eq!(error.location().token, Some(Token(id)));
                        }
                    }
                    if id != victim {
                        world.core.mark_reclaimed(session, Token(id)).unwrap();
                    } else {
                        let error = world.core.mark_reclaimed(session, Token(id)).unwrap_err();
                        assert_eq!(error.errno(), Errno::Busy);
                    }
                }
                world.script.heal();
                let calls = if round == 0 { files as usize } else { 0 };
                assert_eq!(world.log().len(), calls, "each handler was called once");
            }
            // Its owner knows, so it is no obstacle.
            assert!(world.machine(Event::Finish).result.is_ok());
        }
    }
}

#[test]
fn a_late_retrieval_fails_for_now_and_its_file_is_there_when_it_returns() {
    let mut world = updated(1, 0);
    let session = session_of(&world, 1);
    assert!(matches!(world.core.retrieve(session, Token(1)), Ok(Retrieval::Pending)));
    assert!(matches!(world.core.retrieve(session, Token(1)), Ok(Retrieval::Pending)));
    let calls = world.calls();
    assert_eq!(calls.len(), 1, "one call however many ask");
    world.late(&calls[0]);
    assert_eq!(world.retrieve(session, 1).unwrap_err().errno(), Errno::TimedOut);
    let error = world.core.finish(Scope::Machine, FinishOptions::default()).unwrap_err();
    assert_eq!(error.errno(), Errno::Busy);
    world.complete(&calls[0]);
    assert_eq!(world.retrieve(session, 1).unwrap().id(), 1);
    assert!(world.core.complete(calls[0].id(), Outcome::done()).is_err());
}

#[test]
fn finish_refuses_unclaimed_files_by_their_tokens_and_finishes_nothing() {
    let mut world = updated(4, 1);
    let b = session_of(&world, 3);
    world.retrieve(b, 3).unwrap();
    world.core.mark_reclaimed(b, Token(3)).unwrap();
    world.retrieve(b, 4).unwrap(); // retrieved, but its owner never got it
    world.log();
    let error = world.core.begin(Scope::Machine, Event::Finish).unwrap_err();
    assert_eq!(error.errno(), Errno::Busy);
    assert!(error.to_string().contains("0x1, 0x2"), "{error}");
    let error = world.core.begin(Scope::Session(b), Event::Finish).unwrap_err();
    assert!(error.to_string().contains("0x4") && !error.to_string().contains("0x3"), "{error}");
    assert!(world.log().is_empty());
    assert_eq!(world.state(), State::Updated);
}

#[test]
fn finish_is_atomic_whichever_file_refuses() {
    for files in 1..=4 {
        for victim in 1..=files {
            for late in [false, true] {
                let mut world = updated(files, 2);
                reclaim(&mut world, files);
                world.log();
                if !late {
                    world.script.fail(&format!("can_finish {victim}"));
                }
                let id = world.core.begin(Scope::Machine, Event::Finish).unwrap();
                let calls = world.calls();
                assert_eq!(calls.len(), files as usize, "asked side by side");
                for call in &calls {
                    if late && call.location().token == Some(Token(victim)) {
                        world.late(call);
                    } else {
                        world.complete(call);
                    }
                }
                assert!(world.calls().is_empty());
                let report = world.report(id);
                let error = report.result.unwrap_err();
                assert_eq!(error.errno(), if late { Errno::TimedOut } else { Errno::Busy });
                assert_eq!(error.location().token, Some(Token(victim)));
                assert_eq!(report.state, State::Updated);
                assert!(world.log().iter().all(|call| call.starts_with("can_finish")));
                assert_eq!(world.core.sessions().map(|s| s.incoming as u64).sum::<u64>(), files);

                world.script.heal();
                if late {
                    let call = calls
                        .iter()
                        .find(|call| call.location().token == Some(Token(victim)))
                        .unwrap();
                    let refused = world.core.begin(Scope::Machine, Event::Finish).unwrap_err();
                    assert_eq!(refused.errno(), Errno::Busy);
                    world.complete(call);
                }
                assert!(world.machine(Event::Finish).result.is_ok());
                assert_eq!(world.state(), State::Normal);
            }
        }
    }
}

#[test]
fn a_finish_can_be_cancelled_until_the_first_file_is_finished() {
    let mut world = updated(2, 0);
    reclaim(&mut world, 2);
    let id = world.core.begin(Scope::Machine, Event::Finish).unwrap();
    let calls = world.calls();
    world.complete(&calls[0]);
    world.core.begin(Scope::Machine, Event::Cancel).unwrap();
    world.complete(&calls[1]);
    assert!(world.calls().is_empty());
    let report = world.report(id);
    assert_eq!(report.result.unwrap_err().errno(), Errno::Canceled);
    assert_eq!(report.state, State::Updated);

    let id = world.core.begin(Scope::Machine, Event::Finish).unwrap();
    for call in world.calls() {
        world.complete(&call);
    }
    let error = world.core.begin(Scope::Machine, Event::Cancel).unwrap_err();
    assert_eq!(error.errno(), Errno::Busy);
    world.run();
    assert!(world.report(id).result.is_ok());
}

#[test]
fn a_handover_that_cannot_be_retired_is_reported_and_the_update_is_over() {
    let mut world = updated(0, 0);
    world.script.fail("retire");
    let report = world.machine(Event::Finish);
    assert!(report.result.is_ok());
    assert_eq!(report.left_out[0].phase(), Some(Phase::Finish));
    assert_eq!(world.state(), State::Normal);
}

fn finish(world: &mut World, scope: Scope, unclaimed: UnclaimedFiles, reclaimed: bool) -> Report {
    let options = FinishOptions { unclaimed, carry_reclaimed: reclaimed };
    let id = world.core.finish(scope, options).unwrap();
    world.run();
    world.report(id)
}

#[test]
fn unclaimed_files_can_be_released_or_carried_on() {
    let mut world = updated(3, 0);
    let (a, b) = (session_of(&world, 1), session_of(&world, 3));
    let report = finish(&mut world, Scope::Session(a), UnclaimedFiles::Release, false);
    assert!(report.result.is_ok());
    assert_eq!(world.log(), words("can_finish 1, can_finish 2, finish 1, finish 2"));
    assert_eq!(world.core.session(a).unwrap().status.state, State::Normal);
    assert_eq!(world.core.session(a).unwrap().outgoing, 0);

    let report = finish(&mut world, Scope::Session(b), UnclaimedFiles::Carry, false);
    assert!(report.result.is_ok());
    assert_eq!(world.log(), words("retrieve 3, can_finish 3, finish 3 reclaimed"));
    let info = world.core.session(b).unwrap();
    assert_eq!((info.outgoing, info.incoming), (1, 0));
    assert_eq!(world.core.usage(ALICE.uid), Usage { sessions: 2, files: 1, bytes: 10 });
    // The machine can be updated again with what was carried.
    assert!(world.machine(Event::Finish).result.is_ok());
    assert!(world.machine(Event::Prepare).result.is_ok());
    assert_eq!(world.log(), words("retire, prepare 3"));
}

#[test]
fn a_carried_file_that_cannot_be_retrieved_refuses_the_finish() {
    let mut world = updated(2, 0);
    world.script.fail("retrieve 2");
    let a = session_of(&world, 1);
    let report = finish(&mut world, Scope::Session(a), UnclaimedFiles::Carry, false);
    let error = report.result.unwrap_err();
    assert_eq!(error.location().token, Some(Token(2)));
    assert_eq!(world.core.session(a).unwrap().status.state, State::Updated);
    assert_eq!(world.core.session(a).unwrap().incoming, 2);
    assert!(!world.log().iter().any(|call| call.starts_with("finish")));
}

#[test]
fn a_reclaimed_file_goes_on_unless_its_owner_gave_it_again() {
    let mut world = updated(2, 0);
    let a = session_of(&world, 1);
    reclaim(&mut world, 2);
    // Token 1 was given again by its owner; token 2 was not.
    world.core.preserve(a, Some(Token(1)), Toy::new(77), Criticality::Required).unwrap();
    let report = finish(&mut world, Scope::Session(a), UnclaimedFiles::Refuse, true);
    assert!(report.result.is_ok());
    let ids: Vec<u64> = [1, 2]
        .map(|token| {
            let key = FileKey { session: a, side: Side::Outgoing, token: Token(token) };
            world.core.file_ref(key).unwrap().id()
        })
        .to_vec();
    assert_eq!(ids, [77, 2]);
}

#[test]
fn an_unclaimed_file_is_not_carried_over_another_one() {
    let mut world = updated(2, 0);
    let a = session_of(&world, 1);
    world.core.preserve(a, Some(Token(2)), Toy::new(77), Criticality::Required).unwrap();
    let report = finish(&mut world, Scope::Session(a), UnclaimedFiles::Carry, false);
    assert_eq!(report.result.unwrap_err().errno(), Errno::Exist);
    assert_eq!(world.core.session(a).unwrap().incoming, 2);

    world.core.unpreserve(a, Token(2)).unwrap();
    world.core.preserve(a, Some(Token(9)), Toy::new(2), Criticality::Required).unwrap();
    let report = finish(&mut world, Scope::Session(a), UnclaimedFiles::Carry, false);
    assert_eq!(report.result.unwrap_err().errno(), Errno::Busy);
    assert_eq!(world.core.session(a).unwrap().incoming, 2);
}

#[test]
fn what_is_carried_counts_against_the_limits() {
    let mut world = updated(2, 0);
    let a = session_of(&world, 1);
    world.core.set_limits(Limits { files: Some(1), ..Limits::default() });
    let report = finish(&mut world, Scope::Session(a), UnclaimedFiles::Carry, false);
    let error = report.result.unwrap_err();
    assert_eq!(error.errno(), Errno::NoSpc);
    assert!(!world.log().iter().any(|call| call.starts_with("finish")));
}

#[test]
fn an_unknown_handler_is_that_files_error_and_the_rest_stays_usable() {
    let mut world = World::new();
    world.handler("other");
    let a = world.session("a");
    world.give(a, 1);
    world.core.preserve(a, Some(Token(2)), Toy::of("other", 2), Criticality::Required).unwrap();
    for event in [Event::Prepare, Event::Freeze, Event::Depart] {
        assert!(world.machine(event).result.is_ok());
    }
    let mut other = world.other_side();
    assert!(other.machine(Event::Arrive).result.is_ok());
    let a = other.core.session_by_name("a").unwrap();
    assert_eq!(other.retrieve(a, 1).unwrap().id(), 1);
    other.core.mark_reclaimed(a, Token(1)).unwrap();
    let error = other.core.begin(Scope::Session(a), Event::Finish).unwrap_err();
    assert!(error.to_string().contains("0x2"), "its owner does not know yet: {error}");
    let error = other.retrieve(a, 2).unwrap_err();
    assert_eq!(error.errno(), Errno::NoEnt);
    assert_eq!(error.location().handler.as_deref(), Some("other"));
    other.log();
    assert!(other.event(Scope::Session(a), Event::Finish).result.is_ok());
    assert_eq!(other.log(), words("can_finish 1, finish 1 reclaimed"));
}

#[test]
fn a_damaged_record_is_that_files_error_and_the_rest_stays_usable() {
    let world = crossed(2, 0);
    {
        // The `data` of the file 0x1 loses its size: found by its value, 1001.
        let mut kept = world.carrier.0.lock().unwrap();
        let tree =
            kept.bytes.values_mut().find(|b| b.starts_with(&[0xd0, 0x0d, 0xfe, 0xed])).unwrap();
        let at = tree.windows(8).position(|w| w == 1001_u64.to_be_bytes()).unwrap();
        // The property's name becomes another one: the offset lies right before the value.
        let good = tree[at - 4..at].to_vec();
        let name = tree.windows(5).position(|w| w == b"data\0").unwrap();
        assert!(name > at);
        let offset = u32::from_be_bytes(good.try_into().unwrap());
        tree[at - 4..at].copy_from_slice(&(offset + 1).to_be_bytes());
    }
    let mut world = world;
    let report = world.machine(Event::Arrive);
    assert!(report.result.is_ok(), "{report:?}");
    let a = world.core.session_by_name("a").unwrap();
    let error = world.retrieve(a, 1).unwrap_err();
    assert_eq!(error.errno(), Errno::Inval);
    assert!(error.to_string().contains("damaged"), "{error}");
    assert_eq!(world.retrieve(a, 2).unwrap().id(), 2);
}

#[test]
fn states_that_do_not_allow_an_event_refuse_it_with_what_to_do() {
    let mut world = World::new();
    let a = world.session("a");
    world.give(a, 1);
    let refused = |world: &mut World, events: &[Event]| {
        for event in events {
            let error = world.core.begin(Scope::Machine, *event).unwrap_err();
            assert_eq!(error.errno(), Errno::Busy, "{event}: {error}");
        }
    };
    use Event::*;
    refused(&mut world, &[Freeze, Depart, Finish, Cancel, Arrive]);
    assert_eq!(world.core.retrieve(a, Token(1)).unwrap_err().errno(), Errno::Busy);
    world.machine(Prepare);
    refused(&mut world, &[Prepare, Depart, Arrive, Finish]);
    world.machine(Freeze);
    refused(&mut world, &[Prepare, Freeze, Arrive, Finish]);
    let error = world.core.preserve(a, None, Toy::new(5), Criticality::Required).unwrap_err();
    assert_eq!(error.errno(), Errno::Busy);
    assert!(error.advice().is_some());
    assert_eq!(world.core.unpreserve(a, Token(1)).unwrap_err().errno(), Errno::Busy);
    let policy = Policy::default();
    assert_eq!(world.core.create_session("b", ALICE, policy).unwrap_err().errno(), Errno::Busy);
    world.machine(Depart);
    let mut other = world.other_side();
    other.machine(Arrive);
    refused(&mut other, &[Prepare, Freeze, Depart, Arrive, Cancel]);
    let a = other.core.session_by_name("a").unwrap();
    assert_eq!(other.core.retrieve(a, Token(7)).unwrap_err().errno(), Errno::NoEnt);
    assert_eq!(other.core.retrieve(SessionId(99), Token(7)).unwrap_err().errno(), Errno::NoEnt);
    other.core.preserve(a, None, Toy::new(5), Criticality::Required).unwrap();
}
