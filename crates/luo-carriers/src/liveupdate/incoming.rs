//! Kernel sessions from the kernel before, and what is in them.
//!
//! Invariants: a file is fetched when it is asked for and not before; the kernel gives it as often
//! as it is asked. What cannot be had of one session is the failure of what was in it.

use std::collections::BTreeMap;
use std::fs::File as StdFile;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, OnceLock, PoisonError};

use luo_abi::liveupdate::{
    AGENT_SESSION, BYTES_COPY_TOKEN, BYTES_TOKEN, CATALOGUE_COPY_TOKEN, CATALOGUE_MAX,
    CATALOGUE_TOKEN, Catalogue, Place, ioctl::Name,
};
use luo_core::{Errno, Failure, Handle};
use rustix::fs::fstat;

use super::client::key;
use super::kernel::Session;
use super::words;
use crate::HostFile;

/// What came from the kernel before.
pub struct Arrived {
    /// The kernel session `luod`.
    pub agent: Session,
    /// What its token 0 says.
    pub catalogue: Catalogue,
    /// The other kernel sessions, in the order of the catalogue; or why one cannot be had.
    pub sessions: Vec<Result<Session, Failure>>,
    /// In a sentence, that token 0 was damaged and its copy was not.
    pub mended: Option<String>,
}

impl std::fmt::Debug for Arrived {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Arrived").field("catalogue", &self.catalogue).finish_non_exhaustive()
    }
}

impl Arrived {
    /// Without the other sessions, all of which are failures until
    /// [`retrieved`](Self::retrieved) says otherwise.
    ///
    /// # Errors
    /// As [`read_catalogue`].
    pub fn new(agent: Session) -> Result<Self, Failure> {
        let (catalogue, mended) = read_catalogue(&agent)?;
        let sessions = catalogue
            .sessions
            .iter()
            .map(|name| Err(Failure::new(Errno::NoEnt, format!("{name:?} was not retrieved"))))
            .collect();
        Ok(Self { agent, catalogue, sessions, mended })
    }

    /// The kernel session of that number was retrieved, or could not be.
    pub fn retrieved(&mut self, number: usize, session: std::io::Result<Session>) {
        let Some(name) = self.catalogue.sessions.get(number) else { return };
        let Some(place) = self.sessions.get_mut(number) else { return };
        *place = session.map_err(|error| words::retrieve_failed(&text(name), error));
    }
}

/// Reads what the kernel session `luod` says of everything that came, from the copy where the first
/// one cannot be used; then also why not. Nothing of it is finished.
///
/// # Errors
/// ENOENT where it has no catalogue, EINVAL for one that is damaged or of another version, and
/// what fetching it gives; those of the copy are in the reason.
pub fn read_catalogue(agent: &Session) -> Result<(Catalogue, Option<String>), Failure> {
    let named = |token| format!("the catalogue (token {token} of the kernel session luod)");
    let failure = match read_catalogue_at(agent, CATALOGUE_TOKEN, &named(CATALOGUE_TOKEN)) {
        Ok(catalogue) => return Ok((catalogue, None)),
        Err(failure) => failure,
    };
    match read_catalogue_at(agent, CATALOGUE_COPY_TOKEN, "its copy (token 2)") {
        Ok(catalogue) => Ok((
            catalogue,
            Some(format!("{}; its copy (token 2) is not, and was used", failure.reason())),
        )),
        Err(second) => {
            let reason = format!(
                "{}; {}. What was kept cannot be found without it; it stays in memory until the next \
                 boot",
                failure.reason(),
                second.reason()
            );
            Err(Failure::new(failure.errno(), reason).because(failure))
        }
    }
}

