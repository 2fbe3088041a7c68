//! How a session is opened, and by whom.

use std::os::fd::AsFd;
use std::thread;

use luo::{Error, Options};
use serde_json::json;

use super::{SHORT, with_session};
use crate::api::{Manager, Session, run};
use crate::fake::*;

#[test]
fn where_no_luod_runs_there_is_no_session() {
    let mut luod = Luod::new();
    run(async {
        luod.stop(true);
        assert!(luod.socket().exists());
        let session = wait!(Session::connect_or_none_with("shop", luod.options()));
        assert!(session.unwrap().is_none(), "nobody listens");
        std::fs::remove_file(luod.socket()).unwrap();
        let session = wait!(Session::connect_or_none_with("shop", luod.options()));
        assert!(session.unwrap().is_none(), "no socket is there");
        let error = wait!(Session::open_with("shop", luod.options())).unwrap_err();
        assert!(matches!(error, Error::Unavailable { .. }), "{error}");
        let error = Manager::connect(luod.options()).unwrap_err();
        assert!(matches!(error, Error::Unavailable { .. }), "{error}");
    });
}

#[test]
fn a_luod_that_cannot_be_reached_is_not_taken_for_none() {
    run(async {
        let long = "x".repeat(200);
        let options = Options::new().socket(format!("/tmp/{long}"));
        let error = wait!(Session::connect_or_none_with("shop", options)).unwrap_err();
        assert!(matches!(error, Error::Unreachable { .. }), "{error}");
    });
}

#[test]
fn a_luod_that_goes_away_while_a_session_is_opened_is_not_taken_for_none() {
    let mut luod = Luod::new();
    let options = luod.options().deadline(SHORT);
    let server = thread::spawn(move || {
        let mut peer = luod.accept();
        peer.take("io.luo.ClaimSession");
        peer.refuse_manager("ENOENT");
        luod.stop(false);
        drop(peer);
    });
    run(async {
        match wait!(Session::connect_or_none_with("shop", options)) {
            Err(Error::DeadlineExceeded { source: Some(source), .. }) => {
                assert!(matches!(*source, Error::Unavailable { .. } | Error::Wire(_)), "{source}");
            }
            other => panic!("{other:?}"),
        }
    });
    server.join().unwrap();
}

#[test]
fn a_session_is_claimed_else_made_else_claimed_from_who_made_it_in_between() {
    let luod = Luod::new();
    let options = luod.options();
    let server = thread::spawn(move || {
        let mut peer = luod.accept();
        let call = peer.take("io.luo.ClaimSession");
        assert_eq!(call.parameters["name"], "shop");
        let wait = call.parameters["wait_milliseconds"].as_u64().unwrap();
        assert!(u128::from(wait) < PATIENCE.as_millis());
        peer.refuse_manager("ENOENT");
        let made = peer.take("io.luo.CreateSession");
        assert_eq!(made.parameters["policy"]["on_close"], "keep");
        peer.refuse_manager("EEXIST");
        let again = peer.take("io.luo.ClaimSession");
        assert_ne!(again.request(), call.request());
        // A luod that does not serve the connections that came along closes them.
        drop((call, made, again));
        let (end, descriptor) = SessionEnd::pair();
        peer.reply_with(given(), &[descriptor.as_fd()]);
        drop(descriptor);
        peer.ends();
        let mut session = end.accept();
        session.take("io.luo.Session.GetInfo");
        session.reply(info("updated"));
        session.ends();
    });
    run(async {
        let session = wait!(Session::open_with("shop", options)).unwrap();
        assert_eq!(session.name(), "shop");
        assert!(wait!(session.is_updated()).unwrap());
    });
    server.join().unwrap();
}

#[test]
fn the_first_connection_of_a_session_goes_along_with_the_call_for_it() {
    let luod = Luod::new();
    let options = luod.options();
    let server = thread::spawn(move || {
        for (method, repeated) in [("io.luo.ClaimSession", false), ("io.luo.CreateSession", true)] {
            let mut peer = luod.accept();
            let mut call = peer.take(method);
            if repeated {
                drop((call, peer));
                peer = luod.accept();
                call = peer.take(method);
            }
            assert_eq!(call.descriptors.len(), 1);
            let mut session = Peer::new(call.descriptors.remove(0));
            let (end, descriptor) = SessionEnd::pair();
            peer.reply_with(given(), &[descriptor.as_fd()]);
            drop(descriptor);
            peer.ends();
            session.take("io.luo.Session.GetInfo");
            session.reply(info("updated"));
            session.ends();
            assert!(end.accept_until_end().is_none(), "another connection was made");
        }
    });
    run(async {
        let session = wait!(Session::claim_with("shop", options.clone())).unwrap();
        assert!(wait!(session.is_updated()).unwrap());
        drop(session);
        let session = wait!(Session::create_with("shop", options)).unwrap();
        assert!(wait!(session.is_updated()).unwrap());
    });
    server.join().unwrap();
}

