//! CRIU as a peer: a process with memory or files, dumped and restored.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, setsid};
use tempfile::TempDir;

use super::{Bencher, helper};
use crate::failure::{Context as _, Failed, Result};
use crate::lab::criu::Criu;

/// How long the helper lives at most: it has no socket whose end would tell it to end, as CRIU
/// takes no process with one.
const LIFE: Duration = Duration::from_secs(60);

/// How long it took.
#[derive(Debug, Clone, Copy)]
pub(super) struct Took {
    pub(super) dump: Duration,
    pub(super) restore: Duration,
}

/// The helper's part: has what it was told to have, says so by making the file, and waits for its
/// end.
pub(super) fn hold<T>(ready: &Path, make: impl FnOnce() -> Result<T>) -> Result<()> {
    // CRIU takes whole sessions.
    setsid().context(|| "begin a session".into())?;
    let held = make()?;
    File::create(ready).context(|| format!("create {}", ready.display()))?;
    thread::sleep(LIFE);
    drop(held);
    Ok(())
}

/// Dumps and restores a helper that was started with these arguments and the path of its file; the
/// images go into that directory.
pub(super) fn dump_and_restore(
    bencher: &Bencher<'_>,
    images: &Path,
    helper: &[&str],
) -> Result<Took> {
    let criu = Criu::find()?;
    let directory =
        TempDir::new_in(images).context(|| format!("make a directory in {}", images.display()))?;
    let ready = directory.path().join("ready");
    let mut holder = Holder(
        Command::new(&bencher.xtask)
            .arg("helper")
            .args(helper)
            .arg("--ready")
            .arg(&ready)
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context(|| "start a helper".into())?,
    );
    let deadline = Instant::now() + LIFE / 4;
    while !ready.exists() {
        if Instant::now() > deadline {
            return Err(Failed::new("the helper does not get what it is to have"));
        }
        thread::sleep(Duration::from_millis(10));
    }
    let pid = holder.0.id().to_string();
    let began = Instant::now();
    run(&criu, directory.path(), &["dump", "--tree", &pid])?;
    let dump = began.elapsed();
    // A dump ends the process; its number must be free.
    helper::wait(&mut holder.0, Duration::from_secs(10))?;
    let began = Instant::now();
    run(&criu, directory.path(), &["restore", "--restore-detached"])?;
    let restore = began.elapsed();
    if let Some(pid) = pid.parse().ok().and_then(Pid::from_raw) {
        kill_process(pid, Signal::KILL).context(|| "end what was restored".into())?;
    }
    Ok(Took { dump, restore })
}

/// Runs it in that directory; a failure is told by the last error in its log but the one that says
/// that it failed.
fn run(criu: &Criu, directory: &Path, args: &[&str]) -> Result<()> {
    let log = directory.join("criu.log");
    let status = criu
        .command()
        .args(args)
        .arg("--images-dir")
        .arg(directory)
        .args(["--log-file", "criu.log", "-v1"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .context(|| "run `criu`".into())?;
    if status.success() {
        return Ok(());
    }
    let said = fs::read_to_string(log).unwrap_or_default();
    let why = {
        let mut errors = said.lines().rev().filter(|line| line.contains("Error"));
        errors.find(|line| !line.contains("FAILED"))
    }
    .unwrap_or("it left no log");
    Err(Failed::new(format!("{} failed ({status}): {why}", args.first().unwrap_or(&"it"))))
}

/// Ends the helper on the ways out that are failures already.
struct Holder(Child);

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
