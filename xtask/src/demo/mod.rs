//! `cargo xtask demo`: kv is updated, luod's worker is killed and luod is upgraded, all under load,
//! and nothing is lost.
//!
//! ```text
//! build ─▶ luod and kv v1 start ─▶ fill ─▶ │ nothing happens │ kv v1 → v2 │ luod's worker killed │
//!     luod upgraded │ kv v2 → v1 │ ─▶ all data read back ─▶ the same update with little and with
//!     much data ─▶ table, report, verdict
//! ```
//!
//! Between the bars 64 connections set and get without a pause and check every byte.
//!
//! `cargo xtask demo --power` shows something else: all processes are killed at once, and everything
//! comes back from an arena's file; see [`power`]. `--kexec` replaces a kernel; see [`kexec`].
//!
//! Invariants:
//! - Every process that is started here is ended here: by its guard, and on SIGINT, SIGTERM and
//!   SIGHUP as well.
//! - A request that failed, a connection that dropped, a byte that differed is an error. A latency
//!   beyond its target is a warning, and an error with `--strict` alone: on a busy machine it says
//!   more about the machine.

use std::path::{Path, PathBuf};

use crate::failure::{Failed, Result};
use crate::test::{Report, Run};
use crate::workspace::Workspace;

mod chart;
pub(crate) mod kexec;
mod machine;
mod outcome;
mod power;
mod processes;
mod progress;
mod report;
mod sizes;
mod steps;
mod table;

use outcome::Verdict;
use processes::Programs;
use sizes::Sizes;

/// Options of `cargo xtask demo`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Show a loss of power instead: everything goes through an arena's file, which alone is left.
    #[arg(long, conflicts_with_all = ["report", "picture", "strict"])]
    pub(crate) power: bool,
    /// Show a kernel that is replaced under kv, in a virtual machine (see docs/lab.md).
    #[arg(long, conflicts_with_all = ["power", "strict"])]
    pub(crate) kexec: bool,
    /// What takes kv's memory to the next kernel.
    #[arg(long, value_enum, requires = "kexec", default_value_t = kexec::Carrier::Auto)]
    pub(crate) carrier: kexec::Carrier,
    /// Install nothing for the virtual machine; say what is missing.
    #[arg(long, requires = "kexec")]
    pub(crate) no_install: bool,
    /// Little data, short steps and debug builds; for tests.
    #[arg(long)]
    pub(crate) quick: bool,
    /// Where to write the report [default: target/demo/report.html, with --kexec kexec.html].
    #[arg(long, value_name = "PATH")]
    pub(crate) report: Option<PathBuf>,
    /// Also write the chart by itself, as an SVG image for documents.
    #[arg(long, value_name = "PATH")]
    pub(crate) picture: Option<PathBuf>,
    /// Fail also where a latency misses its target.
    #[arg(long)]
    pub(crate) strict: bool,
}

/// Runs the demonstration and shows what came of it.
pub(crate) fn run(workspace: &Workspace, args: &Args) -> Result<()> {
    if args.power {
        return power::show(workspace, args.quick);
    }
    if args.kexec {
        let places =
            kexec::Places { report: args.report.as_deref(), picture: args.picture.as_deref() };
        return kexec::show(workspace, args.carrier, args.quick, !args.no_install, &places);
    }
    let misses = show(workspace, args.quick, args.report.as_deref(), args.picture.as_deref())?;
    if args.strict && !misses.is_empty() {
        return Err(Failed::new("a latency missed its target, and --strict was given"));
    }
    Ok(())
}

/// The stage of `cargo xtask test`.
pub(crate) fn stage(run: &Run<'_>) -> Result<Report> {
    let report = run.workspace.target().join("demo/quick.html");
    let misses = show(run.workspace, true, Some(&report), None)?;
    Ok(Report { notes: misses, ..Report::passed() })
}

/// The stage of `cargo xtask test` for the loss of power.
pub(crate) fn power_stage(run: &Run<'_>) -> Result<Report> {
    power::show(run.workspace, true)?;
    Ok(Report::passed())
}

/// Runs it; gives the latencies that missed their targets, in words.
fn show(
    workspace: &Workspace,
    quick: bool,
    report: Option<&Path>,
    picture: Option<&Path>,
) -> Result<Vec<String>> {
    let _watched = processes::watch_signals()?;
    let programs = Programs::build(workspace, !quick)?;
    let wanted = if quick { Sizes::QUICK } else { Sizes::FULL };
    let sizes = wanted.within(machine::available_bytes()?)?;
    for shortage in &sizes.shortages {
        println!("NOTE: {shortage}");
    }
    let outcome = steps::run(&programs, &sizes)?;

    let path =
        report.map_or_else(|| workspace.target().join("demo/report.html"), Path::to_path_buf);
    report::write(&path, &outcome)?;
    if let Some(picture) = picture {
        report::write_picture(picture, &outcome)?;
    }
    print!("\n{}", table::text(&outcome));
    println!("\nreport: {}", path.display());

    let Verdict { errors, misses } = outcome.verdict();
    for miss in &misses {
        println!("WARNING: {miss}");
    }
    if !errors.is_empty() {
        return Err(Failed::new(errors.join("; ")));
    }
    println!("Nothing failed, nothing was dropped, every byte was right.");
    Ok(misses)
}
