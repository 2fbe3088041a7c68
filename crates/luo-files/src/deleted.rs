//! `deleted-v1`: regular files that have no name any more, by their content.
//!
//! Kept: content, size, holes, owner, group, permissions, when it was last changed; of each open file
//! description position, access mode, O_APPEND, O_NONBLOCK, O_NOATIME, O_DIRECT, O_SYNC, O_DSYNC and
//! the locks that `path-v1` keeps. All of one file in one session come back as those of one file, which
//! is made without a name in the directory where it was deleted.
//!
//! Reset: FD_CLOEXEC (it is set), the inode number, other times and attributes, locks of the process
//! (`F_SETLK`), what `F_SETOWN` and its like have set, mappings. Whoever has it open and is not in the
//! session has the old one.
//!
//! Refused, with a reason: files whose directory is gone or cannot make a file without a name
//! (O_TMPFILE), or is on another file system now; O_PATH; leases; more than 65536 holes.
//!
//! Not taken: files of tmpfs and memfds, which are memory: `memfd-v1` keeps them.
//!
//! Invariants:
//! - Of the open file descriptions of one file in one session the one with the smallest token is the
//!   maker: it makes all of them, and the others need it.
//! - The content is copied in `freeze`, when nobody writes any more: the carrier is given a memory
//!   file with the pieces between the holes, one behind the other.

use std::fs::File as StdFile;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use luo_abi::record::{DELETED_COMPATIBLE, DeletedEnd, DeletedMaker, DeletedRecord, OpenFlags};
use luo_carriers::{FileKind, HostFile};
use luo_core::{Caps, Errno, Failure, Handle, Handler, Keep, Recall, Token};
use rustix::fs::{
    AtFlags, Gid, MemfdFlags, Mode, OFlags, SeekFrom, StatxFlags, Timespec, Timestamps, Uid,
    fchmod, fchown, fstat, fstatvfs, ftruncate, futimens, memfd_create, seek, statx, tell,
};

use crate::anew::{damaged, indescribable};
use crate::fail::{system, unsupported};
use crate::fdinfo::FdInfo;
use crate::path::{lock, locks};
use crate::place::{device, nanoseconds};
use crate::{open, siblings};

/// What is copied at once.
const AT_ONCE: usize = 1 << 20;

/// Takes regular files without a name.
#[derive(Debug, Clone, Copy, Default)]
pub struct DeletedHandler;

impl Handler<HostFile> for DeletedHandler {
    fn compatible(&self) -> &str {
        DELETED_COMPATIBLE
    }

    fn requires(&self) -> Caps {
        Caps::MEMORY | Caps::BYTES
    }

    fn can_preserve(&self, file: &HostFile) -> bool {
        file.kind() == FileKind::Regular
            && fstat(file).is_ok_and(|stat| stat.st_nlink == 0)
            && matches!(file.memory(), Ok(None))
            && file.lent().is_none()
    }

    fn refers(&self) -> bool {
        true
    }

    fn prepare(&self, file: &HostFile, keep: &dyn Keep<HostFile>) -> Result<u64, Failure> {
        let others = siblings::others(file, keep, DeletedRecord::ENDS_MAX)?;
        end(file, 0)?;
        // What could not be made again there is refused while nothing has stopped yet.
        let directory = directory(file)?;
        if place(&directory)?.1 != place_of(file)? {
            return Err(unsupported(format!(
                "the deleted file's directory, {}, is on another file system now",
                directory.display()
            )));
        }
        nameless(&directory)?;
        siblings::tie(&others, keep)?;
        Ok(0)
    }

    fn freeze(
        &self,
        file: &HostFile,
        _data: u64,
        keep: &dyn Keep<HostFile>,
    ) -> Result<u64, Failure> {
        let others = siblings::others(file, keep, DeletedRecord::ENDS_MAX)?;
        let record = match siblings::maker(&others, keep) {
            Some(maker) => DeletedRecord::Along { maker: maker.0 },
            None => DeletedRecord::Maker(describe(file, &others, keep)?),
        };
        let bytes = record.encode().map_err(indescribable("the deleted file"))?;
        keep.keep_bytes(&bytes).map(|handle| handle.0)
    }

