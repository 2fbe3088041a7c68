//! Every command against a real luod, as built beside this tool.

use std::os::fd::OwnedFd;
use std::process::Command;
use std::time::Instant;

use luo::Session;
use luod::{Luod, PATIENCE};

mod luod;

fn pipe() -> (OwnedFd, OwnedFd) {
    rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap()
}

#[test]
fn an_operators_day() {
    let Some(luod) = Luod::start() else { return };
    let (reader, writer) = pipe();
    let session = Session::open_with("shop", luod.options()).unwrap();
    session.preserve_many(&[(1, &reader), (0x2a, &writer)]).unwrap();

    assert!(luod.run(&["status"], 0).contains("normal"));
    assert!(luod.run(&["sessions"], 0).contains("shop"));
    assert!(luod.run(&["files", "shop"], 0).contains("live-v1"));
    assert!(luod.run(&["inspect"], 0).contains("file-descriptors-v1"));
    assert!(luod.run(&["inspect"], 0).contains("0x2a"));
    assert!(luod.run(&["rehearse"], 0).contains("blackout"));
    luod.run(&["report"], 6);
    luod.run(&["freeze"], 5);
    luod.run(&["prepare"], 0);
    luod.run(&["prepare"], 5);
    luod.run(&["freeze"], 0);
    luod.run(&["cancel"], 0);
    luod.run(&["files", "nobody"], 6);
    luod.run(&["upgrade"], 0);

    drop(session);
    assert!(luod.run(&["status"], 0).contains("1 session"));
    luod.run(&["prepare"], 0);
    luod.run(&["freeze"], 0);
    luod.run(&["depart"], 0);
    let start = Instant::now();
    while !luod.run(&["status"], 0).contains("updated") {
        assert!(start.elapsed() < PATIENCE, "not arrived");
    }
    luod.run(&["finish"], 5);
    assert!(luod.run(&["status"], 0).contains("no session is ready yet"));
    // It departed ahead of the machine, so it is the machine's update that it arrives with.
    let session = Session::open_with("shop", luod.options()).unwrap();
    session.retrieve_many(&[1, 0x2a]).unwrap();
    let status = luod.run(&["status"], 0);
    assert!(status.contains("from freeze until shop was ready"), "{status}");
    assert!(status.contains("retrieve") && status.contains("restart"), "{status}");
    drop(session);
    luod.run(&["finish", "--unclaimed", "carry"], 0);
    let page = luod.run(&["report"], 0);
    assert!(page.starts_with("<!doctype html>") && page.contains("<svg"), "{page}");
    let timeline: luo::protocol::Timeline =
        serde_json::from_str(&luod.run(&["--json", "report"], 0)).unwrap();
    assert!(timeline.same_kernel && timeline.blackout.unwrap().error_microseconds == 0);
    luod.run(&["release", "shop"], 0);
    luod.run(&["release", "shop"], 6);
}

#[test]
fn json_is_what_the_interface_says() {
    let Some(luod) = Luod::start() else { return };
    let _session = Session::open_with("shop", luod.options()).unwrap();
    let status: luo::protocol::Status =
        serde_json::from_str(&luod.run(&["--json", "status"], 0)).unwrap();
    assert_eq!((status.sessions, status.unclaimed), (1, 0));
    let list: luo::protocol::SessionList =
        serde_json::from_str(&luod.run(&["--json", "sessions"], 0)).unwrap();
    assert_eq!(list.sessions[0].name, "shop");
}

#[test]
fn an_upgrade_to_what_is_no_luod_says_that_the_old_one_serves_on() {
    let Some(luod) = Luod::start() else { return };
    let text = luod.run(&["upgrade", "--binary", "/bin/true"], 1);
    assert!(text.contains("serves on"), "{text}");
    luod.run(&["upgrade", "--binary", "/nonexistent/luod"], 6);
    luod.run(&["status"], 0);
}

#[test]
fn without_luod_the_status_is_unreachable() {
    let directory = tempfile::tempdir().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_luoctl"))
        .arg("--socket")
        .arg(directory.path().join("none"))
        .arg("status")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(4));
}

#[test]
fn a_reboot_that_may_not_be_says_why_and_changes_nothing() {
    let Some(luod) = Luod::start() else { return };
    let (reader, _writer) = pipe();
    let session = Session::open_with("shop", luod.options()).unwrap();
    session.preserve_many(&[(1, &reader)]).unwrap();
    for arguments in [&["reboot", "--dry-run"][..], &["reboot", "--accept-unknown"]] {
        let text = luod.run(arguments, 1);
        assert!(text.contains("luod has no arena"), "{text}");
        assert!(text.contains("nothing was changed"), "{text}");
    }
    let told: serde_json::Value = serde_json::from_str(
        luod.run(&["--json", "reboot", "--dry-run"], 1).split("luoctl: ").next().unwrap(),
    )
    .unwrap();
    assert_eq!((&told["carrier"], &told["may_reboot"]), (&"arena".into(), &false.into()));
    let checks = told["checks"].as_array().unwrap();
    assert!(checks.iter().any(|check| check["name"] == "rehearsal" && check["verdict"] == "fail"));
    assert!(luod.run(&["status"], 0).contains("normal"));
}
