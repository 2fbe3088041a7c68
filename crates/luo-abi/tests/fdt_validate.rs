//! Each thing that can be wrong with a blob is found, with its kind and its offset.

mod common;

use common::{Asm, STRUCTURE, field, with_field};
use luo_abi::fdt::{Blob, Block, DecodeErrorKind as Kind, Event, MAX_DEPTH, MAX_NAME, MAX_SIZE};

fn refused(blob: &[u8]) -> (Kind, usize) {
    let error = Blob::validate(blob).expect_err("the blob is not valid");
    (error.kind, error.offset)
}

/// A tree of one property and one node.
fn small() -> Asm {
    let mut asm = Asm::new();
    asm.begin("").named("data", b"12345678").begin("a").end().end();
    asm
}

#[test]
fn a_valid_blob_is_read() {
    let blob = small().blob();
    let tree = Blob::validate(&blob).unwrap();
    let data = tree.root().property("data").unwrap();
    assert_eq!((data.name(), data.value()), ("data", &b"12345678"[..]));
    assert_eq!(&blob[data.value_offset()..][..8], data.value());
    assert_eq!(tree.root().children().map(|node| node.name()).collect::<Vec<_>>(), ["a"]);
}

#[test]
fn the_header_is_checked() {
    let blob = small().blob();
    let with = |field, value| refused(&with_field(&blob, field, value));
    assert_eq!(refused(&[]), (Kind::ShortHeader, 0));
    assert_eq!(refused(&blob[..39]), (Kind::ShortHeader, 39));
    assert_eq!(with(0, 0xd00d_feee), (Kind::Magic, 0));
    assert_eq!(with(field::VERSION, 16), (Kind::Version { found: 16 }, 20));
    let last = field::LAST_COMPATIBLE;
    assert_eq!(with(last, 18), (Kind::LastCompatible { found: 18 }, 24));
    assert_eq!(with(last, 15), (Kind::LastCompatible { found: 15 }, 24));
    assert_eq!(with(field::TOTAL_SIZE, 55), (Kind::TotalSize, 4));
    assert_eq!(with(field::TOTAL_SIZE, MAX_SIZE as u32 + 1), (Kind::TooLarge, 4));
    assert_eq!(refused(&blob[..blob.len() - 1]), (Kind::Truncated, blob.len() - 1));
    let long = [&blob[..], b"\0"].concat();
    assert_eq!(refused(&long), (Kind::TrailingBytes, blob.len()));
}

#[test]
fn a_newer_version_that_is_compatible_is_read() {
    let blob = with_field(&small().blob(), field::VERSION, 18);
    assert!(Blob::validate(&blob).is_ok());
}

#[test]
fn blocks_are_aligned_inside_and_apart() {
    let blob = small().blob();
    let total = blob.len() as u32;
    let with = |field, value| refused(&with_field(&blob, field, value));
    let (structure, strings, reservations) =
        (Block::Structure, Block::Strings, Block::Reservations);
    assert_eq!(with(field::OFF_STRUCT, 58), (Kind::Alignment(structure), 8));
    assert_eq!(with(field::OFF_RESERVATIONS, 44), (Kind::Alignment(reservations), 16));
    assert_eq!(with(field::OFF_STRUCT, total & !3), (Kind::OutOfBounds(structure), 8));
    assert_eq!(with(field::OFF_STRUCT, !3), (Kind::OutOfBounds(structure), 8));
    assert_eq!(with(field::SIZE_STRUCT, u32::MAX), (Kind::OutOfBounds(structure), 8));
    assert_eq!(with(field::OFF_STRINGS, total), (Kind::OutOfBounds(strings), 12));
    assert_eq!(with(field::SIZE_STRINGS, 6), (Kind::OutOfBounds(strings), 12));
    assert_eq!(with(field::OFF_RESERVATIONS, total & !7), (Kind::OutOfBounds(reservations), 16));
    assert_eq!(with(field::OFF_RESERVATIONS, 32), (Kind::Overlap(reservations), 32));
    assert_eq!(with(field::OFF_RESERVATIONS, 48), (Kind::Overlap(structure), 56));
    let shifted = with_field(&blob, field::OFF_STRUCT, 52);
    assert_eq!(refused(&shifted), (Kind::Overlap(structure), 52));
    let strings_at = total - 5;
    assert_eq!(
        with(field::OFF_STRINGS, strings_at - 1),
        (Kind::Overlap(strings), total as usize - 6)
    );
}

