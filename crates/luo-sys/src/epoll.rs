//! Epoll sets: which open file descriptions are in one, and how to put some in under numbers that
//! this process uses for others.
//!
//! A member of an epoll set is known by its open file description and by the number of the
//! descriptor it was added by: EPOLL_CTL_MOD and EPOLL_CTL_DEL find it by both. So a set is filled by a
//! thread that has no descriptors but its own few, which has every number free.
//!
//! Invariants: that thread gets its own table of descriptors before it does anything else; it deals
//! with numbers alone, and no [`OwnedFd`](std::os::fd::OwnedFd) of this process is dropped in it.

use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use crate::description::ordering;

/// `KCMP_FILES` and `KCMP_EPOLL_TFD` of `linux/kcmp.h`.
const KCMP_FILES: libc::c_ulong = 2;
const KCMP_EPOLL_TFD: libc::c_ulong = 7;
/// `EPIOCSPARAMS` and `EPIOCGPARAMS` of `linux/eventpoll.h`, since Linux 6.9.
const EPIOCSPARAMS: libc::Ioctl = 0x4008_8a01_u32 as libc::Ioctl;
const EPIOCGPARAMS: libc::Ioctl = 0x8008_8a02_u32 as libc::Ioctl;

/// `struct kcmp_epoll_slot`.
#[repr(C)]
struct Slot {
    efd: u32,
    tfd: u32,
    toff: u32,
}

/// Orders an open file description and a member of an epoll set, as
/// [`order_descriptions`](crate::order_descriptions) would: the one that was added by the descriptor
/// `number`, and of several such ones, the one before which `nth` others are listed in `fdinfo`.
///
/// # Errors
/// ENOENT where there is no such member, ENOSYS where the kernel is built without `CONFIG_KCMP`,
/// EPERM where a seccomp filter forbids the call.
pub fn order_epoll_member(
    one: impl AsFd,
    epoll: impl AsFd,
    number: u32,
    nth: u32,
) -> io::Result<Ordering> {
    let me = libc::c_ulong::from(std::process::id());
    let one = one.as_fd().as_raw_fd() as libc::c_ulong;
    let slot = Slot { efd: epoll.as_fd().as_raw_fd() as u32, tfd: number, toff: nth };
    // SAFETY: this kind of kcmp reads a kcmp_epoll_slot at the pointer, and `slot` is one that lives
    // through the call; it writes nothing.
    let answer =
        unsafe { libc::syscall(libc::SYS_kcmp, me, me, KCMP_EPOLL_TFD, one, &raw const slot) };
    ordering(answer)
}

/// How an epoll set polls network devices itself: `struct epoll_params`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BusyPoll {
    /// For how long, in microseconds; zero: not at all.
    pub usecs: u32,
    /// How many packets at once; zero: as many as the kernel likes.
    pub budget: u16,
    /// Interrupts are put off meanwhile: 0 or 1.
    pub prefer: u8,
    reserved: u8,
}

impl BusyPoll {
    /// These values.
    #[must_use]
    pub const fn new(usecs: u32, budget: u16, prefer: u8) -> Self {
        Self { usecs, budget, prefer, reserved: 0 }
    }
}

/// How an epoll set polls network devices; `None` where the kernel cannot have any do so.
///
/// # Errors
/// EBADF.
pub fn busy_poll(epoll: impl AsFd) -> io::Result<Option<BusyPoll>> {
    let mut value = BusyPoll::default();
    // SAFETY: the request writes the eight bytes of an epoll_params, which `value` has. A file of
    // another type gives the request its own meaning only if it has the same number, direction
    // and size, so that eight bytes are written then too; any bytes make a valid value.
    let done = unsafe { libc::ioctl(epoll.as_fd().as_raw_fd(), EPIOCGPARAMS, &raw mut value) };
    match (done, io::Error::last_os_error()) {
        (0, _) => Ok(Some(value)),
        (_, error) => match error.raw_os_error() {
            Some(libc::ENOTTY | libc::EINVAL | libc::EOPNOTSUPP) => Ok(None),
            _ => Err(error),
        },
    }
}

/// Has an epoll set poll network devices.
///
/// # Errors
/// ENOTTY, EINVAL or EOPNOTSUPP where the kernel cannot do that, EPERM for a budget above 64 without
/// CAP_NET_ADMIN.
pub fn set_busy_poll(epoll: impl AsFd, value: BusyPoll) -> io::Result<()> {
    // SAFETY: the request reads the eight bytes of an epoll_params, which `value` is; see above for
    // files of other types.
    let done = unsafe { libc::ioctl(epoll.as_fd().as_raw_fd(), EPIOCSPARAMS, &raw const value) };
    if done == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// What is to be a member of an epoll set.
#[derive(Debug, Clone, Copy)]
pub struct EpollMember<'a> {
    /// The file.
    pub file: BorrowedFd<'a>,
    /// The number of the descriptor that it is added by.
    pub number: u32,
    /// What is waited for, as `epoll_ctl(2)` takes it.
    pub events: u32,
    /// What comes with its events.
    pub data: u64,
}

