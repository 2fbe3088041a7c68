//! The chart of latency over time: an SVG that stands by itself, or within the report.
//!
//! Invariants: nothing outside the image is needed; colours are classes that the style below
//! gives, for light and for dark.

use std::fmt::Write as _;

use serde::Serialize;

use super::outcome::{Kind, Outcome, Step, UPDATE_TARGET_MS};
use super::table::milliseconds;

const WIDTH: f64 = 1000.0;
const HEIGHT: f64 = 400.0;
const LEFT: f64 = 62.0;
const RIGHT: f64 = 14.0;
const TOP: f64 = 62.0;
const BOTTOM: f64 = 40.0;
/// Width of one column in the image's units.
const COLUMN: f64 = 2.0;

/// The colours, for whoever shows the chart.
pub(super) const STYLE: &str = "
:root { --ink: #1c2330; --soft: #667085; --grid: #e3e7ee; --paper: #ffffff; --band: #f5f7fa;
  --worst: #6ea8dc; --usual: #1f5fa8; --service: #0a7f5a; --kill: #c2410c; --upgrade: #7c3aed;
  --target: #b42318; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ef; --soft: #98a2b3; --grid: #2b3342;
  --paper: #11161f; --band: #171d28; --worst: #2f6ca8; --usual: #8cc4ff; --service: #3ecf9a;
  --kill: #ff8a4c; --upgrade: #b794ff; --target: #ff7a70; } }
.chart text { font-family: system-ui, -apple-system, 'Segoe UI', sans-serif; fill: var(--ink); }
.chart .soft { fill: var(--soft); font-size: 12px; }
.chart .title { font-size: 13px; font-weight: 600; }
.chart .grid { stroke: var(--grid); stroke-width: 1; }
.chart .paper { fill: var(--paper); }
.chart .band { fill: var(--band); }
.chart .worst { fill: var(--worst); }
.chart .usual { fill: none; stroke: var(--usual); stroke-width: 1.5; stroke-linejoin: round; }
.chart .target { stroke: var(--target); stroke-width: 1.2; stroke-dasharray: 6 4; }
.chart .target-text { fill: var(--target); font-size: 12px; paint-order: stroke; stroke: var(--paper);
  stroke-width: 4px; stroke-linejoin: round; }
.chart .service { stroke: var(--service); } .chart text.service { fill: var(--service); stroke: none; }
.chart .kill { stroke: var(--kill); } .chart text.kill { fill: var(--kill); stroke: none; }
.chart .upgrade { stroke: var(--upgrade); } .chart text.upgrade { fill: var(--upgrade); stroke: none; }
.chart .nothing { stroke: var(--soft); } .chart text.nothing { fill: var(--soft); stroke: none; }
.chart .event { stroke-width: 2; }
";

/// What one column of the chart stands for.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(super) struct Column {
    /// Its middle, in milliseconds since the load began.
    pub(super) at_ms: f64,
    /// Requests answered in it.
    pub(super) served: u64,
    /// The worst latency in it, in milliseconds.
    pub(super) worst_ms: f64,
    /// The worst of each millisecond, the median of these.
    pub(super) usual_ms: f64,
}

/// Where things are in the image.
#[derive(Debug, Clone, Copy)]
pub(super) struct Frame {
    /// The end of the time axis.
    end_ms: f64,
    /// The latency axis, in decimal logarithms of milliseconds.
    low: f64,
    high: f64,
}

impl Frame {
    fn x(&self, at_ms: f64) -> f64 {
        LEFT + (WIDTH - LEFT - RIGHT) * (at_ms / self.end_ms).clamp(0.0, 1.0)
    }

    fn y(&self, latency_ms: f64) -> f64 {
        let share = (latency_ms.max(1e-6).log10() - self.low) / (self.high - self.low);
        HEIGHT - BOTTOM - (HEIGHT - BOTTOM - TOP) * share.clamp(0.0, 1.0)
    }
}

/// The time line in as many parts as can be seen.
pub(super) fn columns(outcome: &Outcome) -> Vec<Column> {
    let end_ms = end_ms(outcome);
    let count = ((WIDTH - LEFT - RIGHT) / COLUMN).floor();
    let width_ms = end_ms / count;
    let mut columns = Vec::new();
    let mut slots = outcome.load.timeline.iter().peekable();
    let mut worst = Vec::new();
    for index in 0..count as u32 {
        let begins = f64::from(index) * width_ms;
        worst.clear();
        let mut served = 0;
        while let Some(slot) = slots.next_if(|slot| f64::from(slot.at_ms) < begins + width_ms) {
            worst.push(f64::from(slot.worst_us) / 1e3);
            served += u64::from(slot.served);
        }
        worst.sort_by(f64::total_cmp);
        if let (Some(most), Some(usual)) = (worst.last(), worst.get(worst.len() / 2)) {
            columns.push(Column {
                at_ms: begins + width_ms / 2.0,
                served,
                worst_ms: *most,
                usual_ms: *usual,
            });
        }
    }
    columns
}

