use super::*;
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};

/// Slots in memory. The other side sees them as a keeper would give them back: new descriptors,
/// no slot noted on the files.
#[derive(Default, Clone)]
struct Memory(Arc<(Mutex<BTreeMap<u64, Slot>>, AtomicU64)>);

impl Memory {
    fn map(&self) -> MutexGuard<'_, BTreeMap<u64, Slot>> {
        self.0.0.lock().unwrap()
    }

    fn other_side(&self) -> Self {
        let other = Self::default();
        for (key, slot) in &*self.map() {
            let again = |file: &HostFile| HostFile::from(file.try_clone_fd().unwrap());
            let files = slot.files.iter().map(again).collect();
            other.map().insert(*key, Slot { record: slot.record.clone(), files });
        }
        other
    }
}

impl Slots for Memory {
    fn allocate(&self, space: u8) -> u64 {
        key::make(space, key::FIRST + self.0.1.fetch_add(1, Ordering::Relaxed))
    }
    fn put(&self, key: u64, record: &[u8], files: &[&HostFile]) -> Result<(), Failure> {
        let files = files.iter().map(|f| (*f).clone()).collect();
        self.map().insert(key, Slot { record: record.to_vec(), files });
        Ok(())
    }
    fn rewrite(&self, key: u64, record: &[u8]) -> Result<(), Failure> {
        self.map().get_mut(&key).ok_or_else(|| missing(Handle(key)))?.record = record.to_vec();
        Ok(())
    }
    fn get(&self, key: u64) -> Option<Slot> {
        self.map().get(&key).cloned()
    }
    fn forget(&self, key: u64) {
        self.map().remove(&key);
    }
    fn keys(&self, space: u8) -> Vec<u64> {
        self.map().keys().copied().filter(|k| key::space(*k) == space).collect()
    }
}

fn memfd(bytes: &[u8]) -> HostFile {
    let file = StdFile::from(memfd_create("luo-test", MemfdFlags::CLOEXEC).unwrap());
    file.write_all_at(bytes, 0).unwrap();
    HostFile::from(OwnedFd::from(file))
}

fn carrier(slots: &Memory) -> KeeperCarrier<Memory> {
    KeeperCarrier::new(slots.clone()).unwrap()
}

fn errno<T: fmt::Debug>(result: Result<T, Failure>) -> Errno {
    result.unwrap_err().errno()
}

#[test]
fn live_memory_and_bytes_come_back_on_the_other_side() {
    let slots = Memory::default();
    let here = carrier(&slots);
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    let live = here.keep_live(&HostFile::from(reader)).unwrap();
    let memory = here.keep_memory(&memfd(b"content"), 7).unwrap();
    let short = here.keep_bytes(b"short").unwrap();
    let long_bytes: Vec<u8> = (0..MAX_INLINE * 3).map(|i| i as u8).collect();
    let long = here.keep_bytes(&long_bytes).unwrap();
    let none = here.keep_bytes(b"").unwrap();

    let there = carrier(&slots.other_side());
    rustix::io::write(&writer, b"x").unwrap();
    let mut byte = [0];
    rustix::io::read(there.live(live).unwrap(), &mut byte).unwrap();
    assert_eq!(&byte, b"x");
    let mut content = [0; 7];
    rustix::io::pread(there.memory(memory).unwrap(), &mut content, 0).unwrap();
    assert_eq!(&content, b"content");
    assert_eq!(there.bytes(short).unwrap(), b"short");
    assert_eq!(there.bytes(long).unwrap(), long_bytes);
    assert_eq!(there.bytes(none).unwrap(), b"");

    assert_eq!(errno(there.live(memory)), Errno::NoEnt);
    assert_eq!(errno(there.memory(live)), Errno::NoEnt);
    assert_eq!(errno(there.bytes(live)), Errno::NoEnt);
    for handle in [live, memory, short, long, none] {
        there.release(handle);
        assert_eq!(errno(there.bytes(handle)), Errno::NoEnt);
    }
    assert!(there.slots().map().is_empty());
}

#[test]
fn a_file_in_a_slot_is_not_sent_again_and_its_slot_stays_with_its_aliases() {
    let slots = Memory::default();
    let here = carrier(&slots);
    let file = memfd(b"abc");
    let own = key::make(9, 500);
    slots.put(own, b"the daemon's", &[&file]).unwrap();
    file.set_slot(Some(own));
    let live = here.keep_live(&file).unwrap();
    let memory = here.keep_memory(&file, 3).unwrap();
    let sent: usize = slots.map().values().map(|slot| slot.files.len()).sum();
    assert_eq!(sent, 1);

    // The agent is another one when the file's owner forgets it.
    let slots = slots.other_side();
    let there = carrier(&slots);
    there.forget_slot(own);
    there.forget(live);
    let mut content = [0; 3];
    rustix::io::pread(there.memory(memory).unwrap(), &mut content, 0).unwrap();
    assert_eq!(&content, b"abc");
    there.forget(memory);
    assert!(slots.map().is_empty(), "{:?}", slots.map());
}

