//! Clients that misbehave harm nobody but themselves, and luod holds nothing that they gave in vain.

mod common;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::time::{Duration, Instant};

use common::{Luod, PATIENCE, assert_connected, errno, pipe};
use luo::wire::{self, Limits, Receiver};
use luo::{Participant, ParticipantOptions, Session};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::process::{Pid, Resource, Rlimit, prlimit};
use serde_json::{Value, json};

/// Short enough for a test to wait for, long enough for a client that is only slow.
const IMPATIENT: &str = "[clients]\npatience_milliseconds = 300";

/// A client that speaks for itself.
struct Raw {
    socket: UnixStream,
    receiver: Receiver,
}

impl Raw {
    fn new(socket: UnixStream) -> Self {
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { socket, receiver: Receiver::new(Limits { bytes: 64 << 20 }) }
    }

    fn connect(luod: &Luod) -> Self {
        Self::new(UnixStream::connect(luod.socket()).unwrap())
    }

    /// A connection of a session, and what became of the packet.
    fn of_session(session: &Session) -> Self {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let descriptor = session.descriptor().unwrap();
        packet(&descriptor, luo::protocol::CONNECT_PACKET, &[theirs.as_fd()]);
        Self::new(ours)
    }

    fn send(&self, text: &str, files: &[BorrowedFd<'_>]) {
        let bytes = [text.as_bytes(), b"\0"].concat();
        let sent = wire::send(self.socket.as_fd(), &bytes, files).unwrap();
        (&self.socket).write_all(&bytes[sent..]).unwrap();
    }

    /// The next reply, `None` where luod has closed the connection.
    fn receive(&mut self) -> Option<Value> {
        let start = Instant::now();
        loop {
            if let Some(frame) = self.receiver.next_frame().unwrap() {
                return Some(serde_json::from_slice(&frame.text).unwrap());
            }
            assert!(start.elapsed() < PATIENCE, "no reply");
            let mut poll = [rustix::event::PollFd::new(&self.socket, rustix::event::PollFlags::IN)];
            let wait = rustix::event::Timespec { tv_sec: 1, tv_nsec: 0 };
            rustix::event::poll(&mut poll, Some(&wait)).unwrap();
            match self.receiver.fill(self.socket.as_fd()) {
                Ok(()) => {}
                Err(wire::WireError::Io(error))
                    if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(_) => return None,
            }
        }
    }

    fn call(&mut self, call: &Value, files: &[BorrowedFd<'_>]) -> Value {
        self.send(&call.to_string(), files);
        self.receive().expect("a reply")
    }

    /// Waits until luod has closed it, and reads what there is.
    fn assert_closed(mut self, what: &str) {
        self.socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut buffer = [0; 4096];
        loop {
            match self.socket.read(&mut buffer) {
                Ok(0) => return,
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return,
                Err(error) => panic!("{what}: not closed: {error}"),
            }
        }
    }

    /// Waits until luod has closed it, and reads nothing: whoever reads is not ended.
    fn assert_hung_up(&self, what: &str) {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let mut fds = [PollFd::new(&self.socket, PollFlags::empty())];
        let wait = Timespec::try_from(PATIENCE).unwrap();
        poll(&mut fds, Some(&wait)).unwrap();
        assert!(fds[0].revents().contains(PollFlags::HUP), "{what}: not closed");
    }

    /// Sends until the socket takes no more of it, or the call was sent `most` times: luod may well
    /// be as quick as its client.
    fn flood(&self, text: &str, most: usize) -> usize {
        let bytes = [text.as_bytes(), b"\0"].concat();
        let mut count = 0;
        let mut quiet = Instant::now();
        while count < most && quiet.elapsed() < Duration::from_millis(100) {
            match wire::send(self.socket.as_fd(), &bytes, &[]) {
                Ok(sent) if sent == bytes.len() => {
                    count += 1;
                    quiet = Instant::now();
                }
                Ok(_) => break,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    std::thread::yield_now();
                }
                Err(_) => break,
            }
        }
        count
    }
}

/// Sends a packet on a session's descriptor, which has room for a few.
fn packet(descriptor: &OwnedFd, text: &[u8], files: &[BorrowedFd<'_>]) {
    let start = Instant::now();
    loop {
        match wire::send(descriptor.as_fd(), text, files) {
            Ok(_) => return,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                assert!(start.elapsed() < PATIENCE, "luod does not take packets");
                std::thread::yield_now();
            }
            Err(error) => panic!("{error}"),
        }
    }
}

fn held_by(process: Pid) -> usize {
    let directory = format!("/proc/{}/fd", process.as_raw_nonzero());
    std::fs::read_dir(directory).map_or(0, Iterator::count)
}

/// Bytes of memory that a process uses.
fn memory_of(process: Pid) -> usize {
    let text =
        std::fs::read_to_string(format!("/proc/{}/statm", process.as_raw_nonzero())).unwrap();
    text.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * rustix::param::page_size()
}

/// How many descriptors worker and keeper hold, once nothing is under way.
struct Holding {
    worker: Pid,
    before: (usize, usize),
}

impl Holding {
    fn now(luod: &Luod) -> Self {
        let mut asking = Raw::connect(luod);
        let status = json!({"method": "io.luo.GetStatus"});
        let mut ask = || {
            let pid = asking.call(&status, &[])["parameters"]["pid"].as_i64().unwrap();
            Pid::from_raw(i32::try_from(pid).unwrap()).unwrap()
        };
        let worker = ask();
        // What was closed before a call was sent is known to the worker when it reads that call,
        // and is done before it reads the one after: then only this connection is one too many.
        ask();
        ask();
        let held = (held_by(worker), held_by(luod.keeper()));
        asking.socket.shutdown(std::net::Shutdown::Write).unwrap();
        asking.assert_closed("the connection that asked");
        Self { worker, before: (held.0 - 1, held.1) }
    }

