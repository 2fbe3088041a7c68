//! The engine of the load: all connections in one thread.
//!
//! Invariants:
//! - `waiting` of a connection holds its requests in the order they were written, so the first reply belongs to
//!   the first of them.
//! - A connection that is lost is made anew and its requests are written again; setting the same value twice is
//!   harmless.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::io::Errno;

use super::histogram::{Histogram, Timeline};
use super::pattern::{Random, key, value};
use super::{LoadError, LoadOptions, Progress, Slot, Snapshot, StepReport, Work};

/// Bytes of values under way on a connection while filling and verifying.
const PIPELINE_BYTES: usize = 256 << 10;
/// How long to try to reach a server that refuses connections.
const RECONNECT: Duration = Duration::from_secs(10);
/// How long one try to connect may take.
const CONNECT: Duration = Duration::from_secs(2);

/// What the connections do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// Set every key once.
    Fill,
    /// Set and get, until told to stop.
    Load,
    /// Get every key once.
    Verify,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verb {
    Set,
    Get,
}

/// A request under way.
#[derive(Debug, Clone, Copy)]
struct Request {
    verb: Verb,
    key: u64,
    generation: u32,
    made: Instant,
}

#[derive(Debug)]
struct Connection {
    socket: TcpStream,
    waiting: VecDeque<Request>,
    output: Vec<u8>,
    sent: usize,
    input: Vec<u8>,
    watches_output: bool,
    /// Which of its keys comes next in a phase that goes through all.
    next: u64,
    random: Random,
    /// The key that was set last, to be got next.
    last_set: Option<u64>,
}

#[derive(Debug, Default)]
struct Step {
    name: String,
    started: Option<Instant>,
    histogram: Histogram,
    failed: u64,
    dropped: u64,
    verified_bytes: u64,
}

pub(super) struct Engine {
    address: SocketAddr,
    options: LoadOptions,
    epoll: OwnedFd,
    connections: Vec<Connection>,
    keys: u64,
    /// The generation of each key that was acknowledged last; 0 before it was first set.
    generations: Vec<u32>,
    steps: Vec<Step>,
    began: Instant,
    timeline: Timeline,
    first_failure: Option<String>,
    scratch: Vec<u8>,
    phase_done: u64,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine")
            .field("address", &self.address)
            .field("keys", &self.keys)
            .finish_non_exhaustive()
    }
}

impl Engine {
    pub(super) fn connect(address: SocketAddr, options: LoadOptions) -> Result<Self, LoadError> {
        let epoll = epoll::create(CreateFlags::CLOEXEC).map_err(LoadError::Events)?;
        let keys = (options.fill_bytes / options.value_len as u64).max(options.connections as u64);
        let mut engine = Self {
            address,
            epoll,
            connections: Vec::with_capacity(options.connections),
            keys,
            generations: vec![0; usize::try_from(keys).map_err(|_| LoadError::Options)?],
            steps: Vec::new(),
            began: Instant::now(),
            timeline: Timeline::default(),
            first_failure: None,
            scratch: Vec::new(),
            phase_done: 0,
            options,
        };
        for index in 0..engine.options.connections {
            let socket = open(address)?;
            engine.watch(&socket, index)?;
            engine.connections.push(Connection {
                socket,
                waiting: VecDeque::new(),
                output: Vec::new(),
                sent: 0,
                input: Vec::new(),
                watches_output: false,
                next: 0,
                random: Random::new(index as u64),
                last_set: None,
            });
        }
        Ok(engine)
    }

    /// Makes all connections anew, to this address. Nothing may be under way on them.
    pub(super) fn move_to(&mut self, address: SocketAddr) -> Result<(), LoadError> {
        self.address = address;
        for index in 0..self.connections.len() {
            let socket = open(address)?;
            self.watch(&socket, index)?;
            let Some(connection) = self.connections.get_mut(index) else { continue };
            // The one before leaves the epoll set as it is closed here.
            connection.socket = socket;
            connection.watches_output = false;
            connection.input.clear();
        }
        Ok(())
    }

    fn watch(&self, socket: &TcpStream, index: usize) -> Result<(), LoadError> {
        epoll::add(&self.epoll, socket, EventData::new_u64(index as u64), EventFlags::IN)
            .map_err(LoadError::Events)
    }

