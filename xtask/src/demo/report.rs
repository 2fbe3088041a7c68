//! The report: one HTML file that needs nothing else.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use kv::load::StepReport;

use super::chart::{self, class, escape};
use super::outcome::{Outcome, Verdict};
use super::table::{mebibytes, milliseconds, number};
use crate::failure::{Context as _, Result};

/// How pages look.
pub(super) const STYLE: &str = "
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.25rem 3rem; max-width: 1080px; background: var(--paper);
  color: var(--ink); font: 15px/1.5 system-ui, -apple-system, 'Segoe UI', sans-serif; }
h1 { font-size: 1.5rem; margin: 0 0 .25rem; } h2 { font-size: 1.05rem; margin: 2.2rem 0 .6rem; }
p { margin: .4rem 0; max-width: 46rem; } .soft { color: var(--soft); }
.tiles { display: flex; flex-wrap: wrap; gap: .75rem; margin: 1.4rem 0; }
.tile { flex: 1 1 150px; padding: .8rem 1rem; border: 1px solid var(--grid); border-radius: 8px;
  background: var(--band); }
.tile b { display: block; font-size: 1.35rem; font-variant-numeric: tabular-nums; }
.figure { position: relative; border: 1px solid var(--grid); border-radius: 8px; overflow: hidden; }
.figure svg { display: block; width: 100%; height: auto; }
#tip { position: absolute; display: none; pointer-events: none; padding: .4rem .6rem;
  border: 1px solid var(--grid); border-radius: 6px; background: var(--paper); font-size: 13px;
  white-space: nowrap; box-shadow: 0 2px 8px #0003; font-variant-numeric: tabular-nums; }
.wide { overflow-x: auto; } table { border-collapse: collapse; width: 100%;
  font-variant-numeric: tabular-nums; }
th, td { padding: .45rem .7rem; text-align: right; border-bottom: 1px solid var(--grid);
  white-space: nowrap; } th:first-child, td:first-child { text-align: left; white-space: normal; }
th { color: var(--soft); font-weight: 500; font-size: 13px; } td small { display: block;
  color: var(--soft); } tr.sum td { font-weight: 600; }
.dot { display: inline-block; width: .6rem; height: .6rem; border-radius: 50%; margin-right: .5rem; }
.dot.nothing { background: var(--soft); } .dot.service { background: var(--service); }
.dot.kill { background: var(--kill); } .dot.upgrade { background: var(--upgrade); }
.bad { color: var(--target); font-weight: 600; } .good { color: var(--service); }
ul { padding-left: 1.2rem; }
";

/// Shows the column under the pointer. `DATA` and `AXIS` come before it.
const SCRIPT: &str = "
const chart = document.getElementById('chart'), tip = document.getElementById('tip');
const cursor = document.getElementById('cursor');
const ms = v => (v < 1 ? v.toFixed(2) : v < 100 ? v.toFixed(1) : v.toFixed(0)) + ' ms';
chart.addEventListener('pointermove', event => {
  const box = chart.getBoundingClientRect(), at = (event.clientX - box.left) / box.width;
  const time = (at - AXIS[0]) / (AXIS[1] - AXIS[0]) * AXIS[2];
  let best = null;
  for (const column of DATA) {
    if (!best || Math.abs(column[0] - time) < Math.abs(best[0] - time)) best = column;
  }
  if (!best || time < 0 || time > AXIS[2]) { leave(); return; }
  const x = (AXIS[0] + best[0] / AXIS[2] * (AXIS[1] - AXIS[0])) * 1000;
  cursor.setAttribute('x1', x); cursor.setAttribute('x2', x);
  let step = 'warming up';
  for (const [began, title] of STEPS) if (best[0] >= began) step = title;
  tip.textContent = '';
  for (const line of [(best[0] / 1000).toFixed(2) + ' s: ' + step, 'worst ' + ms(best[2]),
      'usual ' + ms(best[3]), best[1].toLocaleString('en') + ' requests served']) {
    tip.appendChild(document.createElement('div')).textContent = line;
  }
  tip.style.display = 'block';
  const left = event.clientX - box.left, wide = tip.offsetWidth;
  tip.style.left = (left + 16 + wide > box.width ? left - 16 - wide : left + 16) + 'px';
  tip.style.top = Math.max(4, event.clientY - box.top - 40) + 'px';
});
const leave = () => { tip.style.display = 'none'; cursor.setAttribute('x1', -9); cursor.setAttribute('x2', -9); };
chart.addEventListener('pointerleave', leave);
";

