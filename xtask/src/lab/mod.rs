//! `cargo xtask lab`: luo in virtual machines, where a kernel can really be replaced.
//!
//! ```text
//!   machine's packages ─▶ source ─▶ own kernel ─┐
//!                      └▶ stock kernel ─────────┤      Machine ──▶ QEMU ──▶ guest: agent, luod, …
//!   luod, luoctl, kv, agent ─▶ initramfs ───────┴─▶ Lab ──┘  └──── TCP ───────────┘
//! ```
//!
//! docs/lab.md says how it is used and how a test is written.
//!
//! Invariants:
//! - No hardware acceleration unless it is asked for: where there is a `/dev/kvm` it may hang.
//! - What cannot be set up is an error that names what is missing; it never counts as passed.

use std::path::PathBuf;
use std::time::Instant;

use clap::ValueEnum as _;

use crate::failure::{Failed, Result};
use crate::test::{Report, Run};
use crate::workspace::Workspace;

mod agent;
mod apt;
mod cpio;
pub(crate) mod criu;
pub(crate) mod guest;
mod initramfs;
mod kernel;
mod libraries;
pub(crate) mod machine;
pub(crate) mod measure;
pub(crate) mod medium;
mod needs;
mod place;
mod qmp;
mod stock;
mod tests;

use initramfs::Programs;
use machine::{Config, Machine};
use place::Place;

/// Switches the lab off in `cargo xtask test`.
const SWITCH: &str = "LUO_LAB";

/// Options of `cargo xtask lab`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
    /// Install nothing; say what is missing.
    #[arg(long, global = true)]
    no_install: bool,
    /// QEMU's accelerator, as for its option -accel.
    #[arg(long, global = true, value_name = "NAME", default_value = EMULATION)]
    accel: String,
}

/// Works everywhere.
pub(crate) const EMULATION: &str = "tcg,thread=multi";

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Fetch and build what the machines need.
    Setup {
        /// Look for newer kernels than those that are there.
        #[arg(long)]
        renew: bool,
    },
    /// A machine with its console here. Ctrl-A X ends it.
    Shell {
        /// With which kernel it starts.
        #[arg(long, value_enum, default_value_t = Kernel::Own)]
        kernel: Kernel,
        /// More for the kernel's command line.
        #[arg(long, value_name = "WORDS", default_value = "")]
        append: String,
        /// A file that the guest sees as a disk (may be given more than once).
        #[arg(long, value_name = "PATH")]
        disk: Vec<PathBuf>,
    },
    /// Run the tests, each in a machine of its own.
    Test {
        /// Those whose names contain one of these words; all without one.
        name: Vec<String>,
        /// List them and end.
        #[arg(long)]
        list: bool,
    },
}

/// Which kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Kernel {
    /// Built here, with `/dev/liveupdate`.
    Own,
    /// The distribution's.
    Stock,
}

/// A kernel with its file system.
#[derive(Debug, Clone)]
pub(crate) struct KernelFiles {
    pub(crate) image: PathBuf,
    pub(crate) initrd: PathBuf,
}

/// All that machines are started from.
#[derive(Debug)]
pub(crate) struct Lab {
    /// Where the machines' own files lie while they run.
    pub(crate) dir: PathBuf,
    pub(crate) acceleration: String,
    /// Of the own kernel.
    pub(crate) selftests: Option<PathBuf>,
    /// Those that were asked for, here and below.
    own: Option<KernelFiles>,
    stock: Option<KernelFiles>,
}

impl Lab {
    /// Fetches and builds what is not there yet of what machines with these kernels need.
    pub(crate) fn set_up(
        workspace: &Workspace,
        may_install: bool,
        renew: bool,
        acceleration: &str,
        kernels: &[Kernel],
    ) -> Result<Self> {
        if !cfg!(target_arch = "x86_64") {
            return Err(Failed::new("the lab knows x86-64 only, and this machine is another one"));
        }
        let place = Place::find()?;
        needs::provide(needs::TO_RUN, may_install)?;
        let wanted = |kernel| kernels.contains(&kernel);
        let stock =
            wanted(Kernel::Stock).then(|| stock::ensure(&place, may_install, renew)).transpose()?;
        let own =
            wanted(Kernel::Own).then(|| kernel::ensure(&place, may_install, renew)).transpose()?;
        let programs = Programs::build(workspace)?;
        let dir = workspace.target().join("lab");
        let files = |name: &str, image: PathBuf, modules: &[PathBuf]| {
            let initrd = dir.join(format!("initramfs-{name}"));
            programs.write(modules, &initrd)?;
            Ok::<_, Failed>(KernelFiles { image, initrd })
        };
        Ok(Self {
            selftests: own.as_ref().and_then(|own| own.selftests.clone()),
            own: own.map(|own| files("own", own.image, &[])).transpose()?,
            stock: stock.map(|stock| files("stock", stock.image, &stock.modules)).transpose()?,
            acceleration: acceleration.to_owned(),
            dir: dir.clone(),
        })
    }

