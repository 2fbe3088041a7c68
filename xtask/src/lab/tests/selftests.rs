//! The kernel's own tests of its orchestrator, from the source that the kernel was built from.

use luo_lab_agent::End;
use rustix::process::Signal;

use super::guest;
use super::medium::Medium;
use super::must;
use crate::failure::{Context as _, Failed, Result};
use crate::lab::machine::{Config, Machine};
use crate::lab::{Kernel, Lab};

const MEDIUM: Medium = Medium::Liveupdate;

/// What the kernel's interface does without a kexec: sessions, tokens, refusals.
pub(super) fn interface(lab: &Lab) -> Result<String> {
    let machine = Machine::start(lab, &Config::new(Kernel::Own))?;
    let program = push(lab, &machine, "liveupdate")?;
    passes(&machine, &program)
}

fn passes(machine: &Machine<'_>, program: &str) -> Result<String> {
    let output = machine.run(&[program])?;
    let text = output.text();
    let totals = text.lines().rfind(|line| line.starts_with("# Totals:")).unwrap_or_default();
    must(output.end == End::Exited(0) && totals.contains(" fail:0 "), || {
        format!("it ended with {:?} and says {text}", output.end)
    })?;
    Ok(totals.trim_start_matches("# ").to_owned())
}

/// Beside a luod that runs they get EBUSY, and do no damage; once it has ended they pass.
pub(super) fn beside_luod(lab: &Lab) -> Result<String> {
    let mut machine = Machine::start(lab, &Config::new(Kernel::Own))?;
    let luod = guest::start_luod(&machine, "")?;
    guest::client(&machine, None, &["keep", "s", "--to=2", "--files=6"])?;
    // Its files are in kernel sessions when the others try.
    guest::luoctl(&machine, &["prepare", "--carrier", "liveupdate"])?;
    let program = push(lab, &machine, "liveupdate")?;
    // What they do not say of the device, which is the first thing that each of them opens.
    let open = machine.run(&["sh", "-c", "LC_ALL=C exec 3<>/dev/liveupdate"])?;
    must(open.end != End::Exited(0) && open.text().contains("busy"), || {
        format!("beside luod the device says {}", open.text())
    })?;
    let output = machine.run(&[&program])?;
    must(output.end != End::Exited(0) && output.text().contains(" pass:0 "), || {
        format!("beside luod it ended with {:?} and says {}", output.end, output.text())
    })?;
    for name in KEXEC {
        let program = push(lab, &machine, name)?;
        let output = machine.run(&[&program, "-s", "1"])?;
        must(output.end != End::Exited(0), || {
            format!("beside luod {name} says {}", output.text())
        })?;
    }
    guest::luoctl(&machine, &["cancel"])?;
    MEDIUM.depart(&machine, luod)?;
    machine.load(Kernel::Own)?;
    machine.kexec()?;
    let luod = guest::start_luod(&machine, "")?;
    let program = push(lab, &machine, "liveupdate")?;
    let output = machine.run(&[&program])?;
    must(output.end != End::Exited(0), || format!("beside luod it says {}", output.text()))?;
    let said = guest::client(&machine, None, &["take", "s", "--to=2", "--files=6"])?;
    must(said.contains("12 files compared"), || format!("the client says {said}"))?;
    guest::luoctl(&machine, &["finish"])?;
    machine.signal(luod, Signal::TERM.as_raw())?;
    let end = machine.wait(luod, guest::READY)?;
    must(end == End::Exited(0), || format!("luod ended with {end:?} after SIGTERM"))?;
    passes(&machine, &program)
}

/// Those that go on in the next kernel, and what they say then.
const KEXEC: [&str; 4] =
    ["luo_kexec_simple", "luo_multi_session", "luo_stress_files", "luo_stress_sessions"];

pub(super) fn kexec_simple(lab: &Lab) -> Result<String> {
    kexec(lab, "luo_kexec_simple")
}

pub(super) fn multi_session(lab: &Lab) -> Result<String> {
    kexec(lab, "luo_multi_session")
}

pub(super) fn stress_files(lab: &Lab) -> Result<String> {
    kexec(lab, "luo_stress_files")
}

pub(super) fn stress_sessions(lab: &Lab) -> Result<String> {
    kexec(lab, "luo_stress_sessions")
}

/// Sessions and memfds cross a kexec; the second half is run by the next kernel. luod is installed,
/// has run, and is stopped.
fn kexec(lab: &Lab, name: &str) -> Result<String> {
    let mut machine = Machine::start(lab, &Config::new(Kernel::Own))?;
    let luod = guest::start_luod(&machine, "")?;
    machine.signal(luod, Signal::TERM.as_raw())?;
    machine.wait(luod, guest::READY)?;
    let program = push(lab, &machine, name)?;
    machine.load(Kernel::Own)?;
    // It goes on in the background, holding its sessions: that is what it is to do.
    let log = "/run/lab/selftest.log";
    let first = machine.spawn(&[&program, "-s", "1"], log)?;
    let end = machine.wait(first, guest::READY)?;
    must(end == End::Exited(0), || {
        let said = machine.pull(log).unwrap_or_default();
        format!("its first stage ended with {end:?}: {}", String::from_utf8_lossy(&said))
    })?;
    let took = machine.kexec()?;
    let program = push(lab, &machine, name)?;
    let second = machine.run(&[&program, "-s", "2"])?;
    must(second.text().contains("TEST PASSED"), || {
        format!("the second stage says {}", second.text())
    })?;
    Ok(format!("kexec in {:.1} s", took.as_secs_f64()))
}

/// Puts one of them into the guest; where.
fn push(lab: &Lab, machine: &Machine<'_>, name: &str) -> Result<String> {
    let dir = lab.selftests.as_ref().ok_or_else(|| {
        Failed::new(
            "LUO_LAB_KERNEL names a kernel, whose source, and with it its tests, is not here",
        )
    })?;
    let from = dir.join(name);
    let content = std::fs::read(&from).context(|| format!("read {}", from.display()))?;
    let path = format!("/run/lab/{name}");
    machine.push(&path, 0o755, &content)?;
    Ok(path)
}
