//! The worker without its surroundings, for fuzzing: calls as bytes, a store that takes everything
//! and keeps nothing.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use luo::wire::{self, Frame, Limits, Receiver};
use luo_carriers::HostFile;
use luo_core::{Criticality, Event, OnClose, Owner, Policy, Scope, SessionId, Token};
use tokio::sync::oneshot;

use super::access::Peer;
use super::carriers::Carriers;
use super::custody::Custody;
use super::host::Host;
use super::restore::Loaded;
use super::server::{self, Pending, Reply};
use crate::config::Config;
use crate::store::{Batch, Store, StoreError, Table, Ticket, Upgrade, Waiting};

/// Bytes of one message: few, so that the limit is met.
const MESSAGE_BYTES: usize = 64 << 10;
/// Between two looks at a reply that is not there yet.
const LOOKS: usize = 20;
/// Descriptors that come with a call at most.
const DESCRIPTORS: u8 = 7;

type Answer = oneshot::Sender<Result<(), StoreError>>;

/// Takes every batch and forgets it.
#[derive(Default)]
pub(crate) struct Nowhere {
    /// From now on no batch is taken; who waits for it, waits.
    held: Mutex<Option<Vec<Answer>>>,
}

#[cfg(test)]
impl Nowhere {
    fn hold(&self) {
        *self.held.lock().unwrap_or_else(PoisonError::into_inner) = Some(Vec::new());
    }
}

impl Store for Nowhere {
    fn limits(&self) -> crate::store::Limits {
        crate::store::Limits { slots: 1_000, fds: 1_000, bytes: 1 << 20 }
    }

    fn submit(&self, _: Batch) -> Ticket {
        match &mut *self.held.lock().unwrap_or_else(PoisonError::into_inner) {
            None => Ticket::done(Ok(())),
            Some(held) => {
                let (answer, ticket) = Ticket::waiting();
                held.push(answer);
                ticket
            }
        }
    }

    fn room(&self) -> Waiting<'_> {
        Box::pin(std::future::ready(()))
    }

    fn load(&self) -> Ticket {
        Ticket::done(Ok(()))
    }

    fn ready(&self) -> Ticket {
        Ticket::done(Ok(()))
    }

    fn quiesced(&self) -> Ticket {
        Ticket::done(Ok(()))
    }

    fn leave(&self) -> Ticket {
        Ticket::done(Ok(()))
    }

    fn refuse(&self, _: &str) -> Ticket {
        Ticket::done(Ok(()))
    }

    fn upgrade(&self, _: OwnedFd, _: Duration, _: Upgrade) -> Ticket {
        Ticket::done(Err(StoreError::Unsupported("nothing is upgraded here")))
    }
}

/// A worker's state with two sessions: one of files that were given, one of files that came over.
pub struct Server {
    runtime: tokio::runtime::Runtime,
    tasks: tokio::task::LocalSet,
    host: Rc<Host>,
    #[cfg(test)]
    store: Arc<Nowhere>,
    outgoing: SessionId,
    incoming: SessionId,
    null: File,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").finish_non_exhaustive()
    }
}

