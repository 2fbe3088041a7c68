//! One connection: bytes in, requests, replies, bytes out.
//!
//! ```text
//! reading --request--> executing --replies--> sending --all sent--> reading
//!                                             └ would block: waits until it can be written; reads nothing
//! ```
//!
//! Invariants:
//! - While replies are pending nothing is read, so a client that does not read its replies costs the memory of
//!   one batch of them and no more.
//! - When [`serve`](Connection::serve) returns, either replies are pending or the input holds no whole request.

use std::os::fd::OwnedFd;

use rustix::buffer::spare_capacity;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};

use crate::commands::{After, ServerInfo, execute};
use crate::journal::UnderWay;
use crate::resp::{Parser, reply};
use crate::store::Store;

/// Requests are executed until this many bytes of replies are pending.
const OUTPUT_HIGH: usize = 256 << 10;
/// How much is read at once.
const READ: usize = 64 << 10;
/// How much is read at once when a long request is known to be coming.
const READ_LONG: usize = 1 << 20;

/// What becomes of a connection after it was served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    Open,
    Closed,
    Shutdown,
}

#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) socket: OwnedFd,
    pub(crate) under_way: UnderWay,
    parser: Parser,
    /// The events that the server waits for.
    pub(crate) watched: Option<Watch>,
}

/// What a connection waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Watch {
    Readable,
    Writable,
}

impl Connection {
    pub(crate) fn new(socket: OwnedFd, under_way: UnderWay) -> Self {
        Self { socket, under_way, parser: Parser::default(), watched: None }
    }

    pub(crate) fn watch(&self) -> Watch {
        if self.under_way.output.is_empty() { Watch::Readable } else { Watch::Writable }
    }

    /// Sends, reads, executes and sends again, as far as it goes without waiting.
    pub(crate) fn serve(&mut self, store: &mut Store, info: &mut ServerInfo, now_ms: u64) -> Fate {
        if self.send().is_err() {
            return Fate::Closed;
        }
        if !self.under_way.output.is_empty() {
            return Fate::Open;
        }
        if self.under_way.closing {
            return Fate::Closed;
        }
        let ended = match self.receive() {
            Ok(count) => count == Some(0),
            Err(_) => return Fate::Closed,
        };
        loop {
            let fate = self.execute(store, info, now_ms);
            let full = self.under_way.output.len() >= OUTPUT_HIGH;
            if self.send().is_err() {
                return Fate::Closed;
            }
            if fate == Fate::Shutdown {
                return fate;
            }
            if !self.under_way.output.is_empty() {
                // The end is seen again once reading goes on.
                return Fate::Open;
            }
            if self.under_way.closing {
                return Fate::Closed;
            }
            if !full {
                return if ended { Fate::Closed } else { Fate::Open };
            }
        }
    }

    /// Executes whole requests until there is none, or enough replies are pending.
    fn execute(&mut self, store: &mut Store, info: &mut ServerInfo, now_ms: u64) -> Fate {
        let UnderWay { input, output, closing, .. } = &mut self.under_way;
        while !*closing && output.len() < OUTPUT_HIGH {
            let request = match self.parser.advance(input.bytes()) {
                Ok(Some(request)) => request,
                Ok(None) => break,
                Err(error) => {
                    reply::error(output.tail(), &format!("ERR {error}"));
                    // What follows cannot be told apart into requests.
                    input.consume(input.len());
                    *closing = true;
                    break;
                }
            };
            let args = request.args(input.bytes());
            let after = execute(store, &args, now_ms, info, output.tail());
            info.served += u64::from(!args.is_empty());
            input.consume(request.consumed);
            match after {
                After::Go => {}
                After::Close => {
                    input.consume(input.len());
                    *closing = true;
                }
                After::Shutdown => return Fate::Shutdown,
            }
        }
        Fate::Open
    }

    /// Reads once; `None` where nothing is there, 0 at the end.
    fn receive(&mut self) -> Result<Option<usize>, Errno> {
        let missing = self.parser.needed().saturating_sub(self.under_way.input.len());
        let tail = self.under_way.input.tail();
        tail.reserve(missing.clamp(READ, READ_LONG));
        loop {
            match rustix::net::recv(&self.socket, spare_capacity(tail), RecvFlags::empty()) {
                Ok((_, count)) => return Ok(Some(count)),
                Err(Errno::AGAIN) => return Ok(None),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
        }
    }

    /// Sends what is pending, as far as it goes without waiting.
    pub(crate) fn send(&mut self) -> Result<(), Errno> {
        let output = &mut self.under_way.output;
        while !output.is_empty() {
            match rustix::net::send(&self.socket, output.bytes(), SendFlags::NOSIGNAL) {
                Ok(count) => output.consume(count),
                Err(Errno::AGAIN) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
        }
        Ok(())
    }
}
