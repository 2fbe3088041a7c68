//! How fast memory goes into an arena and back, beside what the machine can do at all.
//!
//! Each figure and its limit are measured in turns, and the best of each counts: a neighbour on
//! the machine then slows down a turn of both. All use as many threads as there are processors;
//! `taskset -c 0` before the command measures one.

mod limits;
mod store;

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use luo_carriers::arena::copy::{CHUNK, Chunks, Window, copy_in, copy_out, refresh_through};
use luo_core::Failure;
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::io::pwrite;
use tempfile::TempDir;

use self::limits::{cp, memcpy, transfer};
use self::store::Store;
use super::report::Better;
use super::{Bencher, Row, criu};
use crate::failure::{Context as _, Failed, Result};

/// The helper: has memory.
pub(super) fn hold(mib: usize, ready: &Path) -> Result<()> {
    criu::hold(ready, || Ok((1..=(mib << 17) as u64).collect::<Vec<u64>>()))
}

/// The memory that is copied, in MiB.
const MIB: usize = 256;
const TURNS: usize = 10;
/// Of memcpy's figure.
const COPY_GOAL: f64 = 0.8;
/// Of the figure of one read of all and one write of what changed, and of writing fresh memory.
const PASS_GOAL: f64 = 0.8;

/// Copying in, freezing and retrieving on each kind of medium there is, and CRIU.
pub(super) fn run(bencher: &Bencher<'_>) -> Result<Vec<Row>> {
    let bytes = bencher.times(MIB) << 20;
    let memory = Memory::new(bytes)?;
    let mut rows = Vec::new();
    let disk = TempDir::new().context(|| "make a directory".into())?;
    measure(bencher, "a disk file", disk.path(), &memory, &mut rows)?;
    let shm = Path::new("/dev/shm");
    if shm.is_dir() {
        measure(bencher, "tmpfs", shm, &memory, &mut rows)?;
    } else {
        bencher.skipped("tmpfs: there is no /dev/shm");
    }
    match Mounted::huge() {
        Ok(huge) => {
            measure(bencher, "huge-page tmpfs", huge.path(), &memory, &mut rows)?;
            // What is kept may be on huge pages too, as that of virtual machines is.
            let file = tempfile::tempfile_in(huge.path()).context(|| "make a file".into())?;
            let memory = Memory::filled(file.into(), bytes)?;
            let medium = "memory of huge pages, huge-page tmpfs";
            measure(bencher, medium, huge.path(), &memory, &mut rows)?;
        }
        Err(failed) => bencher.skipped(&format!("huge-page tmpfs: {}", failed.chain())),
    }
    let images = if shm.is_dir() { shm } else { disk.path() };
    bencher.measuring("criu");
    let mib = (bytes >> 20).to_string();
    match criu::dump_and_restore(bencher, images, &["hold-memory", "--mib", &mib]) {
        Ok(took) => rows.push(beside_criu(took.dump + took.restore, images, &memory)?),
        Err(failed) => bencher.skipped(&format!("criu: {}", failed.chain())),
    }
    Ok(rows)
}

/// The rows of one medium.
fn measure(
    bencher: &Bencher<'_>,
    medium: &str,
    directory: &Path,
    memory: &Memory,
    rows: &mut Vec<Row>,
) -> Result<()> {
    bencher.measuring(medium);
    let bytes = memory.bytes.len();
    let len = bytes as u64;
    let turns = bencher.times(TURNS);
    let store = Store::new(directory, len)?;
    // The limits write here: what luo has stored is verified in the end.
    let scratch = Store::new(directory, len)?;
    let mut row = |what: &str, ours: Best, peer: &str, limit: Best, goal| {
        rows.push(Row {
            what: format!("{what}, {medium}"),
            ours: Some(ours.0),
            peer: peer.into(),
            peer_value: limit.0,
            unit: "GiB/s",
            better: Better::Higher,
            goal,
        });
    };

    let (mut ours, mut limit, mut copied) = <(Best, Best, Best)>::default();
    let (mut chunks, mut window) = <(Chunks, Window)>::default();
    let mut other = vec![1_u8; bytes];
    for _ in 0..turns {
        limit.turn(bytes, || {
            memcpy(&memory.bytes, &mut other);
            Ok(())
        })?;
        copied.turn(bytes, || cp(memory.file.as_fd(), scratch.fd()?))?;
        store.clear();
        // What `prepare` keeps mapped is unmapped after `freeze`, not in this time.
        (chunks, window) = Default::default();
        ours.turn(bytes, || {
            let memory = memory.file.as_fd();
            refresh_through(&window, &mut chunks, memory, len, &store, &store, &go_on)
                .context(|| "copy in".into())
        })?;
    }
    row("copy in", ours, "memcpy", limit, Some(COPY_GOAL));
    row("copy in", ours, "cp", copied, None);

    for percent in [0, 1, 10, 100] {
        let (mut ours, mut limit) = <(Best, Best)>::default();
        for turn in 0..turns {
            memory.change(percent, turn as u8)?;
            ours.turn(bytes, || {
                let memory = memory.file.as_fd();
                refresh_through(&window, &mut chunks, memory, len, &store, &store, &go_on)
                    .context(|| "refresh".into())
            })?;
            let written = every(percent);
            limit.turn(bytes, || transfer(memory.file.as_fd(), scratch.fd()?, bytes, written))?;
        }
        let what = format!("freeze, {percent} % of 64 KiB chunks changed");
        row(&what, ours, "read all, write what changed", limit, Some(PASS_GOAL));
    }

    for (what, verify) in [("retrieve", false), ("retrieve and verify", true)] {
        let (mut ours, mut limit) = <(Best, Best)>::default();
        for _ in 0..turns {
            ours.turn(bytes, || {
                copy_out(&chunks, &store, memfd(len)?.as_fd(), verify, &go_on)
                    .context(|| "copy out".into())
            })?;
            limit.turn(bytes, || transfer(scratch.fd()?, memfd(len)?.as_fd(), bytes, 1))?;
        }
        row(what, ours, "read, write into a fresh memfd", limit, Some(PASS_GOAL));
    }
    Ok(())
}

