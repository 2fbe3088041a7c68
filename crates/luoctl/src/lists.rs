//! `luoctl sessions`, `files` and `release`.

use luo::Manager;
use luo::protocol::{
    FileInfo, FileList, Nothing, OnClose, OwnKernelSession, SessionInfo, SessionList,
};

use crate::failure::{Context, Failure};
use crate::format;
use crate::output::{Output, TextTable, Tone, cell};
use crate::status::state_tone;

pub(crate) fn sessions(manager: &Manager, output: &mut Output) -> Result<(), Failure> {
    let sessions = manager.sessions().map_err(Failure::luod(Context::Asking))?;
    if output.is_json() {
        return output.reply(&SessionList { sessions });
    }
    if sessions.is_empty() {
        return output.done("There are no sessions that you may see.");
    }
    output.table(&session_table(&sessions))
}

pub(crate) fn files(
    manager: &Manager,
    session: Option<&str>,
    output: &mut Output,
) -> Result<(), Failure> {
    let files = manager.files(session).map_err(Failure::luod(Context::Asking))?;
    if output.is_json() {
        return output.reply(&FileList { files });
    }
    if files.is_empty() {
        return output.done("There are no files that you may see.");
    }
    output.table(&file_table(&files))
}

pub(crate) fn release(
    manager: &Manager,
    session: &str,
    output: &mut Output,
) -> Result<(), Failure> {
    manager.release(session).map_err(Failure::luod(Context::Release))?;
    output.reply(&Nothing {})?;
    output.done(&format!("Session {session} was released."))
}

fn session_table(sessions: &[SessionInfo]) -> TextTable {
    let mut headings = vec![
        "SESSION",
        "USER",
        "STATE",
        "HELD",
        "FILES",
        "RETRIEVED",
        "PINNED",
        "ON CLOSE",
        "EXPIRES",
    ];
    let any_own = sessions.iter().any(|session| session.own_kernel_session.is_some());
    if any_own {
        headings.push("OWN KERNEL SESSION");
    }
    let mut table = TextTable::new(&headings).numbers(&[1, 4, 5, 6]);
    for session in sessions {
        let (held, tone) = if session.held { ("yes", Tone::Plain) } else { ("no", Tone::Notice) };
        let retrieved = match session.incoming {
            0 => "-".to_owned(),
            incoming => format!("{} of {incoming}", session.retrieved),
        };
        let on_close = match (session.policy.on_close, session.policy.ttl_seconds) {
            (OnClose::Release, _) => "release".to_owned(),
            (OnClose::Keep, None) => "keep".to_owned(),
            (OnClose::Keep, Some(ttl)) => format!("keep {}", format::seconds(ttl)),
        };
        let mut cells = vec![
            cell(&session.name, Tone::Plain),
            cell(&session.uid.to_string(), Tone::Plain),
            cell(session.state.name(), state_tone(session.state)),
            cell(held, tone),
            cell(&session.files.to_string(), Tone::Plain),
            cell(&retrieved, Tone::Plain),
            cell(&format::bytes(session.pinned), Tone::Plain),
            cell(&on_close, Tone::Plain),
            cell(&expires(session), Tone::Plain),
        ];
        if any_own {
            let (text, tone) = own_kernel_session(session.own_kernel_session);
            cells.push(cell(text, tone));
        }
        table.row(cells);
    }
    table
}

/// What `finish` would free of what nobody has fetched is for an operator to see first.
fn own_kernel_session(of: Option<OwnKernelSession>) -> (&'static str, Tone) {
    match of {
        None => ("-", Tone::Plain),
        Some(OwnKernelSession::Outgoing) => ("goes along", Tone::Plain),
        Some(OwnKernelSession::Incoming) => ("came", Tone::Notice),
        Some(OwnKernelSession::Both) => ("came, another goes along", Tone::Notice),
    }
}

/// When nobody's session ends.
pub(crate) fn expires(session: &SessionInfo) -> String {
    match (session.held, session.expires_in_seconds) {
        (_, Some(seconds)) => format!("in {}", format::seconds(seconds)),
        (true, None) => "-".to_owned(),
        (false, None) => "never".to_owned(),
    }
}

fn file_table(files: &[FileInfo]) -> TextTable {
    let mut headings = vec!["SESSION", "TOKEN", "HANDLER", "REQUIRED", "PHASE", "PINNED", "WHAT"];
    let failures = files.iter().any(|file| file.failure.is_some());
    if failures {
        headings.push("FAILURE");
    }
    let mut table = TextTable::new(&headings).numbers(&[1, 5]);
    for file in files {
        let tone = match file.phase.as_str() {
            "failed" => Tone::Bad,
            "incoming" => Tone::Notice,
            _ => Tone::Plain,
        };
        let mut cells = vec![
            cell(&file.session, Tone::Plain),
            cell(&format::token(file.token), Tone::Plain),
            cell(&file.handler, Tone::Plain),
            cell(if file.required { "yes" } else { "no" }, Tone::Plain),
            cell(&file.phase, tone),
            cell(&format::bytes(file.pinned), Tone::Plain),
            cell(&file.what, Tone::Plain),
        ];
        if failures {
            let failure = file.failure.as_ref();
            let text = failure.map(|failure| format!("{} ({})", failure.reason, failure.errno));
            cells.push(cell(&text.unwrap_or_default(), Tone::Bad));
        }
        table.row(cells);
    }
    table
}
