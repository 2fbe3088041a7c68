//! Where a command's words go: tables, lines and JSON to stdout, the rest to stderr.
//!
//! Invariants: nothing here panics when a reader has gone; colours are on cells alone, so that no
//! text of a peer is mistaken for one; with `--json` stdout has JSON and nothing else.

use std::io::{self, BufWriter, IsTerminal, StdoutLock, Write};

use comfy_table::{Attribute, Cell, CellAlignment, Color, ContentArrangement, Table, presets};
use serde::Serialize;

use crate::cli::{ColorWhen, Global};
use crate::failure::Failure;
use crate::format;

/// Where a command's words go.
#[derive(Debug)]
pub(crate) struct Output {
    stdout: BufWriter<StdoutLock<'static>>,
    json: bool,
    quiet: bool,
    color: bool,
}

impl Output {
    pub(crate) fn new(global: &Global) -> Self {
        let color = match global.color {
            ColorWhen::Always => true,
            ColorWhen::Never => false,
            ColorWhen::Auto => {
                io::stdout().is_terminal()
                    && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
            }
        };
        Self {
            stdout: BufWriter::new(io::stdout().lock()),
            json: global.json,
            quiet: global.quiet,
            color,
        }
    }

    pub(crate) const fn is_json(&self) -> bool {
        self.json
    }

    pub(crate) const fn is_quiet(&self) -> bool {
        self.quiet
    }

    /// Prints luod's reply where JSON is wanted, indented for people who look at it.
    pub(crate) fn reply(&mut self, reply: &impl Serialize) -> Result<(), Failure> {
        if !self.json {
            return Ok(());
        }
        serde_json::to_writer_pretty(&mut self.stdout, reply).map_err(json_failure)?;
        self.stdout.write_all(b"\n")?;
        Ok(())
    }

    /// Prints one of many replies as one line, at once.
    pub(crate) fn reply_line(&mut self, reply: &impl Serialize) -> Result<(), Failure> {
        serde_json::to_writer(&mut self.stdout, reply).map_err(json_failure)?;
        self.stdout.write_all(b"\n")?;
        self.finish()
    }

    pub(crate) fn table(&mut self, table: &TextTable) -> Result<(), Failure> {
        if !table.is_empty() {
            writeln!(self.stdout, "{}", table.render(self.color))?;
        }
        Ok(())
    }

    pub(crate) fn line(&mut self, line: &str) -> Result<(), Failure> {
        writeln!(self.stdout, "{}", format::plain(line))?;
        Ok(())
    }

    /// Text that was made here, of many lines.
    pub(crate) fn line_raw(&mut self, text: &str) -> Result<(), Failure> {
        self.stdout.write_all(text.as_bytes())?;
        Ok(())
    }

    /// Says what was done.
    pub(crate) fn done(&mut self, line: &str) -> Result<(), Failure> {
        if self.quiet || self.json {
            return Ok(());
        }
        self.line(line)
    }

    /// Bytes as they are.
    pub(crate) fn raw(&mut self) -> &mut impl Write {
        &mut self.stdout
    }

    /// Writes out what is still in the buffer.
    pub(crate) fn finish(&mut self) -> Result<(), Failure> {
        Ok(self.stdout.flush()?)
    }

    /// Says on stderr what is wrong. There is nobody to tell if that fails.
    pub(crate) fn complain(&mut self, sentence: &str) {
        // In the order in which it was said.
        let _ = self.stdout.flush();
        complain(sentence);
    }
}

/// As [`Output::complain`], for what has nothing on stdout.
pub(crate) fn complain(sentence: &str) {
    let _ = writeln!(io::stderr().lock(), "luoctl: {}", format::plain(sentence));
}

/// Keeps a closed pipe known as one.
fn json_failure(error: serde_json::Error) -> Failure {
    match error.io_error_kind() {
        Some(kind) => Failure::Output(kind.into()),
        None => Failure::Json(error),
    }
}

/// How a cell stands out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tone {
    Plain,
    /// A name of something, or a heading.
    Strong,
    /// Of less interest.
    Faint,
    Good,
    /// To be looked at.
    Notice,
    Bad,
}

/// A table without lines, one row a line.
#[derive(Debug)]
pub(crate) struct TextTable {
    table: Table,
    rows: usize,
}

impl TextTable {
    /// A table with these headings.
    pub(crate) fn new(headings: &[&str]) -> Self {
        let mut text = Self::bare();
        text.table.set_header(headings.iter().map(|heading| cell(heading, Tone::Strong)));
        text
    }

    /// A table without headings.
    pub(crate) fn bare() -> Self {
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        table.set_content_arrangement(ContentArrangement::Disabled);
        Self { table, rows: 0 }
    }

    /// Numbers in this column stand right, and so does its heading.
    pub(crate) fn numbers(mut self, columns: &[usize]) -> Self {
        for &column in columns {
            if let Some(column) = self.table.column_mut(column) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        self
    }

    pub(crate) fn row(&mut self, cells: Vec<Cell>) {
        self.table.add_row(cells);
        self.rows += 1;
    }

    pub(crate) const fn is_empty(&self) -> bool {
        self.rows == 0
    }

    fn render(&self, color: bool) -> String {
        let mut table = self.table.clone();
        // Colours and widths are this program's business, not a guess of the library's.
        table.force_no_tty();
        if color {
            table.enforce_styling().style_text_only();
        }
        let count = table.column_count();
        for (index, column) in table.column_iter_mut().enumerate() {
            column.set_padding((0, if index + 1 < count { 2 } else { 0 }));
        }
        table.trim_fmt()
    }
}

/// A cell with that text.
pub(crate) fn cell(text: &str, tone: Tone) -> Cell {
    let cell = Cell::new(format::plain(text));
    match tone {
        Tone::Plain => cell,
        Tone::Strong => cell.add_attribute(Attribute::Bold),
        Tone::Faint => cell.add_attribute(Attribute::Dim),
        Tone::Good => cell.fg(Color::Green),
        Tone::Notice => cell.fg(Color::Yellow).add_attribute(Attribute::Bold),
        Tone::Bad => cell.fg(Color::Red).add_attribute(Attribute::Bold),
    }
}
