//! A keeper in a process of its own, whose workers are puppets: each passes its socket to the test
//! and then does nothing but wait. The test speaks the wire itself and ends workers when it likes.
//!
//! The test's own program plays all parts, by the names of ignored tests (`role_…`); what a copy
//! of it does differently is decided by the file's name.
#![allow(dead_code, unreachable_pub, clippy::exit)]

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use luo_abi::keeper::{
    Attach, Entry, Header, Hello, MAX_FDS, MAX_MESSAGE, Message, VERSION_MAX, VERSION_MIN,
    VERSION_NONE, flag, op,
};
use luod::keeper::{Limits, Settings, Timing};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use rustix::process::{Pid, Signal, kill_process};
use zerocopy::{FromBytes, IntoBytes};

/// No test waits longer for anything.
pub const DEADLINE: Duration = Duration::from_secs(30);
const DIRECTORY: &str = "LUO_TEST_DIRECTORY";
const TIMING: &str = "LUO_TEST_TIMING";
const LIMITS: &str = "LUO_TEST_LIMITS";

fn role(name: &str) -> Vec<std::ffi::OsString> {
    [name, "--exact", "--ignored", "--nocapture"].map(Into::into).to_vec()
}

fn numbers<const N: usize>(name: &str) -> [u64; N] {
    let text = std::env::var(name).unwrap();
    let numbers: Vec<u64> = text.split(' ').map(|number| number.parse().unwrap()).collect();
    numbers.try_into().unwrap()
}

fn directory() -> PathBuf {
    std::env::var_os(DIRECTORY).expect("a role of another test's").into()
}

/// Whether this program's file is called so.
pub fn is_called(name: &str) -> bool {
    std::env::current_exe().unwrap().to_string_lossy().contains(name)
}

fn settings(listeners: Vec<OwnedFd>) -> Settings {
    let [ready, settled, backoff, backoff_max, deaths, step, stop] = numbers(TIMING);
    let [slots, fds, bytes] = numbers(LIMITS).map(|number: u64| number as usize);
    let ms = Duration::from_millis;
    Settings {
        program: "/proc/self/exe".into(),
        worker: role("role_worker"),
        check: role("role_check"),
        resume: role("role_resume"),
        listeners,
        limits: Limits { slots, fds, bytes },
        timing: Timing {
            ready: ms(ready),
            settled: ms(settled),
            backoff: ms(backoff),
            backoff_max: ms(backoff_max),
            deaths: deaths as u32,
            step: ms(step),
            stop: ms(stop),
        },
    }
}

pub fn role_keeper() {
    let listener = UnixListener::bind(directory().join("socket")).unwrap();
    end(luod::keeper::run(settings(vec![listener.into()])).map(drop));
}

pub fn role_resume() {
    let state = std::env::args().next_back().unwrap().parse().unwrap();
    end(luod::keeper::resume(settings(Vec::new()), state).map(drop));
}

fn end(result: Result<(), luod::keeper::Error>) {
    if let Err(error) = &result {
        eprintln!("{error}");
    }
    std::process::exit(result.is_err().into());
}

pub fn role_check() {
    let exe = std::env::current_exe().unwrap();
    if is_called("incompatible") {
        println!("cannot read layout 1");
        std::process::exit(1);
    }
    if is_called("hanging") {
        loop {
            std::thread::park();
        }
    }
    if is_called("unexecutable") {
        std::fs::set_permissions(exe, std::os::unix::fs::PermissionsExt::from_mode(0o000)).unwrap();
    }
    match luod::keeper::check() {
        Ok(proof) => {
            println!("{proof}");
            std::process::exit(0);
        }
        Err(error) => {
            println!("{error}");
            std::process::exit(1);
        }
    }
}

/// Passes its socket to the test, and exits as the test says, or with the test.
pub fn role_worker() {
    if is_called("stillborn") {
        std::process::exit(7);
    }
    let mut control = UnixStream::connect(directory().join("control")).unwrap();
    let about = format!("{} {}", std::process::id(), std::env::current_exe().unwrap().display());
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut rights = SendAncillaryBuffer::new(&mut space);
    let stdin = std::io::stdin();
    let fds = [stdin.as_fd()];
    assert!(rights.push(SendAncillaryMessage::ScmRights(&fds)));
    sendmsg(&control, &[IoSlice::new(about.as_bytes())], &mut rights, SendFlags::empty()).unwrap();
    let mut code = [0];
    let _ = control.read(&mut code);
    std::process::exit(code[0].into());
}

