//! Everything that crosses a boundary in luo: what one system writes and another one reads.
//!
//! Invariants: `no_std`, no I/O, no `unsafe`; whatever is read is untrusted until it has been
//! validated whole; a changed layout is a new `compatible` string.
#![no_std]

extern crate alloc;

pub mod keeper;
