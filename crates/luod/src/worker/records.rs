//! Records: what the worker lays down in the keeper, so that the next worker can rebuild itself.
//!
//! The framework's records become the bytes of `docs/abi.md` here, together with what the daemon
//! notes beside them, and come back. One is written for every file that is preserved, so writing
//! a file's record allocates nothing for up to [`FEW`] handles.
//!
//! Invariants:
//! - What is read is what was written: every field comes back the same, except that the reason of
//!   a failure that is longer than a record can hold was cut, and ends with `…`.
//! - Bytes that are not such a record are refused whole: nothing is guessed, and every name has
//!   passed the framework's own check.
//! - Each record fits one message of the keeper.

use luo_abi::{
    record as abi,
    record::{Incoming, RememberedFailure},
};
use luo_core::{
    Bond, CarrierId, Compatible, Criticality, Errno, Event, Failure, FileRecord, Handle,
    IncomingRecord, Level, MachineRecord, OnClose, Owner, Policy, SessionId, SessionName,
    SessionRecord, SharedRecord, Side, State, SubsystemName, SubsystemRecord, Token,
};

/// So many handles of a file are written without an allocation.
const FEW: usize = 8;

const _: () = assert!(abi::MachineRecord::MAX_SIZE <= luo_abi::keeper::MAX_RECORD);
const _: () = assert!(abi::SessionRecord::MAX_SIZE <= luo_abi::keeper::MAX_RECORD);
const _: () = assert!(abi::FileRecord::BONDS_MAX == Bond::MAX);
const _: () = assert!(abi::FileRecord::MAX_SIZE <= luo_abi::keeper::MAX_RECORD);

/// Why a record could not be written or read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RecordError {
    /// Its bytes are damaged, or of a version that is not known here; or what is to be written
    /// does not fit.
    #[error(transparent)]
    Layout(#[from] abi::RecordError),
    /// It holds a name that the framework refuses.
    #[error(transparent)]
    Name(Failure),
}

/// What the daemon notes of a session.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct SessionExtra {
    /// The request that created it; 0 if none did.
    pub(crate) created_by: u64,
    /// The request that finished it; 0 if none did.
    pub(crate) finished_by: u64,
}

/// What the daemon notes of a file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct FileExtra {
    /// The request that it was preserved with; 0 if none.
    pub(crate) request: u64,
    /// Which of that request's files it is, from 0.
    pub(crate) index: u32,
}

/// The words of the framework, and the same words of the records.
macro_rules! words {
    ($($write:ident, $read:ident: $type:ident { $($variant:ident)* })*) => {
        $(
            const fn $write(word: $type) -> luo_abi::$type {
                match word { $($type::$variant => luo_abi::$type::$variant,)* }
            }

            const fn $read(word: luo_abi::$type) -> $type {
                match word { $(luo_abi::$type::$variant => $type::$variant,)* }
            }
        )*
    };
}

words! {
    put_state, get_state: State { Normal Prepared Frozen Updated }
    put_event, get_event: Event { Prepare Freeze Depart Arrive Finish Cancel }
    put_level, get_level: Level { File Session Machine }
    put_criticality, get_criticality: Criticality { Required Optional }
    put_side, get_side: Side { Outgoing Incoming }
}

fn put_handles(kept: &[Handle]) -> Vec<u64> {
    kept.iter().map(|handle| handle.0).collect()
}

fn get_handles(kept: &[u64]) -> Vec<Handle> {
    kept.iter().copied().map(Handle).collect()
}

fn get_subsystem_name(name: &str) -> Result<SubsystemName, RecordError> {
    SubsystemName::new(name).map_err(RecordError::Name)
}

