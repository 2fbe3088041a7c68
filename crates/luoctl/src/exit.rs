//! The exit statuses: a contract with scripts.
//!
//! Invariants: a number never changes its meaning; help and man page list them from here.

use std::fmt::Write;
use std::process::ExitCode;

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    Done = 0,
    Failed = 1,
    Usage = 2,
    Denied = 3,
    Unreachable = 4,
    WrongState = 5,
    NotFound = 6,
}

impl Exit {
    pub(crate) const ALL: [Self; 7] = [
        Self::Done,
        Self::Failed,
        Self::Usage,
        Self::Denied,
        Self::Unreachable,
        Self::WrongState,
        Self::NotFound,
    ];

    pub(crate) const fn code(self) -> u8 {
        self as u8
    }

    pub(crate) const fn meaning(self) -> &'static str {
        match self {
            Self::Done => "It is done.",
            Self::Failed => {
                "It failed: a veto, a handler's error, a limit, a deadline, a damaged blob."
            }
            Self::Usage => "The command line is wrong.",
            Self::Denied => "You may not do that (EPERM).",
            Self::Unreachable => "luod cannot be reached, or cannot serve.",
            Self::WrongState => "Not in this state, or something else is under way (EBUSY).",
            Self::NotFound => "There is no such session, file or path (ENOENT).",
        }
    }

    /// The statuses as `--help` shows them.
    pub(crate) fn help() -> String {
        let mut help = "Exit status:".to_owned();
        for exit in Self::ALL {
            // Writing to a string does not fail.
            let _ = write!(help, "\n  {}  {}", exit.code(), exit.meaning());
        }
        help
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}