#[test]
fn refusals_to_open_keep_their_errno() {
    let luod = Luod::new();
    let options = luod.options();
    let server = thread::spawn(move || {
        for errno in ["EPERM", "EBUSY"] {
            let mut peer = luod.accept();
            peer.take("io.luo.ClaimSession");
            peer.refuse_manager(errno);
            peer.ends();
        }
        let mut peer = luod.accept();
        peer.take("io.luo.CreateSession");
        peer.refuse_manager("EEXIST");
        peer.ends();
    });
    run(async {
        for errno in ["EPERM", "EBUSY"] {
            let error = wait!(Session::open_with("shop", options.clone())).unwrap_err();
            assert_eq!(error.errno(), Some(errno));
        }
        let error = wait!(Session::create_with("shop", options)).unwrap_err();
        assert_eq!(error.errno(), Some("EEXIST"));
    });
    server.join().unwrap();
}

#[test]
fn a_lost_answer_to_create_is_asked_for_with_the_same_request() {
    let luod = Luod::new();
    let options = luod.options();
    let server = thread::spawn(move || {
        let mut peer = luod.accept();
        let asked = peer.take("io.luo.CreateSession").request();
        drop(peer);
        let mut peer = luod.accept();
        assert_eq!(peer.take("io.luo.CreateSession").request(), asked);
        let (_end, descriptor) = SessionEnd::pair();
        peer.reply_with(given(), &[descriptor.as_fd()]);
        peer.ends();
    });
    run(async {
        wait!(Session::create_with("shop", options)).unwrap();
    });
    server.join().unwrap();
}

#[test]
fn a_session_without_its_descriptor_or_with_two_is_an_error_and_leaks_nothing() {
    let luod = Luod::new();
    let options = luod.options();
    let server = thread::spawn(move || {
        let file = marked("luo-test-given");
        for count in [0, 2] {
            let mut peer = luod.accept();
            peer.take("io.luo.ClaimSession");
            peer.reply_with(given(), &vec![file.as_fd(); count]);
            peer.ends();
        }
    });
    run(async {
        for _ in 0..2 {
            let error = wait!(Session::claim_with("shop", options.clone())).unwrap_err();
            assert!(matches!(error, Error::Protocol { .. }), "{error}");
        }
    });
    server.join().unwrap();
    assert_eq!(open_count("luo-test-given"), 0);
}

#[test]
fn a_session_that_is_passed_on_makes_connections_of_its_own() {
    let server = |end: SessionEnd, mut first: Peer| {
        let mut second = end.accept();
        second.take("io.luo.Session.GetInfo");
        second.reply(info("updated"));
        first.take("io.luo.Session.GetInfo");
        first.reply(info("normal"));
        second.take("io.luo.Session.GetInfo");
        second.reply(info("updated"));
        first.ends();
        second.ends();
    };
    with_session(server, async |session| {
        let descriptor = session.descriptor().unwrap();
        let flags = rustix::io::fcntl_getfd(&descriptor).unwrap();
        assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
        let other = wait!(Session::from_descriptor_with(descriptor, patient())).unwrap();
        assert_eq!(other.name(), "shop");
        assert!(!wait!(session.is_updated()).unwrap());
        assert!(wait!(other.is_updated()).unwrap());
    });
}

#[test]
fn what_is_no_session_is_refused_and_gets_no_packet() {
    run(async {
        let (stream, other) = std::os::unix::net::UnixStream::pair().unwrap();
        let error = wait!(Session::from_descriptor(stream.into())).unwrap_err();
        assert!(matches!(error, Error::NotASession), "{error}");
        let mut bytes = Vec::new();
        std::io::Read::read_to_end(&mut &other, &mut bytes).unwrap();
        assert!(bytes.is_empty());
        let error = wait!(Session::from_descriptor(marked("luo-test-none"))).unwrap_err();
        assert!(matches!(error, Error::NotASession), "{error}");
    });
}

#[test]
fn luod_that_cannot_serve_says_why() {
    let luod = Luod::new();
    let options = luod.options();
    let server = thread::spawn(move || {
        let mut peer = luod.accept();
        peer.take("io.luo.GetStatus");
        let failed = json!({ "reason": "it died five times" });
        let failed = json!({ "error": "io.luo.WorkerFailed", "parameters": failed });
        peer.raw(format!("{failed}\0").as_bytes(), &[]);
        peer.ends();
    });
    run(async {
        let manager = Manager::connect(options).unwrap();
        match wait!(manager.status()) {
            Err(Error::WorkerFailed { reason }) => assert_eq!(reason, "it died five times"),
            other => panic!("{other:?}"),
        }
    });
    server.join().unwrap();
}
