//! Device-tree source of a validated tree.
//!
//! dtoolkit prints trees as well, but refuses names of more than 31 bytes, which sessions have; and
//! it has no place for comments.
//!
//! Invariants: `dtc` makes the same tree of what is printed; no comment can end early.

use std::io::{self, Write};

use luo_abi::fdt::{Event, Property, Tree};

use crate::annotate::Notes;
use crate::format;

/// Prints one tree.
pub(crate) fn print(tree: &Tree<'_>, notes: &Notes, out: &mut impl Write) -> io::Result<()> {
    writeln!(out, "/dts-v1/;\n")?;
    let mut depth = 0_usize;
    // A child stands off from what is before it, unless it is the first thing in its parent.
    let mut first = true;
    for event in tree.events() {
        match event {
            Event::Begin { name, offset } => {
                if !first {
                    writeln!(out)?;
                }
                indent(out, depth)?;
                write!(out, "{} {{", if depth == 0 { "/" } else { name })?;
                comment(out, notes.at(offset))?;
                depth += 1;
                first = true;
            }
            Event::Property(property) => {
                indent(out, depth)?;
                write!(out, "{}", property.name())?;
                value(out, &property, notes.is_number(property.offset()))?;
                write!(out, ";")?;
                comment(out, notes.at(property.offset()))?;
                first = false;
            }
            Event::End => {
                depth = depth.saturating_sub(1);
                indent(out, depth)?;
                writeln!(out, "}};")?;
                first = false;
            }
        }
    }
    Ok(())
}

fn indent(out: &mut impl Write, depth: usize) -> io::Result<()> {
    (0..depth).try_for_each(|_| out.write_all(b"\t"))
}

/// Ends the line, with a comment if there is one.
fn comment(out: &mut impl Write, text: Option<&str>) -> io::Result<()> {
    match text {
        Some(text) => writeln!(out, " /* {} */", format::plain(text).replace("*/", "*\\/")),
        None => writeln!(out),
    }
}

fn value(out: &mut impl Write, property: &Property<'_>, number: bool) -> io::Result<()> {
    let bytes = property.value();
    if bytes.is_empty() {
        return Ok(());
    }
    write!(out, " = ")?;
    if let Some(value) = property.as_u64().filter(|_| number) {
        write!(out, "/bits/ 64 <{value:#x}>")
    } else if let Some(texts) = texts(bytes) {
        for (index, text) in texts.iter().enumerate() {
            let escaped = text.replace('\\', "\\\\").replace('"', "\\\"");
            write!(out, "{}\"{escaped}\"", if index > 0 { ", " } else { "" })?;
        }
        Ok(())
    } else if bytes.len().is_multiple_of(4) {
        let mut between = "<";
        for cell in bytes.chunks_exact(4) {
            let cell = cell.iter().fold(0_u32, |cell, &byte| cell << 8 | u32::from(byte));
            write!(out, "{between}{cell:#x}")?;
            between = " ";
        }
        write!(out, ">")
    } else {
        let mut between = "[";
        for byte in bytes {
            write!(out, "{between}{byte:02x}")?;
            between = " ";
        }
        write!(out, "]")
    }
}

/// The value as texts, where it is nothing but printable ones.
pub(crate) fn texts(bytes: &[u8]) -> Option<Vec<&str>> {
    let (0, bytes) = bytes.split_last().map(|(last, rest)| (*last, rest))? else { return None };
    bytes
        .split(|&byte| byte == 0)
        .map(|text| {
            let printable = !text.is_empty() && text.iter().all(|byte| matches!(byte, b' '..=b'~'));
            std::str::from_utf8(text).ok().filter(|_| printable)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use luo_abi::fdt::{Blob, Writer};

    use super::*;

    fn printed(write: impl FnOnce(&mut Writer)) -> String {
        let mut writer = Writer::new();
        writer.begin_node("").unwrap();
        write(&mut writer);
        writer.end_node().unwrap();
        let blob = writer.finish().unwrap();
        let mut out = Vec::new();
        print(&Blob::validate(&blob).unwrap(), &Notes::default(), &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn every_kind_of_value_has_its_form() {
        let source = printed(|writer| {
            writer.property("empty", &[]).unwrap();
            writer.property("text", b"say \"a\\b\"\0").unwrap();
            writer.property("texts", b"one\0two\0").unwrap();
            writer.property("cells", &[0, 0, 0, 1, 0xff, 0, 0, 0]).unwrap();
            writer.property("bytes", &[0, 0xab, 7]).unwrap();
            writer.property("unended", b"one").unwrap();
            writer.property("gap", b"one\0\0two\0").unwrap();
        });
        let body = "\tempty;\n\ttext = \"say \\\"a\\\\b\\\"\";\n\ttexts = \"one\", \"two\";\n\
             \tcells = <0x1 0xff000000>;\n\tbytes = [00 ab 07];\n\tunended = [6f 6e 65];\n\
             \tgap = [6f 6e 65 00 00 74 77 6f 00];\n";
        assert_eq!(source, format!("/dts-v1/;\n\n/ {{\n{body}}};\n"));
    }

    #[test]
    fn nodes_stand_apart_from_what_is_before_them() {
        let source = printed(|writer| {
            writer.begin_node("a").unwrap();
            writer.begin_node("b").unwrap();
            writer.end_node().unwrap();
            writer.end_node().unwrap();
            writer.begin_node("c").unwrap();
            writer.end_node().unwrap();
        });
        assert_eq!(source, "/dts-v1/;\n\n/ {\n\ta {\n\t\tb {\n\t\t};\n\t};\n\n\tc {\n\t};\n};\n");
    }

    #[test]
    fn a_comment_cannot_end_early() {
        let mut out = Vec::new();
        comment(&mut out, Some("a */ b\n")).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), " /* a *\\/ b\\n */\n");
    }
}
