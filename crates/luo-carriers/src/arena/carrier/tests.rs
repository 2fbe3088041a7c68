use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use super::*;
use crate::arena::store::MAX_INLINE;
use crate::arena::{Medium, View};

const MACHINE: [u8; 16] = [7; 16];
const MIB: u64 = 1 << 20;

fn memfd(bytes: &[u8]) -> HostFile {
    let file = File::from(memfd_create("luo-test", MemfdFlags::CLOEXEC).unwrap());
    file.write_all_at(bytes, 0).unwrap();
    HostFile::from(OwnedFd::from(file))
}

fn content(file: &HostFile) -> Vec<u8> {
    let file = File::from(file.try_clone_fd().unwrap());
    let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        })
        .collect()
}

struct Dir(tempfile::TempDir);

impl Dir {
    fn new(size: u64) -> Self {
        let dir = Self(tempfile::tempdir().unwrap());
        let medium = FileMedium::create(&dir.path(), size).unwrap();
        Arena::create(Arc::new(medium), MACHINE, false).unwrap();
        dir
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("arena")
    }

    fn medium(&self) -> Arc<FileMedium> {
        Arc::new(FileMedium::open(&self.path(), Access::Exclusive).unwrap())
    }

    fn carrier(&self) -> ArenaCarrier {
        ArenaCarrier::new(Arc::new(Arena::open(self.medium(), MACHINE).unwrap()), Reach::Power)
    }
}

#[test]
fn memory_bytes_and_handover_come_back_after_the_process_is_gone() {
    let dir = Dir::new(16 * MIB);
    let bytes = noise(3_000_000, 1);
    let (memory, short, long) = {
        let here = dir.carrier();
        assert_eq!(here.committed().unwrap(), None);
        let memory = here.keep_memory(&memfd(&bytes), bytes.len() as u64).unwrap();
        let short = here.keep_bytes(b"short").unwrap();
        let long = here.keep_bytes(&bytes[..200_000]).unwrap();
        here.commit(b"handover").unwrap();
        assert_eq!(here.committed().unwrap(), None, "that is what was found at the beginning");
        (memory, short, long)
    };
    let there = dir.carrier();
    assert_eq!(there.committed().unwrap().unwrap(), b"handover");
    assert_eq!(content(&there.memory(memory).unwrap()), bytes);
    assert_eq!(content(&there.memory(memory).unwrap()), bytes, "any number of times");
    assert_eq!(there.bytes(short).unwrap(), b"short");
    assert_eq!(there.bytes(long).unwrap(), &bytes[..200_000]);
    assert_eq!(there.bytes(memory).unwrap_err().errno(), Errno::NoEnt);
    assert_eq!(there.memory(short).unwrap_err().errno(), Errno::NoEnt);
    there.release(memory);
    assert_eq!(there.memory(memory).unwrap_err().errno(), Errno::NoEnt);
    there.retire().unwrap();
    assert_eq!(there.bytes(short).unwrap(), b"short", "until it is released");
    drop(there);
    let again = dir.carrier();
    assert_eq!(again.committed().unwrap(), None);
    assert_eq!(again.bytes(short).unwrap_err().errno(), Errno::NoEnt);
}

#[test]
fn a_damaged_record_is_the_loss_of_that_record_alone() {
    let dir = Dir::new(4 * MIB);
    let records = [&b"the first record"[..], b"the second record", b"", b"the fourth record"];
    let handles = {
        let here = dir.carrier();
        let handles = records.map(|record| here.keep_bytes(record).unwrap());
        here.commit(b"the handover").unwrap();
        handles
    };
    let image = std::fs::read(dir.path()).unwrap();
    let damage = |what: &[u8]| {
        let at = image.windows(what.len()).position(|bytes| bytes == what).unwrap();
        File::options()
            .write(true)
            .open(dir.path())
            .unwrap()
            .write_all_at(&[image[at] ^ 4], at as u64)
            .unwrap();
    };
    damage(records[1]);
    let there = dir.carrier();
    assert_eq!(there.committed().unwrap().unwrap(), b"the handover");
    let lost = |carrier: &ArenaCarrier| {
        for (handle, record) in handles.iter().zip(records) {
            if record == records[1] {
                let error = carrier.bytes(*handle).unwrap_err();
                assert_eq!(error.errno(), Errno::Io);
                assert!(error.reason().contains("is damaged"), "{error}");
            } else {
                assert_eq!(carrier.bytes(*handle).unwrap(), record);
            }
        }
    };
    lost(&there);
    let view = View::read(there.arena().medium(), Some(&MACHINE)).unwrap();
    let error = view.check(there.arena().medium(), false, &|_, _| Ok(())).unwrap_err();
    assert!(error.reason().contains(&format!("{:#x}", handles[1].0)), "{error}");
    // What is carried on is damaged still, and not made to look whole.
    there.commit(b"the handover").unwrap();
    drop(there);
    lost(&dir.carrier());
    // The handover itself is no single file's loss.
    std::fs::write(dir.path(), &image).unwrap();
    damage(b"the handover");
    assert_eq!(Arena::open(dir.medium(), MACHINE).unwrap_err().errno(), Errno::Io);
}

