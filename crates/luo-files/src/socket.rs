//! `socket-v1`: sockets that are no connections: TCP that listens, is bound or new, UDP, and unix
//! sockets that listen or take datagrams.
//!
//! Kept: address, peer of a UDP socket that has one, how many connections a TCP listener lets wait,
//! O_NONBLOCK, the options in the table of [`luo_sys::SOCKET_OPTIONS`], a unix socket's file with its
//! permissions.
//!
//! Reset: FD_CLOEXEC (it is set), what `F_SETOWN` and its like have set, datagrams and connections
//! that were not taken yet (the record says how many connections waited), how many connections
//! may wait on a unix listener (as many as the machine allows), groups joined for multicast, peer
//! of a unix socket for datagrams, programs that choose among `SO_REUSEPORT` sockets.
//!
//! Refused, with a reason: TCP connections, new unix sockets, filters, other protocols
//! than TCP and UDP, a unix socket whose file is gone or whose path is not absolute.
//!
//! Invariants:
//! - An option that cannot be set to what it was is an error: no socket comes back with less.
//! - A unix socket's file is replaced only if it is the one that was recorded, and with no more
//!   rights than the user had who made the socket.

use std::ffi::OsStr;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;

use luo_abi::record::{
    Endpoint, OptionRecord, SOCKET_COMPATIBLE, SocketFamily, SocketKind, SocketRecord, SocketState,
};
use luo_carriers::{FileKind, HostFile};
use luo_core::{Errno, Failure};
use luo_sys::{SOCKET_OPTIONS, SocketOption};
use rustix::fs::{FileType, Mode, chmod, fstat, lstat, major, minor, unlink};
use rustix::net::{
    AddressFamily, SocketAddrAny, SocketAddrUnix, SocketFlags, SocketType, bind, connect,
    getpeername, getsockname, ipproto, listen, socket_with, sockopt,
};

use crate::anew::{Described, damaged, indescribable};
use crate::fail::{system, unsupported};
use crate::fdinfo::is_nonblocking;

/// Linux's numbers for the states of TCP.
const TCP_CLOSE: u8 = 7;
const TCP_LISTEN: u8 = 10;
/// As many connections as the machine allows may wait (`net.core.somaxconn` is less).
const MOST_WAITING: u32 = 1 << 16;
const REUSE_ADDRESS: (u16, u16) = (1, 2);

/// Sockets that are no connections.
#[derive(Debug)]
pub struct Socket;

impl Described for Socket {
    const COMPATIBLE: &'static str = SOCKET_COMPATIBLE;

    fn takes(file: &HostFile) -> bool {
        file.kind() == FileKind::Socket
    }

    fn describe(file: &HostFile) -> Result<Vec<u8>, Failure> {
        let failed = system("the socket cannot be looked at");
        let (family, kind) = types(file)?;
        if luo_sys::has_filter(file).map_err(system("the socket cannot be looked at"))? {
            return Err(unsupported(
                "the socket has a filter (SO_ATTACH_FILTER), which socket-v1 does not keep: take \
                 it off before the update",
            ));
        }
        let owner = fstat(file).map_err(&failed)?;
        let mut record = SocketRecord {
            family,
            kind,
            state: SocketState::Bound,
            nonblocking: is_nonblocking(file)?,
            local: Endpoint::default(),
            peer: Endpoint::default(),
            device: 0,
            inode: 0,
            uid: owner.st_uid,
            gid: owner.st_gid,
            mode: 0,
            backlog: 0,
            waiting: 0,
            options: options(file)?,
            name: Vec::new(),
        };
        let local = getsockname(file).map_err(&failed)?;
        if family == SocketFamily::Unix {
            describe_unix(file, local, &mut record)?;
        } else {
            describe_internet(file, local, &mut record)?;
        }
        record.encode().map_err(indescribable("the socket"))
    }

