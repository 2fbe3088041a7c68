//! The store over systemd's fd store: luod as a single process, whose descriptors PID 1 holds.
//!
//! Descriptors are stored one by one, each under a name of its own (`luo-fd-…`); the records are in
//! a log (see [`log`]) in a memory file that is stored too (`luo-log-…`). A batch is kept when
//! PID 1 has taken its new descriptors (`BARRIER=1`) and its frame is in the log: no message to
//! PID 1 is needed for records.
//!
//! What systemd does without saying so, and what is done about it:
//! - It refuses silently what is above `FileDescriptorStoreMax=`; nothing can be read back. The
//!   limit is `$FDSTORE` (systemd 254 and later), and it is kept here. A descriptor that is
//!   missing after a restart all the same makes its slot [lost](Inherited::lost): reported, and
//!   harmless to others.
//! - It stores an open file description only once, whatever its name. So each is stored once, and
//!   slots refer to it by number.
//! - It drops descriptors that report a hang-up, unless stored with `FDPOLL=0`.
//! - It forgets the store when the service is stopped, not when it is restarted or dies, unless
//!   `FileDescriptorStorePreserve=yes`.
//!
//! Invariants: one task talks to PID 1 and writes the log, in the order of the batches; a
//! descriptor leaves the store only after the log no longer refers to it.

mod log;
mod notify;

use std::collections::{HashMap, VecDeque};
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use luo_carriers::{HostFile, Slot};
use luo_core::{File, Identity};
use tokio::sync::{Notify as Wake, mpsc, oneshot};
use tokio::task::AbortHandle;

use self::log::{Log, Logged, State};
use self::notify::Notify;
use super::{Batch, Change, Event, Events, Limits, Store, StoreError, Ticket, Upgrade, Waiting};

#[cfg(test)]
mod tests;

const LOG: &str = "luo-log-";
const FD: &str = "luo-fd-";
/// Descriptors that the log needs: itself, and the next one while it is replaced.
const LOGS: usize = 2;
/// [`Store::room`] waits while more changes than this wait.
const ROOM: usize = 1024;
const ENOSPC: i32 = 28;

type Answer = oneshot::Sender<Result<(), StoreError>>;

/// What PID 1 has given to this process when it started it.
#[derive(Debug)]
pub struct Inherited {
    /// Where it listens: `$NOTIFY_SOCKET`.
    pub notify: OsString,
    /// Names and descriptors: `$LISTEN_FDNAMES`, `$LISTEN_FDS`.
    pub fds: Vec<(String, OwnedFd)>,
    /// How many descriptors it holds for this service: `$FDSTORE`.
    pub max_fds: usize,
}

/// A service's place at PID 1.
#[derive(Debug)]
pub struct Started {
    /// The store.
    pub store: SystemdStore,
    /// What happens there.
    pub events: Events,
    /// Descriptors that are not luo's: sockets of socket units.
    pub others: Vec<(String, OwnedFd)>,
    /// Keys of slots that are lost: PID 1 no longer has all of their descriptors.
    pub lost: Vec<u64>,
}

impl Inherited {
    /// What the environment says. To be called at the start of the process, before anything else
    /// opens descriptors.
    ///
    /// # Errors
    /// [`StoreError::Unsupported`] where this is no service of systemd's with an fd store (what to
    /// write into the unit is in the message), [`StoreError::System`] where a descriptor did not
    /// come along.
    pub fn from_environment() -> Result<Self, StoreError> {
        let variable = |name| std::env::var(name).ok();
        let number = |name| variable(name).and_then(|text| text.parse::<usize>().ok());
        let notify = std::env::var_os("NOTIFY_SOCKET").ok_or(StoreError::Unsupported(
            "no $NOTIFY_SOCKET: keeper = \"systemd\" needs a service of systemd's with Type=notify",
        ))?;
        let max_fds = number("FDSTORE").ok_or(StoreError::Unsupported(
            "no $FDSTORE: keeper = \"systemd\" needs FileDescriptorStoreMax= in the unit, and \
             systemd 254 or later",
        ))?;
        let mine = number("LISTEN_PID") == usize::try_from(std::process::id()).ok();
        let count = number("LISTEN_FDS").filter(|_| mine).unwrap_or(0);
        let names = variable("LISTEN_FDNAMES").unwrap_or_default();
        let mut names = names.split(':').map(str::to_owned);
        let fds = (3..).take(count).map(|fd| {
            let fd = luo_sys::adopt(fd).map_err(StoreError::system("$LISTEN_FDS"))?;
            Ok((names.next().unwrap_or_default(), fd))
        });
        Ok(Self { notify, fds: fds.collect::<Result<_, StoreError>>()?, max_fds })
    }
}

