//! What was seen of a loss of power, whether it is as it must be, and the tables of it.

use std::time::{Duration, Instant};

use kv::load::{LoadReport, StepReport};

use super::super::table;

/// The way into the arena.
#[derive(Debug, Clone)]
pub(super) struct Departure {
    /// The workload ran.
    pub(super) prepare: Duration,
    /// Optional files that the arena cannot take.
    pub(super) left_out: usize,
    /// The workload stood, here and below.
    pub(super) freeze: Duration,
    /// Until the handover was on the disk.
    pub(super) commit: Duration,
    /// When the last request had been answered.
    pub(super) stood_since: Instant,
}

/// The way out of it.
#[derive(Debug, Clone)]
pub(super) struct Arrival {
    /// From the start of luod until it served what the arena holds.
    pub(super) luod_serves: Duration,
    /// Files that arrived.
    pub(super) files: u64,
    /// From the start of kv until it served.
    pub(super) kv_serves: Duration,
    /// From the start of luod until a client had an answer.
    pub(super) first_answer: Duration,
    pub(super) first_answer_at: Instant,
    /// Whether the arena still holds a handover after finish.
    pub(super) holds_handover: bool,
}

/// All that was seen.
#[derive(Debug, Clone)]
pub(super) struct Outcome {
    pub(super) machine: String,
    pub(super) connections: usize,
    pub(super) mib: u64,
    /// The size of the arena's file.
    pub(super) arena_bytes: u64,
    /// What was kept in it while nothing else was left.
    pub(super) stored_bytes: u64,
    pub(super) departure: Departure,
    /// From SIGKILL until no process was left.
    pub(super) killed: Duration,
    pub(super) arrival: Arrival,
    /// From the last answer before to the first one after.
    pub(super) stood: Duration,
    pub(super) load: LoadReport,
}

impl Outcome {
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
        for step in load.steps.iter().filter(|step| step.served == 0) {
            errors.push(format!("{}: no request was served", step.name));
        }
        let gone = self.departure.left_out as u64;
        // The memory, the listener and the connections; sockets go along where luod may take them apart.
        if self.arrival.files == 0 || self.arrival.files + gone != self.connections as u64 + 2 {
            errors.push(format!(
                "{} files came through the arena and {gone} did not go along, of kv's memory, its \
                 listener and its {} connections",
                self.arrival.files, self.connections
            ));
        }
        if self.arrival.holds_handover {
            errors.push("the arena still holds the handover after finish".into());
        }
        errors
    }

    /// The tables.
    pub(super) fn text(&self) -> String {
        let mut load = table::begun(&[
            "load", "served", "failed", "dropped", "verified", "p50", "p99", "worst",
        ]);
        let mut row = |title: &str, step: &StepReport| {
            let mut cells = table::row(title, step, None);
            // No event is within these steps.
            cells.pop();
            load.add_row(cells);
        };
        for step in &self.load.steps {
            row(&step.name, step);
        }
        row("reading all data back", &self.load.verify);
        let mut phases = table::begun(&["what", "took", "kv"]);
        let Self { departure, arrival, .. } = self;
        for (what, took, workload) in [
            ("prepare: the memory is copied", departure.prepare, "serves"),
            ("freeze: what has changed since", departure.freeze, "stands"),
            ("depart: the handover is committed", departure.commit, "stands"),
            ("SIGKILL, until no process is left", self.killed, "is dead"),
            ("luod starts and arrives", arrival.luod_serves, "is dead"),
            ("kv starts and has its memory", arrival.kv_serves, "starts"),
            ("start of luod to the first answer", arrival.first_answer, "serves again"),
            ("last answer to the first one after", self.stood, ""),
        ] {
            let took = table::milliseconds(took.as_secs_f64() * 1e3);
            phases.add_row(table::cells([what.to_owned(), took, workload.to_owned()]));
        }
        format!(
            "{load}\n\n{phases}\n\n{}\n{} connections. The arena's file: {} bytes, of which {} were \
             in use. {} sockets did not go along; of its files {} did.\n",
            self.machine,
            self.connections,
            table::number(self.arena_bytes),
            table::number(self.stored_bytes),
            departure.left_out,
            arrival.files,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(name: &str, verified: u64) -> serde_json::Value {
        serde_json::json!({
            "name": name, "started_ms": 0.0, "duration_ms": 1.0, "served": 7, "failed": 0,
            "dropped": 0, "verified_bytes": verified, "worst_ms": 1.0, "p50_ms": 1.0, "p99_ms": 1.0,
        })
    }

    fn outcome() -> Outcome {
        let load = serde_json::json!({
            "fill": step("fill", 0), "steps": [step("nothing happens", 5), step("prepare", 5)],
            "verify": step("verify", 16 << 20), "total": step("total", 17 << 20), "timeline": [],
            "first_failure": null,
        });
        let took = Duration::from_millis(12);
        let now = Instant::now();
        Outcome {
            machine: "a machine".into(),
            connections: 2,
            mib: 16,
            arena_bytes: 88 << 20,
            stored_bytes: 17 << 20,
            departure: Departure {
                prepare: took,
                left_out: 3,
                freeze: took,
                commit: took,
                stood_since: now,
            },
            killed: took,
            arrival: Arrival {
                luod_serves: took,
                files: 1,
                kv_serves: took,
                first_answer: took,
                first_answer_at: now,
                holds_handover: false,
            },
            stood: took,
            load: serde_json::from_value(load).expect("it is a report"),
        }
    }

    #[test]
    fn what_came_back_whole_is_no_error() {
        assert_eq!(outcome().errors(), Vec::<String>::new());
    }

    #[test]
    fn each_thing_that_is_not_as_it_was_is_an_error() {
        type Spoil = fn(&mut Outcome);
        let spoil: [(&str, Spoil); 7] = [
            ("wrong bytes", |outcome| outcome.load.total.failed = 1),
            ("dropped", |outcome| outcome.load.total.dropped = 1),
            ("were read back", |outcome| outcome.load.verify.verified_bytes -= 1),
            ("no request was served", |outcome| outcome.load.steps[1].served = 0),
            ("0 files", |outcome| outcome.arrival.files = 0),
            ("2 files", |outcome| outcome.arrival.files = 2),
            ("still holds", |outcome| outcome.arrival.holds_handover = true),
        ];
        for (word, spoil) in spoil {
            let mut outcome = outcome();
            spoil(&mut outcome);
            let errors = outcome.errors();
            assert_eq!(errors.len(), 1, "{errors:?}");
            assert!(errors[0].contains(word), "{errors:?}");
        }
    }

    #[test]
    fn the_tables_have_every_phase_and_the_bytes_of_the_arena() {
        let text = outcome().text();
        for part in ["prepare", "freeze", "depart", "SIGKILL", "first answer", "17,825,792"] {
            assert!(text.contains(part), "{part} is missing in\n{text}");
        }
    }
}
