//! The number that the kernel gives each eventfd: all of them share one inode, so that otherwise
//! only comparing tells two apart.
//!
//! The number is in `/proc/self/fdinfo`. That file of one descriptor number, the *place*, is kept
//! open: the kernel reads whatever is in the place when the file is read. So a look costs three
//! quick system calls, as much as two or three comparisons by `kcmp`, however many files there are.
//!
//! Invariants:
//! - A file is in the place only while it is looked at, by one thread.
//! - Looking waits for nobody: an epoll is never looked at, whose table its owner can keep locked.
//! - Two descriptors of one eventfd give the same number. Where none can be had (`/proc` is not
//!   there, or memory is short) there is none, and files are compared.

use std::fs::File;
use std::io::IoSliceMut;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, OnceLock, PoisonError};

use rustix::io::{DupFlags, dup3, readv};

/// What `fdinfo` calls the number.
const FIELD: &[u8] = b"\neventfd-id:";
/// The part of `fdinfo` that is read: the number is within its first 200 bytes.
const READ: usize = 512;

/// One for each thread that looks at many files, see [`ahead`](super::ahead).
static PROBES: [OnceLock<Option<Mutex<Probe>>>; 2] = [const { OnceLock::new() }; 2];

struct Probe {
    /// Where files are put to be looked at.
    place: OwnedFd,
    /// What is there otherwise.
    nothing: OwnedFd,
    /// What the kernel says of the place.
    fdinfo: File,
}

/// The number of an eventfd, `None` for what is none. Only for files without a type of their own
/// (`S_IFMT` is zero).
pub(super) fn eventfd_number(file: BorrowedFd<'_>) -> Option<u64> {
    // Reading nothing is what the kernel refuses for a file that cannot be read at all, an epoll
    // among them, and grants without asking the file for all others.
    readv(file, &mut [IoSliceMut::new(&mut [])]).ok()?;
    let mut last = None;
    for probe in &PROBES {
        let probe = probe.get_or_init(|| Probe::new().map(Mutex::new)).as_ref()?;
        match probe.try_lock() {
            Ok(mut probe) => return probe.look(file),
            Err(_) => last = Some(probe),
        }
    }
    last?.lock().unwrap_or_else(PoisonError::into_inner).look(file)
}

impl Probe {
    fn new() -> Option<Self> {
        let nothing = OwnedFd::from(File::open("/dev/null").ok()?);
        let place = nothing.try_clone().ok()?;
        let fdinfo = File::open(format!("/proc/self/fdinfo/{}", place.as_raw_fd())).ok()?;
        Some(Self { place, nothing, fdinfo })
    }

    fn look(&mut self, file: BorrowedFd<'_>) -> Option<u64> {
        dup3(file, &mut self.place, DupFlags::CLOEXEC).ok()?;
        let mut text = [0; READ];
        let read = self.fdinfo.read_at(&mut text, 0);
        // It cannot fail: the place is there, and so is what is put into it.
        let _ = dup3(self.nothing.as_fd(), &mut self.place, DupFlags::CLOEXEC);
        number(text.get(..read.ok()?)?)
    }
}

/// The number in the text of `fdinfo`.
fn number(text: &[u8]) -> Option<u64> {
    let at = text.windows(FIELD.len()).position(|window| window == FIELD)?;
    let rest = text.get(at + FIELD.len()..)?;
    let line = rest.split(|byte| *byte == b'\n').next()?;
    std::str::from_utf8(line).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{EventfdFlags, eventfd};

    #[test]
    fn the_number_is_found_in_the_text_and_nothing_else_is_taken_for_it() {
        let text = b"pos:\t0\nflags:\t02\nmnt_id:\t17\nino:\t1038\neventfd-count:  2\neventfd-id: 79\neventfd-semaphore: 0\n";
        assert_eq!(number(text), Some(79));
        assert_eq!(number(b"pos:\t0\neventfd-id: x\n"), None);
        assert_eq!(number(b"pos:\t0\nnoteventfd-id: 7\n"), None);
        assert_eq!(number(b""), None);
    }

    #[test]
    fn eventfds_have_a_number_each_and_keep_what_they_hold() {
        let make = || eventfd(3, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap();
        let (one, other) = (make(), make());
        let Some(number) = eventfd_number(one.as_fd()) else {
            eprintln!("skipped: the kernel gives eventfds no numbers here");
            return;
        };
        assert_eq!(eventfd_number(one.try_clone().unwrap().as_fd()), Some(number));
        assert_ne!(eventfd_number(other.as_fd()), Some(number));
        let mut count = [0; 8];
        assert_eq!(rustix::io::read(&one, &mut count), Ok(8));
        assert_eq!(u64::from_ne_bytes(count), 3);
    }

    #[test]
    fn an_epoll_is_not_looked_at_and_a_timer_has_no_number() {
        use rustix::event::epoll;
        use rustix::time::{TimerfdClockId, TimerfdFlags, timerfd_create};
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
        assert!(readv(&epoll, &mut [IoSliceMut::new(&mut [])]).is_err());
        assert_eq!(eventfd_number(epoll.as_fd()), None);
        let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC).unwrap();
        assert_eq!(eventfd_number(timer.as_fd()), None);
    }
}
