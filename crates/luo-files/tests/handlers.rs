//! Real descriptors through prepare, freeze, retrieve, finish and cancel, over a carrier that
//! holds descriptors and one that copies memory.

mod common;

use std::collections::BTreeMap;
use std::fs::File as StdFile;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use common::Copier;
use luo_abi::keeper::key;
use luo_abi::record::MemfdRecord;
use luo_carriers::{HostFile, KeeperCarrier, Slot, Slots};
use luo_core::{Errno, Failure, File, Handle, Handler, Keep, Recall};
use luo_files::{LiveHandler, MemfdHandler};
use rustix::fs::{
    MemfdFlags, OFlags, SealFlags, SeekFrom, fcntl_add_seals, fcntl_get_seals, fcntl_getfl,
    fcntl_setfl, fstat, ftruncate, memfd_create, seek, tell,
};

#[derive(Default)]
struct Memory {
    slots: Mutex<BTreeMap<u64, Slot>>,
    last: AtomicU64,
}

impl Slots for Memory {
    fn allocate(&self, space: u8) -> u64 {
        key::make(space, key::FIRST + self.last.fetch_add(1, Ordering::Relaxed))
    }
    fn put(&self, key: u64, record: &[u8], files: &[&HostFile]) -> Result<(), Failure> {
        let files = files.iter().map(|file| (*file).clone()).collect();
        self.slots.lock().unwrap().insert(key, Slot { record: record.to_vec(), files });
        Ok(())
    }
    fn rewrite(&self, key: u64, record: &[u8]) -> Result<(), Failure> {
        self.slots.lock().unwrap().get_mut(&key).unwrap().record = record.to_vec();
        Ok(())
    }
    fn get(&self, key: u64) -> Option<Slot> {
        self.slots.lock().unwrap().get(&key).cloned()
    }
    fn forget(&self, key: u64) {
        self.slots.lock().unwrap().remove(&key);
    }
    fn keys(&self, space: u8) -> Vec<u64> {
        let slots = self.slots.lock().unwrap();
        slots.keys().copied().filter(|key| key::space(*key) == space).collect()
    }
}

fn keeper() -> KeeperCarrier<Memory> {
    KeeperCarrier::new(Memory::default()).unwrap()
}

fn left(carrier: &KeeperCarrier<Memory>) -> usize {
    carrier.slots().slots.lock().unwrap().len()
}

fn memfd(content: &[u8]) -> HostFile {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let file = StdFile::from(memfd_create("luo-test", flags).unwrap());
    file.write_all_at(content, 0).unwrap();
    HostFile::from(OwnedFd::from(file))
}

fn content(file: &HostFile) -> Vec<u8> {
    Copier::copy(file, fstat(file).unwrap().st_size as u64)
}

fn reopened(file: &HostFile, access: OFlags) -> HostFile {
    let path = format!("/proc/self/fd/{}", file.as_fd().as_raw_fd());
    HostFile::from(rustix::fs::open(path, access, rustix::fs::Mode::empty()).unwrap())
}

#[test]
fn a_live_file_comes_back_as_the_same_description() {
    let carrier = keeper();
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    let file = HostFile::from(writer);
    assert!(LiveHandler.can_preserve(&file));
    let data = LiveHandler.prepare(&file, &carrier).unwrap();
    let data = LiveHandler.freeze(&file, data, &carrier).unwrap();
    let again = LiveHandler.retrieve(data, &carrier).unwrap();
    assert!(again.order(&file).is_eq());
    rustix::io::write(&again, b"x").unwrap();
    assert_eq!(rustix::io::read(&reader, &mut [0; 1]).unwrap(), 1);
    LiveHandler.finish(Some(&again), data, true, &carrier);
    assert_eq!(left(&carrier), 0);
    assert_eq!(LiveHandler.retrieve(data, &carrier).unwrap_err().errno(), Errno::NoEnt);
}

#[test]
fn a_carrier_without_live_descriptors_refuses_live_files() {
    let failure = LiveHandler.prepare(&memfd(b""), &Copier::default()).unwrap_err();
    assert_eq!(failure.errno(), Errno::OpNotSupp);
}

