//! The process that luod starts as: reads options and configuration, and becomes what it is asked
//! to be, the keeper, a worker, or luod without a keeper of its own under systemd.

use std::ffi::OsString;
use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::{Parser, Subcommand};
use luo_abi::keeper::Role;
use luod::config::{Config, ConfigError, KeeperKind};
use luod::keeper::{self, Limits, Settings, Stopped, Timing};
use luod::runtime_dir::{self, RuntimeDir, SOCKET_NAME};
use luod::store::{Inherited, KeeperStore, SystemdStore};
use luod::worker::{self, Ended, Start, WorkerError};
use tracing_subscriber::EnvFilter;

/// Exit status of a luod that was started wrongly; a service manager need not try again.
const MISUSE: u8 = 2;
/// Exit status of a luod that has departed with everything: it is not to be started again before
/// the machine is on the other side.
const DEPARTED: u8 = 3;

/// Keeps open files alive across the update of a service, of luod itself and of the kernel.
#[derive(Debug, Parser)]
#[command(name = "luod", version, about)]
struct Arguments {
    /// The configuration; /etc/luod.toml if it is there
    #[arg(long, value_name = "FILE", global = true)]
    config: Option<PathBuf>,
    /// Directory of the socket, instead of the configuration's
    #[arg(long, value_name = "DIR", global = true)]
    runtime_dir: Option<PathBuf>,
    /// Says whether the configuration is right, and ends
    #[arg(long)]
    check_config: bool,
    /// Lists the versions of trees, records and handlers that this luod reads, and ends
    #[arg(long)]
    print_compatible: bool,
    #[command(subcommand)]
    role: Option<ProcessRole>,
}

/// What a process of luod's own is. Not for users.
#[derive(Debug, Subcommand)]
enum ProcessRole {
    /// The worker of the keeper at standard input
    #[command(hide = true)]
    Worker,
    /// Checks whether the keeper's state at standard input can be read
    #[command(hide = true)]
    KeeperCheck,
    /// Goes on as the keeper, with the state in this descriptor
    #[command(hide = true)]
    KeeperResume {
        /// The descriptor
        state: i32,
    },
}

