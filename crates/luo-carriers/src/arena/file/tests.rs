use std::sync::Arc;

use luo_abi::arena::ArenaError;

use super::*;
use crate::arena::view::{View, cause};
use crate::arena::{Arena, view};

const MACHINE: [u8; 16] = [9; 16];
const MIB: u64 = 1 << 20;

struct Dir(tempfile::TempDir);

impl Dir {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("arena")
    }

    fn create(&self, force: bool) -> Result<(), Failure> {
        let medium = FileMedium::create(&self.path(), 2 * MIB)?;
        Arena::create(Arc::new(medium), MACHINE, force).map(drop)
    }

    fn open(&self) -> Result<Arena, Failure> {
        Arena::open(Arc::new(FileMedium::open(&self.path(), Access::Exclusive)?), MACHINE)
    }

    /// A file with an arena that holds a handover.
    fn with_handover() -> Self {
        let dir = Self::new();
        dir.create(false).unwrap();
        dir.open().unwrap().commit(b"handover").unwrap();
        dir
    }

    fn change(&self, offset: u64, bytes: &[u8]) {
        let file = OpenOptions::new().write(true).open(self.path()).unwrap();
        file.write_all_at(bytes, offset).unwrap();
    }
}

fn refused(result: Result<Arena, Failure>) -> (Errno, ArenaError) {
    let failure = result.unwrap_err();
    (failure.errno(), cause(&failure).unwrap_or_else(|| panic!("{failure}")).clone())
}

#[test]
fn one_luod_at_a_time_uses_an_arena_and_anybody_may_look() {
    let dir = Dir::new();
    dir.create(false).unwrap();
    let arena = dir.open().unwrap();
    let error = dir.open().unwrap_err();
    assert_eq!(error.errno(), Errno::Busy);
    assert!(error.reason().contains("another luod"), "{error}");
    let medium = FileMedium::open(&dir.path(), Access::Look).unwrap();
    let view = View::read(&medium, None).unwrap();
    assert!(view.to_string().contains("state       empty"), "{view}");
    assert!(medium.write_at(0, b"x").is_err());
    drop(arena);
    dir.open().unwrap();
}

#[test]
fn all_of_an_arena_is_allocated_when_it_is_created() {
    let dir = Dir::new();
    dir.create(false).unwrap();
    let metadata = std::fs::metadata(dir.path()).unwrap();
    assert_eq!(metadata.len(), 2 * MIB);
    assert!(metadata.blocks() * 512 >= 2 * MIB);
    assert_eq!(metadata.mode() & 0o777, 0o600);
    let medium = FileMedium::open(&dir.path(), Access::Exclusive).unwrap();
    assert_eq!(medium.size(), 2 * MIB);
    let error = medium.write_at(2 * MIB - 1, b"xx").unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    assert_eq!(std::fs::metadata(dir.path()).unwrap().len(), 2 * MIB);
}

#[test]
fn an_arena_is_not_created_over_another_one_by_accident() {
    let dir = Dir::with_handover();
    let error = dir.create(false).unwrap_err();
    assert_eq!(error.errno(), Errno::Exist);
    assert!(error.reason().contains("holds a handover"), "{error}");
    assert!(dir.open().unwrap().found().is_some());
    dir.change(0, &[0x55; 8192]);
    dir.change(0, b"luoarena");
    let error = dir.create(false).unwrap_err();
    assert!(error.reason().contains("cannot be used"), "{error}");
    dir.create(true).unwrap();
    assert!(dir.open().unwrap().found().is_none());
}

