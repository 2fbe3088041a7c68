//! luod is killed at every moment of a live update that has a name (`worker/moments.rs` in luod), before
//! and after the kexec: nothing is lost, every byte is the same, and the cycle ends.
//!
//! Invariants: a kill that did not come is a failure; so no moment is passed by unseen.

use std::time::Instant;

use luo_lab_agent::End;
use rustix::process::Signal;
use serde_json::Value;

use super::guest::{self, PATIENT, READY};
use super::medium::Medium;
use super::must;
use crate::failure::{Context as _, Failed, Result};
use crate::lab::machine::{Config, Machine};
use crate::lab::{Kernel, Lab};

const MOMENTS: &str = "/run/lab/moments";
/// luod goes on however often its worker dies.
const PATIENCE: &str = "\n[worker]\nquick_deaths = 1000\n";
const SESSIONS: u64 = 4;
const FILES: u64 = 6;

/// Through the kernel: each moment, and the step in which it comes.
const BEFORE: &[(Step, &str)] = &[
    (Step::Prepare, "call prepare x3"),
    (Step::Prepare, "called prepare x9"),
    (Step::Prepare, "ended prepare"),
    (Step::Prepare, "kept prepare"),
    (Step::Freeze, "call freeze x2"),
    (Step::Freeze, "ended freeze"),
    (Step::Freeze, "kept freeze"),
    (Step::Depart, "call depart"),
    (Step::Depart, "called depart"),
    (Step::Depart, "ended depart"),
    (Step::Depart, "kept depart"),
];
/// One after the other, each in the worker after the one before.
const ARRIVING: &[&str] = &["call arrive", "called arrive", "ended arrive", "kept arrive"];
const KERNEL_ARRIVING: &[&str] =
    &["kernel begin", "kernel retrieve", "kernel read", "kernel retrieve x3"];
const RETRIEVING: &[&str] =
    &["call retrieve", "called retrieve x4", "call retrieve x8", "call finish", "ended finish"];
const FINISHING: &[&str] = &["ended finish", "kept finish"];
const KERNEL_FINISHING: &[&str] = &["kernel finished"];

pub(super) fn liveupdate(lab: &Lab) -> Result<String> {
    Killed::start(lab, Medium::Liveupdate, Kernel::Own)?.run()
}

pub(super) fn arena(lab: &Lab) -> Result<String> {
    Killed::start(lab, Medium::Pmem, Kernel::Stock)?.run()
}

/// A step before the kexec.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    Prepare,
    Freeze,
    Depart,
}

impl Step {
    const ALL: [Self; 3] = [Self::Prepare, Self::Freeze, Self::Depart];

    fn arguments(self, medium: Medium) -> Vec<&'static str> {
        match self {
            Self::Prepare => vec!["prepare", "--carrier", medium.carrier()],
            Self::Freeze => vec!["freeze"],
            Self::Depart => vec!["depart"],
        }
    }
}

struct Killed<'a> {
    machine: Machine<'a>,
    medium: Medium,
    kernel: Kernel,
    luod: u32,
    kills: u32,
}

impl<'a> Killed<'a> {
    fn start(lab: &'a Lab, medium: Medium, kernel: Kernel) -> Result<Self> {
        let machine = Machine::start(lab, &Config::new(kernel))?;
        medium.attach(&machine)?;
        medium.create(&machine)?;
        let mut killed = Self { machine, medium, kernel, luod: 0, kills: 0 };
        killed.start_luod()?;
        Ok(killed)
    }

