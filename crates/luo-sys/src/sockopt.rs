//! The options of sockets, as bytes, so that all of them can be read and set in one way.
//!
//! Invariants: an option that is here is plain numbers or a text, without a pointer in it, so that
//! getting it writes nothing but the buffer and setting it reads nothing but the value.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

/// The largest value of an option, in bytes.
const VALUE_MAX: usize = 16;

/// How an option's value is to be set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    /// As it was read.
    Plain,
    /// A text, filled up with zeros where it is read.
    Text,
    /// The kernel doubles what it is given; the option of that number sets more than the limit.
    Doubled { force: u16 },
}

/// An option of sockets.
#[derive(Debug)]
pub struct SocketOption {
    level: u16,
    name: u16,
    label: &'static str,
    size: usize,
    shape: Shape,
}

const fn plain(level: u16, name: u16, label: &'static str) -> SocketOption {
    SocketOption { level, name, label, size: 4, shape: Shape::Plain }
}

const SOCKET: u16 = 1;
const IP: u16 = 0;
const IPV6: u16 = 41;
const TCP: u16 = 6;
const UDP: u16 = 17;

/// The options that are known, in the order in which they are to be set.
pub static SOCKET_OPTIONS: &[SocketOption] = &[
    plain(SOCKET, 2, "SO_REUSEADDR"),
    plain(SOCKET, 15, "SO_REUSEPORT"),
    plain(SOCKET, 5, "SO_DONTROUTE"),
    plain(SOCKET, 6, "SO_BROADCAST"),
    plain(SOCKET, 9, "SO_KEEPALIVE"),
    plain(SOCKET, 10, "SO_OOBINLINE"),
    plain(SOCKET, 11, "SO_NO_CHECK"),
    plain(SOCKET, 12, "SO_PRIORITY"),
    SocketOption { level: SOCKET, name: 13, label: "SO_LINGER", size: 8, shape: Shape::Plain },
    plain(SOCKET, 16, "SO_PASSCRED"),
    plain(SOCKET, 18, "SO_RCVLOWAT"),
    SocketOption { level: SOCKET, name: 20, label: "SO_RCVTIMEO", size: 16, shape: Shape::Plain },
    SocketOption { level: SOCKET, name: 21, label: "SO_SNDTIMEO", size: 16, shape: Shape::Plain },
    SocketOption {
        level: SOCKET,
        name: 25,
        label: "SO_BINDTODEVICE",
        size: 16,
        shape: Shape::Text,
    },
    plain(SOCKET, 29, "SO_TIMESTAMP"),
    plain(SOCKET, 35, "SO_TIMESTAMPNS"),
    plain(SOCKET, 37, "SO_TIMESTAMPING"),
    plain(SOCKET, 34, "SO_PASSSEC"),
    plain(SOCKET, 76, "SO_PASSPIDFD"),
    plain(SOCKET, 36, "SO_MARK"),
    plain(SOCKET, 40, "SO_RXQ_OVFL"),
    plain(SOCKET, 46, "SO_BUSY_POLL"),
    SocketOption {
        level: SOCKET,
        name: 7,
        label: "SO_SNDBUF",
        size: 4,
        shape: Shape::Doubled { force: 32 },
    },
    SocketOption {
        level: SOCKET,
        name: 8,
        label: "SO_RCVBUF",
        size: 4,
        shape: Shape::Doubled { force: 33 },
    },
    plain(SOCKET, 72, "SO_BUF_LOCK"),
    plain(IP, 1, "IP_TOS"),
    plain(IP, 2, "IP_TTL"),
    plain(IP, 8, "IP_PKTINFO"),
    plain(IP, 10, "IP_MTU_DISCOVER"),
    plain(IP, 11, "IP_RECVERR"),
    plain(IP, 12, "IP_RECVTTL"),
    plain(IP, 13, "IP_RECVTOS"),
    plain(IP, 15, "IP_FREEBIND"),
    plain(IP, 19, "IP_TRANSPARENT"),
    plain(IP, 20, "IP_RECVORIGDSTADDR"),
    plain(IP, 21, "IP_MINTTL"),
    plain(IP, 24, "IP_BIND_ADDRESS_NO_PORT"),
    plain(IP, 33, "IP_MULTICAST_TTL"),
    plain(IP, 34, "IP_MULTICAST_LOOP"),
    plain(IP, 49, "IP_MULTICAST_ALL"),
    plain(IPV6, 26, "IPV6_V6ONLY"),
    plain(IPV6, 16, "IPV6_UNICAST_HOPS"),
    plain(IPV6, 18, "IPV6_MULTICAST_HOPS"),
    plain(IPV6, 19, "IPV6_MULTICAST_LOOP"),
    plain(IPV6, 23, "IPV6_MTU_DISCOVER"),
    plain(IPV6, 25, "IPV6_RECVERR"),
    plain(IPV6, 49, "IPV6_RECVPKTINFO"),
    plain(IPV6, 51, "IPV6_RECVHOPLIMIT"),
    plain(IPV6, 66, "IPV6_RECVTCLASS"),
    plain(IPV6, 67, "IPV6_TCLASS"),
    plain(IPV6, 75, "IPV6_TRANSPARENT"),
    plain(IPV6, 78, "IPV6_FREEBIND"),
    plain(TCP, 1, "TCP_NODELAY"),
    plain(TCP, 2, "TCP_MAXSEG"),
    plain(TCP, 3, "TCP_CORK"),
    plain(TCP, 4, "TCP_KEEPIDLE"),
    plain(TCP, 5, "TCP_KEEPINTVL"),
    plain(TCP, 6, "TCP_KEEPCNT"),
    plain(TCP, 7, "TCP_SYNCNT"),
    plain(TCP, 8, "TCP_LINGER2"),
    plain(TCP, 9, "TCP_DEFER_ACCEPT"),
    plain(TCP, 10, "TCP_WINDOW_CLAMP"),
    SocketOption { level: TCP, name: 13, label: "TCP_CONGESTION", size: 16, shape: Shape::Text },
    plain(TCP, 16, "TCP_THIN_LINEAR_TIMEOUTS"),
    plain(TCP, 18, "TCP_USER_TIMEOUT"),
    plain(TCP, 23, "TCP_FASTOPEN"),
    plain(TCP, 25, "TCP_NOTSENT_LOWAT"),
    plain(TCP, 27, "TCP_SAVE_SYN"),
    plain(UDP, 100, "UDP_ENCAP"),
    plain(UDP, 101, "UDP_NO_CHECK6_TX"),
    plain(UDP, 102, "UDP_NO_CHECK6_RX"),
    plain(UDP, 103, "UDP_SEGMENT"),
    plain(UDP, 104, "UDP_GRO"),
];

