//! `epoll-v1`: epoll sets.
//!
//! Kept: the members, each as the open file description that it is (it has to be in the session too),
//! with its events, their modes (EPOLLET, EPOLLONESHOT, EPOLLEXCLUSIVE, EPOLLWAKEUP), its 64 bits of data, and
//! the number of the descriptor that it was added by; of one with EPOLLONESHOT whose event has come, that it waits
//! for nothing; how the set polls network devices (EPIOCSPARAMS); O_NONBLOCK. One file by several numbers, several
//! files by one number, and sets in sets are kept.
//!
//! The numbers are those of the process that added the members. After the update EPOLL_CTL_MOD and
//! EPOLL_CTL_DEL take a member by that number, if the descriptor of that number is its file again
//! (`dup2`); by another number the same file would be another member.
//!
//! Reset: FD_CLOEXEC (it is set), what `F_SETOWN` and its like have set, in which order ready members
//! are told. Of members with EPOLLET, those that are ready are told once more. A member that waits for
//! nothing, while nothing at all can be told of its file, waits for errors and hang-ups: to be disarmed it
//! would have to tell something.
//!
//! Refused, with a reason that names the member: sets with a member that is not in the session, or with a number that
//! RLIMIT_NOFILE does not let luod have; EPOLLWAKEUP where luod has no CAP_BLOCK_SUSPEND; more than 4096 files.
//!
//! Invariants:
//! - What a member is, the kernel says (`kcmp`): the numbers of device and inode only tell where to look.
//! - A set needs each of its members: it is made when all of them are there.

use std::cell::{Cell, OnceCell};
use std::cmp::Ordering;
use std::collections::{BTreeSet, HashMap};
use std::io;
use std::ops::{ControlFlow, RangeInclusive};
use std::os::fd::{AsFd, OwnedFd};

use luo_abi::record::{EPOLL_COMPATIBLE, EpollMemberRecord, EpollRecord};
use luo_carriers::{FileKind, HostFile};
use luo_core::{Bond, Caps, Errno, Failure, File, Handle, Handler, Identity, Keep, Recall, Token};
use luo_sys::{BusyPoll, EpollMember, FillError};
use rustix::event::{EventfdFlags, PollFd, PollFlags, epoll, eventfd, poll};
use rustix::fs::{fstat, major, minor};
use rustix::process::{Resource, getrlimit};
use rustix::time::Timespec;

use crate::anew::{damaged, indescribable};
use crate::fail::{system, unsupported};
use crate::fdinfo::{FdInfo, device_number, is_nonblocking, untold};

/// `EPOLLONESHOT`, `EPOLLWAKEUP`, and the bits that say how and not for what, of `linux/eventpoll.h`.
const ONESHOT: u32 = 1 << 30;
const WAKEUP: u32 = 1 << 29;
const MODES: u32 = 0xf000_0000;
/// Everything that can be waited for.
const ANYTHING: u32 = 0x27df;

/// Takes epoll sets.
#[derive(Debug, Clone, Copy, Default)]
pub struct EpollHandler;

impl Handler<HostFile> for EpollHandler {
    fn compatible(&self) -> &str {
        EPOLL_COMPATIBLE
    }

    fn requires(&self) -> Caps {
        Caps::BYTES
    }

    fn can_preserve(&self, file: &HostFile) -> bool {
        file.kind() == FileKind::Epoll
    }

    fn refers(&self) -> bool {
        true
    }

    fn prepare(&self, file: &HostFile, keep: &dyn Keep<HostFile>) -> Result<u64, Failure> {
        describe(file, keep).map(|_| 0)
    }

    fn freeze(
        &self,
        file: &HostFile,
        _data: u64,
        keep: &dyn Keep<HostFile>,
    ) -> Result<u64, Failure> {
        let record = describe(file, keep)?;
        let bytes = record.encode().map_err(indescribable("the epoll set"))?;
        keep.keep_bytes(&bytes).map(|handle| handle.0)
    }

