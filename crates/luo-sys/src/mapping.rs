//! Memory that outlives a process: a memfd, or a range of an arena that luod has lent, mapped, and read and
//! written without `unsafe` by its user.
//!
//! The file is shared: another process that holds the descriptor may write it at any moment. So its bytes are
//! never lent out as `&[u8]`; they are copied in and out, and single words are read and published atomically.
//!
//! Invariants:
//! - A memfd carries `F_SEAL_SHRINK` for as long as a [`Memory`] maps it, so a mapped page below
//!   [`len`](Memory::len) never goes away and an access in bounds never raises SIGBUS. It may grow. An arena
//!   cannot be sealed: it is its operator who must not truncate it while memory in it is in use; who does, ends
//!   the processes that use it (SIGBUS), and does nothing worse.
//! - Every access to the mapping is an atomic access to an aligned 8-byte word, whatever its length and offset.
//!   So accesses that race, from this process or another, are defined, and at worst a copy holds some words
//!   from before and some from after.
//! - What one thread does to the mapping takes effect in program order, as seen by whoever maps the file after
//!   that thread's process was killed.

use std::ffi::CString;
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::slice;
use std::sync::atomic::{AtomicU64, Ordering, compiler_fence};

use rustix::fs::{FileType, MemfdFlags, SealFlags};
use rustix::io::Errno;
use rustix::mm::{MapFlags, MremapFlags, ProtFlags};

use crate::range::{FileRange, lent_range};

/// The size of a word, in bytes: the unit of every access.
const WORD: usize = 8;

/// The least address space that a mapping takes, in bytes, so that a small file grows without being moved.
const RESERVE: usize = 64 << 20;

/// The file system type of memfds on ordinary pages, as `fstatfs` gives it.
const TMPFS_MAGIC: i64 = 0x0102_1994;

/// The file system type of files on huge pages.
const HUGETLBFS_MAGIC: i64 = 0x9584_58f6;

/// The unit in which a device is mapped (`/dev/dax*`), in bytes.
const DEVICE_PAGE: usize = 2 << 20;

/// Why memory could not be made, taken over, grown or accessed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MemoryError {
    /// The name holds a NUL byte or is longer than 249 bytes.
    #[error("a memfd's name has at most 249 bytes and no NUL byte")]
    Name,
    /// The kernel refused to make the memfd (EMFILE, ENFILE or ENOMEM).
    #[error("cannot create a memfd; check the limits on open files and on memory")]
    Create(#[source] Errno),
    /// The descriptor is not a memfd on ordinary pages, so it cannot be proven that it never shrinks.
    #[error(
        "the descriptor is not a memfd on ordinary pages; pass one made by memfd_create without MFD_HUGETLB"
    )]
    NotMemfd(#[source] Option<Errno>),
    /// The memfd can shrink, and its seals forbid to seal it against that.
    #[error(
        "the memfd can shrink and cannot be sealed; create it with MFD_ALLOW_SEALING and F_SEAL_SHRINK"
    )]
    Seal(#[source] Errno),
    /// The file cannot be made longer (EPERM where `F_SEAL_GROW` is set, EFBIG, EINVAL).
    #[error("cannot grow the memory to {new_len} bytes")]
    Grow {
        /// The length asked for, in bytes.
        new_len: u64,
        /// What the kernel said.
        #[source]
        source: Errno,
    },
    /// The file cannot be mapped (ENOMEM, or EPERM where `F_SEAL_WRITE` is set).
    #[error("cannot map {len} bytes of memory; check the address-space limit and the file's seals")]
    Map {
        /// How many bytes were to be mapped.
        len: u64,
        /// What the kernel said.
        #[source]
        source: Errno,
    },
    /// A new length below the present one.
    #[error("memory of {len} bytes does not shrink to {new_len}")]
    Shrink {
        /// The present length, in bytes.
        len: u64,
        /// The length asked for, in bytes.
        new_len: u64,
    },
    /// A new length for memory in an arena, which has the length it was lent with.
    #[error("memory in an arena keeps its {len} bytes; for {new_len}, allocate other memory")]
    Fixed {
        /// Its length, in bytes.
        len: u64,
        /// The length asked for, in bytes.
        new_len: u64,
    },
    /// An access that does not lie within the memory.
    #[error("access to {count} bytes at offset {offset} of memory that has {len}")]
    OutOfBounds {
        /// Where the access starts, in bytes.
        offset: u64,
        /// How many bytes it spans.
        count: u64,
        /// The length of the memory, in bytes.
        len: u64,
    },
    /// A word access at an offset that is not a multiple of 8.
    #[error("offset {offset} of a word is not a multiple of 8")]
    Misaligned {
        /// The offset.
        offset: u64,
    },
}

