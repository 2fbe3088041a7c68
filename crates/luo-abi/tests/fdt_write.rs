//! The writer writes what was asked, and refuses what makes no tree.

use luo_abi::fdt::{Blob, MAX_DEPTH, MAX_NAME, MAX_SIZE, WriteError, Writer};

/// A writer inside its root.
fn rooted() -> Writer {
    let mut writer = Writer::new();
    writer.begin_node("").unwrap();
    writer
}

#[test]
fn what_is_written_is_read() {
    let mut writer = rooted();
    writer.property_u32("cells", 7).unwrap();
    writer.property_str("compatible", "luo-v1").unwrap();
    let data = writer.intern("data").unwrap();
    for name in ["0x1", "0x2", "a-name-of-sixty-three-bytes-which-is-more-than-thirty-one-are.63"] {
        writer.begin_node(name).unwrap();
        writer.put_u64(data, name.len() as u64).unwrap();
        writer.property("empty", &[]).unwrap();
        writer.end_node().unwrap();
    }
    writer.end_node().unwrap();
    let blob = writer.finish().unwrap();
    let root = Blob::validate(&blob).unwrap().root();
    assert_eq!(root.property("cells").unwrap().as_u32(), Some(7));
    assert_eq!(root.property("compatible").unwrap().as_str(), Some("luo-v1"));
    for child in root.children() {
        assert_eq!(child.property("data").unwrap().as_u64(), Some(child.name().len() as u64));
        assert_eq!(child.property("empty").unwrap().value(), b"");
    }
    assert_eq!(root.children().count(), 3);
}

#[test]
fn each_name_is_in_the_strings_once() {
    let mut writer = rooted();
    for node in 0..50 {
        writer.begin_node(&format!("n{node}")).unwrap();
        (0..20).for_each(|i| writer.property(&format!("property-{i}"), &[]).unwrap());
        writer.end_node().unwrap();
    }
    writer.end_node().unwrap();
    let blob = writer.finish().unwrap();
    let count = |name: &[u8]| blob.windows(name.len()).filter(|window| *window == name).count();
    (0..20).for_each(|i| assert_eq!(count(format!("property-{i}\0").as_bytes()), 1));
}

#[test]
fn a_buffer_is_used_again() {
    let mut writer = Writer::with_buffer(vec![0xff; 1000]);
    writer.begin_node("").unwrap();
    writer.end_node().unwrap();
    let blob = writer.finish().unwrap();
    assert!(Blob::validate(&blob).is_ok());
}

#[test]
fn nodes_and_properties_need_their_place() {
    let mut writer = Writer::new();
    assert_eq!(writer.property("data", &[]), Err(WriteError::OutsideNode));
    assert_eq!(writer.end_node(), Err(WriteError::OutsideNode));
    assert_eq!(writer.begin_node("a"), Err(WriteError::RootName));
    writer.begin_node("").unwrap();
    writer.begin_node("a").unwrap();
    writer.end_node().unwrap();
    assert_eq!(writer.property("data", &[]), Err(WriteError::PropertyAfterNode));
    writer.end_node().unwrap();
    assert_eq!(writer.property("data", &[]), Err(WriteError::OutsideNode));
    assert_eq!(writer.begin_node(""), Err(WriteError::SecondRoot));
    assert!(Blob::validate(&writer.finish().unwrap()).is_ok());
}

#[test]
fn an_unfinished_tree_is_refused() {
    assert_eq!(Writer::new().finish(), Err(WriteError::Unbalanced { open: 0 }));
    let mut writer = rooted();
    writer.begin_node("a").unwrap();
    assert_eq!(writer.finish(), Err(WriteError::Unbalanced { open: 2 }));
}

#[test]
fn names_are_checked() {
    let mut writer = rooted();
    let byte = |name: &str, at| Err(WriteError::NameByte { name: name.into(), at });
    assert_eq!(writer.begin_node(""), Err(WriteError::EmptyName));
    assert_eq!(writer.begin_node("a/b"), byte("a/b", 1));
    assert_eq!(writer.begin_node("@a"), byte("@a", 0));
    assert_eq!(writer.begin_node("a@b@c"), byte("a@b@c", 3));
    assert_eq!(writer.begin_node("a\0"), byte("a\0", 1));
    assert_eq!(writer.property("", &[]), Err(WriteError::EmptyName));
    assert_eq!(writer.property("a b", &[]), byte("a b", 1));
    let long = "n".repeat(MAX_NAME + 1);
    assert_eq!(writer.begin_node(&long), Err(WriteError::NameTooLong { len: MAX_NAME + 1 }));
    assert_eq!(writer.property(&long, &[]), Err(WriteError::NameTooLong { len: MAX_NAME + 1 }));
    writer.property(&long[1..], &[]).unwrap();
    writer.begin_node(&long[1..]).unwrap();
    writer.end_node().unwrap();
    writer.end_node().unwrap();
    assert!(Blob::validate(&writer.finish().unwrap()).is_ok(), "a refused call changes nothing");
}

#[test]
fn duplicates_are_refused() {
    let mut writer = rooted();
    writer.property("data", b"1").unwrap();
    let twice = WriteError::DuplicateProperty { name: "data".into() };
    assert_eq!(writer.property("data", b"2"), Err(twice));
    for name in ["b", "a", "c", "b"] {
        writer.begin_node(name).unwrap();
        writer.property("data", b"3").unwrap();
        writer.end_node().unwrap();
    }
    let twice = WriteError::DuplicateNode { name: "b".into() };
    assert_eq!(writer.end_node(), Err(twice.clone()));
    assert_eq!(writer.end_node(), Err(twice));
}

#[test]
fn a_name_of_another_writer_is_refused() {
    let mut other = rooted();
    other.intern("a").unwrap();
    let name = other.intern("b").unwrap();
    assert_eq!(rooted().put(name, &[]), Err(WriteError::ForeignName));
}

#[test]
fn nodes_lie_so_deep_and_no_deeper() {
    let mut writer = rooted();
    (1..MAX_DEPTH).for_each(|_| writer.begin_node("a").unwrap());
    assert_eq!(writer.begin_node("a"), Err(WriteError::TooDeep));
    (0..MAX_DEPTH).for_each(|_| writer.end_node().unwrap());
    assert!(Blob::validate(&writer.finish().unwrap()).is_ok());
}

#[test]
fn a_tree_is_so_large_and_no_larger() {
    let mut writer = Writer::with_capacity(MAX_SIZE);
    writer.begin_node("").unwrap();
    // Header and reservations, the root, the token and its name's place, the name, two ends.
    let other = 56 + 8 + 12 + "data".len() + 1 + 8;
    let value = vec![0; (MAX_SIZE - other) & !3];
    assert_eq!(writer.property("data", &vec![0; value.len() + 4]), Err(WriteError::TooLarge));
    writer.property("data", &value).unwrap();
    assert_eq!(writer.begin_node("a"), Err(WriteError::TooLarge));
    assert_eq!(writer.property("more", &[]), Err(WriteError::TooLarge));
    writer.end_node().unwrap();
    let blob = writer.finish().unwrap();
    assert!(blob.len() <= MAX_SIZE);
    assert!(Blob::validate(&blob).is_ok());
}
