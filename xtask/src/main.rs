//! The workspace's own tool: `cargo xtask demo`, `test`, `bench`, `lab`, `dist`.
//!
//! One module a subcommand. A new one is a module with `Args` and `run`, a variant of [`Command`]
//! and a line in [`main`]. What several of them need is in [`failure`], [`proc`] and
//! [`workspace`].
//!
//! Invariants:
//! - A subcommand changes nothing outside `target/` and `dist/`, but for three: `test` and `lab` install
//!   missing tools on Debian as root (`--no-install` forbids it), `lab` keeps kernels in a cache
//!   (see [`lab`]), `bench` writes `docs/benchmarks.md`.
//! - What could not be run is named, with the reason; it never counts as passed.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::workspace::Workspace;

mod bench;
mod demo;
mod deny;
mod dist;
mod docs;
mod failure;
mod lab;
mod packaging;
mod proc;
mod soak;
mod test;
mod workspace;

/// The workspace's own tool.
#[derive(Debug, Parser)]
#[command(bin_name = "cargo xtask", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Update a service and luod itself under load, and show that nothing is lost.
    Demo(demo::Args),
    /// Run every test and check that this machine can run; say what it cannot.
    Test(test::Args),
    /// Measure, each figure beside its limit or peer, and write docs/benchmarks.md.
    Bench(bench::Args),
    /// Play the tests that draw their cases by chance for long, with new seeds.
    Soak(soak::Args),
    /// Replace kernels in virtual machines: tests, a shell.
    Lab(lab::Args),
    /// Build the release tarball into dist/.
    Dist(dist::Args),
    /// A part that a benchmark runs as a process of its own.
    #[command(hide = true)]
    Helper(bench::helper::Args),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = Workspace::find().and_then(|workspace| match cli.command {
        Command::Demo(args) => demo::run(&workspace, &args),
        Command::Test(args) => test::run(&workspace, &args),
        Command::Bench(args) => bench::run(&workspace, &args),
        Command::Soak(args) => soak::run(&workspace, &args),
        Command::Lab(args) => lab::run(&workspace, &args),
        Command::Dist(args) => dist::run(&workspace, &args),
        Command::Helper(args) => bench::helper::run(&args),
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failed) => {
            eprintln!("error: {}", failed.chain());
            ExitCode::FAILURE
        }
    }
}
