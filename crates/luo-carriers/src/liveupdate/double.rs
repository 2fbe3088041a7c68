//! The kernel's part, in memory: with its traps, and able to fail at any call.
//!
//! Invariants: errnos are those of Linux 7.3. A session ends with its last owner, as the kernel's
//! does with its last descriptor.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, Weak};

use luo_abi::liveupdate::{AGENT_SESSION, BYTES_COPY_TOKEN, CATALOGUE_COPY_TOKEN, ioctl::Name};
use rustix::fs::{FallocateFlags, MemfdFlags, fallocate, fstat, memfd_create};
use rustix::io::Errno;

use super::kernel::{Kernel, KernelSession, Session};

/// Device and inode number.
type Inode = (u64, u64);

struct Preserved {
    token: u64,
    file: OwnedFd,
    inode: Inode,
}

enum Came {
    Waiting(OwnedFd),
    Fetched(OwnedFd),
    Broken(Errno),
}

#[derive(Default)]
struct State {
    /// Sessions for the next kernel, in the order in which they were made.
    outgoing: Vec<(Name, Weak<Own>)>,
    preserved: HashSet<Inode>,
    incoming: HashMap<Vec<u8>, BTreeMap<u64, Came>>,
    retrieved: HashSet<Vec<u8>>,
    opened: bool,
    /// Files that were freed because nobody had fetched them, but for copies, which are there for
    /// what seldom happens.
    freed: usize,
    calls: usize,
    fail_at: Option<(usize, Errno)>,
    /// What of the calls before failed.
    failed: Option<&'static str>,
}

/// A kernel.
#[derive(Clone, Default)]
pub(super) struct Double(Arc<Mutex<State>>);

/// The device, open.
pub(super) struct Device(Double);

/// A session for the next kernel.
struct Own {
    kernel: Double,
    name: Name,
    files: Mutex<Vec<Preserved>>,
}

/// A session from the kernel before.
struct Earlier {
    kernel: Double,
    name: Vec<u8>,
}

fn inode(file: impl AsFd) -> io::Result<Inode> {
    let stat = fstat(file)?;
    Ok((stat.st_dev, stat.st_ino))
}

fn fail<T>(errno: Errno) -> io::Result<T> {
    Err(errno.into())
}

impl Double {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// Makes that call fail, counted from 0 from here.
    pub(super) fn fail_at(&self, call: usize, errno: Errno) {
        let mut state = self.state();
        state.fail_at = Some((state.calls + call, errno));
        state.failed = None;
    }

    /// Which call has failed as [`fail_at`](Self::fail_at) said.
    pub(super) fn failed(&self) -> Option<&'static str> {
        self.state().failed
    }

    fn call(&self, what: &'static str) -> io::Result<()> {
        let mut state = self.state();
        let call = state.calls;
        state.calls += 1;
        match state.fail_at {
            Some((at, errno)) if at == call => {
                state.failed = Some(what);
                fail(errno)
            }
            _ => Ok(()),
        }
    }

    pub(super) fn open(&self) -> io::Result<Arc<Device>> {
        let mut state = self.state();
        if state.opened {
            return fail(Errno::BUSY);
        }
        state.opened = true;
        drop(state);
        Ok(Arc::new(Device(self.clone())))
    }

    /// Names of the sessions that the next kernel would find.
    pub(super) fn sessions(&self) -> Vec<String> {
        let alive = |(name, own): &(Name, Weak<Own>)| {
            let text = String::from_utf8_lossy(name.as_bytes_without_nul()).into_owned();
            (own.strong_count() > 0).then_some(text)
        };
        self.state().outgoing.iter().filter_map(alive).collect()
    }

    /// Files that are preserved.
    pub(super) fn preserved(&self) -> usize {
        self.state().preserved.len()
    }

    /// Files that were freed because nobody had fetched them, but for copies, which are there for
    /// what seldom happens.
    pub(super) fn freed(&self) -> usize {
        self.state().freed
    }

    /// Sessions that came and are not finished.
    pub(super) fn unfinished(&self) -> usize {
        self.state().incoming.len()
    }

    /// As `ftruncate`: a preserved file keeps its size.
    pub(super) fn truncate(&self, file: impl AsFd, len: u64) -> io::Result<()> {
        let file = file.as_fd();
        if self.state().preserved.contains(&inode(file)?) {
            return fail(Errno::PERM);
        }
        Ok(rustix::fs::ftruncate(file, len)?)
    }

    /// The next kernel, with copies of what is preserved now.
    pub(super) fn kexec(&self) -> Self {
        let next = Self::default();
        let owns: Vec<Arc<Own>> =
            self.state().outgoing.iter().filter_map(|(_, own)| own.upgrade()).collect();
        let mut state = next.state();
        for own in owns {
            let files = own.files.lock().unwrap();
            let came = files.iter().map(|file| (file.token, Came::Waiting(copy(&file.file))));
            state.incoming.insert(own.name.as_bytes_without_nul().to_vec(), came.collect());
        }
        drop(state);
        next
    }

    /// A file of a session that came cannot be made again.
    pub(super) fn break_file(&self, session: &str, token: u64, errno: Errno) {
        let mut state = self.state();
        let files = state.incoming.get_mut(session.as_bytes()).unwrap();
        assert!(files.insert(token, Came::Broken(errno)).is_some());
    }

    /// A file never was in a session that came.
    pub(super) fn lose(&self, session: &str, token: u64) {
        let mut state = self.state();
        assert!(state.incoming.get_mut(session.as_bytes()).unwrap().remove(&token).is_some());
    }

    /// Changes a byte of a file that came.
    pub(super) fn damage(&self, session: &str, token: u64, at: u64) {
        let state = self.state();
        let files = state.incoming.get(session.as_bytes()).unwrap();
        let Some(Came::Waiting(file)) = files.get(&token) else { panic!("no such file") };
        let mut byte = [0];
        rustix::io::pread(file, &mut byte, at).unwrap();
        rustix::io::pwrite(file, &[byte[0] ^ 1], at).unwrap();
    }

    fn finish(&self, name: &[u8]) {
        let mut state = self.state();
        if let Some(files) = state.incoming.remove(name) {
            let agent = name == AGENT_SESSION.as_bytes();
            let waiting = |(token, file): &(&u64, &Came)| {
                let copy = agent && [CATALOGUE_COPY_TOKEN, BYTES_COPY_TOKEN].contains(token);
                matches!(file, Came::Waiting(_)) && !copy
            };
            state.freed += files.iter().filter(waiting).count();
        }
        state.retrieved.remove(name);
    }
}

