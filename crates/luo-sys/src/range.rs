//! Ranges of a file that are lent out, each with an open file description of its own.
//!
//! What is lent is marked by a lock (`F_OFD_SETLK`) that hangs on the description. The kernel keeps
//! it for as long as anybody has a descriptor of it or a mapping made through it, in whatever
//! process, and drops it with the last one. So nobody has to be told who still uses a range, and
//! no crash makes that wrong. The description itself tells which range it is.
//!
//! Invariants: a lock made here covers at least one byte; a description that was lent has exactly
//! one.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use rustix::fs::{SealFlags, fcntl_get_seals};

/// A range of a file, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileRange {
    /// Where it begins.
    pub offset: u64,
    /// How long it is; never zero.
    pub len: u64,
}

impl FileRange {
    /// The first byte after it. Saturates.
    #[must_use]
    pub const fn end(&self) -> u64 {
        self.offset.saturating_add(self.len)
    }
}

/// Marks a range as lent by this description. Others may lend the same range.
///
/// # Errors
/// EINVAL for a range that is empty or too long, EBADF where the descriptor does not read, EAGAIN
/// where somebody has locked the range for writing, ENOLCK.
pub fn lend_range(file: impl AsFd, range: FileRange) -> io::Result<()> {
    let mut lock = lock(libc::F_RDLCK, range)?;
    command(&file, libc::F_OFD_SETLK, &mut lock)
}

/// A range within this one that any other description has lent, not necessarily the first one.
///
/// # Errors
/// EINVAL for a range that is empty or too long, EBADF.
pub fn lent_within(file: impl AsFd, range: FileRange) -> io::Result<Option<FileRange>> {
    let mut lock = lock(libc::F_WRLCK, range)?;
    command(&file, libc::F_OFD_GETLK, &mut lock)?;
    if libc::c_int::from(lock.l_type) == libc::F_UNLCK {
        return Ok(None);
    }
    let offset = u64::try_from(lock.l_start).map_err(|_| invalid())?;
    let len = match u64::try_from(lock.l_len).map_err(|_| invalid())? {
        // To the end of the file, however long that gets.
        0 => u64::MAX - offset,
        len => len,
    };
    Ok(Some(FileRange { offset, len }))
}

/// The range that this description has lent; `None` where it is none that was lent: a memfd, a
/// socket, a file without a lock of its own, or with several.
///
/// It reads a file of `/proc`, which takes some ten microseconds: who has very many files asks only
/// for those that can have a lock.
///
/// # Errors
/// As reading `/proc/self/fdinfo`.
pub fn lent_range(file: impl AsFd) -> io::Result<Option<FileRange>> {
    // A file with a path in tmpfs or hugetlbfs cannot be sealed, and a memfd says that it was, or
    // that it can be.
    if let Ok(seals) = fcntl_get_seals(&file)
        && (!seals.contains(SealFlags::SEAL) || seals.contains(SealFlags::SHRINK))
    {
        return Ok(None);
    }
    let path = format!("/proc/self/fdinfo/{}", file.as_fd().as_raw_fd());
    Ok(sole_lock(&std::fs::read_to_string(path)?))
}

/// The one lock of the description that `fdinfo` tells of.
fn sole_lock(fdinfo: &str) -> Option<FileRange> {
    let mut locks = fdinfo.lines().filter(|line| line.starts_with("lock:"));
    let line = locks.next().filter(|line| line.contains(" OFDLCK "))?;
    if locks.next().is_some() {
        return None;
    }
    // lock: 1: OFDLCK ADVISORY READ -1 00:1b:42 8192 16383
    let mut words = line.split_ascii_whitespace().rev();
    let last: u64 = words.next()?.parse().ok()?;
    let offset: u64 = words.next()?.parse().ok()?;
    let len = last.checked_sub(offset)?.checked_add(1)?;
    Some(FileRange { offset, len })
}

/// Locks a range for this description (`F_OFD_SETLK`), to the end of the file where `last` is the
/// highest number. It is dropped with the last descriptor of the description.
///
/// # Errors
/// EINVAL for a range that is empty or too long, EAGAIN where somebody else has it, EBADF where the
/// descriptor is not open for it, ENOLCK.
pub fn lock_range(file: impl AsFd, first: u64, last: u64, exclusive: bool) -> io::Result<()> {
    let kind = if exclusive { libc::F_WRLCK } else { libc::F_RDLCK };
    let open_end = last == u64::MAX;
    let len =
        if open_end { 1 } else { last.checked_sub(first).ok_or_else(invalid)?.saturating_add(1) };
    let mut lock = lock(kind, FileRange { offset: first, len })?;
    if open_end {
        lock.l_len = 0;
    }
    command(&file, libc::F_OFD_SETLK, &mut lock)
}

fn invalid() -> io::Error {
    io::Error::from_raw_os_error(libc::EINVAL)
}

fn lock(kind: libc::c_int, range: FileRange) -> io::Result<libc::flock> {
    let end = range.offset.checked_add(range.len).ok_or_else(invalid)?;
    libc::off_t::try_from(end).map_err(|_| invalid())?;
    if range.len == 0 {
        // To the kernel this would be everything up to the end.
        return Err(invalid());
    }
    Ok(libc::flock {
        l_type: libc::c_short::try_from(kind).map_err(|_| invalid())?,
        l_whence: libc::c_short::try_from(libc::SEEK_SET).map_err(|_| invalid())?,
        l_start: libc::off_t::try_from(range.offset).map_err(|_| invalid())?,
        l_len: libc::off_t::try_from(range.len).map_err(|_| invalid())?,
        // Must be zero for locks of descriptions.
        l_pid: 0,
    })
}

