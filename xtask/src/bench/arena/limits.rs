//! What copying cannot go beyond, and what people use instead.

use std::hint::black_box;
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::process::Command;
use std::thread;

use rustix::io::{pread, pwrite};

use crate::failure::{Context as _, Failed, Result};

/// What is read and written at once, in bytes.
const BLOCK: usize = 256 << 10;
/// What counts as changed at once, in bytes.
const CHUNK: usize = 64 << 10;

fn processors() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

/// From faulted memory into faulted memory.
pub(super) fn memcpy(from: &[u8], to: &mut [u8]) {
    let part = from.len().div_ceil(processors()).max(1);
    thread::scope(|scope| {
        for (from, to) in from.chunks(part).zip(to.chunks_mut(part)) {
            scope.spawn(move || black_box(to).copy_from_slice(black_box(from)));
        }
    });
}

/// The program `cp`, between two open files.
pub(super) fn cp(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<()> {
    let path =
        |file: BorrowedFd<'_>| format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd());
    let status =
        Command::new("cp").args([path(from), path(to)]).status().context(|| "run `cp`".into())?;
    if status.success() { Ok(()) } else { Err(Failed::new(format!("`cp` failed ({status})"))) }
}

/// Reads all, in blocks, and writes one chunk of `every` back; none where that is zero.
pub(super) fn transfer(
    from: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
    bytes: usize,
    every: usize,
) -> Result<()> {
    let blocks = bytes.div_ceil(BLOCK);
    let part = blocks.div_ceil(processors());
    let one = |number: usize| -> io::Result<()> {
        let mut buffer = vec![0; BLOCK];
        for block in number * part..blocks.min((number + 1) * part) {
            let offset = block * BLOCK;
            let read = pread(from, &mut buffer, offset as u64)?;
            let data = black_box(&buffer[..read]);
            if every == 1 {
                pwrite(to, data, offset as u64)?;
                continue;
            }
            for (at, chunk) in (offset / CHUNK..).zip(data.chunks(CHUNK)) {
                if every > 0 && at.is_multiple_of(every) {
                    pwrite(to, chunk, (at * CHUNK) as u64)?;
                }
            }
        }
        Ok(())
    };
    thread::scope(|scope| {
        let one = &one;
        let all: Vec<_> =
            (0..processors()).map(|number| scope.spawn(move || one(number))).collect();
        all.into_iter().try_for_each(|thread| {
            let done = thread.join().map_err(|_| Failed::new("a thread panicked"))?;
            done.context(|| "copy with plain reads and writes".into())
        })
    })
}
