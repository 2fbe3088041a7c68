//! What is damaged in a handover is the error of that entry, and only a damaged header or an
//! unknown version refuses the whole.

mod common;

use common::{Asm, STRUCTURE};
use luo_abi::{
    Criticality, NameError, OnClose, Owner,
    fdt::{self, DecodeErrorKind},
    handover::{
        EntryError, EntryErrorKind as Kind, File, FilesTree, FilesWriter, HandoverError,
        MachineTree, Session, Subsystem, Tokens, WriteError, write_files, write_machine,
    },
};

fn session(name: &str) -> Session<'_> {
    Session {
        name: name.into(),
        owner: Owner { uid: 1000, gid: 100 },
        on_close: OnClose::Release,
        ttl: Some(60),
        expiry: Some(1_800_000_000),
        next_token: Some(3),
    }
}

fn file(token: u64) -> File<'static> {
    let (compatible, criticality) = ("memfd-v1", Criticality::Optional);
    File { token, compatible, data: token + 7, criticality, needs: Tokens::NONE }
}

#[test]
fn files_come_back_as_they_were_written() {
    let name = "a name @ sixty-three bytes, with + and every kind of mark: ~!#$";
    assert_eq!(name.len(), 63);
    let bare = Session {
        ttl: None,
        expiry: None,
        next_token: None,
        on_close: OnClose::Keep,
        ..session("b")
    };
    let required = File { criticality: Criticality::Required, ..file(0) };
    let written = [
        (session(name), vec![file(0), file(0x1a), file(u64::MAX - 7)]),
        (bare, vec![]),
        (session("compatible"), vec![file(9), required, file(3)]),
    ];
    let blob = write_files(written.clone()).unwrap();
    let read: Vec<_> = FilesTree::read(&blob)
        .unwrap()
        .sessions()
        .map(|session| {
            let session = session.unwrap();
            let files: Vec<_> = session.files().map(Result::unwrap).collect();
            (session.into_session(), files)
        })
        .collect();
    assert_eq!(read, written);
}

#[test]
fn a_tree_without_sessions_is_valid() {
    let blob = FilesWriter::new().finish().unwrap();
    assert_eq!(FilesTree::read(&blob).unwrap().sessions().count(), 0);
}

#[test]
fn the_machine_comes_back_as_it_was_written() {
    let written = [("files", 7), ("compatible", 1), ("my cache", u64::MAX), ("name", 0)];
    let blob = write_machine(3, written).unwrap();
    let tree = MachineTree::read(&blob).unwrap();
    assert_eq!(tree.liveupdate_number(), 3);
    let read: Vec<_> = tree.subsystems().map(Result::unwrap).collect();
    assert_eq!(read, written.map(|(name, data)| Subsystem { name: name.into(), data }));
}

#[test]
fn the_writer_refuses_what_could_not_be_read() {
    let mut writer = FilesWriter::new();
    assert_eq!(writer.file(&file(1)), Err(WriteError::NoSession));
    let error = NameError::Byte { byte: b'/', at: 1 };
    let refused = Err(WriteError::Name { name: "a/b".into(), error });
    assert_eq!(writer.session(&session("a/b")), refused);
    let long = "n".repeat(64);
    let error = NameError::TooLong { len: 64, max: 63 };
    assert_eq!(
        writer.session(&session(&long)),
        Err(WriteError::Name { name: long.clone(), error })
    );
    writer.session(&session("a")).unwrap();
    for (compatible, error) in [
        ("", NameError::Empty),
        ("a b", NameError::Byte { byte: b' ', at: 1 }),
        (&long[..48], NameError::TooLong { len: 48, max: 47 }),
    ] {
        let refused = WriteError::Compatible { token: 1, compatible: compatible.into(), error };
        assert_eq!(writer.file(&File { compatible, ..file(1) }), Err(refused));
    }
    writer.file(&file(1)).unwrap();
    let blob = writer.finish().unwrap();
    assert_eq!(FilesTree::read(&blob).unwrap().sessions().count(), 1);
}

