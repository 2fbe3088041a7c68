//! What must hold of the store: it is a map, it is there again whenever its memory is opened anew, and a kill at
//! any of its writes leaves the old or the new value.

use std::cell::Cell;
use std::collections::{HashMap, HashSet};
use std::os::fd::{AsFd, OwnedFd};

use kv::store::{Expiry, MAX_KEY, MAX_VALUE, Region, RegionError, Store, StoreError};
use luo_sys::Memory;
use proptest::prelude::*;

const LIMIT: u64 = 64 << 20;

fn dup(fd: impl AsFd) -> OwnedFd {
    fd.as_fd().try_clone_to_owned().unwrap()
}

fn reopen(store: Store) -> Store {
    let fd = store.into_fd().unwrap();
    Store::from_fd(fd, LIMIT).unwrap()
}

fn value<R: Region>(store: &mut Store<R>, key: &[u8], now: u64) -> Option<Vec<u8>> {
    let entry = store.get(key, now).unwrap()?;
    let mut out = Vec::new();
    store.read_value(&entry, &mut out).unwrap();
    Some(out)
}

fn keys<R: Region>(store: &mut Store<R>, now: u64) -> HashSet<Vec<u8>> {
    let (mut found, mut cursor) = (HashSet::new(), 0);
    loop {
        cursor =
            store.scan(cursor, 10, now, &mut |key| assert!(found.insert(key.to_vec()))).unwrap();
        if cursor == 0 {
            return found;
        }
    }
}

#[derive(Debug, Clone)]
enum Op {
    Set(u8, usize, Option<u64>),
    Append(u8, usize),
    Delete(u8),
    Expire(u8, Option<u64>),
    Advance(u64),
    Sweep,
    Flush,
    Reclaim,
    Reopen,
}

fn op() -> impl Strategy<Value = Op> {
    let len = prop_oneof![4 => 0..200_usize, 1 => 0..20_000_usize];
    prop_oneof![
        8 => (any::<u8>(), len.clone(), proptest::option::weighted(0.2, 1..50_u64)).prop_map(|(k, n, t)| Op::Set(k, n, t)),
        4 => (any::<u8>(), len).prop_map(|(k, n)| Op::Append(k, n)),
        4 => any::<u8>().prop_map(Op::Delete),
        1 => (any::<u8>(), proptest::option::of(1..50_u64)).prop_map(|(k, t)| Op::Expire(k, t)),
        1 => (1..20_u64).prop_map(Op::Advance),
        1 => Just(Op::Sweep),
        1 => Just(Op::Flush),
        1 => Just(Op::Reclaim),
        2 => Just(Op::Reopen),
    ]
}

fn key_of(key: u8) -> Vec<u8> {
    // Some keys are longer than a word, and one is empty.
    format!("{key}").repeat(usize::from(key % 20)).into_bytes()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn the_store_is_a_map_that_survives_being_opened_anew(ops in proptest::collection::vec(op(), 1..120)) {
        let mut store = Store::create(LIMIT).unwrap();
        let mut model: HashMap<Vec<u8>, (Vec<u8>, Option<u64>)> = HashMap::new();
        let mut now = 1000;
        for (turn, op) in ops.into_iter().enumerate() {
            let fill = |len: usize| -> Vec<u8> { (0..len).map(|i| (i * 31 + turn * 17) as u8).collect() };
            match op {
                Op::Set(key, len, ttl) => {
                    let expiry = ttl.map_or(Expiry::Never, |ttl| Expiry::At(now + ttl));
                    store.set(&key_of(key), &fill(len), expiry).unwrap();
                    model.insert(key_of(key), (fill(len), ttl.map(|ttl| now + ttl)));
                }
                Op::Append(key, len) => {
                    let new_len = store.append(&key_of(key), &fill(len), now).unwrap();
                    let entry = model.entry(key_of(key)).or_default();
                    entry.0.extend_from_slice(&fill(len));
                    prop_assert_eq!(new_len, entry.0.len());
                }
                Op::Delete(key) => {
                    let was = model.remove(&key_of(key)).is_some();
                    prop_assert_eq!(store.delete(&key_of(key), now).unwrap(), was);
                }
                Op::Expire(key, ttl) => {
                    let at = ttl.map(|ttl| now + ttl);
                    let was = model.get_mut(&key_of(key)).map(|entry| entry.1 = at).is_some();
                    prop_assert_eq!(store.expire(&key_of(key), at, now).unwrap(), was);
                }
                Op::Advance(ms) => now += ms,
                Op::Sweep => store.sweep(1000, now).unwrap(),
                Op::Flush => {
                    store.flush_all().unwrap();
                    model.clear();
                }
                Op::Reclaim => { store.reclaim(7).unwrap(); }
                Op::Reopen => store = reopen(store),
            }
            model.retain(|_, (_, expires)| expires.is_none_or(|at| at > now));
        }
        let mut store = reopen(store);
        store.check().unwrap();
        prop_assert_eq!(keys(&mut store, now), model.keys().cloned().collect::<HashSet<_>>());
        for (key, (expected, expires)) in &model {
            let entry = store.get(key, now).unwrap().unwrap();
            prop_assert_eq!(entry.expires(), *expires);
            prop_assert_eq!(value(&mut store, key, now), Some(expected.clone()));
        }
        store.sweep(1000, now).unwrap();
        while store.reclaim(1000).unwrap() {}
        let stats = store.stats().unwrap();
        prop_assert_eq!(stats.keys, model.len() as u64);
        prop_assert_eq!(stats.expiring, model.values().filter(|entry| entry.1.is_some()).count() as u64);
        for key in model.keys() {
            store.delete(key, now).unwrap();
        }
        prop_assert_eq!(store.stats().unwrap().live_bytes, 0);
    }
}

