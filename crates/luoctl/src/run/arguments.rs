//! The command line of `luoctl run`.

use std::ffi::OsString;
use std::time::Duration;

use clap::{Args, ValueEnum};

use super::listen::Listen;

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// The session that keeps its files. Whoever runs under that name next gets them.
    #[arg(long, value_name = "NAME")]
    pub(crate) session: String,
    /// How many descriptors the program may have kept; more are refused, and that is said.
    #[arg(long, value_name = "N", default_value_t = 4096,
        value_parser = clap::value_parser!(u32).range(0..=100_000))]
    pub(crate) store_max: u32,
    /// A listener to make and keep where the session has none of that name.
    ///
    /// ADDRESS is an IP address with a port, or the path of a Unix socket. May be given several times,
    /// each with another NAME; without NAME it is "listen".
    #[arg(long, value_name = "[NAME=]ADDRESS")]
    pub(crate) listen: Vec<Listen>,
    /// An update of the machine that cannot take a file along goes on without it.
    #[arg(long)]
    pub(crate) optional: bool,
    /// How long the session waits for the next start when the program has ended. Default: for ever.
    /// It counts where the session is made.
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) ttl: Option<u64>,
    /// When the program's end is the end of the session too, and its files are let go.
    #[arg(long, value_enum, value_name = "WHEN", default_value_t = Finish::Never)]
    pub(crate) finish: Finish,
    /// The program and its arguments.
    #[arg(last = true, required = true, value_name = "CMD")]
    pub(crate) command: Vec<OsString>,
}

/// When the session ends with the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Finish {
    /// The session stays for the next start.
    Never,
    /// When the program ends with status 0.
    Success,
    /// However it ends.
    Always,
}

/// The command line of the process that becomes the program. It is written by `luoctl run` alone.
#[derive(Debug, Args)]
pub(crate) struct StartArguments {
    /// Numbers of the descriptors to pass on.
    #[arg(long, value_delimiter = ',')]
    pub(crate) descriptors: Vec<i32>,
    /// Their names as in LISTEN_FDNAMES.
    #[arg(long, default_value = "", allow_hyphen_values = true)]
    pub(crate) names: String,
    /// Number of a pipe that takes the errno if the program cannot be started.
    #[arg(long)]
    pub(crate) report: i32,
    /// The soft limit of open files that the program gets.
    #[arg(long)]
    pub(crate) open_files: Option<u64>,
    /// The program and its arguments.
    #[arg(last = true, required = true)]
    pub(crate) command: Vec<OsString>,
}

/// What the store needs of the command line.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) files: usize,
    pub(crate) required: bool,
    /// How long luod is waited for when the program has ended.
    pub(crate) deadline: Duration,
}
