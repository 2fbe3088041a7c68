//! Files that events are read from: signals, and the ticks of timers.

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

/// `TFD_IOC_SET_TICKS` of `linux/timerfd.h`: `_IOW('T', 0, u64)`.
const TFD_IOC_SET_TICKS: libc::Ioctl = 0x4008_5400_u32 as libc::Ioctl;

/// A descriptor that the signals of `mask` are read from; signal 1 is bit 0. SIGKILL and SIGSTOP
/// are left out by the kernel. Whoever reads it gets its own signals.
///
/// # Errors
/// EMFILE, ENFILE, ENODEV, ENOMEM.
pub fn signalfd(mask: u64, nonblocking: bool) -> io::Result<OwnedFd> {
    let flags = libc::SFD_CLOEXEC | if nonblocking { libc::SFD_NONBLOCK } else { 0 };
    // SAFETY: the kernel reads eight bytes at the pointer, which is to a u64 that lives through
    // the call; -1 asks for a new descriptor.
    let fd =
        unsafe { libc::syscall(libc::SYS_signalfd4, -1, &raw const mask, size_of::<u64>(), flags) };
    let fd = i32::try_from(fd).ok().filter(|fd| *fd >= 0).ok_or_else(io::Error::last_os_error)?;
    // SAFETY: the kernel has just made this descriptor, and nobody else knows of it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Sets how often a timer is said to have expired since it was read; not zero.
///
/// # Errors
/// ENOTTY where the kernel is built without `CONFIG_CHECKPOINT_RESTORE` or the file is no timer,
/// EINVAL for zero.
pub fn set_timer_ticks(timer: impl AsFd, ticks: u64) -> io::Result<()> {
    // SAFETY: the request reads a u64 at the pointer, and `ticks` is one that lives through the
    // call. A file of another type gives the request its own meaning only if it has the same
    // number, direction and size, so that eight bytes are read then too.
    let done =
        unsafe { libc::ioctl(timer.as_fd().as_raw_fd(), TFD_IOC_SET_TICKS, &raw const ticks) };
    if done == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::time::{TimerfdClockId, TimerfdFlags, timerfd_create};

    #[test]
    fn a_timer_has_as_many_ticks_as_it_was_given() {
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags).unwrap();
        assert_eq!(set_timer_ticks(&timer, 0).unwrap_err().raw_os_error(), Some(libc::EINVAL));
        match set_timer_ticks(&timer, 7) {
            Err(error) if error.raw_os_error() == Some(libc::ENOTTY) => {
                eprintln!("SKIPPED: the kernel does not set the ticks of timers");
            }
            result => {
                result.unwrap();
                let mut ticks = [0; 8];
                assert_eq!(rustix::io::read(&timer, &mut ticks), Ok(8));
                assert_eq!(u64::from_ne_bytes(ticks), 7);
            }
        }
        let (reader, _writer) = rustix::pipe::pipe().unwrap();
        assert_eq!(set_timer_ticks(&reader, 7).unwrap_err().raw_os_error(), Some(libc::ENOTTY));
    }

    #[test]
    fn a_descriptor_for_signals_has_their_mask_and_is_closed_on_exec() {
        let fd = signalfd(1 << (libc::SIGUSR1 - 1), true).unwrap();
        let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd()));
        assert!(info.unwrap().contains("sigmask:\t0000000000000200"));
        assert_eq!(rustix::io::read(&fd, &mut [0; 128]), Err(rustix::io::Errno::AGAIN));
        let flags = rustix::io::fcntl_getfd(&fd).unwrap();
        assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
    }
}
