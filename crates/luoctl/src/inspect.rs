//! `luoctl inspect`: a handover as device-tree source, or as JSON.
//!
//! A blob is one or more trees, one behind the other. Invariants: nothing is printed of a tree
//! whose bytes are not valid as a whole; an entry that is damaged within a valid tree is printed,
//! marked, and makes the command fail all the same.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use luo::Manager;
use luo_abi::fdt::{Blob, DecodeError, MAGIC, MAX_SIZE, Node, Property, Tree};
use serde::Serialize;

use crate::annotate::Notes;
use crate::dts;
use crate::failure::{Context, Failure};
use crate::output::Output;

/// Bytes that are read at most: some trees of the largest size.
const BYTES_MAX: u64 = 4 * MAX_SIZE as u64;

pub(crate) fn blob(path: &Path, output: &mut Output) -> Result<(), Failure> {
    let unread = |source| Failure::Path {
        path: path.to_owned(),
        doing: "read",
        next: "name a file with a handover, or - for standard input",
        source,
    };
    let mut bytes = Vec::new();
    if path == Path::new("-") {
        io::stdin().lock().take(BYTES_MAX + 1).read_to_end(&mut bytes).map_err(unread)?;
    } else {
        let file = File::open(path).map_err(unread)?;
        file.take(BYTES_MAX + 1).read_to_end(&mut bytes).map_err(unread)?;
    }
    let name =
        if path == Path::new("-") { "standard input".into() } else { path.to_string_lossy() };
    inspect(&name, &bytes, output)
}

/// Asks luod for the handover as it would be now.
pub(crate) fn handover(manager: &Manager, output: &mut Output) -> Result<(), Failure> {
    let (memory, size) = manager.handover().map_err(Failure::luod(Context::Asking))?;
    if size > BYTES_MAX {
        let reason = format!("{size} bytes are more than the {BYTES_MAX} that are read");
        return Err(Failure::Handover(io::Error::other(reason)));
    }
    // The memory file may be shared, its position with it: so it is read by offset.
    let memory = File::from(memory);
    let mut bytes = vec![0; size as usize];
    memory.read_exact_at(&mut bytes, 0).map_err(Failure::Handover)?;
    inspect("luod's handover", &bytes, output)
}

fn inspect(name: &str, bytes: &[u8], output: &mut Output) -> Result<(), Failure> {
    let trees = split(bytes).map_err(|error| Failure::Blob {
        sentence: format!(
            "{name} is damaged: {} ({:?} at byte {}); use another copy",
            error.kind, error.kind, error.offset
        ),
    })?;
    let mut damage = Vec::new();
    let mut shown = Vec::new();
    for (index, part) in trees.iter().enumerate() {
        let notes = Notes::of(part.bytes, &part.tree);
        damage.extend(notes.damage().iter().cloned());
        if output.is_json() {
            shown.push(TreeView::of(part, &notes));
            continue;
        }
        let out = output.raw();
        if index > 0 {
            writeln!(out)?;
        }
        if trees.len() > 1 {
            let (number, count) = (index + 1, trees.len());
            writeln!(out, "/* tree {number} of {count}, at byte {} */", part.offset)?;
        }
        dts::print(&part.tree, &notes, out)?;
    }
    output.reply(&BlobView { trees: shown })?;
    match damage.split_first() {
        None => Ok(()),
        Some((first, rest)) => {
            let more = match rest.len() {
                0 => String::new(),
                more => format!(", and {more} more"),
            };
            let sentence = format!("in {name}, {first}{more}; what lies beside it can be used");
            Err(Failure::Blob { sentence })
        }
    }
}

/// One tree of a blob.
struct Part<'a> {
    /// Where it begins.
    offset: usize,
    bytes: &'a [u8],
    tree: Tree<'a>,
}

/// All trees of a blob, validated.
fn split(bytes: &[u8]) -> Result<Vec<Part<'_>>, DecodeError> {
    let mut parts = Vec::new();
    let mut offset = 0;
    loop {
        let rest = bytes.get(offset..).unwrap_or_default();
        let part = first_tree(rest);
        let tree = Blob::validate(part)
            .map_err(|error| DecodeError { offset: error.offset + offset, ..error })?;
        parts.push(Part { offset, bytes: part, tree });
        offset += part.len();
        if offset >= bytes.len() {
            return Ok(parts);
        }
    }
}

/// The bytes of the first of several trees; all of them unless another tree follows where the
/// header says that the first one ends.
fn first_tree(bytes: &[u8]) -> &[u8] {
    let word = |at: usize| {
        let word = bytes.get(at..)?.first_chunk()?;
        Some(u32::from_be_bytes(*word))
    };
    let Some(size) = word(4).map(|size| size as usize).filter(|&size| size > 0) else {
        return bytes;
    };
    match word(size) {
        Some(MAGIC) => bytes.get(..size).unwrap_or(bytes),
        _ => bytes,
    }
}

/// A blob as JSON.
#[derive(Debug, Serialize)]
struct BlobView<'a> {
    trees: Vec<TreeView<'a>>,
}

#[derive(Debug, Serialize)]
struct TreeView<'a> {
    /// Where it lies in the blob; other offsets are relative to it.
    offset: usize,
    size: usize,
    /// What cannot be used, each as a sentence.
    damage: Vec<String>,
    root: NodeView<'a>,
}

#[derive(Debug, Serialize)]
struct NodeView<'a> {
    name: &'a str,
    offset: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    comment: Option<String>,
    properties: Vec<PropertyView<'a>>,
    nodes: Vec<NodeView<'a>>,
}

#[derive(Debug, Serialize)]
struct PropertyView<'a> {
    name: &'a str,
    offset: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    comment: Option<String>,
    /// The value, in hexadecimal.
    bytes: String,
    /// The value, where it is nothing but texts.
    #[serde(skip_serializing_if = "Option::is_none")]
    texts: Option<Vec<&'a str>>,
    /// The value, where it is known to be a number.
    #[serde(skip_serializing_if = "Option::is_none")]
    number: Option<u64>,
}

impl<'a> TreeView<'a> {
    fn of(part: &Part<'a>, notes: &Notes) -> Self {
        Self {
            offset: part.offset,
            size: part.bytes.len(),
            damage: notes.damage().to_vec(),
            root: NodeView::of(&part.tree.root(), notes),
        }
    }
}

impl<'a> NodeView<'a> {
    /// A node and what is in it; trees are 32 levels deep at most.
    fn of(node: &Node<'a>, notes: &Notes) -> Self {
        Self {
            name: node.name(),
            offset: node.offset(),
            comment: notes.at(node.offset()).map(str::to_owned),
            properties: node.properties().map(|each| PropertyView::of(&each, notes)).collect(),
            nodes: node.children().map(|each| Self::of(&each, notes)).collect(),
        }
    }
}

impl<'a> PropertyView<'a> {
    fn of(property: &Property<'a>, notes: &Notes) -> Self {
        let number = property.as_u64().filter(|_| notes.is_number(property.offset()));
        Self {
            name: property.name(),
            offset: property.offset(),
            comment: notes.at(property.offset()).map(str::to_owned),
            bytes: property.value().iter().map(|byte| format!("{byte:02x}")).collect(),
            texts: if number.is_some() { None } else { dts::texts(property.value()) },
            number,
        }
    }
}
