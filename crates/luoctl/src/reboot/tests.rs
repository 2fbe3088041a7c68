//! The checks, each with facts of its own.

use std::collections::BTreeMap;

use luo::State;
use luo::protocol::{Limits, SubsystemInfo};

use super::preflight::Facts;
use super::*;
use crate::kexec::config::Built;
use crate::kexec::note::{Loaded, Note};

fn status() -> Status {
    Status {
        version: "0.1.0".into(),
        pid: 1,
        incarnation: 1,
        keeper: "builtin".into(),
        carrier: "keeper".into(),
        carriers: vec!["keeper".into(), "arena".into()],
        reach: "agent".into(),
        through: None,
        arena: Some("/dev/pmem0".into()),
        arena_failure: None,
        arena_room: None,
        state: State::Normal,
        transition: None,
        liveupdate_number: 0,
        measured: None,
        sessions: 0,
        files: 0,
        pinned: 0,
        unclaimed: 0,
        unclaimed_pinned: 0,
        subsystems: Vec::new(),
        limits: Limits { sessions: 1, files: 1, bytes: 1 },
    }
}

fn note(command_line: &str, built: Result<&[(&str, &str)], &str>) -> Note {
    Note::new(Loaded {
        kernel: "/boot/vmlinuz".into(),
        checksum: 1,
        initrd: None,
        command_line: command_line.into(),
        release: None,
        built: built.map_err(str::to_owned).map(|options| Built {
            source: "/boot/config".into(),
            options: options
                .iter()
                .map(|(k, v)| ((*k).into(), (*v).into()))
                .collect::<BTreeMap<_, _>>(),
        }),
    })
    .unwrap()
}

const PMEM: [(&str, &str); 2] = [("CONFIG_BLK_DEV_PMEM", "m"), ("CONFIG_X86_PMEM_LEGACY", "y")];
const KHO: [(&str, &str); 3] =
    [("CONFIG_KEXEC_HANDOVER", "y"), ("CONFIG_LIVEUPDATE", "y"), ("CONFIG_LIVEUPDATE_MEMFD", "y")];

/// A machine whose arena is on persistent memory, and everything is as it should be.
fn facts() -> Facts {
    Facts {
        may_reboot: true,
        loaded: Ok(true),
        note: Ok(Some(note("ro memmap=1G!4G", Ok(&PMEM)))),
        running_line: "BOOT_IMAGE=/vmlinuz ro memmap=1G!4G".into(),
        has_liveupdate: true,
        arena_on_pmem: true,
        status: status(),
    }
}

fn with_liveupdate(command_line: &str) -> Facts {
    let mut facts = facts();
    facts.status.carriers.push("liveupdate".into());
    facts.note = Ok(Some(note(command_line, Ok(&KHO))));
    facts
}

#[track_caller]
fn only(far: Far, facts: &Facts, name: &str, verdict: Verdict) -> String {
    let checks = preflight::checks(far, facts);
    let bad: Vec<_> = checks.iter().filter(|check| check.verdict != Verdict::Pass).collect();
    let [check] = bad.as_slice() else { panic!("{bad:?}") };
    assert_eq!((check.name, check.verdict), (name, verdict), "{check:?}");
    assert!(check.next.is_some());
    let accepted = preflight::may_go_on(&checks, true);
    assert_eq!(accepted, verdict == Verdict::Unknown);
    assert!(!preflight::may_go_on(&checks, false));
    check.why.clone()
}

#[track_caller]
fn all_pass(far: Far, facts: &Facts) {
    let checks = preflight::checks(far, facts);
    assert!(preflight::may_go_on(&checks, false), "{checks:?}");
}

#[test]
fn where_everything_is_as_it_should_be_every_check_passes() {
    all_pass(Far::Arena, &facts());
    all_pass(Far::Liveupdate, &with_liveupdate("kho=on liveupdate=on"));
    // An arena that is a file asks for nothing of the next kernel, known or not.
    let mut file = facts();
    file.arena_on_pmem = false;
    file.note = Ok(Some(note("ro", Err("not found"))));
    all_pass(Far::Arena, &file);
}

