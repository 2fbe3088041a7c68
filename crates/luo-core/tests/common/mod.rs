//! A world of toys: files, handlers, subsystems and a carrier that do what a test tells them, and
//! write down what was done to them.

#![allow(dead_code, unreachable_pub)]

use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
};

use luo_core::*;

/// An open file description.
#[derive(Clone, Debug)]
pub struct Toy(Arc<ToyInner>);

#[derive(Debug)]
pub struct ToyInner {
    pub id: u64,
    pub kind: &'static str,
    pub identity: u64,
    pub pinned: u64,
}

impl Toy {
    pub fn new(id: u64) -> Self {
        Self::of("toy", id)
    }
    pub fn of(kind: &'static str, id: u64) -> Self {
        Self(Arc::new(ToyInner { id, kind, identity: id, pinned: 10 }))
    }
    /// Another file with the same identity.
    pub fn twin(kind: &'static str, id: u64, identity: u64, pinned: u64) -> Self {
        Self(Arc::new(ToyInner { id, kind, identity, pinned }))
    }
    pub fn id(&self) -> u64 {
        self.0.id
    }
    pub fn kind(&self) -> &'static str {
        self.0.kind
    }
}

impl File for Toy {
    fn identity(&self) -> Identity {
        Identity([1, self.0.identity])
    }
    fn order(&self, other: &Self) -> Ordering {
        self.0.id.cmp(&other.0.id)
    }
    fn pinned(&self) -> u64 {
        self.0.pinned
    }
}

/// What goes wrong, and what was done.
#[derive(Default, Debug)]
pub struct Script {
    /// Calls that fail, as they stand in the log.
    pub fails: BTreeSet<String>,
    pub log: Vec<String>,
    /// Whether handlers keep something in `prepare` and `freeze`, and forget to undo it.
    pub leaky: bool,
}

#[derive(Clone, Default, Debug)]
pub struct Shared(pub Arc<Mutex<Script>>);

impl Shared {
    /// Writes the call down; fails if the script says so.
    pub fn call(&self, what: String) -> Result<(), Failure> {
        let mut script = self.0.lock().unwrap();
        let fails = script.fails.contains(&what);
        script.log.push(what.clone());
        if fails { Err(Failure::new(Errno::Io, format!("{what} breaks"))) } else { Ok(()) }
    }
    pub fn fail(&self, what: &str) {
        self.0.lock().unwrap().fails.insert(what.into());
    }
    pub fn heal(&self) {
        self.0.lock().unwrap().fails.clear();
    }
    pub fn take_log(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap().log)
    }
}

/// A handler of one kind of toy; `data` is the file's id.
pub struct ToyHandler {
    pub kind: &'static str,
    pub script: Shared,
    pub requires: Caps,
    pub shared: Option<ToyShared>,
    pub own_identity: bool,
}

impl ToyHandler {
    pub fn new(kind: &'static str, script: &Shared) -> Self {
        Self {
            kind,
            script: script.clone(),
            requires: Caps::LIVE,
            shared: None,
            own_identity: false,
        }
    }
    pub fn with_shared(kind: &'static str, script: &Shared) -> Self {
        let shared = Some(ToyShared { kind, script: script.clone() });
        Self { shared, ..Self::new(kind, script) }
    }
}