#[derive(Debug, thiserror::Error)]
enum Failed {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    RuntimeDir(#[from] runtime_dir::RuntimeDirError),
    #[error(transparent)]
    Keeper(#[from] keeper::Error),
    #[error(transparent)]
    Worker(#[from] WorkerError),
    #[error("{doing}: {source}")]
    System { doing: &'static str, source: std::io::Error },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let filter = EnvFilter::try_from_env("LUOD_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .init();
    match run(&arguments) {
        Ok(code) => code,
        Err(Failed::Config(error)) => {
            eprintln!("luod: {error}");
            ExitCode::from(MISUSE)
        }
        Err(error) => {
            eprintln!("luod: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<ExitCode, Failed> {
    if arguments.print_compatible {
        for compatible in luod::compatible() {
            println!("{compatible}");
        }
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(ProcessRole::KeeperCheck) = arguments.role {
        return Ok(match keeper::check() {
            Ok(proof) => {
                println!("{proof}");
                ExitCode::SUCCESS
            }
            Err(error) => {
                println!("{error}");
                ExitCode::FAILURE
            }
        });
    }
    let mut config = Config::load(arguments.config.as_deref())?;
    if let Some(directory) = &arguments.runtime_dir {
        config.runtime_directory = Some(directory.clone());
    }
    let directory = config.runtime_directory()?;
    if arguments.check_config {
        println!(
            "the configuration is right; the socket is {}",
            directory.join(SOCKET_NAME).display()
        );
        return Ok(ExitCode::SUCCESS);
    }
    match arguments.role {
        Some(ProcessRole::Worker) => work(config, directory.join(SOCKET_NAME)),
        Some(ProcessRole::KeeperResume { state }) => {
            Ok(stopped(keeper::resume(settings(arguments, &config, Vec::new()), state)?))
        }
        Some(ProcessRole::KeeperCheck) => Ok(ExitCode::SUCCESS),
        None => {
            allow_descriptors();
            let bound = runtime_dir::bind(&directory, config.socket_mode.0)?;
            match config.keeper {
                KeeperKind::Builtin => {
                    let RuntimeDir { listener, .. } = bound;
                    Ok(stopped(keeper::run(settings(arguments, &config, vec![listener]))?))
                }
                KeeperKind::Systemd => {
                    let inherited = Inherited::from_environment().map_err(WorkerError::from)?;
                    work_under_systemd(config, inherited, bound)
                }
            }
        }
    }
}

fn stopped(why: Stopped) -> ExitCode {
    match why {
        Stopped::Asked => ExitCode::SUCCESS,
        Stopped::Departed => ExitCode::from(DEPARTED),
    }
}

/// The keeper's settings: from here on nothing is parsed any more.
fn settings(
    arguments: &Arguments,
    config: &Config,
    listeners: Vec<std::os::fd::OwnedFd>,
) -> Settings {
    let common = |role: &str| -> Vec<OsString> {
        let mut list = Vec::new();
        if let Some(path) = &arguments.config {
            list.extend([OsString::from("--config"), path.into()]);
        }
        if let Some(directory) = &config.runtime_directory {
            list.extend([OsString::from("--runtime-dir"), directory.into()]);
        }
        list.push(role.into());
        list
    };
    Settings {
        program: PathBuf::from("/proc/self/exe"),
        worker: common("worker"),
        check: common("keeper-check"),
        resume: common("keeper-resume"),
        listeners,
        limits: limits(config),
        timing: Timing {
            ready: Duration::from_millis(config.worker.start_milliseconds),
            settled: Duration::from_millis(config.worker.quick_death_milliseconds),
            deaths: config.worker.quick_deaths,
            ..Timing::default()
        },
    }
}

/// The most that may be held; the system may allow less.
fn limits(config: &Config) -> Limits {
    let count = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
    Limits {
        fds: config.worker.descriptors.map_or(usize::MAX, count),
        bytes: count(config.worker.record_bytes),
        ..Limits::default()
    }
}

/// Every file that is preserved is an open descriptor here: as many as the system allows.
fn allow_descriptors() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let now = getrlimit(Resource::Nofile);
    let most = std::fs::read_to_string("/proc/sys/fs/nr_open")
        .ok()
        .and_then(|text| text.trim().parse().ok());
    // More than the hard limit only with CAP_SYS_RESOURCE; otherwise up to it.
    let wanted = [most, now.maximum];
    for maximum in wanted.into_iter().flatten() {
        let limit = Rlimit { current: Some(maximum), maximum: Some(maximum) };
        if setrlimit(Resource::Nofile, limit).is_ok() {
            return;
        }
    }
}

fn work(config: Config, socket: PathBuf) -> Result<ExitCode, Failed> {
    let keeper = luo_sys::adopt_stdin()
        .map_err(|source| Failed::System { doing: "the keeper's socket", source })?;
    on_runtime(async move {
        let attached = KeeperStore::attach(keeper).await.map_err(WorkerError::from)?;
        let start = Start {
            store: Arc::new(attached.store),
            events: attached.events,
            role: attached.role,
            incarnation: attached.incarnation,
            listeners: attached.listeners,
            socket,
        };
        Ok(worker::run(config, start).await?)
    })
}

/// luod as one process, whose descriptors systemd holds.
fn work_under_systemd(
    config: Config,
    inherited: Inherited,
    bound: RuntimeDir,
) -> Result<ExitCode, Failed> {
    let limits = limits(&config);
    on_runtime(async move {
        let started = SystemdStore::start(inherited, limits).await.map_err(WorkerError::from)?;
        for key in started.lost {
            tracing::error!(key, "systemd has lost a descriptor of what was kept");
        }
        for (name, _) in started.others {
            tracing::warn!(name, "a descriptor that is not luod's was passed to it, and is closed");
        }
        let start = Start {
            store: Arc::new(started.store),
            events: started.events,
            role: Role::Primary,
            incarnation: 1,
            listeners: vec![bound.listener],
            socket: bound.socket,
        };
        Ok(worker::run(config, start).await?)
    })
}

/// Runs a worker on a runtime of one thread; handlers have threads of their own.
fn on_runtime(work: impl Future<Output = Result<Ended, Failed>>) -> Result<ExitCode, Failed> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(WorkerError::Runtime)?;
    let local = tokio::task::LocalSet::new();
    let ended = local.block_on(&runtime, work);
    // Handlers that hang must not hold up the end.
    runtime.shutdown_background();
    tracing::debug!(?ended, "the worker ends");
    ended.map(|ended| match ended {
        Ended::Left => ExitCode::from(DEPARTED),
        Ended::Retired | Ended::Departed | Ended::Stopped => ExitCode::SUCCESS,
    })
}
