//! What is left when something is refused: by the keeper at its limits, or by luod; and that
//! nothing piles up.

mod common;

use std::os::fd::{AsFd, OwnedFd};

use common::{Luod, assert_connected, errno, pipe};
use luo::protocol::Info;
use luo::{OnClose, Policy, Session, State, Unclaimed};
use rustix::process::Pid;

fn held_by(process: Pid) -> usize {
    let directory = format!("/proc/{}/fd", process.as_raw_nonzero());
    std::fs::read_dir(directory).map_or(0, Iterator::count)
}

/// The reason of a refusal with that errno.
fn reason<T: std::fmt::Debug>(wanted: &str, result: Result<T, luo::Error>) -> String {
    match result {
        Err(error) if error.errno() == Some(wanted) => error.to_string(),
        other => panic!("not {wanted}: {other:?}"),
    }
}

/// What luod says of a session, which is the same after its worker was killed.
fn info_that_stays(luod: &Luod, session: &Session) -> Info {
    let before = session.info().unwrap();
    luod.kill_worker();
    let after = session.info().unwrap();
    assert_eq!(before, after, "what was there is not what was kept");
    after
}

/// Preserves one pipe after the other until there is no room: the tokens that were taken, and what
/// was said of the next.
fn preserve_until_full(session: &Session, pipes: &[(OwnedFd, OwnedFd)]) -> (Vec<u64>, String) {
    let mut kept = Vec::new();
    loop {
        let token = kept.len() as u64;
        match session.preserve(token, &pipes[kept.len()].1) {
            Ok(()) => kept.push(token),
            error => return (kept, reason("ENOSPC", error)),
        }
    }
}

/// The worker, as a connection that stays is told.
fn pid_of(manager: &luo::Manager) -> Pid {
    let pid = manager.status().unwrap().pid;
    Pid::from_raw(i32::try_from(pid).unwrap()).unwrap()
}

#[test]
fn a_keeper_without_room_for_a_descriptor_keeps_what_it_has() {
    let luod = Luod::start_with("[worker]\ndescriptors = 12\nquick_death_milliseconds = 0");
    let session = luod.session("shop");
    let pipes: Vec<_> = (0..20).map(|_| pipe()).collect();
    let (kept, refused) = preserve_until_full(&session, &pipes);
    assert!(refused.contains("12"), "{refused}");
    assert!(kept.len() >= 10, "{kept:?}");
    assert_eq!(info_that_stays(&luod, &session).files, kept);
    // A batch too large for the rest: all of it is refused, and none of it held.
    session.unpreserve_many(&[0, 1]).unwrap();
    let manager = luod.manager();
    let worker = pid_of(&manager);
    // What was closed before a call was sent is known to the worker when it reads that call, and is
    // done before it reads the one after.
    assert_eq!((pid_of(&manager), pid_of(&manager)), (worker, worker));
    let held = || (held_by(worker), held_by(luod.keeper()));
    let before = held();
    for _ in 0..5 {
        let batch: Vec<_> =
            (100..110).map(|token| (token, pipes[token as usize - 100].0.as_fd())).collect();
        reason("ENOSPC", session.preserve_many(&batch));
        assert_eq!(session.info().unwrap().files, kept[2..]);
    }
    luod.wait("nothing of it is held", || (held_by(worker), held_by(luod.keeper())) == before);
    assert_eq!(info_that_stays(&luod, &session).files, kept[2..]);
    // There is room again for as many as went.
    session.preserve(200, &pipes[0].0).unwrap();
    session.preserve(201, &pipes[1].0).unwrap();
    reason("ENOSPC", session.preserve(202, &pipes[2].0));
    // Others are refused for the lack of room, and for nothing else.
    reason("ENOSPC", Session::create_with("other", luod.options()));
    assert_eq!(luod.manager().sessions().unwrap().len(), 1);
    session.unpreserve_many(&[200, 201]).unwrap();
    Session::create_with("other", luod.options()).unwrap().release().unwrap();
    // The way over and back needs no room for descriptors.
    drop(session);
    let session = luod.session("shop");
    let files = session.retrieve_many(&kept[2..]).unwrap();
    for (token, file) in kept[2..].iter().zip(files) {
        let (reader, _) = &pipes[*token as usize];
        assert_connected(reader, file.unwrap(), b"still");
    }
    session.finish().unwrap();
}

#[test]
fn a_keeper_without_room_for_records_is_told_of_and_what_was_told_stays() {
    // Room for some files, and for less than what preparing them adds.
    for bytes in [3_000, 5_000, 8_000] {
        let config = format!("[worker]\nrecord_bytes = {bytes}\nquick_death_milliseconds = 0");
        let luod = Luod::start_with(&config);
        let session = luod.session("shop");
        let pipes: Vec<_> = (0..100).map(|_| pipe()).collect();
        let (kept, refused) = preserve_until_full(&session, &pipes);
        assert!(refused.contains(&bytes.to_string()), "{refused}");
        let info = info_that_stays(&luod, &session);
        assert_eq!((info.state, &info.files), (State::Normal, &kept));
        // With so many there is no room for the records of an update: that is said, and nothing
        // has happened.
        for _ in 0..3 {
            let prepared = session.prepare();
            let info = info_that_stays(&luod, &session);
            match prepared {
                Ok(()) => {
                    assert_eq!((info.state, &info.files), (State::Prepared, &kept));
                    session.cancel().unwrap();
                }
                error => {
                    reason("ENOSPC", error);
                    assert_eq!((info.state, &info.files), (State::Normal, &kept), "{bytes}");
                }
            }
        }
        // With some less there is.
        let (gone, rest) = kept.split_at(kept.len() - kept.len() / 3);
        assert!(session.unpreserve_many(gone).unwrap().is_empty());
        session.prepare().unwrap();
        assert_eq!(info_that_stays(&luod, &session).state, State::Prepared);
        session.freeze().unwrap();
        session.cancel().unwrap();
        assert_eq!(info_that_stays(&luod, &session).files, rest);
        drop(session);
        let session = luod.session("shop");
        for (token, file) in rest.iter().zip(session.retrieve_many(rest).unwrap()) {
            assert_connected(&pipes[*token as usize].0, file.unwrap(), b"still");
        }
        session.finish().unwrap();
    }
}

