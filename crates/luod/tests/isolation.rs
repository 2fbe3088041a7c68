//! Two users that try to reach each other's sessions.
//!
//! As root: the users are processes of this test binary with another uid, told by a variable what
//! to do. Without root there is one user only, and the test says that it was skipped.

mod common;

use std::fs::Permissions;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use common::{Luod, PATIENCE, assert_connected, errno, pipe};
use luo::{Manager, Options, Participant, ParticipantOptions, Session, Unclaimed, Watch};
use luo_carriers::arena;

/// What a process of another user is to do; see [`a_process_of_another_user`].
const STEP: &str = "LUO_ISOLATION_STEP";
const SOCKET: &str = "LUO_ISOLATION_SOCKET";
const ALICE: u32 = 61_001;
const MALLORY: u32 = 61_002;

/// luod, and a copy of this test that anybody may run.
struct Machine {
    luod: Luod,
    program: PathBuf,
    _directory: tempfile::TempDir,
}

impl Machine {
    /// `None`, said loudly, where there is only one user.
    fn start(config: &str) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            println!("SKIPPED: two users need root");
            return None;
        }
        let luod = Luod::start_with(config);
        let open = Permissions::from_mode(0o755);
        std::fs::set_permissions(luod.directory.path(), open.clone()).unwrap();
        // Where the build is, others may not look.
        let directory = tempfile::tempdir().unwrap();
        std::fs::set_permissions(directory.path(), open).unwrap();
        let program = directory.path().join("user");
        std::fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
        Some(Self { luod, program, _directory: directory })
    }

    fn begin(&self, uid: u32, step: &str, stdin: impl Into<Stdio>) -> Child {
        let mut command = Command::new(&self.program);
        command
            .args(["--exact", "a_process_of_another_user", "--nocapture"])
            .env(STEP, step)
            .env(SOCKET, self.luod.socket())
            .env("RUST_BACKTRACE", "0")
            .uid(uid)
            .gid(uid)
            .current_dir("/")
            .stdin(stdin)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        loop {
            match command.spawn() {
                // A process that another test has begun still has the copy open for writing.
                Err(error) if error.kind() == std::io::ErrorKind::ExecutableFileBusy => {
                    std::thread::yield_now();
                }
                child => return child.expect("another user's process"),
            }
        }
    }

    /// Has another user do something, and sees that it found what it must.
    fn run(&self, uid: u32, step: &str) {
        assert_good(self.begin(uid, step, Stdio::null()), step);
    }
}

