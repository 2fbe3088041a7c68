//! Files that are made anew, through a whole update with a carrier that copies: each property that
//! a handler keeps is compared by ordinary system calls.

mod common;

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use common::{Before, Copier, across};
use luo_core::{Errno, Event, Handle};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::fs::{OFlags, fcntl_getfl};
use rustix::io::{Errno as Raw, read, write};
use rustix::time::{
    ClockId, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, clock_gettime,
    timerfd_create, timerfd_gettime, timerfd_settime,
};

fn one(file: OwnedFd) -> OwnedFd {
    across(vec![file]).remove(0)
}

fn number(file: impl AsFd) -> Result<u64, Raw> {
    let mut bytes = [0; 8];
    assert_eq!(read(file, &mut bytes)?, 8);
    Ok(u64::from_ne_bytes(bytes))
}

fn status(file: impl AsFd) -> OFlags {
    fcntl_getfl(file).unwrap()
}

fn is_close_on_exec(file: impl AsFd) -> bool {
    rustix::io::fcntl_getfd(file).unwrap().contains(rustix::io::FdFlags::CLOEXEC)
}

fn fdinfo(file: impl AsFd) -> String {
    let path = format!("/proc/self/fdinfo/{}", file.as_fd().as_raw_fd());
    std::fs::read_to_string(path).unwrap()
}

fn ready(file: &OwnedFd, flags: PollFlags) -> bool {
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut [PollFd::new(file, flags)], Some(&now)).unwrap() == 1
}

#[test]
fn an_eventfd_has_its_count_mode_and_flags() {
    let all = EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC;
    for (flags, count) in [
        (all, 7),
        (all | EventfdFlags::SEMAPHORE, 3),
        (all, 0),
        (all, u64::MAX - 1),
        (EventfdFlags::CLOEXEC, 1),
        (EventfdFlags::SEMAPHORE, 2),
    ] {
        let file = eventfd(0, flags).unwrap();
        write(&file, &count.to_ne_bytes()).unwrap();
        let expected = status(&file);
        let again = one(file);
        assert_eq!(status(&again), expected);
        assert!(is_close_on_exec(&again));
        assert_eq!(ready(&again, PollFlags::IN), count > 0);
        assert_eq!(ready(&again, PollFlags::OUT), count < u64::MAX - 1);
        if count == 0 {
            assert_eq!(number(&again), Err(Raw::AGAIN));
        } else if flags.contains(EventfdFlags::SEMAPHORE) {
            for _ in 0..count {
                assert_eq!(number(&again), Ok(1));
            }
            assert!(!ready(&again, PollFlags::IN));
        } else {
            assert_eq!(number(&again), Ok(count));
        }
    }
}

#[test]
fn what_an_eventfd_counts_between_prepare_and_freeze_is_kept_and_a_cancel_changes_nothing() {
    let file = eventfd(5, EventfdFlags::NONBLOCK).unwrap();
    let mine = file.try_clone().unwrap();
    let mut before = Before::new(vec![file]).unwrap();
    before.keep().unwrap();
    before.event(Event::Cancel).unwrap();
    assert!(before.carrier.kept.lock().unwrap().is_empty());
    assert_eq!(number(&mine), Ok(5));
    write(&mine, &8_u64.to_ne_bytes()).unwrap();
    before.event(Event::Prepare).unwrap();
    write(&mine, &1_u64.to_ne_bytes()).unwrap();
    before.event(Event::Freeze).unwrap();
    let mut after = before.depart();
    assert_eq!(number(after.retrieve(1).unwrap()), Ok(9));
    after.finish();
}

#[test]
fn a_signalfd_has_its_mask_and_flags() {
    for (mask, nonblocking) in [(1 << 9, true), (1 << 11 | 1 << 63, false)] {
        let file = luo_sys::signalfd(mask, nonblocking).unwrap();
        let expected = (status(&file), format!("sigmask:\t{mask:016x}"));
        let again = one(file);
        assert_eq!(status(&again), expected.0);
        assert!(is_close_on_exec(&again));
        assert!(fdinfo(&again).contains(&expected.1), "{}", fdinfo(&again));
    }
}

