//! Memory in the arena from the start: updates leave it where it is, and nobody else ever gets it
//! while anybody has it.

mod common;

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use common::{Luod, errno};
use luo::{Memory, MemoryError, OnClose, Policy, Session, State, Unclaimed};
use luo_carriers::arena::{self, Arena, FileMedium};
use tempfile::TempDir;

const MIB: u64 = 1 << 20;

struct Place {
    directory: TempDir,
}

impl Place {
    fn new(size: u64) -> Self {
        Self::within(&std::env::temp_dir(), size)
    }

    fn within(directory: &Path, size: u64) -> Self {
        let place = Self { directory: tempfile::tempdir_in(directory).unwrap() };
        let medium = FileMedium::create(&place.path(), size).unwrap();
        Arena::create(Arc::new(medium), arena::machine_id().unwrap(), false).unwrap();
        place
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("arena")
    }

    fn luod(&self) -> Luod {
        Luod::start_with(&format!("arena = {:?}", self.path()))
    }
}

/// A page that tells whose it is and where.
fn page(seed: u64, at: u64) -> Vec<u8> {
    (0..512_u64).flat_map(|word| (seed ^ (at << 8) ^ (word << 40)).to_le_bytes()).collect()
}

fn fill(memory: &Memory, seed: u64) {
    for at in (0..memory.len()).step_by(4096) {
        let len = (memory.len() - at).min(4096) as usize;
        memory.write_at(at, &page(seed, at)[..len]).unwrap();
    }
}

fn assert_filled(memory: &Memory, seed: u64) {
    let mut buffer = vec![0; 4096];
    for at in (0..memory.len()).step_by(4096) {
        let len = (memory.len() - at).min(4096) as usize;
        memory.read_at(at, &mut buffer[..len]).unwrap();
        assert!(buffer[..len] == page(seed, at)[..len], "seed {seed}, byte {at}");
    }
}

fn assert_zero(memory: &Memory) {
    let mut buffer = vec![1; memory.len() as usize];
    memory.read_at(0, &mut buffer).unwrap();
    assert!(buffer.iter().all(|byte| *byte == 0));
}

fn resident(session: &Session, token: u64, len: u64) -> Memory {
    let memory = session.allocate(token, len).unwrap();
    assert!(memory.is_resident());
    memory
}

fn overlap(one: &Memory, other: &Memory) -> bool {
    one.offset() < other.offset() + other.len() && other.offset() < one.offset() + one.len()
}

fn kill_worker(luod: &Luod) {
    let before = luod.worker();
    luod.kill_worker();
    luod.wait("another worker", || luod.worker() != before);
}

fn depart(luod: &mut Luod) {
    let manager = luod.manager();
    manager.prepare_through("arena").unwrap();
    manager.freeze().unwrap();
    manager.depart().unwrap();
    luod.wait_for_end();
    assert_eq!(luod.exit_status(), Some(3), "{}", luod.log());
}

fn finish(luod: &Luod, shop: &Session) {
    shop.finish_and_carry().unwrap();
    luod.manager().finish(Unclaimed::Refuse).unwrap();
}

/// Where it is when the machine goes over again and again, on every medium there is here.
#[test]
fn memory_stays_where_it_is_however_often_the_machine_goes_over() {
    for directory in [std::env::temp_dir(), PathBuf::from("/dev/shm")] {
        if !directory.is_dir() {
            println!("SKIPPED: no {}", directory.display());
            continue;
        }
        let place = Place::within(&directory, 32 * MIB);
        let mut luod = place.luod();
        let shop = luod.session("shop");
        let (memory, odd) = (resident(&shop, 1, 8 * MIB), resident(&shop, 2, 12_345));
        assert_zero(&memory);
        assert_zero(&odd);
        assert_eq!((memory.len(), odd.len()), (8 * MIB, 12_345));
        assert!(memory.offset().is_multiple_of(2 * MIB), "for huge pages");
        assert!(odd.offset().is_multiple_of(4096) && !overlap(&memory, &odd));
        let (place_of, place_of_odd) = (memory.offset(), odd.offset());
        fill(&memory, 0);
        fill(&odd, 100);
        let ordinary = Memory::create("ordinary", MIB).unwrap();
        fill(&ordinary, 7);
        shop.preserve(3, &ordinary).unwrap();
        drop((memory, odd, ordinary, shop));
        for round in 0..3 {
            depart(&mut luod);
            luod = place.luod();
            let shop = luod.session("shop");
            assert!(shop.is_updated().unwrap());
            let memory = shop.retrieve_memory(1).unwrap();
            let odd = Memory::try_from(shop.retrieve(2).unwrap()).unwrap();
            assert!(memory.is_resident() && odd.is_resident());
            assert_eq!((memory.offset(), memory.len()), (place_of, 8 * MIB));
            assert_eq!((odd.offset(), odd.len()), (place_of_odd, 12_345));
            assert_filled(&memory, round);
            assert_filled(&odd, 100);
            let ordinary = shop.retrieve_memory(3).unwrap();
            assert!(!ordinary.is_resident());
            assert_filled(&ordinary, 7);
            // A worker that dies on the other side loses nothing of it.
            kill_worker(&luod);
            assert_filled(&shop.retrieve_memory(1).unwrap(), round);
            finish(&luod, &shop);
            fill(&memory, round + 1);
        }
    }
}

