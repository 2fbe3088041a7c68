//! Bytes of every released version stay readable for ever, and what is written now is, byte for
//! byte, the newest of them.
//!
//! A file in `golden/` is never changed. A new version of a format adds one, with its reading
//! here; the writing of the old one then moves to where the old version is still written.

use luo_abi::{
    Criticality, Event, Level, OnClose, Owner, Side, State, TimelinePhase,
    handover::{
        File, FilesTree, MachineTree, Session, Subsystem, Tokens, write_files, write_machine,
    },
    record::{
        DeletedEnd, DeletedMaker, DeletedRecord, DeviceRecord, Endpoint, EpollMemberRecord,
        EpollRecord, EventfdRecord, FifoMaker, FifoRecord, FileRecord, Incoming, InotifyRecord,
        LockRecord, MachineRecord, MemfdRecord, MqueueRecord, OpenFlags, OptionRecord, PathRecord,
        PipeEnd, PipeMaker, PipeRecord, Reading, Record, RememberedFailure, SessionRecord,
        SharedRecord, SignalfdRecord, SocketFamily, SocketKind, SocketRecord, SocketState,
        SubsystemData, SubsystemRecord, TimelineArrival, TimelineName, TimelineRecord,
        TimelineSpan, TimerfdRecord, TunRecord, UnixEnd, UnixMaker, UnixMessage, UnixRecord,
        WatchRecord, WatchTarget,
    },
};

#[test]
fn luo_v1() {
    let golden = include_bytes!("golden/luo-v1.dtb");
    let subsystems = [("files", 7), ("my cache", 0x0123_4567_89ab_cdef), ("compatible", 0)];
    assert_eq!(write_machine(3, subsystems).unwrap(), golden);
    let tree = MachineTree::read(golden).unwrap();
    assert_eq!(tree.liveupdate_number(), 3);
    let read: Vec<_> = tree.subsystems().map(Result::unwrap).collect();
    assert_eq!(read, subsystems.map(|(name, data)| Subsystem { name: name.into(), data }));
}

#[test]
fn file_descriptors_v1() {
    let golden = include_bytes!("golden/file-descriptors-v1.dtb");
    let cache = Session {
        name: "web cache@home".into(),
        owner: Owner { uid: 1000, gid: 100 },
        on_close: OnClose::Keep,
        ttl: Some(3600),
        expiry: Some(1_800_000_000),
        next_token: Some(0x1b),
    };
    let kv = Session {
        name: "kv".into(),
        owner: Owner { uid: 0, gid: u32::MAX },
        on_close: OnClose::Release,
        ttl: None,
        expiry: None,
        next_token: None,
    };
    let file = |token, compatible, data, criticality| File {
        token,
        compatible,
        data,
        criticality,
        needs: Tokens::NONE,
    };
    let sessions = vec![
        (
            cache,
            vec![
                file(0, "memfd-v1", 1, Criticality::Required),
                file(0x1a, "socket-v1", u64::MAX, Criticality::Optional),
            ],
        ),
        (kv, vec![file(u64::MAX, "memfd-v1", 0, Criticality::Required)]),
    ];
    assert_eq!(write_files(sessions.clone()).unwrap(), golden);
    let read: Vec<_> = FilesTree::read(golden)
        .unwrap()
        .sessions()
        .map(|session| {
            let session = session.unwrap();
            let files = session.files().map(Result::unwrap).collect::<Vec<_>>();
            (session.into_session(), files)
        })
        .collect();
    assert_eq!(read, sessions);
}

#[test]
fn machine_record_v1() {
    let golden = include_bytes!("golden/machine-record-v1.bin");
    let subsystem = |name: &'static str, criticality, concurrent, state, data, handles: &[u64]| {
        let handles = handles.to_vec().into();
        SubsystemRecord { name: name.into(), criticality, concurrent, state, data, handles }
    };
    let record = MachineRecord {
        state: State::Frozen,
        transition: Some(Event::Depart),
        departed: true,
        carrier: 0,
        liveupdate_number: 0x0102_0304_0506_0708,
        next_session: 0x1112_1314_1516_1718,
        boot_data: [("files", 7), ("my cache", u64::MAX)]
            .map(|(name, data)| SubsystemData { name: name.into(), data })
            .into(),
        subsystems: vec![
            subsystem("net", Criticality::Optional, true, State::Normal, 0, &[]),
            subsystem("files", Criticality::Required, false, State::Frozen, 8, &[9, 0x99]),
        ],
        shared: vec![SharedRecord {
            compatible: "memfd-v1".into(),
            data: 0x2122_2324_2526_2728,
            frozen: true,
            arrived: false,
            retrieved: true,
            handles: vec![u64::MAX].into(),
        }],
    };
    assert_eq!(record.encode().unwrap(), golden);
    assert_eq!(Record::decode(golden), Ok(Record::Machine(record)));
}

