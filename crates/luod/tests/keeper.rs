//! The keeper process under workers that die, misbehave and replace each other.

mod rig;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};

use luo_abi::keeper::{
    Attach, Header, MAX_FDS, MAX_MESSAGE, Role, VERSION_MAX, VERSION_NONE, entry_flag, flag, op,
};
use rig::{Change, Conditions, DEADLINE, Rig, Worker, connected, pipe, put, records};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, Signal, prlimit};
use zerocopy::IntoBytes;

#[test]
#[ignore = "a part that another test plays"]
fn role_keeper() {
    rig::role_keeper();
}

#[test]
#[ignore = "a part that another test plays"]
fn role_worker() {
    rig::role_worker();
}

#[test]
#[ignore = "a part that another test plays"]
fn role_check() {
    rig::role_check();
}

#[test]
#[ignore = "a part that another test plays"]
fn role_resume() {
    rig::role_resume();
}

fn errno(errno: Errno) -> u64 {
    errno.raw_os_error() as u64
}

fn delete<'a>(key: u64) -> Change<'a> {
    Change { key, flags: entry_flag::DELETE, record: b"", fds: Vec::new() }
}

fn rewrite(key: u64, record: &[u8]) -> Change<'_> {
    Change { key, flags: entry_flag::KEEP_FDS, record, fds: Vec::new() }
}

type Model = BTreeMap<u64, Vec<u8>>;

/// A script of messages; each with whether its batch goes on.
fn script<'a>(round: u64, fds: &'a [OwnedFd]) -> Vec<(Vec<Change<'a>>, bool)> {
    let key = |number| round * 100 + number;
    let fd = |at: usize| fds[at].as_fd();
    vec![
        (vec![put(key(1), b"one", &[fd(0)])], false),
        (vec![put(key(2), b"two", &[fd(0), fd(1)]), put(key(3), b"", &[])], false),
        (vec![put(key(4), b"staged", &[fd(1)])], true),
        (vec![delete(key(1)), put(key(1), b"again", &[fd(1)])], true),
        (vec![delete(key(3))], false),
        (vec![rewrite(key(2), b"two, rewritten")], false),
        (vec![rewrite(key(5), b"new by rewriting")], true),
        (vec![delete(key(2)), delete(key(99))], false),
        (vec![put(key(6), b"last", &[fd(0)])], true),
    ]
}

