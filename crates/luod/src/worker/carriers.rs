//! The carriers of this luod: the keeper's, for what stays in this system, and the arena and the
//! kernel's `/dev/liveupdate`, for an update of the machine that goes farther.
//!
//! Invariants:
//! - A call keeps things in the carrier that it names. What has a handle is in the carrier that the
//!   handle's space names.
//! - The arena is open, and locked, only while the machine's update goes through it, and while
//!   memory is lent from it for the first time. What is lent needs neither: the kernel knows it.
//! - It is open once: whoever needs it while somebody still has it gets the same.
//! - An arena or a device that cannot be opened is a failure of what needs it, and of nothing else.

mod copying;
mod routed;

use std::cell::{Cell, RefCell};
use std::path::PathBuf;
use std::sync::{Arc, Weak};

use luo_carriers::HostFile;
use luo_carriers::arena::{ArenaCarrier, Usage};
use luo_carriers::liveupdate::LiveUpdateCarrier;
use luo_core::{Caps, Carrier, CarrierId, Errno, Failure, Keep};

use super::refusal::Refusal;
use routed::Routed;

pub(crate) use copying::Copying;

/// Any carrier.
pub(crate) type Shared = dyn Carrier<HostFile> + Send + Sync;

/// The arena, as the framework knows it.
pub(crate) const ARENA: CarrierId = CarrierId(1);

/// `/dev/liveupdate`, as the framework knows it.
pub(crate) const LIVEUPDATE: CarrierId = CarrierId(2);

/// What `/dev/liveupdate` can keep, there or not.
pub(crate) const LIVEUPDATE_CAPS: Caps = Caps::MEMORY.union(Caps::BYTES).union(Caps::SOME_LIVE);

/// What the arena can keep, open or not.
pub(crate) const ARENA_CAPS: Caps = Caps::MEMORY.union(Caps::BYTES).union(Caps::RESIDENT);

/// Why a carrier cannot be used.
type Why = (Errno, String);

fn why(failure: &Failure) -> Why {
    (failure.errno(), failure.reason().to_owned())
}

/// How much room the arena had when it was opened, in bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Room {
    pub(crate) free: u64,
    pub(crate) size: u64,
}

/// See the module.
pub(crate) struct Carriers {
    near: Arc<Shared>,
    path: Option<PathBuf>,
    /// Whether memory from it is verified.
    verify: bool,
    arena: RefCell<Option<Arc<ArenaCarrier>>>,
    /// The same while anybody has it.
    last: RefCell<Weak<ArenaCarrier>>,
    room: Cell<Option<Room>>,
    /// How full the arena was when it was let go of last.
    usage: Cell<Option<Usage>>,
    /// Why it could not be opened, where the last attempt failed.
    failure: RefCell<Option<String>>,
    /// Or why it cannot be used.
    liveupdate: RefCell<Result<Arc<LiveUpdateCarrier>, Why>>,
    /// How many have the arena to lend memory from it.
    lending: Cell<usize>,
    pub(crate) copying: Arc<Copying>,
}

impl std::fmt::Debug for Carriers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Carriers").field("arena", &self.path).finish_non_exhaustive()
    }
}

impl Carriers {
    pub(crate) fn new(
        near: Arc<Shared>,
        arena: Option<PathBuf>,
        liveupdate: Result<Arc<LiveUpdateCarrier>, Failure>,
        copying: Arc<Copying>,
    ) -> Self {
        let liveupdate = RefCell::new(liveupdate.map_err(|failure| why(&failure)));
        Self {
            near,
            path: arena,
            verify: true,
            arena: RefCell::default(),
            last: RefCell::default(),
            room: Cell::default(),
            usage: Cell::default(),
            failure: RefCell::default(),
            liveupdate,
            lending: Cell::default(),
            copying,
        }
    }

    /// Whether memory from the arena is verified when it is given back; it is unless this says
    /// otherwise.
    pub(crate) fn with_verification(mut self, verify: bool) -> Self {
        self.verify = verify;
        self
    }