fn seconds(tv_sec: i64) -> Timespec {
    Timespec { tv_sec, tv_nsec: 0 }
}

fn timer(clock: TimerfdClockId) -> OwnedFd {
    timerfd_create(clock, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK).unwrap()
}

/// The lines of `fdinfo` that do not go on by themselves.
fn settings(timer: &OwnedFd) -> Vec<String> {
    let names = ["clockid", "ticks", "settime flags", "it_interval", "flags"];
    let of_timer = |line: &&str| names.iter().any(|name| line.starts_with(name));
    fdinfo(timer).lines().filter(of_timer).map(str::to_owned).collect()
}

#[test]
fn a_timer_that_waits_goes_on_waiting() {
    for clock in [TimerfdClockId::Realtime, TimerfdClockId::Monotonic, TimerfdClockId::Boottime] {
        for absolute in [false, true] {
            let file = timer(clock);
            let read = match clock {
                TimerfdClockId::Realtime => ClockId::Realtime,
                TimerfdClockId::Monotonic => ClockId::Monotonic,
                _ => ClockId::Boottime,
            };
            let start = if absolute { clock_gettime(read).tv_sec } else { 0 };
            let how = match (absolute, clock) {
                (false, _) => TimerfdTimerFlags::empty(),
                (true, TimerfdClockId::Realtime) => {
                    TimerfdTimerFlags::ABSTIME | TimerfdTimerFlags::CANCEL_ON_SET
                }
                (true, _) => TimerfdTimerFlags::ABSTIME,
            };
            let (value, interval) = (seconds(start + 5000), Timespec { tv_sec: 7, tv_nsec: 9 });
            let value = Itimerspec { it_value: value, it_interval: interval };
            timerfd_settime(&file, how, &value).unwrap();
            let (expected, left) = (settings(&file), timerfd_gettime(&file).unwrap().it_value);
            let again = one(file);
            assert_eq!(settings(&again), expected);
            let now = timerfd_gettime(&again).unwrap();
            assert_eq!(now.it_interval, interval);
            assert!(now.it_value <= left && now.it_value.tv_sec > 4900, "{now:?} of {left:?}");
            assert_eq!(number(&again), Err(Raw::AGAIN));
            assert!(is_close_on_exec(&again));
        }
    }
}

#[test]
fn a_timer_has_the_ticks_that_nobody_has_read_and_ticks_on() {
    let file = timer(TimerfdClockId::Monotonic);
    let milli = Timespec { tv_sec: 0, tv_nsec: 1_000_000 };
    let value = Itimerspec { it_value: milli, it_interval: milli };
    let begun = clock_gettime(ClockId::Monotonic);
    timerfd_settime(&file, TimerfdTimerFlags::empty(), &value).unwrap();
    assert!(poll(&mut [PollFd::new(&file, PollFlags::IN)], Some(&seconds(20))).unwrap() == 1);
    let mine = file.try_clone().unwrap();
    let mut before = Before::new(vec![file]).unwrap();
    before.keep().unwrap();
    // What was there when it was frozen is at most what is there now.
    let ticks = number(&mine).unwrap();
    drop(mine);
    let mut after = before.depart();
    let again = after.retrieve(1).unwrap();
    assert!(ready(&again, PollFlags::IN));
    let came = number(&again).unwrap();
    let passed = clock_gettime(ClockId::Monotonic) - begun;
    assert!(
        came >= ticks.min(1)
            && came as i64 <= passed.tv_sec * 1000 + passed.tv_nsec / 1_000_000 + 2
    );
    // It goes on by itself.
    assert!(poll(&mut [PollFd::new(&again, PollFlags::IN)], Some(&seconds(20))).unwrap() == 1);
    after.finish();
}

