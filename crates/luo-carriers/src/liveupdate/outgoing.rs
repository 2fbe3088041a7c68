//! Kernel sessions for the next kernel, and what is in them.
//!
//! Invariants:
//! - A kernel session is there as long as an object of it is.
//! - The lock of the table is held for moments; that of a kernel session while the kernel takes a
//!   file, which is as long as it takes to make all its pages present. Never the first one while
//!   waiting for the second.

use std::collections::{BTreeMap, HashMap};
use std::fs::File as StdFile;
use std::io::ErrorKind;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use luo_abi::liveupdate::{
    self, AGENT_SESSION, BYTES_COPY_TOKEN, BYTES_TOKEN, CATALOGUE_COPY_TOKEN, CATALOGUE_TOKEN,
    COPIED_MAX, Catalogue, KERNEL_NAME_MAX, OWN_TOKENS, Object, Place, SESSION_PREFIX, ioctl::Name,
};
use luo_core::{Errno, Failure, File, Handle, Identity};
use rustix::fs::{MemfdFlags, memfd_create};

use super::client::Clients;
use super::kernel::{Kernel, Session};
use super::words;
use crate::HostFile;

/// So many names are tried for one session.
const NAMES: u32 = 10;

/// So long is waited for the name of the handover's session to become free, and between two looks.
const NAME_DEADLINE: Duration = Duration::from_secs(2);
const NAME_PAUSE: Duration = Duration::from_millis(10);

/// A kernel session that was made here.
struct Own {
    name: Name,
    /// The luo session that it is for.
    session: String,
    inner: Mutex<Inner>,
}

struct Inner {
    session: Session,
    next_token: u64,
    /// Memory files that the kernel has, and their tokens.
    files: HashMap<Identity, u64>,
}

/// What is kept under a handle.
enum Kept {
    Memory { own: Arc<Own>, token: u64, length: u64 },
    Live { own: Arc<Own>, token: u64 },
    Bytes { bytes: Arc<[u8]>, twice: bool },
}

#[derive(Default)]
struct Table {
    /// Kernel sessions by the luo session they are for (the empty name: for none), and how many
    /// objects are in each or about to be.
    sessions: HashMap<String, (Arc<Own>, usize)>,
    objects: BTreeMap<u64, Kept>,
    last_handle: u64,
    agent: Option<Session>,
}

/// See the module.
#[derive(Default)]
pub(super) struct Outgoing {
    table: Mutex<Table>,
    /// Those that clients fill.
    pub(super) clients: Clients,
}

