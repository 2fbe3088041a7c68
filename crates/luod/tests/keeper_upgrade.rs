//! Upgrades of the worker and of the keeper, successful and failing at every step.

mod rig;

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;

use luo_abi::keeper::{entry_flag, flag, op};
use rig::{Change, Conditions, Rig, Said, Worker, connected, pipe, put, records};
use rustix::io::Errno;
use rustix::process::Signal;

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

const LONG: u64 = 30_000;

fn errno(errno: Errno) -> u64 {
    errno.raw_os_error() as u64
}

fn delete<'a>(key: u64) -> Change<'a> {
    Change { key, flags: entry_flag::DELETE, record: b"", fds: Vec::new() }
}

fn rewrite(key: u64, record: &[u8]) -> Change<'_> {
    Change { key, flags: entry_flag::KEEP_FDS, record, fds: Vec::new() }
}

/// Steps of 700 ms, everything else as usual.
fn hasty() -> Conditions {
    Conditions { timing: [30_000, 0, 1, 5, 5, 700, 30_000], ..Conditions::default() }
}

/// Key, record and number of descriptors of each slot that changed.
type Changed = Vec<(u64, Vec<u8>, usize)>;

/// The slots up to GO, and those that are gone.
fn delta(candidate: &Worker) -> (Changed, Vec<u64>) {
    let (mut changed, mut gone) = (Vec::new(), Vec::new());
    loop {
        let said = candidate.hear();
        match said.op {
            op::ACK => assert_eq!(said.argument, 0),
            op::SLOTS => {
                for (key, flags, record, fds) in said.slots {
                    match flags {
                        entry_flag::DELETE => gone.push(key),
                        _ => changed.push((key, record, fds.len())),
                    }
                }
            }
            op::GO => return (changed, gone),
            _ => panic!("{said:?}"),
        }
    }
}

/// An old worker with slots 1, 2 and 3 that has asked for an upgrade, and the candidate.
fn begun(rig: &Rig, name: &str, what: u32, deadline: u64) -> (Worker, Worker) {
    let (mut old, kept) = rig.ready_worker();
    if kept.is_empty() {
        let writer = pipe().1;
        let fds = [writer.as_fd()];
        assert_eq!(old.keep(&[put(1, b"1", &fds), put(2, b"2", &fds), put(3, b"3", &fds)]), 0);
    }
    let (_, program) = rig.program(name);
    assert_eq!(old.upgrade(&program, what, deadline), 0);
    let candidate = rig.worker();
    assert_eq!(candidate.name(), name);
    (old, candidate)
}

/// Leads an upgrade to its end; the old worker changes nothing.
fn completed(old: Worker, mut candidate: Worker) -> Worker {
    candidate.attach();
    candidate.load();
    assert_eq!(candidate.ask(op::READY), 0);
    let mut old = old;
    old.expect(op::QUIESCE);
    assert_eq!(old.ask(op::QUIESCED), 0);
    delta(&candidate);
    assert_eq!(candidate.ask(op::READY), 0);
    old.expect(op::RETIRE);
    old.exit(0);
    candidate
}

/// Asserts that the old worker serves on as if nothing had happened, and gives what it was told.
fn serves_on(rig: &Rig, old: &mut Worker) -> Said {
    let said = loop {
        let said = old.hear();
        if said.op == op::RESUME {
            break said;
        }
        assert!(matches!(said.op, op::QUIESCE | op::ACK), "{said:?}");
    };
    assert_eq!(old.keep(&[put(50, b"afterwards", &[])]), 0);
    assert_eq!(old.keep(&[delete(50)]), 0);
    let keys: Vec<u64> = old.load().into_keys().collect();
    assert_eq!(keys, [1, 2, 3]);
    assert!(rig.no_worker());
    said
}

