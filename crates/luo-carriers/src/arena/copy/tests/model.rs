//! Whatever the memory was and becomes, what comes back is what it was last.

use proptest::prelude::*;

use super::*;

/// What a page of the memory holds.
#[derive(Debug, Clone, Copy)]
pub(super) enum Page {
    Hole,
    Zeros,
    /// Zeros but for one byte.
    Nearly(u16),
    Full(u8),
}

/// Runs of pages, and a length that need not be of whole pages.
#[derive(Debug, Clone)]
pub(super) struct Memory {
    pages: Vec<Page>,
    cut: u64,
}

impl Memory {
    pub(super) fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.pages.len() * PAGE as usize];
        for (page, bytes) in self.pages.iter().zip(bytes.chunks_mut(PAGE as usize)) {
            match page {
                Page::Hole | Page::Zeros => {}
                Page::Nearly(at) => bytes[*at as usize % PAGE as usize] = 1,
                Page::Full(seed) => {
                    for (at, byte) in bytes.iter_mut().enumerate() {
                        *byte = seed.wrapping_add((at >> 3) as u8) | 1;
                    }
                }
            }
        }
        bytes.truncate(bytes.len().saturating_sub(self.cut as usize));
        bytes
    }

    pub(super) fn put(&self, file: &OwnedFd) -> Vec<u8> {
        let bytes = self.bytes();
        fill(file, &bytes, |at| matches!(self.pages[at], Page::Hole));
        bytes
    }

    fn page() -> impl Strategy<Value = Page> {
        prop_oneof![
            Just(Page::Hole),
            Just(Page::Zeros),
            any::<u16>().prop_map(Page::Nearly),
            any::<u8>().prop_map(Page::Full),
        ]
    }

    pub(super) fn any() -> impl Strategy<Value = Self> {
        // Runs that often are of about a chunk, and altogether cross a few batches.
        let run = (Self::page(), prop_oneof![1..4_usize, 14..18_usize, 60..70_usize]);
        (prop::collection::vec(run, 0..8), prop_oneof![Just(0), 0..PAGE]).prop_map(|(runs, cut)| {
            Self { pages: runs.into_iter().flat_map(|(page, n)| vec![page; n]).collect(), cut }
        })
    }

    /// This, and then the same with some pages changed and perhaps another length.
    fn any_two() -> impl Strategy<Value = [Self; 2]> {
        let changes = prop::collection::vec((any::<prop::sample::Index>(), Self::page()), 0..6);
        let len = prop_oneof![3 => Just(None), 1 => (0..300_usize).prop_map(Some)];
        prop_oneof![
            1 => [Self::any(), Self::any()],
            4 => (Self::any(), changes, len, prop_oneof![2 => Just(None), 1 => (0..PAGE).prop_map(Some)])
                .prop_map(|(before, changes, len, cut)| {
                    let mut after = before.clone();
                    for (at, page) in changes.into_iter().filter(|_| !before.pages.is_empty()) {
                        after.pages[at.index(before.pages.len())] = page;
                    }
                    if let Some(len) = len {
                        after.pages.resize(len, Page::Hole);
                    }
                    after.cut = cut.unwrap_or(before.cut);
                    [before, after]
                }),
        ]
    }
}

/// How many pages hold a byte that is not zero.
fn full_pages(bytes: &[u8]) -> u64 {
    bytes.chunks(PAGE as usize).filter(|page| page.iter().any(|byte| *byte != 0)).count() as u64
}

