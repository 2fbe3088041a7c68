//! Giving files back to their owners.
//!
//! Invariants: a handler's `retrieve` is called until it succeeds or fails once, never again after;
//! what it gave is what everybody gets who asks, in any order, until `finish`.

use alloc::vec::Vec;

use crate::{
    Errno, Error, File, FileKey, Orchestrator, Retrieval, Scope, SessionId, Side, State, Token,
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
        let Arrival::Retrieved(retrieved) = &file.arrival else {
            let handler = file.handler;
            return Err(Error::new(Errno::Busy, "the file has not been retrieved")
                .at(self.file_location(session, token, handler)));
        };
        if !file.reclaimed {
            if let Some(entry) = file.handler.and_then(|handler| self.handlers.get(handler))
                && entry.handler.retrieves_on_arrival()
            {
                entry.handler.let_live(retrieved);
            }
            file.reclaimed = true;
            self.dirty.files.insert(FileKey { session, side: Side::Incoming, token });
        }
        Ok(())
    }

    /// Begins to retrieve the files that cannot wait for their owners, see
    /// [`Handler::retrieves_on_arrival`](crate::Handler::retrieves_on_arrival); and says how many of
    /// them are not there yet.
    pub fn retrieve_on_arrival(&mut self) -> usize {
        let waiting =
            self.on_arrival(|arrival| matches!(arrival, Arrival::Waiting | Arrival::Retrieving));
        // What fails now, or cannot begin, is told to its owner.
        let mut pending = |(session, token): &(SessionId, Token)| {
            matches!(self.retrieve(*session, *token), Ok(Retrieval::Pending))
        };
        waiting.iter().filter(|file| pending(file)).count()
    }

    /// The files that were retrieved on arrival are kept: from now on they live, see
    /// [`Handler::let_live`](crate::Handler::let_live).
    pub fn let_live(&mut self) {
        for (session, token) in self.on_arrival(|arrival| matches!(arrival, Arrival::Retrieved(_)))
        {
            let Some(file) = self.sessions.incoming(session, token) else { continue };
            let entry = file.handler.and_then(|handler| self.handlers.get(handler));
            if let (Some(entry), Arrival::Retrieved(file)) = (entry, &file.arrival) {
                entry.handler.let_live(file);
            }
        }
    }

    /// The incoming files of handlers that retrieve on arrival and are so far.
    fn on_arrival(&self, is: impl Fn(&Arrival<F>) -> bool) -> Vec<(SessionId, Token)> {
        let mut found = Vec::new();
        for id in self.scope_sessions(Scope::Machine) {
            let Some(session) = self.sessions.peek(id) else { continue };
            for (token, file) in &session.incoming {
                let entry = file.handler.and_then(|handler| self.handlers.get(handler));
                if is(&file.arrival)
                    && entry.is_some_and(|entry| entry.handler.retrieves_on_arrival())
                {
                    found.push((id, *token));
                }
            }
        }
        found
    }
}
