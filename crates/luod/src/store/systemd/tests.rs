use super::*;
use std::collections::BTreeMap;
use std::fs::File as StdFile;
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixDatagram as StdDatagram;

use rustix::fs::{MemfdFlags, memfd_create};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

type Held = Vec<(String, OwnedFd)>;

/// What systemd's manager does with the fd store of one service, silent refusals included.
struct Manager {
    directory: tempfile::TempDir,
    inner: Arc<Mutex<Inner>>,
}

#[derive(Default)]
struct Inner {
    held: Held,
    said: Vec<String>,
    /// What was held after each message, as a restart at that moment would find it.
    history: Option<Vec<Held>>,
    silent: bool,
}

/// A copy as another process would have it: the content of logs stands still.
fn copy(held: &Held) -> Held {
    let copy = |(name, fd): &(String, OwnedFd)| {
        if !name.starts_with(LOG) {
            return (name.clone(), fd.try_clone().unwrap());
        }
        let from = StdFile::from(fd.try_clone().unwrap());
        let mut bytes = vec![0; from.metadata().unwrap().len() as usize];
        from.read_exact_at(&mut bytes, 0).unwrap();
        let to = StdFile::from(memfd_create("luo-test", MemfdFlags::CLOEXEC).unwrap());
        to.write_all_at(&bytes, 0).unwrap();
        (name.clone(), to.into())
    };
    held.iter().map(copy).collect()
}

impl Manager {
    fn new(max: usize, held: Held) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = StdDatagram::bind(directory.path().join("notify")).unwrap();
        let inner = Arc::new(Mutex::new(Inner { held, ..Inner::default() }));
        let shared = Arc::clone(&inner);
        // Ends with the test's process, or with the socket's last sender: it only receives.
        std::thread::spawn(move || {
            loop {
                let (text, fds) = receive(&socket);
                if text == "END" {
                    return;
                }
                shared.lock().unwrap().take(&text, fds, max);
            }
        });
        Self { directory, inner }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap()
    }

    async fn start(&self, max: usize, limits: Limits) -> Result<Started, StoreError> {
        let fds = copy(&self.inner().held);
        let notify = self.directory.path().join("notify").into_os_string();
        SystemdStore::start(Inherited { notify, fds, max_fds: max }, limits).await
    }

    /// The names of what is held once everything sent has been taken.
    async fn names(&self) -> Vec<String> {
        let notify = Notify::connect(self.directory.path().join("notify").as_os_str()).unwrap();
        notify.barrier().await.unwrap();
        let mut names: Vec<_> = self.inner().held.iter().map(|(name, _)| name.clone()).collect();
        names.sort();
        names
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        let end = StdDatagram::unbound().unwrap();
        let _ = end.send_to(b"END", self.directory.path().join("notify"));
    }
}

fn receive(socket: &StdDatagram) -> (String, Vec<OwnedFd>) {
    let mut data = [0; 4096];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
    let mut rights = RecvAncillaryBuffer::new(&mut space);
    let parts = &mut [IoSliceMut::new(&mut data)];
    let got = recvmsg(socket, parts, &mut rights, RecvFlags::CMSG_CLOEXEC).unwrap();
    let mut fds = Vec::new();
    for message in rights.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            fds.extend(received);
        }
    }
    (std::str::from_utf8(&data[..got.bytes]).unwrap().to_owned(), fds)
}

impl Inner {
    fn take(&mut self, text: &str, fds: Vec<OwnedFd>, max: usize) {
        let lines: BTreeMap<&str, &str> = text.lines().filter_map(|l| l.split_once('=')).collect();
        let name = lines.get("FDNAME").copied().unwrap_or("stored");
        if self.silent && lines.contains_key("BARRIER") {
            std::mem::forget(fds);
            return;
        }
        if lines.contains_key("FDSTOREREMOVE") {
            self.held.retain(|(held, _)| held != name);
        } else if lines.contains_key("FDSTORE") {
            assert_eq!(lines.get("FDPOLL"), Some(&"0"));
            for fd in fds {
                let known =
                    |(_, held): &(String, OwnedFd)| luo_sys::same_description(held, &fd).unwrap();
                if self.held.len() < max && !self.held.iter().any(known) {
                    self.held.push((name.to_owned(), fd));
                }
            }
        } else if !lines.contains_key("BARRIER") {
            self.said.push(text.to_owned());
        }
        if let Some(history) = &mut self.history {
            history.push(copy(&self.held));
        }
    }
}

const WIDE: Limits = Limits { slots: 1000, fds: 1000, bytes: 1 << 30 };

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let deadline = Duration::from_secs(60);
    runtime.block_on(async { tokio::time::timeout(deadline, test).await.expect("in time") });
}

async fn load(started: &mut Started) -> BTreeMap<u64, Slot> {
    started.store.load().await.unwrap();
    let mut slots = BTreeMap::new();
    loop {
        match started.events.next().await {
            Event::Slot(key, slot) => assert!(slots.insert(key, slot).is_none()),
            Event::Loaded => return slots,
            event => panic!("{event:?}"),
        }
    }
}

