use serde_json::{Value, json};

use crate::fake::{Act, Fake};
use crate::run::run;

fn report(event: &str, state: &str) -> Value {
    json!({ "report": {
        "event": event, "state": state, "microseconds": 12_345,
        "timings": [
            { "phase": event, "subsystem": "files", "session": "kv", "calls": 67,
              "microseconds": 12_000 },
        ],
        "left_out": [],
    } })
}

#[test]
fn each_event_calls_its_method_and_says_where_that_leads() {
    for (command, method, state, expected) in [
        (
            "prepare",
            "Prepare",
            "prepared",
            "Prepared: what can be kept while the workloads run is kept. \
             The state is prepared after 12.3 ms and 67 calls.\n",
        ),
        (
            "freeze",
            "Freeze",
            "frozen",
            "Frozen: nothing may change until depart or cancel. \
             The state is frozen after 12.3 ms and 67 calls.\n",
        ),
        (
            "cancel",
            "Cancel",
            "normal",
            "Cancelled: all is as before prepare. \
             The state is normal after 12.3 ms and 67 calls.\n",
        ),
        (
            "depart",
            "Depart",
            "frozen",
            "Departed: the handover is committed. \
             The state is frozen after 12.3 ms and 67 calls.\n",
        ),
        (
            "finish",
            "Finish",
            "normal",
            "Finished: the live update is over. \
             The state is normal after 12.3 ms and 67 calls.\n",
        ),
    ] {
        let reply = report(command, state);
        let script = || Fake::new([(method, Act::Reply(reply.clone()))]);
        let fake = script();
        assert_eq!(run(&fake, &[command]).good(), expected);
        assert_eq!(fake.methods(), [format!("io.luo.{method}")]);
        assert_eq!(run(&script(), &[command, "--quiet"]).good(), "", "{command}");
        assert_eq!(run(&script(), &[command, "--json"]).json(), reply, "{command}");
    }
}

#[test]
fn finish_sends_what_becomes_of_the_unclaimed() {
    for (arguments, sent) in [
        (vec!["finish"], "refuse"),
        (vec!["finish", "--unclaimed", "refuse"], "refuse"),
        (vec!["finish", "--unclaimed", "release"], "release"),
        (vec!["finish", "--unclaimed", "carry"], "carry"),
    ] {
        let fake = Fake::new([("Finish", Act::Reply(report("finish", "normal")))]);
        run(&fake, &arguments).good();
        assert_eq!(fake.calls()[0].parameters, json!({ "unclaimed": sent }));
    }
}

#[test]
fn what_was_left_out_is_named_even_where_nothing_else_is_said() {
    let mut reply = report("prepare", "prepared");
    reply["report"]["left_out"] = json!([{
        "errno": "EIO", "reason": "the disk is gone", "phase": "prepare", "subsystem": "files",
        "session": "kv", "token": 26, "handler": "file-v1",
    }]);
    let fake = Fake::new([("Prepare", Act::Reply(reply))]);
    let run = run(&fake, &["prepare", "-q"]);
    assert_eq!((run.code, run.stdout.as_str()), (0, ""));
    assert_eq!(
        run.stderr,
        "luoctl: left out, being optional: the disk is gone \
         (EIO, in prepare, file 0x1a, session kv, handler file-v1, subsystem files)\n"
    );
}

#[test]
fn an_event_whose_report_was_lost_has_taken_place_and_says_so() {
    let script = || {
        let mut status = crate::status::status();
        status["state"] = json!("prepared");
        let failure = json!({ "errno": "EBUSY", "reason": "the machine is prepared" });
        Fake::new([
            ("Prepare", Act::FeedAndBreak(vec![])),
            ("Prepare", Act::Refuse(failure)),
            ("GetStatus", Act::Reply(status)),
        ])
    };
    assert_eq!(
        run(&script(), &["prepare"]).good(),
        "Prepared: what can be kept while the workloads run is kept. luod was restarted meanwhile \
         and its report was lost; `luoctl status` shows how things stand.\n"
    );
    let told: Value = serde_json::from_str(&run(&script(), &["prepare", "--json"]).good()).unwrap();
    assert_eq!(told, json!({ "report": null }));
}

fn veto() -> Value {
    json!({
        "errno": "EBUSY", "reason": "a backup is running", "phase": "prepare",
        "subsystem": "backup",
    })
}

#[test]
fn a_veto_is_a_failure_whatever_its_errno() {
    for (command, method, expected) in [
        (
            "prepare",
            "Prepare",
            "luoctl: prepare failed: a backup is running (EBUSY, in prepare, subsystem backup); \
             nothing was changed: settle that and prepare again\n",
        ),
        (
            "rehearse",
            "Rehearse",
            "luoctl: the rehearsal failed: a backup is running \
             (EBUSY, in prepare, subsystem backup); a live update would fail as well, \
             this time nothing was changed: settle that first\n",
        ),
    ] {
        let fake = Fake::new([(method, Act::Refuse(veto()))]);
        assert_eq!(run(&fake, &[command]).bad(1), expected);
    }
}

#[test]
fn machines_read_where_it_failed() {
    let fake = Fake::new([("Prepare", Act::Refuse(veto()))]);
    let run = run(&fake, &["prepare", "--json"]);
    assert_eq!(run.code, 1);
    let stdout: Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!(stdout, json!({ "failure": veto() }));
    assert!(run.stderr.starts_with("luoctl: prepare failed: a backup is running"));
}

