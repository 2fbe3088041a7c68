//! What a bare kernel needs before programs can work: file systems, modules, network.

use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::process::Command;

use rustix::mount::{MountFlags, mount};

use crate::{PROBLEMS, early, link};

/// The modules to load, a path a line, each after those that it needs.
const MODULES: &str = "/lib/modules/lab.order";
/// What QEMU's user network gives its first guest, and the way out.
const ADDRESS: [u8; 4] = [10, 0, 2, 15];
const PREFIX: u8 = 24;
const GATEWAY: [u8; 4] = [10, 0, 2, 2];
/// On the kernel's command line: the IPv6 address on the cable to another machine.
const WIRE: &str = "lab.wire=";
const WIRE_PREFIX: u8 = 64;

const MOUNTS: &[(&str, &str, &str)] = &[
    ("devtmpfs", "/dev", "mode=0755"),
    ("proc", "/proc", ""),
    ("sysfs", "/sys", ""),
    ("tmpfs", "/run", "mode=0755"),
    ("tmpfs", "/tmp", "mode=1777"),
    ("devpts", "/dev/pts", "mode=0620,ptmxmode=0666"),
    ("tmpfs", "/dev/shm", "mode=1777"),
    ("cgroup2", "/sys/fs/cgroup", ""),
];
/// Kernels may lack these.
const OPTIONAL_MOUNTS: &[(&str, &str, &str)] = &[("debugfs", "/sys/kernel/debug", "")];

/// Does all of it; gives what failed, in words.
pub(crate) fn all() -> Vec<String> {
    let mut problems = Vec::new();
    for (kind, path, options) in MOUNTS {
        if let Err(error) = make_mount(kind, path, options) {
            problems.push(format!("mount {kind} on {path}: {error}"));
        }
    }
    for (kind, path, options) in OPTIONAL_MOUNTS {
        // Nothing in the lab relies on it.
        let _ = make_mount(kind, path, options);
    }
    if let Some(parent) = Path::new(PROBLEMS).parent()
        && let Err(error) = fs::create_dir_all(parent)
    {
        problems.push(format!("make {}: {error}", parent.display()));
    }
    modules(&mut problems);
    let command_line = fs::read_to_string("/proc/cmdline").unwrap_or_default();
    if let Err(error) = early::start_luod(&command_line) {
        problems.push(format!("start luod before the network: {error}"));
    }
    network(&command_line, &mut problems);
    // So that what luod kills itself with in a test leaves no core file in memory.
    if let Err(error) = fs::write("/proc/sys/kernel/core_pattern", "/dev/null\n") {
        problems.push(format!("keep cores off: {error}"));
    }
    problems
}

/// What programs in the guest find in their environment.
pub(crate) fn environment(command: &mut Command) {
    command
        .env_clear()
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .env("HOME", "/root")
        .env("TERM", "vt102")
        .env("RUST_BACKTRACE", "1");
}

fn make_mount(kind: &str, path: &str, options: &str) -> io::Result<()> {
    fs::create_dir_all(path)?;
    let options = CString::new(options)?;
    Ok(mount(kind, path, kind, MountFlags::NOSUID, Some(options.as_c_str()))?)
}

fn modules(problems: &mut Vec<String>) {
    let order = match fs::read_to_string(MODULES) {
        Ok(order) => order,
        // A kernel without modules.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return,
        Err(error) => return problems.push(format!("read {MODULES}: {error}")),
    };
    for path in order.lines() {
        let loaded =
            File::open(path).and_then(|file| Ok(rustix::system::finit_module(file, c"", 0)?));
        if let Err(error) = loaded
            && error.kind() != io::ErrorKind::AlreadyExists
        {
            problems.push(format!("load the module {path}: {error}"));
        }
    }
}

fn network(command_line: &str, problems: &mut Vec<String>) {
    let up = |name: &str, problems: &mut Vec<String>| match link::index(name)
        .and_then(|index| link::up(index).map(|()| index))
    {
        Ok(index) => Some(index),
        Err(error) => {
            problems.push(format!("bring up {name}: {error}"));
            None
        }
    };
    up("lo", problems);
    let mut cards = match link::hardware() {
        Ok(cards) => cards.into_iter(),
        Err(error) => return problems.push(format!("look for a network card: {error}")),
    };
    let Some(name) = cards.next() else { return problems.push("there is no network card".into()) };
    let Some(index) = up(&name, problems) else { return };
    if let Err(error) = link::add_address(index, ADDRESS, PREFIX)
        .and_then(|()| link::add_default_route(index, GATEWAY))
    {
        problems.push(format!("give {name} its address: {error}"));
    }
    let Some(wire) = command_line.split_whitespace().find_map(|word| word.strip_prefix(WIRE))
    else {
        return;
    };
    let Some(name) = cards.next() else { return problems.push("there is no second card".into()) };
    let Some(index) = up(&name, problems) else { return };
    let given = wire
        .parse()
        .map_err(io::Error::other)
        .and_then(|address| link::add_address_v6(index, address, WIRE_PREFIX));
    if let Err(error) = given {
        problems.push(format!("give {name} the address {wire}: {error}"));
    }
}
