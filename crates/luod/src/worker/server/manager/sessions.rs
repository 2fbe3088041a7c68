//! Sessions are made and claimed; their descriptor goes to who asked.
//!
//! Invariants:
//! - A request that is repeated, since its connection broke, gets the session that it has made.
//! - The keeper has what was made before the client has its descriptor.

use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;

use luo::protocol::{self, ClaimSession, CreateSession, SessionGiven};
use luo_core::{Errno, OnClose, Policy, SessionId};

use super::{ManagerService, later};
use crate::worker::refusal::Refusal;
use crate::worker::server::connection::Given;
use crate::worker::server::{Descriptor, Pending, Reply};
use crate::worker::sessions::{is_stream, now_seconds};

/// The longest a client may wait for a session, in milliseconds.
const LONGEST_WAIT: u64 = 3_600_000;

impl ManagerService {
    pub(super) fn create(&self, parameters: CreateSession, connection: Option<OwnedFd>) -> Pending {
        let CreateSession { name, policy, request } = parameters;
        let policy = policy.unwrap_or_default();
        let policy = Policy {
            on_close: match policy.on_close {
                protocol::OnClose::Release => OnClose::Release,
                protocol::OnClose::Keep => OnClose::Keep { ttl_seconds: policy.ttl_seconds },
            },
        };
        let request = request.unwrap_or(0);
        let (host, peer) = (Rc::clone(&self.host), self.peer);
        let service = Self::new(Rc::clone(&self.host), self.peer);
        later(async move {
            let _busy = host.busy_when_resumed().await;
            let made = host.core.borrow_mut().create_session(&name, peer.owner(), policy);
            let id = match made {
                Ok(id) => id,
                Err(error) => service
                    .made_by_this_request(&name, request)
                    .ok_or_else(|| service.taken(&name, error.into()))?,
            };
            host.persisted.borrow_mut().session_extra(id).created_by = request;
            let client = match host.hold(id) {
                Ok(client) => client,
                Err(refusal) => {
                    host.core.borrow_mut().owner_gone(id, now_seconds())?;
                    host.release(id).await?;
                    return Err(refusal);
                }
            };
            if let Err(refusal) = host.commit().await {
                host.release(id).await?;
                return Err(refusal);
            }
            host.sessions_changed.notify_waiters();
            host.tell("session", Some(name), format!("created by process {}", peer.pid));
            service.give(id, client, connection)
        })
    }

    /// The session that a request has made before its connection broke.
    fn made_by_this_request(&self, name: &str, request: u64) -> Option<SessionId> {
        let info = self.host.session_for(name, self.peer).ok()?;
        let created_by = self.host.persisted.borrow_mut().session_extra(info.id).created_by;
        if request == 0 || created_by != request {
            return None;
        }
        self.host.core.borrow_mut().owner_back(info.id).ok()?;
        Some(info.id)
    }

    /// A taken name is told apart from another user's.
    fn taken(&self, name: &str, refusal: Refusal) -> Refusal {
        match self.host.session_for(name, self.peer) {
            Err(other) if other.errno() == "EPERM" => other,
            _ => refusal,
        }
    }

    fn give(
        &self,
        id: SessionId,
        client: OwnedFd,
        connection: Option<OwnedFd>,
    ) -> Result<Reply, Refusal> {
        let session = self.describe(id)?;
        if let Some(connection) = connection {
            self.host.connect_session(id, connection);
        }
        Ok(Reply::new(&SessionGiven { session }).with(vec![Descriptor::Own(client)]))
    }

    pub(super) fn claim(&self, parameters: ClaimSession, connection: Option<OwnedFd>) -> Pending {
        let wait = parameters.wait_milliseconds.unwrap_or(0).min(LONGEST_WAIT);
        let service = Self::new(Rc::clone(&self.host), self.peer);
        later(async move {
            let wait = Duration::from_millis(wait);
            let (id, client) = service.host.claim(&parameters.name, service.peer, wait).await?;
            service.give(id, client, connection)
        })
    }
}

/// luod's end of a session's first connection, where one came with the call for the session.
pub(super) fn first_connection(mut descriptors: Given) -> Result<Option<OwnedFd>, Reply> {
    if descriptors.0.is_empty() {
        return Ok(None);
    }
    match (descriptors.0.pop(), descriptors.0.is_empty()) {
        (Some(connection), true) if is_stream(&connection) => Ok(Some(connection)),
        (other, _) => {
            descriptors.0.extend(other);
            let reason = "one connected Unix stream socket may come with it, and nothing else";
            Err(Reply::refused_by_manager(Refusal::new(Errno::Inval, reason)))
        }
    }
}
