//! What the kernel's errors mean, in sentences that say what to do.
//!
//! Invariants: the errno stays the kernel's; the cause is kept.

use std::io;

use luo_core::{Errno, Failure};

use crate::{HostFile, MemoryKind};

/// What has to be on the kernel's command line.
const SWITCHES: &str = "`kho=on liveupdate=on`";

fn failure(error: io::Error, reason: String) -> Failure {
    let errno = error.raw_os_error().map_or(Errno::Io, Errno::from_raw);
    Failure::new(errno, reason).because(error)
}

/// The errno, where luo has a word for it.
fn errno(error: &io::Error) -> Option<Errno> {
    error.raw_os_error().map(|raw| (raw, Errno::from_raw(raw))).and_then(|(raw, errno)| {
        // What luo has no word for counts as EIO elsewhere; here EIO means something.
        (errno.raw() == raw).then_some(errno)
    })
}

/// The device could not be opened.
#[must_use]
pub fn open_failed(path: &str, error: io::Error) -> Failure {
    if error.kind() == io::ErrorKind::PermissionDenied {
        let reason = format!("luod may not open {path}: it belongs to root alone");
        return Failure::new(Errno::Perm, reason).because(error);
    }
    let reason = match errno(&error) {
        Some(Errno::NoEnt) => format!(
            "this kernel has no {path}: it takes Linux 6.19 or later, built with CONFIG_LIVEUPDATE \
             and started with {SWITCHES}"
        ),
        Some(Errno::Busy) => format!(
            "another agent has {path} open, and the kernel lets only one: stop it, or let luod be \
             the one"
        ),
        Some(Errno::Io) => format!(
            "{path}: the kernel cannot read what the kernel before handed over, and says no more: \
             its log does (`dmesg`, lines with \"luo\" or \"KHO\"). What was kept is lost, and \
             nothing can be kept, until the machine is booted again"
        ),
        _ => format!("{path} cannot be opened: {error}"),
    };
    failure(error, reason)
}

/// A session for the next kernel could not be made.
pub(super) fn create_failed(name: &str, error: io::Error) -> Failure {
    let reason = match errno(&error) {
        Some(Errno::Exist) => format!(
            "there is a kernel session {name:?} already, which is not this luod's: find out who \
             has it (`ls -l /proc/*/fd | grep luo_session`)"
        ),
        Some(Errno::NoMem | Errno::NoSpc) => {
            format!("the kernel has no room for one more kernel session ({name:?}): {error}")
        }
        Some(Errno::OpNotSupp) => {
            format!("live update is switched off in this kernel: start it with {SWITCHES}")
        }
        _ => format!("the kernel session {name:?} cannot be made: {error}"),
    };
    failure(error, reason)
}

/// A file could not be preserved.
pub(super) fn preserve_failed(file: &HostFile, session: &str, error: io::Error) -> Failure {
    let reason = match errno(&error) {
        Some(Errno::NoEnt) => match file.memory() {
            Ok(Some(MemoryKind::Hugetlb)) => {
                "this kernel keeps no memory of huge pages (MFD_HUGETLB): use ordinary pages, with \
                 transparent huge pages"
                    .to_owned()
            }
            Ok(Some(MemoryKind::Shmem)) => "this kernel keeps memory files that have no path, and \
                                            this one has one: use memfd_create"
                .to_owned(),
            _ => "this kernel cannot keep an open file of this type: make it optional, close it \
                  before the update, or use a kernel that can"
                .to_owned(),
        },
        Some(Errno::Busy) => {
            "the file is preserved in a kernel session already, by somebody else".to_owned()
        }
        Some(Errno::Exist) => format!(
            "the token is taken in the kernel session {session:?}: tokens of its owner must be \
             below 2^63"
        ),
        Some(Errno::OpNotSupp) => "the memory file has seals that this kernel does not keep".into(),
        _ if error.raw_os_error() == Some(rustix::io::Errno::FBIG.raw_os_error()) => {
            "the memory file has more pages than this kernel keeps: at most 4294967295".into()
        }
        Some(Errno::NoSpc) => {
            format!("the kernel session {session:?} is full: spread its files over more sessions")
        }
        Some(Errno::NoMem) => {
            "the kernel has no memory for it: all pages of the file are made present, holes too"
                .into()
        }
        _ => format!("the kernel did not take the file into its session {session:?}: {error}"),
    };
    failure(error, reason)
}

/// A session of the kernel before could not be had.
pub(super) fn retrieve_failed(name: &str, error: io::Error) -> Failure {
    let reason = match errno(&error) {
        Some(Errno::NoEnt) => {
            format!("the kernel session {name:?} did not come from the kernel before")
        }
        Some(Errno::Inval) => format!(
            "somebody has retrieved the kernel session {name:?} already, and the kernel gives it \
             once only: stop whoever has it"
        ),
        _ => format!("the kernel session {name:?} cannot be retrieved: {error}"),
    };
    failure(error, reason)
}

/// A file of the kernel before could not be had.
pub(super) fn fetch_failed(what: &str, error: io::Error) -> Failure {
    let reason = match errno(&error) {
        Some(Errno::NoEnt) => format!("{what} did not come from the kernel before"),
        _ => format!(
            "{what} cannot be made again by this kernel ({error}), which is final; its log may \
             say why (`dmesg`)"
        ),
    };
    failure(error, reason)
}

/// Something else failed.
pub(super) fn failed(what: &str, error: io::Error) -> Failure {
    let reason = format!("{what}: {error}");
    failure(error, reason)
}