impl Handler<Toy> for ToyHandler {
    fn compatible(&self) -> &str {
        self.kind
    }
    fn requires(&self) -> Caps {
        self.requires
    }
    fn can_preserve(&self, file: &Toy) -> bool {
        file.0.kind == self.kind
    }
    fn identity(&self, file: &Toy) -> Option<Identity> {
        self.own_identity.then_some(Identity([9, file.0.identity]))
    }
    fn prepare(&self, file: &Toy, keep: &dyn Keep<Toy>) -> Result<u64, Failure> {
        keep.keep_live(file)?;
        self.script.call(format!("prepare {}", file.id()))?;
        Ok(file.id())
    }
    fn freeze(&self, file: &Toy, data: u64, keep: &dyn Keep<Toy>) -> Result<u64, Failure> {
        assert_eq!(data, file.id(), "freeze gets the data of prepare");
        keep.keep_bytes(b"more")?;
        self.script.call(format!("freeze {}", file.id()))?;
        Ok(data + 1000)
    }
    fn cancel(&self, file: &Toy, data: u64, _keep: &dyn Keep<Toy>) {
        assert_eq!(data % 1000, file.id(), "cancel gets the file's data");
        let _ = self.script.call(format!("cancel {}", file.id()));
    }
    fn retrieve(&self, data: u64, _recall: &dyn Recall<Toy>) -> Result<Toy, Failure> {
        self.script.call(format!("retrieve {}", data - 1000))?;
        Ok(Toy::of(self.kind, data - 1000))
    }
    fn can_finish(&self, _file: Option<&Toy>, data: u64, _recall: &dyn Recall<Toy>) -> bool {
        self.script.call(format!("can_finish {}", data - 1000)).is_ok()
    }
    fn finish(&self, file: Option<&Toy>, data: u64, reclaimed: bool, _recall: &dyn Recall<Toy>) {
        if let Some(file) = file {
            assert_eq!(file.id(), data - 1000);
        }
        let how = if reclaimed { " reclaimed" } else { "" };
        let _ = self.script.call(format!("finish {}{how}", data - 1000));
    }
    fn shared(&self) -> Option<&dyn SharedState<Toy>> {
        self.shared.as_ref().map(|shared| shared as &dyn SharedState<Toy>)
    }
}

pub struct ToyShared {
    pub kind: &'static str,
    pub script: Shared,
}

impl SharedState<Toy> for ToyShared {
    fn prepare(&self, keep: &dyn Keep<Toy>) -> Result<u64, Failure> {
        keep.keep_bytes(b"shared")?;
        self.script.call(format!("prepare shared {}", self.kind))?;
        Ok(7)
    }
    fn freeze(&self, data: u64, _keep: &dyn Keep<Toy>) -> Result<u64, Failure> {
        assert!(data >= 7);
        self.script.call(format!("freeze shared {}", self.kind))?;
        Ok(data + 1)
    }
    fn cancel(&self, data: u64, _keep: &dyn Keep<Toy>) {
        assert!(data >= 7);
        let _ = self.script.call(format!("cancel shared {}", self.kind));
    }
    fn retrieve(&self, data: u64, _recall: &dyn Recall<Toy>) -> Result<(), Failure> {
        assert!(data >= 8);
        self.script.call(format!("retrieve shared {}", self.kind))
    }
    fn finish(&self, data: u64, _recall: &dyn Recall<Toy>) {
        assert!(data >= 8);
        let _ = self.script.call(format!("finish shared {}", self.kind));
    }
}

pub struct ToySubsystem {
    pub name: &'static str,
    pub script: Shared,
}

impl Subsystem<Toy> for ToySubsystem {
    fn prepare(&self, keep: &dyn Keep<Toy>) -> Result<u64, Failure> {
        keep.keep_bytes(self.name.as_bytes())?;
        self.script.call(format!("prepare {}", self.name))?;
        Ok(1)
    }
    fn freeze(&self, data: u64, _keep: &dyn Keep<Toy>) -> Result<u64, Failure> {
        assert_eq!(data, 1);
        self.script.call(format!("freeze {}", self.name))?;
        Ok(2)
    }
    fn cancel(&self, _data: u64, _keep: &dyn Keep<Toy>) {
        let _ = self.script.call(format!("cancel {}", self.name));
    }
    fn boot(&self, data: u64, _recall: &dyn Recall<Toy>) -> Result<(), Failure> {
        assert_eq!(data, 2);
        self.script.call(format!("boot {}", self.name))
    }
    fn finish(&self, data: u64, _recall: &dyn Recall<Toy>) {
        assert_eq!(data, 2);
        let _ = self.script.call(format!("finish {}", self.name));
    }
}

/// A carrier in memory; clones of it are the same one, so that it can be on both sides.
#[derive(Clone, Default)]
pub struct ToyCarrier(pub Arc<Mutex<Kept>>, pub Shared);

#[derive(Default)]
pub struct Kept {
    pub next: u64,
    pub live: BTreeMap<u64, Toy>,
    pub bytes: BTreeMap<u64, Vec<u8>>,
    pub committed: Option<Vec<u8>>,
}

