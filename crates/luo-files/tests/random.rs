//! Random sets of files, in random order, come back equal: each is looked at by ordinary system
//! calls before and after.

mod common;

use std::io::{Seek, SeekFrom};
use std::net::{TcpListener, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicUsize, Ordering};

use common::{across_with_duplicates, own_ip};
use luo_sys::{SOCKET_OPTIONS, lock_range, same_description};
use rustix::event::{EventfdFlags, epoll, eventfd};
use rustix::fs::{
    CWD, FileType, FlockOperation, Mode, OFlags, fcntl_getfl, flock, fstat, mknodat, tell,
};
use rustix::io::write;
use rustix::net::{
    AddressFamily, RecvFlags, Shutdown, SocketFlags, SocketType, recv, shutdown, socketpair,
    sockopt,
};
use rustix::pipe::{PipeFlags, fcntl_getpipe_size, fcntl_setpipe_size, pipe_with};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};

/// In each of the four tests, which run side by side.
const SETS: usize = 250;
const MOST: usize = 200;

struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % end as u64) as usize
    }

    fn yes(&mut self) -> bool {
        self.below(2) == 0
    }
}

/// One file, or several that belong together.
fn make(random: &mut Random, directory: &std::path::Path) -> Vec<OwnedFd> {
    match random.below(10) {
        0 => {
            let mut flags = EventfdFlags::NONBLOCK;
            flags.set(EventfdFlags::SEMAPHORE, random.yes());
            vec![eventfd(random.below(1000) as u32, flags).unwrap()]
        }
        1 => {
            let clock = match random.yes() {
                true => TimerfdClockId::Monotonic,
                false => TimerfdClockId::Boottime,
            };
            let timer = timerfd_create(clock, TimerfdFlags::empty()).unwrap();
            let time = |seconds: usize| Timespec { tv_sec: seconds as i64, tv_nsec: 0 };
            let it_interval = time(random.below(3));
            let value = Itimerspec { it_value: time(9000 * random.below(2)), it_interval };
            timerfd_settime(&timer, TimerfdTimerFlags::empty(), &value).unwrap();
            vec![timer]
        }
        2 => vec![luo_sys::signalfd(1 << (9 + random.below(3)), random.yes()).unwrap()],
        3 | 4 => {
            let mut flags = PipeFlags::NONBLOCK;
            flags.set(PipeFlags::DIRECT, random.yes());
            let (reader, writer) = match random.below(4) {
                // Linux has no packets in FIFOs.
                0 if !flags.contains(PipeFlags::DIRECT) => fifo(directory),
                _ => pipe_with(flags).unwrap(),
            };
            fcntl_setpipe_size(&reader, 4096 << random.below(4)).unwrap();
            for _ in 0..random.below(8) {
                let bytes = vec![random.below(256) as u8; 1 + random.below(2000)];
                // It may be full.
                let _ = write(&writer, &bytes);
            }
            match random.below(3) {
                0 => vec![reader],
                1 => vec![writer, reader],
                _ => vec![reader, writer],
            }
        }
        5 => {
            let path = directory.join(random.below(10).to_string());
            std::fs::write(&path, "0123456789").unwrap();
            let mut open = std::fs::File::options();
            let mut file = open.read(true).append(random.yes()).open(path).unwrap();
            file.seek(SeekFrom::Start(random.below(20) as u64)).unwrap();
            // Locks that others may have too.
            if random.yes() {
                flock(&file, FlockOperation::LockShared).unwrap();
            }
            if random.yes() {
                let start = random.below(9) as u64;
                lock_range(&file, start, start + random.below(9) as u64, false).unwrap();
            }
            vec![file.into()]
        }
        7 => {
            let kind = [SocketType::STREAM, SocketType::SEQPACKET][random.below(2)];
            let flags = SocketFlags::NONBLOCK;
            let (one, other) = socketpair(AddressFamily::UNIX, kind, flags, None).unwrap();
            for _ in 0..random.below(8) {
                let sender = if random.yes() { &one } else { &other };
                write(sender, &vec![random.below(256) as u8; 1 + random.below(2000)]).unwrap();
            }
            if random.yes() {
                shutdown(&one, Shutdown::Write).unwrap();
            }
            if random.yes() { vec![one] } else { vec![other, one] }
        }
        8 => {
            let path = directory.join("deleted");
            let mut open = std::fs::File::options();
            open.read(true).write(true).create(true).truncate(true);
            let mut file = open.open(&path).unwrap();
            std::fs::remove_file(path).unwrap();
            file.write_all_at(&[7; 99], 4096 * random.below(9) as u64).unwrap();
            file.seek(SeekFrom::Start(random.below(20) as u64)).unwrap();
            let other = file.as_raw_fd();
            let other = std::fs::File::open(format!("/proc/self/fd/{other}")).unwrap();
            if random.yes() { vec![file.into()] } else { vec![other.into(), file.into()] }
        }
        6 => vec![TcpListener::bind((own_ip(), 0)).unwrap().into()],
        _ => match random.yes() {
            true => vec![UdpSocket::bind((own_ip(), 0)).unwrap().into()],
            false => vec![std::fs::File::open("/dev/zero").unwrap().into()],
        },
    }
}

