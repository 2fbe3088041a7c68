//! The handlers, in the order in which they are asked, and the state each shares among its files.
//!
//! Invariants:
//! - `compatible` strings are unique; a handler that a file uses stays.
//! - A shared state is held while at least one file hangs on it, and no longer: what is counted is
//!   every file from before its `prepare` to after its `cancel` or `finish`.

use alloc::{
    collections::BTreeMap,
    format,
    string::{String, ToString},
    sync::Arc,
    vec::Vec,
};

use crate::{
    CallId, Caps, Compatible, DUPLICATE_COMPATIBLE, Errno, Error, Failure, File, Handle, Handler,
    Location, cycle::Job,
};

/// Names a handler; ascending in registration order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct HandlerId(pub(crate) u32);

/// How far the retrieval of a shared state is.
#[derive(Debug, Clone, Default)]
pub(crate) enum SharedRetrieval {
    #[default]
    No,
    Yes,
    Failed(Error),
}

/// The state that a handler shares among its files.
#[derive(Default)]
pub(crate) struct Shared {
    /// Its data, while it is held.
    pub(crate) data: Option<u64>,
    /// Frozen, and nothing has joined since.
    pub(crate) frozen: bool,
    /// Files of it have arrived, so it ends with `finish`.
    pub(crate) arrived: bool,
    pub(crate) retrieval: SharedRetrieval,
    pub(crate) kept: Vec<Handle>,
    /// Outgoing files that hang on it, from before `prepare` on.
    pub(crate) outgoing: usize,
    /// Those of them that are frozen.
    pub(crate) frozen_files: usize,
    /// Incoming files that hang on it, until after `finish`.
    pub(crate) incoming: usize,
    /// A call is queued or in flight.
    pub(crate) busy: bool,
    /// That call, once it is in flight.
    pub(crate) call: Option<CallId>,
    /// That call is late: whoever needs the state now is refused.
    pub(crate) late: bool,
    /// Why the last `prepare` failed.
    pub(crate) failed: Option<Error>,
    /// What waits for the call.
    pub(crate) waiters: Vec<Job>,
}

impl Shared {
    pub(crate) fn users(&self) -> usize {
        self.outgoing + self.incoming
    }

    /// Back to not being held.
    pub(crate) fn clear(&mut self) {
        self.data = None;
        self.frozen = false;
        self.arrived = false;
        self.retrieval = SharedRetrieval::No;
        self.kept = Vec::new();
    }
}

pub(crate) struct Entry<F: File> {
    pub(crate) handler: Arc<dyn Handler<F>>,
    pub(crate) compatible: Compatible,
    /// Files, on both sides, that use it.
    pub(crate) uses: usize,
    /// There where the handler has shared state.
    pub(crate) shared: Option<Shared>,
}

impl<F: File> Entry<F> {
    /// Whether it is asked for files. Nothing is a duplicate unless somebody says so.
    pub(crate) fn is_asked(&self) -> bool {
        *self.compatible != *DUPLICATE_COMPATIBLE
    }
}

pub(crate) struct Registry<F: File> {
    entries: BTreeMap<HandlerId, Entry<F>>,
    names: BTreeMap<Compatible, HandlerId>,
    next: u32,
}

impl<F: File> Registry<F> {
    pub(crate) const fn new() -> Self {
        Self { entries: BTreeMap::new(), names: BTreeMap::new(), next: 0 }
    }

    pub(crate) fn register(&mut self, handler: Arc<dyn Handler<F>>) -> Result<(), Error> {
        let compatible = Compatible::new(handler.compatible()).map_err(Error::refused)?;
        if self.names.contains_key(&compatible) {
            let reason = format!("a handler for {compatible} is already registered");
            return Err(Error::new(Errno::Exist, reason));
        }
        let id = HandlerId(self.next);
        self.next = self.next.checked_add(1).ok_or_else(|| {
            Error::new(Errno::NoSpc, "more handlers were registered than can be numbered")
        })?;
        let shared = handler.shared().map(|_| Shared::default());
        self.names.insert(compatible.clone(), id);
        self.entries.insert(id, Entry { handler, compatible, uses: 0, shared });
        Ok(())
    }

