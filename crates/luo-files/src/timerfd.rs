//! `timerfd-v1`: timers of `timerfd_create(2)`.
//!
//! Kept: the clock, whether it is armed and when it expires next, the interval, the ticks that were
//! not read, whether it was set to a moment (TFD_TIMER_ABSTIME) and is cancelled when the clock is
//! set, O_NONBLOCK.
//!
//! Time goes on while it is away: what is left of the time is less by that, and what it would have
//! expired in between are ticks that were not read. In the same boot its own clock tells how long
//! that was, in another one the clock of the day. A moment of the clock of the day stays that
//! moment. Expiries are right to the time between two system calls.
//!
//! Reset: FD_CLOEXEC (it is set), what `F_SETOWN` and its like have set, that the clock was set and
//! nobody has read so yet (ECANCELED).
//!
//! Refused, with a reason: timers with an alarm (`CLOCK_REALTIME_ALARM`) where luod may not set one.

use luo_abi::record::{TIMERFD_COMPATIBLE, TimerfdRecord};
use luo_carriers::{FileKind, HostFile, boot_id};
use luo_core::{Errno, Failure};
use rustix::time::{
    ClockId, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, clock_gettime,
    timerfd_create, timerfd_gettime, timerfd_settime,
};

use crate::anew::{Described, damaged, indescribable};
use crate::fail::system;
use crate::fdinfo::{FdInfo, is_nonblocking, untold};

/// The flags of the kernel's `settime`, as `fdinfo` has them.
const ABSTIME: u64 = 1;
const CANCEL_ON_SET: u64 = 2;

const SECOND: u64 = 1_000_000_000;

/// Timers.
#[derive(Debug)]
pub struct Timerfd;

impl Described for Timerfd {
    const COMPATIBLE: &'static str = TIMERFD_COMPATIBLE;

    fn takes(file: &HostFile) -> bool {
        file.kind() == FileKind::Timerfd
    }

    fn describe(file: &HostFile) -> Result<Vec<u8>, Failure> {
        // Makes ticks of the intervals that have passed; `fdinfo` alone does not.
        timerfd_gettime(file).map_err(system("the timer cannot be looked at"))?;
        let info = FdInfo::read(file)?;
        let number = u32::try_from(info.number("clockid", 10)?).unwrap_or(u32::MAX);
        let (own, clock) = clocks(number).ok_or_else(|| untold("clockid"))?;
        if [8, 9].contains(&number) {
            timerfd_create(own, TimerfdFlags::CLOEXEC).map_err(system(
                "a timer with an alarm could not be made again (luod needs CAP_WAKE_ALARM)",
            ))?;
        }
        let now = read(clock);
        let left = span(&info, "it_value")?;
        let set = info.number("settime flags", 8)?;
        let mut flags = 0;
        for (is, flag) in [
            (is_nonblocking(file)?, TimerfdRecord::NONBLOCK),
            (set & ABSTIME != 0, TimerfdRecord::ABSOLUTE),
            (set & ABSTIME != 0 && set & CANCEL_ON_SET != 0, TimerfdRecord::CANCEL_ON_SET),
        ] {
            if is {
                flags |= flag;
            }
        }
        let record = TimerfdRecord {
            expiry: if left == 0 { 0 } else { now.saturating_add(left) },
            interval: span(&info, "it_interval")?,
            ticks: info.number("ticks", 10)?,
            now,
            realtime: read(ClockId::Realtime),
            boot: boot_id(),
            clock: number,
            flags,
        };
        record.encode().map_err(indescribable("the timer"))
    }

