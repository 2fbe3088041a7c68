//! luod as a whole.

use std::os::fd::AsFd;
use std::thread;

use luo::{Error, State, Unclaimed};
use serde_json::json;

use crate::api::{Manager, run};
use crate::fake::*;

/// A test of one manager. `server` gets its first connection.
fn with_manager(
    server: impl FnOnce(&Luod, Peer) + Send + 'static,
    client: impl AsyncFnOnce(Manager),
) {
    let luod = Luod::new();
    let options = luod.options();
    let server = thread::spawn(move || {
        let peer = luod.accept();
        server(&luod, peer);
    });
    run(async {
        client(Manager::connect(options).unwrap()).await;
    });
    server.join().unwrap();
}

/// Loses the answer to an event, and refuses its repetition.
fn lose(luod: &Luod, mut first: Peer, method: &str) -> Peer {
    first.take(method);
    drop(first);
    let mut second = luod.accept();
    second.take(method);
    second.refuse_manager("EBUSY");
    second
}

#[test]
fn an_event_gives_its_report() {
    let server = |_: &Luod, mut peer: Peer| {
        peer.take("io.luo.Prepare");
        peer.reply(report("prepare", "prepared"));
        peer.ends();
    };
    with_manager(server, async |manager| {
        let report = wait!(manager.prepare()).unwrap().unwrap();
        assert_eq!((report.state, report.microseconds), (State::Prepared, 7));
    });
}

#[test]
fn a_repeated_event_that_finds_the_state_it_wanted_has_taken_place_without_a_report() {
    let server = |luod: &Luod, mut peer: Peer| {
        for (method, state) in [
            ("io.luo.Prepare", "prepared"),
            ("io.luo.Freeze", "frozen"),
            ("io.luo.Cancel", "normal"),
            ("io.luo.Depart", "updated"),
            ("io.luo.Finish", "normal"),
        ] {
            peer = lose(luod, peer, method);
            peer.take("io.luo.GetStatus");
            peer.reply(status(state, None));
        }
        peer.ends();
    };
    with_manager(server, async |manager| {
        assert_eq!(wait!(manager.prepare()).unwrap(), None);
        assert_eq!(wait!(manager.freeze()).unwrap(), None);
        assert_eq!(wait!(manager.cancel()).unwrap(), None);
        assert_eq!(wait!(manager.depart()).unwrap(), None);
        assert_eq!(wait!(manager.finish(Unclaimed::Refuse)).unwrap(), None);
    });
}

#[test]
fn a_repeated_event_whose_first_request_is_still_at_work_is_judged_at_its_end() {
    let server = |luod: &Luod, peer: Peer| {
        let mut peer = lose(luod, peer, "io.luo.Prepare");
        for _ in 0..3 {
            peer.take("io.luo.GetStatus");
            peer.reply(status("normal", Some("prepare")));
        }
        peer.take("io.luo.GetStatus");
        peer.reply(status("prepared", None));
        let mut peer = lose(luod, peer, "io.luo.Freeze");
        peer.take("io.luo.GetStatus");
        peer.reply(status("prepared", Some("freeze")));
        peer.take("io.luo.GetStatus");
        peer.reply(status("normal", None));
        // Both phases were undone: both are asked for again, as new requests.
        peer.take("io.luo.Prepare");
        peer.reply(report("prepare", "prepared"));
        peer.take("io.luo.Freeze");
        peer.refuse_manager("EBUSY");
        peer.ends();
    };
    with_manager(server, async |manager| {
        assert_eq!(wait!(manager.prepare()).unwrap(), None);
        assert_eq!(wait!(manager.freeze()).unwrap_err().errno(), Some("EBUSY"));
    });
}

#[test]
fn an_event_that_was_not_repeated_is_refused_whatever_the_state() {
    let server = |_: &Luod, mut peer: Peer| {
        peer.take("io.luo.Prepare");
        peer.refuse_manager("EBUSY");
        peer.ends();
    };
    with_manager(server, async |manager| {
        assert_eq!(wait!(manager.prepare()).unwrap_err().errno(), Some("EBUSY"));
    });
}

