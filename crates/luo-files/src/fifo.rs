//! `fifo-v1`: FIFOs, the pipes that have a path.
//!
//! Kept: which FIFO, and what `pipe-v1` keeps of a pipe: the bytes that were not read, the capacity,
//! each end's access mode and status flags, of all ends in the session as ends of one; whether its readers are told that its writers are gone (POLLHUP).
//!
//! What is found under the path must be the same FIFO: the same inode, made at the same time, on the
//! same file system. Where somebody else has it open all the time, what was in it is there still,
//! and is not put there a second time.
//!
//! Reset: FD_CLOEXEC (it is set), what `F_SETOWN` and its like have set, how the bytes lie in the
//! pages of the pipe. What somebody writes who was waiting for a reader, in the moment in which it is
//! opened again, may come before what was in it.
//!
//! Refused, with a reason: an end whose other one is open and not in the session, FIFOs that have no
//! path any more, O_PATH.
//!
//! Invariants: those of `pipe-v1`; nothing is opened, but as a path, before it is known to be the same
//! FIFO; opening it waits for nobody.

use luo_abi::record::{FIFO_COMPATIBLE, FifoMaker, FifoRecord, OpenFlags};
use luo_carriers::{FileKind, HostFile};
use luo_core::{Caps, Errno, Failure, Handle, Handler, Keep, Recall};

use crate::anew::{damaged, indescribable};
use crate::fail::unsupported;
use crate::pipe::{self, Pipe};
use crate::place::Place;
use crate::{open, siblings};

/// Takes FIFOs.
#[derive(Debug, Clone, Copy, Default)]
pub struct FifoHandler;

impl Handler<HostFile> for FifoHandler {
    fn compatible(&self) -> &str {
        FIFO_COMPATIBLE
    }

    fn requires(&self) -> Caps {
        Caps::BYTES
    }

    fn can_preserve(&self, file: &HostFile) -> bool {
        file.kind() == FileKind::Pipe && pipe::has_path(file)
    }

    fn refers(&self) -> bool {
        true
    }

    fn prepare(&self, file: &HostFile, keep: &dyn Keep<HostFile>) -> Result<u64, Failure> {
        if open::flags(file)?.has(OpenFlags::PATH) {
            return Err(unsupported("a FIFO that is open as a path (O_PATH): open it anew"));
        }
        let pipe = Pipe::new(file, keep)?;
        place(file)?;
        siblings::tie(&pipe.others, keep)?;
        Ok(0)
    }

    fn freeze(
        &self,
        file: &HostFile,
        _data: u64,
        keep: &dyn Keep<HostFile>,
    ) -> Result<u64, Failure> {
        let pipe = Pipe::new(file, keep)?;
        let record = match siblings::maker(&pipe.others, keep) {
            Some(maker) => FifoRecord::Along { maker: maker.0 },
            None => {
                let place = place(file)?;
                FifoRecord::Maker(FifoMaker {
                    device: place.device,
                    inode: place.inode,
                    filesystem: place.filesystem,
                    born: place.born,
                    hung_up: pipe.hung_up,
                    path: place.path,
                    pipe: pipe.describe()?,
                })
            }
        };
        let bytes = record.encode().map_err(indescribable("the FIFO"))?;
        keep.keep_bytes(&bytes).map(|handle| handle.0)
    }

    fn retrieve(&self, data: u64, recall: &dyn Recall<HostFile>) -> Result<HostFile, Failure> {
        let bytes = recall.bytes(Handle(data))?;
        match FifoRecord::decode(&bytes).map_err(damaged("the FIFO"))? {
            FifoRecord::Maker(maker) => make(maker, recall),
            FifoRecord::Along { maker } => Err(Failure::new(
                Errno::Inval,
                format!("token {maker}, which opens the FIFO, did not open this end of it"),
            )),
        }
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

fn place(file: &HostFile) -> Result<Place, Failure> {
    Place::of(file, "use a pipe").map(|(place, _)| place)
}

fn make(maker: FifoMaker, recall: &dyn Recall<HostFile>) -> Result<HostFile, Failure> {
    let FifoMaker { device, inode, filesystem, born, hung_up, path, mut pipe } = maker;
    let place = Place { device, inode, filesystem, born, path };
    let (anchor, _) = place.find(FileKind::Pipe)?;
    let reader = open::again(&anchor, OpenFlags(OpenFlags::READ | OpenFlags::NONBLOCK))?;
    if pipe::holds(&reader, &pipe)? {
        pipe.chunks.clear();
    }
    let writes = |open: OpenFlags| open.has(OpenFlags::WRITE);
    let has_writer = writes(pipe.open) || pipe.ends.iter().any(|end| writes(end.open));
    let writer = match hung_up || has_writer || !pipe.chunks.is_empty() {
        true => Some(open::again(&anchor, OpenFlags(OpenFlags::WRITE | OpenFlags::NONBLOCK))?),
        false => None,
    };
    pipe::fill(&pipe, reader, writer, recall)
}
