//! The host's file type: an open descriptor that several owners share.
//!
//! Invariants:
//! - A [`HostFile`] is one descriptor for as long as a clone of it lives. What it is, is read once,
//!   with one system call; of what has no type, with a few more. Files that differ in identity
//!   differ in truth; equal ones are told apart by the kernel.
//! - Looking at a file waits for nobody: not for the server of a network file system, and not for
//!   the process behind a FUSE mount; nor does the last close, see [`closer`].

use std::cmp::Ordering;
use std::io;
use std::ops::RangeInclusive;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering as Memory};
use std::sync::{Arc, OnceLock};

use luo_core::{Failure, File, Identity};
use luo_sys::FileRange;
use rustix::fs::{AtFlags, FileType, Statx, StatxFlags, statx};
use rustix::io::Errno;

use crate::{closer, io_failure};

mod ahead;
mod anonymous;
mod kind;
mod memory;

pub use ahead::Ahead;
pub use kind::FileKind;
pub use memory::MemoryKind;

/// The bits of a mode that hold a file's type (`S_IFMT`); no type has all of them.
const TYPE_BITS: u16 = 0o170_000;

/// Gives each file a number, for an order where the kernel gives none.
static SERIAL: AtomicU64 = AtomicU64::new(0);
/// Whether the kernel has refused `kcmp` once: then never mix its order with ours.
static NO_KCMP: AtomicBool = AtomicBool::new(false);

/// A shared open descriptor, and the number of the slot that holds it in the keeper.
#[derive(Debug, Clone)]
pub struct HostFile(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// Shared with the [`closer`] in the end, and with nobody else.
    fd: Arc<OwnedFd>,
    serial: u64,
    /// What it is, or why that cannot be told.
    look: OnceLock<Result<Look, Errno>>,
    kind: OnceLock<FileKind>,
    memory: OnceLock<Option<MemoryKind>>,
    lent: OnceLock<Option<FileRange>>,
    /// Zero: none.
    slot: AtomicU64,
}

impl Drop for Inner {
    fn drop(&mut self) {
        closer::close_shared(&self.fd);
    }
}

/// What never changes about an open file.
#[derive(Debug, Clone, Copy)]
struct Look {
    mode: u16,
    /// Of the file system that it is on, see [`device`].
    device: u64,
    identity: Identity,
}

impl From<OwnedFd> for Inner {
    fn from(fd: OwnedFd) -> Self {
        Self {
            fd: Arc::new(fd),
            serial: SERIAL.fetch_add(1, Memory::Relaxed),
            look: OnceLock::new(),
            kind: OnceLock::new(),
            memory: OnceLock::new(),
            lent: OnceLock::new(),
            slot: AtomicU64::new(0),
        }
    }
}

