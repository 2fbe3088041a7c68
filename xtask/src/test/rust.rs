//! The stages that run Rust's tests.

use std::fs;
use std::io::ErrorKind;
use std::path::PathBuf;

use super::junit::{self, Results};
use super::{Report, Run};
use crate::failure::{Context as _, Failed, Result};
use crate::proc;
use crate::workspace::Workspace;

/// Unit and integration tests, with nextest where it can be had.
pub(super) fn test(run: &Run<'_>) -> Result<Report> {
    match nextest(run) {
        Ok(program) => with_nextest(run.workspace, program),
        Err(failed) => {
            let note = format!("cargo test instead of nextest: {}", failed.chain());
            println!("note: {note}");
            let mut report = with_cargo_test(run.workspace)?;
            report.notes.push(note);
            Ok(report)
        }
    }
}

/// The examples in the documentation of the crates.
pub(super) fn doctest(run: &Run<'_>) -> Result<Report> {
    let (status, output) = proc::run_and_keep(run.workspace.cargo().args([
        "test",
        "--locked",
        "--workspace",
        "--doc",
        "--no-fail-fast",
    ]))?;
    report_of(libtest_results(&output), status.success(), "the doctests")
}

/// Finds nextest, or installs it for this checkout alone.
fn nextest(run: &Run<'_>) -> Result<PathBuf> {
    let own = run.workspace.tools().join("bin/cargo-nextest");
    if let Some(program) =
        proc::find("cargo-nextest").or_else(|| own.is_file().then(|| own.clone()))
    {
        return Ok(program);
    }
    if !run.may_install {
        return Err(Failed::new("it is not installed, and --no-install was given"));
    }
    // Not optimised: that takes a third of the time, and nextest itself hardly works.
    proc::check(
        run.workspace
            .cargo()
            .args(["install", "--quiet", "--locked", "--debug", "cargo-nextest", "--root"])
            .arg(run.workspace.tools()),
    )?;
    Ok(own)
}

fn with_nextest(workspace: &Workspace, program: PathBuf) -> Result<Report> {
    let junit = workspace.target().join("nextest/xtask/junit.xml");
    match fs::remove_file(&junit) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            return Err(error).context(|| format!("remove {}", junit.display()));
        }
        _ => {}
    }
    // By its path: it may lie where cargo does not look for subcommands.
    let mut nextest = workspace.program(program);
    nextest.args([
        "nextest",
        "run",
        "--locked",
        "--workspace",
        "--no-fail-fast",
        "--no-tests=pass",
        "--profile=xtask",
    ]);
    let status = proc::run(&mut nextest)?;
    let results = match fs::read_to_string(&junit) {
        Ok(xml) => junit::read(&xml),
        // Nothing was written: it did not build, or there is no test.
        Err(error) if error.kind() == ErrorKind::NotFound => Results::default(),
        Err(error) => return Err(error).context(|| format!("read {}", junit.display())),
    };
    report_of(results, status.success(), "nextest")
}

fn with_cargo_test(workspace: &Workspace) -> Result<Report> {
    let (status, output) = proc::run_and_keep(workspace.cargo().args([
        "test",
        "--locked",
        "--workspace",
        "--lib",
        "--bins",
        "--tests",
        "--examples",
        "--no-fail-fast",
        "--",
        "--show-output",
    ]))?;
    report_of(libtest_results(&output), status.success(), "cargo test")
}

fn report_of(results: Results, success: bool, who: &str) -> Result<Report> {
    let Results { passed, failed, skipped } = results;
    if !success && failed.is_empty() {
        return Err(Failed::new(format!("{who} failed before or beside the tests: see above")));
    }
    Ok(Report { passed, failed, skipped, notes: Vec::new() })
}

/// Reads what libtest prints with `--show-output`.
fn libtest_results(output: &str) -> Results {
    let mut results = Results::default();
    let mut speaking = "";
    for line in output.lines() {
        if let Some(test) = line.strip_prefix("test ") {
            match test.rsplit_once(" ... ") {
                Some((_, "ok")) => results.passed += 1,
                Some((name, "FAILED")) => results.failed.push(name.into()),
                Some((name, verdict)) if verdict.starts_with("ignored") => {
                    results.skipped.push(format!("{name}: {verdict}"));
                }
                _ => {}
            }
        } else if let Some(name) =
            line.strip_prefix("---- ").and_then(|rest| rest.split_once(' ')).map(|(name, _)| name)
        {
            speaking = name;
        } else if let Some(reason) = junit::skipped_line(line) {
            // It was counted as passed when its verdict was read.
            results.passed = results.passed.saturating_sub(1);
            results.skipped.push(format!("{speaking}: {reason}"));
        }
    }
    results
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libtest_output_is_counted_and_its_skips_are_named() {
        let results = libtest_results(
            "running 4 tests\n\
             test a ... ok\n\
             test b ... FAILED\n\
             test c ... ignored, needs a kernel\n\
             test d ... ok\n\
             successes:\n\
             ---- d stdout ----\n\
             SKIPPED: no dtc\n",
        );
        assert_eq!(results.passed, 1);
        assert_eq!(results.failed, ["b"]);
        assert_eq!(results.skipped, ["c: ignored, needs a kernel", "d: no dtc"]);
    }

    #[test]
    fn a_run_that_failed_without_a_failing_test_is_a_failure() {
        assert!(report_of(Results::default(), false, "nextest").is_err());
        assert!(report_of(Results::default(), true, "nextest").is_ok());
    }
}
