//! What a descriptor is, from what `/proc` says of it. No I/O.

use rustix::fs::FileType;

use super::net::{Family, Socket};

/// What `/proc` says of a descriptor.
#[derive(Debug, Clone)]
pub(crate) struct Facts {
    /// Where `/proc/PID/fd/N` leads.
    pub(crate) target: String,
    /// What is there, where it can be looked at.
    pub(crate) file: Option<Attributes>,
    /// The lines of `/proc/PID/fdinfo/N`.
    pub(crate) info: String,
    /// What the tables of the process's network say of it.
    pub(crate) socket: Option<Socket>,
}

/// Of `stat(2)`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Attributes {
    pub(crate) mode: u32,
    pub(crate) size: u64,
    /// In units of 512 bytes.
    pub(crate) blocks: u64,
    /// Names that it has.
    pub(crate) links: u64,
    /// Major and minor number of a device.
    pub(crate) device: (u32, u32),
}

/// A type of file, as far as it makes a difference for what can be kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Memfd,
    HugeMemfd,
    SharedMemory,
    Regular,
    Deleted,
    Directory,
    Path,
    Pipe,
    Fifo,
    Eventfd,
    Timerfd,
    Signalfd,
    Epoll,
    Inotify,
    Fanotify,
    Pidfd,
    Userfaultfd,
    IoUring,
    Bpf,
    Perf,
    Kvm,
    Null,
    Tty,
    Tun,
    Device,
    MessageQueue,
    TcpListener,
    TcpConnection,
    Udp,
    UnixListener,
    UnixConnection,
    UnixDatagram,
    OtherSocket,
    Other,
}

impl Kind {
    /// As the reports call it; the words are a contract with scripts.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Memfd => "memfd",
            Self::HugeMemfd => "hugetlb memfd",
            Self::SharedMemory => "shared memory",
            Self::Regular => "file",
            Self::Deleted => "deleted file",
            Self::Directory => "directory",
            Self::Path => "path",
            Self::Pipe => "pipe",
            Self::Fifo => "fifo",
            Self::Eventfd => "eventfd",
            Self::Timerfd => "timerfd",
            Self::Signalfd => "signalfd",
            Self::Epoll => "epoll",
            Self::Inotify => "inotify",
            Self::Fanotify => "fanotify",
            Self::Pidfd => "pidfd",
            Self::Userfaultfd => "userfaultfd",
            Self::IoUring => "io_uring",
            Self::Bpf => "bpf",
            Self::Perf => "perf event",
            Self::Kvm => "kvm",
            Self::Null => "null device",
            Self::Tty => "terminal",
            Self::Tun => "tun",
            Self::Device => "device",
            Self::MessageQueue => "message queue",
            Self::TcpListener => "tcp listener",
            Self::TcpConnection => "tcp connection",
            Self::Udp => "udp socket",
            Self::UnixListener => "unix listener",
            Self::UnixConnection => "unix connection",
            Self::UnixDatagram => "unix datagram",
            Self::OtherSocket => "other socket",
            Self::Other => "other",
        }
    }

    /// What a descriptor is.
    pub(crate) fn of(facts: &Facts) -> Self {
        let target = facts.target.as_str();
        if target.starts_with("socket:[") {
            return facts.socket.as_ref().map_or(Self::OtherSocket, Self::of_socket);
        }
        if target.starts_with("pipe:[") {
            return Self::Pipe;
        }
        if let Some(name) = target.strip_prefix("anon_inode:") {
            return Self::of_anonymous(name.trim_matches(['[', ']']));
        }
        if target.starts_with("/memfd:") {
            return Self::Memfd;
        }
        // The kernel's own file of huge pages that has no name.
        if target.starts_with("/anon_hugepage") || target.starts_with("memfd_hugetlb:") {
            return Self::HugeMemfd;
        }
        if facts.is_path() {
            return Self::Path;
        }
        if facts.info.contains("\nNOTIFY:") && facts.info.contains("QSIZE:") {
            return Self::MessageQueue;
        }
        let Some(file) = facts.file else { return Self::Other };
        match FileType::from_raw_mode(file.mode) {
            FileType::Directory => Self::Directory,
            FileType::Fifo => Self::Fifo,
            FileType::CharacterDevice => Self::of_device(target, file.device),
            FileType::BlockDevice => Self::Device,
            FileType::RegularFile if facts.info.contains("QSIZE:") => Self::MessageQueue,
            FileType::RegularFile if target.starts_with("/dev/shm/") => Self::SharedMemory,
            FileType::RegularFile if file.links == 0 => Self::Deleted,
            FileType::RegularFile => Self::Regular,
            _ => Self::Other,
        }
    }

    const fn of_socket(socket: &Socket) -> Self {
        match (socket.family, socket.listens) {
            (Family::Tcp, true) => Self::TcpListener,
            (Family::Tcp, false) => Self::TcpConnection,
            (Family::Udp, _) => Self::Udp,
            (Family::Unix, true) => Self::UnixListener,
            (Family::Unix, false) => Self::UnixConnection,
            (Family::UnixDatagram, _) => Self::UnixDatagram,
        }
    }

    fn of_anonymous(name: &str) -> Self {
        match name {
            "eventfd" => Self::Eventfd,
            "timerfd" => Self::Timerfd,
            "signalfd" => Self::Signalfd,
            "eventpoll" => Self::Epoll,
            "inotify" => Self::Inotify,
            "fanotify" => Self::Fanotify,
            "pidfd" => Self::Pidfd,
            "userfaultfd" => Self::Userfaultfd,
            "io_uring" => Self::IoUring,
            "perf_event" => Self::Perf,
            name if name.starts_with("kvm-") => Self::Kvm,
            name if name.starts_with("bpf") => Self::Bpf,
            _ => Self::Other,
        }
    }

    fn of_device(target: &str, device: (u32, u32)) -> Self {
        match device {
            // null, zero, full, random, urandom
            (1, 3 | 5 | 7 | 8 | 9) => Self::Null,
            (4 | 5 | 136..=143, _) => Self::Tty,
            (10, 200) => Self::Tun,
            (10, 232) => Self::Kvm,
            _ if target.starts_with("/dev/pts/") => Self::Tty,
            _ => Self::Device,
        }
    }
}

