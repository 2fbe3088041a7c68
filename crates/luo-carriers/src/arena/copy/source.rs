//! Reads a memory file that its owner may write, truncate or punch holes into at any moment.
//!
//! A large file without holes is read through a mapping, which can be kept from one copy to the
//! next: to fault it in costs about as much as to read it once with `pread`, and each later copy
//! less than half. Where it breaks, since the owner has truncated the file, `pread` goes on.
//!
//! Invariants:
//! - See the parent module; nothing here touches the position of the owner's descriptor.
//! - What is mapped was opened for reading alone, so the owner can still seal the file against
//!   writing.
//! - A file that had holes when the copy began is not read through a mapping: that would fill them.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

use luo_core::{Errno, Failure};
use luo_sys::{Mapped, Protection};
use rustix::fs::{Mode, OFlags, SeekFrom, Stat, fstat, open, seek};
use rustix::io::pread;

use super::failed;

/// The shortest memory that is mapped, in bytes.
const WORTH: u64 = 1 << 20;

/// A mapping of a memory file, kept from one copy of it to the next; without one at first.
///
/// It takes up address space and page tables: 1/512 of the memory where its pages are of 4 KiB.
#[derive(Debug, Default)]
pub struct Window(Mutex<Option<Kept>>);

#[derive(Debug)]
struct Kept {
    /// Device and inode of the file.
    identity: (u64, u64),
    mapped: Arc<Mapped>,
}

impl Window {
    /// A mapping of at least `len` bytes of the file, if it can be had.
    fn over(&self, file: BorrowedFd<'_>, stat: &Stat, len: u64) -> Option<Arc<Mapped>> {
        let identity = (stat.st_dev, stat.st_ino);
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let fits = |kept: &&Kept| {
            kept.identity == identity && kept.mapped.len() >= len && kept.mapped.whole().is_ok()
        };
        if let Some(kept) = kept.as_ref().filter(fits) {
            return Some(Arc::clone(&kept.mapped));
        }
        *kept = None;
        // A file on huge pages is mapped in whole ones.
        let unit = u64::try_from(stat.st_blksize).ok().filter(|unit| unit.is_power_of_two());
        let mapped = Mapped::file(file, len, unit.unwrap_or(super::PAGE), Protection::Read).ok()?;
        let mapped = Arc::new(mapped);
        *kept = Some(Kept { identity, mapped: Arc::clone(&mapped) });
        Some(mapped)
    }

    /// Whether there is a mapping in it.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }
}

/// A memory file to be read.
#[derive(Debug)]
pub(super) struct Source<'a> {
    file: BorrowedFd<'a>,
    /// The same file, with a position of its own: looking for data moves it. `None` where it
    /// cannot be opened again (another user's file, no /proc); then holes are read, as zeros.
    scan: Option<OwnedFd>,
    mapped: Option<Arc<Mapped>>,
    /// How much memory the file took up when it was opened, in bytes.
    pub(super) used: u64,
}

impl<'a> Source<'a> {
    /// Of the file, `len` bytes will be read.
    ///
    /// # Errors
    /// What the system says of a look at the descriptor.
    pub(super) fn new(file: BorrowedFd<'a>, len: u64, window: &Window) -> Result<Self, Failure> {
        let stat = fstat(file)
            .map_err(io::Error::from)
            .map_err(failed("the memory file cannot be looked at"))?;
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        let scan = open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok();
        let used = u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(512);
        let dense = u64::try_from(stat.st_size).is_ok_and(|size| size >= len && used >= size);
        let mapped = match &scan {
            Some(scan) if dense && len >= WORTH => window.over(scan.as_fd(), &stat, len),
            _ => None,
        };
        Ok(Self { file, scan, mapped, used })
    }

    /// Where the next data begins, from `offset` on; `None` where there is no more.
    pub(super) fn next_data(&self, offset: u64) -> Option<u64> {
        let Some(scan) = &self.scan else { return Some(offset) };
        match seek(scan, SeekFrom::Data(offset)) {
            Ok(data) => Some(data),
            Err(rustix::io::Errno::NXIO) => None,
            // A file system that does not know: everything counts as data.
            Err(_) => Some(offset),
        }
    }

    /// Fills `buffer` from there, with zeros where the file has ended.
    pub(super) fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), Failure> {
        if let Some(mapped) = &self.mapped
            && mapped.read_at(offset, buffer).is_ok()
        {
            return Ok(());
        }
        let mut done = 0;
        while let Some(rest) = buffer.get_mut(done..).filter(|rest| !rest.is_empty()) {
            match pread(self.file, &mut *rest, offset + done as u64) {
                Ok(0) => {
                    rest.fill(0);
                    break;
                }
                Ok(read) => done += read,
                Err(rustix::io::Errno::INTR) => {}
                Err(errno) => {
                    let at = offset + done as u64;
                    let what = format!("the memory file cannot be read at {at}");
                    return Err(match errno {
                        rustix::io::Errno::BADF => Failure::new(
                            Errno::BadF,
                            format!("{what}: its descriptor is not open for reading"),
                        )
                        .because(io::Error::from(errno)),
                        _ => failed(what)(errno.into()),
                    });
                }
            }
        }
        Ok(())
    }
}
