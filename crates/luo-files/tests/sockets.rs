//! Sockets through a whole update with a carrier that copies.

mod common;

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{SocketAddr as UnixAddr, UnixDatagram, UnixListener, UnixStream};

use common::{Before, across, own_ip, refusal};
use luo_core::Errno;
use luo_sys::{SOCKET_OPTIONS, SocketOption};
use rustix::fs::{OFlags, fcntl_getfl};

fn one(file: impl Into<OwnedFd>) -> OwnedFd {
    across(vec![file.into()]).remove(0)
}

/// Every option that the socket has.
fn options(socket: impl AsFd) -> Vec<(&'static str, Vec<u8>)> {
    let socket = socket.as_fd();
    SOCKET_OPTIONS
        .iter()
        .filter_map(|option| Some((option.label(), option.get(socket).unwrap()?)))
        .collect()
}

fn set(socket: impl AsFd, label: &str, value: i32) {
    let option: &SocketOption = SOCKET_OPTIONS.iter().find(|o| o.label() == label).unwrap();
    let value = match option.get(&socket).unwrap().unwrap().len() {
        8 => [1_i32.to_ne_bytes(), value.to_ne_bytes()].concat(),
        16 => [i64::from(value).to_ne_bytes(), 0_i64.to_ne_bytes()].concat(),
        _ => value.to_ne_bytes().to_vec(),
    };
    option.set(&socket, &value).unwrap_or_else(|error| panic!("{label}: {error}"));
}

/// One of each version of the Internet; version 6 is not there everywhere.
fn tcp() -> Vec<TcpListener> {
    let (four, six) = (own_ip(), own_ip().to_ipv6_mapped());
    let six = TcpListener::bind((six, 0)).ok();
    TcpListener::bind((four, 0)).into_iter().chain(six).collect()
}

#[test]
fn a_listener_has_its_address_backlog_flags_and_every_option() {
    for listener in tcp() {
        for (label, value) in [
            ("SO_KEEPALIVE", 1),
            ("SO_PRIORITY", 3),
            ("SO_LINGER", 5),
            ("SO_RCVTIMEO", 9),
            ("SO_SNDBUF", 40_000),
            ("SO_RCVBUF", 50_000),
            ("TCP_NODELAY", 1),
            ("TCP_KEEPIDLE", 77),
            ("TCP_KEEPINTVL", 7),
            ("TCP_KEEPCNT", 3),
            ("TCP_USER_TIMEOUT", 4000),
            ("TCP_DEFER_ACCEPT", 3),
            ("TCP_SYNCNT", 2),
            ("TCP_FASTOPEN", 16),
            ("TCP_NOTSENT_LOWAT", 12_345),
            ("SO_REUSEADDR", 0),
        ] {
            set(&listener, label, value);
        }
        rustix::net::listen(&listener, 33).unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let expected = (options(&listener), fcntl_getfl(&listener).unwrap());
        let again = TcpListener::from(one(listener));
        assert_eq!(again.local_addr().unwrap(), address);
        assert_eq!(luo_sys::tcp_state(&again).unwrap().backlog, 33);
        assert_eq!((options(&again), fcntl_getfl(&again).unwrap()), expected);
        let closed = rustix::io::fcntl_getfd(&again).unwrap();
        assert!(closed.contains(rustix::io::FdFlags::CLOEXEC));
        set(&again, "TCP_DEFER_ACCEPT", 0);
        let mut client = TcpStream::connect(address).unwrap();
        again.set_nonblocking(false).unwrap();
        let mut server = again.accept().unwrap().0;
        client.write_all(b"hello").unwrap();
        drop(client);
        let mut text = String::new();
        server.read_to_string(&mut text).unwrap();
        assert_eq!(text, "hello");
    }
}

#[test]
fn listeners_on_one_port_come_back_side_by_side() {
    let make = |address: SocketAddr| {
        let kind = rustix::net::SocketType::STREAM;
        let socket = rustix::net::socket(rustix::net::AddressFamily::INET, kind, None).unwrap();
        set(&socket, "SO_REUSEPORT", 1);
        rustix::net::bind(&socket, &address).unwrap();
        rustix::net::listen(&socket, 5).unwrap();
        TcpListener::from(socket)
    };
    let first = make((own_ip(), 0).into());
    let address = first.local_addr().unwrap();
    let again = across(vec![first.into(), make(address).into()]);
    for socket in again {
        assert_eq!(TcpListener::from(socket).local_addr().unwrap(), address);
    }
}

#[test]
fn what_has_no_address_or_only_that_comes_back_too() {
    let kind = rustix::net::SocketType::STREAM;
    let new = || rustix::net::socket(rustix::net::AddressFamily::INET, kind, None).unwrap();
    let bound = new();
    rustix::net::bind(&bound, &SocketAddr::from((own_ip(), 0))).unwrap();
    let expected = TcpListener::from(bound.try_clone().unwrap()).local_addr().unwrap();
    let again = across(vec![new(), bound]);
    let states: Vec<u8> =
        again.iter().map(|file| luo_sys::tcp_state(file).unwrap().state).collect();
    assert_eq!(states, [7, 7]);
    let [new, bound] = <[OwnedFd; 2]>::try_from(again).unwrap();
    assert_eq!(TcpListener::from(bound).local_addr().unwrap(), expected);
    assert_eq!(TcpListener::from(new).local_addr().unwrap().port(), 0);
}

