//! What was seen of a kernel's replacement, whether it is as it must be, and the tables of it.

use std::fmt;
use std::time::Duration;

use kv::load::LoadReport;
use luo::protocol::{Span, Timeline};

use super::super::table;
use super::asker::Seen;

/// A kernel that runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Boot {
    pub(super) id: String,
    pub(super) release: String,
    /// When its agent first answered, since it started.
    pub(super) uptime: Duration,
}

impl fmt::Display for Boot {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let id = self.id.get(..8).unwrap_or(&self.id);
        write!(formatter, "Linux {}, boot {id}", self.release)
    }
}

/// A moment, by this machine's clock.
#[derive(Debug, Clone, Copy)]
pub(super) struct Mark {
    pub(super) what: &'static str,
    /// Since the asker began.
    pub(super) at: Duration,
}

/// All that was seen.
#[derive(Debug, Clone)]
pub(super) struct Outcome {
    /// On which the virtual one ran.
    pub(super) machine: String,
    pub(super) carrier: &'static str,
    pub(super) mib: u64,
    /// Before and after, here and below.
    pub(super) boots: (Boot, Boot),
    pub(super) keys: (u64, u64),
    pub(super) seen: Seen,
    /// The last answer before the longest time without one, and the first after.
    pub(super) gap: (Duration, Duration),
    pub(super) marks: Vec<Mark>,
    /// When luod froze, in seconds since the asker began; to within a second after the kexec.
    pub(super) frozen_at: f64,
    /// What luod measured.
    pub(super) timeline: Timeline,
    pub(super) load: LoadReport,
}

impl Outcome {
    /// How long no client had an answer.
    pub(super) fn stood(&self) -> Duration {
        self.gap.1.saturating_sub(self.gap.0)
    }

    /// What is not as it must be.
    pub(super) fn errors(&self) -> Vec<String> {
        let mut errors = Vec::new();
        let load = &self.load;
        if !load.is_clean() {
            errors.push(format!(
                "{} requests failed or had wrong bytes and {} connections were dropped; first: {}",
                load.total.failed,
                load.total.dropped,
                load.first_failure.as_deref().unwrap_or("unknown")
            ));
        }
        if load.verify.verified_bytes != self.mib << 20 {
            errors.push(format!(
                "of {} MiB {} bytes were read back",
                self.mib, load.verify.verified_bytes
            ));
        }
        if let Some(wrong) = &self.seen.wrong {
            errors.push(format!("the client that counts got {wrong}"));
        }
        if let Some(lost) = &self.seen.lost {
            errors.push(format!("the client that counts lost its connection at {lost}"));
        }
        if self.keys.0 != self.keys.1 {
            errors.push(format!("kv had {} keys before, and has {}", self.keys.0, self.keys.1));
        }
        if self.boots.0.id == self.boots.1.id || self.timeline.same_kernel {
            errors.push("the kernel was not replaced".into());
        }
        if self.timeline.carrier != self.carrier {
            errors.push(format!(
                "it went through the carrier {} instead of {}",
                self.timeline.carrier, self.carrier
            ));
        }
        if self.timeline.blackout.is_none() {
            errors.push("luod did not see any session become ready".into());
        }
        errors
    }

    /// The tables.
    pub(super) fn text(&self) -> String {
        let mut sides = table::begun(&["", "before", "after"]);
        for (what, before, after) in self.sides() {
            sides.add_row(table::cells([what.to_owned(), before, after]));
        }
        let mut phases = table::begun(&["phase, by luod's clock", "whose", "after freeze", "took"]);
        for span in &self.timeline.spans {
            phases.add_row(table::cells(row(span)));
        }
        format!("{sides}\n\n{phases}\n\n{}\n{}\n", self.measured(), self.machine)
    }

    /// What there was on both sides.
    pub(super) fn sides(&self) -> [(&'static str, String, String); 4] {
        let Self { boots: (before, after), keys, .. } = self;
        [
            ("kernel", before.to_string(), after.to_string()),
            ("keys in kv", table::number(keys.0), table::number(keys.1)),
            (
                "values, compared byte for byte",
                table::mebibytes(self.mib << 20),
                table::mebibytes(self.load.verify.verified_bytes),
            ),
            (
                "values that were lost or differ",
                String::new(),
                table::number(self.load.verify.failed),
            ),
        ]
    }

    /// What became of the connection.
    fn connection(&self) -> String {
        let answered = table::number(self.seen.answers.len() as u64);
        match (&self.seen.lost, &self.seen.wrong) {
            (None, None) => format!(
                "One TCP connection went on from kernel to kernel: {answered} numbered requests, none \
                 lost, none done twice."
            ),
            (Some(what), _) | (None, Some(what)) => {
                format!("The connection failed after {answered} requests: {what}.")
            }
        }
    }

    /// The blackout, from outside and by luod's own account.
    pub(super) fn measured(&self) -> String {
        let mut text = format!(
            "Without an answer, seen from outside: {}",
            table::milliseconds(self.stood().as_secs_f64() * 1e3)
        );
        if let Some(blackout) = &self.timeline.blackout {
            let sense = if blackout.at_least { "at least " } else { "" };
            text.push_str(&format!(
                "; by luod's clocks, from freeze to the first session: {sense}{} ± {}",
                table::milliseconds(blackout.microseconds as f64 / 1e3),
                table::milliseconds(blackout.error_microseconds as f64 / 1e3)
            ));
        }
        text.push_str(&format!(
            ". The processors are emulated. Carrier: {}. {}",
            self.carrier,
            self.connection()
        ));
        text
    }
}

/// A phase as a row.
pub(super) fn row(span: &Span) -> [String; 4] {
    let whose = match (&span.session, &span.participant) {
        (Some(session), _) => format!("session {session}"),
        (None, Some(participant)) => format!("participant {participant}"),
        (None, None) => "the machine".to_owned(),
    };
    [
        span.phase.clone(),
        whose,
        table::milliseconds_signed(span.began as f64 / 1e3),
        table::milliseconds(span.microseconds as f64 / 1e3),
    ]
}

#[cfg(test)]
pub(super) mod tests {
    use luo::protocol::Blackout;
    use serde_json::json;

