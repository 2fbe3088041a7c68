//! The command line: the one definition from which parsing, help, completions and man pages come.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use luo::protocol::{DEFAULT_SOCKET, SOCKET_ENV};
use luo::{Options, Unclaimed};

use crate::exit::Exit;
use crate::{run, scan};

/// The longest deadline in seconds: a year.
const DEADLINE_MAX: f64 = 365.0 * 86_400.0;

/// Control luod, which keeps open files alive across the update of a service, of luod itself and
/// of the kernel.
#[derive(Debug, Parser)]
#[command(name = "luoctl", version, disable_help_subcommand = true, after_long_help = Exit::help())]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Options for every command")]
pub(crate) struct Global {
    /// The socket that luod listens on.
    #[arg(long, global = true, value_name = "PATH", env = SOCKET_ENV, hide_env_values = true,
        default_value = DEFAULT_SOCKET)]
    pub(crate) socket: PathBuf,
    /// How long luod may take to answer.
    ///
    /// Whatever luod was asked to do goes on when the time is up. For upgrade it is how long each of
    /// the two sides may take, and an upgrade that takes longer does not happen.
    #[arg(long, global = true, value_name = "SECONDS", default_value = "10", value_parser = seconds)]
    pub(crate) deadline: Duration,
    /// Print luod's reply as JSON, with exact numbers, in place of text for people.
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// When to use colours.
    #[arg(long, global = true, value_name = "WHEN", value_enum, default_value_t = ColorWhen::Auto)]
    pub(crate) color: ColorWhen,
    /// Say nothing about what was done; what was asked for is still printed.
    #[arg(short, long, global = true)]
    pub(crate) quiet: bool,
}

impl Global {
    /// How the library reaches luod.
    pub(crate) fn options(&self) -> Options {
        Options::new().socket(&self.socket).deadline(self.deadline)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ColorWhen {
    /// On a terminal, unless NO_COLOR is set.
    Auto,
    /// Also where the output goes into a file or a pipe.
    Always,
    /// Nowhere.
    Never,
}

/// What takes the machine's update to the other side.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Carrier {
    /// luod's keeper: the next luod goes on, in this system.
    Keeper,
    /// The arena of luod's configuration: what starts after a kexec or a power cycle goes on.
    Arena,
    /// The kernel's /dev/liveupdate (Linux 6.19 or later): memory is not copied, and what starts
    /// after a kexec goes on.
    Liveupdate,
    /// liveupdate where the device is there, else arena.
    Auto,
}

impl Carrier {
    /// As requests name it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Keeper => "keeper",
            Self::Arena => "arena",
            Self::Liveupdate => "liveupdate",
            Self::Auto => "auto",
        }
    }
}

