//! Running other programs: to the end, with their output shown and kept, and within a deadline.

use std::env;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};

use crate::failure::{Context as _, Failed, Result};

/// The program and its arguments, as a person would type them.
pub(crate) fn line(command: &Command) -> String {
    let program = std::path::Path::new(command.get_program());
    let mut text = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
    for arg in command.get_args() {
        text.push(' ');
        text.push_str(&arg.to_string_lossy());
    }
    text
}

/// Runs a program to its end, showing its output as it comes.
pub(crate) fn run(command: &mut Command) -> Result<ExitStatus> {
    let text = line(command);
    eprintln!("$ {text}");
    command.stdin(Stdio::null()).status().context(|| format!("run `{text}`"))
}

/// As [`run`]; an exit status that is not zero is a failure.
pub(crate) fn check(command: &mut Command) -> Result<()> {
    let status = run(command)?;
    if status.success() {
        Ok(())
    } else {
        Err(Failed::new(format!("`{}` failed ({status})", line(command))))
    }
}

/// Runs a program to its end, showing its standard output as it comes, and keeps that.
pub(crate) fn run_and_keep(command: &mut Command) -> Result<(ExitStatus, String)> {
    let text = line(command);
    eprintln!("$ {text}");
    let doing = || format!("run `{text}`");
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context(doing)?;
    let mut kept = String::new();
    if let Some(stdout) = child.stdout.take() {
        for line in BufReader::new(stdout).split(b'\n') {
            let line = line.context(doing)?;
            let line = String::from_utf8_lossy(&line);
            let mut shown = std::io::stdout().lock();
            writeln!(shown, "{line}").context(doing)?;
            kept.push_str(&line);
            kept.push('\n');
        }
    }
    let status = child.wait().context(doing)?;
    Ok((status, kept))
}

/// Runs a program without showing its output, and gives its standard output; a status that is not
/// zero is a failure that shows what it said.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let text = line(command);
    let output = command.stdin(Stdio::null()).output().context(|| format!("run `{text}`"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(Failed::new(format!("`{text}` failed ({}): {}", output.status, said.trim())));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// How a program in a group of its own ended.
#[derive(Debug)]
pub(crate) enum Ended {
    /// By itself.
    Exited(ExitStatus),
    /// It was killed because the deadline had passed.
    Late,
}

/// Waits for a program that was spawned with [`in_group`], and ends whatever is left of its group.
pub(crate) fn wait_group(mut child: Child, deadline: Duration) -> Result<Ended> {
    let group = i32::try_from(child.id())
        .ok()
        .and_then(Pid::from_raw)
        .ok_or_else(|| Failed::new("a process id that is out of range"))?;
    let (done, ended) = mpsc::channel();
    let waiter = thread::spawn(move || {
        // The exit is only looked at: until the program is reaped below, its number names its
        // group and nobody else's. The channel's other end may be gone when the deadline passed.
        let _ =
            done.send(waitid(WaitId::Pid(group), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT));
    });
    let late = ended.recv_timeout(deadline).is_err();
    // Fails only where nobody is left in the group.
    let _ = kill_process_group(group, Signal::KILL);
    waiter.join().map_err(|_| Failed::new("the thread that waits for a program panicked"))?;
    let status = child.wait().context(|| "wait for a program".into())?;
    Ok(if late { Ended::Late } else { Ended::Exited(status) })
}

/// Makes the program the leader of a process group of its own, so that all it starts can be ended
/// with it.
pub(crate) fn in_group(command: &mut Command) -> &mut Command {
    command.process_group(0).stdin(Stdio::null())
}

/// The program of that name on PATH.
pub(crate) fn find(name: &str) -> Option<PathBuf> {
    env::split_paths(&env::var_os("PATH")?).map(|dir| dir.join(name)).find(|path| path.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_past_its_deadline_is_ended_with_its_children() {
        let mut command = Command::new("sh");
        command.args(["-c", "sleep 1000 & wait"]);
        let child = in_group(&mut command).spawn().expect("sh starts");
        let ended = wait_group(child, Duration::from_millis(20)).expect("it can be waited for");
        assert!(matches!(ended, Ended::Late));
    }

    #[test]
    fn the_exit_status_of_a_program_in_time_is_given() {
        let mut command = Command::new("sh");
        command.args(["-c", "exit 3"]);
        let child = in_group(&mut command).spawn().expect("sh starts");
        let ended = wait_group(child, Duration::from_secs(60)).expect("it can be waited for");
        assert!(matches!(ended, Ended::Exited(status) if status.code() == Some(3)));
    }

    #[test]
    fn a_failing_program_is_named_with_what_it_said() {
        let mut command = Command::new("sh");
        let failed = output(command.args(["-c", "echo sorry >&2; exit 1"])).expect_err("it fails");
        assert!(failed.chain().contains("sorry"), "{}", failed.chain());
    }
}
