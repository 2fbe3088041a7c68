//! Calls with replies without end: events, and participants.

use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use luo::protocol::{ParticipantCall, ParticipantPhase};
use luo::{Error, ParticipantOptions};
use serde_json::{Value, json};

use crate::api::{Manager, Participant, run};
use crate::fake::*;

fn event(text: &str) -> Value {
    json!({ "event": { "kind": "state", "state": "normal", "text": text } })
}

#[test]
fn a_watch_outlives_luod_and_tells_that_it_missed_something() {
    let mut luod = Luod::new();
    let options = luod.options();
    let (away, is_away) = mpsc::channel();
    let (back, comes_back) = mpsc::channel();
    let server = thread::spawn(move || {
        let mut first = luod.accept();
        let mut watch = luod.accept();
        assert!(watch.take("io.luo.Watch").more);
        watch.part(event("one"));
        luod.stop(false);
        drop(watch);
        first.ends();
        away.send(()).unwrap();
        comes_back.recv().unwrap();
        luod.start();
        let mut watch = luod.accept();
        watch.take("io.luo.Watch");
        watch.part(event("two"));
        watch.ends();
    });
    run(async {
        let mut watch = {
            let manager = Manager::connect(options).unwrap();
            let mut watch = manager.watch().unwrap();
            let first = wait!(watch.next_event(Some(PATIENCE))).unwrap().unwrap();
            assert_eq!(first.text, "one");
            watch
        };
        is_away.recv().unwrap();
        // Being away is not an error as long as the deadline has not passed.
        for _ in 0..3 {
            assert!(wait!(watch.next_event(Some(Duration::from_millis(5)))).unwrap().is_none());
        }
        assert_eq!(watch.resumed(), 0);
        back.send(()).unwrap();
        let second = wait!(watch.next_event(Some(PATIENCE))).unwrap().unwrap();
        assert_eq!((second.text.as_str(), watch.resumed()), ("two", 1));
    });
    server.join().unwrap();
}

#[test]
fn a_watch_ends_when_luod_stays_away_and_can_be_tried_again() {
    let mut luod = Luod::new();
    let options = luod.options().deadline(Duration::from_millis(100));
    let (stopped, is_stopped) = mpsc::channel();
    let server = thread::spawn(move || {
        let _first = luod.accept();
        let mut watch = luod.accept();
        watch.take("io.luo.Watch");
        watch.part(event("one"));
        luod.stop(true);
        stopped.send(()).unwrap();
    });
    run(async {
        let manager = Manager::connect(options).unwrap();
        let mut watch = manager.watch().unwrap();
        wait!(watch.next_event(None)).unwrap().unwrap();
        is_stopped.recv().unwrap();
        for _ in 0..2 {
            let error = wait!(watch.next_event(None)).unwrap_err();
            assert!(matches!(error, Error::Unavailable { .. }), "{error}");
        }
    });
    server.join().unwrap();
}

#[test]
fn a_watch_that_was_refused_is_asked_for_anew() {
    let luod = Luod::new();
    let options = luod.options();
    let server = thread::spawn(move || {
        let _first = luod.accept();
        let mut watch = luod.accept();
        watch.take("io.luo.Watch");
        watch.refuse_manager("EPERM");
        watch.ends();
        let mut watch = luod.accept();
        watch.take("io.luo.Watch");
        watch.part(event("one"));
        watch.ends();
    });
    run(async {
        let manager = Manager::connect(options).unwrap();
        let mut watch = manager.watch().unwrap();
        assert_eq!(wait!(watch.next_event(None)).unwrap_err().errno(), Some("EPERM"));
        assert_eq!(wait!(watch.next_event(None)).unwrap().unwrap().text, "one");
    });
    server.join().unwrap();
}

fn call(number: u64, phase: &str) -> Value {
    json!({ "participant": 5, "call": number, "phase": phase, "data": 0 })
}

fn subscribe(luod: &Luod) -> Peer {
    let mut feed = luod.accept();
    let call = feed.take("io.luo.Participate");
    assert!(call.more);
    assert_eq!(call.parameters["name"], "shop");
    feed
}