    fn make(record: &[u8]) -> Result<HostFile, Failure> {
        let record = SocketRecord::decode(record).map_err(damaged("the socket"))?;
        let (domain, protocol) = match (record.family, record.kind) {
            (SocketFamily::V4, SocketKind::Stream) => (AddressFamily::INET, Some(ipproto::TCP)),
            (SocketFamily::V4, _) => (AddressFamily::INET, Some(ipproto::UDP)),
            (SocketFamily::V6, SocketKind::Stream) => (AddressFamily::INET6, Some(ipproto::TCP)),
            (SocketFamily::V6, _) => (AddressFamily::INET6, Some(ipproto::UDP)),
            (SocketFamily::Unix, _) => (AddressFamily::UNIX, None),
        };
        let kind = match record.kind {
            SocketKind::Stream => SocketType::STREAM,
            SocketKind::Datagram => SocketType::DGRAM,
            SocketKind::Packets => SocketType::SEQPACKET,
        };
        let mut flags = SocketFlags::CLOEXEC;
        flags.set(SocketFlags::NONBLOCK, record.nonblocking);
        let file = socket_with(domain, kind, flags, protocol).map_err(system("no new socket"))?;
        // Whatever of it can be wrong is found before anybody could reach it.
        let options = known(&record.options)?;
        for (option, value) in &options {
            restore(&file, option, value)?;
        }
        match record.family {
            SocketFamily::Unix => bind_unix(&file, &record)?,
            _ => bind_internet(&file, &record)?,
        }
        if record.state == SocketState::Listening {
            let backlog = i32::try_from(record.backlog.min(MOST_WAITING)).unwrap_or(i32::MAX);
            listen(&file, backlog).map_err(system("the socket cannot listen"))?;
        }
        // Binding and listening have changed some; and what was only for binding goes.
        for (option, value) in &options {
            restore(&file, option, value)?;
        }
        Ok(HostFile::from(file))
    }
}

fn types(file: &HostFile) -> Result<(SocketFamily, SocketKind), Failure> {
    let failed = system("the socket cannot be looked at");
    let domain = sockopt::socket_domain(file).map_err(&failed)?;
    let kind = sockopt::socket_type(file).map_err(&failed)?;
    let protocol = sockopt::socket_protocol(file).map_err(&failed)?;
    let internet = match domain {
        AddressFamily::INET => Some(SocketFamily::V4),
        AddressFamily::INET6 => Some(SocketFamily::V6),
        _ => None,
    };
    match (internet, kind, protocol) {
        (Some(family), SocketType::STREAM, Some(ipproto::TCP)) => Ok((family, SocketKind::Stream)),
        (Some(family), SocketType::DGRAM, Some(ipproto::UDP)) => Ok((family, SocketKind::Datagram)),
        (None, SocketType::STREAM, _) if domain == AddressFamily::UNIX => {
            Ok((SocketFamily::Unix, SocketKind::Stream))
        }
        (None, SocketType::DGRAM, _) if domain == AddressFamily::UNIX => {
            Ok((SocketFamily::Unix, SocketKind::Datagram))
        }
        (None, SocketType::SEQPACKET, _) if domain == AddressFamily::UNIX => {
            Ok((SocketFamily::Unix, SocketKind::Packets))
        }
        _ => Err(unsupported(format!(
            "a socket of the domain {}, type {} and protocol {} is not kept: TCP, UDP and unix \
             sockets are",
            domain.as_raw(),
            kind.as_raw(),
            protocol.map_or(0, |protocol| protocol.as_raw().get())
        ))),
    }
}

fn describe_internet(
    file: &HostFile,
    local: SocketAddrAny,
    record: &mut SocketRecord,
) -> Result<(), Failure> {
    record.local = endpoint(local)?;
    let bound = record.local.port != 0;
    record.state = if bound { SocketState::Bound } else { SocketState::New };
    if record.kind == SocketKind::Datagram {
        // Of a peer that is none it says ENOTCONN.
        if let Ok(Some(peer)) = getpeername(file) {
            record.peer = endpoint(peer)?;
            record.state = SocketState::Connected;
        }
        return Ok(());
    }
    let tcp = luo_sys::tcp_state(file).map_err(system("the socket cannot be looked at"))?;
    match tcp.state {
        TCP_LISTEN => {
            record.state = SocketState::Listening;
            record.backlog = tcp.backlog;
            record.waiting = tcp.waiting;
        }
        TCP_CLOSE => {}
        state => {
            return Err(unsupported(format!(
                "a TCP connection (state {state}), which socket-v1 does not keep: give it up \
                 before the update, or preserve it as optional"
            )));
        }
    }
    Ok(())
}