fn null() -> HostFile {
    HostFile::from(OwnedFd::from(StdFile::open("/dev/null").unwrap()))
}

fn put(key: u64, record: &[u8], files: &[HostFile]) -> Batch {
    let mut batch = Batch::new();
    batch.put(key, record, files).unwrap();
    batch
}

#[test]
fn what_was_kept_is_taken_back_after_a_restart() {
    run(async {
        let manager = Manager::new(100, Vec::new());
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        let writer = HostFile::from(writer);
        let mut first = manager.start(100, WIDE).await.unwrap();
        assert!(load(&mut first).await.is_empty());
        let mut batch = put(1, b"one", &[writer.clone(), null()]);
        batch.put(2, b"two", []).unwrap();
        first.store.submit(batch).await.unwrap();
        let mut batch = Batch::new();
        batch.rewrite(1, b"rewritten").unwrap();
        batch.delete(2);
        batch.put(3, b"three", [&null()]).unwrap();
        first.store.submit(batch).await.unwrap();
        first.store.ready().await.unwrap();
        let _ = manager.names().await;
        assert_eq!(manager.inner().said, ["READY=1"]);
        drop(first);
        let mut second = manager.start(100, WIDE).await.unwrap();
        assert!(second.lost.is_empty() && second.others.is_empty());
        let slots = load(&mut second).await;
        let shape: Vec<_> =
            slots.iter().map(|(key, s)| (*key, s.record.as_slice(), s.files.len())).collect();
        assert_eq!(shape, [(1, &b"rewritten"[..], 2), (3, b"three", 1)]);
        rustix::io::write(&slots[&1].files[0], b"x").unwrap();
        assert_eq!(rustix::io::read(&reader, &mut [0; 1]).unwrap(), 1);
        assert_eq!(manager.names().await, ["luo-fd-1", "luo-fd-2", "luo-fd-3", "luo-log-2"]);
    });
}

#[test]
fn a_description_is_stored_once_and_leaves_with_its_last_slot() {
    run(async {
        let manager = Manager::new(100, Vec::new());
        let mut started = manager.start(100, WIDE).await.unwrap();
        let file = null();
        let twin = HostFile::from(file.try_clone_fd().unwrap());
        let mut batch = put(1, b"", &[file.clone(), twin.clone()]);
        batch.put(2, b"", [&twin]).unwrap();
        started.store.submit(batch).await.unwrap();
        assert_eq!(manager.names().await, ["luo-fd-1", "luo-log-1"]);
        assert_eq!(load(&mut started).await[&1].files.len(), 2);
        let mut batch = Batch::new();
        batch.delete(1);
        started.store.submit(batch).await.unwrap();
        assert_eq!(manager.names().await, ["luo-fd-1", "luo-log-1"]);
        // Replaced by itself it stays; replaced by another it goes.
        started.store.submit(put(2, b"again", &[twin])).await.unwrap();
        assert_eq!(manager.names().await, ["luo-fd-1", "luo-log-1"]);
        started.store.submit(put(2, b"other", &[null()])).await.unwrap();
        // Once more through the task, so that what follows the answer has been done.
        load(&mut started).await;
        assert_eq!(manager.names().await, ["luo-fd-2", "luo-log-1"]);
    });
}

#[test]
fn a_restart_after_any_message_finds_a_whole_number_of_batches() {
    run(async {
        let manager = Manager::new(100, Vec::new());
        manager.inner().history = Some(vec![Vec::new()]);
        let (mut states, mut state) = (vec![BTreeMap::new()], BTreeMap::new());
        let started = manager.start(100, WIDE).await.unwrap();
        for round in 1..=6_u64 {
            let mut batch = put(round, &[round as u8], &[null(), null()]);
            batch.put(round + 100, b"beside", [&null()]).unwrap();
            state.insert(round, (vec![round as u8], 2));
            state.insert(round + 100, (b"beside".to_vec(), 1));
            if round > 2 {
                batch.delete(round - 2);
                state.remove(&(round - 2));
            }
            states.push(state.clone());
            started.store.submit(batch).await.unwrap();
        }
        drop(started);
        let _ = manager.names().await;
        let history = manager.inner().history.take().unwrap();
        assert!(history.len() > 25);
        let mut last = 0;
        for (moment, held) in history.into_iter().enumerate() {
            let manager = Manager::new(100, held);
            let mut again = manager.start(100, WIDE).await.unwrap();
            assert!(again.lost.is_empty(), "moment {moment}: {:?}", again.lost);
            let slots = load(&mut again).await;
            let found: BTreeMap<_, _> = slots
                .into_iter()
                .map(|(key, slot)| (key, (slot.record, slot.files.len())))
                .collect();
            let at = states.iter().position(|state| *state == found);
            let at = at.unwrap_or_else(|| panic!("moment {moment}: {found:?}"));
            assert!(at >= last, "moment {moment} goes back");
            last = at;
            // Nothing that no slot refers to is left, and one log.
            let used: usize = found.values().map(|(_, files)| files).sum();
            assert_eq!(manager.names().await.len(), used + 1, "moment {moment}");
        }
        assert_eq!(last, states.len() - 1);
    });
}

