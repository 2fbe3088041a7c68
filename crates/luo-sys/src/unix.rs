//! Unix sockets that are connected: who the peer is, by `sock_diag(7)`; where peeking begins; and to
//! make sockets in the name of another user.
//!
//! Invariants: nothing here changes what is in a queue.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;
use std::{panic, thread};

use rustix::fs::fstat;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, sockopt};

use crate::number::{get_int, set_int};

/// `SOCK_DIAG_BY_FAMILY`, and the flags and attributes of `linux/unix_diag.h`.
const BY_FAMILY: u16 = 20;
const SHOW_PEER: u32 = 4;
const SHOW_CONNECTIONS: u32 = 8;
const PEER: u16 = 2;
const CONNECTIONS: u16 = 3;
const SHUTDOWN: u16 = 6;
const NLMSG_ERROR: u16 = 2;
const REQUEST: u16 = 1;
/// Of `struct nlmsghdr` and `struct unix_diag_msg`.
const HEADER: usize = 16;
const MESSAGE: usize = 16;

/// What the kernel tells of a unix socket.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct UnixSocket {
    /// The inode number of the socket that it is connected to, zero where nobody has that one open;
    /// `None` where it is connected to none.
    pub peer: Option<u32>,
    /// It reads no more, once what there is has been read.
    pub reads_no_more: bool,
    /// It writes no more.
    pub writes_no_more: bool,
    /// Of one that listens, how many connections wait to be accepted.
    pub waiting: u32,
}

/// Asks for a unix socket of this process's network namespace.
///
/// # Errors
/// ENOENT where it is in another network namespace, EPROTONOSUPPORT or EINVAL where the kernel has
/// no `unix_diag`, EBADF, ETIMEDOUT.
pub fn unix_socket(socket: impl AsFd) -> io::Result<UnixSocket> {
    let inode = u32::try_from(fstat(socket)?.st_ino)
        .map_err(|_| io::Error::from_raw_os_error(libc::ENOENT))?;
    let diag = rustix::net::socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        Some(rustix::net::netlink::SOCK_DIAG),
    )?;
    sockopt::set_socket_timeout(&diag, sockopt::Timeout::Recv, Some(Duration::from_secs(10)))?;
    let mut request = Vec::with_capacity(HEADER + 24);
    let header = [HEADER as u32 + 24, u32::from(BY_FAMILY) | u32::from(REQUEST) << 16, 1, 0];
    if cfg!(target_endian = "big") {
        // Two halves of one word lie the other way around.
        request.extend(header[0].to_ne_bytes());
        request.extend(BY_FAMILY.to_ne_bytes());
        request.extend(REQUEST.to_ne_bytes());
        request.extend(header[2].to_ne_bytes());
        request.extend(header[3].to_ne_bytes());
    } else {
        header.iter().for_each(|word| request.extend(word.to_ne_bytes()));
    }
    // Family, protocol, padding; all states; which socket, whatever its cookie.
    request.extend([libc::AF_UNIX as u8, 0, 0, 0]);
    for word in [u32::MAX, inode, SHOW_PEER | SHOW_CONNECTIONS, u32::MAX, u32::MAX] {
        request.extend(word.to_ne_bytes());
    }
    rustix::net::send(&diag, &request, SendFlags::empty())?;
    let mut answer = vec![0; 4096];
    let (len, _) = rustix::net::recv(&diag, &mut answer[..], RecvFlags::empty())?;
    answer.truncate(len);
    read_answer(&answer).ok_or_else(|| io::Error::from_raw_os_error(libc::EIO))?
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn read_answer(answer: &[u8]) -> Option<io::Result<UnixSocket>> {
    let answer = answer.get(..word(answer, 0)? as usize)?;
    match half(answer, 4)? {
        NLMSG_ERROR => {
            let errno = word(answer, HEADER)?.cast_signed().checked_neg()?;
            return Some(Err(io::Error::from_raw_os_error(errno)));
        }
        BY_FAMILY => {}
        _ => return None,
    }
    let mut found = UnixSocket::default();
    let mut at = HEADER + MESSAGE;
    while at + 4 <= answer.len() {
        let len = usize::from(half(answer, at)?);
        let value = answer.get(at + 4..at + len)?;
        match half(answer, at + 2)? {
            PEER => found.peer = Some(word(value, 0)?),
            SHUTDOWN => {
                let shut = *value.first()?;
                found.reads_no_more = shut & 1 != 0;
                found.writes_no_more = shut & 2 != 0;
            }
            CONNECTIONS => found.waiting = (value.len() / 4) as u32,
            _ => {}
        }
        at += len.next_multiple_of(4);
    }
    Some(Ok(found))
}

