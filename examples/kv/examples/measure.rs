//! Measures the store by itself: opening and handing over at two sizes, the slowest write while it fills, copies to and from it.
//!
//! The slowest write is given by the clock and by the processor time it took: on a busy machine the clock tells
//! mostly of the others.
//!
//! Run with `cargo run --release -p kv --example measure`.

use std::error::Error;
use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use kv::custody::{Custody, NoCustody};
use kv::server::{Options, Server, Suspended};
use kv::store::{Expiry, Store};
use kv::wake::Waker;
use luo_sys::Memory;
use rustix::time::{ClockId, clock_gettime};

/// The shortest time from the last request served by one server to the first that the next can serve.
fn hand_over(memory: OwnedFd) -> Result<Duration, Box<dyn Error>> {
    let no_custody =
        |_: &Waker| -> std::io::Result<Box<dyn Custody>> { Ok(Box::new(NoCustody::default())) };
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let store = Store::from_fd(memory, 4 << 30)?;
    let mut server = Server::start(store, listener.into(), Options::default(), no_custody)?;
    let clients: Vec<TcpStream> =
        (0..64).map(|_| TcpStream::connect(address)).collect::<Result<_, _>>()?;
    while server.connections().count() < clients.len() {
        server.turn(Some(Duration::from_millis(10)))?;
    }
    let mut best = Duration::MAX;
    for _ in 0..20 {
        let begun = Instant::now();
        let suspended = server.suspend()?;
        // As in another process: nothing is unmapped before the next one serves.
        let parts = Suspended::new(
            suspended.memory.try_clone()?,
            suspended.listener.try_clone()?,
            suspended
                .connections
                .iter()
                .map(|(token, fd)| Ok((*token, fd.try_clone()?)))
                .collect::<Result<_, Box<dyn Error>>>()?,
        );
        server = Server::resume(parts, Options::default(), no_custody)?;
        best = best.min(begun.elapsed());
    }
    Ok(best)
}

/// The slowest of many calls.
#[derive(Default)]
struct Slowest {
    clock: Duration,
    processor: Duration,
}

impl Slowest {
    fn time<T>(&mut self, call: impl FnOnce() -> T) -> T {
        let (clock, processor) = (Instant::now(), processor_time());
        let result = call();
        self.processor = self.processor.max(processor_time().saturating_sub(processor));
        self.clock = self.clock.max(clock.elapsed());
        result
    }
}

impl std::fmt::Display for Slowest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} ({:?} of processor time)", self.clock, self.processor)
    }
}

fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut out = std::io::stdout();
    for mib in [16, 1024] {
        let (value, mut worst) = ([7; 4096], Slowest::default());
        let mut store = Store::create(4 << 30)?;
        let begun = Instant::now();
        let keys = (mib << 20) / value.len();
        for key in 0..keys {
            worst.time(|| store.set(format!("key:{key:010}").as_bytes(), &value, Expiry::Never))?;
        }
        let filled = begun.elapsed();
        let fd = store.into_fd()?;
        let mut opened = Duration::MAX;
        for _ in 0..20 {
            let fd = fd.try_clone()?;
            let begun = Instant::now();
            let store = Store::from_fd(fd, 4 << 30)?;
            opened = opened.min(begun.elapsed());
            drop(store);
        }
        let handed_over = hand_over(fd)?;
        writeln!(out, "{mib:5} MiB, 64 connections: suspended and resumed in {handed_over:?}")?;
        writeln!(
            out,
            "{mib:5} MiB: filled in {filled:?}, slowest set {worst}, opened in {opened:?}"
        )?;
    }
    let mut store = Store::create(4 << 30)?;
    let mut worst = Slowest::default();
    for key in 0..3_000_000 {
        worst.time(|| store.set(format!("key:{key:010}").as_bytes(), b"small", Expiry::Never))?;
    }
    let begun = Instant::now();
    store.flush_all()?;
    writeln!(out, "3 million small keys: slowest set {worst}, flush {:?}", begun.elapsed())?;

    let memory = Memory::create("copies", 64 << 20)?;
    let (mut private, blocks) = (vec![1; 4096], (64 << 20) / 4096);
    memory.write_at(0, &vec![1; 64 << 20])?;
    let mut plain = vec![1_u8; 64 << 20];
    let rate = |name: &str, out: &mut dyn Write, pass: &mut dyn FnMut(usize, &mut Vec<u8>)| {
        let mut best = Duration::MAX;
        let mut buffer = std::mem::take(&mut private);
        for _ in 0..10 {
            let begun = Instant::now();
            for block in 0..blocks {
                pass(block * 4096, &mut buffer);
            }
            best = best.min(begun.elapsed());
        }
        private = buffer;
        writeln!(out, "{name}: {:.1} GiB/s in blocks of 4 KiB", 1.0 / 16.0 / best.as_secs_f64())
    };
    let mut rate = rate;
    rate("write_at", &mut out, &mut |at, buffer| drop(memory.write_at(at as u64, buffer)))?;
    rate("read_at", &mut out, &mut |at, buffer| drop(memory.read_at(at as u64, buffer)))?;
    rate("memcpy", &mut out, &mut |at, buffer| {
        std::hint::black_box(&mut plain)[at..at + 4096].copy_from_slice(buffer);
    })?;
    Ok(())
}
