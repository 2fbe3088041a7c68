//! The one thing that the keeper asks of `/dev/liveupdate`: a session that came from the kernel
//! before.
//!
//! Invariants: a session is retrieved right into the keeper, and is in no worker alone.

use std::os::fd::OwnedFd;

use luo_abi::liveupdate::ioctl::Name;
use luo_sys::LiveUpdateDevice;
use rustix::io::Errno;
use zerocopy::{FromBytes, IntoBytes};

/// The name that a record is: whole, with its NULs.
pub(super) fn session_name(record: &[u8]) -> Result<Name, Errno> {
    let given = Name::read_from_bytes(record).map_err(|_| Errno::INVAL)?;
    let name = Name::new(given.as_bytes_without_nul()).ok_or(Errno::INVAL)?;
    if name.as_bytes() == record { Ok(name) } else { Err(Errno::INVAL) }
}

/// Retrieves a session; the errors are the kernel's.
pub(super) fn retrieve(device: OwnedFd, name: Name) -> Result<OwnedFd, Errno> {
    let errno = |error| Errno::from_io_error(&error).unwrap_or(Errno::IO);
    let device = LiveUpdateDevice::adopt(device).map_err(errno)?;
    device.retrieve(name).map(OwnedFd::from).map_err(errno)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_whole_name_is_one() {
        let name = Name::new(b"luod").unwrap();
        assert_eq!(session_name(name.as_bytes()), Ok(name));
        let mut odd = *<&[u8; 64]>::try_from(name.as_bytes()).unwrap();
        odd[10] = b'x';
        assert_eq!(session_name(&odd), Err(Errno::INVAL));
        assert_eq!(session_name(&[0; 64]), Err(Errno::INVAL));
        assert_eq!(session_name(&[b'x'; 64]), Err(Errno::INVAL));
        assert_eq!(session_name(b"luod"), Err(Errno::INVAL));
    }

    #[test]
    fn nothing_but_the_device_is_asked() {
        let name = Name::new(b"luod").unwrap();
        let null = OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
        assert_eq!(retrieve(null, name).unwrap_err(), Errno::NODEV);
    }
}