impl ToyCarrier {
    pub fn kept(&self) -> usize {
        let kept = self.0.lock().unwrap();
        kept.live.len() + kept.bytes.len()
    }
    fn handle(kept: &mut Kept) -> u64 {
        kept.next += 1;
        kept.next
    }
    fn drop_handle(&self, handle: Handle) {
        let mut kept = self.0.lock().unwrap();
        let there = kept.live.remove(&handle.0).is_some() | kept.bytes.remove(&handle.0).is_some();
        assert!(there, "handle {} is given back twice", handle.0);
    }
}

impl Keep<Toy> for ToyCarrier {
    fn caps(&self) -> Caps {
        Caps::LIVE | Caps::BYTES
    }
    fn keep_memory(&self, _: &Toy, _: u64) -> Result<Handle, Failure> {
        Err(Failure::new(Errno::OpNotSupp, "no memory here"))
    }
    fn refresh_memory(&self, _: Handle, _: &Toy, _: u64) -> Result<(), Failure> {
        Err(Failure::new(Errno::OpNotSupp, "no memory here"))
    }
    fn keep_bytes(&self, bytes: &[u8]) -> Result<Handle, Failure> {
        if bytes.starts_with(&[0xd0, 0x0d, 0xfe, 0xed]) {
            self.1.call("keep tree".into())?;
        }
        let mut kept = self.0.lock().unwrap();
        let handle = Self::handle(&mut kept);
        kept.bytes.insert(handle, bytes.to_vec());
        Ok(Handle(handle))
    }
    fn keep_live(&self, file: &Toy) -> Result<Handle, Failure> {
        let mut kept = self.0.lock().unwrap();
        let handle = Self::handle(&mut kept);
        kept.live.insert(handle, file.clone());
        Ok(Handle(handle))
    }
    fn forget(&self, handle: Handle) {
        self.drop_handle(handle);
    }
    fn progress(&self, _: u64, _: u64) -> Result<(), Failure> {
        Ok(())
    }
}

impl Recall<Toy> for ToyCarrier {
    fn caps(&self) -> Caps {
        Caps::LIVE | Caps::BYTES
    }
    fn memory(&self, _: Handle) -> Result<Toy, Failure> {
        Err(Failure::new(Errno::OpNotSupp, "no memory here"))
    }
    fn bytes(&self, handle: Handle) -> Result<Vec<u8>, Failure> {
        self.1.call("read tree".into())?;
        let kept = self.0.lock().unwrap();
        let bytes = kept.bytes.get(&handle.0).cloned();
        bytes.ok_or_else(|| Failure::new(Errno::NoEnt, "no such bytes"))
    }
    fn live(&self, handle: Handle) -> Result<Toy, Failure> {
        let kept = self.0.lock().unwrap();
        let file = kept.live.get(&handle.0).cloned();
        file.ok_or_else(|| Failure::new(Errno::NoEnt, "no such file"))
    }
    fn release(&self, handle: Handle) {
        self.drop_handle(handle);
    }
    fn progress(&self, _: u64, _: u64) -> Result<(), Failure> {
        Ok(())
    }
}

impl Carrier<Toy> for ToyCarrier {
    fn name(&self) -> &'static str {
        "toy"
    }
    fn reach(&self) -> Reach {
        Reach::Kernel
    }
    fn commit(&self, handover: &[u8]) -> Result<(), Failure> {
        self.1.call("commit".into())?;
        self.0.lock().unwrap().committed = Some(handover.to_vec());
        Ok(())
    }
    fn committed(&self) -> Result<Option<Vec<u8>>, Failure> {
        self.1.call("find".into())?;
        Ok(self.0.lock().unwrap().committed.clone())
    }
    fn retire(&self) -> Result<(), Failure> {
        self.1.call("retire".into())?;
        self.0.lock().unwrap().committed = None;
        Ok(())
    }
}

pub type Core = Orchestrator<Toy>;

/// An orchestrator with a driver that does one call at a time.
pub struct World {
    pub core: Core,
    pub carrier: ToyCarrier,
    pub script: Shared,
    pub notices: Vec<Notice>,
}

pub const ALICE: Owner = Owner { uid: 1000, gid: 1000 };
pub const BOB: Owner = Owner { uid: 1001, gid: 1001 };

impl Default for World {
    fn default() -> Self {
        Self::new()
    }
}

impl World {
    /// With a handler for kind `toy`.
    pub fn new() -> Self {
        let mut world = Self::bare(ToyCarrier::default());
        world.handler("toy");
        world
    }