#[test]
fn the_writer_refuses_what_is_there_twice() {
    let node = |name: &str| WriteError::Tree(fdt::WriteError::DuplicateNode { name: name.into() });
    let files = [file(0x1a), file(2), file(0x1a)];
    assert_eq!(write_files([(session("a"), files)]), Err(node("0x1a")));
    let twice = [(session("a b"), []), (session("a"), []), (session("a b"), [])];
    assert_eq!(write_files(twice), Err(node("a+20b")));
    let property = fdt::WriteError::DuplicateProperty { name: "net".into() };
    assert_eq!(write_machine(1, [("net", 1), ("net", 2)]), Err(WriteError::Tree(property)));
    let error = NameError::Empty;
    assert_eq!(write_machine(1, [("", 1)]), Err(WriteError::Name { name: String::new(), error }));
}

#[test]
fn a_session_that_ends_with_a_duplicate_stays_refused() {
    let mut writer = FilesWriter::new();
    writer.session(&session("a")).unwrap();
    writer.file(&file(1)).unwrap();
    writer.file(&file(1)).unwrap();
    assert!(matches!(writer.session(&session("b")), Err(WriteError::Tree(_))));
    assert!(matches!(writer.finish(), Err(WriteError::Tree(_))));
}

/// An assembled files' tree, up to where its sessions begin.
fn files_root() -> Asm {
    let mut asm = Asm::new();
    asm.strings.extend(b"compatible\0data\0owner\0optional\0on-close\0ttl\0");
    asm.begin("").property(COMPATIBLE, b"file-descriptors-v1\0");
    asm
}

const COMPATIBLE: u32 = 0;
const DATA: u32 = 11;
const OWNER: u32 = 16;
const OPTIONAL: u32 = 22;
const ON_CLOSE: u32 = 31;
const TTL: u32 = 40;

#[test]
fn a_damaged_file_is_that_files_error() {
    type Damage = fn(&mut Asm) -> &mut Asm;
    const VALUE: usize = 12;
    let cases: [(&str, Option<u64>, Damage, Kind, usize); 8] = [
        (
            "0x2",
            Some(2),
            |a| a.property(DATA, &[0; 8]),
            Kind::Missing { property: "compatible" },
            0,
        ),
        ("0x2", Some(2), |a| a.property(COMPATIBLE, b"x\0"), Kind::Missing { property: "data" }, 0),
        (
            "0x2",
            Some(2),
            |a| a.property(DATA, &[0; 4]),
            Kind::Size { property: "data", found: 4, expected: 8 },
            8 + VALUE,
        ),
        (
            "0x2",
            Some(2),
            |a| a.property(COMPATIBLE, b"x"),
            Kind::Value { property: "compatible" },
            8 + VALUE,
        ),
        (
            "0x2",
            Some(2),
            |a| a.property(COMPATIBLE, b"a b\0"),
            Kind::Value { property: "compatible" },
            8 + VALUE,
        ),
        (
            "0x2",
            Some(2),
            |a| a.property(COMPATIBLE, b"a\0b\0"),
            Kind::Value { property: "compatible" },
            8 + VALUE,
        ),
        (
            "0x2",
            Some(2),
            |a| a.property(COMPATIBLE, b"x\0").property(OPTIONAL, b"1"),
            Kind::Size { property: "optional", found: 1, expected: 0 },
            8 + 16 + VALUE,
        ),
        ("0x02", None, |a| a.property(DATA, b""), Kind::Token, 4),
    ];
    for (name, token, damage, kind, offset) in cases {
        let mut asm = files_root();
        asm.begin("s").property(OWNER, &[0; 8]);
        let whole = |asm: &mut Asm, name: &str| {
            asm.begin(name).property(COMPATIBLE, b"memfd-v1\0").property(DATA, &[0; 8]).end();
        };
        whole(&mut asm, "0x1");
        let at = asm.at();
        asm.begin(name);
        damage(&mut asm);
        // What else lies in a damaged file is walked over.
        asm.begin("deeper").begin("still").end().end().end();
        whole(&mut asm, "0x3");
        let blob = asm.end().end().blob();

        let sessions: Vec<_> = FilesTree::read(&blob).unwrap().sessions().collect();
        let files: Vec<_> = sessions[0].as_ref().unwrap().files().collect();
        let error = EntryError { name: name.into(), token, kind, offset: at + offset };
        assert_eq!(files[1], Err(error));
        assert_eq!(files[0].as_ref().unwrap().token, 1);
        assert_eq!(files[2].as_ref().unwrap().token, 3);
        assert_eq!(files.len(), 3);
    }
}

