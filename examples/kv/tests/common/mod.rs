//! luod and kv as processes, for tests; each is ended when its guard is dropped.
#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use luo::{Manager, Options, Session};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// How long anything may take on a machine that does other things too.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// luod's binary. Cargo tells an integration test of the binaries of its own package alone, so it is built here;
/// but not where nextest runs, which builds all binaries of a workspace before, and ends tests that take long.
fn luod_binary() -> PathBuf {
    let directory = Path::new(env!("CARGO_BIN_EXE_kv")).parent().unwrap();
    let luod = directory.join("luod");
    if luod.exists() && std::env::var_os("NEXTEST").is_some() {
        return luod;
    }
    let mut build = Command::new(env!("CARGO"));
    build.args(["build", "--quiet", "--package=luod", "--bin=luod", "--target-dir"]);
    build.arg(directory.parent().unwrap()).current_dir(env!("CARGO_MANIFEST_DIR"));
    if directory.ends_with("release") {
        build.arg("--release");
    }
    assert!(build.status().unwrap().success(), "luod does not build");
    luod
}

/// Waits until something holds.
pub(crate) fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < PATIENCE, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn pid(child: &Child) -> Pid {
    Pid::from_child(child)
}

/// A luod, with the default configuration where no other is given.
#[derive(Debug)]
pub(crate) struct Luod {
    child: Child,
    directory: TempDir,
}

impl Luod {
    pub(crate) fn start() -> Self {
        Self::start_with("")
    }

    pub(crate) fn start_with(configuration: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let config = directory.path().join("luod.toml");
        fs::write(&config, configuration).unwrap();
        let log = File::create(directory.path().join("log")).unwrap();
        let child = Command::new(luod_binary())
            .arg("--config")
            .arg(config)
            .arg("--runtime-dir")
            .arg(directory.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let luod = Self { child, directory };
        wait_until("luod serves", || Manager::connect(luod.options()).is_ok());
        luod
    }

    pub(crate) fn ended(&mut self) -> ExitStatus {
        let mut status = None;
        wait_until("luod ends", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.directory.path().join("io.luo.sock")
    }

    pub(crate) fn options(&self) -> Options {
        Options::new().socket(self.socket()).deadline(PATIENCE)
    }

    pub(crate) fn manager(&self) -> Manager {
        Manager::connect(self.options()).unwrap()
    }

    pub(crate) fn session(&self, name: &str) -> Session {
        Session::open_with(name, self.options()).unwrap()
    }

    /// How many files the session `kv` holds.
    pub(crate) fn files(&self) -> usize {
        self.manager().files(Some("kv")).unwrap().len()
    }

    /// Kills the worker, and waits for the next one.
    pub(crate) fn kill_worker(&self) {
        let before = self.manager().status().unwrap().pid;
        let worker = Pid::from_raw(i32::try_from(before).unwrap()).unwrap();
        kill_process(worker, Signal::KILL).unwrap();
        wait_until("another worker serves", || {
            self.manager().status().is_ok_and(|status| status.pid != before)
        });
    }
}

impl Drop for Luod {
    fn drop(&mut self) {
        let _ = kill_process(pid(&self.child), Signal::TERM);
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(20) && matches!(self.child.try_wait(), Ok(None))
        {
            std::thread::sleep(Duration::from_millis(2));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let log = fs::read_to_string(self.directory.path().join("log")).unwrap_or_default();
            let _ = writeln!(std::io::stderr(), "--- luod's log\n{log}---");
        }
    }
}

/// A kv; its log goes to standard error.
#[derive(Debug)]
pub(crate) struct Kv {
    child: Child,
    lines: Receiver<String>,
}

impl Kv {
    pub(crate) fn start(args: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_kv"))
            .args(if args.contains(&"--bind") { &[][..] } else { &["--bind", "127.0.0.1:0"] })
            .args(args)
            .env_remove("LUO_SOCKET")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        Self { child, lines }
    }

    /// One that is connected to luod, as this version.
    pub(crate) fn with(luod: &Luod, label: &str) -> Self {
        Self::with_args(luod, label, &[])
    }

    pub(crate) fn with_args(luod: &Luod, label: &str, args: &[&str]) -> Self {
        let socket = luod.socket();
        let luo = ["--luo-socket", socket.to_str().unwrap(), "--version-label", label];
        Self::start(&[&luo, args].concat())
    }

    pub(crate) fn listens(&mut self) -> SocketAddr {
        let line = self.lines.recv_timeout(PATIENCE).expect("kv says where it listens");
        let address = line.strip_prefix("kv listens on ");
        address.unwrap_or_else(|| panic!("kv said {line:?}")).parse().unwrap()
    }

    pub(crate) fn waits(&mut self) {
        let line = self.lines.recv_timeout(PATIENCE).expect("kv says that it waits");
        assert!(line.starts_with("kv waits for "), "kv said {line:?}");
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(pid(&self.child), signal).unwrap();
    }

    pub(crate) fn ended(&mut self) -> ExitStatus {
        let mut status = None;
        wait_until("kv ends", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }

    /// Replaces this one by the next version, which waits before this one is told to go.
    pub(crate) fn update(&mut self, luod: &Luod, label: &str) -> SocketAddr {
        let mut next = Self::with(luod, label);
        next.waits();
        self.signal(Signal::TERM);
        let address = next.listens();
        let mut before = std::mem::replace(self, next);
        assert!(before.ended().success());
        address
    }
}

impl Drop for Kv {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A client that asks one thing after the other.
#[derive(Debug)]
pub(crate) struct Client(BufReader<TcpStream>);

impl Client {
    pub(crate) fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Self(BufReader::new(stream))
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.0.get_mut().write_all(bytes).unwrap();
    }

    /// The next line, without its end.
    pub(crate) fn line(&mut self) -> String {
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    /// What a bulk reply holds.
    pub(crate) fn bulk(&mut self) -> String {
        let line = self.line();
        let len: usize = line.strip_prefix('$').and_then(|len| len.parse().ok()).unwrap();
        let mut bytes = vec![0; len + 2];
        self.0.read_exact(&mut bytes).unwrap();
        bytes.truncate(len);
        String::from_utf8(bytes).unwrap()
    }

    /// The version that answers.
    pub(crate) fn version(&mut self) -> String {
        self.send(b"INFO server\r\n");
        let info = self.bulk();
        let label = info.lines().find_map(|line| line.strip_prefix("version_label:"));
        label.unwrap_or_else(|| panic!("no version in {info}")).to_owned()
    }
}
