//! Every failure position of every phase, for up to four subsystems and four files: the calls in
//! their exact order, the state it ends in, the error's place, and that nothing stays kept.

mod common;

use common::*;
use luo_core::*;

const SUBSYSTEMS: [&str; 4] = ["s1", "s2", "s3", "s4"];

/// How the call at the failing position ends.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Mishap {
    /// It fails.
    Fails,
    /// Its deadline passes, and it comes back later, having succeeded.
    LateSuccess,
    /// Its deadline passes, and it comes back later, having failed.
    LateFailure,
    /// `cancel` arrives while it is in flight.
    Cancelled,
}

const MISHAPS: [Mishap; 4] =
    [Mishap::Fails, Mishap::LateSuccess, Mishap::LateFailure, Mishap::Cancelled];

/// Files 1 to `files`, the first two in one session, the others in another; `subsystems`
/// subsystems, concurrent where `concurrent` has their bit.
fn world(files: u64, subsystems: usize, concurrent: u32, optional: Option<&str>) -> World {
    let mut world = World::new();
    for (i, name) in SUBSYSTEMS.iter().take(subsystems).enumerate() {
        let concurrent = concurrent & (1 << i) != 0;
        let criticality =
            if optional == Some(name) { Criticality::Optional } else { Criticality::Required };
        world.subsystem(name, SubsystemOptions { criticality, concurrent, last: false });
    }
    let sessions = [world.session("a"), world.session("b")];
    for id in 1..=files {
        let criticality = if optional == Some(id.to_string().as_str()) {
            Criticality::Optional
        } else {
            Criticality::Required
        };
        let session = sessions[usize::from(id > 2)];
        world.core.preserve(session, Some(Token(id)), Toy::new(id), criticality).unwrap();
    }
    world
}

/// Who is called in a phase, in order.
fn parts(files: u64, subsystems: usize) -> Vec<String> {
    let files = (1..=files).map(|id| id.to_string());
    files.chain(SUBSYSTEMS.iter().take(subsystems).map(ToString::to_string)).collect()
}

fn named(phase: &str, parts: &[String]) -> Vec<String> {
    parts.iter().map(|part| format!("{phase} {part}")).collect()
}

/// The name of the one that a call is for, as in the log.
fn part_of(call: &Call<Toy>) -> String {
    match (call.kind(), call.location().token) {
        (CallKind::File, Some(token)) => token.0.to_string(),
        (CallKind::KeepFilesTree, _) => "tree".into(),
        _ => call.location().subsystem.as_ref().unwrap().to_string(),
    }
}

/// Runs the forward part of an event one call at a time; the call for `victim` meets `mishap`.
/// Gives what is to be completed later.
fn run_with_mishap(world: &mut World, victim: &str, mishap: Mishap) -> Option<Call<Toy>> {
    let mut late = None;
    let mut done = false;
    while let Some(call) = world.core.next_call() {
        let forward = matches!(call.phase(), Phase::Prepare | Phase::Freeze);
        if !done && forward && part_of(&call) == victim {
            done = true;
            match mishap {
                Mishap::Fails => world.complete(&call),
                Mishap::LateSuccess | Mishap::LateFailure => {
                    world.late(&call);
                    late = Some(call);
                }
                Mishap::Cancelled => {
                    world.core.begin(Scope::Machine, Event::Cancel).unwrap();
                    world.complete(&call);
                }
            }
        } else {
            world.complete(&call);
        }
    }
    assert!(done, "{victim} was called");
    late
}

/// Checks the error of a failed transition.
fn check_error(error: &Error, phase: Phase, victim: &str, mishap: Mishap) {
    if mishap == Mishap::Cancelled {
        assert_eq!(error.errno(), Errno::Canceled);
        return;
    }
    let errno = if mishap == Mishap::Fails { Errno::Io } else { Errno::TimedOut };
    assert_eq!(error.errno(), errno);
    assert_eq!(error.phase(), Some(phase));
    let location = error.location();
    match victim.parse::<u64>() {
        Ok(id) => {
            assert_eq!(location.token, Some(Token(id)));
            assert_eq!(&*location.session.as_ref().unwrap().1, if id > 2 { "b" } else { "a" });
            assert_eq!(location.handler.as_deref(), Some("toy"));
            assert_eq!(location.subsystem.as_deref(), Some("files"));
        }
        Err(_) if victim == "tree" => assert_eq!(location.subsystem.as_deref(), Some("files")),
        Err(_) => assert_eq!(location.subsystem.as_deref(), Some(victim)),
    }
}