/// `SO_PEEK_OFF`: where the next `MSG_PEEK` begins; negative, at the beginning, always.
///
/// # Errors
/// ENOTSOCK, EOPNOTSUPP.
pub fn peek_offset(socket: impl AsFd) -> io::Result<i32> {
    get_int(socket, libc::SOL_SOCKET, libc::SO_PEEK_OFF)
}

/// Sets `SO_PEEK_OFF`.
///
/// # Errors
/// ENOTSOCK, EOPNOTSUPP.
pub fn set_peek_offset(socket: impl AsFd, offset: i32) -> io::Result<()> {
    set_int(socket, libc::SOL_SOCKET, libc::SO_PEEK_OFF, offset)
}

/// How much memory is in use for what a socket has sent and nobody has read (`SIOCOUTQ`).
///
/// # Errors
/// ENOTTY, EBADF.
pub fn unread_weight(socket: impl AsFd) -> io::Result<u32> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: the request writes one int to where it is told, which is one; the socket is borrowed.
    let done = unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
    if done == -1 { Err(io::Error::last_os_error()) } else { Ok(bytes.cast_unsigned()) }
}

/// Of the next `len` bytes of a stream, from where peeking begins, how many lie before the piece that
/// the last of them is in: a piece is what was sent at once. Nothing is taken, and no descriptor is
/// received.
///
/// # Errors
/// EAGAIN where nothing is there, EINVAL for no bytes, ENOMEM, ENOTSOCK.
pub fn bytes_before_last_piece(stream: impl AsFd, len: usize) -> io::Result<usize> {
    // The kernel gives pieces one by one, and ends before the first one that it cannot write: so
    // there is room for all bytes but the last one.
    let page = rustix::param::page_size();
    let room = len.saturating_sub(1).next_multiple_of(page);
    if len == 0 {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    let guarded = Guarded::new(room, page)?;
    let last = guarded.start.wrapping_byte_add(room);
    let mut part = libc::iovec { iov_base: last.wrapping_byte_sub(len - 1), iov_len: len };
    // SAFETY: zeros are a valid `msghdr`: no name, no parts, no control data.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT;
    // SAFETY: `message` has one part, which lies in the mapping of `guarded`, that nobody else has:
    // its last byte in the page that cannot be written, for which the kernel gives EFAULT. There is
    // no room for control data, so no descriptor is made. The socket is borrowed.
    let got = unsafe { libc::recvmsg(stream.as_fd().as_raw_fd(), &raw mut message, flags) };
    if let Ok(got) = usize::try_from(got) {
        return Ok(got);
    }
    let error = io::Error::last_os_error();
    if error.raw_os_error() == Some(libc::EFAULT) { Ok(0) } else { Err(error) }
}

/// Memory with a page behind it that cannot be written.
struct Guarded {
    start: *mut libc::c_void,
    len: usize,
}

impl Guarded {
    fn new(room: usize, page: usize) -> io::Result<Self> {
        use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap_anonymous, mprotect};
        let access = ProtFlags::READ | ProtFlags::WRITE;
        let len = room + page;
        // SAFETY: a new mapping at an address that the kernel chooses overlaps nothing.
        let start =
            unsafe { mmap_anonymous(std::ptr::null_mut(), len, access, MapFlags::PRIVATE) }?;
        let guarded = Self { start, len };
        let guard = start.wrapping_byte_add(room);
        // SAFETY: the page is the last one of the mapping above, to which nothing refers.
        unsafe { mprotect(guard, page, MprotectFlags::empty()) }?;
        Ok(guarded)
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own, and nothing refers to it any more.
        let _ = unsafe { rustix::mm::munmap(self.start, self.len) };
    }
}

/// Does `work` with the effective ids of this user and group, so that what it makes is theirs: a
/// socket's peer sees them in `SO_PEERCRED`. Supplementary groups stay those of the process.
///
/// It is done on a thread that ends as the user it has become, so there is no way back that could
/// fail.
///
/// # Errors
/// EPERM where this process may not become that user, EAGAIN where there can be no more threads.
pub fn as_effective<T: Send>(uid: u32, gid: u32, work: impl FnOnce() -> T + Send) -> io::Result<T> {
    let (own_uid, own_gid) = (rustix::process::geteuid(), rustix::process::getegid());
    if (own_uid.as_raw(), own_gid.as_raw()) == (uid, gid) {
        return Ok(work());
    }
    // To the kernel this number means that nothing is to change.
    if uid == u32::MAX || gid == u32::MAX {
        return Err(io::Error::from_raw_os_error(libc::EPERM));
    }
    // SAFETY: `prctl` with this request takes no argument and touches no memory.
    let dumpable = unsafe { libc::prctl(libc::PR_GET_DUMPABLE, 0, 0, 0, 0) };
    let done = thread::scope(|scope| {
        let other = thread::Builder::new().name("as another user".into());
        let other = other.spawn_scoped(scope, || {
            set_effective(libc::SYS_setresgid, gid)?;
            set_effective(libc::SYS_setresuid, uid)?;
            Ok(work())
        })?;
        other.join().unwrap_or_else(|panicked| panic::resume_unwind(panicked))
    });
    // A thread's change of user takes this from the whole process.
    // SAFETY: `prctl` with this request takes an integer and touches no memory.
    unsafe { libc::prctl(libc::PR_SET_DUMPABLE, dumpable, 0, 0, 0) };
    done
}

