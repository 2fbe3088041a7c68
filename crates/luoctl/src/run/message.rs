//! What a program says to its service manager, in the words of `sd_notify(3)`.
//!
//! Invariants: what is for the store is not passed on, and neither is what is wrong about a program
//! that luoctl has started: to an outer service manager luoctl itself is the service.

use super::names::{STORED, is_name};

/// The longest message in bytes, as systemd has it.
pub(crate) const MESSAGE_MAX: usize = 4096;

/// Lines that an outer service manager does not get.
const OWN: [&str; 8] = [
    "FDSTORE",
    "FDSTOREREMOVE",
    "FDNAME",
    "FDPOLL",
    "BARRIER",
    "MAINPID",
    "MAINPIDFD",
    "MAINPIDFDID",
];

/// What a message is about, beside what is passed on.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    Nothing,
    /// Keep the descriptors that came along.
    Store {
        name: String,
        /// Drop them when they are hung up.
        watched: bool,
    },
    /// Let go of the descriptors of that name.
    Remove {
        name: String,
    },
    /// Close the descriptor that came along when all that came before is done.
    Barrier,
    /// It cannot be done.
    Wrong(&'static str),
}

/// A message that was read.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) asked: Asked,
    /// The process that is the program from now on.
    pub(crate) main: Option<i32>,
    /// Lines for an outer service manager.
    pub(crate) passed_on: String,
    /// A remark about the message.
    pub(crate) odd: Option<&'static str>,
}

impl Message {
    /// Reads a message; `None` where it is no text.
    pub(crate) fn read(bytes: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(bytes).ok()?;
        let text = text.trim_end_matches(['\0', '\n']);
        if text.contains('\0') {
            return None;
        }
        let lines = || text.lines().filter(|line| !line.is_empty());
        let value = |key: &str| {
            lines()
                .find_map(|line| line.split_once('=').filter(|(its, _)| *its == key))
                .map(|l| l.1)
        };
        let is_set = |key| value(key) == Some("1");
        let name = value("FDNAME");
        let mut odd = None;
        let asked = if is_set("BARRIER") {
            match lines().count() {
                1 => Asked::Barrier,
                _ => Asked::Wrong("BARRIER=1 must be alone in its message"),
            }
        } else if is_set("FDSTOREREMOVE") {
            match name.filter(|name| is_name(name)) {
                Some(name) => Asked::Remove { name: name.to_owned() },
                None => Asked::Wrong("FDSTOREREMOVE=1 needs a valid FDNAME"),
            }
        } else if is_set("FDSTORE") {
            let valid = name.filter(|name| is_name(name));
            if name.is_some() && valid.is_none() {
                odd = Some("an FDNAME that is no valid name is taken as \"stored\"");
            }
            Asked::Store {
                name: valid.unwrap_or(STORED).to_owned(),
                watched: value("FDPOLL") != Some("0"),
            }
        } else {
            Asked::Nothing
        };
        let is_own = |line: &str| OWN.contains(&line.split('=').next().unwrap_or_default());
        let mut passed_on = String::new();
        for line in lines().filter(|line| !is_own(line)) {
            passed_on.push_str(line);
            passed_on.push('\n');
        }
        let main = value("MAINPID").and_then(|pid| pid.parse().ok()).filter(|pid| *pid > 1);
        Some(Self { asked, main, passed_on, odd })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Message {
        Message::read(text.as_bytes()).unwrap()
    }

    #[test]
    fn descriptors_are_stored_under_their_name_and_looked_after() {
        let store = |name: &str, watched| Asked::Store { name: name.into(), watched };
        assert_eq!(read("FDSTORE=1").asked, store("stored", true));
        assert_eq!(read("FDSTORE=1\nFDNAME=web\n").asked, store("web", true));
        assert_eq!(read("FDNAME=web\nFDSTORE=1\nFDPOLL=0\0").asked, store("web", false));
        assert_eq!(read("FDSTORE=0").asked, Asked::Nothing);
        let odd = read("FDSTORE=1\nFDNAME=a:b");
        assert_eq!(odd.asked, store("stored", true));
        assert!(odd.odd.is_some());
    }

    #[test]
    fn removal_needs_a_name_and_wins() {
        assert_eq!(
            read("FDSTOREREMOVE=1\nFDSTORE=1\nFDNAME=web").asked,
            Asked::Remove { name: "web".into() }
        );
        assert!(matches!(read("FDSTOREREMOVE=1").asked, Asked::Wrong(_)));
        assert!(matches!(read("FDSTOREREMOVE=1\nFDNAME=a:b").asked, Asked::Wrong(_)));
    }

    #[test]
    fn a_barrier_is_alone() {
        assert_eq!(read("BARRIER=1").asked, Asked::Barrier);
        assert!(matches!(read("BARRIER=1\nREADY=1").asked, Asked::Wrong(_)));
    }

    #[test]
    fn an_outer_manager_gets_the_rest_and_nothing_of_ours() {
        let message =
            read("READY=1\nMAINPID=42\nFDSTORE=1\nFDNAME=x\nFDPOLL=0\nSTATUS=a=b\nX_OWN=1");
        assert_eq!(message.passed_on, "READY=1\nSTATUS=a=b\nX_OWN=1\n");
        assert_eq!(message.main, Some(42));
        assert_eq!(read("FDSTORE=1").passed_on, "");
        for wrong in ["MAINPID=0", "MAINPID=1", "MAINPID=-5", "MAINPID=x"] {
            assert_eq!(read(wrong).main, None);
        }
    }

    #[test]
    fn what_is_no_text_is_no_message() {
        assert_eq!(Message::read(b"READY=1\0STATUS=x"), None);
        assert_eq!(Message::read(b"\xff"), None);
        assert_eq!(read("").asked, Asked::Nothing);
    }
}
