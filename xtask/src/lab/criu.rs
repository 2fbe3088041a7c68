//! CRIU of a newer suite, unpacked and not installed, for kernels on which the machine's own fails.
//!
//! It is started through its own loader, with the libraries of its own suite.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::apt::{Mirror, Suite, numbers};
use super::needs;
use super::place::Place;
use crate::failure::{Context as _, Failed, Result};

/// The suite from which it is taken.
const SUITE: &str = "trixie";
const PROGRAM: &str = "usr/sbin/criu";
const LOADER: &str = "ld-linux-x86-64.so.2";

/// How it is started.
#[derive(Debug, Clone)]
pub(crate) struct Criu {
    /// The directory that its package and its libraries were unpacked into; none: the machine's own.
    root: Option<PathBuf>,
}

impl Criu {
    /// One that was unpacked before, or can be fetched; else the machine's own.
    pub(crate) fn find() -> Result<Self> {
        match ensure() {
            Ok(root) => Ok(Self { root: Some(root) }),
            Err(failed) if Command::new("criu").arg("--version").output().is_ok() => {
                println!("the machine's own criu is used: {}", failed.chain());
                Ok(Self { root: None })
            }
            Err(failed) => Err(failed),
        }
    }

    /// The program; arguments are to follow.
    pub(crate) fn command(&self) -> Command {
        let Some(root) = &self.root else { return Command::new("criu") };
        let libraries = libraries(root);
        let mut command = Command::new(libraries.join(LOADER));
        command.arg("--library-path").arg(&libraries).arg(root.join(PROGRAM));
        command
    }
}

fn libraries(root: &Path) -> PathBuf {
    root.join("usr/lib/x86_64-linux-gnu")
}

fn ensure() -> Result<PathBuf> {
    let place = Place::find()?;
    let newest = |place: &Place| {
        let all = place.list("criu").into_iter();
        all.max_by_key(|(name, _)| numbers(name)).map(|(_, dir)| dir)
    };
    if let Some(root) = newest(&place) {
        return Ok(root);
    }
    let codename = needs::debian()?;
    needs::provide(needs::TO_FETCH, false)?;
    let _locked = place.lock()?;
    if let Some(root) = newest(&place) {
        return Ok(root);
    }
    let mirror = Mirror::find(&codename)?;
    let suite = Suite::update(place.dir("apt").join(SUITE), &mirror, SUITE)?;
    let packages = suite.with_libraries("criu")?;
    let version = packages
        .first()
        .map(|package| package.version.replace(['/', ':'], "_"))
        .unwrap_or_default();
    let dir = place.dir("criu").join(version);
    place.make(&dir, |into| {
        packages.iter().try_for_each(|package| suite.unpack(package, into))?;
        let doing = || "look at what was fetched".into();
        for needed in [into.join(PROGRAM), libraries(into).join(LOADER)] {
            if !fs::exists(&needed).context(doing)? {
                return Err(Failed::new(format!("there is no {} in it", needed.display())));
            }
        }
        Ok(())
    })?;
    Ok(dir)
}
