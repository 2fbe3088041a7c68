//! Waiting by blocking the thread.
//!
//! Invariants: no future of [`Blocking`] is ever pending, so one poll brings each to its end; the
//! socket itself never blocks, all waiting is done in poll(2), with the deadline.

use std::os::fd::{AsFd, OwnedFd};
use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;

use crate::drive::{Drive, Job, RETRY_PAUSE, Step};
use crate::error::Error;

/// Blocks the thread that waits.
#[derive(Debug)]
pub(crate) struct Blocking;

impl Drive for Blocking {
    type Socket = OwnedFd;

    fn register(socket: OwnedFd) -> Result<OwnedFd, Error> {
        Ok(socket)
    }

    async fn drive<J: Job>(
        socket: &OwnedFd,
        until: Option<Instant>,
        job: &mut J,
    ) -> Result<Option<J::Output>, Error> {
        loop {
            let flags = match job.step(socket.as_fd())? {
                Step::Done(output) => return Ok(Some(output)),
                Step::Wait { writing: false } => PollFlags::IN,
                Step::Wait { writing: true } => PollFlags::IN | PollFlags::OUT,
                Step::Pause => {
                    let left = left(until);
                    if left.is_some_and(|left| left.is_zero()) {
                        return Ok(None);
                    }
                    thread::sleep(left.map_or(RETRY_PAUSE, |left| left.min(RETRY_PAUSE)));
                    continue;
                }
            };
            if !wait(socket, flags, until)? {
                return Ok(None);
            }
        }
    }

    async fn pause(time: Duration) {
        thread::sleep(time);
    }
}

/// The end of a future that never waits for anything but [`Blocking`].
pub(crate) fn now<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    let mut context = Context::from_waker(Waker::noop());
    loop {
        match future.as_mut().poll(&mut context) {
            Poll::Ready(output) => return output,
            // Not reached: nothing that blocks is ever pending.
            Poll::Pending => thread::yield_now(),
        }
    }
}

fn left(until: Option<Instant>) -> Option<Duration> {
    until.map(|until| until.saturating_duration_since(Instant::now()))
}

/// Waits until the socket is ready; `false` when the time has passed.
fn wait(socket: &OwnedFd, flags: PollFlags, until: Option<Instant>) -> Result<bool, Error> {
    loop {
        let left = left(until);
        if left.is_some_and(|left| left.is_zero()) {
            return Ok(false);
        }
        // A time that is too long for the kernel is none.
        let timeout = left.and_then(|left| Timespec::try_from(left).ok());
        match rustix::event::poll(&mut [PollFd::new(socket, flags)], timeout.as_ref()) {
            Ok(0) | Err(Errno::INTR) => {}
            Ok(_) => return Ok(true),
            Err(error) => return Err(Error::system("waiting for luod")(error.into())),
        }
    }
}
