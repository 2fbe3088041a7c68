//! What has to hold before a reboot that takes files along, decided from facts alone.
//!
//! Invariants: no I/O; a check that cannot be decided is [`Verdict::Unknown`], never a pass; whatever
//! does not pass says what to do.

use luo::State;
use luo::protocol::Status;
use serde::Serialize;

use crate::kexec::cmdline;
use crate::kexec::note::Note;

/// What takes the files to the next kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Far {
    /// The kernel's own orchestrator.
    Liveupdate,
    /// luod's arena.
    Arena,
}

impl Far {
    /// As requests name it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Liveupdate => "liveupdate",
            Self::Arena => "arena",
        }
    }

    /// The better one of those that luod has, or the one that was asked for.
    pub(crate) fn choose(asked: Option<Self>, status: &Status) -> Self {
        let has = |far: Self| status.carriers.iter().any(|name| name == far.name());
        asked.unwrap_or(if has(Self::Liveupdate) { Self::Liveupdate } else { Self::Arena })
    }
}

/// How a check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Verdict {
    Pass,
    Fail,
    /// It cannot be told.
    Unknown,
}

/// One thing that has to hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Check {
    pub(crate) name: &'static str,
    pub(crate) verdict: Verdict,
    pub(crate) why: String,
    /// What to do where it does not pass.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) next: Option<String>,
}

impl Check {
    pub(crate) fn pass(name: &'static str, why: impl Into<String>) -> Self {
        Self { name, verdict: Verdict::Pass, why: why.into(), next: None }
    }

    pub(crate) fn fail(
        name: &'static str,
        why: impl Into<String>,
        next: impl Into<String>,
    ) -> Self {
        Self { name, verdict: Verdict::Fail, why: why.into(), next: Some(next.into()) }
    }

    pub(crate) fn unknown(
        name: &'static str,
        why: impl Into<String>,
        next: impl Into<String>,
    ) -> Self {
        Self { name, verdict: Verdict::Unknown, why: why.into(), next: Some(next.into()) }
    }
}

/// The name of the check that luod makes: whether all of it goes through the carrier.
pub(crate) const REHEARSAL: &str = "rehearsal";

/// What the machine says of itself.
#[derive(Debug, Clone)]
pub(crate) struct Facts {
    /// Whether the caller may reboot.
    pub(crate) may_reboot: bool,
    /// Whether a kernel is loaded, or why that cannot be told.
    pub(crate) loaded: Result<bool, String>,
    /// What was loaded, where it was noted.
    pub(crate) note: Result<Option<Note>, String>,
    /// The running kernel's command line.
    pub(crate) running_line: String,
    /// `/dev/liveupdate` is there.
    pub(crate) has_liveupdate: bool,
    /// The arena lies on persistent memory.
    pub(crate) arena_on_pmem: bool,
    pub(crate) status: Status,
}

/// Everything that can be said without trying. In the order in which it is best mended.
pub(crate) fn checks(far: Far, facts: &Facts) -> Vec<Check> {
    let mut checks = vec![right(facts), state(facts), carrier(far, facts), loaded(facts)];
    if facts.loaded == Ok(true) {
        match &facts.note {
            Ok(Some(note)) => {
                checks.push(Check::pass("known kernel", described(note)));
                checks.push(support(far, facts, note));
                match far {
                    Far::Liveupdate => checks.push(switches(note)),
                    Far::Arena if facts.arena_on_pmem => checks.push(same_memory(facts, note)),
                    Far::Arena => {}
                }
            }
            Ok(None) => checks.push(Check::unknown(
                "known kernel",
                "a kernel is loaded, and what it is was not noted: something else has loaded it",
                "load it with `luoctl kexec load`",
            )),
            Err(reason) => checks.push(Check::unknown(
                "known kernel",
                format!("the note of what was loaded cannot be read: {reason}"),
                "load it again with `luoctl kexec load`",
            )),
        }
    }
    checks.push(participants(facts));
    checks
}

