//! luod and kv as processes, each with a guard that ends it.
//!
//! Invariants: a process is ended and reaped when its guard is dropped, however the run ends; every
//! wait has a deadline, and ends early when the demonstration is interrupted.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use luo::{Manager, Options};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, kill_process_group, pidfd_open};
use tempfile::TempDir;

use crate::failure::{Context as _, Failed, Result};
use crate::proc;
use crate::workspace::Workspace;

/// How long a process may take to get where it is to get.
const DEADLINE: Duration = Duration::from_secs(30);
/// How long it may take to end when it is asked to.
const ENDING: Duration = Duration::from_secs(5);
/// How long the data may take to a disk or from it.
const WRITING: Duration = Duration::from_secs(240);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(2);

/// What signals that end a program have done.
#[derive(Debug, Default)]
struct Signals {
    interrupted: Arc<AtomicBool>,
    /// Nothing has to be ended by guards: a signal does what it does by default.
    idle: Arc<AtomicBool>,
}

static SIGNALS: OnceLock<Signals> = OnceLock::new();

/// While this is there, signals that end a program end this one by way of its guards.
#[derive(Debug)]
pub(super) struct Watched(());

impl Drop for Watched {
    fn drop(&mut self) {
        if let Some(signals) = SIGNALS.get() {
            signals.idle.store(true, Ordering::SeqCst);
        }
    }
}

/// Begins to watch for signals.
pub(super) fn watch_signals() -> Result<Watched> {
    let doing = || "watch for signals".to_owned();
    if SIGNALS.get().is_none() {
        let signals = Signals::default();
        for signal in [Signal::INT, Signal::TERM, Signal::HUP] {
            let (idle, interrupted) = (signals.idle.clone(), signals.interrupted.clone());
            signal_hook::flag::register_conditional_default(signal.as_raw(), idle)
                .context(doing)?;
            signal_hook::flag::register(signal.as_raw(), interrupted).context(doing)?;
        }
        // Nobody else sets it: subcommands run one after the other.
        let _ = SIGNALS.set(signals);
    }
    if let Some(signals) = SIGNALS.get() {
        signals.idle.store(false, Ordering::SeqCst);
    }
    Ok(Watched(()))
}

/// Fails if the user has asked to stop.
pub(super) fn go_on() -> Result<()> {
    match SIGNALS.get() {
        Some(signals) if signals.interrupted.load(Ordering::SeqCst) => {
            Err(Failed::new("interrupted"))
        }
        _ => Ok(()),
    }
}

/// Waits until a moment.
pub(super) fn rest_until(moment: Instant) -> Result<()> {
    loop {
        go_on()?;
        let left = moment.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        thread::sleep(left.min(Duration::from_millis(50)));
    }
}

/// The programs under demonstration.
#[derive(Debug)]
pub(super) struct Programs {
    luod: PathBuf,
    kv: PathBuf,
}

impl Programs {
    /// Builds them: as they are released, or as tests do.
    pub(super) fn build(workspace: &Workspace, release: bool) -> Result<Self> {
        let profile = if release { "release" } else { "dev" };
        println!("building luod and kv ({profile})");
        proc::check(
            workspace
                .cargo()
                .args(["build", "--locked", "--package=luod", "--package=kv", "--bins"])
                .arg(format!("--profile={profile}")),
        )?;
        let dir = if release { workspace.target().join("release") } else { workspace.debug() };
        Ok(Self { luod: dir.join("luod"), kv: dir.join("kv") })
    }
}

/// A process with its log; ended when it is dropped.
#[derive(Debug)]
struct Process {
    name: String,
    child: Option<Child>,
    log: PathBuf,
}

impl Process {
    fn start(name: &str, command: &mut Command, dir: &Path) -> Result<Self> {
        let log = dir.join(format!("{name}.log"));
        let file = File::create(&log).context(|| format!("make {}", log.display()))?;
        let child = proc::in_group(command)
            .stderr(file)
            .spawn()
            .context(|| format!("start {}", proc::line(command)))?;
        Ok(Self { name: name.to_owned(), child: Some(child), log })
    }