fn file(token: u64) -> serde_json::Value {
    json!({
        "session": "shop", "token": token, "handler": "memfd-v1", "required": true,
        "phase": "registered", "what": "/memfd:x", "pinned": 0
    })
}

#[test]
fn a_list_in_parts_begins_anew_when_the_connection_breaks() {
    let server = |luod: &Luod, mut first: Peer| {
        let call = first.take("io.luo.ListFiles");
        assert!(call.more);
        assert_eq!(call.parameters["session"], "shop");
        first.part(json!({ "files": [file(1), file(2)] }));
        drop(first);
        let mut second = luod.accept();
        second.take("io.luo.ListFiles");
        second.part(json!({ "files": [file(1), file(2)] }));
        second.part(json!({ "files": [] }));
        second.reply(json!({ "files": [file(3)] }));
        second.take("io.luo.ListFiles");
        second.refuse_manager("ENOENT");
        second.ends();
    };
    with_manager(server, async |manager| {
        let files = wait!(manager.files(Some("shop"))).unwrap();
        let tokens: Vec<u64> = files.iter().map(|file| file.token).collect();
        assert_eq!(tokens, [1, 2, 3]);
        assert_eq!(wait!(manager.files(None)).unwrap_err().errno(), Some("ENOENT"));
    });
}

#[test]
fn a_repeated_release_that_finds_no_session_has_released_it() {
    let server = |luod: &Luod, mut first: Peer| {
        first.take("io.luo.ReleaseSession");
        drop(first);
        let mut second = luod.accept();
        second.take("io.luo.ReleaseSession");
        second.refuse_manager("ENOENT");
        second.take("io.luo.ReleaseSession");
        second.refuse_manager("ENOENT");
        second.ends();
    };
    with_manager(server, async |manager| {
        wait!(manager.release("shop")).unwrap();
        assert_eq!(wait!(manager.release("shop")).unwrap_err().errno(), Some("ENOENT"));
    });
}

#[test]
fn a_repeated_upgrade_brings_the_binary_again() {
    let server = |luod: &Luod, mut first: Peer| {
        let call = first.take("io.luo.Upgrade");
        assert_eq!(call.parameters["deadline_milliseconds"], PATIENCE.as_millis() as u64);
        assert_eq!(call.descriptors.len(), 1);
        drop(first);
        let mut second = luod.accept();
        assert_eq!(second.take("io.luo.Upgrade").descriptors.len(), 1);
        second.reply(json!({ "before": "2", "after": "2" }));
        second.ends();
    };
    with_manager(server, async |manager| {
        let binary = marked("luo-test-binary");
        let upgraded = wait!(manager.upgrade(Some(binary.as_fd()), PATIENCE, false)).unwrap();
        assert_eq!((upgraded.before.as_str(), upgraded.after.as_str()), ("2", "2"));
    });
}

#[test]
fn worker_and_keeper_are_replaced_by_two_calls() {
    let server = |_: &Luod, mut peer: Peer| {
        for keeper in [false, true] {
            let call = peer.take("io.luo.Upgrade");
            assert_eq!(call.parameters["keeper"], keeper);
            assert_eq!(call.descriptors.len(), 1);
            peer.reply(json!({ "before": if keeper { "2" } else { "1" }, "after": "2" }));
        }
        peer.ends();
    };
    with_manager(server, async |manager| {
        let binary = marked("luo-test-binary");
        let upgraded = wait!(manager.upgrade(Some(binary.as_fd()), PATIENCE, true)).unwrap();
        assert_eq!((upgraded.before.as_str(), upgraded.after.as_str()), ("1", "2"));
    });
}

#[test]
fn the_handover_comes_as_one_memory_file() {
    let server = |_: &Luod, mut peer: Peer| {
        let memory = marked("luo-test-handover");
        peer.take("io.luo.GetHandover");
        peer.reply_with(json!({ "size": 5 }), &[memory.as_fd()]);
        peer.take("io.luo.GetHandover");
        peer.reply(json!({ "size": 5 }));
        peer.ends();
    };
    with_manager(server, async |manager| {
        let (_memory, size) = wait!(manager.handover()).unwrap();
        assert_eq!(size, 5);
        let error = wait!(manager.handover()).unwrap_err();
        assert!(matches!(error, Error::Protocol { .. }), "{error}");
    });
}
