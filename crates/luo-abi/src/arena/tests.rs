use alloc::{borrow::Cow, string::ToString, vec, vec::Vec};
use std::borrow::ToOwned;

use super::*;

extern crate std;

const MACHINE: [u8; 16] = [9; 16];
const SIZE: u64 = 4 << 20;

fn superblock(generation: u64) -> Superblock {
    Superblock {
        arena: [5; 16],
        machine: MACHINE,
        generation,
        size: SIZE,
        written: 1_800_000_000,
        next_handle: 100,
        catalogue: None,
    }
}

fn piece(logical: u64, offset: u64, len: u64) -> Placed {
    Placed { logical, offset, len }
}

fn object(
    number: u64,
    kind: Kind<'static>,
    len: u64,
    pieces: &[Placed],
    sums: &[u64],
) -> Object<'static> {
    let (pieces, sums) = (Cow::Owned(pieces.to_vec()), Cow::Owned(sums.to_vec()));
    Object { handle: handle(number), kind, len, pieces, sums }
}

fn inline(number: u64, bytes: &[u8]) -> Object<'static> {
    object(number, Kind::Inline(Cow::Owned(bytes.to_vec())), bytes.len() as u64, &[], &[])
}

/// Memory with a hole and an odd end, bytes in two pieces, bytes in the catalogue.
fn objects() -> Vec<Object<'static>> {
    vec![
        object(
            3,
            Kind::Memory,
            5 * CHUNK + 100,
            &[
                piece(BLOCK, 0x10000, 2 * BLOCK),
                piece(CHUNK - BLOCK, 0x20000, 2 * BLOCK),
                piece(5 * CHUNK, 0x30000, BLOCK),
            ],
            &[11, 12, 13],
        ),
        object(
            7,
            Kind::Bytes,
            9000,
            &[piece(0, 0x40000, BLOCK), piece(BLOCK, 0x50000, 4904)],
            &[14],
        ),
        inline(8, b"handover"),
        inline(9, b""),
    ]
}