/// The store over systemd's fd store.
#[derive(Debug)]
pub struct SystemdStore {
    shared: Arc<Shared>,
    events: mpsc::UnboundedSender<Event>,
    limits: Limits,
    keeper: AbortHandle,
}

#[derive(Debug, Default)]
struct Shared {
    queue: Mutex<Queue>,
    /// Something is in the queue.
    wake: Wake,
    /// Less is in the queue.
    room: Wake,
}

#[derive(Debug, Default)]
struct Queue {
    orders: VecDeque<(Order, Answer)>,
    changes: usize,
}

/// What the task is asked for.
#[derive(Debug)]
enum Order {
    Keep(Batch),
    /// All slots, as events.
    Load,
    /// A message to PID 1.
    Say(String),
}

impl SystemdStore {
    /// Takes back what PID 1 holds. `limits` apply beside PID 1's own. Within a tokio runtime.
    ///
    /// # Errors
    /// [`StoreError::Unsupported`] for a store too small to be of use, [`StoreError::System`].
    pub async fn start(inherited: Inherited, limits: Limits) -> Result<Started, StoreError> {
        let (found, others) =
            Found::sort(inherited.fds).map_err(StoreError::system("the stored log"))?;
        // Others may sit in the fd store too; that cannot be told from here.
        let fds = inherited.max_fds.checked_sub(LOGS + others.len()).filter(|fds| *fds > 0);
        let fds = fds.ok_or(StoreError::Unsupported(
            "FileDescriptorStoreMax= is too small: luod needs two for itself, and one for each \
             descriptor that it is to hold",
        ))?;
        let limits = Limits { fds: fds.min(limits.fds), ..limits };
        let failed = || StoreError::system("the notification socket");
        let notify = Notify::connect(&inherited.notify).map_err(failed())?;
        let logs = found.logs.clone();
        let (mut keeper, lost, unused) = Keeper::take_back(notify, limits, found);
        // First what is not needed, so that there is room; last the logs, when a new one is kept.
        for name in unused {
            keeper.notify.remove(&name).await.map_err(failed())?;
        }
        keeper.renew_log().await.map_err(failed())?;
        for name in logs {
            keeper.notify.remove(&name).await.map_err(failed())?;
        }
        let shared = Arc::new(Shared::default());
        let (events, receiver) = mpsc::unbounded_channel();
        let task = tokio::spawn(keeper.serve(Arc::clone(&shared), events.clone()));
        let store = Self { shared, events, limits, keeper: task.abort_handle() };
        Ok(Started { store, events: Events(receiver), others, lost })
    }

    fn order(&self, order: Order, changes: usize) -> Ticket {
        let (answer, ticket) = Ticket::waiting();
        let mut queue = self.shared.queue();
        queue.orders.push_back((order, answer));
        queue.changes += changes;
        drop(queue);
        self.shared.wake.notify_one();
        ticket
    }
}

impl Drop for SystemdStore {
    fn drop(&mut self) {
        self.keeper.abort();
        // Nobody answers any more: dropping the answers says so.
        self.shared.queue().orders.clear();
        let _ = self.events.send(Event::Lost(StoreError::Lost));
    }
}

impl Store for SystemdStore {
    fn limits(&self) -> Limits {
        self.limits
    }

