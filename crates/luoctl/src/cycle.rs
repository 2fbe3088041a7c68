//! The events of the cycle: `luoctl prepare`, `freeze`, `cancel`, `depart`, `finish` and
//! `rehearse`.

use luo::protocol::{Failure as LeftOut, Report, Reported};
use luo::{Manager, Unclaimed};

use crate::cli::Carrier;
use crate::cost;
use crate::failure::{Context, Failure};
use crate::format;
use crate::output::Output;
use crate::progress::Spinner;

pub(crate) fn prepare(
    manager: &Manager,
    carrier: Carrier,
    output: &mut Output,
) -> Result<(), Failure> {
    let report = event(Context::Prepare, "preparing", output, || match carrier {
        Carrier::Keeper => manager.prepare(),
        other => manager.prepare_through(other.name()),
    })?;
    told(report, "Prepared: what can be kept while the workloads run is kept", output)
}

pub(crate) fn freeze(manager: &Manager, output: &mut Output) -> Result<(), Failure> {
    let report = event(Context::Freeze, "freezing", output, || manager.freeze())?;
    told(report, "Frozen: nothing may change until depart or cancel", output)
}

pub(crate) fn cancel(manager: &Manager, output: &mut Output) -> Result<(), Failure> {
    let report = event(Context::Cancel, "cancelling", output, || manager.cancel())?;
    told(report, "Cancelled: all is as before prepare", output)
}

pub(crate) fn depart(manager: &Manager, output: &mut Output) -> Result<(), Failure> {
    let report = event(Context::Depart, "handing over", output, || manager.depart())?;
    told(report, "Departed: the handover is committed", output)
}

pub(crate) fn finish(
    manager: &Manager,
    unclaimed: Unclaimed,
    output: &mut Output,
) -> Result<(), Failure> {
    let report = event(Context::Finish, "finishing", output, || manager.finish(unclaimed))?;
    told(report, "Finished: the live update is over", output)
}

pub(crate) fn rehearse(
    manager: &Manager,
    carrier: Carrier,
    output: &mut Output,
) -> Result<(), Failure> {
    let report = event(Context::Rehearse, "rehearsing", output, || match carrier {
        Carrier::Keeper => manager.rehearse(),
        other => manager.rehearse_through(other.name()),
    })?;
    if output.is_json() {
        return output.reply(&Reported { report });
    }
    output.table(&cost::parts(&report.timings))?;
    if !report.timings.is_empty() {
        output.line("")?;
    }
    if let Some(needs) = report.needs.as_ref().map(cost::needs).filter(|table| !table.is_empty()) {
        output.table(&needs)?;
        output.line("")?;
    }
    output.table(&cost::summary(&report))?;
    left_out(&report.left_out, output)
}

fn event<T>(
    context: Context,
    doing: &'static str,
    output: &Output,
    call: impl FnOnce() -> Result<T, luo::Error>,
) -> Result<T, Failure> {
    let _spinner = Spinner::start(doing, output);
    call().map_err(Failure::luod(context))
}

/// An event has taken place, and its report was lost with the connection.
#[derive(serde::Serialize)]
struct Unreported {
    report: Option<Report>,
}

/// Says what an event did.
fn told(report: Option<Report>, what: &str, output: &mut Output) -> Result<(), Failure> {
    let Some(report) = report else {
        output.reply(&Unreported { report: None })?;
        return output.done(&format!(
            "{what}. luod was restarted meanwhile and its report was lost; `luoctl status` shows \
             how things stand."
        ));
    };
    if output.is_json() {
        return output.reply(&Reported { report });
    }
    let calls = cost::calls(&report.timings);
    output.done(&format!(
        "{what}. The state is {} after {} and {}.",
        report.state.name(),
        format::micros(report.microseconds),
        format::count(calls, "call"),
    ))?;
    left_out(&report.left_out, output)
}

/// Names what the update goes on without: a warning, so `--quiet` does not hide it.
fn left_out(failures: &[LeftOut], output: &mut Output) -> Result<(), Failure> {
    // The report comes first, wherever stderr leads.
    output.finish()?;
    for failure in failures {
        output.complain(&format!(
            "left out, being optional: {}",
            crate::failure::refused(&failure.clone().into())
        ));
    }
    Ok(())
}