fn describe_unix(
    file: &HostFile,
    local: SocketAddrAny,
    record: &mut SocketRecord,
) -> Result<(), Failure> {
    let failed = system("the socket cannot be looked at");
    let local = SocketAddrUnix::try_from(local).map_err(&failed)?;
    let listens = sockopt::socket_acceptconn(file).map_err(&failed)?;
    if listens {
        record.state = SocketState::Listening;
        record.backlog = MOST_WAITING;
        // Where the kernel does not tell, that is no reason to refuse the listener.
        record.waiting = luo_sys::unix_socket(file).map_or(0, |told| told.waiting);
    } else if record.kind != SocketKind::Datagram {
        return Err(unsupported(
            "a unix socket that does not listen, and is connected to nobody: have the program make \
             it anew, or preserve it as optional",
        ));
    }
    if let Some(name) = local.abstract_name().filter(|name| !name.is_empty()) {
        record.name = [&[0], name].concat();
        return Ok(());
    }
    let Some(path) = local.path_bytes().filter(|path| !path.is_empty()) else {
        return Err(unsupported("a unix socket without a name: nobody could find it again"));
    };
    let shown = String::from_utf8_lossy(path);
    if !path.starts_with(b"/") {
        return Err(unsupported(format!(
            "the unix socket's path, {shown}, is not absolute: bind it to one that is"
        )));
    }
    let stat = lstat(OsStr::from_bytes(path)).ok().filter(|stat| is_socket(stat.st_mode));
    let Some(stat) = stat else {
        return Err(unsupported(format!(
            "the unix socket's file, {shown}, is gone: nobody could connect to it"
        )));
    };
    record.device = device(stat.st_dev);
    record.inode = stat.st_ino;
    record.mode = stat.st_mode & 0o7777;
    record.name = path.to_vec();
    Ok(())
}

fn is_socket(mode: u32) -> bool {
    FileType::from_raw_mode(mode) == FileType::Socket
}

fn device(number: u64) -> u64 {
    u64::from(major(number)) << 32 | u64::from(minor(number))
}

/// All options that the socket has.
pub(crate) fn options(file: &HostFile) -> Result<Vec<OptionRecord>, Failure> {
    let mut options = Vec::new();
    for option in SOCKET_OPTIONS {
        let failed = format!("the option {} cannot be read", option.label());
        if let Some(value) = option.get(file).map_err(system(failed))? {
            let (level, name) = option.numbers();
            options.push(OptionRecord { level, name, value });
        }
    }
    Ok(options)
}

/// Those of a record, in the order in which they are to be set.
pub(crate) fn known(
    options: &[OptionRecord],
) -> Result<Vec<(&'static SocketOption, &[u8])>, Failure> {
    for OptionRecord { level, name, .. } in options {
        if SocketOption::find(*level, *name).is_none() {
            let reason = format!("an option {name} of level {level} is not known to this luo");
            return Err(Failure::new(Errno::Inval, reason));
        }
    }
    let value = |option: &SocketOption| {
        let mut all = options.iter();
        all.find(|found| (found.level, found.name) == option.numbers())
    };
    let all = SOCKET_OPTIONS.iter();
    Ok(all.filter_map(|option| value(option).map(|found| (option, &*found.value))).collect())
}

