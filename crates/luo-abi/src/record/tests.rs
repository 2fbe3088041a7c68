use alloc::{format, string::String, string::ToString, vec, vec::Vec};

use super::{RecordErrorKind as Kind, *};
use crate::{Criticality, Direction, NameError, OnClose, Owner, Phase};

extern crate std;

fn session() -> SessionRecord {
    SessionRecord {
        id: 1,
        name: "web cache".into(),
        owner: Owner { uid: 1000, gid: 100 },
        on_close: OnClose::Keep,
        ttl: Some(60),
        expiry: None,
        state: Phase::Updated,
        next_token: 3,
        last_request: 4,
    }
}

fn file() -> FileRecord {
    FileRecord {
        session: 1,
        token: 2,
        compatible: "memfd-v1".into(),
        criticality: Criticality::Optional,
        phase: Phase::Frozen,
        direction: Direction::Outgoing,
        reclaimed: true,
        data: 5,
        request: 6,
        handles: vec![7, 8],
        failure: Some(RememberedFailure { errno: 5, text: "gone".into() }),
    }
}

fn machine() -> MachineRecord {
    MachineRecord {
        state: Phase::Normal,
        liveupdate_number: 1,
        subsystems: vec![
            SubsystemData { name: "files".into(), data: 2 },
            SubsystemData { name: "net".into(), data: 3 },
        ],
        handover: Some(4),
    }
}

fn memfd() -> MemfdRecord {
    MemfdRecord { size: 1, position: 2, memory: 3, seals: 4, flags: 5, name: b"heap".to_vec() }
}

/// Puts `with` at `offset` of a record and gives what `decode` says then.
fn damaged<T>(
    record: &[u8],
    offset: usize,
    with: &[u8],
    decode: fn(&[u8]) -> Result<T, RecordError>,
) -> (Kind, usize) {
    let mut bytes = record.to_vec();
    bytes[offset..offset + with.len()].copy_from_slice(with);
    let error = decode(&bytes).err().unwrap();
    (error.kind, error.offset)
}

fn error<T>(result: Result<T, RecordError>) -> (Kind, usize) {
    let error = result.err().unwrap();
    (error.kind, error.offset)
}

#[test]
fn what_is_encoded_comes_back() {
    assert_eq!(SessionRecord::decode(&session().encode().unwrap()), Ok(session()));
    assert_eq!(FileRecord::decode(&file().encode().unwrap()), Ok(file()));
    assert_eq!(MachineRecord::decode(&machine().encode().unwrap()), Ok(machine()));
    assert_eq!(MemfdRecord::decode(&memfd().encode().unwrap()), Ok(memfd()));
    assert_eq!(Record::decode(&session().encode().unwrap()), Ok(Record::Session(session())));
    assert_eq!(Record::decode(&file().encode().unwrap()), Ok(Record::File(file())));
    assert_eq!(Record::decode(&machine().encode().unwrap()), Ok(Record::Machine(machine())));
}

#[test]
fn the_version_is_readable_before_anything_else() {
    for (bytes, version) in [
        (session().encode().unwrap(), SESSION_RECORD),
        (file().encode().unwrap(), FILE_RECORD),
        (machine().encode().unwrap(), MACHINE_RECORD),
    ] {
        assert_eq!(version_of(&bytes), Ok(version));
        assert_eq!(version_of(&bytes[..raw::VERSION_SIZE]), Ok(version));
        assert_eq!(version_of(&bytes[..23]).unwrap_err(), Kind::Short.at(23));
    }
}

#[test]
fn an_unknown_version_is_named_beside_the_known_ones() {
    let bytes = session().encode().unwrap();
    let known: &'static [&'static str] = &[SESSION_RECORD];
    let unknown = Kind::Version { found: "session-record-v2".into(), known };
    assert_eq!(damaged(&bytes, 16, b"2", SessionRecord::decode), (unknown, 0));
    let unknown = Kind::Version { found: "session-record-v2".into(), known: Record::KNOWN };
    assert_eq!(damaged(&bytes, 16, b"2", Record::decode), (unknown.clone(), 0));
    let text = unknown.to_string();
    assert!(text.contains("\"session-record-v2\"") && text.contains("\"session-record-v1\""));
    let other = error(FileRecord::decode(&bytes));
    let known = &[FILE_RECORD][..];
    assert_eq!(other, (Kind::Version { found: SESSION_RECORD.into(), known }, 0));
}

