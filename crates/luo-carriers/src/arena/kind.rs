//! What kind of medium a path leads to: how far it reaches, and how its bytes are got at.
//!
//! | what | reads and writes | durable by |
//! | --- | --- | --- |
//! | a file on a disk, a block device | `pread`, `pwrite` | `fdatasync` |
//! | a file on tmpfs | the same | nothing: it is memory |
//! | a file on tmpfs with huge pages | mapped | nothing: it is memory |
//! | a file on hugetlbfs | mapped: it cannot be written otherwise | nothing: it is memory |
//! | a file on a DAX file system | mapped | the writes (`MAP_SYNC`), or `fdatasync` where that is refused |
//! | `/dev/dax*` | mapped: it can be neither read nor written otherwise | the writes |
//!
//! Invariants: looking changes nothing.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};

use luo_core::Reach;
use luo_sys::{Mapped, Protection};
use rustix::fs::{AtFlags, StatxAttributes, StatxFlags, fstatfs, statx};

const TMPFS_MAGIC: i64 = 0x0102_1994;
const RAMFS_MAGIC: i64 = 0x8584_58f6;
const HUGETLBFS_MAGIC: i64 = 0x9584_58f6;

/// A tmpfs whose files prefer blocks of at least that size is one with huge pages: in smaller ones
/// the first write to each page of a mapping costs more than a system call for many.
const HUGE: u64 = 2 << 20;
/// The page size that a mapping of a file on an ordinary file system is a multiple of.
const PAGE: u64 = 4096;

/// What a file is on, and so how far what is in it survives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// A disk: it survives a power cycle.
    Disk,
    /// Persistent memory (`/dev/pmem*`, `/dev/dax*`, or a file on a DAX file system), of which it
    /// cannot be told whether it is emulated: it survives a kexec.
    Persistent,
    /// Memory (tmpfs, hugetlbfs): it survives the agent.
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

/// Whether a medium is mapped. Units are its page sizes, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mapping {
    /// No.
    Not,
    /// If it can be: it is faster, and reads and writes do as well.
    Better {
        /// Its pages.
        unit: u64,
    },
    /// There is no other way.
    Only {
        /// Its pages.
        unit: u64,
    },
    /// There is no other way, and no system call makes it durable.
    Device {
        /// Its pages.
        unit: u64,
    },
}

/// What kind of medium an open file is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Kind {
    pub(super) place: Place,
    pub(super) mapping: Mapping,
    /// In bytes.
    pub(super) size: u64,
    /// It is a file, whose size and blocks are its maker's choice.
    pub(super) file: bool,
}

impl Kind {
    /// Looks at a file. `None` where it is none that can hold an arena.
    pub(super) fn of(file: &File) -> io::Result<Option<Self>> {
        let metadata = file.metadata()?;
        let kind = metadata.file_type();
        if kind.is_block_device() {
            let size = (&mut &*file).seek(SeekFrom::End(0))?;
            let place = place_of_block_device(metadata.rdev());
            return Ok(Some(Self { place, mapping: Mapping::Not, size, file: false }));
        }
        if kind.is_char_device() {
            return Ok(dax_device(metadata.rdev()));
        }
        if !kind.is_file() {
            return Ok(None);
        }
        let (place, mapping) = place_of_file(file, metadata.blksize())?;
        Ok(Some(Self { place, mapping, size: metadata.len(), file: true }))
    }

    /// The file size that is `size` bytes or somewhat more, in whole pages of the medium.
    pub(super) const fn round_up(&self, size: u64) -> Option<u64> {
        match self.mapping {
            Mapping::Only { unit } => size.checked_next_multiple_of(unit),
            _ => Some(size),
        }
    }

    /// Maps the medium, if it is one that is mapped.
    pub(super) fn map(&self, file: &File, protection: Protection) -> io::Result<Option<Mapped>> {
        let (fd, len) = (file.as_fd(), self.size);
        match self.mapping {
            // What has no bytes holds no arena, as reading it will tell.
            _ if len == 0 => Ok(None),
            Mapping::Not => Ok(None),
            Mapping::Better { unit } => Ok(Mapped::file(fd, len, unit, protection).ok()),
            Mapping::Only { unit } => Mapped::file(fd, len, unit, protection).map(Some),
            Mapping::Device { unit } => Mapped::device(fd, len, unit, protection).map(Some),
        }
    }
}

