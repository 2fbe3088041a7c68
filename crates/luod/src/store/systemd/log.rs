//! The records of the slots, in one memory file that PID 1 holds: a log of batches.
//!
//! [`LogHeader`], then frames: a [`FrameHeader`], and in it the batch: entries, the numbers of
//! their descriptors, their records. The first frame of a log is the state when it was begun.
//!
//! Invariants:
//! - A batch is there when its frame is whole; a frame that the writer's death has torn has a
//!   wrong checksum, ends the log, and is overwritten.
//! - A log whose first frame is not whole does not count: the one before it does.
//! - What is read is checked before it is used: it was written by a process that died.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use luo_abi::keeper::{Entry, checksum, entry_flag};
use rustix::fs::{MemfdFlags, memfd_create};
use zerocopy::byteorder::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

const MAGIC: [u8; 8] = *b"luolog\0\0";
const VERSION: u32 = 1;
/// Below so many bytes a log is not begun anew.
const SMALL: u64 = 1 << 20;

#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct LogHeader {
    magic: [u8; 8],
    version: U32,
    reserved: U32,
    generation: U64,
}

#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct FrameHeader {
    /// Of the bytes behind this header, xor the frame's place, so that nothing old is taken for
    /// new.
    checksum: U64,
    length: U32,
    count: U32,
}

/// A slot without its descriptors: their numbers instead.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Logged {
    pub(super) record: Vec<u8>,
    pub(super) fds: Vec<u64>,
}

/// All slots.
pub(super) type State = BTreeMap<u64, Logged>;

/// One change, as it is logged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Change {
    Put(Logged),
    Rewrite(Vec<u8>),
    Delete,
}

type Changes = Vec<(u64, Change)>;

pub(super) fn apply(state: &mut State, key: u64, change: Change) {
    match change {
        Change::Put(slot) => drop(state.insert(key, slot)),
        Change::Rewrite(record) => state.entry(key).or_default().record = record,
        Change::Delete => drop(state.remove(&key)),
    }
}

#[derive(Debug)]
pub(super) struct Log {
    file: File,
    pub(super) generation: u64,
    /// Where the next frame goes.
    end: u64,
    /// Where the first frame ended: how much a log takes without history.
    compact: u64,
}

impl Log {
    /// A new log that begins with this state.
    pub(super) fn begin(generation: u64, state: &State) -> io::Result<Self> {
        let file = File::from(memfd_create("luo-log", MemfdFlags::CLOEXEC)?);
        let header = LogHeader {
            magic: MAGIC,
            version: VERSION.into(),
            reserved: 0.into(),
            generation: generation.into(),
        };
        file.write_all_at(header.as_bytes(), 0)?;
        let mut log = Self { file, generation, end: size_of::<LogHeader>() as u64, compact: 0 };
        let all: Vec<_> = state.iter().map(|(k, slot)| (*k, Change::Put(slot.clone()))).collect();
        log.append(&all)?;
        log.compact = log.end;
        Ok(log)
    }

    /// Reads a log as the process before has left it; `None` where it is none, or was not begun
    /// completely.
    pub(super) fn open(file: OwnedFd) -> io::Result<Option<(Self, State)>> {
        let file = File::from(file);
        let mut bytes = vec![0; usize::try_from(file.metadata()?.len()).unwrap_or(usize::MAX)];
        file.read_exact_at(&mut bytes, 0)?;
        let Ok((header, mut rest)) = LogHeader::ref_from_prefix(&bytes) else { return Ok(None) };
        let known = header.magic == MAGIC && header.version.get() == VERSION;
        if !known || header.reserved.get() != 0 {
            return Ok(None);
        }
        let mut log = Self { file, generation: header.generation.get(), end: 0, compact: 0 };
        let mut state = State::new();
        loop {
            log.end = (bytes.len() - rest.len()) as u64;
            let Some((changes, after)) = frame(rest, log.end) else { break };
            changes.into_iter().for_each(|(key, change)| apply(&mut state, key, change));
            rest = after;
            if log.compact == 0 {
                log.compact = (bytes.len() - rest.len()) as u64;
            }
        }
        // What is torn must not look like a frame once others have been written before it.
        log.file.set_len(log.end)?;
        Ok((log.compact > 0).then_some((log, state)))
    }

    /// Adds a batch. After an error the log is as it was.
    pub(super) fn append(&mut self, batch: &[(u64, Change)]) -> io::Result<()> {
        let (mut entries, mut fds, mut records) = (Vec::new(), Vec::<U64>::new(), Vec::new());
        for (key, change) in batch {
            let (record, own, flags) = match change {
                Change::Put(slot) => (slot.record.as_slice(), slot.fds.as_slice(), 0),
                Change::Rewrite(record) => (record.as_slice(), &[][..], entry_flag::KEEP_FDS),
                Change::Delete => (&[][..], &[][..], entry_flag::DELETE),
            };
            entries.push(Entry {
                key: (*key).into(),
                length: (record.len() as u32).into(),
                fds: (own.len() as u16).into(),
                flags: flags.into(),
            });
            fds.extend(own.iter().map(|fd| U64::new(*fd)));
            records.extend_from_slice(record);
        }
        let body = [entries.as_bytes(), fds.as_bytes(), &records].concat();
        let length = u32::try_from(body.len()).map_err(|_| io::ErrorKind::FileTooLarge)?;
        let header = FrameHeader {
            checksum: (checksum(&body) ^ self.end).into(),
            length: length.into(),
            count: (entries.len() as u32).into(),
        };
        let frame = [header.as_bytes(), &body].concat();
        if let Err(error) = self.file.write_all_at(&frame, self.end) {
            self.file.set_len(self.end)?;
            return Err(error);
        }
        self.end += frame.len() as u64;
        Ok(())
    }

