//! Files of all types depart through an arena, every process ends, and the next luod makes them
//! again: what each of them is, is compared by ordinary system calls.

mod common;

use std::io::{Read, Seek, SeekFrom, Write as _};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;

use common::Luod;
use luo::{Session, State, Unclaimed};
use luo_carriers::arena::{self, Arena, FileMedium};
use rustix::event::{EventfdFlags, epoll, eventfd};
use rustix::fs::{OFlags, fcntl_getfl, inotify};
use rustix::io::{read, write};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_gettime, timerfd_settime,
};

/// An arena on a disk file.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        let medium = FileMedium::create(&place.path("arena"), 64 << 20).unwrap();
        Arena::create(Arc::new(medium), arena::machine_id().unwrap(), false).unwrap();
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn luod(&self) -> Luod {
        Luod::start_with(&format!("arena = {:?}", self.path("arena")))
    }
}

fn depart(luod: &mut Luod) {
    let manager = luod.manager();
    manager.prepare_through("arena").unwrap();
    manager.freeze().unwrap();
    manager.depart().unwrap();
    luod.wait_for_end();
    assert_eq!(luod.exit_status(), Some(3), "{}", luod.log());
}

fn status(file: impl AsFd) -> OFlags {
    fcntl_getfl(file).unwrap()
}

fn counted(file: &OwnedFd) -> u64 {
    let mut bytes = [0; 8];
    assert_eq!(read(file, &mut bytes), Ok(8));
    u64::from_ne_bytes(bytes)
}

