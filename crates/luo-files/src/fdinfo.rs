//! What the kernel says of a descriptor in `/proc/self/fdinfo`.
//!
//! Invariants: a field that is not there, or is no number, is a failure that names it.

use std::os::fd::{AsFd, AsRawFd};

use luo_carriers::HostFile;
use luo_core::Failure;
use rustix::fs::{OFlags, fcntl_getfl};

use crate::fail::{system, unsupported};

/// The text of `fdinfo`.
pub(crate) struct FdInfo(String);

impl FdInfo {
    /// Reads it. Of an epoll this waits for a lock that its owner can hold.
    ///
    /// # Errors
    /// As reading a file of `/proc`.
    pub(crate) fn read(file: &HostFile) -> Result<Self, Failure> {
        let path = format!("/proc/self/fdinfo/{}", file.as_fd().as_raw_fd());
        std::fs::read_to_string(path).map(Self).map_err(system("the file cannot be looked at"))
    }

    /// The text behind `name` and a colon, without space around.
    pub(crate) fn text(&self, name: &str) -> Option<&str> {
        self.lines(name).next()
    }

    /// The same, of all lines that begin with this name.
    pub(crate) fn lines(&self, name: &str) -> impl Iterator<Item = &str> {
        self.0
            .lines()
            .filter_map(move |line| line.strip_prefix(name)?.strip_prefix(':'))
            .map(str::trim)
    }

    /// A number.
    ///
    /// # Errors
    /// EOPNOTSUPP where the kernel does not tell it.
    pub(crate) fn number(&self, name: &str, radix: u32) -> Result<u64, Failure> {
        self.text(name)
            .and_then(|text| u64::from_str_radix(text, radix).ok())
            .ok_or_else(|| untold(name))
    }
}

/// The number of a device as `sdev` has it, with the minor one in 20 bits: as [`HostFile`] has it.
pub(crate) fn device_number(sdev: &str) -> Option<u64> {
    let device = u64::from_str_radix(sdev.trim(), 16).ok()?;
    Some((device >> 20) << 32 | device & 0xf_ffff)
}

/// The kernel does not say what a handler has to know.
pub(crate) fn untold(name: &str) -> Failure {
    unsupported(format!(
        "this kernel does not tell {name:?} in /proc/self/fdinfo, without which the file cannot \
         be made again: use a newer kernel"
    ))
}

/// Whether the file is open with O_NONBLOCK.
///
/// # Errors
/// EBADF.
pub(crate) fn is_nonblocking(file: &HostFile) -> Result<bool, Failure> {
    let status = fcntl_getfl(file).map_err(system("the file's flags cannot be read"))?;
    Ok(status.contains(OFlags::NONBLOCK))
}