#[test]
fn a_damaged_beginning_is_refused() {
    let bytes = session().encode().unwrap();
    let decode = SessionRecord::decode;
    assert_eq!(damaged(&bytes, 0, &[0], decode), (Kind::VersionText, 0));
    assert_eq!(damaged(&bytes, 3, &[0xff], decode), (Kind::VersionText, 3));
    assert_eq!(damaged(&bytes, 23, b"x", decode), (Kind::VersionText, 23));
    assert_eq!(damaged(&bytes, 31, b"x", decode), (Kind::Reserved, 31));
    let length = Kind::Length { claimed: 153, found: 152 };
    assert_eq!(damaged(&bytes, 24, &[153], decode), (length, 24));
    assert_eq!(error(decode(&[])), (Kind::Short, 0));
    assert_eq!(error(decode(&bytes[..30])), (Kind::Short, 30));
    let short = Kind::Length { claimed: 152, found: 151 };
    assert_eq!(error(decode(&bytes[..151])), (short, 24));
}

#[test]
fn a_length_that_is_true_but_wrong_is_refused() {
    let mut bytes = session().encode().unwrap();
    bytes.push(0);
    bytes[24] += 1;
    let long = (Kind::Length { claimed: 152, found: 153 }, 24);
    assert_eq!(error(SessionRecord::decode(&bytes)), long);
    let mut bytes = session().encode().unwrap();
    bytes.truncate(151);
    bytes[24] -= 1;
    assert_eq!(error(SessionRecord::decode(&bytes)), (Kind::Short, 151));
    let mut bytes = file().encode().unwrap();
    let size = bytes.len() as u32;
    bytes.push(b'!');
    bytes[24] += 1;
    let long = (Kind::Length { claimed: size, found: bytes.len() }, 24);
    assert_eq!(error(FileRecord::decode(&bytes)), long);
    let mut bytes = machine().encode().unwrap();
    let size = bytes.len() as u32;
    bytes.push(0);
    bytes[24] += 1;
    let long = (Kind::Length { claimed: size, found: bytes.len() }, 24);
    assert_eq!(error(MachineRecord::decode(&bytes)), long);
}

#[test]
fn a_damaged_session_is_refused() {
    let bytes = session().encode().unwrap();
    let refused = |at, with: &[u8]| damaged(&bytes, at, with, SessionRecord::decode);
    assert_eq!(refused(40, &[0; 9]), (Kind::Name(NameError::Empty), 40));
    assert_eq!(refused(42, b"/"), (Kind::Name(NameError::Byte { byte: b'/', at: 2 }), 40));
    assert_eq!(refused(103, b"x"), (Kind::Padding, 103));
    assert_eq!(refused(40, &[b'a'; 64]), (Kind::Name(NameError::TooLong { len: 64, max: 63 }), 40));
    assert_eq!(refused(120, &[1]), (Kind::Absent { field: "expiry" }, 120));
    assert_eq!(refused(146, &[0]), (Kind::Absent { field: "ttl" }, 112));
    assert_eq!(refused(144, &[0]), (Kind::Word { field: "on_close", found: 0 }, 144));
    assert_eq!(refused(145, &[5]), (Kind::Word { field: "state", found: 5 }, 145));
    assert_eq!(refused(146, &[0x81]), (Kind::Flag { field: "present" }, 146));
    assert_eq!(refused(151, &[1]), (Kind::Reserved, 151));
}

