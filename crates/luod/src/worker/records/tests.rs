use super::{file as file_into, *};
use luo_abi::record::RecordErrorKind as Kind;
use proptest::{collection, option, prelude::*, sample::select};

fn file(record: &FileRecord, extra: &FileExtra) -> Result<Vec<u8>, RecordError> {
    let mut bytes = vec![1; 7];
    file_into(record, extra, &mut bytes).map(|()| bytes)
}

const STATES: [State; 4] = [State::Normal, State::Prepared, State::Frozen, State::Updated];
const CRITICALITIES: [Criticality; 2] = [Criticality::Required, Criticality::Optional];

fn state() -> impl Strategy<Value = State> {
    select(&STATES[..])
}

fn transition() -> impl Strategy<Value = Option<Event>> {
    use Event::{Arrive, Cancel, Depart, Finish, Freeze, Prepare};
    option::of(select(vec![Prepare, Freeze, Depart, Arrive, Finish, Cancel]))
}

fn level() -> impl Strategy<Value = Level> {
    select(vec![Level::File, Level::Session, Level::Machine])
}

fn kept(max: usize) -> impl Strategy<Value = Vec<Handle>> {
    collection::vec((1..=u64::MAX).prop_map(Handle), 0..=max)
}

fn compatible() -> impl Strategy<Value = String> {
    "[a-zA-Z0-9,._+-]{1,47}"
}

fn on_close() -> impl Strategy<Value = OnClose> {
    any::<Option<Option<u64>>>().prop_map(|keep| match keep {
        None => OnClose::Release,
        Some(ttl_seconds) => OnClose::Keep { ttl_seconds },
    })
}

fn incoming() -> impl Strategy<Value = Option<IncomingRecord>> {
    let failed = (select(Errno::ALL), "\\PC{0,300}", any::<bool>());
    prop_oneof![
        Just(None),
        Just(Some(IncomingRecord::Waiting)),
        Just(Some(IncomingRecord::Retrieved)),
        failed.prop_map(|(errno, mut reason, told)| {
            while reason.len() > RememberedFailure::REASON_MAX {
                reason.pop();
            }
            Some(IncomingRecord::Failed { errno, reason, told })
        }),
    ]
}

prop_compose! {
    fn any_session()(
        (id, next_token, expires) in any::<(u64, u64, Option<u64>)>(),
        name in "[ -.0-~]{3,63}",
        (uid, gid, unclaimed) in any::<(u32, u32, bool)>(),
        on_close in on_close(),
        (state, transition, level) in (state(), transition(), level()),
    ) -> SessionRecord {
        SessionRecord {
            id: SessionId(id),
            name: SessionName::new(&name).unwrap(),
            owner: Owner { uid, gid },
            policy: Policy { on_close },
            state,
            transition,
            level,
            next_token,
            unclaimed,
            expires,
        }
    }
}

fn tokens() -> impl Strategy<Value = Vec<Token>> {
    collection::vec(any::<u64>().prop_map(Token), 0..4)
}

prop_compose! {
    fn any_file()(
        (session, token, data, pinned) in any::<(u64, u64, Option<u64>, u64)>(),
        bond in (tokens(), tokens()).prop_map(|(needs, with)| Bond { needs, with }),
        side in select(vec![Side::Outgoing, Side::Incoming]),
        compatible in compatible(),
        criticality in select(&CRITICALITIES[..]),
        (state, level) in (state(), level()),
        kept in prop_oneof![kept(FEW + 1), kept(abi::FileRecord::HANDLES_MAX)],
        incoming in incoming(),
        reclaimed in any::<bool>(),
    ) -> FileRecord {
        FileRecord {
            session: SessionId(session), side, token: Token(token), compatible: compatible.into(), criticality,
            state, level, data, kept, incoming, reclaimed, pinned, bond,
        }
    }
}