    pub(crate) fn near(&self) -> &Arc<Shared> {
        &self.near
    }

    /// Whether this luod has an arena.
    pub(crate) fn has_arena(&self) -> bool {
        self.path.is_some()
    }

    /// The names that a request can have.
    pub(crate) fn names(&self) -> Vec<&'static str> {
        let mut names = vec!["keeper"];
        names.extend(self.liveupdate().map(|_| "liveupdate"));
        names.extend(self.has_arena().then_some("arena"));
        names
    }

    /// What each carrier of these can keep.
    pub(crate) fn abilities(&self) -> Vec<(&'static str, Caps)> {
        let caps = |name: &str| match name {
            "liveupdate" => LIVEUPDATE_CAPS,
            "arena" => ARENA_CAPS,
            _ => Keep::caps(self.near.as_ref()),
        };
        self.names().into_iter().map(|name| (name, caps(name))).collect()
    }

    /// The carrier that a request names, the near one where it names none.
    ///
    /// # Errors
    /// ENOENT with the names that there are.
    pub(crate) fn asked_for(&self, name: Option<&str>) -> Result<CarrierId, Refusal> {
        match name.unwrap_or("keeper") {
            "keeper" => Ok(CarrierId::NEAR),
            "liveupdate" => Ok(LIVEUPDATE),
            "auto" if self.liveupdate().is_some() => Ok(LIVEUPDATE),
            "arena" | "auto" if self.has_arena() => Ok(ARENA),
            "auto" => Err(Refusal::new(
                Errno::NoEnt,
                format!(
                    "there is no carrier that reaches beyond this kernel: {}; and luod has no \
                     arena: make one with `luoctl arena create`, and name it in the configuration \
                     (`arena = \"PATH\"`)",
                    self.no_liveupdate().reason()
                ),
            )),
            "arena" => Err(Refusal::new(
                Errno::NoEnt,
                "luod has no arena: make one with `luoctl arena create`, and name it in the \
                 configuration (`arena = \"PATH\"`)",
            )),
            other => Err(Refusal::new(
                Errno::NoEnt,
                format!(
                    "there is no carrier {other:?}: there are \"keeper\", \"liveupdate\" and \
                     \"arena\", and \"auto\" for the one of the last two that is there"
                ),
            )),
        }
    }

    /// The word for a carrier.
    pub(crate) fn name(&self, carrier: CarrierId) -> &'static str {
        match carrier {
            CarrierId::NEAR => self.near.name(),
            LIVEUPDATE => "liveupdate",
            _ => "arena",
        }
    }

    /// `/dev/liveupdate`, where it could be opened.
    pub(crate) fn liveupdate(&self) -> Option<Arc<LiveUpdateCarrier>> {
        self.liveupdate.borrow().as_ref().ok().map(Arc::clone)
    }

    /// Why it could not be.
    pub(crate) fn no_liveupdate(&self) -> Failure {
        match &*self.liveupdate.borrow() {
            Ok(_) => Failure::new(Errno::Io, "/dev/liveupdate is there"),
            Err((errno, reason)) => Failure::new(*errno, reason.as_str()),
        }
    }

    /// It could be after all.
    pub(crate) fn set_liveupdate(&self, carrier: Arc<LiveUpdateCarrier>) {
        *self.liveupdate.borrow_mut() = Ok(carrier);
    }

    /// The arena, opened where it is not open yet.
    ///
    /// # Errors
    /// ENOENT where none is configured; what opening it says.
    pub(crate) fn arena(&self) -> Result<Arc<ArenaCarrier>, Failure> {
        if let Some(arena) = self.open_arena() {
            return Ok(arena);
        }
        // Who copies something that was given up must have ended first: that one is told so when
        // the arena cannot be opened.
        let last = self.last.borrow().upgrade();
        if let Some(arena) = last.filter(|last| Arc::strong_count(last) == self.lending.get() + 1) {
            self.copying.begin();
            self.note_room(&arena);
            *self.arena.borrow_mut() = Some(Arc::clone(&arena));
            return Ok(arena);
        }
        let Some(path) = &self.path else {
            return Err(Failure::new(Errno::NoEnt, "luod has no arena"));
        };
        let copying = Arc::clone(&self.copying);
        let opened = ArenaCarrier::open(path);
        let failed = opened.as_ref().err().map(|failure| failure.reason().to_owned());
        *self.failure.borrow_mut() = failed;
        let arena = opened?.with_verification(self.verify);
        // Whatever was cancelled has ended: it had the arena locked.
        copying.begin();
        let opened = Arc::new(arena.with_progress(Box::new(move |done, _| copying.go_on(done))));
        self.note_room(&opened);
        *self.last.borrow_mut() = Arc::downgrade(&opened);
        *self.arena.borrow_mut() = Some(Arc::clone(&opened));
        Ok(opened)
    }

    fn note_room(&self, arena: &ArenaCarrier) {
        let arena = arena.arena();
        self.room.set(Some(Room { free: arena.free(), size: arena.size() }));
    }

    /// The arena, where it is open.
    pub(crate) fn open_arena(&self) -> Option<Arc<ArenaCarrier>> {
        self.arena.borrow().clone()
    }

    /// How much room the arena had when it was opened last; `None` where it never was.
    pub(crate) fn room(&self) -> Option<Room> {
        self.room.get()
    }

    /// Memory of that many bytes, from the arena.
    ///
    /// # Errors
    /// As [`arena`](Self::arena), and [`Arena::lend`](luo_carriers::arena::Arena::lend).
    pub(crate) async fn lend(&self, len: u64) -> Result<HostFile, Failure> {
        let arena = self.arena()?;
        self.lending.set(self.lending.get() + 1);
        let lent = tokio::task::spawn_blocking(move || arena.arena().lend(len)).await;
        self.lending.set(self.lending.get() - 1);
        match lent {
            Ok(lent) => lent.map(HostFile::from),
            Err(_) => Err(Failure::new(Errno::Canceled, "no memory was lent: luod is stopping")),
        }
    }

    /// How full the arena is, or was when it was let go of last; `None` where it never was open.
    pub(crate) fn usage(&self) -> Option<Usage> {
        match self.open_arena() {
            Some(arena) => Some(arena.arena().usage()),
            None => self.usage.get(),
        }
    }

    /// Why the arena could not be opened, where the last attempt failed.
    pub(crate) fn arena_failure(&self) -> Option<String> {
        self.failure.borrow().clone()
    }

    /// Lets go of the arena, once what uses it has ended.
    pub(crate) fn close_arena(&self) {
        if let Some(arena) = self.arena.take() {
            self.usage.set(Some(arena.arena().usage()));
        }
    }

    /// The carrier to run a call with that keeps things in this one.
    pub(crate) fn through(&self, carrier: CarrierId) -> Arc<Shared> {
        let liveupdate = match &*self.liveupdate.borrow() {
            Ok(carrier) => Ok(Arc::clone(carrier) as Arc<Shared>),
            Err(why) => Err(why.clone()),
        };
        let arena_open = self.arena.borrow().is_some();
        let in_use = arena_open || self.liveupdate().is_some_and(|carrier| carrier.is_in_use());
        if carrier == CarrierId::NEAR && !in_use {
            return Arc::clone(&self.near);
        }
        let arena = match carrier == ARENA || arena_open {
            true => self.arena().map(|arena| arena as Arc<Shared>).map_err(|failure| {
                (failure.errno(), format!("the arena cannot be used: {}", failure.reason()))
            }),
            false => Err((Errno::NoEnt, "the arena is not in use".to_owned())),
        };
        Arc::new(Routed { near: Arc::clone(&self.near), arena, liveupdate, keeps: carrier })
    }
}
