//! Sealed memory files: bytes in a descriptor that nobody can change any more.
//!
//! Invariants: what [`seal`] gives is sealed against writing, growing, shrinking and further seals
//! before anybody else has it; [`sealed_size`] says yes to nothing less.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{
    MemfdFlags, SealFlags, SeekFrom, fcntl_add_seals, fcntl_get_seals, fstat, memfd_create, seek,
};
use rustix::io::{Errno, pread};

/// Against every change. Whether it may be executed is nobody's business here.
const SEALS: SealFlags =
    SealFlags::SEAL.union(SealFlags::SHRINK).union(SealFlags::GROW).union(SealFlags::WRITE);

/// A memory file of that name with these bytes, at position zero.
///
/// # Errors
/// As `memfd_create(2)` and `write(2)`.
pub fn seal(name: &str, bytes: &[u8]) -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let file = memfd_create(name, flags | MemfdFlags::NOEXEC_SEAL)
        // Kernels before 6.3 do not know that seal.
        .or_else(|_| memfd_create(name, flags))?;
    let mut file = File::from(file);
    file.write_all(bytes)?;
    seek(&file, SeekFrom::Start(0))?;
    fcntl_add_seals(&file, SEALS)?;
    Ok(file.into())
}

/// The size in bytes of a sealed memory file; `None` where it is not one.
#[must_use]
pub fn sealed_size(file: impl AsFd) -> Option<u64> {
    let seals = fcntl_get_seals(&file).ok()?;
    if seals.difference(SealFlags::EXEC) != SEALS {
        return None;
    }
    u64::try_from(fstat(&file).ok()?.st_size).ok()
}

/// All bytes of a sealed memory file.
///
/// # Errors
/// EINVAL where it is not one; as `pread(2)`.
pub fn read_sealed(file: impl AsFd) -> io::Result<Vec<u8>> {
    let size = sealed_size(&file).and_then(|size| usize::try_from(size).ok());
    let mut bytes = vec![0; size.ok_or(Errno::INVAL)?];
    let mut done = 0;
    while let Some(rest) = bytes.get_mut(done..).filter(|rest| !rest.is_empty()) {
        match pread(&file, rest, done as u64) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => done += count,
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_in_comes_out_and_cannot_be_changed() {
        for bytes in [&b""[..], b"page=3", &[7; 70_000]] {
            let file = seal("test", bytes).unwrap();
            assert_eq!(sealed_size(&file), Some(bytes.len() as u64));
            assert_eq!(read_sealed(&file).unwrap(), bytes);
            let mut file = File::from(file);
            assert!(file.write_all(b"x").is_err());
            assert!(file.set_len(0).is_err() || bytes.is_empty());
        }
    }

    #[test]
    fn what_can_be_changed_is_not_sealed() {
        let open = memfd_create("open", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
        assert_eq!(sealed_size(&open), None);
        fcntl_add_seals(&open, SealFlags::SHRINK | SealFlags::GROW).unwrap();
        assert_eq!(sealed_size(&open), None);
        assert!(read_sealed(File::open("/dev/null").unwrap()).is_err());
    }
}
