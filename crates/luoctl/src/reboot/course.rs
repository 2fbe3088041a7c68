//! The order of a reboot that takes files along, and what is undone where a step fails.
//!
//! ```text
//!             prepare        freeze         depart          restart
//!  (running) ────────▶ kept ────────▶ frozen ──────▶ departed ──────▶ (the next kernel)
//!      ▲                │ failed       │ failed         │ failed
//!      └──── cancel ────┴── cancel ────┴─ cancel        └─▶ luod is started again, and arrives here
//! ```
//!
//! Invariants: no I/O but through [`Machine`]; after a failure luod is asked where it stands, and what
//! is not `normal` is cancelled, whatever the failure said; a luod that is not there any more is
//! started again, and arrives with what it has committed; `restart` comes last and after `sync`.

use luo::State;
use luo::protocol::Report;

use super::preflight::Far;

/// A step of the course.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Step {
    Prepare,
    Freeze,
    Depart,
    Restart,
}

impl Step {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Prepare => "prepare",
            Self::Freeze => "freeze",
            Self::Depart => "depart",
            Self::Restart => "restart",
        }
    }
}

/// Where luod stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    /// In this state, with nothing under way.
    At(State),
    /// Something is under way.
    Moving,
}

/// What the course is run on. An error is a sentence.
pub(crate) trait Machine {
    /// Why a step failed.
    type Error: std::fmt::Display;
    /// Whether somebody wants it stopped.
    fn interrupted(&self) -> bool;
    /// luod's `prepare` through a carrier.
    fn prepare(&mut self, far: Far) -> Result<Option<Report>, Self::Error>;
    /// luod's `freeze`.
    fn freeze(&mut self) -> Result<Option<Report>, Self::Error>;
    /// luod's `depart`.
    fn depart(&mut self) -> Result<Option<Report>, Self::Error>;
    /// luod's `cancel`.
    fn cancel(&mut self) -> Result<(), Self::Error>;
    /// Where luod stands.
    fn standing(&mut self) -> Result<Standing, Self::Error>;
    /// Writes out what is in file systems' caches.
    fn sync(&mut self);
    /// Starts the next kernel, or has it started. Comes back with `Ok` where that goes on by itself.
    fn restart(&mut self) -> Result<(), Self::Error>;
    /// Waits until a luod that has departed has gone, has one started in this system, and waits
    /// until it answers; gives its state.
    fn revive(&mut self) -> Result<State, Self::Error>;
    /// A step begins.
    fn begins(&mut self, step: Step);
}

/// Why the course was left.
#[derive(Debug)]
pub(crate) enum Why<E> {
    /// A step failed.
    Failed(E),
    /// Somebody wanted it stopped.
    Interrupted,
}

/// What is left after the course was left.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Left {
    /// luod has undone it by itself.
    Undone,
    /// It was cancelled.
    Cancelled,
    /// It could not be cancelled, for this reason.
    Stuck(String),
    /// luod has departed, and was started again: it has arrived in this system.
    Arrived,
    /// luod had gone, was started again, and had nothing to take up.
    Revived,
    /// luod has gone, and could not be started again, for this reason.
    Gone(String),
}

/// The course was left before the next kernel began.
#[derive(Debug)]
pub(crate) struct Stopped<E> {
    pub(crate) step: Step,
    pub(crate) why: Why<E>,
    pub(crate) left: Left,
}

/// What was done before the next kernel begins.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Done {
    pub(crate) prepare: Option<Report>,
    pub(crate) freeze: Option<Report>,
    pub(crate) depart: Option<Report>,
}

/// Runs the course.
pub(crate) fn run<M: Machine>(machine: &mut M, far: Far) -> Result<Done, Stopped<M::Error>> {
    let prepare = step(machine, Step::Prepare, |machine| machine.prepare(far))?;
    let freeze = step(machine, Step::Freeze, M::freeze)?;
    let depart = step(machine, Step::Depart, M::depart)?;
    // From here on nobody is asked whether to stop: luod has gone.
    machine.begins(Step::Restart);
    machine.sync();
    match machine.restart() {
        Ok(()) => Ok(Done { prepare, freeze, depart }),
        Err(error) => {
            let left = revive(machine);
            Err(Stopped { step: Step::Restart, why: Why::Failed(error), left })
        }
    }
}

