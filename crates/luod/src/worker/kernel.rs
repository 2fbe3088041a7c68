//! `/dev/liveupdate`, and who holds what of it.
//!
//! ```text
//! slot DEVICE   the open device: the kernel lets it be opened once, and workers come and go
//! slot CAME     a kernel session from the kernel before, from its retrieval to the end of `finish`
//! slot CLIENT   a kernel session that a client fills by itself, see `client_session`
//! slot LEAVES   a kernel session for the next kernel, from `depart` to reboot(2) or `cancel`
//! ```
//!
//! Invariants:
//! - A kernel session that came is in the store before anything is fetched from it, and goes from
//!   there only after the records of `finish` are in the store.
//! - Once `depart` is answered, the store has every kernel session that the next kernel must find.

use std::ops::ControlFlow;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;

use luo_abi::liveupdate::{AGENT_SESSION, ioctl::Name};
use luo_carriers::liveupdate::{Arrived, Kernel, KernelSession, LiveUpdateCarrier, open_failed};
use luo_carriers::{HostFile, Slots};
use luo_core::{Event, Failure, Report, Scope};
use luo_sys::{LIVEUPDATE_DEVICE, LiveUpdateDevice, LiveUpdateSession};
use rustix::io::Errno;
use zerocopy::IntoBytes;

use super::carriers::{Copying, LIVEUPDATE};
use super::client_session;
use super::custody::{Custody, space};
use super::host::Host;
use super::moments;
use super::refusal::Refusal;
use super::{Ended, Until, WorkerError, take_slots};
use crate::config::{Config, LiveUpdate};
use crate::store::{Events, Store, StoreError, Table};

/// What a step of the start gives, where luod is not being stopped meanwhile.
pub(crate) type Flow<T> = ControlFlow<Ended, T>;

/// What lies in the slot of the device, for whoever looks at it.
const DEVICE_RECORD: &[u8] = b"liveupdate";

/// The carrier, or why there is none.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) carrier: Result<Arc<LiveUpdateCarrier>, Failure>,
    /// What an operator should hear of.
    pub(crate) failed: Option<String>,
}

/// A file that is a kernel session, as the carrier uses it.
pub(super) fn adopt(file: &HostFile) -> std::io::Result<Arc<dyn KernelSession>> {
    Ok(Arc::new(LiveUpdateSession::adopt(file.try_clone_fd()?)?))
}

fn device_failed(error: std::io::Error) -> Failure {
    open_failed(LIVEUPDATE_DEVICE, error)
}

/// The device of the worker before, or opened here.
fn device(table: &Table) -> Result<LiveUpdateDevice, Failure> {
    for key in table.keys(space::DEVICE) {
        let slot = table.get(key);
        let file = slot.as_ref().and_then(|slot| slot.files.first());
        if let Some(Ok(device)) = file.map(|file| LiveUpdateDevice::adopt(file.try_clone_fd()?)) {
            return Ok(device);
        }
        table.forget(key);
    }
    let device = LiveUpdateDevice::open(LIVEUPDATE_DEVICE).map_err(device_failed)?;
    let copy = rustix::io::fcntl_dupfd_cloexec(&device, 0);
    let copy = HostFile::from(copy.map_err(|errno| device_failed(errno.into()))?);
    table.put(table.allocate(space::DEVICE), DEVICE_RECORD, &[&copy])?;
    Ok(device)
}

/// The kernel sessions of a space, by their names.
pub(super) fn sessions(table: &Table, wanted: u8) -> Vec<(Name, u64, HostFile)> {
    let named = |key: u64| {
        let slot = table.get(key)?;
        let name = Name::new(slot.record.split(|byte| *byte == 0).next()?)?;
        Some((name, key, slot.files.into_iter().next()?))
    };
    table.keys(wanted).into_iter().filter_map(named).collect()
}

fn find(table: &Table, name: Name) -> Option<HostFile> {
    let mut came = sessions(table, space::CAME).into_iter();
    came.find(|(other, ..)| *other == name).map(|(_, _, file)| file)
}

/// Retrieves kernel sessions into the store, and gives the kernel's answer for each.
async fn retrieve(
    device: &LiveUpdateDevice,
    names: &[Name],
    store: &Arc<dyn Store>,
    table: &Arc<Table>,
    events: &mut Events,
) -> Result<Flow<Vec<std::io::Result<()>>>, WorkerError> {
    let mut answers = Vec::new();
    for name in names {
        moments::reach("kernel", "retrieve");
        let copy = rustix::io::fcntl_dupfd_cloexec(device, 0);
        let copy = copy.map_err(|errno| StoreError::system("the device")(errno.into()))?;
        let key = table.allocate(space::CAME);
        let answer = match store.retrieve(key, copy, *name).await {
            Ok(()) => Ok(()),
            // A store that cannot do it says so like this; the kernel says EINVAL too, and again.
            Err(StoreError::Unsupported(_)) => here(device, *name, key, table).await?,
            Err(StoreError::Refused { errno })
                if [Errno::INVAL, Errno::OPNOTSUPP].map(Errno::raw_os_error).contains(&errno) =>
            {
                here(device, *name, key, table).await?
            }
            Err(StoreError::Refused { errno }) => Err(std::io::Error::from_raw_os_error(errno)),
            Err(lost) => return Err(lost.into()),
        };
        answers.push(answer);
    }
    // What was retrieved comes back from the store.
    if answers.iter().any(Result::is_ok) {
        store.load().await?;
        if let Some(ended) = take_slots(events, table, Until::Loaded).await? {
            return Ok(Flow::Break(ended));
        }
    }
    Ok(Flow::Continue(answers))
}

