//! The guest's file system: what luo releases, the agent, a shell with a few tools, and modules.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::cpio::Archive;
use super::{libraries, needs};
use crate::failure::{Context as _, Failed, Result};
use crate::proc;
use crate::workspace::Workspace;

/// What a person or a test may call on in the guest. What this machine does not have is left out.
const TOOLS: &[&str] = &[
    "sh",
    "bash",
    "ls",
    "cat",
    "cp",
    "mv",
    "rm",
    "ln",
    "mkdir",
    "mount",
    "umount",
    "dmesg",
    "ps",
    "kill",
    "dd",
    "head",
    "tail",
    "grep",
    "sed",
    "sort",
    "wc",
    "cmp",
    "sha256sum",
    "ip",
    "sleep",
    "df",
    "free",
    "setsid",
    "uname",
    "stat",
    "true",
    "false",
    "test",
    "env",
    "id",
    "date",
    "sync",
    "setpriv",
    "lsmod",
    "mke2fs",
    "truncate",
    "chmod",
    "chown",
    "touch",
    "find",
    "readlink",
];
/// As released.
const PROGRAMS: &[&str] = &["luod", "luoctl", "kv"];
const AGENT: &str = "luo-lab-agent";
const CLIENT: &str = "luo-lab-client";
const FILES: &[(&str, &str)] = &[
    (
        "etc/passwd",
        "root:x:0:0::/root:/bin/sh\none:x:1001:1001::/:/bin/sh\ntwo:x:1002:1002::/:/bin/sh\n",
    ),
    ("etc/group", "root:x:0:\none:x:1001:\ntwo:x:1002:\n"),
    ("etc/hosts", "127.0.0.1 localhost\n"),
    // An arena belongs to a machine, which is the same on both sides of a kexec.
    ("etc/machine-id", "6c756f206c616220006d616368696e65\n"),
    ("etc/profile", "PS1='lab# '\n"),
];

/// The guest's programs, built and stripped.
#[derive(Debug, Clone)]
pub(super) struct Programs {
    /// Where they lie, and what they are called in the guest.
    files: Vec<(PathBuf, PathBuf)>,
}

impl Programs {
    /// Builds them as they are released.
    pub(super) fn build(workspace: &Workspace) -> Result<Self> {
        let mut cargo = workspace.cargo();
        cargo.args([
            "build",
            "--locked",
            "--release",
            "--bins",
            "--package",
            AGENT,
            "--package",
            CLIENT,
        ]);
        for program in PROGRAMS {
            cargo.args(["--package", program]);
        }
        proc::check(&mut cargo)?;
        let into = workspace.target().join("lab/bin");
        fs::create_dir_all(&into).context(|| format!("make {}", into.display()))?;
        let mut files = Vec::new();
        for program in PROGRAMS.iter().chain([&AGENT, &CLIENT]) {
            let stripped = into.join(program);
            // Debugging information would fill the guest's memory.
            proc::output(
                Command::new("strip")
                    .arg("--strip-debug")
                    .arg("-o")
                    .arg(&stripped)
                    .arg(workspace.target().join("release").join(program)),
            )?;
            let inside =
                if *program == AGENT { "init".into() } else { Path::new("bin").join(program) };
            files.push((stripped, inside));
        }
        for tool in TOOLS {
            if let Some(path) = needs::program(tool) {
                files.push((path, Path::new("bin").join(tool)));
            }
        }
        Ok(Self { files })
    }

    /// Writes an archive with them and a kernel's modules.
    pub(super) fn write(&self, modules: &[PathBuf], into: &Path) -> Result<()> {
        let mut archive = Archive::default();
        for directory in ["dev", "proc", "sys", "run", "tmp", "root", "mnt", "bin", "var/lib/luod"]
        {
            archive.directory(Path::new(directory));
        }
        // The first process speaks there before it has mounted /dev.
        archive.device(Path::new("dev/console"), 0o600, (5, 1));
        for (path, target) in [("sbin", "bin"), ("usr/bin", "../bin"), ("usr/sbin", "../bin")] {
            archive.link(Path::new(path), target);
        }
        for (path, content) in FILES {
            archive.file(Path::new(path), 0o644, content.as_bytes());
        }
        let mut libraries = BTreeSet::new();
        for (path, inside) in &self.files {
            let content = fs::read(path).context(|| format!("read {}", path.display()))?;
            archive.file(inside, 0o755, &content);
            libraries.extend(libraries::of(path)?);
        }
        for path in &libraries {
            let content = fs::read(path).context(|| format!("read {}", path.display()))?;
            archive.file(path, 0o755, &content);
        }
        let mut order = String::new();
        for path in modules {
            let name = path
                .file_name()
                .and_then(|name| name.to_str())
                .and_then(|name| name.split(".ko").next())
                .ok_or_else(|| Failed::new(format!("{} is no module", path.display())))?;
            let inside = format!("/lib/modules/{name}.ko");
            archive.file(Path::new(&inside), 0o644, &libraries::uncompressed(path)?);
            order.push_str(&inside);
            order.push('\n');
        }
        if !modules.is_empty() {
            archive.file(Path::new("lib/modules/lab.order"), 0o644, order.as_bytes());
        }
        fs::write(into, archive.finish()).context(|| format!("write {}", into.display()))
    }
}
