//! `record-v1`: a small blob of bytes of the service's own, by keeping its bytes.
//!
//! A record is a memfd of at most [`BYTES_MAX`] bytes that is sealed against every change
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

use luo_abi::record::{BYTES_COMPATIBLE, BYTES_MAX, BYTES_NAME};
use luo_carriers::{HostFile, MemoryKind};
use luo_core::{Caps, Errno, Failure, Handle, Handler, Keep, Recall};
use luo_sys::{read_sealed, seal, sealed_size};
use rustix::fs::fstat;

/// Takes records, where the carrier can keep bytes.
#[derive(Debug, Clone, Copy, Default)]
pub struct RecordHandler;

impl Handler<HostFile> for RecordHandler {
    fn compatible(&self) -> &str {
        BYTES_COMPATIBLE
    }

    fn requires(&self) -> Caps {
        Caps::BYTES
    }

    fn can_preserve(&self, file: &HostFile) -> bool {
        matches!(file.memory(), Ok(Some(MemoryKind::Shmem)))
            && sealed_size(file).is_some_and(|size| size <= BYTES_MAX as u64)
            && fstat(file).is_ok_and(|stat| stat.st_nlink == 0)
    }

    fn prepare(&self, file: &HostFile, keep: &dyn Keep<HostFile>) -> Result<u64, Failure> {
        // Sealed: it is now what it will be in freeze.
        keep.keep_bytes(&read_sealed(file).map_err(failed)?).map(|handle| handle.0)
    }

    fn retrieve(&self, data: u64, recall: &dyn Recall<HostFile>) -> Result<HostFile, Failure> {
        let bytes = recall.bytes(Handle(data))?;
        if bytes.len() > BYTES_MAX {
            let reason =
                format!("{} bytes came back, and a record has at most {BYTES_MAX}", bytes.len());
            return Err(Failure::new(Errno::Inval, reason));
        }
        seal(BYTES_NAME, &bytes).map(HostFile::from).map_err(failed)
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