/// Where the store cannot retrieve it: from here until it has it, this process must not die.
async fn here(
    device: &LiveUpdateDevice,
    name: Name,
    key: u64,
    table: &Table,
) -> Result<std::io::Result<()>, WorkerError> {
    let session = match LiveUpdateDevice::retrieve(device, name) {
        Ok(session) => HostFile::from(OwnedFd::from(session)),
        Err(error) => return Ok(Err(error)),
    };
    table.put(key, name.as_bytes(), &[&session]).map_err(WorkerError::Kept)?;
    table.submit().await?;
    Ok(Ok(()))
}

/// Opens the carrier, and takes up what came from the kernel before where this luod is fresh.
pub(crate) async fn begin(
    config: &Config,
    store: &Arc<dyn Store>,
    table: &Arc<Table>,
    events: &mut Events,
    copying: &Arc<Copying>,
) -> Result<Flow<Opened>, WorkerError> {
    if config.liveupdate == LiveUpdate::Off {
        let reason =
            "/dev/liveupdate is left to others: `liveupdate = \"off\"` in the configuration";
        let off = Failure::new(luo_core::Errno::NoEnt, reason);
        return Ok(Flow::Continue(Opened { carrier: Err(off), failed: None }));
    }
    let device = match device(table) {
        Ok(device) => device,
        Err(failure) => {
            // What another agent has, or this kernel has not, is nobody's concern unless he says so.
            let told =
                config.liveupdate == LiveUpdate::On || failure.errno() == luo_core::Errno::Io;
            let failed = told.then(|| failure.reason().to_owned());
            return Ok(Flow::Continue(Opened { carrier: Err(failure), failed }));
        }
    };
    moments::reach("kernel", "begin");
    let agent = Name::new(AGENT_SESSION.as_bytes());
    let fresh = [space::MACHINE, space::SESSION, space::FILE, space::CAME]
        .into_iter()
        .all(|space| table.keys(space).is_empty());
    let mut failed = None;
    if let Some(agent) = agent.filter(|_| fresh) {
        let answers = match retrieve(&device, &[agent], store, table, events).await? {
            Flow::Continue(answers) => answers,
            Flow::Break(ended) => return Ok(Flow::Break(ended)),
        };
        for answer in answers {
            match answer {
                Ok(()) => {}
                // Nothing came: a plain start.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => failed = Some(format!("the kernel session luod: {error}")),
            }
        }
    }
    let arrived = match agent.and_then(|agent| find(table, agent)) {
        None => None,
        Some(agent) => {
            moments::reach("kernel", "read");
            match adopt(&agent).map_err(device_failed).and_then(Arrived::new) {
                Ok(arrived) => {
                    failed = arrived.mended.clone().or(failed);
                    Some(arrived)
                }
                // The worker before has finished it, this one last, and died before it let go.
                Err(failure) if !fresh && failure.errno() == luo_core::Errno::NoEnt => {
                    for key in table.keys(space::CAME) {
                        table.forget(key);
                    }
                    None
                }
                Err(failure) => {
                    failed = Some(failure.reason().to_owned());
                    None
                }
            }
        }
    };
    let arrived = match arrived {
        None => None,
        Some(mut arrived) => {
            let completed = complete(&mut arrived, &device, store, table, events).await?;
            if let Flow::Break(ended) = completed {
                return Ok(Flow::Break(ended));
            }
            Some(arrived)
        }
    };
    let carrier = carrier(device, arrived, copying);
    client_session::take_up(table, &carrier);
    let carrier = Ok(carrier);
    Ok(Flow::Continue(Opened { carrier, failed }))
}

/// Retrieves the other kernel sessions, where they are not there yet.
async fn complete(
    arrived: &mut Arrived,
    device: &LiveUpdateDevice,
    store: &Arc<dyn Store>,
    table: &Arc<Table>,
    events: &mut Events,
) -> Result<Flow<()>, WorkerError> {
    let names = arrived.catalogue.sessions.clone();
    let missing: Vec<Name> =
        names.iter().copied().filter(|name| find(table, *name).is_none()).collect();
    let answers = match retrieve(device, &missing, store, table, events).await? {
        Flow::Continue(answers) => answers,
        Flow::Break(ended) => return Ok(Flow::Break(ended)),
    };
    let mut refused: Vec<(Name, std::io::Error)> = missing
        .into_iter()
        .zip(answers)
        .filter_map(|(name, answer)| Some((name, answer.err()?)))
        .collect();
    for (number, name) in names.into_iter().enumerate() {
        let session = match find(table, name) {
            Some(file) => adopt(&file),
            None => {
                let at = refused.iter().position(|(other, _)| *other == name);
                Err(at.map_or_else(|| Errno::NOENT.into(), |at| refused.swap_remove(at).1))
            }
        };
        arrived.retrieved(number, session);
    }
    Ok(Flow::Continue(()))
}

