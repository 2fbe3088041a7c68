//! Whatever happens, an arena holds the old state or the new one, whole.
//!
//! A long life of an arena is played: rounds of objects that come, change and go, each ended by a
//! commit or a retire. Of every round all writes and flushes are recorded, and power is lost at
//! every point of it, with what was written since the last flush there or not, in any order, torn
//! into pieces of 8 bytes or 4 KiB. What is left must open, and be one of the two states to the
//! last byte; and it must be of use.
//!
//! `LUO_CRASH_REPLAYS` is how many crashes to play, `LUO_CRASH_SEED` the seed of the first life.

mod faults;
mod medium;

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use luo_abi::arena::{ArenaError, Kind};
use luo_core::{Errno, Failure, Handle};
use rustix::fs::{MemfdFlags, memfd_create};

use super::copy;
use super::file::FileMedium;
use super::medium::{Extent, Medium};
use super::resident::Reserved;
use super::store::Arena;
use super::view::{View, cause};
use crate::io_failure;
use medium::{Loss, Op, Recorder, after_crash};

const MACHINE: [u8; 16] = [3; 16];
const SIZE: usize = 1 << 20;
/// How many crashes are played in a round.
const CRASHES: usize = 60;

/// A small generator of numbers with a seed (xorshift), so that a failing case can be found again.
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        let mut random = Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        random.next();
        random
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, end: usize) -> usize {
        ((self.next() >> 11) % end.max(1) as u64) as usize
    }

    /// Bytes without a pattern, with pages of zeros among them.
    fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        for page in bytes.chunks_mut(4096) {
            if self.below(4) > 0 {
                let words = page.chunks_mut(8);
                words.for_each(|word| {
                    word.copy_from_slice(&self.next().to_le_bytes()[..word.len()])
                });
            }
        }
        bytes
    }
}

/// What an arena holds, in full.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct State {
    handover: Option<Vec<u8>>,
    objects: BTreeMap<u64, Vec<u8>>,
}

fn memfd(bytes: &[u8]) -> OwnedFd {
    let file = File::from(memfd_create("luo-test", MemfdFlags::CLOEXEC).unwrap());
    file.write_all_at(bytes, 0).unwrap();
    file.into()
}

/// What is on the medium, all of it verified.
fn read(medium: &dyn Medium) -> Result<State, Failure> {
    let view = View::read(medium, Some(&MACHINE))?;
    view.check(medium, true, &|_, _| Ok(()))?;
    let handover = view.handover(medium)?;
    let named = view.superblock().catalogue.map(|place| place.handover);
    let mut objects = BTreeMap::new();
    for object in &view.catalogue.objects {
        if Some(object.handle) == named {
            continue;
        }
        let mut bytes = match &object.kind {
            Kind::Inline(bytes) => bytes.to_vec(),
            _ => vec![0; object.len as usize],
        };
        for piece in object.pieces.iter() {
            let from = piece.logical as usize;
            let to = (from + piece.len as usize).min(bytes.len());
            medium.read_at(piece.offset, &mut bytes[from..to]).unwrap();
        }
        objects.insert(object.handle, bytes);
    }
    Ok(State { handover, objects })
}

/// Nothing, where there was no room for it.
fn full<T>(failure: Failure) -> Result<Option<T>, Failure> {
    if failure.errno() == Errno::NoSpc { Ok(None) } else { Err(failure) }
}

/// An arena, and what is expected of it.
struct Life {
    arena: Arena,
    recorder: Arc<Recorder>,
    random: Random,
    live: State,
}

impl Life {
    fn begin(seed: u64) -> Self {
        Self::on(Recorder::new(vec![0; SIZE]), seed)
    }

    fn on(recorder: Recorder, seed: u64) -> Self {
        let recorder = Arc::new(recorder);
        let arena =
            Arena::create(Arc::clone(&recorder) as Arc<dyn Medium>, MACHINE, false).unwrap();
        recorder.take_log();
        Self { arena, recorder, random: Random::new(seed), live: State::default() }
    }

    fn random_handle(&mut self) -> Option<u64> {
        let at = self.random.below(self.live.objects.len());
        self.live.objects.keys().nth(at).copied()
    }

