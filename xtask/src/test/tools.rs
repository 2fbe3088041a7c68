//! The programs that tests and documents call on, and how they come onto the machine.

use std::fs;
use std::path::Path;
use std::process::Command;

use super::{Report, Run};
use crate::failure::Result;
use crate::proc;

/// Something from outside that a test needs.
struct Tool {
    /// The program, or the path of a file.
    what: &'static str,
    /// Debian's package of it.
    package: &'static str,
    /// What cannot be run without it.
    needed_for: &'static str,
}

const TOOLS: &[Tool] = &[
    Tool {
        what: "dtc",
        package: "device-tree-compiler",
        needed_for: "the test that reads handovers with dtc",
    },
    Tool {
        what: "/usr/include/libfdt.h",
        package: "libfdt-dev",
        needed_for: "the comparison with libfdt in `cargo xtask bench`",
    },
    Tool {
        what: "redis-benchmark",
        package: "redis-tools",
        needed_for: "the tests and documents that run redis-benchmark against kv",
    },
    Tool {
        what: "redis-cli",
        package: "redis-tools",
        needed_for: "the tests and documents that run redis-cli against kv",
    },
    Tool {
        what: "ip",
        package: "iproute2",
        needed_for: "the tests of TCP connections in network namespaces",
    },
    Tool {
        what: "tc",
        package: "iproute2",
        needed_for: "the tests of TCP connections whose packets are lost or late",
    },
];

impl Tool {
    fn is_there(&self) -> bool {
        if self.what.starts_with('/') {
            Path::new(self.what).exists()
        } else {
            proc::find(self.what).is_some()
        }
    }
}

/// Installs what is missing where that can be done, and names what is missing still.
pub(super) fn run(run: &Run<'_>) -> Result<Report> {
    let mut packages: Vec<&str> =
        TOOLS.iter().filter(|tool| !tool.is_there()).map(|tool| tool.package).collect();
    packages.dedup();
    let mut why = None;
    if !packages.is_empty() {
        why = match obstacle(run.may_install) {
            Some(obstacle) => Some(obstacle),
            None => install(&packages).err().map(|failed| failed.chain()),
        };
    }
    let mut report = Report::default();
    for tool in TOOLS {
        if tool.is_there() {
            report.passed += 1;
        } else {
            report.skipped.push(format!(
                "{} is missing (Debian package {}); cannot be run without it: {}; not installed: {}",
                tool.what,
                tool.package,
                tool.needed_for,
                why.as_deref().unwrap_or("the package does not hold it")
            ));
        }
    }
    Ok(report)
}

/// Why nothing can be installed here.
pub(crate) fn obstacle(may_install: bool) -> Option<String> {
    if !may_install {
        return Some("--no-install was given".into());
    }
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    if !is_debian(&release) || proc::find("apt-get").is_none() {
        return Some("this is neither Debian nor Ubuntu".into());
    }
    if !rustix::process::geteuid().is_root() {
        return Some("only root may install packages".into());
    }
    None
}

fn is_debian(os_release: &str) -> bool {
    os_release
        .lines()
        .filter_map(|line| line.split_once('='))
        .filter(|(key, _)| matches!(*key, "ID" | "ID_LIKE"))
        .flat_map(|(_, value)| value.trim_matches('"').split(' '))
        .any(|id| matches!(id, "debian" | "ubuntu"))
}

/// Installs at once where the package lists are there, after `apt-get update` where not.
pub(crate) fn install(packages: &[&str]) -> Result<()> {
    let attempt = || {
        proc::check(
            Command::new("apt-get")
                .args(["install", "--yes", "--quiet", "--no-install-recommends"])
                .args(packages)
                .env("DEBIAN_FRONTEND", "noninteractive"),
        )
    };
    if attempt().is_ok() {
        return Ok(());
    }
    proc::check(Command::new("apt-get").args(["update", "--quiet"]))?;
    attempt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debian_and_what_derives_from_it_are_known() {
        assert!(is_debian("NAME=x\nID=debian\n"));
        assert!(is_debian("ID=linuxmint\nID_LIKE=\"ubuntu debian\"\n"));
        assert!(!is_debian("ID=fedora\nNAME=\"not debian\"\n"));
    }
}
