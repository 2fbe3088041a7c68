//! The asynchronous API against a luod that does what the tests say.
#![cfg(feature = "tokio")]

mod fake;

/// What the scenarios use, as this API has it.
mod api {
    pub(crate) use luo::tokio::{Manager, Participant, Session};

    /// Runs a scenario on one thread.
    pub(crate) fn run<T>(scenario: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(scenario)
    }
}

/// The end of a call of this API.
macro_rules! wait {
    ($call:expr) => {
        $call.await
    };
}

mod scenarios;

use std::thread;
use std::time::Duration;

use fake::*;
use luo::Error;
use serde_json::json;
use tokio::sync::oneshot;

#[test]
fn calls_of_several_tasks_run_side_by_side() {
    let luod = Luod::new();
    let options = luod.options();
    let server = thread::spawn(move || {
        let mut long = luod.accept();
        long.take("io.luo.Upgrade");
        let mut other = luod.accept();
        other.take("io.luo.GetStatus");
        other.reply(status("updated", None));
        other.take("io.luo.ListSessions");
        other.reply(json!({ "sessions": [] }));
        long.reply(json!({ "before": "1", "after": "2" }));
        long.ends();
    });
    api::run(async {
        let manager = api::Manager::connect(options).unwrap();
        let short = async {
            let state = manager.status().await.unwrap().state;
            assert!(manager.sessions().await.unwrap().is_empty());
            state
        };
        let (upgraded, state) = tokio::join!(manager.upgrade(None, PATIENCE, false), short);
        assert_eq!(upgraded.unwrap().after, "2");
        assert_eq!(state, luo::State::Updated);
    });
    server.join().unwrap();
}

#[test]
fn a_dropped_call_closes_its_connection_and_its_answer_reaches_nobody() {
    let (end, descriptor) = SessionEnd::pair();
    let (asked, was_asked) = oneshot::channel();
    let server = thread::spawn(move || {
        let mut first = end.accept();
        first.take("io.luo.Session.GetInfo");
        first.reply(info("normal"));
        first.take("io.luo.Session.GetInfo");
        asked.send(()).unwrap();
        first.ends();
        let mut second = end.accept();
        second.take("io.luo.Session.GetInfo");
        second.reply(info("updated"));
        second.ends();
    });
    api::run(async {
        let session = api::Session::from_descriptor_with(descriptor, patient()).await.unwrap();
        tokio::select! {
            biased;
            _ = was_asked => {}
            info = session.info() => panic!("{info:?}"),
        }
        assert!(session.is_updated().await.unwrap());
    });
    server.join().unwrap();
}

#[test]
fn a_file_whose_wait_was_dropped_comes_with_the_next() {
    let (end, descriptor) = SessionEnd::pair();
    let (asked, was_asked) = oneshot::channel();
    let server = thread::spawn(move || {
        let file = marked("luo-test-dropped");
        let give = |peer: &Peer, token: u64| {
            use std::os::fd::AsFd;
            peer.reply_with(json!({ "tokens": [token], "refused": [] }), &[file.as_fd()]);
        };
        let mut first = end.accept();
        first.take("io.luo.Session.GetInfo");
        first.reply(info("normal"));
        first.take("io.luo.Session.Retrieve");
        asked.send(()).unwrap();
        while first.next().is_some() {}
        let mut second = end.accept();
        for token in [1, 2] {
            assert_eq!(second.take("io.luo.Session.Retrieve").tokens(), [token]);
            give(&second, token);
        }
        second.ends();
    });
    api::run(async {
        let session = api::Session::from_descriptor_with(descriptor, patient()).await.unwrap();
        let mut files = session.retrieve_each(&[1, 2]).unwrap();
        tokio::select! {
            biased;
            _ = was_asked => {}
            file = files.next() => panic!("{file:?}"),
        }
        for token in [1, 2] {
            let (named, file) = files.next().await.unwrap();
            assert_eq!((named, file.is_ok()), (token, true));
        }
        assert_eq!(files.left(), 0);
    });
    server.join().unwrap();
}

#[test]
fn an_event_that_came_while_a_wait_was_dropped_is_not_lost() {
    let luod = Luod::new();
    let options = luod.options();
    let (sender, mut sent) = oneshot::channel();
    let (tell, told) = std::sync::mpsc::channel();
    let server = thread::spawn(move || {
        let mut first = luod.accept();
        let mut watch = luod.accept();
        let call = watch.take("io.luo.Watch");
        assert!(call.more);
        let event = |text: &str| {
            json!({ "event": { "kind": "state", "state": "normal", "text": text } }).to_string()
        };
        let message = format!(r#"{{"continues":true,"parameters":{}}}"#, event("whole"));
        let (half, rest) = message.split_at(20);
        watch.raw(half.as_bytes(), &[]);
        sender.send(()).unwrap();
        told.recv_timeout(PATIENCE).expect("a wait was dropped");
        watch.raw(rest.as_bytes(), &[]);
        watch.raw(&[0], &[]);
        watch.ends();
        first.ends();
    });
    api::run(async {
        let manager = api::Manager::connect(options).unwrap();
        let mut watch = manager.watch().unwrap();
        // Waits are dropped at whatever point they have reached, until the event is here.
        let mut dropped = 0;
        let event = loop {
            tokio::select! {
                event = watch.next_event(Some(PATIENCE)) => break event.unwrap().unwrap(),
                () = tokio::task::yield_now() => {
                    dropped += 1;
                    // The event is here, or it waits for this.
                    let _ = tell.send(());
                }
            }
        };
        assert_eq!(event.text, "whole");
        assert!(dropped > 0);
        assert!(sent.try_recv().is_ok());
        assert_eq!(watch.resumed(), 0);
    });
    server.join().unwrap();
}

#[test]
fn outside_of_a_runtime_a_call_is_an_error_and_no_panic() {
    let luod = Luod::new();
    let error = api::Manager::connect(luod.options()).unwrap_err();
    assert!(matches!(error, Error::System { .. }), "{error}");
}

#[test]
fn futures_can_go_to_another_thread() {
    fn goes<T: Send>(_: T) {}
    fn all(session: api::Session, mut participant: api::Participant) {
        let file = marked("luo-test-send");
        goes(session.preserve(1, &file));
        goes(session.preserve_many(&[(1, &file)]));
        goes(session.retrieve(1));
        goes(participant.next_call(Some(Duration::ZERO)));
        goes(api::Session::open("shop"));
        goes(session.release());
    }
    // It need only compile.
    let _: fn(_, _) = all;
}
