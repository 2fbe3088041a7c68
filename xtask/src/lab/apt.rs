//! Packages of a suite that the machine itself need not use: found, fetched, unpacked, not installed.
//!
//! The mirror is the machine's own, as apt itself reads its configuration. The lists of the suite lie
//! in a directory of the lab's, with a configuration of the lab's.
//!
//! Invariants: nothing of the machine's own apt is changed; what is fetched was signed with the key
//! that the machine trusts for that mirror.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::failure::{Context as _, Failed, Result};
use crate::proc;

/// A mirror of the distribution that the machine uses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mirror {
    uri: String,
    /// The file with the keys that sign it, where the distribution has one beside apt's own.
    keys: Option<PathBuf>,
}

/// Debian's keys, of all its releases. (apt does not say which file the machine's sources name.)
const KEYS: &[&str] = &[
    "/usr/share/keyrings/debian-archive-keyring.pgp",
    "/usr/share/keyrings/debian-archive-keyring.gpg",
];

/// What apt says of each list of packages, one a line.
const TARGETS: &str = "$(RELEASE)|$(COMPONENT)|$(REPO_URI)";

impl Mirror {
    /// The one from which the machine has the main part of its release.
    pub(super) fn find(codename: &str) -> Result<Self> {
        let targets = proc::output(Command::new("apt-get").args([
            "indextargets",
            "--format",
            TARGETS,
            "Created-By: Packages",
        ]))?;
        let keys = KEYS.iter().map(PathBuf::from).find(|keys| keys.is_file());
        Self::choose(&targets, codename, keys).ok_or_else(|| {
            Failed::new(format!(
                "no mirror of {codename} is in this machine's sources of packages; look at \
                 `apt-get indextargets`"
            ))
        })
    }

    fn choose(targets: &str, codename: &str, keys: Option<PathBuf>) -> Option<Self> {
        let uri = targets.lines().find_map(|line| {
            let mut fields = line.split('|');
            let (release, component, uri) = (fields.next()?, fields.next()?, fields.next()?);
            (release == codename && component == "main").then(|| uri.to_owned())
        })?;
        Some(Self { uri, keys })
    }

    fn line(&self, suite: &str) -> String {
        let options = match &self.keys {
            Some(keys) => format!("[signed-by={}] ", keys.display()),
            None => String::new(),
        };
        format!("deb {options}{} {suite} main\n", self.uri)
    }
}

/// One suite, in a directory of its own.
#[derive(Debug)]
pub(super) struct Suite {
    dir: PathBuf,
    name: String,
}

/// A package as a suite has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Package {
    pub(super) name: String,
    pub(super) version: String,
    pub(super) depends: String,
}

impl Suite {
    /// Fetches the lists.
    pub(super) fn update(dir: PathBuf, mirror: &Mirror, name: &str) -> Result<Self> {
        let doing = || format!("prepare {}", dir.display());
        for part in ["lists/partial", "cache/archives/partial", "parts"] {
            fs::create_dir_all(dir.join(part)).context(doing)?;
        }
        fs::write(dir.join("sources.list"), mirror.line(name)).context(doing)?;
        fs::write(dir.join("status"), "").context(doing)?;
        let suite = Self { dir, name: name.to_owned() };
        proc::check(suite.apt("apt-get").args(["update", "--quiet"]))?;
        Ok(suite)
    }

    fn apt(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let mut option = |name: &str, path: &str| {
            command.arg("-o").arg(format!("{name}={}", self.dir.join(path).display()));
        };
        option("Dir::State", "");
        option("Dir::State::lists", "lists");
        option("Dir::State::status", "status");
        option("Dir::Cache", "cache");
        option("Dir::Etc::sourcelist", "sources.list");
        option("Dir::Etc::sourceparts", "parts");
        option("Dir::Etc::preferences", "preferences");
        option("Dir::Etc::preferencesparts", "parts");
        // Packages that the machine has installed hook in there.
        command.args(["-o", "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false"]);
        command.args(["-o", "Acquire::Languages=none"]);
        // The directory may be one that apt's own user may not enter.
        command.args(["-o", "APT::Sandbox::User=root"]);
        command
    }

    /// The newest package among those whose names the filter takes.
    pub(super) fn newest(&self, what: &str, wanted: impl Fn(&str) -> bool) -> Result<Package> {
        let all = proc::output(self.apt("apt-cache").arg("dumpavail"))?;
        packages(&all)
            .filter(|package| wanted(&package.name))
            .max_by_key(|package| numbers(&package.version))
            .ok_or_else(|| Failed::new(format!("the suite {} has no {what}", self.name)))
    }

    /// The newest package of that name, and all the libraries that it and they depend on. Of
    /// alternatives the first is taken; other programs are left out.
    pub(super) fn with_libraries(&self, name: &str) -> Result<Vec<Package>> {
        let all = proc::output(self.apt("apt-cache").arg("dumpavail"))?;
        let all: Vec<Package> = packages(&all).collect();
        with_libraries(&all, name)
            .ok_or_else(|| Failed::new(format!("the suite {} has no {name}", self.name)))
    }

