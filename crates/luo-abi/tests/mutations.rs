//! Damaged input never makes a reader panic or run on, and what is still taken for valid is.

mod common;

use common::Random;
use luo_abi::{
    Criticality, Level, OnClose, Owner, Side, State,
    fdt::{Blob, Event, MAX_DEPTH, Node, Tree},
    handover::{
        File, FilesTree, HandoverError, MachineTree, Session, Tokens, write_files, write_machine,
    },
    record::{
        DeletedEnd, DeletedMaker, DeletedRecord, DeviceRecord, Endpoint, EpollMemberRecord,
        EpollRecord, EventfdRecord, FifoMaker, FifoRecord, FileRecord, Incoming, InotifyRecord,
        LockRecord, MachineRecord, MemfdRecord, MqueueRecord, OpenFlags, OptionRecord, PathRecord,
        PipeEnd, PipeMaker, PipeRecord, Record, RecordError, RememberedFailure, SessionRecord,
        SharedRecord, SignalfdRecord, SocketFamily, SocketKind, SocketRecord, SocketState,
        SubsystemData, SubsystemRecord, TimerfdRecord, TunRecord, UnixEnd, UnixMaker, UnixMessage,
        UnixRecord, WatchRecord, WatchTarget,
    },
};

const BLOBS: usize = 100_000;
const SEED: u64 = 0x6c75_6f5f_6162_6921;

/// What the fifth file of a session needs.
const NEEDS: &[[u8; 8]] = &[[0, 0, 0, 0, 0, 0, 0, 1], [0, 0, 0, 0, 0, 0, 0, 2]];

fn files_blob(sessions: u64, files: u64) -> Vec<u8> {
    let name =
        |i: u64| if i.is_multiple_of(2) { format!("kv {i}") } else { format!("session-{i}") };
    write_files((0..sessions).map(|i| {
        let session = Session {
            name: name(i).into(),
            owner: Owner { uid: i as u32, gid: 100 },
            on_close: OnClose::Keep,
            ttl: Some(60),
            expiry: None,
            next_token: Some(files),
        };
        let files = (0..files).map(move |token| File {
            // Every other session's tokens do not ascend.
            token: if i.is_multiple_of(2) { token } else { token ^ 5 },
            compatible: "memfd-v1",
            data: token,
            criticality: if token == 3 { Criticality::Optional } else { Criticality::Required },
            needs: if token == 4 { Tokens::new(NEEDS) } else { Tokens::NONE },
        });
        (session, files)
    }))
    .unwrap()
}

/// Walks through a tree in both ways that there are and compares them.
fn walk(tree: &Tree<'_>, blob: &[u8]) {
    fn visit(node: Node<'_>, depth: usize, nodes: &mut usize, properties: &mut usize) {
        assert!(depth <= MAX_DEPTH);
        assert_eq!(node.name().is_empty(), depth == 1);
        *nodes += 1;
        for property in node.properties() {
            assert!(!property.name().is_empty());
            assert!(property.is(property.name()));
            assert_eq!(node.property(property.name()), Some(property), "names are there once");
            *properties += 1;
        }
        for child in node.children() {
            assert_eq!(node.child(child.name()).map(|c| c.offset()), Some(child.offset()));
            visit(child, depth + 1, nodes, properties);
        }
    }
    let (mut nodes, mut properties) = (0, 0);
    visit(tree.root(), 1, &mut nodes, &mut properties);
    let (mut begun, mut ended, mut seen) = (0, 0, 0);
    for event in tree.events() {
        match event {
            Event::Begin { .. } => begun += 1,
            Event::End => ended += 1,
            Event::Property(property) => {
                seen += 1;
                assert_eq!(
                    &blob[property.value_offset()..][..property.value().len()],
                    property.value()
                );
            }
        }
    }
    assert_eq!((begun, ended, seen), (nodes, nodes, properties));
    assert!(4 * (begun + ended + seen) <= blob.len(), "no token is read twice");
}

