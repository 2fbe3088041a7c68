//! `arena-memory-v1`: memory that a service has in the arena, by leaving it there.
//!
//! Kept: content, place and length. The content is what is there when the workload stands still:
//! it has no checksum, and after the update what its owner writes from then on.
//!
//! Reset: FD_CLOEXEC (it is set), the position of the descriptor, which means nothing.
//!
//! Refused, with a reason: memory of another arena than the one the update goes through.
//!
//! Invariants: the file's data is the handle of the resident memory; there is no record; no byte
//! of the memory is read or written.

use luo_carriers::HostFile;
use luo_core::{Caps, Failure, Handle, Handler, Keep, Recall};

/// The `compatible` string of [`ArenaMemoryHandler`].
pub const ARENA_MEMORY_COMPATIBLE: &str = "arena-memory-v1";

/// Takes memory that an arena has lent, where the carrier lends such.
#[derive(Debug, Clone, Copy, Default)]
pub struct ArenaMemoryHandler;

impl Handler<HostFile> for ArenaMemoryHandler {
    fn compatible(&self) -> &str {
        ARENA_MEMORY_COMPATIBLE
    }

    fn requires(&self) -> Caps {
        Caps::RESIDENT
    }

    fn can_preserve(&self, file: &HostFile) -> bool {
        file.lent().is_some()
    }

    fn prepare(&self, file: &HostFile, keep: &dyn Keep<HostFile>) -> Result<u64, Failure> {
        keep.keep_resident(file).map(|handle| handle.0)
    }

    fn retrieve(&self, data: u64, recall: &dyn Recall<HostFile>) -> Result<HostFile, Failure> {
        recall.resident(Handle(data))
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
}