impl SocketOption {
    /// The option with these numbers, where it is known.
    #[must_use]
    pub fn find(level: u16, name: u16) -> Option<&'static Self> {
        SOCKET_OPTIONS.iter().find(|option| (option.level, option.name) == (level, name))
    }

    /// Linux's numbers for its level and itself.
    #[must_use]
    pub const fn numbers(&self) -> (u16, u16) {
        (self.level, self.name)
    }

    /// Linux's name for it.
    #[must_use]
    pub const fn label(&self) -> &'static str {
        self.label
    }

    /// Its value; of a text, without the zeros behind it. `None` where the socket has no such
    /// option.
    ///
    /// # Errors
    /// EBADF, EPERM.
    pub fn get(&self, socket: impl AsFd) -> io::Result<Option<Vec<u8>>> {
        let mut value = vec![0; self.size];
        match get(socket.as_fd(), self.level, self.name, &mut value) {
            Ok(len) => value.truncate(len),
            Err(error) => {
                return match error.raw_os_error() {
                    Some(libc::ENOPROTOOPT | libc::EOPNOTSUPP | libc::EINVAL) => Ok(None),
                    _ => Err(error),
                };
            }
        }
        if self.shape == Shape::Text {
            let end = value.iter().position(|byte| *byte == 0).unwrap_or(value.len());
            value.truncate(end);
        }
        Ok(Some(value))
    }

    /// Sets it so that it is read as `value` again.
    ///
    /// # Errors
    /// EINVAL for a value of the wrong size; EPERM, and what else the option has.
    pub fn set(&self, socket: impl AsFd, value: &[u8]) -> io::Result<()> {
        let socket = socket.as_fd();
        let fits = match self.shape {
            Shape::Text => value.len() < self.size,
            _ => value.len() == self.size,
        };
        if !fits {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        let Shape::Doubled { force } = self.shape else {
            return set(socket, self.level, self.name, value);
        };
        let Ok(&bytes) = <&[u8; 4]>::try_from(value) else {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        };
        let half = (i32::from_ne_bytes(bytes) / 2).to_ne_bytes();
        set(socket, self.level, force, &half).or_else(|_| set(socket, self.level, self.name, &half))
    }
}

/// How a TCP socket stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TcpState {
    /// Linux's number for the state: 7 closed, 10 listening.
    pub state: u8,
    /// Of one that listens, connections that wait to be accepted.
    pub waiting: u32,
    /// Of one that listens, how many may.
    pub backlog: u32,
}

