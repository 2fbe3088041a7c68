//! Connections that break, and deadlines.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::mpsc;
use std::time::Duration;

use luo::Error;
use serde_json::json;

use super::{SHORT, with_options, with_session};
use crate::fake::*;

#[test]
fn what_had_no_answer_is_sent_again_as_it_was_and_nothing_else_is() {
    let server = |end: SessionEnd, mut first: Peer| {
        let mut sent = Vec::new();
        for size in [253, 253, 253, 7] {
            let call = first.take("io.luo.Session.Preserve");
            assert_eq!(call.descriptors.len(), size);
            sent.push((call.request(), call.tokens()));
        }
        first.reply(json!({ "tokens": sent[0].1 }));
        first.reply(json!({ "tokens": sent[1].1 }));
        drop(first);
        let mut second = end.accept();
        for (request, tokens) in &sent[2..] {
            let call = second.take("io.luo.Session.Preserve");
            assert_eq!((call.request(), &call.tokens()), (*request, tokens));
            assert_eq!(call.descriptors.len(), tokens.len());
            second.reply(json!({ "tokens": tokens }));
        }
        second.ends();
    };
    with_session(server, async |session| {
        let file = marked("luo-test-again");
        let files: Vec<(u64, BorrowedFd<'_>)> =
            (0..766).map(|token| (token, file.as_fd())).collect();
        let verdicts = wait!(session.preserve_many(&files)).unwrap();
        let expected: Vec<luo::Verdict> = (0..766).map(Ok).collect();
        assert_eq!(verdicts, expected);
    });
}

#[test]
fn half_a_reply_is_none() {
    let server = |end: SessionEnd, mut first: Peer| {
        let asked = first.take("io.luo.Session.Preserve").request();
        first.raw(br#"{"parameters":{"tokens":[1"#, &[]);
        drop(first);
        let mut second = end.accept();
        assert_eq!(second.take("io.luo.Session.Preserve").request(), asked);
        second.reply(json!({ "tokens": [1] }));
        second.ends();
    };
    with_session(server, async |session| {
        wait!(session.preserve(1, marked("luo-test-half"))).unwrap();
    });
}

#[test]
fn an_idle_connection_that_was_closed_is_made_again_without_anything_being_lost() {
    let (closed, is_closed) = mpsc::channel();
    let server = move |end: SessionEnd, first: Peer| {
        drop(first);
        closed.send(()).unwrap();
        let mut second = end.accept();
        second.take("io.luo.Session.Prepare");
        // Not a repetition: so this is the answer, and the state is not asked for.
        second.refuse("EBUSY");
        second.ends();
    };
    with_session(server, async |session| {
        is_closed.recv().unwrap();
        let error = wait!(session.prepare()).unwrap_err();
        assert_eq!(error.errno(), Some("EBUSY"));
    });
}

#[test]
fn a_luod_that_closes_every_connection_is_given_up_at_the_deadline() {
    let server = |end: SessionEnd, first: Peer| {
        drop(first);
        while let Some(peer) = end.accept_until_end() {
            drop(peer);
        }
    };
    with_options(patient().deadline(SHORT), server, async |session| match wait!(session.info()) {
        Err(Error::DeadlineExceeded { method, source: Some(_), .. }) => {
            assert_eq!(method, "io.luo.Session.GetInfo");
        }
        other => panic!("{other:?}"),
    });
}

#[test]
fn after_a_deadline_the_connection_is_closed_and_a_late_answer_reaches_nobody() {
    let server = |end: SessionEnd, mut first: Peer| {
        first.take("io.luo.Session.GetInfo");
        first.ends();
        let mut second = end.accept();
        second.take("io.luo.Session.GetInfo");
        // The client has gone: this goes nowhere.
        first.raw(
            br#"{"parameters":{"name":"late","state":"frozen","files":[],"incoming":[]}}"#,
            &[],
        );
        second.reply(info("updated"));
        second.ends();
    };
    with_options(patient().deadline(SHORT), server, async |session| {
        match wait!(session.info()) {
            Err(Error::DeadlineExceeded { method, deadline, source: None }) => {
                assert_eq!(method, "io.luo.Session.GetInfo");
                assert_eq!(deadline, SHORT);
            }
            other => panic!("{other:?}"),
        }
        assert!(wait!(session.is_updated()).unwrap());
    });
}

#[test]
fn a_deadline_too_long_for_the_clock_is_none() {
    let server = |_, mut peer: Peer| {
        peer.take("io.luo.Session.GetInfo");
        peer.reply(info("normal"));
        peer.ends();
    };
    with_options(patient().deadline(Duration::MAX), server, async |session| {
        assert!(!wait!(session.is_updated()).unwrap());
    });
}

#[test]
fn taking_out_what_the_first_request_took_out_is_no_refusal() {
    let server = |end: SessionEnd, mut first: Peer| {
        let asked = first.take("io.luo.Session.Unpreserve").request();
        drop(first);
        let mut second = end.accept();
        let refused = json!([
            { "index": 0, "errno": "ENOENT", "reason": "gone" },
            { "index": 1, "errno": "EBUSY", "reason": "frozen" },
        ]);
        assert_eq!(second.take("io.luo.Session.Unpreserve").request(), asked);
        second.reply(json!({ "refused": refused }));
        second.take("io.luo.Session.Unpreserve");
        second.reply(json!({ "refused": [{ "index": 0, "errno": "ENOENT", "reason": "none" }] }));
        second.ends();
    };
    with_session(server, async |session| {
        let refusals = wait!(session.unpreserve_many(&[4, 5])).unwrap();
        assert_eq!(refusals.len(), 1);
        assert_eq!((refusals[0].errno.as_str(), refusals[0].token), ("EBUSY", Some(5)));
        let error = wait!(session.unpreserve(6)).unwrap_err();
        assert_eq!(error.errno(), Some("ENOENT"));
    });
}

#[test]
fn a_duplicate_is_asked_for_again_as_it_was() {
    let server = |end: SessionEnd, mut first: Peer| {
        let asked = first.take("io.luo.Session.Duplicate").request();
        drop(first);
        let mut second = end.accept();
        assert_eq!(second.take("io.luo.Session.Duplicate").request(), asked);
        second.reply(json!({ "token": 9 }));
        second.take("io.luo.Session.Duplicate");
        second.reply(json!({ "token": 4 }));
        second.ends();
    };
    with_session(server, async |session| {
        assert_eq!(wait!(session.duplicate_assigned(1)).unwrap(), 9);
        wait!(session.duplicate(4, 1)).unwrap();
    });
}

/// Loses the answer to a method, and refuses its repetition as luod does when it is out of place.
fn lose(end: &SessionEnd, mut first: Peer, method: &str, state: &str) -> Peer {
    first.take(method);
    drop(first);
    let mut second = end.accept();
    second.take(method);
    second.refuse("EBUSY");
    second.take("io.luo.Session.GetInfo");
    second.reply(info(state));
    second
}

#[test]
fn a_repeated_event_that_finds_the_state_it_wanted_has_taken_place() {
    let server = |end: SessionEnd, peer: Peer| {
        let peer = lose(&end, peer, "io.luo.Session.Prepare", "prepared");
        let peer = lose(&end, peer, "io.luo.Session.Freeze", "frozen");
        let peer = lose(&end, peer, "io.luo.Session.Cancel", "normal");
        let mut peer = lose(&end, peer, "io.luo.Session.Finish", "normal");
        peer.ends();
    };
    with_session(server, async |session| {
        wait!(session.prepare()).unwrap();
        wait!(session.freeze()).unwrap();
        wait!(session.cancel()).unwrap();
        wait!(session.finish_and_carry()).unwrap();
    });
}

#[test]
fn a_repeated_event_that_finds_another_state_is_refused() {
    let server = |end: SessionEnd, peer: Peer| {
        let peer = lose(&end, peer, "io.luo.Session.Prepare", "updated");
        let mut peer = lose(&end, peer, "io.luo.Session.Finish", "updated");
        peer.ends();
    };
    with_session(server, async |session| {
        assert_eq!(wait!(session.prepare()).unwrap_err().errno(), Some("EBUSY"));
        assert_eq!(wait!(session.finish()).unwrap_err().errno(), Some("EBUSY"));
    });
}

#[test]
fn an_event_that_was_not_repeated_is_refused_whatever_the_state() {
    let server = |_, mut peer: Peer| {
        peer.take("io.luo.Session.Prepare");
        peer.refuse("EBUSY");
        peer.ends();
    };
    with_session(server, async |session| {
        assert_eq!(wait!(session.prepare()).unwrap_err().errno(), Some("EBUSY"));
    });
}

#[test]
fn a_release_whose_answer_was_lost_has_released_the_session() {
    let server = |end: SessionEnd, mut peer: Peer| {
        peer.take("io.luo.Session.Release");
        drop(end);
        drop(peer);
    };
    with_session(server, async |session| {
        wait!(session.release()).unwrap();
    });
}

#[test]
fn a_session_that_luod_ended_is_gone() {
    let server = |end: SessionEnd, peer: Peer| {
        drop(end);
        drop(peer);
    };
    with_session(server, async |session| {
        let error = wait!(session.info()).unwrap_err();
        assert!(matches!(error, Error::SessionGone), "{error}");
        let error = wait!(session.info()).unwrap_err();
        assert!(matches!(error, Error::SessionGone), "{error}");
    });
}

#[test]
fn a_freeze_that_luod_undid_in_its_restart_begins_with_preparing_again() {
    let server = |end: SessionEnd, peer: Peer| {
        let mut peer = lose(&end, peer, "io.luo.Session.Freeze", "normal");
        peer.take("io.luo.Session.Prepare");
        peer.reply(json!({}));
        peer.take("io.luo.Session.Freeze");
        peer.reply(json!({}));
        peer.ends();
    };
    with_session(server, async |session| {
        wait!(session.freeze()).unwrap();
    });
}