#[test]
fn an_arena_that_an_older_luo_has_written_is_read() {
    use luo_abi::arena::{Catalogue, CataloguePlace, Kind, Object, Superblock, handle};
    let dir = Dir::new(MIB);
    let inline = |number, bytes: &[u8]| Object {
        sums: Vec::new().into(),
        ..Object::new_inline(handle(number), bytes.to_vec())
    };
    let objects = [inline(1, b"an old record"), inline(2, b"an old handover")];
    assert!(objects.iter().all(|object| matches!(object.kind, Kind::Inline(_))));
    let bytes = Catalogue::encode([1; 16], 42, objects.iter());
    let place = CataloguePlace {
        offset: 8192,
        len: bytes.len() as u64,
        checksum: luo_abi::arena::checksum(&bytes),
        handover: handle(2),
        version: 1,
    };
    let superblock = Superblock {
        arena: [1; 16],
        machine: MACHINE,
        generation: 42,
        size: MIB,
        written: 1,
        next_handle: 3,
        catalogue: Some(place),
    };
    let block = superblock.encode();
    let written = [&block[..], &block[..], &bytes[..]].concat();
    dir.medium().write_at(0, &written).unwrap();
    let here = dir.carrier();
    assert_eq!(here.committed().unwrap().unwrap(), b"an old handover");
    assert_eq!(here.bytes(Handle(handle(1))).unwrap(), b"an old record");
    // What goes on with what is there keeps it readable, too.
    let new = here.keep_bytes(b"a new record").unwrap();
    here.commit(b"a new handover").unwrap();
    drop(here);
    let there = dir.carrier();
    assert_eq!(there.committed().unwrap().unwrap(), b"a new handover");
    assert_eq!(there.bytes(Handle(handle(1))).unwrap(), b"an old record");
    assert_eq!(there.bytes(new).unwrap(), b"a new record");
}

#[test]
fn what_was_not_committed_vanishes_and_its_space_is_free_again() {
    let dir = Dir::new(16 * MIB);
    let free = dir.carrier().arena().free();
    {
        let here = dir.carrier();
        here.keep_memory(&memfd(&noise(100_000, 1)), 100_000).unwrap();
        assert!(here.arena().free() < free);
    }
    assert_eq!(dir.carrier().arena().free(), free);
}

#[test]
fn what_is_forgotten_or_refused_gives_its_space_back() {
    let dir = Dir::new(4 * MIB);
    let here = dir.carrier();
    let first = here.keep_bytes(b"so that the catalogue has its room").unwrap();
    let free = here.arena().free();
    let memory = here.keep_memory(&memfd(&noise(1_000_000, 1)), 1_000_000).unwrap();
    here.forget(memory);
    assert_eq!(here.arena().free(), free);
    let error = here.keep_memory(&memfd(&noise(5_000_000, 1)), 5_000_000).unwrap_err();
    assert_eq!(error.errno(), Errno::NoSpc);
    assert!(error.reason().contains("free"), "{error}");
    assert_eq!(here.arena().free(), free);
    assert_eq!(here.keep_bytes(&noise(5_000_000, 1)).unwrap_err().errno(), Errno::NoSpc);
    assert_eq!(here.arena().free(), free);
    assert_eq!(here.bytes(first).unwrap(), b"so that the catalogue has its room");
    here.forget(Handle(1));
}

