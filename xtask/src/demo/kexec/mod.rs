//! `cargo xtask demo --kexec`: a kernel is replaced under kv, in one of the lab's virtual machines.
//!
//! ```text
//! lab ─▶ machine, luod, kv ─▶ fill ─▶ │ load │ ─▶ load rests ─▶ luoctl kexec load ─▶ luoctl reboot
//!                                    └──── a client counts, on one connection ─ ─ ─ ─ ─┐
//!     ─▶ the next kernel ─▶ luod, network, kv ─▶ finish ─▶ all data read back ─▶ report ┘
//! ```
//!
//! Invariants:
//! - What every key must hold is known outside the machine alone.
//! - The time without an answer is measured outside the machine, whose clocks do not span both kernels.
//! - A lab that cannot be set up is an error that says what is missing.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use kv::load::{Load, LoadOptions, RestingLoad};
use luo::protocol::Timeline;

use super::progress::{self, Bytes};
use crate::failure::{Context as _, Failed, Result};
use crate::lab::machine::{Config, KV_PORT, Machine};
use crate::lab::medium::Medium;
use crate::lab::{EMULATION, Kernel, Lab, guest, must};
use crate::workspace::Workspace;

mod asker;
mod outcome;
mod picture;

use asker::Asker;
use outcome::{Boot, Mark, Outcome};

/// Bytes of a value.
const VALUE_LEN: usize = 16 << 10;
const CONNECTIONS: usize = 4;

/// What takes kv's memory to the next kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Carrier {
    /// /dev/liveupdate where a kernel that has it is there or can be built, else an arena.
    Auto,
    /// The kernel's own orchestrator: nothing is copied.
    Liveupdate,
    /// An arena on persistent memory, with the distribution's kernel.
    Arena,
}

/// Where its results go.
#[derive(Debug)]
pub(super) struct Places<'a> {
    /// Unless it is `target/demo/kexec.html`.
    pub(super) report: Option<&'a Path>,
    pub(super) picture: Option<&'a Path>,
}

/// How much there is to see.
#[derive(Debug, Clone, Copy)]
struct Sizes {
    mib: u64,
    /// How long the load lasts.
    load: Duration,
}

impl Sizes {
    const FULL: Self = Self { mib: 128, load: Duration::from_secs(3) };
    const QUICK: Self = Self { mib: 16, load: Duration::from_millis(500) };
}

/// Runs it, shows what came of it, and fails if anything is not as it was.
pub(super) fn show(
    workspace: &Workspace,
    carrier: Carrier,
    quick: bool,
    may_install: bool,
    places: &Places<'_>,
) -> Result<()> {
    let (lab, medium) = set_up(workspace, carrier, may_install)?;
    let sizes = if quick { Sizes::QUICK } else { Sizes::FULL };
    let outcome = run(&lab, medium, sizes)?;
    let report: PathBuf =
        places.report.map_or_else(|| workspace.target().join("demo/kexec.html"), Path::to_path_buf);
    super::report::save(&report, &picture::page(&outcome))?;
    if let Some(path) = places.picture {
        super::report::save(path, &picture::picture(&outcome))?;
    }
    print!("\n{}", outcome.text());
    println!("\nreport: {}", report.display());
    verdict(&outcome)?;
    println!("The kernel was replaced, and every byte is there.");
    Ok(())
}

/// It with little data, as a test: what is worth a line.
pub(crate) fn check(lab: &Lab, medium: Medium) -> Result<String> {
    let outcome = run(lab, medium, Sizes::QUICK)?;
    verdict(&outcome)?;
    let picture = picture::picture(&outcome);
    must(picture.ends_with("</svg>\n") && !picture.contains("NaN"), || {
        format!("the picture is not whole: {picture}")
    })?;
    let (before, after) = outcome.gap;
    let gap = after.saturating_sub(before);
    Ok(format!("{} keys; {:.1} s without an answer", outcome.keys.1, gap.as_secs_f64()))
}

fn verdict(outcome: &Outcome) -> Result<()> {
    match outcome.errors().as_slice() {
        [] => Ok(()),
        errors => Err(Failed::new(errors.join("; "))),
    }
}

fn set_up(workspace: &Workspace, carrier: Carrier, may_install: bool) -> Result<(Lab, Medium)> {
    progress::say("setting up the lab (where nothing is there yet, a kernel is built: minutes)");
    let lab = |kernel| {
        Lab::set_up(workspace, may_install, false, EMULATION, &[kernel]).context(|| {
            "THE LAB CANNOT BE SET UP, so no kernel is replaced; docs/lab.md says what it needs"
                .into()
        })
    };
    match carrier {
        Carrier::Liveupdate => Ok((lab(Kernel::Own)?, Medium::Liveupdate)),
        Carrier::Arena => Ok((lab(Kernel::Stock)?, Medium::Pmem)),
        Carrier::Auto => match lab(Kernel::Own) {
            Ok(lab) => Ok((lab, Medium::Liveupdate)),
            Err(failed) => {
                println!("NO KERNEL WITH /dev/liveupdate: {}", failed.chain());
                println!("going on with the distribution's kernel, through an arena");
                Ok((lab(Kernel::Stock)?, Medium::Pmem))
            }
        },
    }
}

