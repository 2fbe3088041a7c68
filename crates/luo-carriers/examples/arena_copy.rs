//! How fast memory goes into an arena's medium and back, beside what the machine can do at all.
//!
//! `cargo run --release --example arena_copy -p luo-carriers -- [--mib N] DIRECTORY...` makes a
//! file in each directory for the medium. `taskset -c 0` before it measures one thread. Limits and
//! the engine are measured in turns, and the best of the turns counts: a neighbour on the machine
//! slows down a turn of both.

use std::error::Error;
use std::fs::File;
use std::hint::black_box;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use luo_carriers::arena::copy::{CHUNK, Chunks, PAGE, Space, copy_in, copy_out, refresh};
use luo_carriers::arena::medium::{Extent, Medium};
use luo_core::{Errno, Failure};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::io::{pread, pwrite};
use rustix::time::{ClockId, clock_gettime};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// What the plain loops read and write at once, in bytes.
const BLOCK: usize = 256 << 10;
const TURNS: usize = 7;

fn main() -> Result<()> {
    let mut mib = 256;
    let mut directories = Vec::new();
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--mib" => mib = args.next().ok_or("--mib takes a number")?.parse()?,
            _ => directories.push(arg),
        }
    }
    if directories.is_empty() {
        directories.push(std::env::temp_dir().display().to_string());
    }
    for directory in &directories {
        println!("\n{mib} MiB, the medium in {directory}");
        for figure in measure(Path::new(directory), mib << 20)? {
            println!("{figure}");
        }
    }
    Ok(())
}

/// One figure of the engine beside its limit, both in GiB of memory a second.
struct Figure {
    what: String,
    ours: Best,
    limit: Best,
    of: &'static str,
}

impl std::fmt::Display for Figure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{:<34} {:6.2} (CPU {:6.2})   {:<44} {:6.2} (CPU {:6.2})   ratio {:.2} (CPU {:.2})",
            self.what,
            self.ours.wall,
            self.ours.cpu,
            self.of,
            self.limit.wall,
            self.limit.cpu,
            self.ours.wall / self.limit.wall,
            self.ours.cpu / self.limit.cpu,
        )
    }
}

/// The best of some turns, in GiB a second of time, and of all threads' processor time.
#[derive(Debug, Clone, Copy, Default)]
struct Best {
    wall: f64,
    cpu: f64,
}

impl Best {
    fn turn(&mut self, bytes: usize, run: impl FnOnce() -> Result<()>) -> Result<()> {
        let (began, cpu) = (Instant::now(), processor());
        run()?;
        let gib = bytes as f64 / f64::from(1 << 30);
        self.wall = self.wall.max(gib / began.elapsed().as_secs_f64());
        self.cpu = self.cpu.max(gib / (processor() - cpu).as_secs_f64());
        Ok(())
    }
}

fn processor() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec as u32)
}

/// Everything about a medium in that directory.
fn measure(directory: &Path, bytes: usize) -> Result<Vec<Figure>> {
    let memory = Memory::new(bytes)?;
    let store = Store::new(directory, bytes as u64)?;
    // The limits write here: what the engine has stored is verified in the end.
    let scratch = Store::new(directory, bytes as u64)?;
    let fd = memory.file.as_fd();
    let len = bytes as u64;
    let mut figures = Vec::new();

    let (mut copy, mut limit, mut plain) = <(Best, Best, Best)>::default();
    let mut chunks = Chunks::default();
    let mut other = vec![1_u8; bytes];
    for _ in 0..TURNS {
        limit.turn(bytes, || Ok(memcpy(&memory.bytes, &mut other)))?;
        plain.turn(bytes, || transfer(fd, scratch.file.as_fd(), bytes, 1))?;
        store.free(&chunks);
        copy.turn(bytes, || {
            chunks = copy_in(fd, len, &store, &store, &|_, _| Ok(()))?;
            Ok(())
        })?;
    }
    let row = |what: &str, ours, limit, of| Figure { what: what.into(), ours, limit, of };
    figures.push(row("copy in", copy, limit, "memcpy, as many threads"));
    figures.push(row("copy in", copy, plain, "pread and pwrite, no checksum"));

    for percent in [0, 1, 10, 100] {
        let (mut ours, mut limit) = <(Best, Best)>::default();
        for turn in 0..TURNS {
            memory.change(percent, turn as u8)?;
            ours.turn(bytes, || {
                Ok(refresh(&mut chunks, fd, len, &store, &store, &|_, _| Ok(()))?)
            })?;
            limit
                .turn(bytes, || transfer(fd, scratch.file.as_fd(), bytes, percent_step(percent)))?;
        }
        let what = format!("freeze, {percent} % of chunks changed");
        figures.push(row(&what, ours, limit, "pread of all, pwrite of what changed"));
    }

    let (mut plain, mut verified, mut limit) = <(Best, Best, Best)>::default();
    for _ in 0..TURNS {
        limit.turn(bytes, || transfer(scratch.file.as_fd(), fresh(len)?.as_fd(), bytes, 1))?;
        let out =
            |verify| Ok(copy_out(&chunks, &store, fresh(len)?.as_fd(), verify, &|_, _| Ok(()))?);
        plain.turn(bytes, || out(false))?;
        verified.turn(bytes, || out(true))?;
    }
    let of = "pread and pwrite into a fresh memfd";
    figures.push(row("copy out", plain, limit, of));
    figures.push(row("copy out, verified", verified, limit, of));
    Ok(figures)
}