fn copy(file: &OwnedFd) -> OwnedFd {
    let made = memfd_create("came", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
    let mut bytes = vec![0; fstat(file).unwrap().st_size as usize];
    assert_eq!(rustix::io::pread(file, &mut bytes, 0).unwrap(), bytes.len());
    rustix::io::pwrite(&made, &bytes, 0).unwrap();
    made
}

impl Drop for Device {
    fn drop(&mut self) {
        self.0.state().opened = false;
    }
}

impl Kernel for Device {
    fn create(&self, name: Name) -> io::Result<Session> {
        self.0.call("create")?;
        let mut state = self.0.state();
        state.outgoing.retain(|(_, own)| own.strong_count() > 0);
        if state.outgoing.iter().any(|(other, _)| *other == name) {
            return fail(Errno::EXIST);
        }
        let own = Arc::new(Own { kernel: self.0.clone(), name, files: Mutex::default() });
        state.outgoing.push((name, Arc::downgrade(&own)));
        Ok(own)
    }

    fn retrieve(&self, name: Name) -> io::Result<Session> {
        self.0.call("retrieve")?;
        let name = name.as_bytes_without_nul().to_vec();
        let mut state = self.0.state();
        if !state.incoming.contains_key(&name) {
            return fail(Errno::NOENT);
        }
        if !state.retrieved.insert(name.clone()) {
            return fail(Errno::INVAL);
        }
        Ok(Arc::new(Earlier { kernel: self.0.clone(), name }))
    }
}

impl KernelSession for Own {
    fn preserve(&self, token: u64, file: BorrowedFd<'_>) -> io::Result<()> {
        self.kernel.call("preserve")?;
        let mut files = self.files.lock().unwrap();
        if files.iter().any(|file| file.token == token) {
            return fail(Errno::EXIST);
        }
        let inode = inode(file)?;
        // Memory files have seals, and those without a path no links.
        let kept = rustix::fs::fcntl_get_seals(file).is_ok() && fstat(file)?.st_nlink == 0;
        if !kept {
            return fail(Errno::NOENT);
        }
        if !self.kernel.state().preserved.insert(inode) {
            return fail(Errno::BUSY);
        }
        let size = fstat(file)?.st_size as u64;
        if size > 0 {
            // Holes are filled.
            fallocate(file, FallocateFlags::empty(), 0, size)?;
        }
        let file = file.try_clone_to_owned()?;
        files.push(Preserved { token, file, inode });
        Ok(())
    }

    fn fetch(&self, _: u64) -> io::Result<OwnedFd> {
        fail(Errno::INVAL)
    }

    fn finish(&self) -> io::Result<()> {
        fail(Errno::INVAL)
    }

    fn descriptor(&self) -> io::Result<OwnedFd> {
        fail(Errno::OPNOTSUPP)
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        let mut state = self.kernel.state();
        for file in self.files.get_mut().unwrap() {
            state.preserved.remove(&file.inode);
        }
    }
}

impl KernelSession for Earlier {
    fn preserve(&self, _: u64, _: BorrowedFd<'_>) -> io::Result<()> {
        fail(Errno::INVAL)
    }

    fn fetch(&self, token: u64) -> io::Result<OwnedFd> {
        self.kernel.call("fetch")?;
        let mut state = self.kernel.state();
        let Some(file) = state.incoming.get_mut(&self.name).and_then(|files| files.get_mut(&token))
        else {
            return fail(Errno::NOENT);
        };
        let fd = match file {
            Came::Broken(errno) => return fail(*errno),
            Came::Waiting(fd) | Came::Fetched(fd) => fd.try_clone()?,
        };
        *file = Came::Fetched(fd.try_clone()?);
        Ok(fd)
    }

    fn finish(&self) -> io::Result<()> {
        self.kernel.call("finish")?;
        self.kernel.finish(&self.name);
        Ok(())
    }

    fn descriptor(&self) -> io::Result<OwnedFd> {
        fail(Errno::OPNOTSUPP)
    }
}

impl Drop for Earlier {
    /// The trap: what nobody has fetched is gone.
    fn drop(&mut self) {
        self.kernel.finish(&self.name);
    }
}