#[test]
fn a_candidate_takes_over_with_every_change_made_meanwhile() {
    let rig = Rig::new();
    let (mut old, mut candidate) = begun(&rig, "next", flag::WORKER, LONG);
    let hello = candidate.attach();
    assert_eq!(hello.role().unwrap(), luo_abi::keeper::Role::Candidate);
    assert_eq!(old.keep(&[put(4, b"before it loads", &[])]), 0);
    let mut state = records(&candidate.load());
    assert_eq!(state.len(), 4);
    // The old worker serves, and changes things, until it is asked to come to rest.
    let (reader, writer) = pipe();
    assert_eq!(old.keep(&[put(1, b"replaced", &[writer.as_fd()]), delete(2)]), 0);
    assert_eq!(old.keep(&[rewrite(3, b"rewritten"), put(5, b"new", &[]), put(6, b"", &[])]), 0);
    // The candidate cannot change anything yet.
    assert_eq!(candidate.keep(&[put(1, b"mine", &[])]), errno(Errno::BUSY));
    assert_eq!(candidate.ask(op::READY), 0);
    old.expect(op::QUIESCE);
    assert_eq!(old.keep(&[delete(6), put(7, b"at the last moment", &[])]), 0);
    assert_eq!(old.ask(op::QUIESCED), 0);
    assert_eq!(old.keep(&[put(1, b"too late", &[])]), errno(Errno::BUSY));
    let (changed, gone) = delta(&candidate);
    assert_eq!(gone, [2, 6]);
    let shape: Vec<_> = changed.iter().map(|(key, _, fds)| (*key, *fds)).collect();
    assert_eq!(shape, [(1, 1), (3, 1), (5, 0), (7, 0)]);
    state.extend(changed.into_iter().map(|(key, record, _)| (key, record)));
    state.retain(|key, _| !gone.contains(key));
    assert_eq!(candidate.ask(op::READY), 0);
    let said = candidate.expect(op::UPGRADED);
    assert_eq!((said.flags, said.text()), (flag::WORKER, ""));
    old.expect(op::RETIRE);
    old.exit(0);
    assert_eq!(candidate.keep(&[put(8, b"by the new one", &[])]), 0);
    state.insert(8, b"by the new one".to_vec());
    assert_eq!(records(&candidate.load()), state);
    // If it dies, its own program is started, not the old one.
    candidate.kill();
    let (next, kept) = rig.ready_worker();
    assert_eq!(next.name(), "next");
    assert_eq!(records(&kept), state);
    assert!(connected(&kept[&1].1[0], &reader));
}

#[test]
fn workers_are_upgraded_back_and_forth() {
    let rig = Rig::new();
    let (mut old, mut candidate) = begun(&rig, "version-2", flag::WORKER, LONG);
    for name in ["version-1", "version-2", "version-1"] {
        let now = completed(old, candidate);
        now.expect(op::UPGRADED);
        old = now;
        // The one before is gone when its exit was seen; until then another upgrade is refused.
        let (_, program) = rig.program(name);
        while old.upgrade(&program, flag::WORKER, LONG) != 0 {
            std::thread::yield_now();
        }
        candidate = rig.worker();
        assert_eq!(candidate.name(), name);
    }
    let mut now = completed(old, candidate);
    now.expect(op::UPGRADED);
    assert_eq!(now.load().into_keys().collect::<Vec<_>>(), [1, 2, 3]);
}

#[test]
fn a_candidate_that_ends_at_any_step_leaves_the_old_worker_serving() {
    for steps in 0..5 {
        let rig = Rig::new();
        let (mut old, mut candidate) = begun(&rig, "next", flag::WORKER, LONG);
        if steps > 0 {
            candidate.attach();
        }
        if steps > 1 {
            candidate.load();
        }
        if steps > 2 {
            assert_eq!(candidate.ask(op::READY), 0);
            old.expect(op::QUIESCE);
        }
        if steps > 3 {
            assert_eq!(old.ask(op::QUIESCED), 0);
            delta(&candidate);
        }
        candidate.exit(3);
        let said = serves_on(&rig, &mut old);
        assert!(said.text().contains("exited with status 3"), "{}", said.text());
        // It may try again.
        let (_, program) = rig.program("another");
        assert_eq!(old.upgrade(&program, flag::WORKER, LONG), 0);
        completed(old, rig.worker());
    }
}

