//! Sessions that nobody holds get their next owner.
//!
//! A session that waits to be claimed *departs* ahead, so that this is done by the time its next
//! owner has been started; the claim lets it *arrive*.
//!
//! Invariants:
//! - One claim of a session runs at a time, and none beside a departure that nobody has asked for.
//! - A claim is answered after the keeper has what it has changed.

use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;

use luo_abi::TimelinePhase;
use luo_core::{Errno, Event, FinishOptions, Scope, SessionId, State, UnclaimedFiles};
use tokio::time::Instant;

use super::now_seconds;
use crate::worker::access::Peer;
use crate::worker::host::Host;
use crate::worker::refusal::Refusal;

/// Between two looks at whether a session's holder has gone, where nothing wakes the claim.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// A claim that is under way; no second one runs beside it.
struct Claiming {
    host: Rc<Host>,
    id: SessionId,
}

impl Drop for Claiming {
    fn drop(&mut self) {
        self.host.holders.borrow_mut().claiming.remove(&self.id);
        self.host.sessions_changed.notify_waiters();
    }
}

/// A departure that nobody has asked for; whoever needs the session waits for its end.
struct Departing {
    host: Rc<Host>,
    id: SessionId,
}

impl Drop for Departing {
    fn drop(&mut self) {
        self.host.holders.borrow_mut().departing.remove(&self.id);
        self.host.sessions_changed.notify_waiters();
    }
}

impl Host {
    /// Does what a claim would do first, while the next owner is still being started. Whoever waits
    /// for the session already has had its turn before this one, and does it itself. What fails
    /// here fails again in the claim, which says so.
    pub(super) async fn depart_ahead(self: &Rc<Self>, id: SessionId) {
        tokio::task::yield_now().await;
        let departing = {
            let mut holders = self.holders.borrow_mut();
            if holders.is_held(id)
                || holders.claiming.contains(&id)
                || !holders.departing.insert(id)
            {
                return;
            }
            Departing { host: Rc::clone(self), id }
        };
        let machine = self.core.borrow().status().state;
        let at_rest = matches!(machine, State::Normal | State::Updated);
        let waits = self.session_info(id).is_ok_and(|info| {
            info.status.transition.is_none()
                && info.status.state == State::Normal
                && info.outgoing > 0
        });
        if at_rest && waits {
            let departed = self.run_step(|core| core.begin(Scope::Session(id), Event::Depart));
            if let Err(refusal) = departed.await {
                tracing::debug!(session = id.0, reason = refusal.reason(), "not departed yet");
            }
            self.commit();
        }
        drop(departing);
    }

    /// Sessions that wait to be claimed are taken back from where they are ahead of the machine: an
    /// update through another carrier takes what is at rest. What cannot be is refused by that
    /// update.
    pub(crate) async fn cancel_unclaimed(self: &Rc<Self>) {
        let ahead: Vec<SessionId> = {
            let (core, holders) = (self.core.borrow(), self.holders.borrow());
            core.sessions()
                .filter(|info| info.unclaimed && !holders.claiming.contains(&info.id))
                .filter(|info| matches!(info.status.state, State::Prepared | State::Frozen))
                .map(|info| info.id)
                .collect()
        };
        for id in ahead {
            let cancelled = self.run_step(|core| core.begin(Scope::Session(id), Event::Cancel));
            if let Err(refusal) = cancelled.await {
                tracing::debug!(session = id.0, reason = refusal.reason(), "still ahead");
            }
        }
        self.commit();
    }

    /// Waits until no session, or not this one, departs unasked.
    pub(crate) async fn departed_ahead(&self, id: Option<SessionId>) {
        loop {
            let changed = self.sessions_changed.notified();
            let departing = {
                let holders = self.holders.borrow();
                id.map_or(!holders.departing.is_empty(), |id| holders.departing.contains(&id))
            };
            if !departing {
                return;
            }
            changed.await;
        }
    }

    /// Takes a session over for somebody new: when this is done it is `updated`, or `normal` where
    /// it has no files. Waits until the one before has let go of it.
    pub(crate) async fn claim(
        self: &Rc<Self>,
        name: &str,
        peer: Peer,
        wait: Duration,
    ) -> Result<(SessionId, OwnedFd), Refusal> {
        let deadline = Instant::now() + wait;
        let (claiming, _busy) = loop {
            let id = self.session_for(name, peer)?.id;
            self.departed_ahead(Some(id)).await;
            let busy_here = self.busy_when_resumed().await;
            let changed = self.sessions_changed.notified();
            let info = self.session_for(name, peer)?;
            let busy = {
                let mut holders = self.holders.borrow_mut();
                if !info.unclaimed || holders.is_held(info.id) {
                    Some("is held by another process")
                } else if !holders.claiming.insert(info.id) {
                    Some("is being claimed by another process")
                } else {
                    None
                }
            };
            let Some(busy) = busy else {
                break (Claiming { host: Rc::clone(self), id: info.id }, busy_here);
            };
            drop(busy_here);
            if Instant::now() >= deadline {
                let reason = format!("session {name} {busy}; wait until it has closed it");
                return Err(Refusal::new(Errno::Busy, reason));
            }
            let look = deadline.min(Instant::now() + LOOK_AGAIN);
            // Whether something has changed or not: it is looked at again.
            let _ = tokio::time::timeout_at(look, changed).await;
        };
        let id = claiming.id;
        let began = std::time::Instant::now();
        let brought = self.bring_back(id).await;
        // What it has changed is kept with the rest below, or where it failed, now.
        brought.inspect_err(|_| drop(self.commit()))?;
        self.core.borrow_mut().owner_back(id)?;
        let client = match self.hold(id) {
            Ok(client) => client,
            Err(refusal) => {
                self.core.borrow_mut().owner_gone(id, now_seconds())?;
                self.commit();
                return Err(refusal);
            }
        };
        drop(claiming);
        self.time_session(TimelinePhase::Claim, id, began);
        self.commit().await?;
        self.tell("session", Some(name.to_owned()), format!("claimed by process {}", peer.pid));
        Ok((id, client))
    }

    /// Brings an unclaimed session to where all its files can be retrieved. To be committed.
    async fn bring_back(self: &Rc<Self>, id: SessionId) -> Result<(), Refusal> {
        loop {
            let info = self.session_info(id)?;
            match info.status.state {
                State::Updated if info.outgoing == 0 => return Ok(()),
                // Its owner died between retrieving and finishing, and had preserved more
                // meanwhile: all of it goes over together.
                State::Updated => {
                    let options =
                        FinishOptions { unclaimed: UnclaimedFiles::Carry, carry_reclaimed: true };
                    self.run_step(|core| core.finish(Scope::Session(id), options)).await?;
                }
                State::Normal if info.outgoing == 0 => return Ok(()),
                State::Normal | State::Prepared | State::Frozen => {
                    let scope = Scope::Session(id);
                    self.run_step(|core| core.begin(scope, Event::Depart)).await?;
                    self.run_step(|core| core.begin(scope, Event::Arrive)).await?;
                    return Ok(());
                }
            }
        }
    }
}
