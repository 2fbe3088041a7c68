//! `kv`: serves an in-memory store with the Redis protocol.

use std::io::Write;
use std::net::{SocketAddr, TcpListener};
use std::process::ExitCode;

use clap::Parser;
use kv::custody::NoCustody;
use kv::server::{Options, Server, ServerError, Stop};
use kv::store::{MIN_LIMIT, Store};

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
    #[error("cannot print the address")]
    Print(#[source] std::io::Error),
    #[error(transparent)]
    Server(#[from] ServerError),
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
    let mut options = Options::default();
    options.version_label = flags.version_label;
    options.memory_limit = flags.memory_limit;
    options.max_connections = flags.max_connections;
    let listener = TcpListener::bind(flags.bind)
        .map_err(|source| Failure::Bind { address: flags.bind, source })?;
    let store = Store::create(flags.memory_limit).map_err(ServerError::from)?;
    let mut server =
        Server::start(store, listener.into(), options, |_| Ok(Box::new(NoCustody::default())))?;
    for signal in [signal_hook::consts::SIGTERM, signal_hook::consts::SIGINT] {
        server.waker().stop_on_signal(signal).map_err(Failure::Signals)?;
    }
    let mut out = std::io::stdout();
    writeln!(out, "kv listens on {}", server.local_addr()?)
        .and_then(|()| out.flush())
        .map_err(Failure::Print)?;
    match server.run()? {
        Stop::Asked => tracing::info!("stopped; nobody takes over, so the data ends here"),
        Stop::Shutdown => tracing::info!("shut down by a client"),
    }
    Ok(())
}