#[test]
fn the_wrong_state_is_status_5() {
    for (command, method, expected) in [
        (
            "freeze",
            "Freeze",
            "luoctl: freeze failed: the machine is normal (EBUSY); \
             `luoctl status` shows what goes on\n",
        ),
        (
            "finish",
            "Finish",
            "luoctl: finish failed: the machine is normal (EBUSY); \
             `luoctl status` shows what goes on, `luoctl files` what was not retrieved, \
             --unclaimed decides about that\n",
        ),
    ] {
        let failure = json!({ "errno": "EBUSY", "reason": "the machine is normal" });
        let fake = Fake::new([(method, Act::Refuse(failure))]);
        assert_eq!(run(&fake, &[command]).bad(5), expected);
    }
}

#[test]
fn advice_of_luod_is_not_followed_by_another() {
    let failure = json!({ "errno": "EBUSY", "reason": "freeze goes on; wait for its end" });
    let fake = Fake::new([("Cancel", Act::Refuse(failure))]);
    assert_eq!(
        run(&fake, &["cancel"]).bad(5),
        "luoctl: cancel failed: freeze goes on; wait for its end (EBUSY)\n"
    );
}

fn rehearsal() -> Value {
    let timing = |phase: &str, subsystem: &str, session: Option<&str>, calls, microseconds| {
        let mut timing = json!({
            "phase": phase, "subsystem": subsystem, "calls": calls, "microseconds": microseconds,
        });
        if let Some(session) = session {
            timing["session"] = json!(session);
        }
        timing
    };
    json!({ "report": {
        "event": "rehearse", "state": "normal", "microseconds": 1_250_000,
        "timings": [
            timing("prepare", "backup", None, 1, 1_200_000),
            timing("prepare", "files", Some("kv"), 67, 4_321),
            timing("freeze", "backup", None, 1, 900),
            timing("freeze", "files", Some("kv"), 67, 2_200),
            timing("cancel", "files", Some("kv"), 67, 850),
        ],
        "left_out": [],
    } })
}

#[test]
fn a_rehearsal_shows_the_cost_of_every_part_and_the_blackout() {
    let expected = "\
PHASE    SUBSYSTEM  SESSION  CALLS     TIME
prepare  backup     -            1    1.2 s
prepare  files      kv          67  4.32 ms
freeze   backup     -            1   900 µs
freeze   files      kv          67   2.2 ms
cancel   files      kv          67   850 µs

total     1.25 s for 203 calls from prepare to cancel
blackout  at most 3.1 ms, in which the workloads stand still
";
    for arguments in [vec!["rehearse"], vec!["rehearse", "-q"]] {
        let fake = Fake::new([("Rehearse", Act::Reply(rehearsal()))]);
        assert_eq!(run(&fake, &arguments).good(), expected);
    }
    let fake = Fake::new([("Rehearse", Act::Reply(rehearsal()))]);
    assert_eq!(run(&fake, &["rehearse", "--json"]).json(), rehearsal());
}

#[test]
fn a_blackout_of_one_part_is_exact_and_never_longer_than_the_whole() {
    for (total, time) in [(9_000, "5 ms"), (3_000, "3 ms")] {
        let reply = json!({ "report": {
            "event": "rehearse", "state": "normal", "microseconds": total,
            "timings": [
                { "phase": "freeze", "subsystem": "files", "calls": 1, "microseconds": 5_000 },
            ],
            "left_out": [],
        } });
        let fake = Fake::new([("Rehearse", Act::Reply(reply))]);
        let table = run(&fake, &["rehearse"]).good();
        let blackout = format!("blackout  {time}, in which the workloads stand still\n");
        assert!(table.ends_with(&blackout), "{table}");
    }
}

#[test]
fn a_rehearsal_of_nothing_has_no_blackout() {
    let reply = json!({ "report": {
        "event": "rehearse", "state": "normal", "microseconds": 7, "timings": [], "left_out": [],
    } });
    let fake = Fake::new([("Rehearse", Act::Reply(reply))]);
    assert_eq!(
        run(&fake, &["rehearse"]).good(),
        "total     7 µs for 0 calls from prepare to cancel\n\
         blackout  none: nothing takes part in freeze\n"
    );
}

#[test]
fn a_rehearsal_tells_what_each_session_and_the_whole_need_in_the_carrier() {
    let mut reply = rehearsal();
    reply["report"]["needs"] = json!({
        "carrier": "arena", "bytes": 70_000, "free": 1 << 20, "size": 4 << 20,
        "sessions": [{ "session": "kv", "bytes": 4_096 }, { "session": "shop", "bytes": 0 }],
    });
    let fake = Fake::new([("Rehearse", Act::Reply(reply.clone()))]);
    let told = run(&fake, &["rehearse", "--carrier", "arena"]).good();
    assert!(
        told.ends_with(
            "
SESSION  NEEDS
kv       4 KiB
shop       0 B

total     1.25 s for 203 calls from prepare to cancel
blackout  at most 3.1 ms, in which the workloads stand still
room      68.4 KiB in the arena, of which 1 MiB of 4 MiB are free
"
        ),
        "{told}"
    );
    let fake = Fake::new([("Rehearse", Act::Reply(reply.clone()))]);
    assert_eq!(run(&fake, &["rehearse", "--json"]).json(), reply);
    let mut near = rehearsal();
    near["report"]["needs"] = json!({
        "carrier": "keeper", "bytes": 0, "sessions": [{ "session": "kv", "bytes": 0 }],
    });
    let fake = Fake::new([("Rehearse", Act::Reply(near))]);
    let told = run(&fake, &["rehearse"]).good();
    assert!(told.ends_with("room      none: the keeper copies nothing\n"), "{told}");
    assert!(!told.contains("NEEDS"), "{told}");
}