/// Through both carriers; each time the file is another one, made by `make` and changed by
/// `change` between prepare and freeze.
fn through(make: impl Fn() -> HostFile, change: impl Fn(&HostFile), check: impl Fn(&HostFile)) {
    fn go<C: Keep<HostFile> + Recall<HostFile>>(
        carrier: &C,
        file: &HostFile,
        change: impl Fn(&HostFile),
        check: impl Fn(&HostFile),
    ) {
        assert!(MemfdHandler.can_preserve(file));
        let data = MemfdHandler.prepare(file, carrier).unwrap();
        change(file);
        let data = MemfdHandler.freeze(file, data, carrier).unwrap();
        // What happens to the position until it is retrieved is not the file's.
        seek(file, SeekFrom::Start(0)).unwrap();
        let again = MemfdHandler.retrieve(data, carrier).unwrap();
        check(&again);
        MemfdHandler.finish(Some(&again), data, true, carrier);
    }
    let carrier = keeper();
    go(&carrier, &make(), &change, &check);
    assert_eq!(left(&carrier), 0);
    let carrier = Copier::default();
    go(&carrier, &make(), &change, &check);
    assert!(carrier.kept.lock().unwrap().is_empty());
}

#[test]
fn content_size_and_position_of_a_memfd_are_those_at_freeze() {
    let changes = |file: &HostFile| {
        rustix::io::pwrite(file, b"CHANGED", 3).unwrap();
        ftruncate(file, 8).unwrap();
        seek(file, SeekFrom::Start(5)).unwrap();
    };
    through(
        || memfd(&[7; 10_000]),
        changes,
        |again| {
            assert_eq!(content(again), b"\x07\x07\x07CHANG");
            assert_eq!(tell(again).unwrap(), 5);
        },
    );
}

#[test]
fn a_memfd_that_is_or_becomes_empty_is_kept_and_so_is_one_that_grows() {
    let name = |file: &HostFile| {
        std::fs::read_link(format!("/proc/self/fd/{}", file.as_fd().as_raw_fd())).unwrap()
    };
    let empty = |again: &HostFile| {
        assert_eq!(content(again), b"");
        assert_eq!(name(again).to_str().unwrap(), "/memfd:luo-test (deleted)");
    };
    through(|| memfd(b""), |_| {}, empty);
    through(|| memfd(b"something"), |file| ftruncate(file, 0).unwrap(), empty);
    let grow = |file: &HostFile| assert_eq!(rustix::io::pwrite(file, b"grown", 0), Ok(5));
    through(|| memfd(b""), grow, |again| assert_eq!(content(again), b"grown"));
}

#[test]
fn exactly_the_seals_of_a_memfd_come_back() {
    let all = [
        SealFlags::empty(),
        SealFlags::GROW | SealFlags::SHRINK,
        SealFlags::WRITE | SealFlags::SEAL,
        SealFlags::FUTURE_WRITE,
    ];
    for seals in all {
        for size in [0, 5000] {
            let make = || {
                let file = memfd(&vec![1; size]);
                fcntl_add_seals(&file, seals).unwrap();
                file
            };
            through(
                make,
                |_| {},
                |again| {
                    assert_eq!(fcntl_get_seals(again).unwrap(), seals);
                    assert_eq!(content(again), vec![1; size]);
                },
            );
        }
    }
}

#[test]
fn access_mode_and_status_flags_of_a_memfd_come_back() {
    let read_only = || reopened(&memfd(b"content"), OFlags::RDONLY);
    through(
        read_only,
        |_| {},
        |again| {
            assert_eq!(fcntl_getfl(again).unwrap() & OFlags::RWMODE, OFlags::RDONLY);
            assert!(rustix::io::write(again, b"x").is_err());
            assert_eq!(content(again), b"content");
        },
    );
    let flags = OFlags::APPEND | OFlags::NONBLOCK;
    let appending = || {
        let file = memfd(b"content");
        fcntl_setfl(&file, flags).unwrap();
        file
    };
    through(
        appending,
        |_| {},
        |again| {
            assert!(fcntl_getfl(again).unwrap().contains(flags));
            rustix::io::write(again, b"!").unwrap();
            assert_eq!(content(again), b"content!");
        },
    );
}

