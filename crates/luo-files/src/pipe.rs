//! `pipe-v1`: pipes.
//!
//! Kept: the bytes that were not read, packets as packets (O_DIRECT), the capacity, each end's
//! access mode and status flags. Of a pipe whose ends are in one session, all of them, as ends of
//! one pipe; of one whose other end is closed everywhere, the one that there is: the end of the
//! data, or EPIPE, comes after the update as it did before.
//!
//! Reset: FD_CLOEXEC (it is set), what `F_SETOWN` and its like have set, how the bytes lie in the
//! pages of the pipe.
//!
//! Refused, with a reason: an end whose other one is open and not in the session, FIFOs (which
//! have a path), a pipe with bytes and packets in a row.
//!
//! Invariants:
//! - Of the open file descriptions of one pipe in one session, the one with the smallest token is
//!   the maker: it makes all of them, and the others need it.
//! - Looking at what is in a pipe changes nothing in it: it is copied by `tee`.

use std::os::fd::OwnedFd;

use luo_abi::record::{OpenFlags, PIPE_COMPATIBLE, PipeEnd, PipeMaker, PipeRecord};
use luo_carriers::{FileKind, HostFile};
use luo_core::{Caps, Errno, Failure, Handle, Handler, Keep, Recall, Token};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::fstatfs;
use rustix::io::ioctl_fionread;
use rustix::pipe::{
    PipeFlags, SpliceFlags, fcntl_getpipe_size, fcntl_setpipe_size, pipe_with, tee,
};
use rustix::time::Timespec;

use crate::anew::{damaged, indescribable};
use crate::fail::{system, unsupported};
use crate::{open, siblings};

/// `PIPEFS_MAGIC` of `linux/magic.h`: what has no path.
const PIPEFS_MAGIC: u64 = 0x5049_5045;

/// Takes pipes.
#[derive(Debug, Clone, Copy, Default)]
pub struct PipeHandler;

impl Handler<HostFile> for PipeHandler {
    fn compatible(&self) -> &str {
        PIPE_COMPATIBLE
    }

    fn requires(&self) -> Caps {
        Caps::BYTES
    }

    fn can_preserve(&self, file: &HostFile) -> bool {
        file.kind() == FileKind::Pipe
    }

    fn refers(&self) -> bool {
        true
    }

