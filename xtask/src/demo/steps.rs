//! What happens, in order.

use std::time::{Duration, Instant};

use kv::load::{Load, LoadHandle, LoadOptions, LoadReport};

use super::machine;
use super::outcome::{Compared, Kind, Outcome, Step, worst_within};
use super::processes::{Kv, Luod, Programs};
use super::progress::{self, Bytes};
use super::sizes::Sizes;
use crate::failure::{Context as _, Failed, Result};

/// What the upgraded luod calls itself.
const NEXT_LUOD: &str = "0.1-next";
/// The session of the main part.
const SESSION: &str = "kv";
/// From a mark to what it marks, so that the step has begun.
const LEAD: Duration = Duration::from_millis(20);

/// What is answered within this time after an event is counted to it.
const AFTERMATH: Duration = Duration::from_millis(150);

/// Runs everything.
pub(super) fn run(programs: &Programs, sizes: &Sizes) -> Result<Outcome> {
    let luod = Luod::start(programs)?;
    let (steps, load, busy) = main_part(programs, &luod, sizes)?;
    let mut compared = Vec::new();
    for mib in sizes.compared_mib {
        compared.push(compare(programs, &luod, sizes, mib)?);
    }
    Ok(Outcome {
        machine: machine::describe(),
        busy,
        connections: sizes.connections,
        mib: sizes.main_mib,
        steps,
        load,
        compared,
        shortages: sizes.shortages.clone(),
    })
}

/// What an event did, and how long it took.
struct Event {
    detail: String,
    took: Option<Duration>,
}

/// The steps so far; what the load saw comes at its end.
struct Recorder<'a> {
    load: &'a LoadHandle,
    length: Duration,
    done: Vec<(Kind, String, Event)>,
}

impl Recorder<'_> {
    /// Lets something happen, and goes on until the step's time is over.
    fn step(
        &mut self,
        kind: Kind,
        title: &str,
        event: impl FnOnce() -> Result<Event>,
    ) -> Result<()> {
        self.load.mark(title);
        std::thread::sleep(LEAD);
        let began = Instant::now();
        let event = event()?;
        progress::say(&format!("  {title:28} {}", event.detail));
        progress::watch(self.load, title, self.length.saturating_sub(began.elapsed()))?;
        self.done.push((kind, title.to_owned(), event));
        Ok(())
    }
}

/// kv v1 → v2, worker killed, luod upgraded, kv v2 → v1.
fn main_part(
    programs: &Programs,
    luod: &Luod,
    sizes: &Sizes,
) -> Result<(Vec<Step>, LoadReport, Option<f64>)> {
    let mut service = Service::start(programs, luod, SESSION, "v1")?;
    let load = service.load(sizes, sizes.main_mib)?;
    progress::watch(&load, "warming up", sizes.step / 3)?;
    let before = machine::processor_ticks();
    let mut recorder = Recorder { load: &load, length: sizes.step, done: Vec::new() };
    recorder.step(Kind::Nothing, "nothing happens", || {
        let detail = format!("{} connections set, get and check", sizes.connections);
        Ok(Event { detail, took: None })
    })?;
    let next = service.next("v2")?;
    recorder.step(Kind::Service, "kv v1 → v2", || service.replace(next))?;
    recorder.step(Kind::Kill, "luod's worker is killed", || {
        let began = Instant::now();
        let (before, after) = luod.kill_worker()?;
        let detail = format!("process {before} killed, {after} serves {}", after_ms(began));
        Ok(Event { detail, took: Some(began.elapsed()) })
    })?;
    recorder.step(Kind::Upgrade, "luod is upgraded", || {
        let began = Instant::now();
        let version = luod.upgrade(NEXT_LUOD)?;
        let detail = format!("worker and keeper are version {version} {}", after_ms(began));
        Ok(Event { detail, took: Some(began.elapsed()) })
    })?;
    let next = service.next("v1")?;
    recorder.step(Kind::Service, "kv v2 → v1", || service.replace(next))?;
    let done = recorder.done;
    let after = machine::processor_ticks();
    let busy = before.zip(after).map(|((busy, all), (busy_after, all_after))| {
        busy_after.saturating_sub(busy) as f64 / all_after.saturating_sub(all).max(1) as f64
    });
    let load = stop(load)?;
    service.end()?;
    let steps = done
        .into_iter()
        .map(|(kind, title, Event { detail, took })| {
            let seen = load.steps.iter().find(|step| step.name == title).cloned();
            let seen = seen.ok_or_else(|| Failed::new(format!("the load lacks step {title}")))?;
            let took_ms = took.map(|took| took.as_secs_f64() * 1e3);
            let looked_ms = took_ms.map_or(seen.duration_ms, event_ms);
            let event_worst_ms = worst_within(&load, seen.started_ms, looked_ms);
            Ok(Step { kind, title, detail, took_ms, event_worst_ms, looked_ms, seen })
        })
        .collect::<Result<_>>()?;
    Ok((steps, load, busy))
}