#[test]
fn a_timer_that_has_expired_or_was_never_set_stays_so() {
    let expired = timer(TimerfdClockId::Boottime);
    let value =
        Itimerspec { it_value: Timespec { tv_sec: 0, tv_nsec: 1 }, it_interval: seconds(0) };
    timerfd_settime(&expired, TimerfdTimerFlags::empty(), &value).unwrap();
    assert!(poll(&mut [PollFd::new(&expired, PollFlags::IN)], Some(&seconds(20))).unwrap() == 1);
    let files = across(vec![expired, timer(TimerfdClockId::Monotonic)]);
    assert_eq!(number(&files[0]), Ok(1));
    for file in &files {
        assert_eq!(number(file), Err(Raw::AGAIN));
        assert_eq!(timerfd_gettime(file).unwrap().it_value, seconds(0));
    }
}

/// One file of each type that a handler makes anew.
fn samples() -> Vec<OwnedFd> {
    let armed = timer(TimerfdClockId::Monotonic);
    let value = Itimerspec { it_value: seconds(99), it_interval: seconds(1) };
    timerfd_settime(&armed, TimerfdTimerFlags::empty(), &value).unwrap();
    vec![
        eventfd(3, EventfdFlags::NONBLOCK).unwrap(),
        armed,
        luo_sys::signalfd(1 << 9, true).unwrap(),
        std::fs::File::open(std::env::current_exe().unwrap()).unwrap().into(),
        std::fs::File::open("/dev/zero").unwrap().into(),
        std::net::UdpSocket::bind((common::own_ip(), 0)).unwrap().into(),
    ]
}

#[test]
fn a_carrier_that_is_full_at_any_moment_leaves_everything_as_it_was() {
    let files = samples();
    let lines: Vec<usize> = files.iter().map(|file| fdinfo(file).lines().count()).collect();
    let copies = files.iter().map(|file| file.try_clone().unwrap()).collect();
    let mut before = Before::new(copies).unwrap();
    let mut failures = 0;
    loop {
        before.carrier.refuse_after.store(failures + 1, std::sync::atomic::Ordering::Relaxed);
        match before.keep() {
            Err(error) => assert_eq!(error.errno(), Errno::NoSpc, "{error}"),
            Ok(()) => break,
        }
        failures += 1;
    }
    assert!(failures >= files.len() as u64, "{failures}");
    before.event(Event::Cancel).unwrap();
    assert_eq!(lines, files.iter().map(|f| fdinfo(f).lines().count()).collect::<Vec<_>>());
}

/// Descriptors that are open in this process.
fn open() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

#[test]
fn a_record_that_was_changed_in_any_byte_is_refused_or_describes_another_file() {
    for file in samples() {
        let handlers = luo_files::handlers();
        let host = luo_carriers::HostFile::from(file);
        let handler = handlers
            .iter()
            .find(|h| luo_core::Caps::BYTES.contains(h.requires()) && h.can_preserve(&host))
            .unwrap();
        let carrier = Copier::default();
        let data = handler.prepare(&host, &carrier).unwrap();
        let data = handler.freeze(&host, data, &carrier).unwrap();
        let record = carrier.get(Handle(data)).unwrap();
        let (mut made, mut refused) = (0, 0);
        let mut attempt = |bytes: Vec<u8>| {
            let handle = carrier.put(bytes);
            match handler.retrieve(handle.0, &carrier) {
                Ok(file) => {
                    assert!(is_close_on_exec(&file));
                    made += 1;
                }
                Err(_) => refused += 1,
            }
            handler.finish(None, handle.0, false, &carrier);
            assert!(carrier.get(handle).is_err());
        };
        for end in 0..record.len() {
            attempt(record[..end].to_vec());
        }
        attempt([&record[..], &[0]].concat());
        for bit in 0..8 * record.len() {
            let mut bytes = record.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            attempt(bytes);
        }
        assert!(refused > record.len(), "{}: {refused}", handler.compatible());
        assert!(made > 0, "{}", handler.compatible());
        assert_eq!(handler.retrieve(12345, &carrier).unwrap_err().errno(), Errno::NoEnt);
    }
    // Nothing that was made, or was begun, is still open. (Other tests may run in this process.)
    assert!(open() < 200, "{}", open());
}