fn read_catalogue_at(agent: &Session, token: u64, what: &str) -> Result<Catalogue, Failure> {
    let file = agent.fetch(token).map_err(|error| words::fetch_failed(what, error))?;
    let file = StdFile::from(file);
    let unreadable = |error| words::failed(&format!("{what} cannot be read"), error);
    let len = file.metadata().map_err(unreadable)?.len();
    if len > CATALOGUE_MAX {
        let reason = format!("{what} has {len} bytes, more than any");
        return Err(Failure::new(Errno::Inval, reason));
    }
    let len = usize::try_from(len).map_err(|_| Failure::new(Errno::NoMem, "no memory"))?;
    let mut bytes = vec![0; len];
    file.read_exact_at(&mut bytes, 0).map_err(unreadable)?;
    Catalogue::decode(&bytes).map_err(|error| {
        Failure::new(Errno::Inval, format!("{what} is damaged: {error}")).because(error)
    })
}

/// See the module.
pub(super) struct Incoming {
    agent: Session,
    sessions: Vec<Result<Session, (Errno, String)>>,
    names: Vec<Name>,
    /// Where in both a name is: a list of all sessions asks for each.
    numbers: BTreeMap<Vec<u8>, usize>,
    objects: BTreeMap<u64, Place>,
    handover: Vec<u8>,
    bytes: OnceLock<Result<StdFile, (Errno, String)>>,
    copy: OnceLock<Result<StdFile, (Errno, String)>>,
    mended: Mutex<Vec<String>>,
}

impl Incoming {
    pub(super) fn new(arrived: Arrived) -> Self {
        let Arrived { agent, catalogue, sessions, .. } = arrived;
        let parts = |failure: Failure| (failure.errno(), failure.reason().to_owned());
        Self {
            agent,
            sessions: sessions.into_iter().map(|session| session.map_err(parts)).collect(),
            numbers: (0..).zip(&catalogue.sessions).map(|(at, name)| (key(name), at)).collect(),
            names: catalogue.sessions,
            objects: catalogue.objects.iter().map(|object| (object.handle, object.place)).collect(),
            handover: catalogue.handover,
            bytes: OnceLock::new(),
            copy: OnceLock::new(),
            mended: Mutex::default(),
        }
    }

    pub(super) fn handover(&self) -> &[u8] {
        &self.handover
    }

    /// The highest handle.
    pub(super) fn last_handle(&self) -> u64 {
        self.objects.keys().next_back().map_or(0, |handle| luo_abi::keeper::key::number(*handle))
    }

    fn place(&self, handle: Handle) -> Result<Place, Failure> {
        self.objects.get(&handle.0).copied().ok_or_else(|| missing(handle))
    }

    fn fetch(&self, handle: Handle, session: u32, token: u64) -> Result<HostFile, Failure> {
        let session = match self.sessions.get(session as usize) {
            Some(Ok(session)) => session,
            Some(Err((errno, reason))) => return Err(Failure::new(*errno, reason.as_str())),
            None => return Err(missing(handle)),
        };
        let file = session
            .fetch(token)
            .map_err(|error| words::fetch_failed(&format!("kept object {:#x}", handle.0), error))?;
        Ok(HostFile::from(file))
    }

    /// Whether a kernel session of that name came, be it to be had or not.
    pub(super) fn has(&self, name: &Name) -> bool {
        self.numbers.contains_key(name.as_bytes_without_nul())
    }

    /// A kernel session that came, by its name.
    pub(super) fn session(&self, name: &Name) -> Result<Session, Failure> {
        let at = self.numbers.get(name.as_bytes_without_nul());
        match at.and_then(|at| self.sessions.get(*at)) {
            Some(Ok(session)) => Ok(Session::clone(session)),
            Some(Err((errno, reason))) => Err(Failure::new(*errno, reason.as_str())),
            None => Err(Failure::new(
                Errno::NoEnt,
                format!("the kernel session {:?} did not come from the kernel before", text(name)),
            )),
        }
    }

    pub(super) fn memory(&self, handle: Handle) -> Result<HostFile, Failure> {
        let Place::Memory { session, token, length } = self.place(handle)? else {
            return Err(missing(handle));
        };
        let file = self.fetch(handle, session, token)?;
        let stat = fstat(file.as_fd())
            .map_err(|error| words::failed("what came is not readable", error.into()))?;
        if u64::try_from(stat.st_size).is_ok_and(|size| size >= length) {
            return Ok(file);
        }
        let reason = format!(
            "kept memory {:#x} came back with {} bytes instead of {length}",
            handle.0, stat.st_size
        );
        Err(Failure::new(Errno::Inval, reason))
    }

