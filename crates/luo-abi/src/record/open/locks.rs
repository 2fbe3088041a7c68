//! The locks of open file descriptions within their records.

use alloc::vec::Vec;
use core::mem::offset_of;
use zerocopy::{FromZeros, IntoBytes};

use super::{Kind, LockRecord, PathRecord, RecordError, list};
use crate::record::{flag, raw, reserved};

/// Checks locks that lie at `at`, and whose count lies at `count_at`; gives where they end.
pub(super) fn check(
    locks: &[LockRecord],
    count_at: usize,
    mut at: usize,
) -> Result<usize, RecordError> {
    let (found, max) = (locks.len(), PathRecord::LOCKS_MAX);
    if found > max {
        return Err(Kind::TooMany { found, max }.at(count_at));
    }
    for lock in locks {
        if lock.end < lock.start || lock.whole && (lock.start, lock.end) != (0, u64::MAX) {
            return Err(Kind::Range { field: "end" }.at(at + offset_of!(raw::Lock, end)));
        }
        at += size_of::<raw::Lock>();
    }
    Ok(at)
}

/// Appends them.
pub(super) fn write(locks: &[LockRecord], bytes: &mut Vec<u8>) {
    for lock in locks {
        let mut raw = raw::Lock::new_zeroed();
        raw.start.set(lock.start);
        raw.end.set(lock.end);
        raw.whole = u8::from(lock.whole);
        raw.exclusive = u8::from(lock.exclusive);
        bytes.extend_from_slice(raw.as_bytes());
    }
}

/// Reads so many of them at the beginning of `rest`; gives what is behind.
pub(super) fn read<'a>(
    bytes: &[u8],
    rest: &'a [u8],
    count: usize,
) -> Result<(Vec<LockRecord>, &'a [u8]), RecordError> {
    let mut at = bytes.len() - rest.len();
    let (found, behind) = list::<raw::Lock>(bytes, rest, count)?;
    let mut locks = Vec::with_capacity(found.len());
    for lock in found {
        reserved(&lock.reserved, at + offset_of!(raw::Lock, reserved))?;
        locks.push(LockRecord {
            start: lock.start.get(),
            end: lock.end.get(),
            whole: flag(lock.whole, "whole", at + offset_of!(raw::Lock, whole))?,
            exclusive: flag(lock.exclusive, "exclusive", at + offset_of!(raw::Lock, exclusive))?,
        });
        at += size_of::<raw::Lock>();
    }
    Ok((locks, behind))
}
