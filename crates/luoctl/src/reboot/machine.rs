//! The machine on which a reboot is run: luod, the running kernel, and systemd where it is process 1.
//!
//! Invariants: every wait has a deadline; a signal is only noted, so that what is under way is undone
//! by whoever runs the course; nothing here decides what comes next.

use std::fs;
use std::io;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use luo::protocol::{Report, Status};
use luo::{Manager, Options, State};
use rustix::thread::CapabilitySet;

use super::course::{Machine, Standing, Step};
use super::preflight::{Facts, Far};
use crate::exit::Exit;
use crate::failure::{Context, Failure};
use crate::kexec::COMMAND_LINE;
use crate::kexec::note::{self, Note};
use crate::output::Output;
use crate::progress::{Bar, Spinner};
use crate::watch::Signals;

/// How long `prepare`, `freeze` and `depart` may take, unless more is allowed: they copy memory, and
/// whoever waits sees how far it is.
const LONGEST_STEP: Duration = Duration::from_secs(3600);
/// How long a luod that departs may take to go, and another one to answer.
const REVIVAL: Duration = Duration::from_secs(30);
/// Between two looks at whether luod answers.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// Where systemd leaves a sign that it is process 1; see sd_booted(3).
const SYSTEMD: &str = "/run/systemd/system";
/// luod's unit.
const UNIT: &str = "luod.service";

/// This machine.
pub(crate) struct Here {
    options: Options,
    manager: Manager,
    interrupted: Arc<AtomicBool>,
    far: Far,
    shows: bool,
    waiting: Option<Spinner>,
}

impl std::fmt::Debug for Here {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Here").field("far", &self.far).finish_non_exhaustive()
    }
}

fn systemd_runs() -> bool {
    Path::new(SYSTEMD).is_dir()
}

/// How long a step may take where luod is to answer within `deadline`.
pub(crate) fn patient(deadline: Duration) -> Duration {
    deadline.max(LONGEST_STEP)
}

/// What the machine says of itself.
pub(crate) fn facts(status: Status) -> Facts {
    let may_reboot = rustix::thread::capabilities(None)
        .is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_BOOT));
    Facts {
        may_reboot,
        loaded: luo_sys::kernel_loaded().map_err(|error| error.to_string()),
        note: Note::read(Path::new(note::PATH)).map_err(|error| error.to_string()),
        running_line: fs::read_to_string(COMMAND_LINE).unwrap_or_default(),
        has_liveupdate: Path::new("/dev/liveupdate").exists(),
        arena_on_pmem: status.arena.as_deref().is_some_and(|path| on_pmem(Path::new(path))),
        status,
    }
}

/// Whether a path leads to persistent memory: a device of it, or a file system on one.
fn on_pmem(path: &Path) -> bool {
    let is_pmem = |path: &Path| {
        path.to_str()
            .is_some_and(|path| path.starts_with("/dev/pmem") || path.starts_with("/dev/dax"))
    };
    let real = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    if is_pmem(&real) {
        return true;
    }
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let under = mounts.lines().filter_map(|line| {
        let mut words = line.split(' ');
        let (device, point) = (words.next()?, words.next()?);
        real.starts_with(point).then_some((point.len(), device))
    });
    // The innermost of those that it lies under, and of two alike the later one.
    under.max_by_key(|(depth, _)| *depth).is_some_and(|(_, device)| is_pmem(Path::new(device)))
}

impl Here {
    /// A connection to luod, and signals are caught from here on.
    pub(crate) fn new(
        options: Options,
        deadline: Duration,
        far: Far,
        output: &Output,
    ) -> Result<Self, Failure> {
        let longest = options.clone().deadline(patient(deadline));
        let manager = Manager::connect(longest).map_err(Failure::luod(Context::Reboot))?;
        let interrupted = Arc::new(AtomicBool::new(false));
        let signals = Signals::catch().map_err(Failure::Signals)?;
        let (told, cancels) = (Arc::clone(&interrupted), options.clone());
        thread::Builder::new()
            .name("signals".into())
            .spawn(move || {
                signals.come();
                told.store(true, Ordering::SeqCst);
                // What copies stops soon; whoever waits for it hears that it was cancelled, and
                // looks where it stands. What cannot be cancelled is not.
                let _ = Manager::connect(cancels).and_then(|manager| manager.cancel());
            })
            .map_err(Failure::Signals)?;
        let shows = !output.is_quiet();
        Ok(Self { options, manager, interrupted, far, shows, waiting: None })
    }

    /// An event of luod's, with a bar for what it copies.
    fn event(
        &mut self,
        context: Context,
        call: impl FnOnce(&Manager) -> Result<Option<Report>, luo::Error>,
    ) -> Result<Option<Report>, Failure> {
        let bar = self.shows.then(|| Copying::watch(&self.manager));
        let ended = call(&self.manager);
        drop(bar);
        self.waiting = None;
        ended.map_err(Failure::luod(context))
    }

    fn status(&self) -> Result<Status, luo::Error> {
        Manager::connect(self.options.clone())?.status()
    }

