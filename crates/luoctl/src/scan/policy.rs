//! How far a descriptor can be kept, by which handler, and what an operator can do about it. No I/O.
//!
//! Invariants: nothing is promised that no handler of the luod that was asked can do; what does not
//! reach as far as a reboot has a reason and an advice.

use luo::protocol::HandlerInfo;
use serde::Serialize;

use super::kind::Kind;

/// How far a file survives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Reach {
    /// It cannot be kept.
    None,
    /// The restart of its service.
    Service,
    /// That, and of luod.
    Agent,
    /// That, and a kexec.
    Kernel,
    /// That, and a power cycle.
    Power,
}

impl Reach {
    pub(crate) const ALL: [Self; 5] =
        [Self::Power, Self::Kernel, Self::Agent, Self::Service, Self::None];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Service => "service",
            Self::Agent => "agent",
            Self::Kernel => "kernel",
            Self::Power => "power",
        }
    }

    /// As far as a carrier of that name can reach; an arena's medium may be nearer.
    fn of_carrier(name: &str) -> Self {
        match name {
            "keeper" => Self::Agent,
            "liveupdate" => Self::Kernel,
            "arena" => Self::Power,
            _ => Self::Service,
        }
    }
}

/// What is known of one descriptor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Verdict {
    /// The handler that takes it farthest.
    pub(crate) handler: Option<String>,
    pub(crate) reach: Reach,
    /// Why it reaches no farther.
    pub(crate) why: Option<String>,
    /// What to do.
    pub(crate) advice: Option<&'static str>,
}

/// The handlers of a luod of this version that has every carrier, for where none can be asked.
pub(crate) fn built_in() -> Vec<HandlerInfo> {
    let handler = |compatible: &str, carriers: &[&str]| HandlerInfo {
        compatible: compatible.to_owned(),
        carriers: carriers.iter().map(|name| (*name).to_owned()).collect(),
    };
    vec![
        handler("live-v1", &["keeper"]),
        handler("record-v1", &["keeper", "liveupdate", "arena"]),
        handler("memfd-v1", &["keeper", "liveupdate", "arena"]),
    ]
}

/// What handlers of this type of file are called, without their versions.
const fn stems(kind: Kind) -> &'static [&'static str] {
    match kind {
        Kind::Memfd => &["memfd"],
        Kind::HugeMemfd => &["hugetlb", "memfd-hugetlb"],
        Kind::SharedMemory => &["path", "shm", "posix-shm", "regular", "file"],
        Kind::Regular => &["path", "regular", "file"],
        Kind::Deleted => &["deleted", "regular", "file"],
        Kind::Directory => &["directory", "path", "regular", "file"],
        Kind::Path => &["path", "o-path", "regular", "file"],
        Kind::Pipe => &["pipe"],
        Kind::Fifo => &["fifo", "pipe"],
        Kind::Eventfd => &["eventfd"],
        Kind::Timerfd => &["timerfd"],
        Kind::Signalfd => &["signalfd"],
        Kind::Epoll => &["epoll"],
        Kind::Inotify => &["inotify"],
        Kind::Null => &["device"],
        Kind::Tun => &["tun"],
        Kind::MessageQueue => &["mqueue"],
        Kind::TcpListener => &["socket", "tcp-listener", "listener", "socket-listener"],
        Kind::TcpConnection => &["tcp"],
        Kind::Udp => &["socket", "udp", "listener"],
        Kind::UnixListener => &["socket", "unix-listener", "listener", "socket-listener"],
        Kind::UnixConnection => &["unix-pair", "unix", "unix-stream"],
        Kind::UnixDatagram => &["socket", "unix", "unix-datagram"],
        _ => &[],
    }
}

/// `memfd` of `memfd-v1`.
fn stem(compatible: &str) -> Option<&str> {
    let (stem, version) = compatible.rsplit_once("-v")?;
    version.bytes().all(|byte| byte.is_ascii_digit()).then_some(stem)
}

/// What hangs on the process or its memory: it can be passed on, and is of no use there.
const fn bound(kind: Kind) -> Option<(&'static str, &'static str)> {
    match kind {
        Kind::IoUring => Some((
            "a ring belongs to the memory of its process, and the kernel does not let it be passed on",
            "have the program make its rings anew when it starts",
        )),
        Kind::Userfaultfd => Some((
            "it belongs to the memory of its process",
            "have the program register its memory anew when it starts",
        )),
        Kind::Kvm => Some((
            "a virtual machine belongs to the memory of its process",
            "keep the guest's memory in memfds, and its state in a record; make the machine anew",
        )),
        _ => None,
    }
}

/// What to do about a type that does not reach another kernel.
const fn advice(kind: Kind) -> &'static str {
    match kind {
        Kind::HugeMemfd => "keep the memory in memfds of ordinary pages, or in an arena's",
        Kind::SharedMemory | Kind::Deleted => "keep the content in a memfd",
        Kind::Regular | Kind::Directory | Kind::Path => "have the program open its path again",
        Kind::Pipe | Kind::UnixConnection | Kind::UnixDatagram | Kind::Fifo => {
            "have the program make it anew, and its peer connect again"
        }
        Kind::Eventfd | Kind::Timerfd | Kind::Signalfd => {
            "have the program make it anew, and keep what it counts in a record"
        }
        Kind::Inotify => "preserve a descriptor of what it watches too (O_PATH will do)",
        Kind::Epoll => "preserve its members too, or have the program make it anew",
        Kind::Fanotify | Kind::Bpf | Kind::Perf | Kind::Pidfd => {
            "have the program make it anew when it starts"
        }
        Kind::Tty => "run the program without a terminal",
        Kind::Null | Kind::Device | Kind::Tun => "have the program open it again",
        Kind::MessageQueue => "empty the queue before the update",
        Kind::TcpListener | Kind::Udp | Kind::UnixListener => {
            "preserve it as optional, and have the program bind its address again"
        }
        Kind::TcpConnection => "drain connections before the update, or let clients connect again",
        _ => "preserve it as optional, and have the program make it anew",
    }
}

