//! What must hold of the server on real sockets: nothing is lost when it is suspended and resumed, and a kill
//! costs at most the connection in service.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use kv::custody::{Custody, NoCustody, Settled};
use kv::load::{Load, LoadOptions};
use kv::server::{Options, Server, Stop, Suspended};
use kv::store::Store;
use kv::wake::Waker;

const PATIENCE: Duration = Duration::from_secs(30);

fn no_custody(_: &Waker) -> std::io::Result<Box<dyn Custody>> {
    Ok(Box::new(NoCustody::default()))
}

fn server() -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    Server::start(Store::create(1 << 30).unwrap(), listener.into(), Options::default(), no_custody)
        .unwrap()
}

fn resume(suspended: Suspended) -> Server {
    Server::resume(suspended, Options::default(), no_custody).unwrap()
}

fn connect(server: &Server) -> TcpStream {
    let stream = TcpStream::connect(server.local_addr().unwrap()).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

/// Turns until `done`, which is asked after each turn.
fn turn_until(server: &mut Server, mut done: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < PATIENCE, "the server does not get there");
        assert_eq!(server.turn(Some(Duration::from_millis(5))).unwrap(), None);
    }
}

/// Turns until there is a reply of at least `len` bytes (or the end), and returns all that came.
fn reply(server: &mut Server, stream: &mut TcpStream, len: usize) -> Vec<u8> {
    stream.set_nonblocking(true).unwrap();
    let mut got = Vec::new();
    turn_until(server, || {
        let mut bytes = [0; 1 << 16];
        loop {
            match stream.read(&mut bytes) {
                Ok(0) => return true,
                Ok(count) => got.extend_from_slice(&bytes[..count]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return got.len() >= len,
                Err(error) => panic!("{error}"),
            }
        }
    });
    stream.set_nonblocking(false).unwrap();
    got
}

fn ask(server: &mut Server, stream: &mut TcpStream, request: &[u8], expected: &[u8]) {
    stream.write_all(request).unwrap();
    let got = reply(server, stream, expected.len());
    assert_eq!(String::from_utf8_lossy(&got), String::from_utf8_lossy(expected));
}

/// Turns until the server has read all that the client sent.
fn until_read(server: &mut Server, stream: &TcpStream) {
    let peer = server
        .connections()
        .map(|(_, socket)| socket.try_clone_to_owned().unwrap())
        .map(TcpStream::from)
        .find(|socket| socket.peer_addr().unwrap() == stream.local_addr().unwrap())
        .unwrap();
    turn_until(
        server,
        || matches!(peer.peek(&mut [0]), Err(error) if error.kind() == ErrorKind::WouldBlock),
    );
}

fn accepted(server: &mut Server) -> TcpStream {
    let mut stream = connect(server);
    ask(server, &mut stream, b"PING\r\n", b"+PONG\r\n");
    stream
}

fn bulk(bytes: &[u8]) -> Vec<u8> {
    [format!("${}\r\n", bytes.len()).as_bytes(), bytes, b"\r\n"].concat()
}

fn set(key: &[u8], value: &[u8]) -> Vec<u8> {
    [b"*3\r\n".to_vec(), bulk(b"SET"), bulk(key), bulk(value)].concat()
}

/// What a keeper would hold at this instant: duplicates of everything.
fn duplicates(server: &Server, listener: &OwnedFd) -> Suspended {
    let own = |fd: BorrowedFd<'_>| fd.try_clone_to_owned().unwrap();
    let connections = server.connections().map(|(token, socket)| (token, own(socket))).collect();
    Suspended::new(own(server.store().as_fd()), own(listener.as_fd()), connections)
}

#[test]
fn a_request_cut_by_a_hand_over_at_any_byte_is_answered() {
    let mut server = server();
    let mut stream = accepted(&mut server);
    let request = set(b"key", b"a value\r\nof two lines");
    for cut in 0..=request.len() {
        stream.write_all(&request[..cut]).unwrap();
        until_read(&mut server, &stream);
        server = resume(server.suspend().unwrap());
        stream.write_all(&request[cut..]).unwrap();
        assert_eq!(reply(&mut server, &mut stream, 5), b"+OK\r\n");
    }
    ask(&mut server, &mut stream, b"GET key\r\n", &bulk(b"a value\r\nof two lines"));
    server.store().check().unwrap();
}

#[test]
fn a_long_request_is_cut_by_hand_overs_again_and_again() {
    let mut server = server();
    let mut stream = accepted(&mut server);
    let value: Vec<u8> = (0..1_000_000_u32).map(|i| ((i * 7) >> 3) as u8).collect();
    for piece in set(b"long", &value).chunks(150_000) {
        stream.write_all(piece).unwrap();
        until_read(&mut server, &stream);
        server = resume(server.suspend().unwrap());
    }
    assert_eq!(reply(&mut server, &mut stream, 5), b"+OK\r\n");
    ask(&mut server, &mut stream, b"GET long\r\n", &bulk(&value));
    server.store().check().unwrap();
}

#[test]
fn replies_that_wait_for_a_slow_client_survive_hand_overs() {
    let mut server = server();
    let mut stream = accepted(&mut server);
    let value: Vec<u8> = (0..3_000_000_u32).map(|i| ((i * 13) >> 4) as u8).collect();
    ask(&mut server, &mut stream, &set(b"big", &value), b"+OK\r\n");
    // More than the sockets' buffers hold, and requests behind that are read but not executed.
    stream.write_all(&b"GET big\r\n".repeat(9)).unwrap();
    stream.write_all(b"INCR n\r\nQUIT\r\n").unwrap();
    until_read(&mut server, &stream);
    for _ in 0..3 {
        server = resume(server.suspend().unwrap());
        server.turn(Some(Duration::ZERO)).unwrap();
    }
    let expected = [bulk(&value).repeat(9), b":1\r\n+OK\r\n".to_vec()].concat();
    let mut got = Vec::new();
    while got.len() < expected.len() {
        let wanted = (expected.len() - got.len()).min(2_000_000);
        got.extend(reply(&mut server, &mut stream, wanted));
        server = resume(server.suspend().unwrap());
    }
    assert!(got == expected);
    turn_until(&mut server, || stream.peek(&mut [0]).unwrap() == 0);
    assert_eq!(server.connections().count(), 0);
    server.store().check().unwrap();
}

#[test]
fn a_client_that_never_reads_is_read_no_further() {
    let mut server = server();
    let mut greedy = accepted(&mut server);
    let mut other = accepted(&mut server);
    greedy.set_nonblocking(true).unwrap();
    let request = [b"*2\r\n".to_vec(), bulk(b"ECHO"), bulk(&[9; 10_000])].concat();
    // It sends until nothing more is taken, although the server has every chance to.
    let (mut sent, mut refused) = (0, 0);
    while refused < 50 {
        match greedy.write(&request[sent % request.len()..]) {
            Ok(count) => (sent, refused) = (sent + count, 0),
            Err(error) if error.kind() == ErrorKind::WouldBlock => refused += 1,
            Err(error) => panic!("{error}"),
        }
        server.turn(Some(Duration::ZERO)).unwrap();
    }
    ask(&mut server, &mut other, b"PING\r\n", b"+PONG\r\n");
    // All that it sent is answered once it reads.
    let expected = sent / request.len() * bulk(&[9; 10_000]).len();
    assert_eq!(reply(&mut server, &mut greedy, expected).len(), expected);
}

#[test]
fn whoever_takes_over_after_a_kill_between_requests_loses_nothing() {
    let listener: OwnedFd = TcpListener::bind("127.0.0.1:0").unwrap().into();
    let copy = listener.try_clone().unwrap();
    let store = Store::create(1 << 30).unwrap();
    let mut server = Server::start(store, copy, Options::default(), no_custody).unwrap();
    let mut half = accepted(&mut server);
    let mut idle = accepted(&mut server);
    half.write_all(b"SET ha").unwrap();
    until_read(&mut server, &half);
    let kept = duplicates(&server, &listener);
    // Nothing is suspended: the process just ends.
    drop(server);
    let mut server = resume(kept);
    assert_eq!(server.in_doubt(), 0);
    ask(&mut server, &mut half, b"lf 1\r\n", b"+OK\r\n");
    ask(&mut server, &mut idle, b"GET half\r\n", b"$1\r\n1\r\n");
}

#[test]
fn a_kill_within_a_request_ends_that_connection_and_no_other() {
    let listener: OwnedFd = TcpListener::bind("127.0.0.1:0").unwrap().into();
    let copy = listener.try_clone().unwrap();
    let store = Store::create(1 << 30).unwrap();
    let mut server = Server::start(store, copy, Options::default(), no_custody).unwrap();
    let mut first = accepted(&mut server);
    let mut second = accepted(&mut server);
    let token = server
        .connections()
        .find(|(_, socket)| {
            let peer = TcpStream::from(socket.try_clone_to_owned().unwrap()).peer_addr().unwrap();
            peer == first.local_addr().unwrap()
        })
        .map(|(token, _)| token)
        .unwrap();
    let kept = duplicates(&server, &listener);
    // What a kill within this connection's turn leaves.
    let mut behind =
        Store::from_fd(server.store().as_fd().try_clone_to_owned().unwrap(), 1 << 30).unwrap();
    behind.set_busy(Some(token)).unwrap();
    drop((server, behind));
    let mut server = resume(kept);
    assert_eq!(server.in_doubt(), 1);
    assert_eq!(first.read(&mut [0]).unwrap(), 0, "its client is told");
    ask(&mut server, &mut second, b"PING\r\n", b"+PONG\r\n");
    drop(server.suspend().unwrap());
}

#[test]
fn flushing_all_keys_leaves_what_is_under_way() {
    let mut server = server();
    let mut half = accepted(&mut server);
    let mut other = accepted(&mut server);
    half.write_all(b"SET ha").unwrap();
    until_read(&mut server, &half);
    ask(&mut server, &mut other, b"SET x 1\r\nFLUSHALL\r\nDBSIZE\r\n", b"+OK\r\n+OK\r\n:0\r\n");
    let mut server = resume(server.suspend().unwrap());
    ask(&mut server, &mut half, b"lf 1\r\nDBSIZE\r\n", b"+OK\r\n:1\r\n");
    server.store().check().unwrap();
}

#[derive(Debug, Default)]
struct Recorded {
    held: Vec<(u64, OwnedFd)>,
    asked: Vec<u64>,
    forgotten: Vec<u64>,
    settles: bool,
}

#[derive(Debug, Clone, Default)]
struct Recorder(Arc<Mutex<Recorded>>);

impl Custody for Recorder {
    fn preserve(&mut self, token: u64, connection: BorrowedFd<'_>) {
        let duplicate = connection.try_clone_to_owned().unwrap();
        let mut recorded = self.0.lock().unwrap();
        recorded.held.push((token, duplicate));
        recorded.asked.push(token);
    }

    fn forget(&mut self, token: u64) {
        // The duplicate stays for now, as it does while the keeper is away.
        self.0.lock().unwrap().forgotten.push(token);
    }

    fn flush(&mut self) {}

    fn settled(&mut self) -> Vec<Settled> {
        let mut recorded = self.0.lock().unwrap();
        let settles = recorded.settles;
        let done = if settles { std::mem::take(&mut recorded.asked) } else { Vec::new() };
        done.into_iter().map(|token| Settled { token, result: Ok(()) }).collect()
    }

    fn drain(&mut self, _deadline: Instant) -> bool {
        self.0.lock().unwrap().settles
    }
}

fn recorded_server(grace: Duration) -> (Server, Recorder) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let recorder = Recorder::default();
    let mut options = Options::default();
    options.custody_grace = grace;
    let custody = recorder.clone();
    let store = Store::create(1 << 30).unwrap();
    (Server::start(store, listener.into(), options, |_| Ok(Box::new(custody))).unwrap(), recorder)
}

