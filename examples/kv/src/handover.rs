//! kv and luo: the session that holds everything the next process needs.
//!
//! ```text
//!            ┌── luod runs, the session is new ──> fresh ──> keep ──────────────┐
//! Place::open┼── luod runs, files wait there ────> inherited ──> resume, carry ─┴> serving ──> let_go, or release
//!            └── no luod ────────────────────────> None: kv runs on alone
//! ```
//!
//! | token | file | an update of the machine |
//! | --- | --- | --- |
//! | 1 | the memfd with all data | must bring it over |
//! | 2 | the listening socket | may lose it: it is bound anew |
//! | 16 and above | connections | may lose them: clients connect again |
//!
//! Invariants:
//! - The session is left as it was until the new process has opened the store: one that cannot read it ends, and
//!   the version before can still be started.
//! - The session's descriptor is closed before the memory is unmapped, because unmapping takes as long as there is
//!   data, and the next process waits for the descriptor alone.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::{Duration, Instant};

use luo::{Manager, Options, Refusal, Session, State, Unclaimed};

use crate::custody::{CustodyError, Keeper, LISTENER, MEMORY};
use crate::participant;
use crate::store::FIRST_CONNECTION;
use crate::wake::Waker;

/// How long one call to luod may take, a restart of luod included.
const CALL: Duration = Duration::from_secs(10);

/// What luod refused although the machine is at rest is asked again so much later, then twice as much, up to 64
/// times.
const AGAIN: Duration = Duration::from_millis(50);
/// Between two looks at the machine's state where no event comes.
const LOOK_AGAIN: Duration = Duration::from_secs(30);

/// What went wrong between kv and luo.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HandoverError {
    /// luod refused or did not answer.
    #[error("{doing}")]
    Luo {
        /// What kv wanted of it.
        doing: &'static str,
        /// Why not.
        #[source]
        source: luo::Error,
    },
    /// luod did not take or give a file without which kv cannot go on.
    #[error("luod refused {what}")]
    File {
        /// The file.
        what: &'static str,
        /// Why.
        #[source]
        source: Refusal,
    },
    /// The process before did not let go of the session.
    #[error(
        "another kv still holds session {name} after {} s; send it SIGTERM, or choose another session with --session",
        waited.as_secs()
    )]
    StillHeld {
        /// The session.
        name: String,
        /// How long was waited.
        waited: Duration,
    },
    /// The session is somebody else's.
    #[error(
        "session {name} holds files, but none of them is kv's memory; choose another one with --session"
    )]
    NotOurs {
        /// The session.
        name: String,
    },
}

fn luo(doing: &'static str) -> impl FnOnce(luo::Error) -> HandoverError {
    move |source| HandoverError::Luo { doing, source }
}

/// Where the session is.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Where {
    /// The session's name.
    pub session: String,
    /// luod's socket; the library's default where it is none.
    pub socket: Option<PathBuf>,
    /// How long to wait for the process before.
    pub patience: Duration,
    /// How long luod may take for one call; much data from a slow carrier takes long.
    pub deadline: Duration,
}

impl Where {
    /// The session of this name at the default socket; the process before is waited for a minute,
    /// and luod for ten seconds.
    pub fn new(session: impl Into<String>) -> Self {
        Self {
            session: session.into(),
            socket: None,
            patience: Duration::from_secs(60),
            deadline: CALL,
        }
    }

    fn options(&self) -> Options {
        let options = Options::new().deadline(self.deadline);
        match &self.socket {
            Some(socket) => options.socket(socket),
            None => options,
        }
    }
}

/// What the process before left.
#[derive(Debug)]
pub struct Inherited {
    /// The memfd with all data.
    pub memory: OwnedFd,
    /// The listening socket, unless it was lost in an update of the machine.
    pub listener: Option<OwnedFd>,
    /// The connections and their tokens.
    pub connections: Vec<(u64, OwnedFd)>,
}

/// kv's place in luo: its session.
#[derive(Debug)]
pub struct Place {
    session: Arc<Session>,
    options: Options,
    settled: Sender<()>,
    gate: Option<Receiver<()>>,
}

