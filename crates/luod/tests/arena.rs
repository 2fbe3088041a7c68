//! The machine departs through an arena: every process ends, and the next luod has everything.

mod common;

use std::fs::File;
use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use common::{Luod, errno};
use luo::{Error, Record, Session, State, Unclaimed};
use luo_carriers::arena::{self, Arena, FileMedium};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::process::{PidfdFlags, getpid, pidfd_open};
use tempfile::TempDir;

const MIB: u64 = 1 << 20;

/// An arena on a disk file, and the configuration that names it.
struct Place {
    directory: TempDir,
}

impl Place {
    fn new(size: u64) -> Self {
        let place = Self { directory: tempfile::tempdir().unwrap() };
        make(&place.path(), size);
        place
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("arena")
    }

    /// The next luod, of which nothing but the arena is left from the one before.
    fn luod(&self) -> Luod {
        Luod::start_with(&format!("arena = {:?}", self.path()))
    }
}

fn make(path: &Path, size: u64) {
    let medium = FileMedium::create(path, size).unwrap();
    Arena::create(Arc::new(medium), arena::machine_id().unwrap(), false).unwrap();
}

/// A memory file with a page of its own every 64 KiB, and holes between.
fn memory(seed: u64, size: u64) -> File {
    let file = File::from(memfd_create("state", MemfdFlags::CLOEXEC).unwrap());
    file.set_len(size).unwrap();
    for at in (0..size).step_by(64 << 10) {
        file.write_all_at(&page(seed, at), at).unwrap();
    }
    file
}

fn page(seed: u64, at: u64) -> Vec<u8> {
    (0..512_u64).flat_map(|word| (seed ^ at ^ (word << 40)).to_le_bytes()).collect()
}

fn assert_memory(file: OwnedFd, seed: u64, size: u64) {
    let file = File::from(file);
    assert_eq!(file.metadata().unwrap().len(), size);
    let mut buffer = vec![0; 4096];
    for at in (0..size).step_by(64 << 10) {
        file.read_exact_at(&mut buffer, at).unwrap();
        assert!(buffer == page(seed, at), "page at {at}");
    }
}

/// A session `shop` with memory (1) and a record (2), on its way through the arena.
fn departed(place: &Place, size: u64) {
    let mut luod = place.luod();
    let shop = luod.session("shop");
    shop.preserve(1, memory(7, size)).unwrap();
    shop.preserve(2, Record::new(b"page=3").unwrap()).unwrap();
    depart(&mut luod);
}

/// Through every phase; luod ends and says so by its status.
fn depart(luod: &mut Luod) {
    let manager = luod.manager();
    manager.prepare_through("arena").unwrap();
    assert_eq!(manager.status().unwrap().through.as_deref(), Some("arena"));
    manager.freeze().unwrap();
    manager.depart().unwrap();
    luod.wait_for_end();
    assert_eq!(luod.exit_status(), Some(3), "{}", luod.log());
}

fn assert_arrived(luod: &Luod, size: u64) -> Session {
    assert_eq!(luod.manager().status().unwrap().state, State::Updated);
    let shop = luod.session("shop");
    assert!(shop.is_updated().unwrap());
    assert_memory(shop.retrieve(1).unwrap(), 7, size);
    let record = Record::try_from(shop.retrieve(2).unwrap()).unwrap();
    assert_eq!(record.bytes().unwrap(), b"page=3");
    shop
}

#[test]
fn memory_and_records_outlive_every_process() {
    let place = Place::new(64 * MIB);
    departed(&place, 16 * MIB);
    let luod = place.luod();
    let shop = assert_arrived(&luod, 16 * MIB);
    let status = luod.manager().status().unwrap();
    assert_eq!((status.liveupdate_number, status.through.as_deref()), (1, Some("arena")));
    shop.finish_and_carry().unwrap();
    assert_eq!(luod.manager().finish(Unclaimed::Refuse).unwrap().unwrap().state, State::Normal);
    // It goes on as if it had been given here, and is in the arena no more.
    assert_eq!(shop.info().unwrap().files, [1, 2]);
    drop(luod);
    let luod = place.luod();
    let status = luod.manager().status().unwrap();
    assert_eq!((status.state, status.sessions), (State::Normal, 0));
}