fn command(file: impl AsFd, command: libc::c_int, lock: &mut libc::flock) -> io::Result<()> {
    // SAFETY: both commands take a pointer to a `flock`, which they read and one of them writes;
    // `lock` is such a struct, borrowed for the call. The descriptor is open, for it is borrowed.
    let done = unsafe { libc::fcntl(file.as_fd().as_raw_fd(), command, std::ptr::from_mut(lock)) };
    if done == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::fd::OwnedFd;

    use rustix::fs::{MemfdFlags, memfd_create};

    const RANGE: FileRange = FileRange { offset: 8192, len: 5000 };

    fn file() -> (tempfile::TempDir, File) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        let file = File::options().read(true).write(true).create_new(true).open(path).unwrap();
        file.set_len(1 << 20).unwrap();
        (directory, file)
    }

    fn again(directory: &tempfile::TempDir) -> File {
        File::options().read(true).write(true).open(directory.path().join("file")).unwrap()
    }

    #[test]
    fn a_description_tells_its_range_and_others_see_it_until_the_last_copy_is_closed() {
        let (directory, main) = file();
        let all = FileRange { offset: 0, len: 1 << 20 };
        let lent = again(&directory);
        assert_eq!(lent_range(&lent).unwrap(), None);
        lend_range(&lent, RANGE).unwrap();
        assert_eq!(lent_range(&lent).unwrap(), Some(RANGE));
        assert_eq!(lent_range(&main).unwrap(), None);
        assert_eq!(lent_within(&main, all).unwrap(), Some(RANGE));
        assert_eq!(lent_within(&main, FileRange { offset: 0, len: 8192 }).unwrap(), None);
        // A second one of the same range, and a copy of the first.
        let second = again(&directory);
        lend_range(&second, RANGE).unwrap();
        let copy: OwnedFd = lent.try_clone().unwrap().into();
        drop((lent, second));
        assert_eq!(lent_within(&main, all).unwrap(), Some(RANGE));
        // A mapping outlives its descriptor.
        let memory = crate::Memory::from_fd(copy).unwrap();
        assert_eq!(lent_within(&main, all).unwrap(), Some(RANGE));
        drop(memory);
        assert_eq!(lent_within(&main, all).unwrap(), None);
    }

    #[test]
    fn a_locked_range_is_refused_to_others_and_ends_where_it_was_said() {
        let (directory, main) = file();
        let other = again(&directory);
        lock_range(&main, 10, 19, true).unwrap();
        lock_range(&main, 100, u64::MAX, false).unwrap();
        let taken = |first, last, exclusive| lock_range(&other, first, last, exclusive).is_err();
        assert!(taken(19, 30, false) && taken(0, 10, false) && taken(1 << 40, 1 << 40, true));
        assert!(!taken(20, 99, true) && !taken(0, 9, true) && !taken(100, u64::MAX, false));
        assert!(lock_range(&other, 9, 8, true).is_err());
        assert!(lock_range(&other, u64::MAX, u64::MAX, true).is_err());
    }

    #[test]
    fn what_is_no_range_is_refused() {
        let (_directory, main) = file();
        for range in [
            FileRange { offset: 8192, len: 0 },
            FileRange { offset: u64::MAX, len: 2 },
            FileRange { offset: 1 << 63, len: 1 },
        ] {
            assert!(lend_range(&main, range).is_err());
            assert!(lent_within(&main, range).is_err());
        }
    }

    #[test]
    fn memfds_and_files_without_or_with_several_locks_are_not_lent() {
        let memfd = memfd_create("m", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
        rustix::fs::ftruncate(&memfd, 1 << 20).unwrap();
        lend_range(&memfd, RANGE).unwrap();
        assert_eq!(lent_range(&memfd).unwrap(), None);
        let (_directory, main) = file();
        lend_range(&main, RANGE).unwrap();
        lend_range(&main, FileRange { offset: 0, len: 10 }).unwrap();
        assert_eq!(lent_range(&main).unwrap(), None);
        let (reader, _writer) = rustix::pipe::pipe().unwrap();
        assert_eq!(lent_range(&reader).unwrap(), None);
    }

    #[test]
    fn what_the_kernel_says_of_locks_is_read_whole_or_not_at_all() {
        let line = "pos:\t0\nlock:\t1: OFDLCK  ADVISORY  READ -1 00:1b:42 8192 13191\n";
        assert_eq!(sole_lock(line), Some(RANGE));
        for other in [
            "",
            "lock:\t1: FLOCK  ADVISORY  WRITE 1 00:1b:42 0 EOF\n",
            "lock:\t1: OFDLCK  ADVISORY  READ -1 00:1b:42 0 EOF\n",
            "lock:\t1: OFDLCK  ADVISORY  READ -1 00:1b:42 9 8\n",
            "lock:\t1: OFDLCK \n",
        ] {
            assert_eq!(sole_lock(other), None, "{other:?}");
        }
        assert_eq!(sole_lock(&line.repeat(2)), None);
    }
}