/// The numbers of the chunks in which the two differ, holes and ends included.
fn differing(before: &[u8], after: &[u8]) -> u64 {
    let chunk = |bytes: &[u8], at: usize| bytes.chunks(CHUNK as usize).nth(at).map(<[u8]>::to_vec);
    let most = before.len().max(after.len()).div_ceil(CHUNK as usize);
    (0..most).filter(|at| chunk(before, *at) != chunk(after, *at)).count() as u64
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_comes_back_is_what_the_memory_was_last(
        [before, after] in Memory::any_two(), run in 1..40_u64, seed in any::<u64>(),
    ) {
        let store = Store::new(1200, run, seed);
        let source = memfd();

        let bytes = before.put(&source);
        let used = blocks(&source);
        let mut chunks =
            copy_in(source.as_fd(), bytes.len() as u64, &store, &store, &go_on).expect("copies in");
        prop_assert_eq!(blocks(&source), used, "reading fills no hole");
        prop_assert_eq!(chunks.stored(), full_pages(&bytes) * PAGE, "zeros are not stored");
        store.assert_holds_exactly(&chunks);
        let (back, memory) = out(&chunks, &store);
        prop_assert!(back == bytes, "copied in and out");
        prop_assert_eq!(memory, full_pages(&bytes) * PAGE, "holes stay holes");

        let changed = after.put(&source);
        let written = AtomicI64::new(0);
        let counting = Counting { store: &store, written: &written };
        refresh(&mut chunks, source.as_fd(), changed.len() as u64, &counting, &store, &go_on)
            .expect("refreshes");
        chunks.check().expect("what was made is right");
        store.assert_holds_exactly(&chunks);
        prop_assert!(out(&chunks, &store).0 == changed, "refreshed and out");
        let most = (differing(&bytes, &changed) * CHUNK) as i64;
        let written = written.into_inner();
        prop_assert!(written <= most, "{} written of {} that changed", written, most);

        // Shrunk to nothing, it gives everything back.
        refresh(&mut chunks, source.as_fd(), 0, &store, &store, &go_on).expect("shrinks");
        prop_assert_eq!(&chunks, &Chunks::default());
        prop_assert!(store.taken().is_empty());
    }

    #[test]
    fn a_change_in_the_medium_is_found_when_it_is_verified(
        memory in Memory::any(), at in any::<prop::sample::Index>(), bit in 0..8_u8,
    ) {
        let store = Store::new(600, 8, 1);
        let source = memfd();
        let bytes = memory.put(&source);
        let chunks =
            copy_in(source.as_fd(), bytes.len() as u64, &store, &store, &go_on).expect("copies in");
        prop_assume!(!chunks.extents.is_empty());
        let (logical, extent) = chunks.extents[at.index(chunks.extents.len())];
        let within = at.index(extent.len.min(bytes.len() as u64 - logical) as usize) as u64;
        store.bytes.lock().expect("no panic")[(extent.offset + within) as usize] ^= 1_u8 << bit;

        let target = memfd();
        let failure = copy_out(&chunks, &store, target.as_fd(), true, &go_on).expect_err("damaged");
        prop_assert_eq!(failure.errno(), Errno::Io);
        let chunk = (logical + within) / CHUNK * CHUNK;
        prop_assert!(failure.reason().contains(&format!("at {chunk}:")), "{}", failure.reason());
        let target = memfd();
        copy_out(&chunks, &store, target.as_fd(), false, &go_on).expect("not looked at");
    }
}

/// Counts the bytes that are written.
#[derive(Debug)]
struct Counting<'a> {
    store: &'a Store,
    written: &'a AtomicI64,
}

impl Medium for Counting<'_> {
    fn size(&self) -> u64 {
        self.store.size()
    }
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.store.read_at(offset, buffer)
    }
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.written.fetch_add(bytes.len() as i64, Ordering::Relaxed);
        self.store.write_at(offset, bytes)
    }
    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
    fn discard(&self, _: Extent) -> io::Result<()> {
        Ok(())
    }
    fn file(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

#[test]
fn chunks_that_cannot_be_are_refused_everywhere() {
    let extent = |offset, len| Extent { offset, len };
    let good = Chunks {
        len: 3 * CHUNK + 1,
        extents: vec![
            (0, extent(PAGE, PAGE)),
            (CHUNK - PAGE, extent(0, PAGE)),
            (2 * CHUNK, extent(8 * PAGE, CHUNK + PAGE)),
        ],
        sums: vec![7, 8, 9],
    };
    good.check().expect("is right");
    type Break = fn(&mut Chunks);
    let broken: [(&str, Break); 10] = [
        ("no page", |chunks| chunks.extents[0].0 = 1),
        ("no page in the medium", |chunks| chunks.extents[0].1.offset = 1),
        ("empty", |chunks| chunks.extents[0].1.len = 0),
        ("overlap", |chunks| chunks.extents[0].1.len = CHUNK),
        ("order", |chunks| chunks.extents.swap(0, 1)),
        ("beyond the end", |chunks| chunks.len -= 1),
        ("beyond any medium", |chunks| chunks.extents[0].1.offset = u64::MAX - PAGE + 1),
        ("no such length", |chunks| chunks.extents[2].1.len = u64::MAX - PAGE + 1),
        ("too few checksums", |chunks| chunks.sums.truncate(2)),
        ("a checksum of nothing", |chunks| chunks.sums[1] = 0),
    ];
    let (store, file) = (Store::new(64, 1, 1), memfd());
    for (what, break_it) in broken {
        let mut chunks = good.clone();
        break_it(&mut chunks);
        let before = chunks.clone();
        let errno = chunks.check().expect_err(what).errno();
        assert_eq!(errno, Errno::Inval, "{what}");
        refresh(&mut chunks, file.as_fd(), 0, &store, &store, &go_on).expect_err(what);
        assert_eq!(chunks, before, "{what}");
        copy_out(&chunks, &store, file.as_fd(), false, &go_on).expect_err(what);
    }
}
