//! A file or device, mapped, and read and written without `unsafe` by its user.
//!
//! It may be shared with anybody, shrink, or fail: what then raises SIGBUS becomes an error here.
//!
//! | module | its job |
//! | --- | --- |
//! | `guard` | SIGBUS within a mapping marks that mapping as broken |
//! | `moves` | moves bytes into and out of memory that others may write meanwhile |
//!
//! Invariants:
//! - The bytes are never lent out; they are copied in and out, within the bounds.
//! - What a mapping gave is of use only if it is not broken afterwards, and one that broke stays so:
//!   every later access is an error.

mod guard;
mod moves;
#[cfg(test)]
mod tests;

use std::fmt;
use std::io;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;

use rustix::mm::{MapFlags, ProtFlags};

use guard::Guard;

/// What a file is mapped for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protection {
    /// To be read.
    Read,
    /// To be read and written.
    ReadWrite,
}

/// What sees to it that what was written is where it stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// `fsync(2)` of the file, as far as it has such a place.
    Fsync,
    /// Nothing: [`write_at`](Mapped::write_at) returns when the bytes are there.
    Stores,
}

/// A range from the beginning of a file or device, mapped as shared.
///
/// Dropping it unmaps the range.
pub struct Mapped {
    /// Dropped by hand, before the mapping goes.
    guard: Option<Guard>,
    base: NonNull<u8>,
    /// How much address space is mapped, in bytes: at least `len`, not zero.
    mapped: usize,
    /// How many bytes may be accessed.
    len: usize,
    protection: Protection,
    durability: Durability,
}

// SAFETY: a `Mapped` owns its mapping, which is not bound to the thread that made it.
unsafe impl Send for Mapped {}
// SAFETY: through `&Mapped` the mapping is reached only by the copying functions in `moves`, which
// may run beside each other on the same bytes.
unsafe impl Sync for Mapped {}

impl Mapped {
    /// Whether a mapping can make persistent memory durable without the kernel: it can on x86-64.
    pub const STORES: bool = moves::DURABLE;

    /// Maps the first `len` bytes of a file, in units of `unit` bytes (its page size, a power of
    /// two). Where the file is on persistent memory that can be had without a cache between, the
    /// [durability](Self::durability) is [`Stores`](Durability::Stores).
    ///
    /// # Errors
    /// EINVAL where `len` is zero or `unit` is no power of two, EOVERFLOW, ENOMEM; ENODEV and EACCES
    /// where the file cannot be mapped like that.
    pub fn file(
        fd: BorrowedFd<'_>,
        len: u64,
        unit: u64,
        protection: Protection,
    ) -> io::Result<Self> {
        if Self::STORES && protection == Protection::ReadWrite {
            // Refused, and not ignored, by what is no persistent memory.
            let flags = MapFlags::SHARED_VALIDATE | MapFlags::SYNC;
            if let Ok(mapped) = Self::map(fd, len, unit, protection, flags, Durability::Stores) {
                return Ok(mapped);
            }
        }
        Self::map(fd, len, unit, protection, MapFlags::SHARED, Durability::Fsync)
    }

