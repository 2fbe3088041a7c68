//! luod with `keeper = "systemd"`, under a service manager that holds descriptors as systemd does.

mod common;

use std::collections::BTreeMap;
use std::fmt::Write;
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use common::{PATIENCE, assert_connected, pipe};
use luo::{Manager, Options, Session, State};
use luo_carriers::arena::{self, Arena, FileMedium};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

type Held = Arc<Mutex<BTreeMap<String, OwnedFd>>>;

/// The part of a service manager that keeps descriptors.
struct ServiceManager {
    directory: TempDir,
    held: Held,
}

impl ServiceManager {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("luod.toml"), "keeper = \"systemd\"\n").unwrap();
        let socket = UnixDatagram::bind(directory.path().join("notify")).unwrap();
        let held = Held::default();
        let kept = Arc::clone(&held);
        std::thread::spawn(move || {
            while let Some((text, descriptors)) = receive(&socket) {
                take(&mut kept.lock().unwrap(), &text, descriptors);
            }
        });
        Self { directory, held }
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    fn options(&self) -> Options {
        Options::new().socket(self.path().join("io.luo.sock")).deadline(PATIENCE)
    }

    /// Starts luod with what is held, as a service manager does after its process has ended.
    fn start(&self) -> Service {
        let held = self.held.lock().unwrap();
        // Copies in a range that the redirections do not touch.
        let copies: Vec<OwnedFd> =
            held.values().map(|held| rustix::io::fcntl_dupfd_cloexec(held, 500).unwrap()).collect();
        let mut script = String::from("exec");
        for (number, copy) in copies.iter().enumerate() {
            luo_sys::close_on_exec(copy, false).unwrap();
            write!(script, " {}<&{} {}<&-", number + 3, copy.as_raw_fd(), copy.as_raw_fd())
                .unwrap();
        }
        script.push_str("; export LISTEN_PID=$$; exec \"$@\"");
        let names: Vec<&str> = held.keys().map(String::as_str).collect();
        let process = Command::new("bash")
            .args(["-c", &script, "bash", env!("CARGO_BIN_EXE_luod"), "--config"])
            .arg(self.path().join("luod.toml"))
            .arg("--runtime-dir")
            .arg(self.path())
            .env("NOTIFY_SOCKET", self.path().join("notify"))
            .env("FDSTORE", "1000")
            .env("LISTEN_FDS", names.len().to_string())
            .env("LISTEN_FDNAMES", names.join(":"))
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        drop(held);
        let service = Service(process);
        let start = Instant::now();
        while Manager::connect(self.options()).and_then(|manager| manager.status()).is_err() {
            assert!(start.elapsed() < PATIENCE, "luod does not serve");
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
        service
    }
}

struct Service(Child);

impl Drop for Service {
    fn drop(&mut self) {
        // One that has ended may have left its number to another process.
        if matches!(self.0.try_wait(), Ok(None)) {
            let _ = kill_process(Pid::from_child(&self.0), Signal::KILL);
            let _ = self.0.wait();
        }
    }
}

fn receive(socket: &UnixDatagram) -> Option<(String, Vec<OwnedFd>)> {
    let mut bytes = [0; 4096];
    let mut space = [const { MaybeUninit::uninit() }; rustix::cmsg_space!(ScmRights(253))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = rustix::net::recvmsg(
        socket,
        &mut [IoSliceMut::new(&mut bytes)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    )
    .ok()?;
    let descriptors = control
        .drain()
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(list) => Some(list),
            _ => None,
        })
        .flatten()
        .collect();
    Some((String::from_utf8_lossy(&bytes[..received.bytes]).into_owned(), descriptors))
}

fn take(held: &mut BTreeMap<String, OwnedFd>, text: &str, descriptors: Vec<OwnedFd>) {
    let mut name = None;
    let (mut store, mut remove) = (false, false);
    for line in text.lines() {
        match line.split_once('=') {
            Some(("FDNAME", value)) => name = Some(value.to_owned()),
            Some(("FDSTORE", "1")) => store = true,
            Some(("FDSTOREREMOVE", "1")) => remove = true,
            _ => {}
        }
    }
    if let Some(name) = name {
        if remove {
            held.remove(&name);
        }
        if store {
            held.extend(descriptors.into_iter().map(|descriptor| (name.clone(), descriptor)));
        }
    }
    // A barrier's descriptor is closed by being dropped here.
}

