//! Reads what a connection is made of.
//!
//! Invariants: [`check`] changes nothing; [`read`] changes nothing that the lock has not changed.

use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::os::fd::AsFd;

use luo_abi::record::{OptionValue, TcpRecord, socket_option};
use luo_carriers::HostFile;
use luo_core::{Errno, Failure};
use luo_sys::tcp::{self, Repair, TcpQueue, TcpState};
use rustix::fs::{OFlags, fcntl_getfl};
use rustix::net::{
    AddressFamily, RecvFlags, SocketFlags, SocketType, getpeername, getsockname, ipproto, recv,
    socket_with, sockopt,
};

use super::{failed, lock, options};

/// A connection, read.
pub(super) struct Connection {
    /// Without the handles of the queues.
    pub(super) record: TcpRecord,
    pub(super) unread: Vec<u8>,
    pub(super) written: Vec<u8>,
}

fn unsupported(reason: &str) -> Failure {
    Failure::new(Errno::OpNotSupp, reason)
}

/// Whether the connection can be kept.
pub(super) fn check(file: &HostFile) -> Result<(), Failure> {
    let looked = |error| failed("the connection cannot be looked at", error);
    match tcp::state(file).map_err(looked)? {
        TcpState::Established | TcpState::CloseWait => {}
        TcpState::Close => return Ok(()),
        TcpState::Listen => return Err(Failure::new(Errno::Inval, "the socket listens")),
        TcpState::Other(2 | 3) => {
            return Err(unsupported("the connection is not there yet: give it when it is"));
        }
        TcpState::Other(_) => {
            return Err(unsupported(
                "this side of the connection is closed or shut down for writing: let it end",
            ));
        }
    }
    if tcp::incoming_dropped(file).map_err(looked)? == Some(None) {
        return Err(unsupported("the connection has a filter (SO_ATTACH_FILTER): detach it"));
    }
    if tcp::has_upper_layer(file).map_err(looked)? {
        return Err(unsupported(
            "another protocol lies on the connection (TCP_ULP), such as TLS in the kernel",
        ));
    }
    if bound_to_device(file)? {
        return Err(unsupported("the connection is bound to a device (SO_BINDTODEVICE)"));
    }
    if let Ok(SocketAddr::V6(address)) = peer(file)
        && address.ip().is_unicast_link_local()
    {
        return Err(unsupported("the connection is one of link-local addresses"));
    }
    let flags = SocketFlags::CLOEXEC;
    let probe = socket_with(AddressFamily::INET, SocketType::STREAM, flags, Some(ipproto::TCP))
        .map_err(|error| failed("no socket", error))?;
    tcp::set_repair(&probe, Repair::On)
        .map_err(|error| failed("the connection cannot be taken apart", error))
}

fn bound_to_device(file: &HostFile) -> Result<bool, Failure> {
    luo_sys::bound_device(file)
        .map(|device| device != 0)
        .map_err(|error| failed("the connection cannot be looked at", error))
}

fn peer(file: &HostFile) -> Result<SocketAddr, rustix::io::Errno> {
    let address = getpeername(file)?.ok_or(rustix::io::Errno::NOTCONN)?;
    SocketAddr::try_from(address)
}

