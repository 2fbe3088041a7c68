//! All carriers as one: a call keeps things in the one that it names, and finds each thing where its
//! handle says.
//!
//! Invariants:
//! - What is new goes to the carrier that the call names; what has a handle is in the carrier that
//!   the handle's space names.
//! - A carrier that cannot be used is a failure of what needs it, with the reason that was noted.

use std::sync::Arc;

use luo_abi::keeper::key;
use luo_carriers::HostFile;
use luo_core::{Caps, Carrier, CarrierId, Failure, Handle, Keep, Reach, Recall, SessionName};

use super::{ARENA_CAPS, LIVEUPDATE, LIVEUPDATE_CAPS, Shared, Why};

/// All carriers as one.
pub(super) struct Routed {
    pub(super) near: Arc<Shared>,
    /// Or why it cannot be used.
    pub(super) arena: Result<Arc<Shared>, Why>,
    /// The same.
    pub(super) liveupdate: Result<Arc<Shared>, Why>,
    pub(super) keeps: CarrierId,
}

fn usable(carrier: &Result<Arc<Shared>, Why>) -> Result<&Shared, Failure> {
    match carrier {
        Ok(carrier) => Ok(&**carrier),
        Err((errno, reason)) => Err(Failure::new(*errno, reason.as_str())),
    }
}

impl Routed {
    /// Where new things are kept.
    fn keep(&self) -> Result<&Shared, Failure> {
        match self.keeps {
            CarrierId::NEAR => Ok(&*self.near),
            LIVEUPDATE => usable(&self.liveupdate),
            _ => usable(&self.arena),
        }
    }

    /// Where a handle leads.
    fn of(&self, handle: Handle) -> Result<&Shared, Failure> {
        match key::space(handle.0) {
            luo_abi::arena::SPACE => usable(&self.arena),
            luo_abi::liveupdate::SPACE => usable(&self.liveupdate),
            _ => Ok(&*self.near),
        }
    }
}

/// The same, as files of one session see it.
struct RoutedIn<'a> {
    routed: &'a Routed,
    keep: Box<dyn Keep<HostFile> + 'a>,
}

impl Keep<HostFile> for RoutedIn<'_> {
    fn caps(&self) -> Caps {
        self.keep.caps()
    }

    fn keep_memory(&self, memory: &HostFile, len: u64) -> Result<Handle, Failure> {
        self.keep.keep_memory(memory, len)
    }

    fn refresh_memory(&self, handle: Handle, memory: &HostFile, len: u64) -> Result<(), Failure> {
        self.routed.refresh_memory(handle, memory, len)
    }

    fn keep_resident(&self, memory: &HostFile) -> Result<Handle, Failure> {
        self.keep.keep_resident(memory)
    }

    fn keep_bytes(&self, bytes: &[u8]) -> Result<Handle, Failure> {
        self.keep.keep_bytes(bytes)
    }

    fn keep_live(&self, file: &HostFile) -> Result<Handle, Failure> {
        self.keep.keep_live(file)
    }

    fn forget(&self, handle: Handle) {
        self.routed.forget(handle);
    }

    fn progress(&self, done: u64, total: u64) -> Result<(), Failure> {
        self.keep.progress(done, total)
    }
}

impl Keep<HostFile> for Routed {
    fn caps(&self) -> Caps {
        self.keep().map_or(
            match self.keeps {
                LIVEUPDATE => LIVEUPDATE_CAPS,
                _ => ARENA_CAPS,
            },
            Keep::caps,
        )
    }

    fn keep_memory(&self, memory: &HostFile, len: u64) -> Result<Handle, Failure> {
        self.keep()?.keep_memory(memory, len)
    }

    fn refresh_memory(&self, handle: Handle, memory: &HostFile, len: u64) -> Result<(), Failure> {
        self.of(handle)?.refresh_memory(handle, memory, len)
    }

    fn keep_resident(&self, memory: &HostFile) -> Result<Handle, Failure> {
        self.keep()?.keep_resident(memory)
    }

    fn keep_bytes(&self, bytes: &[u8]) -> Result<Handle, Failure> {
        self.keep()?.keep_bytes(bytes)
    }

    fn keep_live(&self, file: &HostFile) -> Result<Handle, Failure> {
        self.keep()?.keep_live(file)
    }

    fn forget(&self, handle: Handle) {
        // What is in an arena that cannot be opened was never committed, or will be found again.
        if let Ok(carrier) = self.of(handle) {
            carrier.forget(handle);
        }
    }

    fn progress(&self, done: u64, total: u64) -> Result<(), Failure> {
        Keep::progress(self.keep()?, done, total)
    }
}

impl Recall<HostFile> for Routed {
    fn caps(&self) -> Caps {
        Keep::caps(self)
    }

    fn memory(&self, handle: Handle) -> Result<HostFile, Failure> {
        self.of(handle)?.memory(handle)
    }

    fn resident(&self, handle: Handle) -> Result<HostFile, Failure> {
        self.of(handle)?.resident(handle)
    }

    fn bytes(&self, handle: Handle) -> Result<Vec<u8>, Failure> {
        self.of(handle)?.bytes(handle)
    }

    fn live(&self, handle: Handle) -> Result<HostFile, Failure> {
        self.of(handle)?.live(handle)
    }

    fn release(&self, handle: Handle) {
        if let Ok(carrier) = self.of(handle) {
            carrier.release(handle);
        }
    }

    fn progress(&self, done: u64, total: u64) -> Result<(), Failure> {
        Keep::progress(self, done, total)
    }
}

impl Carrier<HostFile> for Routed {
    fn name(&self) -> &'static str {
        self.keep().map_or("arena", |carrier| carrier.name())
    }

    fn reach(&self) -> Reach {
        self.keep().map_or(Reach::Agent, |carrier| carrier.reach())
    }

    fn for_session<'a>(&'a self, session: &'a SessionName) -> Option<Box<dyn Keep<HostFile> + 'a>>
    where
        HostFile: 'a,
    {
        let keep = self.keep().ok()?.for_session(session)?;
        Some(Box::new(RoutedIn { routed: self, keep }))
    }

    fn commit(&self, handover: &[u8]) -> Result<(), Failure> {
        self.keep()?.commit(handover)
    }

    fn committed(&self) -> Result<Option<Vec<u8>>, Failure> {
        self.keep()?.committed()
    }

    fn retire(&self) -> Result<(), Failure> {
        self.keep()?.retire()
    }
}
