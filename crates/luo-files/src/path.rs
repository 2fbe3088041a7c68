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
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use luo_abi::record::{LockRecord, OpenFlags, PATH_COMPATIBLE, PathRecord};
use luo_carriers::{FileKind, HostFile};
use luo_core::{Errno, Failure};
use rustix::fs::{
    AtFlags, CWD, FlockOperation, Mode, OFlags, SeekFrom, Statx, StatxFlags, flock, fstatvfs, seek,
    statx, tell,
};

use crate::anew::{Described, damaged, indescribable};
use crate::fail::{system, unsupported};
use crate::fdinfo::{FdInfo, untold};
use crate::open;

const WANTED: StatxFlags = StatxFlags::BASIC_STATS.union(StatxFlags::BTIME);

/// Files and directories that have a path.
#[derive(Debug)]
pub struct Path;

impl Described for Path {
    const COMPATIBLE: &'static str = PATH_COMPATIBLE;

    fn takes(file: &HostFile) -> bool {
        matches!(file.kind(), FileKind::Regular | FileKind::Directory)
    }

    fn describe(file: &HostFile) -> Result<Vec<u8>, Failure> {
        let failed = system("the file cannot be looked at");
        let open = open::flags(file)?;
        let stat = statx(file, "", AtFlags::EMPTY_PATH, WANTED).map_err(&failed)?;
        let path = std::fs::read_link(open::link(file))
            .map_err(system("the file's path cannot be read"))?;
        let there = statx(CWD, &path, AtFlags::SYMLINK_NOFOLLOW, WANTED);
        if !there.is_ok_and(|there| path.is_absolute() && is_same(&there, &stat)) {
            return Err(unsupported(format!(
                "the file has no path under which it could be found again ({}): it was \
                 replaced or is on a mount that luod does not see; keep its content in a memfd",
                path.display()
            )));
        }
        let directory = FileKind::Directory == file.kind();
        let record = PathRecord {
            device: device(&stat),
            inode: stat.stx_ino,
            filesystem: fstatvfs(file).map_err(&failed)?.f_fsid,
            born: born(&stat),
            size: if directory { 0 } else { stat.stx_size },
            position: if open.has(OpenFlags::PATH) { 0 } else { tell(file).map_err(&failed)? },
            modified: nanoseconds(stat.stx_mtime.tv_sec, stat.stx_mtime.tv_nsec),
            open,
            directory,
            locks: locks(&FdInfo::read(file)?)?,
            path: path.into_os_string().into_vec(),
        };
        record.encode().map_err(indescribable("the file"))
    }

    fn make(record: &[u8]) -> Result<HostFile, Failure> {
        let record = PathRecord::decode(record).map_err(damaged("the file"))?;
        let path = std::path::Path::new(std::ffi::OsStr::from_bytes(&record.path));
        let failed = system(format!("{} cannot be opened", path.display()));
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let anchor = rustix::fs::open(path, flags, Mode::empty()).map_err(&failed)?;
        let stat = statx(&anchor, "", AtFlags::EMPTY_PATH, WANTED).map_err(&failed)?;
        let filesystem = fstatvfs(&anchor).map_err(&failed)?.f_fsid;
        let another = |how: &str| {
            let reason = format!("{} is not the file that was kept: {how}", path.display());
            Err(Failure::new(Errno::NoEnt, reason))
        };
        let same_place = filesystem == record.filesystem && filesystem != 0;
        if !same_place && device(&stat) != record.device {
            return another("it is on another file system");
        }
        if stat.stx_ino != record.inode {
            return another("it has another inode");
        }
        if born(&stat) != 0 && record.born != 0 && born(&stat) != record.born {
            return another("it was made at another time");
        }
        let anchor = HostFile::from(anchor);
        let kind = if record.directory { FileKind::Directory } else { FileKind::Regular };
        if anchor.kind() != kind {
            return another("it is of another type");
        }
        if !record.directory && stat.stx_size < record.size {
            let (now, then) = (stat.stx_size, record.size);
            return another(&format!("it has {now} bytes, and had {then}"));
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

fn is_same(one: &Statx, other: &Statx) -> bool {
    one.stx_ino == other.stx_ino && device(one) == device(other) && born(one) == born(other)
}

pub(crate) fn device(stat: &Statx) -> u64 {
    u64::from(stat.stx_dev_major) << 32 | u64::from(stat.stx_dev_minor)
}

/// When it was made, zero where the file system does not say.
fn born(stat: &Statx) -> u64 {
    if stat.stx_mask & StatxFlags::BTIME.bits() == 0 {
        return 0;
    }
    nanoseconds(stat.stx_btime.tv_sec, stat.stx_btime.tv_nsec)
}

/// Since 1970; what was before is then.
pub(crate) fn nanoseconds(seconds: i64, nanoseconds: u32) -> u64 {
    u64::try_from(seconds)
        .unwrap_or(0)
        .saturating_mul(1_000_000_000)
        .saturating_add(nanoseconds.into())
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
