//! `luoctl status`.

use luo::protocol::{SessionInfo, Span, Status, SubsystemInfo, Timeline};
use luo::{Manager, State};

use crate::failure::{Context, Failure};
use crate::format;
use crate::lists;
use crate::output::{Output, TextTable, Tone, cell};

pub(crate) fn run(manager: &Manager, output: &mut Output) -> Result<(), Failure> {
    let status = manager.status().map_err(Failure::luod(Context::Asking))?;
    if output.is_json() {
        return output.reply(&status);
    }
    output.table(&summary(&status))?;
    let asked = status.measured.map(|_| manager.timeline()).transpose();
    if let Some(timeline) = asked.map_err(Failure::luod(Context::Asking))?.flatten() {
        output.line("")?;
        output.table(&split(&timeline))?;
        output.line(&format!("Live update {}: {}", timeline.number, blackout(&timeline)))?;
    }
    if status.unclaimed > 0 {
        let sessions = manager.sessions().map_err(Failure::luod(Context::Asking))?;
        let unclaimed = unclaimed(&sessions);
        if !unclaimed.is_empty() {
            output.line("")?;
            output.table(&unclaimed)?;
        }
    }
    if !status.subsystems.is_empty() {
        output.line("")?;
        output.table(&subsystems(&status.subsystems))?;
    }
    Ok(())
}

fn summary(status: &Status) -> TextTable {
    let mut table = TextTable::bare();
    let mut row = |key: &str, value: &str, tone| {
        table.row(vec![cell(key, Tone::Faint), cell(value, tone)]);
    };
    let state = match &status.transition {
        Some(event) => format!("{}, {event} is under way", status.state.name()),
        None => status.state.name().to_owned(),
    };
    let tone = if status.transition.is_some() { Tone::Notice } else { state_tone(status.state) };
    row("state", &state, tone);
    row("luod", &status.version, Tone::Plain);
    let worker = match status.incarnation {
        0 | 1 => "the keeper's first".to_owned(),
        number => format!("the keeper's number {number}: it was restarted or upgraded"),
    };
    row("worker", &format!("process {}, {worker}", status.pid), Tone::Plain);
    row("keeper", &status.keeper, Tone::Plain);
    row("carrier", &status.carrier, Tone::Plain);
    row("reach", &reach(&status.reach), Tone::Plain);
    if let Some(arena) = &status.arena {
        row("arena", arena, Tone::Plain);
    }
    if let Some(room) = &status.arena_room {
        let room = format!(
            "of {}, {} used, {} lent to services, {} free",
            format::bytes(room.size),
            format::bytes(room.used),
            format::bytes(room.lent),
            format::bytes(room.free)
        );
        row("", &room, Tone::Plain);
    }
    if let Some(failure) = &status.arena_failure {
        row("", &format!("it cannot be used: {failure}"), Tone::Bad);
    }
    if let Some(through) = status.through.as_ref().filter(|_| status.arena.is_some()) {
        row("through", &format!("the machine's update goes through the {through}"), Tone::Notice);
    }
    row("live updates", &format!("{} completed", status.liveupdate_number), Tone::Plain);
    let of = |used, limit, noun| format!("{}, {limit} for each user", format::count(used, noun));
    row("sessions", &of(status.sessions, status.limits.sessions, "session"), Tone::Plain);
    row("files", &of(status.files, status.limits.files, "file"), Tone::Plain);
    let pinned = format!(
        "{} pinned, {} for each user",
        format::bytes(status.pinned),
        format::bytes(status.limits.bytes)
    );
    row("memory", &pinned, Tone::Plain);
    if status.unclaimed > 0 {
        let unclaimed = format!(
            "{}, {} pinned: let the service claim it, or `luoctl release` it",
            format::count(status.unclaimed, "session"),
            format::bytes(status.unclaimed_pinned)
        );
        row("unclaimed", &unclaimed, Tone::Notice);
    }
    table
}