    fn submit(&self, batch: Batch) -> Ticket {
        let changes = batch.len();
        if changes == 0 { Ticket::done(Ok(())) } else { self.order(Order::Keep(batch), changes) }
    }

    fn room(&self) -> Waiting<'_> {
        Box::pin(async {
            loop {
                let room = self.shared.room.notified();
                tokio::pin!(room);
                room.as_mut().enable();
                if self.shared.queue().changes <= ROOM {
                    return;
                }
                room.await;
            }
        })
    }

    fn load(&self) -> Ticket {
        self.order(Order::Load, 0)
    }

    fn ready(&self) -> Ticket {
        self.order(Order::Say("READY=1".into()), 0)
    }

    fn quiesced(&self) -> Ticket {
        Ticket::done(Ok(()))
    }

    fn leave(&self) -> Ticket {
        self.order(Order::Say("STATUS=the machine has departed".to_owned()), 0)
    }

    fn refuse(&self, reason: &str) -> Ticket {
        let line: String = reason.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        self.order(Order::Say(format!("STATUS=cannot restore what is kept: {line}")), 0)
    }

    fn upgrade(&self, _: OwnedFd, _: Duration, _: Upgrade) -> Ticket {
        Ticket::done(Err(StoreError::Unsupported(
            "with keeper = \"systemd\" an upgrade is: install the new luod, then `systemctl \
             restart luod`; it takes everything back from systemd",
        )))
    }
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What was found among the inherited descriptors.
#[derive(Debug, Default)]
struct Found {
    log: Option<(Log, State)>,
    fds: HashMap<u64, OwnedFd>,
    /// Names of all logs. The one that counts is renewed at the start.
    logs: Vec<String>,
    /// The highest generation among these names, whole or not.
    generation: u64,
}

impl Found {
    /// Sorts luo's descriptors from others.
    fn sort(fds: Vec<(String, OwnedFd)>) -> io::Result<(Self, Vec<(String, OwnedFd)>)> {
        let mut found = Self::default();
        let mut others = Vec::new();
        let number = |text: &str| u64::from_str_radix(text, 16).ok();
        for (name, fd) in fds {
            if let Some(number) = name.strip_prefix(FD).and_then(number) {
                found.fds.insert(number, fd);
            } else if let Some(generation) = name.strip_prefix(LOG).and_then(number) {
                found.logs.push(name);
                found.generation = found.generation.max(generation);
                let newest = found.log.as_ref().map(|(log, _)| log.generation);
                let opened = Log::open(fd)?;
                if let Some((log, state)) = opened
                    && newest.is_none_or(|newest| log.generation > newest)
                {
                    found.log = Some((log, state));
                }
            } else {
                others.push((name, fd));
            }
        }
        Ok((found, others))
    }
}

/// The task that talks to PID 1.
#[derive(Debug)]
struct Keeper {
    notify: Notify,
    limits: Limits,
    log: Option<Log>,
    generation: u64,
    state: State,
    /// Record bytes in `state`.
    bytes: usize,
    stored: HashMap<u64, Stored>,
    /// Which are stored, by identity.
    known: HashMap<Identity, Vec<u64>>,
    /// The number given last.
    last: u64,
    /// Numbers that may be in use no more.
    touched: Vec<u64>,
}

/// A descriptor that PID 1 holds.
#[derive(Debug)]
struct Stored {
    file: HostFile,
    /// How many places in slots refer to it.
    uses: usize,
}

