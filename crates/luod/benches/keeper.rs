//! How many descriptors a second a worker gives its keeper, beside bare `SCM_RIGHTS` in the same
//! process: `cargo bench -p luod --bench keeper`.
//!
//! The program starts itself as the keeper, which starts it as its worker; the worker measures.
#![allow(clippy::exit)]

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use luo_carriers::HostFile;
use luod::keeper::{Limits, Settings, Timing};
use luod::store::{Attached, Batch, KeeperStore, Store};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};

/// Descriptors in one round; they are dropped between rounds, unmeasured.
const ROUND: usize = 253 * 32;
const ROUNDS: usize = 20;
/// Record bytes beside each descriptor.
const RECORD: usize = 64;

fn main() {
    match std::env::args().nth(1).as_deref() {
        Some("keeper") => drop(luod::keeper::run(settings()).unwrap()),
        Some("worker") => worker(),
        // `cargo test --benches` only sees that it builds and starts.
        _ if !std::env::args().any(|argument| argument == "--bench") => {}
        _ => {
            let me = std::env::current_exe().unwrap();
            let status = std::process::Command::new(me).arg("keeper").status().unwrap();
            assert!(status.success());
        }
    }
}

fn settings() -> Settings {
    Settings {
        program: "/proc/self/exe".into(),
        worker: vec!["worker".into()],
        check: Vec::new(),
        resume: Vec::new(),
        listeners: Vec::new(),
        limits: Limits::default(),
        timing: Timing { ready: Duration::from_secs(600), ..Timing::default() },
    }
}

fn worker() {
    let socket = luo_sys::adopt_stdin().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let file: OwnedFd = std::fs::File::open("/dev/null").unwrap().into();
    let Attached { store, mut events, .. } =
        runtime.block_on(async { KeeperStore::attach(socket).await.unwrap() });
    println!("descriptors a second, million; best of {ROUNDS} rounds of {ROUND}");
    println!("{:>5}  {:>8}  {:>8}  {:>8}  {:>6}", "batch", "bare", "keeper", "load", "ratio");
    for batch in [1, 16, 253] {
        let bare = best(|| bare(&file, batch));
        let mut load = f64::INFINITY;
        let keeper = best(|| {
            runtime.block_on(async {
                let took = put(&store, &file, batch).await;
                let start = Instant::now();
                store.load().await.unwrap();
                while !matches!(events.next().await, luod::store::Event::Loaded) {}
                load = load.min(start.elapsed().as_secs_f64());
                clear(&store).await;
                took
            })
        });
        let rate = |seconds: f64| ROUND as f64 / seconds / 1e6;
        println!(
            "{batch:>5}  {:>8.2}  {:>8.2}  {:>8.2}  {:>6.2}",
            rate(bare),
            rate(keeper),
            rate(load),
            bare / keeper
        );
    }
    let keeper = rustix::process::getppid().unwrap();
    rustix::process::kill_process(keeper, rustix::process::Signal::TERM).unwrap();
    runtime.block_on(async { while !matches!(events.next().await, luod::store::Event::Stop) {} });
    std::process::exit(0);
}

fn best(mut round: impl FnMut() -> Duration) -> f64 {
    (0..ROUNDS).map(|_| round().as_secs_f64()).fold(f64::INFINITY, f64::min)
}

async fn put(store: &KeeperStore, file: &OwnedFd, batch: usize) -> Duration {
    let file = HostFile::from(file.try_clone().unwrap());
    let start = Instant::now();
    let mut tickets = std::collections::VecDeque::new();
    let mut key = 1;
    while key <= ROUND as u64 {
        let mut changes = Batch::with_capacity(batch, RECORD);
        for _ in 0..batch {
            changes.put(key, &[7; RECORD], [&file]).unwrap();
            key += 1;
        }
        tickets.push_back(store.submit(changes));
        // As a daemon does that bounds what is under way.
        if tickets.len() > 32 {
            tickets.pop_front().unwrap().await.unwrap();
        }
    }
    for ticket in tickets {
        ticket.await.unwrap();
    }
    start.elapsed()
}

async fn clear(store: &KeeperStore) {
    let mut batch = Batch::new();
    (1..=ROUND as u64).for_each(|key| batch.delete(key));
    store.submit(batch).await.unwrap();
}

fn bare(file: &OwnedFd, batch: usize) -> Duration {
    let (one, other) =
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
    let fds: Vec<BorrowedFd<'_>> = vec![file.as_fd(); batch];
    let (data, mut buffer) = (vec![7; batch * RECORD], vec![0; batch * RECORD]);
    let mut kept: Vec<OwnedFd> = Vec::with_capacity(ROUND);
    let start = Instant::now();
    for _ in 0..ROUND / batch {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
        let mut rights = SendAncillaryBuffer::new(&mut space);
        assert!(rights.push(SendAncillaryMessage::ScmRights(&fds)));
        sendmsg(&one, &[IoSlice::new(&data)], &mut rights, SendFlags::empty()).unwrap();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
        let mut rights = RecvAncillaryBuffer::new(&mut space);
        let parts = &mut [IoSliceMut::new(&mut buffer)];
        recvmsg(&other, parts, &mut rights, RecvFlags::CMSG_CLOEXEC).unwrap();
        for message in rights.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = message {
                kept.extend(fds);
            }
        }
    }
    start.elapsed()
}
