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
    parts: BTreeMap<Key, Calls>,
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    phase: Phase,
    /// `None`: files.
    subsystem: Option<SubsystemName>,
    session: Option<SessionName>,
}

#[derive(Debug)]
struct Calls {
    calls: u64,
    first: Instant,
    last: Instant,
}

/// What one session or participant did in one phase.
#[derive(Debug, Clone)]
pub(crate) struct Part {
    subsystem: Option<SubsystemName>,
    session: Option<SessionName>,
    /// When its first call began.
    pub(crate) first: Instant,
    /// When its last call ended.
    pub(crate) last: Instant,
}

impl Part {
    pub(crate) fn length(&self) -> Duration {
        self.last.saturating_duration_since(self.first)
    }

    /// The session's name, or the participant's and that it is one.
    pub(crate) fn whose(&self) -> Option<(&str, bool)> {
        match (&self.session, &self.subsystem) {
            (Some(session), _) => Some((session, false)),
            (None, Some(subsystem)) if **subsystem != *"files" => Some((subsystem, true)),
            _ => None,
        }
    }
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
        let part = self.parts.entry(key).or_insert(Calls { calls: 0, first: start, last: end });
        part.calls += 1;
        part.first = part.first.min(start);
        part.last = part.last.max(end);
    }

    /// How long it took until `now`.
    pub(crate) fn total(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.began)
    }

    /// When it began.
    pub(crate) fn began(&self) -> Instant {
        self.began
    }

    /// What each part took so far.
    pub(crate) fn parts(&self) -> Vec<Part> {
        let part = |(key, calls): (&Key, &Calls)| Part {
            subsystem: key.subsystem.clone(),
            session: key.session.clone(),
            first: calls.first,
            last: calls.last,
        };
        self.parts.iter().map(part).collect()
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
