//! Epoll sets through a whole update with a carrier that copies.

mod common;

use std::io::Write as _;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use common::{Before, Copier, across, refusal};
use luo_carriers::HostFile;
use luo_core::{Errno, Event, Handle, Handler};
use luo_files::EpollHandler;
use luo_sys::{EpollMember, fill_epoll};
use rustix::event::{EventfdFlags, epoll, eventfd};
use rustix::io::{dup, read, write};
use rustix::time::Timespec;

const IN: u32 = 1;
const OUT: u32 = 4;
const ERR_AND_HUP: u32 = 0x18;
const ONESHOT: u32 = 1 << 30;
const ET: u32 = 1 << 31;
const EXCLUSIVE: u32 = 1 << 28;

fn set() -> OwnedFd {
    epoll::create(epoll::CreateFlags::CLOEXEC).unwrap()
}

fn counter(count: u32) -> OwnedFd {
    eventfd(count, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap()
}

fn timer() -> OwnedFd {
    use rustix::time::{TimerfdClockId, TimerfdFlags, timerfd_create};
    timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC).unwrap()
}

/// Adds a file by the descriptor that it has.
fn add(set: &OwnedFd, file: &OwnedFd, events: u32, data: u64) -> u32 {
    let flags = epoll::EventFlags::from_bits_retain(events);
    epoll::add(set, file, epoll::EventData::new_u64(data), flags).unwrap();
    file.as_raw_fd() as u32
}

fn modify(set: &OwnedFd, file: impl AsFd, events: u32, data: u64) -> rustix::io::Result<()> {
    let flags = epoll::EventFlags::from_bits_retain(events);
    epoll::modify(set, file, epoll::EventData::new_u64(data), flags)
}

/// Number, events and data of each member, as the kernel lists them.
fn members(set: impl AsFd) -> Vec<(u32, u32, u64)> {
    let path = format!("/proc/self/fdinfo/{}", set.as_fd().as_raw_fd());
    let info = std::fs::read_to_string(path).unwrap();
    let mut all: Vec<_> = info
        .lines()
        .filter_map(|line| line.strip_prefix("tfd:"))
        .map(|line| {
            let words: Vec<&str> = line.split_ascii_whitespace().collect();
            let hex = |at: usize| u64::from_str_radix(words[at], 16).unwrap();
            (words[0].parse().unwrap(), hex(2) as u32, hex(4))
        })
        .collect();
    all.sort_unstable();
    all
}

/// What the set tells now: events and data.
fn told(set: &OwnedFd) -> Vec<(u32, u64)> {
    let none =
        epoll::Event { flags: epoll::EventFlags::empty(), data: epoll::EventData::new_u64(0) };
    let mut events = [none; 64];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    let count = epoll::wait(set, &mut events[..], Some(&now)).unwrap();
    let taken = |event: &epoll::Event| {
        // The kernel packs them.
        let (flags, data) = (event.flags, event.data);
        (flags.bits(), data.u64())
    };
    let mut all: Vec<_> = events[..count].iter().map(taken).collect();
    all.sort_unstable();
    all
}

