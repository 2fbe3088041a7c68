//! Kernel sessions from the kernel before, and what is in them.
//!
//! Invariants: a file is fetched when it is asked for and not before; the kernel gives it as often
//! as it is asked. What cannot be had of one session is the failure of what was in it.

use std::collections::BTreeMap;
use std::fs::File as StdFile;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::OnceLock;

use luo_abi::liveupdate::{
    AGENT_SESSION, BYTES_TOKEN, CATALOGUE_MAX, CATALOGUE_TOKEN, Catalogue, Place, ioctl::Name,
};
use luo_core::{Errno, Failure, Handle};
use rustix::fs::fstat;

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
        let catalogue = read_catalogue(&agent)?;
        let sessions = catalogue
            .sessions
            .iter()
            .map(|name| Err(Failure::new(Errno::NoEnt, format!("{name:?} was not retrieved"))))
            .collect();
        Ok(Self { agent, catalogue, sessions })
    }

    /// The kernel session of that number was retrieved, or could not be.
    pub fn retrieved(&mut self, number: usize, session: std::io::Result<Session>) {
        let Some(name) = self.catalogue.sessions.get(number) else { return };
        let Some(place) = self.sessions.get_mut(number) else { return };
        *place = session.map_err(|error| words::retrieve_failed(&text(name), error));
    }
}

/// Reads what the kernel session `luod` says of everything that came. Nothing of it is finished.
///
/// # Errors
/// ENOENT where it has no catalogue, EINVAL for one that is damaged or of another version, and
/// what fetching it gives.
pub fn read_catalogue(agent: &Session) -> Result<Catalogue, Failure> {
    let what = format!("the catalogue (token {CATALOGUE_TOKEN} of the kernel session luod)");
    let file = agent.fetch(CATALOGUE_TOKEN).map_err(|error| words::fetch_failed(&what, error))?;
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
        let reason = format!(
            "{what} is damaged: {error}. What was kept cannot be found without it; it stays in \
             memory until the next boot"
        );
        Failure::new(Errno::Inval, reason).because(error)
    })
}

/// See the module.
pub(super) struct Incoming {
    agent: Session,
    sessions: Vec<Result<Session, (Errno, String)>>,
    names: Vec<Name>,
    objects: BTreeMap<u64, Place>,
    handover: Vec<u8>,
    bytes: OnceLock<Result<StdFile, (Errno, String)>>,
}

impl Incoming {
    pub(super) fn new(arrived: Arrived) -> Self {
        let Arrived { agent, catalogue, sessions } = arrived;
        let parts = |failure: Failure| (failure.errno(), failure.reason().to_owned());
        Self {
            agent,
            sessions: sessions.into_iter().map(|session| session.map_err(parts)).collect(),
            names: catalogue.sessions,
            objects: catalogue.objects.iter().map(|object| (object.handle, object.place)).collect(),
            handover: catalogue.handover,
            bytes: OnceLock::new(),
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

    /// A kernel session that came, by its name.
    pub(super) fn session(&self, name: &Name) -> Result<Session, Failure> {
        let at = self.names.iter().position(|other| other == name);
        match at.and_then(|at| self.sessions.get(at)) {
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
        let len = usize::try_from(length).map_err(|error| {
            Failure::new(Errno::NoMem, "kept bytes do not fit into memory").because(error)
        })?;
        let mut bytes = vec![0; len];
        if len > 0 {
            let file = self.bytes.get_or_init(|| {
                let what = format!("the kept bytes (token {BYTES_TOKEN} of session luod)");
                let fetched = self.agent.fetch(BYTES_TOKEN);
                let failed = |error| words::fetch_failed(&what, error);
                fetched
                    .map(StdFile::from)
                    .map_err(failed)
                    .map_err(|failure| (failure.errno(), failure.reason().to_owned()))
            });
            let file = match file {
                Ok(file) => file,
                Err((errno, reason)) => return Err(Failure::new(*errno, reason.as_str())),
            };
            file.read_exact_at(&mut bytes, offset)
                .map_err(|error| words::failed("kept bytes cannot be read", error))?;
        }
        if luo_abi::arena::checksum(&bytes) != checksum {
            let reason = format!("kept bytes {:#x} are damaged: wrong checksum", handle.0);
            return Err(Failure::new(Errno::Io, reason));
        }
        Ok(bytes)
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

fn text(name: &Name) -> String {
    String::from_utf8_lossy(name.as_bytes_without_nul()).into_owned()
}

fn missing(handle: Handle) -> Failure {
    Failure::new(
        Errno::NoEnt,
        format!("there is no kept object {:#x} of that kind in what came", handle.0),
    )
}
