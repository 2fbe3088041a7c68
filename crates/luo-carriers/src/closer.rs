//! Closes descriptors that others gave, without waiting for it.
//!
//! The last `close` of some files takes as long as somebody else likes: of a connection that
//! lingers (`SO_LINGER`) until its peer has taken everything, of a file on FUSE, NFS or CIFS until
//! its server has answered, of a large memory file until its pages are free. So only what is known
//! not to wait is closed at once, and everything else by threads of their own, which are there as
//! long as they have something to do.
//!
//! Invariants:
//! - [`close`] never waits for what a descriptor is, and a descriptor that waits holds up none that
//!   does not.
//! - What is given is closed: sooner or later, or when the process ends.
//!
//! What remains: a client that lets go of many lingering connections at once has their closing
//! queue up behind [`MOST_THREADS`] of them; [`waiting`] says how many descriptors that holds up.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use rustix::fs::{AtFlags, FileType, StatxFlags, fcntl_get_seals, statx};
use rustix::net::sockopt;

/// So many descriptors are waited for side by side.
pub const MOST_THREADS: usize = 16;
/// Bytes of a memory file whose pages are freed in no time.
const QUICK_BYTES: u64 = 16 << 20;
/// A thread that has nothing to do for so long ends.
const IDLE: Duration = Duration::from_secs(5);
/// A thread needs little: it calls `close`.
const STACK: usize = 64 << 10;
/// Of `/dev/null` and its like: they are closed at once.
const MEMORY_DEVICES: u32 = 1;

static LANE: Lane = Lane {
    state: Mutex::new(State { queue: VecDeque::new(), closing: 0, idle: 0, threads: 0 }),
    more: Condvar::new(),
};

/// Closes a descriptor, now or soon.
pub fn close(descriptor: OwnedFd) {
    if !is_quick(descriptor.as_fd()) {
        LANE.take(Item::Own(descriptor));
    }
}

/// Closes descriptors, now or soon.
pub fn close_all(descriptors: impl IntoIterator<Item = OwnedFd>) {
    descriptors.into_iter().for_each(close);
}

/// As [`close`], where the caller is about to let go of what may be the last reference.
pub(crate) fn close_shared(descriptor: &Arc<OwnedFd>) {
    if !is_quick(descriptor.as_fd()) {
        LANE.take(Item::Shared(Arc::clone(descriptor)));
    }
}

/// Descriptors that have been given and are not closed yet.
#[must_use]
pub fn waiting() -> usize {
    let state = LANE.state();
    state.queue.len() + state.closing
}

/// Whether closing it certainly does not wait. No call here asks the file's own server.
fn is_quick(descriptor: BorrowedFd<'_>) -> bool {
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    let wanted = StatxFlags::TYPE | StatxFlags::BLOCKS;
    let Ok(stat) = statx(descriptor, "", flags, wanted) else { return false };
    match FileType::from_raw_mode(stat.stx_mode.into()) {
        FileType::Fifo => true,
        FileType::Socket => sockopt::socket_linger(descriptor) == Ok(None),
        FileType::CharacterDevice => stat.stx_rdev_major == MEMORY_DEVICES,
        // Seals are what memory files have.
        FileType::RegularFile => {
            fcntl_get_seals(descriptor).is_ok() && stat.stx_blocks * 512 <= QUICK_BYTES
        }
        _ => false,
    }
}

/// What is closed when it is dropped; a shared one by whoever has it last.
enum Item {
    Own(OwnedFd),
    Shared(Arc<OwnedFd>),
}

struct Lane {
    state: Mutex<State>,
    more: Condvar,
}

struct State {
    queue: VecDeque<Item>,
    /// Descriptors that a thread is closing.
    closing: usize,
    idle: usize,
    threads: usize,
}

impl Lane {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&'static self, item: Item) {
        let mut state = self.state();
        state.queue.push_back(item);
        if state.idle >= state.queue.len() {
            self.more.notify_one();
        } else if state.threads < MOST_THREADS {
            let begun = thread::Builder::new()
                .name("closer".to_owned())
                .stack_size(STACK)
                .spawn(|| self.work());
            match begun {
                Ok(_) => state.threads += 1,
                // Those that are there do it, or one that is begun with the next descriptor.
                Err(_) => self.more.notify_one(),
            }
        }
    }

    fn work(&self) {
        let mut state = self.state();
        loop {
            if let Some(item) = state.queue.pop_front() {
                state.closing += 1;
                drop(state);
                match item {
                    Item::Own(descriptor) => drop(descriptor),
                    Item::Shared(descriptor) => drop(descriptor),
                }
                state = self.state();
                state.closing -= 1;
                continue;
            }
            state.idle += 1;
            let (back, waited) =
                self.more.wait_timeout(state, IDLE).unwrap_or_else(PoisonError::into_inner);
            state = back;
            state.idle -= 1;
            if waited.timed_out() && state.queue.is_empty() {
                state.threads -= 1;
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Write;
    use std::net::{TcpListener, TcpStream};
    use std::time::Instant;

    use super::*;

    fn lingering() -> (OwnedFd, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let ours = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (theirs, _) = listener.accept().unwrap();
        ours.set_nonblocking(true).unwrap();
        while (&ours).write(&[0; 65_536]).is_ok() {}
        sockopt::set_socket_linger(&ours, Some(Duration::from_secs(3_600))).unwrap();
        (ours.into(), theirs)
    }

    #[test]
    fn what_cannot_wait_is_known() {
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        let (one, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        let memory = rustix::fs::memfd_create("luo-test", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        let null = File::open("/dev/null").unwrap();
        for quick in [reader.as_fd(), writer.as_fd(), one.as_fd(), memory.as_fd(), null.as_fd()] {
            assert!(is_quick(quick));
        }
        let (lingers, _peer) = lingering();
        let file = File::open(std::env::current_exe().unwrap()).unwrap();
        for slow in [lingers.as_fd(), file.as_fd()] {
            assert!(!is_quick(slow));
        }
        // This process must not wait either.
        close(lingers);
    }

    #[test]
    fn a_descriptor_that_waits_holds_up_none_behind_it() {
        let mut peers = Vec::new();
        for _ in 0..MOST_THREADS - 4 {
            let (lingers, peer) = lingering();
            close(lingers);
            peers.push(peer);
        }
        let path = std::env::current_exe().unwrap();
        let count = || {
            let links = std::fs::read_dir("/proc/self/fd").unwrap();
            let open = |link: std::io::Result<std::fs::DirEntry>| {
                std::fs::read_link(link.ok()?.path()).ok().filter(|to| *to == path)
            };
            links.filter_map(open).count()
        };
        let before = count();
        close_all((0..10).map(|_| OwnedFd::from(File::open(&path).unwrap())));
        let shared = Arc::new(OwnedFd::from(File::open(&path).unwrap()));
        close_shared(&shared);
        drop(shared);
        let start = Instant::now();
        while count() > before {
            assert!(start.elapsed() < Duration::from_secs(60), "not closed");
            thread::yield_now();
        }
    }
}
