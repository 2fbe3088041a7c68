//! Loading the next kernel, and starting it.
//!
//! Invariants: a command line that has a zero byte, or is longer than the kernel takes, is refused
//! here; nothing here waits.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// `KEXEC_FILE_UNLOAD` of `linux/kexec.h`.
const KEXEC_FILE_UNLOAD: libc::c_ulong = 1;
/// `KEXEC_FILE_NO_INITRAMFS` of `linux/kexec.h`.
const KEXEC_FILE_NO_INITRAMFS: libc::c_ulong = 4;

/// Where the kernel says whether another one is loaded.
const LOADED: &str = "/sys/kernel/kexec_loaded";
/// Where the kernel says whether one is loaded for the case that this one panics.
const CRASH_LOADED: &str = "/sys/kernel/kexec_crash_loaded";

/// Loads the kernel that [`restart_into_loaded`] starts, in place of one that was loaded before.
///
/// # Errors
/// EINVAL for a command line with a zero byte, or one longer than the architecture takes (2,047
/// bytes on x86). Of `kexec_file_load(2)`: EPERM without CAP_SYS_BOOT, where `kexec_load_disabled`
/// is set, or in lockdown; ENOSYS where the kernel is built without `CONFIG_KEXEC_FILE`; ENOEXEC
/// where the image is none that it knows; EKEYREJECTED, ENOKEY, ENODATA and EBADMSG about the
/// image's signature where one is asked for; EBUSY while another load goes on; ENOMEM,
/// EADDRNOTAVAIL where there is no room; EFBIG where a file is too large; EBADF, EIO about the
/// files.
pub fn load_kernel(
    kernel: BorrowedFd<'_>,
    initrd: Option<BorrowedFd<'_>>,
    command_line: &str,
) -> io::Result<()> {
    let text = CString::new(command_line)
        .map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?
        .into_bytes_with_nul();
    let (initrd, flags) = match initrd {
        Some(initrd) => (initrd.as_raw_fd(), 0),
        None => (-1, KEXEC_FILE_NO_INITRAMFS),
    };
    // SAFETY: the kernel reads `text.len()` bytes from `text`, which has as many and lives until
    // the call returns. Both descriptors are open, for they are borrowed; -1 goes with the flag by
    // which the kernel does not look at it. The call changes no memory of this process.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_kexec_file_load,
            kernel.as_raw_fd(),
            initrd,
            text.len() as libc::c_ulong,
            text.as_ptr(),
            flags,
        )
    };
    if answer == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Lets go of the kernel that was loaded; also where there is none.
///
/// # Errors
/// EPERM without CAP_SYS_BOOT; ENOSYS where the kernel is built without `CONFIG_KEXEC_FILE`; EBUSY
/// while a load goes on.
pub fn unload_kernel() -> io::Result<()> {
    // SAFETY: with this flag the kernel looks at neither descriptor nor at the command line, which
    // is null and has no bytes. The call changes no memory of this process.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_kexec_file_load,
            -1,
            -1,
            0 as libc::c_ulong,
            std::ptr::null::<libc::c_char>(),
            KEXEC_FILE_UNLOAD,
        )
    };
    if answer == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Whether a kernel is loaded that [`restart_into_loaded`] would start.
///
/// # Errors
/// ENOENT where the kernel is built without kexec; EINVAL where it says something else than yes or
/// no.
pub fn kernel_loaded() -> io::Result<bool> {
    yes_or_no(LOADED)
}

/// Whether a kernel is loaded that starts when this one panics.
///
/// # Errors
/// As [`kernel_loaded`].
pub fn crash_kernel_loaded() -> io::Result<bool> {
    yes_or_no(CRASH_LOADED)
}

fn yes_or_no(path: &str) -> io::Result<bool> {
    match fs::read_to_string(path)?.trim_end() {
        "0" => Ok(false),
        "1" => Ok(true),
        _ => Err(io::Error::from_raw_os_error(libc::EINVAL)),
    }
}

/// Starts the kernel that is loaded, at once: no process is told, nothing is written to disks.
/// Does not come back, but for an error.
///
/// # Errors
/// EPERM without CAP_SYS_BOOT in the initial user namespace, EINVAL where no kernel is loaded or
/// this one is built without kexec, EBUSY while a load goes on; what freezing of what is preserved
/// through `/dev/liveupdate` says.
pub fn restart_into_loaded() -> io::Error {
    // SAFETY: the magic numbers and the command are integers; with this command the kernel looks
    // at no argument, which is null. No memory of this process is touched.
    unsafe {
        libc::syscall(
            libc::SYS_reboot,
            libc::LINUX_REBOOT_MAGIC1,
            libc::LINUX_REBOOT_MAGIC2,
            libc::LINUX_REBOOT_CMD_KEXEC,
            std::ptr::null::<libc::c_char>(),
        );
    }
    io::Error::last_os_error()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::fd::AsFd;

    #[test]
    fn a_command_line_with_a_zero_byte_never_reaches_the_kernel() {
        let null = File::open("/dev/null").unwrap();
        let error = load_kernel(null.as_fd(), None, "quiet\0init=/bin/sh").unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
    }

    /// Whoever runs it: without the right that is refused, with it there is no kernel in it.
    #[test]
    fn what_is_no_kernel_is_refused() {
        let null = File::open("/dev/null").unwrap();
        load_kernel(null.as_fd(), None, "quiet").unwrap_err();
    }
}
