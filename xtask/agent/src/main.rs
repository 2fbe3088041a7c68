//! The first process of the lab's virtual machines.
//!
//! As process 1 it makes the system usable (file systems, modules, network), starts the agent as a
//! process of its own, starts it again if it ends, and reaps what has lost its parent. The agent
//! does what the host asks for.
//!
//! Invariants: process 1 never ends, since the kernel would panic; what of the set-up failed is kept
//! and told to the host, and keeps nothing else from being tried.

use std::fs;
use std::process::{Command, ExitCode};
use std::thread;
use std::time::Duration;

mod agent;
mod early;
mod link;
mod setup;

/// Where process 1 leaves for the agent what failed.
const PROBLEMS: &str = "/run/lab/problems";
/// The kernel's command line asks for a shell on the console with this word.
const SHELL: &str = "lab.shell";

fn main() -> ExitCode {
    if rustix::process::getpid().is_init() {
        first_process();
    }
    match agent::serve() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lab: the agent cannot serve: {error}");
            ExitCode::FAILURE
        }
    }
}

fn first_process() -> ! {
    let problems = setup::all();
    for problem in &problems {
        eprintln!("lab: {problem}");
    }
    // Nobody could be told of a failure here; the agent then finds no problems.
    let _ = fs::write(PROBLEMS, problems.join("\n"));
    start("the agent", Command::new("/proc/self/exe"));
    let command_line = fs::read_to_string("/proc/cmdline").unwrap_or_default();
    if command_line.split_whitespace().any(|word| word == SHELL) {
        let mut shell = Command::new("setsid");
        shell.args(["--ctty", "--wait", "sh", "-i"]);
        start("the shell", shell);
    }
    loop {
        // Reaps what has lost its parent. There is always a child of this process's own, but for
        // moments between two agents.
        if rustix::process::wait(rustix::process::WaitOptions::empty()).is_err() {
            thread::sleep(Duration::from_millis(100));
        }
    }
}

/// Keeps a program running: a thread starts it again when it has ended.
fn start(name: &'static str, mut command: Command) {
    setup::environment(&mut command);
    thread::spawn(move || {
        loop {
            match command.status() {
                Ok(status) => eprintln!("lab: {name} has ended ({status})"),
                // The loop of process 1 may reap it first; then this thread hears ECHILD.
                Err(error) => eprintln!("lab: {name} has ended, or cannot be started: {error}"),
            }
            thread::sleep(Duration::from_millis(500));
        }
    });
}