/// Out of the memory and back into another, beside CRIU, which took that long for a process.
fn beside_criu(criu: Duration, images: &Path, memory: &Memory) -> Result<Row> {
    let len = memory.bytes.len() as u64;
    let store = Store::new(images, len)?;
    let began = Instant::now();
    let chunks =
        copy_in(memory.file.as_fd(), len, &store, &store, &go_on).context(|| "copy in".into())?;
    copy_out(&chunks, &store, memfd(len)?.as_fd(), true, &go_on).context(|| "copy out".into())?;
    Ok(Row {
        what: format!("copy in, retrieve and verify {} MiB", len >> 20),
        ours: Some(began.elapsed().as_secs_f64() * 1e3),
        peer: "criu dump and restore".into(),
        peer_value: criu.as_secs_f64() * 1e3,
        unit: "ms",
        better: Better::Lower,
        goal: None,
    })
}

fn go_on(_: u64, _: u64) -> std::result::Result<(), Failure> {
    Ok(())
}

/// Every how many chunks one is changed, so that it is that part of all; zero: none is.
fn every(percent: usize) -> usize {
    100_usize.checked_div(percent).unwrap_or(0)
}

/// The best of some turns, in GiB a second.
#[derive(Debug, Clone, Copy, Default)]
struct Best(f64);

impl Best {
    fn turn(&mut self, bytes: usize, run: impl FnOnce() -> Result<()>) -> Result<()> {
        let began = Instant::now();
        run()?;
        let gib = bytes as f64 / f64::from(1 << 30);
        self.0 = self.0.max(gib / began.elapsed().as_secs_f64());
        Ok(())
    }
}

fn memfd(len: u64) -> Result<OwnedFd> {
    let failed = || "make a memfd".into();
    let file = memfd_create("luo-bench", MemfdFlags::CLOEXEC).context(failed)?;
    ftruncate(&file, len).context(failed)?;
    Ok(file)
}

/// The memory that is kept, in a file and in a vector.
struct Memory {
    file: OwnedFd,
    bytes: Vec<u8>,
}

impl Memory {
    /// That many bytes, none of whose pages is like another.
    fn new(bytes: usize) -> Result<Self> {
        Self::filled(memfd(bytes as u64)?, bytes)
    }

    /// The same in a file that is there.
    fn filled(file: OwnedFd, bytes: usize) -> Result<Self> {
        let mut state = 1_u64;
        let words = std::iter::repeat_with(|| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            state.to_le_bytes()
        });
        let bytes: Vec<u8> = words.take(bytes / 8).flatten().collect();
        let memory = Self { file, bytes };
        for (number, block) in memory.bytes.chunks(1 << 20).enumerate() {
            memory.write(block, (number as u64) << 20)?;
        }
        Ok(memory)
    }

    /// Changes a byte in that part of all chunks.
    fn change(&self, percent: usize, to: u8) -> Result<()> {
        let chunks = 0..self.bytes.len() as u64 / CHUNK;
        let step = every(percent) as u64;
        chunks
            .filter(|chunk| step > 0 && chunk.is_multiple_of(step))
            .try_for_each(|chunk| self.write(&[to], chunk * CHUNK + 77))
    }

    fn write(&self, bytes: &[u8], offset: u64) -> Result<()> {
        let written = pwrite(&self.file, bytes, offset).context(|| "fill the memory".into())?;
        if written == bytes.len() { Ok(()) } else { Err(Failed::new("the memory is not filled")) }
    }
}

/// A file system that goes with its value.
struct Mounted(TempDir);

impl Mounted {
    /// A tmpfs on huge pages; only root can make one.
    fn huge() -> Result<Self> {
        let directory = TempDir::new().context(|| "make a directory".into())?;
        let output = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "huge=always,mode=0700", "luo-bench"])
            .arg(directory.path())
            .output()
            .context(|| "run `mount`".into())?;
        if output.status.success() {
            Ok(Self(directory))
        } else {
            let said = String::from_utf8_lossy(&output.stderr);
            Err(Failed::new(format!("cannot be mounted: {}", said.trim())))
        }
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // Without it, removing the directory fails and says so to nobody: the mount stays.
        let _ = Command::new("umount").arg(self.0.path()).status();
    }
}
