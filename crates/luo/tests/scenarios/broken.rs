//! A luod that does not keep to the protocol.

use std::os::fd::AsFd;

use luo::Error;
use luo::wire::WireError;
use serde_json::json;

use super::with_session;
use crate::fake::*;

#[test]
fn nonsense_is_an_error_and_the_connection_is_not_used_any_more() {
    const NONSENSE: [&str; 8] = [
        "\0",
        "nonsense\0",
        "[]\0",
        "{\"parameters\":7}\0",
        "{\"parameters\":{\"name\":\"shop\"}}\0",
        "{\"error\":\"io.luo.Unheard\",\"parameters\":{}}\0",
        "{\"error\":\"io.luo.Session.Failed\"}\0",
        "{\"continues\":true,\"parameters\":{\"name\":\"a\",\"state\":\"normal\",\"files\":[],\"incoming\":[]}}\0",
    ];
    let server = |end: SessionEnd, mut peer: Peer| {
        for nonsense in NONSENSE {
            peer.take("io.luo.Session.GetInfo");
            peer.raw(nonsense.as_bytes(), &[]);
            peer.ends();
            peer = end.accept();
        }
        peer.take("io.luo.Session.GetInfo");
        peer.reply(info("normal"));
    };
    with_session(server, async |session| {
        for nonsense in NONSENSE {
            let error = wait!(session.info()).unwrap_err();
            assert!(matches!(error, Error::Protocol { .. }), "{nonsense}: {error}");
        }
        assert!(!wait!(session.is_updated()).unwrap());
    });
}

#[test]
fn a_second_reply_to_one_call_is_not_taken_for_the_answer_to_the_next() {
    let server = |end: SessionEnd, mut first: Peer| {
        first.take("io.luo.Session.GetInfo");
        // In one write, so that both are there when the first is read.
        let reply = json!({ "parameters": info("normal") }).to_string();
        first.raw(format!("{reply}\0{reply}\0").as_bytes(), &[]);
        first.ends();
        let mut second = end.accept();
        second.take("io.luo.Session.GetInfo");
        second.reply(info("updated"));
        second.ends();
    };
    with_session(server, async |session| {
        assert!(!wait!(session.is_updated()).unwrap());
        assert!(wait!(session.is_updated()).unwrap());
    });
}

#[test]
fn replies_to_calls_that_were_not_sent_are_an_error() {
    let server = |_, mut peer: Peer| {
        peer.take("io.luo.Session.Unpreserve");
        let reply = "{\"parameters\":{}}\0";
        peer.raw(reply.repeat(30).as_bytes(), &[]);
    };
    with_session(server, async |session| {
        let tokens: Vec<u64> = (0..20_000).collect();
        let error = wait!(session.unpreserve_many(&tokens)).unwrap_err();
        assert!(matches!(error, Error::Protocol { .. }), "{error}");
    });
}

#[test]
fn a_message_of_a_hundred_megabytes_is_refused() {
    let server = |_, mut peer: Peer| {
        peer.take("io.luo.Session.GetInfo");
        let part = vec![b' '; 1 << 20];
        for _ in 0..100 {
            peer.raw(&part, &[]);
        }
    };
    with_session(server, async |session| match wait!(session.info()) {
        Err(Error::Wire(WireError::TooLong { limit })) => assert_eq!(limit, 64 << 20),
        other => panic!("{other:?}"),
    });
}

#[test]
fn descriptors_that_nobody_asked_for_are_closed() {
    let server = |_, mut peer: Peer| {
        let file = marked("luo-test-unasked");
        peer.take("io.luo.Session.GetInfo");
        peer.reply_with(info("normal"), &[file.as_fd(), file.as_fd()]);
        peer.take("io.luo.Session.Prepare");
        let refusal = json!({ "errno": "EIO", "reason": "no" });
        let refusal = json!({ "error": "io.luo.Session.Failed", "parameters": refusal });
        peer.raw(format!("{refusal}\0").as_bytes(), &[file.as_fd()]);
        peer.take("io.luo.Session.GetInfo");
        drop(file);
        peer.reply(info("updated"));
        peer.ends();
    };
    with_session(server, async |session| {
        assert!(!wait!(session.is_updated()).unwrap());
        assert_eq!(wait!(session.prepare()).unwrap_err().errno(), Some("EIO"));
        assert!(wait!(session.is_updated()).unwrap());
        assert_eq!(open_count("luo-test-unasked"), 0);
    });
}

#[test]
fn descriptors_before_the_end_of_a_message_do_not_pile_up() {
    let server = |end: SessionEnd, mut first: Peer| {
        let file = marked("luo-test-pile");
        first.take("io.luo.Session.GetInfo");
        first.raw(b" ", &[file.as_fd(); 200]);
        first.raw(b" ", &[file.as_fd(); 200]);
        first.ends();
        drop(file);
        let mut second = end.accept();
        second.take("io.luo.Session.GetInfo");
        second.reply(info("updated"));
        second.ends();
    };
    with_session(server, async |session| {
        let error = wait!(session.info()).unwrap_err();
        assert!(matches!(error, Error::Wire(WireError::TooManyDescriptors)), "{error}");
        assert!(wait!(session.is_updated()).unwrap());
        assert_eq!(open_count("luo-test-pile"), 0);
    });
}
