//! The traps of the kernel's orchestrator, one test for each: that the kernel has them as luo takes them
//! to be, and what luod makes of them.

use luo_lab_agent::End;

use super::guest::{self, READY};
use super::must;
use crate::failure::{Context as _, Result};
use crate::lab::machine::{Config, Machine};
use crate::lab::{Kernel, Lab};

pub(super) fn close(lab: &Lab) -> Result<String> {
    over_a_kexec(lab, "close")
}

pub(super) fn twice(lab: &Lab) -> Result<String> {
    over_a_kexec(lab, "twice")
}

pub(super) fn last(lab: &Lab) -> Result<String> {
    over_a_kexec(lab, "final")
}

/// The lab's client is the agent of both kernels.
fn over_a_kexec(lab: &Lab, trap: &str) -> Result<String> {
    const LOG: &str = "/run/lab/trap.log";
    let mut machine = Machine::start(lab, &Config::new(Kernel::Own))?;
    machine.spawn(&["luo-lab-client", "set-trap", trap], LOG)?;
    machine.until_ok(&["grep", "-q", "held", LOG], READY).context(|| {
        let said = machine.pull(LOG).unwrap_or_default();
        format!("the client says {}", String::from_utf8_lossy(&said))
    })?;
    machine.load(Kernel::Own)?;
    machine.kexec()?;
    let said = guest::client(&machine, None, &["walk-trap", trap])?;
    // Whatever was left of it, luod can be the next agent.
    guest::start_luod(&machine, "liveupdate = \"on\"\n")?;
    prepares(&machine)?;
    Ok(said.trim().to_owned())
}

pub(super) fn freezes(lab: &Lab) -> Result<String> {
    let machine = Machine::start(lab, &Config::new(Kernel::Own))?;
    let said = guest::client(&machine, None, &["freezes"])?;
    guest::start_luod(&machine, "liveupdate = \"on\"\n")?;
    prepares(&machine)?;
    Ok(said.trim().to_owned())
}

/// What the kernel says in one word luod says in sentences.
pub(super) fn words(lab: &Lab) -> Result<String> {
    let machine = Machine::start(lab, &Config::new(Kernel::Own))?;
    guest::start_luod(&machine, "liveupdate = \"on\"\n")?;
    guest::client(&machine, None, &["keep-process", "tap"])?;
    let refused = machine.run(&["luoctl", "prepare", "--carrier", "liveupdate"])?;
    must(
        refused.end != End::Exited(0)
            && refused.text().contains("tap")
            && refused.text().contains("cannot keep an open file of this type"),
        || format!("of a pidfd luoctl says {}", refused.text()),
    )?;
    guest::client(&machine, None, &["release", "tap"])?;
    prepares(&machine)?;

    // A second agent learns who is in its way.
    let socket = "/run/other/io.luo.sock";
    let other = "/etc/other.toml";
    machine.push(other, 0o644, b"liveupdate = \"on\"\nruntime_directory = \"/run/other\"\n")?;
    machine.ok(&["mkdir", "-p", "/run/other"])?;
    let log = "/run/lab/other.log";
    machine.spawn(&["luod", "--config", other], log)?;
    machine.until_ok(&["luoctl", "--socket", socket, "status"], READY)?;
    let refused =
        machine.run(&["luoctl", "--socket", socket, "prepare", "--carrier", "liveupdate"])?;
    must(
        refused.end != End::Exited(0)
            && refused.text().contains("another agent has /dev/liveupdate open"),
        || format!("beside another agent luoctl says {}", refused.text()),
    )?;

    // A kernel in which it is switched off.
    let mut config = Config::new(Kernel::Own);
    config.append.push_str(" liveupdate=off");
    let machine = Machine::start(lab, &config)?;
    guest::start_luod(&machine, "")?;
    let refused = machine.run(&["luoctl", "prepare", "--carrier", "liveupdate"])?;
    must(
        refused.end != End::Exited(0) && refused.text().contains("`kho=on liveupdate=on`"),
        || format!("of a kernel without it luoctl says {}", refused.text()),
    )?;
    Ok("ENOENT twice and EBUSY were sentences".into())
}

/// luod can use the kernel's orchestrator.
fn prepares(machine: &Machine<'_>) -> Result<()> {
    guest::client(machine, None, &["keep", "t", "--to=1", "--files=6"])?;
    guest::luoctl(machine, &["prepare", "--carrier", "liveupdate"])?;
    guest::luoctl(machine, &["cancel"]).map(|_| ())
}
