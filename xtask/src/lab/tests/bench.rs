//! What a live update costs in the lab, as ratios: an emulated machine's times mean nothing by themselves.
//!
//! Invariants: a figure stands beside one of the same machine and run.

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

/// From the begin of freeze to kv's first answer in the next kernel, beside a cold boot and a reload of
/// the same data from a disk.
pub(super) fn blackout(lab: &Lab) -> Result<String> {
    let said: Result<Vec<String>> = SIZES
        .iter()
        .map(|&mib| {
            let live = live(lab, mib)?;
            let cold = cold(lab, mib)?;
            Ok(format!(
                "{mib} MiB: {:.2} of a cold boot with a reload from disk ({:.1} s of {:.1} s)",
                ratio(live, cold),
                live.as_secs_f64(),
                cold.as_secs_f64()
            ))
        })
        .collect();
    Ok(said?.join("; "))
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

/// What preserving and retrieving cost for each file as files become more, beside the kernel by itself
/// with all of them in one session.
pub(super) fn files(lab: &Lab) -> Result<String> {
    let mut bare = Vec::new();
    let mut preserve = Vec::new();
    let mut retrieve = Vec::new();
    for count in COUNTS {
        let mut machine = Machine::start(lab, &Config::new(Kernel::Own))?;
        let said = guest::client(&machine, None, &["bare", &count.to_string()])?;
        let each: f64 = said.trim().parse().context(|| format!("read {said}"))?;
        bare.push(each);
        let luod = guest::start_luod(&machine, "")?;
        let sessions = format!("--to={}", count / EACH);
        let files = format!("--files={EACH}");
        guest::client(&machine, None, &["keep", "s", &sessions, &files])?;
        let carrier = MEDIUM.carrier();
        let said = guest::luoctl(&machine, &["--json", "prepare", "--carrier", carrier])?;
        let report: serde_json::Value =
            serde_json::from_str(&said).context(|| format!("read {said}"))?;
        let took = report["report"]["microseconds"]
            .as_f64()
            .ok_or_else(|| Failed::new(format!("no time in {said}")))?;
        preserve.push(took / count as f64);
        guest::luoctl(&machine, &["cancel"])?;
        MEDIUM.depart(&machine, luod)?;
        machine.load(Kernel::Own)?;
        machine.kexec()?;
        guest::start_luod(&machine, "")?;
        let began = Instant::now();
        guest::client(&machine, None, &["take", "s", &sessions, &files])?;
        retrieve.push(began.elapsed().as_secs_f64() / count as f64);
        guest::luoctl(&machine, &["finish"])?;
    }
    Ok(format!(
        "each file at {COUNTS:?}, of the first: preserve {}, retrieve, compare and finish {}; the \
         kernel alone in one session {}",
        growth(&preserve),
        growth(&retrieve),
        growth(&bare)
    ))
}

fn growth(each: &[f64]) -> String {
    let first = each.first().copied().unwrap_or(1.0);
    let ratios: Vec<String> = each.iter().map(|each| format!("{:.2}", each / first)).collect();
    ratios.join(" ")
}

fn ratio(ours: Duration, other: Duration) -> f64 {
    ours.as_secs_f64() / other.as_secs_f64()
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