/// What takes everything over a reboot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum RebootCarrier {
    /// The kernel's own orchestrator where luod has it, else the arena.
    Auto,
    /// The kernel's own orchestrator, /dev/liveupdate: nothing is copied.
    Liveupdate,
    /// The arena of luod's configuration.
    Arena,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Show what luod does, what it holds and how far that reaches.
    Status,
    /// List sessions.
    Sessions,
    /// List the files of one session, or of all.
    Files {
        /// The session's name.
        session: Option<String>,
    },
    /// Print a handover as device-tree source.
    ///
    /// Without BLOB luod is asked for the handover as it would be now. Comments say in words what
    /// the numbers of a handover mean. A damaged blob is status 1: the message names what is wrong
    /// and at which byte.
    Inspect {
        /// A file with one or more flattened device trees; `-` is standard input.
        blob: Option<PathBuf>,
    },
    /// Keep all that can be kept while the workloads run.
    Prepare {
        /// What takes it to the other side.
        #[arg(long, value_enum, value_name = "CARRIER", default_value_t = Carrier::Keeper)]
        carrier: Carrier,
    },
    /// Keep the rest: from here nothing may change.
    Freeze,
    /// Undo prepare and freeze.
    Cancel,
    /// Commit the handover and let another luod begin on the other side.
    Depart,
    /// End the live update.
    Finish {
        /// What becomes of files that nobody has retrieved.
        #[arg(long, value_enum, value_name = "WHAT", default_value_t = UnclaimedFiles::Refuse)]
        unclaimed: UnclaimedFiles,
    },
    /// Measure what a live update would cost: prepare, freeze and cancel.
    ///
    /// All is done for real, so the workloads stand still while it is frozen.
    Rehearse {
        /// What would take it to the other side.
        #[arg(long, value_enum, value_name = "CARRIER", default_value_t = Carrier::Keeper)]
        carrier: Carrier,
    },
    /// Replace luod, while everything it holds stays alive.
    ///
    /// The new luod starts beside the old one. If it does not take over, the old one serves on.
    Upgrade {
        /// The new binary. Default: the one that runs.
        #[arg(long, value_name = "PATH")]
        binary: Option<PathBuf>,
        /// Replace the worker alone, not the keeper.
        #[arg(long)]
        worker_only: bool,
    },
    /// Print events as they come, until SIGINT or SIGTERM.
    ///
    /// A luod that is restarted meanwhile is waited for. With --json there is one object a line.
    Watch {
        /// End after so many events.
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
        count: Option<u64>,
    },
    /// End a session and let go of its files.
    Release {
        /// The session's name.
        session: String,
    },
    /// Make an arena, or look into one; luod is not needed.
    Arena {
        #[command(subcommand)]
        command: ArenaCommand,
    },
    /// Load the kernel that the machine is to go on with, or let go of it; luod is not needed.
    Kexec {
        #[command(subcommand)]
        command: KexecCommand,
    },
    /// Go on with the kernel that is loaded, and take everything along that luod holds.
    ///
    /// What has to hold is checked first. Then luod prepares, freezes and departs, and the next kernel
    /// is started: through systemd where that runs the machine, else at once. What fails before that
    /// is undone, and the machine goes on as it was.
    Reboot {
        /// What takes it to the next kernel.
        #[arg(long, value_enum, value_name = "CARRIER", default_value_t = RebootCarrier::Auto)]
        carrier: RebootCarrier,
        /// Check and rehearse alone: the workloads stand still for a moment, and nothing is changed.
        #[arg(long)]
        dry_run: bool,
        /// Go on although something cannot be told that should be known.
        #[arg(long)]
        accept_unknown: bool,
    },
    /// Write how long the last live update took, as an HTML page with a time line.
    Report {
        /// The page's file. Default: standard output.
        #[arg(long, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// Run a program that knows nothing of luod, and keep the descriptors that it gives to its
    /// service manager.
    ///
    /// The program gets a NOTIFY_SOCKET. What it stores there with FDSTORE=1 (sd_notify(3),
    /// sd_pid_notify_with_fds(3)) is preserved in the session, and passed to the next program that is
    /// run with that session as LISTEN_FDS, under its FDNAME, as systemd's descriptor store does; FDPOLL
    /// and FDSTOREREMOVE are understood. Everything else that it says goes on to luoctl's own
    /// NOTIFY_SOCKET, if there is one. Signals are passed on, and the exit status is the program's, or
    /// 128 and the signal's number.
    Run(run::Arguments),
    /// Show which descriptors of a process can be kept, and how far.
    ///
    /// For each descriptor: its type, its size, the handler that takes it, and its reach: the restart of
    /// its service, of luod (agent), of the kernel, a loss of power; and where that is not far, why, and
    /// what to do. luod is asked what it can keep; where none runs, it is what one of this version can.
    /// The process notices nothing. With --all there is one line for each process.
    Scan(scan::Arguments),
    /// Becomes the program of `run`.
    #[command(hide = true)]
    StartProgram(run::StartArguments),
    /// Print completions for a shell.
    Completions {
        /// The shell.
        #[arg(value_enum)]
        shell: Shell,
    },
    /// Write the man pages.
    Man {
        /// Where to; it is made if it is not there. Default: luoctl.1 alone, to standard output.
        #[arg(value_name = "DIR")]
        directory: Option<PathBuf>,
    },
}

