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
//! Refused, with a reason: an end whose other one is open and not in the session, a pipe with bytes
//! and packets in a row.
//!
//! Not taken: FIFOs, which have a path: `fifo-v1` keeps them.
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
        file.kind() == FileKind::Pipe && !has_path(file)
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
            PipeRecord::Maker(maker) => {
                let (reader, writer) = new_pipe(room(&maker)?)?;
                fill(&maker, reader, Some(writer), recall)
            }
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

/// Whether it is a FIFO; no when that cannot be told.
pub(crate) fn has_path(file: &HostFile) -> bool {
    fstatfs(file).is_ok_and(|system| system.f_type as u64 != PIPEFS_MAGIC)
}

/// A pipe, as one of its open file descriptions sees it.
pub(crate) struct Pipe<'a> {
    own: &'a HostFile,
    open: OpenFlags,
    pub(crate) others: Vec<(Token, HostFile)>,
    /// Of one without an end for writing: there was one, and its readers are told that it went.
    pub(crate) hung_up: bool,
}

impl<'a> Pipe<'a> {
    /// Finds the others, and sees that no end is anywhere else.
    pub(crate) fn new(own: &'a HostFile, keep: &dyn Keep<HostFile>) -> Result<Self, Failure> {
        let others = siblings::others(own, keep, PipeRecord::ENDS_MAX)?;
        let mut pipe = Self { own, open: open::flags(own)?, others, hung_up: false };
        let has = |access| -> Result<bool, Failure> {
            let mut has = pipe.open.has(access);
            for (_, other) in &pipe.others {
                has |= open::flags(other)?.has(access);
            }
            Ok(has)
        };
        let gone = match (has(OpenFlags::READ)?, has(OpenFlags::WRITE)?) {
            (true, true) => return Ok(pipe),
            (true, false) => {
                pipe.hung_up = polls(own, PollFlags::HUP)?;
                pipe.hung_up || is_empty_without_writer(own)?
            }
            (false, _) => polls(own, PollFlags::ERR)?,
        };
        if gone {
            return Ok(pipe);
        }
        let other = if pipe.open.has(OpenFlags::READ) { "writing" } else { "reading" };
        Err(unsupported(format!(
            "the pipe's end for {other} is open, and is not in the session: preserve both ends, or \
             close that one"
        )))
    }

    /// The pipe, with everything that is in it.
    pub(crate) fn describe(&self) -> Result<PipeMaker, Failure> {
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

/// Whether the kernel says that of it.
fn polls(end: &HostFile, what: PollFlags) -> Result<bool, Failure> {
    let mut polled = [PollFd::new(end, PollFlags::empty())];
    poll(&mut polled, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))
        .map_err(system("the pipe cannot be looked at"))?;
    Ok(matches!(polled, [polled] if polled.revents().contains(what)))
}

/// Whether nothing is in it and nobody has it open for writing. A FIFO that nobody has opened for
/// writing since it was opened does not poll as hung up.
fn is_empty_without_writer(reader: &HostFile) -> Result<bool, Failure> {
    let (_copy, writer) =
        pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).map_err(system("no new pipe"))?;
    match tee(reader, &writer, 1, SpliceFlags::NONBLOCK) {
        Ok(copied) => Ok(copied == 0),
        // Empty, and somebody could write.
        Err(rustix::io::Errno::AGAIN) => Ok(false),
        Err(error) => Err(system("the pipe cannot be looked at")(error)),
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

/// Whether the FIFO still holds this: somebody else had it open all the time.
pub(crate) fn holds(reader: &OwnedFd, maker: &PipeMaker) -> Result<bool, Failure> {
    let there = ioctl_fionread(reader).map_err(system("the pipe cannot be looked at"))?;
    let wanted = maker.chunks.concat();
    if wanted.is_empty() || there < wanted.len() as u64 {
        return Ok(false);
    }
    let reader = HostFile::from(reader.try_clone().map_err(system("no more descriptors"))?);
    let capacity = fcntl_getpipe_size(&reader).map_err(system("the pipe cannot be looked at"))?;
    let (chunks, _) = unread(&reader, capacity)?;
    Ok(chunks.concat().starts_with(&wanted))
}

/// The capacity that is recorded.
fn room(maker: &PipeMaker) -> Result<usize, Failure> {
    usize::try_from(maker.capacity)
        .map_err(|_| Failure::new(Errno::TooBig, "the pipe is too large for this machine"))
}

/// A pipe of that capacity, both ends of which do not block.
fn new_pipe(capacity: usize) -> Result<(OwnedFd, OwnedFd), Failure> {
    let failed = system("no new pipe");
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).map_err(&failed)?;
    make_room(&reader, capacity)?;
    Ok((reader, writer))
}

fn make_room(pipe: &OwnedFd, capacity: usize) -> Result<(), Failure> {
    if fcntl_getpipe_size(pipe).map_err(system("no new pipe"))? != capacity {
        fcntl_setpipe_size(pipe, capacity)
            .map_err(system("no new pipe of the same capacity (see /proc/sys/fs/pipe-max-size)"))?;
    }
    Ok(())
}

/// Makes all ends of a pipe, of which there are these two, and puts into it what was in it; gives
/// the maker's. Neither blocks, and none is opened for writing where there is no writer.
pub(crate) fn fill(
    maker: &PipeMaker,
    reader: OwnedFd,
    writer: Option<OwnedFd>,
    recall: &dyn Recall<HostFile>,
) -> Result<HostFile, Failure> {
    let failed = system("the pipe's content cannot be written");
    make_room(&reader, room(maker)?)?;
    if let Some(writer) = &writer {
        let mut flags = OpenFlags(OpenFlags::WRITE | OpenFlags::NONBLOCK);
        if maker.packets {
            flags.0 |= OpenFlags::DIRECT;
        }
        open::set_status(writer, flags)?;
        for chunk in &maker.chunks {
            if rustix::io::write(writer, chunk).map_err(&failed)? != chunk.len() {
                return Err(Failure::new(Errno::Inval, "the pipe has no room for what was in it"));
            }
        }
    }
    // Of each end one is there already; further ones, and those for both, are opened beside. While
    // both are held here, opening another one does not wait; that of a FIFO without a writer does
    // not either, since it is told not to.
    let anchor = reader.try_clone().map_err(system("no more descriptors"))?;
    let _both = writer.as_ref().map(OwnedFd::try_clone);
    let (mut reader, mut writer) = (Some(reader), writer);
    let mut end = |open: OpenFlags| -> Result<HostFile, Failure> {
        let ready = match (open.has(OpenFlags::READ), open.has(OpenFlags::WRITE)) {
            (true, false) => reader.take(),
            (false, true) => writer.take(),
            _ => None,
        };
        let file = match ready {
            Some(file) => file,
            None => open::again(&anchor, OpenFlags(open.0 | OpenFlags::NONBLOCK))?,
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
