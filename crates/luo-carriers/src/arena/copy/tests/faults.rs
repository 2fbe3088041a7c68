//! Wherever it fails: nothing leaks, and a further try succeeds.

use proptest::prelude::*;

use super::model::Memory;
use super::*;

/// What fails.
#[derive(Debug, Clone, Copy)]
enum Broken {
    Write,
    Allocate,
    Progress,
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_failure_of_any_call_leaks_nothing_and_a_further_try_is_right(
        [first, second] in [Memory::any(), Memory::any()],
        run in 1..40_u64,
        seed in any::<u64>(),
        back in any::<bool>(),
    ) {
        let source = memfd();
        for broken in [Broken::Write, Broken::Allocate, Broken::Progress] {
            for call in 0.. {
                let store = Store::new(1200, run, seed);
                let old = first.put(&source);
                let len = old.len() as u64;
                let mut chunks =
                    copy_in(source.as_fd(), len, &store, &store, &go_on).expect("copies in");
                let before = chunks.clone();
                let new = second.put(&source);
                let len = new.len() as u64;
                let fuse = match broken {
                    Broken::Write => &store.writes,
                    Broken::Allocate => &store.allocations,
                    Broken::Progress => &Fuse(AtomicI64::new(call)),
                };
                fuse.0.store(call, Ordering::Relaxed);
                let progress = fail_at(if matches!(broken, Broken::Progress) { call } else { -1 });
                if refresh(&mut chunks, source.as_fd(), len, &store, &store, &progress).is_ok() {
                    // There are fewer calls than that.
                    prop_assert!(!matches!(broken, Broken::Progress) || call > 0);
                    break;
                }
                fuse.0.store(-1, Ordering::Relaxed);
                store.assert_holds_exactly(&chunks);
                prop_assert_eq!(&chunks.extents, &before.extents);
                prop_assert_eq!(chunks.len, before.len);
                // Also where the memory has become again what it was before the failure.
                let wanted = if back { first.put(&source) } else { new };
                let len = wanted.len() as u64;
                refresh(&mut chunks, source.as_fd(), len, &store, &store, &go_on)
                    .expect("a further try");
                store.assert_holds_exactly(&chunks);
                prop_assert!(out(&chunks, &store).0 == wanted, "{:?} {}", broken, call);
            }
        }
    }

    #[test]
    fn a_first_copy_that_fails_leaves_nothing_behind(
        memory in Memory::any(), run in 1..40_u64, seed in any::<u64>(),
    ) {
        let source = memfd();
        let bytes = memory.put(&source);
        for call in 0.. {
            let store = Store::new(600, run, seed);
            store.writes.0.store(call, Ordering::Relaxed);
            if copy_in(source.as_fd(), bytes.len() as u64, &store, &store, &go_on).is_ok() {
                break;
            }
            prop_assert!(store.taken().is_empty());
        }
        for call in 0.. {
            let store = Store::new(600, run, seed);
            if copy_in(source.as_fd(), bytes.len() as u64, &store, &store, &fail_at(call)).is_ok() {
                prop_assert!(call > 0, "progress is asked");
                break;
            }
            prop_assert!(store.taken().is_empty());
        }
    }
}

#[test]
fn a_medium_that_is_full_says_so_and_keeps_what_was_there() {
    let store = Store::new(20, 4, 3);
    let source = memfd();
    fill(&source, &[1; 10 * 4096], |_| false);
    let mut chunks =
        copy_in(source.as_fd(), 10 * PAGE, &store, &store, &go_on).expect("there is room");
    fill(&source, &[2; 30 * 4096], |_| false);
    let failure = refresh(&mut chunks, source.as_fd(), 30 * PAGE, &store, &store, &go_on)
        .expect_err("there is no room");
    assert_eq!(failure.errno(), Errno::NoSpc);
    store.assert_holds_exactly(&chunks);
    // Space that was given back by the same call could not be used, but by a further one it can.
    refresh(&mut chunks, source.as_fd(), 20 * PAGE, &store, &store, &go_on).expect("fits");
    assert_eq!(out(&chunks, &store).0, [2; 20 * 4096]);
}

#[test]
fn a_medium_or_a_target_that_fails_fails_the_copy_out() {
    let store = Store::new(400, 4, 3);
    let source = memfd();
    fill(&source, &vec![1; 300 * 4096], |at| at % 7 == 0);
    let chunks =
        copy_in(source.as_fd(), 300 * PAGE, &store, &store, &go_on).expect("there is room");
    for call in 0.. {
        store.reads.0.store(call, Ordering::Relaxed);
        let target = memfd();
        match copy_out(&chunks, &store, target.as_fd(), true, &go_on) {
            Ok(()) => {
                assert!(call > 4, "only {call} reads");
                break;
            }
            Err(failure) => assert_eq!(failure.errno(), Errno::Io),
        }
    }
    store.reads.0.store(-1, Ordering::Relaxed);
    let failure = copy_out(&chunks, &store, memfd().as_fd(), true, &fail_at(1)).expect_err("stops");
    assert_eq!(failure.errno(), Errno::Canceled);
    let closed = std::fs::File::open("/dev/null").expect("there is one");
    copy_out(&chunks, &store, closed.as_fd(), true, &go_on).expect_err("no memory file");
}

#[test]
fn a_source_that_cannot_be_read_is_refused() {
    use rustix::fs::{Mode, OFlags, open};
    use std::os::fd::AsRawFd as _;
    let file = memfd();
    fill(&file, &[1; 4096], |_| false);
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let blind = open(path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty()).expect("opens");
    let store = Store::new(20, 4, 3);
    let failure =
        copy_in(blind.as_fd(), PAGE, &store, &store, &go_on).expect_err("not for reading");
    assert_eq!(failure.errno(), Errno::BadF);
    let failure = copy_in(file.as_fd(), u64::MAX, &store, &store, &go_on).expect_err("no length");
    assert_eq!(failure.errno(), Errno::Inval);
    assert!(store.taken().is_empty());
}
