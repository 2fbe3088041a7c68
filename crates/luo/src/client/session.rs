//! A session, for every way to wait.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::connections::Connections;
use super::retrieval::Retrieval;
use super::target::{self, Target};
use crate::calls::{self, Recalled, Verdict};
use crate::drive::{Deadline, Drive};
use crate::error::{Error, Refusal};
use crate::exchange::{Exchange, Prepared};
use crate::kernel_session::{ArrivedKernelSession, KernelSession};
use crate::options::Options;
use crate::protocol::{Info, State, Unclaimed};
use luo_sys::Memory;

#[derive(Debug)]
pub(crate) struct Session<D: Drive> {
    connections: Connections<D>,
    options: Options,
    name: String,
}

/// What came of an event that may have been sent again.
enum Event {
    Done,
    /// The repetition was refused, in this state.
    Undone(State, Error),
}

impl<D: Drive> Session<D> {
    pub(crate) async fn open(name: &str, options: Options) -> Result<Self, Error> {
        let manager = Connections::<D>::new(Target::Socket(options.socket.clone()));
        let deadline = Deadline::after(options.deadline);
        let (ours, theirs) = target::pair()?;
        let descriptor = loop {
            let claim = calls::claim(name, deadline.left(), theirs.as_fd())?;
            match manager.call(claim, &deadline, calls::given).await {
                Err(error) if error.is("ENOENT") => {}
                other => break other?,
            }
            let create = calls::create(name, &options, theirs.as_fd())?;
            match manager.call(create, &deadline, calls::given).await {
                // Somebody made it in between.
                Err(error) if error.is("EEXIST") && !deadline.has_passed() => {
                    deadline.pause::<D>().await;
                }
                other => break other?,
            }
        };
        Self::connected(name, descriptor, ours, options)
    }