fn carrier(
    device: LiveUpdateDevice,
    arrived: Option<Arrived>,
    copying: &Arc<Copying>,
) -> Arc<LiveUpdateCarrier> {
    let copying = Arc::clone(copying);
    let kernel: Arc<dyn Kernel> = Arc::new(device);
    let carrier = LiveUpdateCarrier::new(kernel, arrived);
    Arc::new(carrier.with_progress(Box::new(move |done, _| copying.go_on(done))))
}

impl Custody {
    /// Whether the kernel sessions of a machine that has departed are held here: then this is the
    /// kernel that it has departed from.
    pub(crate) fn holds_departed(&self) -> bool {
        !self.keys(space::LEAVES).is_empty()
    }

    fn forget_all(&self, space: u8) {
        for key in self.keys(space) {
            self.forget(key);
        }
    }
}

impl Host {
    /// Tries again to open the device, where it could not be opened when this worker began.
    pub(crate) fn open_liveupdate(&self) -> Result<Arc<LiveUpdateCarrier>, Failure> {
        if let Some(carrier) = self.carriers.liveupdate() {
            return Ok(carrier);
        }
        if self.config.liveupdate == LiveUpdate::Off {
            return Err(self.carriers.no_liveupdate());
        }
        let opened = device(self.custody.table())?;
        let opened = carrier(opened, None, &self.carriers.copying);
        self.carriers.set_liveupdate(Arc::clone(&opened));
        Ok(opened)
    }

    /// The machine's transition has ended: what goes into the store with its records.
    pub(crate) fn note_departure(&self, report: &Report) {
        let departed = report.event == Event::Depart && report.result.is_ok();
        if report.scope != Scope::Machine || !departed {
            return;
        }
        if self.core.borrow().carrier() == LIVEUPDATE {
            self.hold_departed();
        }
    }

    fn hold_departed(&self) {
        let Some(carrier) = self.carriers.liveupdate() else { return };
        for (name, session) in carrier.outgoing() {
            match session.descriptor() {
                Ok(copy) => {
                    let key = self.custody.allocate(space::LEAVES);
                    self.custody.put(key, name.as_bytes(), &[&HostFile::from(copy)]);
                }
                Err(error) => self.custody.note_failed(&Failure::new(
                    luo_core::Errno::MFile,
                    format!("a kernel session cannot be given to the keeper: {error}"),
                )),
            }
        }
    }

    /// What of the kernel's part was damaged, and could be had all the same.
    pub(crate) fn tell_mended(&self) {
        for text in self.carriers.liveupdate().iter().flat_map(|carrier| carrier.take_mended()) {
            self.tell("failure", None, text);
        }
    }

    /// Before the departure is taken back: from here nobody but this worker holds the kernel
    /// sessions, so that the next kernel finds no handover once the framework has let go of it.
    pub(crate) async fn take_departure_back(&self) -> Result<(), Refusal> {
        if !self.custody.holds_departed() {
            return Ok(());
        }
        self.custody.forget_all(space::LEAVES);
        self.commit().await
    }

    /// After `finish`, when the store has its records: the kernel sessions that came are finished.
    pub(crate) async fn end_arrival(self: &Rc<Self>) {
        let Some(carrier) = self.carriers.liveupdate().filter(|carrier| carrier.is_retired())
        else {
            return;
        };
        // What nobody has fetched is freed, which may take a while.
        let failed = tokio::task::spawn_blocking(move || carrier.end()).await.unwrap_or_default();
        moments::reach("kernel", "finished");
        for failure in failed {
            self.tell("failure", None, failure.reason().to_owned());
        }
        self.custody.forget_all(space::CAME);
        if let Err(refusal) = self.commit().await {
            self.tell("failure", None, refusal.reason().to_owned());
        }
    }

    /// A worker that died after `finish` may have left what came.
    pub(crate) async fn end_what_was_finished(self: &Rc<Self>) {
        let finished = {
            let core = self.core.borrow();
            let status = core.status();
            status.state == luo_core::State::Normal && status.transition.is_none()
        };
        let Some(carrier) = self.carriers.liveupdate() else { return };
        if !finished || self.custody.keys(space::CAME).is_empty() {
            return;
        }
        if let Err(failure) = luo_core::Carrier::retire(&*carrier) {
            tracing::warn!(reason = failure.reason(), "what came cannot be retired");
        }
        self.end_arrival().await;
    }
}
