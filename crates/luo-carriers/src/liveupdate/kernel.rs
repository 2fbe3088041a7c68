//! The kernel behind a small trait, so that everything above it can be tried on any kernel.
//!
//! Invariants: the errors are the kernel's own; whoever calls makes sentences of them.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

use luo_abi::liveupdate::ioctl::Name;
use luo_sys::{LiveUpdateDevice, LiveUpdateSession};

/// A session of the kernel's, shared. When the last owner lets go of it, and nobody else has a copy
/// of its descriptor, the kernel undoes it, or finishes it if it came from the kernel before.
pub type Session = Arc<dyn KernelSession>;

/// The device.
pub trait Kernel: Send + Sync {
    /// See [`LiveUpdateDevice::create`].
    ///
    /// # Errors
    /// The same.
    fn create(&self, name: Name) -> io::Result<Session>;

    /// See [`LiveUpdateDevice::retrieve`].
    ///
    /// # Errors
    /// The same.
    fn retrieve(&self, name: Name) -> io::Result<Session>;
}

/// A session.
pub trait KernelSession: Send + Sync {
    /// See [`LiveUpdateSession::preserve`].
    ///
    /// # Errors
    /// The same.
    fn preserve(&self, token: u64, file: BorrowedFd<'_>) -> io::Result<()>;

    /// See [`LiveUpdateSession::fetch`].
    ///
    /// # Errors
    /// The same.
    fn fetch(&self, token: u64) -> io::Result<OwnedFd>;

    /// See [`LiveUpdateSession::finish`].
    ///
    /// # Errors
    /// The same.
    fn finish(&self) -> io::Result<()>;

    /// A copy of the session's descriptor.
    ///
    /// # Errors
    /// EMFILE.
    fn descriptor(&self) -> io::Result<OwnedFd>;
}

impl Kernel for LiveUpdateDevice {
    fn create(&self, name: Name) -> io::Result<Session> {
        Ok(Arc::new(Self::create(self, name)?))
    }

    fn retrieve(&self, name: Name) -> io::Result<Session> {
        Ok(Arc::new(Self::retrieve(self, name)?))
    }
}

impl KernelSession for LiveUpdateSession {
    fn preserve(&self, token: u64, file: BorrowedFd<'_>) -> io::Result<()> {
        Self::preserve(self, token, file)
    }

    fn fetch(&self, token: u64) -> io::Result<OwnedFd> {
        Self::fetch(self, token)
    }

    fn finish(&self) -> io::Result<()> {
        Self::finish(self)
    }

    fn descriptor(&self) -> io::Result<OwnedFd> {
        self.try_clone().map(OwnedFd::from)
    }
}
