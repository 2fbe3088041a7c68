//! A rehearsal: an update of the machine that is prepared, frozen and undone, to learn what it
//! would cost in time and in room.
//!
//! Invariants: a rehearsal leaves the machine as it was, however it ends. While one goes on there
//! is a slot for it in the keeper, so a worker that finds one undoes what the worker before has
//! left prepared or frozen.

use std::rc::Rc;

use luo::protocol::Report;
use luo_core::{CarrierId, Event, Scope, State};

use super::custody::space;
use super::host::Host;
use super::refusal::Refusal;

/// What lies in the slot, for whoever looks at it.
const RECORD: &[u8] = b"rehearsal";

impl Host {
    /// Prepares through a carrier, freezes and cancels, and tells how long each part took
    /// and how much room it needs.
    pub(crate) async fn rehearse(self: &Rc<Self>, carrier: CarrierId) -> Result<Report, Refusal> {
        let machine = self.core.borrow().status();
        if machine.state != State::Normal || machine.transition.is_some() {
            // An update goes on, and is not ours to undo: this says so.
            return self.rehearse_noted(carrier).await;
        }
        let note = self.custody.allocate(space::REHEARSAL);
        self.custody.put(note, RECORD, &[]);
        let report = self.rehearse_noted(carrier).await;
        self.custody.forget(note);
        let kept = self.commit().await;
        let report = report?;
        kept?;
        Ok(report)
    }

    async fn rehearse_noted(self: &Rc<Self>, carrier: CarrierId) -> Result<Report, Refusal> {
        let mut whole = self.run_through(Event::Prepare, carrier).await?.to_protocol()?;
        let mut frozen = self.freeze().await?.to_protocol()?;
        let needs = self.needs();
        let cancelled = self.run(|core| core.begin(Scope::Machine, Event::Cancel)).await?;
        let mut cancelled = cancelled.to_protocol()?;
        whole.timings.append(&mut frozen.timings);
        whole.timings.append(&mut cancelled.timings);
        whole.left_out.append(&mut frozen.left_out);
        Ok(Report {
            event: "rehearse".to_owned(),
            state: cancelled.state,
            microseconds: whole.microseconds + frozen.microseconds + cancelled.microseconds,
            timings: whole.timings,
            left_out: whole.left_out,
            needs: Some(needs),
        })
    }

    /// Undoes what a rehearsal has left that ended with its worker.
    pub(crate) async fn undo_rehearsal(self: &Rc<Self>) -> Result<(), Refusal> {
        let notes = self.custody.keys(space::REHEARSAL);
        if notes.is_empty() {
            return Ok(());
        }
        let machine = self.core.borrow().status();
        let is_left = matches!(machine.state, State::Prepared | State::Frozen);
        if is_left && machine.transition.is_none() {
            self.cancel(Scope::Machine).await?;
            self.tell("state", None, "a rehearsal that was cut short is undone".to_owned());
        }
        for note in notes {
            self.custody.forget(note);
        }
        Ok(())
    }
}
