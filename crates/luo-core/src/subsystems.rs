//! The subsystems, in registration order, and the data that arrived for them.
//!
//! Invariants:
//! - `files` is there from the start, first, and stays.
//! - What is between `prepare` and `cancel` or `finish` cannot be taken out, except that a
//!   participant that has gone is only waiting to be.

use alloc::{format, sync::Arc, vec::Vec};

use crate::{
    CallId, Errno, Error, File, Handle, Location, Notice, Orchestrator, Outcome, State, Subsystem,
    SubsystemInfo, SubsystemKind, SubsystemName, SubsystemOptions,
    cycle::{Job, SubStep, Unit},
};

/// The name of the subsystem that the files are.
pub(crate) const FILES: &str = "files";

/// Names a subsystem; ascending in registration order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct SubId(pub(crate) u32);

pub(crate) enum SubKind<F: File> {
    Files,
    Local(Arc<dyn Subsystem<F>>),
    Remote,
    /// Restored, and waits for whoever registers by its name. Called like a participant.
    Awaited,
}

pub(crate) struct Sub<F: File> {
    pub(crate) id: SubId,
    pub(crate) name: SubsystemName,
    pub(crate) kind: SubKind<F>,
    pub(crate) options: SubsystemOptions,
    /// `Normal`, `Prepared`, `Frozen` or `Updated`.
    pub(crate) state: State,
    pub(crate) data: u64,
    pub(crate) kept: Vec<Handle>,
    pub(crate) left_out: Option<Error>,
    pub(crate) gone: bool,
    pub(crate) call: Option<CallId>,
    /// As of a file: what a late call did is to be undone.
    pub(crate) doomed: bool,
}

impl<F: File> Sub<F> {
    pub(crate) fn remote(&self) -> bool {
        matches!(self.kind, SubKind::Remote | SubKind::Awaited)
    }

    pub(crate) fn location(&self) -> Location {
        Location { subsystem: Some(self.name.clone()), ..Location::default() }
    }
}

impl<F: File> Orchestrator<F> {
    pub(crate) fn sub(&mut self, id: SubId) -> Option<&mut Sub<F>> {
        self.subsystems.iter_mut().find(|sub| sub.id == id)
    }

    /// The subsystem that the files are; always there.
    pub(crate) fn files_sub(&mut self) -> Option<&mut Sub<F>> {
        self.subsystems.iter_mut().find(|sub| matches!(sub.kind, SubKind::Files))
    }

    pub(crate) fn add_sub(
        &mut self,
        name: SubsystemName,
        kind: SubKind<F>,
        options: SubsystemOptions,
    ) -> SubId {
        let id = SubId(self.next_sub);
        self.next_sub = self.next_sub.wrapping_add(1);
        self.subsystems.push(Sub {
            id,
            name,
            kind,
            options,
            state: State::Normal,
            data: 0,
            kept: Vec::new(),
            left_out: None,
            gone: false,
            call: None,
            doomed: false,
        });
        self.dirty.machine = true;
        id
    }

    /// Adds a subsystem; subsystems are called in this order. Where boot data has arrived for
    /// this name, a `boot` call follows ([`Notice::Booted`]). A participant of a restored record
    /// that registers again goes on where it was.
    ///
    /// # Errors
    /// EEXIST where the name is taken, EINVAL or ENAMETOOLONG where it is no such name, EBUSY
    /// outside `normal` and `updated` or in a transition.
    pub fn register_subsystem(
        &mut self,
        name: &str,
        kind: SubsystemKind<F>,
        options: SubsystemOptions,
    ) -> Result<(), Error> {
        let name = SubsystemName::new(name).map_err(Error::refused)?;
        let kind = match kind {
            SubsystemKind::Local(subsystem) => SubKind::Local(subsystem),
            SubsystemKind::Remote => SubKind::Remote,
        };
        if let Some(sub) = self.subsystems.iter_mut().find(|sub| sub.name == name) {
            if matches!(sub.kind, SubKind::Awaited) {
                sub.kind = kind;
                sub.options = options;
                sub.gone = false;
                self.dirty.machine = true;
                return Ok(());
            }
            let reason = format!("a subsystem named {name} is already registered");
            return Err(Error::new(Errno::Exist, reason));
        }
        self.machine_at_rest("register a subsystem")?;
        let boot = self.boot.get(&name).copied();
        let id = self.add_sub(name, kind, options);
        if let Some(data) = boot {
            self.queue_boot(id, data);
        }
        Ok(())
    }

