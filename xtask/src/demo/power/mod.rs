//! `cargo xtask demo --power`: every process is killed, and an arena's file brings everything back.
//!
//! ```text
//! luod with an arena, kv ─▶ fill ─▶ │ nothing happens │ prepare │ ─▶ clients rest ─▶ freeze ─▶ depart
//!                                     └─ clients set, get and check ┘
//!     ─▶ SIGKILL to all ─▶ another luod, which has the file alone ─▶ kv ─▶ all data read back
//!     ─▶ finish ─▶ tables, verdict
//! ```
//!
//! Invariants:
//! - Nothing of the first luod is left to the second but the arena's file: the directory that they
//!   run in is another one, all processes are seen to end, and the file is asked out of the page
//!   cache.
//! - What every key must hold is known to the clients alone, which have no part in the way through
//!   the arena.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use kv::load::{LoadHandle, RestingLoad};
use luo::{State, Unclaimed};
use luo_carriers::arena::{self, Access, Arena, FileMedium, View};
use rustix::fs::Advice;
use tempfile::TempDir;

use super::processes::{self, Kv, Luod, Programs, Witness};
use super::progress::{self, Bytes};
use super::sizes::Sizes;
use super::{machine, steps};
use crate::failure::{Context as _, Failed, Result};
use crate::workspace::Workspace;

mod outcome;

use outcome::{Arrival, Departure, Outcome};

/// kv's session.
const SESSION: &str = "kv";
/// Room in the arena for what is neither data nor changes to it.
const SPARE_MIB: u64 = 64;
/// How long the load goes on at least after prepare, so that some of it is seen after.
const AFTER: Duration = Duration::from_millis(200);

/// Runs it, shows what came of it, and fails if anything is not as it was.
pub(super) fn show(workspace: &Workspace, quick: bool) -> Result<()> {
    let _watched = processes::watch_signals()?;
    let programs = Programs::build(workspace, !quick)?;
    let wanted = if quick { Sizes::QUICK } else { Sizes::FULL };
    let sizes = wanted.within(machine::available_bytes()?)?;
    for shortage in sizes.shortages.iter().filter(|shortage| shortage.contains("main part")) {
        println!("NOTE: {shortage}");
    }
    // Beside the build: temporary directories are often in memory, and a loss of power clears them.
    let place = Place::new(&workspace.target().join("demo"), &sizes)?;
    let outcome = run(&programs, &sizes, &place)?;
    print!("\n{}", outcome.text());
    let errors = outcome.errors();
    if !errors.is_empty() {
        return Err(Failed::new(errors.join("; ")));
    }
    println!("Every process was killed, and every byte is there.");
    Ok(())
}

/// The arena's file, in a directory of its own.
struct Place {
    path: PathBuf,
    size: u64,
    _dir: TempDir,
}

impl Place {
    fn new(beside: &Path, sizes: &Sizes) -> Result<Self> {
        fs::create_dir_all(beside).context(|| format!("make {}", beside.display()))?;
        let dir = TempDir::with_prefix_in("arena-", beside)
            .context(|| format!("make a directory in {}", beside.display()))?;
        let path = dir.path().join("arena");
        // What the load changes is written beside what it changed; keys and the table need room too.
        let size = (sizes.main_mib + sizes.main_mib / 2 + SPARE_MIB) << 20;
        let doing = || format!("make an arena of {} MiB; is the disk full?", size >> 20);
        let medium = FileMedium::create(&path, size).context(doing)?;
        let machine = arena::machine_id().context(doing)?;
        Arena::create(Arc::new(medium), machine, false).context(doing)?;
        Ok(Self { path, size, _dir: dir })
    }

    fn configuration(&self) -> String {
        format!("arena = {:?}\n", self.path)
    }

    /// Bytes that are kept in it, and whether they are a handover.
    fn holds(&self) -> Result<(u64, bool)> {
        let doing = || format!("look into {}", self.path.display());
        let medium = FileMedium::open(&self.path, Access::Look).context(doing)?;
        let view = View::read(&medium, None).context(doing)?;
        let pieces = view.catalogue.objects.iter().flat_map(|object| object.pieces.iter());
        let stored = pieces.map(|piece| piece.len).sum();
        Ok((stored, view.superblock().catalogue.is_some()))
    }

    /// Has the file read from its disk again. The kernel may decline, where the file is on no disk.
    fn leave_cache(&self) -> Result<()> {
        let doing = || format!("ask {} out of the cache", self.path.display());
        let file = File::open(&self.path).context(doing)?;
        rustix::fs::fadvise(&file, 0, None, Advice::DontNeed).context(doing)
    }
}

