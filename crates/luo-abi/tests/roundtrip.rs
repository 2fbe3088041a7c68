//! Whatever is written comes back the same.

use luo_abi::{
    Criticality, Event, Level, OnClose, Owner, Side, State,
    fdt::{Blob, Node, WriteError, Writer},
    handover::{File, FilesTree, MachineTree, Session, Tokens, write_files, write_machine},
    record::{
        FileRecord, Incoming, MachineRecord, MemfdRecord, Record, RememberedFailure, SessionRecord,
        SharedRecord, SubsystemData, SubsystemRecord,
    },
};
use proptest::{collection, option, prelude::*, sample::select};
use std::collections::{BTreeMap, BTreeSet};

/// A tree as plain values.
#[derive(Debug, Clone, PartialEq)]
struct Plain {
    properties: Vec<(String, Vec<u8>)>,
    children: Vec<(String, Plain)>,
}

fn plain() -> impl Strategy<Value = Plain> {
    let properties = || {
        collection::btree_map("[a-z0-9,._+?#-]{1,40}", collection::vec(any::<u8>(), 0..20), 0..12)
            .prop_map(|map| map.into_iter().collect::<Vec<_>>())
            .prop_shuffle()
    };
    let leaf = properties().prop_map(|properties| Plain { properties, children: Vec::new() });
    leaf.prop_recursive(5, 60, 8, move |inner| {
        let name = "[a-zA-Z0-9,._+-]{1,70}(@[0-9a-f]{1,8})?";
        let children = collection::btree_map(name, inner, 0..8)
            .prop_map(|map| map.into_iter().collect::<Vec<_>>())
            .prop_shuffle();
        (properties(), children).prop_map(|(properties, children)| Plain { properties, children })
    })
}

fn write(writer: &mut Writer, name: &str, tree: &Plain) -> Result<(), WriteError> {
    writer.begin_node(name)?;
    for (name, value) in &tree.properties {
        writer.property(name, value)?;
    }
    for (name, child) in &tree.children {
        write(writer, name, child)?;
    }
    writer.end_node()
}

fn read(node: Node<'_>) -> Plain {
    Plain {
        properties: node.properties().map(|p| (p.name().into(), p.value().into())).collect(),
        children: node.children().map(|child| (child.name().into(), read(child))).collect(),
    }
}

fn name() -> impl Strategy<Value = String> {
    let reserved = select(vec!["compatible", "phandle", "name", "linux,phandle"]);
    prop_oneof![9 => "[ -.0-~]{1,63}", 1 => reserved.prop_map(String::from)]
}

fn compatible() -> impl Strategy<Value = String> {
    "[a-zA-Z0-9,._+-]{1,47}"
}

fn owner() -> impl Strategy<Value = Owner> {
    any::<(u32, u32)>().prop_map(|(uid, gid)| Owner { uid, gid })
}

fn state() -> impl Strategy<Value = State> {
    select(State::ALL)
}

fn transition() -> impl Strategy<Value = Option<Event>> {
    option::of(select(Event::ALL))
}

fn level() -> impl Strategy<Value = Level> {
    select(Level::ALL)
}

type OwnedFile = (String, u64, Criticality);

fn borrowed(files: &[(u64, OwnedFile)]) -> Vec<File<'_>> {
    files
        .iter()
        .map(|(token, (compatible, data, criticality))| File {
            token: *token,
            compatible,
            data: *data,
            criticality: *criticality,
            needs: Tokens::NONE,
        })
        .collect()
}

prop_compose! {
    fn session()(
        name in name(),
        owner in owner(),
        on_close in select(OnClose::ALL),
        ttl in any::<Option<u64>>(),
        expiry in any::<Option<u64>>(),
        next_token in any::<Option<u64>>(),
    ) -> Session<'static> {
        Session { name: name.into(), owner, on_close, ttl, expiry, next_token }
    }
}