/// The model after each batch that is complete within the first `messages` messages.
fn models(mut model: Model, script: &[(Vec<Change<'_>>, bool)]) -> Vec<Model> {
    let mut models = vec![model.clone()];
    let mut staged = Vec::new();
    for (changes, more) in script {
        staged.extend(changes);
        if *more {
            continue;
        }
        for change in staged.drain(..) {
            match change.flags {
                entry_flag::DELETE => drop(model.remove(&change.key)),
                _ => drop(model.insert(change.key, change.record.to_vec())),
            }
        }
        models.push(model.clone());
    }
    models
}

#[test]
fn what_was_acknowledged_survives_a_worker_killed_after_any_message() {
    let rig = Rig::new();
    let ends = [pipe(), pipe()];
    let fds: Vec<OwnedFd> = ends.iter().map(|(_, writer)| writer.try_clone().unwrap()).collect();
    let length = script(0, &fds).len();
    let mut model = Model::new();
    for round in 0..=length as u64 {
        let (mut worker, kept) = rig.ready_worker();
        assert_eq!(records(&kept), model, "before round {round}");
        let script = script(round, &fds);
        let script = &script[..round as usize];
        for (changes, more) in script {
            worker.change(changes, *more);
        }
        if round > 0 {
            assert_eq!(worker.answer(worker.sequence), 0);
        }
        worker.kill();
        model = models(model, script).pop().unwrap();
    }
    let (_worker, kept) = rig.ready_worker();
    assert_eq!(records(&kept), model);
    for (record, fds) in kept.values() {
        let end = match record.as_slice() {
            b"one" => 0,
            b"again" => 1,
            _ => continue,
        };
        assert!(connected(&fds[0], &ends[end].0), "{}", String::from_utf8_lossy(record));
    }
}

#[test]
fn a_worker_killed_with_messages_in_flight_leaves_whole_batches_in_order() {
    let rig = Rig::new();
    let fds = [pipe().1, pipe().1];
    let mut model = Model::new();
    for round in 0..20 {
        let (mut worker, kept) = rig.ready_worker();
        let found = records(&kept);
        assert_eq!(found, model);
        let script = script(round, &fds);
        for (changes, more) in &script {
            worker.change(changes, *more);
        }
        worker.kill();
        let (worker, kept) = rig.ready_worker();
        let possible = models(model, &script);
        model = records(&kept);
        assert!(possible.contains(&model), "round {round}: {model:?}");
        worker.kill();
    }
}

#[test]
fn descriptors_work_after_many_workers_and_are_closed_when_their_slot_goes() {
    let rig = Rig::new();
    let (reader, writer) = pipe();
    let (mut worker, _) = rig.ready_worker();
    assert_eq!(worker.keep(&[put(1, b"", &[writer.as_fd()])]), 0);
    drop(writer);
    for _ in 0..3 {
        worker.kill();
        let kept;
        (worker, kept) = rig.ready_worker();
        assert!(connected(&kept[&1].1[0], &reader));
    }
    assert_eq!(worker.keep(&[delete(1)]), 0);
    rig::wait(&reader, PollFlags::IN, "the end of the pipe");
    assert_eq!(rustix::io::read(&reader, &mut [0; 1]).unwrap(), 0);
}

#[test]
fn five_quick_deaths_end_in_turning_clients_away_until_sighup() {
    let conditions =
        Conditions { timing: [30_000, 30_000, 1, 5, 5, 30_000, 30_000], ..Conditions::default() };
    let mut rig = Rig::with(conditions);
    let (mut worker, _) = rig.ready_worker();
    assert_eq!(worker.keep(&[put(1, b"kept", &[])]), 0);
    worker.kill();
    for death in 2..=5 {
        assert_eq!(rig.worker().hello().incarnation, death, "the fifth is the last");
        // Dropped, the worker exits.
    }
    for _ in 0..3 {
        let answer = rig.client_reads();
        assert_eq!(answer.last(), Some(&0));
        let text = std::str::from_utf8(&answer[..answer.len() - 1]).unwrap();
        assert!(
            text.starts_with("{\"error\":\"io.luo.WorkerFailed\",\"parameters\":{\"reason\":\"")
        );
        assert!(text.ends_with("\"}}") && !text.contains("  "), "{text}");
    }
    assert!(rig.no_worker());
    rig.signal(Signal::HUP);
    let (worker, kept) = rig.ready_worker();
    assert_eq!(kept[&1].0, b"kept");
    assert!(rig.log().contains("SIGHUP"));
    rig.signal(Signal::TERM);
    worker.expect(op::STOP);
    drop(worker);
    assert_eq!(rig.ended(), Some(0));
}

#[test]
fn a_death_after_a_settled_time_does_not_count() {
    // Settled at once: far more deaths than five do not end it.
    let rig = Rig::new();
    for incarnation in 1..=12 {
        let mut worker = rig.worker();
        assert_eq!(worker.attach().incarnation.get(), incarnation);
        assert_eq!(worker.ask(op::READY), 0);
        worker.kill();
    }
}

#[test]
fn a_worker_that_is_not_ready_in_time_is_killed() {
    let conditions =
        Conditions { timing: [1000, 0, 1, 5, 100, 30_000, 30_000], ..Conditions::default() };
    let rig = Rig::with(conditions);
    rig.worker().ended();
    rig.logged("was not ready in time");
}

/// What is sent, and what the keeper has to say about it in its log.
type Garbage = (&'static str, Box<dyn Fn(&mut Worker)>);

#[test]
fn garbage_costs_the_worker_its_life_and_nothing_else() {
    let sends = |bytes: &'static [u8]| {
        Box::new(move |worker: &mut Worker| worker.send(bytes, &[])) as Box<dyn Fn(&mut Worker)>
    };
    let header = |edit: fn(&mut Header)| {
        Box::new(move |worker: &mut Worker| {
            let mut header = worker.header(op::READY);
            edit(&mut header);
            worker.send(header.as_bytes(), &[]);
        }) as Box<dyn Fn(&mut Worker)>
    };
    let cases: Vec<Garbage> = vec![
        ("shorter than its header", sends(b"x")),
        ("magic", sends(&[0xff; 200])),
        ("magic", sends(&[0; 64])),
        ("out of sequence", header(|header| header.sequence = 77.into())),
        ("out of sequence", header(|header| header.sequence = 0.into())),
        ("wire version", header(|header| header.version = 99.into())),
        ("out of sequence", header(|header| header.op = op::ATTACH.into())),
        ("shorter than its header", header(|header| header.count = 5.into())),
        ("shorter than its header", header(|header| header.count = u32::MAX.into())),
        ("longer than", Box::new(|worker| worker.send(&vec![1; MAX_MESSAGE + 1], &[]))),
        (
            "do not add up",
            Box::new(|worker| {
                let bytes = worker.change_message(&[put(1, b"", &[])], false);
                let (_, writer) = pipe();
                worker.send(&bytes, &[writer.as_fd()]);
            }),
        ),
        (
            "key zero",
            Box::new(|worker| {
                let bytes = worker.change_message(&[put(0, b"", &[])], false);
                worker.send(&bytes, &[]);
            }),
        ),
        (
            "closed its socket",
            Box::new(|worker| {
                rustix::net::shutdown(&worker.socket, rustix::net::Shutdown::Both).unwrap();
            }),
        ),
    ];
    let rig = Rig::new();
    let (mut worker, _) = rig.ready_worker();
    assert_eq!(worker.keep(&[put(1, b"kept", &[pipe().1.as_fd()])]), 0);
    let mut seen = 0;
    for (says, act) in &cases {
        act(&mut worker);
        worker.ended();
        let kept;
        (worker, kept) = rig.ready_worker();
        assert_eq!((kept.len(), kept[&1].0.as_slice(), kept[&1].1.len()), (1, &b"kept"[..], 1));
        let log = rig.log();
        assert!(log[seen..].contains(says), "{says}: {}", &log[seen..]);
        seen = log.len();
    }
}

#[test]
fn a_worker_of_a_foreign_wire_version_is_told_from_the_log() {
    let rig = Rig::new();
    let mut worker = rig.worker();
    worker.hello();
    let attach = Attach { wire_min: 70.into(), wire_max: 71.into(), reserved: 0.into() };
    let header = Header::new(VERSION_NONE, op::ATTACH, 1);
    worker.send(&[header.as_bytes(), attach.as_bytes()].concat(), &[]);
    worker.ended();
    rig.logged("speaks wire versions 70 to 71");
    // A newer one that still speaks ours is fine.
    let mut worker = rig.worker();
    worker.hello();
    let attach = Attach { wire_min: 1.into(), wire_max: 71.into(), reserved: 0.into() };
    worker.sequence = 1;
    worker.send(&[header.as_bytes(), attach.as_bytes()].concat(), &[]);
    assert_eq!(worker.answer(1), 0);
    assert_eq!(worker.ask(op::READY), 0);
}

#[test]
fn requests_that_make_no_sense_are_refused_and_change_nothing() {
    let rig = Rig::new();
    let (mut worker, _) = rig.ready_worker();
    for (op, expected) in [
        (op::QUIESCED, Errno::INVAL),
        (op::HELLO, Errno::OPNOTSUPP),
        (0, Errno::OPNOTSUPP),
        (999, Errno::OPNOTSUPP),
    ] {
        assert_eq!(worker.ask(op), errno(expected), "op {op}");
    }
    let header = worker.header(op::READY).flags(1);
    worker.send(header.as_bytes(), &[]);
    assert_eq!(worker.answer(worker.sequence), errno(Errno::INVAL));
    let header = worker.header(op::LOAD).argument(1);
    worker.send(header.as_bytes(), &[]);
    assert_eq!(worker.answer(worker.sequence), errno(Errno::INVAL));
    // An unknown flag in the middle of a batch refuses the batch, not its first half.
    let header = |worker: &mut Worker, flags| {
        let mut bytes = worker.change_message(&[put(1, b"x", &[])], false);
        let header = Header::new(VERSION_MAX, op::CHANGE, worker.sequence).flags(flags);
        bytes[..size_of::<Header>()].copy_from_slice(header.as_bytes());
        bytes[16] = 1;
        bytes
    };
    let bytes = header(&mut worker, 8 | flag::MORE);
    worker.send(&bytes, &[]);
    worker.change(&[put(2, b"", &[])], false);
    assert_eq!(worker.answer(worker.sequence), errno(Errno::INVAL));
    assert!(worker.load().is_empty());
    assert!(worker.alive());
}

#[test]
fn limits_are_enforced_before_anything_is_taken() {
    let rig = Rig::with(Conditions { limits: [4, 3, 100], ..Conditions::default() });
    let (_reader, writer) = pipe();
    let fd = writer.as_fd();
    let mut worker = rig.worker();
    let hello = worker.attach();
    assert_eq!((hello.max_slots.get(), hello.max_fds.get(), hello.max_bytes.get()), (4, 3, 100));
    assert_eq!(hello.role(), Some(Role::Primary));
    let full = errno(Errno::NOSPC);
    assert_eq!(worker.keep(&[put(1, b"1", &[fd]), put(2, b"2", &[]), put(3, b"3", &[])]), 0);
    // Slots: the second message of a batch refuses the whole batch, and the third is ignored.
    worker.change(&[delete(1)], true);
    worker.change(&[put(4, b"", &[]), put(5, b"", &[])], true);
    worker.change(&[put(6, b"", &[])], false);
    assert_eq!(worker.answer(worker.sequence), full);
    // Descriptors.
    assert_eq!(worker.keep(&[put(2, b"2", &[fd, fd, fd])]), full);
    assert_eq!(worker.keep(&[put(2, b"2", &[fd, fd])]), 0);
    assert_eq!(worker.keep(&[put(3, b"3", &[fd])]), full);
    // Bytes: a batch needs room beside what it replaces.
    assert_eq!(worker.keep(&[put(3, &[3; 97], &[])]), 0);
    assert_eq!(worker.keep(&[put(3, &[4; 97], &[])]), full);
    assert_eq!(worker.keep(&[delete(3), put(4, b"", &[])]), 0);
    assert_eq!(worker.keep(&[put(3, &[3; 90], &[])]), 0);
    // At the limit, deleting, replacing and rewriting still work; new slots do not.
    assert_eq!(worker.keep(&[put(9, b"", &[])]), full);
    let deletes: Vec<_> = (100..300).map(delete).collect();
    assert_eq!(worker.keep(&deletes), 0);
    assert_eq!(worker.keep(&[rewrite(4, b"r"), put(4, b"s", &[])]), 0);
    assert_eq!(worker.keep(&[rewrite(9, b"")]), full);
    assert_eq!(worker.keep(&[delete(4)]), 0);
    assert_eq!(worker.keep(&[rewrite(9, b"9")]), 0);
    let kept = worker.load();
    let shape: Vec<_> = kept.iter().map(|(key, (r, fds))| (*key, r.len(), fds.len())).collect();
    assert_eq!(shape, [(1, 1, 1), (2, 1, 2), (3, 90, 0), (9, 1, 0)]);
    assert!(worker.alive());
}

#[test]
fn an_endless_batch_is_refused_and_dropped() {
    let rig = Rig::with(Conditions { limits: [10, 10, 1000], ..Conditions::default() });
    let (mut worker, _) = rig.ready_worker();
    let deletes: Vec<_> = (1..1000).map(delete).collect();
    for _ in 0..40 {
        worker.change(&deletes, true);
    }
    worker.change(&deletes, false);
    assert_eq!(worker.answer(worker.sequence), errno(Errno::NOSPC));
    assert_eq!(worker.keep(&[put(1, b"", &[])]), 0);
}

#[test]
fn a_worker_that_floods_and_does_not_read_is_not_read_from() {
    let rig = Rig::new();
    let (mut worker, _) = rig.ready_worker();
    // Every one of these is answered with an error, so answers cannot be summed up.
    let mut sent = 0_u64;
    loop {
        let header = worker.header(999);
        match worker.try_send(header.as_bytes(), &[]) {
            Ok(_) => sent += 1,
            Err(Errno::AGAIN) => {
                worker.sequence -= 1;
                // Full now; it stays full only if the keeper does not read.
                let mut fds = [PollFd::new(&worker.socket, PollFlags::OUT)];
                let pause = Timespec { tv_sec: 0, tv_nsec: 200_000_000 };
                if poll(&mut fds, Some(&pause)).unwrap() == 0 {
                    break;
                }
            }
            Err(error) => panic!("{error}"),
        }
        assert!(sent < 1_000_000, "the keeper takes without end");
    }
    for _ in 0..sent {
        assert_eq!(worker.expect(op::ACK).argument, errno(Errno::OPNOTSUPP));
    }
    assert_eq!(worker.keep(&[put(1, b"", &[])]), 0);
}

#[test]
fn a_worker_that_stops_reading_its_slots_harms_nobody() {
    let mut rig = Rig::new();
    let (reader, writer) = pipe();
    let (mut worker, _) = rig.ready_worker();
    for part in 0..20_u64 {
        let changes: Vec<_> =
            (1..=200).map(|key| put(part * 1000 + key, &[7; 100], &[writer.as_fd()])).collect();
        assert_eq!(worker.keep(&changes), 0);
    }
    worker.say(op::LOAD, &[]);
    rig::wait(&worker.socket, PollFlags::IN, "the first slots");
    // It changes things while its own slots are under way, never reading an answer.
    worker.change(&[delete(1), put(19_200, b"changed", &[]), put(u64::MAX, b"last", &[])], false);
    worker.kill();
    let (worker, kept) = rig.ready_worker();
    assert!((4000..=4001).contains(&kept.len()), "{}", kept.len());
    assert!(connected(&kept[&5003].1[0], &reader));
    // It cannot keep the keeper from stopping either.
    let mut worker = worker;
    worker.say(op::LOAD, &[]);
    rig.signal(Signal::TERM);
    rig.logged("stopping");
    worker.exit(0);
    assert_eq!(rig.ended(), Some(0));
}

#[test]
fn slots_changed_while_they_are_streamed_come_as_they_are_then() {
    let rig = Rig::with(Conditions { limits: [20_000, 100, 10_000_000], ..Conditions::default() });
    let (mut worker, _) = rig.ready_worker();
    for part in 0..10_u64 {
        let changes: Vec<_> = (1..=500).map(|key| put(part * 1000 + key, &[7; 200], &[])).collect();
        assert_eq!(worker.keep(&changes), 0);
    }
    worker.say(op::LOAD, &[]);
    worker.change(&[delete(9_500), put(u64::MAX, b"last", &[])], false);
    let (mut kept, mut acked) = (Model::new(), false);
    loop {
        let said = worker.hear();
        match said.op {
            op::ACK => acked |= said.sequence == worker.sequence,
            op::SLOTS => kept.extend(said.slots.into_iter().map(|(key, _, r, _)| (key, r))),
            op::END => break,
            _ => panic!("{said:?}"),
        }
    }
    if !acked {
        assert_eq!(worker.answer(worker.sequence), 0);
    }
    let now = records(&worker.load());
    assert_eq!(now.len(), 5000);
    assert_eq!(now[&u64::MAX], b"last");
    kept.insert(u64::MAX, b"last".to_vec());
    kept.remove(&9_500);
    assert_eq!(kept, now);
}

#[test]
fn descriptors_for_which_the_keeper_has_no_room_are_refused_and_closed() {
    let rig = Rig::new();
    let (reader, writer) = pipe();
    let (mut worker, _) = rig.ready_worker();
    let all = vec![writer.as_fd(); MAX_FDS];
    assert_eq!(worker.keep(&[put(1, b"", &all[..1])]), 0);
    let limit = |current| Rlimit { current: Some(current), maximum: Some(20_000) };
    let before = prlimit(Some(rig.pid()), Resource::Nofile, limit(40)).unwrap();
    assert_eq!(worker.keep(&[put(2, b"", &all)]), errno(Errno::MFILE));
    // Also in the middle of a batch.
    worker.change(&[delete(1)], true);
    worker.change(&[put(2, b"", &all)], true);
    worker.change(&[put(3, b"", &[])], false);
    assert_eq!(worker.answer(worker.sequence), errno(Errno::MFILE));
    prlimit(Some(rig.pid()), Resource::Nofile, before).unwrap();
    assert_eq!(records(&worker.load()).keys().copied().collect::<Vec<_>>(), [1]);
    assert_eq!(worker.keep(&[put(2, b"", &all)]), 0);
    assert_eq!(worker.keep(&[delete(1), delete(2)]), 0);
    drop(all);
    drop(writer);
    rig::wait(&reader, PollFlags::IN, "the end of the pipe");
    assert_eq!(rustix::io::read(&reader, &mut [0; 1]).unwrap(), 0);
}

#[test]
fn sigterm_stops_the_worker_and_then_the_keeper() {
    let mut rig = Rig::new();
    let (worker, _) = rig.ready_worker();
    rig.signal(Signal::TERM);
    worker.expect(op::STOP);
    assert!(worker.alive());
    worker.exit(0);
    assert_eq!(rig.ended(), Some(0));
}

#[test]
fn a_worker_that_does_not_stop_is_killed() {
    let conditions =
        Conditions { timing: [30_000, 0, 1, 5, 5, 30_000, 50], ..Conditions::default() };
    let mut rig = Rig::with(conditions);
    let (worker, _) = rig.ready_worker();
    rig.signal(Signal::INT);
    worker.ended();
    assert_eq!(rig.ended(), Some(0));
    assert!(rig.log().contains("did not stop in time"));
}

#[test]
fn a_connection_waits_while_the_worker_is_restarted() {
    let rig = Rig::new();
    let worker = rig.worker();
    let said = worker.expect(op::HELLO);
    let listening = UnixListener::from(said.fds.into_iter().next().unwrap());
    let mut client = UnixStream::connect(rig.directory.path().join("socket")).unwrap();
    drop(listening);
    worker.kill();
    let worker = rig.worker();
    let said = worker.expect(op::HELLO);
    let listening = UnixListener::from(said.fds.into_iter().next().unwrap());
    rig::wait(&listening, PollFlags::IN, "the client");
    let (mut connection, _) = listening.accept().unwrap();
    connection.write_all(b"served").unwrap();
    let mut answer = [0; 6];
    client.set_read_timeout(Some(DEADLINE)).unwrap();
    client.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"served");
}
