//! A luod that follows a script: it speaks luo's framing and answers each call as it was told to.
//!
//! Invariants: calls are answered in the order of the script, whichever connection they come on; a
//! call that is not next is refused with EPROTO, so that no test passes by accident; what came is
//! there for the test to look at.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread;

use luo::wire::{Frame, Limits, Receiver, Sender, WireError};
use rustix::event::{PollFd, PollFlags};
use rustix::fs::MemfdFlags;
use serde_json::{Value, json};

/// How the fake answers one call.
#[derive(Debug)]
pub(crate) enum Act {
    /// With this reply.
    Reply(Value),
    /// With this reply and a memory file that has this content.
    ReplyWith(Value, Vec<u8>),
    /// With these replies in turn, the last of which says that it is the last.
    Parts(Vec<Value>),
    /// With these replies in turn, and then nothing more.
    Feed(Vec<Value>),
    /// With these replies in turn, and then the connection breaks.
    FeedAndBreak(Vec<Value>),
    /// Not at all: the connection breaks, and nobody listens any more.
    Vanish,
    /// With the error `io.luo.Failed`.
    Refuse(Value),
    /// With the error `io.luo.WorkerFailed`.
    WorkerFailed(&'static str),
    /// Not at all.
    Silence,
}

/// A call as it came.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Call {
    pub(crate) method: String,
    pub(crate) parameters: Value,
    pub(crate) more: bool,
    /// What can be read from each descriptor that came along.
    pub(crate) descriptors: Vec<Vec<u8>>,
}

#[derive(Debug)]
struct Shared {
    socket: PathBuf,
    script: Mutex<VecDeque<(&'static str, Act)>>,
    calls: Mutex<Vec<Call>>,
}

/// A luod that follows a script.
#[derive(Debug)]
pub(crate) struct Fake {
    directory: tempfile::TempDir,
    shared: Arc<Shared>,
}

impl Fake {
    pub(crate) fn new(script: impl IntoIterator<Item = (&'static str, Act)>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("luo.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let shared = Arc::new(Shared {
            socket,
            script: Mutex::new(script.into_iter().collect()),
            calls: Mutex::default(),
        });
        let served = Arc::clone(&shared);
        // Lives as long as the test's process: a connection ends when its client does.
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (stream, served) = (stream.unwrap(), Arc::clone(&served));
                thread::spawn(move || served.serve(&stream));
            }
        });
        Self { directory, shared }
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.shared.socket.clone()
    }

    /// A place for the test's own files.
    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// The calls so far.
    pub(crate) fn calls(&self) -> Vec<Call> {
        self.shared.calls.lock().unwrap().clone()
    }

    /// The methods of the calls so far. Nothing of the script must be left.
    pub(crate) fn methods(&self) -> Vec<String> {
        assert_eq!(self.shared.script.lock().unwrap().len(), 0, "calls that never came");
        self.calls().into_iter().map(|call| call.method).collect()
    }
}

impl Shared {
    fn serve(&self, stream: &UnixStream) {
        let mut receiver = Receiver::new(Limits { bytes: 1 << 20 });
        loop {
            while let Some(frame) = receiver.next_frame().unwrap() {
                let act = self.take(frame);
                if matches!(act, Act::Vanish) {
                    fs::remove_file(&self.socket).unwrap();
                }
                let breaks = matches!(act, Act::Vanish | Act::FeedAndBreak(_));
                answer(stream, act);
                if breaks {
                    return;
                }
            }
            match receiver.fill(stream.as_fd()) {
                Ok(()) => {}
                Err(WireError::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => {
                    wait(stream, PollFlags::IN);
                }
                Err(_) => return,
            }
        }
    }

    fn take(&self, frame: Frame) -> Act {
        let call: Value = serde_json::from_slice(&frame.text).unwrap();
        let method = call["method"].as_str().unwrap().to_owned();
        self.calls.lock().unwrap().push(Call {
            method: method.clone(),
            parameters: call["parameters"].clone(),
            more: call["more"].as_bool().unwrap_or(false),
            descriptors: frame.descriptors.into_iter().map(content).collect(),
        });
        let mut script = self.script.lock().unwrap();
        match script.front() {
            Some((next, _)) if method == format!("io.luo.{next}") => script.pop_front().unwrap().1,
            next => Act::Refuse(json!({
                "errno": "EPROTO",
                "reason": format!("the script has {next:?} where {method} came"),
            })),
        }
    }
}

fn content(descriptor: OwnedFd) -> Vec<u8> {
    let mut content = Vec::new();
    File::from(descriptor).read_to_end(&mut content).unwrap();
    content
}

fn answer(stream: &UnixStream, act: Act) {
    let error = |name: &str, parameters: Value| {
        vec![(json!({ "error": name, "parameters": parameters }), None)]
    };
    let feed = |parts: Vec<Value>, endless: bool| {
        let count = parts.len();
        let parts = parts.into_iter().enumerate().map(|(index, part)| {
            let continues = endless || index + 1 < count;
            (json!({ "parameters": part, "continues": continues }), None)
        });
        parts.collect()
    };
    let frames: Vec<(Value, Option<OwnedFd>)> = match act {
        Act::Reply(reply) => vec![(json!({ "parameters": reply }), None)],
        Act::ReplyWith(reply, content) => {
            let memory = rustix::fs::memfd_create("handover", MemfdFlags::CLOEXEC).unwrap();
            let mut file = File::from(memory);
            file.write_all(&content).unwrap();
            vec![(json!({ "parameters": reply }), Some(file.into()))]
        }
        Act::Parts(parts) => feed(parts, false),
        Act::Feed(parts) | Act::FeedAndBreak(parts) => feed(parts, true),
        Act::Refuse(failure) => error("io.luo.Failed", json!({ "failure": failure })),
        Act::WorkerFailed(reason) => error("io.luo.WorkerFailed", json!({ "reason": reason })),
        Act::Silence | Act::Vanish => Vec::new(),
    };
    let mut sender = Sender::default();
    for (frame, descriptor) in frames {
        sender.push(serde_json::to_vec(&frame).unwrap(), descriptor.into_iter().collect());
    }
    loop {
        match sender.flush(stream.as_fd()) {
            Ok(()) => return,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                wait(stream, PollFlags::OUT);
            }
            // The client has gone; the test sees what it said.
            Err(_) => return,
        }
    }
}

fn wait(stream: &UnixStream, flags: PollFlags) {
    let mut poll = [PollFd::new(stream, flags)];
    while let Err(rustix::io::Errno::INTR) = rustix::event::poll(&mut poll, None) {}
}
