//! Which stages an event consists of, and which undo it.
//!
//! ```text
//! prepare   files: shared states, files                      │ each subsystem, in order
//! freeze    each participant, in order │ files: files, shared states, the files' tree
//!           │ each other subsystem, in order
//! cancel    each other subsystem, in reverse │ the files' tree, files in reverse, shared states
//!           │ each participant, in reverse
//! depart    the handover
//! arrive    the handover │ the files' tree │ each subsystem, in order
//! finish    see `finish`
//! ```
//!
//! Invariants: neighbouring concurrent subsystems share a stage, every other one has its own;
//! `files` comes first, and last in reverse; what is to be last comes behind all others. Only
//! participants (remote subsystems) are frozen before files, and cancelled after them: who uses a
//! file stands still before it is frozen, and goes on when it is alive again.

use alloc::{collections::VecDeque, vec, vec::Vec};

use crate::{
    Event, File, Orchestrator, Scope, State, TransitionId,
    cycle::{FileStep, HandoverStep, SharedStage, Stage, SubStep, TreeStep, Undo},
    subsystems::{Sub, SubId, SubKind},
};

impl<F: File> Orchestrator<F> {
    /// The stages of an event.
    pub(crate) fn plan(&self, scope: Scope, event: Event) -> VecDeque<Stage> {
        let machine = scope == Scope::Machine;
        let prepare = [
            Stage::Shared(SharedStage::Prepare),
            Stage::Files(FileStep::Prepare),
            Stage::Together(FileStep::Prepare),
            Stage::CancelLeftOut,
            Stage::Shared(SharedStage::Drop),
        ];
        let freeze = |force| {
            [
                Stage::Files(FileStep::Freeze),
                Stage::Together(FileStep::Freeze),
                Stage::CancelLeftOut,
                Stage::Shared(SharedStage::Freeze { force }),
                Stage::Shared(SharedStage::Drop),
            ]
        };
        let mut stages = VecDeque::new();
        match event {
            Event::Prepare => {
                stages.extend(prepare);
                if machine {
                    self.plan_subsystems(&mut stages, SubStep::Prepare);
                }
            }
            Event::Freeze => {
                if machine {
                    self.plan_groups(&mut stages, SubStep::Freeze, Self::is_remote);
                }
                stages.extend(freeze(machine));
                if machine {
                    stages.push_back(Stage::Tree(TreeStep::Keep));
                    self.plan_groups(&mut stages, SubStep::Freeze, |sub| !Self::is_remote(sub));
                }
            }
            Event::Depart if machine => {
                stages.push_back(Stage::Handover(HandoverStep::Commit));
            }
            Event::Depart => {
                stages.extend(prepare);
                stages.extend(freeze(true));
            }
            Event::Arrive if machine => stages.push_back(Stage::Handover(HandoverStep::Find)),
            Event::Arrive => {
                stages.push_back(Stage::Shared(SharedStage::Freeze { force: true }));
            }
            Event::Cancel => stages = self.undo_stages(scope, Undo::All),
            Event::Finish => {}
        }
        stages
    }

    /// The stages after the handover was found.
    pub(crate) fn plan_boot(&self) -> VecDeque<Stage> {
        let mut stages = VecDeque::from([Stage::Tree(TreeStep::Read)]);
        self.plan_subsystems(&mut stages, SubStep::Boot);
        stages
    }

    /// One stage for each run of concurrent neighbours, one for each other subsystem.
    pub(crate) fn plan_subsystems(&self, stages: &mut VecDeque<Stage>, step: SubStep) {
        self.plan_groups(stages, step, |_| true);
    }

    fn is_remote(sub: &Sub<F>) -> bool {
        matches!(sub.kind, SubKind::Remote | SubKind::Awaited)
    }

    /// The same of some of them.
    fn plan_groups(
        &self,
        stages: &mut VecDeque<Stage>,
        step: SubStep,
        which: impl Fn(&Sub<F>) -> bool,
    ) {
        for group in self.subsystem_groups(which) {
            stages.push_back(Stage::Subsystems(group, step));
            if step == SubStep::Freeze {
                stages.push_back(Stage::CancelLeftOut);
            }
        }
    }

    fn subsystem_groups(&self, which: impl Fn(&Sub<F>) -> bool) -> Vec<Vec<SubId>> {
        let mut groups: Vec<Vec<SubId>> = Vec::new();
        let mut open = false;
        let of = |last| self.subsystems.iter().filter(move |sub| sub.options.last == last);
        let all = of(false).chain(of(true));
        for sub in all.filter(|sub| !matches!(sub.kind, SubKind::Files) && which(sub)) {
            match groups.last_mut() {
                Some(group) if open && sub.options.concurrent => group.push(sub.id),
                _ => groups.push(vec![sub.id]),
            }
            open = sub.options.concurrent;
        }
        groups
    }

    /// The stages that undo a transition that has failed.
    pub(crate) fn plan_undo(&self, id: TransitionId) -> VecDeque<Stage> {
        let Some(transition) = self.cycle.transitions.get(&id) else { return VecDeque::new() };
        let scope = transition.scope;
        let all = transition.undo_all;
        let undo = if all { Undo::All } else { Undo::Level(transition.level()) };
        match (transition.event, scope) {
            (Event::Prepare | Event::Freeze, _)
            | (Event::Depart | Event::Arrive, Scope::Session(_)) => self.undo_stages(scope, undo),
            (Event::Depart, _) if all => self.undo_stages(scope, Undo::All),
            // A failed depart leaves everything frozen; a failed arrive or finish did nothing.
            _ => VecDeque::new(),
        }
    }

    /// The stages that cancel what is prepared or frozen, in reverse order.
    pub(crate) fn undo_stages(&self, scope: Scope, undo: Undo) -> VecDeque<Stage> {
        let mut stages = VecDeque::new();
        if scope == Scope::Machine {
            if self.departed {
                stages.push_back(Stage::Handover(HandoverStep::Revoke));
            }
            self.plan_undo_groups(&mut stages, |sub| !Self::is_remote(sub));
            stages.push_back(Stage::Tree(TreeStep::Forget));
        }
        stages.push_back(Stage::CancelFiles(undo));
        stages.push_back(Stage::Shared(SharedStage::Drop));
        if scope == Scope::Machine {
            self.plan_undo_groups(&mut stages, Self::is_remote);
        }
        stages
    }

    fn plan_undo_groups(&self, stages: &mut VecDeque<Stage>, which: impl Fn(&Sub<F>) -> bool) {
        for mut group in self.subsystem_groups(which).into_iter().rev() {
            group.reverse();
            stages.push_back(Stage::Subsystems(group, SubStep::Cancel));
        }
    }

    /// Whether a subsystem takes part in a step.
    pub(crate) fn takes_part(state: State, step: SubStep, has_boot_data: bool) -> bool {
        match step {
            SubStep::Prepare => state == State::Normal,
            SubStep::Freeze => state == State::Prepared,
            SubStep::Cancel => matches!(state, State::Prepared | State::Frozen),
            SubStep::Boot => state == State::Normal && has_boot_data,
            SubStep::Finish => state == State::Updated,
        }
    }
}
