//! Descriptors across `execve`: letting them through on one side, owning them on the other, or
//! putting them where the next program expects them.
//!
//! Invariants: a descriptor is adopted at most once. Everything that this process opens is
//! close-on-exec from birth (std and rustix see to it), so an open descriptor without FD_CLOEXEC
//! was inherited and has no owner yet; adopting it sets FD_CLOEXEC, which makes a second adoption
//! fail.

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Mutex;

use rustix::io::{FdFlags, fcntl_dupfd_cloexec, fcntl_getfd, fcntl_setfd};

/// Adoption is "look at the flag, then set it": one at a time.
static ADOPTING: Mutex<()> = Mutex::new(());

/// Takes ownership of a descriptor that this process inherited by `execve`, by its number.
///
/// Meant for the start of a process. A number from anywhere else, one that is not open or has an
/// owner in this process already, is refused. (A descriptor for which somebody has cleared
/// FD_CLOEXEC to let it through an `execve`, see [`close_on_exec`], must not be adopted meanwhile:
/// that is why both are in this module, and why only programs that have one thread then clear it.)
///
/// # Errors
/// EBADF where no descriptor of that number is open, EINVAL for 0, 1, 2 and for one that is
/// close-on-exec, hence not inherited or adopted already.
pub fn adopt(number: RawFd) -> io::Result<OwnedFd> {
    let inval = || io::Error::from_raw_os_error(libc::EINVAL);
    if number < 0 {
        return Err(io::Error::from_raw_os_error(libc::EBADF));
    }
    if number <= 2 {
        return Err(inval());
    }
    let _one_at_a_time = ADOPTING.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    // SAFETY: F_GETFD takes no argument and touches no memory.
    let flags = unsafe { libc::fcntl(number, libc::F_GETFD) };
    if flags < 0 {
        return Err(io::Error::last_os_error());
    }
    if flags & libc::FD_CLOEXEC != 0 {
        return Err(inval());
    }
    // SAFETY: `number` is open, and without FD_CLOEXEC; by this module's invariant it came by
    // execve, and nothing in this process owns it: the flag is set below, under the lock, before
    // anybody else can come this far.
    let owned = unsafe { OwnedFd::from_raw_fd(number) };
    fcntl_setfd(&owned, FdFlags::CLOEXEC)?;
    Ok(owned)
}

/// Takes the descriptor that this process has as its standard input, and puts `/dev/null` there.
///
/// # Errors
/// EBADF where standard input is closed, EMFILE, or what opening `/dev/null` gives.
pub fn adopt_stdin() -> io::Result<OwnedFd> {
    let taken = io::stdin().as_fd().try_clone_to_owned()?;
    let null = std::fs::File::open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    Ok(taken)
}

/// Lets a descriptor through the next `execve` (`false`), or keeps it from it again (`true`).
///
/// # Errors
/// None for an open descriptor.
pub fn close_on_exec(fd: impl AsFd, close: bool) -> io::Result<()> {
    let fd = fd.as_fd();
    let flags = fcntl_getfd(fd)?;
    let wanted = if close { flags | FdFlags::CLOEXEC } else { flags - FdFlags::CLOEXEC };
    if wanted != flags {
        fcntl_setfd(fd, wanted)?;
    }
    Ok(())
}

/// Gives up these descriptors, and leaves them open for the next program under the numbers from
/// `first` on, in order, without FD_CLOEXEC. What was inherited under one of these numbers, and never
/// [adopted](adopt), is closed.
///
/// # Errors
/// EBUSY where this process owns a descriptor of such a number, EINVAL for a `first` below 3, EMFILE.
/// Some of the numbers may be taken then: meant for a process that ends if this fails.
pub fn settle(first: RawFd, descriptors: Vec<OwnedFd>) -> io::Result<()> {
    let count = RawFd::try_from(descriptors.len()).ok();
    let end = count.and_then(|count| first.checked_add(count)).filter(|_| first > 2);
    let end = end.ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))?;
    let _one_at_a_time = ADOPTING.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    // Out of the way first: one may have a number that is meant for another.
    let aside = descriptors
        .into_iter()
        .map(|descriptor| Ok(fcntl_dupfd_cloexec(&descriptor, end)?))
        .collect::<io::Result<Vec<OwnedFd>>>()?;
    for (number, descriptor) in (first..end).zip(&aside) {
        // SAFETY: F_GETFD takes no argument and touches no memory.
        let flags = unsafe { libc::fcntl(number, libc::F_GETFD) };
        if flags >= 0 && flags & libc::FD_CLOEXEC != 0 {
            return Err(io::Error::from_raw_os_error(libc::EBUSY));
        }
        // SAFETY: the number is free, or by this module's invariant nobody in this process owns what
        // is there; `descriptor` is open, for it is borrowed.
        if unsafe { libc::dup2(descriptor.as_raw_fd(), number) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::IntoRawFd;

    #[test]
    fn an_inherited_descriptor_is_adopted_once() {
        let file = OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
        close_on_exec(&file, false).unwrap();
        let number = file.into_raw_fd();
        let owned = adopt(number).unwrap();
        assert!(fcntl_getfd(&owned).unwrap().contains(FdFlags::CLOEXEC));
        assert_eq!(adopt(number).unwrap_err().raw_os_error(), Some(libc::EINVAL));
    }

    #[test]
    fn what_is_owned_closed_or_standard_is_not_adopted() {
        let file = OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
        let errno = |number| adopt(number).unwrap_err().raw_os_error();
        assert_eq!(errno(file.as_raw_fd()), Some(libc::EINVAL));
        assert_eq!(errno(1 << 20), Some(libc::EBADF));
        assert_eq!(errno(-1), Some(libc::EBADF));
        assert_eq!(errno(0), Some(libc::EINVAL));
    }

    #[test]
    fn descriptors_settle_in_order_where_nobody_lives() {
        // Far from what the other tests of this process open.
        let first = 700;
        let files: Vec<OwnedFd> =
            ["/dev/null", "/dev/zero"].map(|path| std::fs::File::open(path).unwrap().into()).into();
        settle(first, files).unwrap();
        let names = [first, first + 1].map(|number| {
            let link = std::fs::read_link(format!("/proc/self/fd/{number}")).unwrap();
            let owned = adopt(number).unwrap();
            assert!(fcntl_getfd(&owned).unwrap().contains(FdFlags::CLOEXEC));
            (link, owned)
        });
        assert_eq!(names[0].0.to_str(), Some("/dev/null"));
        assert_eq!(names[1].0.to_str(), Some("/dev/zero"));
        let another = std::fs::File::open("/dev/null").unwrap().into();
        assert_eq!(settle(first, vec![another]).unwrap_err().raw_os_error(), Some(libc::EBUSY));
        assert_eq!(settle(1, Vec::new()).unwrap_err().raw_os_error(), Some(libc::EINVAL));
    }
}
