use serde_json::{Value, json};

use crate::fake::{Act, Fake};
use crate::lists::sessions;
use crate::run::run;

pub(crate) fn status() -> Value {
    json!({
        "version": "0.1.0", "pid": 1234, "incarnation": 1, "keeper": "builtin",
        "carrier": "keeper", "reach": "agent", "state": "normal", "liveupdate_number": 3,
        "sessions": 2, "files": 1, "pinned": 268_435_456, "unclaimed": 0, "unclaimed_pinned": 0,
        "subsystems": [],
        "limits": { "sessions": 64, "files": 100_000, "bytes": 1_u64 << 40 },
    })
}

fn changed(changes: &Value) -> Value {
    let mut status = status();
    for (key, value) in changes.as_object().unwrap() {
        status[key] = value.clone();
    }
    status
}

#[test]
fn a_quiet_machine_is_told_in_ten_lines() {
    let fake = Fake::new([("GetStatus", Act::Reply(status()))]);
    let expected = "\
state         normal
luod          0.1.0
worker        process 1234, the keeper's first
keeper        builtin
carrier       keeper
reach         agent: files survive the restart of a service and of luod
live updates  3 completed
sessions      2 sessions, 64 for each user
files         1 file, 100000 for each user
memory        256 MiB pinned, 1 TiB for each user
";
    assert_eq!(run(&fake, &["status"]).good(), expected);
    assert_eq!(fake.methods(), ["io.luo.GetStatus"]);
}

fn busy() -> Value {
    changed(&json!({
        "incarnation": 3, "state": "prepared", "transition": "freeze", "reach": "kernel",
        "unclaimed": 1, "unclaimed_pinned": 134_217_728,
        "subsystems": [
            { "name": "files", "participant": false, "required": true, "phase": "prepared" },
            { "name": "backup", "participant": true, "required": false, "phase": "failed" },
        ],
    }))
}

#[test]
fn what_needs_a_look_is_told_as_well() {
    let fake =
        Fake::new([("GetStatus", Act::Reply(busy())), ("ListSessions", Act::Reply(sessions()))]);
    let expected = "\
state         prepared, freeze is under way
luod          0.1.0
worker        process 1234, the keeper's number 3: it was restarted or upgraded
keeper        builtin
carrier       keeper
reach         kernel: files survive the restart of services, of luod and of the kernel
live updates  3 completed
sessions      2 sessions, 64 for each user
files         1 file, 100000 for each user
memory        256 MiB pinned, 1 TiB for each user
unclaimed     1 session, 128 MiB pinned: let the service claim it, or `luoctl release` it

UNCLAIMED  USER   PINNED  EXPIRES
cache      1000  128 MiB  in 45 s

SUBSYSTEM  KIND         FAILURE      PHASE
files      built in     cancels      prepared
backup     participant  is reported  failed
";
    assert_eq!(run(&fake, &["status"]).good(), expected);
    assert_eq!(fake.methods(), ["io.luo.GetStatus", "io.luo.ListSessions"]);
}

#[test]
fn json_is_the_reply_and_nothing_else_is_asked() {
    let fake = Fake::new([("GetStatus", Act::Reply(busy()))]);
    assert_eq!(run(&fake, &["status", "--json"]).json(), busy());
    assert_eq!(fake.methods(), ["io.luo.GetStatus"]);
}

#[test]
fn colours_come_where_they_are_wanted_only() {
    let script =
        || Fake::new([("GetStatus", Act::Reply(busy())), ("ListSessions", Act::Reply(sessions()))]);
    let plain = run(&script(), &["status"]).good();
    assert!(!plain.contains('\u{1b}'));
    assert_eq!(run(&script(), &["status", "--color", "never"]).good(), plain);
    let colored = run(&script(), &["--color", "always", "status"]).good();
    let unclaimed = colored.lines().find(|line| line.contains("128 MiB pinned")).unwrap();
    assert!(unclaimed.contains("\u{1b}["), "{unclaimed:?}");
    // Nothing is different but the colours.
    assert_eq!(without_colours(&colored), plain);
}

/// The text without escape sequences of the form that colours have.
fn without_colours(text: &str) -> String {
    let mut parts = text.split("\u{1b}[");
    let mut plain = parts.next().unwrap().to_owned();
    for part in parts {
        plain.push_str(part.split_once('m').unwrap().1);
    }
    plain.lines().map(|line| format!("{}\n", line.trim_end())).collect()
}
