//! Waiting on tokio.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use ::tokio::io::unix::{AsyncFd, AsyncFdReadyGuard};
use ::tokio::io::{Interest, Ready};
use ::tokio::runtime::Handle;
use ::tokio::time::{sleep, timeout_at};

use crate::drive::{Drive, Job, RETRY_PAUSE, Step};
use crate::error::Error;

/// Lets the runtime do other things meanwhile.
#[derive(Debug)]
pub(crate) struct Tokio;

impl Drive for Tokio {
    type Socket = AsyncFd<OwnedFd>;

    fn register(socket: OwnedFd) -> Result<Self::Socket, Error> {
        let doing = "registering a connection with the tokio runtime that must be running";
        Handle::try_current().map_err(io::Error::other).map_err(Error::system(doing))?;
        #[allow(
            deprecated,
            reason = "unsound only for types that give up their descriptor while it is registered; \
                      an OwnedFd that nothing else reaches does not, and its successor is unsafe"
        )]
        AsyncFd::new(socket).map_err(Error::system(doing))
    }

    async fn drive<J: Job>(
        socket: &Self::Socket,
        until: Option<Instant>,
        job: &mut J,
    ) -> Result<Option<J::Output>, Error> {
        let work = steps(socket, job);
        match until {
            None => work.await.map(Some),
            Some(until) => timeout_at(until.into(), work).await.ok().transpose(),
        }
    }

    async fn pause(time: Duration) {
        sleep(time).await;
    }
}

async fn steps<J: Job>(socket: &AsyncFd<OwnedFd>, job: &mut J) -> Result<J::Output, Error> {
    let mut guard: Option<AsyncFdReadyGuard<'_, OwnedFd>> = None;
    loop {
        let (interest, blocked) = match job.step(socket.as_fd())? {
            Step::Done(output) => return Ok(output),
            Step::Wait { writing: false } => (Interest::READABLE, Ready::READABLE),
            Step::Wait { writing: true } => {
                (Interest::READABLE | Interest::WRITABLE, Ready::READABLE | Ready::WRITABLE)
            }
            Step::Pause => {
                guard = None;
                sleep(RETRY_PAUSE).await;
                continue;
            }
        };
        // The step after the guard was made has seen for itself that the socket would block; what
        // came since then is newer than the guard and stays.
        if let Some(mut guard) = guard.take() {
            guard.clear_ready_matching(blocked);
        }
        let ready = socket.ready(interest).await;
        guard = Some(ready.map_err(Error::system("waiting for luod"))?);
    }
}
