//! Who holds a session: the descriptor that makes a session a capability.
//!
//! A session's descriptor is one end of a socket of packets; the other end is here, and in the
//! keeper. A packet on it brings a stream socket, which luod serves as a connection of that
//! session: so any number of processes can share the descriptor, and a connection that breaks is
//! made again through it. When the last copy is closed, the session is held by nobody.
//!
//! ```text
//!            create, claim                      last copy closed
//! (no one) ───────────────▶ held ──────────────────────────────────▶ unclaimed ──▶ ended
//!                            ▲                                       │    policy: release,
//!                            └───────────────── claim ───────────────┘    or time limit
//! ```
//!
//! Invariants:
//! - A session that nobody holds is what its policy says: ended, or kept until it is claimed or its
//!   time has passed; also where its holder went while no worker was there.
//! - What ends is committed before it is told.

mod claim;
mod holders;

use std::rc::Rc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use luo_core::{Errno, OnClose, SessionId, SessionInfo};

use super::access::Peer;
use super::host::Host;
use super::refusal::Refusal;

pub(crate) use holders::{Holders, is_stream};

/// Seconds since 1970, for time limits that outlive processes.
pub(crate) fn now_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

impl Host {
    /// The last copy of a session's descriptor was closed: what the policy says is done. Not where
    /// somebody else holds the session already: `holder` says who has gone.
    async fn holder_gone(self: &Rc<Self>, id: SessionId, holder: Option<u64>) {
        let _busy = self.busy_when_resumed().await;
        if self.holders.borrow().number(id) != holder {
            return;
        }
        self.holders.borrow_mut().let_go(id);
        let info = {
            let mut core = self.core.borrow_mut();
            if core.owner_gone(id, now_seconds()).is_err() {
                return;
            }
            core.session(id)
        };
        self.commit();
        self.sessions_changed.notify_waiters();
        let Some(info) = info else { return };
        let name = info.name.to_string();
        match info.policy.on_close {
            OnClose::Release => match self.release(id).await {
                Ok(()) => self.tell_end("session", &info, "closed and released".to_owned()),
                Err(refusal) => {
                    let text = format!("closed, but not released: {}", refusal.reason());
                    self.tell("failure", Some(name), text);
                }
            },
            OnClose::Keep { .. } => {
                let text = format!(
                    "nobody holds it; {} files wait, {} bytes stay in use",
                    info.outgoing + info.incoming,
                    info.pinned
                );
                self.tell("session", Some(name), text);
                self.depart_ahead(id).await;
            }
        }
    }

    /// Ends a session, whatever state it is in, and the connections to it.
    pub(crate) async fn release(self: &Rc<Self>, id: SessionId) -> Result<(), Refusal> {
        self.end_session(id).await?;
        self.holders.borrow_mut().let_go(id);
        Ok(())
    }

    /// Ends a session; connections to it stay until their client closes them, so that the one that
    /// asked gets its answer.
    pub(crate) async fn end_session(self: &Rc<Self>, id: SessionId) -> Result<(), Refusal> {
        self.departed_ahead(Some(id)).await;
        let kernel_session = self.note_kernel_session(id);
        self.run(|core| core.release_session(id)).await?;
        if let Some(name) = kernel_session {
            self.forget_kernel_session(&name);
            self.commit();
        }
        self.sessions_changed.notify_waiters();
        Ok(())
    }

    /// The session of this name, if the peer may use it.
    pub(crate) fn session_for(&self, name: &str, peer: Peer) -> Result<SessionInfo, Refusal> {
        let core = self.core.borrow();
        let info = core
            .session_by_name(name)
            .and_then(|id| core.session(id))
            .ok_or_else(|| Refusal::new(Errno::NoEnt, format!("there is no session {name}")))?;
        self.access.session(peer, info.owner, name)?;
        Ok(info)
    }

    pub(crate) fn session_info(&self, id: SessionId) -> Result<SessionInfo, Refusal> {
        self.core
            .borrow()
            .session(id)
            .ok_or_else(|| Refusal::new(Errno::NoEnt, "the session has ended"))
    }

    /// Notes the sessions that nobody holds: their holder went while no worker was there.
    pub(crate) fn note_unheld(self: &Rc<Self>) {
        let sessions: Vec<SessionInfo> = self.core.borrow().sessions().collect();
        for info in sessions {
            if !info.unclaimed && !self.holders.borrow().is_held(info.id) {
                let host = Rc::clone(self);
                tokio::task::spawn_local(async move { host.holder_gone(info.id, None).await });
            }
        }
    }

    /// Ends sessions whose time limit has passed, for ever.
    pub(crate) async fn expire(self: Rc<Self>) {
        loop {
            let next = self.core.borrow().next_expiry();
            let changed = self.sessions_changed.notified();
            match next {
                None => changed.await,
                Some(at) => {
                    let left = Duration::from_secs(at.saturating_sub(now_seconds()));
                    // The clock may be set meanwhile: look at least once a minute.
                    let left = left.min(Duration::from_secs(60));
                    let _ = tokio::time::timeout(left, changed).await;
                }
            }
            let busy = self.busy_when_resumed().await;
            let expired = self.core.borrow().expired(now_seconds());
            let mut failed = false;
            for id in expired {
                let Ok(info) = self.session_info(id) else { continue };
                let text = match self.release(id).await {
                    Ok(()) => "its time limit has passed; released".to_owned(),
                    Err(refusal) => {
                        failed = true;
                        format!("its time limit has passed, but: {}", refusal.reason())
                    }
                };
                self.tell_end("expired", &info, text);
            }
            drop(busy);
            if failed {
                // Not again at once.
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }
}