    pub fn bare(carrier: ToyCarrier) -> Self {
        let script = carrier.1.clone();
        let core = Core::new(Caps::LIVE | Caps::BYTES, Limits::default());
        Self { core, carrier, script, notices: Vec::new() }
    }

    pub fn handler(&mut self, kind: &'static str) {
        self.core.register_handler(Arc::new(ToyHandler::new(kind, &self.script))).unwrap();
    }

    pub fn shared_handler(&mut self, kind: &'static str) {
        let handler = ToyHandler::with_shared(kind, &self.script);
        self.core.register_handler(Arc::new(handler)).unwrap();
    }

    pub fn subsystem(&mut self, name: &'static str, options: SubsystemOptions) {
        let toy = ToySubsystem { name, script: self.script.clone() };
        self.core.register_subsystem(name, SubsystemKind::Local(Arc::new(toy)), options).unwrap();
    }

    pub fn session(&mut self, name: &str) -> SessionId {
        self.core.create_session(name, ALICE, Policy::default()).unwrap()
    }

    pub fn give(&mut self, session: SessionId, id: u64) -> Token {
        self.core.preserve(session, Some(Token(id)), Toy::new(id), Criticality::Required).unwrap()
    }

    /// Runs everything there is to run, one call after the other.
    pub fn run(&mut self) {
        while let Some(call) = self.core.next_call() {
            let outcome = call.run(&self.carrier);
            self.core.complete(call.id(), outcome).unwrap();
        }
        self.collect();
    }

    pub fn collect(&mut self) {
        while let Some(notice) = self.core.take_notice() {
            self.notices.push(notice);
        }
    }

    /// All calls that may run now, not run yet.
    pub fn calls(&mut self) -> Vec<Call<Toy>> {
        std::iter::from_fn(|| self.core.next_call()).collect()
    }

    pub fn complete(&mut self, call: &Call<Toy>) {
        let outcome = call.run(&self.carrier);
        self.core.complete(call.id(), outcome).unwrap();
        self.collect();
    }

    pub fn late(&mut self, call: &Call<Toy>) {
        self.core.complete(call.id(), Outcome::late("the deadline has passed")).unwrap();
        self.collect();
    }

    /// Begins, runs to the end, and gives the report.
    pub fn event(&mut self, scope: Scope, event: Event) -> Report {
        let id = self.core.begin(scope, event).unwrap();
        self.run();
        self.report(id)
    }

    pub fn machine(&mut self, event: Event) -> Report {
        self.event(Scope::Machine, event)
    }

    /// The report of a transition; there is exactly one.
    pub fn report(&mut self, id: TransitionId) -> Report {
        self.collect();
        let mut found: Vec<Report> = Vec::new();
        self.notices.retain(|notice| match notice {
            Notice::Ended(report) if report.id == id => {
                found.push(report.clone());
                false
            }
            _ => true,
        });
        assert_eq!(found.len(), 1, "one report of {id:?}");
        found.remove(0)
    }

    pub fn state(&self) -> State {
        let status = self.core.status();
        assert_eq!(status.transition, None, "no transition is left");
        status.state
    }

    /// The other side of what was committed.
    pub fn other_side(&self) -> Self {
        let mut other = Self::bare(self.carrier.clone());
        other.handler("toy");
        other
    }

    pub fn retrieve(&mut self, session: SessionId, token: u64) -> Result<Toy, Error> {
        if let Retrieval::Pending = self.core.retrieve(session, Token(token))? {
            self.run();
        }
        match self.core.retrieve(session, Token(token))? {
            Retrieval::Ready(file) => Ok(file),
            Retrieval::Failed(error) => Err(error),
            Retrieval::Pending => panic!("a retrieval did not end"),
        }
    }

    pub fn log(&self) -> Vec<String> {
        self.script.take_log()
    }

    /// The states of a session's outgoing files.
    pub fn file_states(&self, session: SessionId) -> Vec<State> {
        let files = self.core.files(session).filter(|file| file.side == Side::Outgoing);
        files.map(|file| file.state).collect()
    }
}

pub fn words(text: &str) -> Vec<String> {
    text.split(',').map(|word| word.trim().to_string()).filter(|word| !word.is_empty()).collect()
}