/// How far a type of file can be kept by these handlers.
pub(crate) fn judge(kind: Kind, state: Option<&str>, handlers: &[HandlerInfo]) -> Verdict {
    if let Some((why, advice)) = bound(kind) {
        let (why, advice) = (Some(why.to_owned()), Some(advice));
        return Verdict { handler: None, reach: Reach::None, why, advice };
    }
    let takes = |handler: &&HandlerInfo| {
        let stem = stem(&handler.compatible);
        let live = stem == Some("live");
        let half_open = state.is_some_and(|state| state != "established" && state != "listening");
        live || (!half_open && stem.is_some_and(|stem| stems(kind).contains(&stem)))
    };
    let reach = |handler: &HandlerInfo| {
        handler.carriers.iter().map(|name| Reach::of_carrier(name)).max().unwrap_or(Reach::None)
    };
    // The first of equals is asked first.
    let mut best: Option<(&HandlerInfo, Reach)> = None;
    for handler in handlers.iter().filter(takes) {
        let reach = reach(handler);
        if reach > best.map_or(Reach::None, |(_, its)| its) {
            best = Some((handler, reach));
        }
    }
    let farthest = handlers.iter().map(reach).max().unwrap_or(Reach::None);
    let (handler, reach) = match best {
        Some((handler, reach)) => (Some(handler.compatible.clone()), reach),
        None => (None, Reach::None),
    };
    let (why, advice) = match reach {
        Reach::Kernel | Reach::Power => (None, None),
        Reach::None => (Some("luod has no handler for it".to_owned()), Some(advice(kind))),
        Reach::Service | Reach::Agent if farthest <= Reach::Agent => (
            Some("luod has no carrier that reaches another kernel".to_owned()),
            Some("give luod an arena, or a kernel with /dev/liveupdate"),
        ),
        Reach::Service | Reach::Agent => (Some(near(kind, state)), Some(advice(kind))),
    };
    Verdict { handler, reach, why, advice }
}

fn near(kind: Kind, state: Option<&str>) -> String {
    match (kind, state) {
        (Kind::TcpConnection, Some(state)) if state != "established" => {
            format!("a connection in the state {state} cannot be taken apart")
        }
        _ => format!("luod has no handler that takes a {} to another kernel", kind.name()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn handler(compatible: &str, carriers: &[&str]) -> HandlerInfo {
        let carriers = carriers.iter().map(|name| (*name).to_owned()).collect();
        HandlerInfo { compatible: compatible.into(), carriers }
    }

    #[test]
    fn a_type_reaches_as_far_as_its_best_handlers_best_carrier() {
        let handlers = built_in();
        let verdict = judge(Kind::Memfd, None, &handlers);
        assert_eq!((verdict.handler.as_deref(), verdict.reach), (Some("memfd-v1"), Reach::Power));
        assert_eq!((verdict.why, verdict.advice), (None, None));
        let verdict = judge(Kind::Epoll, None, &handlers);
        assert_eq!((verdict.handler.as_deref(), verdict.reach), (Some("live-v1"), Reach::Agent));
        assert!(verdict.why.unwrap().contains("epoll"));
    }

    #[test]
    fn what_a_newer_luod_learns_is_found_by_its_name() {
        let mut handlers = built_in();
        handlers.push(handler("epoll-v1", &["liveupdate", "arena"]));
        let epoll = judge(Kind::Epoll, None, &handlers);
        assert_eq!((epoll.handler.as_deref(), epoll.reach), (Some("epoll-v1"), Reach::Power));
        handlers.push(handler("inotify-v1", &["arena"]));
        assert_eq!(judge(Kind::Inotify, None, &handlers).reach, Reach::Power);
        handlers.truncate(handlers.len() - 2);
        handlers.push(handler("epoll-v2", &["liveupdate"]));
        handlers.push(handler("tcp-v1", &["liveupdate", "arena"]));
        assert_eq!(judge(Kind::Epoll, None, &handlers).reach, Reach::Kernel);
        let tcp = |state| judge(Kind::TcpConnection, Some(state), &handlers);
        assert_eq!(tcp("established").reach, Reach::Power);
        assert_eq!(tcp("fin-wait-1").reach, Reach::Agent);
        assert!(tcp("fin-wait-1").why.unwrap().contains("fin-wait-1"));
    }

    #[test]
    fn without_a_far_carrier_that_is_the_reason() {
        let handlers = [handler("live-v1", &["keeper"]), handler("memfd-v1", &["keeper"])];
        let verdict = judge(Kind::Memfd, None, &handlers);
        assert_eq!((verdict.handler.as_deref(), verdict.reach), (Some("live-v1"), Reach::Agent));
        assert!(verdict.advice.unwrap().contains("arena"));
    }

    #[test]
    fn what_belongs_to_a_processs_memory_is_kept_by_nobody() {
        for kind in [Kind::IoUring, Kind::Userfaultfd, Kind::Kvm] {
            let verdict = judge(kind, None, &built_in());
            assert_eq!((verdict.handler, verdict.reach), (None, Reach::None));
            assert!(verdict.why.is_some() && verdict.advice.is_some());
        }
        assert_eq!(judge(Kind::Memfd, None, &[]).reach, Reach::None);
    }
}
