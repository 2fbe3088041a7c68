//! What a program needs to run elsewhere: its loader and its libraries.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::failure::{Context as _, Failed, Result};
use crate::proc;

/// Bytes of a file, uncompressed where its name says that it is compressed.
pub(super) fn uncompressed(path: &Path) -> Result<Vec<u8>> {
    let program = match path.extension().and_then(|extension| extension.to_str()) {
        Some("xz") => "xz",
        Some("zst") => "zstd",
        Some("gz") => "gzip",
        _ => return fs::read(path).context(|| format!("read {}", path.display())),
    };
    let output = Command::new(program)
        .args(["--decompress", "--stdout", "--force"])
        .arg(path)
        .output()
        .context(|| format!("uncompress {} with {program}", path.display()))?;
    if output.status.success() {
        Ok(output.stdout)
    } else {
        Err(Failed::new(format!(
            "`{program}` cannot uncompress {}: {}",
            path.display(),
            String::from_utf8_lossy(&output.stderr).trim()
        )))
    }
}

/// The loader and the libraries of a program, as files of this machine; none for one that is linked
/// statically.
pub(super) fn of(program: &Path) -> Result<BTreeSet<PathBuf>> {
    let doing = || format!("read {}", program.display());
    let bytes = fs::read(program).context(doing)?;
    let Some(loader) = interpreter(&bytes) else { return Ok(BTreeSet::new()) };
    // The loader says what it would load. The program itself is not run.
    let listed = proc::output(Command::new(&loader).arg("--list").arg(program))?;
    let mut all = listed_paths(&listed)?;
    all.insert(PathBuf::from(loader));
    Ok(all)
}

fn listed_paths(listed: &str) -> Result<BTreeSet<PathBuf>> {
    let mut all = BTreeSet::new();
    for line in listed.lines() {
        let Some((name, rest)) = line.split_once("=>") else { continue };
        match rest.split_whitespace().next() {
            Some(path) if path.starts_with('/') => all.insert(PathBuf::from(path)),
            _ => return Err(Failed::new(format!("the library {} is not here", name.trim()))),
        };
    }
    Ok(all)
}

/// What PT_INTERP of a 64-bit little-endian ELF file says.
fn interpreter(elf: &[u8]) -> Option<String> {
    let u16_at = |at: usize| Some(u16::from_le_bytes(elf.get(at..at + 2)?.try_into().ok()?));
    let u32_at = |at: usize| Some(u32::from_le_bytes(elf.get(at..at + 4)?.try_into().ok()?));
    let u64_at = |at: usize| {
        usize::try_from(u64::from_le_bytes(elf.get(at..at.checked_add(8)?)?.try_into().ok()?)).ok()
    };
    if elf.get(..6)? != b"\x7fELF\x02\x01" {
        return None;
    }
    let (table, size, count) = (u64_at(32)?, usize::from(u16_at(54)?), usize::from(u16_at(56)?));
    (0..count).find_map(|index| {
        let entry = table.checked_add(index.checked_mul(size)?)?;
        const PT_INTERP: u32 = 3;
        if entry > elf.len() || u32_at(entry)? != PT_INTERP {
            return None;
        }
        let (offset, len) = (u64_at(entry + 8)?, u64_at(entry + 32)?);
        let text = elf.get(offset..offset.checked_add(len)?)?;
        Some(String::from_utf8_lossy(text).trim_end_matches('\0').to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_libraries_of_a_program_of_this_machine_are_there() {
        let me = std::env::current_exe().expect("it has a name");
        let all = of(&me).expect("it can be read");
        assert!(all.iter().all(|path| path.is_file()), "{all:?}");
    }

    #[test]
    fn what_is_no_program_needs_nothing() {
        assert_eq!(interpreter(b"#!/bin/sh\n"), None);
        assert_eq!(interpreter(b"\x7fELF\x02\x01"), None);
        let mut cut = vec![0xff; 64];
        cut[..6].copy_from_slice(b"\x7fELF\x02\x01");
        assert_eq!(interpreter(&cut), None);
    }

    #[test]
    fn a_library_that_is_not_there_is_named() {
        let failed = listed_paths("\tlibx.so => not found\n").expect_err("it is not there");
        assert!(failed.chain().contains("libx.so"), "{}", failed.chain());
    }
}