    /// Runs a phase until all is done, or `look` says stop, and the last answer has come.
    pub(super) fn run(
        &mut self,
        phase: Phase,
        look: &mut dyn FnMut(&mut Self) -> bool,
    ) -> Result<(), LoadError> {
        self.phase_done = 0;
        if self.steps.is_empty() {
            self.mark("load".into());
        }
        for connection in &mut self.connections {
            connection.next = 0;
        }
        let mut going = true;
        let mut events: Vec<Event> = Vec::with_capacity(self.connections.len());
        for index in 0..self.connections.len() {
            self.refill(index, phase);
            self.exchange(index, false)?;
        }
        loop {
            let looked = look(self);
            going &= looked;
            if self.connections.iter().all(|connection| connection.waiting.is_empty()) {
                return Ok(());
            }
            let tick = Timespec { tv_sec: 0, tv_nsec: 5_000_000 };
            match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), Some(&tick))
            {
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(LoadError::Events(errno)),
            }
            if events.is_empty() {
                self.find_overdue()?;
            }
            for event in events.drain(..) {
                let index = event.data.u64() as usize;
                let flags = event.flags;
                self.exchange(
                    index,
                    flags.intersects(EventFlags::IN | EventFlags::HUP | EventFlags::ERR),
                )?;
                if going {
                    self.refill(index, phase);
                    self.exchange(index, false)?;
                }
            }
        }
    }

    /// Begins the measured part.
    pub(super) fn begin_load(&mut self) {
        self.steps.clear();
        self.timeline = Timeline::default();
        self.began = Instant::now();
        self.mark("load".into());
    }

    /// Begins a step.
    pub(super) fn mark(&mut self, name: String) {
        self.steps.push(Step { name, started: Some(Instant::now()), ..Step::default() });
    }

    pub(super) fn progress(&self, work: Work) -> Progress {
        let len = self.options.value_len as u64;
        Progress { work, done: self.phase_done * len, total: self.keys * len }
    }

    pub(super) fn first_failure(&self) -> Option<String> {
        self.first_failure.clone()
    }

    pub(super) fn snapshot(&self) -> Snapshot {
        let mut snapshot = Snapshot::default();
        for step in &self.steps {
            snapshot.served += step.histogram.count();
            snapshot.failed += step.failed;
            snapshot.dropped += step.dropped;
            snapshot.verified_bytes += step.verified_bytes;
            snapshot.worst = step.histogram.worst();
        }
        snapshot
    }

    pub(super) fn take_timeline(&mut self) -> Vec<Slot> {
        std::mem::take(&mut self.timeline).into_slots()
    }

    pub(super) fn take_steps(&mut self) -> Vec<StepReport> {
        self.take_steps_and_total("").0
    }

    /// The steps, and all of them as one.
    pub(super) fn take_steps_and_total(
        &mut self,
        total_name: &str,
    ) -> (Vec<StepReport>, StepReport) {
        let now = Instant::now();
        let steps = std::mem::take(&mut self.steps);
        let mut total =
            Step { name: total_name.into(), started: Some(self.began), ..Step::default() };
        let mut reports = Vec::with_capacity(steps.len());
        for (index, step) in steps.iter().enumerate() {
            total.histogram.merge(&step.histogram);
            total.failed += step.failed;
            total.dropped += step.dropped;
            total.verified_bytes += step.verified_bytes;
            let end = steps.get(index + 1).and_then(|next| next.started).unwrap_or(now);
            reports.push(self.report(step, end));
        }
        (reports, self.report(&total, now))
    }

    fn report(&self, step: &Step, end: Instant) -> StepReport {
        let ms = |duration: Duration| duration.as_secs_f64() * 1e3;
        let started = step.started.unwrap_or(self.began);
        StepReport {
            name: step.name.clone(),
            started_ms: ms(started.saturating_duration_since(self.began)),
            duration_ms: ms(end.saturating_duration_since(started)),
            served: step.histogram.count(),
            failed: step.failed,
            dropped: step.dropped,
            verified_bytes: step.verified_bytes,
            worst_ms: ms(step.histogram.worst()),
            p50_ms: ms(step.histogram.percentile(50.0)),
            p99_ms: ms(step.histogram.percentile(99.0)),
        }
    }

    /// Makes requests until the connection has enough under way.
    fn refill(&mut self, index: usize, phase: Phase) {
        let depth = match phase {
            Phase::Load => 1,
            Phase::Fill | Phase::Verify => {
                (PIPELINE_BYTES / self.options.value_len).min(self.options.depth).max(1)
            }
        };
        let (count, keys, len) =
            (self.options.connections as u64, self.keys, self.options.value_len);
        let Some(connection) = self.connections.get_mut(index) else { return };
        // The connection's keys are index, index + count, index + 2 * count, …
        let own = (keys - index as u64).div_ceil(count);
        while connection.waiting.len() < depth {
            let (verb, nth) = match phase {
                Phase::Fill | Phase::Verify if connection.next >= own => return,
                Phase::Fill | Phase::Verify => {
                    connection.next += 1;
                    (if phase == Phase::Fill { Verb::Set } else { Verb::Get }, connection.next - 1)
                }
                Phase::Load => match connection.last_set.take() {
                    // What was just set, or anything else that was set before.
                    Some(nth) if connection.random.next().is_multiple_of(2) => (Verb::Get, nth),
                    Some(_) => (Verb::Get, connection.random.next() % own),
                    None => {
                        let nth = connection.random.next() % own;
                        connection.last_set = Some(nth);
                        (Verb::Set, nth)
                    }
                },
            };
            let key = index as u64 + nth * count;
            let acknowledged = self.generations.get(key as usize).copied().unwrap_or(0);
            let generation =
                if verb == Verb::Set { acknowledged.wrapping_add(1) } else { acknowledged };
            let request = Request { verb, key, generation, made: Instant::now() };
            write_request(&request, len, &mut connection.output);
            connection.waiting.push_back(request);
        }
    }

    /// Sends what is to be sent, and takes the answers that are there if `readable`.
    fn exchange(&mut self, index: usize, readable: bool) -> Result<(), LoadError> {
        let mut lost = self.send(index)?;
        if lost.is_none() && readable {
            lost = self.receive(index);
        }
        match lost {
            Some(reason) => self.reconnect(index, &reason),
            None => Ok(()),
        }
    }

    fn send(&mut self, index: usize) -> Result<Option<String>, LoadError> {
        let Some(connection) = self.connections.get_mut(index) else { return Ok(None) };
        while connection.sent < connection.output.len() {
            match connection.socket.write(&connection.output[connection.sent..]) {
                Ok(count) => connection.sent += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Ok(Some(error.to_string())),
            }
        }
        let pending = connection.sent < connection.output.len();
        if !pending {
            connection.output.clear();
            connection.sent = 0;
        }
        if pending != connection.watches_output {
            connection.watches_output = pending;
            let flags = if pending { EventFlags::IN | EventFlags::OUT } else { EventFlags::IN };
            epoll::modify(&self.epoll, &connection.socket, EventData::new_u64(index as u64), flags)
                .map_err(LoadError::Events)?;
        }
        Ok(None)
    }

    /// Reads once and checks the answers; the reason where the connection is lost.
    fn receive(&mut self, index: usize) -> Option<String> {
        let connection = self.connections.get_mut(index)?;
        let start = connection.input.len();
        connection.input.resize(start + (64 << 10), 0);
        let read = connection.socket.read(connection.input.get_mut(start..)?);
        connection.input.truncate(start + *read.as_ref().unwrap_or(&0));
        match read {
            Ok(0) => return Some("the server closed the connection".into()),
            Ok(_) => {}
            Err(error)
                if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) =>
            {
                return None;
            }
            Err(error) => return Some(error.to_string()),
        }
        let mut input = std::mem::take(&mut connection.input);
        let mut used = 0;
        let lost = loop {
            match reply_len(&input[used..]) {
                Ok(Some(len)) => {
                    if !self.check(index, &input[used..used + len]) {
                        break Some("an answer that nobody asked for".into());
                    }
                    used += len;
                }
                Ok(None) => break None,
                Err(()) => break Some("an answer that is not of the protocol".into()),
            }
        };
        input.drain(..used);
        if let Some(connection) = self.connections.get_mut(index) {
            connection.input = input;
        }
        lost
    }

    /// Compares an answer with what it must be; false where no request waits for it.
    fn check(&mut self, index: usize, answer: &[u8]) -> bool {
        let Some(request) = self.connections.get_mut(index).and_then(|c| c.waiting.pop_front())
        else {
            return false;
        };
        let now = Instant::now();
        self.scratch.clear();
        match request.verb {
            Verb::Set => self.scratch.extend_from_slice(b"+OK\r\n"),
            Verb::Get => {
                let len = self.options.value_len;
                self.scratch.extend_from_slice(format!("${len}\r\n").as_bytes());
                value(request.key, request.generation, len, &mut self.scratch);
                self.scratch.extend_from_slice(b"\r\n");
            }
        }
        self.phase_done += 1;
        let Some(step) = self.steps.last_mut() else { return true };
        if answer == self.scratch {
            let latency = now.saturating_duration_since(request.made);
            step.histogram.record(latency);
            self.timeline.record(now.saturating_duration_since(self.began), latency);
            match request.verb {
                Verb::Set => {
                    if let Some(generation) = self.generations.get_mut(request.key as usize) {
                        *generation = request.generation;
                    }
                }
                Verb::Get => step.verified_bytes += self.options.value_len as u64,
            }
        } else {
            step.failed += 1;
            let shown = String::from_utf8_lossy(&answer[..answer.len().min(80)]).into_owned();
            let Request { verb, generation, .. } = request;
            let name = key(request.key);
            self.first_failure.get_or_insert_with(|| {
                format!("{verb:?} of {name} in generation {generation} was answered {shown:?}")
            });
        }
        true
    }

    /// Counts requests that wait too long as failed, and makes their connections anew.
    fn find_overdue(&mut self) -> Result<(), LoadError> {
        for index in 0..self.connections.len() {
            let timeout = self.options.request_timeout;
            let Some(connection) = self.connections.get_mut(index) else { continue };
            if connection.waiting.front().is_some_and(|request| request.made.elapsed() > timeout) {
                connection.waiting.pop_front();
                if let Some(step) = self.steps.last_mut() {
                    step.failed += 1;
                }
                self.reconnect(index, &format!("no answer for {timeout:?}"))?;
            }
        }
        Ok(())
    }

    fn reconnect(&mut self, index: usize, reason: &str) -> Result<(), LoadError> {
        self.first_failure.get_or_insert_with(|| format!("connection {index} was lost: {reason}"));
        if let Some(step) = self.steps.last_mut() {
            step.dropped += 1;
        }
        let begun = Instant::now();
        let socket = loop {
            match open(self.address) {
                Ok(socket) => break socket,
                Err(error) if begun.elapsed() > RECONNECT => return Err(error),
                Err(_) => std::thread::sleep(Duration::from_millis(10)),
            }
        };
        self.watch(&socket, index)?;
        let len = self.options.value_len;
        let Some(connection) = self.connections.get_mut(index) else { return Ok(()) };
        connection.socket = socket;
        connection.watches_output = false;
        connection.input.clear();
        connection.output.clear();
        connection.sent = 0;
        for request in &connection.waiting {
            write_request(request, len, &mut connection.output);
        }
        // The event loop sends it: a new socket is writable, and is watched for that.
        connection.watches_output = true;
        let flags = EventFlags::IN | EventFlags::OUT;
        epoll::modify(&self.epoll, &connection.socket, EventData::new_u64(index as u64), flags)
            .map_err(LoadError::Events)
    }
}