impl Keeper {
    /// Gives the keeper, the keys of lost slots, and names that no slot refers to.
    fn take_back(notify: Notify, limits: Limits, found: Found) -> (Self, Vec<u64>, Vec<String>) {
        let Found { log, mut fds, generation, .. } = found;
        let mut keeper = Self {
            notify,
            limits,
            generation,
            log: None,
            state: State::new(),
            bytes: 0,
            stored: HashMap::new(),
            known: HashMap::new(),
            last: fds.keys().copied().max().unwrap_or(0),
            touched: Vec::new(),
        };
        let mut lost = Vec::new();
        for (key, slot) in log.map(|(_, state)| state).unwrap_or_default() {
            let here = |number| fds.contains_key(number) || keeper.stored.contains_key(number);
            if !slot.fds.iter().all(here) {
                tracing::error!(key, "systemd no longer has all descriptors of a slot");
                lost.push(key);
                continue;
            }
            for number in &slot.fds {
                if let Some(fd) = fds.remove(number) {
                    keeper.note(*number, HostFile::from(fd));
                }
            }
            keeper.set(key, log::Change::Put(slot));
        }
        // Stored for a batch that was never completed, or whose removal did not arrive.
        let unused = fds.into_keys().map(|number| format!("{FD}{number:x}")).collect();
        (keeper, lost, unused)
    }

    async fn serve(mut self, shared: Arc<Shared>, events: mpsc::UnboundedSender<Event>) {
        loop {
            let orders = {
                let mut queue = shared.queue();
                queue.changes = 0;
                std::mem::take(&mut queue.orders)
            };
            shared.room.notify_waiters();
            if orders.is_empty() {
                shared.wake.notified().await;
            }
            let mut batches = Vec::new();
            for (order, answer) in orders {
                if let Order::Keep(batch) = order {
                    batches.push((batch, answer));
                    continue;
                }
                // In order: what was submitted before is kept before.
                self.keep(std::mem::take(&mut batches)).await;
                let result = match order {
                    Order::Say(text) => self.notify.say(&text, &[]).await,
                    _ => {
                        self.give_all(&events);
                        Ok(())
                    }
                };
                let _ = answer.send(result.map_err(StoreError::system("the notification socket")));
            }
            self.keep(batches).await;
        }
    }

    fn give_all(&self, events: &mpsc::UnboundedSender<Event>) {
        for (key, slot) in &self.state {
            let file = |number| self.stored.get(number).map(|stored| stored.file.clone());
            let files = slot.fds.iter().filter_map(file).collect();
            let _ = events.send(Event::Slot(*key, Slot { record: slot.record.clone(), files }));
        }
        let _ = events.send(Event::Loaded);
    }

    /// Keeps batches, with one barrier for all of them.
    async fn keep(&mut self, batches: Vec<(Batch, Answer)>) {
        if batches.is_empty() {
            return;
        }
        let before = self.last;
        let mut numbered = Vec::with_capacity(batches.len());
        for (batch, answer) in batches {
            numbered.push((self.store_new(&batch).await, answer));
        }
        let taken = match self.last > before {
            true => self.notify.barrier().await,
            false => Ok(()),
        };
        let taken = taken.map_err(StoreError::system("systemd did not confirm descriptors"));
        for (changes, answer) in numbered {
            let result = taken.clone().and(changes).and_then(|changes| self.commit(changes));
            let _ = answer.send(result);
        }
        self.drop_unused().await;
        if self.log.as_ref().is_none_or(Log::is_long)
            && let Err(error) = self.renew_log().await
        {
            tracing::warn!(%error, "the log of kept records could not be renewed");
        }
    }

    /// Stores the descriptors that PID 1 does not hold yet, and gives the changes with numbers in
    /// the descriptors' place.
    async fn store_new(&mut self, batch: &Batch) -> Result<Vec<(u64, log::Change)>, StoreError> {
        let mut changes = Vec::with_capacity(batch.len());
        for (key, change) in batch.changes() {
            let change = match change {
                Change::Delete => log::Change::Delete,
                Change::Rewrite(record) => log::Change::Rewrite(record.to_vec()),
                Change::Put(record, files) => {
                    let mut fds = Vec::with_capacity(files.len());
                    for file in files {
                        fds.push(self.number(file).await?);
                    }
                    log::Change::Put(Logged { record: record.to_vec(), fds })
                }
            };
            changes.push((key, change));
        }
        Ok(changes)
    }

