//! Every write and every flush of a round fails, once or from then on.

use super::medium::Fault;
use super::*;

const EIO: i32 = 5;
const ENOSPC: i32 = 28;

/// A life after some rounds, always the same.
fn life(seed: u64) -> (Life, State) {
    let mut life = Life::begin(seed);
    let mut standing = State::default();
    for _ in 0..3 {
        life.work().unwrap();
        standing = life.end().unwrap();
    }
    life.recorder.take_log();
    (life, standing)
}

/// One round, in which an operation may fail.
fn round(life: &mut Life, random: &mut Random) -> (Result<(), Failure>, State) {
    life.random = Random::new(random.next());
    let handover = b"the next".to_vec();
    let result = life.work().and_then(|()| life.arena.commit(&handover));
    (result, State { handover: Some(handover), objects: life.live.objects.clone() })
}

#[test]
fn when_a_write_or_flush_fails_the_old_state_stands_and_the_arena_is_of_use() {
    let (mut failed, mut in_doubt, mut refused) = (0, 0, 0);
    let mut scene = Scene::new();
    for seed in 1..12_u64 {
        let count = {
            let (mut life, _) = life(seed);
            life.recorder.set_fault(None);
            let (result, _) = round(&mut life, &mut Random::new(seed));
            result.unwrap();
            life.recorder.count()
        };
        for at in 0..count {
            for (forever, errno) in [(false, EIO), (false, ENOSPC), (true, EIO)] {
                let what = format!("seed {seed}, operation {at}, forever: {forever}");
                let (mut life, old) = life(seed);
                let before = life.recorder.image();
                life.recorder.set_fault(Some(Fault { at, forever, errno, torn: at % 2 == 0 }));
                let (result, new) = round(&mut life, &mut Random::new(seed));
                life.recorder.set_fault(None);
                let mut log = life.recorder.take_log();
                let mut random = Random::new(seed * 1000 + at as u64);
                // What stands after the error is certain, unless the medium has failed for good.
                let certain = !forever;
                let stands = if result.is_ok() { &new } else { &old };
                if certain {
                    assert_eq!(read(&*life.recorder).unwrap(), *stands, "{what}");
                }
                for _ in 0..4 {
                    let left = scene.crash(&before, &log, log.len(), &mut random);
                    let state = read(left).unwrap_or_else(|error| panic!("{what}: {error}"));
                    assert!(
                        state == *stands || !certain && (state == old || state == new),
                        "{what}: {:?} of {} objects stands",
                        state.handover.map(|handover| handover.len()),
                        state.objects.len(),
                    );
                }
                if let Err(failure) = &result {
                    failed += 1;
                    let expected = if errno == EIO { Errno::Io } else { Errno::NoSpc };
                    assert_eq!(failure.errno(), expected, "{what}: {failure}");
                    in_doubt += usize::from(failure.reason().contains("whether it holds"));
                }
                let mut again = Again { scene: &mut scene, random: &mut random, what: &what };
                // A doubt is left for what comes next to meet.
                let retried = if forever { None } else { again.retry(&life, &before, &mut log) };
                refused += usize::from(retried.is_none());
                let stood = retried.map_or(vec![old, new], |state| vec![state]);
                again.use_it(life, &before, log, &stood);
            }
        }
    }
    assert!(failed > 100, "{failed} rounds failed");
    assert!(refused > 50, "{refused} rounds could not be tried again");
    assert!(in_doubt > 0, "a medium that fails for good leaves a doubt");
}

/// What comes after a round that failed.
struct Again<'a> {
    scene: &'a mut Scene,
    random: &'a mut Random,
    what: &'a str,
}