#[test]
fn a_connection_is_read_only_once_it_is_in_custody() {
    let (mut server, recorder) = recorded_server(Duration::from_secs(3600));
    let mut stream = connect(&server);
    stream.write_all(b"PING\r\n").unwrap();
    turn_until(&mut server, || recorder.0.lock().unwrap().held.len() == 1);
    for _ in 0..10 {
        server.turn(Some(Duration::ZERO)).unwrap();
    }
    stream.set_nonblocking(true).unwrap();
    assert_eq!(stream.read(&mut [0]).unwrap_err().kind(), ErrorKind::WouldBlock);
    recorder.0.lock().unwrap().settles = true;
    assert_eq!(reply(&mut server, &mut stream, 7), b"+PONG\r\n");
}

#[test]
fn a_custody_that_does_not_answer_delays_a_connection_only_by_the_grace() {
    let (mut server, _recorder) = recorded_server(Duration::from_millis(1));
    let mut stream = connect(&server);
    ask(&mut server, &mut stream, b"PING\r\n", b"+PONG\r\n");
    let suspended = server.suspend().unwrap();
    assert!(!suspended.custody_settled);
    assert_eq!(suspended.connections.len(), 1);
}

#[test]
fn a_connection_that_ends_is_forgotten_and_ends_for_its_client_too() {
    let (mut server, recorder) = recorded_server(Duration::ZERO);
    recorder.0.lock().unwrap().settles = true;
    let mut quits = connect(&server);
    ask(&mut server, &mut quits, b"QUIT\r\n", b"+OK\r\n");
    // The keeper's duplicate is still open, and the client sees the end all the same.
    turn_until(&mut server, || quits.peek(&mut [0]).unwrap() == 0);
    let mut wrong = connect(&server);
    ask(&mut server, &mut wrong, b"*x\r\n", b"-ERR Protocol error: invalid multibulk length\r\n");
    let gone = connect(&server);
    drop(gone);
    turn_until(&mut server, || recorder.0.lock().unwrap().forgotten.len() == 3);
    let held: Vec<u64> = recorder.0.lock().unwrap().held.iter().map(|(token, _)| *token).collect();
    let mut forgotten = recorder.0.lock().unwrap().forgotten.clone();
    forgotten.sort_unstable();
    assert_eq!(held, forgotten);
    assert_eq!(server.connections().count(), 0);
}