/// Memory whose process is killed after some number of words: the write that crosses the number is torn there.
struct Mortal {
    memory: Memory,
    words_left: Cell<u64>,
}

impl Region for Mortal {
    fn len(&self) -> u64 {
        self.memory.len()
    }

    fn grow(&mut self, new_len: u64) -> Result<(), RegionError> {
        Ok(self.memory.grow(new_len)?)
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> Result<(), RegionError> {
        Ok(self.memory.read_at(offset, out)?)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<(), RegionError> {
        let words = (bytes.len() as u64).div_ceil(8);
        let allowed = words.min(self.words_left.get());
        self.memory.write_at(offset, &bytes[..bytes.len().min(allowed as usize * 8)])?;
        self.words_left.set(self.words_left.get() - allowed);
        if allowed < words { Err("killed".into()) } else { Ok(()) }
    }

    fn load_u64(&self, offset: u64) -> Result<u64, RegionError> {
        Ok(self.memory.load_u64(offset)?)
    }

    fn store_u64(&self, offset: u64, value: u64) -> Result<(), RegionError> {
        if self.words_left.get() == 0 {
            return Err("killed".into());
        }
        self.words_left.set(self.words_left.get() - 1);
        Ok(self.memory.store_u64(offset, value)?)
    }
}

type Content = HashMap<Vec<u8>, Vec<u8>>;

/// Opens and checks what is in a memory, and empties it to see that no block was lost.
fn content(fd: OwnedFd) -> Content {
    let mut store = Store::from_fd(fd, LIMIT).unwrap();
    store.check().unwrap();
    while store.reclaim(1000).unwrap() {}
    store.check().unwrap();
    let content: Content = keys(&mut store, 0)
        .into_iter()
        .map(|key| {
            let value = value(&mut store, &key, 0).unwrap();
            (key, value)
        })
        .collect();
    assert_eq!(store.stats().unwrap().keys, content.len() as u64, "the count must match");
    content
}

fn copy(memory: &Memory) -> OwnedFd {
    let copy = Memory::create("copy", memory.len()).unwrap();
    let mut bytes = vec![0; memory.len() as usize];
    memory.read_at(0, &mut bytes).unwrap();
    copy.write_at(0, &bytes).unwrap();
    copy.into_fd().unwrap()
}

/// Kills `change` after each number of written words until it gets through, and checks what is left.
fn killed_anywhere(
    prepare: impl Fn(&mut Store),
    change: impl Fn(&mut Store<Mortal>) -> Result<(), StoreError>,
) {
    // Small, so that a copy for each kill is cheap.
    let mut base = Store::format(Memory::create("base", 16 << 10).unwrap(), LIMIT).unwrap();
    prepare(&mut base);
    let base = Memory::from_fd(base.into_fd().unwrap()).unwrap();
    let old = content(copy(&base));
    let new = {
        let memory = Memory::from_fd(copy(&base)).unwrap();
        let fd = dup(&memory);
        let mut store =
            Store::open(Mortal { memory, words_left: Cell::new(u64::MAX) }, LIMIT).unwrap();
        change(&mut store).unwrap();
        content(fd)
    };
    let (mut saw_old, mut saw_new) = (false, false);
    for words in 0.. {
        let memory = Memory::from_fd(copy(&base)).unwrap();
        let fd = dup(&memory);
        // One word more: opening stores one itself.
        let mut store =
            Store::open(Mortal { memory, words_left: Cell::new(words + 2) }, LIMIT).unwrap();
        let result = change(&mut store);
        drop(store);
        let found = content(fd);
        assert!(found == old || found == new, "killed after {words} words");
        saw_old |= found == old;
        saw_new |= found == new;
        if result.is_ok() {
            assert!(found == new);
            break;
        }
    }
    assert!(saw_old && saw_new);
}

fn three_keys(store: &mut Store) {
    for key in [&b"a"[..], b"key", b"z"] {
        store.set(key, &[key[0]; 300], Expiry::Never).unwrap();
    }
    store.delete(b"z", 0).unwrap();
}

#[test]
fn a_kill_within_a_first_set_leaves_no_key_or_the_whole_key() {
    killed_anywhere(three_keys, |store| store.set(b"new", &[7; 150], Expiry::Never));
}

#[test]
fn a_kill_within_an_overwrite_leaves_the_old_value_or_the_new() {
    killed_anywhere(three_keys, |store| store.set(b"key", &[9; 300], Expiry::Never));
    killed_anywhere(three_keys, |store| store.set(b"key", b"shorter", Expiry::Never));
}

#[test]
fn a_kill_within_a_delete_leaves_the_key_or_not() {
    killed_anywhere(three_keys, |store| store.delete(b"key", 0).map(|_| ()));
}

#[test]
fn a_kill_within_an_append_leaves_the_old_value_or_the_new() {
    killed_anywhere(three_keys, |store| store.append(b"key", b"..", 0).map(|_| ()));
    killed_anywhere(three_keys, |store| store.append(b"key", &[5; 400], 0).map(|_| ()));
}

#[test]
fn a_kill_within_a_flush_leaves_all_or_nothing() {
    killed_anywhere(three_keys, Store::flush_all);
}

#[test]
fn a_kill_within_the_growth_of_the_table_loses_nothing() {
    let prepare = |store: &mut Store| {
        for key in 0..64_u8 {
            store.set(&[key], &[key; 9], Expiry::Never).unwrap();
        }
    };
    // The 65th entry splits the first bucket and takes a new segment; the 66th splits the second.
    killed_anywhere(prepare, |store| store.set(b"grows", b"x", Expiry::Never));
    let prepare = |store: &mut Store| {
        prepare(store);
        store.set(b"grows", b"x", Expiry::Never).unwrap();
    };
    killed_anywhere(prepare, |store| store.set(b"again", b"x", Expiry::Never));
}

#[test]
fn a_kill_while_a_flushed_table_is_freed_loses_no_block() {
    let prepare = |store: &mut Store| {
        three_keys(store);
        store.flush_all().unwrap();
    };
    // The change that is told apart comes last; all kills before it are within reclaiming.
    killed_anywhere(prepare, |store| {
        while store.reclaim(3)? {}
        store.set(b"after", b"x", Expiry::Never)
    });
}

#[test]
fn a_store_that_failed_within_a_change_refuses_until_it_is_opened_anew() {
    let memory = Memory::create("poisoned", 1 << 20).unwrap();
    let fd = dup(&memory);
    let mut store =
        Store::format(Mortal { memory, words_left: Cell::new(u64::MAX) }, LIMIT).unwrap();
    store.region().words_left.set(12);
    assert!(matches!(store.set(b"key", b"value", Expiry::Never), Err(StoreError::Region(_))));
    store.region().words_left.set(u64::MAX);
    assert!(matches!(store.set(b"key", b"value", Expiry::Never), Err(StoreError::Poisoned)));
    Store::from_fd(fd, LIMIT).unwrap().set(b"key", b"value", Expiry::Never).unwrap();
}

#[test]
fn what_is_no_store_or_a_store_of_another_version_is_refused() {
    let open = |memory: &Memory| Store::from_fd(dup(memory), LIMIT);
    assert!(matches!(open(&Memory::create("short", 100).unwrap()), Err(StoreError::NoStore)));
    assert!(matches!(open(&Memory::create("zeros", 1 << 20).unwrap()), Err(StoreError::NoStore)));

    let store = Store::create(LIMIT).unwrap();
    let memory = Memory::from_fd(store.into_fd().unwrap()).unwrap();
    memory.store_u64(8, 2).unwrap();
    assert!(matches!(open(&memory), Err(StoreError::Version { found: 2 })));
    memory.store_u64(8, 1).unwrap();
    open(&memory).unwrap();
    // The heap's end beyond the file, a redo log longer than its area, a table without buckets.
    for (word, wrong) in [(32, 1 << 40), (80, 100_000), (128, 0), (128, u64::MAX)] {
        let right = memory.load_u64(word).unwrap();
        memory.store_u64(word, wrong).unwrap();
        assert!(matches!(open(&memory), Err(StoreError::Corrupt(_))), "word {word}");
        memory.store_u64(word, right).unwrap();
    }
}

#[test]
fn damaged_entries_are_errors_and_never_panics() {
    let mut store = Store::create(LIMIT).unwrap();
    for key in 0..200_u8 {
        store.set(&[key], &[key; 40], Expiry::Never).unwrap();
    }
    let fd = store.into_fd().unwrap();
    let pristine = Memory::from_fd(fd).unwrap();
    let mut damaged = 0;
    for step in 0..400_u64 {
        let memory = Memory::from_fd(copy(&pristine)).unwrap();
        // Past the header's log: words of entries and of buckets.
        let word = 8192 + (step * 968) % (24 << 10) / 8 * 8;
        memory.store_u64(word, step.wrapping_mul(0x9e37_79b9_7f4a_7c15)).unwrap();
        let mut store = Store::open(memory, LIMIT).unwrap();
        for key in 0..200_u8 {
            damaged += usize::from(store.get(&[key], 0).is_err());
            damaged += usize::from(store.set(&[key], b"anew", Expiry::Never).is_err());
        }
        damaged += usize::from(store.scan(0, usize::MAX, 0, &mut |_| ()).is_err());
        damaged += usize::from(store.flush_all().is_err());
        damaged += usize::from(store.reclaim(10_000).is_err());
    }
    assert!(damaged > 0);
}

#[test]
fn a_full_store_refuses_and_can_be_emptied_and_used_again() {
    let limit = 2 << 20;
    let mut store = Store::create(limit).unwrap();
    let fill = |store: &mut Store| {
        for key in 0.. {
            match store.set(format!("{key}").as_bytes(), &[1; 10_000], Expiry::Never) {
                Ok(()) => {}
                Err(StoreError::Full { limit: found }) => {
                    assert_eq!(found, limit);
                    return key;
                }
                Err(error) => panic!("{error}"),
            }
        }
        0
    };
    let first = fill(&mut store);
    assert!(first > 150);
    assert_eq!(value(&mut store, b"0", 0).unwrap(), [1; 10_000]);
    for _ in 0..3 {
        store.flush_all().unwrap();
        assert_eq!(store.stats().unwrap().keys, 0);
        assert_eq!(fill(&mut store), first);
    }
    assert!(store.stats().unwrap().heap_bytes <= limit + (64 << 10));
}

#[test]
fn limits_of_keys_and_values_are_kept() {
    let mut store = Store::create(1 << 30).unwrap();
    store.set(&vec![1; MAX_KEY], b"x", Expiry::Never).unwrap();
    assert!(matches!(
        store.set(&vec![1; MAX_KEY + 1], b"x", Expiry::Never),
        Err(StoreError::KeyTooLong)
    ));
    store.set(b"large", &vec![2; MAX_VALUE], Expiry::Never).unwrap();
    assert!(matches!(
        store.set(b"large", &vec![2; MAX_VALUE + 1], Expiry::Never),
        Err(StoreError::ValueTooLong)
    ));
    assert!(matches!(store.append(b"large", b"x", 0), Err(StoreError::ValueTooLong)));
    assert_eq!(store.get(b"large", 0).unwrap().unwrap().len(), MAX_VALUE);
}

#[test]
fn tokens_are_never_given_twice_and_the_connection_in_service_is_remembered() {
    let mut store = Store::create(LIMIT).unwrap();
    let first = store.next_token().unwrap();
    store.set_busy(Some(first)).unwrap();
    let mut store = reopen(store);
    assert_eq!(store.busy().unwrap(), Some(first));
    assert!(store.next_token().unwrap() > first);
    store.set_busy(None).unwrap();
    assert_eq!(reopen(store).busy().unwrap(), None);
}