/// Both ends of a new FIFO.
fn fifo(directory: &std::path::Path) -> (OwnedFd, OwnedFd) {
    static NUMBER: AtomicUsize = AtomicUsize::new(0);
    let path = directory.join(format!("fifo-{}", NUMBER.fetch_add(1, Ordering::Relaxed)));
    mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    let open = |access| {
        let flags = access | OFlags::NONBLOCK | OFlags::CLOEXEC;
        rustix::fs::open(&path, flags, Mode::empty()).unwrap()
    };
    (open(OFlags::RDONLY), open(OFlags::WRONLY))
}

/// An epoll set with some of these files, where they can be waited for.
fn watch(random: &mut Random, files: &[OwnedFd]) -> OwnedFd {
    const ANY: [epoll::EventFlags; 4] = [
        epoll::EventFlags::IN,
        epoll::EventFlags::OUT,
        epoll::EventFlags::ET,
        epoll::EventFlags::ONESHOT,
    ];
    let set = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
    for _ in 0..random.below(20) {
        let file = &files[random.below(files.len())];
        let data = epoll::EventData::new_u64(random.0);
        let flags = ANY.into_iter().filter(|_| random.yes()).collect();
        // Regular files cannot; and one may be there already, or hold this set.
        let _ = epoll::add(&set, file, data, flags);
    }
    set
}

/// All that can be seen of a file without changing it, and does not go on by itself.
fn look(file: &OwnedFd) -> Vec<String> {
    let mut seen = vec![format!("{:?}", fcntl_getfl(file).unwrap())];
    match FileType::from_raw_mode(fstat(file).unwrap().st_mode) {
        FileType::Socket => {
            let local = rustix::net::getsockname(file).unwrap();
            match std::net::SocketAddr::try_from(local) {
                Ok(address) => seen.push(format!("{address:?}")),
                Err(_) => seen.push(format!("{:?}", peek(file))),
            }
            let value = |option: &luo_sys::SocketOption| option.get(file.as_fd()).unwrap();
            seen.extend(SOCKET_OPTIONS.iter().map(|o| format!("{} {:?}", o.label(), value(o))));
        }
        FileType::Fifo => {
            seen.push(fcntl_getpipe_size(file).unwrap().to_string());
            // Of an end for writing that is there alone, nobody can say what is in it.
            if !fcntl_getfl(file).unwrap().contains(OFlags::WRONLY) {
                seen.push(rustix::io::ioctl_fionread(file).unwrap().to_string());
            }
        }
        FileType::RegularFile | FileType::CharacterDevice => {
            let stat = fstat(file).unwrap();
            let position = tell(file).unwrap();
            seen.extend(
                info(file).lines().filter(|line| line.starts_with("lock")).map(str::to_owned),
            );
            if stat.st_nlink == 0 {
                let mut content = vec![0; stat.st_size as usize];
                let readable = std::fs::File::from(file.try_clone().unwrap());
                readable.read_exact_at(&mut content, 0).unwrap();
                seen.push(format!("{} {position} {}", stat.st_mode, sum(&content)));
            } else {
                seen.push(format!("{} {} {} {position}", stat.st_dev, stat.st_ino, stat.st_rdev));
            }
        }
        _ => {
            let own = ["eventfd-count", "eventfd-sem", "sigmask", "clockid", "ticks", "settime"];
            let interval = ["it_interval"];
            let of_type = |line: &&str| own.iter().chain(&interval).any(|n| line.starts_with(n));
            let text = info(file);
            seen.extend(text.lines().filter(of_type).map(str::to_owned));
            // Members lie in the order of their addresses, and have new inodes.
            let members = text.lines().filter(|line| line.starts_with("tfd"));
            let mut members: Vec<_> = members.map(|line| line[..53].to_owned()).collect();
            members.sort();
            seen.extend(members);
        }
    }
    seen
}

