use super::*;

const MIB: u64 = 1 << 20;

#[test]
fn what_is_dropped_is_free_again_in_one_piece() {
    let space = Space::new(16 * MIB);
    let all = space.free();
    assert_eq!(all, 16 * MIB - DATA_START);
    let regions: Vec<Region> =
        (1..100).map(|n| space.allocate(n * 1000).expect("there is room")).collect();
    let taken: u64 = regions.iter().map(Region::len).sum();
    assert_eq!(space.free(), all - taken);
    let (odd, even): (Vec<_>, Vec<_>) =
        regions.into_iter().enumerate().partition(|(n, _)| n % 2 == 1);
    drop(odd);
    drop(even);
    assert_eq!((space.free(), space.longest()), (all, all));
}

#[test]
fn no_two_regions_share_a_block() {
    let space = Space::new(8 * MIB);
    let mut seen = std::collections::BTreeSet::new();
    let mut regions = Vec::new();
    while let Ok(region) = space.allocate(20_000) {
        for extent in region.extents() {
            assert!(extent.offset >= DATA_START && extent.end() <= 8 * MIB);
            assert_eq!((extent.offset % BLOCK, extent.len % BLOCK), (0, 0));
            for block in (extent.offset..extent.end()).step_by(BLOCK as usize) {
                assert!(seen.insert(block));
            }
        }
        regions.push(region);
    }
    assert!(space.free() < 20_480);
}

#[test]
fn a_full_arena_names_what_is_needed_and_free_and_takes_nothing() {
    let space = Space::new(MIB);
    let free = space.free();
    let error = space.allocate(2 * MIB).expect_err("too much");
    assert_eq!(error.errno(), Errno::NoSpc);
    assert!(error.reason().contains(&(2 * MIB).to_string()), "{error}");
    assert!(error.reason().contains(&free.to_string()), "{error}");
    assert_eq!(space.free(), free);
    assert_eq!(space.allocate(u64::MAX).expect_err("too much").errno(), Errno::NoSpc);
}

#[test]
fn a_fragmented_arena_still_gives_all_it_has() {
    let space = Space::new(4 * MIB);
    let mut regions: Vec<Option<Region>> = Vec::new();
    while let Ok(region) = space.allocate(BLOCK) {
        regions.push(Some(region));
    }
    regions.iter_mut().step_by(2).for_each(|region| *region = None);
    let free = space.free();
    assert_eq!(space.longest(), BLOCK);
    assert_eq!(space.allocate_whole(2 * BLOCK).expect_err("no such extent").errno(), Errno::NoSpc);
    let region = space.allocate(free).expect("all that is free");
    assert_eq!((region.len(), space.free()), (free, 0));
}

#[test]
fn large_regions_begin_where_huge_pages_do() {
    let space = Space::new(64 * MIB);
    let _small = space.allocate(BLOCK).expect("there is room");
    let large = space.allocate(5 * MIB).expect("there is room");
    assert_eq!(large.extents().len(), 1);
    assert_eq!(large.extents()[0].offset % HUGE, 0);
}

#[test]
fn what_is_not_used_of_a_region_is_freed() {
    let space = Space::new(MIB);
    let all = space.free();
    let mut region = space.allocate(10 * BLOCK).expect("there is room");
    let at = region.extents()[0].offset;
    let used = [(3, BLOCK), (1, 100), (4, 2 * BLOCK)]
        .map(|(block, len)| Extent { offset: at + block * BLOCK, len });
    region.keep_only(used.into_iter()).expect("these are within it");
    assert_eq!((region.len(), space.free()), (4 * BLOCK, all - 4 * BLOCK));
    let outside = Extent { offset: at, len: BLOCK };
    assert_eq!(region.keep_only([outside].into_iter()).expect_err("freed").errno(), Errno::Inval);
    assert_eq!(region.len(), 4 * BLOCK);
    drop(region);
    assert_eq!((space.free(), space.longest()), (all, all));
}

#[test]
fn what_is_in_use_cannot_be_claimed() {
    let space = Space::new(MIB);
    let all = space.free();
    let one = Extent { offset: DATA_START, len: 5 };
    let two = Extent { offset: DATA_START + BLOCK, len: 2 * BLOCK };
    let region = space.claim(&[two, one]).expect("both are free");
    assert_eq!(space.free(), all - 3 * BLOCK);
    let free = Extent { offset: DATA_START + 8 * BLOCK, len: BLOCK };
    assert!(space.claim(&[free, one]).is_err());
    assert!(space.claim(&[Extent { offset: 0, len: BLOCK }]).is_err());
    assert!(space.claim(&[Extent { offset: MIB, len: BLOCK }]).is_err());
    assert_eq!(space.free(), all - 3 * BLOCK, "what was refused has taken nothing");
    drop(region);
    assert_eq!(space.longest(), all);
}

#[test]
fn an_aligned_extent_is_aligned_or_there_is_none() {
    let space = Space::new(16 * MIB);
    let first = space.allocate_aligned(2 * MIB, 2 * MIB).unwrap();
    assert_eq!(first.extents(), [Extent { offset: 2 * MIB, len: 2 * MIB }]);
    let odd = space.allocate_aligned(5000, 4096).unwrap();
    assert_eq!(odd.len(), 8192);
    assert_eq!(space.allocate_aligned(14 * MIB, 2 * MIB).unwrap_err().errno(), Errno::NoSpc);
    let rest = space.allocate_aligned(10 * MIB, 2 * MIB).unwrap();
    assert!(rest.extents()[0].offset.is_multiple_of(2 * MIB));
    assert_eq!(space.allocate_aligned(0, 2 * MIB).unwrap_err().errno(), Errno::NoSpc);
}

#[test]
fn what_is_free_of_a_range_is_claimed_and_nothing_else() {
    let space = Space::new(MIB);
    let extent = |offset, len| Extent { offset, len };
    let all = space.free();
    let taken = space.claim(&[extent(0x10000, 4096), extent(0x20000, 4096)]).unwrap();
    // Odd ends take their whole blocks.
    let region = space.claim_free(extent(0xf001, 0x20000 - 0xf001 + 1));
    assert_eq!(region.extents(), [extent(0xf000, 4096), extent(0x11000, 0xf000)]);
    assert!(space.claim_free(extent(0x10000, 0x11000)).is_empty());
    assert_eq!(space.claim_free(extent(MIB, u64::MAX)).len(), 0);
    assert_eq!(space.claim_free(extent(0, 8193)).extents(), [extent(8192, 4096)]);
    drop((taken, region));
    assert_eq!(space.free(), all);
}