#[test]
fn connections_beyond_the_bound_are_told_so() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut options = Options::default();
    options.max_connections = 1;
    let store = Store::create(1 << 30).unwrap();
    let mut server = Server::start(store, listener.into(), options, no_custody).unwrap();
    let mut first = accepted(&mut server);
    let mut second = connect(&server);
    assert_eq!(reply(&mut server, &mut second, 36), b"-ERR max number of clients reached\r\n");
    ask(&mut server, &mut first, b"PING\r\n", b"+PONG\r\n");
}

#[test]
fn shutdown_stops_the_server_and_the_waker_asks_it_to_stop() {
    let mut first = server();
    let mut stream = connect(&first);
    stream.write_all(b"SHUTDOWN\r\n").unwrap();
    assert_eq!(first.run().unwrap(), Stop::Shutdown);

    let mut second = server();
    let waker = second.waker();
    let thread = std::thread::spawn(move || waker.stop());
    assert_eq!(second.run().unwrap(), Stop::Asked);
    thread.join().unwrap();
}

fn serve_in_thread(mut server: Server) -> (Waker, JoinHandle<Suspended>) {
    let waker = server.waker();
    let thread = std::thread::spawn(move || {
        assert_eq!(server.run().unwrap(), Stop::Asked);
        server.suspend().unwrap()
    });
    (waker, thread)
}

