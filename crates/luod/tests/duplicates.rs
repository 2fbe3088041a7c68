//! Two tokens of one open file description, over the whole life of a luod.

mod common;

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use common::{Luod, PATIENCE, errno};
use luo::{Session, Unclaimed};
use luo_carriers::arena::{self, Arena, FileMedium};
use luo_sys::same_description;

/// A file of ten digits, at this position.
fn digits(position: u64) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(b"0123456789").unwrap();
    file.seek(SeekFrom::Start(position)).unwrap();
    file
}

/// The three tokens are descriptors of one description at this position, and move it by one; the
/// fourth is another.
fn assert_shared(session: &Session, position: u64) {
    let files: Vec<OwnedFd> =
        [3, 5, 7, 9].map(|token| session.retrieve(token).unwrap()).into_iter().collect();
    assert!(same_description(&files[0], &files[1]).unwrap());
    assert!(same_description(&files[2], &files[1]).unwrap());
    assert!(!same_description(&files[3], &files[1]).unwrap());
    let mut files = files.into_iter().map(File::from);
    let (mut one, mut other) = (files.next().unwrap(), files.next().unwrap());
    assert_eq!(one.stream_position().unwrap(), position);
    one.read_exact(&mut [0]).unwrap();
    assert_eq!(other.stream_position().unwrap(), position + 1);
}

/// How many descriptors luod's keeper has.
fn held(luod: &Luod) -> usize {
    let path = format!("/proc/{}/fd", luod.keeper().as_raw_nonzero());
    std::fs::read_dir(path).unwrap().count()
}

fn give(session: &Session) {
    session.preserve(5, digits(0)).unwrap();
    session.duplicate(3, 5).unwrap();
    session.duplicate(7, 3).unwrap();
    session.preserve(9, digits(0)).unwrap();
}

#[test]
fn duplicates_outlive_killed_workers_and_upgrades_of_all_of_luod() {
    let mut luod = Luod::start_with("[worker]\nquick_death_milliseconds = 0");
    let mut session = luod.session("shop");
    let before = held(&luod);
    give(&session);
    for round in 0..4 {
        match round {
            0 => {}
            1 => luod.kill_worker(),
            _ => {
                let binary = File::open(env!("CARGO_BIN_EXE_luod")).unwrap();
                let keeper = round == 3;
                luod.manager().upgrade(Some(binary.as_fd()), PATIENCE, keeper).unwrap();
            }
        }
        assert!(luod.keeper_is_running());
        assert_eq!(session.info().unwrap().files, [3, 5, 7, 9]);
        // Its owner goes and comes back.
        drop(session);
        session = luod.session("shop");
        assert_shared(&session, round);
        if round == 1 {
            luod.kill_worker();
            assert_shared(&session, round + 1);
            session.retrieve(3).map(File::from).unwrap().seek(SeekFrom::Current(-1)).unwrap();
        }
        session.finish_and_carry().unwrap();
    }
    // Whichever is the original now: in one call they go, and nothing stays.
    assert_eq!(session.unpreserve_many(&[3, 5, 7, 9]).unwrap(), []);
    luod.wait("the keeper has let go of them", || held(&luod) == before);
}

#[test]
fn what_cannot_be_duplicated_is_refused_and_leaves_nothing() {
    let luod = Luod::start();
    let session = luod.session("shop");
    give(&session);
    assert_eq!(errno(session.duplicate(1, 2)), "ENOENT");
    assert_eq!(errno(session.duplicate(9, 5)), "EEXIST");
    assert_eq!(errno(luod.session("other").duplicate(1, 5)), "ENOENT");
    let assigned = session.duplicate_assigned(9).unwrap();
    assert_eq!(session.info().unwrap().files.len(), 5);
    session.unpreserve(assigned).unwrap();
    luod.manager().prepare().unwrap();
    assert_eq!(errno(session.duplicate(1, 5)), "EBUSY");
    luod.manager().cancel().unwrap();
    assert_eq!(session.info().unwrap().files, [3, 5, 7, 9]);
    // An original goes with the last of its duplicates, and not before.
    assert_eq!(errno(session.unpreserve(5)), "EBUSY");
    assert_eq!(session.unpreserve_many(&[5, 3]).unwrap().len(), 1);
    assert_eq!(session.unpreserve_many(&[5, 7, 9]).unwrap(), []);
    assert!(session.info().unwrap().files.is_empty());
}

/// Asks for a duplicate on a connection of its own.
fn ask(session: &Session, parameters: &str) -> String {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let descriptor = session.descriptor().unwrap();
    luo::wire::send(descriptor.as_fd(), luo::protocol::CONNECT_PACKET, &[theirs.as_fd()]).unwrap();
    drop(theirs);
    ours.set_read_timeout(Some(PATIENCE)).unwrap();
    let call = format!("{{\"method\":\"io.luo.Session.Duplicate\",\"parameters\":{parameters}}}\0");
    (&ours).write_all(call.as_bytes()).unwrap();
    let mut answer = Vec::new();
    BufReader::new(ours).read_until(0, &mut answer).unwrap();
    String::from_utf8(answer).unwrap()
}

#[test]
fn a_request_that_is_sent_again_to_the_next_worker_makes_no_second_duplicate() {
    let luod = Luod::start();
    let session = luod.session("shop");
    give(&session);
    let call = r#"{"original":5,"request":4711}"#;
    let first = ask(&session, call);
    assert!(first.contains("\"token\":"), "{first}");
    let files = session.info().unwrap().files;
    assert_eq!(files.len(), 5);
    luod.kill_worker();
    session.info().unwrap();
    assert_eq!(ask(&session, call), first);
    assert_eq!(session.info().unwrap().files, files);
    assert_ne!(ask(&session, r#"{"original":5,"request":4712}"#), first);
}

#[test]
fn duplicates_come_back_through_an_arena_and_are_carried_on() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("arena");
    let medium = FileMedium::create(&path, 16 << 20).unwrap();
    Arena::create(Arc::new(medium), arena::machine_id().unwrap(), false).unwrap();
    let config = format!("arena = {path:?}");
    let mut luod = Luod::start_with(&config);
    give(&luod.session("shop"));
    for round in 0..2 {
        luod.manager().prepare_through("arena").unwrap();
        luod.manager().freeze().unwrap();
        luod.manager().depart().unwrap();
        luod.wait_for_end();
        luod = Luod::start_with(&config);
        let session = luod.session("shop");
        assert_shared(&session, 2 * round);
        luod.kill_worker();
        assert_shared(&session, 2 * round + 1);
        session.finish_and_carry().unwrap();
        luod.manager().finish(Unclaimed::Refuse).unwrap();
        assert_eq!(session.info().unwrap().files, [3, 5, 7, 9]);
    }
}