    pub(crate) fn unregister(&mut self, compatible: &str) -> Result<(), Error> {
        let Some(id) = self.find(compatible) else {
            let reason = format!("no handler for {compatible} is registered");
            return Err(Error::new(Errno::NoEnt, reason));
        };
        if let Some(entry) = self.entries.get(&id)
            && let uses = entry.uses
            && let held = entry.shared.as_ref().is_some_and(|s| s.busy || s.data.is_some())
            && (uses > 0 || held)
        {
            let reason = format!("{uses} files use the handler for {compatible}");
            return Err(Error::new(Errno::Busy, reason).advise("release them first"));
        }
        self.entries.remove(&id);
        self.names.remove(compatible);
        Ok(())
    }

    pub(crate) fn find(&self, compatible: &str) -> Option<HandlerId> {
        self.names.get(compatible).copied()
    }

    pub(crate) fn get(&self, id: HandlerId) -> Option<&Entry<F>> {
        self.entries.get(&id)
    }

    pub(crate) fn get_mut(&mut self, id: HandlerId) -> Option<&mut Entry<F>> {
        self.entries.get_mut(&id)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (HandlerId, &Entry<F>)> {
        self.entries.iter().map(|(id, entry)| (*id, entry))
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = (HandlerId, &mut Entry<F>)> {
        self.entries.iter_mut().map(|(id, entry)| (*id, entry))
    }

    pub(crate) fn shared(&mut self, id: HandlerId) -> Option<&mut Shared> {
        self.entries.get_mut(&id)?.shared.as_mut()
    }

    /// The first handler, in registration order, that takes the file and finds what it needs.
    pub(crate) fn choose(&self, file: &F, caps: Caps) -> Result<HandlerId, Error> {
        for (id, entry) in &self.entries {
            if caps.contains(entry.handler.requires()) && entry.handler.can_preserve(file) {
                return Ok(*id);
            }
        }
        Err(self.nobody(caps))
    }

    /// Why no handler takes a file, in words.
    fn nobody(&self, caps: Caps) -> Error {
        let mut refused: Vec<&str> = Vec::new();
        let mut lacking: Vec<String> = Vec::new();
        for entry in self.entries.values().filter(|entry| entry.is_asked()) {
            let lacks = entry.handler.requires().difference(caps);
            if lacks.is_empty() {
                refused.push(&entry.compatible);
            } else {
                lacking.push(format!("{} needs {}", entry.compatible, words(lacks)));
            }
        }
        let mut reason = "no handler takes this file".to_string();
        let mut between = ": ";
        if refused.is_empty() && lacking.is_empty() {
            reason += ": none is registered";
        }
        if !refused.is_empty() {
            reason += between;
            reason += &refused.join(", ");
            reason += if refused.len() == 1 { " refuses it" } else { " refuse it" };
            between = "; ";
        }
        if !lacking.is_empty() {
            reason += between;
            reason += &lacking.join(", ");
            reason += ", which the carrier does not keep";
        }
        Error::new(Errno::NoEnt, reason)
    }

    pub(crate) fn location(&self, id: Option<HandlerId>) -> Location {
        let handler = id.and_then(|id| self.get(id)).map(|entry| entry.compatible.clone());
        Location { handler, ..Location::default() }
    }
}

/// Capabilities in words.
fn words(caps: Caps) -> String {
    let names =
        [(Caps::LIVE, "live descriptors"), (Caps::MEMORY, "memory"), (Caps::BYTES, "bytes")];
    let words: Vec<&str> =
        names.iter().filter(|(cap, _)| caps.contains(*cap)).map(|(_, word)| *word).collect();
    words.join(" and ")
}

/// The refusal of a file whose handler this side does not have.
pub(crate) fn unknown_handler(compatible: &str) -> Failure {
    let reason = format!("no handler for {compatible} is registered here");
    Failure::new(Errno::NoEnt, reason)
}
