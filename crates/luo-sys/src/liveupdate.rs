//! The ioctls of `/dev/liveupdate` (Linux 6.19 and later) and of its sessions.
//!
//! ```text
//! Device ── create ────▶ Session, for the next kernel:       preserve
//!        └─ retrieve ──▶ Session, from the kernel before:    fetch … finish
//! ```
//!
//! A session of the next kernel is undone, and one from the kernel before is **finished, with all
//! that nobody has fetched**, when the last copy of its descriptor is closed, in whatever process.
//! Neither happens when the device is closed.
//!
//! Invariants: a [`LiveUpdateDevice`] is a device of the kernel's miscellaneous ones, and a [`LiveUpdateSession`] is one
//! of the kernel's sessions: no other file ever sees these ioctls. What the kernel gives is
//! close-on-exec.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use luo_abi::liveupdate::ioctl::{self, Finish, Name, NamedSession, SessionFile, SessionName};
use rustix::fs::{FileType, fstat, major};
use rustix::io::Errno;
use rustix::ioctl::{Opcode, Updater, opcode};

/// Where the device is.
pub const LIVEUPDATE_DEVICE: &str = "/dev/liveupdate";
/// The major number of the kernel's miscellaneous devices.
const MISC_MAJOR: u32 = 10;
/// What a session's descriptor is called in `/proc`.
const SESSION_LINK: &[u8] = b"anon_inode:[luo_session]";

/// The numbers of the ioctls, as the kernel's `_IO` makes them.
const CREATE_SESSION: Opcode = opcode::none(ioctl::TYPE, ioctl::CREATE_SESSION);
const RETRIEVE_SESSION: Opcode = opcode::none(ioctl::TYPE, ioctl::RETRIEVE_SESSION);
const PRESERVE_FD: Opcode = opcode::none(ioctl::TYPE, ioctl::PRESERVE_FD);
const RETRIEVE_FD: Opcode = opcode::none(ioctl::TYPE, ioctl::RETRIEVE_FD);
const FINISH: Opcode = opcode::none(ioctl::TYPE, ioctl::FINISH);
const GET_NAME: Opcode = opcode::none(ioctl::TYPE, ioctl::GET_NAME);

/// The open device. The kernel lets it be open once at a time; duplicates of this one are.
#[derive(Debug)]
pub struct LiveUpdateDevice(OwnedFd);

/// A session of the kernel's.
#[derive(Debug)]
pub struct LiveUpdateSession(OwnedFd);

impl AsFd for LiveUpdateDevice {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsFd for LiveUpdateSession {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl From<LiveUpdateDevice> for OwnedFd {
    fn from(device: LiveUpdateDevice) -> Self {
        device.0
    }
}

impl From<LiveUpdateSession> for OwnedFd {
    fn from(session: LiveUpdateSession) -> Self {
        session.0
    }
}

impl LiveUpdateDevice {
    /// Opens the device.
    ///
    /// # Errors
    /// ENOENT where the kernel has none (it is older, is built without LIVEUPDATE, or was started
    /// without `liveupdate=on`), EACCES for who is not root, EBUSY while somebody has it open, EIO
    /// where what the kernel before handed over cannot be read (then until the next boot), ENODEV
    /// where there is something else at that path.
    pub fn open(path: impl AsRef<Path>) -> io::Result<Self> {
        Self::adopt(OpenOptions::new().read(true).write(true).open(path)?.into())
    }

    /// A descriptor of the device that somebody else has opened.
    ///
    /// # Errors
    /// ENODEV where it is of something else.
    pub fn adopt(descriptor: OwnedFd) -> io::Result<Self> {
        let stat = fstat(&descriptor)?;
        let character = FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice;
        if character && major(stat.st_rdev) == MISC_MAJOR {
            Ok(Self(descriptor))
        } else {
            Err(Errno::NODEV.into())
        }
    }

    /// Makes a session for the next kernel.
    ///
    /// # Errors
    /// EEXIST where the name is taken, EMFILE, ENOMEM or ENOSPC where there are too many.
    pub fn create(&self, name: Name) -> io::Result<LiveUpdateSession> {
        self.named::<CREATE_SESSION>(name)
    }

    /// Gives a session that came from the kernel before, once: from here it ends with its last
    /// descriptor.
    ///
    /// # Errors
    /// ENOENT where no session of that name came, EINVAL where somebody has had it, EMFILE.
    pub fn retrieve(&self, name: Name) -> io::Result<LiveUpdateSession> {
        self.named::<RETRIEVE_SESSION>(name)
    }

    fn named<const OPCODE: Opcode>(&self, name: Name) -> io::Result<LiveUpdateSession> {
        let mut argument = NamedSession::new(name);
        // SAFETY: the opcode is one of the two constants above, for which the kernel takes a
        // `struct liveupdate_ioctl_create_session` or `…_retrieve_session`. `NamedSession` has
        // their layout, which a test compares, and says its size.
        let call = unsafe { Updater::<OPCODE, _>::new(&mut argument) };
        // SAFETY: this is a miscellaneous device, among which the type 0xBA is that of
        // `/dev/liveupdate` alone: it writes within the argument, or any other answers ENOTTY.
        unsafe { rustix::ioctl::ioctl(&self.0, call) }?;
        received(argument.fd).map(LiveUpdateSession)
    }
}

impl LiveUpdateSession {
    /// A descriptor of a session that somebody else has made or retrieved.
    ///
    /// # Errors
    /// EBADF where it is of something else; what `/proc` gives.
    pub fn adopt(descriptor: OwnedFd) -> io::Result<Self> {
        let link = fs::read_link(format!("/proc/self/fd/{}", descriptor.as_raw_fd()))?;
        // Nobody can give an anonymous inode this name but the kernel.
        if link.as_os_str().as_bytes().starts_with(SESSION_LINK) {
            Ok(Self(descriptor))
        } else {
            Err(Errno::BADF.into())
        }
    }

