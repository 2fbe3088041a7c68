//! One byte of what was kept changes between two kernels: the machine comes up, the error says what
//! is damaged, and what is not damaged comes back.

use super::guest::{self, READY};
use super::medium::Medium;
use super::must;
use crate::failure::{Context as _, Result};
use crate::lab::machine::{Config, Machine};
use crate::lab::{Kernel, Lab};

const KERNEL: Kernel = Kernel::Stock;
const MEDIUM: Medium = Medium::Pmem;
/// A memory file of the client's, and a record, which lies in the arena's catalogue under a checksum
/// of its own.
const MEMORY: &str = "3";
const RECORD: &str = "5";

pub(super) fn arena(lab: &Lab) -> Result<String> {
    let mut machine = Machine::start(lab, &Config::new(KERNEL))?;
    let configuration = MEDIUM.configuration();
    MEDIUM.attach(&machine)?;
    MEDIUM.create(&machine)?;
    let mut luod = guest::start_luod(&machine, &configuration)?;

    // A byte of memory, or of a record, is the loss of one file.
    for (token, words) in [(MEMORY, "the stored memory is damaged"), (RECORD, "is damaged")] {
        keep(&machine)?;
        luod = cross(&mut machine, luod, &configuration, token)?;
        arrive(&machine, token, words)?;
    }
    // luod goes on with the same arena.
    keep(&machine)?;
    Ok("34 of 36 files came back; the damage to the other two was named".into())
}

/// Takes what came over, but for the damaged file.
fn arrive(machine: &Machine<'_>, damaged: &str, words: &str) -> Result<()> {
    guest::client(machine, None, &["take", "s", "--to=1", "--files=6"])?;
    let one = ["take", "s", "--from=1", "--to=2", "--files=6", "--damaged", damaged];
    let said = guest::client(machine, None, &one)?;
    must(said.contains(words) && said.contains("5 files compared"), || {
        format!("the client says {said}")
    })?;
    guest::client(machine, None, &["take", "s", "--from=2", "--to=3", "--files=6"])?;
    guest::luoctl(machine, &["finish"]).map(|_| ())
}

/// Between two kernels every byte of the catalogue and of the kept bytes changes, and of one record the
/// copy too: that one is lost, and nothing else. Then the catalogue's copy changes as well.
pub(super) fn liveupdate(lab: &Lab) -> Result<String> {
    const NEAR: Medium = Medium::Liveupdate;
    let mut machine = Machine::start(lab, &Config::new(Kernel::Own))?;
    let luod = guest::start_luod(&machine, "")?;
    keep(&machine)?;
    NEAR.depart(&machine, luod)?;
    let luod = relay(&mut machine, &["0", "1", "--record", "s1", RECORD])?;
    let log = guest::luod_log(&machine);
    must(
        log.contains("the catalogue (token 0") && log.contains("its copy (token 2) is not"),
        || format!("luod does not say that the catalogue was damaged: {log}"),
    )?;
    must(log.contains("the kept bytes (token 1") && log.contains("their copy (token 3)"), || {
        format!("luod does not say that kept bytes were damaged: {log}")
    })?;
    guest::client(&machine, None, &["take", "s", "--to=1", "--files=6"])?;
    let one = ["take", "s", "--from=1", "--to=2", "--files=6", "--damaged", RECORD];
    let said = guest::client(&machine, None, &one)?;
    must(said.contains("5 files compared") && said.contains("damaged"), || {
        format!("the client says {said}")
    })?;
    guest::client(&machine, None, &["take", "s", "--from=2", "--to=3", "--files=6"])?;
    guest::luoctl(&machine, &["finish"])?;

    // Where nothing is left the machine comes up all the same, and goes on.
    keep(&machine)?;
    NEAR.depart(&machine, luod)?;
    relay(&mut machine, &["0", "2"])?;
    let log = guest::luod_log(&machine);
    must(log.contains("token 0") && log.contains("its copy (token 2) is damaged"), || {
        format!("luod does not say what is damaged: {log}")
    })?;
    let status = guest::luoctl(&machine, &["status"])?;
    must(status.contains("normal"), || format!("luod found a handover: {status}"))?;
    keep(&machine)?;
    guest::luoctl(&machine, &["prepare", "--carrier", "liveupdate"])?;
    guest::luoctl(&machine, &["cancel"])?;
    Ok("17 of 18 files came back; then none, with both catalogues named".into())
}

/// Two kexecs, between which everything that luod has left is taken and left again, with these tokens
/// of the session `luod` damaged: the next luod.
fn relay(machine: &mut Machine<'_>, damaged: &[&str]) -> Result<u32> {
    const LOG: &str = "/run/lab/relay.log";
    machine.load(Kernel::Own)?;
    machine.kexec()?;
    machine.spawn(&[&["luo-lab-client", "relay"], damaged].concat(), LOG)?;
    machine.until_ok(&["grep", "-q", "held", LOG], READY).context(|| {
        let said = machine.pull(LOG).unwrap_or_default();
        format!("the relay says {}", String::from_utf8_lossy(&said))
    })?;
    machine.load(Kernel::Own)?;
    machine.kexec()?;
    guest::start_luod(machine, "")
}

/// Three sessions of six files.
fn keep(machine: &Machine<'_>) -> Result<()> {
    guest::client(machine, None, &["keep", "s", "--to=3", "--files=6"]).map(|_| ())
}

/// Departs, changes a byte of one file in the second session, and arrives: the next luod.
fn cross(machine: &mut Machine<'_>, luod: u32, configuration: &str, token: &str) -> Result<u32> {
    MEDIUM.depart(machine, luod)?;
    let path = MEDIUM.path().unwrap_or_default();
    guest::client(machine, None, &["damage", path, "s1", token])?;
    machine.load(KERNEL)?;
    machine.kexec()?;
    MEDIUM.attach(machine)?;
    guest::start_luod(machine, configuration)
}
