//! The commands: arguments in, changes to the store, a reply out.
//!
//! Invariants:
//! - Every request has exactly one reply, also one that fails.
//! - All arguments are understood before anything is changed.

mod strings;

use std::io::Write as _;
use std::time::{Duration, Instant};

use crate::glob;
use crate::resp::{number, reply};
use crate::store::{Region, Store, StoreError};

/// The longest reply, in bytes, but for one value.
pub const MAX_REPLY: usize = 256 << 20;

/// What the server tells of itself in INFO.
#[derive(Debug, Clone)]
pub struct ServerInfo {
    /// Names the version of the program that answers.
    pub version_label: String,
    /// When this process began to serve.
    pub started: Instant,
    /// Connections open now.
    pub connections: u64,
    /// Connections accepted, by this process.
    pub accepted: u64,
    /// Requests served, by this process.
    pub served: u64,
    /// Connections closed because a kill had left them in doubt.
    pub in_doubt: u64,
    /// The longest that one connection was served at a stretch, by this process.
    pub slowest_turn: Duration,
    /// How long this process took from its first look at the data until it was ready.
    pub resumed_in: Duration,
}

/// What comes after a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum After {
    /// The next request.
    Go,
    /// The end of this connection, once its replies are sent.
    Close,
    /// The end of the server, and of its data.
    Shutdown,
}

/// A request that is answered with an error.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("ERR {0}")]
    Text(String),
    #[error("ERR syntax error")]
    Syntax,
    #[error("ERR value is not an integer or out of range")]
    NotInteger,
    #[error("NOPROTO unsupported protocol version")]
    Protocol,
    #[error("{}", store_refusal(.0))]
    Store(#[from] StoreError),
}

fn store_refusal(error: &StoreError) -> String {
    match error {
        StoreError::Full { .. } => {
            format!("OOM command not allowed when used memory > 'maxmemory': {error}")
        }
        _ => format!("ERR {error}"),
    }
}

fn text(message: impl Into<String>) -> Refusal {
    Refusal::Text(message.into())
}

/// A request on its way through the commands.
struct Call<'a, R> {
    store: &'a mut Store<R>,
    args: &'a [&'a [u8]],
    out: &'a mut Vec<u8>,
    now_ms: u64,
}

/// Executes one request and appends its reply to `out`. `now_ms` is the time in milliseconds since 1970.
pub fn execute<R: Region>(
    store: &mut Store<R>,
    args: &[&[u8]],
    now_ms: u64,
    info: &ServerInfo,
    out: &mut Vec<u8>,
) -> After {
    let start = out.len();
    let mut call = Call { store, args, out, now_ms };
    match call.run(info) {
        Ok(after) => after,
        Err(refusal) => {
            // Part of a reply may be there already.
            out.truncate(start);
            reply::error(out, &refusal.to_string());
            After::Go
        }
    }
}