#[test]
fn each_kind_of_unusable_region_gives_its_own_error_and_is_not_touched() {
    let never = Dir::new();
    FileMedium::create(&never.path(), 2 * MIB).unwrap();
    assert_eq!(refused(never.open()), (Errno::Inval, ArenaError::NeverFormatted));

    let empty = Dir::new();
    std::fs::write(empty.path(), b"").unwrap();
    assert_eq!(refused(empty.open()), (Errno::Inval, ArenaError::NeverFormatted));

    let cut = Dir::with_handover();
    let file = OpenOptions::new().write(true).open(cut.path()).unwrap();
    file.set_len(MIB).unwrap();
    let truncated = ArenaError::Truncated { claimed: 2 * MIB, found: MIB };
    assert_eq!(refused(cut.open()), (Errno::Inval, truncated));
    file.set_len(100).unwrap();
    assert!(matches!(refused(cut.open()).1, ArenaError::Superblocks { .. }));

    let other = Dir::with_handover();
    let medium = FileMedium::open(&other.path(), Access::Exclusive).unwrap();
    let result = Arena::open(Arc::new(medium), [1; 16]);
    let expected = ArenaError::OtherMachine { found: MACHINE, ours: [1; 16] };
    assert_eq!(refused(result), (Errno::Perm, expected));

    let damaged = Dir::with_handover();
    damaged.change(50, b"x");
    assert!(damaged.open().unwrap().found().is_some(), "the other superblock counts");
    damaged.change(50, b"x");
    damaged.change(4096 + 50, b"x");
    assert!(matches!(refused(damaged.open()).1, ArenaError::Superblocks { .. }));

    let catalogue = Dir::with_handover();
    let view =
        View::read(&FileMedium::open(&catalogue.path(), Access::Look).unwrap(), Some(&MACHINE));
    let offset = view.unwrap().superblock().catalogue.unwrap().offset;
    catalogue.change(offset + 100, b"x");
    let (errno, error) = refused(catalogue.open());
    assert!(matches!((errno, error), (Errno::Inval, ArenaError::Catalogue { .. })));

    let newer = Dir::with_handover();
    let mut block = [0; 4096];
    block[..8].copy_from_slice(b"luoarena");
    block[8] = 2;
    let sum = luo_abi::arena::checksum(&block);
    block[16..24].copy_from_slice(&sum.to_le_bytes());
    newer.change(4096, &block);
    let before = std::fs::read(newer.path()).unwrap();
    let expected = ArenaError::Version { found: 2, known: 1 };
    assert_eq!(refused(newer.open()), (Errno::OpNotSupp, expected));
    assert_eq!(newer.create(false).unwrap_err().errno(), Errno::Exist);
    assert!(std::fs::read(newer.path()).unwrap() == before, "it was not touched");
}

#[test]
fn what_is_no_file_is_refused() {
    let dir = Dir::new();
    let error = FileMedium::open(dir.0.path(), Access::Look).unwrap_err();
    assert_eq!(error.errno(), Errno::Inval);
    assert_eq!(FileMedium::open(&dir.path(), Access::Look).unwrap_err().errno(), Errno::NoEnt);
    let small = FileMedium::create(&dir.path(), 4096).unwrap();
    let error = Arena::create(Arc::new(small), MACHINE, false).unwrap_err();
    assert_eq!(error.errno(), Errno::Inval);
}

#[test]
fn a_dump_names_every_object() {
    let dir = Dir::new();
    dir.create(false).unwrap();
    let arena = dir.open().unwrap();
    let short = arena.put_bytes(b"short").unwrap();
    let long = arena.put_bytes(&[1; 10_000]).unwrap();
    arena.commit(b"handover").unwrap();
    let view = View::read(arena.medium(), None).unwrap();
    let text = view::Dump(&view).to_string();
    assert!(text.contains(&format!("{:#x}  bytes, 5 bytes", short.0)), "{text}");
    assert!(text.contains(&format!("{:#x}  bytes, 10000 bytes", long.0)), "{text}");
    assert!(text.contains("handover, 8 bytes"), "{text}");
}

#[test]
fn a_machine_id_has_32_digits() {
    assert_eq!(parse_id("000102030405060708090a0b0c0d0e0f").map(|id| id[15]), Some(15));
    for wrong in ["", "00", "+00102030405060708090a0b0c0d0e0f", "000102030405060708090a0b0c0d0e0f0"]
    {
        assert_eq!(parse_id(wrong), None, "{wrong}");
    }
}

#[test]
fn a_machine_without_an_identity_is_no_machine() {
    assert_eq!(machine_of(""), Some(NO_MACHINE));
    assert_eq!(machine_of("uninitialized"), Some(NO_MACHINE));
    assert_eq!(machine_of("000102030405060708090a0b0c0d0e0f").unwrap()[15], 15);
    assert_eq!(machine_of("something else"), None);
}
