use std::os::unix::fs::MetadataExt;
use std::process::Command;
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
    block[8] = 4;
    let sum = luo_abi::arena::checksum(&block);
    block[16..24].copy_from_slice(&sum.to_le_bytes());
    newer.change(4096, &block);
    let before = std::fs::read(newer.path()).unwrap();
    let expected = ArenaError::Version { found: 4, known: 3 };
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

fn memfd(len: u64) -> File {
    let flags = rustix::fs::MemfdFlags::CLOEXEC;
    let file = File::from(rustix::fs::memfd_create("luo-test", flags).unwrap());
    file.set_len(len).unwrap();
    file
}

#[test]
fn an_arena_in_a_mapped_medium_is_one_as_any_other() {
    let file = memfd(2 * MIB);
    let again = file.try_clone().unwrap();
    let medium = Arc::new(FileMedium::of_memory(file));
    assert_eq!(medium.way(), "mapped, and flushed by system calls");
    assert_eq!(again.metadata().unwrap().blocks() * 512, 2 * MIB, "its holes are filled");
    let arena = Arena::create(Arc::clone(&medium) as Arc<dyn Medium>, MACHINE, false).unwrap();
    let kept = arena.put_bytes(&[7; 100_001]).unwrap();
    arena.commit(b"handover").unwrap();
    drop((arena, medium));
    // What was written through the mapping is in the file.
    let path = Dir::new();
    let mut bytes = vec![0; 2 * MIB as usize];
    again.read_exact_at(&mut bytes, 0).unwrap();
    std::fs::write(path.path(), bytes).unwrap();
    let arena = path.open().unwrap();
    assert_eq!(arena.found().as_deref(), Some(&b"handover"[..]));
    assert_eq!(arena.bytes(kept).unwrap(), [7; 100_001]);
}

#[test]
fn a_mapped_medium_that_breaks_fails_every_later_call_and_no_process() {
    let file = memfd(2 * MIB);
    let again = file.try_clone().unwrap();
    let medium = Arc::new(FileMedium::of_memory(file));
    let arena = Arena::create(Arc::clone(&medium) as Arc<dyn Medium>, MACHINE, false).unwrap();
    arena.commit(b"before").unwrap();
    again.set_len(8192).unwrap();
    assert_eq!(arena.put_bytes(&[1; 100_000]).unwrap_err().errno(), Errno::Io);
    assert_eq!(arena.commit(b"after").unwrap_err().errno(), Errno::Io);
    assert_eq!(medium.flush().unwrap_err().raw_os_error(), Some(5));
    assert_eq!(medium.read_at(0, &mut [0; 8]).unwrap_err().raw_os_error(), Some(5));
}

/// Runs one test of this module again, with a file system of that type mounted for it alone.
fn with_mounted(test: &str, fs: &str, options: &str, room: &str) -> Result<(), String> {
    let dir = tempfile::tempdir().unwrap();
    let script = format!("mount -t {fs} -o {options} luo-test \"$LUO_TEST_MOUNT\" && exec \"$@\"");
    let output = Command::new("unshare")
        .args(["--mount", "sh", "-c", &script, "sh"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", &format!("arena::file::tests::{test}"), "--nocapture"])
        .env("LUO_TEST_MOUNT", dir.path())
        .output()
        .map_err(|error| format!("`unshare` cannot be run: {error}"))?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let said = format!("{said}{}", String::from_utf8_lossy(&output.stdout));
    if said.contains("it was all there") {
        assert!(output.status.success(), "{said}");
        return Ok(());
    }
    // Only a mount that is refused, or huge pages that there are none of, excuse it.
    let refused = !said.contains("running 1 test") || said.contains("Cannot allocate memory");
    assert!(refused, "{room}: {said}");
    Err(format!("{room}: {}", said.trim()))
}

/// The whole of an arena's life on a mounted file system.
fn live(mounted: &Path, way: &str) {
    let path = mounted.join("arena");
    let medium = FileMedium::create(&path, 3 * MIB).unwrap();
    assert_eq!(medium.place(), Place::Memory);
    assert_eq!(medium.way(), way);
    let size = medium.size();
    assert!(size >= 3 * MIB && std::fs::metadata(&path).unwrap().len() == size, "{size}");
    let arena = Arena::create(Arc::new(medium), MACHINE, false).unwrap();
    assert_eq!(
        FileMedium::open(&path, Access::Exclusive).unwrap_err().errno(),
        Errno::Busy,
        "one at a time"
    );
    let bytes: Vec<u8> = (0..1_000_003_u32).map(|n| (n % 253) as u8).collect();
    let kept = arena.put_bytes(&bytes).unwrap();
    arena.commit(b"handover").unwrap();
    drop(arena);
    let look = FileMedium::open(&path, Access::Look).unwrap();
    assert!(look.write_at(0, b"x").is_err());
    View::read(&look, None).unwrap().check(&look, true, &|_, _| Ok(())).unwrap();
    let medium = FileMedium::open(&path, Access::Exclusive).unwrap();
    let arena = Arena::open(Arc::new(medium), MACHINE).unwrap();
    assert_eq!(arena.found().as_deref(), Some(&b"handover"[..]));
    assert!(arena.bytes(kept).unwrap() == bytes);
    println!("it was all there");
}

/// Asks the kernel for huge pages for as long as it lives.
struct HugePages(String);

const HUGE_PAGES: &str = "/proc/sys/vm/nr_hugepages";

impl HugePages {
    fn ask(count: u64) -> Result<Self, String> {
        let text = |error: io::Error| format!("{HUGE_PAGES}: {error}");
        let before = std::fs::read_to_string(HUGE_PAGES).map_err(text)?;
        let wanted = before.trim().parse::<u64>().unwrap_or(0) + count;
        std::fs::write(HUGE_PAGES, wanted.to_string()).map_err(text)?;
        Ok(Self(before))
    }
}

impl Drop for HugePages {
    fn drop(&mut self) {
        let _ = std::fs::write(HUGE_PAGES, &self.0);
    }
}

#[test]
fn an_arena_can_be_on_hugetlbfs() {
    if let Some(mounted) = std::env::var_os("LUO_TEST_MOUNT") {
        return live(Path::new(&mounted), "mapped, and flushed by system calls");
    }
    let test = "an_arena_can_be_on_hugetlbfs";
    let done = HugePages::ask(4)
        .and_then(|_pages| with_mounted(test, "hugetlbfs", "pagesize=2M", "needs root"));
    if let Err(why) = done {
        eprintln!("SKIPPED, an arena on hugetlbfs was not tried: {why}");
    }
}

#[test]
fn an_arena_on_a_tmpfs_of_huge_pages_is_mapped() {
    if let Some(mounted) = std::env::var_os("LUO_TEST_MOUNT") {
        return live(Path::new(&mounted), "mapped, and flushed by system calls");
    }
    let test = "an_arena_on_a_tmpfs_of_huge_pages_is_mapped";
    if let Err(why) = with_mounted(test, "tmpfs", "huge=always", "needs root") {
        eprintln!("SKIPPED, an arena on a tmpfs of huge pages was not tried: {why}");
    }
}
