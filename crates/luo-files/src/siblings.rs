//! Open file descriptions of one thing in one session: of a pipe, of a file without a name.
//!
//! Invariants: the one with the smallest token is the maker: it makes all of them, and the others need
//! it.

use std::cell::RefCell;
use std::cmp::Ordering;

use luo_carriers::HostFile;
use luo_core::{Errno, Failure, File, Identity, Keep, Token};

/// All others in the session of the same identity as `own`, in their order; at most so many.
pub(crate) fn others(
    own: &HostFile,
    keep: &dyn Keep<HostFile>,
    max: usize,
) -> Result<Vec<(Token, HostFile)>, Failure> {
    let mut others = Vec::new();
    find(keep, own.identity(), None, None, max, &mut others)?;
    others.retain(|(token, _)| Some(*token) != keep.token());
    Ok(others)
}

/// Those between these two.
fn find(
    keep: &dyn Keep<HostFile>,
    identity: Identity,
    low: Option<&HostFile>,
    high: Option<&HostFile>,
    max: usize,
    found: &mut Vec<(Token, HostFile)>,
) -> Result<(), Failure> {
    let middle = RefCell::new(None);
    let token = keep.find(identity, &|other| {
        if low.is_some_and(|low| other.order(low) != Ordering::Greater) {
            Ordering::Less
        } else if high.is_some_and(|high| other.order(high) != Ordering::Less) {
            Ordering::Greater
        } else {
            middle.replace(Some(other.clone()));
            Ordering::Equal
        }
    });
    let (Some(token), Some(middle)) = (token, middle.into_inner()) else { return Ok(()) };
    if found.len() > max {
        let reason = format!("it is open more than {max} times");
        return Err(Failure::new(Errno::TooBig, reason));
    }
    find(keep, identity, low, Some(&middle), max, found)?;
    found.push((token, middle.clone()));
    find(keep, identity, Some(&middle), high, max, found)
}

/// The maker, where that is another one than the file that is being kept.
pub(crate) fn maker(others: &[(Token, HostFile)], keep: &dyn Keep<HostFile>) -> Option<Token> {
    let first = others.iter().map(|(token, _)| *token).min()?;
    (keep.token().is_none_or(|own| own > first)).then_some(first)
}

/// Binds the file that is being kept to the others.
pub(crate) fn tie(others: &[(Token, HostFile)], keep: &dyn Keep<HostFile>) -> Result<(), Failure> {
    match maker(others, keep) {
        Some(maker) => keep.need(maker),
        None => others.iter().try_for_each(|(token, _)| keep.bind(*token)),
    }
}
