//! `record-v1`: a small blob of bytes of the service's own, by keeping its bytes.
//!
//! A record is a memfd of at most [`RECORD_MAX`] bytes that is sealed against every change
//! (F_SEAL_SEAL, F_SEAL_SHRINK, F_SEAL_GROW, F_SEAL_WRITE). It costs a carrier no copy of memory, no
//! page and no extent of its own, so it is the cheapest thing to take far.
//!
//! Kept: the bytes.
//!
//! Reset: what a record has beside them: the name is `luo-record`, the position is zero, the access
//! mode is read-write (which the seals make read-only), FD_CLOEXEC and F_SEAL_EXEC are set.
//!
//! Invariants: the file's data is the handle of the kept bytes, which are the content itself; what
//! is retrieved is sealed like what was given.

use luo_carriers::{HostFile, MemoryKind};
use luo_core::{Caps, Errno, Failure, Handle, Handler, Keep, Recall};
use luo_sys::{read_sealed, seal, sealed_size};
use rustix::fs::fstat;

/// The `compatible` string of [`RecordHandler`].
pub const RECORD_COMPATIBLE: &str = "record-v1";

/// The size of the largest record, in bytes: 64 KiB.
pub const RECORD_MAX: u64 = 64 << 10;

/// Takes records, where the carrier can keep bytes.
#[derive(Debug, Clone, Copy, Default)]
pub struct RecordHandler;

impl Handler<HostFile> for RecordHandler {
    fn compatible(&self) -> &str {
        RECORD_COMPATIBLE
    }

    fn requires(&self) -> Caps {
        Caps::BYTES
    }

    fn can_preserve(&self, file: &HostFile) -> bool {
        matches!(file.memory(), Ok(Some(MemoryKind::Shmem)))
            && sealed_size(file).is_some_and(|size| size <= RECORD_MAX)
            && fstat(file).is_ok_and(|stat| stat.st_nlink == 0)
    }

    fn prepare(&self, file: &HostFile, keep: &dyn Keep<HostFile>) -> Result<u64, Failure> {
        // Sealed: it is now what it will be in freeze.
        keep.keep_bytes(&read_sealed(file).map_err(failed)?).map(|handle| handle.0)
    }

    fn retrieve(&self, data: u64, recall: &dyn Recall<HostFile>) -> Result<HostFile, Failure> {
        let bytes = recall.bytes(Handle(data))?;
        if bytes.len() as u64 > RECORD_MAX {
            let reason =
                format!("{} bytes came back, and a record has at most {RECORD_MAX}", bytes.len());
            return Err(Failure::new(Errno::Inval, reason));
        }
        seal("luo-record", &bytes).map(HostFile::from).map_err(failed)
    }

    fn finish(
        &self,
        _file: Option<&HostFile>,
        data: u64,
        _reclaimed: bool,
        recall: &dyn Recall<HostFile>,
    ) {
        recall.release(Handle(data));
    }

    fn is_quick(&self) -> bool {
        true
    }
}

fn failed(error: std::io::Error) -> Failure {
    let errno = error.raw_os_error().map_or(Errno::Io, Errno::from_raw);
    Failure::new(errno, format!("a record: {error}")).because(error)
}
