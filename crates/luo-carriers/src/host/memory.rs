//! What memory a file is made of: its kind, and whether an arena has lent it.
//!
//! Invariants: both are asked for once in a file's life; of a file that can be neither, a look that
//! was taken before tells that, without a system call.

use std::io;
use std::os::fd::AsFd;
use std::sync::OnceLock;

use luo_core::{Errno, Failure};
use luo_sys::FileRange;
use rustix::fs::{FileType, MemfdFlags, StatxFlags, fcntl_get_seals, fstat, fstatfs, memfd_create};

use super::{HostFile, device, stat};

/// `TMPFS_MAGIC` of `linux/magic.h`: shmem, hence memfds too.
const TMPFS_MAGIC: u64 = 0x0102_1994;
/// `HUGETLBFS_MAGIC` of `linux/magic.h`.
const HUGETLBFS_MAGIC: u64 = 0x9584_58f6;

/// What a memory file is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemoryKind {
    /// Pages of shmem: memfds and files of tmpfs.
    Shmem,
    /// Huge pages of hugetlbfs.
    Hugetlb,
}

impl HostFile {
    /// What kind of memory file it is, `None` for everything else.
    ///
    /// # Errors
    /// What `statx` gives: EIO, of file systems that may fail.
    pub fn memory(&self) -> io::Result<Option<MemoryKind>> {
        if let Some(known) = self.0.memory.get() {
            return Ok(*known);
        }
        let regular = FileType::from_raw_mode(self.look()?.mode.into()) == FileType::RegularFile;
        // Only memory files have seals; so no other file system is asked for what it is, for
        // that may mean to wait for it.
        let kind = match regular && fcntl_get_seals(self).is_ok() {
            false => None,
            true => match fstatfs(self)?.f_type as u64 {
                TMPFS_MAGIC => Some(MemoryKind::Shmem),
                HUGETLBFS_MAGIC => Some(MemoryKind::Hugetlb),
                _ => None,
            },
        };
        let _ = self.0.memory.set(kind);
        Ok(kind)
    }

    /// Fails unless it is a memory file of at least `len` bytes, so that these can be kept.
    pub(crate) fn has_memory(&self, len: u64) -> Result<(), Failure> {
        let unreadable = |error| crate::io_failure(error, "not a readable file");
        let stat = fstat(self).map_err(|error| unreadable(error.into()))?;
        if self.memory().map_err(unreadable)?.is_none() {
            return Err(Failure::new(Errno::Inval, "not a memory file: neither shmem nor hugetlb"));
        }
        match u64::try_from(stat.st_size) {
            Ok(size) if size >= len => Ok(()),
            _ => Err(Failure::new(
                Errno::Inval,
                format!("the memory file has {} bytes, fewer than the {len} to keep", stat.st_size),
            )),
        }
    }

    /// The range of an arena that it is, `None` for everything else. The first look counts.
    #[must_use]
    pub fn lent(&self) -> Option<FileRange> {
        *self.0.lent.get_or_init(|| {
            let look = self.look().ok()?;
            // What cannot be lent costs no more than this: no socket, and no memfd.
            match FileType::from_raw_mode(look.mode.into()) {
                FileType::RegularFile if Some(look.device) == memfds() => None,
                FileType::RegularFile | FileType::BlockDevice | FileType::CharacterDevice => {
                    luo_sys::lent_range(self).ok().flatten()
                }
                _ => None,
            }
        })
    }
}

/// The device of all memfds but those of huge pages: a mount of the kernel's own, on which nothing
/// can have a path. So what is there is no arena, whose files have one. `None` where no memfd can
/// be had to learn it from: then every file is asked.
fn memfds() -> Option<u64> {
    static DEVICE: OnceLock<Option<u64>> = OnceLock::new();
    *DEVICE.get_or_init(|| {
        let memfd = memfd_create("luo-device", MemfdFlags::CLOEXEC).ok()?;
        let stat = stat(memfd.as_fd(), StatxFlags::TYPE).ok()?;
        Some(device(&stat))
    })
}

#[cfg(test)]
mod tests {
    use std::fs::File as StdFile;
    use std::os::fd::OwnedFd;

    use luo_core::File;
    use luo_sys::lend_range;

    use super::*;

    const RANGE: FileRange = FileRange { offset: 4096, len: 8192 };

    fn memfd(flags: MemfdFlags) -> OwnedFd {
        let fd = memfd_create("luo-test", MemfdFlags::CLOEXEC | flags).unwrap();
        rustix::io::write(&fd, &[1; 3 * 4096]).unwrap();
        fd
    }

    fn with_path(directory: &std::path::Path) -> StdFile {
        let path = directory.join("arena");
        let file = StdFile::options().read(true).write(true).create_new(true).open(path).unwrap();
        file.set_len(1 << 20).unwrap();
        file
    }

    #[test]
    fn memory_files_pin_what_they_use_and_others_nothing() {
        let memory = HostFile::from(memfd(MemfdFlags::empty()));
        assert_eq!(memory.memory().unwrap(), Some(MemoryKind::Shmem));
        assert_eq!(memory.pinned(), 3 * 4096);
        let (reader, _writer) = rustix::pipe::pipe().unwrap();
        assert_eq!(HostFile::from(reader).pinned(), 0);
    }

    #[test]
    fn memfds_are_on_a_device_of_their_own_so_that_their_locks_are_not_looked_for() {
        for flags in [MemfdFlags::empty(), MemfdFlags::ALLOW_SEALING] {
            let fd = memfd(flags);
            lend_range(&fd, RANGE).unwrap();
            let file = HostFile::from(fd);
            assert_eq!(Some(file.look().unwrap().device), memfds());
            assert_eq!(file.lent(), None);
        }
    }

    #[test]
    fn a_file_with_a_path_that_was_lent_tells_its_range_on_tmpfs_too() {
        let shm = std::path::Path::new("/dev/shm");
        let of_tmpfs = tempfile::tempdir_in(shm).ok();
        if of_tmpfs.is_none() {
            eprintln!("SKIPPED: on tmpfs (no {} that can be written)", shm.display());
        }
        for directory in of_tmpfs.into_iter().chain([tempfile::tempdir().unwrap()]) {
            let file = with_path(directory.path());
            lend_range(&file, RANGE).unwrap();
            assert_eq!(HostFile::from(OwnedFd::from(file)).lent(), Some(RANGE));
        }
    }
}