#[test]
fn a_damaged_file_is_refused() {
    let bytes = file().encode().unwrap();
    let refused = |at, with: &[u8]| damaged(&bytes, at, with, FileRecord::decode);
    assert_eq!(refused(48, &[0; 8]), (Kind::Name(NameError::Empty), 48));
    assert_eq!(refused(48, b" "), (Kind::Name(NameError::Byte { byte: b' ', at: 0 }), 48));
    assert_eq!(refused(60, b"x"), (Kind::Padding, 60));
    assert_eq!(refused(112, &[0; 4]), (Kind::Failure, 112));
    assert_eq!(refused(112, &4096_u32.to_le_bytes()), (Kind::Failure, 112));
    assert_eq!(refused(120, &[3]), (Kind::Word { field: "criticality", found: 3 }, 120));
    assert_eq!(refused(121, &[0]), (Kind::Word { field: "phase", found: 0 }, 121));
    assert_eq!(refused(122, &[9]), (Kind::Word { field: "direction", found: 9 }, 122));
    assert_eq!(refused(123, &[2]), (Kind::Flag { field: "reclaimed" }, 123));
    assert_eq!(refused(125, &[1]), (Kind::Reserved, 125));
    assert_eq!(refused(136, &[0]), (Kind::Handle, 136));
    assert_eq!(refused(146, &[0xff]), (Kind::Text, 146));
    let claimed = bytes.len() as u32 + 1;
    assert_eq!(refused(116, &[5]), (Kind::Length { claimed, found: bytes.len() }, 24));
    let claimed = bytes.len() as u32 + 8;
    assert_eq!(refused(118, &[3]), (Kind::Length { claimed, found: bytes.len() }, 24));
}

#[test]
fn a_file_cannot_hold_more_than_the_limits_say() {
    let most = FileRecord {
        handles: vec![1; FileRecord::HANDLES_MAX],
        failure: Some(RememberedFailure::new(4095, &"é".repeat(512))),
        ..file()
    };
    let bytes = most.encode().unwrap();
    assert_eq!(bytes.len(), FileRecord::MAX_SIZE);
    assert_eq!(FileRecord::decode(&bytes), Ok(most.clone()));

    let mut more = most.clone();
    more.handles.push(1);
    let refused = (Kind::TooMany { found: 257, max: 256 }, 118);
    assert_eq!(error(more.encode()), refused);
    // The same, written by somebody who does not check.
    let mut forged = bytes.clone();
    forged.splice(128..128, 1_u64.to_le_bytes());
    forged[118..120].copy_from_slice(&257_u16.to_le_bytes());
    let size = forged.len() as u32;
    forged[24..28].copy_from_slice(&size.to_le_bytes());
    assert_eq!(error(FileRecord::decode(&forged)), refused);

    let mut more = most;
    more.failure = Some(RememberedFailure { errno: 1, text: "x".repeat(1025) });
    let refused = (Kind::TooLong { found: 1025, max: 1024 }, 116);
    assert_eq!(error(more.encode()), refused);
    let mut forged = bytes;
    forged.push(b'x');
    forged[116..118].copy_from_slice(&1025_u16.to_le_bytes());
    let size = forged.len() as u32;
    forged[24..28].copy_from_slice(&size.to_le_bytes());
    assert_eq!(error(FileRecord::decode(&forged)), refused);
}

#[test]
fn a_file_that_cannot_be_encoded_says_why() {
    let with = |change: fn(&mut FileRecord)| {
        let mut record = file();
        change(&mut record);
        error(record.encode())
    };
    assert_eq!(with(|f| f.compatible.clear()), (Kind::Name(NameError::Empty), 48));
    assert_eq!(
        with(|f| f.compatible = "a".repeat(48)),
        (Kind::Name(NameError::TooLong { len: 48, max: 47 }), 48)
    );
    assert_eq!(with(|f| f.handles = vec![1, 0]), (Kind::Handle, 136));
    assert_eq!(with(|f| f.failure = Some(RememberedFailure::new(0, "x"))), (Kind::Failure, 112));
    assert_eq!(with(|f| f.failure = Some(RememberedFailure::new(4096, ""))), (Kind::Failure, 112));
}

#[test]
fn a_reason_that_is_too_long_ends_between_two_characters() {
    let failure = RememberedFailure::new(5, &"ä€".repeat(300));
    assert!(failure.text.len() <= RememberedFailure::TEXT_MAX);
    assert!(failure.text.len() > RememberedFailure::TEXT_MAX - 6);
    assert!(failure.text.ends_with('…'));
    assert_eq!(RememberedFailure::new(5, "short").text, "short");
}