    pub(super) fn live(&self, handle: Handle) -> Result<HostFile, Failure> {
        match self.place(handle)? {
            Place::Live { session, token } => self.fetch(handle, session, token),
            _ => Err(missing(handle)),
        }
    }

    pub(super) fn bytes(&self, handle: Handle) -> Result<Vec<u8>, Failure> {
        let Place::Bytes { offset, length, checksum } = self.place(handle)? else {
            return Err(missing(handle));
        };
        // Where all are empty there is no file of them.
        if length == 0 {
            return Ok(Vec::new());
        }
        let what = format!("the kept bytes (token {BYTES_TOKEN} of the kernel session luod)");
        let first = self.bytes_of(&self.bytes, BYTES_TOKEN, &what);
        let failure =
            match first.and_then(|file| read(file, &what, handle, offset, length, checksum)) {
                Ok(bytes) => return Ok(bytes),
                Err(failure) => failure,
            };
        // Not of everything there is a copy; where there is none, the first
        // failure is what counts.
        let copy = "their copy (token 3)";
        let second = self.bytes_of(&self.copy, BYTES_COPY_TOKEN, copy);
        let Ok(bytes) = second.and_then(|file| read(file, copy, handle, offset, length, checksum))
        else {
            return Err(failure);
        };
        let told = format!("{}; {copy} are not, and were used", failure.reason());
        self.mended.lock().unwrap_or_else(PoisonError::into_inner).push(told);
        Ok(bytes)
    }

    fn bytes_of<'a>(
        &'a self,
        place: &'a OnceLock<Result<StdFile, (Errno, String)>>,
        token: u64,
        what: &str,
    ) -> Result<&'a StdFile, Failure> {
        let file = place.get_or_init(|| match self.agent.fetch(token) {
            Ok(file) => Ok(StdFile::from(file)),
            Err(error) => {
                let failure = words::fetch_failed(what, error);
                Err((failure.errno(), failure.reason().to_owned()))
            }
        });
        file.as_ref().map_err(|(errno, reason)| Failure::new(*errno, reason.as_str()))
    }

    pub(super) fn take_mended(&self) -> Vec<String> {
        std::mem::take(&mut self.mended.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Finishes every session, that of the catalogue last: as long as one is not finished, it can
    /// be known again. What fails is told, and is finished when its last descriptor is closed.
    pub(super) fn finish(&self) -> Vec<Failure> {
        let named = self.names.iter().map(text).zip(&self.sessions);
        let there = named.filter_map(|(name, session)| Some((name, session.as_ref().ok()?)));
        let mut failed = Vec::new();
        for (name, session) in there.chain([(AGENT_SESSION.to_owned(), &self.agent)]) {
            if let Err(error) = session.finish() {
                let what = format!("the kernel session {name:?} cannot be finished");
                failed.push(words::failed(&what, error));
            }
        }
        failed
    }
}

/// Reads kept bytes from one of the files that have them.
fn read(
    file: &StdFile,
    what: &str,
    handle: Handle,
    offset: u64,
    length: u64,
    checksum: u64,
) -> Result<Vec<u8>, Failure> {
    let len = usize::try_from(length).map_err(|error| {
        Failure::new(Errno::NoMem, "kept bytes do not fit into memory").because(error)
    })?;
    let mut bytes = vec![0; len];
    file.read_exact_at(&mut bytes, offset)
        .map_err(|error| words::failed(&format!("{what} cannot be read"), error))?;
    if luo_abi::arena::checksum(&bytes) == checksum {
        return Ok(bytes);
    }
    let reason = format!("{what} are damaged at {:#x}: wrong checksum", handle.0);
    Err(Failure::new(Errno::Io, reason))
}

fn text(name: &Name) -> String {
    String::from_utf8_lossy(name.as_bytes_without_nul()).into_owned()
}

fn missing(handle: Handle) -> Failure {
    Failure::new(
        Errno::NoEnt,
        format!("there is no kept object {:#x} of that kind in what came", handle.0),
    )
}
