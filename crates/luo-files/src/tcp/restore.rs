//! Puts a connection together again.
//!
//! Invariants:
//! - It is locked from the beginning, and stays so: nothing is sent, and dropping it says nothing to
//!   the peer, so that the connection can be put together once more.
//! - What was never sent is put together as if it were lost on its way: it is sent again with all that
//!   is not acknowledged, within the peer's window.
//! - Neither its address nor a route to the peer need be there yet: this comes before the network,
//!   so that no segment of the peer's meets a system that does not know the connection.

use std::io;
use std::net::{SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use luo_abi::record::{OptionValue, TcpRecord, socket_option};
use luo_core::Failure;
use luo_sys::tcp::{self, TcpQueue, TcpTerms, TcpWindow};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::net::{
    AddressFamily, SendFlags, Shutdown, SocketFlags, SocketType, bind, connect, getsockname,
    ipproto, send, shutdown, socket_with, sockopt,
};

use super::route::{self, Route};
use super::{failed, lock, options};

/// So much is put into a queue at once.
const CHUNK: usize = 32 << 10;
/// The kernel's own need for a queue is some multiple of its bytes.
const OVERHEAD: usize = 4;
/// A new socket holds so much anyway, in bytes.
const SMALL: usize = 16 << 10;

/// A socket that is what the record says, with these queues.
pub(super) fn restore(
    record: &TcpRecord,
    unread: &[u8],
    written: &[u8],
) -> Result<OwnedFd, Failure> {
    let v6 = record.flags & TcpRecord::V6 != 0;
    let family = if v6 { AddressFamily::INET6 } else { AddressFamily::INET };
    let socket = socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, Some(ipproto::TCP))
        .map_err(|error| failed("no socket", error))?;
    if !record.congestion.is_empty()
        && let Ok(name) = str::from_utf8(&record.congestion)
    {
        // Where this kernel does not have it, its own default does the same work.
        let _ = sockopt::set_tcp_congestion(&socket, name);
    }
    if record.flags & TcpRecord::ENDED == 0 {
        lock::lock_new(&socket, reuses(record))?;
        lock::lock(&socket)?;
        repaired(&socket, record, unread, written)
            .map_err(|error| failed("the connection cannot be put together", error))?;
    }
    options::write(socket.as_fd(), &record.options);
    if record.flags & TcpRecord::NONBLOCK != 0 {
        fcntl_getfl(&socket)
            .and_then(|flags| fcntl_setfl(&socket, flags | OFlags::NONBLOCK))
            .map_err(|error| failed("the socket cannot be set up", error))?;
    }
    Ok(socket)
}

fn reuses(record: &TcpRecord) -> bool {
    let reuse = |option: &&OptionValue| option.option == socket_option::REUSE_ADDRESS;
    record.options.iter().find(reuse).is_some_and(|option| option.value != 0)
}

fn address(address: SocketAddrV6, v6: bool) -> io::Result<SocketAddr> {
    match (v6, address.ip().to_ipv4_mapped()) {
        (true, _) => Ok(SocketAddr::V6(address)),
        (false, Some(ip)) => Ok(SocketAddr::V4(SocketAddrV4::new(ip, address.port()))),
        (false, None) => Err(io::ErrorKind::InvalidData.into()),
    }
}