#[test]
fn reserved_memory_is_refused() {
    let mut blob = small().blob();
    blob[55] = 1;
    assert_eq!(refused(&blob), (Kind::Reservation, 55));
}

#[test]
fn space_between_blocks_must_be_zero() {
    let blob = small().blob();
    let total = blob.len() as u32;
    let mut padded = with_field(&blob, field::TOTAL_SIZE, total + 8);
    padded.extend([0; 8]);
    assert!(Blob::validate(&padded).is_ok());
    padded[blob.len() + 3] = 1;
    assert_eq!(refused(&padded), (Kind::Gap, blob.len() + 3));

    let strings = total - 5;
    let mut apart = with_field(&blob, field::TOTAL_SIZE, total + 4);
    apart = with_field(&apart, field::OFF_STRINGS, strings + 4);
    apart.splice(strings as usize..strings as usize, [0; 4]);
    assert!(Blob::validate(&apart).is_ok());
    apart[strings as usize] = 7;
    assert_eq!(refused(&apart), (Kind::Gap, strings as usize));
}

#[test]
fn blocks_may_lie_in_another_order() {
    // Strings before the structure, as no known writer does, but the specification allows.
    let asm = small();
    let blob = asm.blob();
    let structure = blob[STRUCTURE..blob.len() - 5].to_vec();
    let mut other = blob[..STRUCTURE].to_vec();
    other.extend(b"data\0\0\0\0");
    other.extend(structure);
    let other = with_field(&other, field::OFF_STRINGS, 56);
    let other = with_field(&other, field::OFF_STRUCT, 64);
    let other = with_field(&other, field::TOTAL_SIZE, other.len() as u32);
    let tree = Blob::validate(&other).unwrap();
    assert!(tree.root().property("data").is_some());
}

#[test]
fn the_structure_must_be_whole() {
    let mut asm = Asm::new();
    assert_eq!(refused(&asm.open_blob()), (Kind::UnexpectedEnd, STRUCTURE));
    asm.begin("");
    assert_eq!(refused(&asm.open_blob()), (Kind::UnexpectedEnd, STRUCTURE + 8));
    assert_eq!(
        refused(&asm.clone().bytes(b"\0\0").open_blob()),
        (Kind::UnexpectedEnd, asm.at() + 2)
    );
    assert_eq!(refused(&asm.clone().word(1).open_blob()), (Kind::UnexpectedEnd, asm.at() + 4));
    let name = asm.clone().word(1).bytes(b"abc").open_blob();
    assert_eq!(refused(&name), (Kind::UnexpectedEnd, asm.at() + 7));
    let unpadded = asm.clone().word(1).bytes(b"a\0").open_blob();
    assert_eq!(refused(&unpadded), (Kind::UnexpectedEnd, asm.at() + 6));
    assert_eq!(
        refused(&asm.clone().word(3).word(0).open_blob()),
        (Kind::UnexpectedEnd, asm.at() + 8)
    );
    assert_eq!(refused(&asm.clone().blob()), (Kind::Unbalanced, asm.at()));
    assert_eq!(refused(&Asm::new().blob()), (Kind::Unbalanced, STRUCTURE));
    asm.end();
    assert_eq!(
        refused(&asm.clone().word(9).word(4).open_blob()),
        (Kind::TrailingStructure, asm.at() + 4)
    );
    assert_eq!(refused(&asm.clone().word(5).open_blob()), (Kind::Token { found: 5 }, asm.at()));
    assert_eq!(refused(&asm.clone().word(0).open_blob()), (Kind::Token { found: 0 }, asm.at()));
}

