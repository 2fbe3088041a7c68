//! The options of a socket that come back with it.
//!
//! Invariants: one that the socket does not have, or that the kernel does not know, is left out; one
//! that cannot be set again keeps what a new socket has.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use luo_abi::record::{OptionValue, socket_option as number};
use rustix::net::sockopt;

/// Reads an option; `None` where there is nothing to keep.
type Get = fn(BorrowedFd<'_>) -> io::Result<Option<i32>>;
type Set = fn(BorrowedFd<'_>, i32) -> io::Result<()>;

/// One option.
pub(super) struct SocketOption {
    number: u16,
    get: Get,
    set: Set,
}

fn unsigned(value: i32) -> io::Result<u32> {
    u32::try_from(value).map_err(|_| io::ErrorKind::InvalidInput.into())
}

fn byte(value: i32) -> io::Result<u8> {
    u8::try_from(value).map_err(|_| io::ErrorKind::InvalidInput.into())
}

fn seconds(value: i32) -> io::Result<Duration> {
    Ok(Duration::from_secs(unsigned(value)?.into()))
}

fn signed(value: impl TryInto<i32>) -> io::Result<Option<i32>> {
    Ok(value.try_into().ok())
}

macro_rules! option {
    ($number:ident, $get:expr, $set:expr) => {
        SocketOption { number: number::$number, get: $get, set: $set }
    };
    (switch $number:ident, $get:ident, $set:ident) => {
        option!($number, |socket| Ok(Some(i32::from(sockopt::$get(socket)?))), |socket, value| Ok(
            sockopt::$set(socket, value != 0)?
        ))
    };
    (seconds $number:ident, $get:ident, $set:ident) => {
        option!($number, |socket| signed(sockopt::$get(socket)?.as_secs()), |socket, value| Ok(
            sockopt::$set(socket, seconds(value)?)?
        ))
    };
    (timeout $number:ident, $which:ident) => {
        option!(
            $number,
            |socket| {
                let timeout = sockopt::socket_timeout(socket, sockopt::Timeout::$which)?;
                signed(timeout.map_or(0, |timeout| timeout.as_millis()))
            },
            |socket, value| {
                let time = Duration::from_millis(unsigned(value)?.into());
                let time = (!time.is_zero()).then_some(time);
                Ok(sockopt::set_socket_timeout(socket, sockopt::Timeout::$which, time)?)
            }
        )
    };
}

/// In increasing order of their numbers. Those of IP fail on a socket of the other family.
pub(super) const OPTIONS: [SocketOption; 20] = [
    option!(switch REUSE_ADDRESS, socket_reuseaddr, set_socket_reuseaddr),
    option!(switch KEEP_ALIVE, socket_keepalive, set_socket_keepalive),
    option!(
        LINGER,
        |socket| match sockopt::socket_linger(socket)? {
            None => Ok(Some(-1)),
            Some(time) => signed(time.as_secs()),
        },
        |socket, value| {
            let time = if value < 0 { None } else { Some(seconds(value)?) };
            Ok(sockopt::set_socket_linger(socket, time)?)
        }
    ),
    option!(switch OUT_OF_BAND_INLINE, socket_oobinline, set_socket_oobinline),
    option!(PRIORITY, |socket| luo_sys::socket_priority(socket).map(Some), |socket, value| {
        luo_sys::set_socket_priority(socket, value)
    }),
    option!(
        MARK,
        |socket| Ok(Some(luo_sys::socket_mark(socket)?.cast_signed())),
        |socket, value| luo_sys::set_socket_mark(socket, value.cast_unsigned())
    ),
    option!(
        RECEIVE_BUFFER,
        |socket| match luo_sys::buffer_locks(socket)? {
            (true, _) => signed(sockopt::socket_recv_buffer_size(socket)? / 2),
            (false, _) => Ok(None),
        },
        |socket, value| {
            Ok(sockopt::set_socket_recv_buffer_size_force(socket, unsigned(value)? as usize)?)
        }
    ),
    option!(
        SEND_BUFFER,
        |socket| match luo_sys::buffer_locks(socket)? {
            (_, true) => signed(sockopt::socket_send_buffer_size(socket)? / 2),
            (_, false) => Ok(None),
        },
        |socket, value| {
            Ok(sockopt::set_socket_send_buffer_size_force(socket, unsigned(value)? as usize)?)
        }
    ),
    option!(timeout RECEIVE_TIMEOUT, Recv),
    option!(timeout SEND_TIMEOUT, Send),
    option!(switch NO_DELAY, tcp_nodelay, set_tcp_nodelay),
    option!(switch CORK, tcp_cork, set_tcp_cork),
    option!(seconds KEEP_IDLE, tcp_keepidle, set_tcp_keepidle),
    option!(seconds KEEP_INTERVAL, tcp_keepintvl, set_tcp_keepintvl),
    option!(KEEP_COUNT, |socket| signed(sockopt::tcp_keepcnt(socket)?), |socket, value| Ok(
        sockopt::set_tcp_keepcnt(socket, unsigned(value)?)?
    )),
    option!(USER_TIMEOUT, |socket| signed(sockopt::tcp_user_timeout(socket)?), |socket, value| Ok(
        sockopt::set_tcp_user_timeout(socket, unsigned(value)?)?
    )),
    option!(TYPE_OF_SERVICE, |socket| signed(sockopt::ip_tos(socket)?), |socket, value| Ok(
        sockopt::set_ip_tos(socket, byte(value)?)?
    )),
    option!(TIME_TO_LIVE, |socket| signed(sockopt::ip_ttl(socket)?), |socket, value| Ok(
        sockopt::set_ip_ttl(socket, unsigned(value)?)?
    )),
    option!(TRAFFIC_CLASS, |socket| signed(sockopt::ipv6_tclass(socket)?), |socket, value| Ok(
        sockopt::set_ipv6_tclass(socket, unsigned(value)?)?
    )),
    option!(
        HOPS,
        |socket| Ok(Some(sockopt::ipv6_unicast_hops(socket)?.into())),
        |socket, value| {
            // Zero is the system's.
            let hops = byte(value)?;
            Ok(sockopt::set_ipv6_unicast_hops(socket, (hops != 0).then_some(hops))?)
        }
    ),
];

/// The options of a socket as they are.
pub(super) fn read(socket: BorrowedFd<'_>) -> Vec<OptionValue> {
    let value = |option: &SocketOption| {
        let value = (option.get)(socket).ok().flatten()?;
        Some(OptionValue { option: option.number, value })
    };
    OPTIONS.iter().filter_map(value).collect()
}

/// Gives a socket these options.
pub(super) fn write(socket: BorrowedFd<'_>, values: &[OptionValue]) {
    for OptionValue { option, value } in values {
        let Some(known) = OPTIONS.iter().find(|known| known.number == *option) else { continue };
        // What this kernel does not do stays as on a new socket; see the module.
        let _ = (known.set)(socket, *value);
    }
}