#[test]
fn the_slot_of_a_file_without_aliases_goes_at_once() {
    let slots = Memory::default();
    let here = carrier(&slots);
    slots.put(500, b"", &[&memfd(b"")]).unwrap();
    here.forget_slot(500);
    assert!(slots.map().is_empty());
}

#[test]
fn an_alias_whose_slot_is_gone_is_that_objects_error() {
    let slots = Memory::default();
    let here = carrier(&slots);
    let file = memfd(b"abc");
    file.set_slot(Some(500));
    let handle = here.keep_live(&file).unwrap();
    assert_eq!(errno(here.live(handle)), Errno::Inval);
}

#[test]
fn memory_is_refreshed_with_its_new_length() {
    let slots = Memory::default();
    let here = carrier(&slots);
    let file = memfd(b"abcdef");
    let handle = here.keep_memory(&file, 3).unwrap();
    here.refresh_memory(handle, &file, 6).unwrap();
    assert_eq!(slots.get(handle.0).unwrap().files.len(), 1);
    assert_eq!(slots.get(handle.0).unwrap().record[8], 6);
    assert_eq!(errno(here.refresh_memory(handle, &file, 7)), Errno::Inval);
    assert_eq!(errno(here.refresh_memory(Handle(3), &file, 1)), Errno::NoEnt);
    let bytes = here.keep_bytes(b"x").unwrap();
    assert_eq!(errno(here.refresh_memory(bytes, &file, 1)), Errno::NoEnt);
}

#[test]
fn what_is_not_memory_is_not_kept_as_memory() {
    let here = carrier(&Memory::default());
    let (reader, _writer) = rustix::pipe::pipe().unwrap();
    assert_eq!(errno(here.keep_memory(&HostFile::from(reader), 0)), Errno::Inval);
    assert_eq!(errno(here.keep_memory(&memfd(b"abc"), 4)), Errno::Inval);
}

#[test]
fn the_handover_is_found_by_the_other_side_until_it_is_retired() {
    let slots = Memory::default();
    let here = carrier(&slots);
    assert_eq!(here.committed().unwrap(), None);
    for blob in [vec![1; 10], vec![2; 3 * MAX_INLINE], vec![3; 20]] {
        here.commit(&blob).unwrap();
        assert_eq!(here.committed().unwrap(), None, "this side found none");
        let there = carrier(&slots.other_side());
        assert_eq!(there.committed().unwrap(), Some(blob));
    }
    let there = carrier(&slots.other_side());
    there.forget(Handle(key::HANDOVER));
    assert!(carrier(&there.slots().other_side()).committed().unwrap().is_some());
    there.retire().unwrap();
    assert_eq!(carrier(&there.slots().other_side()).committed().unwrap(), None);
}

#[test]
fn damaged_records_are_errors_of_their_object_and_a_damaged_handover_of_all() {
    let slots = Memory::default();
    let here = carrier(&slots);
    let handle = here.keep_bytes(b"bytes").unwrap();
    let whole = slots.get(handle.0).unwrap().record;
    for damaged in [&whole[..5], &whole[..whole.len() - 1], &[&whole[..], b"x"].concat()[..]] {
        slots.put(handle.0, damaged, &[]).unwrap();
        assert_eq!(errno(here.bytes(handle)), Errno::Inval);
    }
    let long = here.keep_bytes(&[1; 2 * MAX_INLINE]).unwrap();
    let record = slots.get(long.0).unwrap().record;
    slots.put(long.0, &record, &[&memfd(b"short")]).unwrap();
    assert_eq!(errno(here.bytes(long)), Errno::Inval);
    slots.put(long.0, &record, &[]).unwrap();
    assert_eq!(errno(here.bytes(long)), Errno::Inval);
    slots.put(key::HANDOVER, b"?", &[]).unwrap();
    assert_eq!(errno(KeeperCarrier::new(slots)), Errno::Inval);
}

#[test]
fn long_work_learns_that_it_is_cancelled() {
    let here = carrier(&Memory::default());
    assert!(Keep::progress(&here, 1, 2).is_ok());
    let here = here.with_progress(Box::new(|_, _| Err(Failure::new(Errno::Canceled, "enough"))));
    assert_eq!(errno(Recall::progress(&here, 1, 2)), Errno::Canceled);
}
