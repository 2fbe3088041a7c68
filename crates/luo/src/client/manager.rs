//! luod as a whole, for every way to wait.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::connections::Connections;
use super::feed::Feed;
use super::target::Target;
use crate::calls;
use crate::drive::{Deadline, Drive};
use crate::error::Error;
use crate::exchange::{Answer, Exchange, Prepared};
use crate::options::Options;
use crate::protocol::{
    FileInfo, FileList, FinishMachine, HandlerInfo, HandlerList, Handover, LastTimeline, ListFiles,
    MANAGER, Nothing, ReleaseSession, Report, Reported, SessionInfo, SessionList, State, Status,
    Through, Timeline, Unclaimed, Upgrade, Upgraded,
};

#[derive(Debug)]
pub(crate) struct Manager<D: Drive> {
    connections: Connections<D>,
    options: Options,
    /// The carrier that this client has prepared the machine through.
    prepared: Mutex<Option<Through>>,
}

impl<D: Drive> Manager<D> {
    pub(crate) fn connect(options: Options) -> Result<Self, Error> {
        let connections = Connections::new(Target::Socket(options.socket.clone()));
        connections.connect()?;
        Ok(Self { connections, options, prepared: Mutex::new(None) })
    }

    pub(crate) async fn status(&self) -> Result<Status, Error> {
        self.status_until(&self.deadline()).await
    }

    async fn status_until(&self, deadline: &Deadline) -> Result<Status, Error> {
        self.ask("GetStatus", &Nothing {}, deadline).await
    }

    pub(crate) async fn timeline(&self) -> Result<Option<Timeline>, Error> {
        let last: LastTimeline = self.ask("GetTimeline", &Nothing {}, &self.deadline()).await?;
        Ok(last.timeline)
    }

    pub(crate) async fn handlers(&self) -> Result<Vec<HandlerInfo>, Error> {
        let list: HandlerList = self.ask("ListHandlers", &Nothing {}, &self.deadline()).await?;
        Ok(list.handlers)
    }

    pub(crate) async fn sessions(&self) -> Result<Vec<SessionInfo>, Error> {
        let list: SessionList = self.ask("ListSessions", &Nothing {}, &self.deadline()).await?;
        Ok(list.sessions)
    }

    pub(crate) async fn files(&self, session: Option<&str>) -> Result<Vec<FileInfo>, Error> {
        let parameters = ListFiles { session: session.map(str::to_owned) };
        let call = Prepared::streaming(MANAGER, "ListFiles", &parameters)?;
        let parts = |answer: Answer| answer.decode_parts::<FileList>();
        let lists = self.connections.call(call, &self.deadline(), parts).await?;
        Ok(lists.into_iter().flat_map(|list| list.files).collect())
    }

    /// A session that is not there when its release is repeated was released the first time.
    pub(crate) async fn release(&self, session: &str) -> Result<(), Error> {
        let parameters = ReleaseSession { name: session.to_owned() };
        let mut exchange = Exchange::new(vec![call("ReleaseSession", &parameters)?]);
        match self.connections.ask(&mut exchange, &self.deadline(), calls::done).await {
            Err(error) if exchange.is_repeated() && error.is("ENOENT") => Ok(()),
            other => other,
        }
    }

    pub(crate) async fn prepare(&self, carrier: Option<&str>) -> Result<Option<Report>, Error> {
        let through = Through { carrier: carrier.map(str::to_owned) };
        *self.prepared() = Some(through.clone());
        self.event("Prepare", &through, State::Prepared).await
    }