#[test]
fn sessions_outlive_luod_in_the_managers_store() {
    let manager = ServiceManager::new();
    let (reader, writer) = pipe();
    let service = manager.start();
    let status = Manager::connect(manager.options()).unwrap().status().unwrap();
    assert_eq!(status.keeper, "systemd");
    let session = Session::open_with("shop", manager.options()).unwrap();
    session.preserve_many(&[(1, reader.as_fd()), (2, writer.as_fd())]).unwrap();
    drop(service);

    let service = manager.start();
    // The client goes on through the restart: its session's descriptor is held too.
    assert_eq!(session.info().unwrap().files, [1, 2]);
    session.unpreserve(2).unwrap();
    drop((service, session));

    let service = manager.start();
    let session = Session::open_with("shop", manager.options()).unwrap();
    assert_eq!(session.info().unwrap().state, State::Updated);
    let back = session.retrieve(1).unwrap();
    drop(reader);
    assert_connected(&back, &writer, b"over");
    session.finish().unwrap();
    session.release().unwrap();
    drop(service);

    // What was let go is in the manager's store no more: only luod's own log is.
    let _service = manager.start();
    assert!(manager.held.lock().unwrap().keys().all(|name| name.starts_with("luo-log-")));
}

#[test]
fn what_departed_through_an_arena_is_taken_from_there_and_not_from_the_store() {
    let manager = ServiceManager::new();
    let arena = manager.path().join("arena");
    let medium = FileMedium::create(&arena, 16 << 20).unwrap();
    Arena::create(Arc::new(medium), arena::machine_id().unwrap(), false).unwrap();
    let config = format!("keeper = \"systemd\"\narena = {arena:?}\n");
    std::fs::write(manager.path().join("luod.toml"), config).unwrap();

    let mut service = manager.start();
    let session = Session::open_with("shop", manager.options()).unwrap();
    session.preserve(1, luo::Record::new(b"before").unwrap()).unwrap();
    let (reader, _writer) = pipe();
    assert!(session.preserve_optional(&[(2, &reader)]).unwrap()[0].is_ok());
    let luod = Manager::connect(manager.options()).unwrap();
    luod.prepare_through("arena").unwrap();
    luod.freeze().unwrap();
    luod.depart().unwrap();
    assert_eq!(service.0.wait().unwrap().code(), Some(3), "the manager is not to start it again");
    drop((service, session));

    // The store is still there, as after a restart by hand: what counts is the arena.
    let service = manager.start();
    let luod = Manager::connect(manager.options()).unwrap();
    assert_eq!(luod.status().unwrap().state, State::Updated);
    let session = Session::open_with("shop", manager.options()).unwrap();
    assert_eq!(session.info().unwrap().incoming, [1]);
    let record = luo::Record::try_from(session.retrieve(1).unwrap()).unwrap();
    assert_eq!(record.bytes().unwrap(), b"before");
    session.finish().unwrap();
    luod.finish(luo::Unclaimed::Refuse).unwrap();
    drop((service, session));
    let _service = manager.start();
    let luod = Manager::connect(manager.options()).unwrap();
    assert_eq!(luod.status().unwrap().state, State::Normal);
}

#[test]
fn without_a_service_manager_it_says_what_is_missing() {
    let directory = tempfile::tempdir().unwrap();
    let config = directory.path().join("luod.toml");
    std::fs::write(&config, "keeper = \"systemd\"\n").unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_luod"))
        .arg("--config")
        .arg(&config)
        .arg("--runtime-dir")
        .arg(directory.path())
        .env_remove("NOTIFY_SOCKET")
        .output()
        .unwrap();
    assert!(!output.status.success());
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("Type=notify"), "{text}");
}