/// A memfd, or a range of an arena, and its shared mapping.
///
/// Dropping it unmaps the memory and closes the descriptor; the memory itself lives on while any process
/// (luo's keeper, for one) holds another descriptor of it.
pub struct Memory {
    fd: OwnedFd,
    /// The range of the arena that it is; `None`: it is a memfd.
    lent: Option<FileRange>,
    base: NonNull<AtomicU64>,
    /// How much address space is mapped, in bytes: a multiple of the page size, at least `len`.
    mapped: usize,
    /// The file's length as of the last look, in bytes; the file is never shorter.
    len: usize,
}

// SAFETY: a `Memory` owns its mapping, which is not bound to the thread that made it.
unsafe impl Send for Memory {}
// SAFETY: through `&Memory` the mapping is reached only as `&[AtomicU64]`, which is `Sync`; what moves or
// removes the mapping takes `&mut self` or ownership.
unsafe impl Sync for Memory {}

impl Memory {
    /// Makes a memfd of `len` zero bytes, sealed against shrinking, and maps it.
    ///
    /// The descriptor is close-on-exec from birth. `name` is what `/proc/PID/fd` shows. Pages take up memory
    /// when first touched.
    ///
    /// # Errors
    /// [`Name`](MemoryError::Name), [`Create`](MemoryError::Create), [`Grow`](MemoryError::Grow) or
    /// [`Map`](MemoryError::Map).
    pub fn create(name: &str, len: u64) -> Result<Self, MemoryError> {
        let name = CString::new(name).map_err(|_| MemoryError::Name)?;
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let fd = rustix::fs::memfd_create(&name, flags).map_err(|errno| match errno {
            Errno::INVAL => MemoryError::Name,
            other => MemoryError::Create(other),
        })?;
        rustix::fs::ftruncate(&fd, len)
            .map_err(|source| MemoryError::Grow { new_len: len, source })?;
        Self::from_fd(fd)
    }

