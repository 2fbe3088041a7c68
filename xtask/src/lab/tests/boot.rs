//! A machine boots, and what the other tests rely on is there.

use luo_lab_agent::End;
use rustix::process::Signal;

use super::guest::{self, READY};
use super::must;
use crate::failure::Result;
use crate::lab::machine::{Config, Machine};
use crate::lab::{Kernel, Lab};

pub(super) fn own(lab: &Lab) -> Result<String> {
    let machine = Machine::start(lab, &Config::new(Kernel::Own))?;
    machine.ok(&["test", "-c", "/dev/liveupdate"])?;
    usable(&machine)
}

pub(super) fn stock(lab: &Lab) -> Result<String> {
    usable(&Machine::start(lab, &Config::new(Kernel::Stock))?)
}

fn usable(machine: &Machine<'_>) -> Result<String> {
    machine.until_ok(&["test", "-b", "/dev/pmem0"], READY)?;
    let cat = machine.run_with(&["cat"], &[], b"through the guest and back", READY)?;
    must(cat.stdout == b"through the guest and back", || format!("cat gives {:?}", cat.text()))?;
    let line = machine.pull("/proc/cmdline")?;
    must(String::from_utf8_lossy(&line).trim_end() == machine.command_line(), || {
        format!("the kernel's command line is {}", String::from_utf8_lossy(&line))
    })?;
    let luod = guest::start_luod(machine, "")?;
    let status = guest::luoctl(machine, &["status"])?;
    must(status.contains("normal"), || format!("luod is not normal: {status}"))?;
    machine.signal(luod, Signal::TERM.as_raw())?;
    let end = machine.wait(luod, READY)?;
    must(end == End::Exited(0), || format!("luod ended with {end:?} after SIGTERM"))?;
    let hello = machine.hello();
    Ok(format!("Linux {} up after {:.1} s", hello.release, hello.uptime.as_secs_f64()))
}
