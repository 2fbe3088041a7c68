//! `signalfd-v1`: descriptors of `signalfd(2)`, which signals are read from.
//!
//! Kept: the mask, O_NONBLOCK.
//!
//! Reset: FD_CLOEXEC (it is set), what `F_SETOWN` and its like have set. Signals that are pending
//! are not the file's but the process's, and so is which of them are blocked: whoever reads it gets
//! its own signals.

use luo_abi::record::{SIGNALFD_COMPATIBLE, SignalfdRecord};
use luo_carriers::{FileKind, HostFile};
use luo_core::Failure;

use crate::anew::{Described, damaged, indescribable};
use crate::fail::system;
use crate::fdinfo::{FdInfo, is_nonblocking};

/// Descriptors that signals are read from.
#[derive(Debug)]
pub struct Signalfd;

impl Described for Signalfd {
    const COMPATIBLE: &'static str = SIGNALFD_COMPATIBLE;

    fn takes(file: &HostFile) -> bool {
        file.kind() == FileKind::Signalfd
    }

    fn describe(file: &HostFile) -> Result<Vec<u8>, Failure> {
        let mask = FdInfo::read(file)?.number("sigmask", 16)?;
        let flags = if is_nonblocking(file)? { SignalfdRecord::NONBLOCK } else { 0 };
        SignalfdRecord { mask, flags }.encode().map_err(indescribable("the signalfd"))
    }

    fn make(record: &[u8]) -> Result<HostFile, Failure> {
        let record = SignalfdRecord::decode(record).map_err(damaged("the signalfd"))?;
        luo_sys::signalfd(record.mask, record.flags & SignalfdRecord::NONBLOCK != 0)
            .map(HostFile::from)
            .map_err(system("no new signalfd"))
    }
}
