//! What the last tenth of 100,000 files, and of 10,000 sessions, costs beside the first tenth: in
//! the framework alone, and through a real luod.
//!
//! Files are measured twice: with an identity each, as sockets and memfds have it, and all with
//! one, as eventfds have it, where only the kernel can tell two open file descriptions apart.
//! Each tenth's figure is the best of several runs.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use luo_core::{
    Caps, Criticality, Failure, File, Handle, Handler, Identity, Keep, Limits, Orchestrator, Owner,
    Policy, Recall, Token,
};

use super::daemon::{self, Daemon, Kind};
use super::report::Better;
use super::{Bencher, Row};
use crate::failure::{Context as _, Failed, Result};

const FILES: usize = 100_000;
const SESSIONS: usize = 10_000;
/// The last tenth may cost so much more than the first.
const GOAL: f64 = 1.2;

/// In the framework, then through luod.
pub(super) fn run(bencher: &Bencher<'_>) -> Result<Vec<Row>> {
    let limit = daemon::raise_descriptor_limit()?;
    let mut rows = Vec::new();

    for (about, same) in [("an identity each", false), ("all with one identity", true)] {
        let what = format!("{FILES} files in the framework, {about}");
        bencher.measuring(&what);
        // What a run has used stays in use until all have run. Otherwise the first tenth of a run
        // gets memory that the run before has faulted in, and the last one does not.
        let mut kept = Vec::new();
        let tenths = best(bencher, 5, || {
            let (tenths, core) = files_in_core(same)?;
            kept.push(core);
            Ok(tenths)
        })?;
        rows.push(row(what, tenths, FILES));
    }
    // What that costs by itself: a file's state, found by its token, and a key among keys that are
    // only compared.
    let what = format!("{FILES} boxes and keys in two bare BTreeMaps");
    bencher.measuring(&what);
    let mut kept = Vec::new();
    let tenths = best(bencher, 5, || {
        let (tenths, maps) = bare_maps();
        kept.push(maps);
        Ok(tenths)
    })?;
    rows.push(Row { goal: None, ..row(what, tenths, FILES) });
    drop(kept);
    let what = format!("{SESSIONS} sessions in the framework");
    bencher.measuring(&what);
    rows.push(row(what, best(bencher, 20, sessions_in_core)?, SESSIONS));

    let daemon = Daemon::start(bencher, None)?;
    // Beside them the worker and the keeper need some of their own.
    let files = usize::try_from(limit.saturating_sub(1_500)).unwrap_or(FILES).min(FILES) / 10 * 10;
    for kind in [Kind::Memfds, Kind::Eventfds] {
        let what = format!("{files} {} through luod", kind.name());
        bencher.measuring(&what);
        let tenths = best(bencher, 5, || files_in_luod(&daemon, kind, files))?;
        rows.push(row(what, tenths, files));
    }
    // Two descriptors each in the worker, one here.
    let sessions = usize::try_from(limit / 5 * 2).unwrap_or(SESSIONS).min(SESSIONS) / 10 * 10;
    let what = format!("{sessions} sessions through luod");
    bencher.measuring(&what);
    let tenths = best(bencher, 3, || sessions_in_luod(&daemon, sessions))?;
    rows.push(row(what, tenths, sessions));
    Ok(rows)
}

/// What each tenth took.
type Tenths = [Duration; 10];

/// Each tenth's best of several runs.
fn best(
    bencher: &Bencher<'_>,
    times: usize,
    mut run: impl FnMut() -> Result<Tenths>,
) -> Result<Tenths> {
    let mut best = [Duration::MAX; 10];
    for _ in 0..bencher.times(times) {
        for (best, took) in best.iter_mut().zip(run()?) {
            *best = took.min(*best);
        }
    }
    Ok(best)
}

fn row(what: String, tenths: Tenths, all: usize) -> Row {
    let each = |tenth: Duration| tenth.as_secs_f64() * 1e9 / (all / 10) as f64;
    let [first, .., last] = tenths;
    Row {
        what: format!("{what}, the last tenth"),
        ours: Some(each(last)),
        peer: "the first tenth".into(),
        peer_value: each(first),
        unit: "ns each",
        better: Better::Lower,
        goal: Some(GOAL),
    }
}

/// Does something for each tenth, and measures it.
fn tenths(mut run: impl FnMut(usize) -> Result<Duration>) -> Result<Tenths> {
    let mut tenths = [Duration::ZERO; 10];
    for (number, tenth) in tenths.iter_mut().enumerate() {
        *tenth = run(number)?;
    }
    Ok(tenths)
}

/// A file that is nothing but what the framework asks of it.
#[derive(Debug, Clone)]
struct Numbered {
    identity: u64,
    order: u64,
}

impl File for Numbered {
    fn identity(&self) -> Identity {
        Identity([0, self.identity])
    }

