//! A medium as luod has it, with free space that costs nothing: so what is measured is the copying
//! alone.

use std::io;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::sync::Mutex;

use luo_carriers::arena::FileMedium;
use luo_carriers::arena::copy::{PAGE, Space};
use luo_carriers::arena::medium::{Extent, Medium};
use luo_core::{Errno, Failure};

use crate::failure::{Context as _, Failed, Result};

/// A file, written once so that it is all there, and its free space.
#[derive(Debug)]
pub(super) struct Store {
    medium: FileMedium,
    size: u64,
    free: Mutex<Vec<Extent>>,
}

impl Store {
    /// A new file in that directory, which goes when it is closed.
    pub(super) fn new(directory: &Path, size: u64) -> Result<Self> {
        let failed = || format!("write {size} bytes in {}", directory.display());
        // Created by `FileMedium`, and gone with the name's owner.
        let file = tempfile::NamedTempFile::new_in(directory).context(failed)?;
        let medium = FileMedium::create(file.path(), size).context(failed)?;
        let block = vec![1; 1 << 20];
        for offset in (0..size).step_by(block.len()) {
            let end = block.len().min((size - offset) as usize);
            medium.write_at(offset, &block[..end]).context(failed)?;
        }
        let free = Mutex::new(vec![Extent { offset: 0, len: size }]);
        Ok(Self { medium, size, free })
    }

    /// The file, for plain reads and writes.
    pub(super) fn fd(&self) -> Result<BorrowedFd<'_>> {
        self.medium.file().ok_or_else(|| Failed::new("the medium is no file"))
    }

    /// Takes everything back, in one piece.
    pub(super) fn clear(&self) {
        if let Ok(mut free) = self.free.lock() {
            *free = vec![Extent { offset: 0, len: self.size }];
        }
    }
}

impl Space for Store {
    fn allocate(&self, mut len: u64) -> std::result::Result<Vec<Extent>, Failure> {
        let full = || Failure::new(Errno::NoSpc, "the benchmark's file is full");
        let mut free = self.free.lock().map_err(|_| full())?;
        let mut given = Vec::new();
        while len > 0 {
            let last = free.last_mut().ok_or_else(full)?;
            let taken = len.min(last.len);
            given.push(Extent { offset: last.offset, len: taken });
            *last = Extent { offset: last.offset + taken, len: last.len - taken };
            len -= taken;
            if last.len < PAGE {
                free.pop();
            }
        }
        Ok(given)
    }

    fn release(&self, extent: Extent) {
        if let Ok(mut free) = self.free.lock() {
            free.push(extent);
        }
    }
}

impl Medium for Store {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.medium.read_at(offset, buffer)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.medium.write_at(offset, bytes)
    }

    fn flush(&self) -> io::Result<()> {
        self.medium.flush()
    }

    fn discard(&self, extent: Extent) -> io::Result<()> {
        self.medium.discard(extent)
    }

    fn file(&self) -> Option<BorrowedFd<'_>> {
        self.medium.file()
    }
}