#[test]
fn a_candidate_that_hangs_past_a_deadline_is_killed() {
    // Before READY: the upgrade's own deadline. After GO: the step's.
    let rig = Rig::new();
    let (mut old, candidate) = begun(&rig, "next", flag::WORKER, 1000);
    candidate.ended();
    assert!(serves_on(&rig, &mut old).text().contains("did not restore everything in time"));

    let rig = Rig::with(hasty());
    let (mut old, mut candidate) = begun(&rig, "next", flag::WORKER, LONG);
    candidate.attach();
    candidate.load();
    assert_eq!(candidate.ask(op::READY), 0);
    old.expect(op::QUIESCE);
    assert_eq!(old.ask(op::QUIESCED), 0);
    candidate.ended();
    assert!(serves_on(&rig, &mut old).text().contains("did not take over in time"));
}

#[test]
fn a_candidate_that_refuses_says_why() {
    let rig = Rig::new();
    let (mut old, mut candidate) = begun(&rig, "next", flag::WORKER, LONG);
    candidate.attach();
    candidate.load();
    candidate.say(op::REFUSE, "session s, token 3: no handler for tcp-v9".as_bytes());
    candidate.ended();
    let said = serves_on(&rig, &mut old);
    assert_eq!(
        said.text(),
        "the new worker cannot take over: session s, token 3: no handler for tcp-v9"
    );
}

#[test]
fn a_candidate_that_sends_garbage_or_is_ready_without_loading_does_not_take_over() {
    let rig = Rig::new();
    let (mut old, mut candidate) = begun(&rig, "next", flag::WORKER, LONG);
    candidate.attach();
    assert_eq!(candidate.ask(op::READY), errno(Errno::INVAL));
    assert_eq!(candidate.ask(op::UPGRADE), errno(Errno::OPNOTSUPP));
    assert_eq!(candidate.ask(op::QUIESCED), errno(Errno::OPNOTSUPP));
    candidate.send(b"garbage", &[]);
    candidate.ended();
    assert!(serves_on(&rig, &mut old).text().contains("shorter than its header"));
}

#[test]
fn a_program_that_cannot_be_started_or_ends_at_once_is_reported() {
    let rig = Rig::new();
    let (mut old, _) = rig.ready_worker();
    let fds = [pipe().1];
    let fds = [fds[0].as_fd()];
    assert_eq!(old.keep(&[put(1, b"", &fds), put(2, b"", &fds), put(3, b"", &fds)]), 0);
    let text: OwnedFd = std::fs::File::open("/dev/null").unwrap().into();
    assert_eq!(old.upgrade(&text, flag::WORKER, LONG), 0);
    assert!(serves_on(&rig, &mut old).text().contains("cannot be started"));
    let (_, program) = rig.program("stillborn");
    assert_eq!(old.upgrade(&program, flag::WORKER, LONG), 0);
    assert!(serves_on(&rig, &mut old).text().contains("exited with status 7"));
}

#[test]
fn upgrades_that_make_no_sense_are_refused() {
    let rig = Rig::new();
    let mut worker = rig.worker();
    worker.attach();
    let (_, program) = rig.program("next");
    assert_eq!(worker.upgrade(&program, flag::WORKER, LONG), errno(Errno::BUSY), "not ready");
    assert_eq!(worker.ask(op::READY), 0);
    assert_eq!(worker.upgrade(&program, 0, LONG), errno(Errno::INVAL));
    assert_eq!(worker.upgrade(&program, 4, LONG), errno(Errno::INVAL));
    assert_eq!(worker.upgrade(&program, flag::WORKER, 0), errno(Errno::INVAL));
    assert_eq!(worker.upgrade(&program, flag::WORKER, u64::MAX), errno(Errno::INVAL));
    let header = worker.header(op::UPGRADE).flags(flag::WORKER).argument(LONG);
    worker.send(zerocopy::IntoBytes::as_bytes(&header), &[]);
    assert_eq!(worker.answer(worker.sequence), errno(Errno::BADF));
    assert_eq!(worker.upgrade(&program, flag::WORKER, LONG), 0);
    assert_eq!(worker.upgrade(&program, flag::WORKER, LONG), errno(Errno::BUSY));
    assert_eq!(worker.upgrade(&program, flag::KEEPER, LONG), errno(Errno::BUSY));
    let _candidate = rig.worker();
    assert!(rig.no_worker());
}

#[test]
fn an_old_worker_that_does_not_come_to_rest_keeps_its_place() {
    let rig = Rig::with(hasty());
    let (mut old, mut candidate) = begun(&rig, "next", flag::WORKER, LONG);
    candidate.attach();
    candidate.load();
    assert_eq!(candidate.ask(op::READY), 0);
    candidate.ended();
    assert!(serves_on(&rig, &mut old).text().contains("did not come to rest"));
}

