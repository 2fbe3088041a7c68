//! The commands on keys and their values.

use super::{Call, MAX_REPLY, Refusal, is, text};
use crate::resp::{number, reply};
use crate::store::{Expiry, MAX_KEY, MAX_VALUE, Region, StoreError};

impl<R: Region> Call<'_, R> {
    pub(super) fn get(&mut self) -> Result<(), Refusal> {
        self.arity(2..=2)?;
        self.value_or_null(1)
    }

    pub(super) fn mget(&mut self) -> Result<(), Refusal> {
        self.arity(2..=usize::MAX)?;
        reply::array(self.out, self.args.len() - 1);
        let start = self.out.len();
        for index in 1..self.args.len() {
            self.value_or_null(index)?;
            if self.out.len() - start > MAX_REPLY {
                return Err(text("the reply would be too long; ask for fewer keys"));
            }
        }
        Ok(())
    }

    fn value_or_null(&mut self, index: usize) -> Result<(), Refusal> {
        match self.store.get(self.args[index], self.now_ms)? {
            None => reply::null(self.out),
            Some(entry) => {
                reply::bulk_header(self.out, entry.len());
                self.store.read_value(&entry, self.out)?;
                self.out.extend_from_slice(b"\r\n");
            }
        }
        Ok(())
    }

    pub(super) fn set(&mut self) -> Result<(), Refusal> {
        self.arity(3..=usize::MAX)?;
        let options = SetOptions::parse(&self.args[3..], self.now_ms)?;
        let (key, value) = (self.args[1], self.args[2]);
        if !options.needs_old() {
            self.store.set(key, value, options.expiry)?;
            self.ok();
            return Ok(());
        }
        let old = self.store.get(key, self.now_ms)?;
        if options.get {
            self.value_or_null(1)?;
        }
        let allowed = match options.when {
            None => true,
            Some(When::Absent) => old.is_none(),
            Some(When::Present) => old.is_some(),
        };
        if allowed {
            // An expired key that is still there has no time to keep.
            let expiry = if old.is_none() && options.expiry == Expiry::Keep {
                Expiry::Never
            } else {
                options.expiry
            };
            self.store.set(key, value, expiry)?;
        }
        match (options.get, allowed) {
            (true, _) => {}
            (false, true) => self.ok(),
            (false, false) => reply::null(self.out),
        }
        Ok(())
    }

    pub(super) fn mset(&mut self) -> Result<(), Refusal> {
        if self.args.len() < 3 || self.args.len().is_multiple_of(2) {
            return Err(text("wrong number of arguments for 'mset' command"));
        }
        let pairs = self.args[1..].chunks_exact(2);
        for pair in pairs.clone() {
            if pair[0].len() > MAX_KEY {
                return Err(StoreError::KeyTooLong.into());
            }
            if pair[1].len() > MAX_VALUE {
                return Err(StoreError::ValueTooLong.into());
            }
        }
        for pair in pairs {
            self.store.set(pair[0], pair[1], Expiry::Never)?;
        }
        self.ok();
        Ok(())
    }

    pub(super) fn del(&mut self) -> Result<(), Refusal> {
        self.arity(2..=usize::MAX)?;
        let mut deleted = 0;
        for key in &self.args[1..] {
            deleted += i64::from(self.store.delete(key, self.now_ms)?);
        }
        reply::integer(self.out, deleted);
        Ok(())
    }

    pub(super) fn exists(&mut self) -> Result<(), Refusal> {
        self.arity(2..=usize::MAX)?;
        let mut found = 0;
        for key in &self.args[1..] {
            found += i64::from(self.store.get(key, self.now_ms)?.is_some());
        }
        reply::integer(self.out, found);
        Ok(())
    }

    /// INCR and its kin: adds `sign`, or `sign` times the argument.
    pub(super) fn step(&mut self, sign: i64, by_argument: bool) -> Result<(), Refusal> {
        let count = if by_argument { 3 } else { 2 };
        self.arity(count..=count)?;
        let step = match self.args.get(2) {
            Some(step) => {
                number(step).and_then(|step| step.checked_mul(sign)).ok_or(Refusal::NotInteger)?
            }
            None => sign,
        };
        let (old, expiry) = match self.store.get(self.args[1], self.now_ms)? {
            None => (0, Expiry::Never),
            // No number has more characters.
            Some(entry) if entry.len() > 20 => return Err(Refusal::NotInteger),
            Some(entry) => {
                let mut value = Vec::new();
                self.store.read_value(&entry, &mut value)?;
                (number(&value).ok_or(Refusal::NotInteger)?, Expiry::Keep)
            }
        };
        let new =
            old.checked_add(step).ok_or_else(|| text("increment or decrement would overflow"))?;
        self.store.set(self.args[1], new.to_string().as_bytes(), expiry)?;
        reply::integer(self.out, new);
        Ok(())
    }

    pub(super) fn append(&mut self) -> Result<(), Refusal> {
        self.arity(3..=3)?;
        let len = self.store.append(self.args[1], self.args[2], self.now_ms)?;
        reply::integer(self.out, i64::try_from(len).unwrap_or(i64::MAX));
        Ok(())
    }

    pub(super) fn strlen(&mut self) -> Result<(), Refusal> {
        self.arity(2..=2)?;
        let len = self.store.get(self.args[1], self.now_ms)?.map_or(0, |entry| entry.len());
        reply::integer(self.out, i64::try_from(len).unwrap_or(i64::MAX));
        Ok(())
    }

    pub(super) fn kind(&mut self) -> Result<(), Refusal> {
        self.arity(2..=2)?;
        let found = self.store.get(self.args[1], self.now_ms)?.is_some();
        reply::simple(self.out, if found { "string" } else { "none" });
        Ok(())
    }

    /// TTL and PTTL, in units of `unit` milliseconds.
    pub(super) fn ttl(&mut self, unit: u64) -> Result<(), Refusal> {
        self.arity(2..=2)?;
        let left = match self.store.get(self.args[1], self.now_ms)? {
            None => -2,
            Some(entry) => entry.expires().map_or(-1, |at| {
                let left = at.saturating_sub(self.now_ms).saturating_add(unit / 2) / unit;
                i64::try_from(left).unwrap_or(i64::MAX)
            }),
        };
        reply::integer(self.out, left);
        Ok(())
    }

    /// EXPIRE and PEXPIRE, in units of `unit` milliseconds.
    pub(super) fn expire(&mut self, unit: u64) -> Result<(), Refusal> {
        self.arity(3..=3)?;
        let time = number(self.args[2]).ok_or(Refusal::NotInteger)?;
        let done = if time <= 0 {
            self.store.delete(self.args[1], self.now_ms)?
        } else {
            let at = expiry_time(time, unit, self.now_ms, "expire")?;
            self.store.expire(self.args[1], Some(at), self.now_ms)?
        };
        reply::integer(self.out, i64::from(done));
        Ok(())
    }

    pub(super) fn persist(&mut self) -> Result<(), Refusal> {
        self.arity(2..=2)?;
        let had = self
            .store
            .get(self.args[1], self.now_ms)?
            .is_some_and(|entry| entry.expires().is_some());
        if had {
            self.store.expire(self.args[1], None, self.now_ms)?;
        }
        reply::integer(self.out, i64::from(had));
        Ok(())
    }
}

