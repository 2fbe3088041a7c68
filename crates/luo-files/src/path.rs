//! `path-v1`: regular files and directories that have a path, by opening them again.
//!
//! Kept: which file, position, access mode, O_APPEND, O_NONBLOCK, O_NOATIME, O_DIRECT, O_SYNC,
//! O_DSYNC, O_PATH, locks of `flock` and of the open file description (`F_OFD_SETLK`). The content is
//! where it is: in the file system.
//!
//! What is found under the path must be the same file: the same inode, made at the same time, on
//! the same file system (by its id, or by its device), and not shorter than it was. That others
//! have written to it, or that it has grown, is no error.
//!
//! Reset: FD_CLOEXEC (it is set), locks of the process (`F_SETLK`), what `F_SETOWN` and its like
//! have set, mappings.
//!
//! Refused, with a reason: files without a path (replaced, or in another mount namespace than
//! luod's; those without any name are `deleted-v1`'s), leases, flags that this version does not know.
//!
//! Invariants: nothing is opened, but as a path, before it is known to be the same file: no
//! device, no FIFO and no other user's file that somebody has put in its place.

use std::os::fd::OwnedFd;

use luo_abi::record::{LockRecord, OpenFlags, PATH_COMPATIBLE, PathRecord};
use luo_carriers::{FileKind, HostFile};
use luo_core::Failure;
use rustix::fs::{FlockOperation, SeekFrom, flock, seek, tell};

use crate::anew::{Described, damaged, indescribable};
use crate::fail::{system, unsupported};
use crate::fdinfo::{FdInfo, untold};
use crate::open;
use crate::place::{Place, nanoseconds};

/// Files and directories that have a path.
#[derive(Debug)]
pub struct Path;

impl Described for Path {
    const COMPATIBLE: &'static str = PATH_COMPATIBLE;

    fn takes(file: &HostFile) -> bool {
        matches!(file.kind(), FileKind::Regular | FileKind::Directory)
    }

    fn describe(file: &HostFile) -> Result<Vec<u8>, Failure> {
        let open = open::flags(file)?;
        let (place, stat) = Place::of(file, "keep its content in a memfd")?;
        let directory = FileKind::Directory == file.kind();
        let position = match open.has(OpenFlags::PATH) {
            true => 0,
            false => tell(file).map_err(system("the file cannot be looked at"))?,
        };
        let record = PathRecord {
            device: place.device,
            inode: place.inode,
            filesystem: place.filesystem,
            born: place.born,
            size: if directory { 0 } else { stat.stx_size },
            position,
            modified: nanoseconds(stat.stx_mtime.tv_sec, stat.stx_mtime.tv_nsec),
            open,
            directory,
            locks: locks(&FdInfo::read(file)?)?,
            path: place.path,
        };
        record.encode().map_err(indescribable("the file"))
    }

    fn make(record: &[u8]) -> Result<HostFile, Failure> {
        let record = PathRecord::decode(record).map_err(damaged("the file"))?;
        let place = Place {
            device: record.device,
            inode: record.inode,
            filesystem: record.filesystem,
            born: record.born,
            path: record.path,
        };
        let kind = if record.directory { FileKind::Directory } else { FileKind::Regular };
        let (anchor, stat) = place.find(kind)?;
        if !record.directory && stat.stx_size < record.size {
            let (now, then) = (stat.stx_size, record.size);
            return Err(place.another(&format!("it has {now} bytes, and had {then}")));
        }
        if record.open.has(OpenFlags::PATH) {
            return Ok(anchor);
        }
        let file = open::again(&anchor, record.open)?;
        seek(&file, SeekFrom::Start(record.position))
            .map_err(system("the file's position cannot be set"))?;
        lock(&file, &record.locks)?;
        Ok(HostFile::from(file))
    }
}

/// Has the locks again that were recorded.
pub(crate) fn lock(file: &OwnedFd, locks: &[LockRecord]) -> Result<(), Failure> {
    for lock in locks {
        let failed = "a lock of the file cannot be had again";
        if lock.whole {
            let how = match lock.exclusive {
                true => FlockOperation::NonBlockingLockExclusive,
                false => FlockOperation::NonBlockingLockShared,
            };
            flock(file, how).map_err(system(failed))?;
        } else {
            luo_sys::lock_range(file, lock.start, lock.end, lock.exclusive)
                .map_err(system(failed))?;
        }
    }
    Ok(())
}

/// The locks of the description that `fdinfo` tells of.
pub(crate) fn locks(info: &FdInfo) -> Result<Vec<LockRecord>, Failure> {
    let mut locks = Vec::new();
    for line in info.lines("lock") {
        // 1: OFDLCK  ADVISORY  WRITE -1 fe:00:42 10 19
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let &[_, kind, _, how, _, _, start, end] = words.as_slice() else {
            return Err(untold("lock"));
        };
        let whole = match kind {
            "FLOCK" => true,
            "OFDLCK" => false,
            // Of the process, and of this one there are none.
            "POSIX" => continue,
            other => {
                return Err(unsupported(format!(
                    "the file has a lock of the kind {other}, which is not kept: give \
                     it up before the update"
                )));
            }
        };
        let number = |text: &str| match text {
            "EOF" => Ok(u64::MAX),
            text => text.parse().map_err(|_| untold("lock")),
        };
        let (start, end) = (number(start)?, number(end)?);
        locks.push(LockRecord { start, end, whole, exclusive: how == "WRITE" });
    }
    Ok(locks)
}
