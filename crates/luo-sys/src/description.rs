//! Open file descriptions: whether two descriptors share one, and an order among them.
//!
//! Invariants: the order is the kernel's (`kcmp`): total, and the same as long as both are open.
//! Where the kernel does not give one, that is an error, never a guess.

use std::cmp::Ordering;
use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// `KCMP_FILE` of `linux/kcmp.h`.
const KCMP_FILE: libc::c_ulong = 0;
/// `F_DUPFD_QUERY` of `linux/fcntl.h`, since Linux 6.10.
const F_DUPFD_QUERY: libc::c_int = 1024 + 3;

/// Orders two open file descriptions; `Equal` means that both descriptors refer to the same one.
///
/// # Errors
/// ENOSYS where the kernel is built without `CONFIG_KCMP`, EPERM where a seccomp filter forbids
/// the call.
pub fn order_descriptions(one: impl AsFd, other: impl AsFd) -> io::Result<Ordering> {
    let (one, other) = (one.as_fd().as_raw_fd(), other.as_fd().as_raw_fd());
    let me = std::process::id();
    // SAFETY: kcmp takes five integers and neither reads nor writes memory of the caller. Both
    // descriptors are open, for they are borrowed.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_kcmp,
            libc::c_ulong::from(me),
            libc::c_ulong::from(me),
            KCMP_FILE,
            one as libc::c_ulong,
            other as libc::c_ulong,
        )
    };
    ordering(answer)
}

/// What `kcmp` has answered.
pub(crate) fn ordering(answer: libc::c_long) -> io::Result<Ordering> {
    match answer {
        0 => Ok(Ordering::Equal),
        1 => Ok(Ordering::Less),
        2 => Ok(Ordering::Greater),
        -1 => Err(io::Error::last_os_error()),
        // 3: "not equal, but no order"; the kernel documents it and never gives it for files.
        _ => Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP)),
    }
}

/// Whether two descriptors refer to the same open file description: `F_DUPFD_QUERY`, or `kcmp`
/// before Linux 6.10.
///
/// # Errors
/// As [`order_descriptions`], where the kernel has neither.
pub fn same_description(one: impl AsFd, other: impl AsFd) -> io::Result<bool> {
    let (a, b) = (one.as_fd().as_raw_fd(), other.as_fd().as_raw_fd());
    // SAFETY: this fcntl command takes an integer and touches no memory of the caller; an older
    // kernel answers EINVAL.
    match unsafe { libc::fcntl(a, F_DUPFD_QUERY, b) } {
        -1 => Ok(order_descriptions(one, other)? == Ordering::Equal),
        answer => Ok(answer == 1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::fd::OwnedFd;

    fn null() -> OwnedFd {
        File::open("/dev/null").unwrap().into()
    }

    #[test]
    fn a_duplicate_is_the_same_description_and_a_second_open_is_not() {
        let (one, other) = (null(), null());
        let twin = one.try_clone().unwrap();
        assert!(same_description(&one, &twin).unwrap());
        assert!(!same_description(&one, &other).unwrap());
    }

    #[test]
    fn the_order_is_total_and_duplicates_are_equal() {
        let mut files: Vec<OwnedFd> = (0..20).map(|_| null()).collect();
        let order = |a: &OwnedFd, b: &OwnedFd| match order_descriptions(a, b) {
            Ok(order) => Some(order),
            Err(error) => {
                eprintln!("SKIPPED: no kcmp here: {error}");
                None
            }
        };
        if order(&files[0], &files[1]).is_none() {
            return;
        }
        let twin = files[7].try_clone().unwrap();
        files.sort_by(|a, b| order(a, b).unwrap());
        for (at, one) in files.iter().enumerate() {
            for (other_at, other) in files.iter().enumerate() {
                assert_eq!(order(one, other), Some(at.cmp(&other_at)));
            }
        }
        assert!(files.binary_search_by(|file| order(file, &twin).unwrap()).is_ok());
    }
}
