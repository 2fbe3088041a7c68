//! The lab's tests. Each starts the machines that it needs, and ends them.

use super::{Lab, guest, medium, must};
use crate::failure::{Failed, Result};

mod bench;
mod boot;
mod cross;
mod damaged;
mod demo;
mod killed;
mod many;
mod own;
mod selftests;
mod tcp;
mod traps;

/// A test.
pub(super) struct Test {
    pub(super) name: &'static str,
    /// What holds if it passes.
    pub(super) about: &'static str,
    /// Gives what is worth a line: figures.
    pub(super) run: fn(&Lab) -> Result<String>,
    /// Whether it runs the kernel's self-tests.
    selftests: bool,
}

impl Test {
    /// Why it cannot run in this lab.
    pub(super) fn obstacle(&self, lab: &Lab) -> Option<&'static str> {
        (self.selftests && lab.selftests.is_none())
            .then_some("no selftests/ lies beside the kernel that LUO_LAB_KERNEL names")
    }
}

/// All, in the order in which they run.
pub(super) const ALL: &[Test] = &[
    Test {
        name: "boot-own",
        about: "the own kernel boots, luod serves, /dev/liveupdate and /dev/pmem0 are there",
        run: boot::own,
        selftests: false,
    },
    Test {
        name: "boot-stock",
        about: "the distribution's kernel boots, luod serves, /dev/pmem0 is there",
        run: boot::stock,
        selftests: false,
    },
    Test {
        name: "selftest-interface",
        about: "the kernel's own tests of /dev/liveupdate pass",
        run: selftests::interface,
        selftests: true,
    },
    Test {
        name: "selftest-kexec",
        about: "the kernel's own test of its orchestrator passes over a kexec",
        run: selftests::kexec_simple,
        selftests: true,
    },
    Test {
        name: "selftest-multi-session",
        about: "the kernel's own test of several sessions passes over a kexec",
        run: selftests::multi_session,
        selftests: true,
    },
    Test {
        name: "selftest-stress-files",
        about: "the kernel's own test of 500 files passes over a kexec",
        run: selftests::stress_files,
        selftests: true,
    },
    Test {
        name: "selftest-stress-sessions",
        about: "the kernel's own test of many sessions passes over a kexec",
        run: selftests::stress_sessions,
        selftests: true,
    },
    Test {
        name: "selftest-beside-luod",
        about: "beside luod the kernel's own tests get EBUSY and do no damage",
        run: selftests::beside_luod,
        selftests: true,
    },
    Test {
        name: "arena-pmem-stock",
        about: "kv's 128 MiB cross a kexec of the distribution's kernel on /dev/pmem0",
        run: cross::pmem_stock,
        selftests: false,
    },
    Test {
        name: "arena-pmem-own",
        about: "kv's 128 MiB cross a kexec of the own kernel on /dev/pmem0",
        run: cross::pmem_own,
        selftests: false,
    },
    Test {
        name: "arena-disk-stock",
        about: "kv's 128 MiB cross a kexec of the distribution's kernel in a file on a disk",
        run: cross::disk_stock,
        selftests: false,
    },
    Test {
        name: "arena-three-kexecs",
        about: "kv's 128 MiB cross three kexecs in a row, own, stock and own kernel",
        run: cross::three_kexecs,
        selftests: false,
    },
    Test {
        name: "liveupdate-own",
        about: "kv's 128 MiB cross a kexec of the own kernel through /dev/liveupdate",
        run: cross::liveupdate,
        selftests: false,
    },
    Test {
        name: "liveupdate-three-kexecs",
        about: "kv's 128 MiB cross three kexecs in a row through /dev/liveupdate",
        run: cross::liveupdate_three_kexecs,
        selftests: false,
    },
    Test {
        name: "many-liveupdate",
        about: "1,000 files in 100 sessions of two users cross through /dev/liveupdate",
        run: many::liveupdate,
        selftests: false,
    },
    Test {
        name: "many-arena",
        about: "1,000 files in 100 sessions of two users cross in an arena on /dev/pmem0",
        run: many::arena,
        selftests: false,
    },
    Test {
        name: "own-session",
        about: "a kernel session that a client fills by itself crosses through /dev/liveupdate",
        run: own::session,
        selftests: false,
    },
    Test {
        name: "tcp-liveupdate",
        about: "100 TCP connections go on over a kexec, through /dev/liveupdate",
        run: tcp::liveupdate,
        selftests: false,
    },
    Test {
        name: "tcp-arena",
        about: "100 TCP connections go on over a kexec, through an arena on /dev/pmem0",
        run: tcp::arena,
        selftests: false,
    },
    Test {
        name: "tcp-ipv6",
        about: "a connection by IPv6 from another machine goes on over a kexec",
        run: tcp::ipv6,
        selftests: false,
    },
    Test {
        name: "damaged-arena",
        about: "after a byte in /dev/pmem0 changed, what it is not part of comes back",
        run: damaged::arena,
        selftests: false,
    },
    Test {
        name: "damaged-liveupdate",
        about: "with token 0 garbled everything comes back, with its copy too the machine comes up",
        run: damaged::liveupdate,
        selftests: false,
    },
    Test {
        name: "killed-liveupdate",
        about: "luod killed at each moment of an update through /dev/liveupdate loses nothing",
        run: killed::liveupdate,
        selftests: false,
    },
    Test {
        name: "killed-arena",
        about: "luod killed at each moment of an update through an arena loses nothing",
        run: killed::arena,
        selftests: false,
    },
    Test {
        name: "trap-close",
        about: "closing a retrieved kernel session finishes it",
        run: traps::close,
        selftests: false,
    },
    Test {
        name: "trap-twice",
        about: "the kernel gives a session once: EINVAL",
        run: traps::twice,
        selftests: false,
    },
    Test {
        name: "trap-final",
        about: "a file that could not be made again once never can",
        run: traps::last,
        selftests: false,
    },
    Test {
        name: "trap-freezes",
        about: "preserving freezes a memfd's size and fills its holes",
        run: traps::freezes,
        selftests: false,
    },
    Test {
        name: "trap-words",
        about: "the kernel's vague errors become sentences",
        run: traps::words,
        selftests: false,
    },
    Test {
        name: "demo-liveupdate",
        about: "`cargo xtask demo --kexec`, with little data, through /dev/liveupdate",
        run: demo::liveupdate,
        selftests: false,
    },
    Test {
        name: "demo-arena",
        about: "`cargo xtask demo --kexec`, with little data, through an arena on /dev/pmem0",
        run: demo::arena,
        selftests: false,
    },
    Test {
        name: "luoctl-liveupdate",
        about: "`luoctl kexec load` and `luoctl reboot` take kv through /dev/liveupdate",
        run: cross::reboot_liveupdate,
        selftests: false,
    },
    Test {
        name: "luoctl-arena",
        about: "`luoctl kexec load` and `luoctl reboot` take kv through an arena on /dev/pmem0",
        run: cross::reboot_arena,
        selftests: false,
    },
    Test {
        name: "bench-blackout",
        about: "how long kv is away over a kexec, beside a cold boot and a reload from disk",
        run: bench::blackout,
        selftests: false,
    },
    Test {
        name: "bench-files",
        about: "what each of 100, 1,000 and 4,000 files costs, beside the kernel alone",
        run: bench::files,
        selftests: false,
    },
];

/// Those whose names contain one of the words.
pub(super) fn chosen(words: &[String]) -> Result<Vec<&'static Test>> {
    let chosen: Vec<_> = ALL
        .iter()
        .filter(|test| {
            words.is_empty() || words.iter().any(|word| test.name.contains(word.as_str()))
        })
        .collect();
    if chosen.is_empty() {
        return Err(Failed::new(format!(
            "no test's name contains {}: `cargo xtask lab test --list` lists them",
            words.join(" or ")
        )));
    }
    Ok(chosen)
}

#[cfg(test)]
mod choosing {
    use super::*;

    #[test]
    fn tests_are_chosen_by_parts_of_their_names() {
        let names = |words: &[&str]| {
            let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
            chosen(&words).map(|tests| tests.iter().map(|test| test.name).collect::<Vec<_>>())
        };
        assert_eq!(names(&["boot"]).expect("there are"), ["boot-own", "boot-stock"]);
        assert_eq!(names(&[]).expect("there are").len(), ALL.len());
        assert!(names(&["nothing-like-it"]).is_err());
    }

    #[test]
    fn no_two_tests_share_a_name() {
        let mut names: Vec<_> = ALL.iter().map(|test| test.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), ALL.len());
    }
}
