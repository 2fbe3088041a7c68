//! `TCP_REPAIR`: what a TCP connection is made of, read from one socket and given to another; and a
//! lock that keeps the network from changing it meanwhile.
//!
//! Source: `tcp(7)`, `linux/tcp.h`, and the kernel's own `Documentation` of `TCP_REPAIR`.
//!
//! Invariants: every call is one system call, and needs `CAP_NET_ADMIN` in the socket's network
//! namespace unless it says otherwise. Sequence numbers count modulo 2^32.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

use crate::number::{get_int, narrow, set_int};
use crate::sockopt;

const REPAIR: libc::c_int = 19;
const REPAIR_QUEUE: libc::c_int = 20;
const QUEUE_SEQ: libc::c_int = 21;
const REPAIR_OPTIONS: libc::c_int = 22;
const TIMESTAMP: libc::c_int = 24;
const REPAIR_WINDOW: libc::c_int = 29;
const ULP: libc::c_int = 31;

/// Options of the protocol, as in its headers.
const OPTION_MSS: u32 = 2;
const OPTION_WINDOW: u32 = 3;
const OPTION_SACK: u32 = 4;
const OPTION_TIMESTAMP: u32 = 8;

/// `TCPI_OPT_*`.
const HAS_TIMESTAMPS: u8 = 1;
const HAS_SACK: u8 = 2;
const HAS_SCALING: u8 = 4;

/// The filter that drops everything: it loads a number, which tells it from others', and takes no
/// byte of any packet.
const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_IMM) as u16;
const TAKE: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
/// In the upper half of what it loads.
const OURS: u32 = 0x6c75_0000;

/// Repair mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Repair {
    /// On: nothing is sent, closing says nothing to the peer.
    On,
    /// Off; the peer gets an empty segment, so that both know where they are.
    Off,
    /// Off, and nothing is sent.
    OffQuietly,
}

/// One of the two queues of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TcpQueue {
    /// None of them.
    None,
    /// What has come, and has not been read.
    Receive,
    /// What was written, and the peer has not acknowledged.
    Send,
}

/// The windows of a connection, `struct tcp_repair_window`.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct TcpWindow {
    /// The sequence number of the segment that last changed the send window.
    pub send_update: u32,
    /// Bytes that the peer takes.
    pub send: u32,
    /// The most that it has ever taken.
    pub send_max: u32,
    /// Bytes that the peer was told it may send.
    pub receive: u32,
    /// What it had sent when it was told so.
    pub receive_update: u32,
}

/// What both sides have agreed upon when they connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TcpTerms {
    /// The largest segment that the peer takes, in bytes.
    pub mss: u16,
    /// By how many bits windows are shifted, what the peer tells and what it is told.
    pub scaling: Option<(u8, u8)>,
    /// Selective acknowledgements.
    pub sack: bool,
    /// Time stamps.
    pub timestamps: bool,
}

/// The states of a connection that can be told, `TCP_*` of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TcpState {
    /// Both sides may send.
    Established,
    /// The peer has said that it sends no more.
    CloseWait,
    /// There is no connection, or no more.
    Close,
    /// A listener.
    Listen,
    /// This side has closed, or the connection is not there yet: the kernel's number.
    Other(u8),
}

/// `struct tcp_repair_opt`.
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct RepairOption {
    code: u32,
    value: u32,
}

/// `struct sock_filter`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Instruction {
    code: u16,
    jump_true: u8,
    jump_false: u8,
    value: u32,
}

/// Turns repair mode on or off. It also changes `SO_REUSEADDR`: while it is on, any address can be
/// bound; after it, the option is not set.
///
/// # Errors
/// EPERM without the privilege, and for a listener.
pub fn set_repair(socket: impl AsFd, repair: Repair) -> io::Result<()> {
    let value = match repair {
        Repair::On => 1,
        Repair::Off => 0,
        Repair::OffQuietly => -1,
    };
    set_int(socket, libc::IPPROTO_TCP, REPAIR, value)
}

