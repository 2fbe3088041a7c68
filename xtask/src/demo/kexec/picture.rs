//! The picture of a kernel's replacement, and the page with it.
//!
//! Invariants: nothing outside is needed; whatever the figures are, the picture stays in its frame.

use std::fmt::Write as _;

use super::super::chart::{self, escape};
use super::super::report;
use super::super::table::milliseconds;
use super::outcome::{Outcome, row};

const WIDTH: f64 = 1000.0;
const LEFT: f64 = 150.0;
const RIGHT: f64 = 20.0;
/// Of the row of answers.
const TOP: f64 = 70.0;
const ASKED: f64 = 90.0;
/// Of a phase.
const ROW: f64 = 22.0;
/// A phase that is over at once is still to be seen.
const THIN: f64 = 2.0;
const STYLE: &str = "
.kexec .answer { fill: var(--service); } .kexec .gap { fill: var(--target); opacity: .16; }
.kexec .gap-text { fill: var(--target); font-size: 15px; font-weight: 600; }
.kexec .mark { stroke: var(--soft); stroke-dasharray: 3 4; }
.kexec .phase { fill: var(--usual); } .kexec .session { fill: var(--upgrade); }
.kexec .label { font-size: 12px; }
";

/// The image by itself, for documents.
pub(super) fn picture(outcome: &Outcome) -> String {
    let style = format!("{}{STYLE}", chart::STYLE).replace('\n', " ");
    svg(outcome, "xmlns=\"http://www.w3.org/2000/svg\" ", &format!("<style>{style}</style>"))
}

/// The page.
pub(super) fn page(outcome: &Outcome) -> String {
    let mut sides = String::new();
    for (what, before, after) in outcome.sides() {
        // Writing into a string cannot fail, here and below.
        let _ = write!(
            sides,
            "<tr><td>{what}</td><td>{}</td><td>{}</td></tr>",
            escape(&before),
            escape(&after)
        );
    }
    let mut phases = String::new();
    for span in &outcome.timeline.spans {
        let cells: String =
            row(span).iter().map(|cell| format!("<td>{}</td>", escape(cell))).collect();
        let _ = write!(phases, "<tr>{cells}</tr>");
    }
    let errors: String = outcome
        .errors()
        .iter()
        .map(|error| format!("<p class=\"bad\">{}</p>", escape(error)))
        .collect();
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" \
         content=\"width=device-width\"><meta name=\"color-scheme\" content=\"light dark\">\
         <title>luo: a kernel replaced under kv</title><style>{}{}{STYLE}</style></head><body>\
         <h1>luo: a kernel replaced under kv</h1><p>kv holds {} MiB. The kernel below it is replaced \
         by another boot; a client outside goes on counting, on one TCP connection.</p>{errors}\
         <div class=\"figure\">{}</div><h2>Before and after</h2><div class=\"wide\"><table><thead>\
         <tr><th></th><th>before</th><th>after</th></tr></thead><tbody>{sides}</tbody></table></div>\
         <h2>Phase by phase</h2><div class=\"wide\"><table><thead><tr><th>phase, by luod's clock</th>\
         <th>whose</th><th>after freeze</th><th>took</th></tr></thead><tbody>{phases}</tbody></table>\
         </div><p>{}</p><p class=\"soft\">{}</p></body></html>\n",
        chart::STYLE,
        report::STYLE,
        outcome.mib,
        svg(outcome, "", ""),
        escape(&outcome.measured()),
        escape(&outcome.machine),
    )
}