fn catalogue(objects: &[Object<'static>]) -> (Vec<u8>, Superblock) {
    let bytes = Catalogue::encode([5; 16], 6, objects.iter());
    let place = CataloguePlace {
        offset: 0x60000,
        len: bytes.len() as u64,
        checksum: Catalogue::checksum(&bytes, Catalogue::version(objects.iter())),
        handover: handle(8),
        version: Catalogue::version(objects.iter()),
    };
    (bytes, Superblock { catalogue: Some(place), ..superblock(6) })
}

fn refused(objects: &[Object<'static>]) -> CatalogueError {
    let (bytes, superblock) = catalogue(objects);
    match Catalogue::decode(&bytes, &superblock) {
        Err(ArenaError::Catalogue { error, offset }) => {
            assert!(offset <= bytes.len() as u64);
            error
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_is_encoded_is_decoded_to_the_same() {
    let objects = objects();
    let (bytes, superblock) = catalogue(&objects);
    assert_eq!(Superblock::decode(&superblock.encode()), Ok(superblock));
    let len: u64 = objects.iter().map(Object::encoded_len).sum();
    assert_eq!(bytes.len() as u64, Catalogue::FIXED_LEN + len);
    let decoded = Catalogue::decode(&bytes, &superblock).unwrap();
    assert_eq!(decoded.get(handle(8)), Some(&objects[2]));
    assert_eq!(decoded.get(handle(4)), None);
    assert_eq!(decoded.objects, objects);
}

#[test]
fn the_newest_superblock_that_is_whole_counts() {
    let damaged = |mut bytes: [u8; SUPERBLOCK_SIZE]| {
        bytes[3000] ^= 1;
        bytes
    };
    let (old, new) = (superblock(4).encode(), superblock(5).encode());
    let found = |first: &[u8], second: &[u8]| {
        find(first, second, SIZE, Some(&MACHINE))
            .map(|found| (found.superblock.generation, found.place, found.mirrored))
    };
    assert_eq!(found(&new, &new), Ok((5, 0, true)));
    assert_eq!(found(&new, &old), Ok((5, 0, false)));
    assert_eq!(found(&old, &new), Ok((5, 1, false)));
    assert_eq!(found(&damaged(new), &old), Ok((4, 1, false)));
    assert_eq!(found(&new, &damaged(old)), Ok((5, 0, false)));
    assert_eq!(found(&new, &[]), Ok((5, 0, false)));
    let both = ArenaError::Superblocks { first: Damage::Checksum, second: Damage::Checksum };
    assert_eq!(found(&damaged(new), &damaged(new)), Err(both));
    let cut = ArenaError::Superblocks { first: Damage::Short, second: Damage::Magic };
    assert_eq!(found(&new[..500], &[]), Err(cut));
    for blank in [&[][..], &[0; 3], &[0; SUPERBLOCK_SIZE], &[0xe5; SUPERBLOCK_SIZE]] {
        assert_eq!(found(blank, blank), Err(ArenaError::NeverFormatted));
    }
}

#[test]
fn a_newer_arena_is_refused_whatever_the_other_superblock_says() {
    let mut newer = superblock(9).encode();
    // Everything behind the first 24 bytes may mean something else.
    newer[24..].fill(0x77);
    newer[8] = 4;
    newer[16..24].fill(0);
    let sum = checksum(&newer);
    newer[16..24].copy_from_slice(&sum.to_le_bytes());
    let version = Err(ArenaError::Version { found: 4, known: 3 });
    let old = superblock(10).encode();
    for (first, second) in [(&newer, &newer), (&newer, &old), (&old, &newer)] {
        assert_eq!(find(first, second, SIZE, None), version);
    }
    assert_eq!(find(&newer, &[], SIZE, None), version);
}

#[test]
fn every_refusal_says_what_to_do() {
    let bytes = superblock(4).encode();
    let other = find(&bytes, &bytes, SIZE, Some(&[1; 16])).unwrap_err();
    assert_eq!(other, ArenaError::OtherMachine { found: MACHINE, ours: [1; 16] });
    assert!(find(&bytes, &bytes, SIZE, None).is_ok());
    let truncated = find(&bytes, &bytes, SIZE - 1, None).unwrap_err();
    assert_eq!(truncated, ArenaError::Truncated { claimed: SIZE, found: SIZE - 1 });
    assert!(find(&bytes, &bytes, SIZE + 1, None).is_ok(), "a region may be larger");
    for (error, words) in [
        (ArenaError::NeverFormatted, ["never formatted", "luoctl arena create"]),
        (ArenaError::Version { found: 2, known: 1 }, ["version 2", "reads version 1"]),
        (other, ["09090909090909090909090909090909", "01010101010101010101010101010101"]),
        (
            ArenaError::Superblocks { first: Damage::Checksum, second: Damage::Magic },
            ["wrong checksum; no magic number", "restore"],
        ),
        (truncated, ["4194304", "4194303"]),
        (CatalogueError::Overlap.at(0), ["two pieces of objects overlap", "restore"]),
    ] {
        let text = error.to_string();
        for word in words {
            assert!(text.contains(word), "{text:?} lacks {word:?}");
        }
    }
}

#[test]
fn every_impossible_field_of_a_superblock_is_refused() {
    let whole = Superblock {
        catalogue: Some(CataloguePlace {
            offset: 8192,
            len: 100,
            checksum: 1,
            handover: handle(1),
            version: VERSION_PLAIN,
        }),
        ..superblock(6)
    };
    let changed = |offset: usize, bytes: &[u8]| {
        let mut block = whole.encode();
        block[offset..offset + bytes.len()].copy_from_slice(bytes);
        block[16..24].fill(0);
        let sum = checksum(&block);
        block[16..24].copy_from_slice(&sum.to_le_bytes());
        match Superblock::decode(&block) {
            Err(Unusable::Damaged(Damage::Field(name))) => name.to_owned(),
            other => panic!("{other:?}"),
        }
    };
    let word = |value: u64| value.to_le_bytes();
    assert_eq!(changed(12, &[1]), "length");
    assert_eq!(changed(56, &word(0)), "generation");
    assert_eq!(changed(64, &word(SIZE + 1)), "size");
    assert_eq!(changed(64, &word(4096)), "size");
    assert_eq!(changed(80, &word(0)), "next_handle");
    assert_eq!(changed(80, &word(u64::MAX)), "next_handle");
    assert_eq!(changed(88, &[3]), "state");
    assert_eq!(changed(88, &[1]), "catalogue of an empty arena");
    assert_eq!(changed(92, &[1]), "reserved");
    assert_eq!(changed(4095, &[1]), "reserved");
    for offset in [0, 4096, 8193, SIZE, u64::MAX - 4095] {
        assert_eq!(changed(96, &word(offset)), "place of the catalogue");
    }
    for len in [0, SIZE, u64::MAX] {
        assert_eq!(changed(104, &word(len)), "place of the catalogue");
    }
    assert_eq!(changed(120, &word(1)), "handover");
    let mut block = superblock(6).encode();
    block[8] = 2;
    block[16..24].fill(0);
    let sum = checksum(&block);
    block[16..24].copy_from_slice(&sum.to_le_bytes());
    let refused = Unusable::Damaged(Damage::Field("version of an empty arena"));
    assert_eq!(Superblock::decode(&block), Err(refused));
}

#[test]
fn resident_memory_is_one_piece_without_checksums_and_of_version_2() {
    use CatalogueError as E;
    let resident = |change: fn(&mut Object<'static>)| {
        let mut objects = objects();
        let pieces = [piece(0, 0x80000, 3 * CHUNK + 5)];
        objects.push(object(10, Kind::Resident, 3 * CHUNK + 5, &pieces, &[]));
        change(&mut objects[4]);
        objects
    };
    let objects = resident(|_| ());
    let (bytes, superblock) = catalogue(&objects);
    assert_eq!(superblock.version(), VERSION_RESIDENT);
    assert_eq!(Superblock::decode(&superblock.encode()), Ok(superblock));
    assert_eq!(Catalogue::decode(&bytes, &superblock).unwrap().objects, objects);
    // Version 1 does not know it, and is still what is written without it.
    let mut older = superblock;
    older.catalogue.as_mut().unwrap().version = VERSION_PLAIN;
    let error = Catalogue::decode(&bytes, &older).unwrap_err();
    assert!(matches!(error, ArenaError::Catalogue { error: E::Kind, .. }), "{error}");
    assert_eq!(older.version(), 1);
    assert_eq!(refused(&resident(|o| o.len -= 1)), E::Hole);
    assert_eq!(refused(&resident(|o| o.len += 1)), E::Hole);
    assert_eq!(refused(&resident(|o| o.pieces.to_mut().clear())), E::Hole);
    assert_eq!(refused(&resident(|o| o.pieces.to_mut()[0].logical = BLOCK)), E::Piece);
    assert_eq!(refused(&resident(|o| o.pieces.to_mut()[0].offset = 0x60000)), E::Overlap);
    assert_eq!(refused(&resident(|o| o.sums.to_mut().push(7))), E::Count);
    let split = [piece(0, 0x80000, BLOCK), piece(BLOCK, 0x90000, BLOCK)];
    let mut two = resident(|o| o.len = 2 * BLOCK);
    two[4].pieces = Cow::Owned(split.to_vec());
    assert_eq!(refused(&two), E::Hole);
    let mut leading = resident(|_| ());
    leading[2] = object(8, Kind::Resident, BLOCK, &[piece(0, 0xc0000, BLOCK)], &[]);
    assert_eq!(refused(&leading), E::Handover);
}

#[test]
fn damage_to_bytes_in_the_catalogue_is_theirs_alone_in_version_3() {
    let mut objects = objects();
    objects[2] = Object::new_inline(handle(8), b"handover".to_vec());
    objects[3] = Object::new_inline(handle(9), b"".to_vec());
    objects.push(Object::new_inline(handle(10), b"record".to_vec()));
    objects.push(object(11, Kind::Resident, BLOCK, &[piece(0, 0x80000, BLOCK)], &[]));
    let (bytes, superblock) = catalogue(&objects);
    assert_eq!(superblock.version(), VERSION);
    assert_eq!(Superblock::decode(&superblock.encode()), Ok(superblock));
    assert_eq!(Catalogue::decode(&bytes, &superblock).unwrap().objects, objects);
    let inline = bytes.len() - b"handoverrecord".len();
    for bit in 0..8 * bytes.len() {
        let mut damaged = bytes.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        let decoded = Catalogue::decode(&damaged, &superblock);
        if bit / 8 < inline {
            assert!(decoded.is_err(), "bit {bit}");
            continue;
        }
        let hit = handle(if bit / 8 < inline + b"handover".len() { 8 } else { 10 });
        for (object, before) in decoded.unwrap().objects.iter().zip(&objects) {
            match object.inline() {
                Some(Err(Damaged)) => assert_eq!(object.handle, hit, "bit {bit}"),
                _ => assert!(object == before && object.handle != hit, "bit {bit}"),
            }
        }
    }
    // Each has one checksum there, and none in a version before.
    objects[4].sums.to_mut().push(7);
    assert_eq!(refused(&objects), CatalogueError::Count);
    objects[4].sums.to_mut().clear();
    assert_eq!(refused(&objects), CatalogueError::Count);
    let mut older = superblock;
    let place = older.catalogue.as_mut().unwrap();
    place.version = VERSION_RESIDENT;
    place.checksum = Catalogue::checksum(&bytes, place.version);
    assert_eq!(Catalogue::decode(&bytes, &older), Err(CatalogueError::Count.at(144)));
}

#[test]
fn every_rule_of_the_catalogue_is_kept() {
    let with = |number: usize, change: fn(&mut Object<'static>)| {
        let mut objects = objects();
        change(&mut objects[number]);
        refused(&objects)
    };
    let memory = |change| with(0, change);
    use CatalogueError as E;
    assert_eq!(with(0, |o| o.handle = handle(0)), E::Handle);
    assert_eq!(with(3, |o| o.handle = handle(100)), E::Handle);
    assert_eq!(with(0, |o| o.handle = 3), E::Handle);
    assert_eq!(with(1, |o| o.handle = handle(3)), E::Order);
    assert_eq!(with(1, |o| o.handle = handle(2)), E::Order);
    assert_eq!(memory(|o| o.sums.to_mut().truncate(2)), E::Count);
    assert_eq!(memory(|o| o.sums.to_mut().push(2)), E::Count);
    assert_eq!(memory(|o| o.pieces.to_mut()[0].logical = 1), E::Piece);
    assert_eq!(memory(|o| o.pieces.to_mut()[0].offset += 1), E::Piece);
    assert_eq!(memory(|o| o.pieces.to_mut()[0].len = 0), E::Piece);
    assert_eq!(memory(|o| o.pieces.to_mut()[0].len = u64::MAX), E::Piece);
    assert_eq!(memory(|o| o.pieces.to_mut()[0].len = CHUNK), E::Piece);
    assert_eq!(memory(|o| o.pieces.to_mut()[2].len += 1), E::Piece);
    assert_eq!(memory(|o| o.pieces.to_mut()[2].logical += BLOCK), E::Piece);
    assert_eq!(memory(|o| o.pieces.to_mut().swap(0, 1)), E::Piece);
    assert_eq!(memory(|o| o.pieces.to_mut()[0].offset = BLOCK), E::Range);
    assert_eq!(memory(|o| o.pieces.to_mut()[0].offset = SIZE - BLOCK), E::Range);
    assert_eq!(memory(|o| o.pieces.to_mut()[0].offset = u64::MAX - 4095), E::Range);
    assert_eq!(memory(|o| o.pieces.to_mut()[0].offset = 0x20000), E::Overlap);
    assert_eq!(memory(|o| o.pieces.to_mut()[0].offset = 0x51000), E::Overlap);
    assert_eq!(memory(|o| o.pieces.to_mut()[0].offset = 0x60000), E::Overlap);
    assert_eq!(memory(|o| o.pieces.to_mut()[0].offset = 0x5f000), E::Overlap);
    assert_eq!(memory(|o| o.kind = Kind::Bytes), E::Hole);
    assert_eq!(with(1, |o| o.len = 9001), E::Hole);
    assert_eq!(with(1, |o| o.len = u64::MAX), E::Piece);
    assert_eq!(with(2, |o| o.len = 9), E::Count);
    assert_eq!(with(2, |o| o.kind = Kind::Memory), E::Handover);
    assert_eq!(with(3, |o| o.len = u64::MAX), E::Count);
    assert_eq!(refused(&objects()[..2]), E::Handover);
}

#[test]
fn a_catalogue_of_another_arena_or_generation_is_refused() {
    let objects = objects();
    for (arena, generation) in [([6; 16], 6), ([5; 16], 7)] {
        let bytes = Catalogue::encode(arena, generation, objects.iter());
        let (_, mut superblock) = catalogue(&objects);
        superblock.catalogue.as_mut().unwrap().checksum = checksum(&bytes);
        assert_eq!(Catalogue::decode(&bytes, &superblock), Err(CatalogueError::Foreign.at(8)));
    }
}

#[test]
fn the_documented_layouts_are_those_of_the_code() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/abi.md");
    let page = std::fs::read_to_string(path).unwrap();
    let page = page.split("## Arenas").nth(1).unwrap();
    for (heading, table, size, fields) in [
        ("### Superblock", 0, SUPERBLOCK_SIZE, raw::Superblock::fields()),
        ("### Catalogue", 0, size_of::<raw::Catalogue>(), raw::Catalogue::fields()),
        ("### Catalogue", 1, size_of::<raw::Object>(), raw::Object::fields()),
        ("### Catalogue", 2, size_of::<raw::Extent>(), raw::Extent::fields()),
    ] {
        let fields: Vec<_> = fields.into_iter().map(|(o, s, f)| (o, s, f.to_string())).collect();
        assert_eq!(crate::record::tests::documented(page, heading, table), fields, "{heading}");
        let end = fields.iter().fold(0, |at, &(offset, size, _)| {
            assert_eq!(at, offset, "{heading}: the fields leave no space");
            at + size
        });
        assert_eq!(end, size, "{heading}");
    }
    for words in [
        std::format!("Versions {VERSION_PLAIN} to {VERSION}."),
        std::format!("topmost byte of a handle is {SPACE:#x}"),
        std::format!("at least {} MiB", SIZE_MIN >> 20),
        std::format!("one for each {} KiB", CHUNK >> 10),
        std::format!("at {} and at {}", SUPERBLOCKS[0], SUPERBLOCKS[1]),
    ] {
        assert!(page.contains(&words), "docs/abi.md lacks {words:?}");
    }
}

#[test]
fn no_key_of_a_slot_is_a_handle_of_an_arena() {
    for space in 0..=u8::MAX {
        assert_eq!(key::space(handle(1)) == space, space == SPACE);
    }
    assert_ne!(SPACE, key::CARRIER);
    assert_eq!(key::number(handle(u64::MAX)), u64::MAX >> 8);
}