fn info(file: &OwnedFd) -> String {
    std::fs::read_to_string(format!("/proc/self/fdinfo/{}", file.as_raw_fd())).unwrap()
}

fn sum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |sum: u64, byte| sum.rotate_left(7) ^ u64::from(*byte))
}

/// What a unix socket has not read, message by message, and how it stands.
fn peek(file: &OwnedFd) -> (Vec<(usize, u64)>, bool, bool) {
    let state = luo_sys::unix_socket(file).unwrap();
    let before = luo_sys::peek_offset(file).unwrap();
    luo_sys::set_peek_offset(file, 0).unwrap();
    // That the peer went without having read everything is told once, and is not kept.
    let _ = sockopt::socket_error(file).unwrap();
    let mut all = Vec::new();
    let mut bytes = [0; 1 << 16];
    while let Ok((len @ 1.., _)) = recv(file, &mut bytes[..], RecvFlags::PEEK) {
        let sum =
            bytes[..len].iter().fold(0, |sum: u64, byte| sum.rotate_left(7) ^ u64::from(*byte));
        all.push((len, sum));
    }
    luo_sys::set_peek_offset(file, before).unwrap();
    (all, state.reads_no_more, state.writes_no_more)
}

/// What is read of a pipe until there is nothing more, packet by packet: none is larger.
fn drain(file: &OwnedFd) -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    let mut bytes = [0; 4096];
    while let Ok(len @ 1..) = rustix::io::read(file, &mut bytes) {
        all.push(bytes[..len].to_vec());
    }
    all
}

#[test]
fn random_sets_of_files_come_back_equal_1() {
    come_back_equal(0x6c75_6f5f_7365_7473);
}

#[test]
fn random_sets_of_files_come_back_equal_2() {
    come_back_equal(0x1234_5678_9abc_def1);
}

#[test]
fn random_sets_of_files_come_back_equal_3() {
    come_back_equal(0x0f1e_2d3c_4b5a_6978);
}

#[test]
fn random_sets_of_files_come_back_equal_4() {
    come_back_equal(0x9e37_79b9_7f4a_7c15);
}

fn come_back_equal(seed: u64) {
    // On a disk: a deleted file of tmpfs is memory.
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let mut random = Random(seed);
    let mut pipes = 0;
    for _ in 0..SETS {
        let wanted = 1 + random.below(MOST);
        let mut files = Vec::new();
        while files.len() < wanted {
            files.extend(make(&mut random, directory.path()));
        }
        for at in (1..files.len()).rev() {
            files.swap(at, random.below(at + 1));
        }
        for _ in 0..random.below(4) {
            let set = watch(&mut random, &files);
            files.insert(random.below(files.len()), set);
        }
        let mut before: Vec<_> = files.iter().map(look).collect();
        let duplicates: Vec<_> = (0..random.below(9)).map(|_| random.below(files.len())).collect();
        before.extend(duplicates.iter().map(|at| before[*at].clone()).collect::<Vec<_>>());
        let tokens: Vec<u64> = duplicates.iter().map(|at| *at as u64 + 1).collect();
        let after = across_with_duplicates(files, &tokens);
        let (originals, copies) = after.split_at(after.len() - duplicates.len());
        for (copy, at) in copies.iter().zip(&duplicates) {
            assert!(same_description(copy, &originals[*at]).unwrap());
        }
        for (file, before) in after.iter().zip(&before) {
            let seen = look(file);
            assert_eq!(seen.len(), before.len(), "{seen:?} {before:?}");
            let differs: Vec<_> = seen.into_iter().zip(before).filter(|(a, b)| a != *b).collect();
            assert!(differs.is_empty(), "{differs:?}");
        }
        for (file, seen) in originals.iter().zip(&before) {
            if seen.len() == 3
                && FileType::from_raw_mode(fstat(file).unwrap().st_mode) == FileType::Fifo
            {
                let read: usize = drain(file).iter().map(Vec::len).sum();
                assert_eq!(read, seen[2].parse::<usize>().unwrap());
                pipes += 1;
            }
        }
    }
    assert!(pipes > SETS, "{pipes}");
}