/// Makes an option what it was; one that is so already is left alone, for many may be set by root
/// only.
pub(crate) fn restore(file: &OwnedFd, option: &SocketOption, value: &[u8]) -> Result<(), Failure> {
    let failed = || system(format!("the option {} cannot be set", option.label()));
    let now = || option.get(file).map_err(failed());
    if now()?.as_deref() == Some(value) {
        return Ok(());
    }
    option.set(file, value).map_err(failed())?;
    if now()?.as_deref() == Some(value) {
        return Ok(());
    }
    let reason = format!(
        "the option {} cannot be set to what it was: this machine allows less",
        option.label()
    );
    Err(Failure::new(Errno::OpNotSupp, reason))
}

fn bind_internet(file: &OwnedFd, record: &SocketRecord) -> Result<(), Failure> {
    let local = address(record.family, &record.local);
    if record.state != SocketState::New {
        // What is left of connections of the socket before does not count.
        if record.kind == SocketKind::Stream
            && let Some(reuse) = SocketOption::find(REUSE_ADDRESS.0, REUSE_ADDRESS.1)
        {
            let failed = system("the socket cannot be bound");
            reuse.set(file, &1_i32.to_ne_bytes()).map_err(failed)?;
        }
        bind(file, &local).map_err(system(format!("the socket cannot be bound to {local}")))?;
    }
    if record.state == SocketState::Connected {
        let peer = address(record.family, &record.peer);
        let failed = system(format!("the socket cannot be connected to {peer}"));
        connect(file, &peer).map_err(failed)?;
    }
    Ok(())
}

fn bind_unix(file: &OwnedFd, record: &SocketRecord) -> Result<(), Failure> {
    let named = |name: &[u8]| match name.strip_prefix(&[0]) {
        Some(name) => SocketAddrUnix::new_abstract_name(name),
        None => SocketAddrUnix::new(name),
    };
    let shown = String::from_utf8_lossy(&record.name).replace('\0', "@");
    let name = named(&record.name).map_err(system(format!("{shown} is no address")))?;
    let failed =
        |error: rustix::io::Errno| system(format!("the socket cannot be bound to {shown}"))(error);
    if !record.name.starts_with(b"/") {
        return bind(file, &name).map_err(failed);
    }
    let path = OsStr::from_bytes(&record.name);
    let make = || {
        if let Ok(there) = lstat(path) {
            let ours = is_socket(there.st_mode)
                && (there.st_ino, device(there.st_dev)) == (record.inode, record.device);
            if !ours {
                let reason = format!("{shown} is there, and is not the socket that was kept");
                return Err(Failure::new(Errno::Busy, reason));
            }
            unlink(path).map_err(failed)?;
        }
        bind(file, &name).map_err(failed)?;
        chmod(path, Mode::from_raw_mode(record.mode & 0o7777)).map_err(failed)
    };
    if rustix::process::geteuid().is_root() {
        luo_sys::as_user(record.uid, record.gid, make)
            .map_err(system("the file cannot be made as its owner"))?
    } else {
        make()
    }
}

fn endpoint(address: SocketAddrAny) -> Result<Endpoint, Failure> {
    let failed = system("the socket's address cannot be read");
    Ok(match SocketAddr::try_from(address).map_err(failed)? {
        SocketAddr::V4(address) => {
            let mut bytes = [0; 16];
            let (four, _) = bytes.split_at_mut(4);
            four.copy_from_slice(&address.ip().octets());
            Endpoint { address: bytes, port: address.port(), ..Endpoint::default() }
        }
        SocketAddr::V6(address) => Endpoint {
            address: address.ip().octets(),
            scope: address.scope_id(),
            flow: address.flowinfo(),
            port: address.port(),
        },
    })
}

fn address(family: SocketFamily, endpoint: &Endpoint) -> SocketAddr {
    if family == SocketFamily::V4 {
        let [a, b, c, d, ..] = endpoint.address;
        return SocketAddr::new(IpAddr::V4(Ipv4Addr::new(a, b, c, d)), endpoint.port);
    }
    let ip = Ipv6Addr::from(endpoint.address);
    SocketAddr::V6(SocketAddrV6::new(ip, endpoint.port, endpoint.flow, endpoint.scope))
}