    /// Waits until luod answers, or does not any more.
    fn until(&self, answers: bool) -> Result<Option<Status>, String> {
        let end = Instant::now() + REVIVAL;
        loop {
            let status = self.status();
            match (&status, answers) {
                (Ok(_), true) | (Err(_), false) => return Ok(status.ok()),
                (Err(error), true) if Instant::now() >= end => return Err(error.to_string()),
                (Ok(_), false) if Instant::now() >= end => return Ok(status.ok()),
                _ => thread::sleep(LOOK_AGAIN),
            }
        }
    }
}

/// A bar on stderr that follows luod's copying, until it is dropped.
struct Copying(Arc<AtomicBool>);

impl Copying {
    fn watch(manager: &Manager) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let ends = Arc::clone(&over);
        if let Ok(mut events) = manager.watch() {
            // It ends with the copying; where it cannot be started there is no bar, and no harm.
            let _ = thread::Builder::new().name("progress".into()).spawn(move || {
                let mut bar = None;
                while !ends.load(Ordering::SeqCst) {
                    match events.next_event(Some(LOOK_AGAIN)) {
                        Ok(Some(event)) if event.kind == "progress" => {
                            let bar = bar.get_or_insert_with(|| Bar::on_stderr("copying"));
                            bar.set(event.done.unwrap_or(0), event.total.unwrap_or(0));
                        }
                        Ok(_) => {}
                        Err(_) => return,
                    }
                }
            });
        }
        Self(over)
    }
}

impl Drop for Copying {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

fn failed(sentence: String, source: Option<io::Error>) -> Failure {
    Failure::Step { sentence, exit: Exit::Failed, source }
}

/// Runs systemctl and gives what it complains of.
fn systemctl(arguments: &[&str]) -> Result<(), Failure> {
    let said = Command::new("systemctl")
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .output();
    let command = format!("systemctl {}", arguments.join(" "));
    match said {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => {
            let words = String::from_utf8_lossy(&output.stderr);
            let words = words.split_whitespace().collect::<Vec<_>>().join(" ");
            Err(failed(format!("{command} failed ({}): {words}", output.status), None))
        }
        Err(error) => Err(failed(format!("{command} cannot be run: {error}"), Some(error))),
    }
}

impl Machine for Here {
    type Error = Failure;

    fn interrupted(&self) -> bool {
        self.interrupted.load(Ordering::SeqCst)
    }

    fn prepare(&mut self, far: Far) -> Result<Option<Report>, Failure> {
        self.event(Context::Prepare, |manager| manager.prepare_through(far.name()))
    }

    fn freeze(&mut self) -> Result<Option<Report>, Failure> {
        self.event(Context::Freeze, Manager::freeze)
    }

    fn depart(&mut self) -> Result<Option<Report>, Failure> {
        self.event(Context::Depart, Manager::depart)
    }

    fn cancel(&mut self) -> Result<(), Failure> {
        let cancelled = Manager::connect(self.options.clone()).and_then(|manager| manager.cancel());
        match cancelled {
            Ok(_) => Ok(()),
            // Whoever caught the signal was first.
            Err(error) => match self.standing() {
                Ok(Standing::At(State::Normal)) => Ok(()),
                _ => Err(Failure::luod(Context::Cancel)(error)),
            },
        }
    }

    fn standing(&mut self) -> Result<Standing, Failure> {
        let status = self.status().map_err(Failure::luod(Context::Asking))?;
        Ok(match status.transition {
            Some(_) => Standing::Moving,
            None => Standing::At(status.state),
        })
    }

    fn sync(&mut self) {
        rustix::fs::sync();
    }

    fn restart(&mut self) -> Result<(), Failure> {
        if systemd_runs() {
            return systemctl(&["kexec"]);
        }
        let error = luo_sys::restart_into_loaded();
        Err(failed(format!("the next kernel was not started: {error}"), Some(error)))
    }

    fn revive(&mut self) -> Result<State, Failure> {
        let gone = |reason: String| failed(reason, None);
        if self.far == Far::Arena {
            // One that is still on its way out would be taken for one that has come back.
            self.until(false).map_err(gone)?;
        }
        if self.status().is_err() && systemd_runs() {
            systemctl(&["start", UNIT])?;
        } else if self.status().is_err() {
            return Err(gone("there is no systemd to start it".into()));
        }
        let status = self.until(true).map_err(gone)?;
        Ok(status.map_or(State::Normal, |status| status.state))
    }

    fn begins(&mut self, step: Step) {
        let doing = match step {
            Step::Prepare => "preparing",
            Step::Freeze => "freezing",
            Step::Depart => "handing over",
            Step::Restart => "starting the next kernel",
        };
        self.waiting = self.shows.then(|| Spinner::on_stderr(doing));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn persistent_memory_is_known_by_its_device() {
        assert!(on_pmem(Path::new("/dev/pmem0")));
        assert!(on_pmem(Path::new("/dev/dax0.0")));
        assert!(!on_pmem(Path::new("/dev/null")));
        assert!(!on_pmem(tempfile::tempdir().unwrap().path()));
    }
}