fn run(programs: &Programs, sizes: &Sizes, place: &Place) -> Result<Outcome> {
    let luod = Luod::start_with(programs, &place.configuration())?;
    let mut kv = Kv::start(programs, &luod, SESSION, "before")?;
    let load = steps::begin_load(kv.listens()?, sizes, sizes.main_mib)?;
    progress::watch(&load, "warming up", sizes.step / 3)?;
    load.mark("nothing happens");
    progress::watch(&load, "nothing happens", sizes.step)?;
    let (departure, load) = depart(&luod, load)?;
    let worker = departure.worker;
    let departure = departure.seen;
    let stood_since = departure.stood_since;

    let began = Instant::now();
    processes::lose_power(luod, kv, &worker)?;
    let killed = began.elapsed();
    progress::say(&format!("  {:28} luod's keeper and worker, and kv", "killed"));
    let (stored, holds) = place.holds()?;
    if !holds {
        return Err(Failed::new("the arena holds no handover although luod departed"));
    }
    place.leave_cache()?;

    let (arrival, load) = arrive(programs, place, load)?;
    let stood = arrival.first_answer_at.saturating_duration_since(stood_since);
    Ok(Outcome {
        machine: machine::describe(),
        connections: sizes.connections,
        mib: sizes.main_mib,
        arena_bytes: place.size,
        stored_bytes: stored,
        departure,
        killed,
        arrival,
        stood,
        load,
    })
}

struct Departed {
    seen: Departure,
    worker: Witness,
}

/// Prepare under load, freeze and depart without. The clients know what every key must hold.
fn depart(luod: &Luod, load: LoadHandle) -> Result<(Departed, RestingLoad)> {
    const PREPARE: &str = "prepare through the arena";
    load.mark(PREPARE);
    let manager = luod.patient_manager()?;
    let began = Instant::now();
    let report = progress::during(&load, PREPARE, || {
        manager.prepare_through("arena").context(|| "prepare through the arena".into())
    })?;
    let prepare = began.elapsed();
    let left_out = report.map_or(0, |report| report.left_out.len());
    progress::say(&format!(
        "  {PREPARE:28} {:.1} ms under load; {left_out} sockets cannot go along",
        prepare.as_secs_f64() * 1e3
    ));
    progress::watch(&load, "prepared", AFTER)?;
    let worker = Witness::of_worker(luod)?;
    let load = load.rest().context(|| "end the load".into())?;
    let stood_since = Instant::now();
    manager.freeze().context(|| "freeze".into())?;
    let freeze = stood_since.elapsed();
    let began = Instant::now();
    manager.depart().context(|| "depart".into())?;
    let commit = began.elapsed();
    progress::say(&format!(
        "  {:28} frozen in {:.1} ms, departed in {:.1} ms",
        "the workload stands",
        freeze.as_secs_f64() * 1e3,
        commit.as_secs_f64() * 1e3
    ));
    let seen = Departure { prepare, left_out, freeze, commit, stood_since };
    Ok((Departed { seen, worker }, load))
}

/// luod and kv again, and all data read back.
fn arrive(
    programs: &Programs,
    place: &Place,
    mut load: RestingLoad,
) -> Result<(Arrival, kv::load::LoadReport)> {
    let began = Instant::now();
    let luod = Luod::start_with(programs, &place.configuration())?;
    let manager = luod.patient_manager()?;
    let status = manager.status().context(|| "ask luod for its state".into())?;
    let luod_serves = began.elapsed();
    if status.state != State::Updated {
        return Err(Failed::new(format!(
            "luod found nothing in the arena: it is {:?}",
            status.state
        )));
    }
    let sessions = manager.sessions().context(|| "ask luod for its sessions".into())?;
    let files = sessions.iter().map(|session| session.incoming).sum();
    let kv_began = Instant::now();
    let mut kv = Kv::start(programs, &luod, SESSION, "after")?;
    let address = kv.listens()?;
    let kv_serves = kv_began.elapsed();
    progress::say(&format!(
        "  {:28} luod after {:.1} ms, kv {:.1} ms later",
        "started again",
        luod_serves.as_secs_f64() * 1e3,
        kv_serves.as_secs_f64() * 1e3
    ));

    load.move_to(address).context(|| "connect to kv again".into())?;
    let mut first_answer_at = None;
    let mut bar = Bytes::new("reading all data back");
    let report = load.verify(&mut |progress| {
        if progress.done > 0 {
            first_answer_at.get_or_insert_with(Instant::now);
        }
        bar.show(progress);
    });
    let report = report.context(|| "read all data back".into())?;
    bar.done();
    let first_answer_at = first_answer_at.ok_or_else(|| Failed::new("nothing was answered"))?;

    manager.finish(Unclaimed::Refuse).context(|| "finish".into())?;
    let (_, holds_handover) = place.holds()?;
    kv.leave()?;
    kv.ended()?;
    luod.release(SESSION)?;
    let first_answer = first_answer_at.saturating_duration_since(began);
    let arrival =
        Arrival { luod_serves, files, kv_serves, first_answer, first_answer_at, holds_handover };
    Ok((arrival, report))
}
