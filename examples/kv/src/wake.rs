//! Waking and stopping a server that waits for events, from another thread or a signal; and having it
//! stand still.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

/// Wakes one server; any number of copies may exist.
#[derive(Debug, Clone)]
pub struct Waker {
    pipe: Arc<UnixStream>,
    stop: Arc<AtomicBool>,
    still: Arc<Still>,
}

/// Whether a server is to stand still, and whether it does.
#[derive(Debug, Default)]
struct Still {
    wanted: AtomicBool,
    stands: Mutex<bool>,
    changed: Condvar,
}

impl Still {
    fn stands(&self) -> MutexGuard<'_, bool> {
        self.stands.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The server's end.
#[derive(Debug)]
pub(crate) struct WakeSource {
    pipe: UnixStream,
    stop: Arc<AtomicBool>,
    still: Arc<Still>,
}

pub(crate) fn wake_pair() -> io::Result<(Waker, WakeSource)> {
    let (sender, receiver) = UnixStream::pair()?;
    sender.set_nonblocking(true)?;
    receiver.set_nonblocking(true)?;
    let stop = Arc::new(AtomicBool::new(false));
    let still = Arc::new(Still::default());
    Ok((
        Waker { pipe: Arc::new(sender), stop: Arc::clone(&stop), still: Arc::clone(&still) },
        WakeSource { pipe: receiver, stop, still },
    ))
}

impl Waker {
    /// Makes the server look around.
    pub fn wake(&self) {
        // A full pipe wakes as well as one more byte, and a server that is gone needs no waking.
        let _ = rustix::net::send(&*self.pipe, b"w", rustix::net::SendFlags::NOSIGNAL);
    }

    /// Makes the server return from `run`, between two requests.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Release);
        self.wake();
    }

    /// Makes the server stand still between two requests, until [`go_on`](Self::go_on) or a stop. Whether it
    /// does, at the latest after `wait`.
    pub fn stand_still(&self, wait: Duration) -> bool {
        self.still.wanted.store(true, Ordering::Release);
        self.wake();
        let waited =
            self.still.changed.wait_timeout_while(self.still.stands(), wait, |stands| !*stands);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }

    /// Lets the server go on.
    pub fn go_on(&self) {
        self.still.wanted.store(false, Ordering::Release);
        self.wake();
    }

    /// Makes a signal stop the server.
    ///
    /// # Errors
    /// What the kernel says: EINVAL for a signal that cannot be handled, or no descriptor left (EMFILE).
    pub fn stop_on_signal(&self, signal: i32) -> io::Result<()> {
        // In this order, so that the flag is set when the wake arrives.
        signal_hook::flag::register(signal, Arc::clone(&self.stop))?;
        signal_hook::low_level::pipe::register(signal, self.pipe.try_clone()?)?;
        Ok(())
    }
}

impl WakeSource {
    pub(crate) fn clear(&self) {
        let mut bytes = [0; 64];
        loop {
            match rustix::net::recv(&self.pipe, &mut bytes, rustix::net::RecvFlags::empty()) {
                Ok((64, _)) | Err(Errno::INTR) => {}
                _ => return,
            }
        }
    }

    /// Stands still for as long as that is wanted; says whether it was stopped meanwhile.
    pub(crate) fn stand_still(&self) -> io::Result<bool> {
        let wanted = || self.still.wanted.load(Ordering::Acquire);
        if !wanted() {
            return Ok(false);
        }
        *self.still.stands() = true;
        self.still.changed.notify_all();
        while wanted() && !self.stopped() {
            let mut pipe = [PollFd::new(&self.pipe, PollFlags::IN)];
            match poll(&mut pipe, None) {
                Ok(_) => self.clear(),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        *self.still.stands() = false;
        Ok(wanted() && self.stopped())
    }

    pub(crate) fn stopped(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }
}

impl AsFd for WakeSource {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pipe.as_fd()
    }
}
