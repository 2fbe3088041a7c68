//! The orchestrator: the framework's one entry, which owns everything.

use alloc::{sync::Arc, vec::Vec};

use crate::*;

/// How a subsystem takes part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SubsystemOptions {
    /// What its failure means.
    pub criticality: Criticality,
    /// Neighbours in registration order that are all concurrent are called side by side; others
    /// strictly one after the other.
    pub concurrent: bool,
}

/// A subsystem as it stands.
#[derive(Debug, Clone)]
pub struct SubsystemInfo {
    /// Its name.
    pub name: SubsystemName,
    /// How it takes part.
    pub options: SubsystemOptions,
    /// A participant, whose calls the driver answers.
    pub remote: bool,
    /// `normal`, `prepared`, `frozen`, or `updated` while it has not been finished.
    pub state: State,
    /// Its data, while not `normal`.
    pub data: Option<u64>,
    /// Why the current or last update went on without it.
    pub left_out: Option<Error>,
    /// The participant has gone; it is taken out as soon as it can be.
    pub gone: bool,
}

/// What becomes of files that nobody has retrieved when a session is finished.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum UnclaimedFiles {
    /// The session is not finished: EBUSY, with their tokens.
    #[default]
    Refuse,
    /// They are released, for ever.
    Release,
    /// They are retrieved and go on as outgoing files under the same tokens.
    Carry,
}

/// How a session is finished.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct FinishOptions {
    /// What becomes of files that nobody has retrieved.
    pub unclaimed: UnclaimedFiles,
    /// A reclaimed file goes on as an outgoing file under the same token, without being given
    /// again.
    pub carry_reclaimed: bool,
}

/// What asking for a file gives.
#[derive(Debug, Clone)]
pub enum Retrieval<F> {
    /// The file.
    Ready(F),
    /// It cannot be had; the same failure every time.
    Failed(Error),
    /// A call is on its way; [`Notice::Retrieved`] will say when to ask again.
    Pending,
}

/// See the crate's documentation.
pub struct Orchestrator<F: File> {
    _f: core::marker::PhantomData<F>,
}

impl<F: File> core::fmt::Debug for Orchestrator<F> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Orchestrator").finish_non_exhaustive()
    }
}

fn skeleton<T>() -> T {
    panic!("only the signature is here yet")
}

#[allow(unused_variables, clippy::unused_self)]
impl<F: File> Orchestrator<F> {
    /// An orchestrator in `normal`, with `files` as its only subsystem, for a carrier that can do
    /// `caps`.
    #[must_use]
    pub fn new(caps: Caps, limits: Limits) -> Self {
        skeleton()
    }

    // --- The machine.

    /// Where the machine is.
    #[must_use]
    pub fn status(&self) -> Status {
        skeleton()
    }
    /// Completed live updates: counts up with every arrival.
    #[must_use]
    pub fn number(&self) -> u64 {
        skeleton()
    }
    /// What the carrier can do.
    #[must_use]
    pub fn caps(&self) -> Caps {
        skeleton()
    }
    /// The limits.
    #[must_use]
    pub fn limits(&self) -> Limits {
        skeleton()
    }
    /// Changes the limits; what exceeds the new ones stays, and nothing is added to it.
    pub fn set_limits(&mut self, limits: Limits) {
        skeleton()
    }
    /// What a uid uses of its limits.
    #[must_use]
    pub fn usage(&self, uid: u32) -> Usage {
        skeleton()
    }

    // --- Handlers and subsystems.

