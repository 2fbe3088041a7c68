//! Licences, bans and sources of the dependencies, checked against `deny.toml`.
//!
//! Done here and not by cargo-deny: `cargo metadata` gives everything that is needed in a second,
//! without a tool that first has to be compiled for minutes wherever the tests run. Advisories are
//! not checked: that needs a database from the network.
//!
//! Invariants: a key of `deny.toml` that is not understood is an error, never ignored; the
//! packages are those that are built for this platform, tests and build scripts included.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use serde::Deserialize;

use crate::failure::{Context as _, Failed, Result};
use crate::proc;
use crate::test::{Report, Run};
use crate::workspace::Workspace;

mod spdx;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Policy {
    licenses: Licenses,
    bans: Bans,
    sources: Sources,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Licenses {
    allow: BTreeSet<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Bans {
    multiple_versions: Level,
    wildcards: Level,
    deny: Vec<Banned>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Banned {
    name: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Sources {
    unknown_registry: Level,
    unknown_git: Level,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Level {
    Allow,
    Warn,
    Deny,
}

/// What `cargo metadata` says, as far as it is used.
#[derive(Debug, Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    resolve: Resolve,
}

#[derive(Debug, Deserialize)]
struct Resolve {
    nodes: Vec<Node>,
}

#[derive(Debug, Deserialize)]
struct Node {
    id: String,
}

#[derive(Debug, Deserialize)]
struct Package {
    id: String,
    name: String,
    version: String,
    license: Option<String>,
    /// `None` for the workspace's own.
    source: Option<String>,
    #[serde(default)]
    dependencies: Vec<Dependency>,
}

#[derive(Debug, Deserialize)]
struct Dependency {
    name: String,
    req: String,
    path: Option<String>,
}

/// The stage of `cargo xtask test`.
pub(crate) fn stage(run: &Run<'_>) -> Result<Report> {
    let policy = policy(run.workspace)?;
    let json = proc::output(run.workspace.cargo().args([
        "metadata",
        "--locked",
        "--format-version=1",
        "--filter-platform",
        &host(run.workspace)?,
    ]))?;
    let metadata: Metadata =
        serde_json::from_str(&json).context(|| "read what `cargo metadata` says".into())?;
    let report = judge(&policy, &metadata);
    println!("{} packages", metadata.resolve.nodes.len());
    for note in &report.notes {
        println!("note: {note}");
    }
    Ok(report)
}

fn policy(workspace: &Workspace) -> Result<Policy> {
    let path = workspace.root().join("deny.toml");
    let text = fs::read_to_string(&path).context(|| format!("read {}", path.display()))?;
    toml::from_str(&text).context(|| "read deny.toml".into())
}

fn host(workspace: &Workspace) -> Result<String> {
    let says = proc::output(workspace.program("rustc").arg("-vV"))?;
    says.lines()
        .find_map(|line| line.strip_prefix("host: "))
        .map(str::to_owned)
        .ok_or_else(|| Failed::new("`rustc -vV` names no host"))
}

/// Three checks: licences, bans, sources.
fn judge(policy: &Policy, metadata: &Metadata) -> Report {
    let built: BTreeSet<&str> =
        metadata.resolve.nodes.iter().map(|node| node.id.as_str()).collect();
    let packages: Vec<&Package> =
        metadata.packages.iter().filter(|package| built.contains(package.id.as_str())).collect();
    let mut report = Report::default();
    for check in [licenses, bans, sources] {
        let mut found = Found::default();
        check(policy, &packages, &mut found);
        if found.denied.is_empty() {
            report.passed += 1;
        }
        report.failed.append(&mut found.denied);
        report.notes.append(&mut found.warned);
    }
    report
}

#[derive(Debug, Default)]
struct Found {
    denied: Vec<String>,
    warned: Vec<String>,
}

impl Found {
    fn at(&mut self, level: Level, what: String) {
        match level {
            Level::Allow => {}
            Level::Warn => self.warned.push(what),
            Level::Deny => self.denied.push(what),
        }
    }
}

fn licenses(policy: &Policy, packages: &[&Package], found: &mut Found) {
    for package in packages {
        let Package { name, version, .. } = package;
        let Some(license) = &package.license else {
            found.denied.push(format!("{name} {version} names no licence"));
            continue;
        };
        match spdx::satisfied(license, &|id| policy.licenses.allow.contains(id)) {
            Ok(true) => {}
            Ok(false) => found.denied.push(format!(
                "{name} {version} is under `{license}`, which deny.toml does not allow"
            )),
            Err(bad) => found.denied.push(format!("{name} {version}: `{license}`: {bad}")),
        }
    }
}

fn bans(policy: &Policy, packages: &[&Package], found: &mut Found) {
    let mut versions: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for package in packages {
        versions.entry(&package.name).or_default().insert(&package.version);
        if policy.bans.deny.iter().any(|banned| banned.name == package.name) {
            found.denied.push(format!("{} is banned by deny.toml", package.name));
        }
        if package.source.is_none() {
            for dependency in &package.dependencies {
                if dependency.req == "*" && dependency.path.is_none() {
                    let what = format!("{} takes any version of {}", package.name, dependency.name);
                    found.at(policy.bans.wildcards, what);
                }
            }
        }
    }
    for (name, versions) in versions {
        if versions.len() > 1 {
            let versions: Vec<_> = versions.into_iter().collect();
            let what = format!("{} versions of {name}: {}", versions.len(), versions.join(", "));
            found.at(policy.bans.multiple_versions, what);
        }
    }
}

fn sources(policy: &Policy, packages: &[&Package], found: &mut Found) {
    for package in packages {
        let Some(source) = &package.source else { continue };
        let level = match source.split_once('+') {
            // The default registry's index has this name wherever it is served from.
            Some(("registry" | "sparse", place))
                if place.trim_end_matches('/').ends_with("crates.io-index") =>
            {
                continue;
            }
            Some(("registry" | "sparse", _)) => policy.sources.unknown_registry,
            _ => policy.sources.unknown_git,
        };
        found.at(level, format!("{} {} comes from {source}", package.name, package.version));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy() -> Policy {
        toml::from_str(include_str!("../../../deny.toml")).expect("deny.toml is understood")
    }

    fn package(name: &str, version: &str) -> Package {
        Package {
            id: format!("{name} {version}"),
            name: name.into(),
            version: version.into(),
            license: Some("MIT OR Apache-2.0".into()),
            source: Some("registry+somewhere/crates.io-index".into()),
            dependencies: Vec::new(),
        }
    }

    fn judged(packages: Vec<Package>) -> Report {
        let nodes = packages.iter().map(|package| Node { id: package.id.clone() }).collect();
        judge(&policy(), &Metadata { packages, resolve: Resolve { nodes } })
    }

    #[test]
    fn good_packages_pass_all_three_checks() {
        let report = judged(vec![package("a", "1.0.0"), package("b", "1.0.0")]);
        assert_eq!((report.passed, report.failed.len()), (3, 0));
    }

    #[test]
    fn a_licence_that_is_not_allowed_or_missing_fails() {
        let copyleft = Package { license: Some("GPL-3.0-only".into()), ..package("a", "1.0.0") };
        let none = Package { license: None, ..package("b", "1.0.0") };
        let report = judged(vec![copyleft, none]);
        assert_eq!((report.passed, report.failed.len()), (2, 2), "{:?}", report.failed);
    }

    #[test]
    fn a_package_from_elsewhere_fails() {
        let git = Package { source: Some("git+somewhere".into()), ..package("a", "1.0.0") };
        let other = Package { source: Some("registry+elsewhere".into()), ..package("b", "1.0.0") };
        assert_eq!(judged(vec![git, other]).failed.len(), 2);
    }

    #[test]
    fn two_versions_are_noted_and_a_banned_package_fails() {
        let report = judged(vec![package("a", "1.0.0"), package("a", "2.0.0")]);
        assert_eq!((report.failed.len(), report.notes.len()), (0, 1));
        assert_eq!(judged(vec![package("openssl-sys", "0.9.0")]).failed.len(), 1);
    }

    #[test]
    fn our_own_wildcard_fails() {
        let any = Dependency { name: "b".into(), req: "*".into(), path: None };
        let own = Package { source: None, dependencies: vec![any], ..package("a", "0.1.0") };
        assert_eq!(judged(vec![own]).failed.len(), 1);
    }

    #[test]
    fn what_is_not_built_here_is_not_judged() {
        let bad = Package { license: None, ..package("winapi", "1.0.0") };
        let metadata = Metadata { packages: vec![bad], resolve: Resolve { nodes: Vec::new() } };
        assert!(judge(&policy(), &metadata).failed.is_empty());
    }

    #[test]
    fn a_key_that_is_not_understood_is_an_error() {
        let text = format!("{}\n[advisories]\nignore = []\n", include_str!("../../../deny.toml"));
        assert!(toml::from_str::<Policy>(&text).is_err());
    }
}
