//! Load: connections that set and get their own keys without a pause and check every answer byte for byte.
//!
//! ```no_run
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use kv::load::{Load, LoadOptions};
//!
//! let mut options = LoadOptions::default();
//! options.fill_bytes = 256 << 20;
//! let load = Load::start("127.0.0.1:6379".parse()?, options, &mut |progress| println!("{progress:?}"))?;
//! load.mark("update");
//! // … what is to be observed …
//! load.mark("after");
//! let report = load.stop(&mut |progress| println!("{progress:?}"))?;
//! println!("{} dropped, worst {} ms", report.total.dropped, report.total.worst_ms);
//! # Ok(())
//! # }
//! ```
//!
//! Invariants:
//! - A key belongs to one connection, which has at most one request about it under way; so what a get must answer
//!   is known exactly.
//! - A latency counts from when the request was made, also where the connection was lost and the request repeated.
//! - Every request ends as served, as failed, or in the error that ends the load.

mod engine;
mod histogram;
mod pattern;

use std::net::SocketAddr;
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use self::engine::{Engine, Phase};
pub use self::histogram::{Histogram, Slot, Timeline};

/// Why there is no load.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// Nobody answers at the address.
    #[error("cannot connect to {address}; does kv run there?")]
    Connect {
        /// The address.
        address: SocketAddr,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
    /// Events cannot be waited for.
    #[error("cannot wait for events; check the limit on open files")]
    Events(#[source] rustix::io::Errno),
    /// No thread can be started, or the load's thread ended without a result.
    #[error("the load's thread failed")]
    Thread(#[source] Option<std::io::Error>),
    /// An option that makes no sense.
    #[error("the load needs at least one connection and values of 1 byte to 64 MiB")]
    Options,
    /// The data could not be put in: the server refused or lost some of it.
    #[error("filling failed: {reason}")]
    Fill {
        /// The first failure.
        reason: String,
    },
}

/// What load to make.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct LoadOptions {
    /// Connections, each with one request under way at any time.
    pub connections: usize,
    /// Bytes of each value.
    pub value_len: usize,
    /// How much data to put in before the load begins, in bytes; at least one value for each connection.
    pub fill_bytes: u64,
    /// Requests under way on each connection while data is put in or read back, at most 256 KiB of values.
    pub depth: usize,
    /// A request that is not answered for so long has failed.
    pub request_timeout: Duration,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self {
            connections: 64,
            value_len: 4096,
            fill_bytes: 0,
            depth: 16,
            request_timeout: Duration::from_secs(30),
        }
    }
}

/// What the work is at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// Data is put in.
    Fill,
    /// All data is read back and checked.
    Verify,
}

/// How far it has got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// What is being done.
    pub work: Work,
    /// Bytes of values done.
    pub done: u64,
    /// Bytes of values there are.
    pub total: u64,
}

/// The load as it is now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Snapshot {
    /// Requests answered as they must be.
    pub served: u64,
    /// Requests answered otherwise, or not in time.
    pub failed: u64,
    /// Connections lost.
    pub dropped: u64,
    /// Bytes of values compared.
    pub verified_bytes: u64,
    /// The worst latency since the last mark.
    pub worst: Duration,
}

/// Figures of one step, from one mark to the next.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct StepReport {
    /// The mark's name.
    pub name: String,
    /// When it began, in milliseconds since the load began.
    pub started_ms: f64,
    /// How long it lasted, in milliseconds.
    pub duration_ms: f64,
    /// Requests answered as they must be.
    pub served: u64,
    /// Requests answered with an error or with wrong bytes, or not in time.
    pub failed: u64,
    /// Connections that the other side ended.
    pub dropped: u64,
    /// Bytes of values compared.
    pub verified_bytes: u64,
    /// Worst latency, in milliseconds.
    pub worst_ms: f64,
    /// Median latency, in milliseconds.
    pub p50_ms: f64,
    /// Latency that 99 of 100 requests do not exceed, in milliseconds.
    pub p99_ms: f64,
}

/// All that was seen.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[non_exhaustive]
pub struct LoadReport {
    /// Filling, before the load.
    pub fill: StepReport,
    /// The steps of the load; the first is "load", from the beginning to the first mark.
    pub steps: Vec<StepReport>,
    /// The check of all data after the load.
    pub verify: StepReport,
    /// Load and final check together; the latencies are those of the load, whose requests go one by one.
    pub total: StepReport,
    /// Worst latency of each millisecond of the load in which something was answered.
    pub timeline: Vec<Slot>,
    /// The first failure or lost connection, in words.
    pub first_failure: Option<String>,
}

impl LoadReport {
    /// Whether nothing failed, dropped or differed, from the beginning of the load to the final check.
    pub fn is_clean(&self) -> bool {
        self.total.failed == 0 && self.total.dropped == 0
    }
}

enum Control {
    Mark(String),
    Stop,
}

/// Makes load.
#[derive(Debug)]
pub struct Load;