    fn pid(&self) -> Result<Pid> {
        self.child
            .as_ref()
            .map(Pid::from_child)
            .ok_or_else(|| Failed::new(format!("{} has ended", self.name)))
    }

    fn has_ended(&mut self) -> Result<bool> {
        let Some(child) = &mut self.child else { return Ok(true) };
        let ended = child.try_wait().context(|| format!("wait for {}", self.name))?;
        Ok(ended.is_some())
    }

    /// Waits for its end, which has to be a success.
    fn wait(&mut self) -> Result<()> {
        let deadline = Instant::now() + DEADLINE;
        while let Some(child) = &mut self.child {
            go_on()?;
            if let Some(status) = child.try_wait().context(|| format!("wait for {}", self.name))? {
                self.child = None;
                if !status.success() {
                    return Err(self.failed(&format!("ended with {status}")));
                }
            } else if Instant::now() > deadline {
                return Err(self.failed("does not end"));
            } else {
                thread::sleep(LOOK);
            }
        }
        Ok(())
    }

    /// Kills it and what it started, without a chance to do anything first. Returns at once.
    fn kill(&self) -> Result<()> {
        kill_process_group(self.pid()?, Signal::KILL).context(|| format!("kill {}", self.name))
    }

    /// Waits for its end, however it ends.
    fn wait_killed(&mut self) -> Result<()> {
        let deadline = Instant::now() + DEADLINE;
        while !self.has_ended()? {
            go_on()?;
            if Instant::now() > deadline {
                return Err(self.failed("lives on although it was killed"));
            }
            thread::sleep(LOOK);
        }
        self.child = None;
        Ok(())
    }

    /// What went wrong, with the end of its log.
    fn failed(&self, what: &str) -> Failed {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let end = lines.get(lines.len().saturating_sub(10)..).unwrap_or_default().join("\n  ");
        Failed::new(format!("{} {what}; the end of its log:\n  {end}", self.name))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        let pid = Pid::from_child(&child);
        // Each fails only where the process, or its group, has ended already.
        let _ = kill_process(pid, Signal::TERM);
        let deadline = Instant::now() + ENDING;
        while matches!(child.try_wait(), Ok(None)) && Instant::now() < deadline {
            thread::sleep(LOOK);
        }
        let _ = kill_process_group(pid, Signal::KILL);
        let _ = child.wait();
    }
}

/// A luod of the demonstration's own.
#[derive(Debug)]
pub(super) struct Luod {
    process: Process,
    program: PathBuf,
    dir: TempDir,
}

impl Luod {
    /// Starts it with the default configuration, and returns once it answers.
    pub(super) fn start(programs: &Programs) -> Result<Self> {
        Self::start_with(programs, "")
    }

    /// Starts it, and returns once it answers.
    pub(super) fn start_with(programs: &Programs, configuration: &str) -> Result<Self> {
        let dir = TempDir::with_prefix("luo-demo-").context(|| "make a directory".into())?;
        let mut command = Command::new(&programs.luod);
        // How this machine's own luod is configured is not to matter.
        let config = dir.path().join("luod.toml");
        fs::write(&config, configuration).context(|| format!("write {}", config.display()))?;
        command.arg("--config").arg(&config).arg("--runtime-dir").arg(dir.path());
        command.stdout(Stdio::null());
        let process = Process::start("luod", &mut command, dir.path())?;
        let mut luod = Self { process, program: programs.luod.clone(), dir };
        let deadline = Instant::now() + DEADLINE;
        loop {
            go_on()?;
            match luod
                .manager()
                .and_then(|manager| manager.status().context(|| "ask luod for its status".into()))
            {
                Ok(_) => return Ok(luod),
                Err(failed) if luod.process.has_ended()? => {
                    return Err(luod.process.failed(&format!("ended ({})", failed.chain())));
                }
                Err(failed) if Instant::now() > deadline => {
                    return Err(luod.process.failed(&format!("is silent ({})", failed.chain())));
                }
                Err(_) => thread::sleep(LOOK),
            }
        }
    }