/// How long nothing was served, in words.
pub(crate) fn blackout(timeline: &Timeline) -> String {
    let Some(blackout) = &timeline.blackout else {
        return "no session is ready yet".to_owned();
    };
    let least = if blackout.at_least { "at least " } else { "" };
    let error = match blackout.error_microseconds {
        0 => String::new(),
        error => format!(" ± {}", format::micros(error)),
    };
    let session = match blackout.session.as_str() {
        "" => "the first session",
        name => name,
    };
    let step = match timeline.clock_step_microseconds {
        step if step.unsigned_abs() < 1_000 => String::new(),
        step => format!("; the clock was set by {}", format::micros(step.unsigned_abs())),
    };
    format!(
        "{least}{}{error} from freeze until {session} was ready{step}",
        format::micros(blackout.microseconds)
    )
}

/// What took how long; of the sessions those that took longest.
fn split(timeline: &Timeline) -> TextTable {
    const SESSIONS: usize = 20;
    let mut table = TextTable::new(&["PHASE", "SESSION", "AFTER FREEZE", "TOOK"]).numbers(&[2, 3]);
    let mut own: Vec<&Span> = timeline.spans.iter().filter(|span| whose(span).is_some()).collect();
    own.sort_by_key(|span| std::cmp::Reverse(span.microseconds));
    own.truncate(SESSIONS);
    let shown = timeline
        .spans
        .iter()
        .filter(|span| whose(span).is_none() || own.iter().any(|own| std::ptr::eq(*own, *span)));
    for span in shown {
        let sign = if span.began < 0 { "-" } else { "" };
        let tone = if span.phase == "freeze" { Tone::Notice } else { Tone::Plain };
        table.row(vec![
            cell(&span.phase, tone),
            cell(whose(span).unwrap_or("-"), Tone::Plain),
            cell(&format!("{sign}{}", format::micros(span.began.unsigned_abs())), Tone::Plain),
            cell(&format::micros(span.microseconds), tone),
        ]);
    }
    table
}

fn whose(span: &Span) -> Option<&str> {
    span.session.as_deref().or(span.participant.as_deref())
}

pub(crate) const fn state_tone(state: State) -> Tone {
    match state {
        State::Normal => Tone::Good,
        State::Prepared | State::Updated => Tone::Notice,
        State::Frozen => Tone::Bad,
    }
}

fn reach(reach: &str) -> String {
    let survives = match reach {
        "service" => "the restart of a service",
        "agent" => "the restart of a service and of luod",
        "kernel" => "the restart of services, of luod and of the kernel",
        "power" => "the restart of services, luod and kernel, and the loss of power",
        _ => return reach.to_owned(),
    };
    format!("{reach}: files survive {survives}")
}

fn unclaimed(sessions: &[SessionInfo]) -> TextTable {
    let mut table = TextTable::new(&["UNCLAIMED", "USER", "PINNED", "EXPIRES"]).numbers(&[1, 2]);
    for session in sessions.iter().filter(|session| !session.held) {
        table.row(vec![
            cell(&session.name, Tone::Notice),
            cell(&session.uid.to_string(), Tone::Plain),
            cell(&format::bytes(session.pinned), Tone::Plain),
            cell(&lists::expires(session), Tone::Plain),
        ]);
    }
    table
}

fn subsystems(subsystems: &[SubsystemInfo]) -> TextTable {
    let mut table = TextTable::new(&["SUBSYSTEM", "KIND", "FAILURE", "PHASE"]);
    for subsystem in subsystems {
        let kind = if subsystem.participant { "participant" } else { "built in" };
        let failure = if subsystem.required { "cancels" } else { "is reported" };
        let tone = if subsystem.phase == "failed" { Tone::Bad } else { Tone::Plain };
        table.row(vec![
            cell(&subsystem.name, Tone::Plain),
            cell(kind, Tone::Plain),
            cell(failure, Tone::Plain),
            cell(&subsystem.phase, tone),
        ]);
    }
    table
}
