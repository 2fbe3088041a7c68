//! `luoctl report`: how long the last live update took, as a page that needs nothing else.
//!
//! Invariants: the page loads nothing and runs nothing; every text of luod's is escaped; whatever the
//! numbers are, the picture stays within its frame.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use luo::Manager;
use luo::protocol::{Span, Status, Timeline};

use crate::exit::Exit;
use crate::failure::{Context, Failure};
use crate::format;
use crate::output::Output;
use crate::status::blackout;

/// The picture's measures, in its own units.
const WIDTH: f64 = 960.0;
const LABELS: f64 = 190.0;
const ROW: f64 = 22.0;
const TOP: f64 = 30.0;

/// Rows that are drawn: those of the sessions that took longest, and the machine's.
const ROWS: usize = 60;

const STYLE: &str = "\
:root{--ink:#1c2330;--faint:#6b7486;--line:#e3e7ee;--page:#fff;--prepare:#9db4d8;--freeze:#c8452f;\
--switch:#8a8f9c;--arrive:#4b7bc0;--service:#3f9361}\
@media(prefers-color-scheme:dark){:root{--ink:#e6e9f0;--faint:#98a1b3;--line:#2c3444;--page:#12161e}}\
body{background:var(--page);color:var(--ink);font:15px/1.5 system-ui,sans-serif;max-width:1000px;\
margin:2.5rem auto;padding:0 1rem}h1{font-size:1.4rem;margin:0}p{color:var(--faint)}\
.large{font-size:2.6rem;font-weight:600;color:var(--ink);margin:.4rem 0}\
table{border-collapse:collapse;width:100%}td,th{text-align:left;padding:.25rem .6rem;\
border-bottom:1px solid var(--line)}td.n{text-align:right;font-variant-numeric:tabular-nums}\
svg{width:100%;height:auto}svg text{font:12px system-ui,sans-serif;fill:var(--ink)}\
svg .faint{fill:var(--faint)}svg line{stroke:var(--line)}\
.prepare{fill:var(--prepare)}.freeze{fill:var(--freeze)}\
.shutdown,.boot,.restart{fill:var(--switch)}.arrive{fill:var(--arrive)}\
.claim,.retrieve,.finish{fill:var(--service)}";

pub(crate) fn run(
    manager: &Manager,
    file: Option<&Path>,
    output: &mut Output,
) -> Result<(), Failure> {
    let status = manager.status().map_err(Failure::luod(Context::Asking))?;
    let timeline = manager.timeline().map_err(Failure::luod(Context::Asking))?;
    let Some(timeline) = timeline else {
        return Err(Failure::Step {
            sentence: "no live update that arrived here was measured; after the next one there is \
                       something to report"
                .into(),
            exit: Exit::NotFound,
            source: None,
        });
    };
    if output.is_json() {
        return output.reply(&timeline);
    }
    let page = page(&timeline, &status);
    let Some(file) = file else {
        return output.line_raw(&page);
    };
    fs::write(file, page).map_err(|source| Failure::Path {
        path: file.to_owned(),
        doing: "written",
        next: "name another file",
        source,
    })?;
    output.done(&format!("The report is written to {}.", file.display()))
}

/// Text as it may stand in a page.
fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for character in format::plain(text).chars() {
        match character {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            other => safe.push(other),
        }
    }
    safe
}

/// Whose a row is.
fn whose(span: &Span) -> String {
    match (&span.session, &span.participant) {
        (Some(session), _) => session.clone(),
        (None, Some(participant)) => format!("{participant} (participant)"),
        (None, None) => "the machine".to_owned(),
    }
}

/// The rows of the picture: the machine's first, then the others by when they begin to be of interest.
fn rows(timeline: &Timeline) -> Vec<(String, Vec<&Span>)> {
    let mut rows: Vec<(String, Vec<&Span>)> = Vec::new();
    for span in &timeline.spans {
        let name = whose(span);
        match rows.iter_mut().find(|(row, _)| *row == name) {
            Some((_, spans)) => spans.push(span),
            None => rows.push((name, vec![span])),
        }
    }
    let is_other =
        |spans: &[&Span]| spans.iter().any(|s| s.session.is_some() || s.participant.is_some());
    rows.sort_by_key(|(_, spans)| is_other(spans));
    rows
}

