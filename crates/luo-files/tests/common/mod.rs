//! A carrier that copies, and an orchestrator that takes files across with it.
#![allow(dead_code, reason = "each test file uses a part of it")]

use std::collections::BTreeMap;
use std::fs::File as StdFile;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use luo_carriers::{HostFile, closer};
use luo_core::{
    Caps, Carrier, Criticality, Errno, Error, Event, Failure, Handle, Keep, Limits, Notice,
    Orchestrator, Owner, Policy, Reach, Recall, Retrieval, Scope, State, Token,
};
use rustix::fs::{MemfdFlags, memfd_create};

/// Copies memory, in whole pages, as a carrier does that cannot hold descriptors.
#[derive(Default)]
pub(crate) struct Copier {
    pub(crate) kept: Mutex<BTreeMap<u64, Vec<u8>>>,
    last: AtomicU64,
    handover: Mutex<Option<Vec<u8>>>,
    /// So many more objects are kept before one is refused; zero: all are.
    pub(crate) refuse_after: AtomicU64,
}

impl Copier {
    pub(crate) fn put(&self, bytes: Vec<u8>) -> Handle {
        let handle = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        self.kept.lock().unwrap().insert(handle, bytes);
        Handle(handle)
    }

    pub(crate) fn copy(memory: &HostFile, len: u64) -> Vec<u8> {
        let mut bytes = vec![0; len as usize];
        StdFile::from(memory.try_clone_fd().unwrap()).read_exact_at(&mut bytes, 0).unwrap();
        bytes
    }

    pub(crate) fn get(&self, handle: Handle) -> Result<Vec<u8>, Failure> {
        let kept = self.kept.lock().unwrap().get(&handle.0).cloned();
        kept.ok_or_else(|| Failure::new(Errno::NoEnt, "nothing there"))
    }
}

impl Keep<HostFile> for Copier {
    fn caps(&self) -> Caps {
        Caps::MEMORY | Caps::BYTES
    }
    fn keep_memory(&self, memory: &HostFile, len: u64) -> Result<Handle, Failure> {
        Ok(self.put(Self::copy(memory, len)))
    }
    fn refresh_memory(&self, handle: Handle, memory: &HostFile, len: u64) -> Result<(), Failure> {
        self.get(handle)?;
        self.kept.lock().unwrap().insert(handle.0, Self::copy(memory, len));
        Ok(())
    }
    fn keep_bytes(&self, bytes: &[u8]) -> Result<Handle, Failure> {
        let left = |n: u64| Some(n.saturating_sub(1));
        if self.refuse_after.fetch_update(Ordering::Relaxed, Ordering::Relaxed, left) == Ok(1) {
            return Err(Failure::new(Errno::NoSpc, "no room, says the test"));
        }
        Ok(self.put(bytes.to_vec()))
    }
    fn keep_live(&self, _: &HostFile) -> Result<Handle, Failure> {
        Err(Failure::new(Errno::OpNotSupp, "no live descriptors"))
    }
    fn forget(&self, handle: Handle) {
        self.kept.lock().unwrap().remove(&handle.0);
    }
    fn progress(&self, _: u64, _: u64) -> Result<(), Failure> {
        Ok(())
    }
}

impl Recall<HostFile> for Copier {
    fn caps(&self) -> Caps {
        Keep::caps(self)
    }
    fn memory(&self, handle: Handle) -> Result<HostFile, Failure> {
        let bytes = self.get(handle)?;
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = StdFile::from(memfd_create("recalled", flags).unwrap());
        file.write_all_at(&bytes, 0).unwrap();
        file.set_len((bytes.len() as u64).next_multiple_of(4096)).unwrap();
        Ok(HostFile::from(OwnedFd::from(file)))
    }
    fn bytes(&self, handle: Handle) -> Result<Vec<u8>, Failure> {
        self.get(handle)
    }
    fn live(&self, _: Handle) -> Result<HostFile, Failure> {
        Err(Failure::new(Errno::OpNotSupp, "no live descriptors"))
    }
    fn release(&self, handle: Handle) {
        self.forget(handle);
    }
    fn progress(&self, _: u64, _: u64) -> Result<(), Failure> {
        Ok(())
    }
}

impl Carrier<HostFile> for Copier {
    fn name(&self) -> &'static str {
        "copier"
    }
    fn reach(&self) -> Reach {
        Reach::Power
    }
    fn commit(&self, handover: &[u8]) -> Result<(), Failure> {
        *self.handover.lock().unwrap() = Some(handover.to_vec());
        Ok(())
    }
    fn committed(&self) -> Result<Option<Vec<u8>>, Failure> {
        Ok(self.handover.lock().unwrap().clone())
    }
    fn retire(&self) -> Result<(), Failure> {
        *self.handover.lock().unwrap() = None;
        Ok(())
    }
}

fn orchestrator() -> Orchestrator<HostFile> {
    let mut core = Orchestrator::new(Caps::BYTES | Caps::MEMORY, Limits::default());
    for handler in luo_files::handlers() {
        core.register_handler(handler).unwrap();
    }
    core
}

fn drive(core: &mut Orchestrator<HostFile>, carrier: &Copier) -> Vec<Notice> {
    while let Some(call) = core.next_call() {
        let outcome = call.run(carrier);
        core.complete(call.id(), outcome).unwrap();
    }
    std::iter::from_fn(|| core.take_notice()).collect()
}