#[test]
fn status_says_how_full_the_arena_is_and_why_it_cannot_be_read() {
    let place = Place::new(64 * MIB);
    let luod = place.luod();
    let manager = luod.manager();
    let status = manager.status().unwrap();
    let before = status.arena_room.unwrap();
    assert_eq!((status.arena_failure, before.size, before.lent), (None, 64 * MIB, 0));
    assert_eq!(before.used + before.free, before.size);
    let shop = luod.session("shop");
    let lent = shop.allocate(1, 3 * MIB).unwrap();
    assert!(lent.is_resident());
    let room = manager.status().unwrap().arena_room.unwrap();
    assert_eq!((room.lent, room.used, room.free), (3 * MIB, before.used, before.free - 3 * MIB));
    // It counts as lent also when the update keeps it, and what is copied as used.
    shop.preserve(2, memory(7, 16 * MIB)).unwrap();
    manager.prepare_through("arena").unwrap();
    let room = manager.status().unwrap().arena_room.unwrap();
    assert_eq!(room.lent, 3 * MIB);
    assert!(room.used >= before.used + MIB, "{room:?}");
    assert_eq!(room.used + room.lent + room.free, room.size);
    manager.cancel().unwrap();
    drop((lent, shop, manager, luod));

    let file = File::options().write(true).open(place.path()).unwrap();
    file.write_all_at(&[0x55; 8192], 0).unwrap();
    let luod = place.luod();
    let status = luod.manager().status().unwrap();
    assert_eq!((status.state, status.arena_room), (State::Normal, None));
    let why = status.arena_failure.unwrap();
    assert!(why.contains("arena"), "{why}");
    let refused = luod.manager().prepare_through("arena").unwrap_err();
    assert!(refused.to_string().contains(&why), "{refused}");
    // Once it can be read again, nothing is said any more.
    std::fs::remove_file(place.path()).unwrap();
    make(&place.path(), 8 * MIB);
    luod.manager().prepare_through("arena").unwrap();
    let status = luod.manager().status().unwrap();
    assert_eq!((status.arena_failure, status.arena_room.unwrap().size), (None, 8 * MIB));
}

#[test]
fn damaged_memory_is_refused_unless_only_metadata_is_verified() {
    let place = Place::new(64 * MIB);
    departed(&place, MIB);
    let bytes = std::fs::read(place.path()).unwrap();
    let stored = page(7, 64 << 10);
    let at = bytes.windows(stored.len()).position(|window| window == stored).unwrap();
    let file = File::options().write(true).open(place.path()).unwrap();
    file.write_all_at(&[bytes[at] ^ 1], at as u64).unwrap();
    let mut luod = place.luod();
    let refused = luod.session("shop").retrieve(1).unwrap_err();
    assert_eq!(refused.errno(), Some("EIO"), "{refused}");
    luod.kill_all();
    drop(luod);
    let configuration = format!("arena = {:?}\narena_verify = \"metadata\"", place.path());
    let luod = Luod::start_with(&configuration);
    let shop = luod.session("shop");
    let came = File::from(shop.retrieve(1).unwrap());
    let mut found = vec![0; stored.len()];
    came.read_exact_at(&mut found, 64 << 10).unwrap();
    assert_eq!((found[0], &found[1..]), (stored[0] ^ 1, &stored[1..]));
    let record = Record::try_from(shop.retrieve(2).unwrap()).unwrap();
    assert_eq!(record.bytes().unwrap(), b"page=3");
}

