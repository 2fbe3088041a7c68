//! Named moments at which a test has this worker killed: what a kill at a random time hits once in a
//! thousand, this hits each time.
//!
//! `LUOD_TEST_MOMENTS` names a file of lines `[luod ]MOMENT[ xN]`. The process that reaches MOMENT for
//! the Nth time since the line was written (the first without `xN`) takes the line out and kills itself
//! with SIGKILL; `luod` has it kill its parent, the keeper, before. Without the variable nothing is
//! looked at but that.
//!
//! | moment | |
//! | --- | --- |
//! | `call PHASE`, `called PHASE` | before and after a handler is called |
//! | `ended EVENT` | a transition has ended, and none of its records is kept |
//! | `kept EVENT` | they are, and nobody has been told |
//! | `kernel begin` | nothing was asked of the kernel's orchestrator yet |
//! | `kernel retrieve` | before a kernel session is retrieved |
//! | `kernel read` | the kernel session `luod` is held, and nothing of it was read |
//! | `kernel finished` | the kernel has finished what came, and its sessions are still kept |
//!
//! Invariants: who may write the file, or set luod's environment, may kill luod anyhow.

use std::path::PathBuf;
use std::sync::{Mutex, OnceLock, PoisonError};

use rustix::process::{Pid, Signal, getpid, getppid, kill_process};

const VARIABLE: &str = "LUOD_TEST_MOMENTS";
/// What stands before a moment at which the keeper goes too.
const WHOLE: &str = "luod ";

static FILE: OnceLock<Option<Mutex<PathBuf>>> = OnceLock::new();

/// This worker is at a moment, which has two words for its name.
pub(crate) fn reach(what: &str, which: &str) {
    let file = FILE.get_or_init(|| std::env::var_os(VARIABLE).map(|path| Mutex::new(path.into())));
    let Some(path) = file else { return };
    // One at a time counts down.
    let path = path.lock().unwrap_or_else(PoisonError::into_inner);
    let Ok(lines) = std::fs::read_to_string(&*path) else { return };
    let (left, hit) = after(&lines, &format!("{what} {which}"));
    if left == lines || std::fs::write(&*path, left).is_err() {
        return;
    }
    if let Some(whole) = hit {
        die(whole);
    }
}

/// What the lines become when a moment is reached, and whether one of them was waited for; then
/// whether the keeper dies too.
fn after(lines: &str, moment: &str) -> (String, Option<bool>) {
    let mut left = String::new();
    let (mut hit, mut seen) = (None, false);
    for line in lines.lines() {
        let (whole, rest) = line.strip_prefix(WHOLE).map_or((false, line), |rest| (true, rest));
        let (name, count) = match rest.rsplit_once(" x") {
            Some((name, count)) => (name, count.parse().unwrap_or(1)),
            None => (rest, 1_u64),
        };
        if seen || name != moment {
            left.push_str(line);
            left.push('\n');
            continue;
        }
        seen = true;
        if count > 1 {
            let prefix = if whole { WHOLE } else { "" };
            left.push_str(&format!("{prefix}{name} x{}\n", count - 1));
        } else {
            hit = Some(whole);
        }
    }
    (left, hit)
}

fn die(whole: bool) {
    let kill = |pid: Option<Pid>| pid.map(|pid| kill_process(pid, Signal::KILL));
    if whole {
        kill(getppid());
    }
    kill(Some(getpid()));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_waited_for_as_often_as_its_line_says_and_others_are_not() {
        let lines = "call retrieve x3\nluod ended arrive\ncall retrieve\n";
        let (lines, hit) = after(lines, "call retrieve");
        assert_eq!((&*lines, hit), ("call retrieve x2\nluod ended arrive\ncall retrieve\n", None));
        let (lines, hit) = after(&lines, "ended arrive");
        assert_eq!((&*lines, hit), ("call retrieve x2\ncall retrieve\n", Some(true)));
        let (lines, _) = after(&lines, "call retrieve");
        let (lines, hit) = after(&lines, "call retrieve");
        assert_eq!((&*lines, hit), ("call retrieve\n", Some(false)));
        assert_eq!(after(&lines, "called retrieve"), (lines.clone(), None));
    }
}
