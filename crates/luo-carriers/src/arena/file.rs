//! A medium that is a file or a block device.
//!
//! Invariants: one luod at a time has it open for writing (`flock(2)`); its size is what it was
//! when it was opened, and all of that is allocated before anything is kept in it.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use luo_abi::arena::NO_MACHINE;
use luo_core::{Errno, Failure, Reach};
use rustix::fs::{
    AtFlags, FallocateFlags, FlockOperation, OFlags, StatxAttributes, StatxFlags, fallocate, flock,
    fstatfs, statx,
};

use super::io_failure;
use super::medium::{Extent, Medium};

const TMPFS_MAGIC: i64 = 0x0102_1994;
const RAMFS_MAGIC: i64 = 0x8584_58f6;
const HUGETLBFS_MAGIC: i64 = 0x9584_58f6;

/// What a file is on, and so how far what is in it survives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// A disk: it survives a power cycle.
    Disk,
    /// Persistent memory (`/dev/pmem*`, or a file on a DAX file system), of which it cannot be told
    /// whether it is emulated: it survives a kexec.
    Persistent,
    /// Memory (tmpfs): it survives the agent.
    Memory,
}

impl Place {
    /// How far it survives.
    #[must_use]
    pub const fn reach(self) -> Reach {
        match self {
            Self::Disk => Reach::Power,
            Self::Persistent => Reach::Kernel,
            Self::Memory => Reach::Agent,
        }
    }

    /// The word for it in reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Disk => "disk",
            Self::Persistent => "persistent memory",
            Self::Memory => "memory",
        }
    }
}

/// What somebody opens a medium for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// To change it, alone.
    Exclusive,
    /// To look at it, also while somebody changes it.
    Look,
}

/// A file or a block device.
#[derive(Debug)]
pub struct FileMedium {
    file: File,
    path: PathBuf,
    size: u64,
    place: Place,
}

impl FileMedium {
    /// Opens an existing file or block device.
    ///
    /// # Errors
    /// EBUSY where another luod (or, of a block device, a file system) uses it, EINVAL where it is
    /// neither a file nor a block device, EOPNOTSUPP where it cannot be read and written, ENOENT,
    /// EPERM, EIO.
    pub fn open(path: &Path, access: Access) -> Result<Self, Failure> {
        let cannot =
            |error| io_failure(error, &format!("the arena {} is not open", path.display()));
        let metadata = std::fs::metadata(path).map_err(cannot)?;
        let block = metadata.file_type().is_block_device();
        if !block && !metadata.is_file() {
            return Err(Failure::new(
                Errno::Inval,
                format!(
                    "{} is neither a file nor a block device: give the arena one",
                    path.display()
                ),
            ));
        }
        let exclusive = access == Access::Exclusive;
        // Of a block device, O_EXCL means that no file system on it is mounted.
        let flags = if exclusive && block { OFlags::EXCL } else { OFlags::empty() };
        let file = OpenOptions::new()
            .read(true)
            .write(exclusive)
            .custom_flags(flags.bits().cast_signed())
            .open(path)
            .map_err(cannot)?;
        Self::with(file, path, access)
    }

    /// Creates a file of that size, or takes one that is there, and allocates all of it. A block
    /// device must have at least that size.
    ///
    /// # Errors
    /// As [`open`](Self::open), and ENOSPC.
    pub fn create(path: &Path, size: u64) -> Result<Self, Failure> {
        let cannot =
            |error| io_failure(error, &format!("no arena of {size} bytes at {}", path.display()));
        let device =
            std::fs::metadata(path).is_ok_and(|metadata| metadata.file_type().is_block_device());
        if device {
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
        let present = medium.file.metadata().map_err(cannot)?.len();
        let whole = present.max(size);
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
        medium.size = whole;
        Ok(medium)
    }

    fn with(mut file: File, path: &Path, access: Access) -> Result<Self, Failure> {
        let cannot =
            |error| io_failure(error, &format!("the arena {} is not open", path.display()));
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
        let metadata = file.metadata().map_err(cannot)?;
        let (size, place) = if metadata.file_type().is_block_device() {
            let size = file.seek(SeekFrom::End(0)).map_err(cannot)?;
            (size, place_of_device(metadata.rdev()))
        } else {
            (metadata.len(), place_of_file(&file).map_err(cannot)?)
        };
        if let Some(place) = place {
            return Ok(Self { file, path: path.to_owned(), size, place });
        }
        Err(Failure::new(
            Errno::OpNotSupp,
            format!(
                "{} is on hugetlbfs, whose files cannot be written: use a tmpfs that is mounted \
                 with huge=always",
                path.display()
            ),
        ))
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What it is on.
    #[must_use]
    pub const fn place(&self) -> Place {
        self.place
    }
}

/// `None`: it cannot be written.
fn place_of_file(file: &File) -> io::Result<Option<Place>> {
    #[allow(clippy::unnecessary_cast, reason = "the width of f_type differs between architectures")]
    let system = fstatfs(file)?.f_type as i64;
    if system == HUGETLBFS_MAGIC {
        return Ok(None);
    }
    if matches!(system, TMPFS_MAGIC | RAMFS_MAGIC) {
        return Ok(Some(Place::Memory));
    }
    let stat = statx(file, c"", AtFlags::EMPTY_PATH, StatxFlags::TYPE)?;
    let dax = stat.stx_attributes.contains(StatxAttributes::DAX);
    Ok(Some(if dax { Place::Persistent } else { Place::Disk }))
}

fn place_of_device(device: u64) -> Option<Place> {
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let path = format!("/sys/dev/block/{major}:{minor}/queue/dax");
    let dax = std::fs::read_to_string(path).is_ok_and(|text| text.trim() == "1");
    Some(if dax { Place::Persistent } else { Place::Disk })
}

impl Medium for FileMedium {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(buffer, offset)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        // A file would grow.
        if offset.checked_add(bytes.len() as u64).is_none_or(|end| end > self.size) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("{} bytes at {offset} are not within the arena", bytes.len()),
            ));
        }
        self.file.write_all_at(bytes, offset)
    }

    fn flush(&self) -> io::Result<()> {
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
