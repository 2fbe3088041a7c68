//! POSIX message queues.
//!
//! Source: `mq_overview(7)`.
//!
//! Invariants: nothing here waits, but sending up to a deadline.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

/// What a queue has room for, and what is in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueAttributes {
    /// The most messages.
    pub most: u32,
    /// The largest message, in bytes.
    pub largest: u32,
    /// How many messages there are.
    pub waiting: u32,
}

/// A message of a queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueueMessage {
    /// The greater, the sooner it is received; at most 32767.
    pub priority: u32,
    /// Its content.
    pub bytes: Vec<u8>,
}

/// Opens the queue of that name, for reading and writing as asked, without waiting.
///
/// # Errors
/// ENOENT, EACCES, EMFILE, EINVAL for a name without a slash at its beginning.
pub fn open_queue(name: &CStr, read: bool, write: bool) -> io::Result<OwnedFd> {
    let access = match (read, write) {
        (true, true) => libc::O_RDWR,
        (false, true) => libc::O_WRONLY,
        _ => libc::O_RDONLY,
    };
    // SAFETY: the name ends with a zero byte; without O_CREAT no further argument is read.
    let fd = unsafe { libc::mq_open(name.as_ptr(), access | libc::O_NONBLOCK | libc::O_CLOEXEC) };
    own(fd)
}

/// Makes a queue that is not there yet, and opens it for both.
///
/// # Errors
/// EEXIST, EINVAL and EMFILE where it is larger than is allowed (`/proc/sys/fs/mqueue`,
/// `RLIMIT_MSGQUEUE`), ENOSPC, EACCES.
pub fn make_queue(name: &CStr, mode: u32, most: u32, largest: u32) -> io::Result<OwnedFd> {
    let flags = libc::O_RDWR | libc::O_CREAT | libc::O_EXCL | libc::O_NONBLOCK | libc::O_CLOEXEC;
    // SAFETY: a struct of numbers alone, for which zeros are values.
    let mut attributes: libc::mq_attr = unsafe { std::mem::zeroed() };
    // What does not fit where a long has 32 bits is less than zero then, and refused.
    attributes.mq_maxmsg = most as libc::c_long;
    attributes.mq_msgsize = largest as libc::c_long;
    // SAFETY: the name ends with a zero byte; with O_CREAT a mode and a pointer to attributes are
    // read, which are there and live through the call.
    let fd =
        unsafe { libc::mq_open(name.as_ptr(), flags, mode as libc::c_uint, &raw const attributes) };
    own(fd)
}

fn own(fd: libc::mqd_t) -> io::Result<OwnedFd> {
    if fd == -1 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor, and nobody else knows of it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Removes the name of a queue.
///
/// # Errors
/// ENOENT, EACCES.
pub fn remove_queue(name: &CStr) -> io::Result<()> {
    // SAFETY: the name ends with a zero byte.
    let done = unsafe { libc::mq_unlink(name.as_ptr()) };
    if done == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// What a queue has room for, and what is in it.
///
/// # Errors
/// EBADF where it is no queue.
pub fn queue_attributes(queue: impl AsFd) -> io::Result<QueueAttributes> {
    // SAFETY: a struct of numbers alone, for which zeros are values.
    let mut attributes: libc::mq_attr = unsafe { std::mem::zeroed() };
    // SAFETY: the descriptor is borrowed, and the kernel writes a `struct mq_attr`, which is there.
    let done = unsafe { libc::mq_getattr(queue.as_fd().as_raw_fd(), &raw mut attributes) };
    if done == -1 {
        return Err(io::Error::last_os_error());
    }
    let number = |number: libc::c_long| {
        u32::try_from(number).map_err(|_| io::Error::from_raw_os_error(libc::EOVERFLOW))
    };
    Ok(QueueAttributes {
        most: number(attributes.mq_maxmsg)?,
        largest: number(attributes.mq_msgsize)?,
        waiting: number(attributes.mq_curmsgs)?,
    })
}

/// Takes the first message out of a queue that is open without waiting; `None` where there is none.
///
/// # Errors
/// EBADF, EMSGSIZE where `largest` is less than the queue's.
pub fn take_message(queue: impl AsFd, largest: u32) -> io::Result<Option<QueueMessage>> {
    let mut bytes = vec![0; largest as usize];
    let mut priority = 0;
    let past = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the descriptor is borrowed; the kernel writes at most as many bytes as the buffer has,
    // which it is told, and a number; and reads a time. All of them live through the call.
    let len = unsafe {
        libc::mq_timedreceive(
            queue.as_fd().as_raw_fd(),
            bytes.as_mut_ptr().cast(),
            bytes.len(),
            &raw mut priority,
            &raw const past,
        )
    };
    let Ok(len) = usize::try_from(len) else {
        let error = io::Error::last_os_error();
        return match error.raw_os_error() {
            // The first where it does not wait at all.
            Some(libc::EAGAIN | libc::ETIMEDOUT) => Ok(None),
            _ => Err(error),
        };
    };
    bytes.truncate(len);
    Ok(Some(QueueMessage { priority, bytes }))
}

/// Puts a message into a queue; where that is full and waits, until `patience` is over.
///
/// # Errors
/// EAGAIN or ETIMEDOUT where it is full, EMSGSIZE, EINVAL for the priority, EBADF.
pub fn put_message(queue: impl AsFd, message: &QueueMessage, patience: Duration) -> io::Result<()> {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
    let nanoseconds = now.tv_nsec as u64 + u64::from(patience.subsec_nanos());
    let seconds = patience.as_secs() + nanoseconds / 1_000_000_000;
    let until = libc::timespec {
        tv_sec: (now.tv_sec as u64).saturating_add(seconds) as libc::time_t,
        tv_nsec: (nanoseconds % 1_000_000_000) as libc::c_long,
    };
    // SAFETY: the descriptor is borrowed; the kernel reads as many bytes as the message has, which
    // it is told, and a time. Both live through the call.
    let done = unsafe {
        libc::mq_timedsend(
            queue.as_fd().as_raw_fd(),
            message.bytes.as_ptr().cast(),
            message.bytes.len(),
            message.priority,
            &raw const until,
        )
    };
    if done == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::CString;

    #[test]
    fn messages_are_taken_by_priority_and_a_full_queue_is_told() {
        let name = CString::new(format!("/luo-sys-{}", std::process::id())).unwrap();
        let queue = match make_queue(&name, 0o600, 2, 16) {
            Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => {
                return println!("SKIPPED: a kernel without message queues");
            }
            made => made.unwrap(),
        };
        let message = |priority, text: &str| QueueMessage { priority, bytes: text.into() };
        let at_once = Duration::ZERO;
        put_message(&queue, &message(1, "later"), at_once).unwrap();
        put_message(&queue, &message(7, "sooner"), at_once).unwrap();
        let error = put_message(&queue, &message(1, "no room"), at_once).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EAGAIN));
        let attributes = queue_attributes(&queue).unwrap();
        assert_eq!(attributes, QueueAttributes { most: 2, largest: 16, waiting: 2 });
        let other = open_queue(&name, true, false).unwrap();
        remove_queue(&name).unwrap();
        assert_eq!(take_message(&other, 16).unwrap(), Some(message(7, "sooner")));
        assert_eq!(take_message(&other, 16).unwrap(), Some(message(1, "later")));
        assert_eq!(take_message(&other, 16).unwrap(), None);
        assert!(take_message(&other, 15).is_err());
        assert!(open_queue(&name, true, true).is_err());
        assert!(queue_attributes(std::fs::File::open("/dev/null").unwrap()).is_err());
    }
}