prop_compose! {
    fn any_machine()(
        (state, transition) in (state(), transition()),
        (departed, carrier, number, next_session) in any::<(bool, u8, u64, u64)>(),
        boot_data in collection::btree_map("[a-z0-9]{1,63}", any::<u64>(), 0..9),
        subsystems in collection::btree_map(
            "[a-z0-9]{1,63}",
            (select(&CRITICALITIES[..]), any::<(bool, u64)>(), self::state(), kept(9)),
            0..9,
        ),
        shared in collection::btree_map(
            compatible(), (any::<(u64, bool, bool, bool)>(), kept(9)), 0..9,
        ),
    ) -> MachineRecord {
        let name = |name: String| SubsystemName::new(&name).unwrap();
        MachineRecord {
            state, transition, departed, carrier: CarrierId(carrier), number, next_session,
            boot_data: boot_data.into_iter().map(|(n, data)| (name(n), data)).collect(),
            subsystems: subsystems
                .into_iter()
                .map(|(n, (criticality, (concurrent, data), state, kept))| SubsystemRecord {
                    name: name(n), criticality, concurrent, state, data, kept,
                })
                .collect(),
            shared: shared
                .into_iter()
                .map(|(compatible, ((data, frozen, arrived, retrieved), kept))| SharedRecord {
                    compatible, data, frozen, arrived, retrieved, kept,
                })
                .collect(),
        }
    }
}

fn a_file() -> FileRecord {
    FileRecord {
        session: SessionId(1),
        side: Side::Incoming,
        token: Token(2),
        compatible: "memfd-v1".into(),
        criticality: Criticality::Required,
        state: State::Updated,
        level: Level::Session,
        data: Some(3),
        kept: vec![Handle(4)],
        incoming: Some(IncomingRecord::Failed {
            errno: Errno::NoEnt,
            reason: "nobody takes it".into(),
            told: true,
        }),
        reclaimed: false,
        pinned: 5,
        bond: Bond::default(),
    }
}

fn a_session() -> SessionRecord {
    SessionRecord {
        id: SessionId(1),
        name: SessionName::new("web cache").unwrap(),
        owner: Owner { uid: 2, gid: 3 },
        policy: Policy { on_close: OnClose::Keep { ttl_seconds: Some(4) } },
        state: State::Updated,
        transition: Some(Event::Finish),
        level: Level::Session,
        next_token: 5,
        unclaimed: true,
        expires: Some(6),
    }
}

fn a_machine() -> MachineRecord {
    let name = SubsystemName::new("files").unwrap();
    MachineRecord {
        state: State::Prepared,
        transition: Some(Event::Freeze),
        departed: false,
        carrier: CarrierId::NEAR,
        number: 1,
        next_session: 2,
        boot_data: vec![(name.clone(), 3)],
        subsystems: vec![SubsystemRecord {
            name,
            criticality: Criticality::Required,
            concurrent: true,
            state: State::Prepared,
            data: 4,
            kept: vec![Handle(5)],
        }],
        shared: vec![SharedRecord {
            compatible: "memfd-v1".into(),
            data: 6,
            frozen: true,
            arrived: false,
            retrieved: true,
            kept: vec![Handle(7), Handle(8)],
        }],
    }
}

