//! Limits per user: how many sessions, files and pinned bytes one uid may have.
//!
//! Invariants:
//! - What counts is what is preserved for the next update; files that have arrived and wait to be
//!   retrieved were counted on the side before, and are counted again when they are carried on.
//! - A refusal is ENOSPC and names the limit and the current use.

use alloc::{collections::BTreeMap, format};

use crate::{Errno, Error};

/// The most that one uid may have; `None` is without limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Limits {
    /// Sessions.
    pub sessions: Option<u64>,
    /// Preserved files, over all sessions.
    pub files: Option<u64>,
    /// Pinned bytes, over all sessions, as [`File::pinned`](crate::File::pinned) tells them.
    pub bytes: Option<u64>,
    /// Uid 0 has no limits.
    pub exempt_root: bool,
}

/// What one uid uses of its [`Limits`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Sessions.
    pub sessions: u64,
    /// Preserved files, over all sessions.
    pub files: u64,
    /// Pinned bytes, over all sessions.
    pub bytes: u64,
}

/// Counts what every uid uses.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    pub(crate) limits: Limits,
    usage: BTreeMap<u32, Usage>,
}

fn over(uid: u32, what: &str, limit: u64, used: u64, more: u64) -> Error {
    let reason = format!("uid {uid} may have {limit} {what}, has {used} and wants {more} more");
    Error::new(Errno::NoSpc, reason).advise("release some, or ask for a higher limit")
}

impl Ledger {
    pub(crate) fn new(limits: Limits) -> Self {
        Self { limits, usage: BTreeMap::new() }
    }

    pub(crate) fn usage(&self, uid: u32) -> Usage {
        self.usage.get(&uid).copied().unwrap_or_default()
    }

    fn exempt(&self, uid: u32) -> bool {
        uid == 0 && self.limits.exempt_root
    }

    pub(crate) fn check_session(&self, uid: u32) -> Result<(), Error> {
        let used = self.usage(uid).sessions;
        match self.limits.sessions {
            Some(limit) if used >= limit && !self.exempt(uid) => {
                Err(over(uid, "sessions", limit, used, 1))
            }
            _ => Ok(()),
        }
    }

    /// Whether `files` more with `bytes` together fit.
    pub(crate) fn check_files(&self, uid: u32, files: u64, bytes: u64) -> Result<(), Error> {
        if self.exempt(uid) {
            return Ok(());
        }
        let used = self.usage(uid);
        for (what, limit, used, more) in [
            ("preserved files", self.limits.files, used.files, files),
            ("pinned bytes", self.limits.bytes, used.bytes, bytes),
        ] {
            if let Some(limit) = limit
                && more > 0
                && used.saturating_add(more) > limit
            {
                return Err(over(uid, what, limit, used, more));
            }
        }
        Ok(())
    }

    pub(crate) fn add_session(&mut self, uid: u32) {
        self.usage.entry(uid).or_default().sessions += 1;
    }

    pub(crate) fn add_file(&mut self, uid: u32, bytes: u64) {
        let usage = self.usage.entry(uid).or_default();
        usage.files += 1;
        usage.bytes = usage.bytes.saturating_add(bytes);
    }

    pub(crate) fn remove_session(&mut self, uid: u32) {
        self.change(uid, |usage| usage.sessions = usage.sessions.saturating_sub(1));
    }

    pub(crate) fn remove_file(&mut self, uid: u32, bytes: u64) {
        self.change(uid, |usage| {
            usage.files = usage.files.saturating_sub(1);
            usage.bytes = usage.bytes.saturating_sub(bytes);
        });
    }

    fn change(&mut self, uid: u32, change: impl FnOnce(&mut Usage)) {
        if let Some(usage) = self.usage.get_mut(&uid) {
            change(usage);
            if *usage == Usage::default() {
                self.usage.remove(&uid);
            }
        }
    }
}
