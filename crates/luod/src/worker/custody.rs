//! What the worker keeps outside itself: the slots of the store, and the carrier on top of them.
//!
//! Invariants: nothing that is told to a client is in this process alone. Changes are made in the
//! [`Table`], and are promised only when the [`Ticket`] of a [`Custody::commit`] after them says
//! that the store has them.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use luo_carriers::{HostFile, KeeperCarrier, Slot, Slots};
use luo_core::{Carrier, Errno, Failure, Handle};
use tokio::sync::watch;

use super::refusal::Refusal;
use crate::store::{Store, Table, Upgrade};

/// Whose a slot is, beside the carrier's own space.
pub(crate) mod space {
    /// The machine's record.
    pub(crate) const MACHINE: u8 = 2;
    /// A session's record and luod's end of its descriptor.
    pub(crate) const SESSION: u8 = 3;
    /// A file's record and descriptor.
    pub(crate) const FILE: u8 = 4;
    /// A note that a rehearsal goes on.
    pub(crate) const REHEARSAL: u8 = 5;
    /// `/dev/liveupdate`, open.
    pub(crate) const DEVICE: u8 = 6;
    /// A kernel session that came from the kernel before; the record is its name.
    pub(crate) const CAME: u8 = 7;
    /// A kernel session that the next kernel must find; the record is its name.
    pub(crate) const LEAVES: u8 = 8;
    /// A kernel session that a client fills by itself; the record is its name.
    pub(crate) const CLIENT: u8 = 10;
    /// How long the last live update took.
    pub(crate) const TIMELINE: u8 = 9;
}

/// Says when everything that was changed before it is kept.
#[derive(Debug, Clone)]
pub(crate) struct Ticket(watch::Receiver<Option<Result<(), Refusal>>>);

impl Ticket {
    /// Nothing is left to be kept.
    fn kept() -> Self {
        Self(watch::channel(Some(Ok(()))).1)
    }
}

impl IntoFuture for Ticket {
    type Output = Result<(), Refusal>;
    type IntoFuture = std::pin::Pin<Box<dyn Future<Output = Self::Output>>>;

    fn into_future(mut self) -> Self::IntoFuture {
        Box::pin(async move {
            match self.0.wait_for(Option::is_some).await {
                Ok(result) => result.clone().unwrap_or(Ok(())),
                Err(_) => Err(Refusal::new(Errno::Canceled, "luod is being stopped; ask again")),
            }
        })
    }
}

/// The carrier over this worker's slots.
pub(crate) type HostCarrier = KeeperCarrier<Arc<Table>>;

/// See the module.
pub(crate) struct Custody {
    store: Arc<dyn Store>,
    table: Arc<Table>,
    carrier: Arc<HostCarrier>,
    /// The same, as handlers see it.
    shared: Arc<dyn Carrier<HostFile> + Send + Sync>,
    incarnation: u64,
    last: RefCell<Ticket>,
    /// The first change since the last commit that was not taken.
    refused: RefCell<Option<Refusal>>,
    commits: Cell<u64>,
}

impl std::fmt::Debug for Custody {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Custody").field("incarnation", &self.incarnation).finish_non_exhaustive()
    }
}

impl Custody {
    /// Over slots that have been loaded.
    ///
    /// # Errors
    /// As [`KeeperCarrier::new`].
    pub(crate) fn new(
        store: Arc<dyn Store>,
        table: Arc<Table>,
        incarnation: u64,
    ) -> Result<Self, Failure> {
        let carrier = Arc::new(KeeperCarrier::new(Arc::clone(&table))?);
        Ok(Self {
            store,
            table,
            shared: Arc::clone(&carrier) as Arc<dyn Carrier<HostFile> + Send + Sync>,
            carrier,
            incarnation,
            last: RefCell::new(Ticket::kept()),
            refused: RefCell::new(None),
            commits: Cell::new(0),
        })
    }

    pub(crate) fn carrier(&self) -> &Arc<dyn Carrier<HostFile> + Send + Sync> {
        &self.shared
    }

    /// How many workers the keeper has started, this one included.
    pub(crate) fn incarnation(&self) -> u64 {
        self.incarnation
    }

    pub(crate) fn allocate(&self, space: u8) -> u64 {
        self.table.allocate(space)
    }

    pub(crate) fn get(&self, key: u64) -> Option<Slot> {
        self.table.get(key)
    }

