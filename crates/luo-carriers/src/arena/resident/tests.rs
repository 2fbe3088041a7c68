use std::os::fd::AsFd;
use std::path::PathBuf;

use luo_sys::Memory;

use super::super::{Access, FileMedium, View};
use super::*;

const MACHINE: [u8; 16] = [7; 16];
const MIB: u64 = 1 << 20;

struct Place(tempfile::TempDir);

impl Place {
    fn new(size: u64) -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        let medium = FileMedium::create(&place.path(), size).unwrap();
        Arena::create(Arc::new(medium), MACHINE, false).unwrap();
        place
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("arena")
    }

    fn arena(&self) -> Arena {
        let medium = FileMedium::open(&self.path(), Access::Exclusive).unwrap();
        Arena::open(Arc::new(medium), MACHINE).unwrap()
    }
}

fn memory(fd: OwnedFd) -> Memory {
    let memory = Memory::from_fd(fd).unwrap();
    assert!(memory.is_resident());
    memory
}

#[test]
fn what_was_written_where_it_lies_is_there_for_the_next_process() {
    let place = Place::new(16 * MIB);
    let (handle, offset) = {
        let arena = place.arena();
        let lent = arena.lend(3 * MIB).unwrap();
        let handle = arena.put_lent(lent.as_fd()).unwrap();
        assert_eq!(arena.put_lent(lent.as_fd()).unwrap_err().errno(), Errno::Busy);
        assert_eq!(arena.bytes(handle).unwrap_err().errno(), Errno::NoEnt);
        assert_eq!(arena.memory(handle).unwrap_err().errno(), Errno::NoEnt);
        let memory = memory(lent);
        memory.write_at(MIB, b"here").unwrap();
        arena.commit(b"handover").unwrap();
        (handle, memory.offset())
    };
    let arena = place.arena();
    let view = View::read(arena.medium(), Some(&MACHINE)).unwrap();
    assert_eq!(view.superblock().version(), 3);
    // Nobody has verified it, and that is told.
    let checked = view.check(arena.medium(), true, &|_, _| Ok(())).unwrap();
    assert_eq!((checked.objects, checked.skipped), (2, 3 * MIB));
    let (one, two) = (arena.lend_kept(handle).unwrap(), arena.lend_kept(handle).unwrap());
    let (one, two) = (memory(one), memory(two));
    assert_eq!((one.offset(), one.len()), (offset, 3 * MIB));
    let mut found = [0; 4];
    one.read_at(MIB, &mut found).unwrap();
    assert_eq!(&found, b"here");
    two.write_at(MIB, b"both").unwrap();
    one.read_at(MIB, &mut found).unwrap();
    assert_eq!(&found, b"both");
    // Ended, it is still theirs.
    arena.remove(handle);
    arena.retire().unwrap();
    assert_eq!(arena.found(), None);
    let free = arena.free();
    arena.take_back();
    assert_eq!(arena.free(), free);
    drop(one);
    arena.take_back();
    assert_eq!(arena.free(), free);
    drop(two);
    arena.take_back();
    assert_eq!(arena.free(), free + 3 * MIB);
    assert_eq!(View::read(arena.medium(), None).unwrap().superblock().version(), 1);
}

#[test]
fn what_is_not_lent_from_here_is_not_kept() {
    let (place, other) = (Place::new(8 * MIB), Place::new(8 * MIB));
    let (arena, foreign) = (place.arena(), other.arena().lend(MIB).unwrap());
    let refused = |file: BorrowedFd<'_>| arena.put_lent(file).unwrap_err().errno();
    assert_eq!(refused(foreign.as_fd()), Errno::OpNotSupp);
    let whole = std::fs::File::options().read(true).write(true).open(place.path()).unwrap();
    assert_eq!(refused(whole.as_fd()), Errno::OpNotSupp);
    // A lock of somebody's own, over a part of what is lent.
    let lent = arena.lend(MIB).unwrap();
    let at = lent_range(&lent).unwrap().unwrap().offset;
    lend_range(&whole, FileRange { offset: at, len: 2 * MIB }).unwrap();
    assert_eq!(refused(whole.as_fd()), Errno::OpNotSupp);
    let kept = arena.put_bytes(&[1; 100_000]).unwrap();
    let used = arena.stored(kept).unwrap().region.extents()[0];
    let third = std::fs::File::options().read(true).write(true).open(place.path()).unwrap();
    lend_range(&third, range(used)).unwrap();
    assert_eq!(refused(third.as_fd()), Errno::Inval);
    assert_eq!(arena.lend(0).unwrap_err().errno(), Errno::Inval);
    assert_eq!(arena.lend(64 * MIB).unwrap_err().errno(), Errno::NoSpc);
    assert_eq!(arena.lend(u64::MAX).unwrap_err().errno(), Errno::NoSpc);
}

#[test]
fn what_others_have_lent_is_left_alone_by_whoever_opens_the_arena() {
    let place = Place::new(8 * MIB);
    let all = place.arena().free();
    let (one, two) = {
        let arena = place.arena();
        (arena.lend(MIB).unwrap(), arena.lend(5000).unwrap())
    };
    let arena = place.arena();
    assert_eq!(arena.free(), all - MIB - 8192);
    let taken = arena.put_bytes(&vec![1; arena.free() as usize - (256 << 10)]).unwrap();
    let ours: Vec<Extent> = arena.stored(taken).unwrap().region.extents().to_vec();
    for lent in [&one, &two] {
        let lent = lent_range(lent).unwrap().unwrap();
        assert!(ours.iter().all(|own| own.end() <= lent.offset || lent.end() <= own.offset));
    }
    // And it can be kept there.
    arena.put_lent(one.as_fd()).unwrap();
    drop((one, two));
    arena.take_back();
}

#[test]
fn a_flush_that_fails_takes_back_what_was_promised_of_resident_memory_too() {
    let place = Place::new(8 * MIB);
    let arena = place.arena();
    let lent = arena.lend(MIB).unwrap();
    let handle = arena.put_lent(lent.as_fd()).unwrap();
    arena.unsettle();
    assert_eq!(arena.commit(b"handover").unwrap_err().errno(), Errno::Io);
    arena.remove(handle);
    arena.put_lent(lent.as_fd()).unwrap();
    arena.commit(b"handover").unwrap();
}
