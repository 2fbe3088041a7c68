//! `luoctl arena`: makes arenas and looks into them, without luod.
//!
//! Invariants: nothing but `create` changes anything; what is looked at may belong to another
//! machine, or be in use.

use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use luo_abi::arena::Kind;
use luo_carriers::arena::view::stored;
use luo_carriers::arena::{Access, Arena, FileMedium, Medium, View, machine_id};
use serde::Serialize;

use crate::cli::{ArenaCommand, Size};
use crate::failure::Failure;
use crate::format;
use crate::output::{Output, TextTable, Tone, cell};
use crate::progress::Bar;

pub(crate) fn run(command: &ArenaCommand, output: &mut Output) -> Result<(), Failure> {
    match command {
        ArenaCommand::Create { path, size, force } => create(path, *size, *force, output),
        ArenaCommand::Info { path } => info(path, output),
        ArenaCommand::Check { path, full } => check(path, *full, output),
        ArenaCommand::Dump { path, handover: true } => handover(path, output),
        ArenaCommand::Dump { path, handover: false } => dump(path, output),
    }
}

/// An arena in a few words.
#[derive(Debug, Serialize)]
struct Info {
    arena: String,
    machine: String,
    version: u32,
    size: u64,
    holds_handover: bool,
    generation: u64,
    /// Seconds since 1970.
    written: u64,
    objects: usize,
    /// Bytes that they take up.
    stored: u64,
}

impl Info {
    fn of(view: &View) -> Self {
        let superblock = view.superblock();
        Self {
            arena: id(superblock.arena),
            machine: id(superblock.machine),
            version: superblock.version(),
            size: superblock.size,
            holds_handover: superblock.catalogue.is_some(),
            generation: superblock.generation,
            written: superblock.written,
            objects: view.catalogue.objects.len(),
            stored: view.catalogue.objects.iter().map(stored).sum(),
        }
    }

    fn table(&self) -> TextTable {
        let mut table = TextTable::bare();
        let mut row = |key: &str, value: &str, tone| {
            table.row(vec![cell(key, Tone::Faint), cell(value, tone)]);
        };
        let (state, tone) = match self.holds_handover {
            true => ("holds a handover that nobody has finished", Tone::Notice),
            false => ("empty", Tone::Good),
        };
        row("state", state, tone);
        row("arena", &self.arena, Tone::Plain);
        row("machine", &self.machine, Tone::Plain);
        row("version", &self.version.to_string(), Tone::Plain);
        row("size", &format::bytes(self.size), Tone::Plain);
        let stored = format!(
            "{} in {}",
            format::bytes(self.stored),
            format::count(self.objects as u64, "object")
        );
        row("stored", &stored, Tone::Plain);
        let written = format!("{}, generation {}", format::moment(self.written), self.generation);
        row("written", &written, Tone::Plain);
        table
    }
}

/// Something kept.
#[derive(Debug, Serialize)]
struct Object {
    handle: String,
    kind: &'static str,
    bytes: u64,
    /// Bytes that it takes up: holes and pages of zeros take none.
    stored: u64,
    pieces: usize,
}

fn objects(view: &View) -> Vec<Object> {
    let handover = view.superblock().catalogue.map(|place| place.handover);
    let described = view.catalogue.objects.iter().map(|object| {
        let kind = match &object.kind {
            _ if handover == Some(object.handle) => "handover",
            Kind::Inline(_) | Kind::Bytes => "bytes",
            Kind::Memory => "memory",
            Kind::Resident => "resident memory",
        };
        Object {
            handle: format!("{:#x}", object.handle),
            kind,
            bytes: object.len,
            stored: stored(object),
            pieces: object.pieces.len(),
        }
    });
    described.collect()
}

fn id(bytes: [u8; 16]) -> String {
    format!("{:032x}", u128::from_be_bytes(bytes))
}

fn failed(path: &Path) -> impl Fn(luo_core::Failure) -> Failure {
    move |source| Failure::Arena { path: path.to_owned(), source }
}

