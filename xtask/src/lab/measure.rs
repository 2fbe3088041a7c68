//! What a live update costs in the lab. An emulated machine's times mean nothing by themselves.
//!
//! Invariants: a figure comes with another one of the same machine and run.

use std::fs::File;
use std::io::{BufRead as _, BufReader, BufWriter, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::time::{Duration, Instant};

use super::guest::{self, PATIENT, READY};
use super::medium::Medium;
use super::must;
use crate::failure::{Context as _, Failed, Result};
use crate::lab::machine::{Config, KV_PORT, Machine};
use crate::lab::{Kernel, Lab};

/// MiB in kv: what takes no longer the more there is, and what does, show only side by side.
const SIZES: [u64; 2] = [128, 512];
const VALUE: usize = 16 << 10;
const MEDIUM: Medium = Medium::Liveupdate;
/// How many files there are in all, of which a hundred are in each session.
const COUNTS: [u64; 3] = [100, 1_000, 4_000];
const EACH: u64 = 100;

/// How long kv is away with so much in it.
pub(crate) struct Blackout {
    pub(crate) mib: u64,
    /// From the begin of freeze to kv's first answer in the next kernel.
    pub(crate) live: Duration,
    /// From a cold boot to kv's answer to the last request that loads the same data from a disk.
    pub(crate) cold: Duration,
}

/// Once for each of [`SIZES`].
pub(crate) fn blackout(lab: &Lab) -> Result<Vec<Blackout>> {
    let one = |&mib: &u64| Ok(Blackout { mib, live: live(lab, mib)?, cold: cold(lab, mib)? });
    SIZES.iter().map(one).collect()
}

/// From the begin of freeze to kv's first answer in the next kernel.
fn live(lab: &Lab, mib: u64) -> Result<Duration> {
    let mut machine = Machine::start(lab, &Config::new(Kernel::Own))?;
    guest::start_luod(&machine, "")?;
    guest::start_kv(&machine)?;
    let load = guest::fill(&machine, mib)?;
    guest::luoctl(&machine, &["prepare", "--carrier", MEDIUM.carrier()])?;
    machine.load(Kernel::Own)?;
    let began = Instant::now();
    guest::luoctl(&machine, &["freeze"])?;
    guest::luoctl(&machine, &["depart"])?;
    machine.kexec()?;
    guest::start_luod(&machine, "")?;
    guest::start_kv(&machine)?;
    let mut load = load;
    load.move_to(machine.address(KV_PORT)?).context(|| "connect to kv again".into())?;
    ask(&machine, "PING")?;
    let live = began.elapsed();
    guest::luoctl(&machine, &["finish"])?;
    let report = load.verify(&mut |_| {}).context(|| "read all data back".into())?;
    must(report.is_clean(), || format!("{} values failed or differ", report.total.failed))?;
    Ok(live)
}

/// From power on to the answer to the last of the requests that load the same data from a disk.
fn cold(lab: &Lab, mib: u64) -> Result<Duration> {
    let dir = tempfile::TempDir::with_prefix_in("dump-", &lab.dir)
        .context(|| "make a directory".into())?;
    let dump = dir.path().join("dump");
    let (keys, len) = write_dump(&dump, mib)?;
    let mut config = Config::new(Kernel::Own);
    config.disks.push(dump);
    let began = Instant::now();
    let machine = Machine::start(lab, &config)?;
    guest::start_luod(&machine, "")?;
    guest::start_kv(&machine)?;
    let load = format!(
        "exec 3<>/dev/tcp/127.0.0.1/{KV_PORT}; head -c {len} /dev/vda >&3 & \
         for ((i = 0; i < {keys}; i++)); do read -r <&3 || exit 1; done"
    );
    machine.ok_within(&["bash", "-c", &load], PATIENT)?;
    let cold = began.elapsed();
    let size = ask(&machine, "DBSIZE")?;
    must(size == format!(":{keys}"), || format!("kv has {size} of {keys} keys"))?;
    Ok(cold)
}

/// What one of so many files costs, in microseconds.
pub(crate) struct Each {
    pub(crate) count: u64,
    /// `prepare`.
    pub(crate) preserve: f64,
    /// Retrieving it and comparing its content.
    pub(crate) retrieve: f64,
    /// Preserving it by the kernel's call alone, all in one kernel session.
    pub(crate) bare: f64,
}

/// What preserving and retrieving cost for each file as files become more.
pub(crate) fn files(lab: &Lab) -> Result<Vec<Each>> {
    COUNTS.iter().map(|&count| each_of(lab, count)).collect()
}

fn each_of(lab: &Lab, count: u64) -> Result<Each> {
    let mut machine = Machine::start(lab, &Config::new(Kernel::Own))?;
    let said = guest::client(&machine, None, &["bare", &count.to_string()])?;
    let bare: f64 = said.trim().parse().context(|| format!("read {said}"))?;
    let luod = guest::start_luod(&machine, "")?;
    let sessions = format!("--to={}", count / EACH);
    let files = format!("--files={EACH}");
    guest::client(&machine, None, &["keep", "s", &sessions, &files])?;
    let carrier = MEDIUM.carrier();
    let said = guest::luoctl(&machine, &["--json", "prepare", "--carrier", carrier])?;
    let report: serde_json::Value =
        serde_json::from_str(&said).context(|| format!("read {said}"))?;
    let prepared = report["report"]["microseconds"]
        .as_f64()
        .ok_or_else(|| Failed::new(format!("no time in {said}")))?;
    guest::luoctl(&machine, &["cancel"])?;
    MEDIUM.depart(&machine, luod)?;
    machine.load(Kernel::Own)?;
    machine.kexec()?;
    guest::start_luod(&machine, "")?;
    let began = Instant::now();
    guest::client(&machine, None, &["take", "s", &sessions, &files])?;
    let took = began.elapsed();
    guest::luoctl(&machine, &["finish"])?;
    let count_of = count as f64;
    Ok(Each {
        count,
        preserve: prepared / count_of,
        retrieve: took.as_secs_f64() * 1e6 / count_of,
        bare,
    })
}

/// Requests that put as much into kv as it had: how many, and how many bytes.
fn write_dump(path: &Path, mib: u64) -> Result<(u64, u64)> {
    let doing = || format!("write {}", path.display());
    let mut file = BufWriter::new(File::create(path).context(doing)?);
    let keys = (mib << 20) / VALUE as u64;
    let mut len = 0;
    let value: String = ('a'..='z').cycle().take(VALUE).collect();
    for key in 0..keys {
        let key = format!("key:{key}");
        let request =
            format!("*3\r\n$3\r\nSET\r\n${}\r\n{key}\r\n${VALUE}\r\n{value}\r\n", key.len());
        len += request.len() as u64;
        file.write_all(request.as_bytes()).context(doing)?;
    }
    let file = file.into_inner().map_err(std::io::IntoInnerError::into_error).context(doing)?;
    // A disk has whole sectors.
    file.set_len(len.next_multiple_of(4096)).context(doing)?;
    Ok((keys, len))
}

/// kv's answer to one word.
fn ask(machine: &Machine<'_>, word: &str) -> Result<String> {
    let doing = || format!("ask kv for {word}");
    let connection = TcpStream::connect(machine.address(KV_PORT)?).context(doing)?;
    connection.set_read_timeout(Some(READY)).context(doing)?;
    let request = format!("*1\r\n${}\r\n{word}\r\n", word.len());
    (&connection).write_all(request.as_bytes()).context(doing)?;
    let mut line = String::new();
    BufReader::new(&connection).read_line(&mut line).context(doing)?;
    Ok(line.trim_end().to_owned())
}
