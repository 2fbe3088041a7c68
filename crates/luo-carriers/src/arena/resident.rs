//! Resident memory: ranges of the arena that a service writes where they lie, so that an update
//! copies nothing of them.
//!
//! ```text
//!            lend                        last descriptor and mapping gone
//!  free ─────────────▶ lent, in use ───────────────────────────────────▶ free
//!    ▲                   │     ▲                                           ▲
//!    │              keep │     │ give back (lent once more)                │
//!    │                   ▼     │                                           │
//!    │                 kept: an object ──▶ committed ──▶ the next luod ────┘
//!    └──────────────────────┘ removed, and not lent
//! ```
//!
//! Who has a range is nowhere written down. Each has an open file description of its own, with a
//! lock on exactly its bytes, which the kernel keeps for as long as a descriptor or a mapping of
//! it is left in any process ([`luo_sys::lend_range`]). So a worker that is killed loses nothing,
//! the next one finds the locks, and so does another luod that opens the arena.
//!
//! Invariants:
//! - A range is nobody else's while its lock is held, an object that lives is in it, or a handover
//!   that stands leads to it.
//! - What is lent for the first time is zero.
//! - A lent range is one extent, and no other object's.

use std::borrow::Cow;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use luo_abi::arena::{BLOCK, DATA_START, Kind, Object, Placed};
use luo_core::{Errno, Failure, Handle};
use luo_sys::{FileRange, lend_range, lent_range, lent_within};
use rustix::fs::{FallocateFlags, FileType, Mode, OFlags, fallocate, fstat, fstatfs, open};

use super::medium::Extent;
use super::object::Stored;
use super::space::Region;
use super::store::{Arena, Live, missing};
use crate::io_failure;

const HUGETLBFS_MAGIC: i64 = 0x9584_58f6;
/// The unit in which a device is mapped, in bytes.
const DEVICE_PAGE: u64 = 2 << 20;
/// How much is zeroed at once, in bytes.
const ZEROS: usize = 1 << 20;

/// A range that is to be lent, or kept; free again once it is dropped.
#[derive(Debug, Clone)]
pub struct Reserved {
    extent: Extent,
    region: Arc<Region>,
}

impl Reserved {
    /// Where it is.
    #[must_use]
    pub const fn extent(&self) -> Extent {
        self.extent
    }
}

impl Arena {
    /// Lends at least `len` bytes of zeros, to be mapped: the descriptor has a description of its
    /// own, which tells the range. On a medium of huge pages they are rounded up to those.
    ///
    /// # Errors
    /// EINVAL for no bytes, EOPNOTSUPP where the medium cannot be mapped, ENOSPC with the bytes
    /// needed and free, EMFILE, ENOLCK, EIO.
    pub fn lend(&self, len: u64) -> Result<OwnedFd, Failure> {
        let file = self.mappable()?;
        loop {
            let reserved = self.reserve(len)?;
            let extent = reserved.extent;
            let taken = lent_within(file, range(extent)).map_err(unlocked)?;
            if taken.is_some() {
                // Lent by another luod that had the arena meanwhile.
                self.state().lent.insert(extent.offset, reserved.region);
                continue;
            }
            return self.lend_out(extent, reserved.region);
        }
    }

    /// Takes at least `len` bytes of zeros in one extent, for [`keep_reserved`](Self::keep_reserved).
    ///
    /// # Errors
    /// EINVAL for no bytes, ENOSPC, EIO.
    pub fn reserve(&self, len: u64) -> Result<Reserved, Failure> {
        if len == 0 {
            return Err(Failure::new(Errno::Inval, "memory in an arena has at least one byte"));
        }
        let align = self.page();
        let rounded = if align > BLOCK { len.checked_next_multiple_of(align) } else { Some(len) };
        let len = rounded.ok_or_else(|| Failure::new(Errno::NoSpc, "no arena is that large"))?;
        self.take_back();
        let region = self.space.allocate_aligned(len, align)?;
        let Some(offset) = region.extents().first().map(|whole| whole.offset) else {
            return Err(Failure::new(Errno::NoSpc, "the arena gave no blocks"));
        };
        self.zero(Extent { offset, len: region.len() })?;
        Ok(Reserved { extent: Extent { offset, len }, region: Arc::new(region) })
    }