#[test]
fn tokens_come_in_order() {
    assert_eq!(refused(&Asm::new().end().blob()), (Kind::OutsideNode, STRUCTURE));
    let mut asm = Asm::new();
    assert_eq!(refused(&asm.named("data", b"").blob()), (Kind::OutsideNode, STRUCTURE));
    let mut asm = Asm::new();
    asm.begin("").end();
    assert_eq!(refused(&asm.clone().begin("").end().blob()), (Kind::SecondRoot, asm.at()));
    assert_eq!(refused(&asm.clone().end().blob()), (Kind::OutsideNode, asm.at()));
    assert_eq!(refused(&asm.clone().named("x", b"").blob()), (Kind::OutsideNode, asm.at()));
    let mut asm = Asm::new();
    asm.begin("").begin("a").end();
    let at = asm.at();
    assert_eq!(refused(&asm.named("x", b"").end().blob()), (Kind::PropertyAfterNode, at));
    assert_eq!(refused(&Asm::new().begin("a").end().blob()), (Kind::RootName, STRUCTURE + 4));
}

#[test]
fn a_nop_may_stand_anywhere() {
    let mut asm = Asm::new();
    asm.word(4).begin("").word(4).named("data", b"1").word(4).begin("a").word(4).end();
    let blob = asm.word(4).begin("b").end().word(4).end().word(4).blob();
    let root = Blob::validate(&blob).unwrap().root();
    assert_eq!(root.property("data").unwrap().value(), b"1");
    assert_eq!(root.children().map(|node| node.name()).collect::<Vec<_>>(), ["a", "b"]);
}

#[test]
fn nodes_lie_so_deep_and_no_deeper() {
    let nested = |depth: usize| {
        let mut asm = Asm::new();
        asm.begin("");
        (1..depth).for_each(|_| {
            asm.begin("a");
        });
        (0..depth).for_each(|_| {
            asm.end();
        });
        asm.blob()
    };
    assert!(Blob::validate(&nested(MAX_DEPTH)).is_ok());
    let deepest = STRUCTURE + 8 * MAX_DEPTH;
    assert_eq!(refused(&nested(MAX_DEPTH + 1)), (Kind::TooDeep, deepest));
    assert_eq!(refused(&nested(100_000)), (Kind::TooDeep, deepest));
}

#[test]
fn node_names_are_checked() {
    let named = |name: &str| Asm::new().begin("").begin(name).end().end().blob();
    let name = STRUCTURE + 12;
    assert_eq!(refused(&named("")), (Kind::EmptyNodeName, name));
    assert_eq!(refused(&named("a b")), (Kind::NodeNameByte { byte: b' ' }, name + 1));
    assert_eq!(refused(&named("a/b")), (Kind::NodeNameByte { byte: b'/' }, name + 1));
    assert_eq!(refused(&named("@a")), (Kind::NodeNameByte { byte: b'@' }, name));
    assert_eq!(refused(&named("a@b@c")), (Kind::NodeNameByte { byte: b'@' }, name + 3));
    assert_eq!(refused(&named("aé")), (Kind::NodeNameByte { byte: 0xc3 }, name + 1));
    assert_eq!(refused(&named("a#")), (Kind::NodeNameByte { byte: b'#' }, name + 1));
    let longest = "n".repeat(MAX_NAME);
    let blob = named(&longest);
    let root = Blob::validate(&blob).unwrap().root();
    assert_eq!(root.children().next().unwrap().name(), longest);
    assert!(Blob::validate(&named("memory@80000000")).is_ok());
    assert_eq!(refused(&named(&"n".repeat(MAX_NAME + 1))), (Kind::NodeNameLength, name));
}

#[test]
fn padding_is_zero() {
    let mut blob = Asm::new().begin("").begin("ab").end().end().blob();
    blob[STRUCTURE + 15] = 1;
    assert_eq!(refused(&blob), (Kind::Padding, STRUCTURE + 15));
    let mut asm = Asm::new();
    let mut blob = asm.begin("").named("data", b"12345").end().blob();
    let value = STRUCTURE + 8 + 12;
    blob[value + 6] = 1;
    assert_eq!(refused(&blob), (Kind::Padding, value + 6));
}