impl Place {
    /// Opens the session, and takes what the process before left in it. `None` where no luod runs.
    ///
    /// While another process holds the session this waits; `waits` is called once before.
    ///
    /// # Errors
    /// [`HandoverError`]. The session is then as it was before.
    pub fn open(
        place: &Where,
        waits: &mut dyn FnMut(),
    ) -> Result<Option<(Self, Option<Inherited>)>, HandoverError> {
        let options = place.options();
        match Manager::connect(options.clone()).and_then(|manager| manager.sessions()) {
            Ok(sessions) => {
                if sessions.iter().any(|session| session.name == place.session && session.held) {
                    waits();
                }
            }
            Err(luo::Error::Unavailable { .. }) => return Ok(None),
            Err(error) => return Err(luo("cannot ask luod for its sessions")(error)),
        }
        let begun = Instant::now();
        let session = loop {
            match Session::open_with(&place.session, options.clone()) {
                Ok(session) => break session,
                Err(luo::Error::Unavailable { .. }) => return Ok(None),
                Err(error) if error.errno() == Some("EBUSY") => {
                    let waited = begun.elapsed();
                    if waited >= place.patience {
                        let name = place.session.clone();
                        return Err(HandoverError::StillHeld { name, waited });
                    }
                }
                Err(error) => return Err(luo("cannot open the session")(error)),
            }
        };
        let info = session.info().map_err(luo("cannot ask for the session's files"))?;
        let inherited = if info.incoming.is_empty() {
            None
        } else if info.incoming.contains(&MEMORY) {
            Some(inherit(&session, &info.incoming)?)
        } else {
            return Err(HandoverError::NotOurs { name: place.session.clone() });
        };
        let (settled, gate) = mpsc::channel();
        let place = Self { session: Arc::new(session), options, settled, gate: Some(gate) };
        Ok(Some((place, inherited)))
    }

    /// Gives luod the memory and the listener of a kv that begins anew.
    ///
    /// # Errors
    /// [`HandoverError`]; without these a hand-over is not possible.
    pub fn keep(
        &self,
        memory: BorrowedFd<'_>,
        listener: BorrowedFd<'_>,
    ) -> Result<(), HandoverError> {
        self.session.preserve(MEMORY, memory).map_err(luo("cannot give luod the memory"))?;
        self.keep_listener(listener)
    }

    /// Gives luod a listener that was bound anew.
    ///
    /// # Errors
    /// [`HandoverError`].
    pub fn keep_listener(&self, listener: BorrowedFd<'_>) -> Result<(), HandoverError> {
        let verdicts = self
            .session
            .preserve_optional(&[(LISTENER, listener)])
            .map_err(luo("cannot give luod the listener"))?;
        match verdicts.into_iter().find_map(Result::err) {
            None => Ok(()),
            Some(source) => Err(HandoverError::File { what: "the listener", source }),
        }
    }

    /// Ends the update: what was inherited goes along in the next one without being given again.
    ///
    /// # Errors
    /// [`HandoverError`].
    pub fn carry(&self) -> Result<(), HandoverError> {
        // A connection that could not be brought over is let go.
        self.session
            .finish_with(Unclaimed::Release, true)
            .map_err(luo("cannot finish the update of the session"))
    }

    /// A keeper of connections. It does nothing until [`settled`](Self::settled), and refuses once this place is
    /// let go. Only the first one that is asked for waits.
    pub fn keeper(&mut self) -> SessionKeeper {
        let options = self.options.clone();
        SessionKeeper { session: Arc::downgrade(&self.session), options, gate: self.gate.take() }
    }

    /// The session holds what it must: connections can be given to it and taken out.
    pub fn settled(&self) {
        // A keeper that is gone waits for nothing.
        let _ = self.settled.send(());
    }

    /// Takes part in updates of the machine, for the server that this wakes.
    ///
    /// # Errors
    /// As [`participant::take_part`].
    pub fn take_part(&self, waker: Waker) -> std::io::Result<()> {
        participant::take_part(self.session.name(), self.options.clone(), waker)
    }

    /// Lets go of the session, for the next process to claim it. Of this process' memory nothing is touched.
    pub fn let_go(self) {}

    /// Ends the session, and so the data.
    ///
    /// # Errors
    /// [`HandoverError`]; luod then keeps the data.
    pub fn release(self) -> Result<(), HandoverError> {
        Manager::connect(self.options)
            .and_then(|manager| manager.release(self.session.name()))
            .map_err(luo("cannot end the session; `luoctl sessions` shows what luod keeps"))
    }
}

