//! Options of sockets that are one number each, beside those of [`sockopt`](crate::sockopt): what a
//! connection is given while it is put together.
//!
//! Invariants: as there.

use std::io;
use std::os::fd::AsFd;

use crate::sockopt::{get, set};

/// Levels and names are small numbers.
pub(crate) fn narrow(number: libc::c_int) -> io::Result<u16> {
    u16::try_from(number).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
}

pub(crate) fn set_int(
    socket: impl AsFd,
    level: libc::c_int,
    name: libc::c_int,
    value: i32,
) -> io::Result<()> {
    set(socket.as_fd(), narrow(level)?, narrow(name)?, &value.to_ne_bytes())
}

pub(crate) fn get_int(socket: impl AsFd, level: libc::c_int, name: libc::c_int) -> io::Result<i32> {
    let mut value = [0; size_of::<i32>()];
    match get(socket.as_fd(), narrow(level)?, narrow(name)?, &mut value)? {
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