#[test]
fn an_old_worker_that_does_not_exit_is_killed() {
    let rig = Rig::with(hasty());
    let (mut old, mut candidate) = begun(&rig, "next", flag::WORKER, LONG);
    candidate.attach();
    candidate.load();
    assert_eq!(candidate.ask(op::READY), 0);
    old.expect(op::QUIESCE);
    assert_eq!(old.ask(op::QUIESCED), 0);
    delta(&candidate);
    assert_eq!(candidate.ask(op::READY), 0);
    old.expect(op::RETIRE);
    old.ended();
    candidate.expect(op::UPGRADED);
    assert_eq!(candidate.load().len(), 3);
}

#[test]
fn if_the_old_worker_dies_the_candidate_takes_over_at_any_step() {
    for steps in 0..4 {
        let rig = Rig::new();
        let (mut old, mut candidate) = begun(&rig, "next", flag::WORKER, LONG);
        let mut dying = None;
        let die = |old: Worker| {
            let pid = old.pid;
            rustix::process::kill_process(pid, Signal::KILL).unwrap();
            old.ended();
        };
        // What it changed before it died is there; a batch that it left half sent is not.
        if steps == 0 {
            assert_eq!(old.keep(&[put(4, b"acknowledged", &[])]), 0);
            old.change(&[delete(1)], true);
            die(old);
        } else {
            dying = Some(old);
        }
        candidate.attach();
        candidate.load();
        if let Some(mut old) = dying.take() {
            if steps == 1 {
                assert_eq!(old.keep(&[put(4, b"acknowledged", &[])]), 0);
                die(old);
                assert_eq!(candidate.ask(op::READY), 0);
            } else {
                assert_eq!(candidate.ask(op::READY), 0);
                old.expect(op::QUIESCE);
                assert_eq!(old.keep(&[put(4, b"acknowledged", &[])]), 0);
                if steps == 3 {
                    assert_eq!(old.ask(op::QUIESCED), 0);
                }
                die(old);
            }
        } else {
            assert_eq!(candidate.ask(op::READY), 0);
        }
        let (changed, _) = delta(&candidate);
        assert_eq!(changed.is_empty(), steps == 0, "step {steps}");
        assert_eq!(candidate.ask(op::READY), 0);
        assert_eq!(candidate.expect(op::UPGRADED).flags, flag::WORKER);
        let keys: Vec<u64> = candidate.load().into_keys().collect();
        assert_eq!(keys, [1, 2, 3, 4], "step {steps}");
        assert!(rig.no_worker());
    }
}

#[test]
fn if_both_die_the_old_program_is_started_again() {
    let rig = Rig::new();
    let (old, mut candidate) = begun(&rig, "next", flag::WORKER, LONG);
    candidate.attach();
    candidate.load();
    old.kill();
    candidate.say(op::REFUSE, b"it is too much");
    let (again, kept) = rig.ready_worker();
    assert_ne!(again.name(), "next");
    assert_eq!(kept.len(), 3);
}

#[test]
fn sigterm_during_an_upgrade_stops_both() {
    let mut rig = Rig::new();
    let (old, candidate) = begun(&rig, "next", flag::WORKER, LONG);
    rig.signal(Signal::TERM);
    candidate.ended();
    old.expect(op::RESUME);
    old.expect(op::STOP);
    old.exit(0);
    assert_eq!(rig.ended(), Some(0));
}

/// What the descriptors of a process lead to.
fn descriptors(pid: rustix::process::Pid) -> Vec<std::path::PathBuf> {
    let fds = std::fs::read_dir(format!("/proc/{}/fd", pid.as_raw_nonzero())).unwrap();
    fds.filter_map(|fd| std::fs::read_link(fd.unwrap().path()).ok()).collect()
}

/// What has to work after the keeper has become another program.
fn works_after_exec(rig: &Rig, worker: &mut Worker, reader: &OwnedFd, name: &str) {
    let exe = std::fs::read_link(format!("/proc/{}/exe", rig.pid().as_raw_nonzero())).unwrap();
    assert_eq!(exe.file_name().unwrap(), name);
    // The same worker goes on, on the same socket.
    let kept = worker.load();
    assert!(connected(&kept[&10].1[0], reader));
    assert_eq!(kept[&11].1.len(), 2);
    assert_eq!(worker.keep(&[put(12, b"after", &[]), delete(12)]), 0);
}