fn check_blob(blob: &[u8]) -> bool {
    let valid = match Blob::validate(blob) {
        Ok(tree) => {
            walk(&tree, blob);
            true
        }
        Err(error) => {
            assert!(error.offset <= blob.len(), "{error}");
            false
        }
    };
    match FilesTree::read(blob) {
        Ok(tree) => {
            for session in tree.sessions() {
                match session {
                    Ok(session) => session.files().for_each(|file| {
                        if let Err(error) = file {
                            assert!(error.offset < blob.len(), "{error}");
                        }
                    }),
                    Err(error) => assert!(error.offset < blob.len(), "{error}"),
                }
            }
        }
        Err(error) => {
            assert!(error.offset() <= blob.len(), "{error}");
            assert_eq!(matches!(error, HandoverError::Blob(_)), !valid);
        }
    }
    if let Ok(tree) = MachineTree::read(blob) {
        for subsystem in tree.subsystems() {
            assert!(subsystem.is_ok_and(|s| !s.name.is_empty()) || valid);
        }
    }
    valid
}

#[test]
fn a_hundred_thousand_mutated_blobs_do_no_harm() {
    let mut random = Random::new(SEED);
    let seeds = [
        files_blob(1, 3),
        files_blob(3, 8),
        files_blob(0, 0),
        write_machine(3, [("files", 7), ("my cache", 8), ("compatible", 9)]).unwrap(),
    ];
    let (mut valid, mut refused) = (0, 0);
    for _ in 0..BLOBS {
        let seed = &seeds[random.below(seeds.len())];
        let other = &seeds[random.below(seeds.len())];
        let mut blob = random.mutate(seed, other);
        // Half of the time, the header follows the change, so that the structure is reached.
        if random.below(2) == 0 && blob.len() >= 40 {
            let shift = blob.len().wrapping_sub(seed.len()) as u32;
            for field in
                [common::field::TOTAL_SIZE, common::field::OFF_STRINGS, common::field::SIZE_STRUCT]
            {
                let old = u32::from_be_bytes(seed[field..field + 4].try_into().unwrap());
                blob = common::with_field(&blob, field, old.wrapping_add(shift));
            }
        }
        if check_blob(&blob) { valid += 1 } else { refused += 1 }
    }
    // Both ways must have been gone often, or the mutations test nothing.
    assert!(valid > BLOBS / 50, "{valid} valid");
    assert!(refused > BLOBS / 2, "{refused} refused");
}

#[test]
fn every_cut_and_every_flipped_bit_does_no_harm() {
    let blob = files_blob(2, 3);
    for end in 0..blob.len() {
        assert!(!check_blob(&blob[..end]), "a blob that was cut is refused");
    }
    for bit in 0..8 * blob.len() {
        let mut blob = blob.clone();
        blob[bit / 8] ^= 1 << (bit % 8);
        check_blob(&blob);
    }
}

#[test]
fn mutated_records_do_no_harm() {
    let mut random = Random::new(SEED);
    let file = FileRecord {
        session: 1,
        side: Side::Incoming,
        token: 2,
        compatible: "memfd-v1".into(),
        criticality: Criticality::Required,
        state: State::Updated,
        level: Level::Session,
        data: Some(3),
        handles: vec![5, 6, 7].into(),
        incoming: Some(Incoming::Failed(RememberedFailure::new(5, "der Träger ist fort", true))),
        reclaimed: false,
        pinned: 4096,
        needs: [].as_slice().into(),
        with: [].as_slice().into(),
        request: 4,
        index: 1,
    };
    let waiting = FileRecord { incoming: None, side: Side::Outgoing, data: None, ..file.clone() };
    let machine = MachineRecord {
        state: State::Prepared,
        transition: Some(luo_abi::Event::Freeze),
        departed: false,
        carrier: 0,
        liveupdate_number: 1,
        next_session: 2,
        boot_data: ["files", "net"].map(|n| SubsystemData { name: n.into(), data: 1 }).into(),
        subsystems: ["files", "net"]
            .map(|name| SubsystemRecord {
                name: name.into(),
                criticality: Criticality::Optional,
                concurrent: true,
                state: State::Prepared,
                data: 1,
                handles: vec![8].into(),
            })
            .into(),
        shared: vec![SharedRecord {
            compatible: "memfd-v1".into(),
            data: 5,
            frozen: true,
            arrived: false,
            retrieved: false,
            handles: vec![9, 10].into(),
        }],
    };
    let session = SessionRecord {
        id: 1,
        name: "kv".into(),
        owner: Owner { uid: 1, gid: 2 },
        on_close: OnClose::Keep,
        ttl: Some(1),
        state: State::Normal,
        transition: None,
        level: Level::Machine,
        next_token: 1,
        unclaimed: true,
        expires: Some(2),
        created_by: 1,
        finished_by: 0,
    };
    let memfd =
        MemfdRecord { size: 9, position: 1, memory: 4, seals: 3, flags: 2, name: b"x".to_vec() };
    let seeds = [
        file.encode().unwrap(),
        waiting.encode().unwrap(),
        machine.encode().unwrap(),
        session.encode().unwrap(),
        memfd.encode().unwrap(),
    ];
    let mut valid = 0;
    for _ in 0..BLOBS {
        let seed = &seeds[random.below(seeds.len())];
        let other = &seeds[random.below(seeds.len())];
        let mut bytes = random.mutate(seed, other);
        if random.below(2) == 0 && bytes.len() >= 28 {
            let length = bytes.len() as u32;
            bytes[24..28].copy_from_slice(&length.to_le_bytes());
        }
        // What is taken for valid is written the same again: no byte of it was overlooked.
        let again = match Record::decode(&bytes) {
            Ok(Record::File(record)) => record.encode(),
            Ok(Record::Timeline(record)) => record.encode(),
            Ok(Record::Machine(record)) => record.encode(),
            Ok(Record::Session(record)) => record.encode(),
            Ok(_) => unreachable!("these are all"),
            Err(error) => {
                assert!(error.offset <= bytes.len(), "{error}");
                match MemfdRecord::decode(&bytes) {
                    Ok(record) => record.encode(),
                    Err(error) => {
                        assert!(error.offset <= bytes.len(), "{error}");
                        continue;
                    }
                }
            }
        };
        assert_eq!(again.as_deref(), Ok(&bytes[..]));
        valid += 1;
    }
    assert!(valid > BLOBS / 50, "{valid} valid");
}