/// With what kernel something crosses.
fn kernel(medium: Medium) -> Kernel {
    match medium {
        Medium::Liveupdate => Kernel::Own,
        Medium::Pmem | Medium::Disk => Kernel::Stock,
    }
}

fn run(lab: &Lab, medium: Medium, sizes: Sizes) -> Result<Outcome> {
    let kernel = kernel(medium);
    let mut config = Config::new(kernel);
    config.append.push_str(&medium.luod_first());
    let mut machine = Machine::start(lab, &config)?;
    let before = boot(&machine);
    progress::say(&format!("  {:28} {before}", "a machine boots"));
    guest::serves(&machine)?;
    medium.create(&machine)?;
    guest::start_kv(&machine)?;
    let kv = machine.address(KV_PORT)?;
    let load = fill(kv, sizes)?;
    guest::load(&machine, kernel)?;
    let clock = clock_ahead(&machine)?;

    let asker = Asker::start(kv)?;
    let keys_before = asker::keys(kv)?;
    std::thread::sleep(sizes.load);
    let mut marks = Vec::new();
    let mut mark = |what: &'static str| {
        let mark = Mark { what, at: asker.now() };
        progress::say(&format!("  {what:28} {:.1} s", mark.at.as_secs_f64()));
        marks.push(mark);
    };
    mark("luoctl reboot");
    guest::reboot(&mut machine, medium)?;
    mark("the next kernel answers");
    guest::serves(&machine)?;
    guest::start_kv(&machine)?;
    mark("kv listens");
    // What the service had first, it has again; connections are its own from here on.
    guest::luoctl(&machine, &["finish"])?;
    mark("finish");
    // What follows is for the eye.
    std::thread::sleep(sizes.load);
    let origin = asker.origin();
    let seen = asker.stop()?;
    let after = boot(&machine);
    let keys_after = asker::keys(kv)?;
    let load = read_back(load, kv)?;
    let timeline = guest::luoctl(&machine, &["--json", "report"])?;
    let timeline: Timeline = serde_json::from_str(&timeline).map_err(|error| {
        Failed::new(format!("luoctl's report is not what it says it is: {error}"))
    })?;
    let gap = seen.gap().ok_or_else(|| Failed::new("kv was never asked twice"))?;
    Ok(Outcome {
        machine: super::machine::describe(),
        carrier: medium.carrier(),
        mib: sizes.mib,
        boots: (before, after),
        keys: (keys_before, keys_after),
        frozen_at: since(origin, timeline.frozen_at, clock),
        seen,
        gap,
        marks,
        timeline,
        load,
    })
}

fn boot(machine: &Machine<'_>) -> Boot {
    let hello = machine.hello();
    Boot { id: hello.boot_id.clone(), release: hello.release.clone(), uptime: hello.uptime }
}

/// Puts in data and changes it for a while; then nothing is written any more, for kv takes no part in
/// an update of the machine.
fn fill(kv: std::net::SocketAddr, sizes: Sizes) -> Result<RestingLoad> {
    let mut options = LoadOptions::default();
    options.connections = CONNECTIONS;
    options.value_len = VALUE_LEN;
    options.fill_bytes = sizes.mib << 20;
    let mut bar = Bytes::new(format!("putting in {} MiB", sizes.mib));
    let load = Load::start(kv, options, &mut |progress| bar.show(progress))
        .context(|| "begin the load".into())?;
    bar.done();
    progress::watch(&load, "set, get and check", sizes.load)?;
    load.rest().context(|| "end the load".into())
}

fn read_back(mut load: RestingLoad, kv: std::net::SocketAddr) -> Result<kv::load::LoadReport> {
    load.move_to(kv).context(|| "connect to kv again".into())?;
    let mut bar = Bytes::new("reading all data back");
    let report = load.verify(&mut |progress| bar.show(progress));
    let report = report.context(|| "read all data back".into())?;
    bar.done();
    Ok(report)
}

/// By how many microseconds the guest's clock is ahead of this machine's.
fn clock_ahead(machine: &Machine<'_>) -> Result<i64> {
    let began = Instant::now();
    let said = machine.ok(&["date", "+%s%N"])?;
    let took = began.elapsed();
    let guest: i64 = said
        .trim()
        .parse()
        .map_err(|_| Failed::new(format!("the guest's clock shows no time: {said}")))?;
    let here = micros(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default());
    Ok(guest / 1000 - (here - micros(took / 2)))
}

fn micros(span: Duration) -> i64 {
    i64::try_from(span.as_micros()).unwrap_or(i64::MAX)
}

/// A time of the guest's clock, in seconds since a moment of this machine's.
fn since(origin: SystemTime, guest: u64, ahead: i64) -> f64 {
    let origin = micros(origin.duration_since(UNIX_EPOCH).unwrap_or_default());
    let guest = i64::try_from(guest).unwrap_or(i64::MAX);
    guest.saturating_sub(ahead).saturating_sub(origin) as f64 / 1e6
}