fn look(path: &Path) -> Result<(FileMedium, View), Failure> {
    let medium = FileMedium::open(path, Access::Look).map_err(failed(path))?;
    let view = View::read(&medium, None).map_err(failed(path))?;
    Ok((medium, view))
}

fn create(
    path: &Path,
    size: Option<Size>,
    force: bool,
    output: &mut Output,
) -> Result<(), Failure> {
    let medium = match size {
        Some(Size(bytes)) => FileMedium::create(path, bytes),
        // A file or device that is there, as large as it is.
        None => FileMedium::open(path, Access::Exclusive),
    };
    let medium = medium.map_err(failed(path))?;
    let size = medium.size();
    let reach = medium.place().reach();
    let machine = machine_id().map_err(failed(path))?;
    Arena::create(Arc::new(medium), machine, force).map_err(failed(path))?;
    if output.is_json() {
        let (_, view) = look(path)?;
        return output.reply(&Info::of(&view));
    }
    output.done(&format!(
        "{} is an arena of {} now. It reaches as far as {}. Name it in luod's configuration: \
         arena = {path:?}",
        path.display(),
        format::bytes(size),
        reach.name(),
    ))
}

fn info(path: &Path, output: &mut Output) -> Result<(), Failure> {
    let (_, view) = look(path)?;
    let info = Info::of(&view);
    if output.is_json() {
        return output.reply(&info);
    }
    output.table(&info.table())
}

/// What a check has looked at.
#[derive(Debug, Serialize)]
struct Checked {
    objects: u64,
    verified_bytes: u64,
    skipped_bytes: u64,
}

fn check(path: &Path, full: bool, output: &mut Output) -> Result<(), Failure> {
    let (medium, view) = look(path)?;
    let bar = Bar::start("verifying", output);
    let progress = |done, total| {
        bar.set(done, total);
        Ok(())
    };
    let checked = view.check(&medium, full, &progress).map_err(failed(path))?;
    drop(bar);
    if output.is_json() {
        return output.reply(&Checked {
            objects: checked.objects,
            verified_bytes: checked.bytes,
            skipped_bytes: checked.skipped,
        });
    }
    let rest = match checked.skipped {
        0 => String::new(),
        skipped => {
            format!("; {} of memory were not read, --full reads them", format::bytes(skipped))
        }
    };
    output.done(&format!(
        "The arena is whole: {}, {} verified{rest}.",
        format::count(checked.objects, "object"),
        format::bytes(checked.bytes),
    ))
}

/// Everything in an arena.
#[derive(Debug, Serialize)]
struct Whole {
    info: Info,
    objects: Vec<Object>,
}

fn dump(path: &Path, output: &mut Output) -> Result<(), Failure> {
    let (_, view) = look(path)?;
    let whole = Whole { info: Info::of(&view), objects: objects(&view) };
    if output.is_json() {
        return output.reply(&whole);
    }
    output.table(&whole.info.table())?;
    if whole.objects.is_empty() {
        return Ok(());
    }
    output.line("")?;
    let mut table =
        TextTable::new(&["HANDLE", "KIND", "BYTES", "STORED", "PIECES"]).numbers(&[2, 3, 4]);
    for object in &whole.objects {
        table.row(vec![
            cell(&object.handle, Tone::Plain),
            cell(object.kind, Tone::Plain),
            cell(&object.bytes.to_string(), Tone::Plain),
            cell(&format::bytes(object.stored), Tone::Plain),
            cell(&object.pieces.to_string(), Tone::Plain),
        ]);
    }
    output.table(&table)
}

/// The handover's bytes, for `luoctl inspect -`.
fn handover(path: &Path, output: &mut Output) -> Result<(), Failure> {
    let (medium, view) = look(path)?;
    match view.handover(&medium).map_err(failed(path))? {
        Some(handover) => Ok(output.raw().write_all(&handover)?),
        None => Err(Failure::Arena {
            path: path.to_owned(),
            source: luo_core::Failure::new(luo_core::Errno::NoEnt, "the arena holds no handover"),
        }),
    }
}