impl Again<'_> {
    /// The same is committed once more, without anything being kept again. Either it is refused,
    /// or it is all there, whatever the failed flushes have lost.
    fn retry(&mut self, life: &Life, before: &[u8], log: &mut Vec<Op>) -> Option<State> {
        let what = self.what;
        let result = life.arena.commit(b"retried");
        log.extend(life.recorder.take_log());
        if let Err(failure) = result {
            assert_eq!(failure.errno(), Errno::Io, "{what}: {failure}");
            assert!(failure.reason().contains("keep it again"), "{what}: {failure}");
            return None;
        }
        let objects = life.live.objects.clone();
        let state = State { handover: Some(b"retried".to_vec()), objects };
        for _ in 0..4 {
            let left = self.scene.crash(before, log, log.len(), self.random);
            let left = read(left).unwrap_or_else(|error| panic!("{what}, retried: {error}"));
            assert!(left == state, "{what}: retried");
        }
        Some(state)
    }

    /// What can no longer be trusted goes, and something new is committed; a crash at any point of
    /// that leaves what stood before, or the new.
    fn use_it(self, mut life: Life, before: &[u8], mut log: Vec<Op>, stood: &[State]) {
        let Self { scene, random, what } = self;
        let handles: Vec<u64> = life.live.objects.keys().copied().collect();
        handles.into_iter().for_each(|handle| life.remove(handle));
        // What was kept by the call that failed is unknown here, and gone.
        let bytes = random.bytes(30_000);
        let handle = life.arena.put_bytes(&bytes).unwrap_or_else(|error| panic!("{what}: {error}"));
        life.arena.commit(b"after").unwrap_or_else(|error| panic!("{what}: {error}"));
        let after = read(&*life.recorder).unwrap();
        assert_eq!(after.handover.as_deref(), Some(&b"after"[..]), "{what}");
        assert_eq!(after.objects.get(&handle.0), Some(&bytes), "{what}");
        let from = log.len();
        log.extend(life.recorder.take_log());
        for done in from..=log.len() {
            let left = scene.crash(before, &log, done, random);
            let state = read(left).unwrap_or_else(|error| panic!("{what}, again: {error}"));
            let expected = state == after || stood.contains(&state);
            assert!(expected, "{what}, again: {done} of {}", log.len());
            assert!(done < log.len() || state == after, "{what}, again: it was done");
        }
    }
}

#[test]
fn an_arena_that_cannot_be_mended_is_not_opened() {
    let (life, standing) = life(4);
    let mut image = life.recorder.image();
    image[100] ^= 1;
    let recorder = Arc::new(Recorder::new(image.clone()));
    recorder.set_fault(Some(Fault { at: 0, forever: true, errno: EIO, torn: false }));
    let error = Arena::open(Arc::clone(&recorder) as Arc<dyn Medium>, MACHINE).unwrap_err();
    assert_eq!(error.errno(), Errno::Io);
    assert_eq!(read(&Recorder::new(image)).unwrap(), standing, "and nothing is lost");
}

#[test]
fn the_old_state_is_whole_as_long_as_a_superblock_leads_to_it() {
    // Of a commit, the last two operations write the superblock at the other place and flush it.
    let mut seen = [0; 3];
    for (seed, errno) in [(1, EIO), (2, ENOSPC), (6, EIO)] {
        for back in [2, 1] {
            let count = {
                let (life, _) = life(seed);
                life.recorder.set_fault(None);
                life.arena.commit(b"new").unwrap();
                life.recorder.count()
            };
            let (mut life, old) = life(seed);
            life.recorder.set_fault(Some(Fault {
                at: count - back,
                forever: false,
                errno,
                torn: false,
            }));
            life.arena.commit(b"new").expect("the switch is done");
            life.recorder.set_fault(None);
            let handles: Vec<u64> = life.live.objects.keys().copied().collect();
            handles.into_iter().for_each(|handle| life.remove(handle));
            while life.arena.put_bytes(&[0xee; 5000]).is_ok() {}
            assert_eq!(read(&*life.recorder).unwrap().handover.unwrap(), b"new");
            let mut image = life.recorder.image();
            let found = View::read(&*life.recorder, None).unwrap().found;
            image[[0, 4096][found.place] + 64] ^= 1;
            // The failed write has torn the other one, or it says the same as the damaged one, or
            // it still leads to the old state.
            match read(&Recorder::new(image)) {
                Ok(state) if state == old => seen[0] += 1,
                Ok(state) if state.handover.as_deref() == Some(b"new") => seen[1] += 1,
                Ok(_) => panic!("seed {seed}: neither old nor new"),
                Err(failure) => {
                    let cause = cause(&failure);
                    assert!(matches!(cause, Some(ArenaError::Superblocks { .. })), "{failure}");
                    seen[2] += 1;
                }
            }
        }
    }
    assert!(seen[0] > 0 && seen[1] > 0, "{seen:?}");
}
