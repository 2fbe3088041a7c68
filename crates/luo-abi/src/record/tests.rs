use super::{RecordErrorKind as Kind, *};
use crate::{Arrival, Criticality, Event, Level, NameError, OnClose, Owner, Side, State};
use alloc::{format, string::String, string::ToString, vec, vec::Vec};
use core::net::{Ipv6Addr, SocketAddrV6};

extern crate std;

fn session() -> SessionRecord<'static> {
    SessionRecord {
        id: 1,
        name: "web cache".into(),
        owner: Owner { uid: 1000, gid: 100 },
        on_close: OnClose::Keep,
        ttl: Some(60),
        state: State::Updated,
        transition: Some(Event::Finish),
        level: Level::Session,
        next_token: 3,
        unclaimed: true,
        expires: None,
        created_by: 4,
        finished_by: 5,
    }
}

fn file() -> FileRecord<'static> {
    FileRecord {
        session: 1,
        side: Side::Incoming,
        token: 2,
        compatible: "memfd-v1".into(),
        criticality: Criticality::Optional,
        state: State::Updated,
        level: Level::Machine,
        data: Some(5),
        handles: vec![7, 8].into(),
        incoming: Some(Incoming::Failed(RememberedFailure::new(5, "gone", true))),
        reclaimed: true,
        pinned: 9,
        request: 6,
        index: 10,
        needs: [].as_slice().into(),
        with: [].as_slice().into(),
    }
}

fn bound_file() -> FileRecord<'static> {
    FileRecord { needs: vec![0, 4].into(), with: vec![u64::MAX].into(), ..file() }
}

fn machine() -> MachineRecord<'static> {
    MachineRecord {
        state: State::Normal,
        transition: Some(Event::Prepare),
        departed: true,
        carrier: 3,
        liveupdate_number: 1,
        next_session: 2,
        boot_data: [("files", 3), ("net", 4)]
            .map(|(name, data)| SubsystemData { name: name.into(), data })
            .into(),
        subsystems: [("files", vec![]), ("net", vec![5, 6])]
            .map(|(name, handles)| SubsystemRecord {
                name: name.into(),
                criticality: Criticality::Required,
                concurrent: true,
                state: State::Prepared,
                data: 7,
                handles: handles.into(),
            })
            .into(),
        shared: [("memfd-v1", vec![8]), ("socket-v1", vec![9, 10])]
            .map(|(compatible, handles)| SharedRecord {
                compatible: compatible.into(),
                data: 11,
                frozen: true,
                arrived: false,
                retrieved: true,
                handles: handles.into(),
            })
            .into(),
    }
}

fn memfd() -> MemfdRecord {
    MemfdRecord { size: 1, position: 2, memory: 3, seals: 4, flags: 5, name: b"heap".to_vec() }
}

fn tcp() -> TcpRecord {
    let address = |last, port| {
        SocketAddrV6::new(Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0xc000, last), port, 0, 0)
    };
    TcpRecord {
        flags: TcpRecord::SCALING | TcpRecord::NONBLOCK,
        local: address(1, 2),
        remote: address(3, 4),
        mss: 5,
        send_scale: 6,
        receive_scale: 7,
        send_sequence: 8,
        receive_sequence: 9,
        timestamp: 10,
        send_update: 11,
        send_window: 12,
        send_window_max: 13,
        receive_window: 14,
        receive_update: 15,
        unread: 16,
        unread_length: 17,
        written: 18,
        written_length: 20,
        unsent_length: 19,
        congestion: b"cubic".to_vec(),
        options: vec![
            OptionValue { option: socket_option::KEEP_ALIVE, value: 1 },
            OptionValue { option: socket_option::LINGER, value: -1 },
        ],
    }
}

