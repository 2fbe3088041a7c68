//! The rows of a run, as a table for the terminal and as the page docs/benchmarks.md.

use std::fmt::Write as _;
use std::time::Duration;

/// Which way a figure gets better.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Better {
    /// Throughput.
    Higher,
    /// Time.
    Lower,
}

/// One figure of ours beside its limit or peer; or that limit alone, where ours is measured by
/// another row or not yet at all.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    /// What is measured, `preserve, batches of 253`.
    pub(crate) what: String,
    /// Ours, in `unit`.
    pub(crate) ours: Option<f64>,
    /// The limit's or peer's name.
    pub(crate) peer: String,
    /// The limit's or peer's figure, in `unit`.
    pub(crate) peer_value: f64,
    /// `descriptors/s`, `µs`, …
    pub(crate) unit: &'static str,
    pub(crate) better: Better,
    /// The ratio of ours to the peer's that is aimed at: at least that where higher is better, at
    /// most where lower is.
    pub(crate) goal: Option<f64>,
}

impl Row {
    /// A limit or peer by itself.
    pub(crate) fn limit(what: String, peer: &str, value: f64, unit: &'static str) -> Self {
        let better = if unit.ends_with("/s") { Better::Higher } else { Better::Lower };
        Self { what, ours: None, peer: peer.into(), peer_value: value, unit, better, goal: None }
    }

    /// Ours divided by the peer's.
    pub(crate) fn ratio(&self) -> Option<f64> {
        self.ours.filter(|_| self.peer_value > 0.0).map(|ours| ours / self.peer_value)
    }

    /// Whether there is a goal, and it was not reached.
    pub(crate) fn missed(&self) -> bool {
        match (self.ratio(), self.goal, self.better) {
            (Some(ratio), Some(goal), Better::Higher) => ratio < goal,
            (Some(ratio), Some(goal), Better::Lower) => ratio > goal,
            _ => false,
        }
    }

    fn cells(&self) -> [String; 7] {
        let none = || "–".to_owned();
        let goal = self.goal.map(|goal| match self.better {
            Better::Higher => format!("≥ {goal}"),
            Better::Lower => format!("≤ {goal}"),
        });
        let met = match (self.goal, self.ratio()) {
            (Some(_), Some(_)) => {
                if self.missed() {
                    " **missed**"
                } else {
                    " met"
                }
            }
            _ => "",
        };
        [
            self.what.clone(),
            self.ours.map_or_else(none, figure),
            self.peer.clone(),
            // One that failed has none.
            if self.peer_value > 0.0 { figure(self.peer_value) } else { none() },
            self.unit.to_owned(),
            self.ratio().map_or_else(none, |ratio| format!("{ratio:.2}")),
            goal.map_or_else(none, |goal| format!("{goal}{met}")),
        ]
    }
}

/// Three significant digits, thousands apart.
fn figure(value: f64) -> String {
    if value >= 100.0 {
        let digits = format!("{value:.0}");
        let mut text = String::new();
        for (at, digit) in digits.chars().enumerate() {
            if at > 0 && (digits.len() - at) % 3 == 0 {
                text.push(' ');
            }
            text.push(digit);
        }
        text
    } else if value >= 10.0 {
        format!("{value:.1}")
    } else {
        format!("{value:.2}")
    }
}

/// The rows of one benchmark.
#[derive(Debug)]
pub(super) struct Section {
    pub(super) name: &'static str,
    pub(super) about: &'static str,
    pub(super) rows: Vec<Row>,
}

const HEAD: [&str; 7] = ["what", "luo", "beside", "its figure", "unit", "ratio", "goal"];

/// For the terminal: columns as wide as what they hold.
pub(super) fn plain(sections: &[Section]) -> String {
    let mut text = String::new();
    for section in sections {
        let mut lines = vec![HEAD.map(str::to_owned)];
        lines.extend(section.rows.iter().map(Row::cells));
        let widths: Vec<usize> = (0..HEAD.len())
            .map(|at| lines.iter().map(|line| line[at].chars().count()).max().unwrap_or(0))
            .collect();
        // Writing into a string cannot fail, here and below.
        let _ = writeln!(text, "\n{}: {}", section.name, section.about);
        for line in lines {
            for (cell, width) in line.iter().zip(&widths) {
                let _ = write!(text, "  {cell:<width$}", width = *width);
            }
            let _ = writeln!(text);
        }
    }
    text
}

/// The page docs/benchmarks.md.
pub(super) fn page(sections: &[Section], machine: &[(&str, String)], took: Duration) -> String {
    let mut text = String::from(
        "# Benchmarks\n\n\
         Written by `cargo xtask bench`; do not edit. Each figure of luo's stands beside its limit \
         or its peer, measured in the same run on the same machine: the ratio is what counts. A row \
         without a figure of luo's is a limit alone.\n\n\
         The machine:\n\n",
    );
    for (key, value) in machine {
        let _ = writeln!(text, "- {key}: {value}");
    }
    let _ = writeln!(text, "- the run took {} s", took.as_secs());
    for section in sections {
        let _ = writeln!(text, "\n## {}\n\n{}.\n", section.name, capital(section.about));
        let _ = writeln!(text, "| {} |", HEAD.join(" | "));
        let _ = writeln!(text, "| --- | ---: | --- | ---: | --- | ---: | --- |");
        for row in &section.rows {
            let _ = writeln!(text, "| {} |", row.cells().join(" | "));
        }
    }
    text
}

fn capital(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| first.to_uppercase().chain(chars).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(ours: f64, goal: f64, better: Better) -> Row {
        let limit = Row::limit("x".into(), "peer", 100.0, "µs");
        Row { ours: Some(ours), goal: Some(goal), better, ..limit }
    }

    #[test]
    fn a_goal_is_missed_on_the_wrong_side_only() {
        assert!(!row(50.0, 0.5, Better::Higher).missed());
        assert!(row(49.0, 0.5, Better::Higher).missed());
        assert!(!row(150.0, 1.5, Better::Lower).missed());
        assert!(row(151.0, 1.5, Better::Lower).missed());
        assert!(!Row::limit("x".into(), "peer", 1.0, "µs").missed());
    }

    #[test]
    fn the_page_holds_every_row_with_its_ratio_and_goal() {
        let rows = vec![row(2000.0, 1.5, Better::Lower)];
        let page = page(
            &[Section { name: "restart", about: "a restart", rows }],
            &[("cores", "2".into())],
            Duration::from_secs(1),
        );
        assert!(
            page.contains("| x | 2 000 | peer | 100 | µs | 20.00 | ≤ 1.5 **missed** |"),
            "{page}"
        );
        assert!(page.contains("- cores: 2"), "{page}");
    }

    #[test]
    fn figures_keep_three_digits() {
        assert_eq!(figure(1_234_567.8), "1 234 568");
        assert_eq!(figure(12.345), "12.3");
        assert_eq!(figure(0.5), "0.50");
    }
}