impl Server {
    /// A new one.
    ///
    /// # Errors
    /// What the system refuses, or a description of what is wrong with luod.
    pub fn new() -> Result<Self, Box<dyn std::error::Error>> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(1)
            .build()?;
        let tasks = tokio::task::LocalSet::new();
        let nowhere = Arc::new(Nowhere::default());
        let store: Arc<dyn Store> = Arc::clone(&nowhere) as _;
        let table = Arc::new(Table::new(Arc::clone(&store)));
        let custody = Custody::new(store, table, 1)?;
        let config = Config::default();
        let none = luo_core::Failure::new(luo_core::Errno::NoEnt, "no device");
        let near = Arc::clone(custody.carrier());
        let carriers = Carriers::new(near, None, Err(none), Arc::default());
        let restored = Loaded::read(&custody).restore(&config, &custody, &carriers, false)?;
        let timeline = super::timeline::Timeline::default();
        let (core, persisted) = (restored.core, restored.persisted);
        let host = Host::new(config, core, custody, carriers, persisted, None, timeline);
        host.open();
        let sessions: Result<[SessionId; 2], Box<dyn std::error::Error>> =
            tasks.block_on(&runtime, async {
                let outgoing = Self::session(&host, "outgoing")?;
                let incoming = Self::session(&host, "incoming")?;
                for event in [Event::Depart, Event::Arrive] {
                    let scope = Scope::Session(incoming);
                    let done = host.run(|core| core.begin(scope, event)).await;
                    done.map_err(|refusal| refusal.reason().to_owned())?;
                }
                Ok([outgoing, incoming])
            });
        let [outgoing, incoming] = sessions?;
        let null = File::open("/dev/null")?;
        Ok(Self {
            runtime,
            tasks,
            host,
            #[cfg(test)]
            store: nowhere,
            outgoing,
            incoming,
            null,
        })
    }

    fn session(host: &Rc<Host>, name: &str) -> Result<SessionId, Box<dyn std::error::Error>> {
        let owner = Owner { uid: 1_000, gid: 1_000 };
        let policy = Policy { on_close: OnClose::Keep { ttl_seconds: None } };
        let id = host.core.borrow_mut().create_session(name, owner, policy)?;
        for token in 1..=3 {
            let (reader, _) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
            let file = HostFile::from(reader);
            host.core.borrow_mut().preserve(id, Some(Token(token)), file, Criticality::Required)?;
        }
        host.commit();
        Ok(id)
    }

    /// Takes bytes as they could come from a client. The first says to which service, and how many
    /// descriptors come along. Gives the replies that were ready, as text.
    ///
    /// # Errors
    /// What the system refuses.
    pub fn take(&self, input: &[u8]) -> std::io::Result<Vec<Vec<u8>>> {
        let Some((kind, bytes)) = input.split_first() else { return Ok(Vec::new()) };
        let (ours, theirs) = UnixStream::pair()?;
        let files = vec![self.null.as_fd(); usize::from((kind >> 2) % (DESCRIPTORS + 1))];
        let mut rest = bytes.get(..bytes.len().min(MESSAGE_BYTES)).unwrap_or_default();
        let mut receiver = Receiver::new(Limits { bytes: MESSAGE_BYTES });
        let mut frames = Vec::new();
        let mut first = files.as_slice();
        while !rest.is_empty() {
            // The socket takes less than all of it; what it took is received at once.
            match wire::send(ours.as_fd(), rest, first) {
                Ok(sent) => rest = rest.get(sent..).unwrap_or_default(),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
            first = &[];
            while receiver.fill(theirs.as_fd()).is_ok() {
                while let Ok(Some(frame)) = receiver.next_frame() {
                    frames.push(frame);
                }
            }
        }
        let service = match kind & 3 {
            0 => server::Served::session(&self.host, self.outgoing),
            1 => server::Served::session(&self.host, self.incoming),
            2 => server::Served::manager(&self.host, Peer { uid: 1_000, gid: 1_000, pid: 1 }),
            _ => server::Served::manager(&self.host, Peer { uid: 0, gid: 0, pid: 1 }),
        };
        Ok(self.tasks.block_on(&self.runtime, self.serve(service, frames)))
    }

    async fn serve(&self, mut service: server::Served, frames: Vec<Frame>) -> Vec<Vec<u8>> {
        let mut replies = Vec::new();
        for frame in frames {
            let reply = match service.call(frame) {
                Pending::Ready(reply) => Some(reply),
                Pending::Later(mut future) => soon(&mut future).await,
                Pending::Stream(mut channel) => soon(channel.recv()).await.flatten(),
                Pending::Silent(task) => {
                    task.abort();
                    None
                }
                Pending::None => None,
            };
            replies.extend(reply.map(Reply::into_text));
        }
        self.host.handlers_idle().await;
        replies
    }

    /// Whether this worker would go on: its state is one that can be written and told.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.tasks.block_on(&self.runtime, async {
            let written = self.host.commit().await.is_ok();
            let core = self.host.core.borrow();
            written && core.sessions().all(|info| core.session_record(info.id).is_some())
        })
    }
}

/// What comes without waiting for anybody but handlers.
async fn soon<T>(future: impl Future<Output = T>) -> Option<T> {
    tokio::pin!(future);
    for _ in 0..LOOKS {
        tokio::select! {
            biased;
            done = &mut future => return Some(done),
            () = tokio::task::yield_now() => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTGOING: u8 = 0;
    const INCOMING: u8 = 1;
    const MANAGER: u8 = 3;
    const WITH_ONE_FILE: u8 = 1 << 2;

    /// What a client reads that makes this call, while the store keeps what it is given, or does
    /// not answer.
    fn replies(service: u8, call: &str, held: bool) -> Vec<String> {
        let server = Server::new().unwrap();
        if held {
            server.store.hold();
        }
        let input = [&[service], call.as_bytes(), &[0]].concat();
        let replies = server.take(&input).unwrap();
        replies.into_iter().map(|reply| String::from_utf8(reply).unwrap()).collect()
    }

    #[test]
    fn what_a_client_is_told_is_kept_where_it_outlives_the_worker() {
        for (service, method, parameters) in [
            (OUTGOING | WITH_ONE_FILE, "Session.Preserve", r#"{"count":1,"tokens":[9]}"#),
            (OUTGOING, "Session.Duplicate", r#"{"original":1,"token":9}"#),
            (OUTGOING, "Session.Unpreserve", r#"{"tokens":[1]}"#),
            (OUTGOING, "Session.Prepare", "{}"),
            (OUTGOING, "Session.Release", "{}"),
            (INCOMING, "Session.Retrieve", r#"{"tokens":[1,2]}"#),
            (INCOMING, "Session.Finish", r#"{"unclaimed":"release"}"#),
            (INCOMING, "Session.Finish", r#"{"unclaimed":"carry"}"#),
            (MANAGER, "CreateSession", r#"{"name":"new"}"#),
        ] {
            let call = format!(r#"{{"method":"io.luo.{method}","parameters":{parameters}}}"#);
            let told = replies(service, &call, false);
            assert_eq!(told.len(), 1, "{method}: {told:?}");
            assert!(!told[0].contains("error"), "{method}: {told:?}");
            assert_eq!(replies(service, &call, true), [""; 0], "{method}");
        }
    }
}