    /// Objects come, change and go. What fails for want of room is left out.
    fn work(&mut self) -> Result<(), Failure> {
        for _ in 0..self.random.below(6) {
            match self.random.below(6) {
                0 | 1 => {
                    let len = self.random.below(60_000);
                    let bytes = self.random.bytes(len);
                    let file = memfd(&bytes);
                    let kept = self.arena.put_memory(|medium, space| {
                        copy::copy_in(file.as_fd(), len as u64, medium, space, &|_, _| Ok(()))
                    });
                    if let Some(handle) = kept.map(Some).or_else(full)? {
                        self.live.objects.insert(handle.0, bytes);
                    }
                }
                2 => {
                    let len = [10, 1500, 9000, 80_000][self.random.below(4)];
                    let len = self.random.below(len);
                    let bytes = self.random.bytes(len);
                    if let Some(handle) = self.arena.put_bytes(&bytes).map(Some).or_else(full)? {
                        self.live.objects.insert(handle.0, bytes);
                    }
                }
                3 => {
                    let len = 1 + self.random.below(60_000);
                    if let Some(reserved) =
                        self.arena.reserve(len as u64).map(Some).or_else(full)?
                    {
                        self.keep_resident(&reserved)?;
                    }
                }
                4 => {
                    if let Some(handle) = self.random_handle() {
                        self.renew(handle)?;
                    }
                }
                _ => {
                    if let Some(handle) = self.random_handle() {
                        self.remove(handle);
                    }
                }
            }
        }
        Ok(())
    }

    /// Memory that is written where it lies, before and after it is kept.
    fn keep_resident(&mut self, reserved: &Reserved) -> Result<(), Failure> {
        let Extent { offset, len } = reserved.extent();
        let mut found = vec![1; len as usize];
        self.recorder.read_at(offset, &mut found).unwrap();
        assert!(found.iter().all(|byte| *byte == 0), "what was there before is seen");
        let mut bytes = self.random.bytes(len as usize);
        self.recorder.write_at(offset, &bytes).map_err(|error| io_failure(error, "written"))?;
        match self.arena.keep_reserved(reserved) {
            Ok(handle) => {
                assert_eq!(self.arena.keep_reserved(reserved).unwrap_err().errno(), Errno::Busy);
                bytes[0] = 3;
                if let Err(error) = self.recorder.write_at(offset, &bytes[..1]) {
                    self.arena.remove(handle);
                    return Err(io_failure(error, "written"));
                }
                self.live.objects.insert(handle.0, bytes);
                Ok(())
            }
            Err(failure) if failure.errno() == Errno::NoSpc => Ok(()),
            Err(failure) => Err(failure),
        }
    }

    fn remove(&mut self, handle: u64) {
        self.arena.remove(Handle(handle));
        self.live.objects.remove(&handle);
    }

    fn renew(&mut self, handle: u64) -> Result<(), Failure> {
        if self.arena.memory(Handle(handle)).is_err() {
            return Ok(());
        }
        let mut bytes = self.live.objects[&handle].clone();
        let len = self.random.below(80_000);
        bytes.resize(len, 7);
        let at = self.random.below(len.max(1));
        let new = self.random.bytes((len - at.min(len)).min(9000));
        bytes[at.min(len)..][..new.len()].copy_from_slice(&new);
        let file = memfd(&bytes);
        let renewed = self.arena.renew_memory(Handle(handle), |chunks, medium, space| {
            copy::refresh(chunks, file.as_fd(), len as u64, medium, space, &|_, _| Ok(()))
        });
        match renewed {
            Ok(()) => {
                self.live.objects.insert(handle, bytes);
                Ok(())
            }
            Err(failure) if failure.errno() == Errno::NoSpc => {
                self.remove(handle);
                Ok(())
            }
            Err(failure) => Err(failure),
        }
    }

    /// Ends a round, and says what the arena holds then.
    fn end(&mut self) -> Result<State, Failure> {
        if self.random.below(4) == 0 {
            self.arena.retire()?;
            return Ok(State::default());
        }
        let len = self.random.below(3000);
        let handover = self.random.bytes(len);
        self.arena.commit(&handover)?;
        Ok(State { handover: Some(handover), objects: self.live.objects.clone() })
    }