    fn retrieve(&self, data: u64, recall: &dyn Recall<HostFile>) -> Result<HostFile, Failure> {
        match read(data, recall)? {
            DeletedRecord::Maker(maker) => make(&maker, recall),
            DeletedRecord::Along { maker } => Err(Failure::new(
                Errno::Inval,
                format!("token {maker}, which makes the file, did not open it a second time"),
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
        // A record that cannot be read names no memory; the rest of the carrier is not harmed.
        if let Ok(DeletedRecord::Maker(maker)) = read(data, recall)
            && maker.memory != 0
        {
            recall.release(Handle(maker.memory));
        }
        recall.release(Handle(data));
    }
}

fn read(data: u64, recall: &dyn Recall<HostFile>) -> Result<DeletedRecord, Failure> {
    let bytes = recall.bytes(Handle(data))?;
    DeletedRecord::decode(&bytes).map_err(damaged("the deleted file"))
}

/// The directory that a file was in when it had a name, or was made without one.
fn directory(file: &HostFile) -> Result<PathBuf, Failure> {
    let path = std::fs::read_link(open::link(file))
        .map_err(system("the deleted file's path cannot be read"))?;
    path.parent().filter(|parent| parent.is_absolute()).map(Path::to_owned).ok_or_else(|| {
        unsupported(format!("the file was deleted, and nothing tells where ({})", path.display()))
    })
}

/// A directory, and which file system it is on.
fn place(directory: &Path) -> Result<(OwnedFd, (u64, u64)), Failure> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let anchor = rustix::fs::open(directory, flags, Mode::empty()).map_err(system(format!(
        "the deleted file's directory, {}, cannot be found: keep its content in a memfd",
        directory.display()
    )))?;
    let place = place_of(&anchor)?;
    Ok((anchor, place))
}

/// The id of its file system and the number of its device.
fn place_of(file: impl std::os::fd::AsFd) -> Result<(u64, u64), Failure> {
    let failed = system("the deleted file cannot be looked at");
    let stat = statx(&file, "", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS).map_err(&failed)?;
    Ok((fstatvfs(&file).map_err(&failed)?.f_fsid, device(&stat)))
}

/// A new file without a name in that directory.
fn nameless(directory: &Path) -> Result<OwnedFd, Failure> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    let mode = Mode::RUSR | Mode::WUSR;
    rustix::fs::open(directory, flags, mode).map_err(system(format!(
        "no file without a name can be made in {} (O_TMPFILE), where the deleted file was: keep \
         its content in a memfd",
        directory.display()
    )))
}

/// One open file description.
fn end(file: &HostFile, token: u64) -> Result<DeletedEnd, Failure> {
    let open = open::flags(file)?;
    if open.has(OpenFlags::PATH) {
        return Err(unsupported("a deleted file that is open as a path (O_PATH): open it anew"));
    }
    let position = tell(file).map_err(system("the deleted file cannot be looked at"))?;
    Ok(DeletedEnd { token, position, open, locks: locks(&FdInfo::read(file)?)? })
}

fn describe(
    file: &HostFile,
    others: &[(Token, HostFile)],
    keep: &dyn Keep<HostFile>,
) -> Result<DeletedMaker, Failure> {
    let failed = system("the deleted file cannot be looked at");
    let stat = statx(file, "", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS).map_err(&failed)?;
    let (filesystem, device) = place_of(file)?;
    let mut ends = vec![end(file, 0)?];
    for (token, other) in others {
        ends.push(end(other, token.0)?);
    }
    let mut maker = DeletedMaker {
        size: stat.stx_size,
        memory: 0,
        filesystem,
        device,
        modified: nanoseconds(stat.stx_mtime.tv_sec, stat.stx_mtime.tv_nsec),
        uid: stat.stx_uid,
        gid: stat.stx_gid,
        mode: u32::from(stat.stx_mode) & 0o7777,
        ends,
        extents: Vec::new(),
        directory: directory(file)?.into_os_string().into_vec(),
    };
    // With a position of its own, and readable.
    let readable = StdFile::from(open::again(file, OpenFlags(OpenFlags::READ))?);
    maker.extents = extents(&readable, maker.size)?;
    let total = maker.content();
    if total > 0 {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let memory = StdFile::from(memfd_create("luo-deleted", flags).map_err(&failed)?);
        memory.set_len(total).map_err(system("no memory for the deleted file"))?;
        let mut behind = 0;
        for (start, len) in &maker.extents {
            copy(&readable, *start, &memory, behind, *len, &|done| {
                keep.progress(behind + done, total)
            })?;
            behind += len;
        }
        maker.memory = keep.keep_memory(&HostFile::from(OwnedFd::from(memory)), total)?.0;
    }
    Ok(maker)
}

/// Where a file has data: start and length.
fn extents(file: &StdFile, size: u64) -> Result<Vec<(u64, u64)>, Failure> {
    let failed = system("the deleted file's holes cannot be found");
    let mut extents = Vec::new();
    let mut at = 0;
    while at < size {
        let start = match seek(file, SeekFrom::Data(at)) {
            Ok(start) => start,
            // A hole up to the end.
            Err(rustix::io::Errno::NXIO) => break,
            Err(error) => return Err(failed(error)),
        };
        at = seek(file, SeekFrom::Hole(start)).map_err(&failed)?.min(size);
        if at > start {
            extents.push((start, at - start));
        }
        if extents.len() > DeletedRecord::EXTENTS_MAX {
            return Err(unsupported(format!(
                "the deleted file has more than {} holes: keep its content in a memfd",
                DeletedRecord::EXTENTS_MAX
            )));
        }
    }
    Ok(extents)
}

fn copy(
    from: &StdFile,
    from_at: u64,
    to: &StdFile,
    to_at: u64,
    len: u64,
    progress: &dyn Fn(u64) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let mut buffer = vec![0; AT_ONCE.min(usize::try_from(len).unwrap_or(AT_ONCE))];
    let mut done = 0;
    while done < len {
        progress(done)?;
        let left = usize::try_from(len - done).unwrap_or(AT_ONCE).min(buffer.len());
        let part = buffer.split_at_mut(left).0;
        from.read_exact_at(part, from_at + done)
            .map_err(system("the deleted file's content cannot be read"))?;
        to.write_all_at(part, to_at + done)
            .map_err(system("the deleted file's content cannot be written"))?;
        done += left as u64;
    }
    Ok(())
}

/// Makes the file and opens it as often as it was; gives the maker's.
fn make(maker: &DeletedMaker, recall: &dyn Recall<HostFile>) -> Result<HostFile, Failure> {
    let directory = Path::new(std::ffi::OsStr::from_bytes(&maker.directory));
    let (_, (filesystem, device)) = place(directory)?;
    let same = filesystem == maker.filesystem && filesystem != 0 || device == maker.device;
    if !same {
        let reason = format!("{} is on another file system now", directory.display());
        return Err(Failure::new(Errno::NoEnt, reason));
    }
    let failed = system("the deleted file cannot be made again");
    let file = StdFile::from(nameless(directory)?);
    ftruncate(&file, maker.size).map_err(&failed)?;
    if maker.memory != 0 {
        let memory = recall.memory(Handle(maker.memory))?;
        let memory = StdFile::from(memory.try_clone_fd().map_err(system("no more descriptors"))?);
        let (mut behind, total) = (0, maker.content());
        for (start, len) in &maker.extents {
            copy(&memory, behind, &file, *start, *len, &|done| {
                recall.progress(behind + done, total)
            })?;
            behind += len;
        }
    }
    let mut ends = Vec::with_capacity(maker.ends.len());
    for end in &maker.ends {
        let file = open::again(&file, end.open)?;
        seek(&file, SeekFrom::Start(end.position)).map_err(&failed)?;
        lock(&file, &end.locks)?;
        ends.push((Token(end.token), HostFile::from(file)));
    }
    let stat = fstat(&file).map_err(&failed)?;
    if (stat.st_uid, stat.st_gid) != (maker.uid, maker.gid) {
        let (uid, gid) = (Uid::from_raw(maker.uid), Gid::from_raw(maker.gid));
        fchown(&file, Some(uid), Some(gid)).map_err(system("the file's owner cannot be set"))?;
    }
    fchmod(&file, Mode::from_raw_mode(maker.mode)).map_err(&failed)?;
    let time = Timespec {
        tv_sec: (maker.modified / 1_000_000_000) as i64,
        tv_nsec: (maker.modified % 1_000_000_000) as _,
    };
    futimens(&file, &Timestamps { last_access: time, last_modification: time }).map_err(&failed)?;
    let mut ends = ends.into_iter();
    let own = ends.next().ok_or_else(|| Failure::new(Errno::Inval, "nobody has it open"))?.1;
    for (token, file) in ends {
        recall.give(token, file)?;
    }
    Ok(own)
}