    fn assert_same(&self, luod: &Luod, what: &str) {
        let start = Instant::now();
        loop {
            let now = (held_by(self.worker), held_by(luod.keeper()));
            if now == self.before {
                return;
            }
            assert!(
                start.elapsed() < Duration::from_secs(20),
                "{what}: worker and keeper held {:?} descriptors, and now {now:?}\n{}",
                self.before,
                luod.log()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

fn assert_serves(luod: &Luod) {
    let (reader, writer) = pipe();
    let session = luod.session("served");
    session.preserve(1, &reader).unwrap();
    drop((session, reader));
    let session = luod.session("served");
    assert_connected(session.retrieve(1).unwrap(), &writer, b"served");
    session.release().unwrap();
}

fn join(luod: &Luod, name: &str) -> Result<Participant, luo::Error> {
    let how = ParticipantOptions { options: luod.options(), required: false, deadline: None };
    Participant::join(name, how)
}

#[test]
fn clients_that_do_not_read_make_luod_hold_little_and_are_ended() {
    let luod = Luod::start_with(IMPATIENT);
    let session = luod.session("large");
    let pipes: Vec<_> = (0..3_000).map(|_| pipe()).collect();
    let files: Vec<_> = pipes
        .iter()
        .enumerate()
        .map(|(token, (reader, _))| (token as u64, reader.as_fd()))
        .collect();
    session.preserve_many(&files).unwrap();
    assert_eq!(luod.manager().files(None).unwrap().len(), 3_000);
    let worker = luod.worker();
    let before = memory_of(worker);
    // Some replies are so small that the socket takes all of them: those clients are not ended.
    let calls = [
        r#"{"method":"io.luo.ListFiles","more":true}"#,
        r#"{"method":"io.luo.ListFiles"}"#,
        r#"{"method":"org.varlink.service.GetInterfaceDescription","parameters":{"interface":"io.luo"}}"#,
        r#"{"method":"io.luo.GetStatus"}"#,
    ];
    let rude: Vec<_> = (0..16)
        .map(|number| {
            let raw = Raw::connect(&luod);
            raw.flood(calls[number % calls.len()], usize::MAX);
            raw
        })
        .collect();
    for _ in 0..5 {
        assert_serves(&luod);
    }
    let grown = memory_of(worker).saturating_sub(before);
    // A window of calls and of unread replies each, not all that they have asked for.
    assert!(grown < 16 * (4 << 20), "{grown} bytes");
    for (number, raw) in rude.into_iter().enumerate().filter(|(number, _)| number % 2 == 0) {
        raw.assert_hung_up(calls[number % calls.len()]);
    }
    assert_eq!(luod.worker(), worker);
}

#[test]
fn a_list_is_read_in_parts_and_none_is_missing() {
    let luod = Luod::start();
    let mut expected = Vec::new();
    for (name, count) in [("a", 999), ("b", 1_001), ("c", 0), ("d", 1_500)] {
        let session = luod.session(name);
        let pipes: Vec<_> = (0..count).map(|_| pipe().0).collect();
        let files: Vec<_> =
            pipes.iter().enumerate().map(|(token, file)| (token as u64 * 3, file)).collect();
        session.preserve_many(&files).unwrap();
        expected.extend(files.iter().map(|(token, _)| (name.to_owned(), *token)));
    }
    let listed: Vec<_> = luod
        .manager()
        .files(None)
        .unwrap()
        .into_iter()
        .map(|file| (file.session, file.token))
        .collect();
    assert_eq!(listed, expected);
    let mut raw = Raw::connect(&luod);
    let reply = raw.call(&json!({"method": "io.luo.ListFiles"}), &[]);
    assert_eq!(reply["parameters"]["failure"]["errno"], "E2BIG", "{reply}");
    let of =
        |session: &str| json!({"method": "io.luo.ListFiles", "parameters": {"session": session}});
    let reply = raw.call(&of("a"), &[]);
    assert_eq!(reply["parameters"]["files"].as_array().unwrap().len(), 999);
    let reply = raw.call(&of("c"), &[]);
    assert_eq!(reply["parameters"]["files"].as_array().unwrap().len(), 0);
}

#[test]
fn half_a_message_is_waited_for_no_longer_than_configured() {
    let luod = Luod::start_with(IMPATIENT);
    let holding = Holding::now(&luod);
    let status = br#"{"method":"io.luo.GetStatus"}"#;
    let half = Raw::connect(&luod);
    (&half.socket).write_all(&status[..9]).unwrap();
    // After a whole one, in the same write.
    let after = Raw::connect(&luod);
    (&after.socket).write_all(&[&status[..], b"\0", &status[..9]].concat()).unwrap();
    // With descriptors, which must not stay either.
    let with = Raw::connect(&luod);
    let (reader, _writer) = pipe();
    let files = vec![reader.as_fd(); 253];
    wire::send(with.socket.as_fd(), &status[..9], &files).unwrap();
    half.assert_closed("half a message");
    after.assert_closed("half a message after a whole one");
    with.assert_closed("half a message with descriptors");
    holding.assert_same(&luod, "half messages");
    assert_serves(&luod);
}

#[test]
fn a_client_that_waits_for_its_answer_is_not_taken_for_one_that_sends_half() {
    let luod = Luod::start_with(IMPATIENT);
    let held = luod.session("held");
    let mut raw = Raw::connect(&luod);
    // As many as are read ahead and more, the first of which takes longer than the patience.
    let claim = json!({"method": "io.luo.ClaimSession",
        "parameters": {"name": "held", "wait_milliseconds": 1200}});
    raw.send(&claim.to_string(), &[]);
    for _ in 0..30 {
        raw.send(r#"{"method":"io.luo.GetStatus"}"#, &[]);
    }
    let reply = raw.receive().expect("the connection stays");
    assert_eq!(reply["parameters"]["failure"]["errno"], "EBUSY", "{reply}");
    for _ in 0..30 {
        assert!(raw.receive().expect("the connection stays")["parameters"]["pid"].is_number());
    }
    drop(held);
}

#[test]
fn garbage_ends_the_connection_or_is_refused_and_nothing_else() {
    let luod = Luod::start();
    let holding = Holding::now(&luod);
    let deep = |open: &str| {
        format!(r#"{{"method":"io.luo.GetStatus","parameters":{}"#, open.repeat(200_000))
    };
    let whole = format!(
        r#"{{"method":"io.luo.Answer","parameters":{{"participant":1,"call":1,"x":{}{}}}}}"#,
        "[".repeat(200_000),
        "]".repeat(200_000)
    );
    for text in [
        "",
        "7",
        "null",
        "{",
        "[]",
        "\u{feff}{}",
        r#"{"method":7}"#,
        r#"{"method":""}"#,
        r#"{"method":"."}"#,
        r#"{"method":"io.luo."}"#,
        r#"{"method":"io.luo.GetStatus","more":"x"}"#,
        r#"{"method":"io.luo.CreateSession","parameters":[]}"#,
        r#"{"method":"io.luo.CreateSession","parameters":{"name":"\u0000"}}"#,
        r#"{"method":"io.luo.CreateSession","parameters":{"name":"a","policy":{"on_close":"burn"}}}"#,
        r#"{"method":"io.luo.ClaimSession","parameters":{"name":"a","wait_milliseconds":-1}}"#,
        r#"{"method":"io.luo.ClaimSession","parameters":{"name":"a","wait_milliseconds":1e400}}"#,
        &deep("["),
        &deep(r#"{"a":"#),
        &whole,
    ] {
        let mut raw = Raw::connect(&luod);
        raw.send(text, &[]);
        let reply = raw.receive().expect("it is answered");
        let shown = text.get(..80).unwrap_or(text);
        assert!(reply["error"].is_string(), "{shown}: {reply}");
        assert!(raw.call(&json!({"method": "io.luo.GetStatus"}), &[])["error"].is_null());
    }
    // Not text at all.
    let mut raw = Raw::connect(&luod);
    (&raw.socket).write_all(b"\xff\xfe\x80{\0").unwrap();
    assert!(raw.receive().expect("it is answered")["error"].is_string());
    // Over the limit of one message: it may be ended before all of it is sent.
    let long = Raw::connect(&luod);
    let _ = (&long.socket).write_all(&vec![b'x'; 3 << 20]);
    long.assert_closed("too long a message");
    drop(raw);
    holding.assert_same(&luod, "garbage");
    assert_serves(&luod);
}

#[test]
fn no_descriptor_of_a_refused_request_is_held() {
    let luod = Luod::start();
    let session = luod.session("shop");
    let (reader, writer) = pipe();
    let files = vec![reader.as_fd(); 253];
    let preserve = |parameters: Value| {
        json!({"method": "io.luo.Session.Preserve", "parameters": parameters}).to_string()
    };
    session.preserve(1, &writer).unwrap();
    let mut raw = Raw::of_session(&session);
    let mut manager = Raw::connect(&luod);
    // Both connections are served when they have an answer.
    raw.call(&json!({"method": "io.luo.Session.GetInfo"}), &[]);
    manager.call(&json!({"method": "io.luo.GetStatus"}), &[]);
    let holding = Holding::now(&luod);
    for round in 0..20 {
        for (text, files) in [
            (preserve(json!({"count": 252})), &files[..]),
            (preserve(json!({"count": 254})), &files[..]),
            (preserve(json!({"count": 0})), &files[..]),
            (preserve(json!({"count": 253, "tokens": [1, 2]})), &files[..]),
            (preserve(json!({"count": 253, "tokens": "x"})), &files[..]),
            (preserve(json!({"count": "x"})), &files[..]),
            (r#"{"method":"io.luo.Session.GetInfo"}"#.to_owned(), &files[..]),
            (r#"{"method":"io.luo.Session.Nothing"}"#.to_owned(), &files[..]),
            (r#"{"method":"no.such.Thing"}"#.to_owned(), &files[..]),
            ("{nonsense".to_owned(), &files[..]),
            (String::new(), &files[..]),
            // Taken already.
            (preserve(json!({"count": 1, "tokens": [1]})), &files[..1]),
        ] {
            raw.send(&text, files);
            let reply = raw.receive().unwrap_or_else(|| panic!("round {round}: {text}"));
            let refused = reply["error"].is_string()
                || !reply["parameters"]["refused"].as_array().is_none_or(Vec::is_empty)
                || text.contains("GetInfo");
            assert!(refused, "{text}: {reply}");
        }
        for text in [r#"{"method":"io.luo.GetStatus"}"#, r#"{"method":"io.luo.Prepar"}"#, "["] {
            manager.send(text, &files);
            manager.receive().expect("a reply");
        }
        // Several of them are the same file: the first is taken, the others are not.
        let reply = raw.call(
            &json!({"method": "io.luo.Session.Preserve", "parameters": {"count": 253}}),
            &files,
        );
        let refused = reply["parameters"]["refused"].as_array().unwrap();
        assert_eq!(refused.len(), 252, "{reply}");
        let token = reply["parameters"]["tokens"][0].as_u64().unwrap();
        session.unpreserve(token).unwrap();
    }
    holding.assert_same(&luod, "refused requests");
    // More than a message may carry: that connection ends, and holds nothing.
    for half in [&b"x"[..], b"\0x"] {
        let greedy = Raw::connect(&luod);
        wire::send(greedy.socket.as_fd(), half, &files).unwrap();
        let _ = wire::send(greedy.socket.as_fd(), b"x", &files);
        let _ = wire::send(greedy.socket.as_fd(), b"\0", &files);
        greedy.assert_closed("too many descriptors");
    }
    holding.assert_same(&luod, "too many descriptors");
    assert_eq!(session.info().unwrap().files, [1]);
}

#[test]
fn only_streams_are_taken_on_a_sessions_descriptor() {
    let luod = Luod::start();
    let session = luod.session("shop");
    session.info().unwrap();
    let holding = Holding::now(&luod);
    let descriptor = session.descriptor().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(directory.path().join("l")).unwrap();
    let (datagram, _other) = UnixDatagram::pair().unwrap();
    let null = std::fs::File::open("/dev/null").unwrap();
    let (reader, writer) = pipe();
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let unconnected = rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )
    .unwrap();
    let files: [BorrowedFd<'_>; 9] = [
        listener.as_fd(),
        datagram.as_fd(),
        null.as_fd(),
        reader.as_fd(),
        writer.as_fd(),
        tcp.as_fd(),
        unconnected.as_fd(),
        descriptor.as_fd(),
        luod.directory.path().metadata().map(|_| null.as_fd()).unwrap(),
    ];
    for _ in 0..20 {
        for file in files {
            packet(&descriptor, luo::protocol::CONNECT_PACKET, &[file]);
        }
        for text in [&b"x"[..], b"luo-session-v2", &[0; 64], &[b'x'; 500], b""] {
            packet(&descriptor, text, &[]);
            packet(&descriptor, text, &files);
        }
        // A stream, but two of them.
        let (one, other) = UnixStream::pair().unwrap();
        let both = [one.as_fd(), other.as_fd()];
        packet(&descriptor, luo::protocol::CONNECT_PACKET, &both);
    }
    session.info().unwrap();
    holding.assert_same(&luod, "packets on a session's descriptor");
    assert!(luod.manager().sessions().unwrap()[0].held);
}

#[test]
fn connections_over_the_limit_are_refused_with_the_limit() {
    let luod = Luod::start_with("[clients]\nconnections_per_user = 20");
    let session = luod.session("shop");
    session.info().unwrap();
    let holding = Holding::now(&luod);
    let mut raws: Vec<_> = (0..60).map(|_| Raw::connect(&luod)).collect();
    let mut refused = 0;
    for raw in &mut raws {
        // Whether it is served or not: a refusal comes without having asked.
        let _ = wire::send(raw.socket.as_fd(), b"{\"method\":\"io.luo.GetStatus\"}\0", &[]);
        let reply = raw.receive().expect("an answer, or a refusal");
        if reply["error"] == "io.luo.Failed" {
            let failure = &reply["parameters"]["failure"];
            assert_eq!(failure["errno"], "ENOSPC");
            assert!(failure["reason"].as_str().unwrap().contains("20 connections"), "{reply}");
            refused += 1;
        }
    }
    assert_eq!(refused, 41, "one of 20 is the session's");
    // The library says so at once, and does not try until its deadline.
    let error = luo::Manager::connect(luod.options()).and_then(|manager| manager.status());
    assert_eq!(errno(error), "ENOSPC");
    drop(raws);
    holding.assert_same(&luod, "refused connections");
    // The same for connections of a session.
    let mut raws: Vec<_> = (0..60).map(|_| Raw::of_session(&session)).collect();
    let mut refused = 0;
    for raw in &mut raws {
        let _ = wire::send(raw.socket.as_fd(), b"{\"method\":\"io.luo.Session.GetInfo\"}\0", &[]);
        let reply = raw.receive().expect("an answer, or a refusal");
        if reply["error"] == "io.luo.Session.Failed" {
            assert!(reply["parameters"]["reason"].as_str().unwrap().contains("20 connections"));
            refused += 1;
        }
    }
    assert_eq!(refused, 41);
    drop(raws);
    holding.assert_same(&luod, "refused connections of a session");
    assert_serves(&luod);
}

#[test]
fn storms_of_connections_leave_nothing() {
    let luod = Luod::start();
    let session = luod.session("shop");
    session.info().unwrap();
    let holding = Holding::now(&luod);
    // Fewer at a time than one user may have: however late luod sees that they were closed, they
    // take no connection from the sessions that this user has beside them.
    for _ in 0..5 {
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..100 {
                        drop(UnixStream::connect(luod.socket()).unwrap());
                        let (ours, theirs) = UnixStream::pair().unwrap();
                        let descriptor = session.descriptor().unwrap();
                        packet(&descriptor, luo::protocol::CONNECT_PACKET, &[theirs.as_fd()]);
                        drop(ours);
                    }
                });
            }
            assert_serves(&luod);
        });
        holding.assert_same(&luod, "storms");
    }
}

#[test]
fn calls_that_want_no_reply_do_not_pile_up() {
    let luod = Luod::start();
    let _held = luod.session("held");
    let worker = luod.worker();
    let before = memory_of(worker);
    let raw = Raw::connect(&luod);
    let claim = json!({"method": "io.luo.ClaimSession", "oneway": true,
        "parameters": {"name": "held", "wait_milliseconds": 3_600_000}});
    let sent = raw.flood(&claim.to_string(), 30_000);
    assert_serves(&luod);
    let grown = memory_of(worker).saturating_sub(before);
    assert!(grown < 8 << 20, "{sent} calls, {grown} bytes");
    // One that does something does it all the same.
    let other = luod.session("other");
    drop(other);
    raw.send(
        r#"{"method":"io.luo.ReleaseSession","parameters":{"name":"other"},"oneway":true}"#,
        &[],
    );
    drop(raw);
    luod.wait("the session ends", || {
        luod.manager().sessions().unwrap().iter().all(|session| session.name != "other")
    });
}

#[test]
fn participants_are_limited_and_however_many_there_are_sessions_can_be_made() {
    let luod = Luod::start();
    let mut all = Vec::new();
    let refusal = loop {
        match join(&luod, &format!("p{}", all.len())) {
            Ok(participant) => all.push(participant),
            Err(error) => break error,
        }
        assert!(all.len() < 1_000, "no limit");
    };
    assert_eq!(refusal.errno(), Some("ENOSPC"));
    assert!(refusal.to_string().contains(&all.len().to_string()), "{refusal}");
    assert_serves(&luod);
    drop(all);
    let is_there =
        || luod.manager().status().unwrap().subsystems.into_iter().any(|s| s.participant);
    luod.wait("they leave", || !is_there());
    join(&luod, "again").unwrap();
}

#[test]
fn a_worker_without_free_descriptors_lives_and_serves_again() {
    let luod = Luod::start();
    let session = luod.session("shop");
    let (reader, writer) = pipe();
    session.preserve(1, &reader).unwrap();
    let worker = luod.worker();
    let manager = luod.manager();
    manager.status().unwrap();
    // Connections that are there already.
    let greedy: Vec<_> = (0..4).map(|_| Raw::of_session(&session)).collect();
    for raw in &greedy {
        raw.send("x", &[]);
    }
    session.info().unwrap();
    let few = Some(held_by(worker) as u64 + 20);
    let before = prlimit(Some(worker), Resource::Nofile, Rlimit { current: few, maximum: few })
        .expect("the limit of a process of one's own can be lowered");
    // A message for whose descriptors there is no room ends its connection, and holds none.
    let files = vec![writer.as_fd(); 253];
    for raw in greedy {
        wire::send(raw.socket.as_fd(), b"x", &files).unwrap();
        raw.assert_closed("descriptors that do not fit");
    }
    // New connections leave descriptors for files, and are told so.
    let mut raws: Vec<_> = (0..50).map(|_| Raw::connect(&luod)).collect();
    raws.push(Raw::of_session(&session));
    for raw in raws.iter_mut().skip(45) {
        let reply = raw.receive().expect("a refusal");
        assert!(reply.to_string().contains("descriptors left"), "{reply}");
    }
    // Those that are there are served.
    manager.status().unwrap();
    let other = pipe();
    session.preserve(2, &other.0).unwrap();
    session.unpreserve(2).unwrap();
    drop(raws);
    if prlimit(Some(worker), Resource::Nofile, before).is_err() {
        eprintln!("SKIPPED: needs root to raise the limit again");
        return;
    }
    assert_serves(&luod);
    assert_eq!(luod.worker(), worker, "it has not died of it");
    assert_connected(&reader, &writer, b"x");
    drop(session);
    let session = luod.session("shop");
    assert_connected(session.retrieve(1).unwrap(), &writer, b"y");
}

/// A connection whose last `close` waits: it lingers, and its peer does not take what was sent.
fn lingering() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let ours = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (theirs, _) = listener.accept().unwrap();
    ours.set_nonblocking(true).unwrap();
    while (&ours).write(&[0; 65_536]).is_ok() {}
    let linger = Some(Duration::from_secs(3_600));
    rustix::net::sockopt::set_socket_linger(&ours, linger).unwrap();
    (ours, theirs)
}

#[test]
fn a_file_whose_close_waits_holds_up_nobody() {
    let luod = Luod::start();
    let session = luod.session("shop");
    let mut peers = Vec::new();
    for token in 0..8 {
        let (ours, theirs) = lingering();
        session.preserve(token, &ours).unwrap();
        // From here luod has the only descriptors; this process must not wait either.
        std::thread::spawn(move || drop(ours));
        peers.push(theirs);
    }
    session.unpreserve_many(&[0, 1, 2, 3]).unwrap();
    assert_serves(&luod);
    session.release().unwrap();
    let (reader, writer) = pipe();
    let other = luod.session("other");
    other.preserve(1, &writer).unwrap();
    drop(writer);
    other.unpreserve(1).unwrap();
    luod.wait("what does not wait is closed", || rustix::io::read(&reader, &mut [0; 1]) == Ok(0));
    luod.kill_worker();
    assert_serves(&luod);
    // The peers take it all, and the connections end.
    for mut peer in peers {
        std::io::copy(&mut peer, &mut std::io::sink()).unwrap();
    }
}