fn files() -> impl Strategy<Value = Vec<(u64, OwnedFile)>> {
    let file = (compatible(), any::<u64>(), select(Criticality::ALL));
    let token = prop_oneof![0..64_u64, any::<u64>()];
    collection::btree_map(token, file, 0..20)
        .prop_map(|map| map.into_iter().collect::<Vec<_>>())
        .prop_shuffle()
}

fn handles(max: usize) -> impl Strategy<Value = Vec<u64>> {
    collection::vec(1..=u64::MAX, 0..=max)
}

fn incoming() -> impl Strategy<Value = Option<Incoming<'static>>> {
    let failed = (1..4096_u32, ".{0,1100}", any::<bool>()).prop_map(|(errno, reason, told)| {
        let reason = RememberedFailure::new(errno, &reason, told).reason.into_owned().into();
        Some(Incoming::Failed(RememberedFailure { errno, reason, told }))
    });
    prop_oneof![
        2 => failed,
        1 => select(vec![None, Some(Incoming::Waiting), Some(Incoming::Retrieved)]),
    ]
}

prop_compose! {
    fn file_record()(
        needs in collection::vec(any::<u64>(), 0..5), with in collection::vec(any::<u64>(), 0..5),
        (session, token, pinned, request, index) in any::<(u64, u64, u64, u64, u32)>(),
        (side, state, level) in (select(Side::ALL), state(), level()),
        compatible in compatible(),
        criticality in select(Criticality::ALL),
        data in any::<Option<u64>>(),
        handles in handles(FileRecord::HANDLES_MAX),
        incoming in incoming(),
        reclaimed in any::<bool>(),
    ) -> FileRecord<'static> {
        FileRecord {
            session, side, token, compatible: compatible.into(), criticality, state, level, data,
            handles: handles.into(), incoming, reclaimed, pinned, request, index,
            needs: needs.into(), with: with.into(),
        }
    }
}

prop_compose! {
    fn subsystem_record()(
        (criticality, state) in (select(Criticality::ALL), state()),
        (concurrent, data) in any::<(bool, u64)>(),
        handles in handles(20),
    ) -> SubsystemRecord<'static> {
        let handles = handles.into();
        SubsystemRecord { name: "".into(), criticality, concurrent, state, data, handles }
    }
}

prop_compose! {
    fn shared_record()(
        (data, frozen, arrived, retrieved) in any::<(u64, bool, bool, bool)>(),
        handles in handles(20),
    ) -> SharedRecord<'static> {
        let handles = handles.into();
        SharedRecord { compatible: "".into(), data, frozen, arrived, retrieved, handles }
    }
}

