//! `luoctl upgrade`.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::Duration;

use luo::{Error, Manager};

use crate::failure::{Context, Failure};
use crate::output::Output;
use crate::progress::Spinner;

/// What is to be replaced, and by what.
#[derive(Debug)]
pub(crate) struct Request<'a> {
    pub(crate) binary: Option<&'a Path>,
    pub(crate) limit: Duration,
    pub(crate) keeper: bool,
}

pub(crate) fn run(
    manager: &Manager,
    request: &Request<'_>,
    output: &mut Output,
) -> Result<(), Failure> {
    let binary = request.binary.map(open).transpose()?;
    let upgraded = {
        let _spinner = Spinner::start("upgrading luod", output);
        let binary = binary.as_ref().map(AsFd::as_fd);
        manager.upgrade(binary, request.limit, request.keeper)
    };
    let upgraded = upgraded.map_err(|error| failed(manager, error))?;
    output.reply(&upgraded)?;
    let what = if request.keeper { "worker and keeper" } else { "the worker" };
    output.done(&format!(
        "luod was upgraded from {} to {}: {what} replaced, nothing let go.",
        upgraded.before, upgraded.after
    ))
}

fn open(path: &Path) -> Result<File, Failure> {
    File::open(path).map_err(|source| Failure::Path {
        path: path.to_owned(),
        doing: "opened",
        next: "name luod's new binary with --binary",
        source,
    })
}

/// Says who serves now: that the old one goes on is the promise of an upgrade, so it is looked at.
fn failed(manager: &Manager, error: Error) -> Failure {
    let note = match (&error, manager.status()) {
        (Error::Refused(_), Ok(status)) => {
            format!("luod {} (worker {}) serves on", status.version, status.pid)
        }
        (_, Ok(status)) => {
            format!("luod {} (worker {}) serves now", status.version, status.pid)
        }
        (_, Err(status)) => format!("and luod cannot be asked who serves: {status}"),
    };
    Failure::Luod { context: Context::Upgrade, source: error, note: Some(note) }
}
