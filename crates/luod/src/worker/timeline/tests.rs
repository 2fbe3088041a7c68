//! What is written down, and what it means.

use luo_core::{Location, SessionId, SessionName};
use proptest::prelude::*;

use super::measure::measure;
use super::*;
use crate::worker::timing::Timings;

const SECOND: u64 = 1_000_000;

/// Frozen at 100 s of its boot for 0.2 s; the next kernel's luod arrives 3 s later, 1.5 s after its
/// kernel began; the session is retrieved half a second after that.
fn record() -> Record {
    let reading = |realtime, boottime| Reading { realtime: 1_000 * SECOND + realtime, boottime };
    let span = |phase, name, began, length| TimelineSpan { phase, name, began, length };
    Record {
        number: 4,
        carrier: "arena".into(),
        boot: [1; 16],
        frozen: reading(0, 100 * SECOND),
        kept: reading(200_000, 100 * SECOND + 200_000),
        arrival: Some(TimelineArrival {
            boot: [2; 16],
            began: reading(3 * SECOND + 200_000, 1_500_000),
            last: reading(4 * SECOND + 200_000, 2_500_000),
        }),
        unlisted: 0,
        names: vec![TimelineName { name: "kv".into(), participant: false }],
        spans: vec![
            span(TimelinePhase::Prepare, None, 98 * SECOND, SECOND),
            span(TimelinePhase::Freeze, None, 100 * SECOND, 200_000),
            span(TimelinePhase::Claim, Some(0), 1_900_000, 1_000),
            span(TimelinePhase::Retrieve, Some(0), 1_950_000, 50_000),
        ],
    }
}

#[test]
fn a_blackout_goes_from_freeze_to_the_first_session_that_is_ready() {
    let timeline = measure(&record()).unwrap();
    let blackout = timeline.blackout.clone().unwrap();
    assert_eq!((blackout.microseconds, blackout.error_microseconds), (3_700_000, SECOND));
    assert_eq!((blackout.session.as_str(), blackout.at_least), ("kv", false));
    assert!(!timeline.same_kernel);
    let told: Vec<_> = timeline
        .spans
        .iter()
        .map(|span| (span.phase.as_str(), span.began, span.microseconds))
        .collect();
    assert_eq!(
        told,
        [
            ("prepare", -2_000_000, SECOND),
            ("freeze", 0, 200_000),
            ("shutdown", 200_000, 1_500_000),
            ("boot", 1_700_000, 1_500_000),
            ("claim", 3_600_000, 1_000),
            ("retrieve", 3_650_000, 50_000),
        ]
    );
}

#[test]
fn a_session_that_is_finished_is_ready_then() {
    let mut record = record();
    record.spans.push(TimelineSpan {
        phase: TimelinePhase::Finish,
        name: Some(0),
        began: 2_100_000,
        length: 10_000,
    });
    assert_eq!(measure(&record).unwrap().blackout.unwrap().microseconds, 3_810_000);
}

#[test]
fn where_the_kernel_stayed_no_clock_that_can_be_set_counts() {
    let mut record = record();
    record.arrival = Some(TimelineArrival {
        boot: [1; 16],
        began: Reading { realtime: 5, boottime: 101 * SECOND },
        last: Reading { realtime: 5, boottime: 101 * SECOND },
    });
    record.spans = vec![TimelineSpan {
        phase: TimelinePhase::Retrieve,
        name: Some(0),
        began: 102 * SECOND,
        length: 0,
    }];
    let timeline = measure(&record).unwrap();
    assert!(timeline.same_kernel);
    let blackout = timeline.blackout.unwrap();
    assert_eq!((blackout.microseconds, blackout.error_microseconds), (2 * SECOND, 0));
}

#[test]
fn boots_without_ids_are_told_apart_by_their_clocks() {
    let unknown = |began, last: Reading| {
        let mut record = record();
        record.boot = [0; 16];
        record.arrival = Some(TimelineArrival { boot: [0; 16], began, last });
        measure(&record).unwrap().same_kernel
    };
    let kept = record().kept;
    let later = |realtime, boottime| Reading {
        realtime: kept.realtime + realtime,
        boottime: kept.boottime + boottime,
    };
    assert!(unknown(later(SECOND, SECOND), later(SECOND, SECOND)));
    assert!(!unknown(Reading { realtime: kept.realtime, boottime: 1 }, later(0, 0)));
    // One that has run longer than the one before had: the clocks do not agree.
    assert!(!unknown(later(200 * SECOND, 20 * SECOND), later(0, 0)));
}