    fn retrieve(&self, data: u64, recall: &dyn Recall<HostFile>) -> Result<HostFile, Failure> {
        let bytes = recall.bytes(Handle(data))?;
        make(&EpollRecord::decode(&bytes).map_err(damaged("the epoll set"))?, recall)
    }

    fn finish(
        &self,
        _file: Option<&HostFile>,
        data: u64,
        _reclaimed: bool,
        recall: &dyn Recall<HostFile>,
    ) {
        recall.release(Handle(data));
    }
}

/// The set as it is now; notes that it needs its members.
fn describe(file: &HostFile, keep: &dyn Keep<HostFile>) -> Result<EpollRecord, Failure> {
    let listed = listed(&FdInfo::read(file)?)?;
    check_numbers(&listed)?;
    let search = Search { epoll: file, keep, eventfds: OnceCell::new() };
    let mut members = Vec::with_capacity(listed.len());
    for item in &listed {
        let token = search.token(item)?.0;
        members.push(EpollMemberRecord {
            token,
            data: item.data,
            events: item.events,
            number: item.number,
        });
    }
    if members.iter().any(|member| member.events & WAKEUP != 0) {
        check_wakeup()?;
    }
    let tokens: BTreeSet<u64> = members.iter().map(|member| member.token).collect();
    if tokens.len() > Bond::MAX {
        let (has, max) = (tokens.len(), Bond::MAX);
        let reason = format!("the epoll set has {has} files, and at most {max} are kept");
        return Err(Failure::new(Errno::TooBig, reason));
    }
    for token in tokens {
        keep.need(Token(token))?;
    }
    members.sort_unstable_by_key(|member| (member.number, member.token));
    let busy = luo_sys::busy_poll(file).map_err(system("the epoll set cannot be looked at"))?;
    let busy = busy.unwrap_or_default();
    Ok(EpollRecord {
        flags: if is_nonblocking(file)? { EpollRecord::NONBLOCK } else { 0 },
        busy_usecs: busy.usecs,
        busy_budget: busy.budget,
        busy_prefer: busy.prefer != 0,
        members,
    })
}

/// A member, as `fdinfo` lists it.
struct Listed {
    number: u32,
    /// How many are listed before it with the same number.
    nth: u32,
    events: u32,
    data: u64,
    /// As in [`HostFile::identities`].
    device: u64,
    inode: u64,
}

/// The members, in the kernel's order.
fn listed(info: &FdInfo) -> Result<Vec<Listed>, Failure> {
    let mut seen = HashMap::new();
    let mut all = Vec::new();
    for line in info.lines("tfd") {
        // 7 events: 19 data: 7fee00000007  pos:0 ino:1d86007 sdev:9
        let line = parse(line, &mut seen).ok_or_else(|| untold("tfd"))?;
        all.push(line);
    }
    Ok(all)
}

fn parse(line: &str, seen: &mut HashMap<u32, u32>) -> Option<Listed> {
    let (number, rest) = line.split_once(" events:")?;
    let (events, rest) = rest.split_once("data:")?;
    let (data, rest) = rest.split_once("pos:")?;
    let (_, rest) = rest.split_once("ino:")?;
    let (inode, device) = rest.split_once("sdev:")?;
    let hex = |text: &str| u64::from_str_radix(text.trim(), 16).ok();
    let number = number.trim().parse().ok()?;
    let next = seen.entry(number).or_insert(0);
    let nth = *next;
    *next += 1;
    Some(Listed {
        number,
        nth,
        events: u32::try_from(hex(events)?).ok()?,
        data: hex(data)?,
        device: device_number(device)?,
        inode: hex(inode)?,
    })
}

/// Finds members among the files of the session.
struct Search<'a> {
    epoll: &'a HostFile,
    keep: &'a dyn Keep<HostFile>,
    /// All eventfds, in their order: nothing that is listed tells one from another.
    eventfds: OnceCell<Vec<(Token, HostFile)>>,
}