    fn run(mut self) -> Result<String> {
        let began = Instant::now();
        self.keep()?;
        self.kill_worker()?;
        self.all_there("normal")?;
        for (step, moment) in BEFORE {
            self.before(*step, moment).context(|| format!("at {moment:?}"))?;
        }
        let before = self.kills;

        // The kill after the departure is the last thing that luod sees of this kernel.
        let departs = if self.medium == Medium::Liveupdate { Some("kept depart") } else { None };
        self.depart(departs)?;
        self.machine.load(self.kernel)?;
        self.machine.kexec()?;
        self.medium.attach(&self.machine)?;

        self.arrive()?;
        self.kill_worker()?;
        self.all_there("updated")?;
        self.take()?;
        let mut finishing = FINISHING.to_vec();
        if self.medium == Medium::Liveupdate {
            finishing.extend(KERNEL_FINISHING);
        }
        self.arm(&finishing)?;
        // Whether its answer came is nothing to go by.
        self.machine.run_with(&["luoctl", "--deadline", "300", "finish"], &[], b"", PATIENT)?;
        self.hit(finishing.len())?;
        self.all_gone()?;
        self.kill_worker()?;
        self.all_gone()?;
        // What was finished is no handover that was lost.
        let log = guest::luod_log(&self.machine);
        must(!log.contains("did not come"), || format!("luod misses what it has finished: {log}"))?;

        // It goes on as if nothing had happened.
        self.keep()?;
        self.step(Step::Prepare)?;
        guest::luoctl(&self.machine, &["cancel"])?;
        self.all_there("normal")?;
        Ok(format!(
            "{} kills, {before} of them before the kexec; {} files compared each time; {:.1} s in all",
            self.kills,
            SESSIONS * FILES,
            began.elapsed().as_secs_f64()
        ))
    }

    /// A kill in a step that may be undone or done by it: afterwards everything is there as before.
    fn before(&mut self, at: Step, moment: &str) -> Result<()> {
        for step in Step::ALL.into_iter().filter(|step| *step < at) {
            self.step(step)?;
        }
        self.arm(&[moment])?;
        let mut words = vec!["luoctl", "--deadline", "300"];
        words.extend(at.arguments(self.medium));
        // It may be told the end, an error, or be sent to the next worker and be done there.
        self.machine.run_with(&words, &[], b"", PATIENT)?;
        self.hit(1)?;
        if self.medium != Medium::Liveupdate && at == Step::Depart {
            // With the arena's switch luod has left this kernel, whether it knows or not.
            let end = self.machine.wait(self.luod, std::time::Duration::from_secs(1))?;
            if matches!(end, End::Exited(_)) {
                self.start_luod()?;
            }
            if self.state()? == "updated" {
                self.take()?;
                guest::luoctl(&self.machine, &["finish"])?;
                return self.keep();
            }
        }
        if self.state()? != "normal" {
            guest::luoctl(&self.machine, &["cancel"])?;
        }
        self.all_there("normal")
    }

    /// Leaves this kernel.
    fn depart(&mut self, moment: Option<&str>) -> Result<()> {
        self.arm(moment.as_slice())?;
        for step in [Step::Prepare, Step::Freeze] {
            self.step(step)?;
        }
        let mut words = vec!["luoctl", "--deadline", "300"];
        words.extend(Step::Depart.arguments(self.medium));
        self.machine.run_with(&words, &[], b"", PATIENT)?;
        match moment {
            Some(_) => self.hit(1),
            None => self.machine.wait(self.luod, PATIENT).map(|_| ()),
        }
    }

    /// luod is killed whole before it has looked at anything where that loses nothing, and its workers
    /// at one moment of the arrival after the other.
    fn arrive(&mut self) -> Result<()> {
        let (whole, moments) = match self.medium {
            Medium::Liveupdate => ("luod kernel begin", [KERNEL_ARRIVING, ARRIVING].concat()),
            Medium::Pmem | Medium::Disk => ("luod kept arrive", ARRIVING.to_vec()),
        };
        self.arm(&[whole])?;
        let luod = self.spawn_luod()?;
        let end = self.machine.wait(luod, READY)?;
        must(end == End::Signalled(Signal::KILL.as_raw()), || {
            format!(
                "luod ended with {end:?} at {whole:?}; its log: {}",
                guest::luod_log(&self.machine)
            )
        })?;
        self.hit_whole()?;
        self.arm(&moments)?;
        self.start_luod()?;
        self.hit(moments.len())?;
        self.all_there("updated")
    }