    /// Its socket.
    pub(super) fn socket(&self) -> PathBuf {
        self.dir.path().join("io.luo.sock")
    }

    /// A new connection to it.
    pub(super) fn manager(&self) -> Result<Manager> {
        let options = Options::new().socket(self.socket());
        Manager::connect(options).context(|| "connect to luod".into())
    }

    /// As [`manager`](Self::manager), for calls that write all data to a disk.
    pub(super) fn patient_manager(&self) -> Result<Manager> {
        let options = Options::new().socket(self.socket()).deadline(WRITING);
        Manager::connect(options).context(|| "connect to luod".into())
    }

    /// Ends a session that nobody holds, and so frees its memory.
    pub(super) fn release(&self, session: &str) -> Result<()> {
        self.manager()?.release(session).context(|| format!("release session {session}"))
    }

    /// Kills its worker, and returns when another one has taken its place: the processes before
    /// and after.
    pub(super) fn kill_worker(&self) -> Result<(u64, u64)> {
        let ask = || "ask luod for its worker".to_owned();
        let before = self.manager()?.status().context(ask)?.pid;
        let pid = i32::try_from(before)
            .ok()
            .and_then(Pid::from_raw)
            .ok_or_else(|| Failed::new(format!("luod's worker cannot be process {before}")))?;
        kill_process(pid, Signal::KILL).context(|| format!("kill luod's worker, {before}"))?;
        let deadline = Instant::now() + DEADLINE;
        loop {
            go_on()?;
            match self.manager()?.status() {
                Ok(status) if status.pid != before => return Ok((before, status.pid)),
                Ok(_) => {}
                Err(error) if Instant::now() > deadline => return Err(error).context(ask),
                Err(_) => {}
            }
            if Instant::now() > deadline {
                return Err(self.process.failed("does not start another worker"));
            }
            thread::sleep(LOOK);
        }
    }

    /// Upgrades its worker and then its keeper to a luod that calls itself `version`.
    pub(super) fn upgrade(&self, version: &str) -> Result<String> {
        let next = self.dir.path().join(format!("luod-{version}"));
        let program = self.program.to_string_lossy().replace('\'', r"'\''");
        let script = format!("#!/bin/sh\nLUOD_VERSION='{version}' exec '{program}' \"$@\"\n");
        fs::write(&next, script).context(|| format!("write {}", next.display()))?;
        fs::set_permissions(&next, fs::Permissions::from_mode(0o755))
            .context(|| format!("make {} executable", next.display()))?;
        let binary = File::open(&next).context(|| format!("open {}", next.display()))?;
        let manager = self.manager()?;
        manager.upgrade(Some(binary.as_fd()), DEADLINE, true).context(|| "upgrade luod".into())?;
        let serves = manager.status().context(|| "ask luod for its version".into())?.version;
        if serves == version {
            Ok(serves)
        } else {
            Err(self.process.failed(&format!("serves as version {serves} instead of {version}")))
        }
    }
}

/// Kills all processes of luod and kv in one go, as a loss of power does, and returns when none is
/// left.
pub(super) fn lose_power(mut luod: Luod, mut kv: Kv, worker: &Witness) -> Result<()> {
    kv.process.kill()?;
    if !luod.process.has_ended()? {
        luod.process.kill()?;
    }
    kv.process.wait_killed()?;
    luod.process.wait_killed()?;
    worker.see_end()
}

/// Sees the end of a process that is not a child of this one.
#[derive(Debug)]
pub(super) struct Witness {
    process: OwnedFd,
    pid: u64,
}