/// Whether a connection is in repair mode. Needs no privilege.
///
/// # Errors
/// ENOPROTOOPT, EOPNOTSUPP for what is no TCP socket.
pub fn is_in_repair(socket: impl AsFd) -> io::Result<bool> {
    Ok(get_int(socket, libc::IPPROTO_TCP, REPAIR)? != 0)
}

/// Says which queue the next calls, reads and writes are about.
///
/// # Errors
/// EPERM outside of repair mode.
pub fn choose_queue(socket: impl AsFd, queue: TcpQueue) -> io::Result<()> {
    let value = match queue {
        TcpQueue::None => 0,
        TcpQueue::Receive => 1,
        TcpQueue::Send => 2,
    };
    set_int(socket, libc::IPPROTO_TCP, REPAIR_QUEUE, value)
}

/// The sequence number after the last byte of the chosen queue.
///
/// # Errors
/// EINVAL where none is chosen.
pub fn queue_end(socket: impl AsFd) -> io::Result<u32> {
    get_int(socket, libc::IPPROTO_TCP, QUEUE_SEQ).map(i32::cast_unsigned)
}

/// Sets the sequence number at which the chosen queue begins, of a socket that is not connected
/// yet.
///
/// # Errors
/// EPERM where it is connected, EINVAL where no queue is chosen.
pub fn set_queue_begin(socket: impl AsFd, sequence: u32) -> io::Result<()> {
    set_int(socket, libc::IPPROTO_TCP, QUEUE_SEQ, sequence.cast_signed())
}

/// The windows.
///
/// # Errors
/// EPERM outside of repair mode.
pub fn window(socket: impl AsFd) -> io::Result<TcpWindow> {
    let mut window = TcpWindow::default();
    match get(socket, libc::IPPROTO_TCP, REPAIR_WINDOW, window.as_mut_bytes())? {
        length if length == size_of::<TcpWindow>() => Ok(window),
        _ => Err(io::Error::from_raw_os_error(libc::EINVAL)),
    }
}

/// Sets the windows.
///
/// # Errors
/// EPERM outside of repair mode, EINVAL where they do not fit the queues.
pub fn set_window(socket: impl AsFd, window: &TcpWindow) -> io::Result<()> {
    set(socket, libc::IPPROTO_TCP, REPAIR_WINDOW, window.as_bytes())
}

/// The clock of the connection's time stamps. Needs no privilege.
///
/// # Errors
/// ENOPROTOOPT for what is no TCP socket.
pub fn timestamp(socket: impl AsFd) -> io::Result<u32> {
    get_int(socket, libc::IPPROTO_TCP, TIMESTAMP).map(i32::cast_unsigned)
}

/// Sets the clock of the connection's time stamps.
///
/// # Errors
/// EPERM outside of repair mode.
pub fn set_timestamp(socket: impl AsFd, timestamp: u32) -> io::Result<()> {
    set_int(socket, libc::IPPROTO_TCP, TIMESTAMP, timestamp.cast_signed())
}

/// The connection's state. Needs no privilege.
///
/// # Errors
/// ENOPROTOOPT, EOPNOTSUPP for what is no TCP socket.
pub fn state(socket: impl AsFd) -> io::Result<TcpState> {
    Ok(match info(socket)?.state {
        1 => TcpState::Established,
        7 => TcpState::Close,
        8 => TcpState::CloseWait,
        10 => TcpState::Listen,
        other => TcpState::Other(other),
    })
}

/// What both sides have agreed upon. In repair mode, where alone the kernel tells the agreed size of
/// segments and not that of the moment.
///
/// # Errors
/// As [`state`].
pub fn terms(socket: impl AsFd) -> io::Result<TcpTerms> {
    let socket = socket.as_fd();
    let Info { options, scaling, .. } = info(socket)?;
    let mss = get_int(socket, libc::IPPROTO_TCP, libc::TCP_MAXSEG)?;
    Ok(TcpTerms {
        mss: u16::try_from(mss).unwrap_or(u16::MAX),
        scaling: (options & HAS_SCALING != 0).then_some(scaling),
        sack: options & HAS_SACK != 0,
        timestamps: options & HAS_TIMESTAMPS != 0,
    })
}