impl From<OwnedFd> for HostFile {
    fn from(fd: OwnedFd) -> Self {
        Self(Arc::new(fd.into()))
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

    /// The identities that a file may have of which no more is known than the numbers of its device
    /// and inode, which is what the kernel tells of the members of an epoll set: one for each
    /// type of file that can be waited for, and those of all eventfds, which share one inode.
    pub fn identities(device: u64, inode: u64) -> impl Iterator<Item = RangeInclusive<Identity>> {
        let of_type = move |kind: FileType| {
            let identity = Identity([device ^ u64::from(kind.as_raw_mode()) << 48, inode]);
            identity..=identity
        };
        let eventfds = device ^ u64::from(TYPE_BITS) << 48;
        let anonymous = Identity([device, inode]);
        [FileType::Socket, FileType::Fifo, FileType::CharacterDevice]
            .map(of_type)
            .into_iter()
            .chain([anonymous..=anonymous])
            .chain([FileType::RegularFile, FileType::Directory].map(of_type))
            .chain([Identity([eventfds, 0])..=Identity([eventfds, u64::MAX])])
    }

    #[cfg(test)]
    fn is_unshared(&self) -> bool {
        Arc::strong_count(&self.0) == 1
    }

    /// Two threads may look at once: they see the same, and neither waits for the other.
    fn look(&self) -> Result<Look, Errno> {
        if let Some(known) = self.0.look.get() {
            return *known;
        }
        let look = self.look_anew();
        // Somebody else may have been faster.
        let _ = self.0.look.set(look);
        look
    }

    fn look_anew(&self) -> Result<Look, Errno> {
        let stat = self.stat(StatxFlags::TYPE | StatxFlags::INO)?;
        let device = device(&stat);
        let kind = u64::from(stat.stx_mode & TYPE_BITS);
        let mut identity = Identity([device ^ kind << 48, stat.stx_ino]);
        if kind == 0
            && let Some(number) = anonymous::eventfd_number(self.as_fd())
        {
            identity = Identity([device ^ u64::from(TYPE_BITS) << 48, number]);
        }
        Ok(Look { mode: stat.stx_mode, device, identity })
    }

    fn stat(&self, wanted: StatxFlags) -> Result<Statx, Errno> {
        stat(self.as_fd(), wanted)
    }
}

/// What the kernel knows without asking anybody.
fn stat(file: BorrowedFd<'_>, wanted: StatxFlags) -> Result<Statx, Errno> {
    statx(file, c"", AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC, wanted)
}

/// The number of a file's device, as one.
fn device(stat: &Statx) -> u64 {
    u64::from(stat.stx_dev_major) << 32 | u64::from(stat.stx_dev_minor)
}

impl File for HostFile {
    /// Device and inode number, with the file's type in bits of the device number that no device
    /// uses. Of an eventfd, the kernel's number for it instead of the inode's, which all share, and
    /// a type that no file has.
    fn identity(&self) -> Identity {
        match self.look() {
            Ok(look) => look.identity,
            // A file that cannot be looked at still can be told from others by its description.
            Err(_) => Identity([u64::MAX, u64::MAX]),
        }
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

    /// A descriptor of its own, in no slot yet; where `kcmp` is missing, it has the other one's place in
    /// the order.
    fn twin(&self) -> Result<Self, Failure> {
        let fd = self.try_clone_fd().map_err(|error| io_failure(error, "no more descriptors"))?;
        let mut twin = Inner::from(fd);
        twin.serial = self.0.serial;
        Ok(Self(Arc::new(twin)))
    }

    /// Bytes of memory in use, of memory files and of ranges of an arena; zero for all others.
    fn pinned(&self) -> u64 {
        if let Some(range) = self.lent() {
            return range.len;
        }
        match self.memory() {
            Ok(Some(_)) => self.stat(StatxFlags::BLOCKS).map_or(0, |stat| stat.stx_blocks * 512),
            _ => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;

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
    fn device_and_inode_lead_to_the_identity_whatever_the_type() {
        use rustix::event::{EventfdFlags, epoll, eventfd};
        let open = |path: &str| OwnedFd::from(std::fs::File::open(path).unwrap());
        for file in [
            open("/proc/self/mounts"),
            open("/"),
            open("/dev/null"),
            rustix::pipe::pipe().unwrap().0,
            std::os::unix::net::UnixStream::pair().unwrap().0.into(),
            eventfd(0, EventfdFlags::CLOEXEC).unwrap(),
            epoll::create(epoll::CreateFlags::CLOEXEC).unwrap(),
        ] {
            let stat = rustix::fs::fstat(&file).unwrap();
            let device = u64::from(rustix::fs::major(stat.st_dev)) << 32
                | u64::from(rustix::fs::minor(stat.st_dev));
            let file = HostFile::from(file);
            let leads = |device, inode| {
                let mut all = HostFile::identities(device, inode);
                all.any(|some| some.contains(&file.identity()))
            };
            assert!(leads(device, stat.st_ino), "{file:?}");
            assert!(!leads(device + 1, stat.st_ino), "{file:?}");
        }
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

    #[test]
    fn a_twin_is_the_same_description_in_a_slot_of_its_own() {
        let file = memfd(1);
        file.set_slot(Some(7));
        let twin = file.twin().unwrap();
        assert_eq!((twin.order(&file), twin.slot()), (Ordering::Equal, None));
        assert_ne!(twin.as_fd().as_raw_fd(), file.as_fd().as_raw_fd());
        assert_eq!(twin.0.serial, file.0.serial);
    }
}