/// How a TCP socket stands (`TCP_INFO`).
///
/// # Errors
/// ENOPROTOOPT or EOPNOTSUPP where it is no TCP socket.
pub fn tcp_state(socket: impl AsFd) -> io::Result<TcpState> {
    /// `TCP_INFO` of `linux/tcp.h`, and where two fields lie in what it gives.
    const TCP_INFO: u16 = 11;
    let mut info = [0; 32];
    if get(socket.as_fd(), TCP, TCP_INFO, &mut info)? < info.len() {
        return Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP));
    }
    let [state, .., a, b, c, d, e, f, g, h] = info;
    let (waiting, backlog) = (u32::from_ne_bytes([a, b, c, d]), u32::from_ne_bytes([e, f, g, h]));
    Ok(TcpState { state, waiting, backlog })
}

/// Whether packets of a socket go through a filter (`SO_ATTACH_FILTER`, `SO_ATTACH_BPF`).
///
/// # Errors
/// EBADF, ENOTSOCK.
pub fn has_filter(socket: impl AsFd) -> io::Result<bool> {
    /// `SO_GET_FILTER`: given no room it says how many instructions there are.
    const SO_GET_FILTER: u16 = 26;
    match get(socket.as_fd(), SOCKET, SO_GET_FILTER, &mut []) {
        Ok(instructions) => Ok(instructions > 0),
        // One that was not given as instructions cannot be read.
        Err(error) if error.raw_os_error() == Some(libc::EACCES) => Ok(true),
        Err(error) => Err(error),
    }
}

/// Reads an option into `value`; gives the length that the kernel tells.
pub(crate) fn get(
    socket: BorrowedFd<'_>,
    level: u16,
    name: u16,
    value: &mut [u8],
) -> io::Result<usize> {
    debug_assert!(value.len() <= 2 * VALUE_MAX);
    let mut len = value.len() as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes to the buffer, which has so many, and the
    // length back. None of the options that this module asks for has a pointer in its value that
    // the kernel would write through. The socket is open, for it is borrowed.
    let done = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            level.into(),
            name.into(),
            value.as_mut_ptr().cast(),
            &raw mut len,
        )
    };
    if done == -1 { Err(io::Error::last_os_error()) } else { Ok(len as usize) }
}

/// Sets an option whose value is these bytes.
pub(crate) fn set(socket: BorrowedFd<'_>, level: u16, name: u16, value: &[u8]) -> io::Result<()> {
    // SAFETY: the kernel reads the value's bytes, whose number it is given, and nothing else: none
    // of the options that this module sets has a pointer in its value. The socket is borrowed.
    let done = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level.into(),
            name.into(),
            value.as_ptr().cast(),
            value.len() as libc::socklen_t,
        )
    };
    if done == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream, UdpSocket};

    #[test]
    fn every_option_of_a_socket_can_be_set_to_what_it_is() {
        let (tcp, udp) = (TcpListener::bind("[::1]:0"), UdpSocket::bind("127.0.0.1:0").unwrap());
        let tcp = tcp.unwrap_or_else(|_| TcpListener::bind("127.0.0.1:0").unwrap());
        for socket in [tcp.as_fd(), udp.as_fd()] {
            let mut there = 0;
            for option in SOCKET_OPTIONS {
                let Some(value) = option.get(socket).unwrap() else { continue };
                there += 1;
                if option.set(socket, &value).is_ok() {
                    assert_eq!(option.get(socket).unwrap(), Some(value), "{}", option.label());
                }
                assert!(option.set(socket, &[0; 99]).is_err());
            }
            assert!(there > 30, "{there}");
        }
    }

    #[test]
    fn no_option_is_there_twice_and_each_is_found() {
        for option in SOCKET_OPTIONS {
            let (level, name) = option.numbers();
            assert!(std::ptr::eq(SocketOption::find(level, name).unwrap(), option));
            assert!(option.size <= VALUE_MAX);
        }
    }

    #[test]
    fn connections_that_wait_are_counted() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let state = tcp_state(&listener).unwrap();
        assert_eq!((state.state, state.waiting), (10, 0));
        assert!(state.backlog > 0);
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        assert_eq!(tcp_state(&listener).unwrap().waiting, 1);
        assert_eq!(tcp_state(&stream).unwrap().state, 1);
        assert!(!has_filter(&stream).unwrap());
        assert!(tcp_state(UdpSocket::bind("127.0.0.1:0").unwrap()).is_err());
    }
}