fn assert_good(child: Child, step: &str) {
    let output = child.wait_with_output().unwrap();
    assert!(
        output.status.success(),
        "{step}:\n{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("1 passed"), "{step} did not run:\n{said}");
}

fn options() -> Options {
    let socket = std::env::var_os(SOCKET).expect("the socket");
    Options::new().socket(PathBuf::from(socket)).deadline(PATIENCE)
}

fn refused<T: std::fmt::Debug>(wanted: &str, what: &str, result: Result<T, luo::Error>) -> String {
    match result {
        Err(error) if error.errno() == Some(wanted) => error.to_string(),
        other => panic!("{what}: not {wanted} but {other:?}"),
    }
}

/// Not a test by itself: what the other users' processes do.
#[test]
fn a_process_of_another_user() {
    let Ok(step) = std::env::var(STEP) else { return };
    match step.as_str() {
        "keep" => keep(),
        "reach" => reach(),
        "watch" => watch(),
        "watch one's own" => watch_own(),
        "use what was passed" => use_passed(),
        "allocate" => allocate(),
        "reach the arena" => reach_arena(),
        "too many sessions" => too_many_sessions(),
        "too many files" => too_many_files(),
        "too many bytes" => too_many_bytes(),
        "too many connections" => too_many_connections(),
        "take back" => take_back(),
        "veto" => veto(),
        "take the place" => take_the_place(),
        other => panic!("{other}"),
    }
}

/// A watch whose subscription stands: it does when its first event comes.
fn standing_watch(manager: &Manager) -> Watch {
    let mut watch = manager.watch().unwrap();
    for number in 0.. {
        drop(Session::create_with(&format!("mine-{number}"), options()).unwrap());
        if watch.next_event(Some(Duration::from_millis(20))).unwrap().is_some() {
            break;
        }
    }
    watch
}

/// The end of a session is told to whose it was, however it ended.
fn watch_own() {
    let manager = Manager::connect(options()).unwrap();
    let mut watch = standing_watch(&manager);
    drop(Session::create_with("by-name", options()).unwrap());
    manager.release("by-name").unwrap();
    Session::create_with("by-itself", options()).unwrap().release().unwrap();
    let mut left = vec!["by-name", "by-itself"];
    while !left.is_empty() {
        let event = watch.next_event(Some(PATIENCE)).unwrap().expect("an event");
        assert!(!event.text.contains("(ended)"), "{event:?}");
        if event.text.contains("released") {
            left.retain(|name| event.session.as_deref() != Some(*name));
        }
    }
}

/// A session with one file, which waits to be claimed.
fn keep() {
    let session = Session::create_with("alice", options()).unwrap();
    let (reader, writer) = pipe();
    rustix::io::write(&writer, b"hers").unwrap();
    session.preserve_many(&[(1, &reader), (2, &writer)]).unwrap();
}

fn take_back() {
    let session = Session::claim_with("alice", options()).unwrap();
    let (reader, writer) = (session.retrieve(1).unwrap(), session.retrieve(2).unwrap());
    let mut buffer = [0; 4];
    rustix::io::read(&reader, &mut buffer).unwrap();
    assert_eq!(&buffer, b"hers");
    assert_connected(&reader, &writer, b"still");
    session.finish_and_carry().unwrap();
}

fn reach() {
    let hasty = options().deadline(Duration::from_secs(5));
    let reason = refused("EPERM", "claim", Session::claim_with("alice", hasty.clone()));
    assert!(reason.contains("alice") && reason.contains(&MALLORY.to_string()), "{reason}");
    refused("EPERM", "open", Session::open_with("alice", hasty.clone()));
    refused("EPERM", "create", Session::create_with("alice", hasty.clone()));
    let manager = Manager::connect(hasty.clone()).unwrap();
    refused("EPERM", "release", manager.release("alice"));
    refused("EPERM", "files", manager.files(Some("alice")));
    assert_eq!(manager.sessions().unwrap(), [], "a session of another user is listed");
    assert_eq!(manager.files(None).unwrap(), [], "a file of another user is listed");
    // What is there and what is not: only names tell.
    refused("ENOENT", "claim", Session::claim_with("nobody", hasty.clone()));
    for (what, result) in [
        ("prepare", manager.prepare()),
        ("freeze", manager.freeze()),
        ("cancel", manager.cancel()),
        ("depart", manager.depart()),
        ("finish", manager.finish(Unclaimed::Release)),
        ("rehearse", manager.rehearse().map(Some)),
    ] {
        let reason = refused("EPERM", what, result);
        assert!(reason.contains(what), "{reason}");
    }
    let program = std::fs::File::open("/proc/self/exe").unwrap();
    let limit = Duration::from_secs(5);
    refused("EPERM", "upgrade", manager.upgrade(Some(program.as_fd()), limit, false));
    refused("EPERM", "upgrade", manager.upgrade(None, limit, true));
    refused("EPERM", "handover", manager.handover());
    let how = |required| ParticipantOptions { options: hasty.clone(), required, deadline: None };
    refused("EPERM", "participate", Participant::join("mallory", how(true)).map(drop));
    drop(Participant::join("mallory", how(false)).unwrap());
    // The own one is one's own, in spite of all this.
    let session = Session::create_with("mallory", hasty).unwrap();
    let (reader, _writer) = pipe();
    session.preserve(1, &reader).unwrap();
    assert_eq!(manager.sessions().unwrap().len(), 1);
    session.release().unwrap();
}

/// Sees what goes on until its own session's end, and nothing of others' sessions.
fn watch() {
    let manager = Manager::connect(options()).unwrap();
    let mut watch = standing_watch(&manager);
    // Root waits for this session.
    let standing = Session::create_with("standing", options()).unwrap();
    // Root has done what it wanted to when it ends it.
    let mut seen = Vec::new();
    loop {
        if let Some(event) = watch.next_event(Some(Duration::from_millis(20))).unwrap() {
            seen.push(event);
        }
        if manager.sessions().unwrap().iter().all(|session| session.name != "standing") {
            break;
        }
    }
    while let Some(event) = watch.next_event(Some(Duration::from_millis(200))).unwrap() {
        seen.push(event);
    }
    drop(standing);
    for event in &seen {
        assert!(!format!("{event:?}").contains("alice"), "{event:?}");
    }
    assert!(seen.iter().any(|event| event.state == "prepared"), "{seen:?}");
}

/// Standard input is the descriptor of alice's session.
fn use_passed() {
    let descriptor = std::io::stdin().as_fd().try_clone_to_owned().unwrap();
    let session = Session::from_descriptor_with(descriptor, options()).unwrap();
    assert_eq!(session.name(), "alice");
    assert_eq!(session.info().unwrap().incoming, [1, 2]);
    let (reader, writer) = (session.retrieve(1).unwrap(), session.retrieve(2).unwrap());
    rustix::io::read(&reader, &mut [0; 4]).unwrap();
    assert_connected(&reader, &writer, b"x");
    let (one, _other) = UnixStream::pair().unwrap();
    session.preserve(3, &one).unwrap();
    session.finish_and_carry().unwrap();
    // It gives that one session, and no other right.
    refused("EPERM", "claim", Session::claim_with("alice", options()));
    let manager = Manager::connect(options()).unwrap();
    assert_eq!(manager.sessions().unwrap(), []);
}

/// The same call gives ordinary memory.
fn allocate() {
    let session = Session::create_with("mallory", options()).unwrap();
    let memory = session.allocate(1, 100_000).unwrap();
    assert!(!memory.is_resident());
    assert_eq!(session.info().unwrap().files, [1]);
    session.release().unwrap();
}

/// Of a session of root's, everything but memory in the arena.
fn reach_arena() {
    let descriptor = std::io::stdin().as_fd().try_clone_to_owned().unwrap();
    let session = Session::from_descriptor_with(descriptor, options()).unwrap();
    assert!(!session.allocate(2, 100_000).unwrap().is_resident());
    assert_eq!(session.info().unwrap().incoming, [1]);
    let reason = refused("EPERM", "retrieve", session.retrieve(1));
    assert!(reason.contains("reaches all of the arena"), "{reason}");
}

fn too_many_sessions() {
    let _held: Vec<_> = (0..3)
        .map(|number| Session::create_with(&format!("s{number}"), options()).unwrap())
        .collect();
    let reason = refused("ENOSPC", "session", Session::create_with("s3", options()));
    assert!(reason.contains('3'), "{reason}");
    // Whether somebody holds them or not.
    drop(_held);
    refused("ENOSPC", "session", Session::create_with("s3", options()));
    let manager = Manager::connect(options()).unwrap();
    for number in 0..3 {
        manager.release(&format!("s{number}")).unwrap();
    }
    Session::create_with("s3", options()).unwrap().release().unwrap();
}

fn too_many_files() {
    let (one, other) = (
        Session::open_with("one", options()).unwrap(),
        Session::open_with("two", options()).unwrap(),
    );
    let files: Vec<(OwnedFd, OwnedFd)> = (0..11).map(|_| pipe()).collect();
    for (token, (reader, _)) in files.iter().enumerate().take(10) {
        let session = if token % 2 == 0 { &one } else { &other };
        session.preserve(token as u64, reader).unwrap();
    }
    let reason = refused("ENOSPC", "file", one.preserve(11, &files[10].0));
    assert!(reason.contains("10"), "{reason}");
    other.unpreserve(1).unwrap();
    one.preserve(11, &files[10].0).unwrap();
    one.release().unwrap();
    other.release().unwrap();
}

fn too_many_bytes() {
    let session = Session::open_with("bytes", options()).unwrap();
    let memory = |bytes: usize| {
        let memory = rustix::fs::memfd_create("luo-test", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        rustix::io::write(&memory, &vec![1; bytes]).unwrap();
        memory
    };
    session.preserve(1, memory(600 << 10)).unwrap();
    let reason = refused("ENOSPC", "bytes", session.preserve(2, memory(600 << 10)));
    assert!(reason.contains("1048576"), "{reason}");
    session.unpreserve(1).unwrap();
    session.preserve(2, memory(600 << 10)).unwrap();
    session.release().unwrap();
}

fn too_many_connections() {
    let socket = std::env::var_os(SOCKET).unwrap();
    let held: Vec<_> = (0..8)
        .map(|_| {
            let manager = Manager::connect(options()).unwrap();
            manager.status().unwrap();
            manager
        })
        .collect();
    let more = Manager::connect(options()).and_then(|manager| manager.status());
    let reason = refused("ENOSPC", "connection", more);
    assert!(reason.contains("8 connections"), "{reason}");
    // Refused ones do not add up, however many there are.
    for _ in 0..100 {
        drop(UnixStream::connect(&socket).unwrap());
    }
    drop(held);
}

fn veto() {
    let how = ParticipantOptions { options: options(), required: false, deadline: Some(PATIENCE) };
    let mut participant = Participant::join("mallory", how).unwrap();
    let call = participant.next_call(Some(PATIENCE)).unwrap().expect("a call");
    participant.veto(&call, "because I can").unwrap();
}

/// The place of a required participant that has not come back yet.
fn take_the_place() {
    let how = ParticipantOptions { options: options(), required: false, deadline: Some(PATIENCE) };
    let reason = refused("EPERM", "the name", Participant::join("database", how).map(drop));
    assert!(reason.contains("database"), "{reason}");
    // The framework's own name is taken, as any name is.
    let how = ParticipantOptions { options: options(), required: false, deadline: Some(PATIENCE) };
    refused("EEXIST", "the name", Participant::join("files", how).map(drop));
}

#[test]
fn another_users_session_is_out_of_reach() {
    let Some(machine) = Machine::start("") else { return };
    machine.run(ALICE, "keep");
    machine.run(MALLORY, "reach");
    machine.run(ALICE, "take back");
    // Root may do everything.
    let manager = machine.luod.manager();
    let listed = manager.sessions().unwrap();
    assert_eq!((listed.len(), listed[0].uid), (1, ALICE));
    assert_eq!(manager.files(Some("alice")).unwrap().len(), 2);
    let session = machine.luod.session("alice");
    assert_connected(session.retrieve(1).unwrap(), session.retrieve(2).unwrap(), b"root");
    assert_eq!(errno(Session::create_with("alice", machine.luod.options())), "EEXIST");
    manager.release("alice").unwrap();
    assert!(manager.sessions().unwrap().is_empty());
}

#[test]
fn what_goes_on_in_others_sessions_is_not_told() {
    let Some(machine) = Machine::start("") else { return };
    machine.run(ALICE, "keep");
    let watching = machine.begin(MALLORY, "watch", Stdio::null());
    let manager = machine.luod.manager();
    machine.luod.wait("the watch stands", || {
        manager.sessions().unwrap().iter().any(|session| session.name == "standing")
    });
    drop(machine.luod.session("alice"));
    // Failures name sessions, too.
    let alice = machine.luod.session("alice");
    assert_eq!(errno(alice.finish()), "EBUSY");
    alice.retrieve_many(&[1, 2]).unwrap();
    alice.finish_and_carry().unwrap();
    manager.prepare().unwrap();
    manager.cancel().unwrap();
    drop(alice);
    manager.release("alice").unwrap();
    manager.release("standing").unwrap();
    assert_good(watching, "watch");
}

#[test]
fn the_end_of_ones_own_session_is_told() {
    let Some(machine) = Machine::start("") else { return };
    machine.run(MALLORY, "watch one's own");
}

#[test]
fn a_descriptor_of_the_arena_is_for_operators_whoever_has_the_session() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("arena");
    let medium = arena::FileMedium::create(&path, 8 << 20).unwrap();
    let machine_id = arena::machine_id().unwrap();
    arena::Arena::create(std::sync::Arc::new(medium), machine_id, false).unwrap();
    let Some(machine) = Machine::start(&format!("arena = {path:?}")) else { return };
    machine.run(MALLORY, "allocate");
    assert!(machine.luod.session("roots").allocate(1, 100_000).unwrap().is_resident());
    let session = machine.luod.session("roots");
    assert!(session.is_updated().unwrap());
    let descriptor = session.descriptor().unwrap();
    let child = machine.begin(MALLORY, "reach the arena", Stdio::from(descriptor));
    assert_good(child, "reach the arena");
    assert!(session.retrieve_memory(1).unwrap().is_resident());
}

#[test]
fn a_sessions_descriptor_is_all_that_another_user_needs() {
    let Some(machine) = Machine::start("") else { return };
    machine.run(ALICE, "keep");
    let session = machine.luod.session("alice");
    let descriptor = session.descriptor().unwrap();
    let child = machine.begin(MALLORY, "use what was passed", Stdio::from(descriptor));
    assert_good(child, "use what was passed");
    assert_eq!(session.info().unwrap().files, [1, 2, 3]);
    // It counts for its owner, not for whoever used the descriptor.
    let listed = machine.luod.manager().sessions().unwrap();
    assert_eq!((listed[0].uid, listed[0].files), (ALICE, 3));
}

#[test]
fn limits_are_for_each_user_and_are_in_the_message() {
    let config = "[limits]\nsessions = 3\nfiles = 10\nbytes = 1048576\n\
                  [clients]\nconnections_per_user = 8";
    let Some(machine) = Machine::start(config) else { return };
    for step in ["too many sessions", "too many files", "too many bytes"] {
        machine.run(MALLORY, step);
    }
    // Side by side: what one has is no less for the other.
    let both: Vec<_> = [ALICE, MALLORY]
        .map(|uid| machine.begin(uid, "too many files", Stdio::null()))
        .into_iter()
        .collect();
    // They have sessions of the same names: whoever comes second is refused those, and no more.
    let ended: Vec<_> = both.into_iter().map(|child| child.wait_with_output().unwrap()).collect();
    assert!(ended.iter().any(|output| output.status.success()));
    for output in &ended {
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() || said.contains("EPERM"), "{said}");
    }
    machine.run(MALLORY, "too many connections");
    // Root has no limit of these.
    let sessions: Vec<_> =
        (0..5).map(|number| machine.luod.session(&format!("r{number}"))).collect();
    let pipes: Vec<_> = (0..20).map(|_| pipe()).collect();
    let files: Vec<_> = pipes.iter().enumerate().map(|(t, (r, _))| (t as u64, r)).collect();
    assert!(sessions[0].preserve_many(&files).unwrap().iter().all(Result::is_ok));
}

#[test]
fn another_users_participant_cannot_stop_the_machine() {
    let Some(machine) = Machine::start("") else { return };
    let child = machine.begin(MALLORY, "veto", Stdio::null());
    let manager = machine.luod.manager();
    machine.luod.wait("it takes part", || {
        manager.status().unwrap().subsystems.iter().any(|info| info.name == "mallory")
    });
    let report = manager.prepare().unwrap().expect("its report");
    assert!(report.left_out.iter().any(|failure| failure.reason.contains("because I can")));
    assert_good(child, "veto");
}

#[test]
fn the_place_of_a_required_participant_is_kept_over_a_restart() {
    let Some(machine) = Machine::start("") else { return };
    let join = || {
        let options = machine.luod.options();
        let how = ParticipantOptions { options, required: true, deadline: Some(PATIENCE) };
        Participant::join("database", how).unwrap()
    };
    let _away = join();
    machine.luod.kill_worker();
    machine.run(MALLORY, "take the place");
    join();
}
