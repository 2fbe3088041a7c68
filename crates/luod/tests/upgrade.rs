//! luod's worker is killed, and luod is replaced, under sessions that go on.

mod common;

use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use common::{Luod, PATIENCE, assert_connected, pipe};
use luo::State;

/// A script that runs the real luod under another version, or does what it is told instead.
fn luod_as(directory: &Path, name: &str, body: &str) -> PathBuf {
    let path = directory.join(name);
    let text = format!("#!/bin/sh\n{body}\n");
    std::fs::write(&path, text).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path
}

fn real(version: &str) -> String {
    format!("LUOD_VERSION={version} exec {} \"$@\"", env!("CARGO_BIN_EXE_luod"))
}

fn upgrade(
    luod: &Luod,
    binary: &Path,
    keeper: bool,
) -> Result<luo::protocol::Upgraded, luo::Error> {
    let file = std::fs::File::open(binary).unwrap();
    luod.manager().upgrade(Some(file.as_fd()), PATIENCE, keeper)
}

/// Asks for another keeper alone; gives luod's answer.
fn upgrade_keeper(luod: &Luod, binary: &Path) -> String {
    let call = r#"{"method":"io.luo.Upgrade","parameters":{"keeper":true}}"#;
    let socket = std::os::unix::net::UnixStream::connect(luod.socket()).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut sender = luo::wire::Sender::default();
    sender.push(call.into(), vec![std::fs::File::open(binary).unwrap()]);
    sender.flush(socket.as_fd()).unwrap();
    let mut answer = Vec::new();
    std::io::BufRead::read_until(&mut std::io::BufReader::new(socket), 0, &mut answer).unwrap();
    String::from_utf8(answer).unwrap()
}

#[test]
fn a_killed_worker_is_replaced_and_nobody_notices() {
    // None of these deaths counts as one at once.
    let luod = Luod::start_with("[worker]\nquick_death_milliseconds = 0");
    let session = luod.session("shop");
    let manager = luod.manager();
    for token in 0..20 {
        let (reader, _writer) = pipe();
        session.preserve(token, &reader).unwrap();
        luod.kill_worker();
        assert_eq!(session.info().unwrap().files.len() as u64, token + 1);
    }
    assert_eq!(manager.status().unwrap().incarnation, 21);
}

#[test]
fn a_new_worker_takes_over_and_the_way_back_works() {
    let luod = Luod::start();
    let session = luod.session("shop");
    let (reader, writer) = pipe();
    session.preserve(1, &reader).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let before = luod.manager().status().unwrap().version;
    for version in ["9.9.9", "0.0.1"] {
        let binary = luod_as(directory.path(), version, &real(version));
        let upgraded = upgrade(&luod, &binary, false).unwrap();
        assert_eq!(upgraded.after, version, "{upgraded:?}");
        assert_eq!(session.info().unwrap().files, [1]);
        assert_eq!(luod.manager().status().unwrap().version, version);
    }
    let upgraded = upgrade(&luod, Path::new(env!("CARGO_BIN_EXE_luod")), false).unwrap();
    assert_eq!(upgraded.after, before);
    drop(session);
    let session = luod.session("shop");
    assert_connected(session.retrieve(1).unwrap(), &writer, b"x");
}

#[test]
fn an_upgrade_waits_for_the_worker_before_to_end() {
    let luod = Luod::start();
    let before = luod.worker();
    // More replies than a socket takes, and fewer than make luod stop reading: the answer to the
    // upgrade is not delivered, and the worker that gives it waits for that before it ends.
    let mut rude = std::os::unix::net::UnixStream::connect(luod.socket()).unwrap();
    let describe = r#"{"method":"org.varlink.service.GetInterfaceDescription","parameters":{"interface":"io.luo"}}"#;
    let mut calls = format!("{describe}\0").repeat(80);
    calls.push_str("{\"method\":\"io.luo.Upgrade\"}\0");
    rude.write_all(calls.as_bytes()).unwrap();
    luod.wait("another worker serves", || luod.worker() != before);
    upgrade(&luod, Path::new(env!("CARGO_BIN_EXE_luod")), false).unwrap();
    assert_eq!(luod.manager().status().unwrap().incarnation, 3);
    drop(rude);
}

#[test]
fn a_deadline_of_an_upgrade_may_be_as_long_as_the_tool_allows() {
    let luod = Luod::start();
    let file = std::fs::File::open(env!("CARGO_BIN_EXE_luod")).unwrap();
    let year = Duration::from_secs(365 * 86_400);
    luod.manager().upgrade(Some(file.as_fd()), year, false).unwrap();
}

#[test]
fn the_keeper_is_replaced_in_place() {
    let mut luod = Luod::start();
    let session = luod.session("shop");
    let (reader, writer) = pipe();
    session.preserve(1, &reader).unwrap();
    let keeper = luod.keeper();
    upgrade(&luod, Path::new(env!("CARGO_BIN_EXE_luod")), true).unwrap();
    assert!(luod.keeper_is_running());
    assert_eq!(luod.keeper(), keeper);
    luod.kill_worker();
    drop(session);
    let session = luod.session("shop");
    assert_connected(session.retrieve(1).unwrap(), &writer, b"x");
}