fn described(note: &Note) -> String {
    match &note.release {
        Some(release) => format!("{}, release {release}", note.kernel.display()),
        None => note.kernel.display().to_string(),
    }
}

fn right(facts: &Facts) -> Check {
    const NAME: &str = "right";
    if facts.may_reboot {
        return Check::pass(NAME, "the caller may start another kernel (CAP_SYS_BOOT)");
    }
    Check::fail(NAME, "the caller lacks CAP_SYS_BOOT", "run it as root")
}

fn state(facts: &Facts) -> Check {
    const NAME: &str = "state";
    let state = facts.status.state;
    if let Some(event) = &facts.status.transition {
        return Check::fail(NAME, format!("{event} is under way"), "wait for its end");
    }
    match state {
        State::Normal => Check::pass(NAME, "no update is under way"),
        State::Updated => Check::fail(
            NAME,
            "the last update is not finished",
            "let the services retrieve what is theirs, then `luoctl finish`",
        ),
        State::Prepared | State::Frozen => Check::fail(
            NAME,
            format!("somebody's update is {}", state.name()),
            "go on with it, or `luoctl cancel`",
        ),
    }
}

fn carrier(far: Far, facts: &Facts) -> Check {
    const NAME: &str = "carrier";
    let has = facts.status.carriers.iter().any(|name| name == far.name());
    match (far, has) {
        (Far::Arena, true) => {
            let arena = facts.status.arena.as_deref().unwrap_or("of its configuration");
            Check::pass(NAME, format!("luod has the arena {arena}"))
        }
        (Far::Arena, false) => Check::fail(
            NAME,
            "luod has no arena",
            "make one with `luoctl arena create`, and name it in luod's configuration",
        ),
        (Far::Liveupdate, true) if facts.has_liveupdate => {
            Check::pass(NAME, "luod has /dev/liveupdate")
        }
        (Far::Liveupdate, true) => Check::fail(
            NAME,
            "luod knows the kernel's orchestrator, and /dev/liveupdate is not there",
            "boot with `kho=on liveupdate=on`, or use --carrier arena",
        ),
        (Far::Liveupdate, false) => Check::fail(
            NAME,
            "this luod does not use /dev/liveupdate",
            "boot a kernel with CONFIG_LIVEUPDATE and `kho=on liveupdate=on`, or use --carrier arena",
        ),
    }
}

fn loaded(facts: &Facts) -> Check {
    const NAME: &str = "next kernel";
    const NEXT: &str = "luoctl kexec load KERNEL --initrd INITRD --reuse-cmdline";
    match &facts.loaded {
        Ok(true) => Check::pass(NAME, "a kernel is loaded"),
        Ok(false) => Check::fail(NAME, "no kernel is loaded", NEXT),
        Err(reason) => Check::fail(
            NAME,
            format!("the running kernel does not say whether one is loaded: {reason}"),
            "boot a kernel with CONFIG_KEXEC_FILE",
        ),
    }
}