#[test]
fn memory_lives_through_workers_services_and_upgrades() {
    let place = Place::new(32 * MIB);
    let mut luod = place.luod();
    let shop = luod.session("shop");
    let memory = resident(&shop, 1, 4 * MIB);
    fill(&memory, 1);
    kill_worker(&luod);
    // The next worker knows what is lent.
    let second = resident(&shop, 2, 4 * MIB);
    assert!(!overlap(&memory, &second));
    assert_zero(&second);
    luod.manager().upgrade(None, common::PATIENCE, false).unwrap();
    let third = resident(&shop, 3, 4 * MIB);
    assert!(!overlap(&memory, &third) && !overlap(&second, &third));
    fill(&second, 2);
    fill(&third, 3);
    // The service is restarted: a live update of its own, in the keeper.
    drop((memory, second, third, shop));
    let shop = luod.session("shop");
    assert!(shop.is_updated().unwrap());
    for token in 1..4 {
        let memory = shop.retrieve_memory(token).unwrap();
        assert!(memory.is_resident());
        assert_filled(&memory, token);
    }
    shop.finish_and_carry().unwrap();
    // A rehearsal, and a worker that dies when all is frozen, undo all of it.
    let needs = luod.manager().rehearse_through("arena").unwrap().needs.unwrap();
    assert!(needs.sessions[0].bytes < 4096, "{needs:?}");
    assert!(needs.bytes < MIB, "{needs:?}");
    assert!(needs.free.unwrap() < 21 * MIB, "{needs:?}");
    luod.manager().prepare_through("arena").unwrap();
    luod.manager().freeze().unwrap();
    kill_worker(&luod);
    assert_eq!(luod.manager().status().unwrap().state, State::Normal);
    let other = resident(&shop, 4, MIB);
    fill(&other, 4);
    drop((shop, other));
    luod.wait("it departs", || luod.manager().sessions().unwrap()[0].state == State::Frozen);
    depart(&mut luod);
    let luod = place.luod();
    let shop = luod.session("shop");
    for token in 1..5 {
        assert_filled(&shop.retrieve_memory(token).unwrap(), token);
    }
}

#[test]
fn a_range_is_free_only_when_nobody_has_it_any_more() {
    let place = Place::new(16 * MIB);
    let luod = place.luod();
    let policy = Policy { on_close: OnClose::Release, ttl_seconds: None };
    let shop = Session::open_with("shop", luod.options().policy(policy)).unwrap();
    let memory = resident(&shop, 1, 10 * MIB);
    fill(&memory, 1);
    shop.unpreserve(1).unwrap();
    // luod has let go of it, and this process has not: nobody else gets it.
    let other = shop.allocate(2, 10 * MIB).unwrap();
    assert!(!other.is_resident(), "there is no room for both");
    shop.unpreserve(2).unwrap();
    assert_filled(&memory, 1);
    // Nor by a luod that knows nothing of the one before.
    drop((shop, luod));
    let luod = place.luod();
    let shop = Session::open_with("shop", luod.options().policy(policy)).unwrap();
    assert!(!shop.allocate(3, 10 * MIB).unwrap().is_resident());
    assert_filled(&memory, 1);
    let small = resident(&shop, 4, 2 * MIB);
    assert!(!overlap(&memory, &small));
    drop(memory);
    // It is zero again, whatever was in it.
    let again = resident(&shop, 5, 10 * MIB);
    assert_zero(&again);
    // The policy ends the session, and that is the end of both.
    drop((again, small, shop));
    luod.wait("it is released", || luod.manager().sessions().unwrap().is_empty());
    let shop = luod.session("next");
    assert_zero(&resident(&shop, 1, 12 * MIB));
}

