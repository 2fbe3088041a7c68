//! Running luoctl.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

use crate::fake::Fake;

/// How a run ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Run {
    fn of(output: Output) -> Self {
        Self {
            code: output.status.code().expect("ended by a signal"),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// What was printed, of a run that succeeded and had nothing to complain about.
    #[track_caller]
    pub(crate) fn good(self) -> String {
        assert_eq!((self.code, self.stderr.as_str()), (0, ""), "{self:?}");
        self.stdout
    }

    /// As [`good`](Self::good), of a run with `--json`.
    #[track_caller]
    pub(crate) fn json(self) -> Value {
        serde_json::from_str(&self.good()).unwrap()
    }

    /// What was complained of, in a run that printed nothing else.
    #[track_caller]
    pub(crate) fn bad(self, code: i32) -> String {
        assert_eq!((self.code, self.stdout.as_str()), (code, ""), "{self:?}");
        self.stderr
    }
}

/// luoctl with that socket, in an environment without surprises.
pub(crate) fn luoctl(socket: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_luoctl"));
    command.env_remove("NO_COLOR").env("LUO_SOCKET", socket).stdin(Stdio::null());
    command
}

pub(crate) fn run(fake: &Fake, arguments: &[&str]) -> Run {
    Run::of(luoctl(&fake.socket()).args(arguments).output().unwrap())
}

/// A run that needs no luod, and would not find one.
pub(crate) fn alone(arguments: &[&str]) -> Run {
    Run::of(luoctl(Path::new("/nowhere/luo.sock")).args(arguments).output().unwrap())
}

/// A run that is given this on stdin.
pub(crate) fn alone_with(arguments: &[&str], stdin: &[u8]) -> Run {
    let mut child = luoctl(Path::new("/nowhere/luo.sock"))
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(stdin).unwrap();
    Run::of(child.wait_with_output().unwrap())
}
