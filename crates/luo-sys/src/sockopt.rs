//! Socket options that rustix lacks: reading and setting one, as bytes.
//!
//! Invariants: what is given to the kernel, and what it writes, is plain bytes of a length that it
//! is told; no option here takes a descriptor or an address by its number.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

fn size(length: usize) -> io::Result<libc::socklen_t> {
    libc::socklen_t::try_from(length).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
}

/// Sets an option whose value is these bytes.
pub(crate) fn set(
    socket: impl AsFd,
    level: libc::c_int,
    name: libc::c_int,
    value: &[u8],
) -> io::Result<()> {
    let length = size(value.len())?;
    // SAFETY: the kernel reads `length` bytes from `value`, which is that long; the options that
    // this module's callers set are structs of integers, without pointers.
    let done = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            level,
            name,
            value.as_ptr().cast::<libc::c_void>(),
            length,
        )
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Reads an option into `value`; gives the length that the kernel tells.
pub(crate) fn get(
    socket: impl AsFd,
    level: libc::c_int,
    name: libc::c_int,
    value: &mut [u8],
) -> io::Result<usize> {
    let mut length = size(value.len())?;
    // SAFETY: the kernel writes at most `length` bytes into `value`, which is that long, and the
    // length into an integer of its own type; both are borrowed for writing.
    let done = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            level,
            name,
            value.as_mut_ptr().cast::<libc::c_void>(),
            &raw mut length,
        )
    };
    if done == 0 { Ok(length as usize) } else { Err(io::Error::last_os_error()) }
}

pub(crate) fn set_int(
    socket: impl AsFd,
    level: libc::c_int,
    name: libc::c_int,
    value: i32,
) -> io::Result<()> {
    set(socket, level, name, &value.to_ne_bytes())
}

pub(crate) fn get_int(socket: impl AsFd, level: libc::c_int, name: libc::c_int) -> io::Result<i32> {
    let mut value = [0; size_of::<i32>()];
    match get(socket, level, name, &mut value)? {
        length if length == value.len() => Ok(i32::from_ne_bytes(value)),
        _ => Err(io::Error::from_raw_os_error(libc::EINVAL)),
    }
}

/// `SO_MARK`: the mark that the socket's packets carry.
///
/// # Errors
/// ENOTSOCK.
pub fn socket_mark(socket: impl AsFd) -> io::Result<u32> {
    get_int(socket, libc::SOL_SOCKET, libc::SO_MARK).map(i32::cast_unsigned)
}

/// Sets `SO_MARK`.
///
/// # Errors
/// EPERM without `CAP_NET_ADMIN`, ENOTSOCK.
pub fn set_socket_mark(socket: impl AsFd, mark: u32) -> io::Result<()> {
    set_int(socket, libc::SOL_SOCKET, libc::SO_MARK, mark.cast_signed())
}

/// `SO_PRIORITY`: which queue of a device the socket's packets go to.
///
/// # Errors
/// ENOTSOCK.
pub fn socket_priority(socket: impl AsFd) -> io::Result<i32> {
    get_int(socket, libc::SOL_SOCKET, libc::SO_PRIORITY)
}

/// Sets `SO_PRIORITY`.
///
/// # Errors
/// EPERM outside of 0 to 6 without `CAP_NET_ADMIN`, ENOTSOCK.
pub fn set_socket_priority(socket: impl AsFd, priority: i32) -> io::Result<()> {
    set_int(socket, libc::SOL_SOCKET, libc::SO_PRIORITY, priority)
}

/// Which of its buffers' sizes the socket's owner has fixed: of the receive buffer, of the send
/// buffer.
///
/// # Errors
/// ENOPROTOOPT before Linux 5.15, ENOTSOCK.
pub fn buffer_locks(socket: impl AsFd) -> io::Result<(bool, bool)> {
    let locks = get_int(socket, libc::SOL_SOCKET, libc::SO_BUF_LOCK)?;
    Ok((locks & RECEIVE_LOCK != 0, locks & SEND_LOCK != 0))
}

/// Fixes or frees the sizes of the receive buffer and the send buffer.
///
/// # Errors
/// As [`buffer_locks`].
pub fn set_buffer_locks(socket: impl AsFd, receive: bool, send: bool) -> io::Result<()> {
    let locks = i32::from(receive) * RECEIVE_LOCK + i32::from(send) * SEND_LOCK;
    set_int(socket, libc::SOL_SOCKET, libc::SO_BUF_LOCK, locks)
}

/// `SOCK_SNDBUF_LOCK` and `SOCK_RCVBUF_LOCK` of `linux/socket.h`.
const SEND_LOCK: i32 = 1;
const RECEIVE_LOCK: i32 = 2;

/// The number of the network interface that the socket is bound to; zero: to none.
///
/// # Errors
/// ENOPROTOOPT before Linux 5.12, ENOTSOCK.
pub fn bound_device(socket: impl AsFd) -> io::Result<i32> {
    get_int(socket, libc::SOL_SOCKET, libc::SO_BINDTOIFINDEX)
}

/// Binds the socket to the network interface of that number; zero: to none.
///
/// # Errors
/// ENODEV, EPERM where it is bound already, without `CAP_NET_RAW`; ENOPROTOOPT before Linux 5.12.
pub fn set_bound_device(socket: impl AsFd, device: i32) -> io::Result<()> {
    set_int(socket, libc::SOL_SOCKET, libc::SO_BINDTOIFINDEX, device)
}

/// Whether the socket may have an address that no interface of this system has, yet.
///
/// # Errors
/// EPERM without `CAP_NET_ADMIN` and `CAP_NET_RAW`, ENOTSOCK.
pub fn set_transparent(socket: impl AsFd, transparent: bool) -> io::Result<()> {
    set_int(socket, libc::SOL_IP, libc::IP_TRANSPARENT, transparent.into())
}
