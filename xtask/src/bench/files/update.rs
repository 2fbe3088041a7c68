//! Files through a whole update, with a carrier that keeps in memory what it is given.
//!
//! So what is measured is the framework and the handlers: what a medium costs is the benchmark of the
//! arena.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use luo_carriers::{HostFile, closer};
use luo_core::{
    Caps, Carrier, Criticality, Errno, Event, Failure, Handle, Keep, Limits, Notice, Orchestrator,
    Owner, Policy, Reach, Recall, Retrieval, Scope, Token,
};
use rustix::fs::{MemfdFlags, memfd_create};

use crate::failure::{Context as _, Failed, Result};

/// How long each part took.
#[derive(Debug, Clone, Copy)]
pub(super) struct Took {
    pub(super) prepare: Duration,
    pub(super) freeze: Duration,
    pub(super) retrieve: Duration,
}

/// Takes these files across.
pub(super) fn across(files: Vec<OwnedFd>) -> Result<Took> {
    let told = |error: luo_core::Error| Failed::new(error.to_string());
    let carrier = Memory::default();
    let mut core = orchestrator()?;
    let count = files.len() as u64;
    let owner = Owner { uid: 0, gid: 0 };
    let session = core.create_session("bench", owner, Policy::default()).map_err(told)?;
    for (token, file) in (1..).zip(files) {
        let file = HostFile::from(file);
        core.preserve(session, Some(Token(token)), file, Criticality::Required).map_err(told)?;
    }
    let prepare = event(&mut core, &carrier, Event::Prepare)?;
    let freeze = event(&mut core, &carrier, Event::Freeze)?;
    event(&mut core, &carrier, Event::Depart)?;
    drop(core);
    // Some files are closed by threads; an address is free only then.
    while closer::waiting() > 0 {
        std::thread::yield_now();
    }
    let mut core = orchestrator()?;
    event(&mut core, &carrier, Event::Arrive)?;
    let session = core
        .session_by_name("bench")
        .ok_or_else(|| Failed::new("the session is not there any more"))?;
    let mut own = Vec::with_capacity(count as usize);
    let began = Instant::now();
    for token in 1..=count {
        loop {
            match core.retrieve(session, Token(token)).map_err(told)? {
                Retrieval::Ready(file) => {
                    own.push(file);
                    break;
                }
                Retrieval::Failed(error) => return Err(told(error)),
                Retrieval::Pending => drop(drive(&mut core, &carrier)?),
            }
        }
        core.mark_reclaimed(session, Token(token)).map_err(told)?;
    }
    let retrieve = began.elapsed();
    event(&mut core, &carrier, Event::Finish)?;
    Ok(Took { prepare, freeze, retrieve })
}

fn orchestrator() -> Result<Orchestrator<HostFile>> {
    let mut core = Orchestrator::new(Caps::BYTES | Caps::MEMORY, Limits::default());
    for handler in luo_files::handlers() {
        core.register_handler(handler).map_err(|error| Failed::new(error.to_string()))?;
    }
    Ok(core)
}

fn drive(core: &mut Orchestrator<HostFile>, carrier: &Memory) -> Result<Vec<Notice>> {
    while let Some(call) = core.next_call() {
        let outcome = call.run(carrier);
        core.complete(call.id(), outcome).map_err(|error| Failed::new(error.to_string()))?;
    }
    Ok(std::iter::from_fn(|| core.take_notice()).collect())
}

fn event(core: &mut Orchestrator<HostFile>, carrier: &Memory, event: Event) -> Result<Duration> {
    let told = |error: luo_core::Error| Failed::new(error.to_string());
    let began = Instant::now();
    let id = core.begin(Scope::Machine, event).map_err(told)?;
    let ended = drive(core, carrier)?.into_iter().find_map(|notice| match notice {
        Notice::Ended(report) if report.id == id => Some(report.result),
        _ => None,
    });
    ended.ok_or_else(|| Failed::new("a transition has no end"))?.map_err(told)?;
    Ok(began.elapsed())
}

#[derive(Debug, Default)]
struct Memory {
    kept: Mutex<BTreeMap<u64, Vec<u8>>>,
    last: AtomicU64,
    handover: Mutex<Option<Vec<u8>>>,
}

