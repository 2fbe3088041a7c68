//! `luoctl upgrade`.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::Duration;

use luo::{DEFAULT_DEADLINE, Error, Manager, Options};

use crate::exit::Exit;
use crate::failure::{Context, Failure};
use crate::output::Output;
use crate::progress::Spinner;

/// What is to be replaced, and by what.
#[derive(Debug)]
pub(crate) struct Request<'a> {
    pub(crate) binary: Option<&'a Path>,
    pub(crate) limit: Duration,
    pub(crate) keeper: bool,
    /// How luod is reached.
    pub(crate) options: Options,
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
    let upgraded = upgraded.map_err(|error| failed(request, error))?;
    output.reply(&upgraded)?;
    let what = if request.keeper { "worker and keeper" } else { "the worker" };
    output.done(&format!(
        "luod was upgraded from {} to {}: {what} replaced, nothing let go.",
        upgraded.before, upgraded.after
    ))
}

fn open(path: &Path) -> Result<File, Failure> {
    let failed = |doing, source| Failure::Path {
        path: path.to_owned(),
        doing,
        next: "name luod's new binary with --binary",
        source,
    };
    // Opening a pipe would wait for its other end.
    let found = path.metadata().map_err(|source| failed("opened", source))?;
    if !found.is_file() {
        let source = io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file");
        return Err(failed("a binary", source));
    }
    File::open(path).map_err(|source| failed("opened", source))
}

/// Says who serves now: that the old one goes on is the promise of an upgrade, so it is looked at.
fn failed(request: &Request<'_>, error: Error) -> Failure {
    let failure = Failure::luod(Context::Upgrade)(error);
    if failure.exit() != Exit::Failed {
        // It was not even tried, or there is nobody to ask.
        return failure;
    }
    // The deadline was for the upgrade: this question has the usual time all the same.
    let options = request.options.clone().deadline(request.limit.max(DEFAULT_DEADLINE));
    let serves = if failure.is_refusal() { "serves on" } else { "serves now" };
    let note = match Manager::connect(options).and_then(|manager| manager.status()) {
        Ok(status) => format!("luod {} (worker {}) {serves}", status.version, status.pid),
        Err(error) => format!("and luod cannot be asked who serves: {error}"),
    };
    failure.with_note(note)
}