/// Gives a connection what both sides have agreed upon.
///
/// # Errors
/// EPERM outside of repair mode and of a connection, EFBIG for a shift of more than 14.
pub fn set_terms(socket: impl AsFd, terms: &TcpTerms) -> io::Result<()> {
    let option = |code, value| RepairOption { code, value };
    let mut options = vec![option(OPTION_MSS, terms.mss.into())];
    if let Some((send, receive)) = terms.scaling {
        options.push(option(OPTION_WINDOW, u32::from(send) | u32::from(receive) << 16));
    }
    options.extend(terms.sack.then(|| option(OPTION_SACK, 0)));
    options.extend(terms.timestamps.then(|| option(OPTION_TIMESTAMP, 0)));
    set(socket, libc::IPPROTO_TCP, REPAIR_OPTIONS, options.as_bytes())
}

/// Whether another protocol lies between the connection and its owner, such as TLS in the kernel.
/// Needs no privilege.
///
/// # Errors
/// ENOPROTOOPT for what is no TCP socket.
pub fn has_upper_layer(socket: impl AsFd) -> io::Result<bool> {
    let mut name = [0; 16];
    let length = get(socket, libc::IPPROTO_TCP, ULP, &mut name)?;
    Ok(length > 0 && name[0] != 0)
}

/// Bytes in the send queue that were not sent yet. Needs no privilege.
///
/// # Errors
/// EINVAL for a listener.
pub fn unsent(socket: impl AsFd) -> io::Result<u32> {
    queued(&socket, libc::SIOCOUTQNSD)
}

/// Bytes in the send queue. Needs no privilege.
///
/// # Errors
/// EINVAL for a listener.
pub fn unacknowledged(socket: impl AsFd) -> io::Result<u32> {
    queued(&socket, libc::TIOCOUTQ)
}

fn queued(socket: &impl AsFd, request: libc::Ioctl) -> io::Result<u32> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: both requests write one integer to where the pointer says, which is an integer
    // borrowed for writing.
    let done = unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), request, &raw mut bytes) };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    u32::try_from(bytes).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
}

/// Drops whatever comes for this socket from now on, unanswered, so that the peer sends it again
/// later. The note stays with the socket; see [`incoming_dropped`]. Needs no privilege.
///
/// # Errors
/// EPERM where the socket's filter is locked, ENOMEM.
pub fn drop_incoming(socket: impl AsFd, note: u16) -> io::Result<()> {
    let program = [
        Instruction { code: LOAD, jump_true: 0, jump_false: 0, value: OURS | u32::from(note) },
        Instruction { code: TAKE, jump_true: 0, jump_false: 0, value: 0 },
    ];
    let mut instructions = program.map(|Instruction { code, jump_true, jump_false, value }| {
        libc::sock_filter { code, jt: jump_true, jf: jump_false, k: value }
    });
    let program = libc::sock_fprog { len: 2, filter: instructions.as_mut_ptr() };
    // SAFETY: the kernel reads one `sock_fprog`, which is borrowed here for as long as the call
    // lasts, and through its pointer as many instructions as it says, which the array above has.
    let done = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const program).cast::<libc::c_void>(),
            size_of::<libc::sock_fprog>() as libc::socklen_t,
        )
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Whether the socket has a filter, and the note where it is that of [`drop_incoming`]. Needs no
/// privilege.
///
/// # Errors
/// ENOTSOCK.
pub fn incoming_dropped(socket: impl AsFd) -> io::Result<Option<Option<u16>>> {
    let socket = socket.as_fd();
    let length = match get(socket, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &mut []) {
        Ok(length) => length,
        // One that is no classic program.
        Err(error) if error.raw_os_error() == Some(libc::EACCES) => return Ok(Some(None)),
        Err(error) => return Err(error),
    };
    if length == 0 {
        return Ok(None);
    }
    if length != 2 {
        return Ok(Some(None));
    }
    let mut program = [Instruction::new_zeroed(); 2];
    // For this option alone lengths are in instructions, both ways: two of them are here.
    let mut count: libc::socklen_t = 2;
    // SAFETY: the kernel writes at most `count` instructions of the size of `Instruction` into the
    // array, which has two, and the count into an integer of its own type.
    let done = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            program.as_mut_ptr().cast::<libc::c_void>(),
            &raw mut count,
        )
    };
    if done != 0 {
        return Err(io::Error::last_os_error());
    }
    let [load, take] = program;
    let ours = load.code == LOAD && load.value & !0xffff == OURS && take.code == TAKE;
    Ok(Some((ours && take.value == 0).then_some(load.value as u16)))
}

