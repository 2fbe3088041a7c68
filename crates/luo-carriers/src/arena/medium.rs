//! Where an arena's bytes are.
//!
//! Invariants:
//! - What was written before a [`flush`](Medium::flush) that succeeded is there after a loss of
//!   power. What was written since may be there, in part, and in any order, in pieces of at least
//!   8 bytes that are aligned.
//! - A medium never grows or shrinks while it is open.

use std::fmt;
use std::io;
use std::os::fd::BorrowedFd;

/// A place within a medium or an object, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Extent {
    /// Where it begins.
    pub offset: u64,
    /// How long it is; never zero.
    pub len: u64,
}

impl Extent {
    /// The first byte after it. Saturates, so that an extent from outside can be checked with it.
    #[must_use]
    pub const fn end(&self) -> u64 {
        self.offset.saturating_add(self.len)
    }
}

/// A region of bytes that outlives the process. Shared among threads.
pub trait Medium: fmt::Debug + Send + Sync {
    /// Its size in bytes.
    fn size(&self) -> u64;

    /// Fills `buffer` from there.
    ///
    /// # Errors
    /// What the system says; `UnexpectedEof` where the range is not within the medium.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()>;

    /// Writes all of `bytes` there.
    ///
    /// # Errors
    /// What the system says; `InvalidInput` where the range is not within the medium.
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;

    /// Returns when everything written before is durable.
    ///
    /// # Errors
    /// What the system says. What was written since the last flush is in no known state then.
    fn flush(&self) -> io::Result<()>;

    /// Says that nobody needs what is in the range any more: the medium may free it. Reads of it
    /// give anything until it is written again.
    ///
    /// # Errors
    /// What the system says.
    fn discard(&self, extent: Extent) -> io::Result<()>;

    /// A descriptor whose file offsets are those of the medium, where there is one: for mapping
    /// it, and for copies within the kernel.
    fn file(&self) -> Option<BorrowedFd<'_>>;
}