#[test]
fn properties_fit_into_the_structure() {
    let mut asm = Asm::new();
    asm.strings.extend(b"x\0");
    asm.begin("");
    let at = asm.at();
    let claims = |len: u32| asm.clone().word(3).word(len).word(0).word(0).end().blob();
    // The word, the end of the node and the end of the structure are all that is left.
    assert_eq!(refused(&claims(13)), (Kind::PropertyLength { len: 13 }, at + 4));
    assert_eq!(refused(&claims(u32::MAX)), (Kind::PropertyLength { len: u32::MAX }, at + 4));
    assert_eq!(refused(&claims(12)), (Kind::UnexpectedEnd, at + 24));
    assert!(Blob::validate(&claims(4)).is_ok());
    let unpadded = asm.clone().word(3).word(2).word(0).bytes(b"ab").open_blob();
    assert_eq!(refused(&unpadded), (Kind::UnexpectedEnd, at + 14));
}

#[test]
fn property_names_are_checked() {
    let property = |strings: &[u8], start: u32| {
        let mut asm = Asm::new();
        asm.strings.extend(strings);
        asm.begin("").property(start, b"").end().blob()
    };
    let name_field = STRUCTURE + 8 + 8;
    let strings = STRUCTURE + 8 + 12 + 8;
    assert_eq!(refused(&property(b"x\0", 2)), (Kind::NameOffset { found: 2 }, name_field));
    assert_eq!(refused(&property(b"", 0)), (Kind::NameOffset { found: 0 }, name_field));
    let far = (Kind::NameOffset { found: u32::MAX }, name_field);
    assert_eq!(refused(&property(b"x\0", u32::MAX)), far);
    assert_eq!(refused(&property(b"xy", 0)), (Kind::PropertyNameLength, name_field));
    assert_eq!(refused(&property(b"x\0", 1)), (Kind::EmptyPropertyName, name_field));
    let byte = (Kind::PropertyNameByte { byte: b'@' }, strings + 2);
    assert_eq!(refused(&property(b"xy@\0", 0)), byte);
    assert_eq!(refused(&property(b"xy@\0", 1)), byte);
    let longest = [&[b'p'; MAX_NAME][..], b"\0"].concat();
    let blob = property(&longest, 0);
    let tree = Blob::validate(&blob).unwrap();
    assert_eq!(tree.root().properties().next().unwrap().name().len(), MAX_NAME);
    let longer = [&[b'p'; MAX_NAME + 1][..], b"\0"].concat();
    assert_eq!(refused(&property(&longer, 0)), (Kind::PropertyNameLength, name_field));
    assert!(Blob::validate(&property(&longer, 1)).is_ok());
    assert!(Blob::validate(&property(b"#size-cells?\0", 0)).is_ok());
}

#[test]
fn a_property_is_there_once() {
    let mut asm = Asm::new();
    asm.begin("").named("data", b"");
    let at = asm.at();
    assert_eq!(refused(&asm.clone().property(0, b"").end().blob()), (Kind::DuplicateProperty, at));
    // The same name, spelt at another place, or as the end of a longer one.
    assert_eq!(
        refused(&asm.clone().named("data", b"").end().blob()),
        (Kind::DuplicateProperty, at)
    );
    let mut shared = Asm::new();
    shared.strings.extend(b"data\0");
    shared.begin("").named("metadata", b"").property(9, b"").property(0, b"").end();
    let second = STRUCTURE + 8 + 24;
    assert_eq!(refused(&shared.blob()), (Kind::DuplicateProperty, second));
    // Other nodes may have it as well.
    assert!(Blob::validate(&asm.begin("a").property(0, b"").end().end().blob()).is_ok());
}

#[test]
fn a_name_far_into_the_strings_is_the_same_name() {
    let mut asm = Asm::new();
    asm.strings.extend(b"data\0");
    asm.strings.extend([b'x'; 250]);
    asm.strings.extend(b"\0data\0");
    asm.begin("").property(0, b"");
    let at = asm.at();
    assert_eq!(refused(&asm.property(256, b"").end().blob()), (Kind::DuplicateProperty, at));
}