impl<R: Region> Call<'_, R> {
    fn run(&mut self, info: &ServerInfo) -> Result<After, Refusal> {
        let Some(name) = self.args.first() else { return Ok(After::Go) };
        let mut upper = [0; 16];
        let Some(upper) = upper.get_mut(..name.len()) else { return Err(unknown(name)) };
        upper.copy_from_slice(name);
        upper.make_ascii_uppercase();
        match &*upper {
            b"GET" => self.get(),
            b"SET" => self.set(),
            b"PING" => self.ping(),
            b"ECHO" => {
                self.arity(2..=2)?;
                reply::bulk(self.out, self.args[1]);
                Ok(())
            }
            b"DEL" | b"UNLINK" => self.del(),
            b"EXISTS" => self.exists(),
            b"MSET" => self.mset(),
            b"MGET" => self.mget(),
            b"INCR" => self.step(1, false),
            b"DECR" => self.step(-1, false),
            b"INCRBY" => self.step(1, true),
            b"DECRBY" => self.step(-1, true),
            b"APPEND" => self.append(),
            b"STRLEN" => self.strlen(),
            b"TTL" => self.ttl(1000),
            b"PTTL" => self.ttl(1),
            b"EXPIRE" => self.expire(1000),
            b"PEXPIRE" => self.expire(1),
            b"PERSIST" => self.persist(),
            b"TYPE" => self.kind(),
            b"DBSIZE" => self.dbsize(),
            b"FLUSHALL" | b"FLUSHDB" => self.flush(),
            b"KEYS" => self.keys(),
            b"SCAN" => self.scan(),
            b"INFO" => self.info(info),
            b"CONFIG" => self.config(),
            b"COMMAND" => self.command(),
            b"HELLO" => self.hello(info),
            b"CLIENT" => self.client(),
            b"SELECT" => self.select(),
            b"QUIT" => {
                reply::simple(self.out, "OK");
                return Ok(After::Close);
            }
            b"SHUTDOWN" => {
                self.arity(1..=2)?;
                return Ok(After::Shutdown);
            }
            _ => Err(unknown(name)),
        }?;
        Ok(After::Go)
    }

    /// Refuses a wrong number of arguments, the name among them.
    fn arity(&self, allowed: std::ops::RangeInclusive<usize>) -> Result<(), Refusal> {
        if allowed.contains(&self.args.len()) {
            return Ok(());
        }
        let name = String::from_utf8_lossy(self.args[0]).to_lowercase();
        Err(text(format!("wrong number of arguments for '{name}' command")))
    }

    fn ok(&mut self) {
        reply::simple(self.out, "OK");
    }

    fn ping(&mut self) -> Result<(), Refusal> {
        self.arity(1..=2)?;
        match self.args.get(1) {
            Some(message) => reply::bulk(self.out, message),
            None => reply::simple(self.out, "PONG"),
        }
        Ok(())
    }

    fn dbsize(&mut self) -> Result<(), Refusal> {
        self.arity(1..=1)?;
        let keys = self.store.stats()?.keys;
        reply::integer(self.out, i64::try_from(keys).unwrap_or(i64::MAX));
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Refusal> {
        self.arity(1..=2)?;
        if self.args.get(1).is_some_and(|mode| !is(mode, b"ASYNC") && !is(mode, b"SYNC")) {
            return Err(Refusal::Syntax);
        }
        self.store.flush_all()?;
        self.ok();
        Ok(())
    }

    fn keys(&mut self) -> Result<(), Refusal> {
        self.arity(2..=2)?;
        let pattern = self.args[1];
        let mut found = Found::default();
        self.store.scan(0, usize::MAX, self.now_ms, &mut |key| found.add(key, pattern))?;
        found.reply(self.out)
    }

    fn scan(&mut self) -> Result<(), Refusal> {
        self.arity(2..=6)?;
        let cursor = number(self.args[1]).and_then(|cursor| u64::try_from(cursor).ok());
        let cursor = cursor.ok_or_else(|| text("invalid cursor"))?;
        let (mut count, mut pattern) = (10, &b"*"[..]);
        for option in self.args[2..].chunks(2) {
            match option {
                [name, value] if is(name, b"COUNT") => {
                    let wanted = number(value).ok_or(Refusal::NotInteger)?;
                    count = usize::try_from(wanted)
                        .ok()
                        .filter(|count| *count > 0)
                        .ok_or(Refusal::Syntax)?;
                }
                [name, value] if is(name, b"MATCH") => pattern = value,
                _ => return Err(Refusal::Syntax),
            }
        }
        let mut found = Found::default();
        let next =
            self.store.scan(cursor, count, self.now_ms, &mut |key| found.add(key, pattern))?;
        reply::array(self.out, 2);
        reply::bulk(self.out, next.to_string().as_bytes());
        found.reply(self.out)
    }

    fn info(&mut self, info: &ServerInfo) -> Result<(), Refusal> {
        let stats = self.store.stats()?;
        let mut text = Vec::new();
        let written = write!(
            text,
            "# Server\r\nserver:kv\r\nversion_label:{}\r\nprocess_id:{}\r\nuptime_in_seconds:{}\r\n\
             resumed_in_us:{}\r\ngeneration:{}\r\n\r\n\
             # Clients\r\nconnected_clients:{}\r\nconnections_in_doubt:{}\r\n\r\n\
             # Memory\r\nused_memory:{}\r\nheap_bytes:{}\r\nmaxmemory:{}\r\ncondemned_entries:{}\r\n\r\n\
             # Stats\r\ntotal_connections_received:{}\r\ntotal_commands_processed:{}\r\nslowest_turn_us:{}\r\n\r\n\
             # Keyspace\r\ndb0:keys={},expires={}\r\n",
            info.version_label,
            std::process::id(),
            info.started.elapsed().as_secs(),
            info.resumed_in.as_micros(),
            stats.generation,
            info.connections,
            info.in_doubt,
            stats.live_bytes,
            stats.heap_bytes,
            stats.limit,
            stats.condemned,
            info.accepted,
            info.served,
            info.slowest_turn.as_micros(),
            stats.keys,
            stats.expiring,
        );
        written.map_err(|error| crate::commands::text(error.to_string()))?;
        reply::bulk(self.out, &text);
        Ok(())
    }

    fn config(&mut self) -> Result<(), Refusal> {
        match self.args.get(1) {
            Some(verb) if is(verb, b"GET") && self.args.len() >= 3 => {}
            Some(verb) if is(verb, b"GET") => return self.arity(3..=3),
            _ => return Err(text("only CONFIG GET is supported; kv is configured by its flags")),
        }
        let limit = self.store.stats()?.limit.to_string();
        let settings =
            [("save", ""), ("appendonly", "no"), ("maxmemory", limit.as_str()), ("databases", "1")];
        let wanted = |name: &str| {
            self.args[2..].iter().any(|pattern| glob::matches(pattern, name.as_bytes()))
        };
        let shown: Vec<_> = settings.into_iter().filter(|(name, _)| wanted(name)).collect();
        reply::array(self.out, shown.len() * 2);
        for (name, value) in shown {
            reply::bulk(self.out, name.as_bytes());
            reply::bulk(self.out, value.as_bytes());
        }
        Ok(())
    }

    fn command(&mut self) -> Result<(), Refusal> {
        reply::array(self.out, 0);
        Ok(())
    }

    fn hello(&mut self, info: &ServerInfo) -> Result<(), Refusal> {
        // Version 3 is refused, and clients fall back to version 2.
        if self.args.get(1).is_some_and(|version| number(version) != Some(2)) {
            return Err(Refusal::Protocol);
        }
        if self.args.len() > 2 {
            return Err(Refusal::Syntax);
        }
        reply::array(self.out, 8);
        for text in ["server", "kv", "version", &info.version_label, "proto"] {
            reply::bulk(self.out, text.as_bytes());
        }
        reply::integer(self.out, 2);
        reply::bulk(self.out, b"mode");
        reply::bulk(self.out, b"standalone");
        Ok(())
    }

    fn client(&mut self) -> Result<(), Refusal> {
        self.arity(2..=8)?;
        self.ok();
        Ok(())
    }

    fn select(&mut self) -> Result<(), Refusal> {
        self.arity(2..=2)?;
        match number(self.args[1]) {
            Some(0) => {
                self.ok();
                Ok(())
            }
            Some(_) => Err(text("DB index is out of range")),
            None => Err(Refusal::NotInteger),
        }
    }
}

/// Keys for a reply, collected up to the longest reply.
#[derive(Default)]
struct Found {
    count: usize,
    bytes: Vec<u8>,
    too_long: bool,
}

impl Found {
    fn add(&mut self, key: &[u8], pattern: &[u8]) {
        if self.too_long || !glob::matches(pattern, key) {
            return;
        }
        self.too_long = self.bytes.len() + key.len() > MAX_REPLY;
        self.count += 1;
        reply::bulk(&mut self.bytes, key);
    }

    fn reply(self, out: &mut Vec<u8>) -> Result<(), Refusal> {
        if self.too_long {
            return Err(text("the reply would be too long; use SCAN with a smaller COUNT"));
        }
        reply::array(out, self.count);
        out.extend_from_slice(&self.bytes);
        Ok(())
    }
}

/// Whether an argument is a word, in whatever case.
fn is(arg: &[u8], word: &[u8]) -> bool {
    arg.eq_ignore_ascii_case(word)
}

fn unknown(name: &[u8]) -> Refusal {
    let shown = &name[..name.len().min(64)];
    text(format!("unknown command '{}'", String::from_utf8_lossy(shown)))
}

#[cfg(test)]
mod tests;
