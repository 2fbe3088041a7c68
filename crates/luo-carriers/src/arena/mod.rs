//! The arena: a region that outlives the kernel, and what is kept in it.
//!
//! On persistent memory it survives a kexec of any kernel; on an ordinary file it survives a power
//! cycle.
//!
//! | module | its job |
//! | --- | --- |
//! | [`copy`] | memory files into a medium and back, only what changed |
//! | [`medium`] | where the bytes are: reads, writes and flushes, nothing else |

pub mod copy;
pub mod medium;
