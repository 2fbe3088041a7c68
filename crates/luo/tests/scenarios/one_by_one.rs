//! Files that come back one after the other.

use std::os::fd::AsFd;
use std::sync::mpsc;

use luo::Error;
use serde_json::json;

use super::{inode, with_session};
use crate::fake::*;

fn give(peer: &mut Peer, token: u64, file: impl AsFd) {
    assert_eq!(peer.take("io.luo.Session.Retrieve").tokens(), [token]);
    peer.reply_with(json!({ "tokens": [token], "refused": [] }), &[file.as_fd()]);
}

#[test]
fn each_file_is_here_before_the_next_has_an_answer() {
    let (tell, told) = mpsc::channel();
    let server = move |_, mut peer: Peer| {
        let file = marked("luo-test-each");
        // Before the first answer, those that follow have been asked for already.
        let asked: Vec<_> = (0..4).map(|_| peer.take("io.luo.Session.Retrieve").tokens()).collect();
        assert_eq!(asked, [[1], [2], [3], [4]]);
        for token in 1..=6 {
            peer.reply_with(json!({ "tokens": [token], "refused": [] }), &[file.as_fd()]);
            // Nothing more comes from here until the client has it.
            assert_eq!(told.recv_timeout(PATIENCE), Ok(token));
            if token <= 2 {
                assert_eq!(peer.take("io.luo.Session.Retrieve").tokens(), [token + 4]);
            }
        }
        // The connection is used again.
        peer.take("io.luo.Session.GetInfo");
        peer.reply(info("updated"));
        peer.ends();
    };
    with_session(server, async |session| {
        let mut files = session.retrieve_each(&[1, 2, 3, 4, 5, 6]).unwrap();
        let mut inodes = Vec::new();
        for token in 1..=6_u64 {
            let (named, file) = wait!(files.next()).unwrap();
            assert_eq!(named, token);
            inodes.push(inode(&file.unwrap()));
            tell.send(token).unwrap();
        }
        assert!(wait!(files.next()).is_none());
        inodes.dedup();
        assert_eq!(inodes.len(), 1);
        assert!(wait!(session.is_updated()).unwrap());
    });
}

#[test]
fn a_file_that_is_refused_ends_nothing_and_nothing_at_all_is_asked_for_no_token() {
    let server = |_, mut peer: Peer| {
        let file = marked("luo-test-each");
        give(&mut peer, 1, &file);
        peer.take("io.luo.Session.Retrieve");
        let refused = json!([{ "index": 0, "errno": "EIO", "reason": "damaged" }]);
        peer.reply(json!({ "tokens": [], "refused": refused }));
        peer.take("io.luo.Session.Retrieve");
        peer.refuse("ENOENT");
        give(&mut peer, 4, &file);
        peer.ends();
    };
    with_session(server, async |session| {
        assert!(wait!(session.retrieve_each(&[]).unwrap().next()).is_none());
        let mut files = session.retrieve_each(&[1, 2, 3, 4]).unwrap();
        let mut verdicts = Vec::new();
        for _ in 0..4 {
            let (token, file) = wait!(files.next()).unwrap();
            let errno = file.err().map(|error| match error {
                Error::Refused(refusal) => refusal.errno,
                other => panic!("{other}"),
            });
            verdicts.push((token, errno));
        }
        assert!(wait!(files.next()).is_none());
        let refused = |errno: &str| Some(errno.to_owned());
        assert_eq!(verdicts, [(1, None), (2, refused("EIO")), (3, refused("ENOENT")), (4, None)]);
    });
}

#[test]
fn after_a_break_only_what_is_missing_is_asked_for() {
    let server = |end: SessionEnd, mut peer: Peer| {
        let file = marked("luo-test-each");
        give(&mut peer, 1, &file);
        peer.take("io.luo.Session.Retrieve");
        drop(peer);
        let mut peer = end.accept();
        give(&mut peer, 2, &file);
        give(&mut peer, 3, &file);
        peer.ends();
    };
    with_session(server, async |session| {
        let mut files = session.retrieve_each(&[1, 2, 3]).unwrap();
        for token in 1..=3 {
            let (named, file) = wait!(files.next()).unwrap();
            assert_eq!((named, file.is_ok()), (token, true));
        }
        assert!(wait!(files.next()).is_none());
    });
}

#[test]
fn an_answer_that_does_not_fit_is_the_last_item_and_its_connection_is_closed() {
    let server = |end: SessionEnd, mut peer: Peer| {
        let file = marked("luo-test-each-unfit");
        for _ in 0..3 {
            peer.take("io.luo.Session.Retrieve");
        }
        peer.reply_with(json!({ "tokens": [2], "refused": [] }), &[file.as_fd()]);
        drop(file);
        peer.ends();
        let mut peer = end.accept();
        peer.take("io.luo.Session.GetInfo");
        peer.reply(info("updated"));
        peer.ends();
    };
    with_session(server, async |session| {
        let mut files = session.retrieve_each(&[1, 2, 3]).unwrap();
        match wait!(files.next()) {
            Some((1, Err(Error::Protocol { .. }))) => {}
            other => panic!("{other:?}"),
        }
        assert!(wait!(files.next()).is_none());
        assert!(wait!(session.is_updated()).unwrap());
        assert_eq!(open_count("luo-test-each-unfit"), 0);
    });
}

#[test]
fn a_retrieval_that_is_given_up_closes_its_connection() {
    let server = |end: SessionEnd, mut peer: Peer| {
        let file = marked("luo-test-each");
        give(&mut peer, 1, &file);
        while peer.next().is_some() {}
        let mut peer = end.accept();
        give(&mut peer, 2, &file);
        peer.ends();
    };
    with_session(server, async |session| {
        let mut files = session.retrieve_each(&[1, 2, 3]).unwrap();
        assert!(wait!(files.next()).unwrap().1.is_ok());
        drop(files);
        assert!(wait!(session.retrieve(2)).is_ok());
    });
}