proptest! {
    #[test]
    fn trees_come_back(tree in plain()) {
        let mut writer = Writer::new();
        write(&mut writer, "", &tree).unwrap();
        let blob = writer.finish().unwrap();
        prop_assert_eq!(read(Blob::validate(&blob).unwrap().root()), tree);
    }

    #[test]
    fn a_name_that_is_taken_is_always_found(
        names in collection::vec("[ab]{1,9}", 2..12),
    ) {
        let mut writer = Writer::new();
        writer.begin_node("").unwrap();
        for name in &names {
            writer.begin_node(name).unwrap();
            writer.end_node().unwrap();
        }
        let distinct = names.iter().collect::<BTreeSet<_>>().len() == names.len();
        prop_assert_eq!(writer.end_node().is_ok(), distinct);
    }

    #[test]
    fn handovers_come_back(
        sessions in collection::vec((session(), files()), 0..6),
    ) {
        let sessions: Vec<_> = sessions
            .into_iter()
            .map(|(session, files)| (session.name.clone().into_owned(), (session, files)))
            .collect::<BTreeMap<_, _>>()
            .into_values()
            .collect();
        let written: Vec<_> =
            sessions.iter().map(|(session, files)| (session.clone(), borrowed(files))).collect();
        let blob = write_files(written.clone()).unwrap();
        let read: Vec<_> = FilesTree::read(&blob)
            .unwrap()
            .sessions()
            .map(|session| {
                let session = session.unwrap();
                let files = session.files().map(Result::unwrap).collect::<Vec<_>>();
                (session.into_session(), files)
            })
            .collect();
        prop_assert_eq!(read, written);
    }

    #[test]
    fn machines_come_back(
        number in any::<u64>(),
        subsystems in collection::btree_map(name(), any::<u64>(), 0..20),
    ) {
        let written = subsystems.iter().map(|(name, data)| (name.as_str(), *data));
        let blob = write_machine(number, written).unwrap();
        let tree = MachineTree::read(&blob).unwrap();
        prop_assert_eq!(tree.liveupdate_number(), number);
        let read: BTreeMap<_, _> = tree
            .subsystems()
            .map(|subsystem| subsystem.unwrap())
            .map(|subsystem| (subsystem.name.into_owned(), subsystem.data))
            .collect();
        prop_assert_eq!(read, subsystems);
    }

    #[test]
    fn session_records_come_back(
        session in session(),
        (state, transition, level) in (state(), transition(), level()),
        (id, next_token, created_by, finished_by) in any::<(u64, u64, u64, u64)>(),
        unclaimed in any::<bool>(),
    ) {
        let record = SessionRecord {
            id,
            name: session.name,
            owner: session.owner,
            on_close: session.on_close,
            ttl: session.ttl.filter(|_| session.on_close == OnClose::Keep),
            state,
            transition,
            level,
            next_token,
            unclaimed,
            expires: session.expiry,
            created_by,
            finished_by,
        };
        let bytes = record.encode().unwrap();
        prop_assert_eq!(bytes.len(), SessionRecord::MAX_SIZE);
        prop_assert_eq!(Record::decode(&bytes), Ok(Record::Session(record)));
    }

    #[test]
    fn file_records_come_back(record in file_record()) {
        let bytes = record.encode().unwrap();
        prop_assert!(bytes.len() <= FileRecord::MAX_SIZE);
        prop_assert_eq!(Record::decode(&bytes), Ok(Record::File(record)));
    }

    #[test]
    fn machine_records_come_back(
        (state, transition) in (state(), transition()),
        (liveupdate_number, next_session, departed, carrier) in any::<(u64, u64, bool, u8)>(),
        boot_data in collection::btree_map(name(), any::<u64>(), 0..20),
        subsystems in collection::btree_map(name(), subsystem_record(), 0..20),
        shared in collection::btree_map(compatible(), shared_record(), 0..20),
    ) {
        let boot_data = boot_data.into_iter();
        let boot_data =
            boot_data.map(|(name, data)| SubsystemData { name: name.into(), data }).collect();
        let subsystems = subsystems.into_iter();
        let subsystems = subsystems
            .map(|(name, entry)| SubsystemRecord { name: name.into(), ..entry })
            .collect();
        let shared = shared.into_iter();
        let shared = shared
            .map(|(compatible, entry)| SharedRecord { compatible: compatible.into(), ..entry })
            .collect();
        let record = MachineRecord {
            state, transition, departed, carrier, liveupdate_number, next_session, boot_data, subsystems,
            shared,
        };
        let bytes = record.encode().unwrap();
        prop_assert_eq!(Record::decode(&bytes), Ok(Record::Machine(record)));
    }

    #[test]
    fn memory_file_records_come_back(
        (size, position) in any::<(u64, u64)>(),
        memory in 1..=u64::MAX,
        seals in 0..=0x3f_u32,
        flags in 0..=0xf_u32,
        name in collection::vec(1..=255_u8, 0..=249),
    ) {
        let record = MemfdRecord { size, position, memory, seals, flags, name };
        let bytes = record.encode().unwrap();
        prop_assert_eq!(MemfdRecord::decode(&bytes), Ok(record));
    }
}
