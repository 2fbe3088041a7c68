//! `cargo xtask test`: every test and check that this machine can run.
//!
//! A run is a list of [`Stage`]s, one after the other. Each gives a [`Report`]; a stage that fails
//! does not keep the next from running, so one run tells everything. At the end stand a table of
//! the stages, everything that was skipped with its reason, and a line
//! `N passed, N failed, N skipped` that counts tests and checks.
//!
//! Invariants: a test or check that did not run counts as skipped and is named; the exit status is
//! zero only where nothing failed.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use crate::failure::{Failed, Result};
use crate::workspace::Workspace;
use crate::{demo, deny, docs, lab, packaging};

mod junit;
mod lint;
mod rust;
pub(crate) mod tools;

/// Options of `cargo xtask test`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Run only these stages (may be given more than once).
    #[arg(long, value_name = "STAGE")]
    only: Vec<String>,
    /// List the stages and end.
    #[arg(long)]
    list: bool,
    /// Install nothing, neither with apt-get nor with cargo.
    #[arg(long)]
    no_install: bool,
}

/// What the stages know of the run.
#[derive(Debug)]
pub(crate) struct Run<'a> {
    pub(crate) workspace: &'a Workspace,
    pub(crate) may_install: bool,
}

/// One stage of a run.
struct Stage {
    name: &'static str,
    about: &'static str,
    run: fn(&Run<'_>) -> Result<Report>,
}

/// In the order in which they run: what is quick and often wrong comes first.
const STAGES: &[Stage] = &[
    Stage { name: "tools", about: "install what the tests call on", run: tools::run },
    Stage { name: "fmt", about: "cargo fmt --check", run: lint::fmt },
    Stage { name: "deny", about: "licences, bans and sources of dependencies", run: deny::stage },
    Stage { name: "packaging", about: "unit files", run: packaging::stage },
    Stage { name: "clippy", about: "clippy, warnings denied, all targets", run: lint::clippy },
    Stage { name: "doc", about: "rustdoc, warnings denied", run: lint::doc },
    Stage { name: "test", about: "unit and integration tests", run: rust::test },
    Stage { name: "doctest", about: "examples in rustdoc", run: rust::doctest },
    Stage { name: "demo", about: "the demonstration, with little data", run: demo::stage },
    Stage { name: "power", about: "a loss of power, with little data", run: demo::power_stage },
    Stage { name: "lab", about: "kernels replaced in virtual machines", run: lab::stage },
    Stage { name: "docs", about: "commands in README.md and docs/", run: docs::stage },
];

/// What a stage found.
#[derive(Debug, Default)]
pub(crate) struct Report {
    /// Tests and checks that passed.
    pub(crate) passed: usize,
    /// What failed, one line each.
    pub(crate) failed: Vec<String>,
    /// What did not run, each with its reason.
    pub(crate) skipped: Vec<String>,
    /// What else is worth a line in the summary.
    pub(crate) notes: Vec<String>,
}

impl Report {
    /// One check that passed.
    pub(crate) fn passed() -> Self {
        Self { passed: 1, ..Self::default() }
    }

    /// One check that could not run.
    pub(crate) fn skipped(reason: impl Into<String>) -> Self {
        Self { skipped: vec![reason.into()], ..Self::default() }
    }

    fn verdict(&self) -> &'static str {
        match (self.passed, self.failed.len(), self.skipped.len()) {
            (_, 1.., _) => "FAILED",
            (0, 0, 0) => "nothing",
            (0, 0, 1..) => "skipped",
            (_, 0, _) => "passed",
        }
    }
}

/// Runs the stages and prints the summary.
pub(crate) fn run(workspace: &Workspace, args: &Args) -> Result<()> {
    if args.list {
        for stage in STAGES {
            println!("{:<10} {}", stage.name, stage.about);
        }
        return Ok(());
    }
    if let Some(unknown) =
        args.only.iter().find(|name| !STAGES.iter().any(|stage| stage.name == **name))
    {
        return Err(Failed::new(format!(
            "no stage is named `{unknown}`: `cargo xtask test --list` lists them"
        )));
    }
    let run = Run { workspace, may_install: !args.no_install };
    let mut done = Vec::new();
    for stage in STAGES {
        if !args.only.is_empty() && !args.only.iter().any(|name| name == stage.name) {
            continue;
        }
        println!("\n== {}: {}", stage.name, stage.about);
        let began = Instant::now();
        let report = (stage.run)(&run)
            .unwrap_or_else(|failed| Report { failed: vec![failed.chain()], ..Report::default() });
        for line in &report.skipped {
            println!("SKIPPED: {line}");
        }
        for line in &report.failed {
            println!("FAILED: {line}");
        }
        done.push((stage.name, report, began.elapsed()));
    }
    println!("\n{}", summary(&done));
    if done.iter().any(|(_, report, _)| !report.failed.is_empty()) {
        return Err(Failed::new("not everything passed: see the summary above"));
    }
    Ok(())
}

/// The table of the stages, what failed, what was skipped, and the closing line.
fn summary(done: &[(&str, Report, Duration)]) -> String {
    let mut text = format!(
        "{:<10} {:<8} {:>8} {:>7} {:>7} {:>7}\n",
        "stage", "verdict", "seconds", "passed", "failed", "skipped"
    );
    let (mut passed, mut failed, mut skipped) = (0, 0, 0);
    let mut lines = String::new();
    for (name, report, took) in done {
        passed += report.passed;
        failed += report.failed.len();
        skipped += report.skipped.len();
        // Writing into a string cannot fail, here and below.
        let _ = writeln!(
            text,
            "{name:<10} {:<8} {:>8.1} {:>7} {:>7} {:>7}",
            report.verdict(),
            took.as_secs_f64(),
            report.passed,
            report.failed.len(),
            report.skipped.len()
        );
        for (kind, entries) in
            [("FAILED", &report.failed), ("SKIPPED", &report.skipped), ("note", &report.notes)]
        {
            for entry in entries {
                let _ = writeln!(lines, "{kind}: {name}: {entry}");
            }
        }
    }
    if !lines.is_empty() {
        let _ = writeln!(text, "\n{}", lines.trim_end());
    }
    let _ = write!(text, "\n{passed} passed, {failed} failed, {skipped} skipped");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_closes_with_the_counts_alone_on_a_line() {
        let report = Report {
            passed: 7,
            failed: vec!["a::b".into()],
            skipped: vec!["needs root".into(), "needs dtc".into()],
            notes: vec![],
        };
        let text = summary(&[
            ("fmt", Report::passed(), Duration::from_secs(1)),
            ("test", report, Duration::from_secs(2)),
        ]);
        assert_eq!(text.lines().last(), Some("8 passed, 1 failed, 2 skipped"));
        assert!(text.contains("FAILED: test: a::b"), "{text}");
        assert!(text.contains("SKIPPED: test: needs root"), "{text}");
    }

    #[test]
    fn a_stage_that_ran_nothing_is_not_called_passed() {
        assert_eq!(Report::skipped("no dtc").verdict(), "skipped");
        assert_eq!(Report::default().verdict(), "nothing");
        assert_eq!(Report::passed().verdict(), "passed");
        let both = Report { failed: vec![String::new()], ..Report::passed() };
        assert_eq!(both.verdict(), "FAILED");
    }

    #[test]
    fn stages_have_names_of_their_own() {
        for (at, stage) in STAGES.iter().enumerate() {
            assert!(!STAGES[..at].iter().any(|other| other.name == stage.name), "{}", stage.name);
        }
    }
}