/// The bytes of the machine's record.
///
/// # Errors
/// More subsystems, handlers or handles than a record holds; a handle that is zero; two entries
/// of one name.
pub(crate) fn machine(record: &MachineRecord) -> Result<Vec<u8>, RecordError> {
    let boot_data = record.boot_data.iter();
    let record = abi::MachineRecord {
        state: put_state(record.state),
        transition: record.transition.map(put_event),
        departed: record.departed,
        carrier: record.carrier.0,
        liveupdate_number: record.number,
        next_session: record.next_session,
        boot_data: boot_data
            .map(|(name, data)| abi::SubsystemData { name: name.as_str().into(), data: *data })
            .collect(),
        subsystems: record
            .subsystems
            .iter()
            .map(|subsystem| abi::SubsystemRecord {
                name: subsystem.name.as_str().into(),
                criticality: put_criticality(subsystem.criticality),
                concurrent: subsystem.concurrent,
                state: put_state(subsystem.state),
                data: subsystem.data,
                handles: put_handles(&subsystem.kept).into(),
            })
            .collect(),
        shared: record
            .shared
            .iter()
            .map(|shared| abi::SharedRecord {
                compatible: shared.compatible.as_str().into(),
                data: shared.data,
                frozen: shared.frozen,
                arrived: shared.arrived,
                retrieved: shared.retrieved,
                handles: put_handles(&shared.kept).into(),
            })
            .collect(),
    };
    Ok(record.encode()?)
}

/// Reads the machine's record.
///
/// # Errors
/// [`RecordError`]; nothing of the record may be used then.
pub(crate) fn read_machine(bytes: &[u8]) -> Result<MachineRecord, RecordError> {
    let record = abi::MachineRecord::decode(bytes)?;
    Ok(MachineRecord {
        state: get_state(record.state),
        transition: record.transition.map(get_event),
        departed: record.departed,
        carrier: CarrierId(record.carrier),
        number: record.liveupdate_number,
        next_session: record.next_session,
        boot_data: record
            .boot_data
            .iter()
            .map(|entry| Ok((get_subsystem_name(&entry.name)?, entry.data)))
            .collect::<Result<_, RecordError>>()?,
        subsystems: record
            .subsystems
            .iter()
            .map(|subsystem| {
                Ok(SubsystemRecord {
                    name: get_subsystem_name(&subsystem.name)?,
                    criticality: get_criticality(subsystem.criticality),
                    concurrent: subsystem.concurrent,
                    state: get_state(subsystem.state),
                    data: subsystem.data,
                    kept: get_handles(&subsystem.handles),
                })
            })
            .collect::<Result<_, RecordError>>()?,
        shared: record
            .shared
            .into_iter()
            .map(|shared| {
                Compatible::new(&shared.compatible).map_err(RecordError::Name)?;
                Ok(SharedRecord {
                    compatible: shared.compatible.into_owned(),
                    data: shared.data,
                    frozen: shared.frozen,
                    arrived: shared.arrived,
                    retrieved: shared.retrieved,
                    kept: get_handles(&shared.handles),
                })
            })
            .collect::<Result<_, RecordError>>()?,
    })
}

/// The bytes of a session's record.
///
/// # Errors
/// None for a record of the framework; the layout's checks are made all the same.
pub(crate) fn session(
    record: &SessionRecord,
    extra: &SessionExtra,
) -> Result<Vec<u8>, RecordError> {
    let (on_close, ttl) = match record.policy.on_close {
        OnClose::Release => (luo_abi::OnClose::Release, None),
        OnClose::Keep { ttl_seconds } => (luo_abi::OnClose::Keep, ttl_seconds),
    };
    let record = abi::SessionRecord {
        id: record.id.0,
        name: record.name.as_str().into(),
        owner: luo_abi::Owner { uid: record.owner.uid, gid: record.owner.gid },
        on_close,
        ttl,
        state: put_state(record.state),
        transition: record.transition.map(put_event),
        level: put_level(record.level),
        next_token: record.next_token,
        unclaimed: record.unclaimed,
        expires: record.expires,
        created_by: extra.created_by,
        finished_by: extra.finished_by,
    };
    Ok(record.encode()?)
}

/// Reads a session's record.
///
/// # Errors
/// [`RecordError`]; nothing of the record may be used then.
pub(crate) fn read_session(bytes: &[u8]) -> Result<(SessionRecord, SessionExtra), RecordError> {
    let record = abi::SessionRecord::decode(bytes)?;
    let on_close = match record.on_close {
        luo_abi::OnClose::Release => OnClose::Release,
        luo_abi::OnClose::Keep => OnClose::Keep { ttl_seconds: record.ttl },
    };
    let extra = SessionExtra { created_by: record.created_by, finished_by: record.finished_by };
    let record = SessionRecord {
        id: SessionId(record.id),
        name: SessionName::new(&record.name).map_err(RecordError::Name)?,
        owner: Owner { uid: record.owner.uid, gid: record.owner.gid },
        policy: Policy { on_close },
        state: get_state(record.state),
        transition: record.transition.map(get_event),
        level: get_level(record.level),
        next_token: record.next_token,
        unclaimed: record.unclaimed,
        expires: record.expires,
    };
    Ok((record, extra))
}

