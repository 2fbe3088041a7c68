//! `luoctl reboot`: replaces the kernel, and takes the files along.
//!
//! Invariants: [`preflight`] decides and [`course`] orders without I/O, [`machine`] does I/O without
//! deciding; `--dry-run` leaves everything as it was.

mod course;
mod machine;
mod preflight;

use std::time::Duration;

use luo::protocol::{Report, Status};
use luo::{Manager, Options};
use serde::Serialize;

use crate::cli::{Global, RebootCarrier};
use crate::cost;
use crate::exit::Exit;
use crate::failure::{Context, Failure};
use crate::format;
use crate::output::{Output, TextTable, Tone, cell};
use crate::progress::Spinner;
use course::{Done, Left, Step, Stopped, Why};
use machine::Here;
use preflight::{Check, Far, REHEARSAL, Verdict};

/// What the command line asks for.
#[derive(Debug)]
pub(crate) struct Wanted {
    pub(crate) carrier: RebootCarrier,
    pub(crate) dry_run: bool,
    pub(crate) accept_unknown: bool,
    pub(crate) options: Options,
    /// How long luod may take to answer.
    pub(crate) deadline: Duration,
}

impl Wanted {
    pub(crate) fn new(
        carrier: RebootCarrier,
        dry_run: bool,
        accept_unknown: bool,
        global: &Global,
    ) -> Self {
        let (options, deadline) = (global.options(), global.deadline);
        Self { carrier, dry_run, accept_unknown, options, deadline }
    }
}

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Told<'a> {
    carrier: Far,
    dry_run: bool,
    checks: &'a [Check],
    /// Whether the checks allow it.
    may_reboot: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    rehearsal: Option<&'a Report>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stopped: Option<StoppedAt>,
}

/// Where a reboot was stopped.
#[derive(Debug, Serialize)]
struct StoppedAt {
    step: Step,
    reason: String,
    left: String,
}

pub(crate) fn run(manager: &Manager, wanted: Wanted, output: &mut Output) -> Result<(), Failure> {
    let status = manager.status().map_err(Failure::luod(Context::Reboot))?;
    let far = Far::choose(asked(wanted.carrier), &status);
    let mut checks = preflight::checks(far, &machine::facts(status.clone()));
    let mut rehearsal = None;
    if wanted.dry_run {
        let (check, report) = rehearse(&wanted, far, &status, output);
        checks.push(check);
        rehearsal = report;
    }
    let may_reboot = preflight::may_go_on(&checks, wanted.accept_unknown);
    let told = |stopped| Told {
        carrier: far,
        dry_run: wanted.dry_run,
        checks: &checks,
        may_reboot,
        rehearsal: rehearsal.as_ref(),
        stopped,
    };
    if !output.is_json() && (!output.is_quiet() || !may_reboot) {
        output.table(&table(&checks))?;
        if let Some(report) = &rehearsal {
            output.table(&cost::summary(report))?;
        }
    }
    if !may_reboot || wanted.dry_run {
        output.reply(&told(None))?;
        return verdict(&checks, &wanted, far, output);
    }
    // Whoever reads along sees the checks before anything begins.
    output.finish()?;
    let mut here = Here::new(wanted.options.clone(), wanted.deadline, far, output)?;
    match course::run(&mut here, far) {
        Ok(done) => {
            drop(here);
            output.reply(&told(None))?;
            went(&done, output)
        }
        Err(stopped) => {
            drop(here);
            let (step, left) = (stopped.step, left_is(&stopped.left, far));
            let failure = told_of(stopped, far);
            output.reply(&told(Some(StoppedAt { step, reason: failure.to_string(), left })))?;
            Err(failure)
        }
    }
}

const fn asked(carrier: RebootCarrier) -> Option<Far> {
    match carrier {
        RebootCarrier::Auto => None,
        RebootCarrier::Liveupdate => Some(Far::Liveupdate),
        RebootCarrier::Arena => Some(Far::Arena),
    }
}