#[test]
fn files_of_all_types_outlive_every_process() {
    let place = Place::new();
    let mut luod = place.luod();
    let shop = luod.session("shop");
    let give = |token, file: OwnedFd| {
        shop.preserve(token, &file).unwrap();
        status(&file)
    };

    let counter = eventfd(7, EventfdFlags::NONBLOCK).unwrap();
    let counter = give(1, counter);
    let timer = timerfd_create(TimerfdClockId::Boottime, TimerfdFlags::empty()).unwrap();
    let span = |tv_sec| Timespec { tv_sec, tv_nsec: 0 };
    let value = Itimerspec { it_value: span(5000), it_interval: span(3) };
    timerfd_settime(&timer, TimerfdTimerFlags::empty(), &value).unwrap();
    let timer = give(2, timer);
    let signals = give(3, luo_sys::signalfd(1 << 9, true).unwrap());

    let (reader, writer) = pipe_with(PipeFlags::NONBLOCK).unwrap();
    write(&writer, b"on its way").unwrap();
    let watch = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
    epoll::add(&watch, &reader, epoll::EventData::new_u64(77), epoll::EventFlags::IN).unwrap();
    let reader = give(4, reader);
    let writer = give(5, writer);
    std::fs::write(place.path("log"), "0123456789").unwrap();
    let log = std::fs::File::options().read(true).append(true).open(place.path("log")).unwrap();
    (&log).seek(SeekFrom::Start(6)).unwrap();
    let log = give(6, log.into());
    let null = give(7, std::fs::File::open("/dev/null").unwrap().into());
    let listener = TcpListener::bind((own_ip(), 0)).unwrap();
    let address = listener.local_addr().unwrap();
    let listener = give(8, listener.into());
    let datagrams = UdpSocket::bind((own_ip(), 0)).unwrap();
    let other = datagrams.local_addr().unwrap();
    let datagrams = give(9, datagrams.into());
    let unix = give(10, UnixListener::bind(place.path("socket")).unwrap().into());
    let (one, end) = UnixStream::pair().unwrap();
    (&one).write_all(b"in the queue").unwrap();
    let one = give(11, one.into());
    let end = give(12, end.into());
    std::fs::write(place.path("nameless"), "its content").unwrap();
    let nameless = std::fs::File::open(place.path("nameless")).unwrap();
    std::fs::remove_file(place.path("nameless")).unwrap();
    let nameless = give(13, nameless.into());
    let watch = give(14, watch);
    let watcher = inotify::init(inotify::CreateFlags::NONBLOCK).unwrap();
    let created = inotify::WatchFlags::CREATE;
    inotify::add_watch(&watcher, place.path("."), created).unwrap();
    let watcher = give(15, watcher);
    give(16, std::fs::File::open(place.path(".")).unwrap().into());

    depart(&mut luod);
    drop((shop, luod));
    let luod = place.luod();
    assert_eq!(luod.manager().status().unwrap().state, State::Updated);
    let shop: Session = luod.session("shop");
    let take = |token, flags: OFlags| {
        let file = shop.retrieve(token).unwrap();
        assert_eq!(status(&file), flags, "token {token}");
        file
    };

    let counter = take(1, counter);
    assert_eq!(counted(&counter), 7);
    write(&counter, &2_u64.to_ne_bytes()).unwrap();
    assert_eq!(counted(&counter), 2);
    let timer = timerfd_gettime(take(2, timer)).unwrap();
    assert_eq!(timer.it_interval, span(3));
    assert!((4000..5000).contains(&timer.it_value.tv_sec), "{timer:?}");
    take(3, signals);
    let watch = take(14, watch);
    let mut events = Vec::with_capacity(9);
    epoll::wait(&watch, rustix::buffer::spare_capacity(&mut events), Some(&span(0))).unwrap();
    assert_eq!(events.len(), 1);
    let data = events[0].data;
    assert_eq!(data.u64(), 77);
    let watcher = take(15, watcher);
    std::fs::write(place.path("created"), "").unwrap();
    let mut events = [0; 4096];
    let len = read(&watcher, &mut events).unwrap();
    // Two of struct inotify_event: that some were missed, and this one.
    let masks = [4, 16 + 4].map(|at| u32::from_ne_bytes(events[at..at + 4].try_into().unwrap()));
    assert_eq!((masks, len), ([0x4000, 0x100], 48));
    shop.retrieve(16).unwrap();
    let writer = take(5, writer);
    let reader = take(4, reader);
    write(&writer, b", and there").unwrap();
    let mut text = [0; 99];
    let len = read(&reader, &mut text).unwrap();
    assert_eq!(&text[..len], b"on its way, and there");
    let mut log = std::fs::File::from(take(6, log));
    let mut rest = String::new();
    log.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "6789");
    assert_eq!(read(take(7, null), &mut [0; 1]), Ok(0));
    let listener = TcpListener::from(take(8, listener));
    let _client = TcpStream::connect(address).unwrap();
    listener.accept().unwrap();
    let datagrams = UdpSocket::from(take(9, datagrams));
    UdpSocket::bind((own_ip(), 0)).unwrap().send_to(b"ping", other).unwrap();
    assert_eq!(datagrams.recv(&mut [0; 9]).unwrap(), 4);
    let unix = UnixListener::from(take(10, unix));
    let _client = UnixStream::connect(place.path("socket")).unwrap();
    unix.accept().unwrap();
    let mut end = UnixStream::from(take(12, end));
    UnixStream::from(take(11, one)).shutdown(std::net::Shutdown::Write).unwrap();
    let mut nameless = std::fs::File::from(take(13, nameless));
    shop.finish_and_carry().unwrap();
    let finished = luod.manager().finish(Unclaimed::Refuse).unwrap().unwrap();
    assert_eq!(finished.state, State::Normal);
    // luod carries the other end on: it writes no more, and has written what was in the queue.
    let mut text = String::new();
    end.read_to_string(&mut text).unwrap();
    assert_eq!(text, "in the queue");
    text.clear();
    nameless.read_to_string(&mut text).unwrap();
    assert_eq!(text, "its content");
}
/// An address of the loopback network for this process alone: on one that others use too, they
/// could be given a port that is free for the moment.
fn own_ip() -> std::net::Ipv4Addr {
    let [_, a, b, c] = std::process::id().to_be_bytes();
    std::net::Ipv4Addr::new(127, 64 | a, b, c.max(1))
}
