//! The worker's side of its own replacement: pause, hand over, go on or go.
//!
//! ```text
//! (begins paused)
//!    │ open
//! serving ── Upgrade ──▶ asked ── quiesce ──▶ paused ── retire ──▶ (the new worker serves)
//!    ▲                     │                     │
//!    └───── resume ────────┴────── resume ───────┘
//! ```
//!
//! Invariants:
//! - While paused nothing changes in the framework and no call is read; what clients have sent
//!   stays in their sockets, or is sent again by the library to the next worker.
//! - Whatever may change the framework after waiting for something is [`Busy`] meanwhile; standing
//!   still waits for it. What waits for others is not, and waits for the end of the pause first.

use std::cell::{Cell, RefCell};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use luo::protocol::Upgraded;
use luo_core::{Errno, State};
use tokio::sync::{Notify, oneshot};

use super::host::Host;
use super::refusal::Refusal;
use crate::store::Upgrade;

/// How long the new worker may take to say its version.
const VERSION_DEADLINE: Duration = Duration::from_secs(1);
/// How long the last replies of a worker that is to go may take.
pub(super) const LAST_WORDS: Duration = Duration::from_secs(2);

/// Between two questions to a keeper that waits for the end of the worker before.
const ASK_AGAIN: Duration = Duration::from_millis(10);

/// How an upgrade ended: the version that serves now, or why the old one does.
type Verdict = Result<String, String>;

/// Where the worker is with its own replacement.
#[derive(Debug)]
pub(crate) struct Upgrades {
    version: String,
    paused: Cell<bool>,
    pausing: Notify,
    resumed: Notify,
    waiting: RefCell<Option<oneshot::Sender<Verdict>>>,
    /// The client that asked has its answer, or nobody asked.
    told: Cell<bool>,
    heard: Notify,
    departed: Notify,
    /// What is under way and must end before all stands still.
    busy: Cell<usize>,
    rest: Notify,
    /// Where the next worker can be asked for its version.
    socket: RefCell<Option<PathBuf>>,
}

/// Something under way that must end before all stands still.
pub(crate) struct Busy(Rc<Host>);

impl Drop for Busy {
    fn drop(&mut self) {
        let upgrades = &self.0.upgrades;
        upgrades.busy.set(upgrades.busy.get() - 1);
        if upgrades.busy.get() == 0 {
            upgrades.rest.notify_waiters();
        }
    }
}

impl Default for Upgrades {
    /// Paused: what the worker before left half done comes first.
    fn default() -> Self {
        Self {
            version: crate::version(),
            paused: Cell::new(true),
            pausing: Notify::new(),
            resumed: Notify::new(),
            waiting: RefCell::new(None),
            told: Cell::new(true),
            heard: Notify::new(),
            departed: Notify::new(),
            busy: Cell::new(0),
            rest: Notify::new(),
            socket: RefCell::new(None),
        }
    }
}

impl Upgrades {
    /// This luod's version.
    pub(crate) fn version(&self) -> &str {
        &self.version
    }

    /// Clients reach luod there.
    pub(crate) fn reached_at(&self, socket: PathBuf) {
        *self.socket.borrow_mut() = Some(socket);
    }

    pub(crate) fn is_paused(&self) -> bool {
        self.paused.get()
    }

    /// Comes back when nothing is paused.
    pub(crate) async fn resumed(&self) {
        while self.paused.get() {
            let resumed = self.resumed.notified();
            if !self.paused.get() {
                return;
            }
            resumed.await;
        }
    }

    /// Comes back when everything is to stand still.
    pub(crate) async fn paused(&self) {
        while !self.paused.get() {
            let pausing = self.pausing.notified();
            if self.paused.get() {
                return;
            }
            pausing.await;
        }
    }

    /// The client that asked for the upgrade has its answer.
    pub(crate) fn told(&self) {
        self.told.set(true);
        self.heard.notify_waiters();
    }

    /// The machine has departed: this worker ends.
    pub(crate) fn depart(&self) {
        self.departed.notify_one();
    }

    /// Comes back when the machine has departed.
    pub(crate) async fn departed(&self) {
        self.departed.notified().await;
    }

    fn conclude(&self, verdict: Verdict) {
        if let Some(waiting) = self.waiting.borrow_mut().take() {
            // Who asked may have gone.
            let _ = waiting.send(verdict);
        }
    }
}

impl Host {
    /// Has this worker replaced, or its keeper. Comes back in the old worker in either case.
    pub(crate) async fn upgrade(
        self: &Rc<Self>,
        binary: Option<OwnedFd>,
        limit: Duration,
        keeper: bool,
    ) -> Result<Upgraded, Refusal> {
        let machine = self.core.borrow().status();
        if machine.transition.is_some() || matches!(machine.state, State::Prepared | State::Frozen)
        {
            let reason = "an update of the machine goes on; finish or cancel it first";
            return Err(Refusal::new(Errno::Busy, reason));
        }
        if self.upgrades.waiting.borrow().is_some() {
            return Err(Refusal::new(Errno::Busy, "an upgrade is under way already"));
        }
        let binary = match binary {
            Some(binary) => binary,
            None => File::open("/proc/self/exe").map(OwnedFd::from).map_err(|error| {
                let errno = error.raw_os_error().map_or(Errno::Io, Errno::from_raw);
                Refusal::new(errno, format!("luod's own binary cannot be opened: {error}"))
            })?,
        };
        let (waiting, verdict) = oneshot::channel();
        *self.upgrades.waiting.borrow_mut() = Some(waiting);
        self.upgrades.told.set(false);
        let what = if keeper { Upgrade::Keeper } else { Upgrade::Worker };
        if let Err(refusal) = self.ask_for_upgrade(&binary, limit, what).await {
            self.upgrades.waiting.borrow_mut().take();
            self.upgrades.told();
            return Err(refusal);
        }
        let who = if keeper { "keeper" } else { "worker" };
        self.tell("upgrade", None, format!("another {who} is being started"));
        match verdict.await {
            Ok(Ok(after)) => Ok(Upgraded { before: self.upgrades.version.clone(), after }),
            Ok(Err(reason)) => {
                self.upgrades.told();
                self.tell("upgrade", None, format!("the {who} of before serves on: {reason}"));
                Err(Refusal::new(Errno::Canceled, reason))
            }
            Err(_) => Err(Refusal::new(Errno::Canceled, "luod is being stopped; ask again")),
        }
    }