fn chart(timeline: &Timeline) -> String {
    let end_of = |span: &Span| span.began as f64 + span.microseconds as f64;
    let begin = timeline.spans.iter().map(|span| span.began as f64).fold(0.0, f64::min);
    let end = timeline.spans.iter().map(end_of).fold(begin + 1.0, f64::max);
    let scale = (WIDTH - LABELS - 10.0) / (end - begin);
    let x = |at: f64| LABELS + (at - begin) * scale;
    let rows = rows(timeline);
    let shown = rows.iter().take(ROWS);
    let height = TOP + ROW * shown.len() as f64 + 10.0;
    let mut svg = format!(
        "<svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-label=\"Time line of the live \
         update\">"
    );
    for tick in 0..=5 {
        let at = begin + (end - begin) * f64::from(tick) / 5.0;
        let time = format::micros(at.abs() as u64);
        let sign = if at < 0.0 { "−" } else { "" };
        let _ = write!(
            svg,
            "<line x1=\"{0:.1}\" x2=\"{0:.1}\" y1=\"{TOP}\" y2=\"{height}\"/><text class=\"faint\" \
             text-anchor=\"middle\" x=\"{1:.1}\" y=\"18\">{sign}{time}</text>",
            x(at),
            x(at).min(WIDTH - 30.0)
        );
    }
    for (row, (name, spans)) in shown.enumerate() {
        let y = TOP + ROW * row as f64;
        let label: String = name.chars().take(26).collect();
        let _ = write!(svg, "<text x=\"0\" y=\"{:.1}\">{}</text>", y + 15.0, escaped(&label));
        for span in spans {
            let left = x(span.began as f64);
            let width = (x(end_of(span)) - left).max(2.0).min(WIDTH - left);
            let phase = escaped(&span.phase);
            let _ = write!(
                svg,
                "<rect class=\"{phase}\" x=\"{left:.1}\" y=\"{:.1}\" width=\"{width:.1}\" \
                 height=\"14\" rx=\"2\"><title>{}: {phase}, {}</title></rect>",
                y + 4.0,
                escaped(name),
                format::micros(span.microseconds)
            );
        }
    }
    svg.push_str("</svg>");
    svg
}

fn table(timeline: &Timeline) -> String {
    let mut rows = String::new();
    for span in &timeline.spans {
        let sign = if span.began < 0 { "−" } else { "" };
        let _ = write!(
            rows,
            "<tr><td>{}</td><td>{}</td><td class=\"n\">{sign}{}</td><td class=\"n\">{}</td></tr>",
            escaped(&whose(span)),
            escaped(&span.phase),
            format::micros(span.began.unsigned_abs()),
            format::micros(span.microseconds)
        );
    }
    format!(
        "<table><tr><th>who</th><th>what</th><th>began after freeze</th><th>took</th></tr>{rows}\
         </table>"
    )
}

/// The page.
fn page(timeline: &Timeline, status: &Status) -> String {
    let number = timeline.number;
    let boot = |id: &Option<String>| id.as_deref().map_or("unknown".into(), escaped);
    let kernel = if timeline.same_kernel {
        "the kernel stayed".to_owned()
    } else {
        format!("from boot {} to boot {}", boot(&timeline.boot_before), boot(&timeline.boot_after))
    };
    let unlisted = match timeline.unlisted {
        0 => String::new(),
        more => format!("<p>{more} more sessions and participants were not written down.</p>"),
    };
    let unclaimed = match status.unclaimed {
        0 => "Nothing is unclaimed.".to_owned(),
        sessions => format!(
            "{} unclaimed, {} pinned.",
            format::count(sessions, "session"),
            format::bytes(status.unclaimed_pinned)
        ),
    };
    format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" \
         content=\"width=device-width\"><title>Live update {number}</title><style>{STYLE}</style>\
         </head><body><h1>Live update {number}</h1><p class=\"large\">{}</p><p>{}, through the {}; \
         {kernel}. {unclaimed}</p>{}{unlisted}<h2>Split</h2>{}</body></html>\n",
        escaped(&blackout(timeline)),
        format::moment(timeline.frozen_at / 1_000_000),
        escaped(&timeline.carrier),
        chart(timeline),
        table(timeline),
    )
}

#[cfg(test)]
mod tests {
    use luo::protocol::Blackout;

    use super::*;

    fn timeline() -> Timeline {
        let span = |phase: &str, session: Option<&str>, began, microseconds| Span {
            phase: phase.into(),
            session: session.map(str::to_owned),
            participant: None,
            began,
            microseconds,
        };
        Timeline {
            number: 4,
            carrier: "arena".into(),
            frozen_at: 1_800_000_000_000_000,
            same_kernel: false,
            boot_before: None,
            boot_after: None,
            blackout: Some(Blackout {
                microseconds: 3_700_000,
                error_microseconds: 1_000_000,
                at_least: false,
                session: "kv".into(),
            }),
            clock_step_microseconds: 0,
            spans: vec![
                span("prepare", None, -2_000_000, 1_000_000),
                span("freeze", None, 0, 200_000),
                span("retrieve", Some("<script>alert(1)</script>"), 3_650_000, 50_000),
            ],
            unlisted: 0,
        }
    }

    #[test]
    fn nothing_that_luod_says_becomes_part_of_the_pages_language() {
        let mut timeline = timeline();
        timeline.carrier = "\"><img src=x>".into();
        let svg = chart(&timeline) + &table(&timeline);
        assert!(!svg.contains("<script") && svg.contains("&lt;script"), "{svg}");
        assert!(!escaped(&timeline.carrier).contains('<'));
        assert!(!STYLE.contains("url(") && !STYLE.contains("http"));
    }

    #[test]
    fn numbers_that_are_too_large_stay_within_the_picture() {
        let mut timeline = timeline();
        timeline.spans[0].began = i64::MIN;
        timeline.spans[1].microseconds = u64::MAX;
        let svg = chart(&timeline);
        for x in svg.split(" x=\"").skip(1) {
            let x: f64 = x.split('"').next().unwrap().parse().unwrap();
            assert!((0.0..=WIDTH).contains(&x), "{x}");
        }
    }

    #[test]
    fn the_machines_row_comes_first() {
        let mut timeline = timeline();
        timeline.spans.reverse();
        assert_eq!(rows(&timeline)[0].0, "the machine");
    }
}
