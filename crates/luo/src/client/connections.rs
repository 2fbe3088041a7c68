//! Connections to one place, made when they are needed and made again when they break.
//!
//! Invariants:
//! - A call owns its connection until its answer has come and was understood. So calls from several
//!   threads or tasks do not wait for each other; and a connection whose answer is still to come
//!   (after a deadline, an error, or when a future was dropped) is closed with the call, so that
//!   its answer is never taken for another's.
//! - A connection that broke is made again until the deadline, and the exchange goes on where it
//!   was.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::stream::Stream;
use super::target::{Target, is_transient};
use crate::drive::{Deadline, Drive};
use crate::error::Error;
use crate::exchange::{Answer, Exchange, Prepared};

/// Connections that are kept for the next calls.
const IDLE: usize = 4;

/// Connections to one place.
#[derive(Debug)]
pub(super) struct Connections<D: Drive> {
    target: Target,
    idle: Mutex<Vec<Stream<D>>>,
    /// Whether luod was ever reached: then its absence is a restart, and is waited for.
    reached: AtomicBool,
}

impl<D: Drive> Connections<D> {
    pub(super) fn new(target: Target) -> Self {
        let reached = AtomicBool::new(matches!(target, Target::Session(_)));
        Self { target, idle: Mutex::new(Vec::new()), reached }
    }

    /// With one connection that is there already.
    pub(super) fn with(target: Target, socket: OwnedFd) -> Result<Self, Error> {
        let connections = Self::new(target);
        connections.give_back(Stream::over(socket)?);
        Ok(connections)
    }

    pub(super) fn target(&self) -> &Target {
        &self.target
    }

    /// Makes a connection now, for the first call. luod's absence is an error at once.
    pub(super) fn connect(&self) -> Result<(), Error> {
        let stream = self.open()?;
        self.give_back(stream);
        Ok(())
    }

    /// One call; `read` says what its answer means.
    pub(super) async fn call<T>(
        &self,
        call: Prepared<'_>,
        deadline: &Deadline,
        read: impl FnOnce(Answer) -> Result<T, Error>,
    ) -> Result<T, Error> {
        self.ask(&mut Exchange::new(vec![call]), deadline, read).await
    }

    /// As [`call`](Self::call), with an exchange that tells afterwards what became of it.
    pub(super) async fn ask<T>(
        &self,
        exchange: &mut Exchange<'_>,
        deadline: &Deadline,
        read: impl FnOnce(Answer) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let missing = Error::protocol(exchange.waiting_for(), "it has no answer");
        self.exchange(exchange, deadline, |answers| match answers.into_iter().next() {
            Some(answer) => read(answer),
            None => Err(missing),
        })
        .await
    }

    /// Several calls.
    pub(super) async fn batch<T>(
        &self,
        calls: Vec<Prepared<'_>>,
        deadline: &Deadline,
        read: impl FnOnce(Vec<Answer>) -> Result<T, Error>,
    ) -> Result<T, Error> {
        self.exchange(&mut Exchange::new(calls), deadline, read).await
    }

    async fn exchange<T>(
        &self,
        exchange: &mut Exchange<'_>,
        deadline: &Deadline,
        read: impl FnOnce(Vec<Answer>) -> Result<T, Error>,
    ) -> Result<T, Error> {
        if !exchange.is_waiting() {
            return read(Vec::new());
        }
        let stream = self.complete(self.take(), exchange, deadline).await?;
        let result = read(exchange.take_answers());
        // Nobody knows what a peer that is not understood says next.
        if !matches!(result, Err(Error::Protocol { .. })) {
            self.give_back(stream);
        }
        result
    }

    /// The next answer of an exchange that is on its way on `stream`, or begins; gives the
    /// connection back as long as there is more to come.
    pub(super) async fn next(
        &self,
        stream: &mut Option<Stream<D>>,
        exchange: &mut Exchange<'_>,
        deadline: &Deadline,
    ) -> Result<Option<Answer>, Error> {
        if stream.is_none() {
            // It ended with a future that was dropped; at the beginning this changes nothing.
            exchange.lost();
        }
        exchange.want_next();
        if exchange.is_waiting() {
            let open = stream.take().or_else(|| self.take());
            *stream = Some(self.complete(open, exchange, deadline).await?);
        }
        if exchange.is_over()
            && let Some(stream) = stream.take()
        {
            self.give_back(stream);
        }
        Ok(exchange.take_next())
    }

    /// Brings an exchange to where no answer is waited for, over this connection as long as it
    /// holds; gives the one on which it came there.
    async fn complete(
        &self,
        mut open: Option<Stream<D>>,
        exchange: &mut Exchange<'_>,
        deadline: &Deadline,
    ) -> Result<Stream<D>, Error> {
        let mut last = None;
        loop {
            let (is_new, answered) = (open.is_none(), exchange.answered_count());
            let error = match self.attempt(open.take(), exchange, deadline).await {
                Ok(Some(stream)) => return Ok(stream),
                Ok(None) => return Err(deadline.exceeded(exchange.waiting_for(), last)),
                Err(error) => error,
            };
            if !is_transient(&error, self.reached.load(Ordering::Relaxed)) {
                return Err(error);
            }
            exchange.lost();
            if deadline.has_passed() {
                return Err(deadline.exceeded(exchange.waiting_for(), Some(error)));
            }
            if is_new && exchange.answered_count() == answered {
                deadline.pause::<D>().await;
            }
            last = Some(error);
        }
    }

    async fn attempt(
        &self,
        open: Option<Stream<D>>,
        exchange: &mut Exchange<'_>,
        deadline: &Deadline,
    ) -> Result<Option<Stream<D>>, Error> {
        let mut stream = match open {
            Some(stream) => stream,
            None => self.open()?,
        };
        let done = stream.exchange(exchange, deadline.at()).await?;
        Ok(done.then_some(stream))
    }

    fn open(&self) -> Result<Stream<D>, Error> {
        let stream = Stream::connect(&self.target)?;
        self.reached.store(true, Ordering::Relaxed);
        Ok(stream)
    }

    /// A connection that is open and unused, if there is one.
    fn take(&self) -> Option<Stream<D>> {
        loop {
            let mut stream = self.idle().pop()?;
            if stream.is_quiet() {
                return Some(stream);
            }
        }
    }

    fn give_back(&self, stream: Stream<D>) {
        let mut idle = self.idle();
        if idle.len() < IDLE {
            idle.push(stream);
        }
    }

    /// A panic in another thread cannot leave the list half changed.
    fn idle(&self) -> MutexGuard<'_, Vec<Stream<D>>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
