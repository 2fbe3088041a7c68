use serde_json::{Value, json};

use crate::fake::{Act, Fake};
use crate::run::run;

pub(crate) fn sessions() -> Value {
    json!({ "sessions": [
        {
            "id": 1, "name": "kv", "uid": 0, "gid": 0, "policy": { "on_close": "release" },
            "state": "normal", "held": true, "files": 67, "incoming": 0, "retrieved": 0,
            "pinned": 1_610_612_736,
        },
        {
            "id": 2, "name": "cache", "uid": 1000, "gid": 1000,
            "policy": { "on_close": "keep", "ttl_seconds": 60 },
            "state": "updated", "held": false, "files": 3, "incoming": 3, "retrieved": 1,
            "pinned": 134_217_728, "expires_in_seconds": 45,
        },
    ] })
}

fn files() -> Vec<Value> {
    vec![
        json!({
            "session": "kv", "token": 1, "handler": "memfd-v1", "required": true,
            "phase": "registered", "what": "/memfd:data\u{1b}[31m (deleted)", "pinned": 4096,
        }),
        json!({
            "session": "kv", "token": 26, "handler": "socket-v1", "required": false,
            "phase": "retrieved", "what": "socket:[123]", "pinned": 0,
        }),
    ]
}

#[test]
fn sessions_stand_in_a_table_with_numbers_right() {
    let fake = Fake::new([("ListSessions", Act::Reply(sessions()))]);
    let expected = "\
SESSION  USER  STATE    HELD  FILES  RETRIEVED   PINNED  ON CLOSE   EXPIRES
kv          0  normal   yes      67          -  1.5 GiB  release    -
cache    1000  updated  no        3     1 of 3  128 MiB  keep 60 s  in 45 s
";
    assert_eq!(run(&fake, &["sessions"]).good(), expected);
    assert_eq!(fake.methods(), ["io.luo.ListSessions"]);
}

#[test]
fn a_kernel_session_that_an_owner_fills_is_shown_where_there_is_one() {
    let mut sessions = sessions();
    sessions["sessions"][1]["own_kernel_session"] = json!("incoming");
    let fake = Fake::new([("ListSessions", Act::Reply(sessions.clone()))]);
    let expected = "\
SESSION  USER  STATE    HELD  FILES  RETRIEVED   PINNED  ON CLOSE   EXPIRES  OWN KERNEL SESSION
kv          0  normal   yes      67          -  1.5 GiB  release    -        -
cache    1000  updated  no        3     1 of 3  128 MiB  keep 60 s  in 45 s  came
";
    assert_eq!(run(&fake, &["sessions"]).good(), expected);
    let fake = Fake::new([("ListSessions", Act::Reply(sessions.clone()))]);
    assert_eq!(run(&fake, &["--json", "sessions"]).json(), sessions);
}

#[test]
fn sessions_in_json_are_exact() {
    let fake = Fake::new([("ListSessions", Act::Reply(sessions()))]);
    assert_eq!(run(&fake, &["--json", "sessions"]).json(), sessions());
}

#[test]
fn no_sessions_is_a_word_to_people_and_an_empty_list_to_machines() {
    let none = || Fake::new([("ListSessions", Act::Reply(json!({ "sessions": [] })))]);
    assert_eq!(run(&none(), &["sessions"]).good(), "There are no sessions that you may see.\n");
    assert_eq!(run(&none(), &["sessions", "-q"]).good(), "");
    assert_eq!(run(&none(), &["sessions", "--json"]).json(), json!({ "sessions": [] }));
}

#[test]
fn files_come_in_parts_and_cannot_reach_the_terminal() {
    let [first, second] = <[Value; 2]>::try_from(files()).unwrap();
    let parts = vec![json!({ "files": [first] }), json!({ "files": [second] })];
    let fake = Fake::new([("ListFiles", Act::Parts(parts))]);
    let expected = "\
SESSION  TOKEN  HANDLER    REQUIRED  PHASE       PINNED  WHAT
kv         0x1  memfd-v1   yes       registered   4 KiB  /memfd:data\\u{1b}[31m (deleted)
kv        0x1a  socket-v1  no        retrieved      0 B  socket:[123]
";
    assert_eq!(run(&fake, &["files"]).good(), expected);
    let calls = fake.calls();
    assert!(calls[0].more);
    assert_eq!(calls[0].parameters, json!({}));
}

#[test]
fn a_file_that_failed_says_why() {
    let mut files = files();
    files[1]["phase"] = json!("failed");
    files[1]["failure"] = json!({ "errno": "ENOENT", "reason": "no handler socket-v1" });
    let reply = json!({ "files": files });
    let script = || Fake::new([("ListFiles", Act::Reply(reply.clone()))]);
    let fake = script();
    let table = run(&fake, &["files", "kv"]).good();
    let lines: Vec<&str> = table.lines().collect();
    assert!(lines[0].ends_with("FAILURE"), "{table}");
    assert!(lines[2].ends_with("no handler socket-v1 (ENOENT)"), "{table}");
    assert_eq!(fake.calls()[0].parameters, json!({ "session": "kv" }));
    assert_eq!(run(&script(), &["files", "kv", "--json"]).json(), reply);
}

#[test]
fn a_session_that_is_not_there_is_status_6() {
    let failure = json!({ "errno": "ENOENT", "reason": "there is no session nope" });
    let fake = Fake::new([("ListFiles", Act::Refuse(failure))]);
    assert_eq!(
        run(&fake, &["files", "nope"]).bad(6),
        "luoctl: there is no session nope (ENOENT); `luoctl sessions` lists what there is\n"
    );
}

#[test]
fn release_names_the_session_and_says_so() {
    let script = || Fake::new([("ReleaseSession", Act::Reply(json!({})))]);
    let fake = script();
    assert_eq!(run(&fake, &["release", "kv"]).good(), "Session kv was released.\n");
    assert_eq!(fake.calls()[0].parameters, json!({ "name": "kv" }));
    assert_eq!(run(&script(), &["release", "kv", "-q"]).good(), "");
    assert_eq!(run(&script(), &["release", "kv", "--json"]).json(), json!({}));
}

#[test]
fn releasing_what_others_own_is_status_3() {
    let failure = json!({ "errno": "EPERM", "reason": "session kv belongs to uid 0" });
    let fake = Fake::new([("ReleaseSession", Act::Refuse(failure))]);
    assert_eq!(
        run(&fake, &["release", "kv"]).bad(3),
        "luoctl: release failed: session kv belongs to uid 0 (EPERM); \
         ask as the user that owns it, or as root\n"
    );
}
