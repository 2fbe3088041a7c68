//! Where connections are made, without waiting.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, sockopt};

use crate::error::Error;
use crate::protocol::CONNECT_PACKET;
use crate::wire::{self, WireError};

const FLAGS: SocketFlags = SocketFlags::CLOEXEC.union(SocketFlags::NONBLOCK);

/// Where connections are made.
#[derive(Debug)]
pub(crate) enum Target {
    /// luod's socket.
    Socket(PathBuf),
    /// A session's descriptor.
    Session(OwnedFd),
}

impl Target {
    /// A session's descriptor that came from somewhere else.
    pub(super) fn session(descriptor: OwnedFd) -> Result<Self, Error> {
        // A packet to another kind of socket would end up in the middle of somebody's data.
        let is_session = sockopt::socket_domain(&descriptor) == Ok(AddressFamily::UNIX)
            && sockopt::socket_type(&descriptor) == Ok(SocketType::SEQPACKET)
            && sockopt::socket_acceptconn(&descriptor) == Ok(false);
        if is_session { Ok(Self::Session(descriptor)) } else { Err(Error::NotASession) }
    }

    /// Makes a connection.
    pub(super) fn connect(&self) -> Result<OwnedFd, Error> {
        match self {
            Self::Socket(path) => connect_path(path).map_err(|error| unreachable(path, error)),
            Self::Session(session) => connect_session(session.as_fd()),
        }
    }
}

fn connect_path(path: &Path) -> Result<OwnedFd, Errno> {
    let address = SocketAddrUnix::new(path)?;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, FLAGS, None)?;
    rustix::net::connect(&socket, &address)?;
    Ok(socket)
}

/// Only where nobody listens is luod away; a service must not run on without it because of a
/// queue that is full or a permission that is missing.
fn unreachable(path: &Path, error: Errno) -> Error {
    let (socket, source) = (path.to_owned(), io::Error::from(error));
    match error {
        Errno::NOENT | Errno::CONNREFUSED => Error::Unavailable { socket, source },
        _ => Error::Unreachable { socket, source },
    }
}

/// Both ends of a connection of a session: ours, and luod's.
pub(super) fn pair() -> Result<(OwnedFd, OwnedFd), Error> {
    rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, FLAGS, None)
        .map_err(|error| Error::system("making a socket pair")(error.into()))
}

fn connect_session(session: BorrowedFd<'_>) -> Result<OwnedFd, Error> {
    let (ours, theirs) = pair()?;
    match wire::send(session, CONNECT_PACKET, &[theirs.as_fd()]) {
        Ok(_) => Ok(ours),
        Err(error) => Err(match Errno::from_io_error(&error) {
            Some(Errno::PIPE | Errno::CONNRESET | Errno::NOTCONN | Errno::CONNREFUSED) => {
                Error::SessionGone
            }
            _ => Error::system("connecting to the session")(error),
        }),
    }
}

/// Whether trying again may help. `reached`: whether luod was ever there; then its absence is a
/// restart, and is waited for.
pub(super) fn is_transient(error: &Error, reached: bool) -> bool {
    match error {
        Error::Unavailable { .. } => reached,
        // Queues that are full.
        Error::Unreachable { source, .. } | Error::System { source, .. } => {
            source.kind() == io::ErrorKind::WouldBlock || wire::is_crowded(source)
        }
        Error::Wire(WireError::Closed | WireError::Torn) => true,
        Error::Wire(WireError::Io(source)) => matches!(
            source.kind(),
            io::ErrorKind::BrokenPipe
                | io::ErrorKind::ConnectionReset
                | io::ErrorKind::ConnectionAborted
                | io::ErrorKind::NotConnected
        ),
        _ => false,
    }
}
