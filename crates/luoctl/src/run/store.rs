//! The store: the descriptors of a program, in its session.
//!
//! Invariants:
//! - What was asked for is done in the order in which it was asked for.
//! - What luod refuses, or cannot keep at all, is said, and never dropped silently.
//! - While luod is away, or the machine's update stands in the way, what was asked for waits.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use luo::{Error, Options, Record, Session, State, Unclaimed};
use rustix::event::epoll;
use rustix::event::epoll::{EventData, EventFlags};

use super::arguments::Limits;
use super::names::{self, Catalogue, Found, Token};
use crate::failure::{Context, Failure, refused};
use crate::output::complain;

/// How long something that waits waits before it is tried again.
const PAUSE: Duration = Duration::from_millis(200);

/// Something to be done.
pub(crate) enum Op {
    Store {
        files: Vec<OwnedFd>,
        name: String,
        watched: bool,
    },
    Remove {
        name: String,
    },
    /// A file was hung up; it is named by its token.
    HungUp {
        token: u64,
    },
    /// To be closed when all before it is done.
    Barrier {
        _held: Vec<OwnedFd>,
    },
}

/// A file that is passed to the program.
#[derive(Debug)]
pub(crate) struct Stored {
    pub(crate) name: String,
    pub(crate) file: OwnedFd,
}

/// The program's store.
#[derive(Debug)]
pub(crate) struct Store {
    session: Session,
    name: String,
    options: Options,
    limits: Limits,
    catalogue: Catalogue,
    /// Every file of the catalogue, by its token.
    files: BTreeMap<u64, OwnedFd>,
    /// Where files that are looked after are.
    watch: Arc<OwnedFd>,
    /// Set when the program has ended.
    ended: Arc<AtomicBool>,
    /// Until when luod is waited for then.
    until: Option<Instant>,
}

impl Store {
    /// Claims the session, or makes it, and takes back what is in it. Files that cannot be taken back
    /// are named, and are no part of the session any more once it is [begun](Self::begin) anew.
    pub(crate) fn open(
        name: &str,
        options: Options,
        limits: Limits,
        ended: Arc<AtomicBool>,
    ) -> Result<Self, Failure> {
        let session =
            Session::open_with(name, options.clone()).map_err(Failure::luod(Context::Run))?;
        let watch = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(|errno| {
            Failure::program("descriptors cannot be looked after")(errno.into())
        })?;
        let mut store = Self {
            session,
            name: name.to_owned(),
            options,
            limits,
            catalogue: Catalogue::default(),
            files: BTreeMap::new(),
            watch: Arc::new(watch),
            ended,
            until: None,
        };
        store.take_back()?;
        Ok(store)
    }

    fn take_back(&mut self) -> Result<(), Failure> {
        let failed = |error| Failure::luod(Context::Run)(error);
        let foreign =
            |names::Foreign(token)| Failure::ForeignSession { session: self.name.clone(), token };
        let info = self.session.info().map_err(failed)?;
        if info.state != State::Updated {
            // A session without files is new, or was left by a program that had none.
            return match info.files.first() {
                None => Ok(()),
                Some(token) => Err(foreign(names::Foreign(*token))),
            };
        }
        let found = Found::new(&info.incoming).map_err(foreign)?;
        for (token, record) in self.retrieve(&found.names)? {
            let bytes = Record::try_from(record).and_then(|record| record.bytes());
            let name = bytes.ok().and_then(|bytes| names::of_record(&bytes));
            let name = name.ok_or(names::Foreign(token)).map_err(foreign)?;
            self.catalogue.found_name(token, name).map_err(foreign)?;
        }
        for (token, file) in self.retrieve(&found.files)? {
            let token = self.catalogue.found_file(token).map_err(foreign)?;
            self.look_after(token, &file);
            self.files.insert(token.number(), file);
        }
        Ok(())
    }

