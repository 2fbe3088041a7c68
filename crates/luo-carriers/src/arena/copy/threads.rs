//! Shares work among the processors.
//!
//! Invariants: every thread has ended when [`run`] returns; only the calling thread calls what
//! the caller gave for progress.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use luo_core::{Errno, Failure};

use super::Progress;

/// How much work a thread must have to be worth its start, in bytes.
const WORTH: u64 = 8 << 20;

/// What the threads of one piece of work share.
#[derive(Debug)]
pub(super) struct Shared {
    stop: AtomicBool,
    done: AtomicU64,
    total: u64,
}

impl Shared {
    /// For work on that many bytes.
    pub(super) fn new(total: u64) -> Self {
        Self { stop: AtomicBool::new(false), done: AtomicU64::new(0), total }
    }

    /// That many bytes more are done.
    pub(super) fn advance(&self, bytes: u64) {
        self.done.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Whether another thread has failed, so that nothing that is still done will be of use.
    pub(super) fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    fn report(&self, progress: Progress<'_>) -> Result<(), Failure> {
        progress(self.done.load(Ordering::Relaxed).min(self.total), self.total)
    }
}

/// Runs `work` on as many threads as there are processors and `used` bytes are worth, one of
/// them the calling one. Each ends when [`Shared::stopped`] says so, and calls the function that
/// it is given now and then.
///
/// Gives what each thread has made, and the first failure of any, which stops the others.
pub(super) fn run<T: Send + Default>(
    shared: &Shared,
    used: u64,
    progress: Progress<'_>,
    work: &(impl Fn(&mut T, &dyn Fn() -> Result<(), Failure>) -> Result<(), Failure> + Sync),
) -> (Vec<T>, Result<(), Failure>) {
    let processors = thread::available_parallelism().map_or(1, usize::from);
    let threads = usize::try_from(used / WORTH).unwrap_or(usize::MAX).clamp(1, processors);
    let one = |tick: &dyn Fn() -> Result<(), Failure>| {
        let mut made = T::default();
        let result = work(&mut made, tick);
        if result.is_err() {
            shared.stop.store(true, Ordering::Relaxed);
        }
        (made, result)
    };
    thread::scope(|scope| {
        // Where no thread can be started, the ones that there are do the work.
        let others: Vec<_> = (1..threads)
            .map_while(|number| {
                thread::Builder::new()
                    .name(format!("luo-copy-{number}"))
                    .spawn_scoped(scope, || one(&|| Ok(())))
                    .ok()
            })
            .collect();
        let (mine, mut result) = one(&|| shared.report(progress));
        let mut all = vec![mine];
        for other in others {
            match other.join() {
                Ok((made, outcome)) => {
                    all.push(made);
                    result = result.and(outcome);
                }
                Err(_) => {
                    let failure = Failure::new(Errno::Io, "a thread that copies memory panicked");
                    result = result.and(Err(failure));
                }
            }
        }
        if result.is_ok() {
            result = shared.report(progress);
        }
        (all, result)
    })
}