/// Whether the next kernel was built with what takes the handover up.
fn support(far: Far, facts: &Facts, note: &Note) -> Check {
    const NAME: &str = "support";
    let needed: &[&str] = match far {
        Far::Liveupdate => {
            &["CONFIG_KEXEC_HANDOVER", "CONFIG_LIVEUPDATE", "CONFIG_LIVEUPDATE_MEMFD"]
        }
        Far::Arena if !facts.arena_on_pmem => {
            return Check::pass(NAME, "an arena that is a file asks for nothing of a kernel");
        }
        Far::Arena if cmdline::persistent_memory(&facts.running_line).is_empty() => {
            &["CONFIG_BLK_DEV_PMEM"]
        }
        Far::Arena => &["CONFIG_BLK_DEV_PMEM", "CONFIG_X86_PMEM_LEGACY"],
    };
    let Some(built) = &note.built else {
        let reason = note.unknown.as_deref().unwrap_or("it was not looked for");
        return Check::unknown(
            NAME,
            format!("what the next kernel was built with is not known: {reason}"),
            format!("put its configuration into /boot; it needs {}", needed.join(", ")),
        );
    };
    let missing: Vec<&str> = needed.iter().copied().filter(|option| !built.has(option)).collect();
    if !missing.is_empty() {
        return Check::fail(
            NAME,
            format!("the next kernel is built without {} ({})", missing.join(", "), built.source),
            match far {
                Far::Liveupdate => "load a kernel that has it, or use --carrier arena",
                Far::Arena => "load a kernel that has it",
            },
        );
    }
    let modules: Vec<&str> =
        needed.iter().copied().filter(|option| built.is_module(option)).collect();
    let mut why = format!("the next kernel has what it needs ({})", built.source);
    if !modules.is_empty() {
        why.push_str("; as modules, which have to be loaded before luod starts: ");
        why.push_str(&modules.join(", "));
    }
    Check::pass(NAME, why)
}

/// Whether the next kernel's command line turns the handover on.
fn switches(note: &Note) -> Check {
    const NAME: &str = "switches";
    let by_default =
        note.built.as_ref().map(|built| built.has("CONFIG_KEXEC_HANDOVER_ENABLE_DEFAULT"));
    let kho = cmdline::switch(&note.command_line, "kho");
    let liveupdate = cmdline::switch(&note.command_line, "liveupdate");
    let next = "load it again with --append 'kho=on liveupdate=on'";
    if liveupdate != Some(true) {
        let why = "`liveupdate=on` is not in the next kernel's command line";
        return Check::fail(NAME, why, next);
    }
    match (kho, by_default) {
        (Some(true), _) => {
            Check::pass(NAME, "`kho=on liveupdate=on` is in the next kernel's command line")
        }
        (None, Some(true)) => {
            Check::pass(NAME, "`liveupdate=on` is given, and KHO is on by default")
        }
        (None, None) => Check::unknown(
            NAME,
            "`kho=on` is not in the next kernel's command line, and whether it is the default is \
             not known",
            next,
        ),
        (Some(false), _) | (None, Some(false)) => {
            Check::fail(NAME, "KHO is off in the next kernel", next)
        }
    }
}

/// Whether persistent memory lies where it lay.
fn same_memory(facts: &Facts, note: &Note) -> Check {
    const NAME: &str = "persistent memory";
    let here = cmdline::persistent_memory(&facts.running_line);
    let there = cmdline::persistent_memory(&note.command_line);
    let list = |regions: &[&str]| match regions {
        [] => "none".to_owned(),
        regions => format!("memmap={}", regions.join(",")),
    };
    if here != there {
        return Check::fail(
            NAME,
            format!(
                "the arena's memory is reserved differently: here {}, in the next kernel {}",
                list(&here),
                list(&there)
            ),
            "load it again with --reuse-cmdline, or the same memmap= in --append",
        );
    }
    match here.is_empty() {
        true => Check::pass(NAME, "it is the firmware's, which both kernels find"),
        false => Check::pass(NAME, format!("both kernels have {}", list(&here))),
    }
}

fn participants(facts: &Facts) -> Check {
    let names: Vec<&str> = facts
        .status
        .subsystems
        .iter()
        .filter(|subsystem| subsystem.participant)
        .map(|subsystem| subsystem.name.as_str())
        .collect();
    match names.is_empty() {
        true => Check::pass("participants", "none: nobody has to agree"),
        false => Check::pass("participants", format!("{} take part", names.join(", "))),
    }
}

/// Whether it may go on: nothing has failed, and what is unknown is accepted.
pub(crate) fn may_go_on(checks: &[Check], accept_unknown: bool) -> bool {
    checks.iter().all(|check| match check.verdict {
        Verdict::Pass => true,
        Verdict::Fail => false,
        Verdict::Unknown => accept_unknown,
    })
}
