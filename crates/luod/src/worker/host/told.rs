//! What watchers and the log are told.
//!
//! Invariants:
//! - An event names its session's owner, so that it reaches nobody else; where the session has ended
//!   the owner is told by who ended it.
//! - Nobody waits for a watcher: one that is too slow loses events, and is told how many.

use std::rc::Rc;
use std::time::Duration;

use luo::protocol::Event;
use luo_core::{Owner, SessionInfo};
use tokio::sync::broadcast;
use tokio::task::AbortHandle;

use super::Host;

/// Between two words on how far copying is.
const PROGRESS: Duration = Duration::from_millis(250);

/// Copying is told of as long as this is there.
pub(crate) struct Ticking(AbortHandle);

impl Drop for Ticking {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// An event, and whom it concerns.
#[derive(Debug, Clone)]
pub(crate) struct Told {
    pub(crate) event: Event,
    /// The owner of the event's session, which may have ended since.
    pub(crate) owner: Option<Owner>,
}

impl Host {
    /// Events from now on.
    pub(crate) fn watch(&self) -> broadcast::Receiver<Told> {
        self.events.subscribe()
    }

    /// Tells watchers and the log.
    pub(crate) fn tell(&self, kind: &str, session: Option<String>, text: String) {
        let owner = session.as_ref().and_then(|name| {
            let core = self.core.borrow();
            core.session_by_name(name).and_then(|id| core.session(id)).map(|info| info.owner)
        });
        self.tell_owner(kind, session, owner, text);
    }

    /// As [`tell`](Self::tell), of a session that has ended.
    pub(crate) fn tell_end(&self, kind: &str, ended: &SessionInfo, text: String) {
        self.tell_owner(kind, Some(ended.name.to_string()), Some(ended.owner), text);
    }

    /// Tells watchers how far copying is, until it is dropped. Not the log: it is no news later.
    pub(crate) fn tell_progress(self: &Rc<Self>) -> Ticking {
        let host = Rc::clone(self);
        let ticking = tokio::task::spawn_local(async move {
            let mut before = host.carriers.copying.bytes();
            let mut beats = host.carriers.copying.beats();
            loop {
                tokio::time::sleep(PROGRESS).await;
                let copying = &host.carriers.copying;
                let (now, bytes) = (copying.beats(), copying.bytes());
                if now == beats {
                    continue;
                }
                beats = now;
                // An arena that was opened meanwhile counts from zero.
                if bytes < before {
                    before = 0;
                }
                let done = bytes - before;
                let (total, state) = {
                    let core = host.core.borrow();
                    (core.pinned().max(done), core.status().state.name().to_owned())
                };
                let event = Event {
                    kind: "progress".to_owned(),
                    state,
                    session: None,
                    text: format!("{done} of {total} bytes"),
                    done: Some(done),
                    total: Some(total),
                };
                // Nobody may be watching.
                let _ = host.events.send(Told { event, owner: None });
            }
        });
        Ticking(ticking.abort_handle())
    }

    fn tell_owner(&self, kind: &str, session: Option<String>, owner: Option<Owner>, text: String) {
        tracing::info!(kind, session = session.as_deref(), "{text}");
        let state = self.core.borrow().status().state.name().to_owned();
        let event = Event { kind: kind.to_owned(), state, session, text, done: None, total: None };
        // Nobody may be watching.
        let _ = self.events.send(Told { event, owner });
    }
}
