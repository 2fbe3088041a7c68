//! The table at the end, for terminals.

use comfy_table::{Cell, CellAlignment, Table, presets};
use kv::load::StepReport;

use super::outcome::Outcome;

/// The steps, and the comparison.
pub(super) fn text(outcome: &Outcome) -> String {
    let mut table = begun(&[
        "step",
        "served",
        "failed",
        "dropped",
        "verified",
        "p50",
        "p99",
        "worst",
        "at the event",
    ]);
    for step in &outcome.steps {
        let event = step.took_ms.map(|_| step.event_worst_ms);
        table.add_row(row(&step.title, &step.seen, event));
    }
    table.add_row(row("reading all data back", &outcome.load.verify, None));
    table.add_row(row("all", &outcome.load.total, None));
    let mut compared = begun(&[
        "update with",
        "served",
        "failed",
        "dropped",
        "verified",
        "nothing",
        "typical",
        "worst",
    ]);
    for size in &outcome.compared {
        let seen = &size.load.total;
        compared.add_row(cells([
            format!("{} MiB", size.mib),
            number(seen.served),
            number(seen.failed),
            number(seen.dropped),
            mebibytes(seen.verified_bytes),
            milliseconds(size.nothing_ms),
            milliseconds(size.typical_ms()),
            milliseconds(size.worst_ms()),
        ]));
    }
    format!("{table}\n\n{compared}\n")
}

pub(super) fn begun(titles: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED);
    table.set_header(cells(titles.iter().map(|title| (*title).to_owned())));
    table
}

pub(super) fn row(title: &str, seen: &StepReport, event_worst_ms: Option<f64>) -> Vec<Cell> {
    cells([
        title.to_owned(),
        number(seen.served),
        number(seen.failed),
        number(seen.dropped),
        mebibytes(seen.verified_bytes),
        milliseconds(seen.p50_ms),
        milliseconds(seen.p99_ms),
        milliseconds(seen.worst_ms),
        event_worst_ms.map(milliseconds).unwrap_or_default(),
    ])
}

/// The first to the left, figures to the right.
pub(super) fn cells(texts: impl IntoIterator<Item = String>) -> Vec<Cell> {
    texts
        .into_iter()
        .enumerate()
        .map(|(column, text)| {
            let side = if column == 0 { CellAlignment::Left } else { CellAlignment::Right };
            Cell::new(text).set_alignment(side)
        })
        .collect()
}

/// With a comma at each thousand.
pub(super) fn number(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

pub(super) fn mebibytes(bytes: u64) -> String {
    format!("{} MiB", number(bytes >> 20))
}

/// With as many digits as mean something.
pub(super) fn milliseconds(milliseconds: f64) -> String {
    if milliseconds < 1.0 {
        format!("{milliseconds:.2} ms")
    } else if milliseconds < 100.0 {
        format!("{milliseconds:.1} ms")
    } else {
        format!("{milliseconds:.0} ms")
    }
}

/// As [`milliseconds`], of what may lie before a moment.
pub(super) fn milliseconds_signed(value: f64) -> String {
    let sign = if value < 0.0 { "-" } else { "" };
    format!("{sign}{}", milliseconds(value.abs()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_a_comma_at_each_thousand() {
        for (value, text) in [(0, "0"), (999, "999"), (1000, "1,000"), (1_234_567, "1,234,567")] {
            assert_eq!(number(value), text);
        }
    }
}
