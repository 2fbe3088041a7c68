//! The arena: a region that outlives the kernel, and what is kept in it.
//!
//! On persistent memory it survives a kexec of any kernel; on an ordinary file it survives a power
//! cycle. The format is in [`luo_abi::arena`].
//!
//! | module | its job |
//! | --- | --- |
//! | [`medium`] | where the bytes are: reads, writes and flushes, nothing else |
//! | [`mod@file`] | a medium that is a file or a device |
//! | `kind` | what kinds of files and devices there are, and how each is got at |
//! | [`space`] | which bytes are free, and whose the others are |
//! | [`view`] | what an arena holds, read and validated whole; `info`, `check` and `dump` |
//! | [`store`] | an arena in use: objects come and go |
//! | [`resident`] | memory that a service writes where it lies |
//! | [`switch`] | commit and retire: one atomic step from one handover to the next |
//! | [`measure`] | how much of an arena something would take |
//! | [`carrier`] | all that as a [`Carrier`](luo_core::Carrier) |

pub mod carrier;
pub mod copy;
pub mod file;
mod kind;
pub mod measure;
pub mod medium;
mod object;
pub mod resident;
pub mod space;
pub mod store;
pub mod switch;
pub mod view;

pub use carrier::ArenaCarrier;
pub use file::{Access, FileMedium, Place, machine_id};
pub use measure::{Measure, Measured};
pub use medium::{Extent, Medium};
pub use store::{Arena, Usage};
pub use view::View;

use luo_abi::arena::ArenaError;
use luo_core::{Errno, Failure};

#[cfg(test)]
mod crash;

/// A region that is no arena which can be used here, as a failure; the cause is the error.
#[must_use]
pub fn refused(error: ArenaError) -> Failure {
    let errno = match error {
        ArenaError::Version { .. } => Errno::OpNotSupp,
        ArenaError::OtherMachine { .. } => Errno::Perm,
        _ => Errno::Inval,
    };
    Failure::new(errno, error.to_string()).because(error)
}