/// Lets the network reach the socket again: takes its filter away. Needs no privilege.
///
/// # Errors
/// ENOENT where it has none, EPERM where it is locked.
pub fn accept_incoming(socket: impl AsFd) -> io::Result<()> {
    set_int(socket, libc::SOL_SOCKET, libc::SO_DETACH_FILTER, 0)
}

/// The beginning of `struct tcp_info`.
struct Info {
    state: u8,
    options: u8,
    scaling: (u8, u8),
}

fn info(socket: impl AsFd) -> io::Result<Info> {
    let mut bytes = [0_u8; 8];
    match get(socket, libc::IPPROTO_TCP, libc::TCP_INFO, &mut bytes)? {
        8 => {
            let [state, _, _, _, _, options, scaling, _] = bytes;
            Ok(Info { state, options, scaling: (scaling & 0xf, scaling >> 4) })
        }
        _ => Err(io::Error::from_raw_os_error(libc::EINVAL)),
    }
}

fn get(
    socket: impl AsFd,
    level: libc::c_int,
    name: libc::c_int,
    value: &mut [u8],
) -> io::Result<usize> {
    sockopt::get(socket.as_fd(), narrow(level)?, narrow(name)?, value)
}

fn set(socket: impl AsFd, level: libc::c_int, name: libc::c_int, value: &[u8]) -> io::Result<()> {
    sockopt::set(socket.as_fd(), narrow(level)?, narrow(name)?, value)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    use super::*;

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let one = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (one, listener.accept().unwrap().0)
    }

    #[test]
    fn what_is_not_connected_and_what_listens_is_told_apart() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (one, other) = pair();
        assert_eq!(state(&listener).unwrap(), TcpState::Listen);
        assert_eq!(state(&one).unwrap(), TcpState::Established);
        drop(other);
        // Its end travels through the loopback device before `close` returns.
        assert_eq!(state(&one).unwrap(), TcpState::CloseWait);
        assert!(state(std::fs::File::open("/dev/null").unwrap()).is_err());
    }

    #[test]
    fn nothing_comes_through_the_lock_and_all_of_it_after_the_lock() {
        let (mut one, mut other) = pair();
        assert_eq!(incoming_dropped(&one).unwrap(), None);
        drop_incoming(&one, 7).unwrap();
        assert_eq!(incoming_dropped(&one).unwrap(), Some(Some(7)));
        other.write_all(b"later").unwrap();
        // What was written has been through the loopback device, and was not acknowledged.
        assert_eq!(unacknowledged(&other).unwrap(), 5);
        accept_incoming(&one).unwrap();
        assert_eq!(incoming_dropped(&one).unwrap(), None);
        let mut text = [0; 5];
        one.read_exact(&mut text).unwrap();
        assert_eq!(&text, b"later");
    }

    #[test]
    fn terms_are_those_that_the_connection_has() {
        let (one, _other) = pair();
        let terms = terms(&one).unwrap();
        assert!(terms.mss > 500, "{terms:?}");
        assert!(!has_upper_layer(&one).unwrap());
        assert!(!is_in_repair(&one).unwrap());
    }
}
