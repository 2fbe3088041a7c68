//! What was seen, and whether it is as it must be.

use kv::load::{LoadReport, StepReport};
use serde::Serialize;

/// How long the update of a service may delay a request, in milliseconds.
pub(super) const UPDATE_TARGET_MS: f64 = 50.0;
/// How much slower than where nothing happens a request may be by the chance of scheduling, in
/// milliseconds. What happens to luod must not show beyond this, nor what the size of the data does.
pub(super) const NOISE_MS: f64 = 15.0;

/// What a step does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Kind {
    /// The load alone.
    Nothing,
    /// The service is replaced.
    Service,
    /// luod's worker is killed.
    Kill,
    /// luod is replaced.
    Upgrade,
}

/// One step of the main part.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Step {
    pub(super) kind: Kind,
    /// What happened, as a title.
    pub(super) title: String,
    /// What happened, in more detail.
    pub(super) detail: String,
    /// How long the event took until all was as before, in milliseconds.
    pub(super) took_ms: Option<f64>,
    /// The worst latency of what was answered while the event was under way and shortly after, in
    /// milliseconds; where there is no event, of the whole step.
    pub(super) event_worst_ms: f64,
    /// For how long `event_worst_ms` looks, in milliseconds.
    pub(super) looked_ms: f64,
    /// What the load saw from this event to the next.
    pub(super) seen: StepReport,
}

/// Updates with one amount of data.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Compared {
    pub(super) mib: u64,
    /// Worst latency where nothing happened, in milliseconds.
    pub(super) nothing_ms: f64,
    /// Worst latency around each update, in milliseconds.
    pub(super) worst_ms: Vec<f64>,
    /// All of it, the reading back of all data included.
    pub(super) load: LoadReport,
}

impl Compared {
    /// The update in the middle: the worst of few says more about the machine.
    pub(super) fn typical_ms(&self) -> f64 {
        let mut worst = self.worst_ms.clone();
        worst.sort_by(f64::total_cmp);
        worst.get(worst.len() / 2).copied().unwrap_or_default()
    }

    /// The worst of all updates.
    pub(super) fn worst_ms(&self) -> f64 {
        self.worst_ms.iter().copied().fold(0.0, f64::max)
    }
}

/// The worst latency of what was answered from a moment on for so long, in milliseconds.
pub(super) fn worst_within(load: &LoadReport, from_ms: f64, length_ms: f64) -> f64 {
    let within = |at_ms: u32| (from_ms..=from_ms + length_ms).contains(&f64::from(at_ms));
    let slots = load.timeline.iter().filter(|slot| within(slot.at_ms));
    slots.map(|slot| f64::from(slot.worst_us) / 1e3).fold(0.0, f64::max)
}

/// All that was seen.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Outcome {
    pub(super) machine: String,
    /// Share of the processors' time in which they worked, over the main part; 0 to 1.
    pub(super) busy: Option<f64>,
    pub(super) connections: usize,
    pub(super) mib: u64,
    pub(super) steps: Vec<Step>,
    pub(super) load: LoadReport,
    pub(super) compared: Vec<Compared>,
    pub(super) shortages: Vec<String>,
}

/// What is wrong.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Verdict {
    /// Something was lost, dropped or different.
    pub(super) errors: Vec<String>,
    /// Something took longer than it should.
    pub(super) misses: Vec<String>,
}

impl Outcome {
    /// The worst latency of a usual span of this length in which nothing happens, in milliseconds:
    /// that of a longer one, or of the worst one, would hide a delay.
    pub(super) fn nothing_ms(&self, length_ms: f64) -> f64 {
        let mut worst = Vec::new();
        for step in self.steps.iter().filter(|step| step.kind == Kind::Nothing) {
            let (mut at, end) =
                (step.seen.started_ms, step.seen.started_ms + step.seen.duration_ms);
            while at < end {
                worst.push(worst_within(&self.load, at, length_ms.min(end - at)));
                at += length_ms.max(1.0);
            }
        }
        worst.sort_by(f64::total_cmp);
        worst.get(worst.len() / 2).copied().unwrap_or_default()
    }

