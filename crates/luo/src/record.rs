//! Records: small blobs of bytes of a service's own.
//!
//! Invariants: a [`Record`] has a descriptor whose content nobody can change any more; what a
//! descriptor from elsewhere holds is looked at before it becomes one.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use luo_abi::record::{BYTES_MAX, BYTES_NAME};
use luo_sys::{read_sealed, seal, sealed_size};

use crate::error::Error;

/// Small bytes of a service's own, as a file that can be preserved: where it stands, what it was
/// called with, whatever its next version wants to know.
///
/// It is a memory file of at most [`MAX`](Self::MAX) bytes that nobody can change any more. So it
/// goes wherever luo goes, and farther than files of other types. To say something new, take the
/// old record out ([`Session::unpreserve`](crate::Session::unpreserve)) and preserve another under
/// its token.
///
/// ```no_run
/// # fn main() -> Result<(), luo::Error> {
/// # let session = luo::Session::open("shop")?;
/// session.preserve(7, luo::Record::new(b"page=3")?)?;
/// // In the next process:
/// let record = luo::Record::try_from(session.retrieve(7)?)?;
/// assert_eq!(record.bytes()?, b"page=3");
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Record(OwnedFd);

impl Record {
    /// The most bytes in a record: 64 KiB.
    pub const MAX: usize = BYTES_MAX;

    /// A record of these bytes.
    ///
    /// # Errors
    /// [`Error::System`]: EFBIG for more than [`MAX`](Self::MAX) bytes, EMFILE or ENFILE where no
    /// descriptor is free, ENOMEM.
    pub fn new(bytes: &[u8]) -> Result<Self, Error> {
        let failed = Error::system("making a record");
        if bytes.len() > Self::MAX {
            return Err(failed(rustix::io::Errno::FBIG.into()));
        }
        seal(BYTES_NAME, bytes).map(Self).map_err(failed)
    }

    /// Its bytes.
    ///
    /// # Errors
    /// [`Error::System`] as `pread(2)`.
    pub fn bytes(&self) -> Result<Vec<u8>, Error> {
        read_sealed(&self.0).map_err(Error::system("reading a record"))
    }
}

impl AsFd for Record {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl From<Record> for OwnedFd {
    fn from(record: Record) -> Self {
        record.0
    }
}

impl TryFrom<OwnedFd> for Record {
    type Error = Error;

    /// # Errors
    /// [`Error::System`], EINVAL: it is no memory file, can be changed, or is too large.
    fn try_from(file: OwnedFd) -> Result<Self, Error> {
        let size = sealed_size(&file).and_then(|size| usize::try_from(size).ok());
        if size.is_some_and(|size| size <= Self::MAX) {
            Ok(Self(file))
        } else {
            let error = rustix::io::Errno::INVAL.into();
            Err(Error::system("taking a descriptor for a record")(error))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_in_comes_out() {
        for bytes in [&b""[..], b"page=3", &[7; Record::MAX]] {
            let record = Record::new(bytes).unwrap();
            assert_eq!(record.bytes().unwrap(), bytes);
            let again = Record::try_from(OwnedFd::from(record)).unwrap();
            assert_eq!(again.bytes().unwrap(), bytes);
        }
    }

    #[test]
    fn what_is_too_large_or_can_be_changed_is_no_record() {
        assert!(Record::new(&[0; Record::MAX + 1]).is_err());
        let large = seal("large", &[0; Record::MAX + 1]).unwrap();
        assert!(Record::try_from(large).is_err());
        let null = std::fs::File::open("/dev/null").unwrap();
        assert!(Record::try_from(OwnedFd::from(null)).is_err());
    }
}