    /// Another descriptor of the same session.
    ///
    /// # Errors
    /// EMFILE.
    pub fn try_clone(&self) -> io::Result<Self> {
        self.0.try_clone().map(Self)
    }

    /// Preserves a file under a token, of a session for the next kernel. It cannot be taken out
    /// again but with the whole session. Of a memory file the size stays as it is from here, and
    /// its holes are filled.
    ///
    /// # Errors
    /// ENOENT where the kernel cannot keep files of this type, EBUSY where the file is preserved
    /// already, in any session, EEXIST where the token is taken, EINVAL of a session from the
    /// kernel before, EOPNOTSUPP for seals the kernel does not keep, EFBIG above 2³² - 1 pages,
    /// ENOSPC where the session is full, ENOMEM.
    pub fn preserve(&self, token: u64, file: impl AsFd) -> io::Result<()> {
        let mut argument = SessionFile::new(file.as_fd().as_raw_fd(), token);
        self.call::<PRESERVE_FD, _>(&mut argument)
    }

    /// Gives a file of a session from the kernel before; as often as it is asked for.
    ///
    /// # Errors
    /// ENOENT where there is no such token, EINVAL of a session for the next kernel, EMFILE; that
    /// the file cannot be made again (EIO, EINVAL, ENOMEM), which is final: the kernel gives the
    /// same error from then on.
    pub fn fetch(&self, token: u64) -> io::Result<OwnedFd> {
        let mut argument = SessionFile::new(-1, token);
        self.call::<RETRIEVE_FD, _>(&mut argument)?;
        received(argument.fd)
    }

    /// Ends a session from the kernel before: what nobody has fetched is freed.
    ///
    /// # Errors
    /// EBUSY where a file says that it is too early, EINVAL of a session for the next kernel.
    pub fn finish(&self) -> io::Result<()> {
        self.call::<FINISH, _>(&mut Finish::new())
    }

    /// The session's name.
    ///
    /// # Errors
    /// EINVAL from Linux 6.19, which does not tell.
    pub fn name(&self) -> io::Result<Name> {
        let mut argument = SessionName::new();
        self.call::<GET_NAME, _>(&mut argument)?;
        Name::new(argument.name.as_bytes_without_nul()).ok_or_else(|| Errno::INVAL.into())
    }

    fn call<const OPCODE: Opcode, T>(&self, argument: &mut T) -> io::Result<()> {
        // SAFETY: each caller above passes the struct that the kernel's header has for its opcode;
        // their layouts are compared by tests, and each says its size.
        let call = unsafe { Updater::<OPCODE, T>::new(argument) };
        // SAFETY: this descriptor is one of the kernel's sessions, as `adopt` has checked or the
        // kernel has given it; these write within the argument.
        unsafe { rustix::ioctl::ioctl(&self.0, call) }.map_err(io::Error::from)
    }
}

/// Takes what the kernel has put into this process.
fn received(descriptor: i32) -> io::Result<OwnedFd> {
    if descriptor < 0 {
        return Err(Errno::BADF.into());
    }
    // SAFETY: the ioctl succeeded, and has installed this number for the caller alone: nobody else
    // owns it.
    let descriptor = unsafe { OwnedFd::from_raw_fd(descriptor) };
    crate::close_on_exec(&descriptor, true)?;
    Ok(descriptor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_are_those_of_the_kernels_header() {
        let all = [CREATE_SESSION, RETRIEVE_SESSION, PRESERVE_FD, RETRIEVE_FD, FINISH, GET_NAME];
        let numbers = [0xba00, 0xba01, 0xba40, 0xba41, 0xba42, 0xba43];
        if cfg!(any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64")) {
            assert_eq!(all.map(|opcode| opcode as u64), numbers);
        }
    }

    #[test]
    fn no_other_file_passes_for_a_device_or_session() {
        let null = || OwnedFd::from(fs::File::open("/dev/null").unwrap());
        let errno = |error: io::Error| error.raw_os_error().unwrap();
        assert_eq!(
            errno(LiveUpdateDevice::adopt(null()).unwrap_err()),
            Errno::NODEV.raw_os_error()
        );
        assert_eq!(
            errno(LiveUpdateDevice::open("/dev/null").unwrap_err()),
            Errno::NODEV.raw_os_error()
        );
        assert_eq!(
            errno(LiveUpdateSession::adopt(null()).unwrap_err()),
            Errno::BADF.raw_os_error()
        );
        let (reader, _writer) = rustix::pipe::pipe().unwrap();
        assert!(LiveUpdateSession::adopt(reader).is_err());
    }

    #[test]
    fn another_miscellaneous_device_knows_none_of_the_calls() {
        let Ok(device) = LiveUpdateDevice::open("/dev/fuse") else {
            eprintln!("SKIPPED: /dev/fuse cannot be opened here");
            return;
        };
        let refused = device.create(Name::new(b"x").unwrap()).unwrap_err();
        let errno = refused.raw_os_error().unwrap();
        let known = [Errno::NOTTY, Errno::INVAL, Errno::PERM].map(Errno::raw_os_error);
        assert!(known.contains(&errno), "{refused}");
    }
}
