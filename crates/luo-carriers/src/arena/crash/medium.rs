//! A medium that records what is done to it, fails when it is told to, and shows what may be left
//! of it after a loss of power.
//!
//! What is written may go through a real mapping too; then everything is read back from there.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::{Mutex, MutexGuard};

use super::super::file::FileMedium;
use super::super::medium::{Extent, Medium};
use super::Random;

/// What was done.
#[derive(Debug, Clone)]
pub(super) enum Op {
    Write {
        offset: usize,
        bytes: Vec<u8>,
    },
    Flush,
    /// Nobody knows what of the writes since the last flush is there, and no later flush changes
    /// that.
    FailedFlush,
}

/// Which operations fail.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fault {
    /// The number of the first one that fails, counted from when the fault was set.
    pub(super) at: usize,
    /// And all after it.
    pub(super) forever: bool,
    pub(super) errno: i32,
    /// Half of a write that fails is done.
    pub(super) torn: bool,
}

#[derive(Debug, Default)]
struct Inner {
    image: Vec<u8>,
    log: Vec<Op>,
    fault: Option<Fault>,
    count: usize,
    mapped: Option<FileMedium>,
}

/// What of the writes may be lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Loss {
    /// Any since the last flush, in any order.
    SinceFlush,
    /// Of the last one any words: one write is durable before the next begins, as on persistent
    /// memory that is mapped, where a flush has nothing left to do.
    LastWrite,
}

/// The medium.
#[derive(Debug)]
pub(super) struct Recorder(Mutex<Inner>);

impl Recorder {
    pub(super) fn new(image: Vec<u8>) -> Self {
        Self(Mutex::new(Inner { image, ..Inner::default() }))
    }

    /// The same, of zeros, above a mapped medium.
    pub(super) fn mapped(medium: FileMedium) -> Self {
        let image = vec![0; medium.size() as usize];
        Self(Mutex::new(Inner { image, mapped: Some(medium), ..Inner::default() }))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap()
    }

    /// What everybody sees who does not lose power.
    pub(super) fn image(&self) -> Vec<u8> {
        self.lock().image.clone()
    }

    /// Another medium of the same size, which takes less time than a new one.
    pub(super) fn reset(&self, image: &[u8]) {
        let mut inner = self.lock();
        assert!(inner.mapped.is_none(), "its bytes would be others");
        inner.image.copy_from_slice(image);
        inner.log.clear();
        inner.fault = None;
    }

    /// What was done since the last time this was asked.
    pub(super) fn take_log(&self) -> Vec<Op> {
        std::mem::take(&mut self.lock().log)
    }

    pub(super) fn set_fault(&self, fault: Option<Fault>) {
        let mut inner = self.lock();
        inner.fault = fault;
        inner.count = 0;
    }

    /// How many operations there were since the fault was set.
    pub(super) fn count(&self) -> usize {
        self.lock().count
    }
}

impl Inner {
    fn step(&mut self) -> io::Result<()> {
        let number = self.count;
        self.count += 1;
        match self.fault {
            Some(fault) if number == fault.at || fault.forever && number > fault.at => {
                Err(io::Error::from_raw_os_error(fault.errno))
            }
            _ => Ok(()),
        }
    }
}

impl Medium for Recorder {
    fn size(&self) -> u64 {
        self.lock().image.len() as u64
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let inner = self.lock();
        let range = offset as usize..offset as usize + buffer.len();
        let bytes = inner.image.get(range).ok_or(io::ErrorKind::UnexpectedEof)?;
        match &inner.mapped {
            None => buffer.copy_from_slice(bytes),
            Some(mapped) => {
                mapped.read_at(offset, buffer)?;
                assert!(buffer == bytes, "what was written there is read again");
            }
        }
        Ok(())
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut inner = self.lock();
        let result = inner.step();
        let offset = offset as usize;
        // One that fails may have been done, or a part of it.
        inner.log.push(Op::Write { offset, bytes: bytes.to_vec() });
        let len = match (&result, inner.fault) {
            (Err(_), Some(Fault { torn: true, .. })) => bytes.len() / 2,
            (Err(_), _) => 0,
            (Ok(()), _) => bytes.len(),
        };
        inner.image[offset..offset + len].copy_from_slice(&bytes[..len]);
        if let Some(mapped) = &inner.mapped {
            mapped.write_at(offset as u64, &bytes[..len])?;
        }
        result
    }

    fn flush(&self) -> io::Result<()> {
        let mut inner = self.lock();
        let result = inner.step();
        if let Some(mapped) = &inner.mapped {
            mapped.flush()?;
        }
        inner.log.push(if result.is_ok() { Op::Flush } else { Op::FailedFlush });
        result
    }

    fn discard(&self, _: Extent) -> io::Result<()> {
        Ok(())
    }

    fn file(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

/// Applies a write as power may cut it.
fn tear(image: &mut [u8], offset: usize, bytes: &[u8], random: &mut Random) {
    let piece = match random.below(4) {
        0 => 8,
        1 => 4096,
        _ => bytes.len(),
    };
    let whole = piece == bytes.len();
    let cut = random.below(3);
    let keep = random.below(bytes.len().div_ceil(piece.max(1)) + 1);
    for (number, part) in bytes.chunks(piece.max(1)).enumerate() {
        let there = match cut {
            _ if whole => true,
            0 => number < keep,
            1 => number >= keep,
            _ => random.below(2) == 0,
        };
        if there {
            let at = offset + number * piece;
            image[at..at + part.len()].copy_from_slice(part);
        }
    }
}

/// Applies some of the pending writes, in any order, and forgets all of them.
fn lose(image: &mut [u8], pending: &mut Vec<(usize, &[u8])>, random: &mut Random) {
    // Sometimes all of them, sometimes in their order.
    if random.below(2) == 0 {
        for at in (1..pending.len()).rev() {
            pending.swap(at, random.below(at + 1));
        }
    }
    let all = random.below(3) == 0;
    for (offset, bytes) in pending.drain(..) {
        if all || random.below(2) == 0 {
            tear(image, offset, bytes, random);
        }
    }
}

/// What may be left of `before` when power fails after the first `done` of these operations, in
/// `image`, whose memory is used again.
pub(super) fn after_crash(
    image: &mut Vec<u8>,
    before: &[u8],
    log: &[Op],
    done: usize,
    loss: Loss,
    random: &mut Random,
) {
    image.clear();
    image.extend_from_slice(before);
    if loss == Loss::LastWrite {
        let writes = log[..done].iter().filter_map(|op| match op {
            Op::Write { offset, bytes } => Some((*offset, bytes)),
            Op::Flush | Op::FailedFlush => None,
        });
        let mut writes = writes.peekable();
        while let Some((offset, bytes)) = writes.next() {
            let last = writes.peek().is_none() && !matches!(log.get(done - 1), Some(Op::Flush));
            for (word, bytes) in bytes.chunks(8).enumerate() {
                // The words of one write go in any order.
                if !last || random.below(3) > 0 {
                    let at = offset + word * 8;
                    image[at..at + bytes.len()].copy_from_slice(bytes);
                }
            }
        }
        return;
    }
    let mut pending: Vec<(usize, &[u8])> = Vec::new();
    for op in &log[..done] {
        match op {
            Op::Write { offset, bytes } => pending.push((*offset, bytes)),
            Op::Flush => {
                for (offset, bytes) in pending.drain(..) {
                    image[offset..offset + bytes.len()].copy_from_slice(bytes);
                }
            }
            Op::FailedFlush => lose(image, &mut pending, random),
        }
    }
    lose(image, &mut pending, random);
}