/// Retrieves the files. One that cannot be had is an error only where kv cannot do without.
fn inherit(session: &Session, tokens: &[u64]) -> Result<Inherited, HandoverError> {
    let files =
        session.retrieve_many(tokens).map_err(luo("cannot retrieve the session's files"))?;
    let (mut memory, mut listener, mut connections) = (None, None, Vec::new());
    for (token, file) in tokens.iter().zip(files) {
        match (*token, file) {
            (MEMORY, file) => memory = Some(file),
            (LISTENER, Ok(file)) => listener = Some(file),
            (token @ FIRST_CONNECTION.., Ok(file)) => connections.push((token, file)),
            (token, Ok(_)) => tracing::warn!(token, "luod gave a file that kv does not know"),
            (token, Err(error)) => {
                tracing::warn!(token, %error, "luod does not give a file back");
            }
        }
    }
    match memory {
        Some(Ok(memory)) => Ok(Inherited { memory, listener, connections }),
        Some(Err(source)) => Err(HandoverError::File { what: "the memory", source }),
        None => Err(HandoverError::NotOurs { name: session.name().to_owned() }),
    }
}

/// Holds connections in the session.
#[derive(Debug)]
pub struct SessionKeeper {
    session: Weak<Session>,
    options: Options,
    gate: Option<Receiver<()>>,
}

impl SessionKeeper {
    fn session(&mut self) -> Result<Arc<Session>, CustodyError> {
        if let Some(gate) = self.gate.take() {
            // An error means that the place is gone, as is found just below.
            let _ = gate.recv();
        }
        self.session.upgrade().ok_or_else(|| "the session was let go".into())
    }
}

impl Keeper for SessionKeeper {
    fn preserve(&mut self, connections: &[(u64, OwnedFd)]) -> Result<Vec<u64>, CustodyError> {
        // A connection ends with the machine, so an update of the machine need not fail for it. Those that were
        // taken beside one that was refused stay: they are handed over all the same.
        let verdicts = self.session()?.preserve_optional(connections)?;
        let tokens = connections.iter().map(|(token, _)| *token);
        let refusals =
            tokens.zip(verdicts).filter_map(|(token, verdict)| Some((token, verdict.err()?)));
        busy(refusals)
    }

    fn forget(&mut self, tokens: &[u64]) -> Result<Vec<u64>, CustodyError> {
        let refusals = self.session()?.unpreserve_many(tokens)?;
        busy(
            refusals
                .into_iter()
                .filter(|refusal| refusal.errno != "ENOENT")
                .map(|refusal| (refusal.token.unwrap_or(0), refusal)),
        )
    }

    /// While the machine is prepared or frozen no file comes or goes: what luod tells its watchers ends the wait.
    fn when_free(&mut self, times: u32, then: Box<dyn FnOnce() + Send>) {
        let options = self.options.clone();
        let wait = move || {
            if times > 1 {
                // The machine was at rest and it was refused all the same, for a reason that nobody announces.
                thread::sleep(AGAIN.saturating_mul(1 << times.min(6)));
            }
            if let Err(error) = machine_at_rest(options) {
                tracing::debug!(%error, "luod cannot be asked when it is free");
            }
            then();
        };
        if let Err(error) = thread::Builder::new().name("wait".into()).spawn(wait) {
            tracing::warn!(%error, "what luod was too busy for stays without custody");
        }
    }
}

/// The tokens that were refused because of the state of things.
fn busy(refusals: impl Iterator<Item = (u64, Refusal)>) -> Result<Vec<u64>, CustodyError> {
    refusals
        .map(|(token, refusal)| match refusal.errno.as_str() {
            "EBUSY" => Ok(token),
            _ => Err(refusal.into()),
        })
        .collect()
}

/// Waits until the machine is neither prepared nor frozen.
fn machine_at_rest(options: Options) -> Result<(), luo::Error> {
    let manager = Manager::connect(options)?;
    let mut watch = manager.watch()?;
    // Events come from here on, so that none is missed after the look.
    watch.next_event(Some(Duration::ZERO))?;
    while !matches!(manager.status()?.state, State::Normal | State::Updated) {
        watch.next_event(Some(LOOK_AGAIN))?;
    }
    Ok(())
}