    use super::super::asker::Answer;
    use super::*;

    fn step(name: &str, failed: u64, verified: u64) -> serde_json::Value {
        json!({
            "name": name, "started_ms": 0.0, "duration_ms": 10.0, "served": 9, "failed": failed,
            "dropped": 0, "verified_bytes": verified, "worst_ms": 1.0, "p50_ms": 1.0, "p99_ms": 1.0
        })
    }

    fn load(failed: u64, verified: u64) -> LoadReport {
        serde_json::from_value(json!({
            "fill": step("fill", 0, 0), "steps": [], "verify": step("verify", failed, verified),
            "total": step("total", failed, verified), "timeline": [], "first_failure": null
        }))
        .expect("a report")
    }

    fn span(phase: &str, session: Option<&str>, began: i64, microseconds: u64) -> Span {
        Span {
            phase: phase.into(),
            session: session.map(str::to_owned),
            participant: None,
            began,
            microseconds,
        }
    }

    /// A replacement that went well, with 2 MiB in kv.
    pub(in super::super) fn outcome() -> Outcome {
        let at = |ms| Answer { at: Duration::from_millis(ms), took: Duration::from_millis(3) };
        let boot = |id: &str| Boot {
            id: id.into(),
            release: "7.3".into(),
            uptime: Duration::from_secs(2),
        };
        let mark = |what, ms| Mark { what, at: Duration::from_millis(ms) };
        Outcome {
            machine: "a machine".into(),
            carrier: "liveupdate",
            mib: 2,
            boots: (boot("one"), boot("<two>")),
            keys: (128, 128),
            seen: Seen { answers: vec![at(10), at(990), at(4000)], lost: None, wrong: None },
            gap: (Duration::from_millis(990), Duration::from_millis(4000)),
            marks: vec![mark("luoctl reboot", 500), mark("kv listens", 3900)],
            frozen_at: 0.9,
            timeline: Timeline {
                number: 1,
                carrier: "liveupdate".into(),
                frozen_at: 0,
                same_kernel: false,
                boot_before: None,
                boot_after: None,
                blackout: Some(Blackout {
                    microseconds: 2_900_000,
                    error_microseconds: 1_000_000,
                    at_least: false,
                    session: "kv".into(),
                }),
                clock_step_microseconds: 0,
                spans: vec![
                    span("prepare", None, -100_000, 90_000),
                    span("boot", None, 100_000, 2_000_000),
                    span("claim", Some("<kv>"), 2_500_000, 1000),
                ],
                unlisted: 0,
            },
            load: load(0, 2 << 20),
        }
    }

    #[test]
    fn a_kernel_that_was_replaced_without_a_loss_has_no_errors() {
        assert_eq!(outcome().errors(), Vec::<String>::new());
    }

    #[test]
    fn each_thing_that_is_not_as_it_was_is_an_error() {
        let spoil: [fn(&mut Outcome); 9] = [
            |outcome| outcome.load = load(1, 2 << 20),
            |outcome| outcome.load = load(0, 1 << 20),
            |outcome| outcome.seen.wrong = Some("other".into()),
            |outcome| outcome.seen.lost = Some("reset".into()),
            |outcome| outcome.keys.1 = 127,
            |outcome| outcome.boots.1 = outcome.boots.0.clone(),
            |outcome| outcome.timeline.same_kernel = true,
            |outcome| outcome.timeline.carrier = "arena".into(),
            |outcome| outcome.timeline.blackout = None,
        ];
        for (index, spoil) in spoil.into_iter().enumerate() {
            let mut outcome = outcome();
            spoil(&mut outcome);
            assert_eq!(outcome.errors().len(), 1, "{index}: {:?}", outcome.errors());
        }
    }

    #[test]
    fn the_tables_have_both_sides_and_each_phase() {
        let text = outcome().text();
        for part in
            ["keys in kv", "prepare", "boot", "session <kv>", "-100 ms", "3010 ms", "none lost"]
        {
            assert!(text.contains(part), "{part} is not in {text}");
        }
    }
}