#[test]
fn a_damaged_machine_is_refused() {
    let bytes = machine().encode().unwrap();
    let refused = |at, with: &[u8]| damaged(&bytes, at, with, MachineRecord::decode);
    assert_eq!(refused(52, &[0]), (Kind::Word { field: "state", found: 0 }, 52));
    assert_eq!(refused(55, &[1]), (Kind::Reserved, 55));
    assert_eq!(refused(50, &[1]), (Kind::TooMany { found: 65538, max: 1024 }, 48));
    let claimed = bytes.len() as u32 - 72;
    assert_eq!(refused(48, &[1]), (Kind::Length { claimed, found: bytes.len() }, 24));
    assert_eq!(refused(56, &[0; 5]), (Kind::Name(NameError::Empty), 56));
    assert_eq!(refused(128, b"\x7f"), (Kind::Name(NameError::Byte { byte: 0x7f, at: 0 }), 128));
    assert_eq!(refused(128 + 63, b"x"), (Kind::Padding, 191));
    assert_eq!(refused(128, b"files"), (Kind::Duplicate, 128));
}

#[test]
fn a_machine_that_cannot_be_encoded_says_why() {
    let with = |change: fn(&mut MachineRecord)| {
        let mut record = machine();
        change(&mut record);
        error(record.encode())
    };
    assert_eq!(with(|m| m.handover = Some(0)), (Kind::Handle, 40));
    assert_eq!(with(|m| m.subsystems[1].name = "files".into()), (Kind::Duplicate, 128));
    assert_eq!(with(|m| m.subsystems[0].name.clear()), (Kind::Name(NameError::Empty), 56));
    let full = |count: usize| MachineRecord {
        subsystems: (0..count).map(|i| SubsystemData { name: format!("s{i}"), data: 0 }).collect(),
        ..machine()
    };
    assert_eq!(error(full(1025).encode()), (Kind::TooMany { found: 1025, max: 1024 }, 48));
    let bytes = full(1024).encode().unwrap();
    assert_eq!(bytes.len(), MachineRecord::MAX_SIZE);
    assert_eq!(MachineRecord::decode(&bytes), Ok(full(1024)));
}

#[test]
fn a_damaged_memory_file_is_refused() {
    let bytes = memfd().encode().unwrap();
    let refused = |at, with: &[u8]| damaged(&bytes, at, with, MemfdRecord::decode);
    assert_eq!(refused(16, &[0]), (Kind::Handle, 16));
    assert_eq!(refused(24, &[0x40]), (Kind::Flag { field: "seals" }, 24));
    assert_eq!(refused(28, &[0x10]), (Kind::Flag { field: "flags" }, 28));
    assert_eq!(refused(32, &[250]), (Kind::TooLong { found: 250, max: 249 }, 32));
    assert_eq!(refused(32, &[3]), (Kind::Length { claimed: 3, found: 4 }, 32));
    assert_eq!(refused(40, b"x"), (Kind::Padding, 40));
    assert_eq!(refused(287, &[1]), (Kind::Reserved, 287));
    assert_eq!(error(MemfdRecord::decode(&bytes[..287])), (Kind::Short, 287));
    let mut long = bytes.clone();
    long.push(0);
    let expected = (Kind::Length { claimed: 288, found: 289 }, 288);
    assert_eq!(error(MemfdRecord::decode(&long)), expected);
}

#[test]
fn a_memory_file_that_cannot_be_encoded_says_why() {
    let full = MemfdRecord { name: vec![0xff; 249], ..memfd() };
    assert_eq!(MemfdRecord::decode(&full.encode().unwrap()), Ok(full));
    let long = MemfdRecord { name: vec![b'a'; 250], ..memfd() };
    assert_eq!(error(long.encode()), (Kind::TooLong { found: 250, max: 249 }, 32));
    let zero = MemfdRecord { name: b"a\0b".to_vec(), ..memfd() };
    assert_eq!(error(zero.encode()), (Kind::Text, 35));
    let empty = MemfdRecord { size: 0, memory: 0, ..memfd() };
    assert_eq!(MemfdRecord::decode(&empty.encode().unwrap()), Ok(empty));
}

