//! `device-v1`: devices that have no state: `/dev/null`, `zero`, `full`, `random`, `urandom`.
//!
//! Kept: which device, access mode, status flags.
//!
//! Reset: FD_CLOEXEC (it is set), what `F_SETOWN` and its like have set. The path under which it
//! was opened: it is opened under the usual one.
//!
//! Not taken: all other devices, whose state nobody but their driver knows.

use luo_abi::record::{DEVICE_COMPATIBLE, DeviceRecord};
use luo_carriers::{FileKind, HostFile};
use luo_core::{Errno, Failure};
use rustix::fs::{FileType, Mode, OFlags, fstat, major, minor};

use crate::anew::{Described, damaged, indescribable};
use crate::fail::system;
use crate::open;

/// The devices without a state: number and path.
const STATELESS: [(u32, u32, &str); 5] = [
    (1, 3, "/dev/null"),
    (1, 5, "/dev/zero"),
    (1, 7, "/dev/full"),
    (1, 8, "/dev/random"),
    (1, 9, "/dev/urandom"),
];

/// Devices without a state.
#[derive(Debug)]
pub struct Device;

impl Described for Device {
    const COMPATIBLE: &'static str = DEVICE_COMPATIBLE;

    /// Others are left to the kernel, which may know how to keep them.
    fn takes(file: &HostFile) -> bool {
        file.kind() == FileKind::CharDevice
            && number(file).is_ok_and(|(major, minor)| path(major, minor).is_some())
    }

    fn describe(file: &HostFile) -> Result<Vec<u8>, Failure> {
        let (major, minor) = number(file)?;
        let record = DeviceRecord { major, minor, open: open::flags(file)? };
        record.encode().map_err(indescribable("the device"))
    }

    fn make(record: &[u8]) -> Result<HostFile, Failure> {
        let record = DeviceRecord::decode(record).map_err(damaged("the device"))?;
        let (major, minor) = (record.major, record.minor);
        let path = path(major, minor).ok_or_else(|| {
            let reason = format!("{major}:{minor} is no device that this luo opens");
            Failure::new(Errno::Inval, reason)
        })?;
        let failed = system(format_args!("{path} cannot be opened").to_string());
        // Nothing is opened for good before it is known to be the device.
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let anchor = HostFile::from(rustix::fs::open(path, flags, Mode::empty()).map_err(failed)?);
        if number(&anchor)? != (major, minor) {
            let reason = format!("{path} is not the device {major}:{minor} here");
            return Err(Failure::new(Errno::NoEnt, reason));
        }
        open::again(&anchor, record.open).map(HostFile::from)
    }
}

fn path(major: u32, minor: u32) -> Option<&'static str> {
    STATELESS.iter().find(|(a, b, _)| (*a, *b) == (major, minor)).map(|(_, _, path)| *path)
}

/// The number of a character device; zeros for anything else, which no device has.
fn number(file: &HostFile) -> Result<(u32, u32), Failure> {
    let stat = fstat(file).map_err(system("the device cannot be looked at"))?;
    Ok(match FileType::from_raw_mode(stat.st_mode) {
        FileType::CharacterDevice => (major(stat.st_rdev), minor(stat.st_rdev)),
        _ => (0, 0),
    })
}