fn event(core: &mut Orchestrator<HostFile>, carrier: &Copier, event: Event) -> Result<(), Error> {
    let begun = core.begin(Scope::Machine, event)?;
    let ended = drive(core, carrier).into_iter().find_map(|notice| match notice {
        Notice::Ended(report) if report.id == begun => Some(report.result),
        _ => None,
    });
    ended.expect("every transition that was begun ends")
}

/// A service's files, on this side of an update.
pub(crate) struct Before {
    core: Orchestrator<HostFile>,
    pub(crate) carrier: Copier,
}

/// The same, on the other side.
pub(crate) struct After {
    core: Orchestrator<HostFile>,
    carrier: Copier,
}

impl Before {
    /// A session with these files, the first under token 1.
    pub(crate) fn new(files: Vec<OwnedFd>) -> Result<Self, Error> {
        Self::with_duplicates(files, &[])
    }

    /// The same, and then duplicates of the files with these tokens.
    pub(crate) fn with_duplicates(files: Vec<OwnedFd>, of: &[u64]) -> Result<Self, Error> {
        let (mut core, carrier) = (orchestrator(), Copier::default());
        let owner = Owner { uid: 0, gid: 0 };
        let session = core.create_session("shop", owner, Policy::default())?;
        let mut tokens = (1..).map(Token);
        for (file, token) in files.into_iter().zip(&mut tokens) {
            let file = HostFile::from(file);
            core.preserve(session, Some(token), file, Criticality::Required)?;
        }
        for (original, token) in of.iter().zip(tokens) {
            let required = Criticality::Required;
            core.preserve_duplicate(session, Some(token), Token(*original), required)?;
        }
        Ok(Self { core, carrier })
    }

    pub(crate) fn event(&mut self, which: Event) -> Result<(), Error> {
        event(&mut self.core, &self.carrier, which)
    }

    /// Prepares and freezes; where that fails, nothing is left of it.
    pub(crate) fn keep(&mut self) -> Result<(), Error> {
        let kept = self.event(Event::Prepare).and_then(|()| self.event(Event::Freeze));
        if kept.is_err() {
            assert_eq!(self.core.status().state, State::Normal);
            assert!(self.carrier.kept.lock().unwrap().is_empty(), "something was left");
        }
        kept
    }

    /// Everything here ends, and its files are closed.
    pub(crate) fn depart(self) -> After {
        self.depart_to(|_| {})
    }

    /// The same, and what is kept is changed on the way.
    pub(crate) fn depart_to(mut self, change: impl FnOnce(&Copier)) -> After {
        self.event(Event::Depart).unwrap();
        drop(self.core);
        wait_until_closed();
        change(&self.carrier);
        let mut after = After { core: orchestrator(), carrier: self.carrier };
        event(&mut after.core, &after.carrier, Event::Arrive).unwrap();
        after
    }
}

impl After {
    pub(crate) fn retrieve(&mut self, token: u64) -> Result<OwnedFd, Error> {
        let session = self.core.session_by_name("shop").unwrap();
        let file = match self.core.retrieve(session, Token(token))? {
            Retrieval::Ready(file) => file,
            Retrieval::Failed(error) => return Err(error),
            Retrieval::Pending => {
                drive(&mut self.core, &self.carrier);
                match self.core.retrieve(session, Token(token))? {
                    Retrieval::Ready(file) => file,
                    Retrieval::Failed(error) => return Err(error),
                    Retrieval::Pending => panic!("nobody makes it"),
                }
            }
        };
        self.core.mark_reclaimed(session, Token(token))?;
        Ok(file.try_clone_fd().unwrap())
    }

    /// Finishes, and sees that nothing is left.
    pub(crate) fn finish(mut self) {
        event(&mut self.core, &self.carrier, Event::Finish).unwrap();
        assert!(self.carrier.kept.lock().unwrap().is_empty(), "something was left");
    }
}

/// Some files are closed by threads.
pub(crate) fn wait_until_closed() {
    let deadline = Instant::now() + Duration::from_secs(20);
    while closer::waiting() > 0 {
        assert!(Instant::now() < deadline, "files are still open");
        std::thread::yield_now();
    }
}

/// Takes these files across.
pub(crate) fn across(files: Vec<OwnedFd>) -> Vec<OwnedFd> {
    across_with_duplicates(files, &[])
}

/// Takes these files across, with duplicates of those with these tokens behind them.
pub(crate) fn across_with_duplicates(files: Vec<OwnedFd>, of: &[u64]) -> Vec<OwnedFd> {
    let tokens = 1..=(files.len() + of.len()) as u64;
    let mut before = Before::with_duplicates(files, of).unwrap();
    before.keep().unwrap();
    let mut after = before.depart();
    let files = tokens.map(|token| after.retrieve(token).unwrap()).collect();
    after.finish();
    files
}

/// Why this file is not kept, with the kernel's name of the error.
pub(crate) fn refusal(file: OwnedFd) -> String {
    let error = Before::new(vec![file]).and_then(|mut before| before.keep()).unwrap_err();
    format!("{:?}: {error}", error.errno())
}

/// An address of the loopback network for this process alone: on one that others use too, they
/// could be given a port that is free for the moment.
pub(crate) fn own_ip() -> std::net::Ipv4Addr {
    let [_, a, b, c] = std::process::id().to_be_bytes();
    std::net::Ipv4Addr::new(127, 64 | a, b, c.max(1))
}
