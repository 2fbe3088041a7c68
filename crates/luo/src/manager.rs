//! luod as a whole: its status, its sessions, and the cycle of the machine.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::connection::{Connection, RETRY_PAUSE, Target, is_transient};
use crate::error::Error;
use crate::exchange::{Answer, Prepared};
use crate::options::Options;
use crate::protocol::{
    Event, FileInfo, FileList, FinishMachine, Handover, ListFiles, MANAGER, Nothing,
    ReleaseSession, Report, Reported, SessionInfo, SessionList, State, Status, Unclaimed, Upgrade,
    Upgraded, Watched,
};

/// A connection to luod itself, with an API that blocks.
///
/// # Errors
/// Every call can fail with [`Error::Unavailable`] where no luod runs and with
/// [`Error::DeadlineExceeded`]; what luod refuses is [`Error::Refused`]. The events of the machine
/// are for root and for the user that luod runs as: EPERM for others.
#[derive(Debug)]
pub struct Manager {
    connection: Mutex<Connection>,
    options: Options,
}

impl Manager {
    /// Connects to luod.
    ///
    /// # Errors
    /// [`Error::Unavailable`] where no luod runs.
    pub fn connect(options: Options) -> Result<Self, Error> {
        let mut connection = Connection::new(Target::Socket(options.socket.clone()));
        connection.open()?;
        Ok(Self { connection: Mutex::new(connection), options })
    }

    /// What luod does at the moment.
    ///
    /// # Errors
    /// See the type.
    pub fn status(&self) -> Result<Status, Error> {
        self.ask("GetStatus", &Nothing {})
    }

    /// All sessions that this user may see.
    ///
    /// # Errors
    /// See the type.
    pub fn sessions(&self) -> Result<Vec<SessionInfo>, Error> {
        self.ask::<SessionList>("ListSessions", &Nothing {}).map(|list| list.sessions)
    }