    /// Maps the first `len` bytes of a character device that is persistent memory and nothing else
    /// (`/dev/dax*`), in units of `unit` bytes.
    ///
    /// # Errors
    /// As [`file`](Self::file), and EOPNOTSUPP where [`STORES`](Self::STORES) does not hold: there
    /// is no other way to make it durable.
    pub fn device(
        fd: BorrowedFd<'_>,
        len: u64,
        unit: u64,
        protection: Protection,
    ) -> io::Result<Self> {
        if !Self::STORES {
            return Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP));
        }
        Self::map(fd, len, unit, protection, MapFlags::SHARED, Durability::Stores)
    }

    fn map(
        fd: BorrowedFd<'_>,
        len: u64,
        unit: u64,
        protection: Protection,
        flags: MapFlags,
        durability: Durability,
    ) -> io::Result<Self> {
        if len == 0 || !unit.is_power_of_two() {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        let overflow = || io::Error::from_raw_os_error(libc::EOVERFLOW);
        let whole = len.checked_next_multiple_of(unit).and_then(|len| usize::try_from(len).ok());
        let whole = whole.filter(|whole| *whole <= isize::MAX as usize).ok_or_else(overflow)?;
        let prot = match protection {
            Protection::Read => ProtFlags::READ,
            Protection::ReadWrite => ProtFlags::READ | ProtFlags::WRITE,
        };
        // SAFETY: no address is asked for, so the kernel chooses one where nothing is mapped.
        let base = unsafe { rustix::mm::mmap(std::ptr::null_mut(), whole, prot, flags, fd, 0) }?;
        let base = NonNull::new(base.cast::<u8>()).ok_or_else(overflow)?;
        let mut made =
            Self { guard: None, base, mapped: whole, len: len as usize, protection, durability };
        made.guard = Some(Guard::new(base, whole)?);
        Ok(made)
    }

    /// Its length in bytes; never zero.
    #[must_use]
    #[allow(clippy::len_without_is_empty, reason = "it is never empty")]
    pub const fn len(&self) -> u64 {
        self.len as u64
    }

    /// What makes durable what was written.
    #[must_use]
    pub const fn durability(&self) -> Durability {
        self.durability
    }

    /// Copies bytes out.
    ///
    /// # Errors
    /// `UnexpectedEof` where the range is not within the mapping; EIO where the memory cannot be
    /// accessed (any more), of which what is in `out` then says nothing.
    pub fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let from = self.place(offset, out.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        self.whole()?;
        // SAFETY: `place` has found `out.len()` bytes from there within the mapping, which stays for
        // as long as `self` is borrowed; where the file has no page, the guard puts memory there.
        // `out` is borrowed alone, and so no part of the mapping, which nobody can borrow.
        unsafe { moves::copy_out(from, out.as_mut_ptr(), out.len()) };
        self.whole()
    }

    /// Copies bytes in, past the caches where the machine can do that. Of each aligned word of 8
    /// bytes that is wholly in the range, the old or the new value is there at any instant.
    ///
    /// # Errors
    /// `InvalidInput` where the range is not within the mapping, EBADF where it is for reading, EIO
    /// where the memory cannot be accessed (any more), of which nobody knows what is in it then.
    pub fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        if self.protection == Protection::Read {
            return Err(io::Error::from_raw_os_error(libc::EBADF));
        }
        let to = self.place(offset, bytes.len()).ok_or(io::ErrorKind::InvalidInput)?;
        self.whole()?;
        // SAFETY: as in `read_at`, and it is mapped for writing.
        unsafe { moves::copy_in(to, bytes.as_ptr(), bytes.len()) };
        self.whole()
    }

    /// Whether everything that was written went where it should.
    ///
    /// # Errors
    /// EIO where it did not.
    pub fn whole(&self) -> io::Result<()> {
        match &self.guard {
            Some(guard) if !guard.broken() => Ok(()),
            _ => Err(io::Error::from_raw_os_error(libc::EIO)),
        }
    }

    /// Where a range is, if it is within the bounds.
    fn place(&self, offset: u64, count: usize) -> Option<*mut u8> {
        let start = usize::try_from(offset).ok()?;
        let end = start.checked_add(count)?;
        // `len` bytes are mapped, and at most isize::MAX: the address is within the mapping or
        // right behind it.
        (end <= self.len).then(|| self.base.as_ptr().wrapping_add(start))
    }
}

impl fmt::Debug for Mapped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mapped")
            .field("len", &self.len)
            .field("protection", &self.protection)
            .field("durability", &self.durability)
            .finish_non_exhaustive()
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // First, so that a fault in what is mapped here next is not taken for one of this mapping.
        self.guard = None;
        // SAFETY: the mapping (or what the guard has put in its place) is this value's own, and
        // nothing borrows from a value that is being dropped. An error could only mean that it is not
        // mapped, and there is nothing left to do then.
        let _ = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.mapped) };
    }
}