#[test]
fn members_have_their_numbers_events_and_data_and_tell_what_they_are() {
    let (one, other) = UnixStream::pair().unwrap();
    let (one, other) = (OwnedFd::from(one), OwnedFd::from(other));
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    let (quiet, counted, clock) = (counter(0), counter(3), timer());
    let set = set();
    add(&set, &one, IN | ET, 11);
    // Several descriptors of one description.
    let twin = dup(&one).unwrap();
    add(&set, &twin, IN | OUT, u64::MAX);
    add(&set, &reader, IN, 12);
    add(&set, &quiet, IN | EXCLUSIVE, 13);
    add(&set, &counted, IN, 14);
    add(&set, &clock, IN, 15);
    rustix::io::ioctl_fionbio(&set, true).unwrap();
    let expected = members(&set);
    assert_eq!(expected.len(), 6);
    // The set is the first: it is made after all that it needs nevertheless.
    let files = vec![set, one, other, reader, writer, quiet, counted, clock];
    drop(twin);
    let again = across(files);
    assert_eq!(members(&again[0]), expected);
    let flags = rustix::fs::fcntl_getfl(&again[0]).unwrap();
    assert!(flags.contains(rustix::fs::OFlags::NONBLOCK));
    assert!(rustix::io::fcntl_getfd(&again[0]).unwrap().contains(rustix::io::FdFlags::CLOEXEC));
    assert_eq!(told(&again[0]), [(IN, 14), (OUT, u64::MAX)]);
    write(&again[2], b"x").unwrap();
    write(&again[4], b"x").unwrap();
    read(&again[6], &mut [0; 8]).unwrap();
    assert_eq!(told(&again[0]), [(IN, 11), (IN, 12), (IN | OUT, u64::MAX)]);
    // The edge has been told.
    assert_eq!(told(&again[0]), [(IN, 12), (IN | OUT, u64::MAX)]);
    write(&again[5], &1_u64.to_ne_bytes()).unwrap();
    assert!(told(&again[0]).contains(&(IN, 13)));
}

/// A descriptor with this number, for as long as it lives.
struct Numbered(OwnedFd);

impl Numbered {
    fn new(file: impl AsFd, number: u32) -> Self {
        let got = rustix::io::fcntl_dupfd_cloexec(file, number as i32).unwrap();
        assert_eq!(got.as_raw_fd(), number as i32, "the number is taken");
        Self(got)
    }
}

