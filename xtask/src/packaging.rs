//! The unit files in `packaging/`: that they hold what luod relies on, and that systemd takes them.

use std::fs;
use std::process::Command;

use tempfile::TempDir;

use crate::failure::{Context as _, Failed, Result};
use crate::proc;
use crate::test::{Report, Run};
use crate::workspace::Workspace;

const SERVICE: &str = "packaging/luod.service";
const DROP_IN: &str = "packaging/luod-keeper-systemd.conf";
const KEXEC: &str = "packaging/luod-kexec.conf";

/// What the service must say, whatever else it says: section, key, value (`None`: any).
const REQUIRED: &[(&str, &str, Option<&str>)] = &[
    ("Unit", "DefaultDependencies", Some("no")),
    ("Unit", "Conflicts", Some("reboot.target poweroff.target halt.target")),
    ("Unit", "IgnoreOnIsolate", Some("yes")),
    ("Service", "Type", Some("notify")),
    ("Service", "ExecStart", None),
    ("Service", "Restart", Some("always")),
    ("Service", "RuntimeDirectory", Some("luod")),
    ("Service", "RuntimeDirectoryPreserve", Some("yes")),
    ("Service", "KillMode", Some("mixed")),
    ("Service", "OOMScoreAdjust", None),
    ("Service", "LimitNOFILE", None),
    ("Service", "NoNewPrivileges", Some("yes")),
    ("Service", "ProtectSystem", Some("strict")),
    ("Service", "ProtectHome", Some("yes")),
    ("Service", "CapabilityBoundingSet", None),
    ("Service", "SystemCallFilter", None),
    ("Install", "WantedBy", None),
];

/// What the drop-in must say.
const REQUIRED_OF_DROP_IN: &[(&str, &str, Option<&str>)] = &[
    ("Service", "FileDescriptorStoreMax", None),
    ("Service", "FileDescriptorStorePreserve", Some("yes")),
    ("Service", "NotifyAccess", Some("main")),
    ("Service", "Restart", Some("always")),
];

/// What the drop-in for a luod that lives up to the kexec must say.
const REQUIRED_FOR_KEXEC: &[(&str, &str, Option<&str>)] = &[
    ("Service", "SurviveFinalKillSignal", Some("yes")),
    ("Service", "FileDescriptorStorePreserve", Some("yes")),
];

/// The stage of `cargo xtask test`.
pub(crate) fn stage(run: &Run<'_>) -> Result<Report> {
    let service = read(run.workspace, SERVICE)?;
    let drop_in = read(run.workspace, DROP_IN)?;
    let kexec = read(run.workspace, KEXEC)?;
    let mut report = Report::default();
    for (name, text, required) in [
        (SERVICE, &service, REQUIRED),
        (DROP_IN, &drop_in, REQUIRED_OF_DROP_IN),
        (KEXEC, &kexec, REQUIRED_FOR_KEXEC),
    ] {
        match parse(text).and_then(|entries| require(&entries, required)) {
            Ok(()) => report.passed += 1,
            Err(failed) => report.failed.push(format!("{name}: {}", failed.chain())),
        }
    }
    verify(&service, &[(DROP_IN, &drop_in), (KEXEC, &kexec)], &mut report)?;
    Ok(report)
}

fn read(workspace: &Workspace, name: &str) -> Result<String> {
    fs::read_to_string(workspace.root().join(name)).context(|| format!("read {name}"))
}

/// Section, key and value of each assignment.
type Entries<'a> = Vec<(&'a str, &'a str, &'a str)>;

fn parse(text: &str) -> Result<Entries<'_>> {
    let mut section = None;
    let mut entries = Vec::new();
    for (at, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with(['#', ';']) {
            continue;
        }
        if let Some(name) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            section = Some(name);
            continue;
        }
        let bad = || Failed::new(format!("line {} is no assignment in a section", at + 1));
        let (key, value) = line.split_once('=').ok_or_else(bad)?;
        entries.push((section.ok_or_else(bad)?, key, value));
    }
    Ok(entries)
}

