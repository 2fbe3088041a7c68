//! The system calls that luo needs and rustix lacks, each behind a safe function or type.
//!
//! This is the only crate of the project with `unsafe` code.

mod mapping;

pub use mapping::{Memory, MemoryError};