fn end_ms(outcome: &Outcome) -> f64 {
    let ends = outcome.load.steps.iter().map(|step| step.started_ms + step.duration_ms);
    ends.fold(1.0, f64::max)
}

fn frame(outcome: &Outcome, columns: &[Column]) -> Frame {
    let least = columns.iter().map(|column| column.usual_ms).fold(f64::INFINITY, f64::min);
    let most = columns.iter().map(|column| column.worst_ms).fold(UPDATE_TARGET_MS, f64::max);
    // A little below what is usual, at a figure that can be read.
    let steps = (-2..=1).flat_map(|decade| [1.0, 2.0, 5.0].map(|by| by * 10f64.powi(decade)));
    let low = steps.filter(|step| *step <= least * 0.7).last().unwrap_or(0.01).log10();
    Frame { end_ms: end_ms(outcome), low, high: most.log10().ceil().max(low.floor() + 1.0) }
}

/// The image by itself, for documents.
pub(super) fn picture(outcome: &Outcome) -> String {
    let style = STYLE.replace('\n', " ");
    let inner = content(outcome, &columns(outcome));
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
         class=\"chart\" role=\"img\" aria-label=\"{}\"><style>{style}</style>{inner}</svg>\n",
        label(outcome)
    )
}

/// The image as a part of a page that has [`STYLE`].
pub(super) fn inline(outcome: &Outcome, columns: &[Column]) -> String {
    format!(
        "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" class=\"chart\" id=\"chart\" role=\"img\" \
         aria-label=\"{}\">{}<line id=\"cursor\" class=\"grid\" y1=\"{TOP}\" y2=\"{}\" x1=\"-9\" \
         x2=\"-9\"/></svg>",
        label(outcome),
        content(outcome, columns),
        HEIGHT - BOTTOM
    )
}

/// Left and right end of the time axis as parts of the width, and its length in milliseconds: what
/// a page needs to know under which column a pointer is.
pub(super) fn axis(outcome: &Outcome) -> (f64, f64, f64) {
    (LEFT / WIDTH, (WIDTH - RIGHT) / WIDTH, end_ms(outcome))
}

fn label(outcome: &Outcome) -> String {
    format!(
        "Latency of requests over time, while kv is updated, luod's worker is killed and luod is \
         upgraded: {} failed, {} connections dropped",
        outcome.load.total.failed, outcome.load.total.dropped
    )
}

fn content(outcome: &Outcome, columns: &[Column]) -> String {
    let frame = frame(outcome, columns);
    let mut svg = String::new();
    // Writing into a string cannot fail, here and below.
    let _ = write!(svg, "<rect class=\"paper\" width=\"{WIDTH}\" height=\"{HEIGHT}\" rx=\"8\"/>");
    bands(outcome, frame, &mut svg);
    axes(frame, &mut svg);
    curves(frame, columns, &mut svg);
    let target = frame.y(UPDATE_TARGET_MS);
    let _ = write!(
        svg,
        "<line class=\"target\" x1=\"{LEFT}\" x2=\"{}\" y1=\"{target:.1}\" y2=\"{target:.1}\"/>\
         <text class=\"target-text\" x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">target of a service \
         update: {UPDATE_TARGET_MS} ms</text>",
        WIDTH - RIGHT,
        WIDTH - RIGHT - 6.0,
        target - 5.0
    );
    events(outcome, frame, &mut svg);
    svg
}

fn span(frame: Frame, step: &Step) -> (f64, f64) {
    let began = step.seen.started_ms;
    (frame.x(began), frame.x(began + step.seen.duration_ms))
}

fn bands(outcome: &Outcome, frame: Frame, svg: &mut String) {
    for (left, right) in outcome.steps.iter().step_by(2).map(|step| span(frame, step)) {
        let _ = write!(
            svg,
            "<rect class=\"band\" x=\"{left:.1}\" y=\"{TOP}\" width=\"{:.1}\" height=\"{}\"/>",
            right - left,
            HEIGHT - BOTTOM - TOP
        );
    }
}

