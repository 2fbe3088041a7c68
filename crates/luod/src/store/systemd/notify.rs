//! The protocol of sd_notify(3), as far as the fd store needs it.
//!
//! Invariants: nothing here waits without a deadline; a message is sent whole or not at all.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixDatagram as StdDatagram;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::SocketAddrUnix;
use rustix::pipe::{PipeFlags, pipe_with};
use tokio::io::Interest;
use tokio::net::UnixDatagram;
use tokio::net::unix::pipe::Receiver;

use crate::keeper::wire::send;

/// So long PID 1 may take for what it was sent.
const DEADLINE: Duration = Duration::from_secs(30);

/// The socket on which PID 1 listens.
#[derive(Debug)]
pub(super) struct Notify(UnixDatagram);

impl Notify {
    /// Connects to the socket that `$NOTIFY_SOCKET` names: a path, or after `@` an abstract name.
    pub(super) fn connect(address: &std::ffi::OsStr) -> io::Result<Self> {
        let address = match address.as_bytes() {
            [b'@', name @ ..] => SocketAddrUnix::new_abstract_name(name)?,
            path => SocketAddrUnix::new(path)?,
        };
        let socket = StdDatagram::unbound()?;
        rustix::net::connect(&socket, &address)?;
        socket.set_nonblocking(true)?;
        Ok(Self(UnixDatagram::from_std(socket)?))
    }

    /// Sends one message.
    pub(super) async fn say(&self, text: &str, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let sending = async {
            loop {
                self.0.writable().await?;
                let sent = self.0.try_io(Interest::WRITABLE, || {
                    match send(&self.0, &[IoSlice::new(text.as_bytes())], fds)? {
                        true => Ok(()),
                        false => Err(io::ErrorKind::WouldBlock.into()),
                    }
                });
                match sent {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    sent => return sent,
                }
            }
        };
        tokio::time::timeout(DEADLINE, sending).await.unwrap_or(Err(Errno::TIMEDOUT.into()))
    }

    /// Stores a descriptor under a name that nothing else is stored under.
    pub(super) async fn store(&self, name: &str, fd: BorrowedFd<'_>) -> io::Result<()> {
        // FDPOLL=0: without it PID 1 drops a socket whose other end has gone.
        self.say(&format!("FDSTORE=1\nFDPOLL=0\nFDNAME={name}"), &[fd]).await
    }

    /// Takes a descriptor out of the store.
    pub(super) async fn remove(&self, name: &str) -> io::Result<()> {
        self.say(&format!("FDSTOREREMOVE=1\nFDNAME={name}"), &[]).await
    }

    /// Waits until PID 1 has taken everything that was sent before.
    pub(super) async fn barrier(&self) -> io::Result<()> {
        let (reader, writer): (OwnedFd, OwnedFd) =
            pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        self.say("BARRIER=1", &[writer.as_fd()]).await?;
        drop(writer);
        let reader = Receiver::from_owned_fd(reader)?;
        let closed = async {
            loop {
                reader.readable().await?;
                match reader.try_read(&mut [0; 1]) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    other => return other.map(drop),
                }
            }
        };
        tokio::time::timeout(DEADLINE, closed).await.unwrap_or(Err(Errno::TIMEDOUT.into()))
    }
}