    /// A new process.
    fn reopen(&mut self, standing: &State) {
        let medium = Arc::clone(&self.recorder) as Arc<dyn Medium>;
        self.arena = Arena::open(medium, MACHINE).unwrap();
        assert_eq!(self.arena.found(), standing.handover);
        self.live = State { handover: None, objects: standing.objects.clone() };
        for (handle, bytes) in &self.live.objects {
            match self.arena.bytes(Handle(*handle)) {
                Ok(found) => assert_eq!(found, *bytes),
                Err(_) => {
                    let stored = self.arena.stored(Handle(*handle)).unwrap();
                    assert_eq!(stored.object.len, bytes.len() as u64);
                }
            }
        }
    }
}

fn number(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name} is no number: {text}")),
        Err(_) => default,
    }
}

/// What is reused from crash to crash, since memory that the kernel has to clear takes longer than
/// all that is done with it.
struct Scene {
    image: Vec<u8>,
    recorder: Arc<Recorder>,
    loss: Loss,
}

impl Scene {
    fn new() -> Self {
        Self::losing(Loss::SinceFlush)
    }

    fn losing(loss: Loss) -> Self {
        Self { image: Vec::new(), recorder: Arc::new(Recorder::new(vec![0; SIZE])), loss }
    }

    /// Power fails after the first `done` operations; what is left is on the medium.
    fn crash(&mut self, before: &[u8], log: &[Op], done: usize, random: &mut Random) -> &Recorder {
        after_crash(&mut self.image, before, log, done, self.loss, random);
        self.recorder.reset(&self.image);
        &self.recorder
    }
}

/// Plays crashes at the points of a round. Each leaves one of the two states.
fn crash(
    scenes: &mut [Scene; 2],
    (before, log): (&[u8], &[Op]),
    (old, new): (&State, &State),
    random: &mut Random,
    what: &str,
) -> usize {
    let [scene, other] = scenes;
    let mut seen_old = 0;
    for number in 0..CRASHES {
        // The beginning and the end of the round are always among them.
        let done = match number {
            0 => 0,
            1 => log.len(),
            // Most of what can go wrong is near the end.
            _ if random.below(2) == 0 => log.len() - random.below(log.len().min(8) + 1),
            _ => random.below(log.len() + 1),
        };
        let left = scene.crash(before, log, done, random);
        let state = read(left).unwrap_or_else(|error| panic!("{what}, after {done}: {error}"));
        assert!(state == *old || state == *new, "{what}, after {done}: neither old nor new");
        assert!(done > 0 || state == *old, "{what}: nothing was done yet");
        assert!(done < log.len() || state == *new, "{what}: it was done");
        seen_old += usize::from(state == *old);
        if random.below(3) == 0 {
            recover(scene, other, &state, random, what);
        }
    }
    seen_old
}

/// Opens what a crash has left. Power fails again while that is done, and later once more.
fn recover(scene: &mut Scene, other: &mut Scene, state: &State, random: &mut Random, what: &str) {
    let recorder = Arc::clone(&scene.recorder);
    let arena = Arena::open(Arc::clone(&recorder) as Arc<dyn Medium>, MACHINE).unwrap();
    assert_eq!(arena.found(), state.handover);
    let mut log = recorder.take_log();
    let done = random.below(log.len() + 1);
    let left = other.crash(&scene.image, &log, done, random);
    assert_eq!(read(left).unwrap(), *state, "{what}: a crash while it was opened");
    // It is of use: everything that is free can be written over, and the state stands.
    let fill = (arena.free() as usize).min(200_000);
    if fill > 150_000 {
        arena.put_bytes(&random.bytes(fill - 150_000)).unwrap();
    }
    log.extend(recorder.take_log());
    let left = other.crash(&scene.image, &log, log.len(), random);
    assert_eq!(read(left).unwrap(), *state, "{what}: a crash after a crash");
    if arena.commit(b"next").is_ok() {
        assert_eq!(read(&*recorder).unwrap().handover.unwrap(), b"next");
    }
}

