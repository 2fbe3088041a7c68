//! What was loaded: the kernel does not give a loaded image back, so whoever loads it writes down
//! what it is.
//!
//! Invariants: the note is replaced whole, and only after the kernel was loaded; a note is of the
//! boot in which it was written; one that cannot be read is as good as none, and says why.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::config::Built;

/// Where it lies. Not in luod's directory, which may go with luod.
pub(crate) const PATH: &str = "/run/luoctl/next-kernel.json";

/// The only layout so far.
const VERSION: u32 = 1;

/// Tells one boot of a kernel from another.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// The kernel that was loaded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Note {
    /// The layout of this note.
    version: u32,
    /// The boot in which it was loaded.
    boot: String,
    pub(crate) kernel: PathBuf,
    /// CRC-64/NVME of the kernel's file, in hexadecimal digits.
    pub(crate) checksum: String,
    pub(crate) initrd: Option<PathBuf>,
    pub(crate) command_line: String,
    pub(crate) release: Option<String>,
    /// What it was built with.
    pub(crate) built: Option<Built>,
    /// Why that is not known.
    pub(crate) unknown: Option<String>,
}

/// What is loaded, as it is told to the note.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub(crate) kernel: PathBuf,
    pub(crate) checksum: u64,
    pub(crate) initrd: Option<PathBuf>,
    pub(crate) command_line: String,
    pub(crate) release: Option<String>,
    pub(crate) built: Result<Built, String>,
}

/// The running kernel's boot.
fn boot() -> io::Result<String> {
    Ok(fs::read_to_string(BOOT_ID)?.trim_end().to_owned())
}

impl Note {
    /// A note of this boot.
    ///
    /// # Errors
    /// Where /proc is not there.
    pub(crate) fn new(loaded: Loaded) -> io::Result<Self> {
        let (built, unknown) = match loaded.built {
            Ok(built) => (Some(built), None),
            Err(reason) => (None, Some(reason)),
        };
        Ok(Self {
            version: VERSION,
            boot: boot()?,
            kernel: loaded.kernel,
            checksum: format!("{:016x}", loaded.checksum),
            initrd: loaded.initrd,
            command_line: loaded.command_line,
            release: loaded.release,
            built,
            unknown,
        })
    }

    /// Puts it in its place.
    ///
    /// # Errors
    /// As writing a file.
    pub(crate) fn write(&self, path: &Path) -> io::Result<()> {
        let directory = path.parent().unwrap_or(Path::new("/"));
        fs::create_dir_all(directory)?;
        let beside = path.with_extension("new");
        let mut file = fs::File::create(&beside)?;
        file.write_all(&serde_json::to_vec_pretty(self)?)?;
        drop(file);
        fs::rename(beside, path)
    }

    /// The note of this boot, `None` where there is none.
    ///
    /// # Errors
    /// Where there is one that cannot be read.
    pub(crate) fn read(path: &Path) -> io::Result<Option<Self>> {
        let bytes = match fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let note: Self = serde_json::from_slice(&bytes)?;
        let usable = note.version == VERSION && note.boot == boot()?;
        Ok(usable.then_some(note))
    }

    /// Takes it away.
    ///
    /// # Errors
    /// As deleting a file; one that is not there is none.
    pub(crate) fn remove(path: &Path) -> io::Result<()> {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note() -> Note {
        Note::new(Loaded {
            kernel: "/boot/vmlinuz".into(),
            checksum: 0xab,
            initrd: None,
            command_line: "quiet".into(),
            release: None,
            built: Err("unknown".into()),
        })
        .unwrap()
    }

    #[test]
    fn a_note_comes_back_and_one_of_another_boot_does_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("new/next-kernel.json");
        assert_eq!(Note::read(&path).unwrap(), None);
        Note::remove(&path).unwrap();
        note().write(&path).unwrap();
        assert_eq!(Note::read(&path).unwrap(), Some(note()));
        Note { boot: "another".into(), ..note() }.write(&path).unwrap();
        assert_eq!(Note::read(&path).unwrap(), None);
        fs::write(&path, "{").unwrap();
        Note::read(&path).unwrap_err();
        Note::remove(&path).unwrap();
        assert_eq!(Note::read(&path).unwrap(), None);
    }
}