#[test]
fn a_full_arena_is_found_before_the_commit() {
    let dir = Dir::new(MIB);
    let here = dir.carrier();
    let mut kept = Vec::new();
    let error = loop {
        match here.keep_bytes(&noise(MAX_INLINE + kept.len() % 3, 5)) {
            Ok(handle) => kept.push(handle),
            Err(error) => break error,
        }
    };
    assert_eq!(error.errno(), Errno::NoSpc);
    here.commit(b"handover").expect("what was kept can be committed");
    drop(here);
    let there = dir.carrier();
    for (index, handle) in kept.iter().enumerate() {
        assert_eq!(there.bytes(*handle).unwrap(), noise(MAX_INLINE + index % 3, 5));
    }
}

#[test]
fn memory_that_changed_is_brought_up_to_date() {
    let dir = Dir::new(16 * MIB);
    let here = dir.carrier();
    let mut bytes = noise(1_000_000, 1);
    let memory = memfd(&bytes);
    let handle = here.keep_memory(&memory, 1_000_000).unwrap();
    bytes[500_000..600_000].copy_from_slice(&noise(100_000, 2));
    bytes.truncate(700_000);
    let file = File::from(memory.try_clone_fd().unwrap());
    file.set_len(700_000).unwrap();
    file.write_all_at(&bytes, 0).unwrap();
    here.refresh_memory(handle, &memory, 700_000).unwrap();
    here.commit(b"one").unwrap();
    // What is committed is not written over: it is the one before until the next commit.
    bytes[0] ^= 1;
    file.write_all_at(&bytes[..1], 0).unwrap();
    here.refresh_memory(handle, &memory, 700_000).unwrap();
    drop(here);
    let there = dir.carrier();
    let mut before = bytes.clone();
    before[0] ^= 1;
    assert_eq!(content(&there.memory(handle).unwrap()), before);
    let bytes_handle = there.keep_bytes(b"x").unwrap();
    let error = there.refresh_memory(bytes_handle, &memory, 1).unwrap_err();
    assert_eq!(error.errno(), Errno::NoEnt);
    assert_eq!(there.bytes(bytes_handle).unwrap(), b"x");
}

#[test]
fn a_failed_refresh_must_be_mended_before_the_commit() {
    let dir = Dir::new(4 * MIB);
    let here = dir.carrier();
    let memory = memfd(&noise(100_000, 1));
    let handle = here.keep_memory(&memory, 100_000).unwrap();
    let free = here.arena().free();
    let file = File::from(memory.try_clone_fd().unwrap());
    file.write_all_at(&noise(8_000_000, 2), 0).unwrap();
    let error = here.refresh_memory(handle, &memory, 8_000_000).unwrap_err();
    assert_eq!(error.errno(), Errno::NoSpc);
    assert_eq!(here.arena().free(), free);
    assert_eq!(here.commit(b"handover").unwrap_err().errno(), Errno::Io);
    here.refresh_memory(handle, &memory, 100_000).unwrap();
    here.commit(b"handover").unwrap();
    drop(here);
    assert_eq!(content(&dir.carrier().memory(handle).unwrap()), noise(100_000, 2));
}

#[test]
fn long_work_stops_when_it_is_told_to() {
    let dir = Dir::new(64 * MIB);
    let here = dir.carrier();
    let free = here.arena().free();
    let here = here.with_progress(Box::new(|_, _| Err(Failure::new(Errno::Canceled, "enough"))));
    let memory = memfd(&noise(20_000_000, 1));
    let error = here.keep_memory(&memory, 20_000_000).unwrap_err();
    assert_eq!(error.errno(), Errno::Canceled);
    assert_eq!(here.arena().free(), free);
}

