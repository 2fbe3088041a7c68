//! Reads a memory file that its owner may write, truncate or punch holes into at any moment.
//!
//! Invariants: see the parent module; nothing here touches the position of the owner's descriptor.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use luo_core::{Errno, Failure};
use rustix::fs::{Mode, OFlags, SeekFrom, fstat, open, seek};
use rustix::io::pread;

use super::failed;

/// A memory file to be read.
#[derive(Debug)]
pub(super) struct Source<'a> {
    file: BorrowedFd<'a>,
    /// The same file, with a position of its own: looking for data moves it. `None` where it
    /// cannot be opened again (another user's file, no /proc); then holes are read, as zeros.
    scan: Option<OwnedFd>,
    /// How much memory the file took up when it was opened, in bytes.
    pub(super) used: u64,
}

impl<'a> Source<'a> {
    /// # Errors
    /// What the system says of a look at the descriptor.
    pub(super) fn new(file: BorrowedFd<'a>) -> Result<Self, Failure> {
        let stat = fstat(file)
            .map_err(io::Error::from)
            .map_err(failed("the memory file cannot be looked at"))?;
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        let scan = open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok();
        let used = u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(512);
        Ok(Self { file, scan, used })
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