/// Which state of a key SET asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum When {
    Absent,
    Present,
}

#[derive(Debug, Clone, Copy, Default)]
struct SetOptions {
    expiry: Expiry,
    when: Option<When>,
    get: bool,
}

impl SetOptions {
    fn parse(args: &[&[u8]], now_ms: u64) -> Result<Self, Refusal> {
        let mut options = Self::default();
        let mut args = args.iter();
        while let Some(arg) = args.next() {
            if (is(arg, b"NX") || is(arg, b"XX")) && options.when.is_none() {
                options.when = Some(if is(arg, b"NX") { When::Absent } else { When::Present });
            } else if is(arg, b"GET") && !options.get {
                options.get = true;
            } else if is(arg, b"KEEPTTL") && options.expiry == Expiry::Never {
                options.expiry = Expiry::Keep;
            } else if (is(arg, b"EX") || is(arg, b"PX")) && options.expiry == Expiry::Never {
                let time = args.next().ok_or(Refusal::Syntax)?;
                let time = number(time).ok_or(Refusal::NotInteger)?;
                let unit = if is(arg, b"EX") { 1000 } else { 1 };
                options.expiry = Expiry::At(expiry_time(time, unit, now_ms, "set")?);
            } else {
                return Err(Refusal::Syntax);
            }
        }
        Ok(options)
    }

    fn needs_old(&self) -> bool {
        self.get || self.when.is_some() || self.expiry == Expiry::Keep
    }
}

/// The time, in ms since 1970, that lies `time` units of `unit` ms ahead.
fn expiry_time(time: i64, unit: u64, now_ms: u64, command: &str) -> Result<u64, Refusal> {
    let ahead =
        u64::try_from(time).ok().filter(|time| *time > 0).and_then(|time| time.checked_mul(unit));
    ahead
        .and_then(|ahead| ahead.checked_add(now_ms))
        .ok_or_else(|| text(format!("invalid expire time in '{command}' command")))
}