impl AsFd for Numbered {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[test]
fn a_member_is_changed_and_taken_out_by_its_old_number_alone() {
    let (set, file) = (set(), counter(1));
    // Both far from what this process has.
    let number = 400;
    let numbered = Numbered::new(&file, number);
    add(&set, &numbered.0, IN, 1);
    drop(numbered);
    let again = across(vec![set, file]);
    assert_eq!(modify(&again[0], &again[1], IN, 2), Err(rustix::io::Errno::NOENT));
    let numbered = Numbered::new(&again[1], number);
    modify(&again[0], &numbered, IN, 2).unwrap();
    assert_eq!(told(&again[0]), [(IN, 2)]);
    epoll::delete(&again[0], &numbered).unwrap();
    assert!(members(&again[0]).is_empty());
}

#[test]
fn one_number_of_several_files_is_each_of_them_again() {
    let set = set();
    let files: Vec<OwnedFd> = (0..3).map(|count| counter(u32::from(count == 1))).collect();
    for (data, file) in files.iter().enumerate() {
        let numbered = Numbered::new(file, 410);
        add(&set, &numbered.0, IN, data as u64);
    }
    let mut all = files;
    all.push(set);
    let again = across(all);
    assert_eq!(members(&again[3]).iter().map(|(number, ..)| *number).max(), Some(410));
    assert_eq!(told(&again[3]), [(IN, 1)]);
    write(&again[2], &1_u64.to_ne_bytes()).unwrap();
    assert_eq!(told(&again[3]), [(IN, 1), (IN, 2)]);
}

#[test]
fn one_event_alone_that_has_come_does_not_come_again_and_one_that_has_not_comes() {
    let set = set();
    let (socket, other) = UnixStream::pair().unwrap();
    let (socket, mut other) = (OwnedFd::from(socket), other);
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    let (done, waiting) = (counter(1), counter(0));
    add(&set, &socket, IN | ONESHOT, 1);
    add(&set, &reader, IN | ONESHOT | ET, 2);
    add(&set, &done, IN | ONESHOT, 3);
    add(&set, &waiting, IN | ONESHOT, 4);
    other.write_all(b"x").unwrap();
    write(&writer, b"x").unwrap();
    assert_eq!(told(&set), [(IN, 1), (IN, 2), (IN, 3)]);
    // Nothing at all can be told of the pipe's end any more.
    read(&reader, &mut [0; 1]).unwrap();
    let mut expected = members(&set);
    assert_eq!(expected.iter().filter(|(_, events, _)| events & 0xff == 0).count(), 3);
    let number = reader.as_raw_fd() as u32;
    let mut again = across(vec![set, socket, other.into(), reader, writer, done, waiting]);
    let of_pipe = expected.iter_mut().find(|member| member.0 == number).unwrap();
    of_pipe.1 |= ERR_AND_HUP;
    assert_eq!(members(&again[0]), expected);
    assert_eq!(told(&again[0]), []);
    write(&again[4], b"x").unwrap();
    write(&again[5], &1_u64.to_ne_bytes()).unwrap();
    write(&again[6], &1_u64.to_ne_bytes()).unwrap();
    assert_eq!(told(&again[0]), [(IN, 4)]);
    // What the module says is reset: this one tells of the end.
    drop(again.remove(4));
    assert_eq!(told(&again[0]), [(0x10, 2)]);
}

#[test]
fn sets_in_sets_are_made_from_the_inside() {
    let (outer, middle, inner, file) = (set(), set(), set(), counter(1));
    add(&outer, &middle, IN, 1);
    add(&middle, &inner, IN, 2);
    add(&inner, &file, IN, 3);
    let again = across(vec![outer, middle, inner, file]);
    for (at, data) in [(0, 1), (1, 2), (2, 3)] {
        assert_eq!(told(&again[at]), [(IN, data)]);
    }
    read(&again[3], &mut [0; 8]).unwrap();
    assert_eq!(told(&again[0]), []);
}

#[test]
fn a_member_that_is_not_in_the_session_is_named() {
    let sorts: [(OwnedFd, &str); 4] = [
        (UnixStream::pair().unwrap().0.into(), "a socket"),
        (rustix::pipe::pipe().unwrap().0, "a pipe"),
        (counter(0), "an eventfd"),
        (
            rustix::fs::open("/proc/self/mounts", rustix::fs::OFlags::CLOEXEC, 0.into()).unwrap(),
            "a file on device",
        ),
    ];
    for (file, sort) in sorts {
        let set = set();
        let number = add(&set, &file, IN, 1);
        let reason = refusal(set);
        for words in ["OpNotSupp", &format!("descriptor {number} "), sort, "not in the session"] {
            assert!(reason.contains(words), "{reason}");
        }
    }
    // Of many that are alike, too.
    let (set, files): (_, Vec<OwnedFd>) = (set(), (0..9).map(counter).collect());
    let numbers: Vec<u32> = files.iter().map(|file| add(&set, file, IN, 1)).collect();
    let mut files = files;
    let missing = files.remove(5);
    files.push(set);
    let error = Before::new(files).unwrap().keep().unwrap_err().to_string();
    assert!(error.contains(&format!("descriptor {} ", numbers[5])), "{error}");
    drop(missing);
}

#[test]
fn what_is_added_and_taken_out_after_prepare_is_as_it_is_in_freeze_and_cancel_changes_nothing() {
    let (set, one, other) = (set(), counter(1), counter(1));
    add(&set, &one, IN, 1);
    let mine: Vec<OwnedFd> = [&set, &one, &other].map(|file| file.try_clone().unwrap()).into();
    let mut before = Before::new(vec![set, one, other]).unwrap();
    before.keep().unwrap();
    before.event(Event::Cancel).unwrap();
    assert_eq!(told(&mine[0]), [(IN, 1)]);
    before.event(Event::Prepare).unwrap();
    let number = add(&mine[0], &mine[2], IN, 2);
    // By the number that it was added by: that of the descriptor which the session has now.
    let expected = members(&mine[0]);
    before.event(Event::Freeze).unwrap();
    drop(mine);
    let mut after = before.depart();
    let set = after.retrieve(1).unwrap();
    assert_eq!(members(&set), expected);
    assert!(expected.iter().any(|member| (member.0, member.2) == (number, 2)));
    assert_eq!(told(&set), [(IN, 1), (IN, 2)]);
    for token in [2, 3] {
        after.retrieve(token).unwrap();
    }
    after.finish();
}

#[test]
fn hundreds_of_one_inode_in_one_set_are_each_found() {
    let set = set();
    let mut files: Vec<OwnedFd> = (0..300).map(counter).collect();
    files.extend((0..100).map(|_| timer()));
    for (data, file) in files.iter().enumerate() {
        add(&set, file, IN | ET, data as u64);
    }
    let expected = members(&set);
    files.push(set);
    let again = across(files);
    assert_eq!(members(again.last().unwrap()), expected);
}

#[test]
fn a_number_that_luod_cannot_have_is_refused_beforehand_and_told_afterwards() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let (set, file) = (set(), counter(0));
    let full = getrlimit(Resource::Nofile);
    let last = full.current.unwrap() as u32 - 1;
    let member = EpollMember { file: file.as_fd(), number: last, events: IN, data: 0 };
    fill_epoll(&set, &[member]).unwrap();
    let mine = [&set, &file].map(|file| file.try_clone().unwrap());
    let mut before = Before::new(mine.into()).unwrap();
    before.keep().unwrap();
    // What it takes from here on, has it one less.
    setrlimit(Resource::Nofile, Rlimit { current: Some(last.into()), ..full }).unwrap();
    let reason = refusal(set);
    assert!(reason.contains(&format!("descriptor {last} ")), "{reason}");
    assert!(reason.contains("LimitNOFILE"), "{reason}");
    drop(file);
    let mut after = before.depart();
    let error = after.retrieve(1).unwrap_err();
    assert!(error.to_string().contains(&format!("descriptor {last} ")), "{error}");
    assert_eq!(error.errno(), Errno::BadF);
    setrlimit(Resource::Nofile, full).unwrap();
}

