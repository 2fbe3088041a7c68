//! The carrier itself.
//!
//! Invariants: every call may run beside every other one.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use luo_abi::liveupdate::{SESSION_PREFIX, ioctl::Name};
use luo_core::{Caps, Carrier, Errno, Failure, Handle, Keep, Reach, Recall, SessionName};

use super::incoming::{Arrived, Incoming};
use super::kernel::{Kernel, Session};
use super::outgoing::{Outgoing, memory_file};
use super::words;
use crate::HostFile;
use crate::keeper::Progress;

/// The scratch session in which it is found out what the kernel can keep.
const PROBE: &str = "/probe";

/// `/dev/liveupdate` as a carrier.
pub struct LiveUpdateCarrier {
    kernel: Arc<dyn Kernel>,
    outgoing: Outgoing,
    incoming: Mutex<Came>,
    progress: Option<Box<Progress>>,
}

/// What came from the kernel before.
#[derive(Clone)]
enum Came {
    Nothing,
    Here(Arc<Incoming>),
    /// Its handover has been retired: it is finished with [`LiveUpdateCarrier::end`].
    Retired(Arc<Incoming>),
}

/// What could not be finished.
pub type Ended = Vec<Failure>;

impl fmt::Debug for LiveUpdateCarrier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LiveUpdateCarrier").finish_non_exhaustive()
    }
}

impl LiveUpdateCarrier {
    /// A carrier to the next kernel, and from the kernel before where something came.
    #[must_use]
    pub fn new(kernel: Arc<dyn Kernel>, arrived: Option<Arrived>) -> Self {
        let incoming = arrived.map(|arrived| Arc::new(Incoming::new(arrived)));
        let last = incoming.as_ref().map_or(0, |incoming| incoming.last_handle());
        let came = incoming.map_or(Came::Nothing, Came::Here);
        Self { kernel, outgoing: Outgoing::after(last), incoming: Mutex::new(came), progress: None }
    }

    /// With somebody to ask during long work.
    #[must_use]
    pub fn with_progress(mut self, progress: Box<Progress>) -> Self {
        self.progress = Some(progress);
        self
    }

    /// Tries whether this kernel keeps an open file, in a session of its own which is undone at
    /// once. `None`: a small memory file, without which nothing can be kept at all.
    ///
    /// # Errors
    /// Why not: ENOENT where the kernel cannot keep files of this type; else as
    /// [`Keep::keep_live`].
    pub fn probe(&self, file: Option<&HostFile>) -> Result<(), Failure> {
        let made;
        let file = match file {
            Some(file) => file,
            None => {
                made = memory_file("luo-probe", &[b"probe"])?;
                &made
            }
        };
        let text = format!("{SESSION_PREFIX}{PROBE}");
        let name = Name::new(text.as_bytes())
            .ok_or_else(|| Failure::new(Errno::Inval, "not the name of a kernel session"))?;
        let scratch = self.kernel.create(name).map_err(|e| words::create_failed(&text, e))?;
        scratch
            .preserve(0, std::os::fd::AsFd::as_fd(file))
            .map_err(|error| words::preserve_failed(file, &text, error))
    }

    /// Every kernel session that the next kernel must find. Copies of their descriptors must be
    /// held up to `reboot(2)`, by whomever.
    #[must_use]
    pub fn outgoing(&self) -> Vec<(Name, Session)> {
        self.outgoing.all()
    }

    /// What of what came was found damaged since the last call, and could be had all the same; in
    /// sentences.
    #[must_use]
    pub fn take_mended(&self) -> Vec<String> {
        self.incoming().map(|incoming| incoming.take_mended()).unwrap_or_default()
    }

    /// Whether it holds anything, on either side.
    #[must_use]
    pub fn is_in_use(&self) -> bool {
        !matches!(*self.came(), Came::Nothing) || !self.outgoing.is_empty()
    }