    pub(super) fn verdict(&self) -> Verdict {
        let mut verdict = Verdict::default();
        let parts = std::iter::once((self.mib, &self.load))
            .chain(self.compared.iter().map(|compared| (compared.mib, &compared.load)));
        for (mib, load) in parts {
            if !load.is_clean() {
                verdict.errors.push(format!(
                    "with {mib} MiB of data {} requests failed and {} connections were dropped; first: {}",
                    load.total.failed,
                    load.total.dropped,
                    load.first_failure.as_deref().unwrap_or("unknown")
                ));
            }
            if load.total.verified_bytes < mib << 20 {
                verdict.errors.push(format!(
                    "of {mib} MiB only {} bytes were read back",
                    load.total.verified_bytes
                ));
            }
        }
        for step in &self.steps {
            self.judge_step(step, &mut verdict);
        }
        for compared in &self.compared {
            let worst = compared.worst_ms();
            if worst > UPDATE_TARGET_MS {
                verdict.misses.push(format!(
                    "an update with {} MiB of data delayed a request by {worst:.1} ms; the target is \
                     {UPDATE_TARGET_MS} ms",
                    compared.mib
                ));
            }
        }
        if let [little, much] = self.compared.as_slice() {
            let (little_ms, much_ms) = (little.typical_ms(), much.typical_ms());
            if much_ms > little_ms + NOISE_MS {
                verdict.misses.push(format!(
                    "an update with {} MiB of data delays a request by {much_ms:.1} ms, with {} MiB by \
                     {little_ms:.1} ms: it should not depend on the data",
                    much.mib, little.mib
                ));
            }
        }
        verdict
    }

