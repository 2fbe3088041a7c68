//! How long a live update took, over both of its sides: what is written down, and when.
//!
//! The side that departs keeps a [record](luo_abi::record::TimelineRecord) through the carrier, as the
//! subsystem `timeline`, which is called last in `freeze`. The side that arrives adds to it, and
//! holds it in a slot of its keeper, so that a worker that is started again goes on with it.
//!
//! Invariants:
//! - Nothing here fails an update: the subsystem is optional, and what cannot be read is as if
//!   nothing had been measured.
//! - What is written is bounded, however many sessions there are.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use luo_abi::TimelinePhase;
use luo_abi::record::{
    Reading, RecordError, TimelineArrival, TimelineName, TimelineRecord, TimelineSpan,
};
use luo_carriers::{HostFile, boot_id};
use luo_core::{Errno, Failure, Handle, Keep, Recall, Subsystem};
use rustix::time::{ClockId, clock_gettime};

use super::timing::{Part, micros};
#[cfg(test)]
use luo_core::Phase;

/// The subsystem's name.
pub(crate) const NAME: &str = "timeline";

/// A record with text of its own.
pub(crate) type Record = TimelineRecord<'static>;

/// Both clocks now.
fn now() -> Reading {
    let read = |clock| {
        let time = clock_gettime(clock);
        let micros = time.tv_sec.saturating_mul(1_000_000).saturating_add(time.tv_nsec / 1_000);
        u64::try_from(micros).unwrap_or(0)
    };
    Reading { realtime: read(ClockId::Realtime), boottime: read(ClockId::Boottime) }
}

/// When a moment of this process was, in microseconds since the boot.
fn boottime(moment: Instant) -> u64 {
    now().boottime.saturating_sub(micros(moment.elapsed()))
}

/// An update of the machine that has begun here.
#[derive(Debug, Clone)]
struct Leaving {
    number: u64,
    carrier: &'static str,
    prepare: Vec<Part>,
    /// When `freeze` began, and what it took so far.
    frozen: Option<Reading>,
    freeze: Vec<Part>,
}

#[derive(Debug, Default)]
struct State {
    leaving: Option<Leaving>,
    /// When this side began to arrive.
    arriving: Option<Reading>,
    /// The last live update that arrived here.
    record: Option<Record>,
    changed: bool,
}

/// See the module. Its copies are the same one.
#[derive(Debug, Clone, Default)]
pub(crate) struct Timeline(Arc<Mutex<State>>);

impl Timeline {
    fn state(&self) -> MutexGuard<'_, State> {
        // Whatever panicked: these are only times.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The machine's `prepare` begins.
    pub(crate) fn prepares(&self, number: u64, carrier: &'static str) {
        self.state().leaving = Some(Leaving {
            number,
            carrier,
            prepare: Vec::new(),
            frozen: None,
            freeze: Vec::new(),
        });
    }

    /// The machine's `prepare` has ended well.
    pub(crate) fn prepared(&self, parts: Vec<Part>) {
        if let Some(leaving) = &mut self.state().leaving {
            leaving.prepare = parts;
        }
    }

    /// The machine's `freeze` begins. `number` and `carrier` where another worker has prepared it.
    pub(crate) fn freezes(&self, number: u64, carrier: &'static str) {
        let mut state = self.state();
        let leaving = state.leaving.get_or_insert_with(|| Leaving {
            number,
            carrier,
            prepare: Vec::new(),
            frozen: None,
            freeze: Vec::new(),
        });
        leaving.frozen = Some(now());
    }

    /// What the machine's `freeze` took, but for the last call.
    pub(crate) fn frozen(&self, parts: Vec<Part>) {
        if let Some(leaving) = &mut self.state().leaving {
            leaving.freeze = parts;
        }
    }

    /// The machine's update was undone.
    pub(crate) fn cancelled(&self) {
        self.state().leaving = None;
    }

    /// The machine begins to arrive.
    pub(crate) fn arrives(&self) {
        self.state().arriving = Some(now());
    }

    /// What the side that departed has kept.
    ///
    /// # Errors
    /// Where it is none; then nothing was measured.
    fn take(&self, bytes: &[u8]) -> Result<(), RecordError> {
        let mut record = TimelineRecord::decode(bytes)?.into_owned();
        let mut state = self.state();
        let began = state.arriving.unwrap_or_else(now);
        record.arrival = Some(TimelineArrival { boot: boot_id(), began, last: began });
        state.record = Some(record);
        state.changed = true;
        Ok(())
    }

    /// Something was done for the machine, or for one session, in this time.
    pub(crate) fn took(
        &self,
        phase: TimelinePhase,
        session: Option<&str>,
        start: Instant,
        took: Duration,
    ) {
        let mut state = self.state();
        let Some(record) = &mut state.record else { return };
        let Some(arrival) = &mut record.arrival else { return };
        arrival.last = now();
        let began = boottime(start);
        let length = micros(took);
        let name = match session {
            None => None,
            Some(session) => match place(record, session, false) {
                Some(place) => Some(place),
                None => return,
            },
        };
        let same = |span: &&mut TimelineSpan| span.phase == phase && span.name == name;
        let full = record.spans.len() >= Record::SPANS_MAX;
        match record.spans.iter_mut().find(same) {
            // The first claim counts, and retrievals from the first one to the last.
            Some(span) if phase == TimelinePhase::Retrieve => {
                span.length = began.saturating_add(length).saturating_sub(span.began);
            }
            Some(_) => return,
            None if full => return,
            None => record.spans.push(TimelineSpan { phase, name, began, length }),
        }
        state.changed = true;
    }