impl Search<'_> {
    /// The token of a member, or why it has none.
    fn token(&self, member: &Listed) -> Result<Token, Failure> {
        let failed = Cell::new(None);
        let order = |file: &HostFile| self.order(file, member, &failed);
        let mut found = None;
        for identities in HostFile::identities(member.device, member.inode) {
            found = match *identities.start() == *identities.end() {
                true => self.keep.find(*identities.start(), &order),
                false => self.among_eventfds(identities, &order),
            };
            if found.is_some() {
                break;
            }
        }
        // What the kernel lists is not what statx tells on file systems on top of others.
        let found = found.or_else(|| self.among_all(&order));
        if let Some(error) = failed.take() {
            return Err(system("the members of the epoll set cannot be told")(error));
        }
        found.ok_or_else(|| {
            unsupported(format!(
                "descriptor {} of the epoll set ({}, inode {}) is not in the session: preserve it \
                 too, take it out of the set (EPOLL_CTL_DEL), or preserve the set as optional",
                member.number,
                sort_of(member.device),
                member.inode
            ))
        })
    }

    fn order(
        &self,
        file: &HostFile,
        member: &Listed,
        failed: &Cell<Option<io::Error>>,
    ) -> Ordering {
        match luo_sys::order_epoll_member(file, self.epoll, member.number, member.nth) {
            Ok(order) => order,
            Err(error) => {
                failed.set(Some(error));
                Ordering::Less
            }
        }
    }

    fn among_eventfds(
        &self,
        identities: RangeInclusive<Identity>,
        order: &dyn Fn(&HostFile) -> Ordering,
    ) -> Option<Token> {
        let eventfds = self.eventfds.get_or_init(|| {
            let mut all = Vec::new();
            self.keep.each_within(identities, &mut |token, file| {
                all.push((token, file.clone()));
                ControlFlow::Continue(())
            });
            all.sort_by(|(_, one), (_, other)| one.order(other));
            all
        });
        let at = eventfds.binary_search_by(|(_, file)| order(file)).ok()?;
        eventfds.get(at).map(|(token, _)| *token)
    }

    fn among_all(&self, order: &dyn Fn(&HostFile) -> Ordering) -> Option<Token> {
        let mut found = None;
        let all = Identity([0, 0])..=Identity([u64::MAX, u64::MAX]);
        self.keep.each_within(all, &mut |token, file| match order(file) {
            Ordering::Equal => {
                found = Some(token);
                ControlFlow::Break(())
            }
            _ => ControlFlow::Continue(()),
        });
        found
    }
}

/// What sort of file is on this device, for who has to find it.
fn sort_of(device: u64) -> String {
    let is = |file: io::Result<OwnedFd>| {
        let stat = file.ok().and_then(|file| fstat(file).ok());
        stat.is_some_and(|stat| {
            u64::from(major(stat.st_dev)) << 32 | u64::from(minor(stat.st_dev)) == device
        })
    };
    if is(std::os::unix::net::UnixDatagram::unbound().map(OwnedFd::from)) {
        "a socket".into()
    } else if is(rustix::pipe::pipe().map(|(reader, _)| reader).map_err(io::Error::from)) {
        "a pipe".into()
    } else if is(eventfd(0, EventfdFlags::CLOEXEC).map_err(io::Error::from)) {
        "an eventfd, a timer or the like".into()
    } else {
        format!("a file on device {}:{}", device >> 32, device & u64::from(u32::MAX))
    }
}

/// luod has to be able to have descriptors of all these numbers.
fn check_numbers(members: &[Listed]) -> Result<(), Failure> {
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    match members.iter().find(|member| u64::from(member.number) >= limit) {
        None => Ok(()),
        Some(member) => Err(unsupported(format!(
            "descriptor {} of the epoll set has a number that luod cannot have: raise its \
             LimitNOFILE, which is {limit}",
            member.number
        ))),
    }
}