    /// Whether what came has been finished with, so that [`end`](Self::end) is due.
    #[must_use]
    pub fn is_retired(&self) -> bool {
        matches!(*self.came(), Came::Retired(_))
    }

    /// Finishes the kernel sessions that came, where their handover has been retired. What is not
    /// fetched is freed; so first everybody's records must be where they outlive this process.
    pub fn end(&self) -> Ended {
        let retired = {
            let mut came = self.came();
            match std::mem::replace(&mut *came, Came::Nothing) {
                Came::Retired(incoming) => incoming,
                other => {
                    *came = other;
                    return Vec::new();
                }
            }
        };
        retired.finish()
    }

    /// The kernel session for the next kernel that a client fills by itself, made where it is not
    /// there; and whether it was made. It is in what [`outgoing`](Self::outgoing) gives, and in every
    /// catalogue, until it is [given back](Self::forget_client).
    ///
    /// # Errors
    /// EEXIST where somebody else has a kernel session of that name; what the kernel says.
    pub fn client(&self, name: Name) -> Result<(Session, bool), Failure> {
        self.outgoing.clients.get(&*self.kernel, name)
    }

    /// One that a luod before this one has made in this kernel.
    pub fn adopt_client(&self, name: Name, session: Session) {
        self.outgoing.clients.adopt(name, session);
    }

    /// Lets go of it; says whether it was there. The kernel undoes what is in it once the client has
    /// closed its own descriptors too.
    pub fn forget_client(&self, name: &Name) -> bool {
        self.outgoing.clients.forget(name)
    }

    /// The kernel session of that name that came from the kernel before. It is finished with all
    /// others, by [`end`](Self::end).
    ///
    /// # Errors
    /// ENOENT where none of that name came, EINVAL where somebody else has it.
    pub fn came_for_client(&self, name: &Name) -> Result<Session, Failure> {
        self.incoming()?.session(name)
    }

    /// Whether the client's kernel session of that name is there for the next kernel, and whether
    /// one came from the kernel before and has not been finished.
    #[must_use]
    pub fn has_client(&self, name: &Name) -> (bool, bool) {
        let came = match &*self.came() {
            Came::Here(incoming) | Came::Retired(incoming) => incoming.has(name),
            Came::Nothing => false,
        };
        (self.outgoing.clients.has(name), came)
    }

    /// Whether clients have kernel sessions that they fill by themselves.
    #[must_use]
    pub fn has_clients(&self) -> bool {
        !self.outgoing.clients.all().is_empty()
    }

    fn came(&self) -> MutexGuard<'_, Came> {
        self.incoming.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn incoming(&self) -> Result<Arc<Incoming>, Failure> {
        match &*self.came() {
            Came::Here(incoming) | Came::Retired(incoming) => Ok(Arc::clone(incoming)),
            Came::Nothing => Err(Failure::new(Errno::NoEnt, "nothing came from the kernel before")),
        }
    }

    fn ask(&self, done: u64, total: u64) -> Result<(), Failure> {
        self.progress.as_ref().map_or(Ok(()), |ask| ask(done, total))
    }

    fn memory_in(&self, session: &str, memory: &HostFile, len: u64) -> Result<Handle, Failure> {
        memory.has_memory(len)?;
        self.ask(0, len)?;
        let handle = self.outgoing.keep_memory(&*self.kernel, session, memory, len)?;
        match self.ask(len, len) {
            Ok(()) => Ok(handle),
            Err(cancelled) => {
                self.outgoing.forget(handle);
                Err(cancelled)
            }
        }
    }
}

impl Keep<HostFile> for LiveUpdateCarrier {
    fn caps(&self) -> Caps {
        Caps::MEMORY | Caps::BYTES | Caps::SOME_LIVE
    }

    fn keep_memory(&self, memory: &HostFile, len: u64) -> Result<Handle, Failure> {
        self.memory_in("", memory, len)
    }

    fn refresh_memory(&self, handle: Handle, memory: &HostFile, len: u64) -> Result<(), Failure> {
        memory.has_memory(len)?;
        self.outgoing.refresh(handle, len)
    }