#[test]
fn only_memory_files_without_a_path_are_taken() {
    let (reader, _writer) = rustix::pipe::pipe().unwrap();
    assert!(!MemfdHandler.can_preserve(&HostFile::from(reader)));
    let null = StdFile::open("/dev/null").unwrap();
    assert!(!MemfdHandler.can_preserve(&HostFile::from(OwnedFd::from(null))));
    let here = StdFile::open(std::env::current_exe().unwrap()).unwrap();
    assert!(!MemfdHandler.can_preserve(&HostFile::from(OwnedFd::from(here))));
    let path_only = reopened(&memfd(b""), OFlags::PATH);
    assert!(!MemfdHandler.can_preserve(&path_only));
}

#[test]
fn what_cannot_be_kept_is_refused_with_a_reason() {
    let carrier = keeper();
    let refused = |file: &HostFile, says: &str| {
        assert!(MemfdHandler.can_preserve(file));
        let failure = MemfdHandler.prepare(file, &carrier).unwrap_err();
        assert_eq!(failure.errno(), Errno::OpNotSupp);
        assert!(failure.reason().contains(says), "{failure}");
    };
    refused(&reopened(&memfd(b""), OFlags::WRONLY), "writing only");
    match memfd_create("luo-test", MemfdFlags::CLOEXEC | MemfdFlags::HUGETLB) {
        Ok(fd) => refused(&HostFile::from(fd), "huge pages"),
        Err(error) => eprintln!("SKIPPED: no memfds of huge pages here: {error}"),
    }
    assert_eq!(left(&carrier), 0);
}

#[test]
fn a_refusal_that_only_freeze_can_see_leaves_what_prepare_kept_to_be_cancelled() {
    let carrier = keeper();
    let file = memfd(b"content");
    let data = MemfdHandler.prepare(&file, &carrier).unwrap();
    // Cancelled by the framework: it forgets every handle that was kept.
    MemfdHandler.cancel(&file, data, &carrier);
    carrier.forget(Handle(data));
    assert_eq!(left(&carrier), 0);
    assert_eq!(content(&file), b"content");
    assert_eq!(MemfdHandler.freeze(&file, data, &carrier).unwrap_err().errno(), Errno::NoEnt);
}

#[test]
fn a_damaged_record_or_other_memory_is_that_files_error() {
    let carrier = Copier::default();
    let file = memfd(b"content");
    let data = MemfdHandler.prepare(&file, &carrier).unwrap();
    let data = MemfdHandler.freeze(&file, data, &carrier).unwrap();
    let record = carrier.get(Handle(data)).unwrap();
    let refused = |bytes: Vec<u8>, expected: Errno| {
        let handle = carrier.put(bytes);
        let failure = MemfdHandler.retrieve(handle.0, &carrier).unwrap_err();
        assert_eq!(failure.errno(), expected, "{failure}");
        // It can still be finished, and releases itself.
        MemfdHandler.finish(None, handle.0, false, &carrier);
        assert!(carrier.get(handle).is_err());
    };
    refused(Vec::new(), Errno::Inval);
    refused(record[..record.len() - 1].to_vec(), Errno::Inval);
    refused([&record[..], &[0]].concat(), Errno::Inval);
    let with = |edit: fn(&mut MemfdRecord)| {
        let mut record = MemfdRecord::decode(&record).unwrap();
        edit(&mut record);
        record.encode().unwrap()
    };
    // More than came back. (Within the page that the carrier rounds up to it cannot be told.)
    refused(with(|record| record.size = 5000), Errno::Inval);
    let other = carrier.put(with(|record| record.memory = 999));
    let failure = MemfdHandler.retrieve(other.0, &carrier).unwrap_err();
    assert_eq!(failure.errno(), Errno::NoEnt);
    assert_eq!(MemfdHandler.retrieve(12345, &carrier).unwrap_err().errno(), Errno::NoEnt);
}

#[test]
fn memory_that_has_other_seals_than_recorded_is_refused() {
    let carrier = keeper();
    let file = memfd(b"content");
    let data = MemfdHandler.prepare(&file, &carrier).unwrap();
    let data = MemfdHandler.freeze(&file, data, &carrier).unwrap();
    fcntl_add_seals(&file, SealFlags::GROW).unwrap();
    let failure = MemfdHandler.retrieve(data, &carrier).unwrap_err();
    assert_eq!(failure.errno(), Errno::Inval);
    assert!(failure.reason().contains("seals"), "{failure}");
}
