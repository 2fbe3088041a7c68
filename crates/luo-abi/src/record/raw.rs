//! The records as they lie in memory.
//!
//! Invariants: every struct is free of padding and of alignment, so that its layout is the order
//! of its fields; a layout is never changed, a new one gets a new version.

use zerocopy::little_endian::{U16, U32, U64};

/// The size of the version's text at the beginning of each record of the daemon.
pub(super) const VERSION_SIZE: usize = 24;

/// The size of the name of a congestion control, with a zero byte at its end.
pub(super) const CONGESTION_SIZE: usize = 16;

layout! {
    /// What every record of the daemon begins with.
    Header {
        version: [u8; VERSION_SIZE],
        length: U32,
        reserved: [u8; 4],
    }

    /// `session-record-v1`.
    Session {
        header: Header,
        id: U64,
        name: [u8; 64],
        uid: U32,
        gid: U32,
        ttl: U64,
        expires: U64,
        next_token: U64,
        created_by: U64,
        finished_by: U64,
        on_close: u8,
        state: u8,
        transition: u8,
        level: u8,
        unclaimed: u8,
        present: u8,
        reserved: [u8; 2],
    }

    /// `file-record-v1` and `file-record-v2`, before what both have behind it.
    File {
        header: Header,
        session: U64,
        token: U64,
        compatible: [u8; 48],
        data: U64,
        pinned: U64,
        request: U64,
        index: U32,
        errno: U32,
        reason_length: U16,
        handles: U16,
        side: u8,
        criticality: u8,
        state: u8,
        level: u8,
        incoming: u8,
        told: u8,
        reclaimed: u8,
        present: u8,
        needs: U16,
        with: U16,
    }

    /// `machine-record-v1`, before its three lists and their handles.
    Machine {
        header: Header,
        liveupdate_number: U64,
        next_session: U64,
        boot_data: U32,
        subsystems: U32,
        shared: U32,
        state: u8,
        transition: u8,
        departed: u8,
        carrier: u8,
    }

    /// Data that arrived for a subsystem, in a machine's record.
    BootData {
        name: [u8; 64],
        data: U64,
    }

    /// One subsystem of a machine's record.
    Subsystem {
        name: [u8; 64],
        data: U64,
        handles: U32,
        criticality: u8,
        concurrent: u8,
        state: u8,
        reserved: [u8; 1],
    }

    /// What one handler's files share, in a machine's record.
    Shared {
        compatible: [u8; 48],
        data: U64,
        handles: U32,
        frozen: u8,
        arrived: u8,
        retrieved: u8,
        reserved: [u8; 1],
    }

    /// Two clocks, read together, in a timeline.
    Reading {
        realtime: U64,
        boottime: U64,
    }

    /// `timeline-v1`, before its names and spans.
    Timeline {
        header: Header,
        number: U64,
        carrier: [u8; 16],
        boot: [u8; 16],
        frozen: Reading,
        kept: Reading,
        arrived_boot: [u8; 16],
        arrived: Reading,
        last: Reading,
        names: U32,
        spans: U32,
        unlisted: U32,
        has_arrived: u8,
        reserved: [u8; 3],
    }

    /// A session or participant of a timeline.
    TimelineName {
        name: [u8; 64],
        participant: u8,
        reserved: [u8; 7],
    }

    /// What took how long, in a timeline.
    TimelineSpan {
        phase: u8,
        reserved: [u8; 3],
        name: U32,
        began: U64,
        length: U64,
    }

    /// `memfd-v1`.
    Memfd {
        size: U64,
        position: U64,
        memory: U64,
        seals: U32,
        flags: U32,
        name_length: U16,
        name: [u8; 249],
        reserved: [u8; 5],
    }

    /// `tcp-v1`, before its options.
    Tcp {
        flags: U32,
        local: [u8; 16],
        remote: [u8; 16],
        local_port: U16,
        remote_port: U16,
        mss: U16,
        send_scale: u8,
        receive_scale: u8,
        send_sequence: U32,
        receive_sequence: U32,
        timestamp: U32,
        send_update: U32,
        send_window: U32,
        send_window_max: U32,
        receive_window: U32,
        receive_update: U32,
        unread: U64,
        written: U64,
        unread_length: U32,
        written_length: U32,
        unsent_length: U32,
        congestion: [u8; CONGESTION_SIZE],
        options: U16,
        reserved: [u8; 6],
    }

    /// An option of a connection.
    TcpOption {
        option: U16,
        reserved: [u8; 2],
        value: U32,
    }

    /// `eventfd-v1`.
    Eventfd {
        count: U64,
        flags: U32,
        reserved: [u8; 4],
    }

    /// `timerfd-v1`.
    Timerfd {
        expiry: U64,
        interval: U64,
        ticks: U64,
        now: U64,
        realtime: U64,
        boot: [u8; 16],
        clock: U32,
        flags: U32,
    }

    /// `signalfd-v1`.
    Signalfd {
        mask: U64,
        flags: U32,
        reserved: [u8; 4],
    }

    /// `epoll-v1`, before its members.
    Epoll {
        members: U32,
        flags: U32,
        busy_usecs: U32,
        busy_budget: U16,
        busy_prefer: u8,
        reserved: [u8; 1],
    }

    /// A member of an epoll set.
    EpollMember {
        token: U64,
        data: U64,
        events: U32,
        number: U32,
    }

    /// `inotify-v1`, before its watches.
    Inotify {
        watches: U32,
        flags: U32,
    }

    /// A watch, before its path.
    Watch {
        token: U64,
        device: U64,
        inode: U64,
        filesystem: U64,
        born: U64,
        number: U32,
        mask: U32,
        path_length: U16,
        kind: u8,
        reserved: [u8; 5],
    }

    /// `pipe-v1`, before its other ends, the lengths of its chunks, and these.
    Pipe {
        maker: U64,
        capacity: U32,
        open: U32,
        chunks: U32,
        ends: U16,
        kind: u8,
        packets: u8,
    }

    /// Another end of a pipe.
    PipeEnd {
        token: U64,
        open: U32,
        reserved: [u8; 4],
    }

    /// `fifo-v1`, before its path and a `pipe-v1`.
    Fifo {
        device: U64,
        inode: U64,
        filesystem: U64,
        born: U64,
        path_length: U16,
        hung_up: u8,
        reserved: [u8; 5],
    }

    /// `path-v1`, before its locks and its path.
    Path {
        device: U64,
        inode: U64,
        filesystem: U64,
        born: U64,
        size: U64,
        position: U64,
        modified: U64,
        open: U32,
        locks: U16,
        path_length: U16,
        directory: u8,
        reserved: [u8; 7],
    }

    /// A lock of a file.
    Lock {
        start: U64,
        end: U64,
        whole: u8,
        exclusive: u8,
        reserved: [u8; 6],
    }

    /// `device-v1`.
    Device {
        major: U32,
        minor: U32,
        open: U32,
        reserved: [u8; 4],
    }

    /// `mqueue-v1`, before its name and messages.
    Mqueue {
        maker: U64,
        boot: [u8; 16],
        uid: U32,
        gid: U32,
        mode: U32,
        most: U32,
        largest: U32,
        open: U32,
        messages: U32,
        name_length: U32,
    }

    /// A message of a queue, before its bytes.
    QueueMessage {
        priority: U32,
        length: U32,
    }

    /// `tun-v1`.
    Tun {
        name: [u8; 16],
        owner: U32,
        group: U32,
        send_buffer: U32,
        header: U32,
        offload: U32,
        open: U32,
        flags: U32,
        link: U16,
        address: [u8; 6],
    }

    /// An address of the Internet.
    Endpoint {
        address: [u8; 16],
        scope: U32,
        flow: U32,
        port: U16,
        reserved: [u8; 2],
    }

    /// `socket-v1`, before its options and its name.
    Socket {
        local: Endpoint,
        peer: Endpoint,
        device: U64,
        inode: U64,
        uid: U32,
        gid: U32,
        mode: U32,
        backlog: U32,
        waiting: U32,
        options: U16,
        name_length: U16,
        family: u8,
        kind: u8,
        state: u8,
        nonblocking: u8,
    }

    /// An option of a socket, before its value.
    SocketOption {
        level: U16,
        name: U16,
        length: U16,
    }

    /// `unix-v1`, before the maker's end and the other one.
    Unix {
        maker: U64,
        other: U64,
        uid: U32,
        gid: U32,
        role: u8,
        kind: u8,
        paired: u8,
        reserved: u8,
    }

    /// One end of a unix connection, before its options and messages.
    UnixEnd {
        messages: U32,
        options: U16,
        nonblocking: u8,
        shut: u8,
    }

    /// A message in a queue, before its files and its bytes.
    UnixMessage {
        length: U32,
        files: U16,
        reserved: [u8; 2],
    }

    /// `deleted-v1`, before its open file descriptions, where it has data, and its directory.
    Deleted {
        maker: U64,
        size: U64,
        memory: U64,
        filesystem: U64,
        device: U64,
        modified: U64,
        uid: U32,
        gid: U32,
        mode: U32,
        extents: U32,
        ends: U16,
        path_length: U16,
        role: u8,
        reserved: [u8; 3],
    }

    /// An open file description of a deleted file, before its locks.
    DeletedEnd {
        token: U64,
        position: U64,
        open: U32,
        locks: U16,
        reserved: [u8; 2],
    }

    /// A piece of a file that is no hole.
    Extent {
        start: U64,
        length: U64,
    }
}