/// Puts `with` at `offset` of a record and gives what `decode` says then.
fn damaged(
    record: &[u8],
    offset: usize,
    with: &[u8],
    decode: impl Fn(&[u8]) -> (Kind, usize),
) -> (Kind, usize) {
    let mut bytes = record.to_vec();
    bytes[offset..offset + with.len()].copy_from_slice(with);
    decode(&bytes)
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
    assert_eq!(TcpRecord::decode(&tcp().encode().unwrap()), Ok(tcp()));
    assert_eq!(Record::decode(&session().encode().unwrap()), Ok(Record::Session(session())));
    assert_eq!(Record::decode(&file().encode().unwrap()), Ok(Record::File(file())));
    assert_eq!(Record::decode(&bound_file().encode().unwrap()), Ok(Record::File(bound_file())));
    assert_eq!(Record::decode(&machine().encode().unwrap()), Ok(Record::Machine(machine())));
}

#[test]
fn the_version_is_readable_before_anything_else() {
    for (bytes, version) in [
        (session().encode().unwrap(), SESSION_RECORD),
        (file().encode().unwrap(), FILE_RECORD),
        (bound_file().encode().unwrap(), BOUND_FILE_RECORD),
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
    assert_eq!(
        damaged(&bytes, 16, b"2", |bytes| error(SessionRecord::decode(bytes))),
        (unknown, 0)
    );
    let unknown = Kind::Version { found: "session-record-v2".into(), known: Record::KNOWN };
    assert_eq!(
        damaged(&bytes, 16, b"2", |bytes| error(Record::decode(bytes))),
        (unknown.clone(), 0)
    );
    let text = unknown.to_string();
    assert!(text.contains("\"session-record-v2\"") && text.contains("\"session-record-v1\""));
    let other = error(FileRecord::decode(&bytes));
    let known = &[FILE_RECORD, BOUND_FILE_RECORD][..];
    assert_eq!(other, (Kind::Version { found: SESSION_RECORD.into(), known }, 0));
}

#[test]
fn a_damaged_beginning_is_refused() {
    let bytes = session().encode().unwrap();
    let decode = |bytes: &[u8]| error(SessionRecord::decode(bytes));
    assert_eq!(damaged(&bytes, 0, &[0], decode), (Kind::VersionText, 0));
    assert_eq!(damaged(&bytes, 3, &[0xff], decode), (Kind::VersionText, 3));
    assert_eq!(damaged(&bytes, 23, b"x", decode), (Kind::VersionText, 23));
    assert_eq!(damaged(&bytes, 31, b"x", decode), (Kind::Reserved, 31));
    let length = Kind::Length { claimed: 161, found: 160 };
    assert_eq!(damaged(&bytes, 24, &[161], decode), (length, 24));
    assert_eq!(decode(&[]), (Kind::Short, 0));
    assert_eq!(decode(&bytes[..30]), (Kind::Short, 30));
    let short = Kind::Length { claimed: 160, found: 159 };
    assert_eq!(decode(&bytes[..159]), (short, 24));
}

#[test]
fn a_length_that_is_true_but_wrong_is_refused() {
    let mut bytes = session().encode().unwrap();
    bytes.push(0);
    bytes[24] += 1;
    let long = (Kind::Length { claimed: 160, found: 161 }, 24);
    assert_eq!(error(SessionRecord::decode(&bytes)), long);
    let mut bytes = session().encode().unwrap();
    bytes.truncate(159);
    bytes[24] -= 1;
    assert_eq!(error(SessionRecord::decode(&bytes)), (Kind::Short, 159));
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
    let decode = |bytes: &[u8]| error(SessionRecord::decode(bytes));
    let refused = |at, with: &[u8]| damaged(&bytes, at, with, decode);
    assert_eq!(refused(40, &[0; 9]), (Kind::Name(NameError::Empty), 40));
    assert_eq!(refused(42, b"/"), (Kind::Name(NameError::Byte { byte: b'/', at: 2 }), 40));
    assert_eq!(refused(103, b"x"), (Kind::Padding, 103));
    assert_eq!(refused(40, &[b'a'; 64]), (Kind::Name(NameError::TooLong { len: 64, max: 63 }), 40));
    assert_eq!(refused(120, &[1]), (Kind::Absent { field: "expires" }, 120));
    assert_eq!(refused(157, &[0]), (Kind::Absent { field: "ttl" }, 112));
    assert_eq!(refused(152, &[0]), (Kind::Word { field: "on_close", found: 0 }, 152));
    assert_eq!(refused(153, &[5]), (Kind::Word { field: "state", found: 5 }, 153));
    assert_eq!(refused(154, &[7]), (Kind::Word { field: "transition", found: 7 }, 154));
    assert_eq!(refused(155, &[0]), (Kind::Word { field: "level", found: 0 }, 155));
    assert_eq!(refused(156, &[2]), (Kind::Flag { field: "unclaimed" }, 156));
    assert_eq!(refused(157, &[0x81]), (Kind::Flag { field: "present" }, 157));
    assert_eq!(refused(159, &[1]), (Kind::Reserved, 159));
    // A time limit means nothing to a session that is not kept.
    assert_eq!(refused(152, &[1]), (Kind::Flag { field: "present" }, 157));
    let released = SessionRecord { on_close: OnClose::Release, ..session() };
    assert_eq!(error(released.encode()), (Kind::Flag { field: "present" }, 157));
}

#[test]
fn a_damaged_file_is_refused() {
    let bytes = file().encode().unwrap();
    let decode = |bytes: &[u8]| error(FileRecord::decode(bytes));
    let refused = |at, with: &[u8]| damaged(&bytes, at, with, decode);
    assert_eq!(refused(48, &[0; 8]), (Kind::Name(NameError::Empty), 48));
    assert_eq!(refused(48, b" "), (Kind::Name(NameError::Byte { byte: b' ', at: 0 }), 48));
    assert_eq!(refused(60, b"x"), (Kind::Padding, 60));
    assert_eq!(refused(124, &[0; 4]), (Kind::Failure, 124));
    assert_eq!(refused(124, &4096_u32.to_le_bytes()), (Kind::Failure, 124));
    assert_eq!(refused(132, &[9]), (Kind::Word { field: "side", found: 9 }, 132));
    assert_eq!(refused(133, &[3]), (Kind::Word { field: "criticality", found: 3 }, 133));
    assert_eq!(refused(134, &[0]), (Kind::Word { field: "state", found: 0 }, 134));
    assert_eq!(refused(135, &[4]), (Kind::Word { field: "level", found: 4 }, 135));
    assert_eq!(refused(136, &[4]), (Kind::Word { field: "incoming", found: 4 }, 136));
    assert_eq!(refused(137, &[2]), (Kind::Flag { field: "told" }, 137));
    assert_eq!(refused(138, &[2]), (Kind::Flag { field: "reclaimed" }, 138));
    assert_eq!(refused(139, &[3]), (Kind::Flag { field: "present" }, 139));
    assert_eq!(refused(139, &[0]), (Kind::Absent { field: "data" }, 96));
    assert_eq!(refused(143, &[1]), (Kind::Reserved, 140));
    assert_eq!(refused(13, b"2"), (Kind::Reserved, 140), "bound to nothing, and says otherwise");
    assert_eq!(refused(152, &[0]), (Kind::Handle, 152));
    assert_eq!(refused(162, &[0xff]), (Kind::Text, 162));
    let claimed = bytes.len() as u32 + 1;
    assert_eq!(refused(128, &[5]), (Kind::Length { claimed, found: bytes.len() }, 24));
    let claimed = bytes.len() as u32 + 8;
    assert_eq!(refused(130, &[3]), (Kind::Length { claimed, found: bytes.len() }, 24));
}

#[test]
fn what_belongs_to_a_failure_is_refused_without_one() {
    for word in [0, Arrival::Waiting.raw(), Arrival::Retrieved.raw()] {
        let mut bytes = file().encode().unwrap();
        bytes[136] = word;
        assert_eq!(error(FileRecord::decode(&bytes)), (Kind::Absent { field: "errno" }, 124));
        bytes[124] = 0;
        let refused = (Kind::Absent { field: "reason_length" }, 128);
        assert_eq!(error(FileRecord::decode(&bytes)), refused);
        bytes[128] = 0;
        bytes.truncate(160);
        bytes[24] = 160;
        assert_eq!(error(FileRecord::decode(&bytes)), (Kind::Absent { field: "told" }, 137));
        bytes[137] = 0;
        let incoming = match word {
            0 => None,
            1 => Some(Incoming::Waiting),
            _ => Some(Incoming::Retrieved),
        };
        assert_eq!(FileRecord::decode(&bytes), Ok(FileRecord { incoming, ..file() }));
    }
}

#[test]
fn a_record_is_appended_whole_or_not_at_all() {
    let mut out = b"before".to_vec();
    file().encode_into(&mut out).unwrap();
    session().encode_into(&mut out).unwrap();
    machine().encode_into(&mut out).unwrap();
    let [file_bytes, session_bytes, machine_bytes] =
        [file().encode(), session().encode(), machine().encode()].map(Result::unwrap);
    assert_eq!(out, [&b"before"[..], &file_bytes, &session_bytes, &machine_bytes].concat());
    let before = out.clone();
    FileRecord { handles: vec![0].into(), ..file() }.encode_into(&mut out).unwrap_err();
    SessionRecord { name: "".into(), ..session() }.encode_into(&mut out).unwrap_err();
    let mut twice = machine();
    twice.shared[1].compatible = "memfd-v1".into();
    twice.encode_into(&mut out).unwrap_err();
    assert_eq!(out, before);
}

#[test]
fn the_bytes_of_a_record_have_no_spare_room() {
    for bytes in [file().encode(), session().encode(), machine().encode()].map(Result::unwrap) {
        assert_eq!(bytes.capacity(), bytes.len());
    }
}

#[test]
fn a_file_cannot_hold_more_than_the_limits_say() {
    let failed = |failure| Some(Incoming::Failed(failure));
    let reason = "é".repeat(512);
    let most = FileRecord {
        handles: vec![1; FileRecord::HANDLES_MAX].into(),
        needs: vec![2; FileRecord::BONDS_MAX - 1].into(),
        with: vec![3].into(),
        incoming: failed(RememberedFailure::new(4095, &reason, false)),
        ..file()
    };
    let bytes = most.encode().unwrap();
    assert_eq!(bytes.len(), FileRecord::MAX_SIZE);
    assert_eq!(FileRecord::decode(&bytes), Ok(most.clone()));

    let mut more = most.clone();
    more.handles.to_mut().push(1);
    let refused = (Kind::TooMany { found: 1025, max: 1024 }, 130);
    assert_eq!(error(more.encode()), refused);
    // The same, written by somebody who does not check.
    let mut forged = bytes.clone();
    forged.splice(144..144, 1_u64.to_le_bytes());
    forged[130..132].copy_from_slice(&1025_u16.to_le_bytes());
    let size = forged.len() as u32;
    forged[24..28].copy_from_slice(&size.to_le_bytes());
    assert_eq!(error(FileRecord::decode(&forged)), refused);

    let mut more = most.clone();
    more.with.to_mut().push(1);
    assert_eq!(error(more.encode()), (Kind::TooMany { found: 4097, max: 4096 }, 140));

    let mut more = most;
    let reason = "x".repeat(1025).into();
    more.incoming = failed(RememberedFailure { errno: 1, reason, told: true });
    let refused = (Kind::TooLong { found: 1025, max: 1024 }, 128);
    assert_eq!(error(more.encode()), refused);
    let mut forged = bytes;
    forged.push(b'x');
    forged[128..130].copy_from_slice(&1025_u16.to_le_bytes());
    let size = forged.len() as u32;
    forged[24..28].copy_from_slice(&size.to_le_bytes());
    assert_eq!(error(FileRecord::decode(&forged)), refused);
}

#[test]
fn a_file_that_cannot_be_encoded_says_why() {
    let with = |change: fn(&mut FileRecord<'_>)| {
        let mut record = file();
        change(&mut record);
        error(record.encode())
    };
    let failed = |errno| FileRecord {
        incoming: Some(Incoming::Failed(RememberedFailure::new(errno, "x", false))),
        ..file()
    };
    assert_eq!(with(|f| f.compatible = "".into()), (Kind::Name(NameError::Empty), 48));
    assert_eq!(
        with(|f| f.compatible = "a".repeat(48).into()),
        (Kind::Name(NameError::TooLong { len: 48, max: 47 }), 48)
    );
    assert_eq!(with(|f| f.handles = vec![1, 0].into()), (Kind::Handle, 152));
    assert_eq!(error(failed(0).encode()), (Kind::Failure, 124));
    assert_eq!(error(failed(4096).encode()), (Kind::Failure, 124));
}

#[test]
fn a_reason_that_is_too_long_ends_between_two_characters() {
    let long = "ä€".repeat(300);
    let failure = RememberedFailure::new(5, &long, false);
    assert!(failure.reason.len() <= RememberedFailure::REASON_MAX);
    assert!(failure.reason.len() > RememberedFailure::REASON_MAX - 6);
    assert!(failure.reason.ends_with('…'));
    assert_eq!(RememberedFailure::new(5, "short", false).reason, "short");
}

#[test]
fn a_damaged_machine_is_refused() {
    let bytes = machine().encode().unwrap();
    assert_eq!(bytes.len(), 536);
    let decode = |bytes: &[u8]| error(MachineRecord::decode(bytes));
    let refused = |at, with: &[u8]| damaged(&bytes, at, with, decode);
    let length = |claimed| (Kind::Length { claimed, found: 536 }, 24);
    for at in [48, 52, 56] {
        assert_eq!(refused(at + 2, &[1]), (Kind::TooMany { found: 65538, max: 256 }, at));
    }
    assert_eq!(refused(60, &[0]), (Kind::Word { field: "state", found: 0 }, 60));
    assert_eq!(refused(61, &[7]), (Kind::Word { field: "transition", found: 7 }, 61));
    assert_eq!(refused(62, &[2]), (Kind::Flag { field: "departed" }, 62));
    assert_eq!(refused(48, &[200]), length(496 + 198 * 72));

    assert_eq!(refused(64, &[0; 5]), (Kind::Name(NameError::Empty), 64));
    assert_eq!(refused(136 + 63, b"x"), (Kind::Padding, 199));
    assert_eq!(refused(136, b"files"), (Kind::Duplicate, 136));

    let byte = |at| Kind::Name(NameError::Byte { byte: 0x7f, at });
    assert_eq!(refused(288, b"\x7f"), (byte(0), 288));
    assert_eq!(refused(288, b"files"), (Kind::Duplicate, 288));
    assert_eq!(refused(280, &[1]), length(544));
    assert_eq!(refused(363, &[0xff]), length(u32::MAX));
    assert_eq!(refused(284, &[0]), (Kind::Word { field: "criticality", found: 0 }, 284));
    assert_eq!(refused(285, &[3]), (Kind::Flag { field: "concurrent" }, 285));
    assert_eq!(refused(286, &[0]), (Kind::Word { field: "state", found: 0 }, 286));
    assert_eq!(refused(287, &[1]), (Kind::Reserved, 287));

    assert_eq!(refused(372, b"\x7f"), (byte(4), 368));
    assert_eq!(refused(432, b"memfd-v1\0"), (Kind::Duplicate, 432));
    assert_eq!(refused(492, &[2]), (Kind::Flag { field: "frozen" }, 492));
    assert_eq!(refused(493, &[2]), (Kind::Flag { field: "arrived" }, 493));
    assert_eq!(refused(494, &[2]), (Kind::Flag { field: "retrieved" }, 494));
    assert_eq!(refused(495, &[1]), (Kind::Reserved, 495));
    assert_eq!(refused(488, &[1]), length(528));
    assert_eq!(refused(504, &[0]), (Kind::Handle, 504));
    assert_eq!(refused(528, &[0]), (Kind::Handle, 528));
}

#[test]
fn a_machine_that_cannot_be_encoded_says_why() {
    let with = |change: fn(&mut MachineRecord<'_>)| {
        let mut record = machine();
        change(&mut record);
        error(record.encode())
    };
    let empty = Kind::Name(NameError::Empty);
    assert_eq!(with(|m| m.boot_data[1].name = "files".into()), (Kind::Duplicate, 136));
    assert_eq!(with(|m| m.subsystems[1].name = "files".into()), (Kind::Duplicate, 288));
    assert_eq!(with(|m| m.shared[1].compatible = "memfd-v1".into()), (Kind::Duplicate, 432));
    assert_eq!(with(|m| m.boot_data[0].name = "".into()), (empty.clone(), 64));
    assert_eq!(with(|m| m.subsystems[0].name = "".into()), (empty.clone(), 208));
    assert_eq!(with(|m| m.shared[0].compatible = "".into()), (empty, 368));
    assert_eq!(with(|m| m.subsystems[1].handles = vec![1, 0].into()), (Kind::Handle, 504));
    assert_eq!(with(|m| m.shared[1].handles = vec![0].into()), (Kind::Handle, 520));
}

#[test]
fn a_machine_cannot_hold_more_than_the_limits_say() {
    let entries = |count: usize| (0..count).map(|i| format!("s{i}"));
    let boot_data = |count| -> Vec<_> {
        entries(count).map(|name| SubsystemData { name: name.into(), data: 0 }).collect()
    };
    let subsystems = |count| -> Vec<_> {
        let entry = machine().subsystems.remove(0);
        entries(count).map(|name| SubsystemRecord { name: name.into(), ..entry.clone() }).collect()
    };
    let shared = |count| -> Vec<_> {
        let entry = SharedRecord { handles: vec![1; 32].into(), ..machine().shared.remove(0) };
        let with = |name: String| SharedRecord { compatible: name.into(), ..entry.clone() };
        entries(count).map(with).collect()
    };
    let full = MachineRecord {
        boot_data: boot_data(256),
        subsystems: subsystems(256),
        shared: shared(256),
        ..machine()
    };
    let bytes = full.encode().unwrap();
    assert_eq!(bytes.len(), MachineRecord::MAX_SIZE);
    assert_eq!(MachineRecord::decode(&bytes), Ok(full.clone()));

    let too_many = Kind::TooMany { found: 257, max: 256 };
    let more = MachineRecord { boot_data: boot_data(257), ..machine() };
    assert_eq!(error(more.encode()), (too_many.clone(), 48));
    let more = MachineRecord { subsystems: subsystems(257), ..machine() };
    assert_eq!(error(more.encode()), (too_many.clone(), 52));
    let more = MachineRecord { shared: shared(257), ..machine() };
    assert_eq!(error(more.encode()), (too_many, 56));

    let mut more = full;
    more.subsystems[0].handles = vec![1].into();
    let count = bytes.len() - 8 * MachineRecord::HANDLES_MAX - 8;
    let refused = (Kind::TooMany { found: 8193, max: 8192 }, count);
    assert_eq!(error(more.encode()), refused);
    // The same, written by somebody who does not check.
    let mut forged = bytes;
    forged.extend(1_u64.to_le_bytes());
    forged[64 + 256 * 72 + 72] = 1;
    let size = forged.len() as u32;
    forged[24..28].copy_from_slice(&size.to_le_bytes());
    assert_eq!(error(MachineRecord::decode(&forged)), refused);
}

#[test]
fn a_damaged_memory_file_is_refused() {
    let bytes = memfd().encode().unwrap();
    let decode = |bytes: &[u8]| error(MemfdRecord::decode(bytes));
    let refused = |at, with: &[u8]| damaged(&bytes, at, with, decode);
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

#[test]
fn a_damaged_connection_is_refused() {
    let bytes = tcp().encode().unwrap();
    let decode = |bytes: &[u8]| error(TcpRecord::decode(bytes));
    let refused = |at, with: &[u8]| damaged(&bytes, at, with, decode);
    assert_eq!(bytes.len(), 144);
    assert_eq!(refused(0, &[0x80]), (Kind::Flag { field: "flags" }, 0));
    // Of IPv6, on a socket of IPv4 or to a peer of IPv4.
    assert_eq!(refused(4, &[1]), (Kind::Value { field: "remote" }, 20));
    assert_eq!(refused(20, &[1]), (Kind::Value { field: "remote" }, 20));
    assert_eq!(refused(42, &[15]), (Kind::Value { field: "scale" }, 42));
    assert_eq!(refused(43, &[15]), (Kind::Value { field: "scale" }, 43));
    assert_eq!(refused(76, &[0]), (Kind::Handle, 76));
    assert_eq!(refused(96, &[0; 4]), (Kind::Handle, 84));
    assert_eq!(refused(100, &[21]), (Kind::Value { field: "unsent_length" }, 100));
    assert_eq!(refused(110, b"x"), (Kind::Padding, 110));
    assert_eq!(refused(120, &[65]), (Kind::TooMany { found: 65, max: 64 }, 120));
    assert_eq!(refused(120, &[1]), (Kind::Length { claimed: 136, found: 144 }, 136));
    assert_eq!(refused(122, &[1]), (Kind::Reserved, 122));
    assert_eq!(refused(130, &[1]), (Kind::Reserved, 130));
    assert_eq!(refused(136, &[2]), (Kind::Duplicate, 136));
    assert_eq!(error(TcpRecord::decode(&bytes[..127])), (Kind::Short, 127));
    assert_eq!(
        error(TcpRecord::decode(&bytes[..143])),
        (Kind::Length { claimed: 144, found: 143 }, 143)
    );
}

#[test]
fn a_connection_that_cannot_be_encoded_says_why() {
    let with = |change: fn(&mut TcpRecord)| {
        let mut record = tcp();
        change(&mut record);
        error(record.encode())
    };
    assert_eq!(
        with(|r| r.congestion = vec![b'x'; 16]),
        (Kind::TooLong { found: 16, max: 15 }, 104)
    );
    assert_eq!(with(|r| r.congestion = b"a\0".to_vec()), (Kind::Text, 105));
    assert_eq!(with(|r| r.options.swap(0, 1)), (Kind::Duplicate, 136));
    let many = |r: &mut TcpRecord| {
        r.options = (0..65).map(|option| OptionValue { option, value: 0 }).collect();
    };
    assert_eq!(with(many), (Kind::TooMany { found: 65, max: 64 }, 120));
    let mut v6 = tcp();
    v6.flags |= TcpRecord::V6;
    for address in [&mut v6.local, &mut v6.remote] {
        address.set_ip(Ipv6Addr::LOCALHOST);
    }
    assert_eq!(TcpRecord::decode(&v6.encode().unwrap()), Ok(v6));
}

/// The tables of `docs/abi.md` under the heading `heading`, each row's offset, size and field.
pub(crate) fn documented(page: &str, heading: &str, table: usize) -> Vec<(usize, usize, String)> {
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
    assert_eq!(raw::Reading::fields(), [(0, 8, "realtime"), (8, 8, "boottime")]);
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/abi.md");
    let page = std::fs::read_to_string(path).unwrap();
    for (heading, table, size, fields) in [
        ("## Records of the daemon", 0, size_of::<raw::Header>(), raw::Header::fields()),
        ("### `machine-record-v1`", 0, size_of::<raw::Machine>(), raw::Machine::fields()),
        ("### `machine-record-v1`", 1, size_of::<raw::BootData>(), raw::BootData::fields()),
        ("### `machine-record-v1`", 2, size_of::<raw::Subsystem>(), raw::Subsystem::fields()),
        ("### `machine-record-v1`", 3, size_of::<raw::Shared>(), raw::Shared::fields()),
        ("### `session-record-v1`", 0, size_of::<raw::Session>(), raw::Session::fields()),
        ("### `file-record-v1`", 0, size_of::<raw::File>(), raw::File::fields()),
        ("### `timeline-v1`", 0, size_of::<raw::Timeline>(), raw::Timeline::fields()),
        ("### `timeline-v1`", 1, size_of::<raw::TimelineName>(), raw::TimelineName::fields()),
        ("### `timeline-v1`", 2, size_of::<raw::TimelineSpan>(), raw::TimelineSpan::fields()),
        ("### `memfd-v1`", 0, size_of::<raw::Memfd>(), raw::Memfd::fields()),
        ("### `tcp-v1`", 0, size_of::<raw::Tcp>(), raw::Tcp::fields()),
        ("### `tcp-v1`", 1, size_of::<raw::TcpOption>(), raw::TcpOption::fields()),
        ("### `eventfd-v1`", 0, size_of::<raw::Eventfd>(), raw::Eventfd::fields()),
        ("### `timerfd-v1`", 0, size_of::<raw::Timerfd>(), raw::Timerfd::fields()),
        ("### `signalfd-v1`", 0, size_of::<raw::Signalfd>(), raw::Signalfd::fields()),
        ("### `epoll-v1`", 0, size_of::<raw::Epoll>(), raw::Epoll::fields()),
        ("### `epoll-v1`", 1, size_of::<raw::EpollMember>(), raw::EpollMember::fields()),
        ("### `inotify-v1`", 0, size_of::<raw::Inotify>(), raw::Inotify::fields()),
        ("### `inotify-v1`", 1, size_of::<raw::Watch>(), raw::Watch::fields()),
        ("### `pipe-v1`", 0, size_of::<raw::Pipe>(), raw::Pipe::fields()),
        ("### `pipe-v1`", 1, size_of::<raw::PipeEnd>(), raw::PipeEnd::fields()),
        ("### `fifo-v1`", 0, size_of::<raw::Fifo>(), raw::Fifo::fields()),
        ("### `path-v1`", 0, size_of::<raw::Path>(), raw::Path::fields()),
        ("### `path-v1`", 1, size_of::<raw::Lock>(), raw::Lock::fields()),
        ("### `socket-v1`", 0, size_of::<raw::Socket>(), raw::Socket::fields()),
        ("### `socket-v1`", 1, size_of::<raw::Endpoint>(), raw::Endpoint::fields()),
        ("### `socket-v1`", 2, size_of::<raw::SocketOption>(), raw::SocketOption::fields()),
        ("### `deleted-v1`", 0, size_of::<raw::Deleted>(), raw::Deleted::fields()),
        ("### `deleted-v1`", 1, size_of::<raw::DeletedEnd>(), raw::DeletedEnd::fields()),
        ("### `deleted-v1`", 2, size_of::<raw::Extent>(), raw::Extent::fields()),
        ("### `unix-v1`", 0, size_of::<raw::Unix>(), raw::Unix::fields()),
        ("### `unix-v1`", 1, size_of::<raw::UnixEnd>(), raw::UnixEnd::fields()),
        ("### `unix-v1`", 2, size_of::<raw::UnixMessage>(), raw::UnixMessage::fields()),
        ("### `mqueue-v1`", 0, size_of::<raw::Mqueue>(), raw::Mqueue::fields()),
        ("### `mqueue-v1`", 1, size_of::<raw::QueueMessage>(), raw::QueueMessage::fields()),
        ("### `tun-v1`", 0, size_of::<raw::Tun>(), raw::Tun::fields()),
        ("### `device-v1`", 0, size_of::<raw::Device>(), raw::Device::fields()),
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
    macro_rules! words {
        ($type:ident) => {
            list($type::ALL.iter().map(|w| (w.raw(), w.as_str())).collect())
        };
    }
    for (field, values) in [
        ("state", words!(State)),
        ("transition", words!(Event)),
        ("level", words!(Level)),
        ("on_close", words!(OnClose)),
        ("criticality", words!(Criticality)),
        ("side", words!(Side)),
        ("incoming", words!(Arrival)),
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
        format!("at most {}", RememberedFailure::REASON_MAX),
        format!("how many subsystems follow, at most {}", MachineRecord::SUBSYSTEMS_MAX),
        format!("data follows, at most {}", MachineRecord::SUBSYSTEMS_MAX),
        format!("handlers follow, at most {}", MachineRecord::SHARED_MAX),
        format!("at most {} in all", MachineRecord::HANDLES_MAX),
        format!("at most {MEMFD_NAME_MAX}"),
    ] {
        assert!(page.contains(&limit), "docs/abi.md lacks {limit:?}");
    }
}
