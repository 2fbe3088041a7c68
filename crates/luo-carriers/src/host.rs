//! The host's file type: an open descriptor that several owners share.
//!
//! Invariants: a [`HostFile`] is one descriptor for as long as a clone of it lives; its identity
//! is read once. Files that differ in identity differ in truth; equal ones are told apart by the
//! kernel. Nothing here waits for the server of a network file system or of FUSE, not even the
//! last close: see [`closer`].

use std::cmp::Ordering;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering as Memory};
use std::sync::{Arc, OnceLock};

use luo_core::{File, Identity};
use rustix::fs::{AtFlags, FileType, Statx, StatxFlags, fcntl_get_seals, fstatfs, statx};

use crate::closer;

/// `TMPFS_MAGIC` of `linux/magic.h`: shmem, hence memfds too.
const TMPFS_MAGIC: u64 = 0x0102_1994;
/// `HUGETLBFS_MAGIC` of `linux/magic.h`.
const HUGETLBFS_MAGIC: u64 = 0x9584_58f6;

/// Gives each file a number, for an order where the kernel gives none.
static SERIAL: AtomicU64 = AtomicU64::new(0);
/// Whether the kernel has refused `kcmp` once: then never mix its order with ours.
static NO_KCMP: AtomicBool = AtomicBool::new(false);

/// What a memory file is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemoryKind {
    /// Pages of shmem: memfds and files of tmpfs.
    Shmem,
    /// Huge pages of hugetlbfs.
    Hugetlb,
}

/// A shared open descriptor, and the number of the slot that holds it in the keeper.
#[derive(Debug, Clone)]
pub struct HostFile(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// Shared with the [`closer`] in the end, and with nobody else.
    fd: Arc<OwnedFd>,
    serial: u64,
    identity: OnceLock<Identity>,
    /// Zero: none.
    slot: AtomicU64,
}

impl Drop for Inner {
    fn drop(&mut self) {
        closer::close_shared(&self.fd);
    }
}

/// What the kernel knows of a file without asking anybody else.
fn known(file: impl AsFd) -> io::Result<Statx> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    Ok(statx(file, "", flags, StatxFlags::BASIC_STATS)?)
}

impl From<OwnedFd> for HostFile {
    fn from(fd: OwnedFd) -> Self {
        Self(Arc::new(Inner {
            fd: Arc::new(fd),
            serial: SERIAL.fetch_add(1, Memory::Relaxed),
            identity: OnceLock::new(),
            slot: AtomicU64::new(0),
        }))
    }
}

impl AsFd for HostFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.fd.as_fd()
    }
}

impl HostFile {
    /// The key of the slot that holds this file, where there is one.
    #[must_use]
    pub fn slot(&self) -> Option<u64> {
        match self.0.slot.load(Memory::Relaxed) {
            0 => None,
            key => Some(key),
        }
    }

    /// Notes the slot that holds this file with exactly one descriptor; carriers then refer to
    /// that slot instead of sending the descriptor once more. `None`: it is in none any more.
    pub fn set_slot(&self, key: Option<u64>) {
        self.0.slot.store(key.unwrap_or(0), Memory::Relaxed);
    }

    /// A descriptor of one's own for the same open file description.
    ///
    /// # Errors
    /// EMFILE.
    pub fn try_clone_fd(&self) -> io::Result<OwnedFd> {
        self.0.fd.try_clone()
    }

    /// What kind of memory file it is, `None` for everything else.
    ///
    /// # Errors
    /// What `statx` gives: EIO, of file systems that may fail.
    pub fn memory(&self) -> io::Result<Option<MemoryKind>> {
        let stat = known(self)?;
        // Only memory files have seals. `fstatfs` of others would ask their servers.
        if FileType::from_raw_mode(stat.stx_mode.into()) != FileType::RegularFile
            || fcntl_get_seals(self).is_err()
        {
            return Ok(None);
        }
        Ok(match fstatfs(self)?.f_type as u64 {
            TMPFS_MAGIC => Some(MemoryKind::Shmem),
            HUGETLBFS_MAGIC => Some(MemoryKind::Hugetlb),
            _ => None,
        })
    }
}

impl File for HostFile {
    /// Device and inode number, with the file's type in bits of the device number that no device
    /// uses.
    fn identity(&self) -> Identity {
        *self.0.identity.get_or_init(|| match known(self) {
            Ok(stat) => {
                let kind = u64::from(stat.stx_mode & 0o170_000);
                let device = rustix::fs::makedev(stat.stx_dev_major, stat.stx_dev_minor);
                Identity([device ^ kind << 48, stat.stx_ino])
            }
            // A file that cannot be looked at (a network file system that is gone) still can be
            // told from others by its description.
            Err(_) => Identity([u64::MAX, u64::MAX]),
        })
    }

    /// The kernel's order of open file descriptions. Where `kcmp` is missing or forbidden, the
    /// order in which the files were received: that one is total too, but does not see that two
    /// descriptors received apart share a description. Better to keep a file twice than to refuse
    /// one as a duplicate that is none.
    fn order(&self, other: &Self) -> Ordering {
        if Arc::ptr_eq(&self.0, &other.0) {
            return Ordering::Equal;
        }
        if !NO_KCMP.load(Memory::Relaxed) {
            match luo_sys::order_descriptions(self, other) {
                Ok(order) => return order,
                Err(_) => NO_KCMP.store(true, Memory::Relaxed),
            }
        }
        self.0.serial.cmp(&other.0.serial)
    }

    /// Bytes of memory in use, of memory files; zero for all others.
    fn pinned(&self) -> u64 {
        match self.memory() {
            Ok(Some(_)) => known(self).map_or(0, |stat| stat.stx_blocks * 512),
            _ => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{MemfdFlags, memfd_create};

    fn memfd(bytes: usize) -> HostFile {
        let fd = memfd_create("luo-test", MemfdFlags::CLOEXEC).unwrap();
        rustix::io::write(&fd, &vec![1; bytes]).unwrap();
        HostFile::from(fd)
    }

    #[test]
    fn duplicates_are_equal_and_two_opens_of_one_inode_are_not() {
        let open = || HostFile::from(OwnedFd::from(std::fs::File::open("/dev/null").unwrap()));
        let (one, other) = (open(), open());
        let twin = HostFile::from(one.try_clone_fd().unwrap());
        assert_eq!(one.identity(), twin.identity());
        assert_eq!(one.order(&twin), Ordering::Equal);
        assert_eq!(one.identity(), other.identity());
        assert_ne!(one.order(&other), Ordering::Equal);
        assert_eq!(one.order(&other), other.order(&one).reverse());
        assert_ne!(one.identity(), memfd(1).identity());
    }

    #[test]
    fn memory_files_pin_what_they_use_and_others_nothing() {
        let memory = memfd(3 * 4096);
        assert_eq!(memory.memory().unwrap(), Some(MemoryKind::Shmem));
        assert_eq!(memory.pinned(), 3 * 4096);
        let (reader, _writer) = rustix::pipe::pipe().unwrap();
        assert_eq!(HostFile::from(reader).pinned(), 0);
    }

    #[test]
    fn the_slot_is_shared_by_clones() {
        let file = memfd(1);
        let clone = file.clone();
        assert_eq!(clone.slot(), None);
        file.set_slot(Some(7));
        assert_eq!(clone.slot(), Some(7));
        clone.set_slot(None);
        assert_eq!(file.slot(), None);
    }
}
