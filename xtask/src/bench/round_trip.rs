//! How long a message to another process and its answer take at least: the limit of every request
//! to luod.

use std::os::fd::{AsFd, BorrowedFd};
use std::thread;
use std::time::{Duration, Instant};

use rustix::net::{RecvFlags, SendFlags, SocketType, recv, send};

use super::helper::{self, Peer};
use super::stats::{Samples, micros};
use super::{Bencher, Row};
use crate::failure::{Context as _, Failed, Result};

/// As long as a short request.
const MESSAGE: usize = 64;

/// Both ends on one processor, and on two.
pub(super) fn run(bencher: &Bencher<'_>) -> Result<Vec<Row>> {
    let cpus = helper::cpus()?;
    let mut rows = Vec::new();
    let places = [
        ("on one core", cpus.first().zip(cpus.first())),
        ("across cores", cpus.first().zip(cpus.get(1))),
    ];
    for (place, pair) in places {
        // A machine with one processor has no second place.
        let Some((&here, &there)) = pair else { continue };
        bencher.measuring(place);
        let samples = measure(bencher, here, there)?;
        for percent in [50, 99] {
            rows.push(Row::limit(
                format!("request and answer of {MESSAGE} bytes {place}, p{percent}"),
                "bare unix socket",
                micros(samples.percentile(percent)),
                "µs",
            ));
        }
    }
    Ok(rows)
}

/// Round trips between a thread on one processor and a helper on another.
pub(super) fn measure(bencher: &Bencher<'_>, here: usize, there: usize) -> Result<Samples> {
    let args = ["echo".into(), format!("--cpu={there}")];
    let peer = Peer::start(&bencher.xtask, &args, SocketType::STREAM)?;
    let socket = peer.socket()?.as_fd();
    let times = bencher.times(50_000);
    // In a thread of its own, which alone is pinned.
    let samples = thread::scope(|scope| {
        scope
            .spawn(|| {
                helper::pin(here)?;
                for _ in 0..100 {
                    round_trip(socket)?;
                }
                (0..times).map(|_| round_trip(socket)).collect::<Result<Vec<_>>>()
            })
            .join()
            .map_err(|_| Failed::new("the measuring thread panicked"))?
    })?;
    peer.end()?;
    Samples::new(samples).ok_or_else(|| Failed::new("nothing was measured"))
}

fn round_trip(socket: BorrowedFd<'_>) -> Result<Duration> {
    let began = Instant::now();
    send(socket, &[1; MESSAGE], SendFlags::NOSIGNAL).context(|| "send a message".into())?;
    let mut answer = [0; MESSAGE];
    let (read, _) =
        recv(socket, &mut answer, RecvFlags::WAITALL).context(|| "receive the answer".into())?;
    if read != MESSAGE {
        return Err(Failed::new("the helper went away"));
    }
    Ok(began.elapsed())
}

/// The helper: sends everything back until the other end is closed.
pub(super) fn echo() -> Result<()> {
    let stdin = std::io::stdin();
    let socket = stdin.as_fd();
    let mut message = [0; MESSAGE];
    loop {
        let (read, _) = recv(socket, &mut message, RecvFlags::WAITALL)
            .context(|| "receive a message".into())?;
        if read < MESSAGE {
            return Ok(());
        }
        send(socket, &message, SendFlags::NOSIGNAL).context(|| "send the answer".into())?;
    }
}