/// Decodes bytes as what they may be, and encodes what was found.
type Again = fn(&[u8]) -> Result<Result<Vec<u8>, RecordError>, RecordError>;

#[test]
fn mutated_records_of_files_do_no_harm() {
    let timer = TimerfdRecord {
        expiry: 5,
        interval: 1,
        ticks: 2,
        now: 4,
        realtime: 3,
        boot: [1; 16],
        clock: 7,
        flags: 3,
    };
    let open = OpenFlags(OpenFlags::READ);
    let pipe = PipeMaker {
        capacity: 4096,
        open,
        ends: vec![PipeEnd { token: 1, open }],
        packets: true,
        chunks: vec![vec![1, 2], vec![3]],
    };
    let tun = TunRecord {
        name: b"tun0".to_vec(),
        owner: 1,
        group: 2,
        send_buffer: 3,
        flags: TunRecord::TUN,
        ..TunRecord::bare()
    };
    let queue = MqueueRecord {
        maker: 0,
        boot: [1; 16],
        uid: 1,
        gid: 2,
        mode: 0o600,
        most: 10,
        largest: 100,
        open,
        name: b"/queue".to_vec(),
        messages: vec![(5, vec![1, 2]), (3, Vec::new())],
    };
    let fifo = FifoMaker {
        device: 1,
        inode: 2,
        filesystem: 3,
        born: 4,
        hung_up: true,
        path: b"/run/fifo".to_vec(),
        pipe: pipe.clone(),
    };
    let path = PathRecord {
        device: 1,
        inode: 2,
        filesystem: 3,
        born: 4,
        size: 5,
        position: 6,
        modified: 7,
        open,
        directory: false,
        locks: vec![LockRecord { start: 1, end: 9, whole: false, exclusive: true }],
        path: b"/a/b".to_vec(),
    };
    let socket = SocketRecord {
        family: SocketFamily::V6,
        kind: SocketKind::Datagram,
        state: SocketState::Connected,
        nonblocking: true,
        local: Endpoint { port: 7, ..Endpoint::default() },
        peer: Endpoint { port: 9, ..Endpoint::default() },
        device: 0,
        inode: 0,
        uid: 1,
        gid: 2,
        mode: 0,
        backlog: 0,
        waiting: 0,
        options: vec![OptionRecord { level: 1, name: 2, value: vec![1, 0, 0, 0] }],
        name: Vec::new(),
    };
    let end = UnixEnd {
        nonblocking: true,
        reads_no_more: false,
        writes_no_more: true,
        options: vec![OptionRecord { level: 1, name: 2, value: vec![1, 0, 0, 0] }],
        messages: vec![UnixMessage { bytes: vec![1, 2], files: vec![3] }],
    };
    let unix = UnixMaker {
        kind: SocketKind::Stream,
        uid: 1,
        gid: 2,
        own: end.clone(),
        other: Some((7, end)),
    };
    let deleted = DeletedMaker {
        size: 1 << 20,
        memory: 9,
        filesystem: 7,
        device: 1,
        modified: 2,
        uid: 3,
        gid: 4,
        mode: 0o640,
        ends: vec![DeletedEnd { token: 0, position: 5, open, locks: Vec::new() }],
        extents: vec![(0, 4096), (8192, 100)],
        directory: b"/tmp".to_vec(),
    };
    let target = WatchTarget::File { token: 9 };
    let watches = vec![
        WatchRecord { number: 2, mask: 0x100, target },
        WatchRecord {
            number: 7,
            mask: 0x8000_0003,
            target: WatchTarget::Path {
                device: 0x0102_0304_0506,
                inode: 0x0708_090a,
                filesystem: 0x0b0c_0d0e,
                born: 0x0f10_1112,
                path: b"/etc/shop".to_vec(),
            },
        },
    ];
    let inotify = InotifyRecord { flags: 1, watches };
    let member = EpollMemberRecord { token: 1, data: 2, events: 0x19, number: 4 };
    let members = vec![member, EpollMemberRecord { number: 5, ..member }];
    let epoll = EpollRecord { members, ..EpollRecord::default() };
    let seeds: Vec<(Vec<u8>, Again)> = vec![
        (DeletedRecord::Maker(deleted).encode().unwrap(), |bytes| {
            DeletedRecord::decode(bytes).map(|record| record.encode())
        }),
        (UnixRecord::Maker(unix).encode().unwrap(), |bytes| {
            UnixRecord::decode(bytes).map(|record| record.encode())
        }),
        (socket.encode().unwrap(), |bytes| {
            SocketRecord::decode(bytes).map(|record| record.encode())
        }),
        (FifoRecord::Maker(fifo).encode().unwrap(), |bytes| {
            FifoRecord::decode(bytes).map(|record| record.encode())
        }),
        (PipeRecord::Maker(pipe).encode().unwrap(), |bytes| {
            PipeRecord::decode(bytes).map(|record| record.encode())
        }),
        (path.encode().unwrap(), |bytes| PathRecord::decode(bytes).map(|record| record.encode())),
        (DeviceRecord { major: 1, minor: 3, open }.encode().unwrap(), |bytes| {
            DeviceRecord::decode(bytes).map(|record| record.encode())
        }),
        (queue.encode().unwrap(), |bytes| {
            MqueueRecord::decode(bytes).map(|record| record.encode())
        }),
        (tun.encode().unwrap(), |bytes| TunRecord::decode(bytes).map(|record| record.encode())),
        (EventfdRecord { count: 1, flags: 2 }.encode().unwrap(), |bytes| {
            EventfdRecord::decode(bytes).map(|record| record.encode())
        }),
        (timer.encode().unwrap(), |bytes| {
            TimerfdRecord::decode(bytes).map(|record| record.encode())
        }),
        (inotify.encode().unwrap(), |bytes| {
            InotifyRecord::decode(bytes).map(|record| record.encode())
        }),
        (epoll.encode().unwrap(), |bytes| EpollRecord::decode(bytes).map(|record| record.encode())),
        (SignalfdRecord { mask: 3, flags: 1 }.encode().unwrap(), |bytes| {
            SignalfdRecord::decode(bytes).map(|record| record.encode())
        }),
    ];
    let mut random = Random::new(SEED);
    for (seed, again) in &seeds {
        let mut valid = 0;
        for _ in 0..BLOBS / 5 {
            let other = &seeds[random.below(seeds.len())].0;
            let bytes = random.mutate(seed, other);
            match again(&bytes) {
                // What is taken for valid is written the same again: no byte was overlooked.
                Ok(written) => {
                    assert_eq!(written.as_deref(), Ok(&bytes[..]));
                    valid += 1;
                }
                Err(error) => assert!(error.offset <= bytes.len(), "{error}"),
            }
        }
        assert!(valid > BLOBS / 500, "{valid} valid");
    }
}