    /// The files of one session, or of all that this user may see.
    ///
    /// # Errors
    /// ENOENT for a session that is not there.
    pub fn files(&self, session: Option<&str>) -> Result<Vec<FileInfo>, Error> {
        let parameters = ListFiles { session: session.map(str::to_owned) };
        let call = Prepared::streaming(MANAGER, "ListFiles", &parameters)?;
        let deadline = Instant::now() + self.options.deadline;
        let mut connection = self.lock();
        loop {
            match list_files(&mut connection, &call, deadline) {
                Ok(Some(files)) => return Ok(files),
                Ok(None) => {
                    connection.close();
                    return Err(Error::DeadlineExceeded {
                        method: call.method,
                        deadline: self.options.deadline,
                        source: None,
                    });
                }
                Err(error) if is_transient(&error) && Instant::now() < deadline => {
                    connection.close();
                    std::thread::sleep(RETRY_PAUSE);
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Ends a session and lets go of its files.
    ///
    /// # Errors
    /// ENOENT, EPERM if another user owns it, EBUSY while the machine's update holds it.
    pub fn release(&self, session: &str) -> Result<(), Error> {
        let parameters = ReleaseSession { name: session.to_owned() };
        let answer = self.send("ReleaseSession", &parameters)?;
        let repeated = answer.repeated;
        match answer.decode::<Nothing>() {
            // What a repeated request does not find, the first one took.
            Err(Error::Refused(refusal)) if repeated && refusal.errno == "ENOENT" => Ok(()),
            done => done.map(|_| ()),
        }
    }

    /// Keeps all that can be kept while the workloads run.
    ///
    /// # Errors
    /// EBUSY in a wrong state; what a handler or participant says: everything is then as before.
    pub fn prepare(&self) -> Result<Report, Error> {
        self.event("Prepare", State::Prepared, &Nothing {})
    }

    /// Keeps the rest: from here nothing may change.
    ///
    /// # Errors
    /// As [`prepare`](Self::prepare); the state is normal then.
    pub fn freeze(&self) -> Result<Report, Error> {
        self.event("Freeze", State::Frozen, &Nothing {})
    }

    /// Undoes what [`prepare`](Self::prepare) and [`freeze`](Self::freeze) did.
    ///
    /// # Errors
    /// EBUSY in a wrong state.
    pub fn cancel(&self) -> Result<Report, Error> {
        self.event("Cancel", State::Normal, &Nothing {})
    }

    /// Commits the handover and lets another luod begin on the other side.
    ///
    /// # Errors
    /// EBUSY unless frozen; what the carrier says: the state is still frozen then.
    pub fn depart(&self) -> Result<Report, Error> {
        self.event("Depart", State::Updated, &Nothing {})
    }

    /// Ends the live update of the machine.
    ///
    /// # Errors
    /// EBUSY in a wrong state, if a file was not retrieved, or a handler cannot finish yet.
    pub fn finish(&self, unclaimed: Unclaimed) -> Result<Report, Error> {
        self.event("Finish", State::Normal, &FinishMachine { unclaimed: Some(unclaimed) })
    }

    /// Prepares and freezes for real, measures, and cancels.
    ///
    /// # Errors
    /// As [`prepare`](Self::prepare).
    pub fn rehearse(&self) -> Result<Report, Error> {
        self.ask::<Reported>("Rehearse", &Nothing {}).map(|reported| reported.report)
    }

    /// Replaces luod, by `binary` if one is given, else by the one that runs.
    ///
    /// # Errors
    /// The reason why the new one did not take over; the old one serves on.
    pub fn upgrade(
        &self,
        binary: Option<BorrowedFd<'_>>,
        limit: Duration,
        keeper: bool,
    ) -> Result<Upgraded, Error> {
        let parameters = Upgrade {
            deadline_milliseconds: u64::try_from(limit.as_millis()).ok(),
            keeper: Some(keeper),
        };
        let call = Prepared::new(MANAGER, "Upgrade", &parameters, binary.into_iter().collect())?;
        // Both sides may take that long, and some time goes into stopping and starting.
        let answer = self.lock().call(call, limit * 3)?;
        answer.decode().map(|(upgraded, ..)| upgraded)
    }

    /// The handover as it would be now, in a memory file of that size in bytes.
    ///
    /// # Errors
    /// See the type.
    pub fn handover(&self) -> Result<(OwnedFd, u64), Error> {
        let call = Prepared::new(MANAGER, "GetHandover", &Nothing {}, Vec::new())?;
        let answer = self.lock().call(call, self.options.deadline)?;
        let (handover, mut descriptors, _) = answer.decode::<Handover>()?;
        match descriptors.pop() {
            Some(memory) => Ok((memory, handover.size)),
            None => Err(Error::Protocol {
                method: "GetHandover".to_owned(),
                reason: "it brought no descriptor".to_owned(),
            }),
        }
    }

    /// Events as they come, without end. A luod that is restarted is waited for.
    ///
    /// # Errors
    /// See the type.
    pub fn watch(&self) -> Result<Watch, Error> {
        let call = Prepared::streaming(MANAGER, "Watch", &Nothing {})?;
        let target = Target::Socket(self.options.socket.clone());
        Ok(Watch { feed: Feed::new(target, call, self.options.deadline) })
    }

    /// An event, which has taken place if it is repeated and the state is the one it leads to: then
    /// what it measured is not known any more.
    fn event(
        &self,
        method: &str,
        leads_to: State,
        parameters: &impl Serialize,
    ) -> Result<Report, Error> {
        let answer = self.send(method, parameters)?;
        let repeated = answer.repeated;
        match answer.decode::<Reported>() {
            Err(Error::Refused(refusal)) if repeated && refusal.errno == "EBUSY" => {
                let state = self.status()?.state;
                if state != leads_to {
                    return Err(refusal.into());
                }
                Ok(Report {
                    event: method.to_lowercase(),
                    state,
                    microseconds: 0,
                    timings: Vec::new(),
                    left_out: Vec::new(),
                })
            }
            reported => reported.map(|(reported, ..)| reported.report),
        }
    }

    fn ask<R: DeserializeOwned>(
        &self,
        method: &str,
        parameters: &impl Serialize,
    ) -> Result<R, Error> {
        self.send(method, parameters)?.decode().map(|(reply, ..)| reply)
    }

    fn send(&self, method: &str, parameters: &impl Serialize) -> Result<Answer, Error> {
        let call = Prepared::new(MANAGER, method, parameters, Vec::new())?;
        self.lock().call(call, self.options.deadline)
    }

    fn lock(&self) -> MutexGuard<'_, Connection> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// All parts of one list; `None` when the deadline has passed.
fn list_files(
    connection: &mut Connection,
    call: &Prepared<'_>,
    deadline: Instant,
) -> Result<Option<Vec<FileInfo>>, Error> {
    let stream = connection.open()?;
    if !stream.send(call, Some(deadline))? {
        return Ok(None);
    }
    let mut files = Vec::new();
    while let Some(frame) = stream.receive(Some(deadline))? {
        let (part, _, more) = Answer::new(&call.method, frame).decode::<FileList>()?;
        files.extend(part.files);
        if !more {
            return Ok(Some(files));
        }
    }
    Ok(None)
}

/// Events of luod. See [`Manager::watch`].
#[derive(Debug)]
pub struct Watch {
    feed: Feed,
}

impl Watch {
    /// The next event; `None` if none came in this time.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if luod is away for longer than the deadline.
    pub fn next_event(&mut self, wait: Option<Duration>) -> Result<Option<Event>, Error> {
        self.feed.next::<Watched>(wait).map(|watched| watched.map(|watched| watched.event))
    }
}

/// A call with replies without end, made again whenever the connection breaks.
#[derive(Debug)]
pub(crate) struct Feed {
    connection: Connection,
    call: Prepared<'static>,
    patience: Duration,
    open: bool,
}

impl Feed {
    pub(crate) fn new(target: Target, call: Prepared<'static>, patience: Duration) -> Self {
        Self { connection: Connection::new(target), call, patience, open: false }
    }

    /// The next reply; `None` if none came in this time, `wait` being `None` for ever.
    pub(crate) fn next<R: DeserializeOwned>(
        &mut self,
        wait: Option<Duration>,
    ) -> Result<Option<R>, Error> {
        let until = wait.map(|wait| Instant::now() + wait);
        let mut away = None;
        loop {
            match self.attempt(until) {
                Ok(Some(answer)) => return answer.decode().map(|(reply, ..)| Some(reply)),
                Ok(None) => return Ok(None),
                Err(error) if is_transient(&error) => {
                    let first = !self.open && away.is_none();
                    self.connection.close();
                    self.open = false;
                    let since = *away.get_or_insert_with(Instant::now);
                    let unreached = first && matches!(error, Error::Unavailable { .. });
                    if unreached || since.elapsed() >= self.patience {
                        return Err(error);
                    }
                    if until.is_some_and(|until| Instant::now() >= until) {
                        return Ok(None);
                    }
                    std::thread::sleep(RETRY_PAUSE);
                }
                Err(error) => {
                    self.connection.close();
                    self.open = false;
                    return Err(error);
                }
            }
        }
    }

    fn attempt(&mut self, until: Option<Instant>) -> Result<Option<Answer>, Error> {
        let sending = Instant::now() + self.patience;
        let stream = self.connection.open()?;
        if !self.open {
            if !stream.send(&self.call, Some(sending))? {
                return Err(Error::DeadlineExceeded {
                    method: self.call.method.clone(),
                    deadline: self.patience,
                    source: None,
                });
            }
            self.open = true;
        }
        let frame = stream.receive(until)?;
        Ok(frame.map(|frame| Answer::new(&self.call.method, frame)))
    }
}