#[test]
fn session_record_v1() {
    let golden = include_bytes!("golden/session-record-v1.bin");
    let record = SessionRecord {
        id: 0x0102_0304_0506_0708,
        name: "web cache@home".into(),
        owner: Owner { uid: 1000, gid: 100 },
        on_close: OnClose::Keep,
        ttl: Some(3600),
        state: State::Prepared,
        transition: Some(Event::Cancel),
        level: Level::Machine,
        next_token: 0x1b,
        unclaimed: true,
        expires: Some(1_800_000_000),
        created_by: 42,
        finished_by: 0x4344,
    };
    assert_eq!(record.encode().unwrap(), golden);
    assert_eq!(Record::decode(golden), Ok(Record::Session(record)));
}

#[test]
fn file_record_v1() {
    let golden = include_bytes!("golden/file-record-v1.bin");
    let failure = RememberedFailure::new(5, "weg für immer", true);
    let record = FileRecord {
        session: 0x0102_0304_0506_0708,
        side: Side::Incoming,
        token: 0x1a,
        compatible: "memfd-v1".into(),
        criticality: Criticality::Optional,
        state: State::Updated,
        level: Level::Session,
        data: Some(0x1122_3344_5566_7788),
        handles: vec![1, u64::MAX, 0x99].into(),
        incoming: Some(Incoming::Failed(failure)),
        reclaimed: true,
        pinned: 0x2000,
        needs: [].as_slice().into(),
        with: [].as_slice().into(),
        request: 9,
        index: 252,
    };
    assert_eq!(record.encode().unwrap(), golden);
    assert_eq!(Record::decode(golden), Ok(Record::File(record)));
}

#[test]
fn file_record_v2() {
    let golden = include_bytes!("golden/file-record-v2.bin");
    let record = FileRecord {
        session: 7,
        side: Side::Outgoing,
        token: 0x1b,
        compatible: "epoll-v1".into(),
        criticality: Criticality::Required,
        state: State::Frozen,
        level: Level::Machine,
        data: Some(0x55),
        handles: vec![0x55].into(),
        incoming: None,
        reclaimed: false,
        pinned: 0,
        request: 10,
        index: 0,
        needs: vec![0x1a, u64::MAX].into(),
        with: vec![3].into(),
    };
    assert_eq!(record.encode().unwrap(), golden);
    assert_eq!(Record::decode(golden), Ok(Record::File(record)));
}

#[test]
fn timeline_v1() {
    let golden = include_bytes!("golden/timeline-v1.bin");
    let reading = |realtime, boottime| Reading { realtime, boottime };
    let name = |name: &'static str, participant| TimelineName { name: name.into(), participant };
    let span = |phase, name, began, length| TimelineSpan { phase, name, began, length };
    let record = TimelineRecord {
        number: 3,
        carrier: "arena".into(),
        boot: [0xab; 16],
        frozen: reading(1_800_000_000_000_000, 86_400_000_000),
        kept: reading(1_800_000_000_250_000, 86_400_250_000),
        arrival: Some(TimelineArrival {
            boot: [0xcd; 16],
            began: reading(1_800_000_003_000_000, 1_500_000),
            last: reading(1_800_000_004_000_000, 2_500_000),
        }),
        unlisted: 2,
        names: vec![name("web cache", false), name("db", true)],
        spans: vec![
            span(TimelinePhase::Freeze, None, 86_400_000_000, 250_000),
            span(TimelinePhase::Freeze, Some(1), 86_400_100_000, 100_000),
            span(TimelinePhase::Claim, Some(0), 1_600_000, 500),
        ],
    };
    assert_eq!(record.encode().unwrap(), golden);
    assert_eq!(Record::decode(golden), Ok(Record::Timeline(record)));
}