    /// Gives a subsystem the data that arrived for it, outside any transition.
    pub(crate) fn queue_boot(&mut self, id: SubId, data: u64) {
        if let Some(sub) = self.sub(id) {
            sub.data = data;
        }
        self.start(Job { owner: None, unit: Unit::Subsystem(id, SubStep::Boot) });
    }

    /// Takes a subsystem out.
    ///
    /// # Errors
    /// ENOENT where there is none, EBUSY outside `normal` and `updated`, in a transition, while a
    /// call of it is in flight, and always for `files`.
    pub fn unregister_subsystem(&mut self, name: &str) -> Result<(), Error> {
        let at = self.find_sub(name)?;
        self.machine_at_rest("unregister a subsystem")?;
        let Some(sub) = self.subsystems.get(at) else { return Err(no_subsystem(name)) };
        if matches!(sub.kind, SubKind::Files) {
            return Err(Error::new(Errno::Busy, "files is part of the framework and stays"));
        }
        if sub.call.is_some() || sub.doomed {
            let reason = format!("a call of subsystem {name} has not returned");
            return Err(Error::new(Errno::Busy, reason).advise("try again when it has"));
        }
        self.remove_sub(at);
        Ok(())
    }

    fn remove_sub(&mut self, at: usize) -> Option<SubsystemName> {
        if at >= self.subsystems.len() {
            return None;
        }
        let sub = self.subsystems.remove(at);
        self.cycle.queue.retain(|job| {
            job.owner.is_some() || !matches!(job.unit, Unit::Subsystem(id, _) if id == sub.id)
        });
        self.dirty.machine = true;
        Some(sub.name)
    }

    /// The participant is gone, in whatever state. Its pending calls fail with ENOTCONN (do not
    /// complete them), and it is taken out as soon as that can be ([`Notice::Removed`]).
    ///
    /// # Errors
    /// ENOENT where there is no participant of that name.
    pub fn subsystem_gone(&mut self, name: &str) -> Result<(), Error> {
        let at = self.find_sub(name)?;
        let Some(sub) = self.subsystems.get_mut(at).filter(|sub| sub.remote()) else {
            let reason = format!("subsystem {name} is not a participant");
            return Err(Error::new(Errno::NoEnt, reason));
        };
        sub.gone = true;
        if let Some(call) = sub.call {
            let outcome = Outcome::failed(gone_failure(&sub.name));
            // The call is in flight: it was given out and nobody has completed it.
            self.complete(call, outcome)?;
        }
        self.remove_gone();
        self.pump();
        Ok(())
    }

    /// Takes out participants that have gone, where the machine is at rest.
    pub(crate) fn remove_gone(&mut self) {
        if !self.subsystems.iter().any(|sub| sub.gone) || self.machine_at_rest("").is_err() {
            return;
        }
        while let Some(at) = self.subsystems.iter().position(|sub| sub.gone && sub.call.is_none()) {
            if let Some(name) = self.remove_sub(at) {
                self.notices.push_back(Notice::Removed(name));
            }
        }
    }

    fn find_sub(&self, name: &str) -> Result<usize, Error> {
        self.subsystems.iter().position(|sub| &*sub.name == name).ok_or_else(|| no_subsystem(name))
    }

    /// The subsystems, in registration order.
    pub fn subsystems(&self) -> impl Iterator<Item = SubsystemInfo> + '_ {
        self.subsystems.iter().map(|sub| SubsystemInfo {
            name: sub.name.clone(),
            options: sub.options,
            remote: sub.remote(),
            state: sub.state,
            data: (sub.state != State::Normal).then_some(sub.data),
            left_out: sub.left_out.clone(),
            gone: sub.gone,
        })
    }

    /// Data that arrived for subsystems, until `finish`, whether or not one is registered.
    pub fn boot_data(&self) -> impl Iterator<Item = (&SubsystemName, u64)> {
        self.boot.iter().map(|(name, data)| (name, *data))
    }
}

fn no_subsystem(name: &str) -> Error {
    Error::new(Errno::NoEnt, format!("no subsystem named {name} is registered"))
}

/// What a call of a participant fails with when it is not there any more.
pub(crate) fn gone_failure(name: &str) -> crate::Failure {
    let reason = format!("the participant {name} has closed its connection");
    crate::Failure::new(Errno::NotConn, reason)
}