/// Reads a connection that is [locked](lock::lock).
pub(super) fn read(file: &HostFile) -> Result<Connection, Failure> {
    let cannot = |error: std::io::Error| failed("the connection cannot be read", error);
    let errno = |error: rustix::io::Errno| cannot(error.into());
    let mut flags = 0;
    if fcntl_getfl(file).map_err(errno)?.contains(OFlags::NONBLOCK) {
        flags |= TcpRecord::NONBLOCK;
    }
    if sockopt::socket_domain(file).map_err(errno)? == AddressFamily::INET6 {
        flags |= TcpRecord::V6;
    }
    let nowhere = SocketAddrV6::new(std::net::Ipv4Addr::UNSPECIFIED.to_ipv6_mapped(), 0, 0, 0);
    let mut record = TcpRecord {
        flags,
        local: nowhere,
        remote: nowhere,
        mss: 0,
        send_scale: 0,
        receive_scale: 0,
        send_sequence: 0,
        receive_sequence: 0,
        timestamp: 0,
        send_update: 0,
        send_window: 0,
        send_window_max: 0,
        receive_window: 0,
        receive_update: 0,
        unread: 0,
        unread_length: 0,
        written: 0,
        written_length: 0,
        unsent_length: 0,
        congestion: congestion(file),
        options: options::read(file.as_fd()),
    };
    if let Some(reused) = lock::reused(file) {
        // Repair mode has changed it.
        record.options.retain(|option| option.option != socket_option::REUSE_ADDRESS);
        let value = i32::from(reused);
        let reuse = OptionValue { option: socket_option::REUSE_ADDRESS, value };
        record.options.insert(0, reuse);
    }
    match tcp::state(file).map_err(cannot)? {
        TcpState::Established => {}
        TcpState::CloseWait => record.flags |= TcpRecord::READ_ENDED,
        TcpState::Close => {
            record.flags |= TcpRecord::ENDED;
            return Ok(Connection { record, unread: Vec::new(), written: Vec::new() });
        }
        TcpState::Listen | TcpState::Other(_) => {
            // Since it was checked.
            return Err(unsupported("this side of the connection has just been closed"));
        }
    }
    record.local = mapped(getsockname(file).and_then(SocketAddr::try_from).map_err(errno)?);
    record.remote = mapped(peer(file).map_err(errno)?);
    let terms = tcp::terms(file).map_err(cannot)?;
    record.mss = terms.mss;
    if let Some((send, receive)) = terms.scaling {
        record.flags |= TcpRecord::SCALING;
        (record.send_scale, record.receive_scale) = (send, receive);
    }
    if terms.sack {
        record.flags |= TcpRecord::SACK;
    }
    if terms.timestamps {
        record.flags |= TcpRecord::TIMESTAMPS;
        record.timestamp = tcp::timestamp(file).map_err(cannot)?;
    }
    let window = tcp::window(file).map_err(cannot)?;
    record.send_update = window.send_update;
    record.send_window = window.send;
    record.send_window_max = window.send_max;
    record.receive_window = window.receive;
    record.receive_update = window.receive_update;
    tcp::choose_queue(file, TcpQueue::Receive).map_err(cannot)?;
    record.receive_sequence = tcp::queue_end(file).map_err(cannot)?;
    let here = rustix::io::ioctl_fionread(file).map_err(errno)?;
    let unread = peek(file, usize::try_from(here).unwrap_or(usize::MAX))?;
    tcp::choose_queue(file, TcpQueue::Send).map_err(cannot)?;
    record.send_sequence = tcp::queue_end(file).map_err(cannot)?;
    record.unsent_length = tcp::unsent(file).map_err(cannot)?;
    let length = tcp::unacknowledged(file).map_err(cannot)?;
    let written = peek(file, length as usize)?;
    // The queue that stays chosen is the one that nothing leaves, not even an end of the connection.
    let length = |bytes: &[u8]| {
        u32::try_from(bytes.len())
            .map_err(|_| Failure::new(Errno::TooBig, "a queue of 4 GiB or more"))
    };
    record.unread_length = length(&unread)?;
    record.written_length = length(&written)?;
    Ok(Connection { record, unread, written })
}

/// The bytes of the chosen queue.
fn peek(file: &HostFile, length: usize) -> Result<Vec<u8>, Failure> {
    let mut bytes = vec![0; length];
    if length == 0 {
        return Ok(bytes);
    }
    let (got, _) = recv(file, bytes.as_mut_slice(), RecvFlags::PEEK | RecvFlags::DONTWAIT)
        .map_err(|error| failed("a queue of the connection cannot be read", error))?;
    if got != length {
        let reason = format!("{got} bytes of a queue could be read, {length} are in it");
        return Err(Failure::new(Errno::Io, reason));
    }
    Ok(bytes)
}

fn congestion(file: &HostFile) -> Vec<u8> {
    sockopt::tcp_congestion(file).map(String::into_bytes).unwrap_or_default()
}

/// As a record has it.
fn mapped(address: SocketAddr) -> SocketAddrV6 {
    let ip = match address.ip() {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    };
    SocketAddrV6::new(ip, address.port(), 0, 0)
}
