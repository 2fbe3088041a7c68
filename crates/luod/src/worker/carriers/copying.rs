//! Whether copying goes on, how far it is, and whether it should.
//!
//! Invariants:
//! - Every piece that is copied asks; a cancel stops each that is under way, and none that begins
//!   after [`begin`](Copying::begin).

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use luo_core::{Errno, Failure};

/// Whether copying goes on, and whether it should.
#[derive(Debug, Default)]
pub(crate) struct Copying {
    /// Counts signs of life.
    beats: AtomicU64,
    /// Bytes that went through since the arena was opened.
    bytes: AtomicU64,
    cancelled: AtomicBool,
}

thread_local! {
    /// Where this thread is within what it copies: a smaller number begins something new.
    static DONE: Cell<u64> = const { Cell::new(0) };
}

impl Copying {
    /// Changes while something is being copied.
    pub(crate) fn beats(&self) -> u64 {
        self.beats.load(Ordering::Relaxed)
    }

    /// Bytes that went through since the arena was opened: read, and written where they differ.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// What is being copied stops soon.
    pub(crate) fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }

    pub(crate) fn begin(&self) {
        self.cancelled.store(false, Ordering::Relaxed);
        self.bytes.store(0, Ordering::Relaxed);
    }

    pub(crate) fn go_on(&self, done: u64) -> Result<(), Failure> {
        self.beats.fetch_add(1, Ordering::Relaxed);
        let before = DONE.replace(done);
        let more = if done < before { done } else { done - before };
        self.bytes.fetch_add(more, Ordering::Relaxed);
        match self.cancelled.load(Ordering::Relaxed) {
            false => Ok(()),
            true => Err(Failure::new(Errno::Canceled, "the update was cancelled")),
        }
    }
}