#[test]
fn memfd_v1() {
    let golden = include_bytes!("golden/memfd-v1.bin");
    let record = MemfdRecord {
        size: 0x0102_0304_0506_0708,
        position: 0x10,
        memory: 0x1122,
        seals: 0x2f,
        flags: MemfdRecord::APPEND | MemfdRecord::NOATIME,
        name: b"heap\xff".to_vec(),
    };
    assert_eq!(record.encode().unwrap(), golden);
    assert_eq!(MemfdRecord::decode(golden), Ok(record));
}

#[test]
fn arena_v1() {
    use luo_abi::arena::{
        Catalogue, CataloguePlace, Kind, Object, Placed, Superblock, checksum, find, handle,
    };
    let golden = include_bytes!("golden/arena-v1.bin");
    let object = |number, kind, len, pieces: &[Placed], sums: &[u64]| Object {
        handle: handle(number),
        kind,
        len,
        pieces: pieces.to_vec().into(),
        sums: sums.to_vec().into(),
    };
    let piece = |logical, offset, len| Placed { logical, offset, len };
    let objects = vec![
        object(
            1,
            Kind::Memory,
            200_001,
            &[piece(4096, 0x10000, 8192), piece(196_608, 0x20000, 4096)],
            &[0x0123_4567_89ab_cdef, 2],
        ),
        object(2, Kind::Bytes, 5000, &[piece(0, 0x40000, 4096), piece(4096, 0x50000, 904)], &[3]),
        object(4, Kind::Inline(b"the handover"[..].to_owned().into()), 12, &[], &[]),
    ];
    let bytes = Catalogue::encode([1; 16], 42, objects.iter());
    let superblock = Superblock {
        arena: [1; 16],
        machine: [2; 16],
        generation: 42,
        size: 1 << 20,
        written: 1_800_000_000,
        next_handle: 5,
        catalogue: Some(CataloguePlace {
            offset: 8192,
            len: bytes.len() as u64,
            checksum: checksum(&bytes),
            handover: handle(4),
            version: 1,
        }),
    };
    let block = superblock.encode();
    let written = [&block[..], &block[..], &bytes[..]].concat();
    assert!(written == golden);
    let found = find(&golden[..4096], &golden[4096..8192], 1 << 20, Some(&[2; 16])).unwrap();
    assert_eq!((found.superblock, found.place, found.mirrored), (superblock, 0, true));
    assert_eq!(Catalogue::decode(&golden[8192..], &superblock).unwrap().objects, objects);
}

#[test]
fn arena_v2() {
    use luo_abi::arena::{
        Catalogue, CataloguePlace, Kind, Object, Placed, Superblock, checksum, find, handle,
    };
    let golden = include_bytes!("golden/arena-v2.bin");
    let objects = vec![
        Object {
            handle: handle(1),
            kind: Kind::Resident,
            len: 200_001,
            pieces: vec![Placed { logical: 0, offset: 0x40000, len: 200_001 }].into(),
            sums: Vec::new().into(),
        },
        Object {
            handle: handle(2),
            kind: Kind::Inline(b"the handover"[..].to_owned().into()),
            len: 12,
            pieces: Vec::new().into(),
            sums: Vec::new().into(),
        },
    ];
    let bytes = Catalogue::encode([1; 16], 43, objects.iter());
    let superblock = Superblock {
        arena: [1; 16],
        machine: [2; 16],
        generation: 43,
        size: 1 << 20,
        written: 1_900_000_000,
        next_handle: 3,
        catalogue: Some(CataloguePlace {
            offset: 8192,
            len: bytes.len() as u64,
            checksum: checksum(&bytes),
            handover: handle(2),
            version: 2,
        }),
    };
    let block = superblock.encode();
    let written = [&block[..], &block[..], &bytes[..]].concat();
    assert!(written == golden);
    let found = find(&golden[..4096], &golden[4096..8192], 1 << 20, Some(&[2; 16])).unwrap();
    assert_eq!((found.superblock, found.place, found.mirrored), (superblock, 0, true));
    assert_eq!(Catalogue::decode(&golden[8192..], &superblock).unwrap().objects, objects);
}

