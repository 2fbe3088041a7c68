//! Signals as bytes in a pipe, so that a poll loop sees them among its other descriptors.
//!
//! Handlers rather than signalfd: a signalfd needs the signals blocked, and children would inherit
//! that; handlers are reset by `execve`.
//!
//! Invariants: the handler only writes one byte to a pipe that is never closed.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicI32, Ordering};

use rustix::pipe::{PipeFlags, pipe_with};

/// The writing end, for the handler; -1 until [`Signals::install`].
static WRITER: AtomicI32 = AtomicI32::new(-1);
/// Owns that descriptor as long as the process lives.
static PIPE: OnceLock<OwnedFd> = OnceLock::new();

extern "C" fn handler(signal: libc::c_int) {
    let byte = signal as u8;
    // SAFETY: __errno_location has no precondition and is async-signal-safe.
    let errno = unsafe { libc::__errno_location() };
    // SAFETY: it points to this thread's errno, which lives as long as the thread.
    let saved = unsafe { *errno };
    // SAFETY: write is async-signal-safe, the buffer is one byte on this stack, and the pipe is
    // owned by `PIPE`, which is never dropped. It does not block: a full pipe loses the byte, and
    // the reader is awake then anyhow.
    unsafe { libc::write(WRITER.load(Ordering::Relaxed), (&raw const byte).cast(), 1) };
    // SAFETY: as above; the code that was interrupted finds its errno again.
    unsafe { *errno = saved };
}

/// Signals that arrive as bytes.
#[derive(Debug)]
pub struct Signals {
    reader: OwnedFd,
}

impl Signals {
    /// From now on these signals arrive here, and not as what they usually do; they are unblocked
    /// in this thread. Once per process.
    ///
    /// # Errors
    /// EBUSY the second time, EMFILE, EINVAL for a number that is no signal or cannot be caught.
    pub fn install(signals: &[i32]) -> io::Result<Self> {
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        let number = writer.as_raw_fd();
        PIPE.set(writer).map_err(|_| io::Error::from_raw_os_error(libc::EBUSY))?;
        WRITER.store(number, Ordering::Relaxed);
        let mut set = empty_set();
        for &signal in signals {
            // SAFETY: sigaction is a plain C struct of integers and pointers for which all zeroes
            // are valid: no flags, empty mask.
            let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
            action.sa_sigaction = handler as *const () as libc::sighandler_t;
            action.sa_flags = libc::SA_RESTART;
            // SAFETY: `action` is initialised and lives through the call; the handler has the
            // signature that goes without SA_SIGINFO and does only async-signal-safe things.
            if unsafe { libc::sigaction(signal, &action, std::ptr::null_mut()) } != 0 {
                return Err(io::Error::last_os_error());
            }
            // SAFETY: `set` is initialised; sigaction has accepted the number.
            unsafe { libc::sigaddset(&mut set, signal) };
        }
        change_mask(libc::SIG_UNBLOCK, &set)?;
        Ok(Self { reader })
    }

    /// The next signal that has arrived, `None` where there is none. Never blocks.
    #[must_use]
    pub fn next(&self) -> Option<i32> {
        let mut byte = [0_u8];
        matches!(rustix::io::read(&self.reader, &mut byte), Ok(1)).then(|| i32::from(byte[0]))
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.reader.as_fd()
    }
}

/// Does `work` with these signals blocked in this thread. Over an `execve` in `work` they stay
/// blocked and pending, until the new image [installs](Signals::install) its handlers: none is
/// lost, none kills the process in between.
///
/// # Errors
/// EINVAL for a number that is no signal.
pub fn blocked<T>(signals: &[i32], work: impl FnOnce() -> T) -> io::Result<T> {
    let mut set = empty_set();
    for &signal in signals {
        // SAFETY: `set` is initialised; a number out of range is answered with EINVAL.
        if unsafe { libc::sigaddset(&mut set, signal) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    change_mask(libc::SIG_BLOCK, &set)?;
    let result = work();
    change_mask(libc::SIG_UNBLOCK, &set)?;
    Ok(result)
}

fn empty_set() -> libc::sigset_t {
    let mut set = std::mem::MaybeUninit::uninit();
    // SAFETY: the pointer is to writable memory of the right size.
    unsafe { libc::sigemptyset(set.as_mut_ptr()) };
    // SAFETY: sigemptyset has initialised it; it cannot fail on a valid pointer.
    unsafe { set.assume_init() }
}

fn change_mask(how: libc::c_int, set: &libc::sigset_t) -> io::Result<()> {
    // SAFETY: `set` is initialised and the old mask is not asked for.
    match unsafe { libc::pthread_sigmask(how, set, std::ptr::null_mut()) } {
        0 => Ok(()),
        errno => Err(io::Error::from_raw_os_error(errno)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_arrives_as_its_number_also_after_having_been_blocked() {
        let raise = |signal| {
            // SAFETY: raise takes an integer; a handler is installed for this one.
            assert_eq!(unsafe { libc::raise(signal) }, 0);
        };
        let signals = Signals::install(&[libc::SIGUSR1, libc::SIGUSR2]).unwrap();
        assert_eq!(signals.next(), None);
        raise(libc::SIGUSR1);
        assert_eq!(signals.next(), Some(libc::SIGUSR1));
        let seen = blocked(&[libc::SIGUSR2], || {
            raise(libc::SIGUSR2);
            signals.next()
        });
        assert_eq!(seen.unwrap(), None);
        assert_eq!(signals.next(), Some(libc::SIGUSR2));
        assert_eq!(Signals::install(&[]).unwrap_err().raw_os_error(), Some(libc::EBUSY));
    }
}