/// Why an epoll set could not be filled.
#[derive(Debug, thiserror::Error)]
pub enum FillError {
    /// No thread with a table of descriptors of its own.
    #[error("no thread with descriptors of its own: {0}")]
    Table(#[source] io::Error),
    /// A member was not taken.
    #[error("descriptor {number} cannot be added: {source}")]
    Member {
        /// Its number.
        number: u32,
        /// ENOSPC over `max_user_watches`, EBADF for a number that RLIMIT_NOFILE does not allow, EPERM
        /// for a file that cannot be waited for, and as `epoll_ctl(2)`.
        source: io::Error,
    },
}

/// Adds members to an epoll set, each by a descriptor of its number, whatever this process uses that
/// number for.
///
/// # Errors
/// [`FillError`]. Members before the one that failed are in the set then.
pub fn fill_epoll(epoll: impl AsFd, members: &[EpollMember<'_>]) -> Result<(), FillError> {
    if members.is_empty() {
        return Ok(());
    }
    // They are the numbers of descriptors in the table that the thread will copy from.
    let epoll = epoll.as_fd();
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("luo-epoll".into());
        let filling = thread
            .spawn_scoped(scope, || Table::new(epoll, members)?.fill(members))
            .map_err(FillError::Table)?;
        let lost = || FillError::Table(io::Error::other("the thread has ended early"));
        filling.join().unwrap_or_else(|_| Err(lost()))
    })
}

/// The numbers that the filling thread uses itself, in its own table.
struct Table {
    process: RawFd,
    epoll: RawFd,
}

impl Table {
    /// Gives this thread an empty table of its own; called by a thread that ends with its work.
    fn new(epoll: BorrowedFd<'_>, members: &[EpollMember<'_>]) -> Result<Self, FillError> {
        let taken: BTreeSet<u32> = members.iter().map(|member| member.number).collect();
        let mut free = (0..=i32::MAX as u32).filter(|number| !taken.contains(number));
        let mut free = || {
            let number = free.next().and_then(|number| RawFd::try_from(number).ok());
            number.ok_or_else(|| FillError::Table(io::Error::other("no number is free")))
        };
        let (at, epoll_at) = (free()?, free()?);
        shares_with_process().map_err(FillError::Table)?;
        // SAFETY: with this flag the call touches no descriptor but those of a new table, which
        // this thread alone has; it owns none that it would use or close afterwards.
        checked(unsafe {
            libc::syscall(libc::SYS_close_range, 0, u32::MAX, libc::CLOSE_RANGE_UNSHARE)
        })
        .map_err(FillError::Table)?;
        // SAFETY: it takes two integers; the descriptor that it makes is in this thread's table.
        let process =
            checked(unsafe { libc::syscall(libc::SYS_pidfd_open, std::process::id(), 0) });
        let process = process.and_then(|process| moved(process, at)).map_err(FillError::Table)?;
        let table = Self { process, epoll: epoll_at };
        table.fetch(epoll.as_raw_fd(), epoll_at).map_err(FillError::Table)?;
        Ok(table)
    }

    /// Has a descriptor of the process as this number of the thread.
    fn fetch(&self, theirs: RawFd, number: RawFd) -> io::Result<()> {
        // SAFETY: it takes three integers; the descriptor that it makes is in this thread's table.
        let fetched =
            checked(unsafe { libc::syscall(libc::SYS_pidfd_getfd, self.process, theirs, 0) })?;
        moved(fetched, number).map(|_| ())
    }

    fn fill(&self, members: &[EpollMember<'_>]) -> Result<(), FillError> {
        for member in members {
            self.add(member)
                .map_err(|source| FillError::Member { number: member.number, source })?;
        }
        Ok(())
    }

    fn add(&self, member: &EpollMember<'_>) -> io::Result<()> {
        let number = RawFd::try_from(member.number)
            .map_err(|_| io::Error::from_raw_os_error(libc::EBADF))?;
        self.fetch(member.file.as_raw_fd(), number)?;
        let mut event = libc::epoll_event { events: member.events, u64: member.data };
        // SAFETY: the kernel reads one epoll_event at the pointer, which lives through the call.
        let added = checked(unsafe {
            libc::syscall(
                libc::SYS_epoll_ctl,
                self.epoll,
                libc::EPOLL_CTL_ADD,
                number,
                &raw mut event,
            )
        });
        close(number);
        added.map(|_| ())
    }
}

/// Refuses where descriptors that are fetched from the process would be others than this thread's.
fn shares_with_process() -> io::Result<()> {
    let me = libc::c_ulong::from(std::process::id());
    // SAFETY: gettid takes nothing.
    let thread = unsafe { libc::syscall(libc::SYS_gettid) };
    // SAFETY: this kind of kcmp looks at two integers and touches no memory of the caller.
    let answer = checked(unsafe { libc::syscall(libc::SYS_kcmp, me, thread, KCMP_FILES, 0, 0) })?;
    match answer {
        0 => Ok(()),
        _ => Err(io::Error::other("this thread has descriptors of its own already")),
    }
}

/// Makes a descriptor of this thread's own table have another number.
fn moved(from: RawFd, to: RawFd) -> io::Result<RawFd> {
    if from == to {
        return Ok(to);
    }
    // SAFETY: both are numbers of the thread's own table, where nobody else has descriptors.
    let done = checked(unsafe { libc::syscall(libc::SYS_dup3, from, to, libc::O_CLOEXEC) });
    close(from);
    done
}

fn close(number: RawFd) {
    // SAFETY: a number of the thread's own table, which nobody uses after this.
    unsafe { libc::syscall(libc::SYS_close, number) };
}

fn checked(answer: libc::c_long) -> io::Result<RawFd> {
    if answer == -1 {
        return Err(io::Error::last_os_error());
    }
    RawFd::try_from(answer).map_err(io::Error::other)
}

#[cfg(test)]
mod tests;
