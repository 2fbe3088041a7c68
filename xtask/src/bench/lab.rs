//! A kernel that is really replaced, in the lab's emulated machine: only the ratios say anything.

use super::report::Better;
use super::{Bencher, Row};
use crate::failure::Result;
use crate::lab::{EMULATION, Kernel, Lab, measure};

/// A file among many may cost so much more than one among a hundred.
const FLAT: f64 = 1.2;

pub(super) fn run(bencher: &Bencher<'_>) -> Result<Vec<Row>> {
    bencher.measuring("the lab is set up: the first time, that builds a kernel");
    let lab = match Lab::set_up(bencher.workspace, true, false, EMULATION, &[Kernel::Own]) {
        Ok(lab) => lab,
        Err(failed) => {
            bencher.skipped(&format!("no kernel is replaced: {}", failed.chain()));
            return Ok(Vec::new());
        }
    };
    let mut rows = Vec::new();
    bencher.measuring("freeze to kv's first answer after a kexec");
    for measured in measure::blackout(&lab)? {
        rows.push(Row {
            what: format!("freeze to kv's first answer after a kexec, {} MiB", measured.mib),
            ours: Some(measured.live.as_secs_f64()),
            peer: "cold boot, reload from disk".into(),
            peer_value: measured.cold.as_secs_f64(),
            unit: "s",
            better: Better::Lower,
            goal: None,
        });
    }
    bencher.measuring("preserve and retrieve through /dev/liveupdate");
    let each = measure::files(&lab)?;
    let Some((first, more)) = each.split_first() else { return Ok(rows) };
    for measured in more {
        let mut row = |doing: &str, ours: f64, first_value: f64, goal| {
            rows.push(Row {
                what: format!("{doing}, each of {} files", measured.count),
                ours: Some(ours),
                peer: format!("each of {}", first.count),
                peer_value: first_value,
                unit: "µs",
                better: Better::Lower,
                goal,
            });
        };
        row("preserve", measured.preserve, first.preserve, Some(FLAT));
        row("retrieve and compare", measured.retrieve, first.retrieve, Some(FLAT));
        row("the kernel's call alone, in one session", measured.bare, first.bare, None);
    }
    Ok(rows)
}