/// Plays crashes until there were so many, in lives on the media that `medium` makes, and says how
/// many there were.
fn play(replays: usize, loss: Loss, medium: impl Fn() -> Recorder) -> usize {
    let first = number("LUO_CRASH_SEED", 1);
    let (mut played, mut seen_old, mut seed) = (0, 0, first);
    let mut scenes = [Scene::losing(loss), Scene::losing(loss)];
    while played < replays {
        let mut life = Life::on(medium(), seed);
        let mut standing = State::default();
        for round in 0..12 {
            let what = format!("seed {seed}, round {round}");
            let before = life.recorder.image();
            life.work().unwrap();
            let new = life.end().unwrap();
            let log = life.recorder.take_log();
            assert_eq!(read(&*life.recorder).unwrap(), new, "{what}");
            if log.is_empty() {
                continue;
            }
            let mut random = Random::new(seed * 1000 + round);
            let states = (&standing, &new);
            seen_old += crash(&mut scenes, (&before, &log), states, &mut random, &what);
            played += CRASHES;
            standing = new;
            if random.below(4) == 0 {
                life.reopen(&standing);
                life.recorder.take_log();
            }
        }
        seed += 1;
    }
    // Both must have been seen often, or the crashes test nothing.
    assert!(
        seen_old > played / 10 && seen_old < played * 9 / 10,
        "{seen_old} of {played} were old"
    );
    played
}

#[test]
fn after_a_loss_of_power_the_old_or_the_new_state_is_there_whole() {
    let replays = number("LUO_CRASH_REPLAYS", 10_000) as usize;
    play(replays, Loss::SinceFlush, || Recorder::new(vec![0; SIZE]));
}

#[test]
fn on_a_mapped_medium_too_the_old_or_the_new_state_is_there_whole() {
    let replays = number("LUO_CRASH_REPLAYS", 10_000) as usize / 5;
    let mapped = || {
        let file = File::from(memfd_create("luo-test", MemfdFlags::CLOEXEC).unwrap());
        file.set_len(SIZE as u64).unwrap();
        Recorder::mapped(FileMedium::of_memory(file))
    };
    // As it is flushed by system calls, and as it is durable by its writes.
    for loss in [Loss::SinceFlush, Loss::LastWrite] {
        assert!(play(replays, loss, mapped) >= replays);
    }
}

#[test]
fn a_crash_while_an_arena_is_created_leaves_none_or_an_empty_one() {
    let mut random = Random::new(5);
    // Over nothing, and over an arena that holds a handover.
    let old = Life::begin(3);
    old.arena.put_bytes(b"kept").unwrap();
    old.arena.commit(b"handover").unwrap();
    let held = read(&*old.recorder).unwrap();
    for (before, old) in [(vec![0; SIZE], None), (old.recorder.image(), Some(held))] {
        let recorder = Arc::new(Recorder::new(before.clone()));
        Arena::create(Arc::clone(&recorder) as Arc<dyn Medium>, MACHINE, old.is_some()).unwrap();
        let log = recorder.take_log();
        let mut seen = [0, 0, 0];
        let mut scene = Scene::new();
        for number in 0..500 {
            let done = number % (log.len() + 1);
            scene.crash(&before, &log, done, &mut random);
            let recorder = Arc::clone(&scene.recorder);
            match (read(&*recorder), &old) {
                (Ok(state), _) if state == State::default() => seen[0] += 1,
                (Ok(state), Some(old)) if state == *old => seen[1] += 1,
                (Err(failure), None) => {
                    // Torn in the middle of the first write, or not begun: nothing is lost.
                    assert!(matches!(
                        cause(&failure),
                        Some(ArenaError::NeverFormatted | ArenaError::Superblocks { .. })
                    ));
                    seen[2] += 1;
                }
                other => panic!("after {done}: {other:?}"),
            }
            let medium = Arc::clone(&recorder) as Arc<dyn Medium>;
            Arena::create(medium, MACHINE, true).expect("it can be created again");
            assert_eq!(read(&*recorder).unwrap(), State::default());
        }
        assert!(seen[0] > 50 && seen[1] + seen[2] > 50, "{seen:?}");
    }
}

#[test]
fn damage_to_one_superblock_is_harmless_while_the_arena_is_at_rest() {
    for seed in 1..20 {
        let mut life = Life::begin(seed);
        for _ in 0..4 {
            life.work().unwrap();
            let state = life.end().unwrap();
            for place in [0, 4096] {
                let mut image = life.recorder.image();
                image[place + life.random.below(4096)] ^= 0x10;
                let recorder = Arc::new(Recorder::new(image));
                assert_eq!(read(&*recorder).unwrap(), state);
                let medium = Arc::clone(&recorder) as Arc<dyn Medium>;
                Arena::open(medium, MACHINE).expect("it is mended");
                assert_eq!(recorder.image(), life.recorder.image(), "it is mended");
            }
        }
    }
}