#[test]
fn what_is_retrieved_one_by_one_is_whole_and_what_was_never_there_is_refused_between() {
    let place = Place::new(64 * MIB);
    let mut luod = place.luod();
    let shop = luod.session("shop");
    for token in 1..=6 {
        shop.preserve(token, memory(token, token * MIB)).unwrap();
    }
    depart(&mut luod);
    let luod = place.luod();
    let shop = luod.session("shop");
    let mut came = Vec::new();
    for (token, file) in shop.retrieve_each(&[6, 1, 99, 3, 2, 4, 5]).unwrap() {
        match file {
            Ok(file) => assert_memory(file, token, token * MIB),
            Err(error) => assert_eq!((token, error.errno()), (99, Some("ENOENT")), "{error}"),
        }
        came.push(token);
    }
    assert_eq!(came, [6, 1, 99, 3, 2, 4, 5]);
    // What was given counts as taken back.
    shop.finish().unwrap();
}

#[test]
fn a_machine_goes_over_again_and_again() {
    let place = Place::new(32 * MIB);
    departed(&place, 8 * MIB);
    for round in 1..4 {
        let mut luod = place.luod();
        let shop = assert_arrived(&luod, 8 * MIB);
        assert_eq!(luod.manager().status().unwrap().liveupdate_number, round);
        shop.finish_and_carry().unwrap();
        luod.manager().finish(Unclaimed::Refuse).unwrap();
        depart(&mut luod);
    }
}