#[derive(Clone, Copy)]
pub struct Conditions {
    pub timing: [u64; 7],
    pub limits: [usize; 3],
}

impl Default for Conditions {
    /// Every death is forgotten as soon as the worker was ready; nothing else passes by itself.
    fn default() -> Self {
        Self { timing: [30_000, 0, 1, 5, 5, 30_000, 30_000], limits: [10_000, 10_000, 1_000_000] }
    }
}

pub struct Rig {
    pub directory: tempfile::TempDir,
    control: UnixListener,
    keeper: Child,
}

impl Rig {
    pub fn new() -> Self {
        Self::with(Conditions::default())
    }

    pub fn with(conditions: Conditions) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let control = UnixListener::bind(directory.path().join("control")).unwrap();
        let log = File::create(directory.path().join("log")).unwrap();
        let words =
            |numbers: &[u64]| numbers.iter().map(u64::to_string).collect::<Vec<_>>().join(" ");
        let keeper = Command::new(std::env::current_exe().unwrap())
            .args(role("role_keeper"))
            .env(DIRECTORY, directory.path())
            .env(TIMING, words(&conditions.timing))
            .env(LIMITS, words(&conditions.limits.map(|number| number as u64)))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        Self { directory, control, keeper }
    }

    /// The next worker that the keeper starts.
    pub fn worker(&self) -> Worker {
        wait(&self.control, PollFlags::IN, "a worker");
        let (control, _) = self.control.accept().unwrap();
        wait(&control, PollFlags::IN, "a worker's socket");
        let (about, mut fds) = receive(&control);
        let about = String::from_utf8(about).unwrap();
        let (pid, exe) = about.split_once(' ').unwrap();
        Worker {
            pid: Pid::from_raw(pid.parse().unwrap()).unwrap(),
            exe: exe.into(),
            control,
            socket: fds.pop().unwrap(),
            sequence: 0,
        }
    }

    /// A worker that has said everything up to READY.
    pub fn ready_worker(&self) -> (Worker, Kept) {
        let mut worker = self.worker();
        worker.attach();
        let kept = worker.load();
        assert_eq!(worker.ask(op::READY), 0);
        (worker, kept)
    }

    /// Whether no worker has been started that was not taken yet.
    pub fn no_worker(&self) -> bool {
        !readable(&self.control)
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).unwrap();
    }

    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.keeper)
    }

    /// Waits for the keeper's end.
    pub fn ended(&mut self) -> Option<i32> {
        let pidfd =
            rustix::process::pidfd_open(self.pid(), rustix::process::PidfdFlags::empty()).unwrap();
        wait(&pidfd, PollFlags::IN, "the keeper's end");
        self.keeper.wait().unwrap().code()
    }

    /// What a client reads that connects to the keeper's listening socket.
    pub fn client_reads(&self) -> Vec<u8> {
        let mut client = UnixStream::connect(self.directory.path().join("socket")).unwrap();
        client.set_read_timeout(Some(DEADLINE)).unwrap();
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).unwrap();
        answer
    }

    /// Waits until the keeper has logged that.
    pub fn logged(&self, text: &str) {
        let until = Instant::now() + DEADLINE;
        while !self.log().contains(text) {
            assert!(Instant::now() < until, "waited in vain for the log to say: {text}");
            std::thread::yield_now();
        }
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("log")).unwrap()
    }

    /// A copy of this program under another name.
    pub fn program(&self, name: &str) -> (PathBuf, OwnedFd) {
        let path = self.directory.path().join(name);
        // By another process: were the copy open for writing here, a child that another test forks
        // at this moment would hold it, and it could not be executed.
        let copied = Command::new("cp")
            .arg("--remove-destination")
            .args([&std::env::current_exe().unwrap(), &path])
            .status();
        assert!(copied.unwrap().success());
        let file = File::open(&path).unwrap();
        (path, file.into())
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- the keeper's log\n{}---", self.log());
        }
        let _ = self.keeper.kill();
        let _ = self.keeper.wait();
    }
}

/// Slots as a worker loads them.
pub type Kept = BTreeMap<u64, (Vec<u8>, Vec<OwnedFd>)>;

/// Only keys and records.
pub fn records(kept: &Kept) -> BTreeMap<u64, Vec<u8>> {
    kept.iter().map(|(key, (record, _))| (*key, record.clone())).collect()
}

