//! Looking at many files with two threads.
//!
//! To look at a file takes a system call or several: a third of what it costs luod to preserve a
//! socket. A thread of its own looks at them from the last one on, while whoever has them goes
//! through them from the first; who comes to a file second finds what the other has seen.
//!
//! Invariants:
//! - The thread has a file only under the lock, and lets go of it before the lock: once an
//!   [`Ahead`] is dropped, nothing here has any of its files.
//! - Nobody waits for the thread but for one look, and nothing depends on how far it came.

use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::Duration;

use super::HostFile;

/// To wake the thread costs as much as to look at so many files.
const FEW: usize = 64;
/// The thread ends when it has had nothing to do for so long.
const IDLE: Duration = Duration::from_secs(5);
/// It needs little: it makes system calls.
const STACK: usize = 64 << 10;

static LOOKER: Looker =
    Looker { state: Mutex::new(State { files: Vec::new(), runs: false }), more: Condvar::new() };

struct Looker {
    state: Mutex<State>,
    more: Condvar,
}

struct State {
    /// Those that are to be looked at, the last one first.
    files: Vec<HostFile>,
    runs: bool,
}

/// Files that are looked at meanwhile, until it is dropped.
#[derive(Debug)]
pub struct Ahead(());

impl HostFile {
    /// Begins to look at these files while the caller uses them, from the first one on. `None`
    /// where that would not be faster: of few files, on one processor, or where somebody else's
    /// are being looked at.
    #[must_use]
    pub fn look_ahead(files: &[Self]) -> Option<Ahead> {
        static PROCESSORS: OnceLock<bool> = OnceLock::new();
        let several = || thread::available_parallelism().is_ok_and(|count| count.get() > 1);
        if files.len() < FEW || !*PROCESSORS.get_or_init(several) {
            return None;
        }
        LOOKER.begin(files)
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        LOOKER.state().files.clear();
    }
}

impl Looker {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(&'static self, files: &[HostFile]) -> Option<Ahead> {
        let mut state = self.state();
        if !state.files.is_empty() {
            return None;
        }
        if state.runs {
            self.more.notify_one();
        } else {
            let thread = thread::Builder::new().name("looker".to_owned()).stack_size(STACK);
            // Without a thread they are looked at one by one.
            thread.spawn(|| self.work()).ok()?;
            state.runs = true;
        }
        state.files.extend_from_slice(files);
        Some(Ahead(()))
    }

    fn work(&self) {
        let mut state = self.state();
        loop {
            if let Some(file) = state.files.pop() {
                // What cannot be looked at is found so by whoever needs it.
                let _ = file.memory();
                drop(file);
                drop(state);
                state = self.state();
                continue;
            }
            let (back, waited) =
                self.more.wait_timeout(state, IDLE).unwrap_or_else(PoisonError::into_inner);
            state = back;
            if waited.timed_out() && state.files.is_empty() {
                state.runs = false;
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use luo_core::File;
    use rustix::event::{EventfdFlags, eventfd};

    use super::*;

    #[test]
    fn what_was_seen_ahead_is_what_is_seen_otherwise_and_nothing_stays_behind() {
        let make = || HostFile::from(eventfd(0, EventfdFlags::CLOEXEC).unwrap());
        let pipe = || HostFile::from(rustix::pipe::pipe().unwrap().0);
        let files: Vec<HostFile> = (0..2 * FEW).flat_map(|_| [make(), pipe()]).collect();
        for _ in 0..100 {
            let twins: Vec<HostFile> =
                files.iter().map(|file| HostFile::from(file.try_clone_fd().unwrap())).collect();
            let ahead = HostFile::look_ahead(&twins);
            for (file, twin) in files.iter().zip(&twins) {
                assert_eq!(file.identity(), twin.identity());
                assert_eq!(file.memory().unwrap(), twin.memory().unwrap());
            }
            // Another test may have files looked at; this one's are let go of either way.
            drop(ahead);
            assert!(twins.iter().all(HostFile::is_unshared));
        }
    }

    #[test]
    fn few_files_are_not_worth_a_thread() {
        let file = HostFile::from(eventfd(0, EventfdFlags::CLOEXEC).unwrap());
        assert!(HostFile::look_ahead(&vec![file; FEW - 1]).is_none());
    }
}
