//! The options of sockets within their records.

use alloc::vec::Vec;
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use super::{Kind, OptionRecord, RecordError, SocketRecord};
use crate::record::raw;

/// Checks options that lie at `at`, and whose count lies at `count_at`; gives where they end.
pub(super) fn check(
    options: &[OptionRecord],
    count_at: usize,
    mut at: usize,
) -> Result<usize, RecordError> {
    let (found, max) = (options.len(), SocketRecord::OPTIONS_MAX);
    if found > max {
        return Err(Kind::TooMany { found, max }.at(count_at));
    }
    for (nth, option) in options.iter().enumerate() {
        let (found, max) = (option.value.len(), SocketRecord::VALUE_MAX);
        if found > max {
            return Err(Kind::TooLong { found, max }.at(at + 4));
        }
        let same = |other: &&OptionRecord| (other.level, other.name) == (option.level, option.name);
        if options.iter().take(nth).any(|other| same(&other)) {
            return Err(Kind::Duplicate.at(at));
        }
        at += size_of::<raw::SocketOption>() + found;
    }
    Ok(at)
}

/// Appends them.
pub(super) fn write(options: &[OptionRecord], bytes: &mut Vec<u8>) {
    for option in options {
        let mut raw = raw::SocketOption::new_zeroed();
        raw.level.set(option.level);
        raw.name.set(option.name);
        raw.length.set(option.value.len() as u16);
        bytes.extend_from_slice(raw.as_bytes());
        bytes.extend_from_slice(&option.value);
    }
}

/// Reads so many of them; gives what is behind, `None` where there are fewer.
pub(super) fn read(count: u16, mut rest: &[u8]) -> Option<(Vec<OptionRecord>, &[u8])> {
    let mut options = Vec::new();
    for _ in 0..count {
        let (option, behind) = raw::SocketOption::ref_from_prefix(rest).ok()?;
        let (value, behind) = behind.split_at_checked(option.length.get().into())?;
        let (level, name) = (option.level.get(), option.name.get());
        options.push(OptionRecord { level, name, value: value.to_vec() });
        rest = behind;
    }
    Some((options, rest))
}
