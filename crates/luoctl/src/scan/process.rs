//! Reads what `/proc` shows of processes. Nothing is opened that a process has open, so nothing
//! changes: a pipe gains no reader, a device is not touched.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::kind::{Attributes, Facts};
use super::net::{self, Table};

/// The tables of sockets that are read.
const TABLES: [&str; 5] = ["tcp", "tcp6", "udp", "udp6", "unix"];

/// A process.
#[derive(Debug, Clone)]
pub(crate) struct Process {
    pub(crate) pid: u32,
    pub(crate) name: String,
}

impl Process {
    /// The process of that number.
    ///
    /// # Errors
    /// ENOENT where there is none.
    pub(crate) fn find(pid: u32) -> io::Result<Self> {
        let name = fs::read_to_string(place(pid).join("comm"))?;
        Ok(Self { pid, name: name.trim_end().to_owned() })
    }

    /// Every process, in the order of their numbers, but for the kernel's own threads.
    pub(crate) fn all() -> io::Result<Vec<Self>> {
        let mut all = Vec::new();
        for entry in fs::read_dir("/proc")? {
            let number = entry?.file_name().to_str().and_then(|name| name.parse().ok());
            let Some(pid) = number.filter(|pid| *pid != std::process::id()) else { continue };
            // One that has just ended is no error.
            let Ok(process) = Self::find(pid) else { continue };
            if fs::read(place(pid).join("cmdline")).is_ok_and(|line| !line.is_empty()) {
                all.push(process);
            }
        }
        all.sort_by_key(|process| process.pid);
        Ok(all)
    }

    /// The processes of a unit of systemd's, by their control group.
    pub(crate) fn of_unit(unit: &str) -> io::Result<Vec<Self>> {
        let unit = if unit.contains('.') { unit.to_owned() } else { format!("{unit}.service") };
        let mut all = Self::all()?;
        all.retain(|process| {
            let groups = fs::read_to_string(place(process.pid).join("cgroup")).unwrap_or_default();
            is_in(&groups, &unit)
        });
        Ok(all)
    }

    /// Its descriptors, in order.
    ///
    /// # Errors
    /// EACCES without the right to look, ENOENT where it has ended.
    pub(crate) fn descriptors(&self, sockets: &mut Sockets) -> io::Result<Vec<(u32, Facts)>> {
        let place = place(self.pid);
        let mut found = Vec::new();
        for entry in fs::read_dir(place.join("fd"))? {
            let Ok(entry) = entry else { continue };
            let Some(number) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
                continue;
            };
            // What was closed meanwhile is not there.
            let Ok(target) = fs::read_link(entry.path()) else { continue };
            let target = target.to_string_lossy().into_owned();
            let info = fs::read_to_string(place.join("fdinfo").join(entry.file_name()));
            let inode = target.strip_prefix("socket:[").and_then(|rest| rest.strip_suffix(']'));
            let socket = inode
                .and_then(|inode| inode.parse().ok())
                .and_then(|inode| sockets.of(self.pid).get(&inode).cloned());
            let file = fs::metadata(entry.path()).ok().map(|file| attributes(&file));
            found.push((number, Facts { target, file, info: info.unwrap_or_default(), socket }));
        }
        found.sort_by_key(|(number, _)| *number);
        Ok(found)
    }
}

fn attributes(file: &fs::Metadata) -> Attributes {
    let device = file.rdev();
    Attributes {
        mode: file.mode(),
        size: file.size(),
        blocks: file.blocks(),
        links: file.nlink(),
        device: (rustix::fs::major(device), rustix::fs::minor(device)),
    }
}

/// Whether a unit is among the groups that `/proc/PID/cgroup` names.
fn is_in(groups: &str, unit: &str) -> bool {
    let paths = groups.lines().filter_map(|line| line.splitn(3, ':').nth(2));
    paths.into_iter().any(|path| path.split('/').any(|part| part == unit))
}

fn place(pid: u32) -> PathBuf {
    Path::new("/proc").join(pid.to_string())
}

/// The sockets of each network namespace, read once.
#[derive(Debug, Default)]
pub(crate) struct Sockets(HashMap<PathBuf, Table>);

impl Sockets {
    fn of(&mut self, pid: u32) -> &Table {
        let place = place(pid);
        let namespace = fs::read_link(place.join("ns/net")).unwrap_or_else(|_| place.clone());
        self.0.entry(namespace).or_insert_with(|| {
            let mut table = Table::new();
            for name in TABLES {
                let text = fs::read_to_string(place.join("net").join(name));
                net::read(name, &text.unwrap_or_default(), &mut table);
            }
            table
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unit_is_found_by_a_whole_part_of_the_group() {
        let groups = "1:name=systemd:/init.scope\n0::/system.slice/nginx.service/worker\n";
        assert!(is_in(groups, "nginx.service"));
        assert!(!is_in(groups, "inx.service") && !is_in(groups, "0"));
    }
}