fn svg(outcome: &Outcome, attributes: &str, style: &str) -> String {
    let rows = outcome.timeline.spans.len() as f64;
    let phases_top = TOP + ASKED + 34.0;
    let bottom = phases_top + rows * ROW + 6.0;
    let height = bottom + 46.0;
    let end = end_seconds(outcome);
    let x = |seconds: f64| LEFT + (WIDTH - LEFT - RIGHT) * (seconds / end).clamp(0.0, 1.0);
    let mut svg = format!(
        "<svg {attributes}viewBox=\"0 0 {WIDTH} {height}\" class=\"chart kexec\" role=\"img\" \
         aria-label=\"Answers of kv over time while the kernel below it is replaced: none for \
         {}\">{style}<rect class=\"paper\" width=\"{WIDTH}\" height=\"{height}\" rx=\"8\"/>",
        milliseconds(outcome.stood().as_secs_f64() * 1e3)
    );
    seconds(end, x, bottom, &mut svg);
    let (before, after) = (x(outcome.gap.0.as_secs_f64()), x(outcome.gap.1.as_secs_f64()));
    let _ = write!(
        svg,
        "<rect class=\"gap\" x=\"{before:.1}\" y=\"{TOP}\" width=\"{:.1}\" height=\"{:.1}\"/><text \
         class=\"gap-text\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">no answer for {}</text>",
        after - before,
        bottom - TOP,
        f64::midpoint(before, after),
        TOP + ASKED / 2.0 + 5.0,
        milliseconds(outcome.stood().as_secs_f64() * 1e3)
    );
    answers(outcome, x, &mut svg);
    for (index, mark) in outcome.marks.iter().enumerate() {
        let at = x(mark.at.as_secs_f64());
        // Two that are close to each other have their words on lines of their own.
        let y = 20.0 + (index % 3) as f64 * 16.0;
        let _ = write!(
            svg,
            "<line class=\"mark\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{:.1}\" y2=\"{bottom:.1}\"/>\
             <text class=\"label\" x=\"{at:.1}\" y=\"{y:.1}\" text-anchor=\"middle\">{}</text>",
            y + 4.0,
            escape(mark.what)
        );
    }
    for (index, span) in outcome.timeline.spans.iter().enumerate() {
        let y = phases_top + index as f64 * ROW;
        let began = outcome.frozen_at + span.began as f64 / 1e6;
        let (left, right) = (x(began), x(began + span.microseconds as f64 / 1e6));
        let [phase, _, _, took] = row(span);
        let class = if span.session.is_some() { "session" } else { "phase" };
        let _ = write!(
            svg,
            "<rect class=\"{class}\" x=\"{left:.1}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{:.1}\" \
             rx=\"2\"/><text class=\"label\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{} {}</text>",
            (right - left).max(THIN),
            ROW - 6.0,
            LEFT - 10.0,
            y + 12.0,
            escape(&phase),
            escape(&took)
        );
    }
    let _ = writeln!(
        svg,
        "<text class=\"soft\" x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">above: answers on one TCP \
         connection from outside; below: phases by luod's clocks, which know the kexec's length to within a \
         second</text></svg>",
        WIDTH - RIGHT,
        height - 6.0
    );
    svg
}

fn end_seconds(outcome: &Outcome) -> f64 {
    let asked = outcome.seen.answers.iter().map(|answer| answer.at.as_secs_f64());
    let marked = outcome.marks.iter().map(|mark| mark.at.as_secs_f64());
    asked.chain(marked).fold(1.0, f64::max) * 1.02
}

fn seconds(end: f64, x: impl Fn(f64) -> f64, bottom: f64, svg: &mut String) {
    let every = [0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0];
    let every = every.into_iter().find(|every| end / every <= 14.0).unwrap_or(100.0);
    let mut tick = 0.0;
    while tick <= end {
        let at = x(tick);
        let _ = write!(
            svg,
            "<line class=\"grid\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{TOP}\" y2=\"{bottom:.1}\"/>\
             <text class=\"soft\" x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{tick} s</text>",
            bottom + 16.0
        );
        tick += every;
    }
}

/// A bar for each answer, as high as it took long.
fn answers(outcome: &Outcome, x: impl Fn(f64) -> f64, svg: &mut String) {
    let slowest = outcome.seen.answers.iter().map(|answer| answer.took.as_secs_f64());
    let slowest = slowest.fold(0.001, f64::max);
    let floor = TOP + ASKED;
    svg.push_str("<path class=\"answer\" d=\"");
    for answer in &outcome.seen.answers {
        let high = ASKED * answer.took.as_secs_f64() / slowest;
        let _ = write!(
            svg,
            "M{:.1} {floor}v-{:.1}h1.4V{floor}z",
            x(answer.at.as_secs_f64()),
            high.max(2.0)
        );
    }
    let _ = write!(
        svg,
        "\"/><text class=\"label\" x=\"{0}\" y=\"{1}\" text-anchor=\"end\">answers of kv</text><text \
         class=\"soft\" x=\"{0}\" y=\"{2}\" text-anchor=\"end\">slowest {3}</text>",
        LEFT - 10.0,
        floor - 20.0,
        floor - 4.0,
        milliseconds(slowest * 1e3)
    );
}

#[cfg(test)]
mod tests {
    use super::super::outcome::tests::outcome;
    use super::*;

    #[test]
    fn the_picture_is_whole_and_needs_nothing_else() {
        let picture = picture(&outcome());
        assert!(picture.starts_with("<svg xmlns=") && picture.ends_with("</svg>\n"));
        for part in ["luoctl reboot", "no answer for 3010 ms", "boot 2000 ms", "claim 1.0 ms"] {
            assert!(picture.contains(part), "{part} is not in {picture}");
        }
        assert_eq!(picture.matches("http").count(), 1, "the name space alone");
        assert!(!picture.contains("NaN") && !picture.contains("inf"));
    }

    #[test]
    fn the_page_has_what_is_wrong_and_no_text_that_is_taken_for_a_tag() {
        let mut outcome = outcome();
        outcome.keys.1 = 1;
        let page = page(&outcome);
        assert!(page.contains("kv had 128 keys before, and has 1"));
        assert!(page.contains("&lt;two&gt;") && !page.contains("<two>") && !page.contains("<kv>"));
    }
}
