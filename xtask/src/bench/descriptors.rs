//! Descriptors a second through a real luod: preserved, and retrieved by the next holder.
//!
//! Every descriptor is one file of its own, and goes from this process to the worker and on to the
//! keeper before the worker answers; that is two messages where the limit, a bare socket that takes
//! the same files, has one.
//! Both sides are measured in rounds of the same number of descriptors, which take turns, and the
//! best round of each counts: so what else the machine does bears on both alike.
//!
//! Batches of 1 and 16 wait for their answers one by one, as a service does that preserves what it
//! has just opened; what the library splits itself, at 253, is pipelined by it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use luo::protocol::MAX_DESCRIPTORS;

use super::daemon::{self, Daemon, Kind};
use super::report::Better;
use super::scm_rights::Bare;
use super::{Bencher, Row};
use crate::failure::{Context as _, Result};

/// Of the limit, at the largest batch: the keeper's share is in it.
const GOAL: f64 = 0.5;

/// Sockets and eventfds, in batches of 1, 16 and 253.
pub(super) fn run(bencher: &Bencher<'_>) -> Result<Vec<Row>> {
    daemon::raise_descriptor_limit()?;
    let daemon = Daemon::start(bencher, None)?;
    let mut rows = Vec::new();
    for kind in [Kind::Sockets, Kind::Eventfds] {
        for (batch, batches) in [(1, 500), (16, 100), (MAX_DESCRIPTORS, 32)] {
            bencher.measuring(&format!("{}, batches of {batch}", kind.name()));
            let best = measure(bencher, &daemon, kind, batch, batches)?;
            let row = |verb, ours| Row {
                what: format!("{} {verb}, batches of {batch}", kind.name()),
                ours: Some(ours),
                peer: "bare SCM_RIGHTS".into(),
                peer_value: best.bare,
                unit: "descriptors/s",
                better: Better::Higher,
                goal: (batch == MAX_DESCRIPTORS).then_some(GOAL),
            };
            rows.extend([row("preserved", best.preserved), row("retrieved", best.retrieved)]);
        }
    }
    Ok(rows)
}

/// The best rounds, in descriptors a second.
#[derive(Debug, Default)]
struct Best {
    bare: f64,
    preserved: f64,
    retrieved: f64,
}

fn measure(
    bencher: &Bencher<'_>,
    daemon: &Daemon,
    kind: Kind,
    batch: usize,
    batches: usize,
) -> Result<Best> {
    let count = batch * batches;
    let files = kind.files(1, count)?;
    let tokens: Vec<u64> = files.iter().map(|(token, _)| *token).collect();
    // The library pipelines what it splits.
    let together = if batch == MAX_DESCRIPTORS { count } else { batch };
    let same: Vec<BorrowedFd<'_>> = files.iter().map(|(_, file)| file.as_fd()).collect();
    let bare = Bare::start(bencher, batch)?;
    let mut best = Best::default();
    for _ in 0..bencher.times(40) {
        best.bare = best.bare.max(bare.round(&same)?);

        let session = daemon.session("bench")?;
        let began = Instant::now();
        for part in files.chunks(together) {
            daemon::preserve(&session, part)?;
        }
        best.preserved = best.preserved.max(per_second(count, began));
        drop(session);

        let session = daemon.claim("bench")?;
        let mut back: Vec<OwnedFd> = Vec::with_capacity(count);
        let began = Instant::now();
        for part in tokens.chunks(together) {
            back.extend(daemon::retrieve(&session, part)?);
        }
        best.retrieved = best.retrieved.max(per_second(count, began));
        drop(back);
        session.finish().context(|| "finish".into())?;
        session.release().context(|| "release the session".into())?;
    }
    bare.end()?;
    Ok(best)
}

fn per_second(count: usize, began: Instant) -> f64 {
    count as f64 / began.elapsed().as_secs_f64()
}