    /// Whether it is mostly history.
    pub(super) fn is_long(&self) -> bool {
        self.end > SMALL.max(4 * self.compact)
    }

    pub(super) fn fd(&self) -> io::Result<OwnedFd> {
        Ok(self.file.try_clone()?.into())
    }
}

/// The frame at that place, and what follows it; `None` where there is no whole one.
fn frame(bytes: &[u8], place: u64) -> Option<(Changes, &[u8])> {
    let (header, rest) = FrameHeader::ref_from_prefix(bytes).ok()?;
    let (body, after) = rest.split_at_checked(header.length.get() as usize)?;
    if header.checksum.get() != checksum(body) ^ place {
        return None;
    }
    let (entries, rest) =
        <[Entry]>::ref_from_prefix_with_elems(body, header.count.get() as usize).ok()?;
    let count = entries.iter().map(|entry| usize::from(entry.fds.get())).sum();
    let (mut fds, mut records) = <[U64]>::ref_from_prefix_with_elems(rest, count).ok()?;
    let mut changes = Vec::with_capacity(entries.len());
    for entry in entries {
        let (record, more) = records.split_at_checked(entry.length.get() as usize)?;
        records = more;
        let (own, more) = fds.split_at_checked(entry.fds.get().into())?;
        fds = more;
        let record = record.to_vec();
        let change = match entry.flags.get() {
            0 => Change::Put(Logged { record, fds: own.iter().map(|fd| fd.get()).collect() }),
            entry_flag::KEEP_FDS => Change::Rewrite(record),
            entry_flag::DELETE => Change::Delete,
            _ => return None,
        };
        changes.push((entry.key.get(), change));
    }
    records.is_empty().then_some((changes, after))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(record: &[u8], fds: &[u64]) -> Change {
        Change::Put(Logged { record: record.to_vec(), fds: fds.to_vec() })
    }

    fn bytes(log: &Log) -> Vec<u8> {
        let mut bytes = vec![0; log.file.metadata().unwrap().len() as usize];
        log.file.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    }

    fn file(bytes: &[u8]) -> OwnedFd {
        let file = File::from(memfd_create("luo-test", MemfdFlags::CLOEXEC).unwrap());
        file.write_all_at(bytes, 0).unwrap();
        file.into()
    }

    #[test]
    fn a_log_cut_anywhere_gives_a_state_after_a_whole_batch_and_goes_on_from_there() {
        let first = State::from([(1, Logged { record: b"one".to_vec(), fds: vec![7] })]);
        let mut log = Log::begin(4, &first).unwrap();
        let mut states = vec![(log.end, first.clone())];
        let mut state = first;
        for batch in [
            vec![(2, put(b"two", &[8, 9])), (3, put(b"", &[]))],
            vec![(1, Change::Rewrite(b"again".to_vec())), (3, Change::Delete)],
            vec![],
            vec![(4, Change::Rewrite(b"new".to_vec()))],
        ] {
            log.append(&batch).unwrap();
            batch.into_iter().for_each(|(key, change)| apply(&mut state, key, change));
            states.push((log.end, state.clone()));
        }
        let whole = bytes(&log);
        for end in 0..=whole.len() {
            let opened = Log::open(file(&whole[..end])).unwrap();
            let expected = states.iter().rfind(|(at, _)| *at <= end as u64);
            let Some((at, expected)) = expected else {
                assert!(opened.is_none(), "begun, but not completely: {end}");
                continue;
            };
            let (mut log, state) = opened.unwrap();
            assert_eq!((&state, log.end, log.generation), (expected, *at, 4));
            log.append(&[(9, put(b"after", &[]))]).unwrap();
            let (_, state) = Log::open(file(&bytes(&log))).unwrap().unwrap();
            assert_eq!(state[&9].record, b"after");
            assert_eq!(state.len(), expected.len() + 1);
        }
    }

    #[test]
    fn a_flipped_bit_ends_the_log_before_its_frame() {
        let mut log = Log::begin(1, &State::new()).unwrap();
        let start = log.end as usize;
        log.append(&[(1, put(b"record", &[1]))]).unwrap();
        let whole = bytes(&log);
        for bit in start * 8..whole.len() * 8 {
            let mut damaged = whole.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            let (_, state) = Log::open(file(&damaged)).unwrap().unwrap();
            assert!(state.is_empty(), "bit {bit}");
        }
        for bit in 0..16 * 8 {
            let mut damaged = whole.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(Log::open(file(&damaged)).unwrap().is_none(), "bit {bit} of the header");
        }
    }

    #[test]
    fn a_log_of_much_history_is_long() {
        let mut log = Log::begin(1, &State::new()).unwrap();
        assert!(!log.is_long());
        while !log.is_long() {
            log.append(&[(1, put(&[1; 100_000], &[]))]).unwrap();
            assert!(log.end < 2 * SMALL);
        }
    }
}
