//! `kernel-live-v1`: any open file that the running kernel itself takes to the next one.
//!
//! Which types it can, nobody knows but the kernel: it is asked by trying, in `prepare`. So file
//! types that later kernels learn need no handler of their own.
//!
//! Kept: what the kernel keeps of the type. Reset: the rest, see the kernel's documentation.
//!
//! Invariants: the file's data is the handle of the kept descriptor.

use luo_carriers::HostFile;
use luo_core::{Caps, Failure, Handle, Handler, Keep, Recall};

/// The `compatible` string.
pub const KERNEL_LIVE_COMPATIBLE: &str = "kernel-live-v1";

/// Takes what no other handler has taken, where the carrier can hold some live descriptors.
#[derive(Debug, Clone, Copy, Default)]
pub struct KernelHandler;

impl Handler<HostFile> for KernelHandler {
    fn compatible(&self) -> &str {
        KERNEL_LIVE_COMPATIBLE
    }

    fn requires(&self) -> Caps {
        Caps::SOME_LIVE
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
}
