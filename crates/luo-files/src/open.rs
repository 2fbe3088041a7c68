//! How a file is open: Linux's flags, and those of records.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;

use luo_abi::record::OpenFlags;
use luo_core::Failure;
use rustix::fs::{Mode, OFlags, fcntl_getfl, fcntl_setfl};

use crate::fail::{system, unsupported};

/// The flags beside the access mode. O_SYNC comes before O_DSYNC, which it contains.
const FLAGS: [(OFlags, u32); 6] = [
    (OFlags::APPEND, OpenFlags::APPEND),
    (OFlags::NONBLOCK, OpenFlags::NONBLOCK),
    (OFlags::NOATIME, OpenFlags::NOATIME),
    (OFlags::DIRECT, OpenFlags::DIRECT),
    (OFlags::SYNC, OpenFlags::SYNC),
    (OFlags::DSYNC, OpenFlags::DSYNC),
];

/// Flags of no consequence once a file is open, and that signals are sent, which is the process's.
const OF_NO_CONSEQUENCE: OFlags = OFlags::LARGEFILE
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC)
    .union(OFlags::TMPFILE)
    .union(OFlags::from_bits_retain(0o20000));

/// How a file is open.
///
/// # Errors
/// EOPNOTSUPP for a flag that is not known.
pub(crate) fn flags(file: impl AsFd) -> Result<OpenFlags, Failure> {
    let mut status = fcntl_getfl(file).map_err(system("the file's flags cannot be read"))?;
    if status.contains(OFlags::PATH) {
        return Ok(OpenFlags(OpenFlags::PATH));
    }
    let mut open = match status & OFlags::RWMODE {
        OFlags::RDONLY => OpenFlags::READ,
        OFlags::WRONLY => OpenFlags::WRITE,
        OFlags::RDWR => OpenFlags::READ | OpenFlags::WRITE,
        _ => return Err(unsupported("the file is open for ioctls alone (access mode 3)")),
    };
    status -= OFlags::RWMODE | OF_NO_CONSEQUENCE;
    // With O_LARGEFILE being no bit at all where files are large anyway.
    status -= OFlags::from_bits_retain(0o100_000);
    for (flag, recorded) in FLAGS {
        if status.contains(flag) {
            open |= recorded;
            status -= flag;
        }
    }
    if status.is_empty() {
        Ok(OpenFlags(open))
    } else {
        let bits = status.bits();
        Err(unsupported(format!("the file is open with flags that are not known: {bits:#o}")))
    }
}

/// The access mode.
pub(crate) fn access(open: OpenFlags) -> OFlags {
    match (open.has(OpenFlags::READ), open.has(OpenFlags::WRITE)) {
        (true, true) => OFlags::RDWR,
        (false, true) => OFlags::WRONLY,
        _ => OFlags::RDONLY,
    }
}

/// The status flags.
pub(crate) fn status(open: OpenFlags) -> OFlags {
    FLAGS
        .iter()
        .filter(|(_, recorded)| open.has(*recorded))
        .fold(OFlags::empty(), |all, (flag, _)| all | *flag)
}

/// The link in `/proc` that leads to the file.
pub(crate) fn link(file: impl AsFd) -> PathBuf {
    format!("/proc/self/fd/{}", file.as_fd().as_raw_fd()).into()
}

/// Another open file description of the same file, open like this.
///
/// # Errors
/// As `open(2)`.
pub(crate) fn again(file: impl AsFd, open: OpenFlags) -> Result<OwnedFd, Failure> {
    let flags = access(open) | status(open) | OFlags::CLOEXEC | OFlags::NOCTTY;
    rustix::fs::open(link(file), flags, Mode::empty()).map_err(system("it cannot be opened again"))
}

/// Makes the status flags of a file those that it had.
///
/// # Errors
/// EPERM for O_NOATIME without being the owner, EINVAL for O_DIRECT where it is not supported.
pub(crate) fn set_status(file: impl AsFd, open: OpenFlags) -> Result<(), Failure> {
    fcntl_setfl(file, status(open)).map_err(system("the file's flags cannot be set"))
}