    fn make(record: &[u8]) -> Result<HostFile, Failure> {
        let record = TimerfdRecord::decode(record).map_err(damaged("the timer"))?;
        let (own, clock) = clocks(record.clock)
            .ok_or_else(|| Failure::new(Errno::Inval, "the timer's clock is not known"))?;
        let mut flags = TimerfdFlags::CLOEXEC;
        flags.set(TimerfdFlags::NONBLOCK, record.flags & TimerfdRecord::NONBLOCK != 0);
        let file = timerfd_create(own, flags).map_err(system("no new timer"))?;
        let absolute = record.flags & TimerfdRecord::ABSOLUTE != 0;
        let mut how = TimerfdTimerFlags::empty();
        how.set(TimerfdTimerFlags::ABSTIME, absolute);
        let cancel = record.flags & TimerfdRecord::CANCEL_ON_SET != 0;
        how.set(TimerfdTimerFlags::CANCEL_ON_SET, cancel);
        let next = next(&record, boot_id(), read(clock), read(ClockId::Realtime));
        let value = match next.left {
            None => 0,
            Some(left) if absolute => read(clock).saturating_add(left),
            Some(left) => left,
        };
        let value = Itimerspec { it_interval: time(record.interval), it_value: time(value) };
        timerfd_settime(&file, how, &value).map_err(system("the timer cannot be set"))?;
        if next.ticks > 0 {
            luo_sys::set_timer_ticks(&file, next.ticks).map_err(system(
                "the timer's ticks cannot be set (the kernel needs CONFIG_CHECKPOINT_RESTORE)",
            ))?;
        }
        Ok(HostFile::from(file))
    }
}

/// What a timer goes on with.
#[derive(Debug, PartialEq, Eq)]
struct Next {
    /// Until it expires, not zero; `None` where it is not armed any more.
    left: Option<u64>,
    ticks: u64,
}

/// How a timer goes on in this boot, when its own clock and that of the day say this.
fn next(record: &TimerfdRecord, boot: [u8; 16], now: u64, realtime: u64) -> Next {
    if record.expiry == 0 {
        return Next { left: None, ticks: record.ticks };
    }
    let of_day = matches!(record.clock, 0 | 8) && record.flags & TimerfdRecord::ABSOLUTE != 0;
    let same_boot = record.boot == boot && boot != [0; 16];
    // A clock that was set back does not make it wait longer than it had to.
    let away = if same_boot {
        now.saturating_sub(record.now)
    } else {
        realtime.saturating_sub(record.realtime)
    };
    let due = if of_day { record.expiry } else { record.expiry.saturating_sub(record.now) };
    let gone = if of_day { realtime } else { away };
    match (due.checked_sub(gone), record.interval) {
        (Some(left), _) if left > 0 => Next { left: Some(left), ticks: record.ticks },
        (_, 0) => Next { left: None, ticks: record.ticks.saturating_add(1) },
        (_, interval) => {
            let late = gone.saturating_sub(due);
            let missed = (late / interval).saturating_add(1);
            let left = interval - late % interval;
            Next { left: Some(left), ticks: record.ticks.saturating_add(missed) }
        }
    }
}

/// The clock of that number, for a timer and to be read.
fn clocks(number: u32) -> Option<(TimerfdClockId, ClockId)> {
    Some(match number {
        0 => (TimerfdClockId::Realtime, ClockId::Realtime),
        1 => (TimerfdClockId::Monotonic, ClockId::Monotonic),
        7 => (TimerfdClockId::Boottime, ClockId::Boottime),
        8 => (TimerfdClockId::RealtimeAlarm, ClockId::Realtime),
        9 => (TimerfdClockId::BoottimeAlarm, ClockId::Boottime),
        _ => return None,
    })
}

fn read(clock: ClockId) -> u64 {
    let time = clock_gettime(clock);
    join(time.tv_sec.try_into().unwrap_or(0), time.tv_nsec.try_into().unwrap_or(0))
}

/// Nanoseconds, at most as many as a record can tell.
fn join(seconds: u64, nanoseconds: u64) -> u64 {
    let all = seconds.saturating_mul(SECOND).saturating_add(nanoseconds);
    all.min(TimerfdRecord::TIME_MAX)
}

fn time(nanoseconds: u64) -> Timespec {
    // Both fit: a quotient by 10^9 and a remainder.
    Timespec {
        tv_sec: i64::try_from(nanoseconds / SECOND).unwrap_or(i64::MAX),
        tv_nsec: (nanoseconds % SECOND).try_into().unwrap_or(0),
    }
}

