//! The worker: everything that luod does, in a process that may die at any instruction.
//!
//! ```text
//! attached ──load──▶ loaded ──decode──▶ restored ──ready──▶ serving ──▶ retired, departed, stopped
//!                                          ▲ │
//!                     candidate: changes ──┘ └── refuse, with the reason
//! ```
//!
//! Each start-up phase is a value that the next one takes: nothing can be served that was not
//! restored. A worker that is to replace another goes through the same phases; what changes
//! meanwhile comes to it before it takes over.

mod access;
mod carriers;
mod client_session;
mod clients;
mod custody;
#[doc(hidden)]
pub mod fuzzing;
mod host;
mod kernel;
mod moments;
mod needs;
mod participants;
mod persist;
mod records;
mod refusal;
mod rehearsal;
mod restore;
mod server;
mod sessions;
mod through;
mod timeline;
mod timing;
mod upgrade;

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use luo_abi::keeper::Role;
use luo_carriers::liveupdate::LiveUpdateCarrier;
use luo_core::{
    CarrierId, Criticality, Event as CycleEvent, Failure, SubsystemKind, SubsystemOptions,
};

use crate::config::{ArenaVerify, Config};
use crate::store::{Event, Events, Store, StoreError, Table};
use carriers::{Carriers, Copying};
use custody::Custody;
use host::Host;
use restore::{Loaded, Restored};

/// How long clients have to send again what a worker that died did not answer.
const REPETITIONS: Duration = Duration::from_secs(120);

