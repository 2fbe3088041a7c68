//! A client fills a kernel session of its own: it outlives a cancelled update, a worker of luod, and a
//! kexec, and its owner alone gets it back.

use super::guest;
use super::medium::Medium;
use super::must;
use crate::failure::{Context as _, Result};
use crate::lab::machine::{Config, Machine};
use crate::lab::{Kernel, Lab};

const ONE: Option<&str> = Some("1001");
const TWO: Option<&str> = Some("1002");
const FILES: &str = "20";
const MEDIUM: Medium = Medium::Liveupdate;

pub(super) fn session(lab: &Lab) -> Result<String> {
    let mut machine = Machine::start(lab, &Config::new(Kernel::Own))?;
    let configuration = "socket_mode = \"0666\"\n";
    let luod = guest::start_luod(&machine, configuration)?;
    guest::client(&machine, ONE, &["keep-own", "vm", FILES])?;
    // What luod keeps is taken out by a cancel, and what the client has put in is not.
    guest::luoctl(&machine, &["prepare", "--carrier", "liveupdate"])?;
    guest::luoctl(&machine, &["cancel"])?;
    guest::luoctl(&machine, &["upgrade", "--worker-only"])?;
    shown(&machine, "outgoing")?;
    MEDIUM.depart(&machine, luod)?;
    machine.load(Kernel::Own)?;
    let took = machine.kexec()?;
    guest::start_luod(&machine, configuration)?;
    // An operator sees it before `finish` frees what is in it.
    shown(&machine, "incoming")?;
    guest::client(&machine, TWO, &["refused", "vm", "EPERM"])?;
    let said = guest::client(&machine, ONE, &["take-own", "vm", FILES])?;
    must(said.contains(&format!("{FILES} files compared")), || format!("the client says {said}"))?;
    guest::luoctl(&machine, &["finish"])?;
    // It can be had, empty, for the next update.
    guest::client(&machine, ONE, &["keep-own", "vm", FILES])?;
    Ok(format!("{FILES} files of a client's own; kexec in {:.1} s", took.as_secs_f64()))
}

fn shown(machine: &Machine<'_>, expected: &str) -> Result<()> {
    let said = guest::luoctl(machine, &["--json", "sessions"])?;
    let sessions: serde_json::Value =
        serde_json::from_str(&said).context(|| format!("read {said}"))?;
    must(sessions["sessions"][0]["own_kernel_session"] == expected, || {
        format!("not {expected}: {said}")
    })
}
