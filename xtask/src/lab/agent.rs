//! The host's side of the agent in the guest.

use std::io::{self, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use luo_lab_agent::{Answer, Request, WireError, read_bytes, read_frame, write_frame};

use crate::failure::{Context as _, Failed, Result};

/// The way to it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Agent {
    address: SocketAddr,
}

/// An answer, and the connection from which what belongs to it is read.
#[derive(Debug)]
pub(super) struct Answered {
    pub(super) answer: Answer,
    connection: TcpStream,
    deadline: Instant,
}

impl Agent {
    pub(super) fn at(address: SocketAddr) -> Self {
        Self { address }
    }

    /// Asks for something, and reads the answer. A refusal is a failure.
    pub(super) fn ask(&self, request: &Request, input: &[u8], wait: Duration) -> Result<Answered> {
        let doing = || format!("ask the guest for {}", short(request));
        let deadline = Instant::now() + wait;
        let connection =
            TcpStream::connect_timeout(&self.address, wait.max(LEAST)).context(doing)?;
        connection.set_nodelay(true).context(doing)?;
        connection.set_write_timeout(Some(wait.max(LEAST))).context(doing)?;
        let mut to = &connection;
        write_frame(&mut to, request).context(doing)?;
        to.write_all(input).context(doing)?;
        let mut answered = Answered { answer: Answer::Done, connection, deadline };
        answered.answer = answered.next().context(doing)?;
        match answered.answer {
            Answer::Failed { why } => {
                Err(Failed::new(format!("the guest could not do {}: {why}", short(request))))
            }
            _ => Ok(answered),
        }
    }
}

/// A timeout of zero would be none.
const LEAST: Duration = Duration::from_millis(1);

impl Answered {
    /// Reads another answer.
    pub(super) fn next(&mut self) -> std::result::Result<Answer, WireError> {
        read_frame(&mut self.reader()?)
    }

    /// Reads bytes that belong to the answer.
    pub(super) fn bytes(&mut self, len: u64) -> Result<Vec<u8>> {
        let doing = || "read what the guest answers".to_owned();
        let mut reader = self.reader().context(doing)?;
        read_bytes(&mut reader, len).context(doing)
    }

    /// Tells the guest that its answer was read.
    pub(super) fn close(&self) -> Result<()> {
        self.connection.shutdown(Shutdown::Write).context(|| "close the connection".into())
    }

    /// Whatever is to be read has to come before this moment.
    pub(super) fn until(&mut self, deadline: Instant) {
        self.deadline = deadline;
    }

    fn reader(&self) -> io::Result<Reader<'_>> {
        Ok(Reader { from: &self.connection, deadline: self.deadline })
    }
}

/// Reads until a moment, however slowly the bytes come.
struct Reader<'a> {
    from: &'a TcpStream,
    deadline: Instant,
}

impl io::Read for Reader<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.from.set_read_timeout(Some(left.max(LEAST)))?;
        self.from.read(into)
    }
}

/// A request in few words.
fn short(request: &Request) -> String {
    match request {
        Request::Run { argv, .. } | Request::Start { argv, .. } => format!("`{}`", argv.join(" ")),
        Request::Push { path, .. } => format!("writing {path}"),
        Request::Pull { path } => format!("reading {path}"),
        other => format!("{other:?}"),
    }
}
