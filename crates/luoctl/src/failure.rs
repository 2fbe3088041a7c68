//! What can go wrong for a command, as one sentence with a next step, and as an exit status.
//!
//! Invariants: the sentence is one line, whatever luod sent; a next step of luod's own, which comes
//! behind a semicolon, is not followed by another one.

use std::io;
use std::path::PathBuf;

use luo::{Error, Refusal, protocol};

use crate::exit::Exit;
use crate::format;
use crate::output::Output;

/// What was to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Context {
    /// Something that changes nothing.
    Asking,
    Watch,
    Prepare,
    Freeze,
    Cancel,
    Depart,
    Finish,
    Rehearse,
    Upgrade,
    Release,
    Reboot,
    Run,
}

/// A command failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// luod could not be asked, or refused.
    #[error("{}", luod_sentence(*context, source, note.as_deref()))]
    Luod {
        context: Context,
        source: Error,
        /// What is known of how things stand now.
        note: Option<String>,
    },
    /// A file of the user's.
    #[error("{} cannot be {doing}: {source}; {next}", path.display())]
    Path { path: PathBuf, doing: &'static str, next: &'static str, source: io::Error },
    /// A blob cannot be used.
    #[error("{sentence}")]
    Blob { sentence: String },
    /// An arena cannot be made or read.
    #[error("{}: {}", path.display(), source.reason())]
    Arena { path: PathBuf, source: luo_core::Failure },
    /// A step that is not luod's: one with the kernel, or on the way to it.
    #[error("{sentence}")]
    Step { sentence: String, exit: Exit, source: Option<io::Error> },
    /// A program that was run has ended with this status: its own affair.
    #[error("the program ended with status {0}")]
    Ended(u8),
    /// A session has files that no program was run with.
    #[error(
        "session {session} holds file {}, which no program that luoctl ran has stored; name another \
         session, or look at it with `luoctl files {session}`", format::token(*token)
    )]
    ForeignSession { session: String, token: u64 },
    /// What was sent along with a reply cannot be read.
    #[error("the handover that luod sent cannot be read: {0}; ask again")]
    Handover(#[source] io::Error),
    /// SIGINT and SIGTERM cannot be waited for.
    #[error("signals cannot be waited for: {0}; is the limit of open files reached?")]
    Signals(#[source] io::Error),
    /// Output could not be written.
    #[error("the output cannot be written: {0}; it is not complete")]
    Output(#[from] io::Error),
    /// The reply has no JSON form.
    #[error("the reply cannot be written as JSON: {0}; leave --json out")]
    Json(#[from] serde_json::Error),
}

impl Failure {
    /// Turns the library's error into a failure of this command.
    pub(crate) fn luod(context: Context) -> impl FnOnce(Error) -> Self {
        move |source| Self::Luod { context, source, note: None }
    }

    /// Turns an error of the system into a failure to run a program.
    pub(crate) fn program(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Step {
            sentence: format!("{what}: {source}; nothing was changed"),
            exit: io_exit(&source),
            source: Some(source),
        }
    }

    /// Adds what is known of how things stand now.
    pub(crate) fn with_note(mut self, text: String) -> Self {
        if let Self::Luod { note, .. } = &mut self {
            *note = Some(text);
        }
        self
    }

    /// Whether luod has answered, and refused.
    pub(crate) const fn is_refusal(&self) -> bool {
        matches!(self, Self::Luod { source: Error::Refused(_), .. })
    }

    pub(crate) fn exit(&self) -> Exit {
        match self {
            Self::Luod { source, .. } => luod_exit(source),
            Self::Step { exit, .. } => *exit,
            Self::Path { source, .. } => io_exit(source),
            Self::Arena { source, .. } => errno_exit(source.errno().name()),
            Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe => Exit::Done,
            Self::ForeignSession { .. } => Exit::WrongState,
            Self::Ended(_)
            | Self::Blob { .. }
            | Self::Handover(_)
            | Self::Signals(_)
            | Self::Output(_)
            | Self::Json(_) => Exit::Failed,
        }
    }

    /// The exit status.
    pub(crate) fn code(&self) -> u8 {
        match self {
            Self::Ended(status) => *status,
            other => other.exit().code(),
        }
    }

    /// Tells the user.
    pub(crate) fn report(&self, output: &mut Output) {
        if self.exit() == Exit::Done || matches!(self, Self::Ended(_)) {
            return;
        }
        if let Self::Luod { source, .. } = self {
            // The sentence follows in any case, so a stdout that fails as well is no news.
            let _ = match source {
                Error::Refused(Refusal { failure: Some(failure), .. }) => {
                    output.reply(&protocol::Failed { failure: failure.as_ref().clone() })
                }
                Error::WorkerFailed { reason } => {
                    output.reply(&protocol::WorkerFailed { reason: reason.clone() })
                }
                _ => Ok(()),
            };
        }
        output.complain(&self.to_string());
    }
}

fn io_exit(error: &io::Error) -> Exit {
    match error.kind() {
        io::ErrorKind::NotFound => Exit::NotFound,
        io::ErrorKind::PermissionDenied => Exit::Denied,
        _ => Exit::Failed,
    }
}

fn luod_exit(error: &Error) -> Exit {
    match error {
        Error::Unreachable { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
            Exit::Denied
        }
        Error::Unavailable { .. } | Error::Unreachable { .. } | Error::WorkerFailed { .. } => {
            Exit::Unreachable
        }
        Error::DeadlineExceeded { source: Some(last), .. } if is_unavailable(last) => {
            Exit::Unreachable
        }
        Error::SessionGone => Exit::NotFound,
        // A phase says that something was called and failed, with an errno of its own choice. Only
        // without one does the errno speak of the request.
        Error::Refused(refusal) if phase(refusal).is_none() => errno_exit(&refusal.errno),
        _ => Exit::Failed,
    }
}

fn errno_exit(errno: &str) -> Exit {
    match errno {
        "EPERM" | "EACCES" => Exit::Denied,
        "EBUSY" => Exit::WrongState,
        "ENOENT" => Exit::NotFound,
        _ => Exit::Failed,
    }
}

fn is_unavailable(error: &Error) -> bool {
    matches!(error, Error::Unavailable { .. })
}

fn phase(refusal: &Refusal) -> Option<&str> {
    refusal.failure.as_ref()?.phase.as_deref()
}

fn luod_sentence(context: Context, error: &Error, note: Option<&str>) -> String {
    let sentence = match error {
        Error::Unreachable { socket, source }
            if source.kind() == io::ErrorKind::PermissionDenied =>
        {
            format!(
                "luod's socket {} may not be used: {source}; ask as a user who may write to it",
                socket.display()
            )
        }
        Error::Unavailable { socket, source } => format!(
            "no luod at {}: {source}; start it, or name its socket with --socket",
            socket.display()
        ),
        Error::Refused(refusal) => {
            let mut sentence = format!("{}{}", failed(context), refused(refusal));
            if note.is_none() && !refusal.reason.contains("; ") {
                sentence.push_str("; ");
                sentence.push_str(next_step(context, luod_exit(error)));
            }
            sentence
        }
        Error::DeadlineExceeded { method, deadline, source } => {
            let late = format!("luod did not answer {method} within {} ms", deadline.as_millis());
            match (source, context) {
                (Some(last), _) if is_unavailable(last) => {
                    format!("{late}, because it went away; `luoctl status` tells when it is back")
                }
                _ if note.is_some() => late,
                (_, Context::Asking | Context::Watch) => format!("{late}; --deadline waits longer"),
                _ => format!(
                    "{late}, and may still be at it; `luoctl status` shows, --deadline waits longer"
                ),
            }
        }
        Error::WorkerFailed { reason } if !reason.contains("; ") => {
            format!("{error}; its log says why")
        }
        other => other.to_string(),
    };
    match note {
        Some(note) => format!("{sentence}; {note}"),
        None => sentence,
    }
}

/// How a sentence about a refusal begins.
const fn failed(context: Context) -> &'static str {
    match context {
        Context::Asking | Context::Watch => "",
        Context::Prepare => "prepare failed: ",
        Context::Freeze => "freeze failed: ",
        Context::Cancel => "cancel failed: ",
        Context::Depart => "depart failed: ",
        Context::Finish => "finish failed: ",
        Context::Rehearse => "the rehearsal failed: ",
        Context::Upgrade => "the upgrade failed: ",
        Context::Release => "release failed: ",
        Context::Reboot => "the machine was not rebooted: ",
        Context::Run => "the session cannot be used: ",
    }
}

/// The reason, the errno, and where it was.
pub(crate) fn refused(refusal: &Refusal) -> String {
    let mut place = Vec::new();
    if let Some(failure) = &refusal.failure {
        place.extend(failure.phase.as_ref().map(|phase| format!("in {phase}")));
        place.extend(failure.token.map(|token| format!("file {}", format::token(token))));
        place.extend(failure.session.as_ref().map(|name| format!("session {name}")));
        place.extend(failure.handler.as_ref().map(|name| format!("handler {name}")));
        place.extend(failure.subsystem.as_ref().map(|name| format!("subsystem {name}")));
    } else {
        place.extend(refusal.token.map(|token| format!("file {}", format::token(token))));
    }
    place.insert(0, refusal.errno.clone());
    format!("{} ({})", refusal.reason, place.join(", "))
}

fn next_step(context: Context, exit: Exit) -> &'static str {
    match (exit, context) {
        (Exit::Denied, Context::Release | Context::Run) => {
            "ask as the user that owns it, or as root"
        }
        (Exit::Denied, _) => "ask as root or as the user that luod runs as",
        (Exit::WrongState, Context::Finish) => {
            "`luoctl status` shows what goes on, `luoctl files` what was not retrieved, \
             --unclaimed decides about that"
        }
        (Exit::WrongState, Context::Run) => {
            "another process holds it, or an update of the machine is under way: `luoctl sessions` \
             shows"
        }
        (Exit::WrongState, _) => "`luoctl status` shows what goes on",
        (Exit::NotFound, _) => "`luoctl sessions` lists what there is",
        (_, Context::Prepare | Context::Freeze) => {
            "nothing was changed: settle that and prepare again"
        }
        (_, Context::Rehearse) => {
            "a live update would fail as well, this time nothing was changed: settle that first"
        }
        (_, Context::Depart) => "nothing was handed over: depart again, or cancel",
        (_, Context::Finish) => "nothing was finished: settle that and finish again",
        (_, Context::Cancel) => "`luoctl status` shows where it stands",
        (_, Context::Upgrade) => "the luod that ran serves on",
        (_, _) => "luod's log may tell more",
    }
}
