use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::fake::{Act, Fake};
use crate::run::{luoctl, run};

fn events() -> Vec<Value> {
    vec![
        json!({ "event": {
            "kind": "state", "state": "prepared", "text": "prepare ended",
        } }),
        json!({ "event": {
            "kind": "expired", "state": "prepared", "session": "cache",
            "text": "nobody claimed it\nin 60 s",
        } }),
    ]
}

fn feed() -> Fake {
    Fake::new([("Watch", Act::Feed(events()))])
}

#[test]
fn each_event_is_one_line() {
    let fake = feed();
    let expected = "\
prepared  state        -                 prepare ended
prepared  expired      cache             nobody claimed it\\nin 60 s
";
    assert_eq!(run(&fake, &["watch", "--count", "2"]).good(), expected);
    assert!(fake.calls()[0].more);
}

#[test]
fn the_count_ends_it_before_the_next_event() {
    let output = run(&feed(), &["watch", "--count", "1"]).good();
    assert_eq!(output.lines().count(), 1);
}

#[test]
fn each_event_is_one_object_a_line_for_machines() {
    let output = run(&feed(), &["--json", "watch", "--count", "2"]).good();
    let lines: Vec<Value> =
        output.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines, events());
}

/// A watch that has printed both events and waits for more.
fn waiting(fake: &Fake) -> (Child, BufReader<std::process::ChildStdout>) {
    let mut child = luoctl(&fake.socket())
        .arg("watch")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap());
    for _ in 0..2 {
        let mut line = String::new();
        lines.read_line(&mut line).unwrap();
        assert!(line.ends_with('\n'), "events must not wait in a buffer: {line:?}");
    }
    (child, lines)
}

#[test]
fn signals_end_it_cleanly() {
    for signal in [Signal::INT, Signal::TERM] {
        let fake = feed();
        let (mut child, mut lines) = waiting(&fake);
        kill_process(Pid::from_child(&child), signal).unwrap();
        let mut rest = String::new();
        lines.read_to_string(&mut rest).unwrap();
        let mut stderr = String::new();
        child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(0), "{signal:?}");
        assert_eq!((rest.as_str(), stderr.as_str()), ("", ""));
    }
}

#[test]
fn those_who_may_not_watch_are_told() {
    let failure = json!({ "errno": "EPERM", "reason": "events are for root" });
    let fake = Fake::new([("Watch", Act::Refuse(failure))]);
    assert_eq!(
        run(&fake, &["watch"]).bad(3),
        "luoctl: events are for root (EPERM); ask as root or as the user that luod runs as\n"
    );
}

#[test]
fn a_luod_that_restarts_is_waited_for() {
    let [first, second] = <[Value; 2]>::try_from(events()).unwrap();
    let fake =
        Fake::new([("Watch", Act::FeedAndBreak(vec![first])), ("Watch", Act::Feed(vec![second]))]);
    let output = run(&fake, &["watch", "--count", "2"]).good();
    assert_eq!(output.lines().count(), 2);
    assert_eq!(fake.methods(), ["io.luo.Watch", "io.luo.Watch"]);
}

#[test]
fn a_luod_that_stays_away_is_status_4() {
    let fake = Fake::new([("Watch", Act::Vanish)]);
    let stderr = run(&fake, &["watch", "--deadline", "0.05"]).bad(4);
    assert!(stderr.starts_with("luoctl: no luod at "), "{stderr}");
}