    /// Takes over a memfd and maps all of it, or a descriptor of memory in an arena and maps that, in time
    /// independent of its length.
    ///
    /// A memfd is sealed against shrinking if it is not yet.
    ///
    /// # Errors
    /// [`NotMemfd`](MemoryError::NotMemfd) for any other kind of file, [`Seal`](MemoryError::Seal) where it could
    /// shrink and cannot be sealed, [`Map`](MemoryError::Map). The descriptor is closed.
    pub fn from_fd(fd: OwnedFd) -> Result<Self, MemoryError> {
        if let Ok(Some(range)) = lent_range(&fd) {
            return Self::from_lent(fd, range);
        }
        let system =
            rustix::fs::fstatfs(&fd).map_err(|errno| MemoryError::NotMemfd(Some(errno)))?;
        // The type's width and sign differ between architectures; the magic number fits them all.
        #[allow(
            clippy::unnecessary_cast,
            reason = "the width of f_type differs between architectures"
        )]
        if system.f_type as i64 != TMPFS_MAGIC {
            return Err(MemoryError::NotMemfd(None));
        }
        let seals =
            rustix::fs::fcntl_get_seals(&fd).map_err(|errno| MemoryError::NotMemfd(Some(errno)))?;
        if !seals.contains(SealFlags::SHRINK) {
            rustix::fs::fcntl_add_seals(&fd, SealFlags::SHRINK).map_err(MemoryError::Seal)?;
        }
        // Only now is the length a lower bound for ever.
        let len = file_len(&fd)?;
        let (base, mapped) = map(&fd, 0, len, &[reserve(len), page_ceil(len)])?;
        Ok(Self { fd, lent: None, base, mapped, len })
    }

    /// Maps a range of an arena.
    fn from_lent(fd: OwnedFd, range: FileRange) -> Result<Self, MemoryError> {
        let source = Errno::FBIG;
        let len = usize::try_from(range.len)
            .ok()
            .filter(|len| *len <= isize::MAX as usize / 4)
            .ok_or(MemoryError::Map { len: range.len, source })?;
        // No reserve: behind it is somebody else's.
        let (base, mapped) =
            map(&fd, range.offset, len, &[len.next_multiple_of(page_size_of(&fd))])?;
        Ok(Self { fd, lent: Some(range), base, mapped, len })
    }

    /// Whether it lies in an arena, so that no update copies it.
    pub fn is_resident(&self) -> bool {
        self.lent.is_some()
    }

    /// Where in its descriptor's file it begins, in bytes: what a mapping of one's own maps, from here and
    /// [`len`](Self::len) bytes. Zero of a memfd.
    pub fn offset(&self) -> u64 {
        self.lent.map_or(0, |range| range.offset)
    }

    /// The length of the memory in bytes, as of the last [`from_fd`](Self::from_fd) or [`grow`](Self::grow).
    pub fn len(&self) -> u64 {
        self.len as u64
    }

    /// Whether the memory has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Makes the memory `new_len` bytes long; the new bytes are zero and take up no memory yet.
    ///
    /// # Errors
    /// [`Shrink`](MemoryError::Shrink) for less than the present length, [`Fixed`](MemoryError::Fixed) for more where
    /// it [is resident](Self::is_resident), [`Grow`](MemoryError::Grow) or [`Map`](MemoryError::Map); after an error the memory is mapped as before.
    pub fn grow(&mut self, new_len: u64) -> Result<(), MemoryError> {
        let len = self.len();
        if new_len < len {
            return Err(MemoryError::Shrink { len, new_len });
        }
        if self.lent.is_some() {
            return if new_len == len { Ok(()) } else { Err(MemoryError::Fixed { len, new_len }) };
        }
        let too_long = MemoryError::Grow { new_len, source: Errno::FBIG };
        let Ok(wanted) = usize::try_from(new_len) else { return Err(too_long) };
        // Another process may have made it longer already; asking for less would be a shrink (EPERM).
        if file_len(&self.fd)? < wanted {
            rustix::fs::ftruncate(&self.fd, new_len)
                .map_err(|source| MemoryError::Grow { new_len, source })?;
        }
        if wanted > self.mapped {
            self.remap(wanted)?;
        }
        self.len = wanted;
        Ok(())
    }

    /// Copies bytes out of the memory.
    ///
    /// # Errors
    /// [`OutOfBounds`](MemoryError::OutOfBounds); `out` is then untouched.
    pub fn read_at(&self, offset: u64, out: &mut [u8]) -> Result<(), MemoryError> {
        let (words, skip) = self.span(offset, out.len())?;
        let (head, rest) = out.split_at_mut(head_len(skip, out.len()));
        let mut words = words.iter();
        if !head.is_empty()
            && let Some(word) = words.next()
        {
            let bytes = word.load(Ordering::Relaxed).to_ne_bytes();
            head.copy_from_slice(&bytes[skip..skip + head.len()]);
        }
        let mut chunks = rest.chunks_exact_mut(WORD);
        for (chunk, word) in chunks.by_ref().zip(words.by_ref()) {
            chunk.copy_from_slice(&word.load(Ordering::Relaxed).to_ne_bytes());
        }
        let tail = chunks.into_remainder();
        if !tail.is_empty()
            && let Some(word) = words.next()
        {
            let bytes = word.load(Ordering::Relaxed).to_ne_bytes();
            tail.copy_from_slice(&bytes[..tail.len()]);
        }
        Ok(())
    }

    /// Copies bytes into the memory.
    ///
    /// Not atomic as a whole; whoever is killed inside leaves a prefix, to the word. Bytes beside the range keep
    /// what others write there at the same time.
    ///
    /// # Errors
    /// [`OutOfBounds`](MemoryError::OutOfBounds); nothing is then written.
    pub fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<(), MemoryError> {
        let (words, skip) = self.span(offset, bytes.len())?;
        // A signal stops a thread between two instructions, with every earlier store done and no later one; so
        // program order after a kill needs only the compiler to keep it.
        compiler_fence(Ordering::SeqCst);
        let (head, rest) = bytes.split_at(head_len(skip, bytes.len()));
        let mut words = words.iter();
        if !head.is_empty()
            && let Some(word) = words.next()
        {
            merge(word, skip, head);
        }
        let (chunks, tail) = rest.as_chunks::<WORD>();
        for (chunk, word) in chunks.iter().zip(words.by_ref()) {
            word.store(u64::from_ne_bytes(*chunk), Ordering::Relaxed);
        }
        if !tail.is_empty()
            && let Some(word) = words.next()
        {
            merge(word, 0, tail);
        }
        compiler_fence(Ordering::SeqCst);
        Ok(())
    }

    /// Reads the word at `offset`, ordered before all later reads (acquire).
    ///
    /// # Errors
    /// [`Misaligned`](MemoryError::Misaligned) or [`OutOfBounds`](MemoryError::OutOfBounds).
    pub fn load_u64(&self, offset: u64) -> Result<u64, MemoryError> {
        Ok(self.word(offset)?.load(Ordering::Acquire))
    }

    /// Publishes a word at `offset`, after all earlier writes (release).
    ///
    /// # Errors
    /// [`Misaligned`](MemoryError::Misaligned) or [`OutOfBounds`](MemoryError::OutOfBounds).
    pub fn store_u64(&self, offset: u64, value: u64) -> Result<(), MemoryError> {
        let word = self.word(offset)?;
        compiler_fence(Ordering::SeqCst);
        word.store(value, Ordering::Release);
        compiler_fence(Ordering::SeqCst);
        Ok(())
    }

    /// Replaces the word at `offset` by `new` if it is `current`; the inner `Err` holds what it is instead.
    ///
    /// # Errors
    /// [`Misaligned`](MemoryError::Misaligned) or [`OutOfBounds`](MemoryError::OutOfBounds).
    pub fn compare_exchange_u64(
        &self,
        offset: u64,
        current: u64,
        new: u64,
    ) -> Result<Result<u64, u64>, MemoryError> {
        Ok(self.word(offset)?.compare_exchange(current, new, Ordering::SeqCst, Ordering::SeqCst))
    }

    /// Gives up the mapping and keeps the descriptor.
    ///
    /// # Errors
    /// [`Create`](MemoryError::Create) when the limit on open files is reached (EMFILE).
    pub fn into_fd(self) -> Result<OwnedFd, MemoryError> {
        rustix::io::fcntl_dupfd_cloexec(&self.fd, 0).map_err(MemoryError::Create)
    }

    fn remap(&mut self, wanted: usize) -> Result<(), MemoryError> {
        let mut failed = Errno::NOMEM;
        for size in [reserve(wanted), page_ceil(wanted)] {
            // SAFETY: `base` and `mapped` are exactly the mapping this value owns; `&mut self` shows that nothing
            // borrows from it, and where it moves, `base` is replaced below before it is used again.
            let moved = unsafe {
                rustix::mm::mremap(
                    self.base.as_ptr().cast(),
                    self.mapped,
                    size,
                    MremapFlags::MAYMOVE,
                )
            };
            match moved.map(|address| NonNull::new(address.cast())) {
                Ok(Some(base)) => {
                    self.base = base;
                    self.mapped = size;
                    return Ok(());
                }
                Ok(None) => {}
                Err(errno) => failed = errno,
            }
        }
        Err(MemoryError::Map { len: wanted as u64, source: failed })
    }

    /// The file's words; the last one may reach past the length, into the zero rest of its page.
    fn words(&self) -> &[AtomicU64] {
        // SAFETY: `base` is page-aligned and the mapping spans `mapped >= len` bytes, a multiple of the page size
        // and so of 8; every page that holds a byte below `len` exists as a memfd cannot shrink, and where the
        // file is an arena that was truncated against all warnings, an access ends the process (SIGBUS) and is
        // never undefined. Any bits are a valid `AtomicU64`; this process reaches the mapping through such words only, and
        // other processes are at most more threads that store to them. The borrow of `self` keeps it mapped.
        unsafe { slice::from_raw_parts(self.base.as_ptr(), self.len.div_ceil(WORD)) }
    }

    fn word(&self, offset: u64) -> Result<&AtomicU64, MemoryError> {
        if !offset.is_multiple_of(WORD as u64) {
            return Err(MemoryError::Misaligned { offset });
        }
        match self.span(offset, WORD)? {
            ([word], 0) => Ok(word),
            _ => Err(self.out_of_bounds(offset, WORD)),
        }
    }

    /// The words that hold `count` bytes at `offset`, and how many bytes of the first come before them.
    fn span(&self, offset: u64, count: usize) -> Result<(&[AtomicU64], usize), MemoryError> {
        let start = usize::try_from(offset).map_err(|_| self.out_of_bounds(offset, count))?;
        let end = start.checked_add(count).filter(|end| *end <= self.len);
        let end = end.ok_or_else(|| self.out_of_bounds(offset, count))?;
        let words = self.words().get(start / WORD..end.div_ceil(WORD).max(start / WORD));
        words.map(|words| (words, start % WORD)).ok_or_else(|| self.out_of_bounds(offset, count))
    }

    #[cold]
    fn out_of_bounds(&self, offset: u64, count: usize) -> MemoryError {
        MemoryError::OutOfBounds { offset, count: count as u64, len: self.len() }
    }
}

