use std::fs::{self, OpenOptions};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::process::Stdio;

use serde_json::{Value, json};

use crate::fake::{Act, Fake};
use crate::lists::sessions;
use crate::run::{alone, luoctl, run};
use crate::status::status;

#[test]
fn no_luod_is_status_4() {
    for command in ["status", "watch", "prepare", "upgrade"] {
        assert_eq!(
            alone(&[command]).bad(4),
            "luoctl: no luod at /nowhere/luo.sock: No such file or directory (os error 2); \
             start it, or name its socket with --socket\n"
        );
    }
}

#[test]
fn the_option_goes_before_the_environment() {
    let fake = Fake::new([("GetStatus", Act::Reply(status()))]);
    let socket = fake.socket();
    alone(&["--socket", socket.to_str().unwrap(), "status"]).good();
    assert_eq!(fake.methods(), ["io.luo.GetStatus"]);
}

#[test]
fn a_socket_that_may_not_be_used_is_status_3() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("luo.sock");
    let _listener = UnixListener::bind(&socket).unwrap();
    fs::set_permissions(&socket, fs::Permissions::from_mode(0o000)).unwrap();
    if rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: root may use every socket");
        return;
    }
    let output = luoctl(&socket).arg("status").output().unwrap();
    assert_eq!(output.status.code(), Some(3));
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.contains("may not be used: Permission denied"), "{stderr}");
}

#[test]
fn a_luod_that_cannot_serve_is_status_4() {
    let fake = || Fake::new([("GetStatus", Act::WorkerFailed("five workers died at once"))]);
    assert_eq!(
        run(&fake(), &["status"]).bad(4),
        "luoctl: luod cannot serve: five workers died at once; its log says why\n"
    );
    let advised = Fake::new([("GetStatus", Act::WorkerFailed("workers die; send SIGHUP"))]);
    assert_eq!(
        run(&advised, &["status"]).bad(4),
        "luoctl: luod cannot serve: workers die; send SIGHUP\n"
    );
    let run = run(&fake(), &["status", "--json"]);
    assert_eq!(run.code, 4);
    let stdout: Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!(stdout, json!({ "reason": "five workers died at once" }));
}

#[test]
fn a_late_answer_says_whether_something_may_still_happen() {
    for (command, method, expected) in [
        (
            "status",
            "GetStatus",
            "luoctl: luod did not answer io.luo.GetStatus within 50 ms; --deadline waits longer\n",
        ),
        (
            "prepare",
            "Prepare",
            "luoctl: luod did not answer io.luo.Prepare within 50 ms, and may still be at it; \
             `luoctl status` shows, --deadline waits longer\n",
        ),
    ] {
        let fake = Fake::new([(method, Act::Silence)]);
        assert_eq!(run(&fake, &[command, "--deadline", "0.05"]).bad(1), expected);
    }
}

#[test]
fn a_luod_that_goes_away_meanwhile_is_status_4() {
    let fake = Fake::new([("Prepare", Act::Vanish)]);
    // Long enough for a busy machine to get as far as the request.
    assert_eq!(
        run(&fake, &["prepare", "--deadline", "1"]).bad(4),
        "luoctl: luod did not answer io.luo.Prepare within 1000 ms, because it went away; \
         `luoctl status` tells when it is back\n"
    );
}

#[test]
fn a_limit_is_a_failure_and_keeps_luods_words() {
    let failure = json!({ "errno": "ENOSPC", "reason": "uid 7 has 64 sessions, the limit is 64" });
    let fake = Fake::new([("Prepare", Act::Refuse(failure))]);
    assert_eq!(
        run(&fake, &["prepare"]).bad(1),
        "luoctl: prepare failed: uid 7 has 64 sessions, the limit is 64 (ENOSPC); \
         nothing was changed: settle that and prepare again\n"
    );
}

#[test]
fn a_sentence_of_luod_cannot_reach_the_terminal() {
    let failure = json!({ "errno": "EINVAL", "reason": "bad\n\u{1b}[2Jname" });
    let fake = Fake::new([("GetStatus", Act::Refuse(failure))]);
    let stderr = run(&fake, &["status"]).bad(1);
    assert!(stderr.contains("bad\\n\\u{1b}[2Jname (EINVAL)"), "{stderr}");
    assert_eq!(stderr.lines().count(), 1);
}

#[test]
fn an_answer_that_makes_no_sense_is_a_failure() {
    let fake = Fake::new([("GetStatus", Act::Reply(json!({ "version": 7 })))]);
    let stderr = run(&fake, &["status"]).bad(1);
    assert!(stderr.contains("are both of the same version?"), "{stderr}");
}

#[test]
fn usage_is_status_2() {
    for arguments in [
        &["frobnicate"][..],
        &[],
        &["finish", "--unclaimed", "burn"],
        &["status", "--deadline", "0"],
        &["watch", "--count", "0"],
        &["release"],
        &["status", "--color", "sometimes"],
    ] {
        let run = alone(arguments);
        assert_eq!((run.code, run.stdout.as_str()), (2, ""), "{arguments:?}: {run:?}");
        assert!(!run.stderr.is_empty());
    }
}

#[test]
fn help_and_version_are_no_errors() {
    let help = alone(&["--help"]).good();
    for code in 0..=6 {
        assert!(help.contains(&format!("\n  {code}  ")), "{help}");
    }
    assert!(alone(&["--version"]).good().starts_with("luoctl "));
}

#[test]
fn a_reader_that_has_gone_is_no_failure() {
    for arguments in [&["sessions"][..], &["sessions", "--json"]] {
        let fake = Fake::new([("ListSessions", Act::Reply(sessions()))]);
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        drop(reader);
        let output =
            luoctl(&fake.socket()).args(arguments).stdout(Stdio::from(writer)).output().unwrap();
        assert_eq!(output.status.code(), Some(0));
        assert_eq!(String::from_utf8(output.stderr).unwrap(), "");
    }
}

#[test]
fn a_reader_that_goes_ends_a_watch() {
    let events = vec![json!({ "event": { "kind": "state", "state": "normal", "text": "x" } })];
    let fake = Fake::new([("Watch", Act::Feed(events))]);
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    drop(reader);
    let output = luoctl(&fake.socket()).arg("watch").stdout(Stdio::from(writer)).output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "");
}

#[test]
fn output_that_cannot_be_written_is_a_failure() {
    let fake = Fake::new([("ListSessions", Act::Reply(sessions()))]);
    let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
    let output = luoctl(&fake.socket()).arg("sessions").stdout(Stdio::from(full)).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.contains("the output cannot be written: No space left"), "{stderr}");
}
