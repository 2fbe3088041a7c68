//! The records of event counters, timers and descriptors that signals are read from.

use alloc::vec::Vec;
use core::mem::offset_of;
use zerocopy::{FromZeros, IntoBytes};

use super::{Kind, RecordError, known, sole};
use crate::record::{raw, reserved};

/// An event counter, as its handler keeps it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EventfdRecord {
    /// What it has counted, at most [`EventfdRecord::COUNT_MAX`].
    pub count: u64,
    /// How it is open, of [`EventfdRecord::KNOWN_FLAGS`].
    pub flags: u32,
}

impl EventfdRecord {
    /// Each read takes one (`EFD_SEMAPHORE`).
    pub const SEMAPHORE: u32 = 1;
    /// It is open with `O_NONBLOCK`.
    pub const NONBLOCK: u32 = 2;
    /// The flags that are known.
    pub const KNOWN_FLAGS: u32 = Self::SEMAPHORE | Self::NONBLOCK;
    /// The most that can be counted.
    pub const COUNT_MAX: u64 = u64::MAX - 1;

    fn check(&self) -> Result<(), RecordError> {
        if self.count > Self::COUNT_MAX {
            return Err(Kind::Range { field: "count" }.at(offset_of!(raw::Eventfd, count)));
        }
        known(self.flags, Self::KNOWN_FLAGS, "flags", offset_of!(raw::Eventfd, flags))
    }

    /// The record's bytes.
    ///
    /// # Errors
    /// [`Kind::Flag`], [`Kind::Range`].
    pub fn encode(&self) -> Result<Vec<u8>, RecordError> {
        self.check()?;
        let mut raw = raw::Eventfd::new_zeroed();
        raw.count.set(self.count);
        raw.flags.set(self.flags);
        Ok(raw.as_bytes().to_vec())
    }

    /// Decodes a record of this version.
    ///
    /// # Errors
    /// [`RecordError`] with the first thing that is wrong.
    pub fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        let raw: &raw::Eventfd = sole(bytes)?;
        reserved(&raw.reserved, offset_of!(raw::Eventfd, reserved))?;
        let record = Self { count: raw.count.get(), flags: raw.flags.get() };
        record.check()?;
        Ok(record)
    }
}

/// A timer, as its handler keeps it. Times are in nanoseconds and below 2^63.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TimerfdRecord {
    /// When it expires next, by its own clock; zero where it is not armed.
    pub expiry: u64,
    /// Its interval; zero where it expires once.
    pub interval: u64,
    /// How often it has expired since it was read.
    pub ticks: u64,
    /// What its own clock said when this was written.
    pub now: u64,
    /// What the clock of the day said then, since 1970.
    pub realtime: u64,
    /// The boot that this was written in; zeros where that is not known.
    pub boot: [u8; 16],
    /// Its clock, by Linux's number, of [`TimerfdRecord::CLOCKS`].
    pub clock: u32,
    /// How it is open and set, of [`TimerfdRecord::KNOWN_FLAGS`].
    pub flags: u32,
}

impl TimerfdRecord {
    /// It is open with `O_NONBLOCK`.
    pub const NONBLOCK: u32 = 1;
    /// It was set to a moment rather than a duration.
    pub const ABSOLUTE: u32 = 2;
    /// It is cancelled when the clock is set; only with [`TimerfdRecord::ABSOLUTE`].
    pub const CANCEL_ON_SET: u32 = 4;
    /// The flags that are known.
    pub const KNOWN_FLAGS: u32 = Self::NONBLOCK | Self::ABSOLUTE | Self::CANCEL_ON_SET;
    /// The clocks that are known: of the day, monotonic, since the boot, and the first and the last
    /// with an alarm.
    pub const CLOCKS: [u32; 5] = [0, 1, 7, 8, 9];
    /// The latest time.
    pub const TIME_MAX: u64 = i64::MAX as u64;

    fn check(&self) -> Result<(), RecordError> {
        for (time, field, offset) in [
            (self.expiry, "expiry", offset_of!(raw::Timerfd, expiry)),
            (self.interval, "interval", offset_of!(raw::Timerfd, interval)),
            (self.now, "now", offset_of!(raw::Timerfd, now)),
            (self.realtime, "realtime", offset_of!(raw::Timerfd, realtime)),
        ] {
            if time > Self::TIME_MAX {
                return Err(Kind::Range { field }.at(offset));
            }
        }
        if !Self::CLOCKS.contains(&self.clock) {
            return Err(Kind::Range { field: "clock" }.at(offset_of!(raw::Timerfd, clock)));
        }
        let flags = offset_of!(raw::Timerfd, flags);
        if self.flags & Self::CANCEL_ON_SET != 0 && self.flags & Self::ABSOLUTE == 0 {
            return Err(Kind::Flag { field: "flags" }.at(flags));
        }
        known(self.flags, Self::KNOWN_FLAGS, "flags", flags)
    }

    /// The record's bytes.
    ///
    /// # Errors
    /// [`Kind::Flag`], [`Kind::Range`].
    pub fn encode(&self) -> Result<Vec<u8>, RecordError> {
        self.check()?;
        let mut raw = raw::Timerfd::new_zeroed();
        raw.expiry.set(self.expiry);
        raw.interval.set(self.interval);
        raw.ticks.set(self.ticks);
        raw.now.set(self.now);
        raw.realtime.set(self.realtime);
        raw.boot = self.boot;
        raw.clock.set(self.clock);
        raw.flags.set(self.flags);
        Ok(raw.as_bytes().to_vec())
    }

    /// Decodes a record of this version.
    ///
    /// # Errors
    /// [`RecordError`] with the first thing that is wrong.
    pub fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        let raw: &raw::Timerfd = sole(bytes)?;
        let record = Self {
            expiry: raw.expiry.get(),
            interval: raw.interval.get(),
            ticks: raw.ticks.get(),
            now: raw.now.get(),
            realtime: raw.realtime.get(),
            boot: raw.boot,
            clock: raw.clock.get(),
            flags: raw.flags.get(),
        };
        record.check()?;
        Ok(record)
    }
}

/// A descriptor that signals are read from, as its handler keeps it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SignalfdRecord {
    /// The signals, a bit for each: signal 1 is bit 0.
    pub mask: u64,
    /// How it is open, of [`SignalfdRecord::KNOWN_FLAGS`].
    pub flags: u32,
}

impl SignalfdRecord {
    /// It is open with `O_NONBLOCK`.
    pub const NONBLOCK: u32 = 1;
    /// The flags that are known.
    pub const KNOWN_FLAGS: u32 = Self::NONBLOCK;

    fn check(&self) -> Result<(), RecordError> {
        known(self.flags, Self::KNOWN_FLAGS, "flags", offset_of!(raw::Signalfd, flags))
    }

    /// The record's bytes.
    ///
    /// # Errors
    /// [`Kind::Flag`].
    pub fn encode(&self) -> Result<Vec<u8>, RecordError> {
        self.check()?;
        let mut raw = raw::Signalfd::new_zeroed();
        raw.mask.set(self.mask);
        raw.flags.set(self.flags);
        Ok(raw.as_bytes().to_vec())
    }

    /// Decodes a record of this version.
    ///
    /// # Errors
    /// [`RecordError`] with the first thing that is wrong.
    pub fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        let raw: &raw::Signalfd = sole(bytes)?;
        reserved(&raw.reserved, offset_of!(raw::Signalfd, reserved))?;
        let record = Self { mask: raw.mask.get(), flags: raw.flags.get() };
        record.check()?;
        Ok(record)
    }
}
