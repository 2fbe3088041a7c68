//! Many files at once.

use std::os::fd::{AsFd, BorrowedFd};

use luo::Error;
use serde_json::json;

use super::{inode, with_session};
use crate::fake::*;

const MANY: usize = 253 * 3 + 7;

/// Serves one part of a batch, of which files at these positions are refused.
fn keep(peer: &mut Peer, size: usize, refused: &[usize]) -> (Vec<u64>, u64) {
    let call = peer.take("io.luo.Session.Preserve");
    assert_eq!(call.parameters["count"], size);
    assert_eq!(call.parameters["required"], true);
    assert_eq!(call.descriptors.len(), size);
    let tokens = call.tokens();
    let refused: Vec<_> = refused
        .iter()
        .map(|index| json!({ "index": index, "errno": "ENOENT", "reason": format!("{index}") }))
        .collect();
    peer.reply(json!({ "tokens": tokens, "refused": refused }));
    (tokens, call.request())
}

#[test]
fn a_batch_is_split_and_refusals_stay_with_their_files() {
    let server = |_, mut peer: Peer| {
        let mut all = Vec::new();
        let mut requests = Vec::new();
        for (size, refused) in [(253, &[][..]), (253, &[252, 5]), (253, &[0]), (7, &[6])] {
            let (tokens, request) = keep(&mut peer, size, refused);
            all.extend(tokens);
            requests.push(request);
        }
        let expected: Vec<u64> = (0..MANY as u64).map(|index| 1000 + index).collect();
        assert_eq!(all, expected);
        requests.sort_unstable();
        requests.dedup();
        assert_eq!(requests.len(), 4, "each part is a request of its own");
        peer.ends();
    };
    with_session(server, async |session| {
        let file = marked("luo-test-batch");
        let files: Vec<(u64, BorrowedFd<'_>)> =
            (0..MANY as u64).map(|index| (1000 + index, file.as_fd())).collect();
        let verdicts = wait!(session.preserve_many(&files)).unwrap();
        assert_eq!(verdicts.len(), MANY);
        for (index, verdict) in verdicts.iter().enumerate() {
            let refused = [253 + 252, 253 + 5, 2 * 253, 3 * 253 + 6].contains(&index);
            match verdict {
                Ok(token) => assert!(!refused && *token == 1000 + index as u64),
                Err(refusal) => {
                    assert!(refused, "{index}: {refusal}");
                    assert_eq!(refusal.reason, format!("{}", index % 253));
                }
            }
        }
    });
}

#[test]
fn an_empty_batch_asks_nothing() {
    let server = |_, mut peer: Peer| peer.ends();
    with_session(server, async |session| {
        assert!(wait!(session.preserve_many::<BorrowedFd<'_>>(&[])).unwrap().is_empty());
        assert!(wait!(session.unpreserve_many(&[])).unwrap().is_empty());
        assert!(wait!(session.retrieve_many(&[])).unwrap().is_empty());
    });
}

#[test]
fn a_part_that_is_refused_whole_is_a_refusal_of_each_of_its_files() {
    let server = |_, mut peer: Peer| {
        keep(&mut peer, 253, &[]);
        peer.take("io.luo.Session.Preserve");
        peer.refuse("ENOSPC");
        peer.ends();
    };
    with_session(server, async |session| {
        let file = marked("luo-test-part");
        let files: Vec<(u64, BorrowedFd<'_>)> =
            (1..=255).map(|token| (token, file.as_fd())).collect();
        let verdicts = wait!(session.preserve_many(&files)).unwrap();
        assert!(verdicts[..253].iter().all(Result::is_ok));
        let refused: Vec<&str> =
            verdicts[253..].iter().map(|v| v.as_ref().unwrap_err().errno.as_str()).collect();
        assert_eq!(refused, ["ENOSPC", "ENOSPC"]);
    });
}

#[test]
fn a_batch_that_is_refused_whole_is_an_error() {
    let server = |_, mut peer: Peer| {
        peer.take("io.luo.Session.Preserve");
        peer.refuse("EBUSY");
        peer.take("io.luo.Session.Preserve");
        peer.refuse("EBUSY");
        peer.ends();
    };
    with_session(server, async |session| {
        let file = marked("luo-test-whole");
        let error = wait!(session.preserve_many(&[(1, &file), (2, &file)])).unwrap_err();
        assert_eq!(error.errno(), Some("EBUSY"));
        let error = wait!(session.preserve(1, &file)).unwrap_err();
        assert_eq!(error.errno(), Some("EBUSY"));
    });
}

#[test]
fn all_or_an_error_names_the_first_file_that_was_refused() {
    let server = |_, mut peer: Peer| {
        keep(&mut peer, 3, &[2, 1]);
        keep(&mut peer, 3, &[]);
        peer.ends();
    };
    with_session(server, async |session| {
        let file = marked("luo-test-all");
        let files = [(4, &file), (5, &file), (6, &file)];
        match wait!(session.preserve_all(&files)) {
            Err(Error::Refused(refusal)) => assert_eq!(refusal.token, Some(5)),
            other => panic!("{other:?}"),
        }
        wait!(session.preserve_all(&files)).unwrap();
    });
}

#[test]
fn a_token_is_assigned_and_an_optional_file_is_said_to_be_one() {
    let server = |_, mut peer: Peer| {
        let call = peer.take("io.luo.Session.Preserve");
        assert!(call.parameters.get("tokens").is_none());
        peer.reply(json!({ "tokens": [77] }));
        let call = peer.take("io.luo.Session.Preserve");
        assert_eq!(call.parameters["required"], false);
        peer.reply(json!({ "tokens": [u64::MAX] }));
        peer.ends();
    };
    with_session(server, async |session| {
        let memory = luo::Memory::create("luo-test-memory", 4096).unwrap();
        assert_eq!(wait!(session.preserve_assigned(&memory)).unwrap(), 77);
        let verdicts = wait!(session.preserve_optional(&[(u64::MAX, &memory)])).unwrap();
        assert_eq!(verdicts, [Ok(u64::MAX)]);
    });
}

#[test]
fn memory_comes_back_as_memory() {
    let server = |_, mut peer: Peer| {
        let mut call = peer.take("io.luo.Session.Preserve");
        peer.reply(json!({ "tokens": [9] }));
        let kept = call.descriptors.remove(0);
        peer.take("io.luo.Session.Retrieve");
        peer.reply_with(json!({ "tokens": [9] }), &[kept.as_fd()]);
        peer.ends();
    };
    with_session(server, async |session| {
        let memory = luo::Memory::create("luo-test-back", 4096).unwrap();
        memory.store_u64(8, 0x1122).unwrap();
        wait!(session.preserve(9, &memory)).unwrap();
        drop(memory);
        let memory: luo::Memory = wait!(session.retrieve(9)).unwrap().try_into().unwrap();
        assert_eq!(memory.load_u64(8).unwrap(), 0x1122);
    });
}

#[test]
fn files_come_back_in_the_order_asked_with_refusals_among_them() {
    let server = |_, mut peer: Peer| {
        let (even, odd) = (marked("luo-test-even"), marked("luo-test-odd"));
        for (start, size, refused) in [(0_u64, 253_usize, &[252_usize, 0, 3][..]), (253, 7, &[6])] {
            let tokens = peer.take("io.luo.Session.Retrieve").tokens();
            assert_eq!(tokens, (start..start + size as u64).collect::<Vec<u64>>());
            let given: Vec<u64> = (0..size)
                .filter(|index| !refused.contains(index))
                .map(|index| tokens[index])
                .collect();
            let files: Vec<BorrowedFd<'_>> = given
                .iter()
                .map(|token| if token % 2 == 0 { even.as_fd() } else { odd.as_fd() })
                .collect();
            // Refusals need not come in order.
            let refused: Vec<_> = refused
                .iter()
                .map(|index| json!({ "index": index, "errno": "EIO", "reason": "damaged" }))
                .collect();
            peer.reply_with(json!({ "tokens": given, "refused": refused }), &files);
        }
        peer.ends();
    };
    with_session(server, async |session| {
        let tokens: Vec<u64> = (0..260).collect();
        let files = wait!(session.retrieve_many(&tokens)).unwrap();
        assert_eq!(files.len(), 260);
        let (even, odd) = (inode(files[2].as_ref().unwrap()), inode(files[1].as_ref().unwrap()));
        assert_ne!(even, odd);
        for (token, file) in tokens.iter().zip(&files) {
            match file {
                Ok(file) => assert_eq!(inode(file), if token % 2 == 0 { even } else { odd }),
                Err(refusal) => {
                    assert!([252, 0, 3, 259].contains(token), "{token}");
                    assert_eq!(refusal.errno, "EIO");
                }
            }
        }
    });
}

#[test]
fn refusals_of_taking_out_name_their_tokens_across_parts() {
    let server = |_, mut peer: Peer| {
        let mut start = 0;
        while start < 3000 {
            let tokens = peer.take("io.luo.Session.Unpreserve").tokens();
            let refused = json!([{ "index": 1, "errno": "ENOENT", "reason": "none" }]);
            peer.reply(json!({ "refused": refused }));
            start += tokens.len();
        }
        peer.ends();
    };
    with_session(server, async |session| {
        let tokens: Vec<u64> = (0..3000).collect();
        let refusals = wait!(session.unpreserve_many(&tokens)).unwrap();
        let named: Vec<Option<u64>> = refusals.iter().map(|refusal| refusal.token).collect();
        assert_eq!(named, [Some(1), Some(1013), Some(2025)]);
    });
}

#[test]
fn an_answer_that_does_not_fit_the_request_is_an_error_and_leaks_nothing() {
    let answers = |name: &'static str| {
        let file = marked(name);
        let reply = |tokens: &[u64], refused: &[usize], files: usize| {
            let refused: Vec<_> = refused
                .iter()
                .map(|index| json!({ "index": index, "errno": "EIO", "reason": "no" }))
                .collect();
            (json!({ "tokens": tokens, "refused": refused }), files)
        };
        let bad = [
            reply(&[1, 2], &[], 1),
            reply(&[1, 2], &[], 3),
            reply(&[1], &[], 1),
            reply(&[2, 1], &[], 2),
            reply(&[1, 2, 3], &[], 3),
            reply(&[1, 2], &[1], 2),
            reply(&[1], &[2], 1),
            reply(&[], &[0, 0], 0),
        ];
        (file, bad)
    };
    let count = 8;
    let server = move |end: SessionEnd, first: Peer| {
        let (file, bad) = answers("luo-test-unfit");
        let mut peer = first;
        for (reply, files) in bad {
            peer.take("io.luo.Session.Retrieve");
            peer.reply_with(reply, &vec![file.as_fd(); files]);
            peer.ends();
            peer = end.accept();
        }
        peer.take("io.luo.Session.GetInfo");
        drop(file);
        peer.reply(info("updated"));
        peer.ends();
    };
    with_session(server, async |session| {
        for attempt in 0..count {
            let error = wait!(session.retrieve_many(&[1, 2])).unwrap_err();
            assert!(matches!(error, Error::Protocol { .. }), "{attempt}: {error}");
        }
        assert!(wait!(session.is_updated()).unwrap());
        assert_eq!(open_count("luo-test-unfit"), 0);
    });
}
