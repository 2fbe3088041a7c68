//! CRIU as a peer: a process with memory, dumped and restored.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, setsid};
use tempfile::TempDir;

use super::super::{Bencher, helper};
use crate::failure::{Context as _, Failed, Result};

/// How long the helper lives at most: it has no socket whose end would tell it to end, as CRIU
/// takes no process with one.
const LIFE: Duration = Duration::from_secs(60);

/// The helper: has memory, says so by making the file, and waits for its end.
pub(crate) fn hold(mib: usize, ready: &Path) -> Result<()> {
    // CRIU takes whole sessions.
    setsid().context(|| "begin a session".into())?;
    let memory: Vec<u64> = (1..=(mib << 17) as u64).collect();
    File::create(ready).context(|| format!("create {}", ready.display()))?;
    thread::sleep(LIFE);
    drop(memory);
    Ok(())
}

/// How long a dump and a restore of a process with that much memory take together; the images go
/// into that directory.
pub(super) fn dump_and_restore(
    bencher: &Bencher<'_>,
    images: &Path,
    mib: usize,
) -> Result<Duration> {
    let version = Command::new("criu").arg("--version").output();
    if version.is_err() {
        return Err(Failed::new("it is not installed"));
    }
    let directory =
        TempDir::new_in(images).context(|| format!("make a directory in {}", images.display()))?;
    let ready = directory.path().join("ready");
    let mut holder = Holder(
        Command::new(&bencher.xtask)
            .args(["helper", "hold-memory", "--mib", &mib.to_string(), "--ready"])
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
            return Err(Failed::new("the helper does not get its memory"));
        }
        thread::sleep(Duration::from_millis(10));
    }
    let pid = holder.0.id().to_string();
    let began = Instant::now();
    criu(directory.path(), &["dump", "--tree", &pid])?;
    // A dump ends the process; its number must be free.
    helper::wait(&mut holder.0, Duration::from_secs(10))?;
    criu(directory.path(), &["restore", "--restore-detached"])?;
    let took = began.elapsed();
    if let Some(pid) = pid.parse().ok().and_then(Pid::from_raw) {
        kill_process(pid, Signal::KILL).context(|| "end what was restored".into())?;
    }
    Ok(took)
}

/// Runs it in that directory; a failure is told by the last line of its log.
fn criu(directory: &Path, args: &[&str]) -> Result<()> {
    let log = directory.join("criu.log");
    let status = Command::new("criu")
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
    let why = said.lines().next_back().unwrap_or("it left no log");
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