    /// Fetches a package and unpacks it into a directory.
    pub(super) fn unpack(&self, package: &Package, into: &Path) -> Result<()> {
        let fetched = self.dir.join("fetched");
        let doing = || format!("fetch {}", package.name);
        // A fetch that was interrupted.
        if fetched.exists() {
            fs::remove_dir_all(&fetched).context(doing)?;
        }
        fs::create_dir_all(&fetched).context(doing)?;
        let named = format!("{}={}", package.name, package.version);
        proc::check(
            self.apt("apt-get").args(["download", "--quiet", &named]).current_dir(&fetched),
        )?;
        let file = fs::read_dir(&fetched)
            .context(doing)?
            .flatten()
            .map(|entry| entry.path())
            .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
            .ok_or_else(|| Failed::new(format!("apt-get fetched nothing for {named}")))?;
        proc::check(Command::new("dpkg-deb").arg("--extract").arg(&file).arg(into))?;
        fs::remove_dir_all(&fetched).context(doing)
    }
}

fn with_libraries(all: &[Package], name: &str) -> Option<Vec<Package>> {
    let newest = |name: &str| {
        let of_name = all.iter().filter(|package| package.name == name);
        of_name.max_by_key(|package| numbers(&package.version))
    };
    let mut found = vec![newest(name)?.clone()];
    let mut at = 0;
    while let Some(package) = found.get(at) {
        let needs: Vec<String> = package.depends.split(',').filter_map(depended).collect();
        for name in needs {
            let known = found.iter().any(|package| package.name == name);
            // One that is not there by its name is there within another one.
            if let (false, Some(package)) = (known, newest(&name)) {
                found.push(package.clone());
            }
        }
        at += 1;
    }
    Some(found)
}

/// The name of a library in an entry of `Depends`.
fn depended(entry: &str) -> Option<String> {
    let name = entry.split('|').next()?.split_whitespace().next()?;
    let name = name.split(':').next()?;
    name.starts_with("lib").then(|| name.to_owned())
}

fn packages(all: &str) -> impl Iterator<Item = Package> {
    all.split("\n\n").filter_map(|paragraph| {
        let field = |name: &str| {
            paragraph
                .lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
                .map(str::to_owned)
        };
        Some(Package {
            name: field("Package")?,
            version: field("Version")?,
            depends: field("Depends").unwrap_or_default(),
        })
    })
}

/// The numbers in a version, in order: enough to tell which kernel is newer.
pub(super) fn numbers(version: &str) -> Vec<u64> {
    version
        .split(|letter: char| !letter.is_ascii_digit())
        .filter_map(|digits| digits.parse().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TARGETS: &str = "\
bookworm-security|main|http://one.example/security/
bookworm|contrib|http://one.example/debian/
bookworm|main|http://one.example/debian/
bookworm|main|http://two.example/debian/
";

    #[test]
    fn the_mirror_of_the_release_itself_is_taken() {
        let mirror = Mirror::choose(TARGETS, "bookworm", None).expect("there is one");
        assert_eq!(mirror.line("next"), "deb http://one.example/debian/ next main\n");
        assert_eq!(Mirror::choose(TARGETS, "trixie", None), None);
    }

    #[test]
    fn the_keys_are_named_where_there_are_any() {
        let mirror = Mirror::choose(TARGETS, "bookworm", Some("/keys.gpg".into()));
        assert_eq!(
            mirror.expect("there is one").line("next"),
            "deb [signed-by=/keys.gpg] http://one.example/debian/ next main\n"
        );
    }

    #[test]
    fn a_program_comes_with_the_libraries_of_its_libraries_once_each() {
        let all = "Package: p\nVersion: 1\nDependencies: x\nDepends: liba (>= 1), python3, \
                   libb:any | libc\n\nPackage: liba\nVersion: 1\nDepends: libb\n\nPackage: libb\n\
                   Version: 2\nDepends: liba, libgone\n\nPackage: libb\nVersion: 10\n\n\
                   Package: libc\nVersion: 1\n";
        let all: Vec<Package> = packages(all).collect();
        let found = with_libraries(&all, "p").expect("it is there");
        let found: Vec<_> = found.iter().map(|p| (p.name.as_str(), p.version.as_str())).collect();
        assert_eq!(found, [("p", "1"), ("liba", "1"), ("libb", "10")]);
        assert_eq!(with_libraries(&all, "q"), None);
    }

    #[test]
    fn packages_are_read_and_versions_compared_by_number() {
        let all = "Package: a-6.9\nVersion: 6.9-1\n\nPackage: a-6.10\nVersion: 6.10-1\n\
                   Depends: b (= 1), c\n\nPackage: broken\n";
        let newest = packages(all).max_by_key(|package| numbers(&package.version));
        let newest = newest.expect("there are two");
        assert_eq!(newest.name, "a-6.10");
        assert_eq!(newest.depends, "b (= 1), c");
        assert_eq!(packages(all).count(), 2);
    }
}