    /// The last live update that arrived here.
    pub(crate) fn record(&self) -> Option<Record> {
        self.state().record.clone()
    }

    /// What is to be held by the keeper, where it has changed.
    pub(crate) fn take_changed(&self) -> Option<Vec<u8>> {
        let mut state = self.state();
        if !std::mem::take(&mut state.changed) {
            return None;
        }
        // What cannot be written down is gone with this worker; it is a bug, and no failure.
        let bytes = state.record.as_ref()?.encode();
        bytes.inspect_err(|error| tracing::warn!(%error, "the timeline is not kept")).ok()
    }

    /// What the worker before held.
    ///
    /// # Errors
    /// Where it is none.
    pub(crate) fn restore(&self, bytes: &[u8]) -> Result<(), RecordError> {
        self.state().record = Some(TimelineRecord::decode(bytes)?.into_owned());
        Ok(())
    }
}

/// The place of a name in a record, where it has one or gets one.
fn place(record: &mut Record, name: &str, participant: bool) -> Option<u32> {
    let same = |entry: &TimelineName<'_>| entry.name == name && entry.participant == participant;
    let found = record.names.iter().position(same);
    let place = found.or_else(|| {
        (record.names.len() < Record::NAMES_MAX).then(|| {
            record.names.push(TimelineName { name: name.to_owned().into(), participant });
            record.names.len() - 1
        })
    })?;
    u32::try_from(place).ok()
}

/// The record of an update that is frozen.
fn leave(leaving: &Leaving, kept: Reading) -> Record {
    let frozen = leaving.frozen.unwrap_or(kept);
    let mut record = Record {
        number: leaving.number,
        carrier: leaving.carrier.into(),
        boot: boot_id(),
        frozen,
        kept,
        arrival: None,
        unlisted: 0,
        names: Vec::new(),
        spans: vec![TimelineSpan {
            phase: TimelinePhase::Freeze,
            name: None,
            began: frozen.boottime,
            length: kept.boottime.saturating_sub(frozen.boottime),
        }],
    };
    let mut parts: Vec<(TimelinePhase, &Part)> = Vec::new();
    parts.extend(leaving.freeze.iter().map(|part| (TimelinePhase::Freeze, part)));
    parts.extend(leaving.prepare.iter().map(|part| (TimelinePhase::Prepare, part)));
    if let Some(began) = leaving.prepare.iter().map(|part| part.first).min()
        && let Some(ended) = leaving.prepare.iter().map(|part| part.last).max()
    {
        record.spans.push(span(TimelinePhase::Prepare, None, began, ended));
    }
    // Those that took longest first: they are what is looked for.
    parts.sort_by_key(|(phase, part)| {
        (*phase != TimelinePhase::Freeze, std::cmp::Reverse(part.length()))
    });
    let mut unlisted: HashMap<(&str, bool), ()> = HashMap::new();
    for (phase, part) in parts {
        let Some((name, participant)) = part.whose() else { continue };
        match place(&mut record, name, participant) {
            Some(place) if record.spans.len() < Record::SPANS_MAX => {
                record.spans.push(span(phase, Some(place), part.first, part.last));
            }
            _ => {
                unlisted.insert((name, participant), ());
            }
        }
    }
    record.unlisted = u32::try_from(unlisted.len()).unwrap_or(u32::MAX);
    record
}

fn span(phase: TimelinePhase, name: Option<u32>, first: Instant, last: Instant) -> TimelineSpan {
    let length = micros(last.saturating_duration_since(first));
    TimelineSpan { phase, name, began: boottime(first), length }
}

/// A part of the machine, as the framework calls it.
#[derive(Debug)]
pub(crate) struct Kept(pub(crate) Timeline);

impl Subsystem<HostFile> for Kept {
    fn prepare(&self, _: &dyn Keep<HostFile>) -> Result<u64, Failure> {
        Ok(0)
    }

    fn freeze(&self, _: u64, keep: &dyn Keep<HostFile>) -> Result<u64, Failure> {
        let leaving = self.0.state().leaving.clone();
        let Some(leaving) = leaving else { return Ok(0) };
        let bytes = leave(&leaving, now())
            .encode()
            .map_err(|error| Failure::new(Errno::Inval, format!("the timeline: {error}")))?;
        keep.keep_bytes(&bytes).map(|handle| handle.0)
    }

    // What was kept is let go of by the framework.
    fn cancel(&self, _: u64, _: &dyn Keep<HostFile>) {}

    fn boot(&self, data: u64, recall: &dyn Recall<HostFile>) -> Result<(), Failure> {
        if data == 0 {
            return Ok(());
        }
        let bytes = recall.bytes(Handle(data))?;
        self.0.take(&bytes).map_err(|error| {
            let reason = format!("how long this live update took is not known: {error}");
            Failure::new(Errno::Inval, reason)
        })
    }

    fn finish(&self, _: u64, _: &dyn Recall<HostFile>) {}
}

pub(crate) mod measure;
#[cfg(test)]
mod tests;