fn repaired(socket: &OwnedFd, record: &TcpRecord, unread: &[u8], written: &[u8]) -> io::Result<()> {
    let v6 = record.flags & TcpRecord::V6 != 0;
    let (local, remote) = (address(record.local, v6)?, address(record.remote, v6)?);
    tcp::choose_queue(socket, TcpQueue::Send)?;
    tcp::set_queue_begin(socket, record.send_sequence.wrapping_sub(record.written_length))?;
    tcp::choose_queue(socket, TcpQueue::Receive)?;
    tcp::set_queue_begin(socket, record.receive_sequence.wrapping_sub(record.unread_length))?;
    tcp::choose_queue(socket, TcpQueue::None)?;
    // Where this user may not, somebody else has done it, or the address below is wrong.
    let _ = route::loopback();
    luo_sys::set_transparent(socket, true)?;
    bind(socket, &local)?;
    connect_anywhere(socket, remote)?;
    if getsockname(socket).map(SocketAddr::try_from)? != Ok(local) {
        return Err(io::ErrorKind::AddrNotAvailable.into());
    }
    luo_sys::set_transparent(socket, false)?;
    let has = |flag| record.flags & flag != 0;
    tcp::set_terms(
        socket,
        &TcpTerms {
            mss: record.mss,
            scaling: has(TcpRecord::SCALING).then_some((record.send_scale, record.receive_scale)),
            sack: has(TcpRecord::SACK),
            timestamps: has(TcpRecord::TIMESTAMPS),
        },
    )?;
    if has(TcpRecord::TIMESTAMPS) {
        tcp::set_timestamp(socket, record.timestamp)?;
    }
    if unread.len() > SMALL {
        receive_buffer(socket, unread.len() * OVERHEAD)?;
    }
    if written.len() > SMALL {
        send_buffer(socket, written.len() * OVERHEAD)?;
    }
    tcp::choose_queue(socket, TcpQueue::Receive)?;
    fill(socket.as_fd(), unread)?;
    tcp::choose_queue(socket, TcpQueue::Send)?;
    fill(socket.as_fd(), written)?;
    // This one stays chosen: nothing leaves it.
    tcp::set_window(
        socket,
        &TcpWindow {
            send_update: record.send_update,
            send: record.send_window,
            send_max: record.send_window_max,
            receive: record.receive_window,
            receive_update: record.receive_update,
        },
    )?;
    let owner_set = |number| record.options.iter().any(|option| option.option == number);
    if unread.len() > SMALL || written.len() > SMALL {
        // The sizes were for the queues; those that the owner had set follow.
        let receive = owner_set(socket_option::RECEIVE_BUFFER);
        let send = owner_set(socket_option::SEND_BUFFER);
        // A kernel before 5.15 keeps them.
        let _ = luo_sys::set_buffer_locks(socket, receive, send);
    }
    if has(TcpRecord::READ_ENDED) {
        shutdown(socket, Shutdown::Read)?;
    }
    Ok(())
}

/// Beyond the system's limit, where luod may.
fn receive_buffer(socket: &OwnedFd, bytes: usize) -> io::Result<()> {
    sockopt::set_socket_recv_buffer_size_force(socket, bytes)
        .or_else(|_| sockopt::set_socket_recv_buffer_size(socket, bytes))?;
    Ok(())
}

fn send_buffer(socket: &OwnedFd, bytes: usize) -> io::Result<()> {
    sockopt::set_socket_send_buffer_size_force(socket, bytes)
        .or_else(|_| sockopt::set_socket_send_buffer_size(socket, bytes))?;
    Ok(())
}

/// Connects in repair mode, which sends nothing, but takes a route.
fn connect_anywhere(socket: &OwnedFd, remote: SocketAddr) -> io::Result<()> {
    use rustix::io::Errno;
    match connect(socket, &remote) {
        Err(Errno::NETUNREACH | Errno::HOSTUNREACH | Errno::NETDOWN) => {
            let route = Route::to(remote.ip())?;
            let connected = connect(socket, &remote);
            drop(route);
            Ok(connected?)
        }
        connected => Ok(connected?),
    }
}

/// Puts bytes into the chosen queue.
fn fill(socket: BorrowedFd<'_>, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        let chunk = bytes.get(..CHUNK).unwrap_or(bytes);
        match send(socket, chunk, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)? {
            0 => return Err(io::ErrorKind::WriteZero.into()),
            sent => bytes = bytes.get(sent..).unwrap_or_default(),
        }
    }
    Ok(())
}