#[test]
fn limits_are_kept_because_systemd_would_refuse_silently() {
    run(async {
        // Two for the log, three for files.
        let manager = Manager::new(5, Vec::new());
        let limits = Limits { slots: 3, fds: 1000, bytes: 100 };
        let mut started = manager.start(5, limits).await.unwrap();
        assert_eq!(started.store.limits().fds, 3);
        let full = |result| assert!(matches!(result, Err(StoreError::Refused { errno: ENOSPC })));
        started.store.submit(put(1, b"", &[null(), null()])).await.unwrap();
        full(started.store.submit(put(2, b"", &[null(), null()])).await);
        started.store.submit(put(2, b"", &[null()])).await.unwrap();
        full(started.store.submit(put(3, &[0; 101], &[])).await);
        started.store.submit(put(3, &[0; 90], &[])).await.unwrap();
        full(started.store.submit(put(4, b"", &[])).await);
        full(started.store.submit(put(3, &[0; 11], &[])).await);
        let shape: Vec<_> =
            load(&mut started).await.iter().map(|(key, slot)| (*key, slot.files.len())).collect();
        assert_eq!(shape, [(1, 2), (2, 1), (3, 0)]);
        assert_eq!(manager.names().await.len(), 4);
    });
}

#[test]
fn a_slot_whose_descriptor_systemd_has_dropped_is_lost_alone() {
    run(async {
        let manager = Manager::new(100, Vec::new());
        let started = manager.start(100, WIDE).await.unwrap();
        let shared = null();
        started.store.submit(put(1, b"", &[null(), shared.clone()])).await.unwrap();
        started.store.submit(put(2, b"", &[shared, null()])).await.unwrap();
        drop(started);
        let _ = manager.names().await;
        manager.inner().held.retain(|(name, _)| name != "luo-fd-1");
        let mut again = manager.start(100, WIDE).await.unwrap();
        assert_eq!(again.lost, [1]);
        assert_eq!(load(&mut again).await.into_keys().collect::<Vec<_>>(), [2]);
        drop(again);
        // Reported once; then it is forgotten.
        assert!(manager.start(100, WIDE).await.unwrap().lost.is_empty());
    });
}

#[test]
fn other_descriptors_are_given_back_and_left_alone() {
    run(async {
        let socket = StdFile::open("/dev/null").unwrap().into();
        let manager = Manager::new(10, vec![("luod.socket".into(), socket)]);
        let started = manager.start(10, WIDE).await.unwrap();
        assert_eq!(started.others.len(), 1);
        assert_eq!(started.others[0].0, "luod.socket");
        assert_eq!(started.store.limits().fds, 7);
        assert_eq!(manager.names().await, ["luo-log-1", "luod.socket"]);
    });
}

#[test]
fn a_log_of_much_history_is_replaced_and_the_old_one_leaves() {
    run(async {
        let manager = Manager::new(10, Vec::new());
        let mut started = manager.start(10, WIDE).await.unwrap();
        for round in 0..30_u8 {
            started.store.submit(put(1, &[round; 100_000], &[])).await.unwrap();
        }
        load(&mut started).await;
        assert_eq!(manager.names().await, ["luo-log-3"]);
        drop(started);
        let mut again = manager.start(10, WIDE).await.unwrap();
        assert_eq!(load(&mut again).await[&1].record, [29; 100_000]);
    });
}

#[test]
fn what_this_store_cannot_do_it_says() {
    run(async {
        let manager = Manager::new(10, Vec::new());
        assert!(matches!(manager.start(2, WIDE).await, Err(StoreError::Unsupported(_))));
        let started = manager.start(10, WIDE).await.unwrap();
        let program = StdFile::open("/proc/self/exe").unwrap().into();
        let upgrade = started.store.upgrade(program, Duration::from_secs(1), Upgrade::Both);
        assert!(matches!(upgrade.await, Err(StoreError::Unsupported(_))));
        started.store.quiesced().await.unwrap();
        started.store.refuse("a\nREADY=1").await.unwrap();
        let _ = manager.names().await;
        assert_eq!(manager.inner().said, ["STATUS=cannot restore what is kept: a READY=1"]);
        started.store.room().await;
        assert!(Inherited::from_environment().is_err());
    });
}

#[test]
fn a_manager_that_does_not_confirm_fails_the_batch() {
    run(async {
        let manager = Manager::new(100, Vec::new());
        let mut started = manager.start(100, WIDE).await.unwrap();
        started.store.submit(put(1, b"", &[null()])).await.unwrap();
        manager.inner().silent = true;
        // From here only deadlines make time pass.
        tokio::time::pause();
        let error = started.store.submit(put(2, b"", &[null()])).await.unwrap_err();
        assert!(matches!(error, StoreError::System { errno: 110, .. }), "{error}");
        // Records alone need nothing of it.
        started.store.submit(put(3, b"", &[])).await.unwrap();
        assert_eq!(load(&mut started).await.into_keys().collect::<Vec<_>>(), [1, 3]);
    });
}