fn load(address: SocketAddr, fill_bytes: u64) -> kv::load::LoadHandle {
    let mut options = LoadOptions::default();
    options.connections = 16;
    options.value_len = 3000;
    options.fill_bytes = fill_bytes;
    Load::start(address, options, &mut |_| ()).unwrap()
}

/// Waits until the load has had `more` answers more.
fn wait_for_answers(load: &kv::load::LoadHandle, more: u64) {
    let (begun, from) = (Instant::now(), load.snapshot().served);
    while load.snapshot().served < from + more {
        assert!(begun.elapsed() < PATIENCE && !load.has_ended(), "the load stands still");
        std::thread::yield_now();
    }
}

#[test]
fn load_goes_on_through_hand_overs_and_every_byte_is_right() {
    let server = server();
    let address = server.local_addr().unwrap();
    let (mut waker, mut thread) = serve_in_thread(server);
    let load = load(address, 4 << 20);
    for step in 0..10 {
        load.mark(format!("update {step}"));
        wait_for_answers(&load, 300);
        waker.stop();
        let next = resume(thread.join().unwrap());
        (waker, thread) = serve_in_thread(next);
    }
    wait_for_answers(&load, 300);
    let report = load.stop(&mut |_| ()).unwrap();
    assert!(report.is_clean(), "{:?}", report.first_failure);
    assert_eq!(report.steps.len(), 11);
    assert_eq!(report.verify.verified_bytes, (4 << 20) / 3000 * 3000);
    assert_eq!(
        report.steps.iter().map(|step| step.served).sum::<u64>() + report.verify.served,
        report.total.served
    );
    assert!(report.timeline.iter().map(|slot| u64::from(slot.served)).sum::<u64>() >= 3300);
    waker.stop();
    let mut server = resume(thread.join().unwrap());
    server.turn(Some(Duration::ZERO)).unwrap();
    server.store().check().unwrap();
}

#[test]
fn the_load_sees_wrong_bytes_and_lost_connections() {
    let server = server();
    let address = server.local_addr().unwrap();
    let (waker, thread) = serve_in_thread(server);
    let load = load(address, 0);
    wait_for_answers(&load, 100);
    let mut saboteur = TcpStream::connect(address).unwrap();
    let begun = Instant::now();
    // Again and again: one that comes while every connection is about to write is not noticed.
    while load.snapshot().failed == 0 {
        saboteur.write_all(b"FLUSHALL\r\n").unwrap();
        let mut answer = [0; 5];
        saboteur.read_exact(&mut answer).unwrap();
        assert!(begun.elapsed() < PATIENCE);
    }
    // A hand-over that loses one connection of the load.
    waker.stop();
    let mut suspended = thread.join().unwrap();
    suspended.connections.sort_by_key(|(token, _)| *token);
    suspended.connections.remove(0);
    let (waker, thread) = serve_in_thread(resume(suspended));
    let begun = Instant::now();
    while load.snapshot().dropped == 0 {
        assert!(begun.elapsed() < PATIENCE);
        std::thread::yield_now();
    }
    let report = load.stop(&mut |_| ()).unwrap();
    assert!(!report.is_clean());
    assert_eq!(report.total.dropped, 1);
    assert!(report.first_failure.unwrap().contains("was answered"));
    waker.stop();
    thread.join().unwrap();
}
