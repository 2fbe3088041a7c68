//! luod before the network: whoever brings connections over a kexec has them back before the first
//! packet can reach this kernel.

use std::fs::{self, File};
use std::io;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::setup;

/// On the kernel's command line: luod's configuration, each byte as two hexadecimal digits.
const CONFIGURATION: &str = "lab.luod=";
/// On the kernel's command line: a path that has to be there first.
const AWAIT: &str = "lab.await=";

const FILE: &str = "/etc/luod.toml";
const LOG: &str = "/run/lab/luod.log";
const NOTIFY: &str = "/run/lab/notify";
/// How long a device may take to appear, and luod to serve.
const WAIT: Duration = Duration::from_secs(60);

/// Starts luod where the kernel's command line says so, and comes back when it serves.
pub(crate) fn start_luod(command_line: &str) -> io::Result<()> {
    let word = |name| command_line.split_whitespace().find_map(|word| word.strip_prefix(name));
    let Some(configuration) = word(CONFIGURATION) else { return Ok(()) };
    let configuration = decode(configuration)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "not hexadecimal"))?;
    if let Some(path) = word(AWAIT) {
        let deadline = Instant::now() + WAIT;
        while !Path::new(path).exists() {
            if Instant::now() > deadline {
                return Err(io::Error::new(io::ErrorKind::TimedOut, format!("no {path}")));
            }
            thread::sleep(Duration::from_millis(5));
        }
    }
    fs::create_dir_all("/etc")?;
    fs::write(FILE, configuration)?;
    let ready = UnixDatagram::bind(NOTIFY)?;
    ready.set_read_timeout(Some(WAIT))?;
    let log = File::create(LOG)?;
    let mut command = Command::new("luod");
    setup::environment(&mut command);
    command.args(["--config", FILE]).env("NOTIFY_SOCKET", NOTIFY);
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    // It is process 1 that reaps it.
    let _ = command.spawn()?;
    let mut message = [0; 1024];
    loop {
        let length = ready.recv(&mut message)?;
        let said = message.get(..length).unwrap_or_default();
        if said.split(|byte| *byte == b'\n').any(|line| line == b"READY=1") {
            return Ok(());
        }
    }
}

fn decode(digits: &str) -> Option<Vec<u8>> {
    let digit =
        |byte: &u8| char::from(*byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let pairs = digits.as_bytes().chunks(2);
    pairs
        .map(|pair| match pair {
            [high, low] => Some(digit(high)? << 4 | digit(low)?),
            _ => None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_is_read_whole_or_not_at_all() {
        assert_eq!(decode("6b76").as_deref(), Some(&b"kv"[..]));
        assert_eq!(decode("").as_deref(), Some(&b""[..]));
        for bad in ["6", "6g", "6b7", "ä0"] {
            assert_eq!(decode(bad), None, "{bad}");
        }
    }

    #[test]
    fn without_a_configuration_nothing_is_started() {
        start_luod("console=ttyS0 lab.shell").unwrap();
        assert!(start_luod("lab.luod=xyz").is_err());
    }
}
