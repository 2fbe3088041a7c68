//! A medium that is a file or a device; which kinds there are, and how each is read, written and
//! flushed, says `kind`.
//!
//! Invariants: one luod at a time has it open for writing (`flock(2)`); its size is what it was
//! when it was opened, and all of that is allocated before anything is kept in it.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use luo_abi::arena::NO_MACHINE;
use luo_core::{Errno, Failure};
use luo_sys::{Durability, Mapped, Protection};
use rustix::fs::{FallocateFlags, FlockOperation, OFlags, fallocate, flock};

use super::kind::{Kind, Mapping};
use super::medium::{Extent, Medium};
use crate::io_failure;

pub use super::kind::Place;

/// What somebody opens a medium for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// To change it, alone.
    Exclusive,
    /// To look at it, also while somebody changes it.
    Look,
}

/// A file or a device.
#[derive(Debug)]
pub struct FileMedium {
    file: File,
    path: PathBuf,
    kind: Kind,
    mapped: Option<Mapped>,
}

impl FileMedium {
    /// Opens an existing file or device.
    ///
    /// # Errors
    /// EBUSY where another luod (or, of a block device, a file system) uses it, EINVAL where it is
    /// neither a file, a block device nor `/dev/dax*`, EOPNOTSUPP where it cannot be mapped as it
    /// must be, ENOENT, EPERM, ENOSPC, EIO.
    pub fn open(path: &Path, access: Access) -> Result<Self, Failure> {
        let cannot = cannot_open(path);
        let metadata = std::fs::metadata(path).map_err(&cannot)?;
        let kind = metadata.file_type();
        // Before it is opened, which may wait (a FIFO) or do something (a terminal).
        if !kind.is_file() && !kind.is_block_device() && !kind.is_char_device() {
            return Err(no_medium(path));
        }
        let exclusive = access == Access::Exclusive;
        // Of a block device, O_EXCL means that no file system on it is mounted.
        let flags =
            if exclusive && kind.is_block_device() { OFlags::EXCL } else { OFlags::empty() };
        let file = OpenOptions::new()
            .read(true)
            .write(exclusive)
            .custom_flags((flags | OFlags::NOCTTY).bits().cast_signed())
            .open(path)
            .map_err(cannot)?;
        Self::with(file, path, access)?.mapped(access)
    }

    /// Creates a file of that size, or takes one that is there, and allocates all of it. A device
    /// is taken as large as it is; a file of huge pages has whole ones.
    ///
    /// # Errors
    /// As [`open`](Self::open), and ENOSPC.
    pub fn create(path: &Path, size: u64) -> Result<Self, Failure> {
        let cannot =
            |error| io_failure(error, &format!("no arena of {size} bytes at {}", path.display()));
        if std::fs::metadata(path).is_ok_and(|metadata| !metadata.is_file()) {
            return Self::open(path, Access::Exclusive);
        }
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)
            .map_err(cannot)?;
        let mut medium = Self::with(file, path, Access::Exclusive)?;
        let present = medium.kind.size;
        let whole = medium.kind.round_up(present.max(size)).ok_or_else(|| {
            Failure::new(Errno::Inval, format!("no file has {size} bytes and whole huge pages"))
        })?;
        match fallocate(&medium.file, FallocateFlags::empty(), 0, whole) {
            Ok(()) => {}
            Err(rustix::io::Errno::OPNOTSUPP) => {
                // Zeros behind what is there; holes within it are the concern of who made them.
                medium.file.seek(SeekFrom::Start(present)).map_err(cannot)?;
                let mut rest = whole - present;
                let zeros = vec![0; 1 << 20];
                while rest > 0 {
                    let step = rest.min(zeros.len() as u64);
                    let step = zeros.get(..step as usize).unwrap_or(&zeros);
                    medium.file.write_all(step).map_err(cannot)?;
                    rest -= step.len() as u64;
                }
            }
            Err(error) => return Err(cannot(error.into())),
        }
        medium.file.sync_all().map_err(cannot)?;
        let directory = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        File::open(directory).and_then(|directory| directory.sync_all()).map_err(cannot)?;
        medium.kind.size = whole;
        medium.mapped(Access::Exclusive)
    }

    /// Locks it, and sees what it is.
    fn with(file: File, path: &Path, access: Access) -> Result<Self, Failure> {
        let cannot = cannot_open(path);
        if access == Access::Exclusive {
            flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(|error| match error {
                rustix::io::Errno::WOULDBLOCK => Failure::new(
                    Errno::Busy,
                    format!(
                        "the arena {} is in use by another luod: stop that, or give each its own",
                        path.display()
                    ),
                ),
                error => cannot(error.into()),
            })?;
        }
        let kind = Kind::of(&file).map_err(cannot)?.ok_or_else(|| no_medium(path))?;
        Ok(Self { file, path: path.to_owned(), kind, mapped: None })
    }

    /// Maps it, where it is of a kind that is mapped.
    fn mapped(mut self, access: Access) -> Result<Self, Failure> {
        let protection = match access {
            Access::Look => Protection::Read,
            Access::Exclusive => Protection::ReadWrite,
        };
        // A write through a mapping cannot fail for want of room, as one into a hole of a file
        // could (it may have been copied without its zeros): it would end in SIGBUS.
        if access == Access::Exclusive && self.kind.file && self.kind.mapping != Mapping::Not {
            fallocate(&self.file, FallocateFlags::KEEP_SIZE, 0, self.kind.size.max(1)).map_err(
                |error| {
                    let what =
                        format!("the holes of the arena {} cannot be filled", self.path.display());
                    io_failure(error.into(), &what)
                },
            )?;
        }
        self.mapped = self.kind.map(&self.file, protection).map_err(|error| {
            let path = self.path.display();
            match error.raw_os_error().map(rustix::io::Errno::from_raw_os_error) {
                Some(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NODEV) => Failure::new(
                    Errno::OpNotSupp,
                    format!("{path} can only be mapped, and that is refused here: use a file"),
                )
                .because(error),
                _ => io_failure(error, &format!("the arena {path} cannot be mapped")),
            }
        })?;
        Ok(self)
    }

    /// A mapped memory file, of whatever kind it is.
    #[cfg(test)]
    pub(super) fn of_memory(file: File) -> Self {
        let mut kind = Kind::of(&file).unwrap().unwrap();
        kind.mapping = Mapping::Only { unit: 4096 };
        let medium = Self { file, path: PathBuf::from("a memfd"), kind, mapped: None };
        medium.mapped(Access::Exclusive).unwrap()
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What it is on.
    #[must_use]
    pub const fn place(&self) -> Place {
        self.kind.place
    }

    /// How it is read, written and flushed, in words for a person.
    #[must_use]
    pub fn way(&self) -> &'static str {
        match self.mapped.as_ref().map(Mapped::durability) {
            None => "read, written and flushed by system calls",
            Some(Durability::Fsync) => "mapped, and flushed by system calls",
            Some(Durability::Stores) => "mapped, and durable as it is written",
        }
    }
}