    /// Keeps memory that was lent: what it is made of stays where it is.
    ///
    /// # Errors
    /// EOPNOTSUPP where the descriptor is none that this arena has lent, EBUSY where it is kept
    /// already, ENOSPC where the catalogue has no room for it.
    pub fn put_lent(&self, file: BorrowedFd<'_>) -> Result<Handle, Failure> {
        let reserved = self.lent(file)?;
        self.keep_reserved(&reserved)
    }

    /// Keeps a range of which whoever has it takes care.
    ///
    /// # Errors
    /// EBUSY where it is kept already, ENOSPC where the catalogue has no room for it.
    pub fn keep_reserved(&self, reserved: &Reserved) -> Result<Handle, Failure> {
        let Extent { offset, len } = reserved.extent;
        let failures = {
            let state = self.state();
            let kept = state.live.values().any(|live| match live {
                Live::Here(stored) => {
                    stored.lent.as_ref().is_some_and(|region| Arc::ptr_eq(region, &reserved.region))
                }
                Live::Busy => false,
            });
            if kept {
                let reason = "this memory in the arena is kept already";
                return Err(Failure::new(Errno::Busy, reason));
            }
            state.failures
        };
        self.insert_stored(failures, |handle| {
            let object = Object {
                handle,
                kind: Kind::Resident,
                len,
                pieces: Cow::Owned(vec![Placed { logical: 0, offset, len }]),
                sums: Cow::Borrowed(&[]),
            };
            Stored::resident(object, Region::empty(&self.space), Arc::clone(&reserved.region))
        })
    }

    /// Lends kept memory once more: another descriptor of the same bytes.
    ///
    /// # Errors
    /// ENOENT where none is kept under that handle, and as [`lend`](Self::lend).
    pub fn lend_kept(&self, handle: Handle) -> Result<OwnedFd, Failure> {
        let stored = self.stored(handle)?;
        let (Some(region), Some(piece)) = (&stored.lent, stored.object.pieces.first()) else {
            return Err(missing(handle));
        };
        self.lend_out(Extent { offset: piece.offset, len: piece.len }, Arc::clone(region))
    }