impl Memory {
    fn kept(&self) -> std::sync::MutexGuard<'_, BTreeMap<u64, Vec<u8>>> {
        self.kept.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn put(&self, bytes: Vec<u8>) -> Handle {
        let handle = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        self.kept().insert(handle, bytes);
        Handle(handle)
    }

    fn get(&self, handle: Handle) -> std::result::Result<Vec<u8>, Failure> {
        let kept = self.kept().get(&handle.0).cloned();
        kept.ok_or_else(|| Failure::new(Errno::NoEnt, "nothing is kept under that handle"))
    }
}

fn failed(error: std::io::Error) -> Failure {
    Failure::new(error.raw_os_error().map_or(Errno::Io, Errno::from_raw), error.to_string())
}

fn copy(memory: &HostFile, len: u64) -> std::result::Result<Vec<u8>, Failure> {
    let mut bytes = vec![0; len as usize];
    let file = File::from(memory.try_clone_fd().map_err(failed)?);
    file.read_exact_at(&mut bytes, 0).map_err(failed)?;
    Ok(bytes)
}

impl Keep<HostFile> for Memory {
    fn caps(&self) -> Caps {
        Caps::MEMORY | Caps::BYTES
    }
    fn keep_memory(&self, memory: &HostFile, len: u64) -> std::result::Result<Handle, Failure> {
        Ok(self.put(copy(memory, len)?))
    }
    fn refresh_memory(
        &self,
        handle: Handle,
        memory: &HostFile,
        len: u64,
    ) -> std::result::Result<(), Failure> {
        self.kept().insert(handle.0, copy(memory, len)?);
        Ok(())
    }
    fn keep_bytes(&self, bytes: &[u8]) -> std::result::Result<Handle, Failure> {
        Ok(self.put(bytes.to_vec()))
    }
    fn keep_live(&self, _: &HostFile) -> std::result::Result<Handle, Failure> {
        Err(Failure::new(Errno::OpNotSupp, "memory holds no descriptors"))
    }
    fn forget(&self, handle: Handle) {
        self.kept().remove(&handle.0);
    }
    fn progress(&self, _: u64, _: u64) -> std::result::Result<(), Failure> {
        Ok(())
    }
}

impl Recall<HostFile> for Memory {
    fn caps(&self) -> Caps {
        Keep::caps(self)
    }
    fn memory(&self, handle: Handle) -> std::result::Result<HostFile, Failure> {
        let bytes = self.get(handle)?;
        let file = memfd_create("bench", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)
            .map_err(|error| failed(error.into()))?;
        let file = File::from(file);
        file.write_all_at(&bytes, 0).map_err(failed)?;
        file.set_len((bytes.len() as u64).next_multiple_of(4096)).map_err(failed)?;
        Ok(HostFile::from(OwnedFd::from(file)))
    }
    fn bytes(&self, handle: Handle) -> std::result::Result<Vec<u8>, Failure> {
        self.get(handle)
    }
    fn live(&self, _: Handle) -> std::result::Result<HostFile, Failure> {
        Err(Failure::new(Errno::OpNotSupp, "memory holds no descriptors"))
    }
    fn release(&self, handle: Handle) {
        self.forget(handle);
    }
    fn progress(&self, _: u64, _: u64) -> std::result::Result<(), Failure> {
        Ok(())
    }
}

impl Carrier<HostFile> for Memory {
    fn name(&self) -> &'static str {
        "memory"
    }
    fn reach(&self) -> Reach {
        Reach::Power
    }
    fn commit(&self, handover: &[u8]) -> std::result::Result<(), Failure> {
        *self.handover.lock().unwrap_or_else(std::sync::PoisonError::into_inner) =
            Some(handover.to_vec());
        Ok(())
    }
    fn committed(&self) -> std::result::Result<Option<Vec<u8>>, Failure> {
        Ok(self.handover.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone())
    }
    fn retire(&self) -> std::result::Result<(), Failure> {
        *self.handover.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = None;
        Ok(())
    }
}

/// As many descriptors as this process may have.
pub(super) fn room() -> Result<()> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })
        .context(|| "have more descriptors".into())
}