#[test]
fn a_node_is_there_once() {
    let with = |names: &[&str]| {
        let mut asm = Asm::new();
        asm.begin("");
        let at: Vec<usize> = names
            .iter()
            .map(|name| {
                let at = asm.at() + 4;
                asm.begin(name).end();
                at
            })
            .collect();
        (asm.end().blob(), at)
    };
    for (names, second) in [
        (&["a", "a"][..], 1),
        (&["a", "b", "a"], 2),
        (&["b", "a", "c", "b", "a"], 3),
        (&["abcdefgh1", "abcdefgh2", "abcdefgh1"], 2),
        (&["abcdefgh", "abcdefg", "abcdefgh"], 2),
    ] {
        let (blob, at) = with(names);
        assert_eq!(refused(&blob), (Kind::DuplicateNode, at[second]), "{names:?}");
    }
    for names in [
        &["a", "b"][..],
        &["b", "a"],
        &["0x9", "0xa", "0x10"],
        &["abcdefgh2", "abcdefgh1", "abcdefgh"],
        &["a", "aa", "aaa", "ab", "b"],
    ] {
        assert!(Blob::validate(&with(names).0).is_ok(), "{names:?}");
    }
}

#[test]
fn nodes_of_different_parents_may_have_one_name() {
    let mut asm = Asm::new();
    asm.begin("").begin("b").begin("a").end().end();
    let blob = asm.begin("a").begin("b").end().begin("a").end().end().end().blob();
    assert!(Blob::validate(&blob).is_ok());
}

#[test]
fn the_first_error_is_reported_also_where_it_is_found_late() {
    // The duplicate comes before the bad token, and would be found behind it.
    let mut asm = Asm::new();
    asm.begin("").begin("b").end().begin("a").end();
    let duplicate = asm.at() + 4;
    asm.begin("b").end().word(7);
    assert_eq!(refused(&asm.open_blob()), (Kind::DuplicateNode, duplicate));
    // An outer duplicate before an inner one.
    let mut asm = Asm::new();
    asm.begin("").begin("b").end().begin("a").end();
    let duplicate = asm.at() + 4;
    asm.begin("b").begin("x").end().begin("x").end().end().end();
    assert_eq!(refused(&asm.blob()), (Kind::DuplicateNode, duplicate));
    // And a duplicate behind the bad token does not hide it.
    let mut asm = Asm::new();
    asm.begin("").begin("b").end();
    let token = asm.at();
    asm.word(7).begin("b").end().end();
    assert_eq!(refused(&asm.blob()), (Kind::Token { found: 7 }, token));
}

#[test]
fn children_in_the_worst_order_are_checked_in_no_long_time() {
    // A check of each child against all others would not come to an end here.
    let count = 300_000_u64;
    let long = "n".repeat(60);
    for order in [|i: u64| i.wrapping_mul(0x9e37_79b9_7f4a_7c15), |i: u64| u64::MAX - i] {
        let mut asm = Asm::new();
        asm.begin("");
        (0..count).for_each(|i| {
            asm.begin(&format!("{long}{:016x}", order(i))).end();
        });
        let blob = asm.end().blob();
        let tree = Blob::validate(&blob).unwrap();
        assert_eq!(tree.root().children().count() as u64, count);
    }
}

#[test]
fn properties_of_many_names_are_checked_in_no_long_time() {
    let count = 100_000;
    let mut asm = Asm::new();
    asm.begin("");
    (0..count).for_each(|i| {
        asm.named(&format!("property-{i}"), b"");
    });
    let blob = asm.end().blob();
    let tree = Blob::validate(&blob).unwrap();
    assert_eq!(tree.root().properties().count(), count);
}

#[test]
fn events_give_the_tree_in_its_order() {
    let blob = small().blob();
    let tree = Blob::validate(&blob).unwrap();
    let data = tree.root().property("data").unwrap();
    let events: Vec<_> = tree.events().collect();
    let a = STRUCTURE + 8 + 12 + 8;
    assert_eq!(
        events,
        [
            Event::Begin { name: "", offset: STRUCTURE },
            Event::Property(data),
            Event::Begin { name: "a", offset: a },
            Event::End,
            Event::End,
        ]
    );
    assert_eq!(tree.root().child("a").unwrap().offset(), a);
    assert!(tree.root().child("b").is_none());
    let mut inside = tree.events();
    inside.next();
    inside.skip_node();
    assert_eq!(inside.next(), None);
}

#[test]
fn every_error_has_a_sentence_with_its_offset() {
    let error = Blob::validate(&small().blob()[..50]).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("shorter than its header says") && text.contains("50"), "{text}");
}
