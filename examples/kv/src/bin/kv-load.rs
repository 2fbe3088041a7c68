//! `kv-load`: puts load on kv (or any server with the Redis protocol) and checks every answer.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use kv::load::{Load, LoadError, LoadOptions, LoadReport, Progress, StepReport, Work};

/// Puts load on kv and checks every answer byte for byte; ends with standard input, or after --seconds.
#[derive(Debug, Parser)]
#[command(version)]
struct Flags {
    /// The server's address.
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:6379")]
    server: SocketAddr,

    /// Connections, each with one request under way at any time.
    #[arg(long, default_value_t = 64)]
    connections: usize,

    /// Bytes of each value.
    #[arg(long, value_name = "BYTES", default_value_t = 4096)]
    value_len: usize,

    /// How much data to put in first, in MiB.
    #[arg(long, value_name = "MIB", default_value_t = 16)]
    fill: u64,

    /// Requests under way on each connection while data is put in or read back.
    #[arg(long, default_value_t = 16)]
    depth: usize,

    /// How long the load lasts; without it, until standard input ends.
    #[arg(long)]
    seconds: Option<u64>,

    /// Print the report, with its time line, as JSON.
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    let mut out = std::io::stdout();
    match run(&Flags::parse(), &mut out) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            let mut message = format!("kv-load: {error}");
            let mut cause = error.source();
            while let Some(error) = cause {
                message.push_str(&format!(": {error}"));
                cause = error.source();
            }
            // Nobody can be told that standard error is closed.
            let _ = writeln!(std::io::stderr(), "{message}");
            ExitCode::from(2)
        }
    }
}

fn run(flags: &Flags, out: &mut impl Write) -> Result<bool, Box<dyn std::error::Error>> {
    let mut options = LoadOptions::default();
    options.connections = flags.connections;
    options.value_len = flags.value_len;
    options.fill_bytes = flags.fill << 20;
    options.depth = flags.depth;
    let mut shown = None;
    let mut show = |progress: Progress| {
        let percent = progress.done * 100 / progress.total.max(1);
        if shown != Some((progress.work, percent / 10)) {
            shown = Some((progress.work, percent / 10));
            let work = if progress.work == Work::Fill { "filling" } else { "verifying" };
            let _ = writeln!(std::io::stderr(), "{work}: {percent} %");
        }
    };
    let load = Load::start(flags.server, options, &mut show)?;
    match flags.seconds {
        Some(seconds) => std::thread::sleep(Duration::from_secs(seconds)),
        None => {
            std::io::stdin().read_to_end(&mut Vec::new())?;
        }
    }
    let report: Result<LoadReport, LoadError> = load.stop(&mut show);
    let report = report?;
    if flags.json {
        serde_json::to_writer(&mut *out, &report)?;
        writeln!(out)?;
    } else {
        print(&report, out)?;
    }
    Ok(report.is_clean())
}

fn print(report: &LoadReport, out: &mut impl Write) -> std::io::Result<()> {
    writeln!(
        out,
        "{:10} {:>10} {:>7} {:>7} {:>14} {:>10} {:>9} {:>9} {:>10}",
        "step", "served", "failed", "dropped", "verified", "rps", "p50 ms", "p99 ms", "worst ms"
    )?;
    let after = [&report.verify, &report.total];
    for step in std::iter::once(&report.fill).chain(&report.steps).chain(after) {
        let StepReport { name, served, failed, dropped, verified_bytes, .. } = step;
        let rps = *served as f64 / (step.duration_ms / 1e3).max(1e-9);
        writeln!(
            out,
            "{name:10} {served:>10} {failed:>7} {dropped:>7} {verified_bytes:>14} {rps:>10.0} {:>9.3} {:>9.3} {:>10.3}",
            step.p50_ms, step.p99_ms, step.worst_ms
        )?;
    }
    match &report.first_failure {
        Some(failure) => writeln!(out, "first failure: {failure}"),
        None => Ok(()),
    }
}
