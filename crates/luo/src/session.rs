//! Sessions: named containers of files that outlive the process that made them.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::calls::{self, Recalled, Verdict};
use crate::connection::{Connection, Target};
use crate::error::{Error, Refusal};
use crate::exchange::Prepared;
use crate::options::Options;
use crate::protocol::{Info, SESSION, State, Unclaimed};

/// A session, with an API that blocks.
///
/// Every call has a deadline ([`Options::deadline`]), within which a luod that is restarted or
/// upgraded is waited for: the caller does not notice. The session lives as long as any process
/// holds a copy of its descriptor, and after that as its policy says; dropping this value closes
/// one copy.
///
/// # Errors
/// Every call can fail with [`Error::DeadlineExceeded`], [`Error::SessionGone`] and the other ways
/// in which luod cannot be talked to. What luod itself refuses is [`Error::Refused`] with the
/// errno that is named at each call.
#[derive(Debug)]
pub struct Session {
    connection: Mutex<Connection>,
    options: Options,
    name: String,
}

impl Session {
    /// The session of this name: taken over from the process before, then it is
    /// [`updated`](Self::is_updated), or made anew. If another process holds it, this waits until
    /// that one has closed it.
    ///
    /// # Errors
    /// [`Error::Unavailable`] where no luod runs; EPERM if another user owns it; EBUSY if another
    /// process still holds it at the deadline; ENOSPC if a limit is reached; EINVAL or
    /// ENAMETOOLONG for a bad name.
    pub fn open(name: &str) -> Result<Self, Error> {
        Self::open_with(name, Options::default())
    }

