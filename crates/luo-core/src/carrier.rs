//! Carriers: what takes kept objects to the other side.
//!
//! A handler sees a carrier as [`Keep`] before the update and as [`Recall`] after it, and is
//! written once against these two. Three kinds of carrier fit behind them: one that holds live
//! descriptors (`keeper`), one that passes memory to the next kernel without a copy
//! (`liveupdate`), and one that copies memory into a region which outlives the kernel (`arena`).
//!
//! Invariants:
//! - Everything a handler keeps through the [`Keep`] of one file belongs to that file. The
//!   framework notes the handles and forgets them when the file is cancelled, so a handler cannot
//!   leak them by forgetting to undo.
//! - What a carrier cannot do it refuses with EOPNOTSUPP; it never keeps less than asked.

use alloc::{boxed::Box, vec::Vec};
use core::{
    cmp::Ordering,
    ops::{ControlFlow, RangeInclusive},
};

use crate::{Errno, Failure, File, Identity, SessionName, Token};

/// Names one of the host's carriers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CarrierId(pub u8);

impl CarrierId {
    /// The carrier of what does not leave this system: the first one, always there.
    pub const NEAR: Self = Self(0);
}

/// Names one kept object within its carrier, here and on the other side. Never zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Handle(pub u64);

bitflags::bitflags! {
    /// What a carrier can keep.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
    pub struct Caps: u8 {
        /// Live descriptors: [`Keep::keep_live`].
        const LIVE = 1;
        /// Memory: [`Keep::keep_memory`].
        const MEMORY = 2;
        /// Bytes: [`Keep::keep_bytes`].
        const BYTES = 4;
        /// Live descriptors of some types: [`Keep::keep_live`] refuses the others with ENOENT.
        /// Which, is found out by trying.
        const SOME_LIVE = 8;
        /// Memory of the carrier's own, where it lies: [`Keep::keep_resident`].
        const RESIDENT = 16;
    }
}

/// How far a file survives, from the nearest to the farthest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reach {
    /// The restart of the service that owns it.
    Service,
    /// That, and the restart or upgrade of the agent.
    Agent,
    /// That, and a kexec into another kernel.
    Kernel,
    /// That, and a power cycle.
    Power,
}

impl Reach {
    /// The word for it in reports and on the wire.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Service => "service",
            Self::Agent => "agent",
            Self::Kernel => "kernel",
            Self::Power => "power",
        }
    }
}

/// A carrier before the update: keeps what a handler gives it.
pub trait Keep<F> {
    /// What this carrier can keep.
    fn caps(&self) -> Caps;

    /// Keeps the first `len` bytes of a memory file. The carrier may share the memory or copy it;
    /// after [`refresh_memory`](Self::refresh_memory) in `freeze` both come to the same.
    ///
    /// # Errors
    /// EOPNOTSUPP where the carrier keeps no memory, ENOSPC where there is no room (with the bytes
    /// needed and free), EBADF or EINVAL where `memory` is not a memory file of that length,
    /// ECANCELED.
    fn keep_memory(&self, memory: &F, len: u64) -> Result<Handle, Failure>;

    /// Brings kept memory up to date, from `freeze`: only what changed since it was kept is
    /// copied. `len` may differ from before. Carriers that share memory have nothing to do.
    ///
    /// # Errors
    /// As [`keep_memory`](Self::keep_memory), and ENOENT where `handle` is not kept memory.
    fn refresh_memory(&self, handle: Handle, memory: &F, len: u64) -> Result<(), Failure>;

    /// Keeps a copy of `bytes`.
    ///
    /// # Errors
    /// EOPNOTSUPP, ENOSPC, E2BIG (with the limit in bytes).
    fn keep_bytes(&self, bytes: &[u8]) -> Result<Handle, Failure>;

    /// Keeps memory that this carrier has lent: nothing is copied, and what its owner writes until
    /// the workload stands still is kept.
    ///
    /// # Errors
    /// EOPNOTSUPP where the carrier lends no memory, or has not lent this; EBUSY where it is kept
    /// already; ENOSPC.
    fn keep_resident(&self, _memory: &F) -> Result<Handle, Failure> {
        Err(no_resident())
    }

    /// Keeps the open file description itself.
    ///
    /// # Errors
    /// EOPNOTSUPP where the carrier cannot hold live descriptors, ENOENT where it cannot hold one
    /// of this type, ENOSPC or EMFILE where it can
    /// hold no more.
    fn keep_live(&self, file: &F) -> Result<Handle, Failure>;

    /// Forgets a kept object. Unknown handles are ignored.
    fn forget(&self, handle: Handle);

    /// The token of the file that is being kept; `None` outside of a file's `prepare` and
    /// `freeze`. The framework answers this and the five below it, no carrier does.
    fn token(&self) -> Option<Token> {
        None
    }

    /// Finds another file of the same session by its identity, and by `order` among those with the
    /// same one: how the file it is given is [ordered](File::order) to the one that is looked for,
    /// `Equal` where it is that one. O(log n) among the session's files. Only for a handler that
    /// [refers](crate::Handler::refers) to others.
    fn find(&self, _identity: Identity, _order: &dyn Fn(&F) -> Ordering) -> Option<Token> {
        None
    }

    /// Walks the other files of the same session whose identities lie within these, by identity and
    /// [order](File::order), until `visit` breaks. O(log n) among the session's files, and one step
    /// for each file that is visited: for those of which less is known than [`find`](Self::find)
    /// wants to know. The file that is being kept may be among them. Only for a handler that
    /// [refers](crate::Handler::refers) to others.
    fn each_within(
        &self,
        _identities: RangeInclusive<Identity>,
        _visit: &mut dyn FnMut(Token, &F) -> ControlFlow<()>,
    ) {
    }

