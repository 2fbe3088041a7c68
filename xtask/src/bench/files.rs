//! What a file of each type costs in prepare, freeze and retrieve, beside CRIU's dump and restore of a
//! process with the same files.
//!
//! Times are of all files together. CRIU's are those of the whole process: the rows with one file tell
//! what of that the process is.

mod kinds;
mod update;

use std::path::Path;
use std::time::Duration;

use tempfile::TempDir;

use self::update::Took;
use super::report::Better;
use super::{Bencher, Row, criu};
use crate::failure::{Context as _, Failed, Result};

const COUNTS: [usize; 2] = [1, 1000];
const TURNS: usize = 10;
const CRIU_TURNS: usize = 3;

/// The helper: has files.
pub(super) fn hold(kind: &str, count: usize, dir: &Path, ready: &Path) -> Result<()> {
    update::room()?;
    criu::hold(ready, || kinds::make(kind, count, dir))
}

/// Every type, one file and a thousand.
pub(super) fn run(bencher: &Bencher<'_>) -> Result<Vec<Row>> {
    update::room()?;
    let mut rows = Vec::new();
    for kind in kinds::KINDS {
        for count in COUNTS {
            bencher.measuring(&format!("{count} {kind}"));
            measure(bencher, kind, count, &mut rows)?;
        }
    }
    Ok(rows)
}

fn measure(bencher: &Bencher<'_>, kind: &str, count: usize, rows: &mut Vec<Row>) -> Result<()> {
    // On a disk: a deleted file of tmpfs is memory.
    let dir = TempDir::new_in(bencher.xtask.parent().unwrap_or(Path::new("/")))
        .context(|| "make a directory".into())?;
    let mut ours = Best::default();
    for _ in 0..bencher.times(TURNS) {
        let files = kinds::make(kind, count, dir.path())?;
        ours.turn(
            update::across(files)
                .map_err(|failed| Failed::new(format!("{count} {kind}: {}", failed.chain())))?,
        );
    }
    let theirs = beside(bencher, kind, count, dir.path())
        .inspect_err(|failed| {
            bencher.skipped(&format!("criu with {count} {kind}: {}", failed.chain()));
        })
        .ok();
    for (part, own, peer, its) in [
        ("prepare", ours.prepare, "criu dump", theirs.map(|took| took.dump)),
        ("freeze", ours.freeze, "criu dump", theirs.map(|took| took.dump)),
        ("retrieve", ours.retrieve, "criu restore", theirs.map(|took| took.restore)),
    ] {
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        rows.push(Row {
            what: format!("{kind}, {count}, {part}"),
            ours: own.map(ms),
            peer: if its.is_some() { peer.into() } else { format!("{peer} (fails)") },
            peer_value: its.map_or(0.0, ms),
            unit: "ms",
            better: Better::Lower,
            goal: None,
        });
    }
    Ok(())
}

fn beside(bencher: &Bencher<'_>, kind: &str, count: usize, dir: &Path) -> Result<criu::Took> {
    let (shm, count) = (Path::new("/dev/shm"), count.to_string());
    let images = if shm.is_dir() { shm } else { dir };
    let dir = dir.to_str().ok_or_else(|| Failed::new("a directory's name is no text"))?;
    let helper = ["hold-files", "--kind", kind, "--count", &count, "--dir", dir];
    let mut best: Option<criu::Took> = None;
    for _ in 0..bencher.times(CRIU_TURNS) {
        let took = criu::dump_and_restore(bencher, images, &helper)?;
        best = Some(best.map_or(took, |best| criu::Took {
            dump: best.dump.min(took.dump),
            restore: best.restore.min(took.restore),
        }));
    }
    best.ok_or_else(|| Failed::new("it was not run"))
}

/// The shortest of each part.
#[derive(Default)]
struct Best {
    prepare: Option<Duration>,
    freeze: Option<Duration>,
    retrieve: Option<Duration>,
}

impl Best {
    fn turn(&mut self, took: Took) {
        for (best, now) in [
            (&mut self.prepare, took.prepare),
            (&mut self.freeze, took.freeze),
            (&mut self.retrieve, took.retrieve),
        ] {
            *best = Some(best.map_or(now, |best| best.min(now)));
        }
    }
}