    fn prepared(&self) -> MutexGuard<'_, Option<Through>> {
        self.prepared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) async fn freeze(&self) -> Result<Option<Report>, Error> {
        let deadline = self.deadline();
        loop {
            match self.attempt("Freeze", &Nothing {}, State::Frozen, &deadline).await? {
                Event::Done(report) => return Ok(report),
                // luod was restarted in the middle of it, and has undone both phases.
                Event::Undone(status, error)
                    if status.state == State::Normal && !deadline.has_passed() =>
                {
                    let through = self.prepared().clone();
                    let through = match through {
                        Some(through) => through,
                        // Somebody else has prepared it, and there was no choice.
                        None if status.arena.is_none() => Through::default(),
                        None => return Err(error),
                    };
                    self.prepare(through.carrier.as_deref()).await?;
                }
                Event::Undone(_, error) => return Err(error),
            }
        }
    }

    pub(crate) async fn cancel(&self) -> Result<Option<Report>, Error> {
        self.event("Cancel", &Nothing {}, State::Normal).await
    }

    pub(crate) async fn depart(&self) -> Result<Option<Report>, Error> {
        self.event("Depart", &Nothing {}, State::Updated).await
    }

    pub(crate) async fn finish(&self, unclaimed: Unclaimed) -> Result<Option<Report>, Error> {
        let parameters = FinishMachine { unclaimed: Some(unclaimed) };
        self.event("Finish", &parameters, State::Normal).await
    }

    pub(crate) async fn rehearse(&self, carrier: Option<&str>) -> Result<Report, Error> {
        let through = Through { carrier: carrier.map(str::to_owned) };
        let reported: Reported = self.ask("Rehearse", &through, &self.deadline()).await?;
        Ok(reported.report)
    }

    pub(crate) async fn upgrade(
        &self,
        binary: Option<BorrowedFd<'_>>,
        limit: Duration,
        keeper: bool,
    ) -> Result<Upgraded, Error> {
        let upgraded = self.replace(binary, limit, false).await?;
        if keeper {
            // A worker that takes over proves that the binary is a luod: only then the keeper.
            self.replace(binary, limit, true).await?;
        }
        Ok(upgraded)
    }

    async fn replace(
        &self,
        binary: Option<BorrowedFd<'_>>,
        limit: Duration,
        keeper: bool,
    ) -> Result<Upgraded, Error> {
        let parameters = Upgrade {
            deadline_milliseconds: Some(calls::milliseconds(limit)),
            keeper: Some(keeper),
        };
        let binary = binary.into_iter().collect();
        let call = Prepared::new(MANAGER, "Upgrade", &parameters, binary)?;
        // Both sides may take that long, and some time goes into stopping and starting.
        let deadline = Deadline::after(limit.saturating_mul(3));
        self.connections.call(call, &deadline, calls::reply).await
    }

    pub(crate) async fn handover(&self) -> Result<(OwnedFd, u64), Error> {
        let read = |answer: Answer| {
            let method = answer.method().to_owned();
            let (handover, descriptors) = answer.decode::<Handover>()?;
            Ok((calls::sole(&method, descriptors)?, handover.size))
        };
        self.connections.call(call("GetHandover", &Nothing {})?, &self.deadline(), read).await
    }

    pub(crate) fn watch(&self) -> Result<Feed<D>, Error> {
        let call = Prepared::streaming(MANAGER, "Watch", &Nothing {})?;
        let target = Target::Socket(self.options.socket.clone());
        Ok(Feed::new(target, call, self.options.deadline, &[]))
    }

    async fn event(
        &self,
        method: &str,
        parameters: &impl Serialize,
        leads_to: State,
    ) -> Result<Option<Report>, Error> {
        match self.attempt(method, parameters, leads_to, &self.deadline()).await? {
            Event::Done(report) => Ok(report),
            Event::Undone(_, error) => Err(error),
        }
    }

    /// An event. If its answer was lost, luod says that it is out of place now, and the state is the
    /// one it leads to, then it has taken place.
    async fn attempt(
        &self,
        method: &str,
        parameters: &impl Serialize,
        leads_to: State,
        deadline: &Deadline,
    ) -> Result<Event, Error> {
        let mut exchange = Exchange::new(vec![call(method, parameters)?]);
        let refused =
            match self.connections.ask(&mut exchange, deadline, calls::reply::<Reported>).await {
                Ok(reported) => return Ok(Event::Done(Some(reported.report))),
                Err(error) if exchange.is_repeated() && error.is("EBUSY") => error,
                Err(error) => return Err(error),
            };
        loop {
            let status = self.status_until(deadline).await?;
            if status.transition.is_none() {
                return Ok(if status.state == leads_to {
                    Event::Done(None)
                } else {
                    Event::Undone(Box::new(status), refused)
                });
            }
            // The first request is still at work.
            if deadline.has_passed() {
                return Err(deadline.exceeded(&format!("{MANAGER}.{method}"), Some(refused)));
            }
            deadline.pause::<D>().await;
        }
    }

    async fn ask<R: DeserializeOwned>(
        &self,
        method: &str,
        parameters: &impl Serialize,
        deadline: &Deadline,
    ) -> Result<R, Error> {
        self.connections.call(call(method, parameters)?, deadline, calls::reply).await
    }

    fn deadline(&self) -> Deadline {
        Deadline::after(self.options.deadline)
    }
}

/// What came of an event that may have been sent again.
enum Event {
    /// It has taken place; its report where that was not lost.
    Done(Option<Report>),
    /// The repetition was refused; this is how things stood then.
    Undone(Box<Status>, Error),
}

fn call(method: &str, parameters: &impl Serialize) -> Result<Prepared<'static>, Error> {
    Prepared::new(MANAGER, method, parameters, Vec::new())
}