fn all_sizes() -> impl Iterator<Item = (u64, usize)> {
    (0..=4).flat_map(|files| (0..=4).map(move |subsystems| (files, subsystems)))
}

fn reversed(mut parts: Vec<String>) -> Vec<String> {
    parts.reverse();
    parts
}

#[test]
fn a_prepare_that_fails_cancels_exactly_what_was_prepared_in_reverse() {
    for (files, subsystems) in all_sizes() {
        let parts = parts(files, subsystems);
        for (position, victim) in parts.iter().enumerate() {
            for mishap in MISHAPS {
                let context =
                    format!("{files} files, {subsystems} subsystems, {victim} {mishap:?}");
                let mut world = world(files, subsystems, 0, None);
                if matches!(mishap, Mishap::Fails | Mishap::LateFailure) {
                    world.script.fail(&format!("prepare {victim}"));
                }
                let id = world.core.begin(Scope::Machine, Event::Prepare).unwrap();
                let late = run_with_mishap(&mut world, victim, mishap);

                let before = &parts[..position];
                let through = &parts[..=position];
                let (called, undone) = match mishap {
                    Mishap::Fails => (through, before),
                    Mishap::Cancelled => (through, through),
                    // What is late has not run yet in this driver.
                    _ => (before, before),
                };
                let mut expected = named("prepare", called);
                expected.extend(reversed(named("cancel", undone)));
                assert_eq!(world.log(), expected, "{context}");
                assert_eq!(world.state(), State::Normal, "{context}");
                let report = world.report(id);
                assert_eq!(report.state, State::Normal, "{context}");
                check_error(report.result.as_ref().unwrap_err(), Phase::Prepare, victim, mishap);
                assert!(report.left_out.is_empty(), "{context}");
                assert_eq!(world.carrier.kept(), 0, "{context}");

                if let Some(late) = late {
                    refuses_while_late(&mut world, victim);
                    world.log();
                    world.complete(&late);
                    world.run();
                    let mut expected = vec![format!("prepare {victim}")];
                    if mishap == Mishap::LateSuccess {
                        expected.push(format!("cancel {victim}"));
                    }
                    assert_eq!(world.log(), expected, "{context}");
                    assert_eq!(world.carrier.kept(), 0, "{context}");
                }
                works_afterwards(&mut world, &parts, &context);
            }
        }
    }
}

/// While a late call has not returned, the next update fails at that very place.
fn refuses_while_late(world: &mut World, victim: &str) {
    let report = world.machine(Event::Prepare);
    let error = report.result.unwrap_err();
    assert_eq!(error.errno(), Errno::Busy);
    check_place(&error, victim);
    assert_eq!(world.state(), State::Normal);
    assert_eq!(world.carrier.kept(), 0);
}

fn check_place(error: &Error, victim: &str) {
    match victim.parse::<u64>() {
        Ok(id) => assert_eq!(error.location().token, Some(Token(id))),
        Err(_) => assert_eq!(error.location().subsystem.as_deref(), Some(victim)),
    }
}

/// After whatever happened, a whole cycle goes through.
fn works_afterwards(world: &mut World, parts: &[String], context: &str) {
    world.script.heal();
    world.log();
    assert!(world.machine(Event::Prepare).result.is_ok(), "{context}");
    assert_eq!(world.log(), named("prepare", parts), "{context}");
    assert!(world.machine(Event::Freeze).result.is_ok(), "{context}");
    assert!(world.machine(Event::Cancel).result.is_ok(), "{context}");
    assert_eq!(world.state(), State::Normal, "{context}");
    assert_eq!(world.carrier.kept(), 0, "{context}");
}