pub struct Worker {
    pub pid: Pid,
    pub exe: PathBuf,
    control: UnixStream,
    pub socket: OwnedFd,
    pub sequence: u64,
}

/// A message of the keeper's.
#[derive(Debug)]
pub struct Said {
    pub op: u16,
    pub sequence: u64,
    pub flags: u32,
    pub argument: u64,
    pub body: Vec<u8>,
    pub slots: Vec<(u64, u16, Vec<u8>, Vec<OwnedFd>)>,
    /// Descriptors that belong to no slot.
    pub fds: Vec<OwnedFd>,
}

impl Said {
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }
}

/// A change to send.
pub struct Change<'a> {
    pub key: u64,
    pub flags: u16,
    pub record: &'a [u8],
    pub fds: Vec<BorrowedFd<'a>>,
}

pub fn put<'a>(key: u64, record: &'a [u8], fds: &[BorrowedFd<'a>]) -> Change<'a> {
    Change { key, flags: 0, record, fds: fds.to_vec() }
}

impl Worker {
    /// The program's file name.
    pub fn name(&self) -> &str {
        self.exe.file_name().unwrap().to_str().unwrap()
    }

    pub fn hello(&mut self) -> Hello {
        let said = self.hear();
        assert_eq!(said.op, op::HELLO);
        Hello::read_from_bytes(&said.body).unwrap()
    }

    pub fn attach(&mut self) -> Hello {
        let hello = self.hello();
        let attach = Attach {
            wire_min: VERSION_MIN.into(),
            wire_max: VERSION_MAX.into(),
            reserved: 0.into(),
        };
        self.sequence += 1;
        let header = Header::new(VERSION_NONE, op::ATTACH, self.sequence);
        self.send(&[header.as_bytes(), attach.as_bytes()].concat(), &[]);
        assert_eq!(self.answer(self.sequence), 0);
        hello
    }

    pub fn header(&mut self, op: u16) -> Header {
        self.sequence += 1;
        Header::new(VERSION_MAX, op, self.sequence)
    }

    pub fn say(&mut self, op: u16, body: &[u8]) {
        let header = self.header(op);
        self.send(&[header.as_bytes(), body].concat(), &[]);
    }

    /// Says something and gives the errno of the answer.
    pub fn ask(&mut self, op: u16) -> u64 {
        self.say(op, &[]);
        self.answer(self.sequence)
    }

    pub fn change_message(&mut self, changes: &[Change<'_>], more: bool) -> Vec<u8> {
        let mut header = self.header(op::CHANGE).flags(if more { flag::MORE } else { 0 });
        header.count = (changes.len() as u32).into();
        let mut bytes = header.as_bytes().to_vec();
        for change in changes {
            let entry = Entry {
                key: change.key.into(),
                length: (change.record.len() as u32).into(),
                fds: (change.fds.len() as u16).into(),
                flags: change.flags.into(),
            };
            bytes.extend_from_slice(entry.as_bytes());
        }
        for change in changes {
            bytes.extend_from_slice(change.record);
        }
        bytes
    }

    pub fn change(&mut self, changes: &[Change<'_>], more: bool) {
        let bytes = self.change_message(changes, more);
        let fds: Vec<BorrowedFd<'_>> =
            changes.iter().flat_map(|change| change.fds.clone()).collect();
        self.send(&bytes, &fds);
    }

    /// Sends a batch of one message and gives the errno of the answer.
    pub fn keep(&mut self, changes: &[Change<'_>]) -> u64 {
        self.change(changes, false);
        self.answer(self.sequence)
    }

    pub fn upgrade(&mut self, program: &OwnedFd, what: u32, deadline: u64) -> u64 {
        let header = self.header(op::UPGRADE).flags(what).argument(deadline);
        self.send(header.as_bytes(), &[program.as_fd()]);
        self.answer(self.sequence)
    }

    pub fn send(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) {
        wait(&self.socket, PollFlags::OUT, "room for a message");
        self.try_send(bytes, fds).unwrap();
    }

    pub fn try_send(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> rustix::io::Result<usize> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut rights = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            assert!(rights.push(SendAncillaryMessage::ScmRights(fds)));
        }
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        sendmsg(&self.socket, &[IoSlice::new(bytes)], &mut rights, flags)
    }

    /// The keeper's next message.
    pub fn hear(&self) -> Said {
        wait(&self.socket, PollFlags::IN, "a message of the keeper's");
        let (bytes, fds) = receive(&self.socket);
        assert!(!bytes.is_empty(), "the keeper has closed the socket");
        let carried = Header::ref_from_prefix(&bytes).unwrap().0.count.get();
        let message = Message::parse(&bytes, if carried == 0 { 0 } else { fds.len() }).unwrap();
        let mut fds = fds.into_iter();
        let slots = message
            .slots()
            .map(|(entry, record)| {
                let own = fds.by_ref().take(entry.fds.get().into()).collect();
                (entry.key.get(), entry.flags.get(), record.to_vec(), own)
            })
            .collect();
        Said {
            op: message.header.op.get(),
            sequence: message.header.sequence.get(),
            flags: message.header.flags.get(),
            argument: message.header.argument.get(),
            body: message.body.to_vec(),
            slots,
            fds: fds.collect(),
        }
    }

    /// The next message, which has to be of that op.
    pub fn expect(&self, op: u16) -> Said {
        let said = self.hear();
        assert_eq!(said.op, op, "{said:?}");
        said
    }

    /// Waits for the answer to that message, and gives its errno.
    pub fn answer(&self, sequence: u64) -> u64 {
        loop {
            let said = self.expect(op::ACK);
            if said.sequence >= sequence {
                return if said.sequence == sequence { said.argument } else { 0 };
            }
        }
    }

    pub fn load(&mut self) -> Kept {
        self.say(op::LOAD, &[]);
        let mut kept = Kept::new();
        loop {
            let said = self.hear();
            match said.op {
                op::ACK => assert_eq!(said.argument, 0),
                op::SLOTS => {
                    for (key, flags, record, fds) in said.slots {
                        assert_eq!(flags, 0);
                        assert!(kept.insert(key, (record, fds)).is_none(), "slot {key} came twice");
                    }
                }
                op::END => {
                    assert_eq!((said.sequence, said.argument), (self.sequence, kept.len() as u64));
                    return kept;
                }
                _ => panic!("{said:?}"),
            }
        }
    }

    pub fn kill(self) {
        kill_process(self.pid, Signal::KILL).unwrap();
    }

    pub fn exit(mut self, code: u8) {
        self.control.write_all(&[code]).unwrap();
    }

    /// Waits until the process is gone.
    pub fn ended(&self) {
        // The control socket is closed with the process.
        wait(&self.control, PollFlags::IN, "the worker's end");
    }

    pub fn alive(&self) -> bool {
        !readable(&self.control)
    }
}

fn receive(socket: impl AsFd) -> (Vec<u8>, Vec<OwnedFd>) {
    let mut data = vec![0; MAX_MESSAGE];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut rights = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC;
    let got = recvmsg(&socket, &mut [IoSliceMut::new(&mut data)], &mut rights, flags).unwrap();
    let mut fds = Vec::new();
    for message in rights.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            fds.extend(received);
        }
    }
    data.truncate(got.bytes);
    (data, fds)
}

fn ready(fd: &impl AsFd, flags: PollFlags, wait: Duration) -> bool {
    let until = Instant::now() + wait;
    loop {
        let mut fds = [PollFd::new(fd, flags)];
        let rest = until.saturating_duration_since(Instant::now());
        match poll(&mut fds, Some(&Timespec::try_from(rest).unwrap())) {
            Err(rustix::io::Errno::INTR) => {}
            other => return other.unwrap() > 0,
        }
    }
}

pub fn readable(fd: &impl AsFd) -> bool {
    ready(fd, PollFlags::IN, Duration::ZERO)
}

pub fn writable(fd: &impl AsFd) -> bool {
    ready(fd, PollFlags::OUT, Duration::ZERO)
}

pub fn wait(fd: &impl AsFd, flags: PollFlags, what: &str) {
    assert!(ready(fd, flags, DEADLINE), "waited in vain for {what}");
}

/// A pipe: one end to be kept, one to see whether it works.
pub fn pipe() -> (OwnedFd, OwnedFd) {
    rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap()
}

/// Whether these are the two ends of one pipe.
pub fn connected(writer: &OwnedFd, reader: &OwnedFd) -> bool {
    rustix::io::write(writer, b"x").unwrap();
    let mut byte = [0];
    readable(reader) && rustix::io::read(reader, &mut byte).unwrap() == 1
}