    /// Whether there is such a slot.
    pub(crate) fn has(&self, key: u64) -> bool {
        self.table.look(key, |_, _| ()).is_some()
    }

    pub(crate) fn keys(&self, space: u8) -> Vec<u64> {
        self.table.keys(space)
    }

    /// Creates or replaces a slot. If it cannot be, the next commit fails with the reason.
    pub(crate) fn put(&self, key: u64, record: &[u8], files: &[&HostFile]) {
        let done = self.table.put(key, record, files);
        self.note(done);
    }

    /// Replaces a slot's record. If it cannot be, the next commit fails with the reason.
    pub(crate) fn rewrite(&self, key: u64, record: &[u8]) {
        let done = self.table.rewrite(key, record);
        self.note(done);
    }

    /// A record that cannot be written makes the next commit fail.
    pub(crate) fn note_unwritable(&self, error: &super::records::RecordError) {
        self.note(Err(Failure::new(Errno::Inval, format!("a record cannot be written: {error}"))));
    }

    /// What should be kept cannot be: the next commit fails with the reason.
    pub(crate) fn note_failed(&self, failure: &Failure) {
        self.note(Err(Failure::new(failure.errno(), failure.reason())));
    }

    /// The slots.
    pub(crate) fn table(&self) -> &Table {
        &self.table
    }

    fn note(&self, done: Result<(), Failure>) {
        if let Err(failure) = done {
            let refusal = Refusal::new(failure.errno(), failure.reason());
            self.refused.borrow_mut().get_or_insert(refusal);
        }
    }

    /// Deletes something that was kept and that nothing refers to.
    pub(crate) fn forget_kept(&self, key: u64) {
        luo_core::Keep::forget(&*self.carrier, Handle(key));
    }

    /// Deletes a slot that nothing refers to.
    pub(crate) fn forget(&self, key: u64) {
        self.table.forget(key);
    }

    /// Deletes a file's slot, now (`true`) or with the last kept thing that refers to it.
    pub(crate) fn forget_or_keep(&self, key: u64) -> bool {
        self.carrier.forget_slot(key);
        !self.has(key)
    }

    /// A slot that was kept only for what refers to it has an owner again.
    pub(crate) fn adopt(&self, key: u64) {
        self.carrier.adopt_slot(key);
    }

    /// Whether what is kept under the handle is the descriptor in that slot.
    pub(crate) fn refers(&self, kept: Handle, key: u64) -> bool {
        self.carrier.target(kept) == Some(key)
    }

    /// Sends everything that has changed to the store.
    pub(crate) fn commit(&self) -> Ticket {
        let refused = self.refused.borrow_mut().take();
        if !self.table.has_unsubmitted() && refused.is_none() {
            let last = self.last.borrow().clone();
            // A refusal was for whoever made that change: what comes here has made none.
            let settled = last.0.borrow().is_some();
            return if settled { Ticket::kept() } else { last };
        }
        self.commits.set(self.commits.get() + 1);
        let (sender, receiver) = watch::channel(None);
        let done = self.table.submit();
        tokio::task::spawn_local(async move {
            let result = match (done.await, refused) {
                (_, Some(refusal)) => Err(refusal),
                (Ok(()), None) => Ok(()),
                (Err(error), None) => {
                    let failure = Failure::from(error);
                    Err(Refusal::new(failure.errno(), failure.reason()))
                }
            };
            // Nobody may be waiting.
            let _ = sender.send(Some(result));
        });
        let ticket = Ticket(receiver);
        *self.last.borrow_mut() = ticket.clone();
        ticket
    }

    /// Asks the keeper for an upgrade; its events tell how it ends.
    pub(crate) async fn upgrade(
        &self,
        program: OwnedFd,
        limit: Duration,
        what: Upgrade,
    ) -> Result<(), Refusal> {
        self.store.upgrade(program, limit, what).await.map_err(|error| {
            let failure = Failure::from(error);
            Refusal::new(failure.errno(), failure.reason())
        })
    }

    /// Tells the store that nothing that it holds is needed any more.
    pub(crate) async fn leave(&self) -> Result<(), crate::store::StoreError> {
        self.store.leave().await
    }

    /// Tells the store that this worker stands still.
    pub(crate) async fn quiesced(&self) -> Result<(), crate::store::StoreError> {
        self.store.quiesced().await
    }
}
