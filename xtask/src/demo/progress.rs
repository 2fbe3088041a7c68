//! What the user sees while it runs: a bar for what has an end, live figures for the load.
//!
//! Where standard error is no terminal nothing is drawn, and a line says that each part is done.

use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use kv::load::{LoadHandle, Progress};

use super::processes;
use crate::failure::{Failed, Result};

/// A line that says what was begun.
pub(super) fn say(line: &str) {
    println!("{line}");
}

/// A bar for data that is put in or read back.
#[derive(Debug)]
pub(super) struct Bytes {
    bar: ProgressBar,
    what: String,
    began: Instant,
    total: u64,
}

impl Bytes {
    pub(super) fn new(what: impl Into<String>) -> Self {
        let what = what.into();
        let bar = ProgressBar::new(0);
        let style = ProgressStyle::with_template(
            "  {msg:28} {bar:32.green/dim} {bytes:>11} of {total_bytes:<11} {bytes_per_sec}",
        );
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar.set_message(what.clone());
        Self { bar, what, began: Instant::now(), total: 0 }
    }

    pub(super) fn show(&mut self, progress: Progress) {
        self.total = progress.total;
        self.bar.set_length(progress.total);
        self.bar.set_position(progress.done);
    }

    pub(super) fn done(self) {
        self.bar.finish_and_clear();
        let took = self.began.elapsed().as_secs_f64();
        say(&format!("  {:28} {} MiB in {took:.1} s", self.what, self.total >> 20));
    }
}

/// Lets the load go on for a while, showing its figures.
///
/// # Errors
/// When the load has ended by itself, or the user asks to stop.
pub(super) fn watch(load: &LoadHandle, what: &str, length: Duration) -> Result<()> {
    let until = Instant::now() + length;
    let bar = figures(what, u64::try_from(length.as_millis()).unwrap_or(u64::MAX));
    loop {
        let left = until.saturating_duration_since(Instant::now());
        show(&bar, load)?;
        if left.is_zero() {
            bar.finish_and_clear();
            return Ok(());
        }
        bar.set_position(u64::try_from((length - left).as_millis()).unwrap_or(u64::MAX));
        processes::rest_until(Instant::now() + left.min(Duration::from_millis(100)))?;
    }
}

/// Does something beside the load, whose figures are shown for as long as it takes.
///
/// # Errors
/// Its own; and when the load has ended by itself, or the user asks to stop, once it is done.
pub(super) fn during<T: Send>(
    load: &LoadHandle,
    what: &str,
    work: impl FnOnce() -> Result<T> + Send,
) -> Result<T> {
    let bar = figures(what, 0);
    std::thread::scope(|scope| {
        let worker = scope.spawn(work);
        let mut seen = Ok(());
        while !worker.is_finished() {
            seen = seen.and_then(|()| show(&bar, load));
            bar.tick();
            std::thread::sleep(Duration::from_millis(20));
        }
        bar.finish_and_clear();
        let done =
            worker.join().map_err(|_| Failed::new(format!("{what}: its thread panicked")))?;
        seen.and(done)
    })
}

/// A bar with the load's figures beside it.
fn figures(what: &str, length: u64) -> ProgressBar {
    let bar = ProgressBar::new(length);
    if std::io::stderr().is_terminal() {
        let style = ProgressStyle::with_template("  {prefix:28} {bar:32.cyan/dim} {msg}");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar.set_prefix(what.to_owned());
    }
    bar
}

fn show(bar: &ProgressBar, load: &LoadHandle) -> Result<()> {
    processes::go_on()?;
    if load.has_ended() {
        return Err(Failed::new("the load ended by itself"));
    }
    let now = load.snapshot();
    bar.set_message(format!(
        "{} served, {} failed, {} dropped, worst {:.1} ms",
        now.served,
        now.failed,
        now.dropped,
        now.worst.as_secs_f64() * 1e3
    ));
    Ok(())
}