#[test]
fn a_clock_that_is_set_in_the_new_kernel_is_taken_into_account() {
    let mut record = record();
    // It began an hour behind, and was put right after the arrival.
    let hour = 3_600 * SECOND;
    let arrival = record.arrival.as_mut().unwrap();
    arrival.began.realtime -= 600 * SECOND;
    let timeline = measure(&record).unwrap();
    assert_eq!(timeline.clock_step_microseconds, 600_000_000);
    assert_eq!(timeline.blackout.unwrap().microseconds, 3_700_000);
    // One that is behind and stays so tells a lower bound: what the new kernel has run.
    let arrival = record.arrival.as_mut().unwrap();
    arrival.began.realtime = 1_000 * SECOND - 100;
    arrival.last = Reading {
        realtime: arrival.began.realtime + SECOND,
        boottime: arrival.began.boottime + SECOND,
    };
    let blackout = measure(&record).unwrap().blackout.unwrap();
    assert!(blackout.at_least);
    assert_eq!(blackout.microseconds, 200_000 + 1_500_000 + 500_000);
    assert!(blackout.microseconds < hour);
}

fn any_reading() -> impl Strategy<Value = Reading> {
    any::<(u64, u64)>().prop_map(|(realtime, boottime)| Reading { realtime, boottime })
}

proptest! {
    #[test]
    fn no_numbers_of_a_record_are_too_large(
        (frozen, kept, began, last) in (any_reading(), any_reading(), any_reading(), any_reading()),
        (same, at, length) in any::<(bool, u64, u64)>(),
    ) {
        let mut record = record();
        let boot = if same { [1; 16] } else { [2; 16] };
        (record.frozen, record.kept) = (frozen, kept);
        record.arrival = Some(TimelineArrival { boot, began, last });
        for span in &mut record.spans {
            (span.began, span.length) = (at, length);
        }
        measure(&record).unwrap();
    }
}

/// What one session did in a phase for so long.
fn parts(phase: Phase, sessions: usize) -> Vec<Part> {
    let start = Instant::now();
    let mut timings = Timings::new(start);
    for index in 0..sessions {
        let name = SessionName::new(&format!("session {index}")).unwrap();
        let location =
            Location { session: Some((SessionId(index as u64), name)), ..Location::default() };
        timings.add(phase, &location, start, start + Duration::from_millis(index as u64));
    }
    timings.parts()
}

#[test]
fn what_departs_fits_however_many_sessions_there_are_and_keeps_the_slowest() {
    let timeline = Timeline::default();
    timeline.prepares(7, "arena");
    timeline.prepared(parts(Phase::Prepare, 1_000));
    timeline.freezes(7, "arena");
    timeline.frozen(parts(Phase::Freeze, 1_000));
    let leaving = timeline.state().leaving.clone().unwrap();
    let record = leave(&leaving, now());
    assert_eq!((record.number, record.names.len()), (7, Record::NAMES_MAX));
    assert_eq!(record.unlisted as usize, 1_000 - Record::NAMES_MAX);
    assert_eq!(record.names[0].name, "session 999");
    let bytes = record.encode().unwrap();
    assert!(bytes.len() <= Record::MAX_SIZE);

    timeline.cancelled();
    assert!(timeline.state().leaving.is_none());
    assert!(timeline.record().is_none() && timeline.take_changed().is_none());
}

#[test]
fn a_worker_that_is_started_again_goes_on_with_what_was_written() {
    let timeline = Timeline::default();
    timeline.arrives();
    let mut departed = record();
    departed.arrival = None;
    departed.names.clear();
    departed.spans.clear();
    timeline.take(&departed.encode().unwrap()).unwrap();
    timeline.took(TimelinePhase::Claim, Some("kv"), Instant::now(), Duration::from_millis(2));
    let bytes = timeline.take_changed().unwrap();
    assert!(timeline.take_changed().is_none());

    let next = Timeline::default();
    next.restore(&bytes).unwrap();
    let start = Instant::now();
    next.took(TimelinePhase::Claim, Some("kv"), start, Duration::from_millis(9));
    assert!(next.take_changed().is_none(), "the first claim counts");
    next.took(TimelinePhase::Retrieve, Some("kv"), start, Duration::ZERO);
    let first = next.record().unwrap().spans[1];
    next.took(TimelinePhase::Retrieve, Some("kv"), start, Duration::from_secs(5));
    let last = next.record().unwrap().spans[1];
    assert_eq!(last.began, first.began);
    assert!(last.length >= 5_000_000 - 1_000, "{last:?}");
}

#[test]
fn what_cannot_be_read_is_as_if_nothing_had_been_measured() {
    let timeline = Timeline::default();
    assert!(timeline.take(b"timeline-v9").is_err());
    assert!(timeline.restore(&[0xff; 400]).is_err());
    timeline.took(TimelinePhase::Arrive, None, Instant::now(), Duration::ZERO);
    assert!(timeline.record().is_none() && timeline.take_changed().is_none());
}
