//! The worker's one state, and the pump that keeps the framework going.
//!
//! Everything here lives on one thread and is borrowed for moments only: no borrow is held across
//! an await. Handlers run on other threads, but for those that are quick; participants run in other
//! processes. Their outcomes come back here (`calls`), end transitions (`transitions`), are timed
//! (`times`) and told (`told`).
//!
//! Invariants:
//! - Whoever changes the framework's state calls [`Host::pump`] afterwards, and [`Host::commit`]
//!   before it tells anybody.

mod calls;
mod times;
mod told;
mod transitions;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;

use luo_carriers::HostFile;
use luo_core::{CallId, CallKind, CarrierId, Notice, Orchestrator, TransitionId};
use tokio::sync::{Notify, broadcast};

use super::access::Access;
use super::carriers::Carriers;
use super::clients::Clients;
use super::custody::{Custody, Ticket, space};
use super::participants::Participants;
use super::persist::Persisted;
use super::sessions::Holders;
use super::timeline::Timeline;
use super::upgrade::Upgrades;
use crate::config::Config;
use calls::{CALLS_PER_THREAD, Remote};
use transitions::Transition;

pub(crate) use told::Told;
pub(crate) use transitions::{Ended, state};

/// Handler calls that are run here before everybody else has a turn.
const QUICK_CALLS: usize = 512;
/// Events that a slow watcher may be behind before it loses some.
const EVENT_BACKLOG: usize = 256;

/// The worker's state.
pub(crate) struct Host {
    pub(crate) config: Config,
    pub(crate) access: Access,
    pub(crate) core: RefCell<Orchestrator<HostFile>>,
    pub(crate) custody: Custody,
    pub(crate) carriers: Carriers,
    pub(crate) persisted: RefCell<Persisted>,
    pub(crate) timeline: Timeline,
    pub(crate) holders: RefCell<Holders>,
    pub(crate) participants: RefCell<Participants>,
    pub(crate) clients: Clients,
    pub(crate) upgrades: Upgrades,
    /// Something about sessions has changed: claims look again.
    pub(crate) sessions_changed: Notify,
    /// Files were retrieved: who waits for one looks again.
    pub(crate) retrieved: Notify,
    events: broadcast::Sender<Told>,
    transitions: RefCell<HashMap<TransitionId, Transition>>,
    remote: RefCell<HashMap<CallId, Remote>>,
    /// [`Host::pump`] will be called soon.
    pumping: Cell<bool>,
    /// Threads that run handlers, and a pump that is to come.
    pub(crate) running: Cell<usize>,
    pub(crate) idle: Notify,
    /// The machine had departed, through that carrier, when this worker began.
    pub(crate) departed: Option<CarrierId>,
}

impl std::fmt::Debug for Host {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Host").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Host {
    pub(crate) fn new(
        config: Config,
        core: Orchestrator<HostFile>,
        custody: Custody,
        carriers: Carriers,
        persisted: Persisted,
        departed: Option<CarrierId>,
        timeline: Timeline,
    ) -> Rc<Self> {
        let (events, _) = broadcast::channel(EVENT_BACKLOG);
        let clients = Clients::new(config.clients.connections_per_user);
        Rc::new(Self {
            config,
            access: Access { own_uid: rustix::process::geteuid().as_raw() },
            core: RefCell::new(core),
            custody,
            carriers,
            persisted: RefCell::new(persisted),
            timeline,
            holders: RefCell::default(),
            participants: RefCell::default(),
            clients,
            upgrades: Upgrades::default(),
            sessions_changed: Notify::new(),
            retrieved: Notify::new(),
            events,
            transitions: RefCell::default(),
            remote: RefCell::default(),
            pumping: Cell::new(false),
            running: Cell::new(0),
            idle: Notify::new(),
            departed,
        })
    }

    /// Starts what can start and tells what has ended.
    pub(crate) fn pump(self: &Rc<Self>) {
        let quick = self.carriers.near().is_quick();
        let mut left = if quick { QUICK_CALLS } else { 0 };
        let mut retrieved = false;
        loop {
            let mut local = Vec::new();
            let mut busy = false;
            while left > 0 || !quick {
                let call = self.core.borrow_mut().next_call();
                match call {
                    Some(call) if call.kind() == CallKind::Remote => {
                        busy = true;
                        self.call_participant(&call);
                    }
                    Some(call)
                        if left > 0 && call.is_quick() && call.carrier() == CarrierId::NEAR =>
                    {
                        busy = true;
                        left -= 1;
                        self.call_quickly(&call);
                    }
                    Some(call) => {
                        self.note_times(&call);
                        local.push(call);
                    }
                    None => break,
                }
            }
            while !local.is_empty() {
                let rest = local.split_off(local.len().min(CALLS_PER_THREAD));
                self.call_handlers(std::mem::replace(&mut local, rest));
            }
            loop {
                let notice = self.core.borrow_mut().take_notice();
                let Some(notice) = notice else { break };
                busy = true;
                retrieved |= matches!(notice, Notice::Retrieved { .. });
                self.notice(notice);
            }
            if !busy {
                break;
            }
            if left == 0 && quick {
                self.pump_later();
                break;
            }
        }
        if retrieved {
            self.retrieved.notify_waiters();
        }
    }

    /// Goes on with what is left once everybody else has had a turn.
    fn pump_later(self: &Rc<Self>) {
        if self.pumping.replace(true) {
            return;
        }
        let host = Rc::clone(self);
        self.running.set(self.running.get() + 1);
        tokio::task::spawn_local(async move {
            tokio::task::yield_now().await;
            host.pumping.set(false);
            host.running.set(host.running.get() - 1);
            host.pump();
            host.idle.notify_waiters();
        });
    }

    /// Writes what has changed to the keeper; the ticket says when the keeper has it.
    pub(crate) fn commit(&self) -> Ticket {
        let mut core = self.core.borrow_mut();
        let mut holders = self.holders.borrow_mut();
        self.persisted.borrow_mut().write(&mut core, &mut holders, &self.custody);
        if let Some(bytes) = self.timeline.take_changed() {
            let key = self.custody.keys(space::TIMELINE).first().copied();
            let key = key.unwrap_or_else(|| self.custody.allocate(space::TIMELINE));
            self.custody.put(key, &bytes, &[]);
        }
        self.custody.commit()
    }
}
