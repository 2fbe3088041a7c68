//! What a keeper is started with, and why it may not begin.
//!
//! Invariants: no parsing here; what is parsed has been by then.

use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::carry::StateError;
use super::slots::Limits;

/// Descriptors that are left to the keeper itself, a message on its way in included.
const RESERVED_FDS: usize = 2 * luo_abi::keeper::MAX_FDS + 64;

/// How long the keeper waits for what.
#[derive(Debug, Clone, Copy)]
pub struct Timing {
    /// A worker that is not ready so long after its start counts as dead.
    pub ready: Duration,
    /// A worker that dies later than this after it was ready did not die quickly.
    pub settled: Duration,
    /// The pause before the second restart after quick deaths (the first has none); it doubles
    /// with every further one.
    pub backoff: Duration,
    /// The longest pause.
    pub backoff_max: Duration,
    /// So many quick deaths in a row are the end state.
    pub deaths: u32,
    /// For each step of an upgrade that the other side has to answer: QUIESCED, the second READY,
    /// and the old worker's exit. (The candidate's first READY has the upgrade's own deadline.)
    pub step: Duration,
    /// For the worker's exit after SIGTERM, before it is killed.
    pub stop: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            ready: Duration::from_secs(30),
            settled: Duration::from_secs(1),
            backoff: Duration::from_millis(100),
            backoff_max: Duration::from_secs(5),
            deaths: 5,
            step: Duration::from_secs(10),
            stop: Duration::from_secs(10),
        }
    }
}

/// What a keeper is started with. All parsing has been done by then.
#[derive(Debug)]
pub struct Settings {
    /// The program of the worker (and, with other arguments, of the next keeper): opened once at
    /// the start, so that a restart after a death is not an upgrade. `/proc/self/exe` is right.
    pub program: PathBuf,
    /// Arguments that make it a worker.
    pub worker: Vec<OsString>,
    /// Arguments that make it [`check`](super::check) a state on its standard input.
    pub check: Vec<OsString>,
    /// Arguments that make it a keeper which [`resume`](super::resume)s; the number of the state's descriptor is
    /// appended.
    pub resume: Vec<OsString>,
    /// Bound sockets, given to every worker in this order; up to 253. (A resumed keeper has those
    /// of the keeper before, and ignores these.)
    pub listeners: Vec<OwnedFd>,
    /// The most it holds.
    pub limits: Limits,
    /// Its deadlines.
    pub timing: Timing,
}

/// Why a keeper could not begin or go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The worker's program.
    #[error("cannot open the worker's program {path}: {source}")]
    Program {
        /// Its path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Too many listeners.
    #[error("{0} listening sockets are more than the {max} that fit into a message", max = luo_abi::keeper::MAX_FDS)]
    Listeners(usize),
    /// RLIMIT_NOFILE.
    #[error(
        "the limit of open files is {0}, and the keeper itself needs {RESERVED_FDS}: raise LimitNOFILE="
    )]
    OpenFiles(u64),
    /// Signals, `poll`, and what else the kernel refused.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// What the keeper before has left.
    #[error("cannot take over from the keeper before: {0}")]
    State(#[from] StateError),
}

/// How many descriptors may be held; raises the process's limit as far as it may.
pub(super) fn spare_fds() -> Result<usize, Error> {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    // Where it may not be raised the current one counts.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
    let Some(limit) = getrlimit(Resource::Nofile).current else { return Ok(usize::MAX) };
    let spare = usize::try_from(limit).unwrap_or(usize::MAX).checked_sub(RESERVED_FDS);
    spare.filter(|spare| *spare > 0).ok_or(Error::OpenFiles(limit))
}