    fn prepare(&self, file: &HostFile, keep: &dyn Keep<HostFile>) -> Result<u64, Failure> {
        let pipe = Pipe::new(file, keep)?;
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
            Some(maker) => PipeRecord::Along { maker: maker.0 },
            None => PipeRecord::Maker(pipe.describe()?),
        };
        let bytes = record.encode().map_err(indescribable("the pipe"))?;
        keep.keep_bytes(&bytes).map(|handle| handle.0)
    }

    fn retrieve(&self, data: u64, recall: &dyn Recall<HostFile>) -> Result<HostFile, Failure> {
        let bytes = recall.bytes(Handle(data))?;
        match PipeRecord::decode(&bytes).map_err(damaged("the pipe"))? {
            PipeRecord::Maker(maker) => make(&maker, recall),
            PipeRecord::Along { maker } => Err(Failure::new(
                Errno::Inval,
                format!("token {maker}, which makes the pipe, did not make this end of it"),
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

/// A pipe, as one of its open file descriptions sees it.
struct Pipe<'a> {
    own: &'a HostFile,
    open: OpenFlags,
    others: Vec<(Token, HostFile)>,
}

impl<'a> Pipe<'a> {
    /// Finds the others, and sees that no end is anywhere else.
    fn new(own: &'a HostFile, keep: &dyn Keep<HostFile>) -> Result<Self, Failure> {
        let failed = system("the pipe cannot be looked at");
        if fstatfs(own).map_err(&failed)?.f_type as u64 != PIPEFS_MAGIC {
            return Err(unsupported(
                "a FIFO, which has a path: open it again after the update (pipe-v1 keeps pipes \
                 without a path)",
            ));
        }
        let others = siblings::others(own, keep, PipeRecord::ENDS_MAX)?;
        let pipe = Self { own, open: open::flags(own)?, others };
        let has = |access| -> Result<bool, Failure> {
            let mut has = pipe.open.has(access);
            for (_, other) in &pipe.others {
                has |= open::flags(other)?.has(access);
            }
            Ok(has)
        };
        let other_end = match (has(OpenFlags::READ)?, has(OpenFlags::WRITE)?) {
            (true, true) => return Ok(pipe),
            (true, false) => (PollFlags::HUP, "writing"),
            (false, _) => (PollFlags::ERR, "reading"),
        };
        let mut polled = [PollFd::new(own, PollFlags::empty())];
        poll(&mut polled, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).map_err(&failed)?;
        match polled {
            [polled] if polled.revents().contains(other_end.0) => Ok(pipe),
            _ => Err(unsupported(format!(
                "the pipe's end for {} is open, and is not in the session: preserve both ends, \
                 or close that one",
                other_end.1
            ))),
        }
    }

    /// The pipe, with everything that is in it.
    fn describe(&self) -> Result<PipeMaker, Failure> {
        let failed = system("the pipe cannot be looked at");
        let capacity = fcntl_getpipe_size(self.own).map_err(&failed)?;
        let mut ends = Vec::with_capacity(self.others.len());
        let mut reader = self.open.has(OpenFlags::READ).then_some(self.own);
        for (token, other) in &self.others {
            let open = open::flags(other)?;
            if open.has(OpenFlags::READ) {
                reader = reader.or(Some(other));
            }
            ends.push(PipeEnd { token: token.0, open });
        }
        // What nobody can read any more is not there.
        let (chunks, packets) = match reader {
            Some(reader) => unread(reader, capacity)?,
            None => (Vec::new(), false),
        };
        let capacity = u32::try_from(capacity)
            .map_err(|_| unsupported(format!("the pipe has {capacity} bytes of room")))?;
        Ok(PipeMaker { capacity, open: self.open, ends, packets, chunks })
    }
}

/// What was not read, and whether it is packets.
fn unread(reader: &HostFile, capacity: usize) -> Result<(Vec<Vec<u8>>, bool), Failure> {
    let failed = system("the pipe's content cannot be looked at");
    let copy = Copied::new(reader, capacity)?;
    let total = copy.left()?;
    let mut chunks = Vec::new();
    let mut sum = 0;
    while sum < total {
        let mut chunk = vec![0; total - sum];
        let read = rustix::io::read(&copy.0, &mut chunk).map_err(&failed)?;
        if read == 0 {
            return Err(Failure::new(Errno::Io, "the pipe's content ended before its end"));
        }
        chunk.truncate(read);
        sum += read;
        chunks.push(chunk);
    }
    // A byte of a packet takes the rest of it along.
    let packets = match chunks.first() {
        Some(first) if first.len() > 1 => {
            let copy = Copied::new(reader, capacity)?;
            rustix::io::read(&copy.0, &mut [0; 1]).map_err(&failed)?;
            copy.left()? == total - first.len()
        }
        _ => chunks.len() > 1,
    };
    if chunks.len() > 1 && !packets {
        return Err(unsupported(
            "the pipe has packets (O_DIRECT) behind bytes that are none: read it, or write to it \
             in one of the two ways",
        ));
    }
    Ok((chunks, packets))
}

/// A pipe with the same content, to be read.
struct Copied(OwnedFd);

impl Copied {
    fn new(reader: &HostFile, capacity: usize) -> Result<Self, Failure> {
        let failed = system("the pipe's content cannot be copied");
        let there = ioctl_fionread(reader).map_err(&failed)?;
        let (own, writer) = new_pipe(capacity)?;
        let copy = Self(own);
        if there > 0 {
            let flags = SpliceFlags::NONBLOCK;
            tee(reader, &writer, usize::MAX >> 1, flags).map_err(&failed)?;
        }
        if copy.left()? as u64 != there {
            let reason = "the pipe's content changed while it was looked at";
            return Err(Failure::new(Errno::Busy, reason));
        }
        Ok(copy)
    }

    fn left(&self) -> Result<usize, Failure> {
        let left = ioctl_fionread(&self.0).map_err(system("a pipe cannot be looked at"))?;
        usize::try_from(left).map_err(|_| Failure::new(Errno::TooBig, "too much in a pipe"))
    }
}

/// A pipe of that capacity, both ends of which do not block.
fn new_pipe(capacity: usize) -> Result<(OwnedFd, OwnedFd), Failure> {
    let failed = system("no new pipe");
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).map_err(&failed)?;
    if fcntl_getpipe_size(&reader).map_err(&failed)? != capacity {
        fcntl_setpipe_size(&reader, capacity)
            .map_err(system("no new pipe of the same capacity (see /proc/sys/fs/pipe-max-size)"))?;
    }
    Ok((reader, writer))
}

/// Makes the pipe and all its ends; gives the maker's.
fn make(maker: &PipeMaker, recall: &dyn Recall<HostFile>) -> Result<HostFile, Failure> {
    let failed = system("the pipe's content cannot be written");
    let capacity = usize::try_from(maker.capacity)
        .map_err(|_| Failure::new(Errno::TooBig, "the pipe is too large for this machine"))?;
    let (reader, writer) = new_pipe(capacity)?;
    if maker.packets {
        let flags = OpenFlags(OpenFlags::WRITE | OpenFlags::DIRECT | OpenFlags::NONBLOCK);
        open::set_status(&writer, flags)?;
    }
    for chunk in &maker.chunks {
        if rustix::io::write(&writer, chunk).map_err(&failed)? != chunk.len() {
            return Err(Failure::new(Errno::Inval, "the pipe has no room for what was in it"));
        }
    }
    // Of each end one is there already; further ones, and those for both, are opened beside.
    let (mut reader, mut writer) = (Some(reader), Some(writer));
    let anchor = reader
        .as_ref()
        .map(OwnedFd::try_clone)
        .transpose()
        .map_err(system("no more descriptors"))?
        .ok_or_else(|| Failure::new(Errno::Inval, "a pipe without an end"))?;
    // While both ends are open here, opening another one does not wait.
    let _both = writer.as_ref().map(OwnedFd::try_clone);
    let mut end = |open: OpenFlags| -> Result<HostFile, Failure> {
        let ready = match (open.has(OpenFlags::READ), open.has(OpenFlags::WRITE)) {
            (true, false) => reader.take(),
            (false, true) => writer.take(),
            _ => None,
        };
        let file = match ready {
            Some(file) => file,
            None => open::again(&anchor, open)?,
        };
        open::set_status(&file, open)?;
        Ok(HostFile::from(file))
    };
    let own = end(maker.open)?;
    let mut others = Vec::with_capacity(maker.ends.len());
    for other in &maker.ends {
        others.push((Token(other.token), end(other.open)?));
    }
    for (token, file) in others {
        recall.give(token, file)?;
    }
    Ok(own)
}