/// Why a worker ends that should not.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// The store cannot be used.
    #[error("the keeper: {0}")]
    Store(#[from] StoreError),
    /// What the store holds cannot be used.
    #[error("what the keeper holds cannot be read: {0}")]
    Kept(#[source] Failure),
    /// What the store holds cannot be restored.
    #[error("what the keeper holds cannot be restored: {0}")]
    Restore(String),
    /// Clients cannot be accepted.
    #[error("clients cannot be accepted: {0}")]
    Accept(#[source] std::io::Error),
    /// The runtime cannot be started.
    #[error("the runtime cannot be started: {0}")]
    Runtime(#[source] std::io::Error),
}

/// Why a worker has ended as it should.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// Another worker serves.
    Retired,
    /// The machine has departed: the next worker arrives.
    Departed,
    /// The machine has departed through a carrier that reaches farther: the next luod arrives.
    Left,
    /// luod is being stopped.
    Stopped,
}

/// What a worker starts with, whichever store it has.
pub struct Start {
    /// The store.
    pub store: Arc<dyn Store>,
    /// What happens in it.
    pub events: Events,
    /// Whether it serves at once.
    pub role: Role,
    /// How many workers the keeper has started.
    pub incarnation: u64,
    /// The sockets on which clients come.
    pub listeners: Vec<OwnedFd>,
    /// Where clients reach luod.
    pub socket: PathBuf,
}

impl std::fmt::Debug for Start {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Start").field("role", &self.role).finish_non_exhaustive()
    }
}

/// Runs a worker until it ends. Within a tokio `LocalSet`.
///
/// # Errors
/// If it cannot begin, or the keeper is gone.
pub async fn run(config: Config, start: Start) -> Result<Ended, WorkerError> {
    let Start { store, mut events, role, incarnation, listeners, socket } = start;
    let table = Arc::new(Table::new(Arc::clone(&store)));
    store.load().await?;
    if let Some(ended) = take_slots(&mut events, &table, Until::Loaded).await? {
        return Ok(ended);
    }
    if role == Role::Candidate {
        // A rehearsal: if this one cannot restore what is kept, the other one serves on.
        // What the rehearsal changes it changes in a copy.
        let copy = Arc::new(table.copy());
        let custody = new_custody(&store, &copy, incarnation)?;
        // The device is the other one's.
        let others = Failure::new(luo_core::Errno::Busy, "another worker has /dev/liveupdate");
        let carriers = new_carriers(&config, &custody, Err(others), Arc::default());
        let verdict = match Loaded::read(&custody).restore(&config, &custody, &carriers, true) {
            Ok(restored) => restored.check(),
            Err(error) => Err(error),
        };
        if let Err(reason) = verdict {
            store.refuse(&format!("it cannot restore what is kept: {reason}")).await?;
            return Err(WorkerError::Restore(reason));
        }
        store.ready().await?;
        if let Some(ended) = take_slots(&mut events, &table, Until::Go).await? {
            return Ok(ended);
        }
    }
    let copying = Arc::default();
    let opened = kernel::begin(&config, &store, &table, &mut events, &copying).await?;
    let kernel::Opened { carrier: liveupdate, failed } = match opened {
        kernel::Flow::Continue(opened) => opened,
        kernel::Flow::Break(ended) => return Ok(ended),
    };
    let host = restore(&config, &store, &table, incarnation, (liveupdate, copying)).await?;
    if let Some(reason) = failed {
        host.tell("failure", None, reason);
    }
    host.upgrades.reached_at(socket);
    store.ready().await?;
    let begun = host.take_up_or_resume().await;
    if let Err(reason) = begun {
        host.tell("failure", None, reason);
    }
    host.bring_back_what_cannot_wait().await;
    host.open();
    for listener in listeners {
        let host = Rc::clone(&host);
        tokio::task::spawn_local(async move {
            if let Err(error) = server::accept(host, listener).await {
                tracing::error!(%error, "clients cannot be accepted any more");
            }
        });
    }
    tokio::task::spawn_local(Rc::clone(&host).expire());
    forget_requests(&host);
    forget_participants(&host);
    crate::notify::ready();
    host.tell("upgrade", None, format!("luod {} serves", crate::version()));
    serve(&host, &mut events).await
}

enum Until {
    Loaded,
    Go,
}

/// Takes slots as they come.
async fn take_slots(
    events: &mut Events,
    table: &Table,
    until: Until,
) -> Result<Option<Ended>, WorkerError> {
    loop {
        match (events.next().await, &until) {
            (Event::Slot(key, slot), _) => table.loaded(key, Some(slot)),
            (Event::Removed(key), _) => table.loaded(key, None),
            (Event::Loaded, Until::Loaded) | (Event::Go, Until::Go) => return Ok(None),
            (Event::Stop | Event::Retire, _) => return Ok(Some(Ended::Stopped)),
            (Event::Lost(error), _) => return Err(error.into()),
            (event, _) => tracing::debug!(?event, "ignored while restoring"),
        }
    }
}

fn new_custody(
    store: &Arc<dyn Store>,
    table: &Arc<Table>,
    incarnation: u64,
) -> Result<Custody, WorkerError> {
    Custody::new(Arc::clone(store), Arc::clone(table), incarnation).map_err(WorkerError::Kept)
}

/// `/dev/liveupdate`, or why it cannot be used.
type Far = Result<Arc<LiveUpdateCarrier>, Failure>;

fn new_carriers(
    config: &Config,
    custody: &Custody,
    liveupdate: Far,
    copying: Arc<Copying>,
) -> Carriers {
    let near = Arc::clone(custody.carrier());
    Carriers::new(near, config.arena.clone(), liveupdate, copying)
        .with_verification(config.arena_verify == ArenaVerify::Memory)
}

async fn restore(
    config: &Config,
    store: &Arc<dyn Store>,
    table: &Arc<Table>,
    incarnation: u64,
    (liveupdate, copying): (Far, Arc<Copying>),
) -> Result<Rc<Host>, WorkerError> {
    let custody = new_custody(store, table, incarnation)?;
    let carriers = new_carriers(config, &custody, liveupdate, copying);
    let restored = Loaded::read(&custody)
        .restore(config, &custody, &carriers, false)
        .map_err(WorkerError::Restore)?;
    let Restored { mut core, persisted, held, departed, failed, unknown } = restored;
    let timeline = timeline::Timeline::default();
    let registered = core.register_subsystem(
        timeline::NAME,
        SubsystemKind::Local(Arc::new(timeline::Kept(timeline.clone()))),
        SubsystemOptions { criticality: Criticality::Optional, concurrent: false, last: true },
    );
    if let Err(error) = registered {
        tracing::warn!(%error, "how long updates take is not measured");
    }
    for key in custody.keys(custody::space::TIMELINE) {
        let found = custody.get(key).map(|slot| timeline.restore(&slot.record));
        if let Some(Err(error)) = found {
            tracing::warn!(%error, "how long the last live update took is not known any more");
        }
    }
    let host = Host::new(config.clone(), core, custody, carriers, persisted, departed, timeline);
    for (id, server) in held {
        if let Err(refusal) = host.watch_holder(id, server, false) {
            tracing::warn!(reason = refusal.reason(), "a session is held by nobody from here on");
        }
    }
    for reason in failed {
        host.tell("failure", None, format!("not restored: {reason}"));
    }
    for reason in unknown {
        host.tell("failure", None, reason);
    }
    Ok(host)
}

impl Host {
    /// Takes up the handover of a machine that has departed, or undoes what was cut short.
    async fn take_up_or_resume(self: &Rc<Self>) -> Result<(), String> {
        if let Some(carrier) = self.departed {
            self.timeline.arrives();
            let arrived = self.run_through(CycleEvent::Arrive, carrier).await;
            self.tell_mended();
            arrived.map_err(|refusal| format!("not arrived: {}", refusal.reason()))?;
            self.tell("state", None, "arrived".to_owned());
            return Ok(());
        }
        let cut_short = self.core.borrow_mut().resume();
        if !cut_short.is_empty() {
            self.tell("state", None, "what the worker before had begun is undone".to_owned());
        }
        self.pump();
        // Clients find what they were told, not what is being undone.
        self.handlers_idle().await;
        let undone = match self.undo_rehearsal().await {
            Ok(()) => self.undo_what_went_with_the_worker().await,
            failed => failed,
        };
        self.end_what_was_finished().await;
        self.note_unheld();
        let kept = self.commit().await;
        undone.and(kept).map_err(|refusal| refusal.reason().to_owned())
    }
}

/// How long files that cannot wait for their owners may take; whoever is slower goes on beside the
/// clients.
const ON_ARRIVAL: Duration = Duration::from_secs(60);

impl Host {
    /// Before anybody is told that luod serves, what the world may not meet this system without is
    /// there, and outlives this worker.
    async fn bring_back_what_cannot_wait(self: &Rc<Self>) {
        let deadline = tokio::time::Instant::now() + ON_ARRIVAL;
        loop {
            let changed = self.retrieved.notified();
            tokio::pin!(changed);
            // From here on nothing that changes is missed.
            changed.as_mut().enable();
            if self.core.borrow_mut().retrieve_on_arrival() == 0 {
                break;
            }
            self.pump();
            if self.core.borrow_mut().retrieve_on_arrival() == 0 {
                break;
            }
            if tokio::time::timeout_at(deadline, changed).await.is_err() {
                let late = "files that cannot wait for their owners are still being restored";
                self.tell("failure", None, late.to_owned());
                break;
            }
        }
        match self.commit().await {
            Ok(()) => self.core.borrow_mut().let_live(),
            Err(refusal) => {
                let why = refusal.reason();
                self.tell("failure", None, format!("what was restored is not kept: {why}"));
            }
        }
    }
}

fn forget_requests(host: &Rc<Host>) {
    let host = Rc::clone(host);
    tokio::task::spawn_local(async move {
        tokio::time::sleep(REPETITIONS).await;
        host.persisted.borrow_mut().forget_requests();
    });
}

/// The machine has departed. Whoever reaches no farther than the next worker is followed by it;
/// otherwise nothing may begin here any more.
async fn departed(host: &Rc<Host>) -> Result<Ended, WorkerError> {
    if host.core.borrow().carrier() == CarrierId::NEAR {
        return Ok(Ended::Departed);
    }
    host.custody.leave().await?;
    Ok(Ended::Left)
}

/// Participants of the worker before that do not come back have gone, like those whose connection
/// ends: a required one would be in the way of every update for ever.
fn forget_participants(host: &Rc<Host>) {
    let host = Rc::clone(host);
    let wait = Duration::from_millis(host.config.participants.return_milliseconds);
    tokio::task::spawn_local(async move {
        tokio::time::sleep(wait).await;
        let _busy = host.busy_when_resumed().await;
        let absent: Vec<String> = {
            let (core, participants) = (host.core.borrow(), host.participants.borrow());
            let remote = core.subsystems().filter(|info| info.remote);
            remote
                .map(|info| info.name.to_string())
                .filter(|name| !participants.is_there(name))
                .collect()
        };
        for name in absent {
            if let Err(error) = host.core.borrow_mut().subsystem_gone(&name) {
                tracing::debug!(%error, "a participant was not there any more");
            }
        }
        host.pump();
        host.commit();
    });
}

/// Does what the store says until it is time to go.
async fn serve(host: &Rc<Host>, events: &mut Events) -> Result<Ended, WorkerError> {
    loop {
        let event = tokio::select! {
            event = events.next() => event,
            () = host.upgrades.departed() => return departed(host).await,
        };
        match event {
            Event::Quiesce => match host.quiesce().await {
                Ok(()) => host.custody.quiesced().await?,
                Err(refusal) => {
                    // The keeper's deadline ends the upgrade; until then nothing is served.
                    tracing::error!(reason = refusal.reason(), "this worker cannot stand still");
                }
            },
            Event::Resume { reason } => host.resume(reason),
            Event::Retire => {
                host.retire().await;
                return Ok(Ended::Retired);
            }
            Event::Upgraded { worker, keeper, reason } => host.upgraded(worker, keeper, &reason),
            Event::Stop => return Ok(Ended::Stopped),
            Event::Lost(error) => return Err(error.into()),
            event => tracing::debug!(?event, "ignored while serving"),
        }
    }
}
