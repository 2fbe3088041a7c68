//! The server: accepts clients and serves the two Varlink interfaces.

mod connection;
mod introspect;
mod manager;
mod reply;
mod session;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
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
use super::refusal::Refusal;
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
    let admission = match host.clients.admit(peer.uid, host.access.is_operator(peer), &socket) {
        Ok(admission) => admission,
        Err(refusal) => return refuse(&socket, Reply::refused_by_manager(refusal)),
    };
    let service = manager::ManagerService::new(Rc::clone(host), peer);
    spawn(host, socket, service, admission, peer.uid);
}

/// Tells a client why it is not served, as far as it can be told without waiting.
fn refuse(socket: &OwnedFd, mut reply: Reply) {
    reply.text.push(0);
    // It is refused either way.
    let _ = luo::wire::send(socket.as_fd(), &reply.text, &[]);
}

/// Tells a client why a connection of its session is not served.
pub(crate) fn refuse_session_connection(stream: &OwnedFd, refusal: Refusal) {
    refuse(stream, Reply::refused_by_session(refusal));
}

/// Serves one connection of a session.
pub(crate) fn serve_session(
    host: Rc<Host>,
    id: SessionId,
    stream: OwnedFd,
    admission: Admission,
    may_reach_arena: bool,
) -> AbortHandle {
    let service = session::SessionService::new(Rc::clone(&host), id, may_reach_arena);
    spawn(&host, stream, service, admission, id.0)
}

/// One of the two services without a connection.
pub(crate) enum Served {
    Manager(manager::ManagerService),
    Session(session::SessionService),
}

impl Served {
    pub(crate) fn manager(host: &Rc<Host>, peer: Peer) -> Self {
        Self::Manager(manager::ManagerService::new(Rc::clone(host), peer))
    }

    pub(crate) fn session(host: &Rc<Host>, id: SessionId) -> Self {
        Self::Session(session::SessionService::new(Rc::clone(host), id, false))
    }

    pub(crate) fn call(&mut self, frame: luo::wire::Frame) -> Pending {
        let luo::wire::Frame { text, descriptors } = frame;
        let descriptors = connection::Given(descriptors);
        match self {
            Self::Manager(service) => service.call(&text, descriptors),
            Self::Session(service) => service.call(&text, descriptors),
        }
    }
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

/// A call that wants no reply is carried out all the same, also when its client has gone. While
/// the client is there it counts as one that waits, so that nobody has any number of them.
fn silence(answer: Pending, oneway: bool) -> Pending {
    match (answer, oneway) {
        (answer, false) => answer,
        (Pending::Later(future), true) => {
            Pending::Silent(tokio::task::spawn_local(async move { drop(future.await) }))
        }
        (_, true) => Pending::None,
    }
}

/// A call whose only effect would be the descriptors in its reply is not carried out where no
/// reply is wanted; and it could wait for as long as it likes.
fn is_pointless(call: &introspect::Call<'_>) -> bool {
    let gives = [
        "io.luo.CreateSession",
        "io.luo.ClaimSession",
        "io.luo.GetHandover",
        "io.luo.Session.Retrieve",
        "io.luo.Session.GetKernelSession",
    ];
    call.oneway && gives.contains(&&*call.method)
}