impl Facts {
    /// Bytes that the file holds, where that can be told.
    pub(crate) fn size(&self, kind: Kind) -> Option<u64> {
        match kind {
            // Holes take nothing.
            Kind::Memfd | Kind::SharedMemory | Kind::Deleted => {
                self.file.map(|file| file.size.min(file.blocks.saturating_mul(512)))
            }
            Kind::HugeMemfd | Kind::Regular => self.file.map(|file| file.size),
            Kind::TcpConnection | Kind::Udp => self.socket.as_ref().map(|socket| socket.queued),
            _ => None,
        }
    }

    /// Whether it was opened with O_PATH.
    fn is_path(&self) -> bool {
        let flags = self.info.lines().find_map(|line| line.strip_prefix("flags:"));
        let flags = flags.and_then(|flags| u32::from_str_radix(flags.trim(), 8).ok());
        flags.is_some_and(|flags| flags & rustix::fs::OFlags::PATH.bits() != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As they were captured on Linux 6.x.
    fn kind(target: &str, mode: u32, device: (u32, u32), info: &str) -> Kind {
        let file = Attributes { mode, size: 8192, blocks: 8, links: 1, device };
        let (target, info) = (target.to_owned(), info.to_owned());
        Kind::of(&Facts { target, file: Some(file), info, socket: None })
    }

    #[test]
    fn captured_descriptors_are_known() {
        let plain = "pos:\t0\nflags:\t02100002\nmnt_id:\t0\nino:\t962013\n";
        for (target, mode, device, expected) in [
            ("/memfd:m (deleted)", 0o100777, (0, 0), Kind::Memfd),
            ("/anon_hugepage (deleted)", 0o100777, (0, 0), Kind::HugeMemfd),
            ("anon_inode:[eventfd]", 0o600, (0, 0), Kind::Eventfd),
            ("anon_inode:[timerfd]", 0o600, (0, 0), Kind::Timerfd),
            ("anon_inode:[signalfd]", 0o600, (0, 0), Kind::Signalfd),
            ("anon_inode:[eventpoll]", 0o600, (0, 0), Kind::Epoll),
            ("anon_inode:inotify", 0o600, (0, 0), Kind::Inotify),
            ("anon_inode:[pidfd]", 0o600, (0, 0), Kind::Pidfd),
            ("anon_inode:kvm-vcpu:0", 0o600, (0, 0), Kind::Kvm),
            ("anon_inode:bpf-map", 0o600, (0, 0), Kind::Bpf),
            ("anon_inode:[new-thing]", 0o600, (0, 0), Kind::Other),
            ("pipe:[24907222]", 0o10600, (0, 0), Kind::Pipe),
            ("/tmp/fifo", 0o10644, (0, 0), Kind::Fifo),
            ("/var/log", 0o40755, (0, 0), Kind::Directory),
            ("/etc/passwd", 0o100644, (0, 0), Kind::Regular),
            ("/dev/shm/pool", 0o100600, (0, 0), Kind::SharedMemory),
            ("/dev/null", 0o20666, (1, 3), Kind::Null),
            ("/dev/pts/0", 0o20620, (136, 0), Kind::Tty),
            ("/dev/net/tun", 0o20666, (10, 200), Kind::Tun),
            ("/dev/kmsg", 0o20644, (1, 11), Kind::Device),
            ("socket:[1]", 0o140777, (0, 0), Kind::OtherSocket),
        ] {
            assert_eq!(kind(target, mode, device, plain), expected, "{target}");
        }
        assert_eq!(kind("/etc", 0o40755, (0, 0), "flags:\t012000000\n"), Kind::Path);
        assert_eq!(kind("/jobs", 0o100600, (0, 0), "QSIZE:129 NOTIFY:0\n"), Kind::MessageQueue);
    }

    #[test]
    fn a_hole_takes_no_room() {
        let file =
            Attributes { mode: 0o100777, size: 1 << 30, blocks: 8, links: 0, device: (0, 0) };
        let mut facts = Facts {
            target: "/memfd:m (deleted)".into(),
            file: Some(file),
            info: String::new(),
            socket: None,
        };
        assert_eq!(facts.size(Kind::of(&facts)), Some(4096));
        facts.target = "/var/lib/x (deleted)".into();
        assert_eq!(Kind::of(&facts), Kind::Deleted);
    }
}
