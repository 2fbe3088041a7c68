//! luod as a whole: its status, its sessions, and the cycle of the machine.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Duration;

use crate::blocking::{Blocking, now};
use crate::client;
use crate::drive::until;
use crate::error::Error;
use crate::options::Options;
use crate::protocol::{
    Event, FileInfo, HandlerInfo, Report, SessionInfo, Status, Timeline, Unclaimed, Upgraded,
    Watched,
};

/// A connection to luod itself, with an API that blocks.
///
/// It can be used from several threads at once: each call under way has a connection of its own, so
/// none waits for another's, however long that takes.
///
/// The events of the cycle give a [`Report`], or `None` where the answer was lost because luod was
/// restarted in the middle: then the event has taken place, and what it did in detail, and which
/// optional parts it left out, is not known.
///
/// # Errors
/// Every call can fail with [`Error::DeadlineExceeded`], [`Error::WorkerFailed`] and the other ways
/// in which luod cannot be talked to; what luod refuses is [`Error::Refused`]. The events of the
/// machine are for root and for the user that luod runs as: EPERM for others.
#[derive(Debug)]
pub struct Manager {
    client: client::Manager<Blocking>,
}

impl Manager {
    /// Connects to luod.
    ///
    /// # Errors
    /// [`Error::Unavailable`] where no luod runs, [`Error::Unreachable`] where its socket is closed
    /// to this user.
    pub fn connect(options: Options) -> Result<Self, Error> {
        Ok(Self { client: client::Manager::connect(options)? })
    }

    /// What luod does at the moment.
    ///
    /// # Errors
    /// See the type.
    pub fn status(&self) -> Result<Status, Error> {
        now(self.client.status())
    }

    /// How long the last live update that arrived here took; `None` where there was none, or it was
    /// not measured.
    ///
    /// # Errors
    /// See the type. A luod before this method says that it does not know it.
    pub fn timeline(&self) -> Result<Option<Timeline>, Error> {
        now(self.client.timeline())
    }

    /// The handlers of this luod, in the order in which they are asked, each with the carriers through
    /// which it can take files.
    ///
    /// # Errors
    /// See the type. A luod before this method says that it does not know it.
    pub fn handlers(&self) -> Result<Vec<HandlerInfo>, Error> {
        now(self.client.handlers())
    }

    /// All sessions that this user may see.
    ///
    /// # Errors
    /// See the type.
    pub fn sessions(&self) -> Result<Vec<SessionInfo>, Error> {
        now(self.client.sessions())
    }

    /// The files of one session, or of all that this user may see.
    ///
    /// # Errors
    /// ENOENT for a session that is not there.
    pub fn files(&self, session: Option<&str>) -> Result<Vec<FileInfo>, Error> {
        now(self.client.files(session))
    }

    /// Ends a session and lets go of its files.
    ///
    /// # Errors
    /// ENOENT, EPERM if another user owns it, EBUSY while the machine's update holds it.
    pub fn release(&self, session: &str) -> Result<(), Error> {
        now(self.client.release(session))
    }

    /// Keeps all that can be kept while the workloads run.
    ///
    /// # Errors
    /// EBUSY in a wrong state; what a handler or participant says: everything is then as before.
    pub fn prepare(&self) -> Result<Option<Report>, Error> {
        now(self.client.prepare(None))
    }

    /// As [`prepare`](Self::prepare), through a carrier that may reach farther: `liveupdate`,
    /// `arena`, `auto` for the one of these that is there, or `keeper`, which is the default. What
    /// follows goes the same way, and a luod that departs through the arena stops.
    ///
    /// # Errors
    /// As [`prepare`](Self::prepare); ENOENT where luod has no such carrier, ENOSPC where it has
    /// no room, EBUSY where it holds a handover that nobody has taken up.
    pub fn prepare_through(&self, carrier: &str) -> Result<Option<Report>, Error> {
        now(self.client.prepare(Some(carrier)))
    }

