//! Open file descriptions of one thing in one session: of a pipe, of a file without a name.
//!
//! Invariants: the one with the smallest token is the maker: it makes all of them, and the others need
//! it.

use std::ops::ControlFlow;

use luo_carriers::HostFile;
use luo_core::{Errno, Failure, File, Keep, Token};

/// All others in the session of the same identity as `own`, in their order; at most so many.
pub(crate) fn others(
    own: &HostFile,
    keep: &dyn Keep<HostFile>,
    max: usize,
) -> Result<Vec<(Token, HostFile)>, Failure> {
    let mut others = Vec::new();
    let identity = own.identity();
    keep.each_within(identity..=identity, &mut |token, other| {
        if Some(token) != keep.token() {
            others.push((token, other.clone()));
        }
        if others.len() > max { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    if others.len() > max {
        let reason = format!("it is open more than {max} times");
        return Err(Failure::new(Errno::TooBig, reason));
    }
    Ok(others)
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