impl AsFd for Memory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl TryFrom<OwnedFd> for Memory {
    type Error = MemoryError;

    /// As [`from_fd`](Memory::from_fd).
    fn try_from(fd: OwnedFd) -> Result<Self, MemoryError> {
        Self::from_fd(fd)
    }
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Memory")
            .field("fd", &self.fd)
            .field("lent", &self.lent)
            .field("len", &self.len)
            .finish_non_exhaustive()
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own, and nothing borrows from a value that is being dropped.
        // An error could only mean that it is not mapped, and there is nothing left to do then.
        let _ = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.mapped) };
    }
}

/// How many of `count` bytes lie in a first word of which `skip` bytes come before them.
fn head_len(skip: usize, count: usize) -> usize {
    if skip == 0 { 0 } else { count.min(WORD - skip) }
}

/// Replaces some bytes of a word and leaves the others to whoever writes them meanwhile.
fn merge(word: &AtomicU64, skip: usize, bytes: &[u8]) {
    let mut seen = word.load(Ordering::Relaxed);
    loop {
        let mut new = seen.to_ne_bytes();
        new[skip..skip + bytes.len()].copy_from_slice(bytes);
        match word.compare_exchange_weak(
            seen,
            u64::from_ne_bytes(new),
            Ordering::Relaxed,
            Ordering::Relaxed,
        ) {
            Ok(_) => return,
            Err(now) => seen = now,
        }
    }
}