    fn lend_out(&self, extent: Extent, region: Arc<Region>) -> Result<OwnedFd, Failure> {
        let path = format!("/proc/self/fd/{}", self.mappable()?.as_raw_fd());
        let own = open(path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
            .map_err(|error| io_failure(error.into(), "the arena cannot be opened once more"))?;
        lend_range(&own, range(extent)).map_err(unlocked)?;
        self.state().lent.insert(extent.offset, region);
        Ok(own)
    }

    /// The range that a descriptor has been lent.
    fn lent(&self, file: BorrowedFd<'_>) -> Result<Reserved, Failure> {
        let refused = |why: &str| Failure::new(Errno::OpNotSupp, why);
        let failed = |error| io_failure(error, "the memory in the arena cannot be looked at");
        let (ours, theirs) = (
            fstat(self.mappable()?).map_err(|error| failed(error.into()))?,
            fstat(file).map_err(|error| failed(error.into()))?,
        );
        let device = FileType::from_raw_mode(ours.st_mode) != FileType::RegularFile;
        if (ours.st_dev, ours.st_ino) != (theirs.st_dev, theirs.st_ino)
            && !(device && ours.st_rdev == theirs.st_rdev && ours.st_mode == theirs.st_mode)
        {
            return Err(refused("the file is not in this arena"));
        }
        let range = lent_range(file)
            .map_err(failed)?
            .ok_or_else(|| refused("the file is the arena itself, and no memory lent from it"))?;
        let extent = Extent { offset: range.offset, len: range.len };
        let mut state = self.state();
        let region = match state.lent.get(&extent.offset) {
            Some(region) => Arc::clone(region),
            // Lent since this arena was opened, by somebody else who had it.
            None => Arc::new(self.space.claim(&[extent])?),
        };
        let whole = match region.extents() {
            [whole] => whole.offset == extent.offset && whole.end() >= extent.end(),
            _ => false,
        };
        if !whole {
            return Err(refused("these bytes of the arena are not one lent memory"));
        }
        state.lent.insert(extent.offset, Arc::clone(&region));
        Ok(Reserved { extent, region })
    }

    /// Finds what is lent already, so that nobody else gets it.
    pub(super) fn leave_what_is_lent(&self) -> Result<(), Failure> {
        let Some(file) = self.medium.file() else { return Ok(()) };
        let mut state = self.state();
        let mut rest = vec![FileRange {
            offset: DATA_START,
            len: self.space.size().saturating_sub(DATA_START).max(1),
        }];
        while let Some(within) = rest.pop() {
            let Some(found) = lent_within(file, within).map_err(unlocked)? else { continue };
            let kept = state.standing.objects.iter().find_map(|stored| {
                let piece = stored.object.pieces.first()?;
                (piece.offset == found.offset).then(|| stored.lent.clone())?
            });
            let region = kept.unwrap_or_else(|| {
                let extent = Extent { offset: found.offset, len: found.len };
                Arc::new(self.space.claim_free(extent))
            });
            // Of two that lie over each other, each keeps what it took.
            if let Some(first) = region.extents().first().copied() {
                state.lent.insert(first.offset, region);
            }
            if found.offset > within.offset {
                let len = found.offset - within.offset;
                rest.push(FileRange { offset: within.offset, len });
            }
            if found.end() < within.end() {
                rest.push(FileRange { offset: found.end(), len: within.end() - found.end() });
            }
        }
        Ok(())
    }

    /// Takes back what nobody has any more.
    pub(super) fn take_back(&self) {
        let Some(file) = self.medium.file() else { return };
        let mut state = self.state();
        // Where it cannot be told, it stays lent.
        state.lent.retain(|_, region| {
            region
                .extents()
                .iter()
                .any(|extent| !matches!(lent_within(file, range(*extent)), Ok(None)))
        });
    }

    /// The medium's descriptor, where it can be mapped.
    fn mappable(&self) -> Result<BorrowedFd<'_>, Failure> {
        self.medium.file().ok_or_else(|| {
            Failure::new(Errno::OpNotSupp, "the medium of this arena cannot be mapped")
        })
    }

    /// The unit in which the medium is mapped, in bytes.
    fn page(&self) -> u64 {
        let page = (rustix::param::page_size() as u64).max(BLOCK);
        let Some(file) = self.medium.file() else { return page };
        let device = fstat(file)
            .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice);
        if device {
            return page.max(DEVICE_PAGE);
        }
        match fstatfs(file) {
            #[allow(
                clippy::unnecessary_cast,
                reason = "the width of these fields differs between architectures"
            )]
            Ok(system) if system.f_type as i64 == HUGETLBFS_MAGIC => {
                page.max(u64::try_from(system.f_bsize as i64).unwrap_or(0))
            }
            _ => page,
        }
    }

    fn zero(&self, extent: Extent) -> Result<(), Failure> {
        if let Some(file) = self.medium.file() {
            let flags = FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE;
            // Not every file system can; then it is written.
            if fallocate(file, flags, extent.offset, extent.len).is_ok() {
                return Ok(());
            }
        }
        let zeros = vec![0; ZEROS.min(usize::try_from(extent.len).unwrap_or(ZEROS))];
        let mut at = extent.offset;
        while at < extent.end() {
            let len = usize::try_from(extent.end() - at).unwrap_or(ZEROS).min(zeros.len());
            let part = zeros.get(..len).unwrap_or(&zeros);
            self.medium.write_at(at, part).map_err(|error| {
                io_failure(error, &format!("the arena cannot be written at {at}"))
            })?;
            at += len as u64;
        }
        Ok(())
    }
}

fn range(extent: Extent) -> FileRange {
    FileRange { offset: extent.offset, len: extent.len }
}

fn unlocked(error: std::io::Error) -> Failure {
    io_failure(error, "the arena's file cannot be locked")
}

#[cfg(test)]
mod tests;