    /// Everything comes back, whoever dies meanwhile.
    fn take(&mut self) -> Result<()> {
        self.arm(RETRIEVING)?;
        let sessions = format!("--to={SESSIONS}");
        let files = format!("--files={FILES}");
        let said = guest::client(&self.machine, None, &["take", "s", &sessions, &files])
            .context(|| format!("luod's log: {}", guest::luod_log(&self.machine)))?;
        must(said.contains(&format!("{} files compared", SESSIONS * FILES)), || {
            format!("the client says {said}")
        })?;
        self.hit(RETRIEVING.len())
    }

    fn keep(&self) -> Result<()> {
        let sessions = format!("--to={SESSIONS}");
        let files = format!("--files={FILES}");
        guest::client(&self.machine, None, &["keep", "s", &sessions, &files]).map(|_| ())
    }

    fn step(&self, step: Step) -> Result<()> {
        guest::luoctl(&self.machine, &step.arguments(self.medium)).map(|_| ())
    }

    fn start_luod(&mut self) -> Result<()> {
        self.luod = self.spawn_luod()?;
        self.serves()
    }

    fn spawn_luod(&self) -> Result<u32> {
        let configuration = format!("{}{PATIENCE}", self.medium.configuration());
        guest::spawn_luod(&self.machine, &configuration, &[("LUOD_TEST_MOMENTS", MOMENTS)])
    }

    fn serves(&self) -> Result<()> {
        guest::serves(&self.machine)
    }

    /// Has luod die at these moments, each in its turn.
    fn arm(&self, moments: &[&str]) -> Result<()> {
        self.machine.push(MOMENTS, 0o644, (moments.join("\n") + "\n").as_bytes())
    }

    /// It has died at all of them, and serves again.
    fn hit(&mut self, moments: usize) -> Result<()> {
        self.serves()?;
        self.hit_whole()?;
        self.kills += u32::try_from(moments).unwrap_or(u32::MAX) - 1;
        Ok(())
    }

    fn hit_whole(&mut self) -> Result<()> {
        let left = self.machine.pull(MOMENTS)?;
        let left = String::from_utf8_lossy(&left).trim().to_owned();
        must(left.is_empty(), || {
            format!("luod did not die at {left:?}; its log: {}", guest::luod_log(&self.machine))
        })?;
        self.kills += 1;
        Ok(())
    }

    /// Kills the worker while nothing is going on.
    fn kill_worker(&mut self) -> Result<()> {
        let status = self.status()?;
        let pid = status["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok());
        let pid = pid.ok_or_else(|| Failed::new(format!("no worker in {status}")))?;
        self.machine.signal(pid, Signal::KILL.as_raw())?;
        self.kills += 1;
        self.serves()?;
        must(self.status()?["pid"] != status["pid"], || "the worker was not killed".to_owned())
    }

    fn status(&self) -> Result<Value> {
        let text = guest::luoctl(&self.machine, &["--json", "status"])?;
        serde_json::from_str(&text).context(|| format!("read {text}"))
    }

    fn state(&self) -> Result<String> {
        Ok(self.status()?["state"].as_str().unwrap_or_default().to_owned())
    }

    /// The machine is in that state, and so many sessions and files are there.
    fn all_there(&self, state: &str) -> Result<()> {
        self.counts(state, SESSIONS, SESSIONS * FILES)
    }

    fn all_gone(&self) -> Result<()> {
        self.counts("normal", 0, 0)
    }

    fn counts(&self, state: &str, sessions: u64, files: u64) -> Result<()> {
        let status = self.status()?;
        let there = status["state"] == state
            && status["transition"].is_null()
            && status["sessions"] == sessions
            && status["files"] == files;
        must(there, || {
            format!(
                "not {state} with {sessions} sessions and {files} files: {status}; luod's log: {}",
                guest::luod_log(&self.machine)
            )
        })
    }
}