#[test]
fn damaged_and_unknown_records_are_refused_and_nothing_is_made() {
    let carrier = Copier::default();
    let record = luo_abi::record::EpollRecord::default().encode().unwrap();
    let open = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let before = open();
    for cut in 0..record.len() {
        let handle = carrier.put(record[..cut].to_vec());
        let error = EpollHandler.retrieve(handle.0, &carrier).unwrap_err();
        assert_eq!(error.errno(), Errno::Inval);
    }
    // A field that this version does not know, and one member more than there are.
    for (at, value) in [(15, 1), (4, 2), (0, 1)] {
        let mut bytes = record.clone();
        bytes[at] = value;
        let handle = carrier.put(bytes);
        assert_eq!(EpollHandler.retrieve(handle.0, &carrier).unwrap_err().errno(), Errno::Inval);
    }
    assert_eq!(EpollHandler.retrieve(12345, &carrier).unwrap_err().errno(), Errno::NoEnt);
    assert_eq!(open(), before);
    let handle = carrier.put(record);
    let set: HostFile = EpollHandler.retrieve(handle.0, &carrier).unwrap();
    assert!(members(&set).is_empty());
    EpollHandler.finish(Some(&set), Handle(handle.0).0, true, &carrier);
    let left = carrier.kept.lock().unwrap().len();
    assert_eq!(left, 3 + 16);
}

#[test]
fn a_record_of_a_later_version_is_nobodys_and_says_so() {
    let mut before = Before::new(vec![set()]).unwrap();
    before.keep().unwrap();
    let mut after = {
        let mut kept = before.carrier.kept.lock().unwrap();
        for bytes in kept.values_mut() {
            let name = b"epoll-v1";
            if let Some(at) = bytes.windows(name.len()).position(|part| part == name) {
                bytes[at + name.len() - 1] = b'2';
            }
        }
        drop(kept);
        before.depart()
    };
    let error = after.retrieve(1).unwrap_err();
    assert_eq!(error.errno(), Errno::NoEnt, "{error}");
    assert!(error.to_string().contains("epoll-v2"), "{error}");
}