/// The tables of `docs/abi.md` under the heading `heading`, each row's offset, size and field.
fn documented(page: &str, heading: &str, table: usize) -> Vec<(usize, usize, String)> {
    let section = page.split(heading).nth(1).expect("the page has that heading");
    let mut tables: Vec<Vec<(usize, usize, String)>> = Vec::new();
    let mut in_table = false;
    for line in section.lines().skip(1).take_while(|line| !line.starts_with('#')) {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        if cells.get(1) == Some(&"offset") {
            tables.push(Vec::new());
            in_table = true;
        } else if !line.starts_with('|') {
            in_table = false;
        } else if in_table && let Ok(offset) = cells[1].parse() {
            let field = cells[3].trim_matches('`').into();
            tables.last_mut().unwrap().push((offset, cells[2].parse().unwrap(), field));
        }
    }
    tables.swap_remove(table)
}

#[test]
fn the_documented_layouts_are_those_of_the_code() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/abi.md");
    let page = std::fs::read_to_string(path).unwrap();
    for (heading, table, size, fields) in [
        ("## Records of the daemon", 0, size_of::<raw::Header>(), raw::Header::fields()),
        ("### `machine-record-v1`", 0, size_of::<raw::Machine>(), raw::Machine::fields()),
        ("### `machine-record-v1`", 1, size_of::<raw::Subsystem>(), raw::Subsystem::fields()),
        ("### `session-record-v1`", 0, size_of::<raw::Session>(), raw::Session::fields()),
        ("### `file-record-v1`", 0, size_of::<raw::File>(), raw::File::fields()),
        ("### `memfd-v1`", 0, size_of::<raw::Memfd>(), raw::Memfd::fields()),
    ] {
        let fields: Vec<_> = fields.into_iter().map(|(o, s, f)| (o, s, f.to_string())).collect();
        assert_eq!(documented(&page, heading, table), fields, "{heading}");
        let end = fields.iter().fold(0, |at, &(offset, size, _)| {
            assert_eq!(at, offset, "{heading}: the fields leave no space");
            at + size
        });
        assert_eq!(end, size, "{heading}");
    }
}

#[test]
fn the_documented_numbers_are_those_of_the_code() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/abi.md");
    let page = std::fs::read_to_string(path).unwrap();
    let list = |values: Vec<(u8, &str)>| {
        values.iter().map(|(raw, word)| format!("{raw} {word}")).collect::<Vec<_>>().join(", ")
    };
    let words = |all: &[Phase]| list(all.iter().map(|w| (w.raw(), w.as_str())).collect());
    for (field, values) in [
        ("state, phase", words(Phase::ALL)),
        ("on_close", list(OnClose::ALL.iter().map(|w| (w.raw(), w.as_str())).collect())),
        ("criticality", list(Criticality::ALL.iter().map(|w| (w.raw(), w.as_str())).collect())),
        ("direction", list(Direction::ALL.iter().map(|w| (w.raw(), w.as_str())).collect())),
        ("size of a blob", format!("{} MiB", crate::fdt::MAX_SIZE >> 20)),
        ("depth, the root being at 1", format!("{}", crate::fdt::MAX_DEPTH)),
        ("name of a node or property", format!("{} bytes", crate::fdt::MAX_NAME)),
        ("name of a session or subsystem", format!("{} bytes", crate::NAME_MAX)),
        ("`compatible` string", format!("{} bytes", crate::COMPATIBLE_MAX)),
    ] {
        let row = format!("| {field} | {values} |");
        assert!(page.contains(&row), "docs/abi.md lacks {row:?}");
    }
    for limit in [
        format!("at most {}", FileRecord::HANDLES_MAX),
        format!("at most {}", RememberedFailure::TEXT_MAX),
        format!("at most {}", MachineRecord::SUBSYSTEMS_MAX),
        format!("at most {MEMFD_NAME_MAX}"),
    ] {
        assert!(page.contains(&limit), "docs/abi.md lacks {limit:?}");
    }
}