/// A time in `fdinfo`, `(seconds, nanoseconds)`, in nanoseconds.
fn span(info: &FdInfo, name: &str) -> Result<u64, Failure> {
    let parse = |text: &str| {
        let (seconds, rest) = text.strip_prefix('(')?.strip_suffix(')')?.split_once(',')?;
        Some(join(seconds.trim().parse().ok()?, rest.trim().parse().ok()?))
    };
    info.text(name).and_then(parse).ok_or_else(|| untold(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOOT: [u8; 16] = [1; 16];

    fn record(clock: u32, flags: u32, interval: u64) -> TimerfdRecord {
        // 10 s are left.
        let (expiry, now) = (110 * SECOND, 100 * SECOND);
        let realtime = 1_000 * SECOND;
        TimerfdRecord { expiry, interval, ticks: 2, now, realtime, boot: BOOT, clock, flags }
    }

    #[test]
    fn in_another_boot_the_clock_of_the_day_tells_how_long_a_timer_was_away() {
        let go = |interval: u64, away: u64| {
            next(&record(1, 0, interval), [2; 16], 3 * SECOND, (1_000 + away) * SECOND)
        };
        assert_eq!(go(0, 4), Next { left: Some(6 * SECOND), ticks: 2 });
        assert_eq!(go(0, 10), Next { left: None, ticks: 3 });
        assert_eq!(go(0, 99), Next { left: None, ticks: 3 });
        assert_eq!(go(3 * SECOND, 10), Next { left: Some(3 * SECOND), ticks: 3 });
        assert_eq!(go(3 * SECOND, 17), Next { left: Some(2 * SECOND), ticks: 5 });
        // Set back: it waits no longer than it had to.
        let back = next(&record(1, 0, 0), [2; 16], 0, 0);
        assert_eq!(back, Next { left: Some(10 * SECOND), ticks: 2 });
    }

    #[test]
    fn in_the_same_boot_its_own_clock_tells() {
        let went = next(&record(7, 2, 0), BOOT, 103 * SECOND, 0);
        assert_eq!(went, Next { left: Some(7 * SECOND), ticks: 2 });
        // A boot that is not known is never the same one.
        let unknown = TimerfdRecord { boot: [0; 16], ..record(7, 2, 0) };
        let went = next(&unknown, [0; 16], 103 * SECOND, 1_001 * SECOND);
        assert_eq!(went, Next { left: Some(9 * SECOND), ticks: 2 });
    }

    #[test]
    fn a_moment_of_the_clock_of_the_day_stays_that_moment() {
        let at = |realtime: u64, interval| {
            let record = TimerfdRecord { expiry: 2_000 * SECOND, ..record(0, 2, interval) };
            next(&record, [2; 16], 7, realtime * SECOND)
        };
        assert_eq!(at(1_500, 0), Next { left: Some(500 * SECOND), ticks: 2 });
        assert_eq!(at(900, 0), Next { left: Some(1_100 * SECOND), ticks: 2 });
        assert_eq!(at(2_001, 0), Next { left: None, ticks: 3 });
        assert_eq!(at(2_001, 10 * SECOND), Next { left: Some(9 * SECOND), ticks: 3 });
    }

    #[test]
    fn no_record_makes_the_reckoning_go_wrong() {
        let extremes = [0, 1, SECOND, TimerfdRecord::TIME_MAX];
        for expiry in extremes {
            for interval in extremes {
                for now in extremes {
                    for realtime in extremes {
                        let fixed = record(1, 0, interval);
                        let record = TimerfdRecord { expiry, now, ticks: u64::MAX, ..fixed };
                        for boot in [BOOT, [2; 16]] {
                            let next = next(&record, boot, realtime, realtime);
                            assert_eq!(next.ticks, u64::MAX);
                            assert_ne!(next.left, Some(0));
                        }
                    }
                }
            }
        }
    }
}
