//! A real luod in a directory of its own, for tests.
#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::io::{BufRead, BufReader};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use luo::{Manager, Options};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// How long anything may take on a machine that does other things too.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A running luod; it is stopped when this is dropped.
#[derive(Debug)]
pub(crate) struct Luod {
    pub(crate) directory: TempDir,
    keeper: Child,
    log: Arc<Mutex<String>>,
}

impl Luod {
    /// With the default configuration.
    pub(crate) fn start() -> Self {
        Self::start_with("")
    }

    /// With this configuration.
    pub(crate) fn start_with(config: &str) -> Self {
        Self::start_binary(env!("CARGO_BIN_EXE_luod").into(), config, &[])
    }

    /// Another binary, with variables in its environment.
    pub(crate) fn start_binary(
        binary: PathBuf,
        config: &str,
        environment: &[(&str, &str)],
    ) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("luod.toml");
        std::fs::write(&file, config).expect("the configuration");
        let mut keeper = Command::new(binary)
            .arg("--config")
            .arg(&file)
            .arg("--runtime-dir")
            .arg(directory.path())
            .env("LUOD_LOG", "debug")
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("luod starts");
        let log = Arc::new(Mutex::new(String::new()));
        let stderr = BufReader::new(keeper.stderr.take().expect("its log"));
        let kept = Arc::clone(&log);
        std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                let mut kept = kept.lock().expect("the log");
                kept.push_str(&line);
                kept.push('\n');
            }
        });
        let luod = Self { directory, keeper, log };
        luod.wait("luod serves", || Manager::connect(luod.options()).is_ok());
        luod
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.directory.path().join("io.luo.sock")
    }

    pub(crate) fn options(&self) -> Options {
        Options::new().socket(self.socket()).deadline(PATIENCE)
    }

    pub(crate) fn manager(&self) -> Manager {
        Manager::connect(self.options()).expect("luod is there")
    }

    pub(crate) fn session(&self, name: &str) -> luo::Session {
        luo::Session::open_with(name, self.options()).unwrap_or_else(|error| {
            panic!("session {name}: {error}\n{}", self.log());
        })
    }

    pub(crate) fn worker(&self) -> Pid {
        let pid = self.manager().status().expect("status").pid;
        Pid::from_raw(i32::try_from(pid).expect("a pid")).expect("a pid")
    }

    pub(crate) fn keeper(&self) -> Pid {
        Pid::from_child(&self.keeper)
    }

    pub(crate) fn keeper_is_running(&mut self) -> bool {
        self.keeper.try_wait().expect("its state").is_none()
    }

    /// Waits until luod has ended by itself.
    pub(crate) fn wait_for_end(&mut self) {
        let start = Instant::now();
        while self.keeper_is_running() {
            assert!(start.elapsed() < PATIENCE, "luod does not end\n{}", self.log());
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Its exit status, once it has ended.
    pub(crate) fn exit_status(&mut self) -> Option<i32> {
        self.keeper.try_wait().expect("its state").and_then(|status| status.code())
    }

    /// Kills the worker; the next one may not serve yet when this comes back.
    pub(crate) fn kill_worker(&self) {
        kill_process(self.worker(), Signal::KILL).expect("the worker is there");
    }

    /// Kills every process of it at once, as a loss of power does.
    pub(crate) fn kill_all(&mut self) {
        // The worker first: it is asked for while there is somebody to ask.
        let children = std::fs::read_to_string(format!(
            "/proc/{0}/task/{0}/children",
            self.keeper().as_raw_nonzero()
        ));
        kill_process(self.keeper(), Signal::KILL).expect("the keeper is there");
        for child in children.unwrap_or_default().split_whitespace() {
            let child = child.parse().ok().and_then(Pid::from_raw).expect("a pid");
            // It may have ended by itself.
            let _ = kill_process(child, Signal::KILL);
        }
        self.keeper.wait().expect("it has ended");
    }

    /// What luod has said so far.
    pub(crate) fn log(&self) -> String {
        self.log.lock().expect("the log").clone()
    }

    /// Waits until something holds.
    pub(crate) fn wait(&self, what: &str, mut holds: impl FnMut() -> bool) {
        let start = Instant::now();
        while !holds() {
            assert!(start.elapsed() < PATIENCE, "not in time: {what}\n{}", self.log());
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for Luod {
    fn drop(&mut self) {
        if self.keeper_is_running() {
            let _ = kill_process(self.keeper(), Signal::TERM);
        }
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(20) {
            if let Ok(Some(_)) = self.keeper.try_wait() {
                break;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        let _ = self.keeper.kill();
        let _ = self.keeper.wait();
        if std::thread::panicking() {
            eprintln!("--- luod's log\n{}---", self.log());
        }
    }
}

/// A pipe whose both ends can be told apart from all others.
pub(crate) fn pipe() -> (OwnedFd, OwnedFd) {
    rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).expect("a pipe")
}

/// Writes to one end and reads at the other: they belong together.
pub(crate) fn assert_connected(reader: impl AsFd, writer: impl AsFd, text: &[u8]) {
    rustix::io::write(&writer, text).expect("the pipe takes it");
    let mut buffer = vec![0; text.len()];
    rustix::io::read(&reader, &mut buffer).expect("the pipe gives it");
    assert_eq!(buffer, text);
}

/// The errno of a refusal.
pub(crate) fn errno<T: std::fmt::Debug>(result: Result<T, luo::Error>) -> String {
    match result {
        Err(error) => match error.errno() {
            Some(errno) => errno.to_owned(),
            None => panic!("no refusal: {error}"),
        },
        Ok(value) => panic!("not refused: {value:?}"),
    }
}