#[test]
fn what_no_carrier_takes_so_far_is_refused_by_name_or_left_out() {
    let place = Place::new(32 * MIB);
    let mut luod = place.luod();
    let shop = luod.session("shop");
    let process = pidfd_open(getpid(), PidfdFlags::empty()).unwrap();
    shop.preserve(1, &process).unwrap();
    shop.preserve(2, Record::new(b"x").unwrap()).unwrap();
    match luod.manager().prepare_through("arena") {
        Err(Error::Refused(refusal)) => {
            assert!(refusal.reason.contains("live descriptors"), "{refusal}");
            let failure = refusal.failure.unwrap();
            assert_eq!((failure.session.as_deref(), failure.token), (Some("shop"), Some(1)));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(luod.manager().status().unwrap().state, State::Normal);
    shop.unpreserve(1).unwrap();
    let verdicts = shop.preserve_optional(&[(3, &process)]).unwrap();
    assert!(verdicts[0].is_ok());
    let report = luod.manager().prepare_through("arena").unwrap().unwrap();
    assert_eq!(report.left_out.len(), 1);
    luod.manager().freeze().unwrap();
    luod.manager().depart().unwrap();
    luod.wait_for_end();
    let luod = place.luod();
    assert_eq!(luod.session("shop").info().unwrap().incoming, [2]);
}

#[test]
fn an_arena_without_room_is_found_in_prepare_and_nothing_is_lost() {
    let place = Place::new(4 * MIB);
    let luod = place.luod();
    let shop = luod.session("shop");
    let random: Vec<u8> = (0..8 * MIB).map(|at| ((at * at) >> 7) as u8 | 1).collect();
    let file = File::from(memfd_create("large", MemfdFlags::CLOEXEC).unwrap());
    file.write_all_at(&random, 0).unwrap();
    shop.preserve(1, &file).unwrap();
    // Holes need nothing.
    luod.session("other").preserve(1, memory(3, 16 * MIB)).unwrap();
    match luod.manager().prepare_through("arena") {
        Err(Error::Refused(refusal)) => {
            assert_eq!(refusal.errno, "ENOSPC");
            // Of the whole update, not of the file at which it ran out.
            let whole = number_before(&refusal.reason, " bytes in the arena, and ");
            assert!((9 * MIB..9 * MIB + (256 << 10)).contains(&whole), "{refusal}");
            let free = number_before(&refusal.reason, " of 4194304 were free");
            assert!((3 * MIB..4 * MIB).contains(&free), "{refusal}");
            assert!(refusal.reason.contains("2 files"), "{refusal}");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(luod.manager().status().unwrap().state, State::Normal);
    assert_eq!(shop.info().unwrap().files, [1]);
    // What fits goes through.
    shop.unpreserve(1).unwrap();
    shop.preserve(1, memory(1, 2 * MIB)).unwrap();
    luod.manager().prepare_through("arena").unwrap();
    luod.manager().cancel().unwrap();
}

/// The number that stands before these words.
fn number_before(text: &str, words: &str) -> u64 {
    let before = &text[..text.find(words).unwrap_or_else(|| panic!("{words:?} in {text:?}"))];
    before.rsplit(' ').next().unwrap().parse().unwrap()
}

#[test]
fn a_worker_that_dies_before_the_commit_leaves_everything_as_it_was() {
    let place = Place::new(32 * MIB);
    let mut luod = place.luod();
    let shop = luod.session("shop");
    shop.preserve(1, memory(7, 8 * MIB)).unwrap();
    shop.preserve(2, Record::new(b"page=3").unwrap()).unwrap();
    for frozen in [false, true] {
        luod.manager().prepare_through("arena").unwrap();
        if frozen {
            luod.manager().freeze().unwrap();
        }
        let before = luod.worker();
        luod.kill_worker();
        luod.wait("another worker", || luod.worker() != before);
        let status = luod.manager().status().unwrap();
        assert_eq!((status.state, status.through), (State::Normal, None), "{}", luod.log());
        assert_eq!(shop.info().unwrap().files, [1, 2]);
    }
    depart(&mut luod);
    assert_arrived(&place.luod(), 8 * MIB);
}

#[test]
fn a_worker_that_dies_on_the_other_side_loses_nothing() {
    let place = Place::new(32 * MIB);
    departed(&place, 8 * MIB);
    let luod = place.luod();
    for _ in 0..3 {
        let before = luod.worker();
        luod.kill_worker();
        luod.wait("another worker", || luod.worker() != before);
        assert_arrived(&luod, 8 * MIB);
    }
    let shop = assert_arrived(&luod, 8 * MIB);
    shop.finish().unwrap();
    let before = luod.worker();
    luod.kill_worker();
    luod.wait("another worker", || luod.worker() != before);
    luod.manager().finish(Unclaimed::Refuse).unwrap();
    assert_eq!(luod.manager().status().unwrap().state, State::Normal);
}

#[test]
fn a_luod_that_ends_before_finish_is_followed_by_one_that_arrives_again() {
    let place = Place::new(32 * MIB);
    departed(&place, 8 * MIB);
    let luod = place.luod();
    assert_arrived(&luod, 8 * MIB);
    drop(luod);
    assert_arrived(&place.luod(), 8 * MIB);
}

#[test]
fn luod_is_upgraded_between_arrival_and_finish() {
    let place = Place::new(32 * MIB);
    departed(&place, 8 * MIB);
    let luod = place.luod();
    let before = luod.worker();
    luod.manager().upgrade(None, common::PATIENCE, false).unwrap();
    assert_ne!(luod.worker(), before);
    let shop = assert_arrived(&luod, 8 * MIB);
    shop.finish().unwrap();
    luod.manager().finish(Unclaimed::Refuse).unwrap();
}

#[test]
fn a_cancel_that_is_refused_on_the_other_side_keeps_nothing_from_being_retrieved() {
    let place = Place::new(32 * MIB);
    departed(&place, 8 * MIB);
    let luod = place.luod();
    assert_eq!(errno(luod.manager().cancel()), "EBUSY");
    assert_arrived(&luod, 8 * MIB);
}

#[test]
fn a_session_that_nobody_holds_goes_over_too() {
    let place = Place::new(64 * MIB);
    let mut luod = place.luod();
    let shop = luod.session("shop");
    shop.preserve(1, memory(7, 8 * MIB)).unwrap();
    shop.preserve(2, Record::new(b"page=3").unwrap()).unwrap();
    drop(shop);
    luod.wait("it departs", || luod.manager().sessions().unwrap()[0].state == State::Frozen);
    depart(&mut luod);
    assert_arrived(&place.luod(), 8 * MIB).finish().unwrap();
}

#[test]
fn a_rehearsal_through_the_arena_changes_nothing() {
    let place = Place::new(32 * MIB);
    let luod = place.luod();
    let shop = luod.session("shop");
    shop.preserve(1, memory(7, 8 * MIB)).unwrap();
    let report = luod.manager().rehearse_through("arena").unwrap();
    assert_eq!(report.state, State::Normal);
    assert!(report.timings.iter().any(|part| part.session.as_deref() == Some("shop")));
    let needs = report.needs.unwrap();
    assert_eq!((needs.carrier.as_str(), needs.size), ("arena", Some(32 * MIB)));
    // A page every 64 KiB, and a checksum for each.
    let [shops] = needs.sessions.as_slice() else { panic!("{needs:?}") };
    assert_eq!(shops.session, "shop");
    assert!((MIB / 2..MIB / 2 + 8192).contains(&shops.bytes), "{needs:?}");
    assert!((shops.bytes..shops.bytes + (80 << 10)).contains(&needs.bytes), "{needs:?}");
    assert_eq!(needs.free, Some(32 * MIB - 8192));
    let near = luod.manager().rehearse().unwrap().needs.unwrap();
    assert_eq!((near.carrier.as_str(), near.bytes, near.free), ("keeper", 0, None));
    drop(luod);
    let luod = place.luod();
    assert_eq!(luod.manager().status().unwrap().sessions, 0);
}

#[test]
fn a_handover_that_nobody_has_taken_up_is_not_written_over() {
    let (place, other) = (Place::new(32 * MIB), Place::new(32 * MIB));
    departed(&other, MIB);
    let luod = place.luod();
    let shop = luod.session("mine");
    shop.preserve(1, memory(1, MIB)).unwrap();
    std::fs::copy(other.path(), place.path()).unwrap();
    let refused = luod.manager().prepare_through("arena");
    assert_eq!(errno(refused), "EBUSY");
    assert_eq!(luod.manager().status().unwrap().state, State::Normal);
    drop(luod);
    assert_arrived(&place.luod(), MIB);
}

#[test]
fn an_arena_is_one_luods_at_a_time() {
    let place = Place::new(32 * MIB);
    let (one, two) = (place.luod(), place.luod());
    for luod in [&one, &two] {
        luod.session("shop").preserve(1, memory(1, MIB)).unwrap();
    }
    one.manager().prepare_through("arena").unwrap();
    assert_eq!(errno(two.manager().prepare_through("arena")), "EBUSY");
    one.manager().cancel().unwrap();
    two.manager().prepare_through("arena").unwrap();
    two.manager().cancel().unwrap();
}

#[test]
fn what_is_no_arena_is_told_and_keeps_luod_from_nothing_else() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("arena");
    for content in [None, Some(vec![0; 64 << 10]), Some(vec![7; 64 << 10])] {
        match content {
            None => {}
            Some(bytes) => std::fs::write(&path, bytes).unwrap(),
        }
        let luod = Luod::start_with(&format!("arena = {path:?}"));
        let shop = luod.session("shop");
        shop.preserve(1, memory(1, MIB)).unwrap();
        let refused = luod.manager().prepare_through("arena").unwrap_err();
        assert!(refused.to_string().contains("arena"), "{refused}");
        luod.manager().prepare().unwrap();
        luod.manager().cancel().unwrap();
    }
}

#[test]
fn a_carrier_that_is_not_there_is_told() {
    let luod = Luod::start();
    let refused = luod.manager().prepare_through("arena").unwrap_err();
    assert_eq!(refused.errno(), Some("ENOENT"));
    assert!(refused.to_string().contains("luoctl arena create"), "{refused}");
    assert_eq!(errno(luod.manager().prepare_through("pigeon")), "ENOENT");
}

/// Numbers that look random, the same in every run.
struct Seeded(u64);

impl Seeded {
    fn below(&mut self, limit: u64) -> u64 {
        // xorshift64
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

#[test]
fn luod_killed_at_any_moment_of_a_departure_leaves_the_old_or_the_new_handover() {
    const ROUNDS: u64 = 30;
    // Whoever asks a luod that is gone need not wait for long; without an answer anything may have
    // happened.
    const LAST_CALL: std::time::Duration = std::time::Duration::from_millis(300);
    let place = Place::new(64 * MIB);
    let mut seeded = Seeded(0x1d0f_00d5_eed0_0001);
    let (mut arrived, mut lost) = (0, 0);
    // How long a departure takes here, so that the moments lie within one.
    let start = std::time::Instant::now();
    departed(&place, 8 * MIB);
    let whole = start.elapsed();
    let mut expected = true;
    for round in 0..ROUNDS {
        let mut luod = place.luod();
        let state = luod.manager().status().unwrap().state;
        if state == State::Updated {
            arrived += 1;
            let shop = assert_arrived(&luod, 8 * MIB);
            shop.finish_and_carry().unwrap();
            luod.manager().finish(Unclaimed::Refuse).unwrap();
        } else {
            lost += 1;
            assert!(!expected, "round {round}: depart said that it was done");
            let shop = luod.session("shop");
            shop.preserve(1, memory(7, 8 * MIB)).unwrap();
            shop.preserve(2, Record::new(b"page=3").unwrap()).unwrap();
        }
        let manager = luod.manager();
        let options = luod.options();
        let moment = whole.mul_f64(seeded.below(1_000) as f64 / 1_000.0);
        expected = std::thread::scope(|scope| {
            let departing = scope.spawn(move || {
                let manager = luo::Manager::connect(options.deadline(LAST_CALL))?;
                manager.prepare_through("arena")?;
                manager.freeze()?;
                manager.depart()
            });
            std::thread::sleep(moment);
            luod.kill_all();
            departing.join().unwrap().is_ok()
        });
        drop(manager);
    }
    assert!(arrived > 0, "{arrived} {lost}");
}

/// Every test of this file once more, with its arena on a tmpfs of huge pages instead of a disk.
///
/// The file system is mounted in a mount namespace of its own and is gone with it.
#[test]
fn all_of_it_holds_on_huge_pages() {
    if !rustix::process::geteuid().is_root() {
        println!("SKIPPED: mounting a tmpfs of huge pages needs root");
        return;
    }
    let place = tempfile::tempdir().unwrap();
    let script = "mount -t tmpfs -o huge=always,size=1g luo \"$TMPDIR\" || exit 77; exec \"$@\"";
    let ran = Command::new("unshare")
        .args(["--mount", "sh", "-c", script, "sh"])
        .arg(std::env::current_exe().unwrap())
        .args(["--test-threads=1", "--skip", "all_of_it_holds_on_huge_pages"])
        .env("TMPDIR", place.path())
        .output();
    let ran = match ran {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            println!("SKIPPED: unshare(1) is not here: install util-linux");
            return;
        }
        ran => ran.unwrap(),
    };
    if ran.status.code() == Some(77) || ran.status.code() == Some(1) && ran.stdout.is_empty() {
        println!(
            "SKIPPED: no tmpfs of huge pages: {}",
            String::from_utf8_lossy(&ran.stderr).trim()
        );
        return;
    }
    let told = String::from_utf8_lossy(&ran.stdout);
    assert!(ran.status.success(), "{told}\n{}", String::from_utf8_lossy(&ran.stderr));
    let ran = told.matches(" ... ok").count();
    assert!(ran > 10, "{ran} tests ran:\n{told}");
}
