//! Updates of the machine through a carrier: what has to hold before one begins, and when the arena
//! is let go of.
//!
//! Invariants: see [`carriers`](super::carriers); a handover that nobody has taken up is not written
//! over.

use std::rc::Rc;

use luo_core::{CarrierId, Errno, Event, Failure, Scope, State};

use super::carriers::{ARENA, LIVEUPDATE, Shared};
use super::host::{Ended, Host};
use super::refusal::Refusal;

impl Host {
    /// Begins the machine's `prepare` or `arrive` through a carrier, and waits for its end.
    pub(crate) async fn run_through(
        self: &Rc<Self>,
        event: Event,
        carrier: CarrierId,
    ) -> Result<Rc<Ended>, Refusal> {
        // Not a reason to refuse, as the operator knows nothing of it.
        self.departed_ahead(None).await;
        if event == Event::Prepare && carrier != CarrierId::NEAR {
            self.cancel_unclaimed().await;
        }
        if carrier == ARENA {
            let arena = self.carriers.arena().map_err(|failure| {
                let reason = format!("the arena cannot be used: {}", failure.reason());
                Refusal::new(failure.errno(), reason)
            })?;
            if event == Event::Prepare {
                self.no_kernel_sessions()?;
                self.nobody_waits_in(&*arena)?;
            }
        }
        if carrier == LIVEUPDATE && event == Event::Prepare {
            let refused =
                |failure: Failure| Refusal::new(failure.errno(), failure.reason().to_owned());
            let liveupdate = self.open_liveupdate().map_err(refused)?;
            self.carriers.copying.begin();
            // Whether anything can be kept at all is told before anybody is stopped.
            liveupdate.probe(None).map_err(refused)?;
        }
        let ran = self.run(|core| core.begin_through(event, carrier)).await;
        self.close_arena_after_use();
        match ran {
            Err(refusal) if carrier == ARENA && event == Event::Prepare => {
                Err(self.with_needs(refusal).await)
            }
            ran => ran,
        }
    }

    /// The machine's `freeze`, through the carrier that it was prepared through.
    pub(crate) async fn freeze(self: &Rc<Self>) -> Result<Rc<Ended>, Refusal> {
        let carrier = self.core.borrow().carrier();
        match self.run(|core| core.begin(Scope::Machine, Event::Freeze)).await {
            Err(refusal) if carrier == ARENA => Err(self.with_needs(refusal).await),
            ran => ran,
        }
    }

    /// A handover that nobody has taken up is not written over.
    fn nobody_waits_in(&self, arena: &Shared) -> Result<(), Refusal> {
        let found = arena.committed().map_err(|failure| {
            Refusal::new(failure.errno(), format!("the arena: {}", failure.reason()))
        });
        let refused = match found {
            Ok(None) => return Ok(()),
            Ok(Some(_)) => Refusal::new(
                Errno::Busy,
                "the arena holds a handover that nobody has taken up: start luod without anything \
                 kept to take it up, or give it up with `luoctl arena create --force`",
            ),
            Err(refusal) => refusal,
        };
        self.close_arena_after_use();
        Err(refused)
    }

    /// The arena is nobody else's while the machine's update goes through it, and not longer.
    pub(crate) fn close_arena_after_use(&self) {
        if self.core.borrow().carrier() == CarrierId::NEAR {
            self.carriers.close_arena();
        }
    }

    /// What an arena holds that is not committed went with the worker that wrote it.
    pub(crate) async fn undo_what_went_with_the_worker(self: &Rc<Self>) -> Result<(), Refusal> {
        let lost = {
            let core = self.core.borrow();
            let status = core.status();
            core.carrier() != CarrierId::NEAR
                && !status.departed
                && status.transition.is_none()
                && matches!(status.state, State::Prepared | State::Frozen)
        };
        if lost {
            self.tell(
                "state",
                None,
                "what was prepared for another kernel is undone: it went with the worker before"
                    .to_owned(),
            );
            self.cancel(Scope::Machine).await?;
        }
        Ok(())
    }
}