fn with_pipe(worker: &mut Worker) -> OwnedFd {
    let (reader, writer) = pipe();
    let fd = writer.as_fd();
    assert_eq!(worker.keep(&[put(10, b"pipe", &[fd]), put(11, &[7; 5000], &[fd, fd])]), 0);
    reader
}

#[test]
fn the_keeper_becomes_another_program_in_place_and_back_again() {
    let mut rig = Rig::new();
    let (mut worker, _) = rig.ready_worker();
    let reader = with_pipe(&mut worker);
    for name in ["version-2", "version-1", "version-2"] {
        let (_, program) = rig.program(name);
        assert_eq!(worker.upgrade(&program, flag::KEEPER, LONG), 0);
        let said = worker.expect(op::UPGRADED);
        assert_eq!((said.flags, said.text()), (flag::KEEPER, ""));
        works_after_exec(&rig, &mut worker, &reader, name);
    }
    // The worker is still the keeper's child, and its program is the one it was.
    let name = worker.name().to_owned();
    worker.kill();
    let mut worker = rig.worker();
    assert_eq!(worker.name(), name);
    // The listening socket came along.
    let said = worker.expect(op::HELLO);
    let listening = UnixListener::from(said.fds.into_iter().next().unwrap());
    assert!(listening.local_addr().unwrap().as_pathname().is_some());
    let attach =
        luo_abi::keeper::Attach { wire_min: 1.into(), wire_max: 1.into(), reserved: 0.into() };
    let header = luo_abi::keeper::Header::new(0, op::ATTACH, 1);
    use zerocopy::IntoBytes;
    worker.send(&[header.as_bytes(), attach.as_bytes()].concat(), &[]);
    worker.sequence = 1;
    assert_eq!(worker.answer(1), 0);
    let kept = worker.load();
    assert!(connected(&kept[&10].1[0], &reader));
    // So did the signals, and closing works: no copy of a descriptor was left behind.
    drop(kept);
    assert_eq!(worker.keep(&[delete(10), delete(11)]), 0);
    rig::wait(&reader, rustix::event::PollFlags::IN, "the end of the pipe");
    assert_eq!(rustix::io::read(&reader, &mut [0; 1]).unwrap(), 0);
    rig.signal(Signal::TERM);
    worker.expect(op::STOP);
    worker.exit(0);
    assert_eq!(rig.ended(), Some(0));
}

#[test]
fn worker_and_keeper_are_upgraded_one_after_the_other() {
    let rig = Rig::new();
    let (mut old, _) = rig.ready_worker();
    let reader = with_pipe(&mut old);
    let (_, program) = rig.program("version-2");
    assert_eq!(old.upgrade(&program, flag::WORKER | flag::KEEPER, LONG), 0);
    let mut worker = completed(old, rig.worker());
    let said = worker.expect(op::UPGRADED);
    assert_eq!((said.flags, said.text()), (flag::WORKER | flag::KEEPER, ""));
    works_after_exec(&rig, &mut worker, &reader, "version-2");
    worker.kill();
    let (worker, kept) = rig.ready_worker();
    assert_eq!(worker.name(), "version-2");
    assert!(connected(&kept[&10].1[0], &reader));
}