#[test]
fn arena_v3() {
    use luo_abi::arena::{Catalogue, CataloguePlace, Object, Superblock, find, handle};
    let golden = include_bytes!("golden/arena-v3.bin");
    let objects = vec![
        Object::new_inline(handle(1), b"a record".to_vec()),
        Object::new_inline(handle(2), b"the handover".to_vec()),
    ];
    let bytes = Catalogue::encode([1; 16], 44, objects.iter());
    let superblock = Superblock {
        arena: [1; 16],
        machine: [2; 16],
        generation: 44,
        size: 1 << 20,
        written: 2_000_000_000,
        next_handle: 3,
        catalogue: Some(CataloguePlace {
            offset: 8192,
            len: bytes.len() as u64,
            checksum: Catalogue::checksum(&bytes, 3),
            handover: handle(2),
            version: 3,
        }),
    };
    let block = superblock.encode();
    let written = [&block[..], &block[..], &bytes[..]].concat();
    assert!(written == golden);
    let found = find(&golden[..4096], &golden[4096..8192], 1 << 20, Some(&[2; 16])).unwrap();
    assert_eq!((found.superblock, found.place, found.mirrored), (superblock, 0, true));
    assert_eq!(Catalogue::decode(&golden[8192..], &superblock).unwrap().objects, objects);
}

#[test]
fn eventfd_v1() {
    let golden = include_bytes!("golden/eventfd-v1.bin");
    let flags = EventfdRecord::SEMAPHORE | EventfdRecord::NONBLOCK;
    let record = EventfdRecord { count: 0x0102_0304_0506_0708, flags };
    assert_eq!(record.encode().unwrap(), golden);
    assert_eq!(EventfdRecord::decode(golden), Ok(record));
}

#[test]
fn timerfd_v1() {
    let golden = include_bytes!("golden/timerfd-v1.bin");
    let record = TimerfdRecord {
        expiry: 0x0102_0304_0506_0708,
        interval: 0x1112_1314_1516_1718,
        ticks: 0xa1a2_a3a4_a5a6_a7a8,
        now: 0x2122_2324_2526_2728,
        realtime: 0x3132_3334_3536_3738,
        boot: *b"the id of a boot",
        clock: 9,
        flags: TimerfdRecord::KNOWN_FLAGS,
    };
    assert_eq!(record.encode().unwrap(), golden);
    assert_eq!(TimerfdRecord::decode(golden), Ok(record));
}

#[test]
fn signalfd_v1() {
    let golden = include_bytes!("golden/signalfd-v1.bin");
    let record = SignalfdRecord { mask: 0x8102_0304_0506_0708, flags: SignalfdRecord::NONBLOCK };
    assert_eq!(record.encode().unwrap(), golden);
    assert_eq!(SignalfdRecord::decode(golden), Ok(record));
}

#[test]
fn epoll_v1() {
    let golden = include_bytes!("golden/epoll-v1.bin");
    let member = |token, number, events| EpollMemberRecord {
        token,
        data: 0x1122_3344_5566_7788 + token,
        events,
        number,
    };
    let record = EpollRecord {
        flags: EpollRecord::NONBLOCK,
        busy_usecs: 0x0102_0304,
        busy_budget: 0x0506,
        busy_prefer: true,
        members: vec![member(9, 4, 0x19), member(3, 7, 0x8000_001d), member(9, 7, 0x4000_0000)],
    };
    assert_eq!(record.encode().unwrap(), golden);
    assert_eq!(EpollRecord::decode(golden), Ok(record.clone()));
    let turned = EpollRecord { members: record.members.iter().rev().copied().collect(), ..record };
    assert!(turned.encode().is_err());
}

#[test]
fn inotify_v1() {
    let golden = include_bytes!("golden/inotify-v1.bin");
    let target = WatchTarget::File { token: 0x1122_3344 };
    let record = InotifyRecord {
        flags: InotifyRecord::NONBLOCK | InotifyRecord::MISSED,
        watches: vec![
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
        ],
    };
    assert_eq!(record.encode().unwrap(), golden);
    assert_eq!(InotifyRecord::decode(golden), Ok(record));
}

