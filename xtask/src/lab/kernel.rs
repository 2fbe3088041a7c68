//! The lab's own kernel: built from the distribution's source with `kernel.config`, once.
//!
//! Invariants: what is in the cache has every option that `kernel.config` asks for; a kernel of
//! another configuration has another name.

use std::collections::HashSet;
use std::env;
use std::fs;
use std::io::{BufRead as _, BufReader, IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Instant;

use super::apt::{Mirror, Package, Suite, numbers};
use super::needs;
use super::place::Place;
use crate::failure::{Context as _, Failed, Result};
use crate::proc;

/// What it has.
const CONFIG: &str = include_str!("kernel.config");
/// The suite that has the newest source, whatever the machine's own release is.
const SUITE: &str = "trixie-backports";
/// The first kernel with `/dev/liveupdate`.
const OLDEST: [u64; 2] = [6, 19];
/// About so many files are compiled, for the progress shown.
const ABOUT: usize = 2020;
/// The kernel's tests of its own orchestrator, below the source.
const SELFTESTS: &str = "tools/testing/selftests/liveupdate";

/// A kernel that was built.
#[derive(Debug, Clone)]
pub(crate) struct Own {
    /// What the machine is started with.
    pub(crate) image: PathBuf,
    /// Where the kernel's self-tests are, unless `LUO_LAB_KERNEL` names one that has none beside it.
    pub(crate) selftests: Option<PathBuf>,
}

/// Finds it, or builds it.
pub(super) fn ensure(place: &Place, may_install: bool, renew: bool) -> Result<Own> {
    if let Some(image) = env::var_os("LUO_LAB_KERNEL").filter(|image| !image.is_empty()) {
        let image = PathBuf::from(image);
        if !image.is_file() {
            return Err(Failed::new(format!(
                "LUO_LAB_KERNEL names {}, which is no file",
                image.display()
            )));
        }
        let beside = image.with_file_name("selftests");
        return Ok(Own { image, selftests: beside.is_dir().then_some(beside) });
    }
    if !renew && let Some(found) = find(place) {
        return Ok(found);
    }
    let codename = needs::debian()?;
    needs::provide(needs::TO_FETCH, may_install)?;
    needs::provide(needs::TO_BUILD, may_install)?;
    let _locked = place.lock()?;
    // Another run may have built it meanwhile.
    if !renew && let Some(found) = find(place) {
        return Ok(found);
    }
    let (package, source) = source(place, &codename)?;
    let dir = place.dir("kernel").join(format!("{}-{}", package.version, key()));
    if !dir.is_dir() {
        let work = tempfile::TempDir::with_prefix_in("building-", place.dir("source"))
            .context(|| "make a directory to build in".into())?;
        place.make(&dir, |into| build(&source, work.path(), into))?;
    }
    find(place).ok_or_else(|| Failed::new("the kernel that was built is not in its place"))
}

/// The newest of this configuration.
fn find(place: &Place) -> Option<Own> {
    let ending = format!("-{}", key());
    let kernels = place.list("kernel").into_iter().filter(|(name, _)| name.ends_with(&ending));
    let (_, dir) = kernels.max_by_key(|(name, _)| numbers(name.trim_end_matches(&ending)))?;
    Some(Own { image: dir.join("bzImage"), selftests: Some(dir.join("selftests")) })
}

/// What tells one configuration from another: FNV-1a, which is the same in each build of xtask.
fn key() -> String {
    let hash = CONFIG.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("{hash:016x}")
}

/// The newest source, unpacked.
fn source(place: &Place, codename: &str) -> Result<(Package, PathBuf)> {
    let mirror = Mirror::find(codename)?;
    let suite = Suite::update(place.dir("apt").join(SUITE), &mirror, SUITE)?;
    let package = suite.newest("kernel source", |name| {
        name.strip_prefix("linux-source-").is_some_and(|version| numbers(version) >= OLDEST.into())
    })?;
    let dir = place.dir("source").join(&package.version);
    if !dir.is_dir() {
        println!("unpacking {} {}", package.name, package.version);
        place.make(&dir, |into| {
            let packed = tempfile::TempDir::with_prefix_in("making-", into)
                .context(|| "make a directory to unpack in".into())?;
            suite.unpack(&package, packed.path())?;
            let archive = packed.path().join(format!("usr/src/{}.tar.xz", package.name));
            proc::check(
                Command::new("tar")
                    .args(["--extract", "--strip-components=1", "--file"])
                    .arg(&archive)
                    .arg("--directory")
                    .arg(into),
            )
        })?;
    }
    Ok((package, dir))
}

fn build(source: &Path, work: &Path, into: &Path) -> Result<()> {
    let fragment = work.join("lab.config");
    fs::write(&fragment, CONFIG).context(|| format!("write {}", fragment.display()))?;
    let make = || {
        let mut make = Command::new("make");
        make.arg("--silent").arg("--directory").arg(source).arg(format!("O={}", work.display()));
        // The same kernel wherever and whenever it is built.
        make.env("KBUILD_BUILD_TIMESTAMP", "@0")
            .env("KBUILD_BUILD_USER", "luo")
            .env("KBUILD_BUILD_HOST", "lab")
            .env_remove("MAKEFLAGS");
        make
    };
    proc::check(make().env("KCONFIG_ALLCONFIG", &fragment).arg("allnoconfig"))?;
    let config = fs::read_to_string(work.join(".config"))
        .context(|| "read the kernel's configuration".into())?;
    let refused = refused(CONFIG, &config);
    if !refused.is_empty() {
        return Err(Failed::new(format!(
            "this kernel did not take what kernel.config asks for: {}; an option may have another \
             name in it, or need one that is not asked for",
            refused.join(", ")
        )));
    }
    let jobs = thread::available_parallelism().map_or(2, usize::from);
    compile(make().arg(format!("--jobs={jobs}")).args(["V=0", "bzImage"]))?;
    // The self-tests are compiled with the headers of the very same kernel.
    proc::check(make().arg("headers"))?;
    let copy = |from: PathBuf, name: &str| {
        fs::copy(&from, into.join(name)).map(|_| ()).context(|| format!("copy {}", from.display()))
    };
    copy(work.join("arch/x86/boot/bzImage"), "bzImage")?;
    copy(work.join(".config"), "config")?;
    selftests(source, work, &into.join("selftests"))
}

/// What the kernel's configuration does not have although it was asked for.
fn refused(wanted: &str, config: &str) -> Vec<String> {
    let has: HashSet<&str> = config.lines().collect();
    wanted
        .lines()
        .filter(|line| match line.strip_prefix("# CONFIG_") {
            // Not set is also what does not appear at all.
            Some(rest) => rest.split_once(' ').is_some_and(|(option, rest)| {
                rest == "is not set"
                    && has.iter().any(|line| {
                        line.strip_prefix("CONFIG_")
                            .and_then(|line| line.strip_prefix(option))
                            .is_some_and(|value| value.starts_with('='))
                    })
            }),
            None => line.starts_with("CONFIG_") && !has.contains(line),
        })
        .map(str::to_owned)
        .collect()
}

/// Runs make and counts what it says that it has made.
fn compile(make: &mut Command) -> Result<()> {
    let began = Instant::now();
    let text = proc::line(make);
    let doing = || format!("run `{text}`");
    println!("building the lab's kernel, once: some seven minutes on two processors");
    // Without --silent each file is a line.
    let mut loud = Command::new(make.get_program());
    loud.args(make.get_args().filter(|argument| *argument != "--silent"));
    for (name, value) in make.get_envs() {
        match value {
            Some(value) => loud.env(name, value),
            None => loud.env_remove(name),
        };
    }
    let errors = tempfile::NamedTempFile::new().context(doing)?;
    let stderr = errors.reopen().context(doing)?;
    let mut child =
        loud.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(stderr).spawn().context(doing)?;
    let shown = std::io::stdout().is_terminal();
    let mut made = 0;
    if let Some(stdout) = child.stdout.take() {
        for line in BufReader::new(stdout).split(b'\n') {
            let line = line.context(doing)?;
            if !line.starts_with(b"  ") {
                continue;
            }
            made += 1;
            let step = if shown { 10 } else { 250 };
            if made % step == 0 {
                let ending = if shown { '\r' } else { '\n' };
                print!("  {made} of about {ABOUT} files, {} s{ending}", began.elapsed().as_secs());
                std::io::stdout().flush().context(doing)?;
            }
        }
    }
    let status = child.wait().context(doing)?;
    if !status.success() {
        let said = fs::read_to_string(errors.path()).unwrap_or_default();
        return Err(Failed::new(format!("`{text}` failed ({status}): {}", said.trim())));
    }
    println!("  {made} files made in {} s", began.elapsed().as_secs());
    Ok(())
}

/// Builds the kernel's own tests of its orchestrator, each a program that needs no library.
fn selftests(source: &Path, work: &Path, into: &Path) -> Result<()> {
    let tests = source.join(SELFTESTS);
    let doing = || format!("look into {}", tests.display());
    fs::create_dir_all(into).context(doing)?;
    let mut programs = Vec::new();
    for entry in fs::read_dir(&tests).context(doing)? {
        let path = entry.context(doing)?.path();
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        // init.c is the first process of the kernel's own lab.
        if path.extension().is_some_and(|extension| extension == "c") && name != "init" {
            programs.push((name, path));
        }
    }
    for (name, path) in programs {
        proc::check(
            Command::new("gcc")
                .args(["-static", "-O2", "-D_GNU_SOURCE", "-w", "-isystem"])
                .arg(work.join("usr/include"))
                .arg("-I")
                .arg(tests.join("lib/include"))
                .arg("-I")
                .arg(source.join("tools/testing/selftests"))
                .arg(&path)
                .arg(tests.join("lib/lu_utils.c"))
                .arg("-o")
                .arg(into.join(name)),
        )?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_option_that_the_kernel_did_not_take_is_found() {
        let wanted =
            "# words\nCONFIG_A=y\nCONFIG_B=8\n# CONFIG_C is not set\n# CONFIG_D is not set\n";
        let all = "CONFIG_A=y\nCONFIG_B=8\n# CONFIG_C is not set\n";
        assert_eq!(refused(wanted, all), Vec::<String>::new());
        let other = "CONFIG_A=m\nCONFIG_B=8\nCONFIG_C=y\nCONFIG_DD=y\n";
        assert_eq!(refused(wanted, other), ["CONFIG_A=y", "# CONFIG_C is not set"]);
    }
}