#[test]
fn a_socket_for_datagrams_has_its_address_and_its_peer() {
    let other = UdpSocket::bind((own_ip(), 0)).unwrap();
    for connected in [false, true] {
        let socket = UdpSocket::bind((own_ip(), 0)).unwrap();
        set(&socket, "SO_BROADCAST", 1);
        set(&socket, "IP_TTL", 9);
        set(&socket, "IP_PKTINFO", 1);
        if connected {
            socket.connect(other.local_addr().unwrap()).unwrap();
        }
        let expected = (socket.local_addr().unwrap(), socket.peer_addr().ok(), options(&socket));
        let again = UdpSocket::from(one(socket));
        let found = (again.local_addr().unwrap(), again.peer_addr().ok(), options(&again));
        assert_eq!(found, expected);
        other.send_to(b"ping", expected.0).unwrap();
        assert_eq!(again.recv(&mut [0; 9]).unwrap(), 4);
    }
}

#[test]
fn unix_sockets_have_their_file_or_abstract_name() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    listener.set_nonblocking(true).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    let datagram = UnixDatagram::bind(directory.path().join("datagram")).unwrap();
    let name = UnixAddr::from_abstract_name(format!("luo-{}", std::process::id())).unwrap();
    let hidden = UnixListener::bind_addr(&name).unwrap();
    set(&hidden, "SO_PASSCRED", 1);
    let expected = (options(&listener), options(&datagram), options(&hidden));
    let uid = fs::metadata(&path).unwrap().uid();

    let again = across(vec![listener.into(), datagram.into(), hidden.into()]);
    let found = (options(&again[0]), options(&again[1]), options(&again[2]));
    assert_eq!(found, expected);
    assert!(fcntl_getfl(&again[0]).unwrap().contains(OFlags::NONBLOCK));
    let [listener, datagram, hidden] = <[OwnedFd; 3]>::try_from(again).unwrap();
    let listener = UnixListener::from(listener);
    assert_eq!(listener.local_addr().unwrap().as_pathname(), Some(&*path));
    let file = fs::metadata(&path).unwrap();
    assert_eq!((file.mode() & 0o7777, file.uid()), (0o640, uid));
    let client = UnixStream::connect(&path).unwrap();
    let _server = listener.accept().unwrap();
    drop(client);
    let client = UnixDatagram::unbound().unwrap();
    client.send_to(b"ping", directory.path().join("datagram")).unwrap();
    assert_eq!(UnixDatagram::from(datagram).recv(&mut [0; 9]).unwrap(), 4);
    let _client = UnixStream::connect_addr(&name).unwrap();
    UnixListener::from(hidden).accept().unwrap();
}

#[test]
fn what_has_no_name_or_cannot_be_found_again_is_refused() {
    let kind = rustix::net::SocketType::STREAM;
    let new = rustix::net::socket(rustix::net::AddressFamily::UNIX, kind, None).unwrap();
    assert!(refusal(new).contains("connected to nobody"));
    assert!(refusal(UnixDatagram::unbound().unwrap().into()).contains("without a name"));
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    fs::remove_file(&path).unwrap();
    assert!(refusal(listener.into()).contains("is gone"));
}

#[test]
fn an_address_that_is_taken_is_that_files_error_and_what_took_it_stays() {
    let listener = TcpListener::bind((own_ip(), 0)).unwrap();
    let address = listener.local_addr().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    let unix = UnixListener::bind(&path).unwrap();
    let mut before = Before::new(vec![listener.into(), unix.into()]).unwrap();
    before.keep().unwrap();
    let mut after = before.depart();
    let taken = TcpListener::bind(address).unwrap();
    fs::rename(&path, directory.path().join("old")).unwrap();
    let other = UnixListener::bind(&path).unwrap();
    let error = after.retrieve(1).unwrap_err();
    assert!(error.to_string().contains("cannot be bound"), "{error}");
    let error = after.retrieve(2).unwrap_err();
    assert_eq!(error.errno(), Errno::Busy, "{error}");
    let _client = TcpStream::connect(address).unwrap();
    taken.accept().unwrap();
    let _client = UnixStream::connect(&path).unwrap();
    other.accept().unwrap();
}

#[test]
fn the_record_says_how_many_connections_waited_that_nobody_has_accepted() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    let unix = UnixListener::bind(&path).unwrap();
    let tcp = TcpListener::bind((own_ip(), 0)).unwrap();
    let _local: Vec<_> = (0..3).map(|_| UnixStream::connect(&path).unwrap()).collect();
    let _remote = TcpStream::connect(tcp.local_addr().unwrap()).unwrap();
    let mut before = Before::new(vec![unix.into(), tcp.into()]).unwrap();
    before.keep().unwrap();
    let kept = before.carrier.kept.lock().unwrap();
    let waiting: Vec<u32> = kept
        .values()
        .filter_map(|bytes| luo_abi::record::SocketRecord::decode(bytes).ok())
        .map(|record| record.waiting)
        .collect();
    assert_eq!((waiting.len(), waiting.iter().sum::<u32>()), (2, 4), "{waiting:?}");
    assert!(waiting.contains(&3), "{waiting:?}");
}
