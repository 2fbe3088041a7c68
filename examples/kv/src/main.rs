//! `kv`: serves an in-memory store with the Redis protocol.
//!
//! Where luod runs, SIGTERM and SIGINT mean: leave everything to the next kv, which may wait for it already. Where
//! it does not, or after a client's SHUTDOWN, the data ends with the process.

use std::io::Write;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use kv::custody::{Background, Custody, NoCustody};
use kv::handover::{HandoverError, Inherited, Place, Where};
use kv::server::{Options, Server, ServerError, Stop, Suspended};
use kv::store::{MIN_LIMIT, Store};
use kv::wake::Waker;

/// An in-memory store with the Redis protocol that lives through updates of itself.
#[derive(Debug, Parser)]
#[command(version)]
struct Flags {
    /// Where to listen; port 0 picks a free one, which is printed.
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:6379")]
    bind: SocketAddr,

    /// Bound on the memory for data, in bytes.
    #[arg(long, value_name = "BYTES", default_value_t = 4 << 30, value_parser = clap::value_parser!(u64).range(MIN_LIMIT..))]
    memory_limit: u64,

    /// Shown by INFO as version_label, so that one can see which version answers.
    #[arg(long, value_name = "LABEL", default_value = env!("CARGO_PKG_VERSION"))]
    version_label: String,

    /// Bound on the number of connections.
    #[arg(long, value_name = "NUMBER", default_value_t = 10_000)]
    max_connections: usize,

    /// The luo session that holds everything for the next kv.
    #[arg(long, value_name = "NAME", default_value = "kv")]
    session: String,

    /// luod's socket.
    #[arg(long, value_name = "PATH", env = "LUO_SOCKET")]
    luo_socket: Option<PathBuf>,

    /// How long to wait for the kv before to let go of the session.
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    patience: u64,

    /// How long luod may take for one call, such as for giving back what an arena keeps.
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    luo_deadline: u64,

    /// Run without luo: the data ends with the process.
    #[arg(long)]
    no_luo: bool,
}

/// Why kv ends.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("cannot listen on {address}; is another server there? choose one with --bind")]
    Bind {
        address: SocketAddr,
        #[source]
        source: std::io::Error,
    },
    #[error("cannot handle signals")]
    Signals(#[source] std::io::Error),
    #[error("cannot take part in updates of the machine")]
    Participant(#[source] std::io::Error),
    #[error("cannot write to standard output")]
    Print(#[source] std::io::Error),
    #[error(transparent)]
    Server(#[from] ServerError),
    #[error(transparent)]
    Handover(#[from] HandoverError),
}

fn main() -> ExitCode {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_max_level(tracing::Level::INFO)
        .init();
    match run(Flags::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            let mut message = failure.to_string();
            let mut cause = std::error::Error::source(&failure);
            while let Some(error) = cause {
                message.push_str(&format!(": {error}"));
                cause = error.source();
            }
            tracing::error!("{message}");
            ExitCode::FAILURE
        }
    }
}

fn run(flags: Flags) -> Result<(), Failure> {
    let (place, inherited) = match open(&flags)? {
        None => (None, None),
        Some((place, inherited)) => (Some(place), inherited),
    };
    let (mut server, place) = begin(&flags, place, inherited)?;
    for signal in [signal_hook::consts::SIGTERM, signal_hook::consts::SIGINT] {
        server.waker().stop_on_signal(signal).map_err(Failure::Signals)?;
    }
    if let Some(place) = &place {
        place.take_part(server.waker()).map_err(Failure::Participant)?;
    }
    say(&format!("kv listens on {}", server.local_addr()?))?;
    match (server.run()?, place) {
        (Stop::Asked, Some(place)) => {
            let suspended = server.suspend()?;
            // Before the memory is unmapped at the end of this function: the next process waits for this.
            place.let_go();
            if !suspended.custody_settled {
                tracing::warn!("luod was away: connections accepted just now may be lost");
            }
            tracing::info!(connections = suspended.connections.len(), "left to the next kv");
        }
        (Stop::Asked, None) => tracing::info!("stopped; nobody takes over, so the data ends here"),
        (Stop::Shutdown, place) => {
            drop(server);
            place.map_or(Ok(()), Place::release)?;
            tracing::info!("shut down by a client");
        }
    }
    Ok(())
}

/// The place in luo, and what waits there; `None` where kv is to run alone.
fn open(flags: &Flags) -> Result<Option<(Place, Option<Inherited>)>, Failure> {
    if flags.no_luo {
        return Ok(None);
    }
    let mut place = Where::new(flags.session.as_str());
    place.socket = flags.luo_socket.clone();
    place.patience = Duration::from_secs(flags.patience);
    place.deadline = Duration::from_secs(flags.luo_deadline);
    let mut said = Ok(());
    let opened = Place::open(&place, &mut || {
        said = say(&format!("kv waits for the kv that holds session {}", flags.session));
    })?;
    said?;
    if opened.is_none() {
        tracing::warn!("no luod runs: the data will end with this process");
    }
    Ok(opened)
}

/// Goes on with what was inherited, or begins anew; in either case luod then holds what it must.
fn begin(
    flags: &Flags,
    mut place: Option<Place>,
    inherited: Option<Inherited>,
) -> Result<(Server, Option<Place>), Failure> {
    let mut options = Options::default();
    options.version_label = flags.version_label.clone();
    options.memory_limit = flags.memory_limit;
    options.max_connections = flags.max_connections;
    let keeper = place.as_mut().map(Place::keeper);
    let custody = |waker: &Waker| -> std::io::Result<Box<dyn Custody>> {
        Ok(match keeper {
            None => Box::new(NoCustody::default()),
            Some(keeper) => Box::new(Background::start(keeper, waker)?),
        })
    };
    let server = match inherited {
        None => {
            let listener = bind(flags.bind)?;
            let store = Store::create(flags.memory_limit).map_err(ServerError::from)?;
            if let Some(place) = &place {
                place.keep(store.as_fd(), listener.as_fd())?;
            }
            Server::start(store, listener, options, custody)?
        }
        Some(Inherited { memory, listener, connections }) => {
            let (listener, is_new) = match listener {
                Some(listener) => (listener, false),
                None => (bind(flags.bind)?, true),
            };
            let new_copy = is_new.then(|| listener.try_clone()).transpose();
            let suspended = Suspended::new(memory, listener, connections);
            let server = Server::resume(suspended, options, custody)?;
            if let Some(place) = &place {
                place.carry()?;
                if let Some(listener) = new_copy.map_err(ServerError::Setup)? {
                    place.keep_listener(listener.as_fd())?;
                }
            }
            tracing::info!(
                connections = server.connections().count(),
                in_doubt = server.in_doubt(),
                microseconds = server.resumed_in().as_micros(),
                "took over"
            );
            server
        }
    };
    if let Some(place) = &place {
        place.settled();
    }
    Ok((server, place))
}

fn bind(address: SocketAddr) -> Result<OwnedFd, Failure> {
    let listener =
        TcpListener::bind(address).map_err(|source| Failure::Bind { address, source })?;
    Ok(listener.into())
}

/// A line on standard output, where supervisors read how far kv is.
fn say(line: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout();
    writeln!(out, "{line}").and_then(|()| out.flush()).map_err(Failure::Print)
}