#[test]
fn pipe_v1() {
    let golden = include_bytes!("golden/pipe-v1.bin");
    let record = PipeRecord::Maker(PipeMaker {
        capacity: 65536,
        open: OpenFlags(OpenFlags::READ | OpenFlags::NONBLOCK),
        ends: vec![PipeEnd { token: 0x1a, open: OpenFlags(OpenFlags::WRITE | OpenFlags::DIRECT) }],
        packets: true,
        chunks: vec![b"one".to_vec(), b"other".to_vec()],
    });
    assert_eq!(record.encode().unwrap(), golden);
    assert_eq!(PipeRecord::decode(golden), Ok(record));
    let along = PipeRecord::Along { maker: 0x0102_0304_0506_0708 };
    let bytes = along.encode().unwrap();
    assert_eq!((bytes.len(), bytes[22]), (24, 2));
    assert_eq!(PipeRecord::decode(&bytes), Ok(along));
}

#[test]
fn fifo_v1() {
    let golden = include_bytes!("golden/fifo-v1.bin");
    let record = FifoRecord::Maker(FifoMaker {
        device: 0xfe_0000_0001,
        inode: 0x0102_0304_0506_0708,
        filesystem: 0x1112_1314_1516_1718,
        born: 0x2122_2324_2526_2728,
        hung_up: true,
        path: b"/run/shop/orders".to_vec(),
        pipe: PipeMaker {
            capacity: 65536,
            open: OpenFlags(OpenFlags::READ | OpenFlags::NONBLOCK),
            ends: Vec::new(),
            packets: false,
            chunks: vec![b"unread".to_vec()],
        },
    });
    assert_eq!(record.encode().unwrap(), golden);
    assert_eq!(FifoRecord::decode(golden), Ok(record));
    let along = FifoRecord::Along { maker: 0x0102_0304_0506_0708 };
    let bytes = along.encode().unwrap();
    assert_eq!(bytes.len(), 64);
    assert_eq!(FifoRecord::decode(&bytes), Ok(along));
}

#[test]
fn path_v1() {
    let golden = include_bytes!("golden/path-v1.bin");
    let record = PathRecord {
        device: 0xfe_0000_0001,
        inode: 0x0102_0304_0506_0708,
        filesystem: 0x1112_1314_1516_1718,
        born: 0x2122_2324_2526_2728,
        size: 5000,
        position: 4096,
        modified: 0x3132_3334_3536_3738,
        open: OpenFlags(OpenFlags::READ | OpenFlags::WRITE | OpenFlags::APPEND),
        directory: false,
        locks: vec![
            LockRecord { start: 0, end: u64::MAX, whole: true, exclusive: false },
            LockRecord { start: 7, end: 9, whole: false, exclusive: true },
        ],
        path: b"/var/log/shop.log".to_vec(),
    };
    assert_eq!(record.encode().unwrap(), golden);
    assert_eq!(PathRecord::decode(golden), Ok(record));
}

#[test]
fn device_v1() {
    let golden = include_bytes!("golden/device-v1.bin");
    let record = DeviceRecord { major: 1, minor: 3, open: OpenFlags(OpenFlags::WRITE) };
    assert_eq!(record.encode().unwrap(), golden);
    assert_eq!(DeviceRecord::decode(golden), Ok(record));
}

#[test]
fn mqueue_v1() {
    let golden = include_bytes!("golden/mqueue-v1.bin");
    let record = MqueueRecord {
        maker: 0,
        boot: [7; 16],
        uid: 1000,
        gid: 100,
        mode: 0o640,
        most: 10,
        largest: 8192,
        open: OpenFlags(OpenFlags::READ | OpenFlags::NONBLOCK),
        name: b"/jobs".to_vec(),
        messages: vec![(9, b"urgent".to_vec()), (0, Vec::new())],
    };
    assert_eq!(record.encode().unwrap(), golden);
    assert_eq!(MqueueRecord::decode(golden), Ok(record));
}

