//! Copies memory files into a medium and back.
//!
//! | module | its job |
//! | --- | --- |
//! | `chunks` | what is stored of one memory file, and whether that can be true |
//! | `inward` | from a memory file into the medium: what changed, and nothing else |
//! | `outward` | from the medium into a fresh memory file |
//! | `source` | reads a memory file that its owner may change at any moment |
//! | `sum` | checksums, and pages of zeros |
//! | `threads` | shares the work among the processors |
//!
//! Invariants:
//! - The memory's owner may write, truncate or punch it at any moment, and none of that harms
//!   more than what is copied. Reading fills no hole that was there when the copy began, and the
//!   descriptor's position, which its owner shares, is not moved.
//! - A checksum is that of the bytes that were written, not of the bytes that were there: each
//!   chunk is copied to a buffer first, and both are done from there.
//! - An extent is in what is stored, or was released, or was never allocated, also after a
//!   failure at any point.

mod chunks;
mod inward;
mod outward;
mod source;
mod sum;
#[cfg(test)]
mod tests;
mod threads;

use std::io;
use std::os::fd::BorrowedFd;

use luo_core::{Errno, Failure};

use super::medium::{Extent, Medium};

pub use chunks::Chunks;
pub use source::Window;

/// The unit of change detection, in bytes: what has a checksum of its own.
pub const CHUNK: u64 = 64 << 10;

/// The unit of storage, in bytes: a page of zeros takes up nothing.
pub const PAGE: u64 = 4096;

/// What a thread reads and writes at once, in bytes: within the second cache of a processor.
const BATCH: u64 = 4 * CHUNK;

/// Gives out and takes back the medium's space. Called by several threads at once.
pub trait Space: Sync {
    /// That many bytes, a multiple of [`PAGE`], in extents whose offsets may be any and whose
    /// lengths are multiples of [`PAGE`] and add up to it.
    ///
    /// # Errors
    /// ENOSPC with the bytes needed and free, and nothing has been taken then.
    fn allocate(&self, len: u64) -> Result<Vec<Extent>, Failure>;

    /// Takes back what was allocated: an extent, a part of one, or several that lie together.
    fn release(&self, extent: Extent);
}

/// Says how far the work is, in bytes, and learns whether to go on. Called by the calling thread
/// alone.
pub type Progress<'a> = &'a dyn Fn(u64, u64) -> Result<(), Failure>;

/// Copies the first `len` bytes of a memory file into the medium, as they are at some moment
/// during the call: its owner may write to it or truncate it. What lies beyond its end is stored
/// as a hole.
///
/// # Errors
/// What [`Space::allocate`] and `progress` answer; EBADF where `source` cannot be read; EIO and
/// others of the medium. Whatever was allocated has been released then.
pub fn copy_in(
    source: BorrowedFd<'_>,
    len: u64,
    medium: &dyn Medium,
    space: &dyn Space,
    progress: Progress<'_>,
) -> Result<Chunks, Failure> {
    let mut chunks = Chunks::default();
    refresh(&mut chunks, source, len, medium, space, progress)?;
    Ok(chunks)
}

/// Brings what is stored up to date with the memory file, whose length may have changed.
///
/// Reads the memory once, and writes the chunks whose checksum differs. They are written in
/// place: nobody may count on the old content any more, so `chunks` must not have been committed.
/// Chunks with no byte but zeros give their space back.
///
/// # Errors
/// As [`copy_in`], and EINVAL where `chunks` cannot be. Whatever was allocated in this call has
/// been released then, `chunks` still names all space that it had, and may be refreshed again;
/// until that has succeeded its content is neither the old nor the new.
pub fn refresh(
    chunks: &mut Chunks,
    source: BorrowedFd<'_>,
    len: u64,
    medium: &dyn Medium,
    space: &dyn Space,
    progress: Progress<'_>,
) -> Result<(), Failure> {
    refresh_through(&Window::default(), chunks, source, len, medium, space, progress)
}

/// As [`refresh`], through a mapping of the memory file that is kept for the next time.
///
/// # Errors
/// As [`refresh`].
pub fn refresh_through(
    window: &Window,
    chunks: &mut Chunks,
    source: BorrowedFd<'_>,
    len: u64,
    medium: &dyn Medium,
    space: &dyn Space,
    progress: Progress<'_>,
) -> Result<(), Failure> {
    inward::refresh(window, chunks, source, len, medium, space, progress)
}

/// Writes what is stored into a fresh memory file: empty, and written by nobody else. Holes stay
/// holes.
///
/// # Errors
/// EINVAL where `chunks` cannot be; with `verify`, EIO with the offset where the checksum of a
/// chunk is wrong; EIO and others of the medium; ENOSPC, ENOMEM, EFBIG or EPERM of the target;
/// what `progress` answers. The target's content is of no use then.
pub fn copy_out(
    chunks: &Chunks,
    medium: &dyn Medium,
    target: BorrowedFd<'_>,
    verify: bool,
    progress: Progress<'_>,
) -> Result<(), Failure> {
    outward::copy_out(chunks, medium, target, verify, progress)
}

/// What the system said, in words for a person.
fn failed(what: impl Into<String>) -> impl FnOnce(io::Error) -> Failure {
    let what = what.into();
    move |error| {
        let errno = error.raw_os_error().map_or(Errno::Io, Errno::from_raw);
        Failure::new(errno, format!("{what}: {error}")).because(error)
    }
}
