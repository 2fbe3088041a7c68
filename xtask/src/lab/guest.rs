//! luod and kv in a guest, as tests and the demonstration use them.

use std::time::Duration;

use kv::load::{Load, LoadOptions, RestingLoad};

use super::Kernel;
use super::machine::{KV_PORT, Machine};
use super::medium::Medium;
use crate::failure::{Context as _, Result};

/// How long something may take to be ready where much else runs.
pub(crate) const READY: Duration = Duration::from_secs(60);
/// How long luod may take with much data.
pub(crate) const PATIENT: Duration = Duration::from_secs(300);
const LUOD_LOG: &str = "/run/lab/luod.log";
const KV_LOG: &str = "/run/lab/kv.log";
const REBOOT_LOG: &str = "/run/lab/reboot.log";
const CONFIGURATION: &str = "/etc/luod.toml";

/// Starts luod with a configuration, and returns when it serves: its process.
pub(crate) fn start_luod(machine: &Machine<'_>, configuration: &str) -> Result<u32> {
    let luod = spawn_luod(machine, configuration, &[])?;
    serves(machine)?;
    Ok(luod)
}

/// Starts luod with a configuration, and more in its environment: its process, which may not serve
/// yet.
pub(crate) fn spawn_luod(
    machine: &Machine<'_>,
    configuration: &str,
    environment: &[(&str, &str)],
) -> Result<u32> {
    machine.push(CONFIGURATION, 0o644, configuration.as_bytes())?;
    machine.spawn_with(&["luod", "--config", CONFIGURATION], environment, LUOD_LOG)
}

/// Returns when luod serves.
pub(crate) fn serves(machine: &Machine<'_>) -> Result<()> {
    machine
        .until_ok(&["luoctl", "status"], READY)
        .map(|_| ())
        .context(|| format!("luod does not serve; its log: {}", log(machine, LUOD_LOG)))
}

/// Starts kv, and returns when it listens, by IPv4 and IPv6: its process.
pub(crate) fn start_kv(machine: &Machine<'_>) -> Result<u32> {
    let bind = format!("[::]:{KV_PORT}");
    let kv = machine.spawn(&["kv", "--bind", &bind, "--luo-deadline", "300"], KV_LOG)?;
    machine
        .until_ok(&["grep", "-q", "kv listens on ", KV_LOG], PATIENT)
        .context(|| format!("kv does not listen; its log: {}", log(machine, KV_LOG)))?;
    Ok(kv)
}

/// Puts so many MiB into kv; what every key must hold afterwards.
pub(crate) fn fill(machine: &Machine<'_>, mib: u64) -> Result<RestingLoad> {
    let mut options = LoadOptions::default();
    options.connections = 4;
    options.fill_bytes = mib << 20;
    options.value_len = 16 << 10;
    let load = Load::start(machine.address(KV_PORT)?, options, &mut |_| {})
        .context(|| "fill kv".into())?;
    load.rest().context(|| "end the load".into())
}

/// Runs luoctl to its end, which has to be a good one; what it said.
pub(crate) fn luoctl(machine: &Machine<'_>, arguments: &[&str]) -> Result<String> {
    let mut argv = vec!["luoctl", "--deadline", "300"];
    argv.extend_from_slice(arguments);
    machine.ok_within(&argv, PATIENT).context(|| format!("luod's log: {}", log(machine, LUOD_LOG)))
}

/// Has luoctl load the next kernel, with the same command line.
pub(crate) fn load(machine: &Machine<'_>, kernel: Kernel) -> Result<()> {
    let (image, initrd) = machine.push_kernel(kernel)?;
    luoctl(machine, &["kexec", "load", image, "--initrd", initrd, "--reuse-cmdline"]).map(|_| ())
}

/// Has luoctl start the kernel that it has loaded, and returns when that one's agent answers: how
/// long it took, from luoctl's start on.
pub(crate) fn reboot(machine: &mut Machine<'_>, medium: Medium) -> Result<Duration> {
    let words = ["luoctl", "--deadline", "300", "reboot", "--carrier", medium.carrier()];
    let words = [&words[..], &["--accept-unknown"]].concat();
    let luoctl = machine.spawn(&words, REBOOT_LOG)?;
    machine.await_kexec_by(luoctl, REBOOT_LOG)
}

/// Runs the lab's client to its end, as root or as another user, which has to be a good one; what it
/// said.
pub(crate) fn client(
    machine: &Machine<'_>,
    uid: Option<&str>,
    arguments: &[&str],
) -> Result<String> {
    let mut argv = Vec::new();
    if let Some(uid) = uid {
        argv.extend(["setpriv", "--reuid", uid, "--regid", uid, "--clear-groups"]);
    }
    argv.push("luo-lab-client");
    argv.extend_from_slice(arguments);
    machine.ok_within(&argv, PATIENT)
}

/// What luod has said so far.
pub(crate) fn luod_log(machine: &Machine<'_>) -> String {
    log(machine, LUOD_LOG)
}

fn log(machine: &Machine<'_>, path: &str) -> String {
    let log = machine.pull(path).unwrap_or_default();
    String::from_utf8_lossy(&log).trim().to_owned()
}
