//! What a live update costs in the lab, as ratios, in a sentence.
//!
//! Invariants: no test fails for a figure.

use std::time::Duration;

use crate::failure::Result;
use crate::lab::{Lab, measure};

/// From the begin of freeze to kv's first answer in the next kernel, beside a cold boot and a reload of
/// the same data from a disk.
pub(super) fn blackout(lab: &Lab) -> Result<String> {
    let sentence = |measured: &measure::Blackout| {
        format!(
            "{} MiB: {:.2} of a cold boot with a reload from disk ({:.1} s of {:.1} s)",
            measured.mib,
            ratio(measured.live, measured.cold),
            measured.live.as_secs_f64(),
            measured.cold.as_secs_f64()
        )
    };
    Ok(measure::blackout(lab)?.iter().map(sentence).collect::<Vec<_>>().join("; "))
}

/// What preserving and retrieving cost for each file as files become more, beside the kernel by itself
/// with all of them in one session.
pub(super) fn files(lab: &Lab) -> Result<String> {
    let each = measure::files(lab)?;
    let counts: Vec<u64> = each.iter().map(|each| each.count).collect();
    let growth = |of: fn(&measure::Each) -> f64| {
        let first = each.first().map_or(1.0, of);
        let ratios: Vec<String> =
            each.iter().map(|each| format!("{:.2}", of(each) / first)).collect();
        ratios.join(" ")
    };
    Ok(format!(
        "each file at {counts:?}, of the first: preserve {}, retrieve, compare and finish {}; the \
         kernel alone in one session {}",
        growth(|each| each.preserve),
        growth(|each| each.retrieve),
        growth(|each| each.bare)
    ))
}

fn ratio(ours: Duration, other: Duration) -> f64 {
    ours.as_secs_f64() / other.as_secs_f64()
}
