//! A luod for tests, as built beside luoctl.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use luo::{Manager, Options};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// How long anything may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A luod of the test's own.
pub(crate) struct Luod {
    directory: TempDir,
    process: Child,
}

impl Luod {
    /// `None`, loudly, where luod was not built beside luoctl.
    pub(crate) fn start() -> Option<Self> {
        let binary: PathBuf = Path::new(env!("CARGO_BIN_EXE_luoctl")).with_file_name("luod");
        if !binary.exists() {
            println!("SKIPPED: {} is not there: build luod first", binary.display());
            return None;
        }
        let directory = tempfile::tempdir().unwrap();
        let process = Command::new(binary)
            .arg("--runtime-dir")
            .arg(directory.path())
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let luod = Self { directory, process };
        let start = Instant::now();
        while Manager::connect(luod.options()).is_err() {
            assert!(start.elapsed() < PATIENCE, "luod does not serve");
            std::thread::sleep(Duration::from_millis(2));
        }
        Some(luod)
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.directory.path().join("io.luo.sock")
    }

    pub(crate) fn options(&self) -> Options {
        Options::new().socket(self.socket()).deadline(PATIENCE)
    }

    pub(crate) fn luoctl(&self, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_luoctl"))
            .arg("--socket")
            .arg(self.socket())
            .args(["--deadline", "60"])
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    /// The command's output; it must end with this status.
    pub(crate) fn run(&self, arguments: &[&str], status: i32) -> String {
        let output = self.luoctl(arguments);
        let text = String::from_utf8(output.stdout).unwrap();
        let errors = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(status), "{arguments:?}\n{text}\n{errors}");
        text + &errors
    }
}

impl Drop for Luod {
    fn drop(&mut self) {
        let _ = kill_process(Pid::from_child(&self.process), Signal::TERM);
        let _ = self.process.wait();
    }
}