#[test]
fn what_an_arena_cannot_do_it_refuses() {
    let dir = Dir::new(MIB);
    let here = dir.carrier();
    assert_eq!(here.keep_live(&memfd(b"x")).unwrap_err().errno(), Errno::OpNotSupp);
    assert_eq!(here.live(Handle(1)).unwrap_err().errno(), Errno::OpNotSupp);
    let (reader, _writer) = rustix::pipe::pipe().unwrap();
    let error = here.keep_memory(&HostFile::from(reader), 1).unwrap_err();
    assert_eq!(error.errno(), Errno::Inval);
    assert_eq!(here.keep_memory(&memfd(b"x"), 2).unwrap_err().errno(), Errno::Inval);
    assert_eq!(Keep::caps(&here), Caps::MEMORY | Caps::BYTES | Caps::RESIDENT);
    assert_eq!((here.name(), here.reach()), ("arena", Reach::Power));
}

#[test]
fn many_at_once_do_not_mix() {
    let dir = Dir::new(64 * MIB);
    let here = dir.carrier();
    let kept: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8_u64)
            .map(|n| {
                let here = &here;
                scope.spawn(move || {
                    (0..20)
                        .map(|i| {
                            let bytes = noise(10_000 * (i + 1), n * 100 + i as u64);
                            let file = memfd(&bytes);
                            let memory = here.keep_memory(&file, bytes.len() as u64).unwrap();
                            let gone = here.keep_bytes(&bytes).unwrap();
                            let handle = here.keep_bytes(&bytes[..i * 300]).unwrap();
                            here.forget(gone);
                            here.refresh_memory(memory, &file, bytes.len() as u64).unwrap();
                            (memory, handle, bytes)
                        })
                        .collect::<Vec<_>>()
                })
            })
            .collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    here.commit(b"handover").unwrap();
    drop(here);
    let there = dir.carrier();
    for (memory, handle, bytes) in &kept {
        assert_eq!(content(&there.memory(*memory).unwrap()), *bytes);
        let len = bytes.len() / 10_000 - 1;
        assert_eq!(there.bytes(*handle).unwrap(), &bytes[..len * 300]);
    }
    let view = View::read(there.arena().medium(), Some(&MACHINE)).unwrap();
    let checked = view.check(there.arena().medium(), true, &|_, _| Ok(())).unwrap();
    assert_eq!((checked.objects, checked.skipped), (8 * 20 * 2 + 1, 0));
}

#[test]
fn a_handle_is_never_given_out_twice_even_if_nothing_was_committed() {
    let dir = Dir::new(MIB);
    let mut before = Handle(0);
    for _ in 0..3 {
        let handle = dir.carrier().keep_bytes(b"x").unwrap();
        assert!(handle > before);
        before = handle;
    }
}

#[test]
fn damage_is_found_by_whoever_reads_and_by_a_full_check() {
    let dir = Dir::new(4 * MIB);
    let here = dir.carrier();
    let bytes = noise(300_000, 1);
    let memory = here.keep_memory(&memfd(&bytes), 300_000).unwrap();
    let kept = here.keep_bytes(&bytes).unwrap();
    here.commit(b"handover").unwrap();
    drop(here);
    for (handle, needle) in [(memory, 200_000), (kept, 200_000)] {
        let medium = dir.medium();
        let view = View::read(&*medium, Some(&MACHINE)).unwrap();
        let object = view.catalogue.get(handle.0).unwrap();
        let piece = object
            .pieces
            .iter()
            .find(|piece| (piece.logical..piece.logical + piece.len).contains(&needle))
            .unwrap();
        let at = piece.offset + needle - piece.logical;
        let mut byte = [0];
        medium.read_at(at, &mut byte).unwrap();
        medium.write_at(at, &[byte[0] ^ 4]).unwrap();
        let error = view.check(&*medium, true, &|_, _| Ok(())).unwrap_err();
        assert_eq!(error.errno(), Errno::Io);
        assert!(error.reason().contains(&format!("{:#x}", handle.0)), "{error}");
        drop(medium);
        let there = dir.carrier();
        let error = match there.memory(handle) {
            Err(error) if error.errno() == Errno::NoEnt => there.bytes(handle).unwrap_err(),
            result => result.unwrap_err(),
        };
        assert_eq!(error.errno(), Errno::Io);
        drop(there);
        dir.medium().write_at(at, &byte).unwrap();
    }
    let medium = dir.medium();
    let view = View::read(&*medium, None).unwrap();
    let checked = view.check(&*medium, false, &|_, _| Ok(())).unwrap();
    assert_eq!((checked.objects, checked.skipped > 300_000), (3, true));
}
