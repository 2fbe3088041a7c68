//! Where the lab keeps what takes long to make.
//!
//! ```text
//! $LUO_LAB_CACHE, else $XDG_CACHE_HOME/luo-lab, else ~/.cache/luo-lab
//!   lock                          held while something is made
//!   apt/SUITE/                    package lists of a suite, apart from the machine's own
//!   source/VERSION/               the kernel's source
//!   kernel/VERSION-CONFIG/        bzImage, config, selftests/: the own kernel
//!   criu/VERSION/                 CRIU with its libraries, unpacked
//!   stock/VERSION/                boot/, lib/modules/: the distribution's kernel, unpacked
//! ```
//!
//! Invariants: a directory that is there under its name is whole, because it was made under another
//! one; so whoever only reads needs no lock.

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use tempfile::TempDir;

use crate::failure::{Context as _, Failed, Result};

/// The cache.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    root: PathBuf,
}

/// Nobody else makes anything while this is there.
#[derive(Debug)]
pub(crate) struct Locked(#[expect(dead_code, reason = "held until it is dropped")] File);

impl Place {
    /// Finds it; makes nothing.
    pub(crate) fn find() -> Result<Self> {
        let home = |name: &str| env::var_os(name).filter(|dir| !dir.is_empty()).map(PathBuf::from);
        let root = home("LUO_LAB_CACHE")
            .or_else(|| home("XDG_CACHE_HOME").map(|dir| dir.join("luo-lab")))
            .or_else(|| home("HOME").map(|dir| dir.join(".cache/luo-lab")))
            .ok_or_else(|| {
                Failed::new("no place for the lab's kernels: set LUO_LAB_CACHE or HOME")
            })?;
        Ok(Self { root })
    }

    /// A directory below it.
    pub(crate) fn dir(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// Waits for whoever makes something, and keeps others from it.
    pub(crate) fn lock(&self) -> Result<Locked> {
        let path = self.root.join("lock");
        let doing = || format!("lock {}", path.display());
        fs::create_dir_all(&self.root).context(doing)?;
        let file = File::create(&path).context(doing)?;
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            println!("waiting for another run that fills {}", self.root.display());
            flock(&file, FlockOperation::LockExclusive).context(doing)?;
        }
        Ok(Locked(file))
    }

    /// Makes a directory under another name, and gives it its own once it is whole.
    pub(crate) fn make(&self, path: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
        let parent = path.parent().unwrap_or(&self.root);
        let doing = || format!("make {}", path.display());
        fs::create_dir_all(parent).context(doing)?;
        let dir = TempDir::with_prefix_in("making-", parent).context(doing)?;
        fill(dir.path())?;
        fs::rename(dir.keep(), path).context(doing)
    }

    /// The directories below one of the cache's, by name. None where there is none.
    pub(crate) fn list(&self, name: &str) -> Vec<(String, PathBuf)> {
        let entries = fs::read_dir(self.dir(name)).into_iter().flatten().flatten();
        let mut all: Vec<_> = entries
            .map(|entry| (entry.file_name().to_string_lossy().into_owned(), entry.path()))
            .filter(|(name, path)| !name.starts_with("making-") && path.is_dir())
            .collect();
        all.sort();
        all
    }
}
