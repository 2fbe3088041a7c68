//! The owner of the memory goes on with it while it is copied, and large memory is shared among
//! threads.

use std::sync::atomic::AtomicBool;
use std::thread;

use rustix::fs::{SeekFrom, seek, tell};

use super::*;

const MIB: usize = 1 << 20;

/// Bytes that differ from page to page and are not zero.
fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut bytes = Vec::with_capacity(len);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&(state | 0x0101_0101_0101_0101).to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

#[test]
fn an_owner_that_truncates_writes_and_grows_meanwhile_harms_nobody() {
    let source = memfd();
    let bytes = noise(20 * MIB, 5);
    fill(&source, &bytes, |_| false);
    let store = Store::new(6000, 64, 9);
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let owner = scope.spawn(|| {
            let mut round = 0_u64;
            while !over.load(Ordering::Relaxed) {
                round += 1;
                ftruncate(&source, round % 7 * 3 * MIB as u64).expect("shrinks");
                ftruncate(&source, 20 * MIB as u64).expect("grows");
                let page = noise(8 * 4096, round);
                for at in (0..20 * MIB as u64).step_by(MIB) {
                    pwrite(&source, &page, at + round % 5 * PAGE).expect("writes");
                }
            }
            round
        });
        // A run of it ends what the assertions may end early.
        struct Over<'a>(&'a AtomicBool);
        impl Drop for Over<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        let stop = Over(&over);
        let len = 20 * MIB as u64;
        let mut chunks =
            copy_in(source.as_fd(), len, &store, &store, &go_on).expect("copies meanwhile");
        let kept = Window::default();
        for round in 0..40 {
            let window = if round % 2 == 0 { &kept } else { &Window::default() };
            refresh_through(window, &mut chunks, source.as_fd(), len, &store, &store, &go_on)
                .expect("refreshes meanwhile");
            store.assert_holds_exactly(&chunks);
            // Whatever was stored, its checksums are its own.
            let target = memfd();
            copy_out(&chunks, &store, target.as_fd(), true, &go_on).expect("is verified");
        }
        drop(stop);
        assert!(owner.join().expect("no panic") > 0);
        // When the owner has stopped, a last refresh makes it right.
        refresh(&mut chunks, source.as_fd(), len, &store, &store, &go_on).expect("refreshes");
        assert!(out(&chunks, &store).0 == content(&source));
    });
}

#[test]
fn memory_large_enough_for_threads_comes_back_and_is_refreshed() {
    let source = memfd();
    let mut bytes = noise(40 * MIB + 4097, 7);
    bytes[10 * MIB..19 * MIB].fill(0);
    fill(&source, &bytes, |at| (10 * 256..14 * 256).contains(&at));
    let used = blocks(&source);
    let store = Store::new(12000, 5000, 11);
    let len = bytes.len() as u64;
    let mut chunks = copy_in(source.as_fd(), len, &store, &store, &go_on).expect("copies in");
    assert_eq!(blocks(&source), used, "reading fills no hole");
    store.assert_holds_exactly(&chunks);
    assert_eq!(chunks.stored(), (bytes.len() - 9 * MIB).next_multiple_of(4096) as u64);
    assert!(out(&chunks, &store).0 == bytes);

    for at in [0, 3 * MIB, 12 * MIB, 39 * MIB + 5] {
        bytes[at] ^= 0x10;
        pwrite(&source, &bytes[at..=at], at as u64).expect("writes");
    }
    refresh(&mut chunks, source.as_fd(), len, &store, &store, &go_on).expect("refreshes");
    store.assert_holds_exactly(&chunks);
    assert!(out(&chunks, &store).0 == bytes);

    // A failure in the middle of several threads' work.
    for at in (0..40 * MIB).step_by(4096) {
        bytes[at] ^= 0x20;
    }
    fill(&source, &bytes, |_| false);
    store.writes.0.store(60, Ordering::Relaxed);
    refresh(&mut chunks, source.as_fd(), len, &store, &store, &go_on).expect_err("a write fails");
    store.assert_holds_exactly(&chunks);
    refresh(&mut chunks, source.as_fd(), len, &store, &store, &go_on).expect("a further try");
    store.assert_holds_exactly(&chunks);
    assert!(out(&chunks, &store).0 == bytes);
}

