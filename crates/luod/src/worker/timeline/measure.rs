//! What a timeline means: one line of time from the two halves that two kernels have measured.
//!
//! Within one boot times are compared by the clock that counts from its start and is never set. Between
//! two boots there is only the clock that both have, [`Reading::realtime`]: a kernel that starts reads it
//! from the machine's clock, which on most machines has whole seconds, and it may be set afterwards. Who
//! sets it (NTP) knows better, so the step is taken into account; and the time since the new kernel's
//! start is within the gap, however the clocks stand.
//!
//! Invariants: no I/O, no clock; whatever numbers a record has, nothing overflows.

use std::collections::BTreeMap;

use luo::protocol::{Blackout, Span, Timeline};
use luo_abi::TimelinePhase;
use luo_abi::record::{Reading, TimelineArrival};

use super::Record;

/// How exactly a kernel that starts knows the time, in microseconds.
const MACHINE_CLOCK: u64 = 1_000_000;
/// Where boots have no ids: two clocks that agree so well have counted through, in microseconds.
const AGREE: u64 = 2_000_000;

/// How the two halves lie to each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Joint {
    same_kernel: bool,
    /// From the end of `freeze` to the begin of the arrival.
    gap: u64,
    error: u64,
    at_least: bool,
    step: i64,
}

fn apart(a: u64, b: u64) -> i64 {
    i64::try_from(i128::from(a) - i128::from(b)).unwrap_or(if a > b { i64::MAX } else { i64::MIN })
}

/// How far the settable clock is ahead of the other one.
fn ahead(reading: Reading) -> i64 {
    apart(reading.realtime, reading.boottime)
}

fn stayed(record: &Record, arrival: &TimelineArrival) -> bool {
    if record.boot != [0; 16] && arrival.boot != [0; 16] {
        return record.boot == arrival.boot;
    }
    let since = arrival.began.boottime.checked_sub(record.kept.boottime);
    let moved = ahead(arrival.began).saturating_sub(ahead(record.kept));
    since.is_some() && moved.unsigned_abs() <= AGREE
}

fn join(record: &Record, arrival: &TimelineArrival) -> Joint {
    if stayed(record, arrival) {
        let gap = arrival.began.boottime.saturating_sub(record.kept.boottime);
        return Joint { same_kernel: true, gap, error: 0, at_least: false, step: 0 };
    }
    let step = ahead(arrival.last).saturating_sub(ahead(arrival.began));
    let gap = apart(arrival.began.realtime, record.kept.realtime).saturating_add(step);
    let uptime = arrival.began.boottime;
    let at_least = u64::try_from(gap).is_ok_and(|gap| gap >= uptime);
    Joint {
        same_kernel: false,
        gap: u64::try_from(gap).unwrap_or(0).max(uptime),
        error: MACHINE_CLOCK,
        at_least: !at_least,
        step,
    }
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn id(boot: [u8; 16]) -> Option<String> {
    let digits = format!("{:032x}", u128::from_be_bytes(boot));
    let parts = [0..8, 8..12, 12..16, 16..20, 20..32];
    let parts: Option<Vec<&str>> = parts.into_iter().map(|part| digits.get(part)).collect();
    (boot != [0; 16]).then(|| parts.map(|parts| parts.join("-"))).flatten()
}

/// One line of time; `None` of a record that nobody has arrived with.
pub(crate) fn measure(record: &Record) -> Option<Timeline> {
    let arrival = record.arrival?;
    let joint = join(record, &arrival);
    let frozen = record.frozen.boottime;
    let kept = signed(record.kept.boottime.saturating_sub(frozen));
    let arrived = kept.saturating_add(signed(joint.gap));
    let place = |phase, at: u64| match phase {
        TimelinePhase::Prepare | TimelinePhase::Freeze => apart(at, frozen),
        _ => arrived.saturating_add(apart(at, arrival.began.boottime)),
    };
    let machine = |phase: &str, began: i64, ended: i64| Span {
        phase: phase.to_owned(),
        session: None,
        participant: None,
        began,
        microseconds: u64::try_from(ended.saturating_sub(began)).unwrap_or(0),
    };
    let mut spans = if joint.same_kernel {
        vec![machine("restart", kept, arrived)]
    } else {
        let booted = arrived.saturating_sub(signed(arrival.began.boottime)).max(kept);
        vec![machine("shutdown", kept, booted), machine("boot", booted, arrived)]
    };
    // A session is ready when it was finished, or else with the last file that was retrieved so far.
    let mut ready: BTreeMap<&str, (bool, i64)> = BTreeMap::new();
    for span in &record.spans {
        let name = span.name.and_then(|name| record.names.get(name as usize));
        let began = place(span.phase, span.began);
        let ended = began.saturating_add(signed(span.length));
        let is_finish = span.phase == TimelinePhase::Finish;
        if let Some(name) = name.filter(|name| !name.participant)
            && (is_finish || span.phase == TimelinePhase::Retrieve)
        {
            let at = ready.entry(&name.name).or_insert((is_finish, ended));
            if is_finish && !at.0 {
                *at = (true, ended);
            }
        }
        let text = |participant| {
            name.filter(|name| name.participant == participant).map(|name| name.name.to_string())
        };
        spans.push(Span {
            phase: span.phase.as_str().to_owned(),
            session: text(false),
            participant: text(true),
            began,
            microseconds: span.length,
        });
    }
    spans.sort_by_key(|span| span.began);
    let first = ready.into_iter().min_by_key(|(_, (_, at))| *at);
    Some(Timeline {
        number: record.number,
        carrier: record.carrier.to_string(),
        frozen_at: record.frozen.realtime,
        same_kernel: joint.same_kernel,
        boot_before: id(record.boot),
        boot_after: id(arrival.boot),
        blackout: first.map(|(session, (_, at))| Blackout {
            microseconds: u64::try_from(at).unwrap_or(0),
            error_microseconds: joint.error,
            at_least: joint.at_least,
            session: session.to_owned(),
        }),
        clock_step_microseconds: joint.step,
        spans,
        unlisted: u64::from(record.unlisted),
    })
}
