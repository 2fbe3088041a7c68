//! Waking and stopping a server that waits for events, from another thread or a signal.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::io::Errno;

/// Wakes one server; any number of copies may exist.
#[derive(Debug, Clone)]
pub struct Waker {
    pipe: Arc<UnixStream>,
    stop: Arc<AtomicBool>,
}

/// The server's end.
#[derive(Debug)]
pub(crate) struct WakeSource {
    pipe: UnixStream,
    stop: Arc<AtomicBool>,
}

pub(crate) fn wake_pair() -> io::Result<(Waker, WakeSource)> {
    let (sender, receiver) = UnixStream::pair()?;
    sender.set_nonblocking(true)?;
    receiver.set_nonblocking(true)?;
    let stop = Arc::new(AtomicBool::new(false));
    Ok((
        Waker { pipe: Arc::new(sender), stop: Arc::clone(&stop) },
        WakeSource { pipe: receiver, stop },
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

    pub(crate) fn stopped(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }
}

impl AsFd for WakeSource {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pipe.as_fd()
    }
}
