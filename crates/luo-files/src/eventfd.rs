//! `eventfd-v1`: event counters of `eventfd(2)`.
//!
//! Kept: the count, whether each read takes one (EFD_SEMAPHORE), O_NONBLOCK.
//!
//! Reset: FD_CLOEXEC (it is set), what `F_SETOWN` and its like have set, the number in `fdinfo`;
//! whoever waits for it elsewhere (in an epoll, in KVM) waits for the old one.
//!
//! Refused, with a reason: all of them where the kernel does not tell whether one is a semaphore
//! (before Linux 6.5).

use luo_abi::record::{EVENTFD_COMPATIBLE, EventfdRecord};
use luo_carriers::{FileKind, HostFile};
use luo_core::Failure;
use rustix::event::{EventfdFlags, eventfd};

use crate::anew::{Described, damaged, indescribable};
use crate::fail::system;
use crate::fdinfo::{FdInfo, is_nonblocking};

/// Event counters.
#[derive(Debug)]
pub struct Eventfd;

impl Described for Eventfd {
    const COMPATIBLE: &'static str = EVENTFD_COMPATIBLE;

    fn takes(file: &HostFile) -> bool {
        file.kind() == FileKind::Eventfd
    }

    fn describe(file: &HostFile) -> Result<Vec<u8>, Failure> {
        let info = FdInfo::read(file)?;
        let mut flags = 0;
        if info.number("eventfd-semaphore", 10)? != 0 {
            flags |= EventfdRecord::SEMAPHORE;
        }
        if is_nonblocking(file)? {
            flags |= EventfdRecord::NONBLOCK;
        }
        let record = EventfdRecord { count: info.number("eventfd-count", 16)?, flags };
        record.encode().map_err(indescribable("the eventfd"))
    }

    fn make(record: &[u8]) -> Result<HostFile, Failure> {
        let record = EventfdRecord::decode(record).map_err(damaged("the eventfd"))?;
        let mut flags = EventfdFlags::CLOEXEC;
        flags.set(EventfdFlags::SEMAPHORE, record.flags & EventfdRecord::SEMAPHORE != 0);
        flags.set(EventfdFlags::NONBLOCK, record.flags & EventfdRecord::NONBLOCK != 0);
        let file = eventfd(0, flags).map_err(system("no new eventfd"))?;
        if record.count > 0 {
            // It does not block: there is room for every count that a record can tell.
            rustix::io::write(&file, &record.count.to_ne_bytes())
                .map_err(system("the eventfd's count cannot be set"))?;
        }
        Ok(HostFile::from(file))
    }
}
