//! The server: accepts clients and serves the two Varlink interfaces.

mod connection;
mod introspect;
mod manager;
mod reply;
mod session;

use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;

use luo_core::SessionId;
use rustix::io::Errno;
use rustix::net::sockopt;
use tokio::net::UnixListener;
use tokio::task::AbortHandle;

use super::access::Peer;
use super::clients::Admission;
use super::host::Host;
use connection::{Bounds, Service, serve};

pub(crate) use reply::{Descriptor, Pending, Reply};

/// How long accepting rests when no descriptor or memory is free.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Accepts clients for ever.
pub(crate) async fn accept(host: Rc<Host>, listener: OwnedFd) -> io::Result<()> {
    let listener = std::os::unix::net::UnixListener::from(listener);
    listener.set_nonblocking(true)?;
    let listener = UnixListener::from_std(listener)?;
    loop {
        host.upgrades.resumed().await;
        let accepted = tokio::select! {
            biased;
            () = host.upgrades.paused() => continue,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((socket, _)) => match socket.into_std() {
                Ok(socket) => admit(&host, socket.into()),
                Err(error) => tracing::warn!(%error, "a client was lost"),
            },
            Err(error) => match Errno::from_io_error(&error) {
                Some(Errno::INTR | Errno::CONNABORTED) => {}
                Some(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM) => {
                    tracing::warn!(%error, "no client can be accepted at the moment");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
                _ => return Err(error),
            },
        }
    }
}

fn admit(host: &Rc<Host>, socket: OwnedFd) {
    let peer = match sockopt::socket_peercred(&socket) {
        Ok(credentials) => Peer {
            uid: credentials.uid.as_raw(),
            gid: credentials.gid.as_raw(),
            pid: credentials.pid.as_raw_nonzero().get(),
        },
        Err(error) => {
            tracing::warn!(%error, "a client without credentials was refused");
            return;
        }
    };
    let Some(admission) = host.clients.admit(peer.uid) else {
        tracing::warn!(uid = peer.uid, "too many connections; one was refused");
        manager::refuse_connection(&socket, peer.uid, host.config.clients.connections_per_user);
        return;
    };
    let service = manager::ManagerService::new(Rc::clone(host), peer);
    spawn(host, socket, service, admission, peer.uid);
}

/// Serves one connection of a session.
pub(crate) fn serve_session(
    host: Rc<Host>,
    id: SessionId,
    stream: OwnedFd,
    admission: Admission,
) -> AbortHandle {
    let service = session::SessionService::new(Rc::clone(&host), id);
    spawn(&host, stream, service, admission, id.0)
}

fn spawn(
    host: &Rc<Host>,
    socket: OwnedFd,
    service: impl Service + 'static,
    admission: Admission,
    who: impl std::fmt::Display + 'static,
) -> AbortHandle {
    let bounds = Bounds {
        message_bytes: host.config.clients.message_bytes,
        patience: host.config.clients.patience(),
    };
    let task = tokio::task::spawn_local(async move {
        let end = serve(socket, service, bounds).await;
        tracing::debug!(%who, %end, "a connection ended");
        drop(admission);
    });
    task.abort_handle()
}

/// A call that wants no reply is carried out all the same.
fn silence(answer: Pending, oneway: bool) -> Pending {
    match (answer, oneway) {
        (answer, false) => answer,
        (Pending::Later(future), true) => {
            tokio::task::spawn_local(future);
            Pending::None
        }
        (_, true) => Pending::None,
    }
}
