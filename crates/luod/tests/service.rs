//! A service gives its files to a real luod and takes them back after its restart.

mod common;

use std::os::fd::AsFd;

use common::{Luod, PATIENCE, assert_connected, errno, pipe};
use luo::{OnClose, Policy, Session, State, Unclaimed};
use rustix::event::EventfdFlags;

#[test]
fn files_outlive_the_process_that_gave_them() {
    let luod = Luod::start();
    let (reader, writer) = pipe();
    let session = luod.session("shop");
    assert!(!session.is_updated().unwrap());
    session.preserve(1, &reader).unwrap();
    session.preserve(2, &writer).unwrap();
    rustix::io::write(&writer, b"before").unwrap();
    drop((session, reader, writer));

    let session = luod.session("shop");
    let info = session.info().unwrap();
    assert_eq!((info.state, info.incoming.as_slice()), (State::Updated, [1, 2].as_slice()));
    let (reader, writer) = (session.retrieve(1).unwrap(), session.retrieve(2).unwrap());
    let mut buffer = [0; 6];
    rustix::io::read(&reader, &mut buffer).unwrap();
    assert_eq!(&buffer, b"before");
    assert_connected(&reader, &writer, b"after");
    session.finish().unwrap();
    let info = session.info().unwrap();
    assert_eq!((info.state, info.files.len()), (State::Normal, 0));
}

#[test]
fn files_that_are_carried_on_need_not_be_given_again() {
    let luod = Luod::start();
    let (reader, writer) = pipe();
    let session = luod.session("shop");
    session.preserve_many(&[(7, &reader), (8, &writer)]).unwrap();
    drop(session);
    for round in 0..3u8 {
        let session = luod.session("shop");
        assert!(session.is_updated().unwrap(), "round {round}");
        let files = session.retrieve_many(&[7, 8]).unwrap();
        let [reader, writer] = files.as_slice() else { panic!("{files:?}") };
        assert_connected(reader.as_ref().unwrap(), writer.as_ref().unwrap(), &[round; 4]);
        session.finish_and_carry().unwrap();
        assert_eq!(session.info().unwrap().files, [7, 8]);
        if round == 1 {
            luod.kill_worker();
        }
    }
}

#[test]
fn the_planned_way_over_freeze_works_too() {
    let luod = Luod::start();
    let (reader, writer) = pipe();
    let session = luod.session("shop");
    session.preserve(1, &reader).unwrap();
    session.prepare().unwrap();
    assert_eq!(errno(session.preserve(2, &writer)), "EBUSY");
    session.freeze().unwrap();
    assert_eq!(session.info().unwrap().state, State::Frozen);
    drop(session);
    let session = luod.session("shop");
    assert_connected(session.retrieve(1).unwrap(), &writer, b"x");
    session.finish().unwrap();
}

#[test]
fn freezing_can_be_cancelled() {
    let luod = Luod::start();
    let (reader, _writer) = pipe();
    let session = luod.session("shop");
    session.preserve(1, &reader).unwrap();
    session.prepare().unwrap();
    session.freeze().unwrap();
    session.cancel().unwrap();
    let info = session.info().unwrap();
    assert_eq!((info.state, info.files.as_slice()), (State::Normal, [1].as_slice()));
    assert_eq!(errno(session.cancel()), "EBUSY");
    session.unpreserve(1).unwrap();
}

#[test]
fn every_refusal_has_the_errno_of_the_kernels_interface() {
    let luod = Luod::start();
    let (reader, writer) = pipe();
    let session = luod.session("shop");
    session.preserve(1, &reader).unwrap();
    assert_eq!(errno(session.preserve(1, &writer)), "EEXIST");
    assert_eq!(errno(session.preserve(2, &reader)), "EBUSY");
    assert_eq!(errno(session.unpreserve(9)), "ENOENT");
    assert_eq!(errno(session.retrieve(1)), "EBUSY");
    assert_eq!(errno(session.finish()), "EBUSY");
    assert_eq!(errno(Session::create_with("shop", luod.options())), "EEXIST");
    assert_eq!(errno(Session::create_with("a/b", luod.options())), "EINVAL");
    assert_eq!(errno(Session::create_with(&"x".repeat(64), luod.options())), "ENAMETOOLONG");
    assert_eq!(errno(Session::claim_with("nobody", luod.options())), "ENOENT");
    let impatient = luod.options().deadline(std::time::Duration::from_millis(300));
    assert_eq!(errno(Session::claim_with("shop", impatient)), "EBUSY");
}

#[test]
fn unclaimed_files_are_not_freed_by_accident() {
    let luod = Luod::start();
    let (reader, writer) = pipe();
    let session = luod.session("shop");
    session.preserve_many(&[(1, &reader), (2, &writer)]).unwrap();
    drop((session, reader));
    let session = luod.session("shop");
    assert_eq!(errno(session.retrieve(3)), "ENOENT");
    drop(session.retrieve(2).unwrap());
    assert_eq!(errno(session.finish()), "EBUSY");
    session.finish_with(Unclaimed::Carry, false).unwrap();
    assert_eq!(session.info().unwrap().files, [1]);
    drop(session);
    let session = luod.session("shop");
    assert_connected(session.retrieve(1).unwrap(), &writer, b"x");
    session.finish_with(Unclaimed::Release, false).unwrap();
}

#[test]
fn a_session_that_is_to_be_released_is_gone_with_its_descriptor() {
    let luod = Luod::start();
    let policy = Policy { on_close: OnClose::Release, ttl_seconds: None };
    let session = Session::create_with("brief", luod.options().policy(policy)).unwrap();
    let (reader, writer) = pipe();
    session.preserve(1, &writer).unwrap();
    drop((session, writer));
    luod.wait("the session ends", || luod.manager().sessions().unwrap().is_empty());
    // The last writer is gone, so luod holds it no more.
    let mut buffer = [0; 1];
    luod.wait("the end of the pipe", || rustix::io::read(&reader, &mut buffer) == Ok(0));
}

