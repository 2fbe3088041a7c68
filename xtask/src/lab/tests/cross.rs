//! kv's memory crosses kexecs: in an arena on persistent memory or on a disk, or through
//! `/dev/liveupdate`.

use std::fs::File;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::guest;
use super::medium::Medium;
use super::must;
use crate::failure::{Context as _, Failed, Result};
use crate::lab::machine::{Config, KV_PORT, Machine};
use crate::lab::{Kernel, Lab};

const MIB: u64 = 128;

pub(super) fn pmem_stock(lab: &Lab) -> Result<String> {
    cross(lab, &Medium::Pmem, Way::Steps, &[Kernel::Stock, Kernel::Stock])
}

pub(super) fn pmem_own(lab: &Lab) -> Result<String> {
    cross(lab, &Medium::Pmem, Way::Steps, &[Kernel::Own, Kernel::Own])
}

pub(super) fn liveupdate(lab: &Lab) -> Result<String> {
    cross(lab, &Medium::Liveupdate, Way::Steps, &[Kernel::Own, Kernel::Own])
}

pub(super) fn liveupdate_three_kexecs(lab: &Lab) -> Result<String> {
    cross(lab, &Medium::Liveupdate, Way::Steps, &[Kernel::Own; 4])
}

pub(super) fn reboot_liveupdate(lab: &Lab) -> Result<String> {
    cross(lab, &Medium::Liveupdate, Way::Reboot, &[Kernel::Own, Kernel::Own])
}

pub(super) fn reboot_arena(lab: &Lab) -> Result<String> {
    cross(lab, &Medium::Pmem, Way::Reboot, &[Kernel::Stock, Kernel::Stock])
}

pub(super) fn disk_stock(lab: &Lab) -> Result<String> {
    cross(lab, &Medium::Disk, Way::Steps, &[Kernel::Stock, Kernel::Stock])
}

pub(super) fn three_kexecs(lab: &Lab) -> Result<String> {
    let kernels = [Kernel::Own, Kernel::Stock, Kernel::Stock, Kernel::Own];
    cross(lab, &Medium::Pmem, Way::Steps, &kernels)
}

/// How the next kernel is started.
#[derive(Clone, Copy)]
enum Way {
    /// Each step by itself, and the kexec by the agent.
    Steps,
    /// `luoctl kexec load` and `luoctl reboot`.
    Reboot,
}

/// Fills kv under the first kernel, and replaces it by one after the other.
fn cross(lab: &Lab, medium: &Medium, way: Way, kernels: &[Kernel]) -> Result<String> {
    let (first, rest) =
        kernels.split_first().ok_or_else(|| Failed::new("a test without a kernel"))?;
    let mut config = Config::new(*first);
    let disk = match medium {
        Medium::Pmem | Medium::Liveupdate => None,
        Medium::Disk => Some(make_disk(lab)?),
    };
    config.disks.extend(disk.iter().map(|disk| disk.path.clone()));
    let mut machine = Machine::start(lab, &config)?;
    let configuration = medium.configuration();
    medium.attach(&machine)?;
    medium.create(&machine)?;
    let mut luod = guest::start_luod(&machine, &configuration)?;
    guest::start_kv(&machine)?;
    let mut load = guest::fill(&machine, MIB)?;
    let mut stood = Vec::new();
    for kernel in rest {
        let began = Instant::now();
        let kexec = match way {
            Way::Steps => {
                medium.depart(&machine, luod)?;
                medium.detach(&machine)?;
                machine.load(*kernel)?;
                machine.kexec()?
            }
            Way::Reboot => {
                guest::load(&machine, *kernel)?;
                guest::reboot(&mut machine, *medium)?
            }
        };
        medium.attach(&machine)?;
        luod = guest::start_luod(&machine, &configuration)?;
        let status = guest::luoctl(&machine, &["status"])?;
        must(status.contains("updated"), || format!("luod found nothing that was kept: {status}"))?;
        guest::start_kv(&machine)?;
        let took = began.elapsed();
        load.move_to(machine.address(KV_PORT)?).context(|| "connect to kv again".into())?;
        guest::luoctl(&machine, &["finish"])?;
        stood.push(figures(took, kexec));
    }
    let report = load.verify(&mut |_| {}).context(|| "read all data back".into())?;
    must(report.is_clean(), || {
        format!(
            "{} values failed or differ; first: {}",
            report.total.failed,
            report.first_failure.as_deref().unwrap_or("unknown")
        )
    })?;
    must(report.verify.verified_bytes == MIB << 20, || {
        format!("of {MIB} MiB {} bytes were read back", report.verify.verified_bytes)
    })?;
    Ok(format!("{MIB} MiB compared; {}", stood.join(", ")))
}

fn figures(took: Duration, kexec: Duration) -> String {
    format!(
        "{:.1} s from prepare to kv again, {:.1} s of them the kexec",
        took.as_secs_f64(),
        kexec.as_secs_f64()
    )
}

/// A disk's file, which is removed when this is dropped.
struct Disk {
    path: PathBuf,
    _dir: tempfile::TempDir,
}

/// Makes a disk with a file system that has room for an arena.
fn make_disk(lab: &Lab) -> Result<Disk> {
    let doing = || "make a disk".to_owned();
    let dir = tempfile::TempDir::with_prefix_in("disk-", &lab.dir).context(doing)?;
    let path = dir.path().join("ext4");
    File::create(&path).and_then(|file| file.set_len(384 << 20)).context(doing)?;
    crate::proc::output(
        std::process::Command::new(
            crate::lab::needs::program("mke2fs")
                .ok_or_else(|| Failed::new("mke2fs is not installed"))?,
        )
        .args(["-q", "-t", "ext4"])
        .arg(&path),
    )?;
    Ok(Disk { path, _dir: dir })
}
