//! By what files cross, and what that needs in a guest.

use luo_lab_agent::End;

use super::guest::{self, PATIENT, READY};
use super::machine::Machine;
use super::must;
use crate::failure::Result;

/// What luod ends with after it has departed through an arena.
const DEPARTED: i32 = 3;

/// By what files cross.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Medium {
    /// An arena on persistent memory.
    Pmem,
    /// An arena in a file on a disk.
    Disk,
    /// The kernel keeps it.
    Liveupdate,
}

impl Medium {
    pub(crate) fn carrier(&self) -> &'static str {
        match self {
            Self::Pmem | Self::Disk => "arena",
            Self::Liveupdate => "liveupdate",
        }
    }

    /// The arena, where there is one.
    pub(crate) fn path(&self) -> Option<&'static str> {
        match self {
            Self::Pmem => Some("/dev/pmem0"),
            Self::Disk => Some("/mnt/arena"),
            Self::Liveupdate => None,
        }
    }

    pub(crate) fn configuration(&self) -> String {
        self.path().map(|path| format!("arena = {path:?}\n")).unwrap_or_default()
    }

    /// What the kernel's command line needs for luod to come before the network, so that connections
    /// are back before a packet is.
    pub(crate) fn luod_first(&self) -> String {
        let mut words = String::from(" lab.luod=");
        for byte in self.configuration().bytes() {
            words.push_str(&format!("{byte:02x}"));
        }
        if let Some(path) = self.path() {
            words.push_str(&format!(" lab.await={path}"));
        }
        words
    }

    /// Has it there, in a kernel that has just booted.
    pub(crate) fn attach(&self, machine: &Machine<'_>) -> Result<()> {
        match self {
            Self::Pmem => machine.until_ok(&["test", "-b", "/dev/pmem0"], READY)?,
            Self::Disk => {
                machine.until_ok(&["test", "-b", "/dev/vda"], READY)?;
                machine.ok(&["mount", "-t", "ext4", "/dev/vda", "/mnt"])?
            }
            Self::Liveupdate => machine.ok(&["test", "-c", "/dev/liveupdate"])?,
        };
        Ok(())
    }

    /// Gives it up before the kernel goes: a kexec asks no file system whether it is done.
    pub(crate) fn detach(&self, machine: &Machine<'_>) -> Result<()> {
        match self {
            Self::Pmem | Self::Liveupdate => Ok(()),
            Self::Disk => machine.ok(&["umount", "/mnt"]).map(|_| ()),
        }
    }

    pub(crate) fn create(&self, machine: &Machine<'_>) -> Result<()> {
        let Some(path) = self.path() else { return Ok(()) };
        let size: &[&str] = match self {
            Self::Disk => &["--size", "256M"],
            Self::Pmem | Self::Liveupdate => &[],
        };
        let mut arguments = vec!["arena", "create", path];
        arguments.extend_from_slice(size);
        guest::luoctl(machine, &arguments).map(|_| ())
    }

    /// Everything goes into it. An arena is left by luod, the kernel's sessions are held by it.
    pub(crate) fn depart(&self, machine: &Machine<'_>, luod: u32) -> Result<()> {
        guest::luoctl(machine, &["prepare", "--carrier", self.carrier()])?;
        guest::luoctl(machine, &["freeze"])?;
        guest::luoctl(machine, &["depart"])?;
        if self.path().is_none() {
            return Ok(());
        }
        let end = machine.wait(luod, PATIENT)?;
        must(end == End::Exited(DEPARTED), || format!("luod ended with {end:?} after it departed"))
    }
}