    fn keep_bytes(&self, bytes: &[u8]) -> Result<Handle, Failure> {
        Ok(self.outgoing.keep_bytes(bytes, true))
    }

    fn keep_live(&self, file: &HostFile) -> Result<Handle, Failure> {
        self.outgoing.keep_live(&*self.kernel, "", file)
    }

    fn forget(&self, handle: Handle) {
        self.outgoing.forget(handle);
    }

    fn progress(&self, done: u64, total: u64) -> Result<(), Failure> {
        self.ask(done, total)
    }
}

impl Recall<HostFile> for LiveUpdateCarrier {
    fn caps(&self) -> Caps {
        Keep::caps(self)
    }

    fn memory(&self, handle: Handle) -> Result<HostFile, Failure> {
        self.incoming()?.memory(handle)
    }

    fn bytes(&self, handle: Handle) -> Result<Vec<u8>, Failure> {
        match self.outgoing.bytes(handle) {
            Some(bytes) => Ok(bytes),
            None => self.incoming()?.bytes(handle),
        }
    }

    fn live(&self, handle: Handle) -> Result<HostFile, Failure> {
        self.incoming()?.live(handle)
    }

    /// Nothing: the kernel frees it with its whole session, see [`LiveUpdateCarrier::end`].
    fn release(&self, _: Handle) {}

    fn progress(&self, done: u64, total: u64) -> Result<(), Failure> {
        self.ask(done, total)
    }
}

impl Carrier<HostFile> for LiveUpdateCarrier {
    fn name(&self) -> &'static str {
        "liveupdate"
    }

    fn reach(&self) -> Reach {
        Reach::Kernel
    }

    fn for_session<'a>(&'a self, session: &'a SessionName) -> Option<Box<dyn Keep<HostFile> + 'a>>
    where
        HostFile: 'a,
    {
        Some(Box::new(InSession { carrier: self, session }))
    }

    /// As [`Carrier::commit`], but that after an error none stands: the kernel takes one session of
    /// a name.
    fn commit(&self, handover: &[u8]) -> Result<(), Failure> {
        self.outgoing.commit(&*self.kernel, handover)
    }

    fn committed(&self) -> Result<Option<Vec<u8>>, Failure> {
        match &*self.came() {
            Came::Here(incoming) => Ok(Some(incoming.handover().to_vec())),
            Came::Nothing | Came::Retired(_) => Ok(None),
        }
    }

    fn retire(&self) -> Result<(), Failure> {
        if self.outgoing.revoke() {
            return Ok(());
        }
        let mut came = self.came();
        if let Came::Here(incoming) = &*came {
            *came = Came::Retired(Arc::clone(incoming));
        }
        Ok(())
    }
}

/// The carrier as files of one session see it.
struct InSession<'a> {
    carrier: &'a LiveUpdateCarrier,
    session: &'a SessionName,
}

impl Keep<HostFile> for InSession<'_> {
    fn caps(&self) -> Caps {
        Keep::caps(self.carrier)
    }

    fn keep_memory(&self, memory: &HostFile, len: u64) -> Result<Handle, Failure> {
        self.carrier.memory_in(self.session, memory, len)
    }

    fn refresh_memory(&self, handle: Handle, memory: &HostFile, len: u64) -> Result<(), Failure> {
        self.carrier.refresh_memory(handle, memory, len)
    }

    fn keep_bytes(&self, bytes: &[u8]) -> Result<Handle, Failure> {
        Ok(self.carrier.outgoing.keep_bytes(bytes, false))
    }

    fn keep_live(&self, file: &HostFile) -> Result<Handle, Failure> {
        self.carrier.outgoing.keep_live(&*self.carrier.kernel, self.session, file)
    }

    fn forget(&self, handle: Handle) {
        self.carrier.forget(handle);
    }

    fn progress(&self, done: u64, total: u64) -> Result<(), Failure> {
        self.carrier.ask(done, total)
    }
}