    fn judge_step(&self, step: &Step, verdict: &mut Verdict) {
        let Step { kind, title, seen, event_worst_ms, .. } = step;
        if seen.served == 0 {
            verdict.errors.push(format!("{title}: no request was served"));
        }
        let worst = *event_worst_ms;
        let nothing = self.nothing_ms(step.looked_ms);
        match kind {
            Kind::Nothing => {}
            Kind::Service if worst > UPDATE_TARGET_MS => verdict.misses.push(format!(
                "{title}: a request was delayed by {worst:.1} ms; the target is {UPDATE_TARGET_MS} ms"
            )),
            Kind::Service => {}
            Kind::Kill | Kind::Upgrade if worst > nothing + NOISE_MS => {
                verdict.misses.push(format!(
                    "{title}: the worst request took {worst:.1} ms, and {nothing:.1} ms in as much \
                     time where nothing happens: it should delay none"
                ));
            }
            Kind::Kill | Kind::Upgrade => {}
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn step(name: &str, began: f64, served: u64, worst_ms: f64) -> Value {
        json!({
            "name": name, "started_ms": began, "duration_ms": 1000.0, "served": served,
            "failed": 0, "dropped": 0, "verified_bytes": 20 << 20, "worst_ms": worst_ms,
            "p50_ms": 1.0, "p99_ms": 2.0
        })
    }

    fn load(failed: u64, dropped: u64) -> LoadReport {
        let mut total = step("total", 0.0, 3000, 20.0);
        total["failed"] = json!(failed);
        total["dropped"] = json!(dropped);
        serde_json::from_value(json!({
            "fill": step("fill", 0.0, 10, 1.0),
            "steps": [step("load", 0.0, 1000, 3.0), step("update", 1000.0, 2000, 20.0)],
            "verify": step("verify", 0.0, 10, 1.0),
            "total": total,
            "timeline": [
                { "at_ms": 1, "served": 900, "worst_us": 1000 },
                { "at_ms": 999, "served": 100, "worst_us": 3000 },
                { "at_ms": 1050, "served": 1900, "worst_us": 9000 },
                { "at_ms": 1900, "served": 100, "worst_us": 20_000 }
            ],
            "first_failure": if failed + dropped > 0 { json!("what it was") } else { Value::Null }
        }))
        .expect("a report")
    }

    /// A run in which nothing happens, then a service is updated, and luod's worker is killed.
    pub(in super::super) fn outcome() -> Outcome {
        let load = load(0, 0);
        let of = |kind, title: &str, index: usize, worst: f64| Step {
            kind,
            title: title.into(),
            detail: "detail".into(),
            took_ms: (kind != Kind::Nothing).then_some(5.0),
            event_worst_ms: worst,
            looked_ms: 200.0,
            seen: load.steps[index].clone(),
        };
        let compared = |mib, worst: [f64; 3]| Compared {
            mib,
            nothing_ms: 3.0,
            worst_ms: worst.to_vec(),
            load: load.clone(),
        };
        Outcome {
            machine: "a machine".into(),
            busy: Some(0.5),
            connections: 4,
            mib: 16,
            steps: vec![
                of(Kind::Nothing, "nothing happens", 0, 3.0),
                of(Kind::Service, "kv v1 → v2", 1, 9.0),
                of(Kind::Kill, "<b>", 1, 4.0),
            ],
            compared: vec![compared(4, [5.0, 6.0, 40.0]), compared(16, [7.0, 5.0, 9.0])],
            load,
            shortages: Vec::new(),
        }
    }

    #[test]
    fn a_run_in_which_all_was_right_has_neither_errors_nor_misses() {
        assert_eq!(outcome().verdict(), Verdict::default());
    }

    #[test]
    fn what_failed_or_dropped_in_any_part_is_an_error() {
        for (failed, dropped) in [(1, 0), (0, 1)] {
            let mut main = outcome();
            main.load = load(failed, dropped);
            let mut part = outcome();
            part.compared[1].load = load(failed, dropped);
            for outcome in [main, part] {
                let errors = outcome.verdict().errors;
                assert_eq!(errors.len(), 1, "{errors:?}");
                assert!(errors[0].contains("what it was"), "{errors:?}");
            }
        }
    }

    #[test]
    fn a_step_without_a_request_or_data_that_was_not_read_back_is_an_error() {
        let mut outcome = outcome();
        outcome.steps[1].seen.served = 0;
        outcome.mib = 1000;
        assert_eq!(outcome.verdict().errors.len(), 2);
    }

    #[test]
    fn latencies_beyond_their_targets_are_misses_and_no_errors() {
        let mut slow = outcome();
        slow.steps[1].event_worst_ms = UPDATE_TARGET_MS + 1.0;
        slow.steps[2].event_worst_ms = 3.0 + NOISE_MS + 1.0;
        slow.compared[1].worst_ms = vec![6.0 + NOISE_MS + 1.0; 3];
        let Verdict { errors, misses } = slow.verdict();
        assert!(errors.is_empty(), "{errors:?}");
        assert_eq!(misses.len(), 3, "{misses:?}");
    }

    #[test]
    fn an_event_is_compared_with_a_usual_span_of_its_length_and_not_with_the_worst() {
        let outcome = outcome();
        // Five spans of 200 ms: in the first 1 ms at most, in the last 3, in the others nothing.
        assert!(outcome.nothing_ms(200.0).abs() < 1e-9);
        assert!((outcome.nothing_ms(1000.0) - 3.0).abs() < 1e-9);
    }

    #[test]
    fn the_worst_around_an_event_leaves_out_what_was_long_after() {
        let load = load(0, 0);
        assert!((worst_within(&load, 1000.0, 100.0) - 9.0).abs() < 1e-9);
        assert!((worst_within(&load, 1000.0, 1000.0) - 20.0).abs() < 1e-9);
        assert!(worst_within(&load, 1100.0, 10.0).abs() < 1e-9);
    }
}