fn open(address: SocketAddr) -> Result<TcpStream, LoadError> {
    let failed = |source| LoadError::Connect { address, source };
    let socket = TcpStream::connect_timeout(&address, CONNECT).map_err(failed)?;
    socket.set_nodelay(true).map_err(failed)?;
    socket.set_nonblocking(true).map_err(failed)?;
    Ok(socket)
}

fn write_request(request: &Request, value_len: usize, out: &mut Vec<u8>) {
    use crate::resp::reply;

    let name = key(request.key);
    match request.verb {
        Verb::Set => {
            reply::array(out, 3);
            reply::bulk(out, b"SET");
            reply::bulk(out, name.as_bytes());
            reply::bulk_header(out, value_len);
            value(request.key, request.generation, value_len, out);
            out.extend_from_slice(b"\r\n");
        }
        Verb::Get => {
            reply::array(out, 2);
            reply::bulk(out, b"GET");
            reply::bulk(out, name.as_bytes());
        }
    }
}

/// The length of the reply at the start of `input`, once all of it is there.
fn reply_len(input: &[u8]) -> Result<Option<usize>, ()> {
    let Some(kind) = input.first() else { return Ok(None) };
    let Some(newline) = input.iter().take(1 << 16).position(|byte| *byte == b'\n') else {
        return Ok(None);
    };
    let len = match kind {
        b'+' | b'-' | b':' => newline + 1,
        b'$' => {
            let digits = input.get(1..newline.saturating_sub(1)).unwrap_or_default();
            match crate::resp::number(digits).ok_or(())? {
                -1 => newline + 1,
                len => newline + 3 + usize::try_from(len).map_err(|_| ())?,
            }
        }
        _ => return Err(()),
    };
    Ok(Some(len).filter(|len| *len <= input.len()))
}