fn place_of_file(file: &File, block: u64) -> io::Result<(Place, Mapping)> {
    let system = fstatfs(file)?;
    #[allow(clippy::unnecessary_cast, reason = "the width of f_type differs between architectures")]
    let magic = system.f_type as i64;
    match magic {
        HUGETLBFS_MAGIC => {
            let unit = u64::try_from(system.f_bsize).unwrap_or(HUGE);
            return Ok((Place::Memory, Mapping::Only { unit }));
        }
        TMPFS_MAGIC if block >= HUGE => {
            return Ok((Place::Memory, Mapping::Better { unit: PAGE }));
        }
        TMPFS_MAGIC | RAMFS_MAGIC => return Ok((Place::Memory, Mapping::Not)),
        _ => {}
    }
    let stat = statx(file, c"", AtFlags::EMPTY_PATH, StatxFlags::TYPE)?;
    let dax = stat.stx_attributes.contains(StatxAttributes::DAX);
    Ok(if dax {
        (Place::Persistent, Mapping::Better { unit: PAGE })
    } else {
        (Place::Disk, Mapping::Not)
    })
}

fn place_of_block_device(device: u64) -> Place {
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let path = format!("/sys/dev/block/{major}:{minor}/queue/dax");
    let dax = std::fs::read_to_string(path).is_ok_and(|text| text.trim() == "1");
    if dax { Place::Persistent } else { Place::Disk }
}

/// A character device that is persistent memory and nothing else.
fn dax_device(device: u64) -> Option<Kind> {
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    dax_device_at(&format!("/sys/dev/char/{major}:{minor}"))
}

/// The device that a directory of sysfs describes.
fn dax_device_at(directory: &str) -> Option<Kind> {
    let subsystem = std::fs::read_link(format!("{directory}/subsystem")).ok()?;
    if subsystem.file_name().is_none_or(|name| name != "dax") {
        return None;
    }
    let number = |name: &str| -> Option<u64> {
        std::fs::read_to_string(format!("{directory}/{name}")).ok()?.trim().parse().ok()
    };
    // Older kernels do not tell the alignment; it is that of huge pages unless somebody changed it.
    let unit = number("align").filter(|unit| unit.is_power_of_two()).unwrap_or(HUGE);
    // Only whole pages can be mapped.
    let size = number("size")?;
    let mapping = Mapping::Device { unit };
    Some(Kind { place: Place::Persistent, mapping, size: size - size % unit, file: false })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(subsystem: &str, size: &str, align: Option<&str>) -> Option<Kind> {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(subsystem, dir.path().join("subsystem")).unwrap();
        std::fs::write(dir.path().join("size"), size).unwrap();
        if let Some(align) = align {
            std::fs::write(dir.path().join("align"), align).unwrap();
        }
        dax_device_at(dir.path().to_str().unwrap())
    }

    #[test]
    fn a_dax_device_is_as_large_as_sysfs_says_in_whole_pages() {
        let kind = device("../../bus/dax", "1065353216\n", Some("2097152\n")).unwrap();
        assert_eq!((kind.place, kind.file), (Place::Persistent, false));
        assert_eq!(kind.mapping, Mapping::Device { unit: HUGE });
        assert_eq!(kind.size, 1_065_353_216);
        let kind = device("../../bus/dax", "2101248\n", Some("4096\n")).unwrap();
        assert_eq!((kind.mapping, kind.size), (Mapping::Device { unit: 4096 }, 2_101_248));
        let kind = device("../../bus/dax", "2101248\n", None).unwrap();
        assert_eq!((kind.mapping, kind.size), (Mapping::Device { unit: HUGE }, HUGE));
    }

    #[test]
    fn other_character_devices_hold_no_arena() {
        assert!(device("../../class/mem", "4096\n", None).is_none());
        assert!(device("../../bus/dax", "none\n", None).is_none());
        assert!(Kind::of(&File::open("/dev/zero").unwrap()).unwrap().is_none());
    }
}
