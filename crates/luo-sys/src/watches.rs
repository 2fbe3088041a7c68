//! Watches of inotify under chosen numbers, and files by what names them for ever (file handles).

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

/// `INOTIFY_IOC_SETNEXTWD` of `linux/inotify.h`: `_IOW('I', 0, __s32)`.
const INOTIFY_IOC_SETNEXTWD: libc::Ioctl = 0x4004_4900_u32 as libc::Ioctl;
/// `MAX_HANDLE_SZ` of `linux/exportfs.h`.
const MAX_HANDLE: usize = 128;

/// The next watch that is added has this number, or the first free one after it.
///
/// # Errors
/// ENOTTY where the kernel is built without `CONFIG_CHECKPOINT_RESTORE` or the file is no inotify,
/// EINVAL for a number below 1.
pub fn set_next_watch(inotify: impl AsFd, number: i32) -> io::Result<()> {
    // SAFETY: the request takes an integer and touches no memory of the caller. A file of another
    // type would take the number for the pointer of a request of its own only if that had the same
    // number, direction and size; such a pointer is to memory that is not mapped, or is refused.
    let done = unsafe { libc::ioctl(inotify.as_fd().as_raw_fd(), INOTIFY_IOC_SETNEXTWD, number) };
    if done == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// `struct file_handle`, as long as it can be.
#[repr(C)]
struct FileHandle {
    bytes: libc::c_uint,
    kind: libc::c_int,
    handle: [u8; MAX_HANDLE],
}

/// The file that a handle names, as `name_to_handle_at(2)` gives it, on the file system that `mount` is
/// on; open as a path.
///
/// # Errors
/// EPERM without CAP_DAC_READ_SEARCH, ESTALE where there is no such file any more, EINVAL for a handle
/// that is too long or no handle of this file system, EOPNOTSUPP.
pub fn open_by_handle(mount: impl AsFd, kind: i32, handle: &[u8]) -> io::Result<OwnedFd> {
    let mut file = FileHandle { bytes: 0, kind, handle: [0; MAX_HANDLE] };
    let Some(room) = file.handle.get_mut(..handle.len()) else {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    };
    room.copy_from_slice(handle);
    file.bytes = handle.len() as libc::c_uint;
    let flags = libc::O_PATH | libc::O_CLOEXEC;
    // SAFETY: the kernel reads a file_handle with as many bytes behind its head as it says, at most
    // those that `file` has, which lives through the call.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_open_by_handle_at,
            mount.as_fd().as_raw_fd(),
            &raw const file,
            flags,
        )
    };
    let fd = i32::try_from(fd).ok().filter(|fd| *fd >= 0).ok_or_else(io::Error::last_os_error)?;
    // SAFETY: the kernel has just made this descriptor, and nobody else knows of it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::inotify::{CreateFlags, WatchFlags, add_watch, init};

    #[test]
    fn a_watch_has_the_number_that_was_chosen() {
        let inotify = init(CreateFlags::CLOEXEC).unwrap();
        match set_next_watch(&inotify, 77) {
            Err(error) if error.raw_os_error() == Some(libc::ENOTTY) => {
                eprintln!("SKIPPED: the kernel does not let watches be numbered");
                return;
            }
            result => result.unwrap(),
        }
        assert_eq!(add_watch(&inotify, "/", WatchFlags::DELETE_SELF), Ok(77));
        assert!(set_next_watch(&inotify, 0).is_err());
        assert!(set_next_watch(std::fs::File::open("/dev/null").unwrap(), 1).is_err());
    }

    #[test]
    fn what_is_no_handle_is_refused() {
        let root = std::fs::File::open("/").unwrap();
        assert!(open_by_handle(&root, 1, &[0; 200]).is_err());
        assert!(open_by_handle(&root, 250, &[1, 2, 3]).is_err());
    }
}
