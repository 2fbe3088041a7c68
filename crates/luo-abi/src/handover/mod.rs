//! The two trees of a handover, typed: the machine's and the files'.
//!
//! ```text
//! / {
//!     compatible = "luo-v1";
//!     liveupdate-number = <u64>;
//!     subsystems { compatible = "subsystems-v1"; <name> = <u64 data>; … };
//! };
//!
//! / {
//!     compatible = "file-descriptors-v1";
//!     <session> {
//!         owner = <uid gid>;
//!         on-close = "release" or "keep";
//!         ttl = <u64>; expiry = <u64>; next-token = <u64>;      (each may be missing)
//!         0x1a { compatible = "memfd-v1"; data = <u64>; optional; };
//!     };
//! };
//! ```
//!
//! Invariants: a tree is refused whole when its bytes, its version or its header are damaged, and
//! in that case only; what is wrong with one session, file or subsystem is the error of that one,
//! and the rest stays usable. Properties and nodes that are not known are ignored.

mod error;
mod escape;
mod files;
mod machine;

pub use error::{EntryError, EntryErrorKind, HandoverError, WriteError};
pub use files::{
    FILES_COMPATIBLE, File, Files, FilesTree, FilesWriter, Session, SessionNode, Sessions, Tokens,
    write_files,
};
pub use machine::{
    MACHINE_COMPATIBLE, MachineTree, SUBSYSTEMS_COMPATIBLE, Subsystem, Subsystems, write_machine,
};
