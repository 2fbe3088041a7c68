//! Any bytes as an arena: no panic, and whatever is taken for valid is encoded to the same bytes.
//! The checksums are put right first, else nothing behind them would ever be reached.
#![no_main]

use libfuzzer_sys::fuzz_target;
use luo_abi::arena::{Catalogue, SUPERBLOCK_SIZE, Superblock, checksum, find};

fuzz_target!(|bytes: &[u8]| {
    let _ = find(bytes, bytes.get(SUPERBLOCK_SIZE..).unwrap_or_default(), bytes.len() as u64, None);
    let Some((blocks, catalogue)) = bytes.split_at_checked(2 * SUPERBLOCK_SIZE) else { return };
    let mut block = blocks[..SUPERBLOCK_SIZE].to_vec();
    block[16..24].fill(0);
    let sum = checksum(&block);
    block[16..24].copy_from_slice(&sum.to_le_bytes());
    let Ok(mut superblock) = Superblock::decode(&block) else { return };
    assert!(superblock.encode() == block[..]);
    let Some(place) = superblock.catalogue.as_mut() else { return };
    (place.len, place.checksum) = (catalogue.len() as u64, checksum(catalogue));
    if let Ok(decoded) = Catalogue::decode(catalogue, &superblock) {
        let objects = decoded.objects.iter();
        let again = Catalogue::encode(superblock.arena, superblock.generation, objects);
        assert!(again == catalogue);
    }
});