/// What is done with an arena.
#[derive(Debug, Subcommand)]
pub(crate) enum ArenaCommand {
    /// Make an arena of a file or block device.
    Create {
        /// The file or device.
        path: PathBuf,
        /// How large a file becomes: bytes, or with K, M, G or T. A file that is there does not
        /// shrink. Default: as large as what is there.
        #[arg(long, value_name = "SIZE")]
        size: Option<Size>,
        /// Discard an arena that is there, and the handover in it.
        #[arg(long)]
        force: bool,
    },
    /// Show whose an arena is, how large, and whether it holds a handover.
    Info {
        /// The file or device.
        path: PathBuf,
    },
    /// Verify an arena. Its superblocks, its catalogue and all kept bytes are always read.
    Check {
        /// The file or device.
        path: PathBuf,
        /// Read and verify all memory too.
        #[arg(long)]
        full: bool,
    },
    /// List everything that an arena holds.
    Dump {
        /// The file or device.
        path: PathBuf,
        /// Write the handover itself instead, for `luoctl inspect -`.
        #[arg(long)]
        handover: bool,
    },
}

/// What is done with the next kernel.
#[derive(Debug, Subcommand)]
pub(crate) enum KexecCommand {
    /// Load a kernel, in place of one that was loaded before.
    ///
    /// Of a unified kernel image its parts are loaded, with its own command line where none is
    /// given. What was loaded is noted for `luoctl reboot`.
    Load {
        /// The kernel: a bzImage (vmlinuz), an Image, or a unified kernel image.
        kernel: PathBuf,
        /// Its initrd.
        #[arg(long, value_name = "FILE")]
        initrd: Option<PathBuf>,
        /// Its command line; with --reuse-cmdline what is added to that.
        #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
        append: Option<String>,
        /// Take the running kernel's command line, without what only fits the boot loader.
        #[arg(long)]
        reuse_cmdline: bool,
    },
    /// Let go of the kernel that was loaded.
    Unload,
}

/// A number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Size(pub(crate) u64);

impl std::str::FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let units = [("K", 10), ("M", 20), ("G", 30), ("T", 40)];
        let unit = units.iter().find_map(|(unit, shift)| Some((text.strip_suffix(unit)?, *shift)));
        let (digits, shift) = unit.unwrap_or((text, 0));
        let number: u64 = digits
            .parse()
            .map_err(|_| format!("{text:?} is no size: write it as in 268435456 or 256M"))?;
        number
            .checked_mul(1 << shift)
            .map(Self)
            .ok_or_else(|| format!("{text:?} is more bytes than can be counted"))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum UnclaimedFiles {
    /// Nothing is finished then, and the files are named.
    Refuse,
    /// They are let go.
    Release,
    /// They go along in the next update.
    Carry,
}

impl From<UnclaimedFiles> for Unclaimed {
    fn from(files: UnclaimedFiles) -> Self {
        match files {
            UnclaimedFiles::Refuse => Self::Refuse,
            UnclaimedFiles::Release => Self::Release,
            UnclaimedFiles::Carry => Self::Carry,
        }
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "this is no number of seconds".to_owned())?;
    if !(0.001..=DEADLINE_MAX).contains(&seconds) {
        return Err("give between 0.001 and 31536000 seconds".to_owned());
    }
    Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn deadlines_are_positive_and_bounded() {
        assert_eq!(seconds("0.5"), Ok(Duration::from_millis(500)));
        assert_eq!(seconds("31536000"), Ok(Duration::from_secs(31_536_000)));
        for text in ["0", "-1", "nan", "inf", "1e300", "", "ten"] {
            assert!(seconds(text).is_err(), "{text}");
        }
    }
}