fn file_len(fd: &OwnedFd) -> Result<usize, MemoryError> {
    let stat = rustix::fs::fstat(fd).map_err(|errno| MemoryError::NotMemfd(Some(errno)))?;
    let too_long =
        || MemoryError::Map { len: u64::try_from(stat.st_size).unwrap_or(0), source: Errno::FBIG };
    // Room for doubling keeps the arithmetic on lengths below free of overflow.
    usize::try_from(stat.st_size)
        .ok()
        .filter(|len| *len <= isize::MAX as usize / 4)
        .ok_or_else(too_long)
}

fn page_ceil(len: usize) -> usize {
    len.max(1).next_multiple_of(rustix::param::page_size())
}

/// Twice the length, so that a file that keeps growing is moved only O(log n) times.
fn reserve(len: usize) -> usize {
    page_ceil(len.saturating_mul(2).clamp(RESERVE, isize::MAX as usize / 2))
}

/// The unit in which a file is mapped, in bytes.
fn page_size_of(fd: &OwnedFd) -> usize {
    let page = rustix::param::page_size();
    let Ok(stat) = rustix::fs::fstat(fd) else { return page };
    if FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice {
        return DEVICE_PAGE.max(page);
    }
    match rustix::fs::fstatfs(fd) {
        #[allow(
            clippy::unnecessary_cast,
            reason = "the width of these fields differs between architectures"
        )]
        Ok(system) if system.f_type as i64 == HUGETLBFS_MAGIC => {
            usize::try_from(system.f_bsize as i64).unwrap_or(page).max(page)
        }
        _ => page,
    }
}

/// Maps the file from `offset` on, with the first of these sizes that there is room for.
fn map(
    fd: &OwnedFd,
    offset: u64,
    len: usize,
    sizes: &[usize],
) -> Result<(NonNull<AtomicU64>, usize), MemoryError> {
    let mut failed = Errno::NOMEM;
    for &size in sizes {
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: no address is asked for, so the kernel chooses one where nothing is mapped.
        let mapped = unsafe {
            rustix::mm::mmap(std::ptr::null_mut(), size, protection, MapFlags::SHARED, fd, offset)
        };
        match mapped.map(|address| NonNull::new(address.cast())) {
            Ok(Some(base)) => return Ok((base, size)),
            Ok(None) => {}
            Err(errno) => failed = errno,
        }
    }
    Err(MemoryError::Map { len: len as u64, source: failed })
}

#[cfg(test)]
mod tests;