/// Has luod back where it may have gone, and takes back what it may still have frozen.
fn revive<M: Machine>(machine: &mut M) -> Left {
    match machine.revive() {
        Ok(State::Updated) => Left::Arrived,
        Ok(State::Normal) => Left::Revived,
        Ok(State::Prepared | State::Frozen) => cancel(machine),
        Err(error) => Left::Gone(error.to_string()),
    }
}

fn cancel<M: Machine>(machine: &mut M) -> Left {
    match machine.cancel() {
        Ok(()) => Left::Cancelled,
        Err(error) => Left::Stuck(error.to_string()),
    }
}

fn step<M: Machine>(
    machine: &mut M,
    step: Step,
    run: impl FnOnce(&mut M) -> Result<Option<Report>, M::Error>,
) -> Result<Option<Report>, Stopped<M::Error>> {
    let why = if machine.interrupted() {
        Why::Interrupted
    } else {
        machine.begins(step);
        match run(machine) {
            Ok(report) => return Ok(report),
            Err(_) if machine.interrupted() => Why::Interrupted,
            Err(error) => Why::Failed(error),
        }
    };
    Err(Stopped { step, why, left: undo(machine) })
}

/// Brings luod back to where it was, wherever it stands.
fn undo<M: Machine>(machine: &mut M) -> Left {
    match machine.standing() {
        Ok(Standing::At(State::Normal)) => Left::Undone,
        Ok(_) => cancel(machine),
        // It has died, or departed although its answer was lost.
        Err(_) => revive(machine),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine on which one step fails, and how luod stands then.
    #[derive(Debug)]
    struct Double {
        fails: Option<Step>,
        interrupted_at: Option<Step>,
        /// luod undoes a failed step by itself.
        undoes: bool,
        cancel_fails: bool,
        /// luod goes with the failed step.
        dies: bool,
        revives: Result<State, &'static str>,
        state: State,
        now: Option<Step>,
        calls: Vec<&'static str>,
    }

    impl Double {
        fn new() -> Self {
            Self {
                fails: None,
                interrupted_at: None,
                undoes: true,
                cancel_fails: false,
                dies: false,
                revives: Ok(State::Updated),
                state: State::Normal,
                now: None,
                calls: Vec::new(),
            }
        }

        fn failing(step: Step) -> Self {
            Self { fails: Some(step), ..Self::new() }
        }

        fn reach(&mut self, step: Step, state: State) -> Result<Option<Report>, String> {
            self.calls.push(step.name());
            if self.fails == Some(step) {
                if self.undoes {
                    self.state = State::Normal;
                }
                return Err(format!("no {}", step.name()));
            }
            self.state = state;
            Ok(None)
        }
    }

    impl Machine for Double {
        type Error = String;

        fn interrupted(&self) -> bool {
            self.interrupted_at.is_some() && self.interrupted_at == self.now
        }

        fn prepare(&mut self, _: Far) -> Result<Option<Report>, String> {
            self.reach(Step::Prepare, State::Prepared)
        }

        fn freeze(&mut self) -> Result<Option<Report>, String> {
            self.reach(Step::Freeze, State::Frozen)
        }

        fn depart(&mut self) -> Result<Option<Report>, String> {
            self.reach(Step::Depart, State::Frozen)
        }

        fn cancel(&mut self) -> Result<(), String> {
            self.calls.push("cancel");
            if self.cancel_fails {
                return Err("stuck".into());
            }
            self.state = State::Normal;
            Ok(())
        }

        fn standing(&mut self) -> Result<Standing, String> {
            if self.dies { Err("nobody answers".into()) } else { Ok(Standing::At(self.state)) }
        }

        fn sync(&mut self) {
            self.calls.push("sync");
        }

        fn restart(&mut self) -> Result<(), String> {
            self.reach(Step::Restart, State::Frozen).map(drop)
        }

        fn revive(&mut self) -> Result<State, String> {
            self.calls.push("revive");
            self.revives.map_err(str::to_owned)
        }

        fn begins(&mut self, step: Step) {
            self.now = Some(step);
        }
    }

    fn stop(double: &mut Double) -> Stopped<String> {
        run(double, Far::Arena).unwrap_err()
    }

    #[test]
    fn a_reboot_that_nothing_stops_goes_in_this_order() {
        let mut double = Double::new();
        run(&mut double, Far::Arena).unwrap();
        assert_eq!(double.calls, ["prepare", "freeze", "depart", "sync", "restart"]);
    }

    #[test]
    fn wherever_a_step_fails_before_the_departure_nothing_stays_prepared() {
        for (step, calls) in [
            (Step::Prepare, &["prepare"][..]),
            (Step::Freeze, &["prepare", "freeze"]),
            (Step::Depart, &["prepare", "freeze", "depart"]),
        ] {
            for undoes in [true, false] {
                let mut double = Double { undoes, ..Double::failing(step) };
                let stopped = stop(&mut double);
                assert_eq!(stopped.step, step);
                assert!(matches!(stopped.why, Why::Failed(ref why) if why.contains(step.name())));
                assert_eq!(double.state, State::Normal, "{step:?}");
                let cancelled = !undoes && step != Step::Prepare;
                let expected: Vec<&str> =
                    calls.iter().copied().chain(cancelled.then_some("cancel")).collect();
                assert_eq!(double.calls, expected, "{step:?}");
                assert_eq!(stopped.left, if cancelled { Left::Cancelled } else { Left::Undone });
            }
        }
    }

    #[test]
    fn what_cannot_be_cancelled_is_said_and_the_machine_is_not_restarted() {
        let mut double =
            Double { undoes: false, cancel_fails: true, ..Double::failing(Step::Depart) };
        assert_eq!(stop(&mut double).left, Left::Stuck("stuck".into()));
        assert!(!double.calls.contains(&"restart"));
    }

    #[test]
    fn a_restart_that_fails_has_luod_arrive_in_this_system() {
        for (revives, left) in [
            (Ok(State::Updated), Left::Arrived),
            (Ok(State::Normal), Left::Revived),
            (Err("no systemd"), Left::Gone("no systemd".into())),
        ] {
            let mut double = Double { revives, ..Double::failing(Step::Restart) };
            let stopped = stop(&mut double);
            assert_eq!((stopped.step, stopped.left), (Step::Restart, left));
            assert_eq!(double.calls.last(), Some(&"revive"));
            assert!(!double.calls.contains(&"cancel"), "nobody is there to be told");
        }
    }

    #[test]
    fn a_luod_that_goes_with_a_step_is_started_again() {
        // Its answer was lost, and it has committed.
        let mut double = Double { dies: true, ..Double::failing(Step::Depart) };
        assert_eq!(stop(&mut double).left, Left::Arrived);
        for step in [Step::Prepare, Step::Freeze] {
            let revives = Ok(State::Normal);
            let mut double = Double { dies: true, revives, ..Double::failing(step) };
            assert_eq!(stop(&mut double).left, Left::Revived, "{step:?}");
        }
        // It was only away for a moment: what it has frozen is taken back.
        let mut double =
            Double { dies: true, revives: Ok(State::Frozen), ..Double::failing(Step::Depart) };
        assert_eq!(stop(&mut double).left, Left::Cancelled);
        assert_eq!(double.calls.last(), Some(&"cancel"));
    }

    #[test]
    fn an_interruption_is_heeded_until_luod_has_departed_and_not_after() {
        for step in [Step::Prepare, Step::Freeze] {
            // It comes while this step runs, and that step ends well.
            let mut double = Double { interrupted_at: Some(step), ..Double::new() };
            let stopped = stop(&mut double);
            assert!(matches!(stopped.why, Why::Interrupted));
            assert_eq!((double.state, stopped.left), (State::Normal, Left::Cancelled), "{step:?}");
        }
        for step in [Step::Depart, Step::Restart] {
            let mut double = Double { interrupted_at: Some(step), ..Double::new() };
            run(&mut double, Far::Arena).unwrap();
        }
    }
}
