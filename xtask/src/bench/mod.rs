//! `cargo xtask bench`: every figure beside its limit or its peer, measured in the same run.
//!
//! A new benchmark is a module here with a function that gives [`Row`]s, and a line in
//! [`BENCHES`]. What must be a process of its own is a [`helper`].
//!
//! Invariants: a figure of ours never stands without the limit or peer of the same run, so ratios
//! survive a change of machine; a run of only some benchmarks does not touch docs/benchmarks.md; the
//! report names no path, no host and no user.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::failure::{Context as _, Failed, Result};
use crate::proc;
use crate::workspace::Workspace;

mod arena;
mod criu;
mod daemon;
mod descriptors;
mod files;
mod handover;
pub(crate) mod helper;
mod lab;
mod latency;
mod machine;
mod report;
mod restart;
mod round_trip;
mod scaling;
mod scm_rights;
mod stats;

pub(crate) use report::Row;

/// Options of `cargo xtask bench`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Run only these benchmarks (may be given more than once), and write no report.
    #[arg(long, value_name = "BENCH")]
    only: Vec<String>,
    /// List the benchmarks and end.
    #[arg(long)]
    list: bool,
    /// A tenth of the work: shows that everything runs, not how fast. Writes no report.
    #[arg(long)]
    quick: bool,
    /// Measure debug binaries, to look for mistakes in the benchmarks. Writes no report.
    #[arg(long)]
    debug: bool,
}

/// One benchmark.
struct Bench {
    name: &'static str,
    about: &'static str,
    run: fn(&Bencher<'_>) -> Result<Vec<Row>>,
}

const BENCHES: &[Bench] = &[
    Bench {
        name: "scm_rights",
        about: "descriptors a second through a bare unix socket",
        run: scm_rights::run,
    },
    Bench {
        name: "round_trip",
        about: "a message to another process and back, bare",
        run: round_trip::run,
    },
    Bench {
        name: "descriptors",
        about: "descriptors a second to luod, its keeper included, and back",
        run: descriptors::run,
    },
    Bench {
        name: "latency",
        about: "a request to luod, beside a bare message and back",
        run: latency::run,
    },
    Bench {
        name: "handover",
        about: "writing and parsing the files' tree of a handover",
        run: handover::run,
    },
    Bench {
        name: "scaling",
        about: "the last tenth of many files and sessions, beside the first",
        run: scaling::run,
    },
    Bench {
        name: "restart",
        about: "a new image of a service with all its listeners",
        run: restart::run,
    },
    Bench {
        name: "files",
        about: "what a file of each type costs in an update, beside CRIU with the same files",
        run: files::run,
    },
    Bench { name: "arena", about: "memory into an arena's medium and back", run: arena::run },
    Bench {
        name: "lab",
        about: "a kernel replaced in an emulated machine, of which only the ratios say anything",
        run: lab::run,
    },
];

/// What the benchmarks know of the run.
#[derive(Debug)]
pub(crate) struct Bencher<'a> {
    pub(crate) workspace: &'a Workspace,
    /// This program, for helpers.
    pub(crate) xtask: PathBuf,
    /// luod of the same build.
    pub(crate) luod: PathBuf,
    quick: bool,
    progress: ProgressBar,
}

impl Bencher<'_> {
    /// That many repetitions; a tenth of them in a quick run, but at least one.
    pub(crate) fn times(&self, full: usize) -> usize {
        if self.quick { (full / 10).max(1) } else { full }
    }

    /// Shows what is being measured.
    pub(crate) fn measuring(&self, what: &str) {
        self.progress.set_message(what.to_owned());
    }

    /// Says that something cannot be measured here, and why.
    pub(crate) fn skipped(&self, why: &str) {
        self.progress.suspend(|| eprintln!("SKIPPED: {why}"));
    }
}

/// Runs the benchmarks, prints the table, and writes it into docs/benchmarks.md.
pub(crate) fn run(workspace: &Workspace, args: &Args) -> Result<()> {
    if args.list {
        for bench in BENCHES {
            println!("{:<12} {}", bench.name, bench.about);
        }
        return Ok(());
    }
    if let Some(unknown) =
        args.only.iter().find(|name| !BENCHES.iter().any(|bench| bench.name == **name))
    {
        return Err(Failed::new(format!(
            "no benchmark is named `{unknown}`: `cargo xtask bench --list` lists them"
        )));
    }
    if cfg!(debug_assertions) && !args.debug {
        return again_in_release(workspace, args);
    }

    let chosen: Vec<&Bench> = BENCHES
        .iter()
        .filter(|bench| args.only.is_empty() || args.only.iter().any(|name| name == bench.name))
        .collect();
    let bar = ProgressBar::new(chosen.len() as u64);
    let style = "{bar:20} {pos}/{len} {prefix} {wide_msg} {elapsed}";
    bar.set_style(ProgressStyle::with_template(style).context(|| "draw progress".into())?);
    bar.enable_steady_tick(Duration::from_millis(200));
    let xtask = std::env::current_exe().context(|| "find this program".into())?;
    let luod = xtask.with_file_name("luod");
    if !luod.exists() {
        return Err(Failed::new(format!(
            "there is no {}: build the whole workspace with the same profile",
            luod.display()
        )));
    }
    let bencher = Bencher { workspace, xtask, luod, quick: args.quick, progress: bar.clone() };

    let began = Instant::now();
    let mut sections = Vec::new();
    for bench in chosen {
        bar.set_prefix(bench.name);
        let rows = (bench.run)(&bencher)
            .map_err(|failed| Failed::new(format!("{}: {}", bench.name, failed.chain())))?;
        sections.push(report::Section { name: bench.name, about: bench.about, rows });
        bar.inc(1);
    }
    bar.finish_and_clear();

    print!("{}", report::plain(&sections));
    if args.only.is_empty() && !args.quick && !args.debug {
        let path = workspace.root().join("docs/benchmarks.md");
        let page = report::page(&sections, &machine::describe(), began.elapsed());
        fs::create_dir_all(workspace.root().join("docs"))
            .and_then(|()| fs::write(&path, page))
            .context(|| format!("write {}", path.display()))?;
        println!("\nwritten to docs/benchmarks.md");
    }
    let missed = sections.iter().flat_map(|section| &section.rows).filter(|row| row.missed());
    for row in missed {
        println!("goal missed: {}: {}", row.what, row.peer);
    }
    Ok(())
}

/// Builds everything optimised and hands the run over to that build.
fn again_in_release(workspace: &Workspace, args: &Args) -> Result<()> {
    proc::check(workspace.cargo().args([
        "build",
        "--release",
        "--locked",
        "--workspace",
        "--bins",
    ]))?;
    let mut command = workspace.program(workspace.target().join("release/xtask"));
    command.arg("bench");
    for name in &args.only {
        command.args(["--only", name]);
    }
    if args.quick {
        command.arg("--quick");
    }
    proc::check(&mut command)
}