impl Load {
    /// Connects, fills, and begins the load in a thread of its own.
    ///
    /// `progress` is called in this thread while data is put in.
    ///
    /// # Errors
    /// [`LoadError`].
    pub fn start(
        address: SocketAddr,
        options: LoadOptions,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<LoadHandle, LoadError> {
        if options.connections == 0
            || options.value_len == 0
            || options.value_len > crate::store::MAX_VALUE
        {
            return Err(LoadError::Options);
        }
        let mut engine = Engine::connect(address, options)?;
        engine.run(Phase::Fill, &mut |engine| {
            progress(engine.progress(Work::Fill));
            true
        })?;
        let mut fill = engine.take_steps().pop().ok_or(LoadError::Thread(None))?;
        fill.name = "fill".into();
        if fill.failed > 0 {
            let reason = engine.first_failure().unwrap_or_default();
            return Err(LoadError::Fill { reason });
        }
        let (control, orders) = mpsc::channel();
        let snapshot = Arc::new(Mutex::new(Snapshot::default()));
        let shown = Arc::clone(&snapshot);
        let thread = thread::Builder::new().name("load".into()).spawn(move || {
            engine.begin_load();
            let mut next_look = Instant::now();
            engine.run(Phase::Load, &mut |engine| {
                for order in orders.try_iter() {
                    match order {
                        Control::Mark(name) => engine.mark(name),
                        Control::Stop => return false,
                    }
                }
                let now = Instant::now();
                if now >= next_look {
                    next_look = now + Duration::from_millis(20);
                    *shown.lock().unwrap_or_else(PoisonError::into_inner) = engine.snapshot();
                }
                true
            })?;
            Ok(engine)
        });
        let thread = thread.map_err(|error| LoadError::Thread(Some(error)))?;
        Ok(LoadHandle { control, thread, snapshot, fill })
    }
}

/// Load that is running.
#[derive(Debug)]
pub struct LoadHandle {
    control: Sender<Control>,
    thread: JoinHandle<Result<Engine, LoadError>>,
    snapshot: Arc<Mutex<Snapshot>>,
    fill: StepReport,
}

impl LoadHandle {
    /// Begins a step. What is answered from now on is counted in it.
    pub fn mark(&self, name: impl Into<String>) {
        // A load that ended by itself tells why in `stop`.
        let _ = self.control.send(Control::Mark(name.into()));
    }

    /// The load as it was within the last 20 ms or so.
    pub fn snapshot(&self) -> Snapshot {
        *self.snapshot.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the load ended by itself; [`stop`](Self::stop) tells why.
    pub fn has_ended(&self) -> bool {
        self.thread.is_finished()
    }

    /// Ends the load, reads back all data, and reports. `progress` is called while data is read back.
    ///
    /// # Errors
    /// [`LoadError`] where the server could not be reached any more.
    pub fn stop(self, progress: &mut dyn FnMut(Progress)) -> Result<LoadReport, LoadError> {
        self.rest()?.verify(progress)
    }

    /// Ends the load once the last answer has come, and reads nothing back yet. The connections stay, idle.
    ///
    /// # Errors
    /// [`LoadError`] where the server could not be reached any more.
    pub fn rest(self) -> Result<RestingLoad, LoadError> {
        // A load that ended by itself tells why just below.
        let _ = self.control.send(Control::Stop);
        let mut engine = self.thread.join().map_err(|_| LoadError::Thread(None))??;
        let (steps, total) = engine.take_steps_and_total("total");
        let timeline = engine.take_timeline();
        Ok(RestingLoad { engine, fill: self.fill, steps, total, timeline })
    }
}

/// Load that has ended, and knows what every key must hold.
#[derive(Debug)]
pub struct RestingLoad {
    engine: Engine,
    fill: StepReport,
    steps: Vec<StepReport>,
    total: StepReport,
    timeline: Vec<Slot>,
}

impl RestingLoad {
    /// Connects anew, to where the data is to be now. The connections that were are closed, and do not count as
    /// dropped.
    ///
    /// # Errors
    /// [`LoadError::Connect`], [`LoadError::Events`].
    pub fn move_to(&mut self, address: SocketAddr) -> Result<(), LoadError> {
        self.engine.move_to(address)
    }

    /// Reads back all data, and reports. `progress` is called while data is read back.
    ///
    /// # Errors
    /// [`LoadError`] where the server could not be reached any more.
    pub fn verify(self, progress: &mut dyn FnMut(Progress)) -> Result<LoadReport, LoadError> {
        let Self { mut engine, fill, steps, mut total, timeline } = self;
        engine.run(Phase::Verify, &mut |engine| {
            progress(engine.progress(Work::Verify));
            true
        })?;
        let mut verify = engine.take_steps().pop().ok_or(LoadError::Thread(None))?;
        verify.name = "verify".into();
        total.served += verify.served;
        total.failed += verify.failed;
        total.dropped += verify.dropped;
        total.verified_bytes += verify.verified_bytes;
        Ok(LoadReport {
            fill,
            steps,
            verify,
            total,
            timeline,
            first_failure: engine.first_failure(),
        })
    }
}