fn set_effective(call: libc::c_long, id: u32) -> io::Result<()> {
    const SAME: libc::c_long = -1;
    // SAFETY: setresuid and setresgid take integers, touch no memory of the caller, and change,
    // called by their numbers, this thread alone.
    let done = unsafe { libc::syscall(call, SAME, libc::c_long::from(id), SAME) };
    if done == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::net::Shutdown;
    use std::os::unix::net::{UnixListener, UnixStream};

    #[test]
    fn the_peer_of_a_socket_is_found_and_that_it_is_gone() {
        let (one, other) = UnixStream::pair().unwrap();
        let inode = |file: &UnixStream| fstat(file).unwrap().st_ino as u32;
        assert_eq!(unix_socket(&one).unwrap().peer, Some(inode(&other)));
        other.shutdown(Shutdown::Write).unwrap();
        let found = unix_socket(&one).unwrap();
        assert!(found.reads_no_more && !found.writes_no_more);
        drop(other);
        let found = unix_socket(&one).unwrap();
        assert_eq!(found.peer, Some(0));
        assert!(found.reads_no_more && found.writes_no_more);
    }

    #[test]
    fn connections_that_wait_on_a_unix_listener_are_counted() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        assert_eq!(unix_socket(&listener).unwrap().waiting, 0);
        let clients: Vec<_> = (0..3).map(|_| UnixStream::connect(&path).unwrap()).collect();
        assert_eq!(unix_socket(&listener).unwrap().waiting, 3);
        assert_eq!(unix_socket(&clients[0]).unwrap().peer, Some(0));
    }

    #[test]
    fn what_nobody_has_read_weighs_something() {
        let (mut one, other) = UnixStream::pair().unwrap();
        assert_eq!(unread_weight(&one).unwrap(), 0);
        one.write_all(b"x").unwrap();
        assert!(unread_weight(&one).unwrap() > 1);
        assert_eq!(unread_weight(&other).unwrap(), 0);
        assert_eq!(peek_offset(&other).unwrap(), -1);
        set_peek_offset(&other, 0).unwrap();
        assert_eq!(peek_offset(&other).unwrap(), 0);
    }

    #[test]
    fn what_was_sent_at_once_is_told_from_what_was_sent_before() {
        let (mut one, other) = UnixStream::pair().unwrap();
        one.write_all(&[1; 5000]).unwrap();
        one.write_all(&[2; 10]).unwrap();
        for (len, before) in [(1, 0), (5000, 0), (5001, 5000), (5010, 5000)] {
            assert_eq!(bytes_before_last_piece(&other, len).unwrap(), before, "{len}");
        }
        assert!(bytes_before_last_piece(&other, 0).is_err());
        drop(one);
        let mut all = Vec::new();
        io::Read::read_to_end(&mut &other, &mut all).unwrap();
        assert_eq!(all.len(), 5010);
    }

    #[test]
    fn a_pair_can_be_made_for_another_user() {
        let own = rustix::process::geteuid().as_raw();
        if own != 0 {
            assert!(as_effective(own + 1, own, || ()).is_err());
            eprintln!("SKIPPED: only root can be another user");
            return;
        }
        let (one, _other) = as_effective(12345, 23456, || UnixStream::pair().unwrap()).unwrap();
        let peer = sockopt::socket_peercred(&one).unwrap();
        assert_eq!((peer.uid.as_raw(), peer.gid.as_raw()), (12345, 23456));
        assert_eq!(rustix::process::geteuid().as_raw(), 0);
        assert_eq!(rustix::process::getegid().as_raw(), 0);
        // SAFETY: `prctl` with this request takes no argument and touches no memory.
        assert_eq!(unsafe { libc::prctl(libc::PR_GET_DUMPABLE, 0, 0, 0, 0) }, 1);
    }
}