/// How long what is answered is counted to an event, from its mark on, in milliseconds.
fn event_ms(took_ms: f64) -> f64 {
    (LEAD + AFTERMATH).as_secs_f64() * 1e3 + took_ms
}

fn after_ms(began: Instant) -> String {
    format!("after {:.1} ms", began.elapsed().as_secs_f64() * 1e3)
}

/// The same update again and again, with so much data.
fn compare(programs: &Programs, luod: &Luod, sizes: &Sizes, mib: u64) -> Result<Compared> {
    let mut service = Service::start(programs, luod, &format!("kv-{mib}"), "v0")?;
    let load = service.load(sizes, mib)?;
    let length = (sizes.step / 3).max(Duration::from_millis(300));
    progress::watch(&load, "warming up", length)?;
    load.mark("nothing");
    progress::watch(&load, "nothing happens", length)?;
    let mut took_ms = Vec::new();
    for round in 1..=sizes.rounds {
        let next = service.next(&format!("v{round}"))?;
        load.mark(format!("update {round}"));
        std::thread::sleep(LEAD);
        let Event { detail, took } = service.replace(next)?;
        took_ms.push(took.unwrap_or_default().as_secs_f64() * 1e3);
        progress::say(&format!("  {:28} {detail}", format!("update with {mib} MiB")));
        progress::watch(&load, &format!("update with {mib} MiB"), length)?;
    }
    let load = stop(load)?;
    service.end()?;
    let seen = |name: &str| {
        let step = load.steps.iter().find(|step| step.name == name);
        step.ok_or_else(|| Failed::new(format!("the load lacks step {name}")))
    };
    let nothing_ms = seen("nothing")?.worst_ms;
    let mut worst_ms = Vec::new();
    for (took, round) in took_ms.into_iter().zip(1..) {
        let began = seen(&format!("update {round}"))?.started_ms;
        worst_ms.push(worst_within(&load, began, event_ms(took)));
    }
    Ok(Compared { mib, nothing_ms, worst_ms, load })
}

/// kv through its versions.
struct Service<'a> {
    programs: &'a Programs,
    luod: &'a Luod,
    session: String,
    kv: Kv,
    address: std::net::SocketAddr,
}

impl<'a> Service<'a> {
    fn start(programs: &'a Programs, luod: &'a Luod, session: &str, label: &str) -> Result<Self> {
        let mut kv = Kv::start(programs, luod, session, label)?;
        let address = kv.listens()?;
        Ok(Self { programs, luod, session: session.to_owned(), kv, address })
    }

    /// Fills it and begins the load.
    fn load(&self, sizes: &Sizes, mib: u64) -> Result<LoadHandle> {
        begin_load(self.address, sizes, mib)
    }

    /// The next version, started and waiting.
    fn next(&self, label: &str) -> Result<Kv> {
        let mut next = Kv::start(self.programs, self.luod, &self.session, label)?;
        next.waits()?;
        Ok(next)
    }

    /// Has the next version, which waits, take over. Comes back when it serves.
    fn replace(&mut self, mut next: Kv) -> Result<Event> {
        let began = Instant::now();
        self.kv.leave()?;
        let address = next.listens()?;
        let took = began.elapsed();
        if address != self.address {
            return Err(Failed::new(format!(
                "the next kv listens on {address} instead of {}",
                self.address
            )));
        }
        let before = std::mem::replace(&mut self.kv, next);
        let detail = format!(
            "{} took over from {} in {:.1} ms",
            self.kv.label(),
            before.label(),
            took.as_secs_f64() * 1e3
        );
        before.ended()?;
        Ok(Event { detail, took: Some(took) })
    }

    /// Ends it, and gives back the memory.
    fn end(self) -> Result<()> {
        self.kv.leave()?;
        self.kv.ended()?;
        self.luod.release(&self.session)
    }
}

/// Puts in data and begins the load.
pub(super) fn begin_load(
    address: std::net::SocketAddr,
    sizes: &Sizes,
    mib: u64,
) -> Result<LoadHandle> {
    let mut options = LoadOptions::default();
    options.connections = sizes.connections;
    options.value_len = sizes.value_len;
    options.fill_bytes = mib << 20;
    let mut bar = Bytes::new(format!("putting in {mib} MiB"));
    let load = Load::start(address, options, &mut |progress| bar.show(progress))
        .context(|| "begin the load".into())?;
    bar.done();
    Ok(load)
}

/// Ends the load and reads back all data.
fn stop(load: LoadHandle) -> Result<LoadReport> {
    let mut bar = Bytes::new("reading all data back");
    let report = load.stop(&mut |progress| bar.show(progress)).context(|| "end the load".into())?;
    bar.done();
    Ok(report)
}
