//! QEMU's control socket: one command, one answer.
//!
//! Invariants: nothing waits past the deadline that was given when connecting.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::failure::{Context as _, Failed, Result};

/// A connection.
#[derive(Debug)]
pub(super) struct Qmp {
    stream: BufReader<UnixStream>,
}

impl Qmp {
    /// Connects, as soon as QEMU listens.
    pub(super) fn connect(path: &Path, wait: Duration) -> Result<Self> {
        let deadline = Instant::now() + wait;
        let doing = || "connect to QEMU's control socket".to_owned();
        let stream = loop {
            match UnixStream::connect(path) {
                Ok(stream) => break stream,
                Err(error) if Instant::now() > deadline => return Err(error).context(doing),
                Err(_) => std::thread::sleep(Duration::from_millis(5)),
            }
        };
        stream.set_read_timeout(Some(wait)).context(doing)?;
        stream.set_write_timeout(Some(wait)).context(doing)?;
        let mut qmp = Self { stream: BufReader::new(stream) };
        // The greeting.
        qmp.read()?;
        qmp.ask("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    /// Asks for something.
    pub(super) fn ask(&mut self, command: &str, arguments: Value) -> Result<Value> {
        let mut line = json!({ "execute": command, "arguments": arguments }).to_string();
        line.push('\n');
        self.stream
            .get_mut()
            .write_all(line.as_bytes())
            .context(|| format!("tell QEMU to {command}"))?;
        loop {
            let mut answer = self.read()?;
            if let Some(error) = answer.get("error") {
                return Err(Failed::new(format!("QEMU refuses {command}: {error}")));
            }
            // Everything else is an event, which nobody here waits for.
            if let Some(value) = answer.get_mut("return") {
                return Ok(value.take());
            }
        }
    }

    /// Runs a command of the monitor for people.
    pub(super) fn monitor(&mut self, command: &str) -> Result<String> {
        let said = self.ask("human-monitor-command", json!({ "command-line": command }))?;
        Ok(said.as_str().unwrap_or_default().to_owned())
    }

    fn read(&mut self) -> Result<Value> {
        let mut line = String::new();
        let doing = || "hear from QEMU".to_owned();
        let len = self.stream.read_line(&mut line).context(doing)?;
        if len == 0 {
            return Err(Failed::new("QEMU has closed its control socket"));
        }
        serde_json::from_str(&line).context(doing)
    }
}

/// The port of this machine that leads to a port of the guest, from `info usernet`.
pub(super) fn forwarded(usernet: &str, guest: u16) -> Option<u16> {
    usernet.lines().filter(|line| line.contains("HOST_FORWARD")).find_map(|line| {
        // Protocol, descriptor, source address and port, destination address and port, queues.
        let mut words = line.split_whitespace().skip(3);
        let host = words.next()?.parse().ok()?;
        (words.nth(1)?.parse() == Ok(guest)).then_some(host)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_port_that_leads_to_the_guests_is_found() {
        let usernet = "Hub -1 (net0):\n\
            \x20 Protocol[State]    FD  Source Address  Port   Dest. Address  Port RecvQ SendQ\n\
            \x20 TCP[HOST_FORWARD]  13       127.0.0.1 40001       10.0.2.15  6379     0     0\n\
            \x20 TCP[HOST_FORWARD]  12       127.0.0.1 40002       10.0.2.15  1024     0     0\n";
        assert_eq!(forwarded(usernet, 1024), Some(40002));
        assert_eq!(forwarded(usernet, 6379), Some(40001));
        assert_eq!(forwarded(usernet, 22), None);
    }
}