    /// A kernel's files.
    pub(crate) fn kernel(&self, kernel: Kernel) -> Result<&KernelFiles> {
        let files = match kernel {
            Kernel::Own => &self.own,
            Kernel::Stock => &self.stock,
        };
        files.as_ref().ok_or_else(|| {
            Failed::new(format!("this lab was set up without the kernel {kernel:?}"))
        })
    }
}

/// Runs a subcommand.
pub(crate) fn run(workspace: &Workspace, args: &Args) -> Result<()> {
    let set_up = |renew| {
        Lab::set_up(workspace, !args.no_install, renew, &args.accel, Kernel::value_variants())
    };
    match &args.command {
        Command::Test { list: true, .. } => {
            for test in tests::ALL {
                println!("{:<24} {}", test.name, test.about);
            }
            Ok(())
        }
        Command::Setup { renew } => {
            let lab = set_up(*renew)?;
            for kernel in Kernel::value_variants() {
                println!("{kernel:?} kernel: {}", lab.kernel(*kernel)?.image.display());
            }
            println!("file systems: {}", lab.dir.display());
            Ok(())
        }
        Command::Shell { kernel, append, disk } => {
            let lab = set_up(false)?;
            let mut config = Config::new(*kernel);
            config.shell = true;
            config.disks.clone_from(disk);
            config.append = format!("{} {append}", config.append);
            Machine::start(&lab, &config)?.wait_off()
        }
        Command::Test { name, .. } => {
            let chosen = tests::chosen(name)?;
            let lab = set_up(false)?;
            let report = run_tests(&lab, &chosen);
            for line in &report.skipped {
                println!("SKIPPED: {line}");
            }
            println!(
                "{} passed, {} failed, {} skipped",
                report.passed,
                report.failed.len(),
                report.skipped.len()
            );
            match report.failed.as_slice() {
                [] => Ok(()),
                failed => Err(Failed::new(failed.join("\n"))),
            }
        }
    }
}

/// The stage of `cargo xtask test`.
pub(crate) fn stage(run: &Run<'_>) -> Result<Report> {
    let skip = |why: &str| {
        println!("THE LAB DOES NOT RUN: no kernel is replaced in this run: {why}");
        let skipped = tests::ALL.iter().map(|test| format!("{}: {why}", test.name)).collect();
        Ok(Report { skipped, ..Report::default() })
    };
    if std::env::var_os(SWITCH).is_some_and(|value| value == "off") {
        return skip(&format!("{SWITCH}=off is set"));
    }
    match Lab::set_up(run.workspace, run.may_install, false, EMULATION, Kernel::value_variants()) {
        Ok(lab) => Ok(run_tests(&lab, &tests::ALL.iter().collect::<Vec<_>>())),
        Err(failed) => skip(&failed.chain()),
    }
}

fn run_tests(lab: &Lab, chosen: &[&tests::Test]) -> Report {
    let mut report = Report::default();
    for test in chosen {
        if let Some(why) = test.obstacle(lab) {
            report.skipped.push(format!("{}: {why}", test.name));
            continue;
        }
        let began = Instant::now();
        match (test.run)(lab) {
            Ok(said) => {
                report.passed += 1;
                println!("  {:<24} {:>6.1} s  {said}", test.name, began.elapsed().as_secs_f64());
            }
            Err(failed) => {
                println!("  {:<24} FAILED: {}", test.name, failed.chain());
                report.failed.push(format!("{}: {}", test.name, failed.chain()));
            }
        }
    }
    report
}

/// Fails with a sentence unless something holds.
pub(crate) fn must(holds: bool, what: impl FnOnce() -> String) -> Result<()> {
    if holds { Ok(()) } else { Err(Failed::new(what())) }
}