    fn retrieve(&self, tokens: &[u64]) -> Result<Vec<(u64, OwnedFd)>, Failure> {
        let came = self.session.retrieve_many(tokens).map_err(Failure::luod(Context::Run))?;
        let mut files = Vec::with_capacity(came.len());
        for (token, file) in tokens.iter().zip(came) {
            match file {
                Ok(file) => files.push((*token, file)),
                Err(refusal) => {
                    complain(&format!("a file did not come back: {}", refused(&refusal)))
                }
            }
        }
        Ok(files)
    }

    /// Duplicates of everything that is there, in the order in which it was stored, for the program.
    pub(crate) fn stored(&self) -> std::io::Result<Vec<Stored>> {
        let files = self.catalogue.files();
        files
            .filter_map(|(token, name)| Some((self.files.get(&token.number())?, name)))
            .map(|(file, name)| Ok(Stored { name: name.to_owned(), file: file.try_clone()? }))
            .collect()
    }

    /// Whether there is a file of this name.
    pub(crate) fn has(&self, name: &str) -> bool {
        !self.catalogue.by_name(name).is_empty()
    }

    pub(crate) fn watch(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.watch)
    }

    /// The program has begun: from here on the session is its own, and what is in it goes along to the
    /// next start.
    pub(crate) fn begin(&mut self) -> Result<(), Failure> {
        let failed = |error| Failure::luod(Context::Run)(error);
        if self.session.is_updated().map_err(failed)? {
            self.session.finish_with(Unclaimed::Release, true).map_err(failed)?;
        }
        let unused = self.catalogue.unused();
        if !unused.is_empty() {
            self.session.unpreserve_many(&unused).map_err(failed)?;
        }
        Ok(())
    }

    /// Ends the session.
    pub(crate) fn release(self) -> Result<(), Failure> {
        self.session.release().map_err(Failure::luod(Context::Run))
    }

    /// Does what was asked for.
    pub(crate) fn run(&mut self, op: Op) {
        match op {
            Op::Store { files, name, watched } => {
                for file in files {
                    self.store(file, &name, watched);
                }
            }
            Op::Remove { name } => {
                for token in self.catalogue.by_name(&name) {
                    self.remove(token);
                }
            }
            Op::HungUp { token } => {
                let mut files = self.catalogue.files().map(|(file, _)| file);
                let file = files.find(|file| file.number() == token);
                drop(files);
                if let Some(file) = file {
                    self.remove(file);
                }
            }
            Op::Barrier { .. } => {}
        }
    }

    /// Keeps one file, unless it is kept already.
    pub(crate) fn store(&mut self, file: OwnedFd, name: &str, watched: bool) {
        // Where the kernel cannot tell, luod refuses a duplicate.
        let is_file = |other: &OwnedFd| luo_sys::same_description(&file, other).unwrap_or(false);
        if self.files.values().any(is_file) {
            return;
        }
        if self.catalogue.count() >= self.limits.files {
            complain(&format!(
                "a descriptor named {name:?} is not kept: there are {} already; allow more with \
                 --store-max",
                self.catalogue.count()
            ));
            return;
        }
        let (record, token) = self.catalogue.add(name, watched);
        let kept = self.keep_record(record, name).and_then(|()| {
            self.insist("a descriptor", |session, required| {
                preserve(session, required, token.number(), &file)
            })
        });
        match kept {
            Ok(()) => {
                self.look_after(token, &file);
                self.files.insert(token.number(), file);
            }
            Err(error) => {
                complain(&format!("a descriptor named {name:?} is not kept: {}", reason(&error)));
                self.forget(token);
            }
        }
    }

    fn keep_record(&mut self, token: Option<u64>, name: &str) -> Result<(), Error> {
        let Some(token) = token else { return Ok(()) };
        let record = Record::new(&names::record(name))?;
        self.insist("a name", |session, required| preserve(session, required, token, &record))
    }

    fn look_after(&self, token: Token, file: &OwnedFd) {
        if token.watched {
            let data = EventData::new_u64(token.number());
            // Errors and hang-ups are told in any case, and once. What cannot be polled, a file on a
            // disk for example, is never hung up.
            let _ = epoll::add(&*self.watch, file, data, EventFlags::ONESHOT);
        }
    }

    fn remove(&mut self, token: Token) {
        let number = token.number();
        match self.insist("a removal", |session, _| session.unpreserve(number)) {
            Ok(()) => {}
            Err(error) if error.errno() == Some("ENOENT") => {}
            Err(error) => {
                complain(&format!("a descriptor cannot be let go of: {}", reason(&error)));
                return;
            }
        }
        if let Some(file) = self.files.remove(&number) {
            // Its description may live on elsewhere, and it must not be reported then.
            let _ = epoll::delete(&*self.watch, &file);
        }
        self.forget(token);
    }

    /// Takes a file out of the catalogue, and its name with the last one.
    fn forget(&mut self, token: Token) {
        let Some(record) = self.catalogue.remove(token) else { return };
        match self.insist("a removal", |session, _| session.unpreserve(record)) {
            Ok(()) => {}
            Err(error) if error.errno() == Some("ENOENT") => {}
            // A name without files is taken out at the next start.
            Err(error) => complain(&format!("a name cannot be let go of: {}", reason(&error))),
        }
    }

    /// Does something with the session, as often as it takes.
    fn insist(
        &mut self,
        what: &str,
        call: impl Fn(&Session, bool) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let mut again = false;
        loop {
            let error = match call(&self.session, self.limits.required) {
                Ok(()) => return Ok(()),
                // The request before this one was carried out, and its answer was lost.
                Err(error) if again && error.errno() == Some("EEXIST") => return Ok(()),
                Err(error) => error,
            };
            if matches!(error, Error::SessionGone) {
                self.renew()?;
            } else if !self.may_pass(&error) || self.is_over() {
                return Err(error);
            }
            if !again {
                complain(&format!("{what} waits: {}", reason(&error)));
            }
            again = true;
            thread::sleep(PAUSE);
        }
    }

    /// Whether the same request may succeed later.
    fn may_pass(&self, error: &Error) -> bool {
        match error {
            Error::DeadlineExceeded { .. }
            | Error::Unavailable { .. }
            | Error::Unreachable { .. }
            | Error::WorkerFailed { .. }
            | Error::SessionGone => true,
            // Not so if the file is in another session.
            Error::Refused(refusal) if refusal.errno == "EBUSY" => match self.session.info() {
                Ok(info) => matches!(info.state, State::Prepared | State::Frozen),
                Err(_) => true,
            },
            _ => false,
        }
    }

    /// Whether the program has ended, and there was time enough since.
    fn is_over(&mut self) -> bool {
        if !self.ended.load(Ordering::Relaxed) {
            return false;
        }
        let deadline = self.limits.deadline;
        let until = *self.until.get_or_insert_with(|| Instant::now() + deadline);
        Instant::now() >= until
    }

    /// luod was stopped for good and is there again, or somebody has released the session: everything
    /// is given anew.
    fn renew(&mut self) -> Result<(), Error> {
        let session = match Session::open_with(&self.name, self.options.clone()) {
            Ok(session) => session,
            // Then it is tried again, as everything else.
            Err(error) if self.may_pass(&error) && !self.is_over() => return Ok(()),
            Err(error) => return Err(error),
        };
        let held = session.info()?;
        if !held.files.is_empty() || !held.incoming.is_empty() {
            return Err(Error::SessionGone);
        }
        for (token, name) in self.catalogue.names() {
            preserve(&session, self.limits.required, token, &Record::new(&names::record(name))?)?;
        }
        for (token, file) in &self.files {
            preserve(&session, self.limits.required, *token, file)?;
        }
        complain("the session was gone; everything is in a new one");
        self.session = session;
        Ok(())
    }
}

fn preserve(session: &Session, required: bool, token: u64, file: &impl AsFd) -> Result<(), Error> {
    if required {
        return session.preserve(token, file);
    }
    let verdicts = session.preserve_optional(&[(token, file)])?;
    verdicts.into_iter().try_for_each(|verdict| verdict.map(|_| ()).map_err(Error::from))
}

fn reason(error: &Error) -> String {
    match error {
        Error::Refused(refusal) => refused(refusal),
        other => other.to_string(),
    }
}
