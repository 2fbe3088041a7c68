//! How long a request to luod takes, beside a bare message to another process and back.
//!
//! `info` is one round trip between client and worker, with JSON on both sides. `preserve` of one
//! descriptor is that and another one between worker and keeper, which come one after the other:
//! nothing is answered before the keeper has it.

use std::thread;
use std::time::Instant;

use super::daemon::{Daemon, Kind};
use super::report::Better;
use super::stats::{Samples, micros};
use super::{Bencher, Row, helper, round_trip};
use crate::failure::{Context as _, Failed, Result};

/// With client and luod on one processor, and on two.
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
        let bare = round_trip::measure(bencher, here, there)?;
        let (info, preserve) = measure(bencher, here, there)?;
        for (what, samples) in [("info", &info), ("preserve of one descriptor", &preserve)] {
            for percent in [50, 99] {
                rows.push(Row {
                    what: format!("{what} {place}, p{percent}"),
                    ours: Some(micros(samples.percentile(percent))),
                    peer: "bare unix socket".into(),
                    peer_value: micros(bare.percentile(percent)),
                    unit: "µs",
                    better: Better::Lower,
                    goal: None,
                });
            }
        }
    }
    Ok(rows)
}

fn measure(bencher: &Bencher<'_>, here: usize, there: usize) -> Result<(Samples, Samples)> {
    let daemon = Daemon::start(bencher, Some(there))?;
    let times = bencher.times(5_000);
    let (info, preserve) = thread::scope(|scope| {
        scope
            .spawn(|| {
                helper::pin(here)?;
                let session = daemon.session("bench")?;
                let files = Kind::Sockets.files(1, 1)?;
                let (mut info, mut preserve) = (Vec::new(), Vec::new());
                for _ in 0..times {
                    let began = Instant::now();
                    session.info().context(|| "ask for a session's info".into())?;
                    info.push(began.elapsed());
                    for (token, file) in &files {
                        let began = Instant::now();
                        session.preserve(*token, file).context(|| "preserve".into())?;
                        preserve.push(began.elapsed());
                        session.unpreserve(*token).context(|| "unpreserve".into())?;
                    }
                }
                Ok((info, preserve))
            })
            .join()
            .map_err(|_| Failed::new("the measuring thread panicked"))?
    })?;
    Samples::new(info)
        .zip(Samples::new(preserve))
        .ok_or_else(|| Failed::new("nothing was measured"))
}