#[test]
fn what_is_no_luod_never_becomes_the_keeper() {
    let mut luod = Luod::start();
    let session = luod.session("shop");
    let (reader, writer) = pipe();
    session.preserve(1, &reader).unwrap();
    for binary in ["/bin/true", "/bin/false", "/bin/cat", "/bin/echo"] {
        // Without the library, which has the worker replaced before it asks for the keeper.
        let answer = upgrade_keeper(&luod, Path::new(binary));
        assert!(answer.contains("ECANCELED"), "{binary}: {answer}");
        assert!(luod.keeper_is_running(), "{binary}");
    }
    drop(session);
    let session = luod.session("shop");
    assert_connected(session.retrieve(1).unwrap(), &writer, b"x");
}

#[test]
fn one_that_exits_hangs_or_cannot_restore_leaves_the_old_one_serving() {
    let luod = Luod::start();
    let session = luod.session("shop");
    let (reader, writer) = pipe();
    session.preserve(1, &reader).unwrap();
    let worker = luod.worker();
    let directory = tempfile::tempdir().unwrap();
    for (name, body) in [("exits", "exit 3"), ("dies", "kill -9 $$"), ("hangs", "exec sleep 1000")]
    {
        let binary = luod_as(directory.path(), name, body);
        let file = std::fs::File::open(&binary).unwrap();
        let limit = Duration::from_millis(1500);
        let error = luod.manager().upgrade(Some(file.as_fd()), limit, false).unwrap_err();
        assert_eq!(error.errno(), Some("ECANCELED"), "{name}: {error}");
        assert_eq!(luod.worker(), worker, "{name}");
        assert_eq!(session.info().unwrap().files, [1], "{name}");
    }
    drop(session);
    let session = luod.session("shop");
    assert_connected(session.retrieve(1).unwrap(), &writer, b"x");
}

#[test]
fn what_a_binary_that_cannot_take_over_has_started_ends_with_it() {
    let luod = Luod::start();
    let directory = tempfile::tempdir().unwrap();
    let alive = directory.path().join("alive");
    let made = std::process::Command::new("mkfifo").arg(&alive).status().unwrap();
    assert!(made.success());
    for (name, end) in [("hangs", "wait"), ("exits", "read line < $0.fifo")] {
        let reader = rustix::fs::open(
            &alive,
            rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::NONBLOCK,
            rustix::fs::Mode::empty(),
        );
        let mut reader = std::fs::File::from(reader.unwrap());
        // The child says that it is there before its parent goes on; its end closes the pipe.
        let body = format!(
            "mkfifo $0.fifo\n(echo here; echo > $0.fifo; exec sleep 1000) > {} &\n{end}",
            alive.display()
        );
        let binary = luod_as(directory.path(), name, &body);
        let file = std::fs::File::open(&binary).unwrap();
        let limit = Duration::from_millis(1500);
        let error = luod.manager().upgrade(Some(file.as_fd()), limit, false).unwrap_err();
        assert_eq!(error.errno(), Some("ECANCELED"), "{name}: {error}");
        let mut said = String::new();
        luod.wait("the end of what it has started", || {
            use std::io::Read;
            let mut bytes = [0; 64];
            match reader.read(&mut bytes) {
                Ok(0) => true,
                Ok(read) => {
                    said.push_str(std::str::from_utf8(&bytes[..read]).unwrap());
                    false
                }
                Err(error) => {
                    assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
                    false
                }
            }
        });
        assert_eq!(said, "here\n", "{name}");
    }
}

#[test]
fn an_upgrade_while_the_machine_is_prepared_is_refused() {
    let luod = Luod::start();
    luod.manager().prepare().unwrap();
    let error = upgrade(&luod, Path::new(env!("CARGO_BIN_EXE_luod")), false).unwrap_err();
    assert_eq!(error.errno(), Some("EBUSY"));
}

#[test]
fn a_prepared_machine_outlives_its_worker() {
    let luod = Luod::start();
    let session = luod.session("shop");
    let (reader, writer) = pipe();
    session.preserve(1, &reader).unwrap();
    luod.manager().prepare().unwrap();
    luod.kill_worker();
    assert_eq!(luod.manager().status().unwrap().state, State::Prepared);
    luod.manager().freeze().unwrap();
    luod.kill_worker();
    assert_eq!(luod.manager().status().unwrap().state, State::Frozen);
    assert_eq!(luod.manager().cancel().unwrap().unwrap().state, State::Normal);
    drop(session);
    let session = luod.session("shop");
    assert_connected(session.retrieve(1).unwrap(), &writer, b"x");
}

#[test]
fn a_worker_that_dies_at_once_again_and_again_ends_in_a_clear_error() {
    let luod = Luod::start();
    let session = luod.session("shop");
    let (reader, _writer) = pipe();
    session.preserve(1, &reader).unwrap();
    // Each is killed as soon as it can be seen.
    let impatient = luod.options().deadline(Duration::from_secs(2));
    luod.wait("the end state", || {
        match luo::Manager::connect(impatient.clone()).and_then(|manager| manager.status()) {
            Ok(status) => {
                let pid = i32::try_from(status.pid).unwrap();
                let pid = rustix::process::Pid::from_raw(pid).unwrap();
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
                false
            }
            Err(luo::Error::WorkerFailed { .. }) => true,
            Err(_) => false,
        }
    });
    rustix::process::kill_process(luod.keeper(), rustix::process::Signal::HUP).unwrap();
    luod.wait("luod serves again", || luod.manager().status().is_ok());
    assert_eq!(session.info().unwrap().files, [1]);
}
