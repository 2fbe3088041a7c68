//! luod as a whole, for tokio.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Duration;

use super::drive::Tokio;
use crate::client;
use crate::drive::until;
use crate::error::Error;
use crate::options::Options;
use crate::protocol::{
    Event, FileInfo, HandlerInfo, Report, SessionInfo, Status, Timeline, Unclaimed, Upgraded,
    Watched,
};

/// A connection to luod itself. Its methods are those of [`luo::Manager`](crate::Manager), as
/// futures; what they do, their errors and deadlines are told there.
///
/// Calls of several tasks run side by side, each on a connection of its own. A future that is
/// dropped closes its connection; the request may have taken effect or not.
#[derive(Debug)]
pub struct Manager {
    client: client::Manager<Tokio>,
}

impl Manager {
    /// Connects to luod. See [`luo::Manager::connect`](crate::Manager::connect).
    ///
    /// # Errors
    /// As there.
    pub fn connect(options: Options) -> Result<Self, Error> {
        Ok(Self { client: client::Manager::connect(options)? })
    }

    /// What luod does at the moment. See [`luo::Manager::status`](crate::Manager::status).
    ///
    /// # Errors
    /// As there.
    pub async fn status(&self) -> Result<Status, Error> {
        self.client.status().await
    }

    /// How long the last live update that arrived here took; `None` where there was none, or it was
    /// not measured.
    ///
    /// # Errors
    /// See the type. A luod before this method says that it does not know it.
    pub async fn timeline(&self) -> Result<Option<Timeline>, Error> {
        self.client.timeline().await
    }

    /// The handlers of this luod, in the order in which they are asked, each with the carriers through
    /// which it can take files.
    ///
    /// # Errors
    /// See the type. A luod before this method says that it does not know it.
    pub async fn handlers(&self) -> Result<Vec<HandlerInfo>, Error> {
        self.client.handlers().await
    }

    /// All sessions that this user may see. See
    /// [`luo::Manager::sessions`](crate::Manager::sessions).
    ///
    /// # Errors
    /// As there.
    pub async fn sessions(&self) -> Result<Vec<SessionInfo>, Error> {
        self.client.sessions().await
    }

    /// The files of one session, or of all that this user may see. See
    /// [`luo::Manager::files`](crate::Manager::files).
    ///
    /// # Errors
    /// As there.
    pub async fn files(&self, session: Option<&str>) -> Result<Vec<FileInfo>, Error> {
        self.client.files(session).await
    }

    /// Ends a session and lets go of its files. See
    /// [`luo::Manager::release`](crate::Manager::release).
    ///
    /// # Errors
    /// As there.
    pub async fn release(&self, session: &str) -> Result<(), Error> {
        self.client.release(session).await
    }

    /// Keeps all that can be kept while the workloads run. See
    /// [`luo::Manager::prepare`](crate::Manager::prepare).
    ///
    /// # Errors
    /// As there.
    pub async fn prepare(&self) -> Result<Option<Report>, Error> {
        self.client.prepare(None).await
    }

    /// Through that carrier. See
    /// [`luo::Manager::prepare_through`](crate::Manager::prepare_through).
    ///
    /// # Errors
    /// As there.
    pub async fn prepare_through(&self, carrier: &str) -> Result<Option<Report>, Error> {
        self.client.prepare(Some(carrier)).await
    }

    /// Keeps the rest: from here nothing may change. See
    /// [`luo::Manager::freeze`](crate::Manager::freeze).
    ///
    /// # Errors
    /// As there.
    pub async fn freeze(&self) -> Result<Option<Report>, Error> {
        self.client.freeze().await
    }

    /// Undoes what [`prepare`](Self::prepare) and [`freeze`](Self::freeze) did. See
    /// [`luo::Manager::cancel`](crate::Manager::cancel).
    ///
    /// # Errors
    /// As there.
    pub async fn cancel(&self) -> Result<Option<Report>, Error> {
        self.client.cancel().await
    }

    /// Commits the handover and lets another luod begin on the other side. See
    /// [`luo::Manager::depart`](crate::Manager::depart).
    ///
    /// # Errors
    /// As there.
    pub async fn depart(&self) -> Result<Option<Report>, Error> {
        self.client.depart().await
    }

    /// Ends the live update of the machine. See [`luo::Manager::finish`](crate::Manager::finish).
    ///
    /// # Errors
    /// As there.
    pub async fn finish(&self, unclaimed: Unclaimed) -> Result<Option<Report>, Error> {
        self.client.finish(unclaimed).await
    }

    /// Prepares and freezes for real, measures, and cancels. See
    /// [`luo::Manager::rehearse`](crate::Manager::rehearse).
    ///
    /// # Errors
    /// As there.
    pub async fn rehearse(&self) -> Result<Report, Error> {
        self.client.rehearse(None).await
    }

    /// Through that carrier. See
    /// [`luo::Manager::rehearse_through`](crate::Manager::rehearse_through).
    ///
    /// # Errors
    /// As there.
    pub async fn rehearse_through(&self, carrier: &str) -> Result<Report, Error> {
        self.client.rehearse(Some(carrier)).await
    }

    /// Replaces luod, by `binary` if one is given, else by the one that runs; with `keeper` also
    /// the process that holds everything meanwhile. See
    /// [`luo::Manager::upgrade`](crate::Manager::upgrade).
    ///
    /// # Errors
    /// As there.
    pub async fn upgrade(
        &self,
        binary: Option<BorrowedFd<'_>>,
        limit: Duration,
        keeper: bool,
    ) -> Result<Upgraded, Error> {
        self.client.upgrade(binary, limit, keeper).await
    }

    /// The handover as it would be now, in a memory file of that size in bytes. See
    /// [`luo::Manager::handover`](crate::Manager::handover).
    ///
    /// # Errors
    /// As there.
    pub async fn handover(&self) -> Result<(OwnedFd, u64), Error> {
        self.client.handover().await
    }

    /// Events as they come, without end. See [`luo::Manager::watch`](crate::Manager::watch).
    ///
    /// # Errors
    /// As there.
    pub fn watch(&self) -> Result<Watch, Error> {
        Ok(Watch { feed: self.client.watch()? })
    }
}

/// Events of luod. See [`Manager::watch`].
#[derive(Debug)]
pub struct Watch {
    feed: client::Feed<Tokio>,
}

impl Watch {
    /// The next event; `None` if none came in this time. See
    /// [`luo::Watch::next_event`](crate::Watch::next_event).
    ///
    /// # Errors
    /// As there.
    pub async fn next_event(&mut self, wait: Option<Duration>) -> Result<Option<Event>, Error> {
        let watched: Option<Watched> = self.feed.next(until(wait)).await?;
        Ok(watched.map(|watched| watched.event))
    }

    /// How often luod went away and was found again. See
    /// [`luo::Watch::resumed`](crate::Watch::resumed).
    #[must_use]
    pub fn resumed(&self) -> u64 {
        self.feed.remade()
    }
}