/// Has luod go through all of it up to the departure, and take it back.
fn rehearse(
    wanted: &Wanted,
    far: Far,
    status: &Status,
    output: &Output,
) -> (Check, Option<Report>) {
    if status.transition.is_some() || status.state != luo::State::Normal {
        let why = "it was not tried, as an update is under way";
        return (Check::unknown(REHEARSAL, why, "end that one first"), None);
    }
    let spinner = Spinner::start("rehearsing", output);
    let longest = wanted.options.clone().deadline(machine::patient(wanted.deadline));
    let rehearsed =
        Manager::connect(longest).and_then(|manager| manager.rehearse_through(far.name()));
    drop(spinner);
    match rehearsed {
        Ok(report) if report.left_out.is_empty() => {
            let why = "everything that is kept goes through the carrier, and there is room for it";
            (Check::pass(REHEARSAL, why), Some(report))
        }
        Ok(report) => {
            let left: Vec<String> = report
                .left_out
                .iter()
                .map(|failure| crate::failure::refused(&failure.clone().into()))
                .collect();
            let why = format!("left behind, being optional: {}", left.join("; "));
            (Check::pass(REHEARSAL, why), Some(report))
        }
        Err(error) => {
            let why = Failure::luod(Context::Rehearse)(error).to_string();
            (Check::fail(REHEARSAL, why, "settle that; nothing was changed"), None)
        }
    }
}

fn table(checks: &[Check]) -> TextTable {
    let mut table = TextTable::new(&["CHECK", "VERDICT", "WHY"]);
    for check in checks {
        let (verdict, tone) = match check.verdict {
            Verdict::Pass => ("pass", Tone::Good),
            Verdict::Fail => ("fail", Tone::Bad),
            Verdict::Unknown => ("unknown", Tone::Notice),
        };
        let why = match &check.next {
            Some(next) => format!("{}; {next}", check.why),
            None => check.why.clone(),
        };
        table.row(vec![
            cell(check.name, Tone::Plain),
            cell(verdict, tone),
            cell(&why, Tone::Plain),
        ]);
    }
    table
}

/// How it ends where nothing was begun.
fn verdict(
    checks: &[Check],
    wanted: &Wanted,
    far: Far,
    output: &mut Output,
) -> Result<(), Failure> {
    let named = |verdict| {
        let of: Vec<&str> = checks
            .iter()
            .filter(|check| check.verdict == verdict)
            .map(|check| check.name)
            .collect();
        of.join(", ")
    };
    let failed = named(Verdict::Fail);
    if !failed.is_empty() {
        return Err(stop(format!(
            "the machine was not rebooted, and nothing was changed: {failed}; settle what the checks \
             name"
        )));
    }
    let unknown = named(Verdict::Unknown);
    if !unknown.is_empty() && !wanted.accept_unknown {
        return Err(stop(format!(
            "the machine was not rebooted, and nothing was changed, as it is not known whether \
             everything would come back: {unknown}; settle that, or take the risk with \
             --accept-unknown"
        )));
    }
    output.done(&format!("A reboot through the {} would go well. Nothing was changed.", far.name()))
}

fn stop(sentence: String) -> Failure {
    Failure::Step { sentence, exit: Exit::Failed, source: None }
}

fn went(done: &Done, output: &mut Output) -> Result<(), Failure> {
    let frozen = done.freeze.as_ref().map(|report| format::micros(report.microseconds));
    let frozen = frozen.map_or_else(String::new, |time| format!(" Frozen in {time}."));
    output.done(&format!(
        "Departed: the handover is committed, and the machine goes on with the next kernel.{frozen}"
    ))
}

/// What is left, and what to do about it.
fn left_is(left: &Left, far: Far) -> String {
    match left {
        Left::Undone | Left::Cancelled => {
            "everything was undone, the machine goes on as before: settle that and try again".into()
        }
        Left::Stuck(reason) => format!(
            "and it could not be undone ({reason}): `luoctl status` shows where it stands, `luoctl \
             cancel` takes it back"
        ),
        Left::Arrived => {
            "luod was started again and has arrived in this system with everything it \
             took: let the services retrieve it, then `luoctl finish`, and try again"
                .into()
        }
        Left::Revived => {
            "luod was started again: `luoctl sessions` shows what it has; try again".into()
        }
        Left::Gone(reason) => {
            let what = match far {
                Far::Arena => "the arena holds everything that was taken",
                Far::Liveupdate => {
                    "the kernel holds what was taken as long as somebody has its \
                     sessions open"
                }
            };
            format!(
                "luod has gone and was not started again ({reason}): {what}; start luod, which \
                 arrives with it in this system, or reboot by hand"
            )
        }
    }
}

fn told_of(stopped: Stopped<Failure>, far: Far) -> Failure {
    let left = left_is(&stopped.left, far);
    let step = stopped.step.name();
    match stopped.why {
        Why::Interrupted => stop(format!("{step} was interrupted; {left}")),
        Why::Failed(failure @ Failure::Luod { .. }) => failure.with_note(left),
        Why::Failed(failure) => stop(format!("{step} failed: {failure}; {left}")),
    }
}

#[cfg(test)]
mod tests;
