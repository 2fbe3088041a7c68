//! The distribution's own kernel for virtual machines, unpacked and not installed.
//!
//! Invariants: modules are named in an order in which each comes after all that it needs.

use std::fs;
use std::path::{Path, PathBuf};

use super::apt::{Mirror, Suite, numbers};
use super::needs;
use super::place::Place;
use crate::failure::{Context as _, Failed, Result};

/// The package that depends on the newest one.
const META: &str = "linux-image-cloud-amd64";
/// What the lab's machines need of what the kernel has as modules. What is built in is in no list of
/// modules, and passed over.
const WANTED: &[&str] = &[
    "virtio_pci",
    "virtio_net",
    "virtio_blk",
    "virtio_console",
    "virtio_rng",
    "ext4",
    "crc32c_generic",
    "libnvdimm",
    "nd_btt",
    "nd_pmem",
    "nd_e820",
    "fuse",
    "loop",
    "dummy",
    "veth",
    "unix_diag",
    "inet_diag",
    "tcp_diag",
];

/// A kernel with its modules.
#[derive(Debug, Clone)]
pub(crate) struct Stock {
    /// What the machine is started with.
    pub(crate) image: PathBuf,
    /// The modules that the machine loads, in this order.
    pub(crate) modules: Vec<PathBuf>,
}

/// Finds it, or fetches it.
pub(super) fn ensure(place: &Place, may_install: bool, renew: bool) -> Result<Stock> {
    if !renew && let Some(found) = find(place)? {
        return Ok(found);
    }
    let codename = needs::debian()?;
    needs::provide(needs::TO_FETCH, may_install)?;
    let _locked = place.lock()?;
    if !renew && let Some(found) = find(place)? {
        return Ok(found);
    }
    let mirror = Mirror::find(&codename)?;
    let suite = Suite::update(place.dir("apt").join(&codename), &mirror, &codename)?;
    let meta = suite.newest("kernel for virtual machines", |name| name == META)?;
    let real = depends(&meta.depends)
        .ok_or_else(|| Failed::new(format!("{META} does not say which kernel is the newest")))?;
    let package = suite.newest("kernel for virtual machines", |name| name == real)?;
    let dir = place.dir("stock").join(&package.version);
    if !dir.is_dir() {
        place.make(&dir, |into| suite.unpack(&package, into))?;
    }
    find(place)?.ok_or_else(|| Failed::new(format!("{} holds no kernel", dir.display())))
}

/// The package on which the other one depends.
fn depends(depends: &str) -> Option<&str> {
    depends
        .split(',')
        .filter_map(|entry| entry.split_whitespace().next())
        .find(|name| name.starts_with("linux-image-"))
}

fn find(place: &Place) -> Result<Option<Stock>> {
    let newest = place.list("stock").into_iter().max_by_key(|(name, _)| numbers(name));
    let Some((_, dir)) = newest else { return Ok(None) };
    let doing = || format!("look into {}", dir.display());
    // From Debian 13 on modules lie below usr.
    let modules = [dir.join("usr/lib/modules"), dir.join("lib/modules")];
    let modules = modules.iter().find(|modules| modules.is_dir());
    let release = match modules {
        Some(modules) => fs::read_dir(modules)
            .context(doing)?
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .next(),
        None => None,
    };
    let (Some(modules), Some(release)) = (modules, release) else {
        return Err(Failed::new(format!(
            "{} has no modules; remove it, and `cargo xtask lab setup` fetches it again",
            dir.display()
        )));
    };
    let image = dir.join("boot").join(format!("vmlinuz-{release}"));
    let modules = ordered(&modules.join(release), WANTED)?;
    Ok(Some(Stock { image, modules }))
}

/// Files with the modules of these names, each after what it needs.
///
/// A package has no `modules.dep`: `depmod` writes that when it is installed. But a module says
/// itself what it needs.
fn ordered(dir: &Path, wanted: &[&str]) -> Result<Vec<PathBuf>> {
    let mut all = Vec::new();
    walk(dir, &mut all)?;
    let by_name = |name: &str| all.iter().find(|path| name_of(path) == name);
    let mut order: Vec<PathBuf> = Vec::new();
    // What is to be visited, and whether what it needs has been already.
    let mut stack: Vec<(String, bool)> =
        wanted.iter().rev().map(|name| (normal(name), false)).collect();
    while let Some((name, visited)) = stack.pop() {
        let Some(path) = by_name(&name) else { continue };
        if order.contains(path) {
            continue;
        }
        if visited {
            order.push(path.clone());
            continue;
        }
        stack.push((name, true));
        let module = super::libraries::uncompressed(path)?;
        for need in needed(&module) {
            // A circle cannot be loaded by anybody, and a kernel has none.
            if !stack.iter().any(|(name, visited)| *visited && *name == need) {
                stack.push((need, false));
            }
        }
    }
    Ok(order)
}

fn walk(dir: &Path, all: &mut Vec<PathBuf>) -> Result<()> {
    let doing = || format!("look into {}", dir.display());
    for entry in fs::read_dir(dir).context(doing)? {
        let entry = entry.context(doing)?;
        let kind = entry.file_type().context(doing)?;
        let path = entry.path();
        if kind.is_dir() {
            walk(&path, all)?;
        } else if kind.is_file() && entry.file_name().to_string_lossy().contains(".ko") {
            all.push(path);
        }
    }
    Ok(())
}

/// Files are named with either sign, modules with one.
fn normal(name: &str) -> String {
    name.replace('-', "_")
}

fn name_of(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    normal(name.split(".ko").next().unwrap_or_default())
}

/// What a module needs: `depends=a,b` and `softdep=pre: c` among the strings of its `.modinfo`.
fn needed(module: &[u8]) -> Vec<String> {
    let mut needed = Vec::new();
    for text in module.split(|byte| *byte == 0) {
        if let Some(names) = text.strip_prefix(b"depends=") {
            let names = String::from_utf8_lossy(names);
            needed.extend(names.split(',').filter(|name| !name.is_empty()).map(normal));
        } else if let Some(names) = text.strip_prefix(b"softdep=pre: ") {
            let names = String::from_utf8_lossy(names);
            let names = names.split_whitespace().take_while(|name| *name != "post:");
            needed.extend(names.map(normal));
        }
    }
    needed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_kernel_is_what_the_package_depends_on() {
        assert_eq!(
            depends("linux-base, linux-image-6.1.0-40-cloud-amd64 (= 6.1.153-1)"),
            Some("linux-image-6.1.0-40-cloud-amd64")
        );
        assert_eq!(depends("linux-base"), None);
    }

    #[test]
    fn modules_come_after_all_that_they_need() {
        let dir = tempfile::tempdir().expect("a directory");
        let module = |name: &str, content: &str| {
            fs::write(dir.path().join(name), content).expect("it is written");
        };
        module("a-net.ko", "x\0depends=b,c_d\0y");
        module("b.ko", "\0depends=c_d\0softdep=pre: e\0");
        module("c-d.ko", "\0depends=\0");
        module("e.ko", "\0depends=\0");
        module("f.ko", "\0depends=\0");
        let order = ordered(dir.path(), &["a_net", "built_in", "b"]).expect("they are there");
        let names: Vec<String> = order.iter().map(|path| name_of(path)).collect();
        assert_eq!(names, ["c_d", "e", "b", "a_net"]);
    }
}
