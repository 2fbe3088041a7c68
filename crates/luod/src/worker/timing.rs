//! How long the parts of a transition took.
//!
//! Invariants: a part is what one subsystem does in one phase for one session; its length is from
//! the start of its first call to the end of its last, so that calls side by side count once.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use luo::protocol;
use luo_core::{Location, Phase, SessionName, SubsystemName};

/// Calls of one transition, grouped.
#[derive(Debug)]
pub(crate) struct Timings {
    began: Instant,
    parts: BTreeMap<Key, Part>,
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    phase: Phase,
    /// `None`: files.
    subsystem: Option<SubsystemName>,
    session: Option<SessionName>,
}

#[derive(Debug)]
struct Part {
    calls: u64,
    first: Instant,
    last: Instant,
}

impl Timings {
    pub(crate) fn new(now: Instant) -> Self {
        Self { began: now, parts: BTreeMap::new() }
    }

    /// A call that ran from `start` to `end`.
    pub(crate) fn add(&mut self, phase: Phase, location: &Location, start: Instant, end: Instant) {
        let key = Key {
            phase,
            subsystem: location.subsystem.clone(),
            session: location.session.as_ref().map(|(_, name)| name.clone()),
        };
        let part = self.parts.entry(key).or_insert(Part { calls: 0, first: start, last: end });
        part.calls += 1;
        part.first = part.first.min(start);
        part.last = part.last.max(end);
    }

    /// How long it took until `now`.
    pub(crate) fn total(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.began)
    }

    pub(crate) fn into_protocol(self) -> Vec<protocol::Timing> {
        self.parts
            .into_iter()
            .map(|(key, part)| protocol::Timing {
                phase: key.phase.name().to_owned(),
                subsystem: key.subsystem.map_or_else(|| "files".to_owned(), String::from),
                session: key.session.map(String::from),
                calls: part.calls,
                microseconds: micros(part.last.saturating_duration_since(part.first)),
            })
            .collect()
    }
}

/// Whole microseconds.
pub(crate) fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_side_by_side_count_once() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut timings = Timings::new(start);
        let location = Location::default();
        timings.add(Phase::Prepare, &location, at(0), at(10));
        timings.add(Phase::Prepare, &location, at(5), at(12));
        timings.add(Phase::Freeze, &location, at(20), at(21));
        let parts = timings.into_protocol();
        let told: Vec<_> =
            parts.iter().map(|part| (part.phase.as_str(), part.calls, part.microseconds)).collect();
        assert_eq!(told, [("prepare", 2, 12_000), ("freeze", 1, 1_000)]);
    }
}