#[test]
fn a_freeze_that_fails_cancels_everything_that_was_prepared_in_reverse() {
    for (files, subsystems) in all_sizes() {
        let parts = parts(files, subsystems);
        // The files' tree is kept between the files and the other subsystems.
        let mut steps = parts.clone();
        steps.insert(files as usize, "tree".into());
        for (position, victim) in steps.iter().enumerate() {
            for mishap in MISHAPS {
                let context =
                    format!("{files} files, {subsystems} subsystems, {victim} {mishap:?}");
                let mut world = world(files, subsystems, 0, None);
                assert!(world.machine(Event::Prepare).result.is_ok());
                world.log();
                if matches!(mishap, Mishap::Fails | Mishap::LateFailure) {
                    let call = if victim == "tree" {
                        "keep tree".into()
                    } else {
                        format!("freeze {victim}")
                    };
                    world.script.fail(&call);
                }
                let id = world.core.begin(Scope::Machine, Event::Freeze).unwrap();
                let late = run_with_mishap(&mut world, victim, mishap);

                let ran = match mishap {
                    Mishap::Fails | Mishap::Cancelled => &steps[..=position],
                    _ => &steps[..position],
                };
                let name = |step: &String| {
                    if step == "tree" { "keep tree".into() } else { format!("freeze {step}") }
                };
                let mut expected: Vec<String> = ran.iter().map(name).collect();
                // What is late is left alone until it returns.
                let mut undone = parts.clone();
                if late.is_some() {
                    undone.retain(|part| part != victim);
                }
                expected.extend(reversed(named("cancel", &undone)));
                assert_eq!(world.log(), expected, "{context}");
                assert_eq!(world.state(), State::Normal, "{context}");
                let report = world.report(id);
                check_error(report.result.as_ref().unwrap_err(), Phase::Freeze, victim, mishap);

                if let Some(late) = late {
                    world.complete(&late);
                    world.run();
                    let mut expected = vec![name(victim)];
                    if victim != "tree" {
                        expected.push(format!("cancel {victim}"));
                    }
                    assert_eq!(world.log(), expected, "{context}");
                }
                assert_eq!(world.carrier.kept(), 0, "{context}");
                works_afterwards(&mut world, &parts, &context);
            }
        }
    }
}

#[test]
fn an_optional_one_that_fails_is_left_out_and_the_update_goes_on() {
    for (files, subsystems) in all_sizes() {
        let parts = parts(files, subsystems);
        for victim in &parts {
            for phase in [Phase::Prepare, Phase::Freeze] {
                for mishap in [Mishap::Fails, Mishap::LateSuccess, Mishap::LateFailure] {
                    let context = format!("{files}/{subsystems}, {phase} {victim} {mishap:?}");
                    let mut world = world(files, subsystems, 0, Some(victim));
                    if matches!(mishap, Mishap::Fails | Mishap::LateFailure) {
                        world.script.fail(&format!("{phase} {victim}"));
                    }
                    if phase == Phase::Freeze {
                        assert!(world.machine(Event::Prepare).result.is_ok());
                        world.log();
                    }
                    let event =
                        if phase == Phase::Prepare { Event::Prepare } else { Event::Freeze };
                    let id = world.core.begin(Scope::Machine, event).unwrap();
                    let late = run_with_mishap(&mut world, victim, mishap);

                    let mut expected = Vec::new();
                    let is_file = victim.parse::<u64>().is_ok();
                    for (i, part) in parts.iter().enumerate() {
                        if part != victim || mishap == Mishap::Fails {
                            expected.push(format!("{phase} {part}"));
                        }
                        let cancelled = phase == Phase::Freeze && mishap == Mishap::Fails;
                        if !is_file && part == victim && cancelled {
                            expected.push(format!("cancel {victim}"));
                        }
                        if phase == Phase::Freeze && i + 1 == files as usize {
                            if is_file && cancelled {
                                expected.push(format!("cancel {victim}"));
                            }
                            expected.push("keep tree".into());
                        }
                    }
                    if phase == Phase::Freeze && files == 0 {
                        expected.insert(0, "keep tree".into());
                    }
                    assert_eq!(world.log(), expected, "{context}");
                    let report = world.report(id);
                    assert!(report.result.is_ok(), "{context}");
                    assert_eq!(report.left_out.len(), 1, "{context}");
                    check_error(&report.left_out[0], phase, victim, mishap);

                    // The late one returns, and what it did is undone; the rest is not touched.
                    if let Some(late) = late {
                        world.complete(&late);
                        world.run();
                        let mut expected = vec![format!("{phase} {victim}")];
                        if phase == Phase::Freeze || mishap == Mishap::LateSuccess {
                            expected.push(format!("cancel {victim}"));
                        }
                        assert_eq!(world.log(), expected, "{context}");
                    }
                    let others: Vec<String> =
                        parts.iter().filter(|part| *part != victim).cloned().collect();
                    if phase == Phase::Prepare {
                        assert_eq!(world.state(), State::Prepared, "{context}");
                        assert!(world.machine(Event::Freeze).result.is_ok(), "{context}");
                        let mut log = world.log();
                        log.retain(|call| call != "keep tree");
                        assert_eq!(log, named("freeze", &others), "{context}");
                    }
                    assert_eq!(world.state(), State::Frozen, "{context}");
                    assert!(world.machine(Event::Cancel).result.is_ok(), "{context}");
                    assert_eq!(world.log(), reversed(named("cancel", &others)), "{context}");
                    assert_eq!(world.carrier.kept(), 0, "{context}");
                    works_afterwards(&mut world, &parts, &context);
                }
            }
        }
    }
}