/// The kernel leaves EPOLLWAKEUP out where it may not be had, without an error.
fn check_wakeup() -> Result<(), Failure> {
    let failed = system("the epoll set cannot be tried out");
    let set = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(&failed)?;
    let member = eventfd(0, EventfdFlags::CLOEXEC).map_err(&failed)?;
    let data = epoll::EventData::new_u64(0);
    let flags = epoll::EventFlags::from_bits_retain(WAKEUP);
    epoll::add(&set, &member, data, flags).map_err(&failed)?;
    let tried = listed(&FdInfo::read(&HostFile::from(set))?)?;
    match tried.iter().any(|member| member.events & WAKEUP != 0) {
        true => Ok(()),
        false => Err(Failure::new(
            Errno::Perm,
            "the epoll set keeps the machine awake (EPOLLWAKEUP), for which luod needs \
             CAP_BLOCK_SUSPEND",
        )),
    }
}

/// A member whose event has come, and that waits for nothing more.
fn is_disarmed(member: &EpollMember<'_>) -> bool {
    member.events & !MODES == 0
}

fn make(record: &EpollRecord, recall: &dyn Recall<HostFile>) -> Result<HostFile, Failure> {
    let files: Vec<HostFile> = record
        .members
        .iter()
        .map(|member| recall.file(Token(member.token)))
        .collect::<Result<_, _>>()?;
    if record.members.iter().any(|member| member.events & WAKEUP != 0) {
        check_wakeup()?;
    }
    let set = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(system("no new epoll set"))?;
    let all = record.members.iter().zip(&files).map(|(member, file)| EpollMember {
        file: file.as_fd(),
        number: member.number,
        events: member.events,
        data: member.data,
    });
    let (disarmed, armed): (Vec<_>, Vec<_>) = all.partition(is_disarmed);
    disarm(&set, disarmed)?;
    luo_sys::fill_epoll(&set, &armed).map_err(filled)?;
    let busy = BusyPoll::new(record.busy_usecs, record.busy_budget, record.busy_prefer.into());
    if busy != BusyPoll::default() {
        luo_sys::set_busy_poll(&set, busy)
            .map_err(system("the epoll set cannot poll network devices as it did"))?;
    }
    let nonblocking = record.flags & EpollRecord::NONBLOCK != 0;
    rustix::io::ioctl_fionbio(&set, nonblocking)
        .map_err(system("the epoll set's flags cannot be set"))?;
    Ok(HostFile::from(set))
}

/// Adds members that wait for nothing, to a set with no others: they are added to wait for what
/// they can tell at once, and are asked for it.
fn disarm(set: &OwnedFd, mut members: Vec<EpollMember<'_>>) -> Result<(), Failure> {
    let failed = system("the members of the epoll set cannot be asked");
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    let mut waits = 0;
    for member in &mut members {
        let anything = PollFlags::from_bits_retain(ANYTHING as u16);
        let mut polled = [PollFd::from_borrowed_fd(member.file, anything)];
        if member.events & ONESHOT != 0 && poll(&mut polled, Some(&now)).map_err(&failed)? > 0 {
            member.events |= ANYTHING;
            waits += 1;
        }
    }
    luo_sys::fill_epoll(set, &members).map_err(filled)?;
    while waits > 0 {
        let mut events = [epoll::Event {
            flags: epoll::EventFlags::empty(),
            data: epoll::EventData::new_u64(0),
        }; 256];
        match epoll::wait(set, &mut events[..], Some(&now)).map_err(&failed)? {
            0 => break,
            told => waits -= told.min(waits),
        }
    }
    if waits > 0 {
        let reason = format!("{waits} members of the epoll set did not say what they could say");
        return Err(Failure::new(Errno::Busy, reason));
    }
    Ok(())
}

fn filled(error: FillError) -> Failure {
    let cause = match &error {
        FillError::Table(cause) | FillError::Member { source: cause, .. } => cause,
    };
    let errno = cause.raw_os_error().map_or(Errno::Io, Errno::from_raw);
    Failure::new(errno, format!("the epoll set: {error}")).because(error)
}
