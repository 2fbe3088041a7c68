//! Limits per user: how many sessions, files and pinned bytes one uid may have.
//!
//! Invariants:
//! - What counts is what is preserved for the next update; files that have arrived and wait to be
//!   retrieved were counted on the side before, and are counted again when they are carried on.
//! - A refusal is ENOSPC and names the limit and the current use.

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
