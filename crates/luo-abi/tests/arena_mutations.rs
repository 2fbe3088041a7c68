//! A damaged arena never makes its reader panic or run on, and what is still taken for valid keeps
//! every rule.

mod common;

use common::Random;
use luo_abi::arena::{
    ArenaError, BLOCK, Catalogue, CataloguePlace, DATA_START, Kind, Object, Placed,
    SUPERBLOCK_SIZE, Superblock, checksum, find, handle,
};

const ARENAS: usize = 100_000;
const SEED: u64 = 0x6c75_6f5f_6172_656e;
const SIZE: u64 = 1 << 20;
/// What of a superblock is not reserved, and a little more.
const USED: usize = 136;

fn object(
    number: u64,
    kind: Kind<'static>,
    len: u64,
    pieces: &[Placed],
    sums: &[u64],
) -> Object<'static> {
    let (pieces, sums) = (pieces.to_vec().into(), sums.to_vec().into());
    Object { handle: handle(number), kind, len, pieces, sums }
}

fn piece(logical: u64, offset: u64, len: u64) -> Placed {
    Placed { logical, offset, len }
}

/// A superblock that leads to a catalogue.
fn arena(objects: &[Object<'static>], generation: u64) -> (Superblock, Vec<u8>) {
    let bytes = Catalogue::encode([1; 16], generation, objects.iter());
    let place = CataloguePlace {
        offset: DATA_START,
        len: bytes.len() as u64,
        checksum: Catalogue::checksum(&bytes, Catalogue::version(objects.iter())),
        handover: objects.last().unwrap().handle,
        version: Catalogue::version(objects.iter()),
    };
    let superblock = Superblock {
        arena: [1; 16],
        machine: [2; 16],
        generation,
        size: SIZE,
        written: 1,
        next_handle: 9,
        catalogue: Some(place),
    };
    (superblock, bytes)
}

fn seeds() -> Vec<(Superblock, Vec<u8>)> {
    let inline = |number, bytes: &[u8]| {
        object(number, Kind::Inline(bytes.to_vec().into()), bytes.len() as u64, &[], &[])
    };
    vec![
        arena(&[inline(1, b"x")], 3),
        arena(&[inline(1, b""), inline(2, b"second"), inline(8, b"third")], 4),
        arena(
            &[
                object(
                    1,
                    Kind::Memory,
                    200_001,
                    &[piece(4096, 0x10000, 8192), piece(196_608, 0x20000, 4096)],
                    &[7, 8],
                ),
                object(
                    2,
                    Kind::Bytes,
                    5000,
                    &[piece(0, 0x40000, 4096), piece(4096, 0x50000, 904)],
                    &[9],
                ),
                inline(4, b"handover"),
            ],
            4,
        ),
        arena(
            &[
                object(1, Kind::Memory, 1 << 40, &[], &[]),
                object(5, Kind::Bytes, 1, &[piece(0, 0x40000, 1)], &[1]),
            ],
            9,
        ),
        arena(
            &[
                object(2, Kind::Resident, 200_001, &[piece(0, 0x40000, 200_001)], &[]),
                object(3, Kind::Resident, 4096, &[piece(0, 0x20000, 4096)], &[]),
                inline(4, b"handover"),
            ],
            5,
        ),
        arena(
            &[
                Object::new_inline(handle(1), b"record".to_vec()),
                object(5, Kind::Bytes, 1, &[piece(0, 0x40000, 1)], &[1]),
                Object::new_inline(handle(6), b"".to_vec()),
                object(7, Kind::Resident, 4096, &[piece(0, 0x20000, 4096)], &[]),
                Object::new_inline(handle(8), b"handover".to_vec()),
            ],
            6,
        ),
    ]
}

/// The rules, checked in another way than the decoder does.
fn check_rules(catalogue: &Catalogue, superblock: &Superblock) {
    let mut taken = std::collections::BTreeSet::new();
    let mut take = |offset: u64, len: u64| {
        assert!(offset >= DATA_START && offset + len <= superblock.size);
        for block in offset / BLOCK..(offset + len).div_ceil(BLOCK) {
            assert!(taken.insert(block), "block {block} is there twice");
        }
    };
    let place = superblock.catalogue.unwrap();
    take(place.offset, place.len);
    let mut before = 0;
    for object in &catalogue.objects {
        assert!(object.handle > before);
        before = object.handle;
        let mut chunks = std::collections::BTreeSet::new();
        for piece in object.pieces.iter() {
            take(piece.offset, piece.len);
            chunks.extend(piece.logical / 65536..(piece.logical + piece.len).div_ceil(65536));
        }
        if object.kind == Kind::Resident {
            assert!(place.version >= 2 && object.sums.is_empty());
            let [whole] = *object.pieces else { panic!("{object:?}") };
            assert_eq!((whole.logical, whole.len), (0, object.len));
        } else if matches!(object.kind, Kind::Inline(_)) {
            assert!(chunks.is_empty());
            assert_eq!(object.sums.len(), usize::from(place.version >= 3));
        } else {
            assert_eq!(chunks.len(), object.sums.len());
        }
    }
    let handover = &catalogue.get(place.handover).unwrap().kind;
    assert!(matches!(handover, Kind::Bytes | Kind::Inline(_)));
}

#[test]
fn a_hundred_thousand_mutated_arenas_do_no_harm() {
    let mut random = Random::new(SEED);
    let seeds = seeds();
    let (mut valid, mut refused, mut superblocks) = (0, 0, 0);
    for round in 0..ARENAS {
        let (superblock, bytes) = &seeds[random.below(seeds.len())];
        let (other, others) = &seeds[random.below(seeds.len())];
        if round % 4 == 0 {
            let (block, donor) = (superblock.encode(), other.encode());
            let mut block = random.mutate(&block[..USED], &donor[..USED]);
            block.resize(SUPERBLOCK_SIZE, 0);
            if random.below(2) == 0 {
                block[16..24].fill(0);
                let sum = checksum(&block);
                block[16..24].copy_from_slice(&sum.to_le_bytes());
            }
            let cut =
                if random.below(8) == 0 { random.below(SUPERBLOCK_SIZE) } else { SUPERBLOCK_SIZE };
            let whole = other.encode();
            match find(&block[..cut], &whole, SIZE, Some(&[2; 16])) {
                // What is taken for valid is written the same again: no byte of it was overlooked.
                Ok(found) if found.place == 0 => {
                    assert!(found.superblock.encode() == block[..]);
                    superblocks += 1;
                }
                Ok(found) => assert_eq!(found.superblock, *other),
                Err(
                    ArenaError::Version { .. }
                    | ArenaError::OtherMachine { .. }
                    | ArenaError::Truncated { .. },
                ) => {}
                Err(error) => panic!("the other superblock is whole: {error}"),
            }
            continue;
        }
        let bytes = random.mutate(bytes, others);
        // Most of the time the superblock follows the change, so that the structure is reached.
        let mut superblock = *superblock;
        if random.below(8) > 0
            && let Some(place) = superblock.catalogue.as_mut()
        {
            place.len = bytes.len() as u64;
            place.checksum = Catalogue::checksum(&bytes, place.version);
        }
        match Catalogue::decode(&bytes, &superblock) {
            Ok(catalogue) => {
                check_rules(&catalogue, &superblock);
                let again =
                    Catalogue::encode([1; 16], superblock.generation, catalogue.objects.iter());
                assert!(again == bytes, "what is taken for valid is written the same again");
                valid += 1;
            }
            Err(ArenaError::Catalogue { offset, .. }) => {
                assert!(offset <= bytes.len() as u64);
                refused += 1;
            }
            Err(error) => panic!("{error}"),
        }
    }
    // Both ways must have been gone often, or the mutations test nothing.
    assert!(valid > ARENAS / 100, "{valid} valid");
    assert!(refused > ARENAS / 4, "{refused} refused");
    assert!(superblocks > ARENAS / 200, "{superblocks} superblocks");
}

#[test]
fn every_cut_and_every_flipped_bit_is_found() {
    let (superblock, bytes) = &seeds()[2];
    let block = superblock.encode();
    for end in 0..bytes.len() {
        assert!(Catalogue::decode(&bytes[..end], superblock).is_err());
    }
    for bit in 0..8 * bytes.len() {
        let mut damaged = bytes.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        assert!(Catalogue::decode(&damaged, superblock).is_err(), "bit {bit}");
    }
    for bit in 0..8 * USED {
        let mut damaged = block;
        damaged[bit / 8] ^= 1 << (bit % 8);
        assert!(Superblock::decode(&damaged).is_err(), "bit {bit}");
    }
}