/// Every how many blocks one is written, so that it is that part of all; zero: none.
fn percent_step(percent: usize) -> usize {
    if percent == 0 { 0 } else { 100 / percent }
}

/// Copies with as many threads as there are processors.
fn memcpy(from: &[u8], to: &mut [u8]) {
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let part = from.len().div_ceil(threads);
    thread::scope(|scope| {
        for (from, to) in from.chunks(part).zip(to.chunks_mut(part)) {
            scope.spawn(move || black_box(to).copy_from_slice(black_box(from)));
        }
    });
}

/// Reads all and writes one block of `step`, with as many threads as there are processors.
fn transfer(from: BorrowedFd<'_>, to: BorrowedFd<'_>, bytes: usize, step: usize) -> Result<()> {
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let part = (bytes / BLOCK).div_ceil(threads);
    let one = |number: usize| -> io::Result<()> {
        let mut buffer = vec![0; BLOCK];
        for block in (number * part..(number + 1) * part).take_while(|at| at * BLOCK < bytes) {
            let offset = (block * BLOCK) as u64;
            pread(from, &mut buffer, offset)?;
            if step > 0 && block % step == 0 {
                pwrite(to, black_box(&buffer), offset)?;
            }
        }
        Ok(())
    };
    thread::scope(|scope| {
        let one = &one;
        let all: Vec<_> = (0..threads).map(|number| scope.spawn(move || one(number))).collect();
        all.into_iter().try_for_each(|thread| {
            thread.join().map_err(|_| "a thread panicked")?.map_err(Into::into)
        })
    })
}

fn fresh(len: u64) -> Result<OwnedFd> {
    let file = memfd_create("arena-copy", MemfdFlags::CLOEXEC)?;
    ftruncate(&file, len)?;
    Ok(file)
}

/// The memory that is kept, in a memfd and in a vector.
struct Memory {
    file: OwnedFd,
    bytes: Vec<u8>,
}

impl Memory {
    fn new(bytes: usize) -> Result<Self> {
        let file = fresh(bytes as u64)?;
        let mut state = 1_u64;
        let words = std::iter::repeat_with(|| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            state.to_le_bytes()
        });
        let bytes: Vec<u8> = words.take(bytes / 8).flatten().collect();
        File::from(file.try_clone()?).write_all_at(&bytes, 0)?;
        Ok(Self { file, bytes })
    }

    /// Changes a byte in that part of all chunks.
    fn change(&self, percent: usize, to: u8) -> Result<()> {
        let step = percent_step(percent);
        for chunk in 0..self.bytes.len() as u64 / CHUNK {
            if step > 0 && chunk.is_multiple_of(step as u64) {
                pwrite(&self.file, &[to], chunk * CHUNK + 77)?;
            }
        }
        Ok(())
    }
}

/// A file, written once so that it is all there, and its free space.
#[derive(Debug)]
struct Store {
    file: File,
    size: u64,
    free: Mutex<Vec<Extent>>,
}

impl Store {
    fn new(directory: &Path, size: u64) -> Result<Self> {
        let file = tempfile::tempfile_in(directory)?;
        let block = vec![1; BLOCK];
        for offset in (0..size).step_by(BLOCK) {
            file.write_all_at(&block, offset)?;
        }
        let free = Mutex::new(vec![Extent { offset: 0, len: size }]);
        Ok(Self { file, size, free })
    }

    fn free(&self, chunks: &Chunks) {
        chunks.extents.iter().for_each(|(_, extent)| self.release(*extent));
        // All of it again, in one piece.
        if let Ok(mut free) = self.free.lock() {
            *free = vec![Extent { offset: 0, len: self.size }];
        }
    }
}

impl Space for Store {
    fn allocate(&self, mut len: u64) -> std::result::Result<Vec<Extent>, Failure> {
        let full = || Failure::new(Errno::NoSpc, "the example's file is full");
        let mut free = self.free.lock().map_err(|_| full())?;
        let mut given = Vec::new();
        while len > 0 {
            let last = free.last_mut().ok_or_else(full)?;
            let taken = len.min(last.len);
            given.push(Extent { offset: last.offset, len: taken });
            *last = Extent { offset: last.offset + taken, len: last.len - taken };
            len -= taken;
            if last.len < PAGE {
                free.pop();
            }
        }
        Ok(given)
    }

    fn release(&self, extent: Extent) {
        if let Ok(mut free) = self.free.lock() {
            free.push(extent);
        }
    }
}

impl Medium for Store {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(buffer, offset)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, offset)
    }

    fn flush(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn discard(&self, _: Extent) -> io::Result<()> {
        Ok(())
    }

    fn file(&self) -> Option<BorrowedFd<'_>> {
        Some(self.file.as_fd())
    }
}