/// The bytes of a file's record, into a buffer that may have been used before. The reason of a failure that is longer than
/// [`RememberedFailure::REASON_MAX`] is cut between two characters.
///
/// # Errors
/// A `compatible` string that is not allowed; more handles than
/// [`HANDLES_MAX`](abi::FileRecord::HANDLES_MAX), or one that is zero.
pub(crate) fn file(
    record: &FileRecord,
    extra: &FileExtra,
    bytes: &mut Vec<u8>,
) -> Result<(), RecordError> {
    let mut few = [0; FEW];
    let many;
    let handles = match few.get_mut(..record.kept.len()) {
        Some(few) => {
            few.iter_mut().zip(&record.kept).for_each(|(to, handle)| *to = handle.0);
            &*few
        }
        None => {
            many = put_handles(&record.kept);
            &many
        }
    };
    let incoming = record.incoming.as_ref().map(|incoming| match incoming {
        IncomingRecord::Waiting => Incoming::Waiting,
        IncomingRecord::Retrieved => Incoming::Retrieved,
        IncomingRecord::Failed { errno, reason, told } => {
            let errno = errno.raw().unsigned_abs();
            Incoming::Failed(RememberedFailure::new(errno, reason, *told))
        }
    });
    let record = abi::FileRecord {
        session: record.session.0,
        side: put_side(record.side),
        token: record.token.0,
        compatible: (&*record.compatible).into(),
        criticality: put_criticality(record.criticality),
        state: put_state(record.state),
        level: put_level(record.level),
        data: record.data,
        handles: handles.into(),
        incoming,
        reclaimed: record.reclaimed,
        pinned: record.pinned,
        request: extra.request,
        index: extra.index,
        needs: put_tokens(&record.bond.needs).into(),
        with: put_tokens(&record.bond.with).into(),
    };
    bytes.clear();
    Ok(record.encode_into(bytes)?)
}

/// Reads a file's record. An error number that luo has no word for is [`Errno::Io`].
///
/// # Errors
/// [`RecordError`]; nothing of the record may be used then.
pub(crate) fn read_file(bytes: &[u8]) -> Result<(FileRecord, FileExtra), RecordError> {
    let record = abi::FileRecord::decode(bytes)?;
    Compatible::new(&record.compatible).map_err(RecordError::Name)?;
    let incoming = record.incoming.map(|incoming| match incoming {
        Incoming::Waiting => IncomingRecord::Waiting,
        Incoming::Retrieved => IncomingRecord::Retrieved,
        Incoming::Failed(RememberedFailure { errno, reason, told }) => {
            let errno = i32::try_from(errno).map_or(Errno::Io, Errno::from_raw);
            IncomingRecord::Failed { errno, reason: reason.into_owned(), told }
        }
    });
    let extra = FileExtra { request: record.request, index: record.index };
    let record = FileRecord {
        session: SessionId(record.session),
        side: get_side(record.side),
        token: Token(record.token),
        compatible: record.compatible.into(),
        criticality: get_criticality(record.criticality),
        state: get_state(record.state),
        level: get_level(record.level),
        data: record.data,
        kept: get_handles(&record.handles),
        incoming,
        reclaimed: record.reclaimed,
        pinned: record.pinned,
        bond: Bond { needs: get_tokens(&record.needs), with: get_tokens(&record.with) },
    };
    Ok((record, extra))
}

/// Of most files none, which allocates nothing.
fn put_tokens(tokens: &[Token]) -> Vec<u64> {
    tokens.iter().map(|token| token.0).collect()
}

fn get_tokens(tokens: &[u64]) -> Vec<Token> {
    tokens.iter().copied().map(Token).collect()
}

#[cfg(test)]
mod tests {
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
}