#[test]
fn tun_v1() {
    let golden = include_bytes!("golden/tun-v1.bin");
    let record = TunRecord {
        name: b"tap0".to_vec(),
        owner: 1000,
        group: u32::MAX,
        send_buffer: 0x7fff_ffff,
        header: 12,
        offload: 7,
        open: OpenFlags(OpenFlags::READ | OpenFlags::WRITE | OpenFlags::NONBLOCK),
        flags: TunRecord::TAP | TunRecord::NO_PI | TunRecord::HEADER | TunRecord::PERSIST,
        link: 1,
        address: [2, 3, 4, 5, 6, 7],
    };
    assert_eq!(record.encode().unwrap(), golden);
    assert_eq!(TunRecord::decode(golden), Ok(record));
    let bare = TunRecord::bare();
    assert_eq!(TunRecord::decode(&bare.encode().unwrap()), Ok(bare));
}

#[test]
fn socket_v1() {
    let golden = include_bytes!("golden/socket-v1.bin");
    let record = SocketRecord {
        family: SocketFamily::Unix,
        kind: SocketKind::Packets,
        state: SocketState::Listening,
        nonblocking: true,
        local: Endpoint::default(),
        peer: Endpoint { address: *b"0123456789abcdef", scope: 2, flow: 3, port: 443 },
        device: 0xfe_0000_0001,
        inode: 0x0102_0304_0506_0708,
        uid: 1000,
        gid: 100,
        mode: 0o660,
        backlog: 128,
        waiting: 3,
        options: vec![
            OptionRecord { level: 1, name: 16, value: vec![1, 0, 0, 0] },
            OptionRecord { level: 6, name: 13, value: b"cubic".to_vec() },
        ],
        name: b"/run/shop".to_vec(),
    };
    assert_eq!(record.encode().unwrap(), golden);
    assert_eq!(SocketRecord::decode(golden), Ok(record));
}

#[test]
fn unix_v1() {
    let golden = include_bytes!("golden/unix-v1.bin");
    let own = UnixEnd {
        nonblocking: true,
        reads_no_more: false,
        writes_no_more: true,
        options: vec![OptionRecord { level: 1, name: 16, value: vec![1, 0, 0, 0] }],
        messages: vec![
            UnixMessage { bytes: b"one".to_vec(), files: vec![0x1a, 0x1b] },
            UnixMessage::default(),
        ],
    };
    let other = UnixEnd {
        nonblocking: false,
        reads_no_more: true,
        writes_no_more: false,
        options: Vec::new(),
        messages: Vec::new(),
    };
    let record = UnixRecord::Maker(UnixMaker {
        kind: SocketKind::Packets,
        uid: 1000,
        gid: 100,
        own,
        other: Some((0x2a, other)),
    });
    assert_eq!(record.encode().unwrap(), golden);
    assert_eq!(UnixRecord::decode(golden), Ok(record));
    let along = UnixRecord::Along { maker: 0x0102_0304_0506_0708 };
    let bytes = along.encode().unwrap();
    assert_eq!((bytes.len(), bytes[24]), (28, 2));
    assert_eq!(UnixRecord::decode(&bytes), Ok(along));
}

#[test]
fn deleted_v1() {
    let golden = include_bytes!("golden/deleted-v1.bin");
    let end = |token, position, open| DeletedEnd {
        token,
        position,
        open: OpenFlags(open),
        locks: Vec::new(),
    };
    let mut own = end(0, 5, OpenFlags::READ);
    own.locks = vec![LockRecord { start: 1, end: 9, whole: false, exclusive: true }];
    let record = DeletedRecord::Maker(DeletedMaker {
        size: 1 << 20,
        memory: 0x99,
        filesystem: 7,
        device: 0x0008_0000_0001,
        modified: 1_700_000_000_000_000_000,
        uid: 1000,
        gid: 100,
        mode: 0o640,
        ends: vec![own, end(0x1a, 0, OpenFlags::WRITE | OpenFlags::APPEND)],
        extents: vec![(0, 4096), (8192, 100)],
        directory: b"/var/tmp".to_vec(),
    });
    assert_eq!(record.encode().unwrap(), golden);
    assert_eq!(DeletedRecord::decode(golden), Ok(record));
    let along = DeletedRecord::Along { maker: 0x0102_0304_0506_0708 };
    let bytes = along.encode().unwrap();
    assert_eq!((bytes.len(), bytes[68]), (72, 2));
    assert_eq!(DeletedRecord::decode(&bytes), Ok(along));
}