fn require(entries: &Entries<'_>, required: &[(&str, &str, Option<&str>)]) -> Result<()> {
    for &(section, key, value) in required {
        let found = entries.iter().find(|entry| (entry.0, entry.1) == (section, key));
        match (found, value) {
            (None, _) => return Err(Failed::new(format!("[{section}] {key}= is missing"))),
            (Some((_, _, is)), Some(value)) if *is != value => {
                let what = format!("[{section}] {key}= is `{is}`, luod relies on `{value}`");
                return Err(Failed::new(what));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Keys that came after systemd 252, the oldest that luod is packaged for, and when.
const NEW_KEYS: &[(&str, u32)] =
    &[("FileDescriptorStorePreserve", 254), ("SurviveFinalKillSignal", 255)];

/// The keys that a systemd of this version does not know.
fn newer_than(version: Option<u32>) -> Vec<&'static str> {
    let old = |since: u32| version.is_some_and(|version| version < since);
    NEW_KEYS.iter().filter(|(_, since)| old(*since)).map(|(key, _)| *key).collect()
}

fn without_keys(text: &str, keys: &[&str]) -> String {
    let has = |line: &&str| !line.split_once('=').is_some_and(|(key, _)| keys.contains(&key));
    text.lines().filter(has).map(|line| format!("{line}\n")).collect()
}

/// Lets systemd read the service, alone and with each drop-in, with a binary that exists in the
/// place of luod.
fn verify(service: &str, drop_ins: &[(&str, &str)], report: &mut Report) -> Result<()> {
    let Some(analyze) = proc::find("systemd-analyze") else {
        let reason = "systemd-analyze verify: systemd-analyze is not installed";
        report.skipped.push(reason.into());
        return Ok(());
    };
    let version = proc::output(Command::new(&analyze).arg("--version"))?;
    let unknown = newer_than(systemd_version(&version));
    for key in &unknown {
        report.notes.push(format!("this systemd does not know {key}= yet: verified without it"));
    }
    let service = without_keys(&service.replace("=/usr/bin/luod", "=/bin/sh"), &unknown);
    let mut all = vec![(SERVICE, None)];
    all.extend(drop_ins.iter().map(|(name, text)| (*name, Some(without_keys(text, &unknown)))));
    for (what, drop_in) in all {
        let dir = TempDir::new().context(|| "make a directory".into())?;
        let unit = dir.path().join("luod.service");
        fs::write(&unit, &service).context(|| "copy the unit".into())?;
        if let Some(drop_in) = drop_in {
            let place = dir.path().join("luod.service.d");
            fs::create_dir(&place)
                .and_then(|()| fs::write(place.join("more.conf"), drop_in))
                .context(|| "copy the drop-in".into())?;
        }
        let output = Command::new(&analyze)
            .args(["verify", "--man=no", "--recursive-errors=no"])
            .arg(&unit)
            .output()
            .context(|| "run systemd-analyze".into())?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        // What it says of the machine's own units is not our business.
        let objection = said.lines().find(|line| line.contains("luod.service"));
        match objection {
            None if output.status.success() => report.passed += 1,
            _ => report.failed.push(format!("{what}: systemd-analyze: {}", said.trim())),
        }
    }
    Ok(())
}

fn systemd_version(says: &str) -> Option<u32> {
    let word = says.split_whitespace().nth(1)?;
    word.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNIT: &str = include_str!("../../packaging/luod.service");
    const CONF: &str = include_str!("../../packaging/luod-keeper-systemd.conf");

    #[test]
    fn the_service_holds_what_luod_relies_on() {
        let entries = parse(UNIT).expect("it is a unit file");
        require(&entries, REQUIRED).expect("nothing is missing");
    }

    #[test]
    fn a_key_that_is_missing_or_different_is_named() {
        for (from, to) in [("Restart=always", "Restart=no"), ("KillMode=mixed", "#KillMode=mixed")]
        {
            let text = UNIT.replace(from, to);
            let entries = parse(&text).expect("it is a unit file");
            let failed = require(&entries, REQUIRED).expect_err("something is wrong");
            let key = from.split('=').next().expect("a key");
            assert!(failed.chain().contains(key), "{}", failed.chain());
        }
    }

    #[test]
    fn the_fd_store_fits_into_the_descriptor_limit() {
        let text = format!("{UNIT}\n{CONF}");
        let entries = parse(&text).expect("it is a unit file");
        let number = |key: &str| -> u64 {
            let entry = entries.iter().rev().find(|entry| entry.1 == key).expect("a key");
            entry.2.parse().expect("a number")
        };
        assert!(number("FileDescriptorStoreMax") < number("LimitNOFILE"));
    }

    #[test]
    fn the_drop_in_leaves_the_store_to_the_main_process() {
        let entries = parse(CONF).expect("it is a unit file");
        require(&entries, &[("Service", "NotifyAccess", Some("main"))]).expect("it says so");
    }

    #[test]
    fn what_stands_outside_a_section_is_refused() {
        assert!(parse("Type=notify\n").is_err());
        assert!(parse("[Service]\nType\n").is_err());
    }

    #[test]
    fn only_keys_that_are_too_new_are_left_out() {
        let text = "[Service]\nFileDescriptorStorePreserve=yes\nRestart=always\n";
        assert_eq!(without_keys(text, &newer_than(Some(252))), "[Service]\nRestart=always\n");
        assert_eq!(without_keys(text, &newer_than(Some(254))), text);
        assert_eq!(without_keys(text, &newer_than(None)), text);
        assert_eq!(systemd_version("systemd 252 (252.38-1)"), Some(252));
    }
}