    pub(crate) async fn open_or_none(name: &str, options: Options) -> Result<Option<Self>, Error> {
        match Self::open(name, options).await {
            Ok(session) => Ok(Some(session)),
            Err(Error::Unavailable { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub(crate) async fn create(name: &str, options: Options) -> Result<Self, Error> {
        let (ours, theirs) = target::pair()?;
        let call = calls::create(name, &options, theirs.as_fd())?;
        let descriptor = Self::given(&options, call).await?;
        Self::connected(name, descriptor, ours, options)
    }

    pub(crate) async fn claim(name: &str, options: Options) -> Result<Self, Error> {
        let (ours, theirs) = target::pair()?;
        let call = calls::claim(name, options.deadline, theirs.as_fd())?;
        let descriptor = Self::given(&options, call).await?;
        Self::connected(name, descriptor, ours, options)
    }

    async fn given(options: &Options, call: Prepared<'_>) -> Result<OwnedFd, Error> {
        let manager = Connections::<D>::new(Target::Socket(options.socket.clone()));
        manager.call(call, &Deadline::after(options.deadline), calls::given).await
    }

    /// With the connection whose other end luod got with the call. A luod that knows nothing of it
    /// has closed that end, and the first call makes another.
    fn connected(
        name: &str,
        descriptor: OwnedFd,
        ours: OwnedFd,
        options: Options,
    ) -> Result<Self, Error> {
        let connections = Connections::with(Target::Session(descriptor), ours)?;
        Ok(Self { connections, options, name: name.to_owned() })
    }

    pub(crate) async fn from_descriptor(
        descriptor: OwnedFd,
        options: Options,
    ) -> Result<Self, Error> {
        let mut session = Self::new("", Target::session(descriptor)?, options);
        session.name = session.info().await?.name;
        Ok(session)
    }

    fn new(name: &str, target: Target, options: Options) -> Self {
        Self { connections: Connections::new(target), options, name: name.to_owned() }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn descriptor(&self) -> Result<OwnedFd, Error> {
        match self.connections.target() {
            Target::Session(descriptor) => descriptor
                .try_clone()
                .map_err(Error::system("duplicating the session's descriptor")),
            Target::Socket(_) => Err(Error::NotASession),
        }
    }

    pub(crate) async fn info(&self) -> Result<Info, Error> {
        self.info_until(&self.deadline()).await
    }

    async fn info_until(&self, deadline: &Deadline) -> Result<Info, Error> {
        self.connections.call(calls::plain("GetInfo")?, deadline, calls::reply).await
    }

    pub(crate) async fn is_updated(&self) -> Result<bool, Error> {
        Ok(self.info().await?.state == State::Updated)
    }

    pub(crate) async fn preserve(
        &self,
        file: BorrowedFd<'_>,
        token: Option<u64>,
    ) -> Result<u64, Error> {
        let tokens = token.as_ref().map(std::slice::from_ref);
        calls::one(self.preserve_batch(&[file], tokens, true).await?)
    }

    pub(crate) async fn preserve_batch(
        &self,
        files: &[BorrowedFd<'_>],
        tokens: Option<&[u64]>,
        required: bool,
    ) -> Result<Vec<Verdict>, Error> {
        let calls = calls::preserve(files, tokens, required)?;
        let read = |answers| calls::preserved(files.len(), tokens, answers);
        self.connections.batch(calls, &self.deadline(), read).await
    }

    pub(crate) async fn preserve_all(
        &self,
        files: &[BorrowedFd<'_>],
        tokens: &[u64],
    ) -> Result<(), Error> {
        let verdicts = self.preserve_batch(files, Some(tokens), true).await?;
        verdicts.into_iter().try_for_each(|verdict| verdict.map(|_| ())).map_err(Error::from)
    }

    pub(crate) async fn duplicate(&self, original: u64, token: Option<u64>) -> Result<u64, Error> {
        let call = calls::duplicate(original, token)?;
        self.connections.call(call, &self.deadline(), calls::duplicated).await
    }

    pub(crate) async fn allocate(&self, token: u64, len: u64) -> Result<Memory, Error> {
        let deadline = self.deadline();
        let call = calls::allocate(token, len)?;
        let given = self.connections.call(call, &deadline, calls::allocated).await?;
        if let Some(descriptor) = given {
            match Memory::from_fd(descriptor) {
                Ok(memory) => return Ok(memory),
                // It cannot be mapped in this process: what follows can.
                Err(_) => self.unpreserve(token).await?,
            }
        }
        let memory = Memory::create("luo-memory", len)?;
        self.preserve(memory.as_fd(), Some(token)).await?;
        Ok(memory)
    }

    pub(crate) async fn retrieve_memory(&self, token: u64) -> Result<Memory, Error> {
        Ok(Memory::from_fd(self.retrieve(token).await?)?)
    }

    pub(crate) async fn kernel_session(&self) -> Result<KernelSession, Error> {
        let call = calls::kernel_session(false)?;
        let (deadline, read) = (self.deadline(), calls::kernel_session_given);
        KernelSession::new(self.connections.call(call, &deadline, read).await?)
    }

    pub(crate) async fn arrived_kernel_session(&self) -> Result<ArrivedKernelSession, Error> {
        let call = calls::kernel_session(true)?;
        let (deadline, read) = (self.deadline(), calls::kernel_session_given);
        ArrivedKernelSession::new(self.connections.call(call, &deadline, read).await?)
    }

    pub(crate) async fn release_kernel_session(&self) -> Result<(), Error> {
        let call = calls::plain("ReleaseKernelSession")?;
        self.connections.call(call, &self.deadline(), calls::done).await
    }

    pub(crate) async fn unpreserve(&self, token: u64) -> Result<(), Error> {
        match self.unpreserve_many(&[token]).await?.pop() {
            None => Ok(()),
            Some(refusal) => Err(refusal.into()),
        }
    }

    pub(crate) async fn unpreserve_many(&self, tokens: &[u64]) -> Result<Vec<Refusal>, Error> {
        let calls = calls::unpreserve(tokens)?;
        let read = |answers| calls::unpreserved(tokens, answers);
        self.connections.batch(calls, &self.deadline(), read).await
    }

    pub(crate) async fn retrieve(&self, token: u64) -> Result<OwnedFd, Error> {
        calls::one(self.retrieve_many(&[token]).await?)
    }

    pub(crate) async fn retrieve_many(&self, tokens: &[u64]) -> Result<Vec<Recalled>, Error> {
        let calls = calls::retrieve(tokens)?;
        let read = |answers| calls::retrieved(tokens, answers);
        self.connections.batch(calls, &self.deadline(), read).await
    }

    pub(crate) fn retrieve_each(&self, tokens: &[u64]) -> Result<Retrieval<'_, D>, Error> {
        Retrieval::new(&self.connections, &self.options, tokens)
    }

    pub(crate) async fn prepare(&self) -> Result<(), Error> {
        self.event(calls::plain("Prepare")?, State::Prepared).await
    }

    pub(crate) async fn freeze(&self) -> Result<(), Error> {
        let deadline = self.deadline();
        loop {
            let freeze = calls::plain("Freeze")?;
            match self.attempt(freeze, State::Frozen, &deadline).await? {
                Event::Done => return Ok(()),
                // luod was restarted in the middle of it, and has undone both phases.
                Event::Undone(State::Normal, _) if !deadline.has_passed() => self.prepare().await?,
                Event::Undone(_, error) => return Err(error),
            }
        }
    }

    pub(crate) async fn cancel(&self) -> Result<(), Error> {
        self.event(calls::plain("Cancel")?, State::Normal).await
    }

    pub(crate) async fn finish(&self, unclaimed: Unclaimed, carry: bool) -> Result<(), Error> {
        self.event(calls::finish(unclaimed, carry)?, State::Normal).await
    }

    async fn event(&self, call: Prepared<'_>, leads_to: State) -> Result<(), Error> {
        match self.attempt(call, leads_to, &self.deadline()).await? {
            Event::Done => Ok(()),
            Event::Undone(_, error) => Err(error),
        }
    }

    /// An event, which has taken place if its answer was lost, luod says that it is out of place
    /// now, and the state is the one it leads to.
    async fn attempt(
        &self,
        call: Prepared<'_>,
        leads_to: State,
        deadline: &Deadline,
    ) -> Result<Event, Error> {
        let mut exchange = Exchange::new(vec![call]);
        match self.connections.ask(&mut exchange, deadline, calls::done).await {
            Err(error) if exchange.is_repeated() && error.is("EBUSY") => {
                let state = self.info_until(deadline).await?.state;
                Ok(if state == leads_to { Event::Done } else { Event::Undone(state, error) })
            }
            other => other.map(|()| Event::Done),
        }
    }

    /// A session that is gone when its release is repeated was released the first time.
    pub(crate) async fn release(&self) -> Result<(), Error> {
        let mut exchange = Exchange::new(vec![calls::plain("Release")?]);
        match self.connections.ask(&mut exchange, &self.deadline(), calls::done).await {
            Err(Error::SessionGone) if exchange.is_repeated() => Ok(()),
            Err(error) if exchange.is_repeated() && error.is("ENOENT") => Ok(()),
            other => other,
        }
    }

    fn deadline(&self) -> Deadline {
        Deadline::after(self.options.deadline)
    }
}