fn cannot_open(path: &Path) -> impl Fn(io::Error) -> Failure {
    move |error| io_failure(error, &format!("the arena {} is not open", path.display()))
}

fn no_medium(path: &Path) -> Failure {
    Failure::new(
        Errno::Inval,
        format!(
            "{} is neither a file, a block device nor /dev/dax*: give the arena one",
            path.display()
        ),
    )
}

impl Medium for FileMedium {
    fn size(&self) -> u64 {
        self.kind.size
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        match &self.mapped {
            Some(mapped) => mapped.read_at(offset, buffer),
            None => self.file.read_exact_at(buffer, offset),
        }
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        if let Some(mapped) = &self.mapped {
            return mapped.write_at(offset, bytes);
        }
        // A file would grow.
        if offset.checked_add(bytes.len() as u64).is_none_or(|end| end > self.kind.size) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("{} bytes at {offset} are not within the arena", bytes.len()),
            ));
        }
        self.file.write_all_at(bytes, offset)
    }

    fn flush(&self) -> io::Result<()> {
        if let Some(mapped) = &self.mapped {
            mapped.whole()?;
            if mapped.durability() == Durability::Stores {
                // Each write was durable when it returned.
                return Ok(());
            }
        }
        self.file.sync_data()
    }

    /// Nothing: the file keeps its room, so that no later handover fails for want of it.
    fn discard(&self, _: Extent) -> io::Result<()> {
        Ok(())
    }

    fn file(&self) -> Option<BorrowedFd<'_>> {
        Some(self.file.as_fd())
    }
}

/// This machine, as `/etc/machine-id` says; [`NO_MACHINE`] where that is missing, empty or not
/// written yet, as in many containers.
///
/// # Errors
/// EINVAL where it says something else; EIO.
pub fn machine_id() -> Result<[u8; 16], Failure> {
    let path = "/etc/machine-id";
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(NO_MACHINE),
        Err(error) => return Err(io_failure(error, &format!("{path} cannot be read"))),
    };
    machine_of(text.trim()).ok_or_else(|| {
        let reason = format!("{path} is no machine id: run `systemd-machine-id-setup`");
        Failure::new(Errno::Inval, reason)
    })
}

/// What the file's text says.
fn machine_of(text: &str) -> Option<[u8; 16]> {
    // The second one until the first boot is over: see machine-id(5).
    if text.is_empty() || text == "uninitialized" { Some(NO_MACHINE) } else { parse_id(text) }
}

/// 32 hexadecimal digits.
#[must_use]
pub fn parse_id(text: &str) -> Option<[u8; 16]> {
    if text.len() != 32 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    u128::from_str_radix(text, 16).ok().map(u128::to_be_bytes)
}

#[cfg(test)]
mod tests;
