use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use super::*;
use rustix::event::{EventfdFlags, epoll, eventfd};

fn set() -> OwnedFd {
    epoll::create(epoll::CreateFlags::CLOEXEC).unwrap()
}

/// Number, events and data of each member, as the kernel lists them.
fn members(epoll: &OwnedFd) -> Vec<(u32, u32, u64)> {
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", epoll.as_raw_fd()));
    let mut all: Vec<_> = info
        .unwrap()
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

#[test]
fn members_are_added_by_numbers_that_are_others_here() {
    let (one, other) = UnixStream::pair().unwrap();
    let counter = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
    let set = set();
    let before = std::fs::read_dir("/proc/self/fd").unwrap().count();
    let all = [
        // Those of the standard streams, and one twice: under two numbers, and beside another.
        EpollMember { file: one.as_fd(), number: 0, events: 1, data: 7 },
        EpollMember { file: one.as_fd(), number: 2, events: 0x4000_0004, data: u64::MAX },
        EpollMember { file: counter.as_fd(), number: 1, events: 0x8000_0001, data: 0 },
        EpollMember { file: other.as_fd(), number: 2, events: 1, data: 8 },
        EpollMember { file: other.as_fd(), number: 900, events: 1, data: 9 },
    ];
    fill_epoll(&set, &all).unwrap();
    assert_eq!(std::fs::read_dir("/proc/self/fd").unwrap().count(), before);
    let waits = 0x18;
    assert_eq!(
        members(&set),
        [
            (0, 1 | waits, 7),
            (1, 0x8000_0001 | waits, 0),
            (2, 1 | waits, 8),
            (2, 0x4000_0004 | waits, u64::MAX),
            (900, 1 | waits, 9)
        ]
    );
    // Exactly one of the two under this number is each of them.
    let is =
        |file: &UnixStream, nth| order_epoll_member(file, &set, 2, nth).unwrap() == Ordering::Equal;
    assert_ne!(is(&one, 0), is(&one, 1));
    assert_eq!(is(&one, 0), is(&other, 1));
    let error = order_epoll_member(&one, &set, 2, 2).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ENOENT));
}

#[test]
fn what_cannot_be_added_is_named() {
    let (one, _other) = UnixStream::pair().unwrap();
    let set = set();
    let member = |number| EpollMember { file: one.as_fd(), number, events: 1, data: 0 };
    let fails = |number| match fill_epoll(&set, &[member(5), member(number)]) {
        Err(FillError::Member { number, source }) => (number, source.raw_os_error()),
        other => panic!("{other:?}"),
    };
    assert_eq!(fails(5), (5, Some(libc::EEXIST)));
    let set2 = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
    let huge = fill_epoll(&set2, &[member(i32::MAX as u32)]).unwrap_err();
    assert!(huge.to_string().contains("2147483647"), "{huge}");
    let file = std::fs::File::open("/proc/self/status").unwrap();
    let member = EpollMember { file: file.as_fd(), number: 5, events: 1, data: 0 };
    let Err(FillError::Member { source, .. }) = fill_epoll(&set2, &[member]) else { panic!() };
    assert_eq!(source.raw_os_error(), Some(libc::EPERM));
}

#[test]
fn how_a_set_polls_devices_is_read_back() {
    let set = set();
    let Some(none) = busy_poll(&set).unwrap() else {
        eprintln!("SKIPPED: the kernel has no busy polling in epoll");
        return;
    };
    assert_eq!(none, BusyPoll::default());
    let value = BusyPoll::new(64, 8, 1);
    set_busy_poll(&set, value).unwrap();
    assert_eq!(busy_poll(&set).unwrap(), Some(value));
}