#[test]
fn each_thing_that_is_missing_is_the_one_that_is_named() {
    let arena = |change: fn(&mut Facts), name: &str, verdict| {
        let mut facts = facts();
        change(&mut facts);
        only(Far::Arena, &facts, name, verdict)
    };
    arena(|f| f.may_reboot = false, "right", Verdict::Fail);
    arena(|f| f.status.state = State::Updated, "state", Verdict::Fail);
    arena(|f| f.status.state = State::Frozen, "state", Verdict::Fail);
    arena(|f| f.status.transition = Some("prepare".into()), "state", Verdict::Fail);
    arena(|f| f.status.carriers.truncate(1), "carrier", Verdict::Fail);
    arena(|f| f.loaded = Ok(false), "next kernel", Verdict::Fail);
    arena(|f| f.loaded = Err("ENOENT".into()), "next kernel", Verdict::Fail);
    arena(|f| f.note = Ok(None), "known kernel", Verdict::Unknown);
    arena(|f| f.note = Err("EOF".into()), "known kernel", Verdict::Unknown);
    arena(
        |f| f.note = Ok(Some(note("memmap=1G!4G", Err("no /boot")))),
        "support",
        Verdict::Unknown,
    );
    let why = arena(
        |f| f.note = Ok(Some(note("memmap=1G!4G", Ok(&PMEM[..1])))),
        "support",
        Verdict::Fail,
    );
    assert!(why.contains("CONFIG_X86_PMEM_LEGACY") && !why.contains("BLK_DEV_PMEM"), "{why}");
    let why = arena(
        |f| f.note = Ok(Some(note("memmap=1G!8G", Ok(&PMEM)))),
        "persistent memory",
        Verdict::Fail,
    );
    assert!(why.contains("1G!4G") && why.contains("1G!8G"), "{why}");
    arena(|f| f.note = Ok(Some(note("ro", Ok(&PMEM)))), "persistent memory", Verdict::Fail);
}

#[test]
fn a_next_kernel_without_its_switches_would_lose_everything() {
    for line in ["", "kho=on", "kho=on liveupdate=off", "kho=off liveupdate=on", "liveupdate=on"] {
        only(Far::Liveupdate, &with_liveupdate(line), "switches", Verdict::Fail);
    }
    let mut unknown = with_liveupdate("");
    unknown.note = Ok(Some(note("liveupdate=on", Err("not found"))));
    let checks = preflight::checks(Far::Liveupdate, &unknown);
    let switches = checks.iter().find(|check| check.name == "switches").unwrap();
    assert_eq!(switches.verdict, Verdict::Unknown);
    let built = [&KHO[..], &[("CONFIG_KEXEC_HANDOVER_ENABLE_DEFAULT", "y")]].concat();
    let mut by_default = with_liveupdate("");
    by_default.note = Ok(Some(note("liveupdate=on", Ok(&built))));
    all_pass(Far::Liveupdate, &by_default);
    let mut without = with_liveupdate("");
    without.note = Ok(Some(note("kho=on liveupdate=on", Ok(&KHO[..1]))));
    only(Far::Liveupdate, &without, "support", Verdict::Fail);
}

#[test]
fn the_kernels_own_orchestrator_is_preferred_and_what_was_asked_for_is_taken() {
    assert_eq!(Far::choose(None, &status()), Far::Arena);
    let both = with_liveupdate("").status;
    assert_eq!(Far::choose(None, &both), Far::Liveupdate);
    assert_eq!(Far::choose(Some(Far::Arena), &both), Far::Arena);
    assert_eq!(Far::choose(Some(Far::Liveupdate), &status()), Far::Liveupdate);
}

#[test]
fn participants_are_named() {
    let mut facts = facts();
    facts.status.subsystems.push(SubsystemInfo {
        name: "db".into(),
        participant: true,
        required: true,
        phase: "normal".into(),
    });
    let checks = preflight::checks(Far::Arena, &facts);
    assert!(checks.last().unwrap().why.contains("db"));
}

#[test]
fn every_end_says_what_is_left_and_what_to_do() {
    for left in [
        Left::Undone,
        Left::Cancelled,
        Left::Stuck("x".into()),
        Left::Arrived,
        Left::Revived,
        Left::Gone("x".into()),
    ] {
        for why in [Why::Interrupted, Why::Failed(stop("no".into()))] {
            let (step, left) = (
                Step::Freeze,
                match &left {
                    Left::Undone => Left::Undone,
                    Left::Cancelled => Left::Cancelled,
                    Left::Stuck(why) => Left::Stuck(why.clone()),
                    Left::Arrived => Left::Arrived,
                    Left::Revived => Left::Revived,
                    Left::Gone(why) => Left::Gone(why.clone()),
                },
            );
            let text = told_of(Stopped { step, why, left }, Far::Arena).to_string();
            assert!(text.contains("freeze") && text.contains("; "), "{text}");
        }
    }
}