    /// Keeps the rest: from here nothing may change.
    ///
    /// # Errors
    /// As [`prepare`](Self::prepare); the state is normal then.
    pub fn freeze(&self) -> Result<Option<Report>, Error> {
        now(self.client.freeze())
    }

    /// Undoes what [`prepare`](Self::prepare) and [`freeze`](Self::freeze) did.
    ///
    /// # Errors
    /// EBUSY in a wrong state.
    pub fn cancel(&self) -> Result<Option<Report>, Error> {
        now(self.client.cancel())
    }

    /// Commits the handover and lets another luod begin on the other side.
    ///
    /// # Errors
    /// EBUSY unless frozen; what the carrier says: the state is still frozen then.
    pub fn depart(&self) -> Result<Option<Report>, Error> {
        now(self.client.depart())
    }

    /// Ends the live update of the machine.
    ///
    /// # Errors
    /// EBUSY in a wrong state, if a file was not retrieved, or a handler cannot finish yet.
    pub fn finish(&self, unclaimed: Unclaimed) -> Result<Option<Report>, Error> {
        now(self.client.finish(unclaimed))
    }

    /// Prepares and freezes for real, measures, and cancels. If its answer is lost it is rehearsed
    /// again.
    ///
    /// # Errors
    /// As [`prepare`](Self::prepare); the state is normal then.
    pub fn rehearse(&self) -> Result<Report, Error> {
        now(self.client.rehearse(None))
    }

    /// As [`rehearse`](Self::rehearse), through that carrier.
    ///
    /// # Errors
    /// As [`prepare_through`](Self::prepare_through); the state is normal then.
    pub fn rehearse_through(&self, carrier: &str) -> Result<Report, Error> {
        now(self.client.rehearse(Some(carrier)))
    }

    /// Replaces luod, by `binary` if one is given, else by the one that runs; with `keeper` also the
    /// process that holds everything meanwhile. `limit` is for each side; this call takes six
    /// times as long at the most. If its answer is lost it is sent again: luod may then have been
    /// replaced twice, by the same binary, and `before` is what served in between.
    ///
    /// # Errors
    /// The reason why the new one did not take over; the old one serves on.
    pub fn upgrade(
        &self,
        binary: Option<BorrowedFd<'_>>,
        limit: Duration,
        keeper: bool,
    ) -> Result<Upgraded, Error> {
        now(self.client.upgrade(binary, limit, keeper))
    }

    /// The handover as it would be now, in a memory file of that size in bytes.
    ///
    /// # Errors
    /// See the type.
    pub fn handover(&self) -> Result<(OwnedFd, u64), Error> {
        now(self.client.handover())
    }

    /// Events as they come, without end. A luod that is restarted is waited for; what happened
    /// meanwhile is not told afterwards, see [`Watch::resumed`].
    ///
    /// # Errors
    /// None at present; [`Watch::next_event`] is the first to talk to luod.
    pub fn watch(&self) -> Result<Watch, Error> {
        Ok(Watch { feed: self.client.watch()? })
    }
}

/// Events of luod. See [`Manager::watch`].
#[derive(Debug)]
pub struct Watch {
    feed: client::Feed<Blocking>,
}

impl Watch {
    /// The next event; `None` if none came in this time. With `None` it waits for ever.
    ///
    /// # Errors
    /// [`Error::Unavailable`] where no luod runs at first or for longer than the deadline of the
    /// options, [`Error::DeadlineExceeded`] if it is there but breaks the connection again and again
    /// for that long. Either can be followed by another try.
    pub fn next_event(&mut self, wait: Option<Duration>) -> Result<Option<Event>, Error> {
        let watched: Option<Watched> = now(self.feed.next(until(wait)))?;
        Ok(watched.map(|watched| watched.event))
    }

    /// How often luod went away and was found again. What happened meanwhile was not told: whoever
    /// follows the state asks for it anew when this has changed.
    #[must_use]
    pub fn resumed(&self) -> u64 {
        self.feed.remade()
    }
}