#[test]
fn names_and_policies_at_their_limits_can_be_kept() {
    let luod = Luod::start_with("[worker]\nquick_death_milliseconds = 0");
    let name = "x".repeat(63);
    let policy = Policy { on_close: OnClose::Keep, ttl_seconds: Some(u64::MAX >> 2) };
    let session = Session::create_with(&name, luod.options().policy(policy)).unwrap();
    let (reader, writer) = pipe();
    session.preserve(u64::MAX, &reader).unwrap();
    assert_eq!(info_that_stays(&luod, &session).files, [u64::MAX]);
    drop(session);
    luod.wait("nobody holds it", || !luod.manager().sessions().unwrap()[0].held);
    luod.kill_worker();
    let listed = luod.manager().sessions().unwrap();
    assert_eq!(listed[0].policy, policy);
    let session = luod.session(&name);
    assert_connected(session.retrieve(u64::MAX).unwrap(), &writer, b"x");
}

#[test]
fn a_refused_request_of_one_is_no_refusal_for_another() {
    let luod = Luod::start_with("[worker]\ndescriptors = 6");
    let full = luod.session("full");
    let (other, _other) = (luod.session("other"), pipe());
    let pipes: Vec<_> = (0..10).map(|_| pipe()).collect();
    let mut token = 0;
    while full.preserve(token, &pipes[token as usize].0).is_ok() {
        token += 1;
    }
    for _ in 0..10 {
        reason("ENOSPC", full.preserve(99, &pipes[9].0));
        // These change nothing, or little: what was refused before is not theirs.
        other.prepare().unwrap();
        other.cancel().unwrap();
        assert_eq!(errno(other.cancel()), "EBUSY");
        assert!(other.unpreserve_many(&[]).unwrap().is_empty());
        assert_eq!(errno(other.unpreserve(7)), "ENOENT");
    }
    drop(other);
    drop(luod.session("other"));
}

#[test]
fn nothing_piles_up_over_hundreds_of_updates_and_deaths() {
    let luod = Luod::start_with("[worker]\nquick_death_milliseconds = 0\nquick_deaths = 1000");
    let pipes: Vec<_> = (0..6).map(|_| pipe()).collect();
    let files: Vec<_> =
        pipes.iter().enumerate().map(|(token, (_, writer))| (token as u64, writer)).collect();
    let tokens: Vec<u64> = files.iter().map(|(token, _)| *token).collect();
    let manager = luod.manager();
    let mut held = Vec::new();
    for cycle in 0..200_u32 {
        let session = luod.session("shop");
        match session.info().unwrap().state {
            State::Updated => {
                let which = if cycle % 3 == 0 { &tokens[..2] } else { &tokens[..] };
                let came = session.retrieve_many(which).unwrap();
                assert!(came.iter().all(Result::is_ok), "cycle {cycle}: {came:?}");
                match cycle % 4 {
                    0 => session.finish_with(Unclaimed::Carry, true).unwrap(),
                    1 => session.finish_with(Unclaimed::Release, false).unwrap(),
                    2 => session.finish_with(Unclaimed::Carry, false).unwrap(),
                    _ => session.finish_with(Unclaimed::Release, true).unwrap(),
                }
            }
            _ => assert!(session.preserve_many(&files).unwrap().iter().all(Result::is_ok)),
        }
        if cycle % 5 == 1 {
            luod.kill_worker();
        }
        let there = session.info().unwrap().files;
        let missing: Vec<_> =
            files.iter().filter(|(token, _)| !there.contains(token)).copied().collect();
        assert!(session.preserve_many(&missing).unwrap().iter().all(Result::is_ok));
        match cycle % 7 {
            0 => {
                session.prepare().unwrap();
                session.freeze().unwrap();
            }
            1 => {
                session.prepare().unwrap();
                session.cancel().unwrap();
            }
            2 => drop(manager.rehearse().unwrap()),
            3 => {
                session.unpreserve_many(&tokens[3..]).unwrap();
                let again: Vec<_> = files[3..].to_vec();
                assert!(session.preserve_many(&again).unwrap().iter().all(Result::is_ok));
            }
            _ => {}
        }
        if cycle % 11 == 3 {
            session.release().unwrap();
        } else {
            drop(session);
        }
        if cycle % 9 == 2 {
            luod.kill_worker();
        }
        if cycle % 40 == 39 {
            manager.release("shop").ok();
            luod.wait("no session", || manager.sessions().unwrap().is_empty());
            // Whatever was there before the first cycle is there now: a fresh worker holds what the
            // keeper gives it, and nothing else.
            luod.kill_worker();
            manager.status().unwrap();
            held.push(held_by(luod.keeper()));
        }
    }
    assert!(held.windows(2).all(|pair| pair[0] == pair[1]), "the keeper holds {held:?}");
    let machine = luod.manager().status().unwrap();
    assert_eq!((machine.sessions, machine.files, machine.pinned), (0, 0, 0));
    for (reader, writer) in pipes {
        drop(writer);
        luod.wait("luod has none of the pipes", || {
            rustix::io::read(&reader, &mut [0; 64]) == Ok(0)
        });
    }
}