/// Kept bytes, in their order: those that are laid down twice come first.
#[derive(Default)]
struct Parts {
    twice: Vec<Arc<[u8]>>,
    others: Vec<Arc<[u8]>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Outgoing {
    /// Handles that are given out are above this one.
    pub(super) fn after(handle: u64) -> Self {
        let table = Table { last_handle: handle, ..Table::default() };
        Self { table: Mutex::new(table), clients: Clients::default() }
    }

    fn insert(&self, kept: Kept) -> Handle {
        let mut table = lock(&self.table);
        table.last_handle += 1;
        let handle = liveupdate::handle(table.last_handle);
        table.objects.insert(handle, kept);
        Handle(handle)
    }

    /// The kernel session of a luo session, made where it is not there, for one more object.
    fn own(&self, kernel: &dyn Kernel, session: &str) -> Result<Arc<Own>, Failure> {
        let mut table = lock(&self.table);
        if let Some((own, users)) = table.sessions.get_mut(session) {
            *users += 1;
            return Ok(Arc::clone(own));
        }
        let (name, made) = create(kernel, session)?;
        let inner = Inner { session: made, next_token: OWN_TOKENS, files: HashMap::new() };
        let own = Arc::new(Own { name, session: session.to_owned(), inner: Mutex::new(inner) });
        table.sessions.insert(session.to_owned(), (Arc::clone(&own), 1));
        Ok(own)
    }

    /// One object less is in a kernel session; the last one takes it along.
    fn let_go(&self, own: Arc<Own>) {
        let mut table = lock(&self.table);
        let Some((_, users)) = table.sessions.get_mut(&own.session) else { return };
        *users = users.saturating_sub(1);
        let gone = if *users == 0 { table.sessions.remove(&own.session) } else { None };
        drop(table);
        // The kernel undoes what is in it, which takes a while: without the lock.
        drop((own, gone));
    }

    pub(super) fn keep_memory(
        &self,
        kernel: &dyn Kernel,
        session: &str,
        memory: &HostFile,
        length: u64,
    ) -> Result<Handle, Failure> {
        let own = self.own(kernel, session)?;
        match take(&own, memory, true) {
            Ok(token) => Ok(self.insert(Kept::Memory { own, token, length })),
            Err(failure) => {
                self.let_go(own);
                Err(failure)
            }
        }
    }

    pub(super) fn keep_live(
        &self,
        kernel: &dyn Kernel,
        session: &str,
        file: &HostFile,
    ) -> Result<Handle, Failure> {
        let own = self.own(kernel, session)?;
        match take(&own, file, false) {
            Ok(token) => Ok(self.insert(Kept::Live { own, token })),
            Err(failure) => {
                self.let_go(own);
                Err(failure)
            }
        }
    }

    /// `common`: they belong to no session, so that without them more than one is lost.
    pub(super) fn keep_bytes(&self, bytes: &[u8], common: bool) -> Handle {
        let twice = common || bytes.len() <= COPIED_MAX;
        self.insert(Kept::Bytes { bytes: bytes.into(), twice })
    }

    /// The memory is shared with its owner: only its length can have changed.
    pub(super) fn refresh(&self, handle: Handle, now: u64) -> Result<(), Failure> {
        match lock(&self.table).objects.get_mut(&handle.0) {
            Some(Kept::Memory { length, .. }) => {
                *length = now;
                Ok(())
            }
            _ => {
                Err(Failure::new(Errno::NoEnt, format!("there is no kept memory {:#x}", handle.0)))
            }
        }
    }

    pub(super) fn forget(&self, handle: Handle) {
        let removed = lock(&self.table).objects.remove(&handle.0);
        if let Some(Kept::Memory { own, .. } | Kept::Live { own, .. }) = removed {
            self.let_go(own);
        }
    }

    /// What is kept under a handle, where it is bytes: for who asks before the update.
    pub(super) fn bytes(&self, handle: Handle) -> Option<Vec<u8>> {
        match lock(&self.table).objects.get(&handle.0) {
            Some(Kept::Bytes { bytes, .. }) => Some(bytes.to_vec()),
            _ => None,
        }
    }

    /// Writes down what is where, and the handover.
    pub(super) fn commit(&self, kernel: &dyn Kernel, handover: &[u8]) -> Result<(), Failure> {
        let (catalogue, Parts { twice, others }) = self.describe(handover)?;
        let catalogue = [&*catalogue.encode()];
        let twice: Vec<&[u8]> = twice.iter().map(|part| &**part).collect();
        let bytes: Vec<&[u8]> =
            twice.iter().copied().chain(others.iter().map(|part| &**part)).collect();
        // The catalogue last: where it is, all that it speaks of is.
        let all: [(u64, &str, &[&[u8]]); 4] = [
            (BYTES_TOKEN, "luo-bytes", &bytes),
            (BYTES_COPY_TOKEN, "luo-bytes-copy", &twice),
            (CATALOGUE_COPY_TOKEN, "luo-catalogue-copy", &catalogue),
            (CATALOGUE_TOKEN, "luo-catalogue", &catalogue),
        ];
        let mut files = Vec::new();
        for (token, name, parts) in all {
            if !parts.is_empty() {
                files.push((token, memory_file(name, parts)?));
            }
        }
        // Its name is taken as long as it is there.
        drop(lock(&self.table).agent.take());
        let name = kernel_name(AGENT_SESSION.as_bytes())?;
        let agent = create_agent(kernel, name)?;
        for (token, file) in &files {
            agent
                .preserve(*token, file.as_fd())
                .map_err(|error| words::preserve_failed(file, AGENT_SESSION, error))?;
        }
        lock(&self.table).agent = Some(agent);
        Ok(())
    }

    fn describe(&self, handover: &[u8]) -> Result<(Catalogue, Parts), Failure> {
        let table = lock(&self.table);
        let mut numbers: HashMap<*const Own, u32> = HashMap::new();
        let mut catalogue = Catalogue { handover: handover.to_vec(), ..Catalogue::default() };
        let mut parts = Parts::default();
        for (own, _) in table.sessions.values() {
            let number = u32::try_from(catalogue.sessions.len())
                .map_err(|_| Failure::new(Errno::TooBig, "more kernel sessions than can be"))?;
            numbers.insert(Arc::as_ptr(own), number);
            catalogue.sessions.push(own.name);
        }
        // Nothing in them is in the catalogue: the next agent retrieves them, and no more.
        catalogue.sessions.extend(self.clients.all().into_iter().map(|(name, _)| name));
        let number = |own: &Arc<Own>| numbers.get(&Arc::as_ptr(own)).copied();
        let is_twice = |kept: &Kept| matches!(kept, Kept::Bytes { twice: true, .. });
        let (first, then): (Vec<_>, Vec<_>) =
            table.objects.iter().partition(|(_, kept)| is_twice(kept));
        for (handle, kept) in first.into_iter().chain(then) {
            let place =
                match kept {
                    Kept::Memory { own, token, length } => number(own)
                        .map(|session| Place::Memory { session, token: *token, length: *length }),
                    Kept::Live { own, token } => {
                        number(own).map(|session| Place::Live { session, token: *token })
                    }
                    Kept::Bytes { bytes, twice } => {
                        let (offset, length) = (catalogue.bytes, bytes.len() as u64);
                        catalogue.bytes += length;
                        let part = if *twice { &mut parts.twice } else { &mut parts.others };
                        if length > 0 {
                            part.push(Arc::clone(bytes));
                        }
                        let checksum = luo_abi::arena::checksum(bytes);
                        Some(Place::Bytes { offset, length, checksum })
                    }
                };
            let lost = || Failure::new(Errno::Io, "a kernel session was let go of too early");
            catalogue.objects.push(Object { handle: *handle, place: place.ok_or_else(lost)? });
        }
        Ok((catalogue, parts))
    }

    /// Takes the handover back; says whether there was one.
    pub(super) fn revoke(&self) -> bool {
        let agent = lock(&self.table).agent.take();
        agent.is_some()
    }

    pub(super) fn is_empty(&self) -> bool {
        let table = lock(&self.table);
        table.objects.is_empty() && table.agent.is_none()
    }

    /// Every kernel session that the next kernel must find, that of the handover last.
    pub(super) fn all(&self) -> Vec<(Name, Session)> {
        let table = lock(&self.table);
        let own: Vec<Arc<Own>> = table.sessions.values().map(|(own, _)| Arc::clone(own)).collect();
        let agent = table.agent.clone();
        drop(table);
        let mut all: Vec<(Name, Session)> =
            own.iter().map(|own| (own.name, Arc::clone(&lock(&own.inner).session))).collect();
        all.extend(self.clients.all());
        all.extend(agent.and_then(|agent| Some((Name::new(AGENT_SESSION.as_bytes())?, agent))));
        all
    }
}

/// Gives a file to the kernel; `memory`: its inode is its own, so that it is known again.
fn take(own: &Own, file: &HostFile, memory: bool) -> Result<u64, Failure> {
    let mut inner = lock(&own.inner);
    if memory && let Some(token) = inner.files.get(&file.identity()) {
        return Ok(*token);
    }
    let token = inner.next_token;
    inner.session.preserve(token, file.as_fd()).map_err(|error| {
        let name = String::from_utf8_lossy(own.name.as_bytes_without_nul()).into_owned();
        words::preserve_failed(file, &name, error)
    })?;
    inner.next_token += 1;
    if memory {
        inner.files.insert(file.identity(), token);
    }
    Ok(token)
}

/// Makes the kernel session of a luo session, under a name that nobody has.
fn create(kernel: &dyn Kernel, session: &str) -> Result<(Name, Session), Failure> {
    let mut refused = None;
    for number in 0..NAMES {
        let text = candidate(session, number);
        let name = kernel_name(text.as_bytes())?;
        match kernel.create(name) {
            Ok(made) => return Ok((name, made)),
            Err(error) => {
                let taken = error.kind() == ErrorKind::AlreadyExists;
                refused = Some(words::create_failed(&text, error));
                if !taken {
                    break;
                }
            }
        }
    }
    Err(refused.unwrap_or_else(|| Failure::new(Errno::Exist, "no name for a kernel session")))
}

/// Makes the session of the handover, whose name is fixed. Copies of one that was let go of may be
/// about to be closed.
fn create_agent(kernel: &dyn Kernel, name: Name) -> Result<Session, Failure> {
    let start = Instant::now();
    loop {
        match kernel.create(name) {
            Ok(agent) => return Ok(agent),
            Err(error)
                if error.kind() == ErrorKind::AlreadyExists && start.elapsed() < NAME_DEADLINE =>
            {
                std::thread::sleep(NAME_PAUSE);
            }
            Err(error) => return Err(words::create_failed(AGENT_SESSION, error)),
        }
    }
}

/// The name of a luo session's kernel session, and others where that one does not fit or is taken.
pub(super) fn candidate(session: &str, number: u32) -> String {
    let whole = format!("{SESSION_PREFIX}{session}");
    if number == 0 && whole.len() <= KERNEL_NAME_MAX {
        return whole;
    }
    // Of names that are cut, that many are told apart by what was cut off.
    let sum = luo_abi::arena::checksum(session.as_bytes()) as u32;
    let tail = format!("~{sum:08x}{number}");
    let mut end = whole.len().min(KERNEL_NAME_MAX.saturating_sub(tail.len()));
    while !whole.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}{tail}", whole.get(..end).unwrap_or_default())
}

fn kernel_name(name: &[u8]) -> Result<Name, Failure> {
    Name::new(name).ok_or_else(|| Failure::new(Errno::Inval, "not the name of a kernel session"))
}

/// A memory file with these bytes.
pub(super) fn memory_file(name: &str, parts: &[&[u8]]) -> Result<HostFile, Failure> {
    let made = memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)
        .map_err(|error| words::failed("no memfd for what is handed over", error.into()))?;
    let file = StdFile::from(made);
    let mut at = 0;
    for part in parts {
        file.write_all_at(part, at)
            .map_err(|error| words::failed("no memory for what is handed over", error))?;
        at += part.len() as u64;
    }
    Ok(HostFile::from(OwnedFd::from(file)))
}