fn axes(frame: Frame, svg: &mut String) {
    let decades = (frame.low.ceil() as i32..=frame.high as i32).map(|decade| 10f64.powi(decade));
    let lowest = 10f64.powf(frame.low);
    for latency in std::iter::once(lowest).chain(decades.filter(|latency| *latency > lowest * 1.5))
    {
        let y = frame.y(latency);
        let _ = write!(
            svg,
            "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/><text \
             class=\"soft\" x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{} ms</text>",
            WIDTH - RIGHT,
            LEFT - 8.0,
            y + 4.0,
            (latency * 100.0).round() / 100.0
        );
    }
    let every = [0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0];
    let seconds = frame.end_ms / 1e3;
    let every = every.into_iter().find(|every| seconds / every <= 12.0).unwrap_or(100.0);
    let mut tick = 0.0;
    while tick <= seconds {
        let x = frame.x(tick * 1e3);
        let _ = write!(
            svg,
            "<line class=\"grid\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{}\" y2=\"{}\"/><text \
             class=\"soft\" x=\"{x:.1}\" y=\"{}\" text-anchor=\"middle\">{:.*} s</text>",
            HEIGHT - BOTTOM,
            HEIGHT - BOTTOM + 5.0,
            HEIGHT - BOTTOM + 20.0,
            usize::from(every < 1.0),
            tick
        );
        tick += every;
    }
    let _ = write!(
        svg,
        "<text class=\"soft\" x=\"{}\" y=\"{}\" text-anchor=\"end\">bars: the slowest request of \
         its {} ms; line: the slowest of a usual millisecond</text>",
        WIDTH - RIGHT,
        HEIGHT - 6.0,
        (frame.end_ms / ((WIDTH - LEFT - RIGHT) / COLUMN)).round()
    );
}

fn curves(frame: Frame, columns: &[Column], svg: &mut String) {
    let bottom = HEIGHT - BOTTOM;
    svg.push_str("<path class=\"worst\" d=\"");
    for column in columns {
        let (x, y) = (frame.x(column.at_ms) - COLUMN / 2.0, frame.y(column.worst_ms));
        let _ = write!(svg, "M{x:.0} {bottom}V{y:.1}h{COLUMN}V{bottom}z");
    }
    svg.push_str("\"/><path class=\"usual\" d=\"");
    for (index, column) in columns.iter().enumerate() {
        let (x, y) = (frame.x(column.at_ms), frame.y(column.usual_ms));
        let _ = write!(svg, "{}{x:.0} {y:.1}", if index == 0 { 'M' } else { 'L' });
    }
    svg.push_str("\"/>");
}

fn events(outcome: &Outcome, frame: Frame, svg: &mut String) {
    for step in &outcome.steps {
        let (x, _) = span(frame, step);
        let class = class(step.kind);
        let slowest = if step.kind == Kind::Nothing { "slowest" } else { "slowest around it" };
        let _ = write!(
            svg,
            "<line class=\"event {class}\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"18\" y2=\"{}\"/><text \
             class=\"title {class}\" x=\"{:.1}\" y=\"30\">{}</text><text class=\"soft\" \
             x=\"{:.1}\" y=\"48\">{slowest} {}</text>",
            HEIGHT - BOTTOM,
            x + 6.0,
            escape(&step.title),
            x + 6.0,
            milliseconds(step.event_worst_ms)
        );
    }
}

/// The class of a kind of step.
pub(super) fn class(kind: Kind) -> &'static str {
    match kind {
        Kind::Nothing => "nothing",
        Kind::Service => "service",
        Kind::Kill => "kill",
        Kind::Upgrade => "upgrade",
    }
}

/// Text as HTML and SVG want it.
pub(super) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::super::outcome::tests::outcome;
    use super::*;

    #[test]
    fn every_answer_is_in_one_column_and_the_worst_is_not_lost() {
        let outcome = outcome();
        let columns = columns(&outcome);
        let served: u64 = columns.iter().map(|column| column.served).sum();
        let all: u64 = outcome.load.timeline.iter().map(|slot| u64::from(slot.served)).sum();
        assert_eq!(served, all);
        let worst = columns.iter().map(|column| column.worst_ms).fold(0.0, f64::max);
        assert!((worst - 20.0).abs() < 1e-9, "{worst}");
    }

    #[test]
    fn the_picture_is_whole_and_needs_nothing_else() {
        let picture = picture(&outcome());
        assert!(picture.starts_with("<svg xmlns=") && picture.ends_with("</svg>\n"));
        for title in ["nothing happens", "kv v1 → v2", "&lt;b&gt;"] {
            assert!(picture.contains(title), "{title}");
        }
        assert_eq!(picture.matches("http").count(), 1, "the name space alone");
        assert!(!picture.contains("NaN") && !picture.contains("inf"));
    }
}
