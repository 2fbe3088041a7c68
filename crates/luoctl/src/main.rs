//! The control tool of luo, the live update orchestrator.
//!
//! Everything it knows of luod comes through the client library. Its only state is a note of the
//! kernel that it has loaded.
//!
//! Invariants: what was asked for goes to stdout, everything else to stderr; how the command ended
//! is told by the exit status ([`exit::Exit`]) and, where it failed, by one sentence; a reader that
//! closes stdout early ends the command, and is no failure.
#![forbid(unsafe_code)]

mod annotate;
mod arena;
mod cli;
mod cost;
mod cycle;
mod dts;
mod exit;
mod failure;
mod format;
mod inspect;
mod kexec;
mod lists;
mod manual;
mod output;
mod progress;
mod reboot;
mod report;
mod run;
mod scan;
mod status;
mod upgrade;
mod watch;

use std::process::ExitCode;

use clap::Parser;
use luo::Manager;

use crate::cli::{Cli, Command};
use crate::exit::Exit;
use crate::failure::{Context, Failure};
use crate::output::Output;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are among these "errors", with status 0 and stdout.
            let _ = error.print();
            return if error.use_stderr() { Exit::Usage } else { Exit::Done }.into();
        }
    };
    let mut output = Output::new(&cli.global);
    let result = carry_out(&cli, &mut output);
    match result.and_then(|()| output.finish()) {
        Ok(()) => Exit::Done.into(),
        Err(failure) => {
            failure.report(&mut output);
            failure.code().into()
        }
    }
}

fn carry_out(cli: &Cli, output: &mut Output) -> Result<(), Failure> {
    let connect = |context| Manager::connect(cli.global.options()).map_err(Failure::luod(context));
    match &cli.command {
        Command::Status => status::run(&connect(Context::Asking)?, output),
        Command::Sessions => lists::sessions(&connect(Context::Asking)?, output),
        Command::Files { session } => {
            lists::files(&connect(Context::Asking)?, session.as_deref(), output)
        }
        Command::Inspect { blob: Some(blob) } => inspect::blob(blob, output),
        Command::Inspect { blob: None } => inspect::handover(&connect(Context::Asking)?, output),
        Command::Prepare { carrier } => {
            cycle::prepare(&connect(Context::Prepare)?, *carrier, output)
        }
        Command::Freeze => cycle::freeze(&connect(Context::Freeze)?, output),
        Command::Cancel => cycle::cancel(&connect(Context::Cancel)?, output),
        Command::Depart => cycle::depart(&connect(Context::Depart)?, output),
        Command::Finish { unclaimed } => {
            cycle::finish(&connect(Context::Finish)?, (*unclaimed).into(), output)
        }
        Command::Rehearse { carrier } => {
            cycle::rehearse(&connect(Context::Rehearse)?, *carrier, output)
        }
        Command::Upgrade { binary, worker_only } => {
            let request = upgrade::Request {
                binary: binary.as_deref(),
                limit: cli.global.deadline,
                keeper: !worker_only,
                options: cli.global.options(),
            };
            upgrade::run(&connect(Context::Upgrade)?, &request, output)
        }
        Command::Watch { count } => watch::run(&connect(Context::Watch)?, *count, output),
        Command::Release { session } => {
            lists::release(&connect(Context::Release)?, session, output)
        }
        Command::Arena { command } => arena::run(command, output),
        Command::Kexec { command } => kexec::run(command, output),
        Command::Reboot { carrier, dry_run, accept_unknown } => {
            let wanted = reboot::Wanted::new(*carrier, *dry_run, *accept_unknown, &cli.global);
            reboot::run(&connect(Context::Reboot)?, wanted, output)
        }
        Command::Report { output: file } => {
            report::run(&connect(Context::Asking)?, file.as_deref(), output)
        }
        Command::Run(arguments) => run::run(arguments, &cli.global),
        Command::Scan(arguments) => scan::run(arguments, &cli.global, output),
        Command::StartProgram(arguments) => Err(run::become_program(arguments)),
        Command::Completions { shell } => manual::completions(*shell, output),
        Command::Man { directory } => manual::pages(directory.as_deref(), output),
    }
}