#[test]
fn a_damaged_session_is_that_sessions_error() {
    type Damage = fn(&mut Asm) -> &mut Asm;
    let cases: [(&str, Damage, Kind, usize); 6] = [
        ("b", |a| a, Kind::Missing { property: "owner" }, 0),
        (
            "b",
            |a| a.property(OWNER, &[0; 4]),
            Kind::Size { property: "owner", found: 4, expected: 8 },
            20,
        ),
        ("b", |a| a.property(ON_CLOSE, b"never\0"), Kind::Value { property: "on-close" }, 20),
        (
            "b",
            |a| a.property(TTL, &[0; 7]),
            Kind::Size { property: "ttl", found: 7, expected: 8 },
            20,
        ),
        ("b+61", |a| a, Kind::Name, 4),
        ("b@1", |a| a, Kind::Name, 4),
    ];
    for (name, damage, kind, offset) in cases {
        let mut asm = files_root();
        let whole = |asm: &mut Asm, name: &str| {
            asm.begin(name).property(OWNER, &[0; 8]);
            asm.begin("0x1").property(COMPATIBLE, b"x\0").property(DATA, &[0; 8]).end().end();
        };
        whole(&mut asm, "a");
        let at = asm.at();
        asm.begin(name);
        damage(&mut asm);
        asm.begin("0x1").end().end();
        whole(&mut asm, "c");
        let blob = asm.end().blob();

        let sessions: Vec<_> = FilesTree::read(&blob).unwrap().sessions().collect();
        let error = EntryError { name: name.into(), token: None, kind, offset: at + offset };
        assert_eq!(sessions[1].as_ref().unwrap_err(), &error);
        for (i, name) in [(0, "a"), (2, "c")] {
            let session = sessions[i].as_ref().unwrap();
            assert_eq!(session.name, name);
            assert_eq!(session.on_close, OnClose::Keep, "the default loses nothing");
            assert_eq!(session.files().filter(Result::is_ok).count(), 1);
        }
        assert_eq!(sessions.len(), 3);
    }
}

#[test]
fn what_is_not_known_is_ignored() {
    let mut asm = files_root();
    asm.named("colour", b"red\0");
    asm.begin("s").named("weight", b"").property(OWNER, &[0; 8]);
    asm.begin("0x1").property(DATA, &[0; 8]).named("size", b"1").property(COMPATIBLE, b"x\0");
    let blob = asm.begin("more").named("detail", b"").end().end().end().end().blob();
    let sessions: Vec<_> = FilesTree::read(&blob).unwrap().sessions().collect();
    let files: Vec<_> = sessions[0].as_ref().unwrap().files().collect();
    assert_eq!(files[0].as_ref().unwrap().compatible, "x");
}

#[test]
fn an_unknown_version_is_refused_whole_with_a_sentence() {
    let mut asm = Asm::new();
    let blob = asm.begin("").named("compatible", b"file-descriptors-v9\0").end().blob();
    let error = FilesTree::read(&blob).unwrap_err();
    let HandoverError::Version { found, known, offset } = &error else { panic!("{error:?}") };
    assert_eq!((found.as_str(), *known), ("file-descriptors-v9", &["file-descriptors-v1"][..]));
    assert_eq!(*offset, STRUCTURE + 8 + 12);
    assert_eq!(error.offset(), STRUCTURE + 8 + 12);
    assert_eq!(
        error.to_string(),
        "the handover is of version \"file-descriptors-v9\", this luo reads \
         \"file-descriptors-v1\": start a luo that knows that version (at byte 76)"
    );
    let machine = write_machine(0, []).unwrap();
    assert!(matches!(FilesTree::read(&machine), Err(HandoverError::Version { .. })));
    let files = FilesWriter::new().finish().unwrap();
    assert!(matches!(MachineTree::read(&files), Err(HandoverError::Version { .. })));
}

