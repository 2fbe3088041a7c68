//! Runs the blocks of one page.

use std::env;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{Read as _, Seek as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use super::extract::{self, Block};
use crate::failure::{Context as _, Failed, Result};
use crate::proc::{self, Ended};
use crate::test::Report;
use crate::workspace::Workspace;

/// How long luod may take to begin, and to end.
const LUOD_DEADLINE: Duration = Duration::from_secs(10);

/// Runs the blocks of a page and adds what came of them to the report. After one that failed the
/// rest of the page is skipped: it builds on what was before.
pub(super) fn page(
    workspace: &Workspace,
    name: &str,
    blocks: &[Block],
    report: &mut Report,
) -> Result<()> {
    let dir = TempDir::with_prefix("luo-docs-").context(|| "make a directory".into())?;
    let mut luod = None;
    let mut broken = false;
    for block in blocks {
        let place = format!("{name}:{}", block.line);
        if broken {
            report.skipped.push(format!("{place}: a block before it failed"));
            continue;
        }
        if let Some(reason) = &block.no_run {
            report.skipped.push(format!("{place}: {reason}"));
            continue;
        }
        if let Some(missing) = block.needs.iter().find(|program| proc::find(program).is_none()) {
            report.skipped.push(format!("{place}: {missing} is missing"));
            continue;
        }
        let outcome = ready(workspace, block, dir.path(), &mut luod)
            .and_then(|socket| run(workspace, name, block, dir.path(), socket));
        match outcome {
            Ok(()) => {
                println!("passed: {place}");
                report.passed += 1;
            }
            Err(failed) => {
                report.failed.push(format!("{place}: {}", failed.chain()));
                broken = true;
            }
        }
    }
    if let Some(luod) = luod {
        match luod.end() {
            Ok(()) => {}
            Err(failed) => report.failed.push(format!("{name}: luod: {}", failed.chain())),
        }
    }
    Ok(())
}

/// Sees to it that luod runs if the block wants one; gives its socket.
fn ready(
    workspace: &Workspace,
    block: &Block,
    dir: &Path,
    luod: &mut Option<Luod>,
) -> Result<Option<PathBuf>> {
    if !block.luod {
        return Ok(None);
    }
    let running = match luod.take() {
        Some(running) => running,
        None => Luod::start(&workspace.debug().join("luod"), &dir.join(".luod"))?,
    };
    let socket = running.socket.clone();
    *luod = Some(running);
    Ok(Some(socket))
}

/// The bash script of a block: it says each command before it runs it, and ends at the first that
/// fails.
fn script(name: &str, block: &Block) -> String {
    let mut script = String::from("set -eu -o pipefail\n");
    for extract::Command { line, text } in &block.commands {
        let said = format!("{name}:{line}$ {text}").replace('\'', r"'\''");
        script.push_str(&format!("printf '%s\\n' '{said}'\n{text}\n"));
    }
    script
}

fn run(
    workspace: &Workspace,
    name: &str,
    block: &Block,
    dir: &Path,
    socket: Option<PathBuf>,
) -> Result<()> {
    let mut log = tempfile::tempfile().context(|| "make a file for the output".into())?;
    let doing = || "prepare the output".to_owned();
    let mut bash = Command::new("bash");
    bash.arg("-c")
        .arg(script(name, block))
        .current_dir(if block.repo { workspace.root() } else { dir })
        .env("PATH", path_with(&workspace.debug())?)
        .stdout(log.try_clone().context(doing)?)
        .stderr(log.try_clone().context(doing)?);
    match socket {
        Some(socket) => bash.env("LUO_SOCKET", socket),
        None => bash.env_remove("LUO_SOCKET"),
    };
    let child = proc::in_group(&mut bash).spawn().context(|| "start bash".into())?;
    let ended = proc::wait_group(child, block.timeout)?;
    let why = match ended {
        Ended::Exited(status) if status.success() => return Ok(()),
        Ended::Exited(status) => status.to_string(),
        Ended::Late => format!("not done after {} s", block.timeout.as_secs()),
    };
    let mut said = Vec::new();
    log.rewind().and_then(|()| log.read_to_end(&mut said)).context(|| "read the output".into())?;
    Err(Failed::new(format!("{why}; it said:\n{}", String::from_utf8_lossy(&said).trim_end())))
}

fn path_with(debug: &Path) -> Result<OsString> {
    let rest = env::var_os("PATH").unwrap_or_default();
    env::join_paths(std::iter::once(debug.to_path_buf()).chain(env::split_paths(&rest)))
        .context(|| "put the binaries on PATH".into())
}

/// A luod of the page's own, with a runtime directory of its own.
#[derive(Debug)]
struct Luod {
    child: Option<Child>,
    socket: PathBuf,
    log: PathBuf,
}

impl Luod {
    /// Starts it, and returns once its socket takes connections.
    fn start(binary: &Path, dir: &Path) -> Result<Self> {
        fs::create_dir(dir).context(|| "make luod's runtime directory".into())?;
        let log = dir.join("log");
        let file = File::create(&log).context(|| "make luod's log".into())?;
        let doing = || "prepare luod's log".to_owned();
        let mut command = Command::new(binary);
        command.arg("--runtime-dir").arg(dir).stdout(file.try_clone().context(doing)?).stderr(file);
        let child = proc::in_group(&mut command)
            .spawn()
            .context(|| format!("start {}", binary.display()))?;
        let mut luod = Self { child: Some(child), socket: dir.join("io.luo.sock"), log };
        let deadline = Instant::now() + LUOD_DEADLINE;
        loop {
            if UnixStream::connect(&luod.socket).is_ok() {
                return Ok(luod);
            }
            if let Some(status) = luod.exited()? {
                return Err(luod.failed(&format!("luod ended before it was ready ({status})")));
            }
            if Instant::now() > deadline {
                return Err(luod.failed("luod takes no connection"));
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    fn exited(&mut self) -> Result<Option<ExitStatus>> {
        match &mut self.child {
            Some(child) => child.try_wait().context(|| "look after luod".into()),
            None => Ok(None),
        }
    }

    fn failed(&self, what: &str) -> Failed {
        let said = fs::read_to_string(&self.log).unwrap_or_default();
        Failed::new(format!("{what}; it said:\n{}", said.trim_end()))
    }

    /// Ends it as a service manager does, and fails where it does not end well.
    fn end(mut self) -> Result<()> {
        let Some(child) = self.child.take() else { return Ok(()) };
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        if let Some(pid) = pid {
            // Fails only where it is gone already, which its exit status tells below.
            let _ = kill_process(pid, Signal::TERM);
        }
        match proc::wait_group(child, LUOD_DEADLINE)? {
            Ended::Exited(status) if status.success() => Ok(()),
            Ended::Exited(status) => Err(self.failed(&format!("SIGTERM ended luod with {status}"))),
            Ended::Late => Err(self.failed("luod did not end at SIGTERM")),
        }
    }
}

impl Drop for Luod {
    /// On the ways out that are failures already.
    fn drop(&mut self) {
        if let Some(child) = self.child.take() {
            let _ = proc::wait_group(child, Duration::ZERO);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page_of(text: &str) -> Report {
        let workspace = Workspace::find().expect("the tests run in the checkout");
        let blocks = extract::blocks(text).expect("the page is understood");
        let mut report = Report::default();
        page(&workspace, "page.md", &blocks, &mut report).expect("the page can be run");
        report
    }

    #[test]
    fn blocks_of_a_page_share_a_directory() {
        let report = page_of("```console\n$ echo it\\'s > x\n```\n```sh\ntest -s x\n```\n");
        assert_eq!((report.passed, report.failed), (2, vec![]));
    }

    #[test]
    fn a_command_that_fails_is_named_with_its_output_and_ends_the_page() {
        let report =
            page_of("```console\n$ echo hello\n$ false\n$ echo no\n```\n```sh\ntrue\n```\n");
        assert_eq!(report.passed, 0);
        assert_eq!(report.skipped.len(), 1);
        let [failed] = &report.failed[..] else { panic!("{:?}", report.failed) };
        assert!(failed.ends_with("page.md:2$ echo hello\nhello\npage.md:3$ false"), "{failed}");
    }

    #[test]
    fn a_block_that_is_not_run_is_listed_with_its_reason() {
        let report = page_of("```console,no-run=\"needs a kernel\"\n$ false\n```\n");
        assert_eq!(report.skipped, ["page.md:1: needs a kernel"]);
        assert!(report.failed.is_empty());
    }

    #[test]
    fn a_block_whose_program_is_missing_is_listed_with_its_name() {
        let report = page_of("```console,needs=sh,needs=no-such-program\n$ false\n```\n");
        assert_eq!(report.skipped, ["page.md:1: no-such-program is missing"]);
        assert!(report.failed.is_empty());
    }

    #[test]
    fn a_block_past_its_deadline_fails() {
        let report = page_of("```console,timeout=1\n$ sleep 1000\n```\n");
        assert!(report.failed[0].contains("not done after 1 s"), "{:?}", report.failed);
    }

    #[test]
    fn a_luod_that_ends_at_once_is_told_with_what_it_said() {
        let dir = TempDir::new().expect("a directory");
        // A program that knows no `--runtime-dir`, says so and ends.
        let ls = proc::find("ls").expect("every system has it");
        let failed = Luod::start(&ls, &dir.path().join("run")).expect_err("it ends");
        assert!(failed.chain().contains("ended before it was ready"), "{}", failed.chain());
        assert!(failed.chain().contains("runtime-dir"), "{}", failed.chain());
    }
}