/// Writes the report.
pub(super) fn write(path: &Path, outcome: &Outcome) -> Result<()> {
    save(path, &page(outcome))
}

/// Writes the chart by itself.
pub(super) fn write_picture(path: &Path, outcome: &Outcome) -> Result<()> {
    save(path, &chart::picture(outcome))
}

/// Writes a file, and the directory that it is in.
pub(super) fn save(path: &Path, text: &str) -> Result<()> {
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir).context(|| format!("make {}", dir.display()))?;
    }
    fs::write(path, text).context(|| format!("write {}", path.display()))
}

fn page(outcome: &Outcome) -> String {
    let columns = chart::columns(outcome);
    let data: Vec<(f64, u64, f64, f64)> = columns
        .iter()
        .map(|column| (tenth(column.at_ms), column.served, column.worst_ms, column.usual_ms))
        .collect();
    let steps: Vec<(f64, &str)> =
        outcome.steps.iter().map(|step| (step.seen.started_ms, step.title.as_str())).collect();
    let script = format!(
        "const DATA={},AXIS={},STEPS={};{SCRIPT}",
        json(&data),
        json(&chart::axis(outcome)),
        json(&steps)
    );
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" \
         content=\"width=device-width\"><meta name=\"color-scheme\" content=\"light dark\">\
         <title>luo: a live update under load</title><style>{}{STYLE}</style></head><body>\
         {}{}<h2>Latency over time</h2><div class=\"figure\">{}<div id=\"tip\"></div></div>\
         <h2>Step by step</h2>{}<h2>The data does not matter</h2>{}{}\
         <script>{script}</script></body></html>\n",
        chart::STYLE,
        head(outcome),
        tiles(outcome),
        chart::inline(outcome, &columns),
        steps_table(outcome),
        compared_table(outcome),
        notes(outcome),
    )
}