    /// The token of another file of the same session; see [`find`](Self::find).
    fn token_of(&self, file: &F) -> Option<Token>
    where
        F: File,
    {
        self.find(file.identity(), &|other| other.order(file))
    }

    /// Notes that this file needs the one with that token: on the other side it can be had in
    /// `retrieve`, by [`Recall::file`], and an update that would keep this one without it is
    /// refused. Files that need each other in a circle are refused with EINVAL before anything is
    /// frozen. What `freeze` notes is added to what `prepare` noted.
    ///
    /// # Errors
    /// E2BIG where it is bound to [`Bond::MAX`](crate::Bond::MAX) others already, EINVAL for its own
    /// token, EOPNOTSUPP outside of a file's `prepare` and `freeze`.
    fn need(&self, _token: Token) -> Result<(), Failure> {
        Err(no_session())
    }

    /// Notes that no update may keep this file without the one with that token, in whatever order
    /// they are retrieved: of two ends of a pipe one [needs](Self::need) the other, which makes
    /// both, and that one notes this.
    ///
    /// # Errors
    /// As [`need`](Self::need).
    fn bind(&self, _token: Token) -> Result<(), Failure> {
        Err(no_session())
    }

    /// Long work says here how far it is, in any unit, and learns whether to go on.
    ///
    /// # Errors
    /// ECANCELED once the call has been cancelled or its deadline has passed: the handler gives
    /// up and returns this error.
    fn progress(&self, done: u64, total: u64) -> Result<(), Failure>;
}

/// A carrier after the update: gives back what was kept.
pub trait Recall<F> {
    /// What this carrier can give back.
    fn caps(&self) -> Caps;

    /// The kept memory as a memory file. Where the carrier copies, the descriptor may be given
    /// before the last byte is there; reading waits.
    ///
    /// # Errors
    /// ENOENT for a handle that is not kept memory, EINVAL for a damaged one, EOPNOTSUPP, EIO.
    fn memory(&self, handle: Handle) -> Result<F, Failure>;

    /// Memory of the carrier's own that was kept: lent once more, at the same place.
    ///
    /// # Errors
    /// As [`memory`](Self::memory).
    fn resident(&self, _handle: Handle) -> Result<F, Failure> {
        Err(no_resident())
    }

    /// The kept bytes.
    ///
    /// # Errors
    /// As [`memory`](Self::memory).
    fn bytes(&self, handle: Handle) -> Result<Vec<u8>, Failure>;

    /// The kept descriptor.
    ///
    /// # Errors
    /// As [`memory`](Self::memory).
    fn live(&self, handle: Handle) -> Result<F, Failure>;

    /// Frees what was kept under `handle`: nobody will recall it again. Unknown handles are
    /// ignored.
    fn release(&self, handle: Handle);

    /// A file that this one [needs](Keep::need), as it was retrieved. In `retrieve` only; the
    /// framework answers, no carrier does.
    ///
    /// # Errors
    /// ENOENT for any other token.
    fn file(&self, token: Token) -> Result<F, Failure> {
        Err(Failure::new(Errno::NoEnt, alloc::format!("the file does not need token {token}")))
    }

    /// Gives the framework a file that was made along with this one and [needs](Keep::need) it: a
    /// pipe's other end. Its own `retrieve` is not called any more.
    ///
    /// # Errors
    /// ENOENT where the file with that token does not need this one, or is there already: what
    /// was made for it is dropped.
    fn give(&self, token: Token, _file: F) -> Result<(), Failure> {
        Err(Failure::new(Errno::NoEnt, alloc::format!("token {token} does not need this file")))
    }

    /// As [`Keep::progress`].
    ///
    /// # Errors
    /// ECANCELED.
    fn progress(&self, done: u64, total: u64) -> Result<(), Failure>;
}

/// Carriers do not know which file they are called for.
fn no_session() -> Failure {
    Failure::new(Errno::OpNotSupp, "nothing is kept for a file of a session")
}

/// Most carriers have no memory of their own.
fn no_resident() -> Failure {
    Failure::new(Errno::OpNotSupp, "this carrier has no memory of its own to lend")
}

/// Both sides of a carrier, and the handover itself.
pub trait Carrier<F>: Keep<F> + Recall<F> {
    /// The word for it in reports: `keeper`, `liveupdate`, `arena`.
    fn name(&self) -> &'static str;

    /// How far what it keeps survives.
    fn reach(&self) -> Reach;

    /// Whether keeping and recalling only notes what there is: nothing is copied, and nobody is
    /// waited for. See [`Handler::is_quick`](crate::Handler::is_quick).
    fn is_quick(&self) -> bool {
        false
    }

    /// The carrier as files of this session see it, where it keeps what belongs to each session
    /// apart. `None`: it makes no difference.
    fn for_session<'a>(&'a self, _session: &'a SessionName) -> Option<Box<dyn Keep<F> + 'a>>
    where
        F: 'a,
    {
        None
    }

    /// Makes `handover` the one that the other side will find, in one atomic step: whatever
    /// happens, the other side finds the one before or this one, whole.
    ///
    /// # Errors
    /// ENOSPC, EIO. After an error the one before still stands.
    fn commit(&self, handover: &[u8]) -> Result<(), Failure>;

    /// The handover that this side found when it began, `None` where there is none.
    ///
    /// # Errors
    /// EIO, EINVAL for a damaged one.
    fn committed(&self) -> Result<Option<Vec<u8>>, Failure>;

    /// Ends the handover after `finish`: the next arrival will find none.
    ///
    /// # Errors
    /// EIO.
    fn retire(&self) -> Result<(), Failure>;
}