#[test]
fn a_damaged_header_is_refused_whole() {
    let header = |kind, offset| HandoverError::Header { kind, offset };
    let missing = |property| Kind::Missing { property };
    let blob = Asm::new().begin("").end().blob();
    let refused = header(missing("compatible"), STRUCTURE);
    assert_eq!(FilesTree::read(&blob).unwrap_err(), refused);
    assert_eq!(MachineTree::read(&blob).unwrap_err(), refused);
    let mut asm = Asm::new();
    let blob = asm.begin("").named("compatible", b"luo-v1").end().blob();
    let refused = header(Kind::Value { property: "compatible" }, STRUCTURE + 20);
    assert_eq!(MachineTree::read(&blob).unwrap_err(), refused);

    let mut asm = Asm::new();
    asm.begin("").named("compatible", b"luo-v1\0");
    let refused = header(missing("liveupdate-number"), STRUCTURE);
    assert_eq!(MachineTree::read(&asm.clone().end().blob()).unwrap_err(), refused);
    let at = asm.at();
    let short = asm.clone().named("liveupdate-number", &[0; 4]).end().blob();
    let kind = Kind::Size { property: "liveupdate-number", found: 4, expected: 8 };
    assert_eq!(MachineTree::read(&short).unwrap_err(), header(kind, at + 12));
    asm.named("liveupdate-number", &[0; 8]);
    let kind = Kind::MissingNode { node: "subsystems" };
    assert_eq!(MachineTree::read(&asm.clone().end().blob()).unwrap_err(), header(kind, STRUCTURE));
    let at = asm.at();
    let mut none = asm.clone();
    let none = none.begin("subsystems").end().end().blob();
    assert_eq!(MachineTree::read(&none).unwrap_err(), header(missing("compatible"), at));
    let newer = asm.begin("subsystems").property(0, b"subsystems-v2\0").end().end().blob();
    let error = MachineTree::read(&newer).unwrap_err();
    let HandoverError::Version { found, known, offset } = error else { panic!("{error:?}") };
    assert_eq!((found.as_str(), known), ("subsystems-v2", &["subsystems-v1"][..]));
    assert_eq!(offset, at + 16 + 12);
}

#[test]
fn bytes_that_are_no_tree_are_refused_whole() {
    let mut blob = FilesWriter::new().finish().unwrap();
    blob.pop();
    let error = FilesTree::read(&blob).unwrap_err();
    let HandoverError::Blob(cause) = &error else { panic!("{error:?}") };
    assert_eq!((cause.kind, cause.offset), (DecodeErrorKind::Truncated, blob.len()));
    assert!(std::error::Error::source(&error).is_some());
}

#[test]
fn a_damaged_subsystem_is_that_subsystems_error() {
    let mut asm = Asm::new();
    asm.begin("").named("compatible", b"luo-v1\0").named("liveupdate-number", &[0; 8]);
    asm.begin("subsystems").property(0, b"subsystems-v1\0").named("a", &[0; 8]);
    let b = asm.at();
    asm.named("b", &[0; 9]);
    let c = asm.at();
    asm.named("c#", &[0; 8]);
    let blob = asm.named("d", &[1; 8]).end().end().blob();
    let read: Vec<_> = MachineTree::read(&blob).unwrap().subsystems().collect();
    let error =
        |name: &str, kind, offset| Err(EntryError { name: name.into(), token: None, kind, offset });
    let size = Kind::Size { property: "data", found: 9, expected: 8 };
    assert_eq!(read[1], error("b", size, b + 12));
    assert_eq!(read[2], error("c#", Kind::Name, c));
    assert_eq!(read[0].as_ref().unwrap().name, "a");
    assert_eq!(read[3].as_ref().unwrap().name, "d");
}

#[test]
fn what_a_file_needs_comes_back_and_a_file_with_half_a_token_is_damaged_alone() {
    let tokens = [7_u64.to_be_bytes(), u64::MAX.to_be_bytes()];
    let needing = File { needs: Tokens::new(&tokens), ..file(3) };
    let blob = write_files([(session("s"), vec![file(1), needing])]).unwrap();
    let read = |blob: &[u8]| -> Vec<_> {
        let tree = FilesTree::read(blob).unwrap();
        let session = tree.sessions().next().unwrap().unwrap();
        session.files().map(|file| file.map(|f| f.needs.iter().collect::<Vec<_>>())).collect()
    };
    assert_eq!(read(&blob), [Ok(vec![]), Ok(vec![7, u64::MAX])]);
    // The property's length, before its name's offset and the tokens.
    let value = blob.windows(16).position(|bytes| bytes == tokens.as_flattened()).unwrap();
    let mut damaged = blob.clone();
    damaged[value - 8..value - 4].copy_from_slice(&13_u32.to_be_bytes());
    damaged[value + 13..value + 16].fill(0);
    let found = read(&damaged);
    assert_eq!(found[0], Ok(vec![]));
    let error = found[1].as_ref().unwrap_err();
    assert_eq!(error.token, Some(3));
    assert!(error.to_string().contains("needs"), "{error}");
}
