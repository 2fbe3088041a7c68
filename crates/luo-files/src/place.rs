//! Where a file is: its path, and what tells that it is still the same one that is found there.
//!
//! Invariants: nothing is opened, but as a path, before it is known to be the same file.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use luo_carriers::{FileKind, HostFile};
use luo_core::{Errno, Failure};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, Statx, StatxFlags, fstatvfs, statx};

use crate::fail::{system, unsupported};
use crate::open;

const WANTED: StatxFlags = StatxFlags::BASIC_STATS.union(StatxFlags::BTIME);

/// Where a file is, and which one.
pub(crate) struct Place {
    /// The number of its device: the major one in the upper half.
    pub(crate) device: u64,
    pub(crate) inode: u64,
    /// The id of its file system; zero where it has none.
    pub(crate) filesystem: u64,
    /// When it was made; zero where that is not known.
    pub(crate) born: u64,
    /// Absolute.
    pub(crate) path: Vec<u8>,
}

impl Place {
    /// Where a file is that is open, and what else is known of it. `advice` is for one that has no
    /// such place.
    ///
    /// # Errors
    /// EOPNOTSUPP where it cannot be found again under its path.
    pub(crate) fn of(file: &HostFile, advice: &str) -> Result<(Self, Statx), Failure> {
        let failed = system("the file cannot be looked at");
        let stat = statx(file, "", AtFlags::EMPTY_PATH, WANTED).map_err(&failed)?;
        let path = std::fs::read_link(open::link(file))
            .map_err(system("the file's path cannot be read"))?;
        let there = statx(CWD, &path, AtFlags::SYMLINK_NOFOLLOW, WANTED);
        if !there.is_ok_and(|there| path.is_absolute() && is_same(&there, &stat)) {
            return Err(unsupported(format!(
                "the file has no path under which it could be found again ({}): it was deleted or \
                 replaced, or is on a mount that luod does not see; {advice}",
                path.display()
            )));
        }
        let place = Self {
            device: device(&stat),
            inode: stat.stx_ino,
            filesystem: fstatvfs(file).map_err(&failed)?.f_fsid,
            born: born(&stat),
            path: path.into_os_string().into_vec(),
        };
        Ok((place, stat))
    }

    /// The file that is there, open as a path, if it is the same one and of this kind.
    ///
    /// # Errors
    /// ENOENT where it is another one.
    pub(crate) fn find(&self, kind: FileKind) -> Result<(HostFile, Statx), Failure> {
        let (anchor, stat) = self.find_any()?;
        if anchor.kind() != kind {
            return Err(self.another("it is of another type"));
        }
        Ok((anchor, stat))
    }

    /// As [`find`](Self::find), of whatever kind it is.
    ///
    /// # Errors
    /// ENOENT where it is another one.
    pub(crate) fn find_any(&self) -> Result<(HostFile, Statx), Failure> {
        let failed = system(format!("{} cannot be opened", self.path().display()));
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let anchor: OwnedFd =
            rustix::fs::open(self.path(), flags, Mode::empty()).map_err(&failed)?;
        let stat = statx(&anchor, "", AtFlags::EMPTY_PATH, WANTED).map_err(&failed)?;
        let filesystem = fstatvfs(&anchor).map_err(&failed)?.f_fsid;
        let same_place = filesystem == self.filesystem && filesystem != 0;
        if !same_place && device(&stat) != self.device {
            return Err(self.another("it is on another file system"));
        }
        if stat.stx_ino != self.inode {
            return Err(self.another("it has another inode"));
        }
        if born(&stat) != 0 && self.born != 0 && born(&stat) != self.born {
            return Err(self.another("it was made at another time"));
        }
        Ok((HostFile::from(anchor), stat))
    }

    /// The failure for what is there instead of the file.
    pub(crate) fn another(&self, how: &str) -> Failure {
        let reason = format!("{} is not the file that was kept: {how}", self.path().display());
        Failure::new(Errno::NoEnt, reason)
    }

    fn path(&self) -> &Path {
        Path::new(OsStr::from_bytes(&self.path))
    }
}

fn is_same(one: &Statx, other: &Statx) -> bool {
    one.stx_ino == other.stx_ino && device(one) == device(other) && born(one) == born(other)
}

/// The number of a file's device, as one.
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