    /// Asks the keeper, and again while the worker before this one is still ending.
    async fn ask_for_upgrade(
        &self,
        binary: &OwnedFd,
        limit: Duration,
        what: Upgrade,
    ) -> Result<(), Refusal> {
        let busy = Errno::Busy.name();
        let asking = async {
            loop {
                let binary = binary.try_clone().map_err(|error| {
                    let errno = error.raw_os_error().map_or(Errno::Io, Errno::from_raw);
                    Refusal::new(errno, format!("no descriptor for the binary: {error}"))
                })?;
                match self.custody.upgrade(binary, limit, what).await {
                    Err(refusal) if refusal.errno() == busy => tokio::time::sleep(ASK_AGAIN).await,
                    asked => return asked,
                }
            }
        };
        tokio::time::timeout(limit, asking).await.unwrap_or_else(|_| {
            let reason = "the worker before this one has not ended yet; try again later";
            Err(Refusal::new(Errno::Busy, reason))
        })
    }

    /// Something begins that may change the framework after waiting. Not while paused.
    pub(crate) fn busy(self: &Rc<Self>) -> Busy {
        self.upgrades.busy.set(self.upgrades.busy.get() + 1);
        Busy(Rc::clone(self))
    }

    /// As [`busy`](Self::busy), once nothing is paused.
    pub(crate) async fn busy_when_resumed(self: &Rc<Self>) -> Busy {
        self.upgrades.resumed().await;
        self.busy()
    }

    /// What the worker before has left half done is done: clients are served from here.
    pub(crate) fn open(&self) {
        self.upgrades.paused.set(false);
        self.upgrades.resumed.notify_waiters();
    }

    /// Waits until no handler runs any more.
    pub(crate) async fn handlers_idle(&self) {
        while self.running.get() > 0 {
            let idle = self.idle.notified();
            if self.running.get() > 0 {
                idle.await;
            }
        }
    }

    /// The keeper wants everything to stand still.
    pub(crate) async fn quiesce(self: &Rc<Self>) -> Result<(), Refusal> {
        self.upgrades.paused.set(true);
        self.upgrades.pausing.notify_waiters();
        while self.upgrades.busy.get() > 0 {
            let rest = self.upgrades.rest.notified();
            if self.upgrades.busy.get() > 0 {
                rest.await;
            }
        }
        self.handlers_idle().await;
        // The next worker needs it; this one opens it again if it goes on.
        self.carriers.close_arena();
        self.commit().await
    }

    /// The upgrade did not take place: goes on.
    pub(crate) fn resume(self: &Rc<Self>, reason: String) {
        self.open();
        self.upgrades.conclude(Err(reason));
    }

    /// An upgrade that leaves this worker in place has ended: the keeper's, or one that another
    /// worker was asked for.
    pub(crate) fn upgraded(self: &Rc<Self>, worker: bool, keeper: bool, reason: &str) {
        if keeper {
            self.tell("upgrade", None, "the keeper was replaced".to_owned());
            self.upgrades.conclude(Ok(self.upgrades.version.clone()));
        } else if !reason.is_empty() {
            self.upgrades.conclude(Err(reason.to_owned()));
        } else if worker {
            self.tell("upgrade", None, "this worker has taken over".to_owned());
        }
    }

    /// Another worker serves: answers the client that asked, and then it is time to go.
    pub(crate) async fn retire(self: &Rc<Self>) {
        let version = self.version_of_next().await;
        self.upgrades.conclude(Ok(version));
        let heard = async {
            while !self.upgrades.told.get() {
                let heard = self.upgrades.heard.notified();
                if self.upgrades.told.get() {
                    return;
                }
                heard.await;
            }
        };
        // Whether the client took it or not.
        let _ = tokio::time::timeout(LAST_WORDS, heard).await;
    }

    /// The next worker is asked as any client would.
    async fn version_of_next(&self) -> String {
        let Some(socket) = self.upgrades.socket.borrow().clone() else {
            return "unknown".to_owned();
        };
        let ask = move || {
            let options = luo::Options::new().socket(socket).deadline(VERSION_DEADLINE);
            luo::Manager::connect(options)?.status().map(|status| status.version)
        };
        match tokio::task::spawn_blocking(ask).await {
            Ok(Ok(version)) => version,
            Ok(Err(error)) => {
                tracing::warn!(%error, "the next worker did not say its version");
                "unknown".to_owned()
            }
            Err(_) => "unknown".to_owned(),
        }
    }
}