#[test]
fn memory_of_the_other_side_is_freed_by_finish_unless_it_goes_on() {
    let place = Place::new(16 * MIB);
    let mut luod = place.luod();
    let shop = luod.session("shop");
    for token in [1, 2, 3] {
        fill(&resident(&shop, token, 4 * MIB), token);
    }
    drop(shop);
    depart(&mut luod);
    let luod = place.luod();
    let shop = luod.session("shop");
    let kept = shop.retrieve_memory(1).unwrap();
    assert_filled(&kept, 1);
    // What nobody retrieves is released; what was retrieved is this process's alone.
    shop.finish_with(Unclaimed::Release, false).unwrap();
    luod.manager().finish(Unclaimed::Refuse).unwrap();
    assert_eq!(shop.info().unwrap().files, [] as [u64; 0]);
    let new = resident(&shop, 7, 8 * MIB);
    assert!(!overlap(&kept, &new));
    assert_zero(&new);
    assert_filled(&kept, 1);
    // It can be given again.
    shop.preserve(1, &kept).unwrap();
    assert_eq!(luod.manager().rehearse_through("arena").unwrap().state, State::Normal);
}

#[test]
fn a_failed_update_leaves_the_memory_in_use() {
    let place = Place::new(16 * MIB);
    let luod = place.luod();
    let shop = luod.session("shop");
    let memory = resident(&shop, 1, 4 * MIB);
    fill(&memory, 1);
    let (reader, _writer) = common::pipe();
    shop.preserve(2, &reader).unwrap();
    assert_eq!(errno(luod.manager().prepare_through("arena")), "EOPNOTSUPP");
    shop.unpreserve(2).unwrap();
    // Of another arena: a descriptor that only looks like one.
    let elsewhere = Place::new(8 * MIB);
    let other = elsewhere.luod();
    let foreign = resident(&other.session("shop"), 1, MIB);
    shop.preserve(3, &foreign).unwrap();
    match luod.manager().prepare_through("arena") {
        Err(luo::Error::Refused(refusal)) => {
            assert_eq!(refusal.errno, "EOPNOTSUPP");
            assert!(refusal.reason.contains("not in this arena"), "{refusal}");
        }
        other => panic!("{other:?}"),
    }
    shop.unpreserve(3).unwrap();
    fill(&memory, 2);
    luod.manager().prepare_through("arena").unwrap();
    luod.manager().cancel().unwrap();
    luod.manager().rehearse_through("arena").unwrap();
    assert_filled(&memory, 2);
}

#[test]
fn without_an_arena_the_same_calls_give_ordinary_memory() {
    let luod = Luod::start();
    let shop = luod.session("shop");
    let mut memory = shop.allocate(1, MIB).unwrap();
    assert!(!memory.is_resident());
    assert_zero(&memory);
    fill(&memory, 1);
    memory.grow(2 * MIB).unwrap();
    drop(shop);
    let shop = luod.session("shop");
    let again = shop.retrieve_memory(1).unwrap();
    assert_eq!(again.len(), 2 * MIB);
    // The token is the file's like any other's.
    shop.finish_and_carry().unwrap();
    assert_eq!(errno(shop.allocate(1, MIB)), "EEXIST");
}

#[test]
fn what_cannot_be_is_refused_and_nothing_is_lost() {
    let place = Place::new(8 * MIB);
    let luod = place.luod();
    let shop = luod.session("shop");
    let mut memory = resident(&shop, 1, MIB);
    assert!(matches!(memory.grow(2 * MIB), Err(MemoryError::Fixed { .. })));
    memory.grow(MIB).unwrap();
    assert_eq!(errno(shop.allocate(1, MIB)), "EEXIST");
    assert_eq!(errno(shop.preserve(9, memory.as_fd())), "EBUSY");
    luod.manager().prepare_through("arena").unwrap();
    assert_eq!(errno(shop.allocate(2, MIB)), "EBUSY");
    luod.manager().cancel().unwrap();
    // What was refused is free again.
    let rest = resident(&shop, 2, 5 * MIB);
    assert!(!overlap(&memory, &rest));
    assert_eq!(shop.info().unwrap().files, [1, 2]);
    // Its bytes count.
    assert_eq!(luod.manager().sessions().unwrap()[0].pinned, 6 * MIB);
}
