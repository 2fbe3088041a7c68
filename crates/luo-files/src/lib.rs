//! luo's file handlers.
use luo_carriers::HostFile;
use luo_core::*;
/// x
pub const LIVE_COMPATIBLE: &str = "live-v1";
/// x
#[derive(Debug)]
pub struct LiveHandler;
/// x
#[derive(Debug)]
pub struct MemfdHandler;
impl Handler<HostFile> for LiveHandler {
    fn compatible(&self) -> &str {
        LIVE_COMPATIBLE
    }
    fn requires(&self) -> Caps {
        Caps::LIVE
    }
    fn can_preserve(&self, _: &HostFile) -> bool {
        true
    }
    fn prepare(&self, file: &HostFile, keep: &dyn Keep<HostFile>) -> Result<u64, Failure> {
        keep.keep_live(file).map(|h| h.0)
    }
    fn retrieve(&self, data: u64, recall: &dyn Recall<HostFile>) -> Result<HostFile, Failure> {
        recall.live(Handle(data))
    }
    fn finish(&self, _: Option<&HostFile>, data: u64, _: bool, recall: &dyn Recall<HostFile>) {
        recall.release(Handle(data))
    }
}
impl Handler<HostFile> for MemfdHandler {
    fn compatible(&self) -> &str {
        "memfd-v1"
    }
    fn requires(&self) -> Caps {
        Caps::LIVE
    }
    fn can_preserve(&self, _: &HostFile) -> bool {
        true
    }
    fn prepare(&self, file: &HostFile, keep: &dyn Keep<HostFile>) -> Result<u64, Failure> {
        keep.keep_live(file).map(|h| h.0)
    }
    fn retrieve(&self, data: u64, recall: &dyn Recall<HostFile>) -> Result<HostFile, Failure> {
        recall.live(Handle(data))
    }
    fn finish(&self, _: Option<&HostFile>, data: u64, _: bool, recall: &dyn Recall<HostFile>) {
        recall.release(Handle(data))
    }
}