    /// As [`open`](Self::open), with options.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_with(name: &str, options: Options) -> Result<Self, Error> {
        let deadline = Instant::now() + options.deadline;
        loop {
            match Self::claim_with(name, options.clone()) {
                Err(Error::Refused(refusal)) if refusal.errno == "ENOENT" => {}
                other => return other,
            }
            match Self::create_with(name, options.clone()) {
                // Somebody made it in between.
                Err(Error::Refused(refusal))
                    if refusal.errno == "EEXIST" && Instant::now() < deadline => {}
                other => return other,
            }
        }
    }

    /// As [`open`](Self::open), or `None` where no luod runs, so that a service can do without.
    ///
    /// # Errors
    /// As [`open`](Self::open), but for [`Error::Unavailable`].
    pub fn connect_or_none(name: &str) -> Result<Option<Self>, Error> {
        match Self::open(name) {
            Ok(session) => Ok(Some(session)),
            Err(Error::Unavailable { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Makes a session.
    ///
    /// # Errors
    /// EEXIST if the name is taken, and as [`open`](Self::open).
    pub fn create_with(name: &str, options: Options) -> Result<Self, Error> {
        let call = calls::create(name, &options)?;
        Self::given(call, name, options)
    }

    /// Takes over a session that nobody holds any more.
    ///
    /// # Errors
    /// ENOENT if there is none, and as [`open`](Self::open).
    pub fn claim_with(name: &str, options: Options) -> Result<Self, Error> {
        let wait = claim_wait(options.deadline);
        let call = calls::claim(name, wait)?;
        Self::given(call, name, options)
    }

    fn given(call: Prepared<'_>, name: &str, options: Options) -> Result<Self, Error> {
        let mut manager = Connection::new(Target::Socket(options.socket.clone()));
        let answer = manager.call(call, options.deadline)?;
        let (_, descriptor) = calls::given(answer)?;
        Ok(Self::new(name.to_owned(), descriptor, options))
    }

    fn new(name: String, descriptor: OwnedFd, options: Options) -> Self {
        let connection = Mutex::new(Connection::new(Target::Session(descriptor)));
        Self { connection, options, name }
    }

    /// A session whose descriptor another process has passed on. It needs no other right.
    ///
    /// # Errors
    /// [`Error::SessionGone`] if the descriptor is not a session's or the session has ended.
    pub fn from_descriptor(descriptor: OwnedFd) -> Result<Self, Error> {
        let mut session = Self::new(String::new(), descriptor, Options::default());
        session.name = session.info()?.name;
        Ok(session)
    }

    /// The session's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A copy of the session's descriptor, to be passed to another process: whoever has it may use
    /// the session.
    ///
    /// # Errors
    /// [`Error::System`] if no descriptor is free.
    pub fn descriptor(&self) -> Result<OwnedFd, Error> {
        match self.lock().target() {
            Target::Session(descriptor) => descriptor
                .try_clone()
                .map_err(Error::system("duplicating the session's descriptor")),
            Target::Socket(_) => Err(Error::SessionGone),
        }
    }

    /// Where the session is in the cycle, and its tokens.
    ///
    /// # Errors
    /// See the type.
    pub fn info(&self) -> Result<Info, Error> {
        self.call(calls::plain("GetInfo")?)?.decode().map(|(info, ..)| info)
    }

    /// Whether files came over and wait to be retrieved.
    ///
    /// # Errors
    /// See the type.
    pub fn is_updated(&self) -> Result<bool, Error> {
        Ok(self.info()?.state == State::Updated)
    }

    /// Gives luod a file to keep under this token. The caller goes on using it; luod has a
    /// duplicate.
    ///
    /// # Errors
    /// EEXIST if the token is taken, EBUSY in a wrong state or if the same open file description
    /// is preserved already, ENOENT if no handler takes it, ENOSPC if a limit is reached.
    pub fn preserve(&self, token: u64, file: impl AsFd) -> Result<(), Error> {
        let verdicts = self.preserve_batch(&[file.as_fd()], Some(&[token]), true)?;
        one(verdicts)?.map(|_| ()).map_err(Error::from)
    }

    /// As [`preserve`](Self::preserve), under a token that luod chooses.
    ///
    /// # Errors
    /// As [`preserve`](Self::preserve).
    pub fn preserve_assigned(&self, file: impl AsFd) -> Result<u64, Error> {
        one(self.preserve_batch(&[file.as_fd()], None, true)?)?.map_err(Error::from)
    }

    /// Gives many files at once, with a verdict for each. Any number: messages are split.
    ///
    /// # Errors
    /// See the type. Of a batch that failed in the middle, a part may have been taken.
    pub fn preserve_many<F: AsFd>(&self, files: &[(u64, F)]) -> Result<Vec<Verdict>, Error> {
        let tokens: Vec<u64> = files.iter().map(|(token, _)| *token).collect();
        let files: Vec<BorrowedFd<'_>> = files.iter().map(|(_, file)| file.as_fd()).collect();
        self.preserve_batch(&files, Some(&tokens), true)
    }

    /// As [`preserve_many`](Self::preserve_many), for files without which an update may go on.
    ///
    /// # Errors
    /// As [`preserve_many`](Self::preserve_many).
    pub fn preserve_optional<F: AsFd>(&self, files: &[(u64, F)]) -> Result<Vec<Verdict>, Error> {
        let tokens: Vec<u64> = files.iter().map(|(token, _)| *token).collect();
        let files: Vec<BorrowedFd<'_>> = files.iter().map(|(_, file)| file.as_fd()).collect();
        self.preserve_batch(&files, Some(&tokens), false)
    }

    fn preserve_batch(
        &self,
        files: &[BorrowedFd<'_>],
        tokens: Option<&[u64]>,
        required: bool,
    ) -> Result<Vec<Verdict>, Error> {
        calls::preserved(self.exchange(calls::preserve(files, tokens, required)?)?)
    }

    /// Takes a file out: luod closes its duplicate.
    ///
    /// # Errors
    /// ENOENT if there is no such token, EBUSY in a wrong state.
    pub fn unpreserve(&self, token: u64) -> Result<(), Error> {
        match self.unpreserve_many(&[token])?.pop() {
            None => Ok(()),
            Some(refusal) => Err(refusal.into()),
        }
    }

    /// Takes many files out; gives those that were refused.
    ///
    /// # Errors
    /// See the type.
    pub fn unpreserve_many(&self, tokens: &[u64]) -> Result<Vec<Refusal>, Error> {
        calls::unpreserved(self.exchange(calls::unpreserve(tokens)?)?)
    }

    /// Takes a file back. Any number of times, in any order, until [`finish`](Self::finish).
    ///
    /// # Errors
    /// EBUSY if the session is not updated, ENOENT if no such file came over, and the error of a
    /// file that could not be restored: it is the same each time, and harms no other file.
    pub fn retrieve(&self, token: u64) -> Result<OwnedFd, Error> {
        one(self.retrieve_many(&[token])?)?.map_err(Error::from)
    }

    /// Takes many files back, each or the reason why not. Any number: messages are split.
    ///
    /// # Errors
    /// See the type.
    pub fn retrieve_many(&self, tokens: &[u64]) -> Result<Vec<Recalled>, Error> {
        calls::retrieved(tokens, self.exchange(calls::retrieve(tokens)?)?)
    }

    /// Keeps all that can be kept while the workload runs, ahead of the machine.
    ///
    /// # Errors
    /// EBUSY in a wrong state, and what a handler says; everything is then as it was before.
    pub fn prepare(&self) -> Result<(), Error> {
        self.event("Prepare", State::Prepared)
    }

    /// Keeps the rest: from here nothing of the session's files may change.
    ///
    /// # Errors
    /// As [`prepare`](Self::prepare); the session is `normal` then.
    pub fn freeze(&self) -> Result<(), Error> {
        let deadline = Instant::now() + self.options.deadline;
        loop {
            match self.attempt("Freeze", State::Frozen)? {
                Event::Done => return Ok(()),
                // luod was restarted in the middle and has undone both phases.
                Event::Undone(State::Normal, _) if Instant::now() < deadline => self.prepare()?,
                Event::Undone(_, refusal) => return Err(refusal.into()),
            }
        }
    }

    /// Undoes [`prepare`](Self::prepare) and [`freeze`](Self::freeze).
    ///
    /// # Errors
    /// EBUSY in a wrong state.
    pub fn cancel(&self) -> Result<(), Error> {
        self.event("Cancel", State::Normal)
    }

    /// Ends the live update: what was retrieved belongs to this process alone again. To have it
    /// kept over the next update as well, use [`finish_and_carry`](Self::finish_and_carry).
    ///
    /// # Errors
    /// EBUSY if a file was not retrieved, or a handler cannot finish yet; nothing was finished
    /// then.
    pub fn finish(&self) -> Result<(), Error> {
        self.finish_with(Unclaimed::Refuse, false)
    }

    /// Ends the live update; the files that were retrieved are preserved for the next one under
    /// their tokens, without being given again.
    ///
    /// # Errors
    /// As [`finish`](Self::finish).
    pub fn finish_and_carry(&self) -> Result<(), Error> {
        self.finish_with(Unclaimed::Refuse, true)
    }

    /// As [`finish`](Self::finish), and says what becomes of files that were not retrieved.
    ///
    /// # Errors
    /// As [`finish`](Self::finish).
    pub fn finish_with(&self, unclaimed: Unclaimed, carry_reclaimed: bool) -> Result<(), Error> {
        let answer = self.call(calls::finish(unclaimed, carry_reclaimed)?)?;
        calls::done(answer)
    }

    /// Ends the session at once: luod lets go of its files.
    ///
    /// # Errors
    /// EBUSY while the machine's update holds it. That it has ended already is none.
    pub fn release(self) -> Result<(), Error> {
        match self.call(calls::plain("Release")?) {
            // Whether it was this call, sent before luod was restarted, or somebody else's.
            Err(Error::SessionGone) => Ok(()),
            answer => calls::done(answer?),
        }
    }

    fn event(&self, method: &str, leads_to: State) -> Result<(), Error> {
        match self.attempt(method, leads_to)? {
            Event::Done => Ok(()),
            Event::Undone(_, refusal) => Err(refusal.into()),
        }
    }

    /// An event, which has taken place if it is repeated and the state is the one it leads to.
    fn attempt(&self, method: &str, leads_to: State) -> Result<Event, Error> {
        let answer = self.call(calls::plain(method)?)?;
        let repeated = answer.repeated;
        match calls::done(answer) {
            Err(Error::Refused(refusal)) if repeated && refusal.errno == "EBUSY" => {
                let state = self.info()?.state;
                Ok(if state == leads_to { Event::Done } else { Event::Undone(state, refusal) })
            }
            other => other.map(|()| Event::Done),
        }
    }

    fn call(&self, call: Prepared<'_>) -> Result<crate::exchange::Answer, Error> {
        self.lock().call(call, self.options.deadline)
    }

    fn exchange(&self, calls: Vec<Prepared<'_>>) -> Result<Vec<crate::exchange::Answer>, Error> {
        self.lock().exchange(calls, self.options.deadline)
    }

    /// A panic in another thread cannot leave a connection half changed: it is closed whenever an
    /// exchange does not come to its end.
    fn lock(&self) -> MutexGuard<'_, Connection> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What came of an event that may have been sent again.
enum Event {
    Done,
    /// The repetition was refused, in this state.
    Undone(State, Refusal),
}

/// The one verdict on a batch of one.
fn one<T>(mut list: Vec<T>) -> Result<T, Error> {
    list.pop().ok_or_else(|| Error::Protocol {
        method: SESSION.to_owned(),
        reason: "it does not speak of the file".to_owned(),
    })
}

/// Waiting on luod's side ends a little before the caller's deadline, so that its reason arrives.
pub(crate) fn claim_wait(deadline: Duration) -> u64 {
    let wait = deadline.saturating_sub(deadline / 8);
    u64::try_from(wait.as_millis()).unwrap_or(u64::MAX)
}