    fn order(&self, other: &Self) -> Ordering {
        self.order.cmp(&other.order)
    }

    fn pinned(&self) -> u64 {
        0
    }
}

struct Anything;

impl Handler<Numbered> for Anything {
    fn compatible(&self) -> &str {
        "bench-v1"
    }

    fn requires(&self) -> Caps {
        Caps::LIVE
    }

    fn can_preserve(&self, _: &Numbered) -> bool {
        true
    }

    fn prepare(
        &self,
        file: &Numbered,
        keep: &dyn Keep<Numbered>,
    ) -> std::result::Result<u64, Failure> {
        keep.keep_live(file).map(|handle| handle.0)
    }

    fn retrieve(
        &self,
        data: u64,
        recall: &dyn Recall<Numbered>,
    ) -> std::result::Result<Numbered, Failure> {
        recall.live(Handle(data))
    }

    fn finish(&self, _: Option<&Numbered>, data: u64, _: bool, recall: &dyn Recall<Numbered>) {
        recall.release(Handle(data));
    }
}

fn core() -> Result<Orchestrator<Numbered>> {
    let mut core = Orchestrator::new(Caps::LIVE, Limits::default());
    core.register_handler(Arc::new(Anything)).context(|| "register a handler".into())?;
    Ok(core)
}

const OWNER: Owner = Owner { uid: 1000, gid: 1000 };

fn files_in_core(same_identity: bool) -> Result<(Tenths, Orchestrator<Numbered>)> {
    let mut core = core()?;
    let session = core
        .create_session("bench", OWNER, Policy::default())
        .context(|| "make a session".into())?;
    let taken = tenths(|tenth| {
        let first = (tenth * FILES / 10) as u64;
        // In no order, as inode numbers and the kernel's addresses are.
        let files: Vec<Numbered> = (first..first + FILES as u64 / 10)
            .map(|number| {
                let scattered = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
                let identity = if same_identity { 0 } else { scattered };
                Numbered { identity, order: scattered }
            })
            .collect();
        let began = Instant::now();
        for (token, file) in (first..).zip(files) {
            core.preserve(session, Some(Token(token)), file, Criticality::Required)
                .context(|| "preserve a file".into())?;
        }
        let took = began.elapsed();
        // As the daemon does after each request.
        core.take_dirty();
        Ok(took)
    })?;
    Ok((taken, core))
}

/// About what the framework notes of a file.
type State = [u64; 28];
type Maps = (BTreeMap<u64, Box<State>>, BTreeMap<(u64, u64), (u64, u64)>);

fn bare_maps() -> (Tenths, Maps) {
    let mut maps = Maps::default();
    let mut times = [Duration::ZERO; 10];
    for (tenth, time) in times.iter_mut().enumerate() {
        let first = (tenth * FILES / 10) as u64;
        let began = Instant::now();
        for number in first..first + FILES as u64 / 10 {
            let scattered = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            maps.0.insert(number, Box::new([number; 28]));
            maps.1.insert((scattered, 0), (1, number));
        }
        *time = began.elapsed();
    }
    (times, maps)
}

fn sessions_in_core() -> Result<Tenths> {
    let mut core = core()?;
    tenths(|tenth| {
        let first = tenth * SESSIONS / 10;
        let names: Vec<String> =
            (first..first + SESSIONS / 10).map(|number| format!("session-{number}")).collect();
        let began = Instant::now();
        for name in &names {
            core.create_session(name, OWNER, Policy::default())
                .context(|| "make a session".into())?;
        }
        let took = began.elapsed();
        core.take_dirty();
        Ok(took)
    })
}

fn files_in_luod(daemon: &Daemon, kind: Kind, count: usize) -> Result<Tenths> {
    let session = daemon.session("bench")?;
    let taken = tenths(|tenth| {
        // Closed here once luod has them.
        let files = kind.files((tenth * count / 10) as u64 + 1, count / 10)?;
        let borrowed: Vec<_> = files.iter().map(|(token, file)| (*token, file.as_fd())).collect();
        let began = Instant::now();
        daemon::preserve(&session, &borrowed)?;
        Ok(began.elapsed())
    })?;
    session.release().context(|| "release the session".into())?;
    Ok(taken)
}

fn sessions_in_luod(daemon: &Daemon, count: usize) -> Result<Tenths> {
    let mut held = Vec::with_capacity(count);
    let taken = tenths(|tenth| {
        let first = tenth * count / 10;
        let began = Instant::now();
        for number in first..first + count / 10 {
            held.push(daemon.session(&format!("session-{number}"))?);
        }
        Ok(began.elapsed())
    })?;
    for session in held {
        session.release().map_err(|error| Failed::new(format!("release a session: {error}")))?;
    }
    Ok(taken)
}