    /// The number under which this open file description is stored.
    async fn number(&mut self, file: &HostFile) -> Result<u64, StoreError> {
        let same = |number: &&u64| {
            let stored = self.stored.get(*number);
            stored.is_some_and(|s| luo_sys::same_description(&s.file, file).unwrap_or(false))
        };
        let candidates = self.known.get(&file.identity());
        if let Some(number) = candidates.and_then(|numbers| numbers.iter().find(same)) {
            return Ok(*number);
        }
        if self.stored.len() >= self.limits.fds {
            return Err(StoreError::Refused { errno: ENOSPC });
        }
        self.last += 1;
        let number = self.last;
        self.note(number, file.clone());
        self.touched.push(number);
        let stored = self.notify.store(&format!("{FD}{number:x}"), file.as_fd()).await;
        stored.map_err(StoreError::system("the notification socket"))?;
        Ok(number)
    }

    fn note(&mut self, number: u64, file: HostFile) {
        self.known.entry(file.identity()).or_default().push(number);
        self.stored.insert(number, Stored { file, uses: 0 });
    }

    /// Writes a batch into the log: from here it is kept.
    fn commit(&mut self, changes: Vec<(u64, log::Change)>) -> Result<(), StoreError> {
        let (mut slots, mut bytes) = (self.state.len(), self.bytes);
        for (key, change) in &changes {
            match change {
                log::Change::Put(Logged { record, .. }) | log::Change::Rewrite(record) => {
                    slots += usize::from(!self.state.contains_key(key));
                    bytes += record.len();
                }
                log::Change::Delete => {}
            }
        }
        if slots > self.limits.slots || bytes > self.limits.bytes {
            return Err(StoreError::Refused { errno: ENOSPC });
        }
        let log = self.log.as_mut().ok_or(StoreError::Lost)?;
        log.append(&changes).map_err(StoreError::system("the log of kept records"))?;
        for (key, change) in changes {
            self.set(key, change);
        }
        Ok(())
    }

    /// Applies one change to the picture.
    fn set(&mut self, key: u64, change: log::Change) {
        let old = match &change {
            log::Change::Rewrite(record) => {
                let old = self.state.get(&key).map_or(0, |slot| slot.record.len());
                self.bytes = self.bytes + record.len() - old;
                None
            }
            log::Change::Put(slot) => {
                self.bytes += slot.record.len();
                for number in &slot.fds {
                    if let Some(stored) = self.stored.get_mut(number) {
                        stored.uses += 1;
                    }
                }
                self.state.remove(&key)
            }
            log::Change::Delete => self.state.remove(&key),
        };
        if let Some(old) = old {
            self.bytes -= old.record.len();
            for number in old.fds {
                if let Some(stored) = self.stored.get_mut(&number) {
                    stored.uses -= 1;
                    self.touched.push(number);
                }
            }
        }
        log::apply(&mut self.state, key, change);
    }

    /// Takes out of PID 1's store what no slot refers to any more.
    async fn drop_unused(&mut self) {
        for number in std::mem::take(&mut self.touched) {
            if self.stored.get(&number).is_none_or(|stored| stored.uses > 0) {
                continue;
            }
            if let Err(error) = self.notify.remove(&format!("{FD}{number:x}")).await {
                // It still counts against the limit, and is tried again with the next batch.
                tracing::warn!(%error, "a descriptor could not be taken out of systemd's store");
                self.touched.push(number);
                continue;
            }
            if let Some(Stored { file, .. }) = self.stored.remove(&number)
                && let Some(numbers) = self.known.get_mut(&file.identity())
            {
                numbers.retain(|other| *other != number);
                if numbers.is_empty() {
                    self.known.remove(&file.identity());
                }
            }
        }
    }

    /// Begins a new log with the state as it is; the old one goes when PID 1 has the new one.
    async fn renew_log(&mut self) -> io::Result<()> {
        self.generation += 1;
        let log = Log::begin(self.generation, &self.state)?;
        self.notify.store(&format!("{LOG}{:x}", log.generation), log.fd()?.as_fd()).await?;
        self.notify.barrier().await?;
        if let Some(old) = self.log.replace(log) {
            self.notify.remove(&format!("{LOG}{:x}", old.generation)).await?;
        }
        Ok(())
    }
}