#[test]
fn a_time_limit_ends_a_session_that_nobody_claims() {
    let luod = Luod::start();
    let policy = Policy { on_close: OnClose::Keep, ttl_seconds: Some(1) };
    let session = Session::create_with("brief", luod.options().policy(policy)).unwrap();
    let (reader, _writer) = pipe();
    session.preserve(1, &reader).unwrap();
    drop(session);
    luod.wait("the session ends", || luod.manager().sessions().unwrap().is_empty());
}

#[test]
fn the_descriptor_alone_gives_the_session() {
    let luod = Luod::start();
    let session = luod.session("shop");
    let passed = Session::from_descriptor(session.descriptor().unwrap()).unwrap();
    drop(session);
    let (reader, writer) = pipe();
    passed.preserve(1, &reader).unwrap();
    assert_eq!(passed.name(), "shop");
    drop((passed, reader));
    let session = luod.session("shop");
    assert_connected(session.retrieve(1).unwrap(), &writer, b"x");
}

#[test]
fn a_claim_waits_until_the_holder_has_gone() {
    let luod = Luod::start();
    let first = luod.session("shop");
    let (reader, writer) = pipe();
    first.preserve(1, &reader).unwrap();
    let options = luod.options();
    let second = std::thread::spawn(move || Session::open_with("shop", options));
    // Whether the claim waits already or not: it succeeds when the first one has gone.
    drop(first);
    let second = second.join().unwrap().unwrap();
    assert_connected(second.retrieve(1).unwrap(), &writer, b"x");
}

#[test]
fn many_files_go_over_in_batches() {
    let luod = Luod::start();
    let session = luod.session("many");
    let pipes: Vec<_> = (0..700).map(|_| pipe()).collect();
    let files: Vec<_> = pipes
        .iter()
        .enumerate()
        .map(|(token, (reader, _))| (token as u64, reader.as_fd()))
        .collect();
    let verdicts = session.preserve_many(&files).unwrap();
    assert!(verdicts.iter().enumerate().all(|(token, verdict)| *verdict == Ok(token as u64)));
    drop(session);
    let session = luod.session("many");
    let tokens: Vec<u64> = (0..700).rev().collect();
    let files = session.retrieve_many(&tokens).unwrap();
    for (token, file) in tokens.iter().zip(files) {
        let (_, writer) = &pipes[usize::try_from(*token).unwrap()];
        assert_connected(file.unwrap(), writer, &token.to_le_bytes());
    }
    session.finish().unwrap();
}

#[test]
fn without_luod_a_service_runs_on() {
    let directory = tempfile::tempdir().unwrap();
    let options = luo::Options::new().socket(directory.path().join("none")).deadline(PATIENCE);
    match Session::open_with("shop", options) {
        Err(luo::Error::Unavailable { .. }) => {}
        other => panic!("{other:?}"),
    }
}

#[test]
fn luod_closes_what_is_unpreserved() {
    let luod = Luod::start();
    let session = luod.session("shop");
    let (reader, writer) = pipe();
    session.preserve(1, &writer).unwrap();
    drop(writer);
    session.unpreserve(1).unwrap();
    let mut buffer = [0; 1];
    luod.wait("the end of the pipe", || rustix::io::read(&reader, &mut buffer) == Ok(0));
}

/// More files than luod departs with in one go.
fn many(session: &Session) {
    let files: Vec<_> = (1..=600)
        .map(|token| (token, rustix::event::eventfd(0, EventfdFlags::CLOEXEC).unwrap()))
        .collect();
    for verdict in session.preserve_many(&files).unwrap() {
        verdict.unwrap();
    }
}

#[test]
fn a_session_that_waits_to_be_claimed_departs_without_being_asked() {
    let luod = Luod::start();
    let (reader, writer) = pipe();
    let session = luod.session("shop");
    session.preserve(1, &reader).unwrap();
    drop((session, reader));
    luod.wait("it departs", || luod.manager().sessions().unwrap()[0].state == State::Frozen);
    let session = luod.session("shop");
    assert_connected(session.retrieve(1).unwrap(), &writer, b"x");
    session.finish_and_carry().unwrap();
    // With the machine prepared it is too late; what the machine does is enough.
    luod.manager().prepare().unwrap();
    drop(session);
    luod.wait("nobody holds it", || !luod.manager().sessions().unwrap()[0].held);
    luod.manager().freeze().unwrap();
    luod.manager().cancel().unwrap();
    let session = luod.session("shop");
    assert_connected(session.retrieve(1).unwrap(), &writer, b"y");
}

#[test]
fn nobody_is_refused_because_a_session_departs_without_being_asked() {
    let luod = Luod::start();
    let manager = luod.manager();
    for round in 0..10 {
        let session = luod.session("shop");
        many(&session);
        drop(session);
        match round % 3 {
            // An update of the machine, before, while or after it departs.
            0 => {
                manager.prepare().unwrap();
                manager.freeze().unwrap();
                manager.cancel().unwrap();
            }
            1 => {}
            _ => {
                manager.rehearse().unwrap();
                luod.kill_worker();
            }
        }
        if round % 2 == 0 {
            let session = luod.session("shop");
            let incoming = session.info().unwrap().incoming;
            assert_eq!(incoming.len(), 600);
            for file in session.retrieve_many(&incoming).unwrap() {
                file.unwrap();
            }
        }
        manager.release("shop").unwrap();
    }
}