fn how(luod: &Luod) -> ParticipantOptions {
    ParticipantOptions { options: luod.options(), ..ParticipantOptions::default() }
}

#[test]
fn a_participant_answers_its_calls() {
    let luod = Luod::new();
    let options = how(&luod);
    let server = thread::spawn(move || {
        let mut feed = subscribe(&luod);
        feed.part(call(0, "subscribed"));
        feed.part(call(1, "prepare"));
        let mut answers = luod.accept();
        let answer = answers.take("io.luo.Answer").parameters;
        assert_eq!(answer, json!({ "participant": 5, "call": 1, "data": 99 }));
        answers.reply(json!({}));
        feed.part(call(2, "freeze"));
        let answer = answers.take("io.luo.Answer").parameters;
        assert_eq!(answer, json!({ "participant": 5, "call": 2, "veto": "not now" }));
        answers.refuse_manager("ENOENT");
        feed.ends();
        answers.ends();
    });
    run(async {
        let mut participant = wait!(Participant::join("shop", options)).unwrap();
        let prepare = wait!(participant.next_call(None)).unwrap().unwrap();
        assert_eq!(prepare.phase, ParticipantPhase::Prepare);
        wait!(participant.agree(&prepare, 99)).unwrap();
        let freeze = wait!(participant.next_call(Some(PATIENCE))).unwrap().unwrap();
        let late = wait!(participant.veto(&freeze, "not now")).unwrap_err();
        assert_eq!(late.errno(), Some("ENOENT"));
    });
    server.join().unwrap();
}

#[test]
fn an_answer_that_luod_took_the_first_time_is_given() {
    let luod = Luod::new();
    let options = how(&luod);
    let server = thread::spawn(move || {
        let mut feed = subscribe(&luod);
        feed.part(call(0, "subscribed"));
        feed.part(call(1, "prepare"));
        luod.accept().take("io.luo.Answer");
        let mut answers = luod.accept();
        answers.take("io.luo.Answer");
        answers.refuse_manager("ENOENT");
        feed.ends();
    });
    run(async {
        let mut participant = wait!(Participant::join("shop", options)).unwrap();
        let prepare = wait!(participant.next_call(None)).unwrap().unwrap();
        wait!(participant.agree(&prepare, 1)).unwrap();
    });
    server.join().unwrap();
}

#[test]
fn a_subscription_is_made_again_once_luod_is_ready_and_that_is_told() {
    let luod = Luod::new();
    let options = how(&luod);
    let server = thread::spawn(move || {
        let feed = subscribe(&luod);
        feed.part(call(0, "subscribed"));
        drop(feed);
        for errno in ["EEXIST", "EBUSY", "EBUSY"] {
            let mut feed = subscribe(&luod);
            feed.refuse_manager(errno);
            feed.ends();
        }
        let mut feed = subscribe(&luod);
        feed.part(call(0, "subscribed"));
        feed.part(call(1, "cancel"));
        feed.ends();
    });
    run(async {
        let mut participant = wait!(Participant::join("shop", options)).unwrap();
        let mut phases = Vec::new();
        for _ in 0..2 {
            let call: ParticipantCall = wait!(participant.next_call(None)).unwrap().unwrap();
            phases.push(call.phase);
            if call.phase == ParticipantPhase::Subscribed {
                // Needs no answer: nothing is sent.
                wait!(participant.agree(&call, 0)).unwrap();
            }
        }
        assert_eq!(phases, [ParticipantPhase::Subscribed, ParticipantPhase::Cancel]);
    });
    server.join().unwrap();
}

#[test]
fn a_name_that_is_taken_is_refused_at_once() {
    let luod = Luod::new();
    let options = how(&luod);
    let server = thread::spawn(move || {
        let mut feed = subscribe(&luod);
        feed.refuse_manager("EEXIST");
        feed.ends();
    });
    run(async {
        let error = wait!(Participant::join("shop", options)).unwrap_err();
        assert_eq!(error.errno(), Some("EEXIST"));
    });
    server.join().unwrap();
}
