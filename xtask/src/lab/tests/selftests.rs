//! The kernel's own tests of its orchestrator, from the source that the kernel was built from.

use super::must;
use crate::failure::{Context as _, Failed, Result};
use crate::lab::machine::{Config, Machine};
use crate::lab::{Kernel, Lab};

/// A memfd in a session crosses a kexec; the second half is run by the next kernel.
pub(super) fn kexec_simple(lab: &Lab) -> Result<String> {
    const NAME: &str = "luo_kexec_simple";
    let mut machine = Machine::start(lab, &Config::new(Kernel::Own))?;
    let program = push(lab, &machine, NAME)?;
    machine.load(Kernel::Own)?;
    // It goes on in the background, holding its sessions: that is what it is to do.
    let log = "/run/lab/selftest.log";
    machine.spawn(&[&program], log)?;
    machine.until_ok(&["grep", "-q", "Creating session", log], super::guest::READY)?;
    machine.until_ok(&["sh", "-c", HOLDS], super::guest::READY)?;
    let took = machine.kexec()?;
    let program = push(lab, &machine, NAME)?;
    let second = machine.run(&[&program])?;
    must(second.text().contains("SIMPLE KEXEC TEST PASSED"), || {
        format!("the second stage says {}", second.text())
    })?;
    Ok(format!("kexec in {:.1} s", took.as_secs_f64()))
}

/// Whether some process has daemonized and holds a session: process 1 is its parent.
const HOLDS: &str = "for stat in /proc/[0-9]*/stat; do \
    read pid name state parent rest < $stat || continue; \
    test \"$name $parent\" = '(luo_kexec_simpl) 1' && exit 0; done; exit 1";

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
