//! TCP connections go on while the kernel under them is replaced: their clients, outside of the
//! machine, wait for a while, and that is all.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv6Addr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use luo_lab_agent::End;
use tempfile::TempDir;

use super::guest;
use super::medium::Medium;
use super::must;
use crate::failure::{Context as _, Failed, Result};
use crate::lab::machine::{Config, KV_PORT, Machine, Wire};
use crate::lab::{Kernel, Lab};

const CALLERS: usize = 100;
/// Requests of each that are answered before the kernel is replaced, and after it.
const ROUNDS: u64 = 20;
/// Between two requests of all callers but the first, which makes none: the emulated machine has other
/// work too.
const PAUSE: Duration = Duration::from_millis(200);
/// Longer than a kexec takes, and than it takes a peer to send again what was lost meanwhile.
const PATIENCE: Duration = Duration::from_secs(240);
/// So much is sent at once, and its answers are read on the other side.
const BACKLOG: usize = 4 << 20;

pub(super) fn liveupdate(lab: &Lab) -> Result<String> {
    cross(lab, Medium::Liveupdate, Kernel::Own)
}

pub(super) fn arena(lab: &Lab) -> Result<String> {
    cross(lab, Medium::Pmem, Kernel::Stock)
}

/// The caller is another machine, since QEMU's user network has no way in for IPv6.
pub(super) fn ipv6(lab: &Lab) -> Result<String> {
    const NET: [u16; 7] = [0xfd6c, 0x756f, 0, 0, 0, 0, 0];
    const COUNTED: &str = "/run/lab/counted";
    const STOP: &str = "/run/lab/stop";
    const LOG: &str = "/run/lab/count.log";
    let [a, b, c, d, e, f, g] = NET;
    let cable = TempDir::with_prefix("luo-lab-").context(|| "make a directory".into())?;
    let socket = cable.path().join("cable");
    let end = |listens, number| Wire {
        socket: socket.clone(),
        listens,
        address: Ipv6Addr::new(a, b, c, d, e, f, g, number),
    };
    let medium = Medium::Liveupdate;
    let (here, there) = (end(true, 1), end(false, 2));
    let served = SocketAddr::from((here.address, KV_PORT));
    let mut config = Config::new(Kernel::Own);
    config.append.push_str(&medium.luod_first());
    config.wire = Some(here);
    let mut machine = Machine::start(lab, &config)?;
    guest::start_kv(&machine)?;
    let mut config = Config::new(Kernel::Own);
    config.wire = Some(there);
    let outside = Machine::start(lab, &config)?;
    let argv = ["luo-lab-client", "count", &served.to_string(), COUNTED, STOP];
    let caller = outside.spawn(&argv, LOG)?;
    let log = || String::from_utf8_lossy(&outside.pull(LOG).unwrap_or_default()).into_owned();
    let counted = || -> Option<u64> {
        String::from_utf8_lossy(&outside.pull(COUNTED).ok()?).trim().parse().ok()
    };
    let until = |count: u64| -> Result<()> {
        let began = Instant::now();
        while counted().is_none_or(|now| now < count) {
            must(began.elapsed() < PATIENCE, || {
                format!("the caller waits at {:?}: {}", counted(), log())
            })?;
            thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    };
    until(10 * ROUNDS)?;
    guest::load(&machine, Kernel::Own)?;
    let kexec = guest::reboot(&mut machine, medium)?;
    let status = guest::luoctl(&machine, &["status"])?;
    must(status.contains("updated"), || format!("luod found nothing that was kept: {status}"))?;
    guest::start_kv(&machine)?;
    guest::luoctl(&machine, &["finish"])?;
    until(counted().unwrap_or(0) + 10 * ROUNDS)?;
    outside.push(STOP, 0o644, b"")?;
    let ended = outside.wait(caller, PATIENCE)?;
    must(ended == End::Exited(0), || format!("the caller ended with {ended:?}: {}", log()))?;
    Ok(format!("{}, the kexec {:.1} s", log().trim(), kexec.as_secs_f64()))
}

fn cross(lab: &Lab, medium: Medium, kernel: Kernel) -> Result<String> {
    let mut config = Config::new(kernel);
    config.append.push_str(&medium.luod_first());
    let mut machine = Machine::start(lab, &config)?;
    medium.create(&machine)?;
    guest::start_kv(&machine)?;
    let address = machine.address(KV_PORT)?;
    let stop = Arc::new(AtomicBool::new(false));
    let callers: Vec<Caller> =
        (0..CALLERS).map(|number| Caller::start(address, number, &stop)).collect::<Result<_>>()?;
    let backlog = Backlog::send(address)?;
    for caller in &callers {
        caller.until(ROUNDS)?;
    }
    guest::load(&machine, kernel)?;
    let kexec = guest::reboot(&mut machine, medium)?;
    let status = guest::luoctl(&machine, &["status"])?;
    must(status.contains("updated"), || format!("luod found nothing that was kept: {status}"))?;
    guest::start_kv(&machine)?;
    guest::luoctl(&machine, &["finish"])?;
    let answered: Vec<u64> = callers.iter().map(Caller::answered).collect();
    for (caller, answered) in callers.iter().zip(answered) {
        caller.until(answered + ROUNDS)?;
    }
    let read = backlog.read()?;
    stop.store(true, Ordering::Relaxed);
    let mut requests = 0;
    let mut longest = Duration::ZERO;
    for caller in callers {
        let (answered, waited) = caller.end()?;
        requests += answered;
        longest = longest.max(waited);
    }
    Ok(format!(
        "{CALLERS} connections, {requests} numbered requests, {read} bytes from queues; the longest \
         answer took {:.1} s, the kexec {:.1} s",
        longest.as_secs_f64(),
        kexec.as_secs_f64()
    ))
}

fn connect(address: SocketAddr) -> Result<TcpStream> {
    let doing = || "connect to kv".to_owned();
    let stream = TcpStream::connect(address).context(doing)?;
    stream.set_nodelay(true).context(doing)?;
    stream.set_read_timeout(Some(PATIENCE)).context(doing)?;
    stream.set_write_timeout(Some(PATIENCE)).context(doing)?;
    Ok(stream)
}

/// A client that counts by `INCR`, on one connection: a request that was lost or done
/// twice would show in the next answer.
struct Caller {
    number: usize,
    answered: Arc<std::sync::atomic::AtomicU64>,
    thread: JoinHandle<Result<(u64, Duration)>>,
}

impl Caller {
    fn start(address: SocketAddr, number: usize, stop: &Arc<AtomicBool>) -> Result<Self> {
        let stream = connect(address)?;
        let answered = Arc::new(std::sync::atomic::AtomicU64::new(0));
        let (count, stop) = (Arc::clone(&answered), Arc::clone(stop));
        let thread = thread::spawn(move || {
            let doing = || format!("count on connection {number}");
            let mut answers = BufReader::new(stream.try_clone().context(doing)?);
            let mut longest = Duration::ZERO;
            let mut line = String::new();
            while !stop.load(Ordering::Relaxed) {
                let next = count.load(Ordering::Relaxed) + 1;
                let begun = Instant::now();
                (&stream)
                    .write_all(format!("INCR caller-{number}\r\n").as_bytes())
                    .context(doing)?;
                line.clear();
                answers.read_line(&mut line).context(doing)?;
                must(line.trim_end() == format!(":{next}"), || {
                    format!("connection {number} got {line:?} as answer {next}")
                })?;
                longest = longest.max(begun.elapsed());
                count.store(next, Ordering::Relaxed);
                if number > 0 {
                    thread::sleep(PAUSE);
                }
            }
            Ok((count.load(Ordering::Relaxed), longest))
        });
        Ok(Self { number, answered, thread })
    }

    fn answered(&self) -> u64 {
        self.answered.load(Ordering::Relaxed)
    }

    /// Waits until so many requests were answered.
    fn until(&self, count: u64) -> Result<()> {
        let began = Instant::now();
        while self.answered() < count && !self.thread.is_finished() {
            must(began.elapsed() < PATIENCE, || {
                format!("connection {} waits at request {}", self.number, self.answered() + 1)
            })?;
            thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    fn end(self) -> Result<(u64, Duration)> {
        self.thread.join().map_err(|_| Failed::new("a caller panicked"))?
    }
}

/// A connection whose answers nobody reads until the kernel is another one: its queues are full, on
/// both sides and in both directions.
struct Backlog {
    stream: TcpStream,
    writer: JoinHandle<Result<()>>,
}

impl Backlog {
    fn send(address: SocketAddr) -> Result<Self> {
        let stream = connect(address)?;
        let mut to = stream.try_clone().context(|| "share a connection".into())?;
        let writer = thread::spawn(move || {
            for chunk in payload().chunks(1 << 16) {
                let header = format!("*2\r\n$4\r\nECHO\r\n${}\r\n", chunk.len());
                let request = [header.as_bytes(), chunk, b"\r\n"].concat();
                to.write_all(&request).context(|| "send much".into())?;
            }
            Ok(())
        });
        Ok(Self { stream, writer })
    }

    fn read(mut self) -> Result<usize> {
        let doing = || "read what was sent before the kexec".to_owned();
        let mut read = 0;
        for chunk in payload().chunks(1 << 16) {
            let expected = [format!("${}\r\n", chunk.len()).as_bytes(), chunk, b"\r\n"].concat();
            let mut bytes = vec![0; expected.len()];
            self.stream.read_exact(&mut bytes).context(doing)?;
            must(bytes == expected, || format!("it differs within 64 KiB from byte {read}"))?;
            read += chunk.len();
        }
        self.writer.join().map_err(|_| Failed::new("the writer panicked"))??;
        Ok(read)
    }
}

fn payload() -> Vec<u8> {
    (0..BACKLOG / 8)
        .flat_map(|word| (word as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes())
        .collect()
}