/// Groups of names that may be called side by side.
fn groups(subsystems: usize, concurrent: u32) -> Vec<Vec<String>> {
    let mut groups: Vec<(bool, Vec<String>)> = Vec::new();
    for (i, name) in SUBSYSTEMS.iter().take(subsystems).enumerate() {
        let side_by_side = concurrent & (1 << i) != 0;
        match groups.last_mut() {
            Some((true, group)) if side_by_side => group.push((*name).into()),
            _ => groups.push((side_by_side, vec![(*name).into()])),
        }
    }
    groups.into_iter().map(|(_, group)| group).collect()
}

#[test]
fn files_and_concurrent_neighbours_are_called_side_by_side_and_others_one_by_one() {
    for (files, subsystems) in all_sizes() {
        for concurrent in 0..1_u32 << subsystems {
            let mut world = world(files, subsystems, concurrent, None);
            world.core.begin(Scope::Machine, Event::Prepare).unwrap();
            let mut waves = Vec::new();
            loop {
                let calls = world.calls();
                if calls.is_empty() {
                    break;
                }
                waves.push(calls.iter().map(part_of).collect::<Vec<_>>());
                for call in calls.iter().rev() {
                    world.complete(call);
                }
            }
            let mut expected = Vec::new();
            if files > 0 {
                expected.push((1..=files).map(|id| id.to_string()).collect());
            }
            expected.extend(groups(subsystems, concurrent));
            assert_eq!(waves, expected, "{files} files, {subsystems} of {concurrent:b}");
            assert_eq!(world.state(), State::Prepared);
        }
    }
}

#[test]
fn when_one_of_several_side_by_side_fails_the_others_are_awaited_and_undone() {
    for (files, subsystems) in all_sizes() {
        for concurrent in 0..1_u32 << subsystems {
            let mut waves: Vec<Vec<String>> = Vec::new();
            if files > 0 {
                waves.push((1..=files).map(|id| id.to_string()).collect());
            }
            waves.extend(groups(subsystems, concurrent));
            for (w, wave) in waves.iter().enumerate() {
                for victim in wave {
                    for backwards in [false, true] {
                        let context =
                            format!("{files}/{subsystems}/{concurrent:b}, {victim}, {backwards}");
                        let mut world = world(files, subsystems, concurrent, None);
                        world.script.fail(&format!("prepare {victim}"));
                        let id = world.core.begin(Scope::Machine, Event::Prepare).unwrap();
                        let mut undo_waves = Vec::new();
                        loop {
                            let mut calls = world.calls();
                            if calls.is_empty() {
                                break;
                            }
                            if calls[0].phase() == Phase::Cancel {
                                undo_waves.push(calls.iter().map(part_of).collect::<Vec<_>>());
                            }
                            if backwards {
                                calls.reverse();
                            }
                            for call in &calls {
                                world.complete(call);
                            }
                        }
                        let mut expected: Vec<Vec<String>> = Vec::new();
                        for (i, other) in waves[..=w].iter().enumerate().rev() {
                            let mut undone = reversed(other.clone());
                            if i == w {
                                undone.retain(|part| part != victim);
                            }
                            if !undone.is_empty() {
                                expected.push(undone);
                            }
                        }
                        assert_eq!(undo_waves, expected, "{context}");
                        assert_eq!(world.state(), State::Normal, "{context}");
                        assert_eq!(world.carrier.kept(), 0, "{context}");
                        assert!(world.report(id).result.is_err(), "{context}");
                    }
                }
            }
        }
    }
}

#[test]
fn two_failures_side_by_side_are_both_told() {
    let mut world = world(4, 0, 0, None);
    world.script.fail("prepare 2");
    world.script.fail("prepare 3");
    let id = world.core.begin(Scope::Machine, Event::Prepare).unwrap();
    for call in world.calls() {
        world.complete(&call);
    }
    world.run();
    let report = world.report(id);
    assert_eq!(report.result.unwrap_err().location().token, Some(Token(2)));
    assert_eq!(report.left_out[0].location().token, Some(Token(3)));
    assert_eq!(world.carrier.kept(), 0);
}