#[test]
fn the_position_that_the_owner_shares_stays() {
    let source = memfd();
    fill(&source, &[3; 40 * 4096], |at| at % 3 == 0);
    seek(&source, SeekFrom::Start(12345)).expect("seeks");
    let store = Store::new(60, 4, 3);
    copy_in(source.as_fd(), 40 * PAGE, &store, &store, &go_on).expect("copies in");
    assert_eq!(tell(&source).expect("tells"), 12345);
}

#[test]
fn a_vast_file_with_little_in_it_costs_little() {
    let source = memfd();
    let len = 1_u64 << 46;
    ftruncate(&source, len).expect("grows");
    let places = [0, 1 << 30, (1 << 40) + 5 * PAGE, len - 1];
    for at in places {
        pwrite(&source, b"x", at).expect("writes");
    }
    let used = blocks(&source);
    let store = Store::new(60, 4, 3);
    let calls = Cell::new(0);
    let count = |_, _| {
        calls.set(calls.get() + 1);
        Ok(())
    };
    let chunks = copy_in(source.as_fd(), len, &store, &store, &count).expect("copies in");
    assert_eq!(blocks(&source), used, "reading fills no hole");
    assert_eq!(chunks.sums.len(), places.len());
    assert!(calls.get() < 40, "{} calls: holes were looked at", calls.get());

    let target = memfd();
    copy_out(&chunks, &store, target.as_fd(), true, &go_on).expect("copies out");
    assert_eq!(blocks(&target), used);
    assert_eq!(fstat(&target).expect("stat").st_size as u64, len);
    for at in places {
        let mut byte = [0];
        pread(&target, &mut byte, at).expect("reads");
        assert_eq!(&byte, b"x");
    }
}

#[test]
fn a_mapping_that_is_kept_shows_what_the_owner_has_done_since() {
    let source = memfd();
    let mut bytes = noise(3 * MIB + 100, 11);
    fill(&source, &bytes, |_| false);
    let store = Store::new(2000, 8, 3);
    let (window, mut chunks) = (Window::default(), Chunks::default());
    let refresh = |chunks: &mut Chunks, len: usize| {
        let source = source.as_fd();
        refresh_through(&window, chunks, source, len as u64, &store, &store, &go_on)
            .expect("refreshes");
    };
    refresh(&mut chunks, bytes.len());
    assert!(window.is_open(), "it has no holes");
    assert!(out(&chunks, &store).0 == bytes);
    // It is written to,
    bytes[MIB + 5] ^= 1;
    pwrite(&source, &bytes[MIB + 5..][..1], MIB as u64 + 5).expect("writes");
    refresh(&mut chunks, bytes.len());
    assert!(out(&chunks, &store).0 == bytes);
    // cut off and longer again, with a hole now,
    ftruncate(&source, MIB as u64).expect("shrinks");
    ftruncate(&source, bytes.len() as u64).expect("grows");
    bytes[MIB..].fill(0);
    let before = blocks(&source);
    refresh(&mut chunks, bytes.len());
    assert!(out(&chunks, &store).0 == bytes);
    assert_eq!(blocks(&source), before, "no hole was filled");
    // shorter than what is asked for,
    ftruncate(&source, MIB as u64).expect("shrinks");
    refresh(&mut chunks, bytes.len());
    assert!(out(&chunks, &store).0 == bytes);
    // and longer, all of it there.
    bytes = noise(5 * MIB, 13);
    fill(&source, &bytes, |_| false);
    refresh(&mut chunks, bytes.len());
    assert!(out(&chunks, &store).0 == bytes);
}

#[test]
fn an_owner_can_seal_memory_that_is_mapped_for_copying() {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let source = memfd_create("luo-copy-test", flags).expect("a memfd");
    let bytes = noise(2 * MIB, 17);
    fill(&source, &bytes, |_| false);
    let store = Store::new(2000, 8, 3);
    let (window, mut chunks) = (Window::default(), Chunks::default());
    let (fd, len) = (source.as_fd(), bytes.len() as u64);
    refresh_through(&window, &mut chunks, fd, len, &store, &store, &go_on).expect("copies");
    assert!(window.is_open());
    rustix::fs::fcntl_add_seals(&source, rustix::fs::SealFlags::WRITE).expect("seals");
    refresh_through(&window, &mut chunks, fd, len, &store, &store, &go_on).expect("copies");
    // And memory that was sealed before is copied, mapped or not.
    let late = Window::default();
    refresh_through(&late, &mut chunks, fd, len, &store, &store, &go_on).expect("copies");
    assert!(out(&chunks, &store).0 == bytes);
}
