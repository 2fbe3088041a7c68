//! Tests of shared memory.

use rustix::fs::{MemfdFlags, SealFlags};

use super::*;

fn plain_memfd(len: u64) -> OwnedFd {
    let fd = rustix::fs::memfd_create(c"plain", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)
        .unwrap();
    rustix::fs::ftruncate(&fd, len).unwrap();
    fd
}

#[test]
fn every_offset_and_length_copies_exactly_its_bytes() {
    let memory = Memory::create("copies", 64).unwrap();
    for offset in 0..24_usize {
        for count in 0..=(40 - offset) {
            memory.write_at(0, &[0xee; 64]).unwrap();
            let bytes: Vec<u8> = (0..count).map(|i| (offset * 7 + i) as u8).collect();
            memory.write_at(offset as u64, &bytes).unwrap();
            let mut expected = [0xee; 64];
            expected[offset..offset + count].copy_from_slice(&bytes);
            let mut all = [0; 64];
            memory.read_at(0, &mut all).unwrap();
            assert_eq!(all, expected);
            let mut part = vec![0; count];
            memory.read_at(offset as u64, &mut part).unwrap();
            assert_eq!(part, bytes);
        }
    }
}

#[test]
fn an_access_past_the_end_is_refused_and_changes_nothing() {
    let memory = Memory::create("bounds", 13).unwrap();
    assert_eq!(memory.len(), 13);
    memory.write_at(8, b"tails").unwrap();
    assert!(matches!(
        memory.write_at(9, b"tails"),
        Err(MemoryError::OutOfBounds { offset: 9, count: 5, len: 13 })
    ));
    assert!(matches!(memory.write_at(u64::MAX, b"x"), Err(MemoryError::OutOfBounds { .. })));
    assert!(matches!(memory.read_at(14, &mut []), Err(MemoryError::OutOfBounds { .. })));
    memory.read_at(13, &mut []).unwrap();
    assert!(matches!(memory.load_u64(8), Err(MemoryError::OutOfBounds { .. })));
    assert!(matches!(memory.store_u64(4, 1), Err(MemoryError::Misaligned { offset: 4 })));
    let mut tail = [0; 5];
    memory.read_at(8, &mut tail).unwrap();
    assert_eq!(&tail, b"tails");
}

#[test]
fn what_is_written_is_there_in_another_mapping_of_the_same_file() {
    let mut first = Memory::create("shared", 4096).unwrap();
    first.grow(300 << 20).unwrap();
    first.write_at((300 << 20) - 3, b"end").unwrap();
    first.store_u64(16, 77).unwrap();
    let second = Memory::from_fd(first.as_fd().try_clone_to_owned().unwrap()).unwrap();
    drop(first);
    assert_eq!(second.len(), 300 << 20);
    assert_eq!(second.load_u64(16).unwrap(), 77);
    assert_eq!(second.compare_exchange_u64(16, 1, 2).unwrap(), Err(77));
    assert_eq!(second.compare_exchange_u64(16, 77, 78).unwrap(), Ok(77));
    let mut end = [0; 3];
    second.read_at((300 << 20) - 3, &mut end).unwrap();
    assert_eq!(&end, b"end");
}

#[test]
fn growth_by_another_process_is_no_shrink() {
    let mut first = Memory::create("both", 4096).unwrap();
    let mut second = Memory::from_fd(first.as_fd().try_clone_to_owned().unwrap()).unwrap();
    second.grow(1 << 20).unwrap();
    first.grow(8192).unwrap();
    assert_eq!(first.len(), 8192);
    assert!(matches!(first.grow(4096), Err(MemoryError::Shrink { len: 8192, new_len: 4096 })));
    assert_eq!(Memory::from_fd(first.into_fd().unwrap()).unwrap().len(), 1 << 20);
}

#[test]
fn memory_is_sealed_against_shrinking_and_closed_on_exec() {
    let memory = Memory::create("sealed", 4096).unwrap();
    assert!(rustix::fs::fcntl_get_seals(&memory).unwrap().contains(SealFlags::SHRINK));
    assert_eq!(rustix::fs::ftruncate(&memory, 0), Err(Errno::PERM));
    assert!(rustix::io::fcntl_getfd(&memory).unwrap().contains(rustix::io::FdFlags::CLOEXEC));

    let adopted = Memory::from_fd(plain_memfd(4096)).unwrap();
    assert_eq!(rustix::fs::ftruncate(&adopted, 0), Err(Errno::PERM));
}

#[test]
fn a_file_that_may_vanish_under_the_mapping_is_refused() {
    let fixed = plain_memfd(4096);
    rustix::fs::fcntl_add_seals(&fixed, SealFlags::SEAL).unwrap();
    assert!(matches!(Memory::from_fd(fixed), Err(MemoryError::Seal(Errno::PERM))));

    let (reader, _writer) = rustix::pipe::pipe().unwrap();
    assert!(matches!(Memory::from_fd(reader), Err(MemoryError::NotMemfd(_))));

    let read_only = plain_memfd(4096);
    rustix::fs::fcntl_add_seals(&read_only, SealFlags::WRITE).unwrap();
    assert!(matches!(
        Memory::from_fd(read_only),
        Err(MemoryError::Map { source: Errno::PERM, .. })
    ));
}

#[test]
fn memory_sealed_against_growth_stays_usable_after_the_refusal() {
    let mut memory = Memory::create("full", 4096).unwrap();
    rustix::fs::fcntl_add_seals(&memory, SealFlags::GROW).unwrap();
    assert!(matches!(
        memory.grow(8192),
        Err(MemoryError::Grow { new_len: 8192, source: Errno::PERM })
    ));
    memory.store_u64(4088, 5).unwrap();
    assert_eq!(memory.load_u64(4088).unwrap(), 5);
}

#[test]
fn a_name_that_the_kernel_cannot_take_is_refused() {
    assert!(matches!(Memory::create("a\0b", 1), Err(MemoryError::Name)));
    assert!(matches!(Memory::create(&"n".repeat(250), 1), Err(MemoryError::Name)));
    assert!(Memory::create("empty", 0).unwrap().is_empty());
}