#[test]
fn a_keeper_that_cannot_take_over_is_not_executed() {
    for (name, deadline, why) in [
        ("incompatible", LONG, "cannot read layout 1"),
        ("hanging", 50, "did not check the state in time"),
        ("unexecutable", LONG, "cannot be executed"),
        ("text", LONG, "cannot be checked"),
    ] {
        let rig = Rig::new();
        let (mut worker, _) = rig.ready_worker();
        let reader = with_pipe(&mut worker);
        let (path, mut program) = rig.program(name);
        if name == "text" {
            std::fs::write(&path, "no program").unwrap();
            program = std::fs::File::open(&path).unwrap().into();
        }
        let before =
            std::fs::read_link(format!("/proc/{}/exe", rig.pid().as_raw_nonzero())).unwrap();
        assert_eq!(worker.upgrade(&program, flag::KEEPER, deadline), 0);
        let said = worker.expect(op::UPGRADED);
        assert_eq!(said.flags, 0);
        assert!(said.text().contains(why), "{}", said.text());
        works_after_exec(&rig, &mut worker, &reader, before.file_name().unwrap().to_str().unwrap());
        // Nothing is left open for a program to be executed later.
        let (_, program) = rig.program("next");
        assert_eq!(worker.upgrade(&program, flag::WORKER, LONG), 0);
        let candidate = rig.worker();
        let targets = descriptors(candidate.pid);
        let pipe = std::fs::read_link(format!("/proc/self/fd/{}", reader.as_raw_fd())).unwrap();
        assert!(!targets.contains(&pipe), "{name}: {targets:?}");
        assert!(!targets.iter().any(|target| target.to_string_lossy().contains("luod-state")));
    }
}

#[test]
fn the_keeper_may_be_asked_for_while_the_worker_before_is_still_ending() {
    let rig = Rig::new();
    let (mut old, mut worker) = begun(&rig, "version-2", flag::WORKER, LONG);
    worker.attach();
    worker.load();
    assert_eq!(worker.ask(op::READY), 0);
    old.expect(op::QUIESCE);
    assert_eq!(old.ask(op::QUIESCED), 0);
    delta(&worker);
    assert_eq!(worker.ask(op::READY), 0);
    old.expect(op::RETIRE);
    worker.expect(op::UPGRADED);
    let (_, program) = rig.program("version-2");
    assert_eq!(worker.upgrade(&program, flag::WORKER, LONG), errno(Errno::BUSY));
    assert_eq!(worker.upgrade(&program, flag::KEEPER, LONG), 0);
    assert!(!rig.log().contains("executing"));
    old.exit(0);
    let said = worker.expect(op::UPGRADED);
    assert_eq!((said.flags, said.text()), (flag::KEEPER, ""));
    assert_eq!(worker.load().len(), 3);
}

#[test]
fn a_failed_upgrade_of_the_keeper_leaves_the_new_worker() {
    let rig = Rig::new();
    let (old, candidate) = begun(&rig, "incompatible", flag::WORKER | flag::KEEPER, LONG);
    let mut worker = completed(old, candidate);
    let said = worker.expect(op::UPGRADED);
    assert_eq!(said.flags, flag::WORKER);
    assert!(said.text().contains("cannot read layout 1"), "{}", said.text());
    assert_eq!(worker.load().len(), 3);
}

#[test]
fn the_keeper_waits_for_the_end_of_a_batch_before_it_becomes_another() {
    let rig = Rig::new();
    let (mut worker, _) = rig.ready_worker();
    let reader = with_pipe(&mut worker);
    worker.change(&[put(1, b"first half", &[])], true);
    let (_, program) = rig.program("version-2");
    assert_eq!(worker.upgrade(&program, flag::KEEPER, LONG), 0);
    let checked = || rig.log().contains("executing");
    worker.change(&[put(2, b"second half", &[])], true);
    assert_eq!(worker.answer(worker.sequence), 0);
    assert!(!checked());
    worker.change(&[put(3, b"end", &[])], false);
    let mut acknowledged = false;
    loop {
        let said = worker.hear();
        match said.op {
            op::ACK => acknowledged = said.argument == 0,
            op::UPGRADED => break,
            _ => panic!("{said:?}"),
        }
    }
    assert!(acknowledged && checked());
    assert_eq!(worker.load().len(), 5);
    works_after_exec(&rig, &mut worker, &reader, "version-2");
}

#[test]
fn a_keeper_that_never_comes_to_the_end_of_a_batch_is_not_upgraded() {
    let rig = Rig::new();
    let (mut worker, _) = rig.ready_worker();
    worker.change(&[put(1, b"first half", &[])], true);
    let (_, program) = rig.program("version-2");
    assert_eq!(worker.upgrade(&program, flag::KEEPER, 300), 0);
    let said = worker.expect(op::UPGRADED);
    assert_eq!(said.flags, 0);
    assert!(said.text().contains("in time"), "{}", said.text());
    assert_eq!(worker.keep(&[]), 0);
    assert_eq!(worker.load().len(), 1);
}
