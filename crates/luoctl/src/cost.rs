//! What a live update costs, in time and in room, from the report of a rehearsal.
//!
//! A timing is what one subsystem does in one phase for one session, from the start of its first
//! call to the end of its last. Parts may run side by side, so their sum is the most that a phase
//! can have taken, and what it has taken where it has one part only.
//!
//! Invariants: no time is shown as exact that is a bound; no bound is larger than the whole.

use luo::protocol::{Needs, Report, Timing};

use crate::format;
use crate::output::{TextTable, Tone, cell};

/// The phase in which the workloads stand still.
const BLACKOUT: &str = "freeze";

/// A phase as a whole.
#[derive(Debug, PartialEq, Eq)]
struct Sum {
    parts: usize,
    calls: u64,
    microseconds: u64,
}

fn sum(timings: &[Timing], phase: &str) -> Sum {
    let mut sum = Sum { parts: 0, calls: 0, microseconds: 0 };
    for timing in timings.iter().filter(|timing| timing.phase == phase) {
        sum.parts += 1;
        sum.calls = sum.calls.saturating_add(timing.calls);
        sum.microseconds = sum.microseconds.saturating_add(timing.microseconds);
    }
    sum
}

/// All calls of an event.
pub(crate) fn calls(timings: &[Timing]) -> u64 {
    timings.iter().fold(0, |sum, timing| sum.saturating_add(timing.calls))
}

/// Every part of every phase, the phases in the order in which they came.
pub(crate) fn parts(timings: &[Timing]) -> TextTable {
    let mut table =
        TextTable::new(&["PHASE", "SUBSYSTEM", "SESSION", "CALLS", "TIME"]).numbers(&[3, 4]);
    let mut phases: Vec<&str> = Vec::new();
    for timing in timings {
        if !phases.contains(&timing.phase.as_str()) {
            phases.push(&timing.phase);
        }
    }
    for phase in phases {
        for timing in timings.iter().filter(|timing| timing.phase == phase) {
            let tone = if phase == BLACKOUT { Tone::Notice } else { Tone::Plain };
            table.row(vec![
                cell(phase, tone),
                cell(&timing.subsystem, Tone::Plain),
                cell(timing.session.as_deref().unwrap_or("-"), Tone::Plain),
                cell(&timing.calls.to_string(), Tone::Plain),
                cell(&format::micros(timing.microseconds), tone),
            ]);
        }
    }
    table
}

/// The whole, the blackout, and the room it needs.
pub(crate) fn summary(report: &Report) -> TextTable {
    let mut table = TextTable::bare();
    let total = format!(
        "{} for {} from prepare to cancel",
        format::micros(report.microseconds),
        format::count(calls(&report.timings), "call")
    );
    table.row(vec![cell("total", Tone::Faint), cell(&total, Tone::Plain)]);
    let frozen = sum(&report.timings, BLACKOUT);
    let time = format::micros(frozen.microseconds.min(report.microseconds));
    let blackout = match frozen.parts {
        0 => "none: nothing takes part in freeze".to_owned(),
        1 => format!("{time}, in which the workloads stand still"),
        _ => format!("at most {time}, in which the workloads stand still"),
    };
    table.row(vec![cell("blackout", Tone::Faint), cell(&blackout, Tone::Notice)]);
    if let Some(needs) = &report.needs {
        table.row(vec![cell("room", Tone::Faint), cell(&room(needs), Tone::Plain)]);
    }
    table
}

/// What each session needs in the carrier, where it needs anything at all.
pub(crate) fn needs(needs: &Needs) -> TextTable {
    let mut table = TextTable::new(&["SESSION", "NEEDS"]).numbers(&[1]);
    if needs.free.is_some() {
        for session in &needs.sessions {
            table.row(vec![
                cell(&session.session, Tone::Plain),
                cell(&format::bytes(session.bytes), Tone::Plain),
            ]);
        }
    }
    table
}

/// What the whole needs in the carrier.
fn room(needs: &Needs) -> String {
    match (needs.free, needs.size) {
        (Some(free), Some(size)) => format!(
            "{} in the {}, of which {} of {} are free",
            format::bytes(needs.bytes),
            needs.carrier,
            format::bytes(free),
            format::bytes(size)
        ),
        _ => format!("none: the {} copies nothing", needs.carrier),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn timing(phase: &str, microseconds: u64) -> Timing {
        Timing {
            phase: phase.to_owned(),
            subsystem: "files".to_owned(),
            session: None,
            calls: 2,
            microseconds,
        }
    }

    #[test]
    fn a_phase_is_the_sum_of_its_parts_alone() {
        let timings = [timing("prepare", 5), timing("freeze", 7), timing("freeze", 9)];
        assert_eq!(sum(&timings, "freeze"), Sum { parts: 2, calls: 4, microseconds: 16 });
        assert_eq!(sum(&timings, "finish"), Sum { parts: 0, calls: 0, microseconds: 0 });
    }

    #[test]
    fn sums_that_luod_makes_too_large_do_not_overflow() {
        let timings = [timing("freeze", u64::MAX), timing("freeze", u64::MAX)];
        assert_eq!(sum(&timings, "freeze").microseconds, u64::MAX);
    }
}
