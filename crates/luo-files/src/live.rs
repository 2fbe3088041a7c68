//! `live-v1`: any open file, by keeping the open file description itself.
//!
//! Kept: everything that hangs on the open file description: what it refers to, position, status
//! flags, locks of `flock` and open-file-description locks, the state and queues of a socket or
//! pipe.
//!
//! Reset: what belongs to the process: the descriptor's number, FD_CLOEXEC (it is set), locks of
//! `fcntl(F_SETLK)`, the process that `F_SETOWN` names.
//!
//! Invariants: the file's data is the handle of the live descriptor; there is no record.

use luo_carriers::HostFile;
use luo_core::{Caps, Failure, Handle, Handler, Keep, Recall};

/// The `compatible` string of [`LiveHandler`].
pub const LIVE_COMPATIBLE: &str = "live-v1";

/// Takes every file, where the carrier can hold live descriptors.
#[derive(Debug, Clone, Copy, Default)]
pub struct LiveHandler;

impl Handler<HostFile> for LiveHandler {
    fn compatible(&self) -> &str {
        LIVE_COMPATIBLE
    }

    fn requires(&self) -> Caps {
        Caps::LIVE
    }

    fn can_preserve(&self, _file: &HostFile) -> bool {
        true
    }

    fn prepare(&self, file: &HostFile, keep: &dyn Keep<HostFile>) -> Result<u64, Failure> {
        keep.keep_live(file).map(|handle| handle.0)
    }

    fn retrieve(&self, data: u64, recall: &dyn Recall<HostFile>) -> Result<HostFile, Failure> {
        recall.live(Handle(data))
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