fn tenth(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

/// As JSON that can stand in a script.
fn json(value: &impl serde::Serialize) -> String {
    // Numbers and strings always have a JSON form.
    serde_json::to_string(value).unwrap_or_default().replace("</", "<\\/")
}

fn head(outcome: &Outcome) -> String {
    format!(
        "<h1>luo: a live update under load</h1><p>kv, an in-memory store with {} MiB of data, is \
         replaced by its next version and back, luod's worker is killed and luod is upgraded, while \
         {} connections set and get without a pause and check every byte.</p>",
        outcome.mib, outcome.connections
    )
}

fn tiles(outcome: &Outcome) -> String {
    let total = &outcome.load.total;
    let update = outcome
        .steps
        .iter()
        .filter(|step| class(step.kind) == "service")
        .map(|step| step.event_worst_ms)
        .fold(0.0, f64::max);
    let zero = |count: u64| if count == 0 { "good" } else { "bad" };
    let mut html = String::from("<div class=\"tiles\">");
    for (value, class, what) in [
        (number(total.served), "", "requests served"),
        (number(total.failed), zero(total.failed), "failed or differed"),
        (number(total.dropped), zero(total.dropped), "connections dropped"),
        (mebibytes(total.verified_bytes), "", "compared byte for byte"),
        (milliseconds(update), "", "slowest request of a service update"),
    ] {
        // Writing into a string cannot fail, here and below.
        let _ = write!(html, "<div class=\"tile\"><b class=\"{class}\">{value}</b>{what}</div>");
    }
    html.push_str("</div>");
    html
}

fn figures(seen: &StepReport, event_worst_ms: Option<f64>) -> String {
    let count = |count: u64| {
        let class = if count == 0 { "" } else { " class=\"bad\"" };
        format!("<td{class}>{}</td>", number(count))
    };
    format!(
        "<td>{}</td>{}{}<td>{}</td><td>{}</td><td>{}</td><td>{}</td>\
         <td>{}</td>",
        number(seen.served),
        count(seen.failed),
        count(seen.dropped),
        mebibytes(seen.verified_bytes),
        milliseconds(seen.p50_ms),
        milliseconds(seen.p99_ms),
        milliseconds(seen.worst_ms),
        event_worst_ms.map(milliseconds).unwrap_or_default()
    )
}

fn steps_table(outcome: &Outcome) -> String {
    let mut html = String::from(
        "<div class=\"wide\"><table><thead><tr><th>step</th><th>served</th><th>failed</th>\
         <th>dropped</th><th>verified</th><th>median</th><th>99 %</th><th>worst</th>\
         <th>at the event</th></tr></thead><tbody>",
    );
    for step in &outcome.steps {
        let _ = write!(
            html,
            "<tr><td><span class=\"dot {}\"></span>{}<small>{}</small></td>{}</tr>",
            class(step.kind),
            escape(&step.title),
            escape(&step.detail),
            figures(&step.seen, step.took_ms.map(|_| step.event_worst_ms))
        );
    }
    let load = &outcome.load;
    let _ = write!(
        html,
        "<tr><td>reading all data back</td>{}</tr><tr class=\"sum\"><td>all</td>{}</tr></tbody>\
         </table></div>",
        figures(&load.verify, None),
        figures(&load.total, None)
    );
    html
}

fn compared_table(outcome: &Outcome) -> String {
    let mut html = String::from(
        "<p>The same update, with little data and with much. The next version maps the memory of \
         the one before; nothing is copied.</p><div class=\"wide\"><table><thead><tr><th>data</th>\
         <th>updates</th><th>served</th><th>failed</th><th>dropped</th><th>worst, nothing \
         happens</th><th>worst, usual update</th><th>worst of all</th></tr></thead><tbody>",
    );
    for size in &outcome.compared {
        let seen = &size.load.total;
        let _ = write!(
            html,
            "<tr><td>{} MiB</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td>\
             <td>{}</td></tr>",
            number(size.mib),
            size.worst_ms.len(),
            number(seen.served),
            number(seen.failed),
            number(seen.dropped),
            milliseconds(size.nothing_ms),
            milliseconds(size.typical_ms()),
            milliseconds(size.worst_ms())
        );
    }
    html.push_str("</tbody></table></div>");
    html
}

fn notes(outcome: &Outcome) -> String {
    let Verdict { errors, misses } = outcome.verdict();
    let mut html = String::from("<h2>How it was measured</h2><ul>");
    for error in &errors {
        let _ = write!(html, "<li class=\"bad\">{}</li>", escape(error));
    }
    for note in misses.iter().chain(&outcome.shortages) {
        let _ = write!(html, "<li>{}</li>", escape(note));
    }
    let busy = outcome.busy.map_or(String::new(), |busy| {
        format!("; its processors were busy for {:.0} % of the time", busy * 100.0)
    });
    let _ = write!(
        html,
        "<li>On {}{}. The load, kv and luod share these processors.</li><li>A latency counts from \
         when a request is made until its answer has been read; each connection has one request \
         under way at any time.</li><li>In the table a step lasts from its event to the next; \
         <i>at the event</i> counts what was answered until 150 ms after it.</li>\
         </ul>",
        escape(&outcome.machine),
        busy
    );
    html
}