    /// Adds a handler; handlers are asked in this order.
    ///
    /// # Errors
    /// EEXIST where its `compatible` is taken, EINVAL or ENAMETOOLONG where it is no such string.
    pub fn register_handler(&mut self, handler: Arc<dyn Handler<F>>) -> Result<(), Error> {
        skeleton()
    }
    /// Takes a handler out.
    ///
    /// # Errors
    /// ENOENT where there is none, EBUSY while a file uses it.
    pub fn unregister_handler(&mut self, compatible: &str) -> Result<(), Error> {
        skeleton()
    }
    /// The handlers, in the order in which they are asked.
    pub fn handlers(&self) -> impl Iterator<Item = &Arc<dyn Handler<F>>> {
        core::iter::empty()
    }
    /// Adds a subsystem; subsystems are called in this order. Where boot data has arrived for
    /// this name, a `boot` call follows ([`Notice::Booted`]). A participant of a restored record
    /// that registers again goes on where it was.
    ///
    /// # Errors
    /// EEXIST where the name is taken, EINVAL or ENAMETOOLONG where it is no such name, EBUSY
    /// outside `normal` and `updated` or in a transition.
    pub fn register_subsystem(
        &mut self,
        name: &str,
        kind: SubsystemKind<F>,
        options: SubsystemOptions,
    ) -> Result<(), Error> {
        skeleton()
    }
    /// Takes a subsystem out.
    ///
    /// # Errors
    /// ENOENT where there is none, EBUSY outside `normal` and `updated`, in a transition, while a
    /// call of it is in flight, and always for `files`.
    pub fn unregister_subsystem(&mut self, name: &str) -> Result<(), Error> {
        skeleton()
    }
    /// The participant is gone, in whatever state. Its pending calls fail with ENOTCONN (do not
    /// complete them), and it is taken out as soon as that can be ([`Notice::Removed`]).
    ///
    /// # Errors
    /// ENOENT where there is no participant of that name.
    pub fn subsystem_gone(&mut self, name: &str) -> Result<(), Error> {
        skeleton()
    }
    /// The subsystems, in registration order.
    pub fn subsystems(&self) -> impl Iterator<Item = SubsystemInfo> + '_ {
        core::iter::empty()
    }
    /// Data that arrived for subsystems, until `finish`, whether or not one is registered.
    pub fn boot_data(&self) -> impl Iterator<Item = (&SubsystemName, u64)> {
        core::iter::empty()
    }

    // --- Sessions.

    /// Makes a session.
    ///
    /// # Errors
    /// EEXIST where the name is taken, EINVAL or ENAMETOOLONG where it is no such name, ENOSPC over
    /// the limit, EBUSY outside `normal` and `updated` or in a transition of the machine.
    pub fn create_session(
        &mut self,
        name: &str,
        owner: Owner,
        policy: Policy,
    ) -> Result<SessionId, Error> {
        skeleton()
    }
    /// Removes a session with which no call is needed any more: its files are dropped.
    ///
    /// # Errors
    /// ENOENT; EBUSY while something of it is prepared, frozen, incoming or in flight: use
    /// [`release_session`](Self::release_session).
    pub fn remove_session(&mut self, session: SessionId) -> Result<(), Error> {
        skeleton()
    }
    /// Gives a session up, whatever state it is in: cancels what is prepared or frozen, finishes
    /// what is incoming, and removes it. The [`Report`]'s event is `finish` where it was
    /// `updated`, `cancel` elsewhere. A prepared machine goes on without it.
    ///
    /// # Errors
    /// ENOENT; EBUSY while the machine is frozen or in transition, or something of the session is
    /// in flight. In the report: EBUSY where `can_finish` of a file says no.
    pub fn release_session(&mut self, session: SessionId) -> Result<TransitionId, Error> {
        skeleton()
    }
    /// Changes how a session is kept.
    ///
    /// # Errors
    /// ENOENT.
    pub fn set_policy(&mut self, session: SessionId, policy: Policy) -> Result<(), Error> {
        skeleton()
    }
    /// The session of that name.
    #[must_use]
    pub fn session_by_name(&self, name: &str) -> Option<SessionId> {
        skeleton()
    }
    /// A session as it stands.
    #[must_use]
    pub fn session(&self, session: SessionId) -> Option<SessionInfo> {
        skeleton()
    }
    /// All sessions, by id.
    pub fn sessions(&self) -> impl Iterator<Item = SessionInfo> + '_ {
        core::iter::empty()
    }
    /// The files of a session, by side and token. Empty where there is no such session.
    pub fn files(&self, session: SessionId) -> impl Iterator<Item = FileInfo> + '_ {
        core::iter::empty()
    }
    /// One file as it stands.
    #[must_use]
    pub fn file(&self, key: FileKey) -> Option<FileInfo> {
        skeleton()
    }
    /// Another reference to a file that is held here: an outgoing one, or one retrieved.
    #[must_use]
    pub fn file_ref(&self, key: FileKey) -> Option<F> {
        skeleton()
    }

    /// The owner has gone, at `now` in the driver's seconds: the session is unclaimed, and expires
    /// as its policy says. What to do with [`OnClose::Release`] is up to the driver.
    ///
    /// # Errors
    /// ENOENT.
    pub fn owner_gone(&mut self, session: SessionId, now_seconds: u64) -> Result<(), Error> {
        skeleton()
    }
    /// Somebody has claimed the session.
    ///
    /// # Errors
    /// ENOENT.
    pub fn owner_back(&mut self, session: SessionId) -> Result<(), Error> {
        skeleton()
    }
    /// Unclaimed sessions whose time limit has passed at `now`, the longest overdue first.
    #[must_use]
    pub fn expired(&self, now_seconds: u64) -> Vec<SessionId> {
        skeleton()
    }
    /// When the next unclaimed session expires, in the driver's seconds.
    #[must_use]
    pub fn next_expiry(&self) -> Option<u64> {
        skeleton()
    }
    /// Bytes that stay in use because of all sessions.
    #[must_use]
    pub fn pinned(&self) -> u64 {
        skeleton()
    }

    // --- Files.

    /// Registers a file for the next live update; `None` assigns a token.
    ///
    /// # Errors
    /// EBUSY outside `normal` and `updated`, in a transition, or where the same open file
    /// description is already preserved; EEXIST where the token is taken; ENOENT where there is
    /// no such session or no handler takes the file; ENOSPC over a limit.
    pub fn preserve(
        &mut self,
        session: SessionId,
        token: Option<Token>,
        file: F,
        criticality: Criticality,
    ) -> Result<Token, Error> {
        skeleton()
    }
    /// Takes an outgoing file out again.
    ///
    /// # Errors
    /// ENOENT; EBUSY where it is prepared or frozen, or in a transition.
    pub fn unpreserve(&mut self, session: SessionId, token: Token) -> Result<(), Error> {
        skeleton()
    }
    /// Asks for an incoming file.
    ///
    /// # Errors
    /// ENOENT no such session or token, EBUSY outside `updated` or while it is being finished.
    pub fn retrieve(&mut self, session: SessionId, token: Token) -> Result<Retrieval<F>, Error> {
        skeleton()
    }
    /// The owner has really got the file.
    ///
    /// # Errors
    /// ENOENT; EBUSY where it has not been retrieved.
    pub fn mark_reclaimed(&mut self, session: SessionId, token: Token) -> Result<(), Error> {
        skeleton()
    }

    // --- The cycle.

    /// Begins a transition. Its calls come from [`next_call`](Self::next_call), its end is a
    /// [`Notice::Ended`]. `cancel` of a scope whose transition is going on stops and undoes that
    /// one, and gives its id.
    ///
    /// # Errors
    /// EBUSY where the state does not allow it or another transition is in the way; ENOENT no such
    /// session or file; EINVAL where the event makes no sense for the scope.
    pub fn begin(&mut self, scope: Scope, event: Event) -> Result<TransitionId, Error> {
        skeleton()
    }
    /// As `begin` with [`Event::Finish`], with options.
    ///
    /// # Errors
    /// As `begin`; EBUSY with the tokens where files are unclaimed and this is refused; ENOSPC
    /// where what is carried exceeds a limit; EEXIST where a carried token is taken. In the
    /// report: EBUSY where `can_finish` of a file says no, and nothing was finished.
    pub fn finish(&mut self, scope: Scope, options: FinishOptions) -> Result<TransitionId, Error> {
        skeleton()
    }
    /// As `begin(Scope::Machine, Event::Arrive)`, with the handover at hand instead of the one that
    /// the carrier has committed.
    ///
    /// # Errors
    /// EBUSY where the machine is not `normal` or has sessions; EINVAL where the handover is
    /// damaged.
    pub fn arrive(&mut self, handover: &[u8]) -> Result<TransitionId, Error> {
        skeleton()
    }
    /// The next call that may run now. Ask until `None`, after everything that can start calls:
    /// `begin`, `finish`, `arrive`, `release_session`, `retrieve`, `register_subsystem`,
    /// `complete`, `resume`.
    pub fn next_call(&mut self) -> Option<Call<F>> {
        skeleton()
    }
    /// A call has ended.
    ///
    /// # Errors
    /// ENOENT where no such call is in flight.
    pub fn complete(&mut self, call: CallId, outcome: Outcome<F>) -> Result<(), Error> {
        skeleton()
    }
    /// What there is to tell. Ask until `None`, after the same as for `next_call`.
    pub fn take_notice(&mut self) -> Option<Notice> {
        skeleton()
    }

    // --- Records.

    /// What changed since this was last asked.
    pub fn take_dirty(&mut self) -> Dirty {
        skeleton()
    }
    /// The machine's record.
    #[must_use]
    pub fn machine_record(&self) -> MachineRecord {
        skeleton()
    }
    /// A session's record.
    #[must_use]
    pub fn session_record(&self, session: SessionId) -> Option<SessionRecord> {
        skeleton()
    }
    /// A file's record.
    #[must_use]
    pub fn file_record(&self, key: FileKey) -> Option<FileRecord> {
        skeleton()
    }
    /// Takes the machine's record, first of all. Handlers and local subsystems are registered
    /// before; a subsystem of the record that is not registered waits for its participant.
    ///
    /// # Errors
    /// EBUSY where something was restored or begun already.
    pub fn restore_machine(&mut self, record: MachineRecord) -> Result<(), Error> {
        skeleton()
    }
    /// Takes a session's record.
    ///
    /// # Errors
    /// EEXIST where the name or id is taken.
    pub fn restore_session(&mut self, record: SessionRecord) -> Result<(), Error> {
        skeleton()
    }
    /// Takes a file's record, with its descriptor where it has one: every outgoing file, and every
    /// retrieved one. Where no handler has its string, the file is kept with that error.
    ///
    /// # Errors
    /// ENOENT no such session, EEXIST the token is taken, EINVAL without its descriptor, EBUSY
    /// where the same open file description is already there.
    pub fn restore_file(&mut self, record: FileRecord, file: Option<F>) -> Result<(), Error> {
        skeleton()
    }
    /// After the last record: undoes what was cut short. Its calls come from `next_call`.
    pub fn resume(&mut self) -> Vec<TransitionId> {
        skeleton()
    }
}
