//! Where things are, and cargo as the subcommands call it.

use std::env;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::failure::{Context as _, Failed, Result};

/// The workspace this binary was built from.
#[derive(Debug)]
pub(crate) struct Workspace {
    root: PathBuf,
    target: PathBuf,
}

impl Workspace {
    /// Finds it from where the sources were at build time; a moved checkout is found from the
    /// current directory.
    pub(crate) fn find() -> Result<Self> {
        let built = Path::new(env!("CARGO_MANIFEST_DIR")).parent().map(Path::to_path_buf);
        let root = match built.filter(|root| is_root(root)) {
            Some(root) => root,
            None => {
                let here = env::current_dir().context(|| "find the current directory".into())?;
                here.ancestors().find(|dir| is_root(dir)).map(Path::to_path_buf).ok_or_else(
                    || Failed::new("no luo workspace here: run `cargo xtask` inside the checkout"),
                )?
            }
        };
        let target = env::var_os("CARGO_TARGET_DIR")
            .map_or_else(|| root.join("target"), |dir| root.join(dir));
        Ok(Self { root, target })
    }

    /// The checkout.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Cargo's target directory.
    pub(crate) fn target(&self) -> &Path {
        &self.target
    }

    /// Tools that xtask installs for itself, with cargo's `bin/` below it.
    pub(crate) fn tools(&self) -> PathBuf {
        self.target.join("tools")
    }

    /// The debug binaries.
    pub(crate) fn debug(&self) -> PathBuf {
        self.target.join("debug")
    }

    /// Cargo, as [`program`](Self::program).
    pub(crate) fn cargo(&self) -> Command {
        self.program(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
    }

    /// A program in the checkout, with neither the flags of the caller's environment nor what
    /// `cargo run` set for xtask itself: the results are to depend on the sources alone.
    pub(crate) fn program(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        command.current_dir(&self.root);
        for (name, _) in env::vars_os() {
            let text = name.to_string_lossy();
            if text.starts_with("CARGO_PKG_")
                || text.starts_with("CARGO_MANIFEST_")
                || NOT_INHERITED.contains(&text.as_ref())
            {
                command.env_remove(&name);
            }
        }
        command
    }
}

const NOT_INHERITED: &[&str] =
    &["RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS", "RUSTDOCFLAGS", "CARGO_PRIMARY_PACKAGE"];

fn is_root(dir: &Path) -> bool {
    dir.join("xtask").is_dir() && dir.join("crates/luo-core").is_dir()
}
