//! The stages that read the sources only: formatting, clippy, rustdoc.

use super::{Report, Run};
use crate::failure::Result;
use crate::proc;

/// `cargo fmt --check`.
pub(super) fn fmt(run: &Run<'_>) -> Result<Report> {
    if let Some(report) = missing(run, "fmt", "rustfmt") {
        return Ok(report);
    }
    proc::check(run.workspace.cargo().args(["fmt", "--all", "--check"]))?;
    Ok(Report::passed())
}

/// Clippy over every target, warnings denied.
pub(super) fn clippy(run: &Run<'_>) -> Result<Report> {
    if let Some(report) = missing(run, "clippy", "clippy") {
        return Ok(report);
    }
    proc::check(run.workspace.cargo().args([
        "clippy",
        "--locked",
        "--workspace",
        "--all-targets",
        "--",
        "-D",
        "warnings",
    ]))?;
    Ok(Report::passed())
}

/// Rustdoc, warnings denied.
pub(super) fn doc(run: &Run<'_>) -> Result<Report> {
    proc::check(
        run.workspace
            .cargo()
            .args(["doc", "--locked", "--workspace", "--no-deps"])
            .env("RUSTDOCFLAGS", "-D warnings"),
    )?;
    Ok(Report::passed())
}

/// The report of a stage whose cargo subcommand the toolchain lacks. It is not installed here:
/// a component must fit the toolchain, which is the machine's owner's choice.
fn missing(run: &Run<'_>, subcommand: &str, component: &str) -> Option<Report> {
    match proc::output(run.workspace.cargo().args([subcommand, "--version"])) {
        Ok(_) => None,
        Err(failed) => Some(Report::skipped(format!(
            "the toolchain has no {component} (`rustup component add {component}` adds it): {}",
            failed.chain()
        ))),
    }
}