fn kind<T: std::fmt::Debug>(result: Result<T, RecordError>) -> Kind {
    match result.unwrap_err() {
        RecordError::Layout(error) => error.kind,
        RecordError::Name(failure) => panic!("a name was refused: {failure}"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn every_machine_comes_back(record in any_machine()) {
        let bytes = machine(&record).unwrap();
        prop_assert_eq!(read_machine(&bytes).unwrap(), record);
    }

    #[test]
    fn every_session_comes_back(
        record in any_session(),
        (created_by, finished_by) in any::<(u64, u64)>(),
    ) {
        let extra = SessionExtra { created_by, finished_by };
        let bytes = session(&record, &extra).unwrap();
        prop_assert_eq!(read_session(&bytes).unwrap(), (record, extra));
    }

    #[test]
    fn every_file_comes_back(
        record in any_file(),
        (request, index) in any::<(u64, u32)>(),
    ) {
        let extra = FileExtra { request, index };
        let bytes = file(&record, &extra).unwrap();
        prop_assert_eq!(read_file(&bytes).unwrap(), (record, extra));
    }
}

#[test]
fn a_record_that_was_cut_or_is_another_kind_is_an_error() {
    let machine = machine(&a_machine()).unwrap();
    let session = session(&a_session(), &SessionExtra::default()).unwrap();
    let file = file(&a_file(), &FileExtra::default()).unwrap();
    for end in 0..machine.len() {
        kind(read_machine(&machine[..end]));
    }
    for end in 0..session.len() {
        kind(read_session(&session[..end]));
    }
    for end in 0..file.len() {
        kind(read_file(&file[..end]));
    }
    assert!(matches!(kind(read_machine(&session)), Kind::Version { .. }));
    assert!(matches!(kind(read_session(&file)), Kind::Version { .. }));
    assert!(matches!(kind(read_file(&machine)), Kind::Version { .. }));
}

/// A byte that was changed is an error or another value, never overlooked.
#[test]
fn no_changed_byte_is_overlooked() {
    let extra = SessionExtra { created_by: 7, finished_by: 8 };
    let bytes = session(&a_session(), &extra).unwrap();
    for at in 0..bytes.len() {
        let mut bytes = bytes.clone();
        bytes[at] ^= 0x41;
        if let Ok(read) = read_session(&bytes) {
            assert_ne!(read, (a_session(), extra), "byte {at}");
        }
    }
    let extra = FileExtra { request: 9, index: 10 };
    let bytes = file(&a_file(), &extra).unwrap();
    for at in 0..bytes.len() {
        let mut bytes = bytes.clone();
        bytes[at] ^= 0x41;
        if let Ok(read) = read_file(&bytes) {
            assert_ne!(read, (a_file(), extra), "byte {at}");
        }
    }
    let bytes = machine(&a_machine()).unwrap();
    for at in 0..bytes.len() {
        let mut bytes = bytes.clone();
        bytes[at] ^= 0x41;
        if let Ok(read) = read_machine(&bytes) {
            assert_ne!(read, a_machine(), "byte {at}");
        }
    }
}

#[test]
fn names_that_the_framework_refuses_are_errors() {
    let mut bytes = session(&a_session(), &SessionExtra::default()).unwrap();
    let name = bytes.windows(9).position(|bytes| bytes == b"web cache").unwrap();
    bytes[name..name + 9].copy_from_slice(b"..\0\0\0\0\0\0\0");
    let error = read_session(&bytes).unwrap_err();
    assert!(matches!(&error, RecordError::Name(f) if f.errno() == Errno::Inval), "{error}");

    let bytes = machine(&a_machine()).unwrap();
    let first = bytes.windows(5).position(|bytes| bytes == b"files").unwrap();
    let second = bytes.windows(5).rposition(|bytes| bytes == b"files").unwrap();
    assert_ne!(first, second, "once for the data that arrived, once for the subsystem");
    for at in [first, second] {
        let mut bytes = bytes.clone();
        bytes[at..at + 5].copy_from_slice(b"fi es");
        let error = read_machine(&bytes).unwrap_err();
        assert!(matches!(&error, RecordError::Name(f) if f.errno() == Errno::Inval));
    }
}

#[test]
fn what_does_not_fit_is_refused_when_it_is_written() {
    let extra = FileExtra::default();
    let refused = |change: fn(&mut FileRecord)| {
        let mut record = a_file();
        change(&mut record);
        kind(file(&record, &extra))
    };
    assert!(matches!(refused(|f| f.kept = vec![Handle(1); 1025]), Kind::TooMany { .. }));
    assert_eq!(refused(|f| f.kept.push(Handle(0))), Kind::Handle);
    assert!(matches!(refused(|f| f.compatible = "a/b".into()), Kind::Name(_)));
    let mut record = a_machine();
    record.shared.push(record.shared[0].clone());
    assert_eq!(kind(machine(&record)), Kind::Duplicate);
}

#[test]
fn a_reason_that_is_too_long_is_cut_once_and_then_stays() {
    let mut record = a_file();
    let reason = "ä€".repeat(400);
    record.incoming =
        Some(IncomingRecord::Failed { errno: Errno::Io, reason: reason.clone(), told: false });
    let (read, extra) = read_file(&file(&record, &FileExtra::default()).unwrap()).unwrap();
    let Some(IncomingRecord::Failed { reason: cut, .. }) = &read.incoming else {
        panic!("{read:?}");
    };
    let begin = cut.strip_suffix('…').unwrap();
    assert!(cut.len() <= RememberedFailure::REASON_MAX && reason.starts_with(begin));
    assert_eq!(read_file(&file(&read, &extra).unwrap()).unwrap(), (read, extra));
}
