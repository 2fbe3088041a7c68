//! `cargo xtask dist`: what a packager installs, in one tarball below `dist/`.
//!
//! Release binaries, man pages and completions (which `luoctl` writes from the same source as its
//! `--help`), the unit file with its drop-in, licences and changelog.
//!
//! Invariants: the same sources and toolchain give the same tarball, so neither the time, nor the
//! user, nor the order of a directory goes into it; a tarball that could not be written whole is
//! not there.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::failure::{Context as _, Failed, Result};
use crate::proc;
use crate::workspace::Workspace;

/// Options of `cargo xtask dist`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

const BINARIES: &[&str] = &["luod", "luoctl"];

/// What is copied as it is: source in the checkout, place in the tarball.
const FILES: &[(&str, &str)] = &[
    ("packaging/luod.service", "lib/systemd/system/luod.service"),
    ("packaging/luod.toml", "share/doc/luo/luod.toml"),
    ("packaging/luod-keeper-systemd.conf", "share/doc/luo/luod-keeper-systemd.conf"),
    ("packaging/luod-kexec.conf", "share/doc/luo/luod-kexec.conf"),
    ("LICENSE-MIT", "share/doc/luo/LICENSE-MIT"),
    ("LICENSE-APACHE", "share/doc/luo/LICENSE-APACHE"),
    ("CHANGELOG.md", "share/doc/luo/CHANGELOG.md"),
    ("README.md", "share/doc/luo/README.md"),
];

/// A shell, and where it looks for the completions of `luoctl`.
const COMPLETIONS: &[(&str, &str)] = &[
    ("bash", "share/bash-completion/completions/luoctl"),
    ("zsh", "share/zsh/site-functions/_luoctl"),
    ("fish", "share/fish/vendor_completions.d/luoctl.fish"),
];

/// Builds the tarball and says where it is.
pub(crate) fn run(workspace: &Workspace, _: &Args) -> Result<()> {
    let name = format!("luo-{}-{}", env!("CARGO_PKG_VERSION"), std::env::consts::ARCH);
    let dist = workspace.root().join("dist");
    let tree = dist.join(&name);
    if tree.exists() {
        fs::remove_dir_all(&tree).context(|| format!("remove {}", tree.display()))?;
    }

    let mut build = workspace.cargo();
    build.args(["build", "--release", "--locked"]);
    for binary in BINARIES {
        build.args(["--package", binary]);
    }
    proc::check(&mut build)?;

    let release = workspace.target().join("release");
    for binary in BINARIES {
        copy(&release.join(binary), &tree.join("bin").join(binary))?;
    }
    for (from, to) in FILES {
        copy(&workspace.root().join(from), &tree.join(to))?;
    }

    let luoctl = release.join("luoctl");
    let man = tree.join("share/man/man1");
    fs::create_dir_all(&man).context(|| "make the directory of the man pages".into())?;
    proc::check(Command::new(&luoctl).arg("man").arg(&man))?;
    let pages = fs::read_dir(&man).context(|| "list the man pages".into())?.count();
    if pages == 0 {
        return Err(Failed::new("`luoctl man` wrote no page"));
    }
    for (shell, to) in COMPLETIONS {
        let text = proc::output(Command::new(&luoctl).args(["completions", shell]))?;
        let to = tree.join(to);
        make_parent(&to)?;
        fs::write(&to, text).context(|| format!("write {}", to.display()))?;
    }

    let tarball = dist.join(format!("{name}.tar.gz"));
    let partial = dist.join(format!(".{name}.tar.gz.partial"));
    proc::check(
        Command::new("tar")
            .args(["--create", "--sort=name", "--owner=0", "--group=0", "--numeric-owner"])
            .args(["--mode=u+rw,go+r-w", "--mtime=@0", "--use-compress-program=gzip -9n"])
            .arg("--directory")
            .arg(&dist)
            .arg("--file")
            .arg(&partial)
            .arg(&name),
    )?;
    fs::rename(&partial, &tarball).context(|| format!("write {}", tarball.display()))?;
    println!("{}", tarball.strip_prefix(workspace.root()).unwrap_or(&tarball).display());
    Ok(())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    make_parent(to)?;
    fs::copy(from, to).context(|| format!("copy {} to {}", from.display(), to.display()))?;
    Ok(())
}

fn make_parent(path: &Path) -> Result<()> {
    match path.parent() {
        Some(parent) => fs::create_dir_all(parent).context(|| format!("make {}", parent.display())),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_packed_is_in_the_checkout() {
        let workspace = Workspace::find().expect("the tests run in the checkout");
        for (from, _) in FILES.iter().filter(|(from, _)| *from != "README.md") {
            assert!(workspace.root().join(from).is_file(), "{from}");
        }
    }
}
