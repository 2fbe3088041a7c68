//! Kernel sessions that a client fills by itself.
//!
//! Invariants: the kernel's ioctls go to a session of the kernel's alone, which is checked when its
//! descriptor comes.

use std::io;
use std::ops::RangeInclusive;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use luo_sys::LiveUpdateSession;

use crate::error::Error;

fn adopt(descriptor: OwnedFd) -> Result<LiveUpdateSession, Error> {
    let what = "looking at the kernel session that luod gave";
    LiveUpdateSession::adopt(descriptor).map_err(Error::system(what))
}

/// A session of `/dev/liveupdate` for the next kernel: see
/// [`Session::kernel_session`](crate::Session::kernel_session).
///
/// luod holds a copy of its descriptor, so that dropping this value, or the end of this process,
/// undoes nothing.
#[derive(Debug)]
pub struct KernelSession {
    session: LiveUpdateSession,
    last_token: u64,
}

impl KernelSession {
    pub(crate) fn new((descriptor, last_token): (OwnedFd, u64)) -> Result<Self, Error> {
        Ok(Self { session: adopt(descriptor)?, last_token })
    }

    /// The tokens that the client may use.
    #[must_use]
    pub fn tokens(&self) -> RangeInclusive<u64> {
        0..=self.last_token
    }

    /// Has the kernel keep an open file under a token. What memory that takes is charged to the
    /// cgroup of this process. It cannot be taken out again but with the whole session
    /// ([`release_kernel_session`](crate::Session::release_kernel_session)). Of a memory file the
    /// size stays as it is from here, and its holes are filled.
    ///
    /// # Errors
    /// ENOENT where this kernel cannot keep files of this type, EBUSY where the file is preserved
    /// already (also by luod), EEXIST where the token is taken, EDOM where it is none of
    /// [`tokens`](Self::tokens), EOPNOTSUPP for seals that the kernel does not keep, EFBIG above
    /// 2³² - 1 pages, ENOSPC where the session is full, ENOMEM.
    pub fn preserve(&self, token: u64, file: impl AsFd) -> io::Result<()> {
        if !self.tokens().contains(&token) {
            return Err(rustix::io::Errno::DOM.into());
        }
        self.session.preserve(token, file)
    }
}

impl AsFd for KernelSession {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.session.as_fd()
    }
}

impl From<KernelSession> for OwnedFd {
    fn from(session: KernelSession) -> Self {
        session.session.into()
    }
}

/// A session of `/dev/liveupdate` from the kernel before: see
/// [`Session::arrived_kernel_session`](crate::Session::arrived_kernel_session).
///
/// luod holds a copy of its descriptor until the machine's update is finished, and then finishes it:
/// what was not fetched is freed. What was fetched stays.
#[derive(Debug)]
pub struct ArrivedKernelSession {
    session: LiveUpdateSession,
}

impl ArrivedKernelSession {
    pub(crate) fn new((descriptor, _): (OwnedFd, u64)) -> Result<Self, Error> {
        Ok(Self { session: adopt(descriptor)? })
    }

    /// Gives the file of a token, as often as it is asked for. It is close-on-exec.
    ///
    /// # Errors
    /// ENOENT where there is no such token, EMFILE; that the file cannot be made again (EIO, EINVAL,
    /// ENOMEM), which is final: the kernel gives the same error from then on.
    pub fn retrieve(&self, token: u64) -> io::Result<OwnedFd> {
        self.session.fetch(token)
    }
}

impl AsFd for ArrivedKernelSession {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.session.as_fd()
    }
}

impl From<ArrivedKernelSession> for OwnedFd {
    fn from(session: ArrivedKernelSession) -> Self {
        session.session.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_kernel_session_is_not_taken_for_one() {
        let null = || OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
        for refused in [
            KernelSession::new((null(), 1)).unwrap_err(),
            ArrivedKernelSession::new((null(), 1)).unwrap_err(),
        ] {
            assert!(matches!(refused, Error::System { .. }), "{refused}");
        }
    }
}
