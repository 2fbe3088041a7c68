//! Giving files back to their owners.
//!
//! Invariants: a handler's `retrieve` is called until it succeeds or fails once, never again after;
//! what it gave is what everybody gets who asks, in any order, until `finish`.

use crate::{
    Errno, Error, File, FileKey, Orchestrator, Retrieval, SessionId, Side, State, Token,
    cycle::{FileStep, Job, Unit},
    table::{Arrival, no_token},
};

impl<F: File> Orchestrator<F> {
    /// Asks for an incoming file.
    ///
    /// # Errors
    /// ENOENT no such session or token, EBUSY outside `updated` or while it is being finished.
    pub fn retrieve(&mut self, session: SessionId, token: Token) -> Result<Retrieval<F>, Error> {
        let there = self.sessions.get(session)?;
        if there.state != State::Updated {
            let reason = alloc::format!(
                "the session is {}, files can be retrieved when it is updated",
                there.state
            );
            return Err(Error::new(Errno::Busy, reason).at(self.session_location(session)));
        }
        let Some(file) = there.incoming.get(&token) else {
            return Err(no_token(&there.name, token, "incoming"));
        };
        if self.cycle.machine.or(there.transition).or(file.transition).is_some() {
            return Err(Error::new(Errno::Busy, "the file is being finished")
                .at(self.file_location(session, token, file.handler))
                .advise("ask again if that is refused"));
        }
        let Some(file) = self.sessions.incoming(session, token) else {
            return Err(Error::new(Errno::NoEnt, "there is no such file"));
        };
        match &mut file.arrival {
            Arrival::Retrieved(file) => Ok(Retrieval::Ready(file.clone())),
            Arrival::Retrieving => Ok(Retrieval::Pending),
            Arrival::Failed { error, told } => {
                if !*told {
                    *told = true;
                    self.dirty.files.insert(FileKey { session, side: Side::Incoming, token });
                }
                Ok(Retrieval::Failed(error.clone()))
            }
            Arrival::Waiting => {
                self.start(Job {
                    owner: None,
                    unit: Unit::File(session, token, FileStep::Retrieve),
                });
                self.pump();
                Ok(Retrieval::Pending)
            }
        }
    }

    /// The owner has really got the file.
    ///
    /// # Errors
    /// ENOENT; EBUSY where it has not been retrieved.
    pub fn mark_reclaimed(&mut self, session: SessionId, token: Token) -> Result<(), Error> {
        let there = self.sessions.get_mut(session)?;
        let Some(file) = there.incoming.get_mut(&token) else {
            return Err(no_token(&there.name, token, "incoming"));
        };
        if !matches!(file.arrival, Arrival::Retrieved(_)) {
            let handler = file.handler;
            return Err(Error::new(Errno::Busy, "the file has not been retrieved")
                .at(self.file_location(session, token, handler)));
        }
        if !file.reclaimed {
            file.reclaimed = true;
            self.dirty.files.insert(FileKey { session, side: Side::Incoming, token });
        }
        Ok(())
    }
}
