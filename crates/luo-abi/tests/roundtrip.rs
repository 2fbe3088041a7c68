//! Whatever is written comes back the same.

use luo_abi::{
    Criticality, Direction, OnClose, Owner, Phase,
    fdt::{Blob, Node, WriteError, Writer},
    handover::{File, FilesTree, MachineTree, Session, write_files, write_machine},
    record::{
        FileRecord, MachineRecord, MemfdRecord, Record, RememberedFailure, SessionRecord,
        SubsystemData,
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

fn phase() -> impl Strategy<Value = Phase> {
    select(Phase::ALL)
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

fn handles() -> impl Strategy<Value = Vec<u64>> {
    collection::vec(1..=u64::MAX, 0..=FileRecord::HANDLES_MAX)
}

prop_compose! {
    fn file_record()(
        (session, token, data, request) in any::<(u64, u64, u64, u64)>(),
        compatible in compatible(),
        criticality in select(Criticality::ALL),
        phase in phase(),
        direction in select(Direction::ALL),
        reclaimed in any::<bool>(),
        handles in handles(),
        failure in option::of((1..4096_u32, ".{0,1100}")),
    ) -> FileRecord {
        let failure = failure.map(|(errno, text)| RememberedFailure::new(errno, &text));
        FileRecord {
            session, token, compatible, criticality, phase, direction, reclaimed, data, request,
            handles, failure,
        }
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
        state in phase(),
        (id, next_token, last_request) in any::<(u64, u64, u64)>(),
    ) {
        let record = SessionRecord {
            id,
            name: session.name.into_owned(),
            owner: session.owner,
            on_close: session.on_close,
            ttl: session.ttl,
            expiry: session.expiry,
            state,
            next_token,
            last_request,
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
        state in phase(),
        liveupdate_number in any::<u64>(),
        subsystems in collection::btree_map(name(), any::<u64>(), 0..20),
        handover in option::of(1..=u64::MAX),
    ) {
        let subsystems =
            subsystems.into_iter().map(|(name, data)| SubsystemData { name, data }).collect();
        let record = MachineRecord { state, liveupdate_number, subsystems, handover };
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