impl Witness {
    /// Of luod's worker.
    pub(super) fn of_worker(luod: &Luod) -> Result<Self> {
        let pid = luod.manager()?.status().context(|| "ask luod for its worker".into())?.pid;
        let process = i32::try_from(pid)
            .ok()
            .and_then(Pid::from_raw)
            .ok_or_else(|| Failed::new(format!("luod's worker cannot be process {pid}")))?;
        let process = pidfd_open(process, PidfdFlags::empty())
            .context(|| format!("watch luod's worker, {pid}"))?;
        Ok(Self { process, pid })
    }

    fn see_end(&self) -> Result<()> {
        let wait = Timespec::try_from(DEADLINE).context(|| "wait for an end".into())?;
        let mut ended = [PollFd::new(&self.process, PollFlags::IN)];
        let count = poll(&mut ended, Some(&wait))
            .context(|| format!("wait for the end of luod's worker, {}", self.pid))?;
        if count == 0 {
            return Err(Failed::new(format!("luod's worker, {}, was not killed", self.pid)));
        }
        Ok(())
    }
}

/// One version of kv.
#[derive(Debug)]
pub(super) struct Kv {
    process: Process,
    lines: Receiver<String>,
    label: String,
}

impl Kv {
    /// Starts a version. Where another one holds the session, it waits for it.
    pub(super) fn start(
        programs: &Programs,
        luod: &Luod,
        session: &str,
        label: &str,
    ) -> Result<Self> {
        let mut command = Command::new(&programs.kv);
        command
            .args(["--bind", "127.0.0.1:0", "--session", session, "--version-label", label])
            .arg("--luo-socket")
            .arg(luod.socket())
            .stdout(Stdio::piped());
        let name = format!("kv-{session}-{label}");
        let mut process = Process::start(&name, &mut command, luod.dir.path())?;
        let stdout = process.child.as_mut().and_then(|child| child.stdout.take());
        let stdout = stdout.ok_or_else(|| Failed::new("kv's output is not there"))?;
        Ok(Self { process, lines: lines_of(stdout), label: label.to_owned() })
    }

    /// What it calls itself.
    pub(super) fn label(&self) -> &str {
        &self.label
    }

    /// Waits until it serves; where.
    pub(super) fn listens(&mut self) -> Result<SocketAddr> {
        let address = self.line("kv listens on ")?;
        address.parse().context(|| format!("understand kv's address {address:?}"))
    }

    /// Waits until it waits for the version before.
    pub(super) fn waits(&mut self) -> Result<()> {
        self.line("kv waits for ").map(|_| ())
    }

    /// Asks it to leave everything to the next version. Returns at once.
    pub(super) fn leave(&self) -> Result<()> {
        kill_process(self.process.pid()?, Signal::TERM).context(|| "signal kv".into())
    }

    /// Waits for its end.
    pub(super) fn ended(mut self) -> Result<()> {
        self.process.wait()
    }

    /// The rest of the line that begins so, which has to be the next one.
    fn line(&mut self, begins: &str) -> Result<String> {
        let deadline = Instant::now() + DEADLINE;
        loop {
            go_on()?;
            match self.lines.recv_timeout(Duration::from_millis(50)) {
                Ok(line) => match line.strip_prefix(begins) {
                    Some(rest) => return Ok(rest.to_owned()),
                    None => {
                        let what = format!("said {line:?} instead of {begins:?}");
                        return Err(self.process.failed(&what));
                    }
                },
                Err(mpsc::RecvTimeoutError::Disconnected) => {
                    return Err(self.process.failed("has ended"));
                }
                Err(mpsc::RecvTimeoutError::Timeout) if Instant::now() > deadline => {
                    return Err(self.process.failed(&format!("does not say {begins:?}")));
                }
                Err(mpsc::RecvTimeoutError::Timeout) => {}
            }
        }
    }
}

/// The lines that a process writes, as they come.
fn lines_of(stdout: ChildStdout) -> Receiver<String> {
    let (sender, lines) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(std::result::Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    lines
}
