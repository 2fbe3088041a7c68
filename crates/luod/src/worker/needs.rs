//! How many bytes an update of the machine needs in its carrier.
//!
//! Invariants: what is told of an update that is frozen is what it has kept; what is told of one
//! for which there was no room is measured by the same handlers.

use std::rc::Rc;
use std::sync::Arc;

use luo::protocol::{Needs, SessionNeeds};
use luo_carriers::HostFile;
use luo_carriers::arena::{Measure, Measured};
use luo_core::{CarrierId, Errno, Failure, FileKey, Handler, Side};

use super::carriers::ARENA_CAPS;
use super::host::Host;
use super::refusal::Refusal;

/// A file, and who keeps it in the arena.
type Kept = (HostFile, Arc<dyn Handler<HostFile>>);

impl Host {
    /// What the machine's update, which is frozen, needs in its carrier.
    pub(crate) fn needs(&self) -> Needs {
        let core = self.core.borrow();
        let near = core.carrier() == CarrierId::NEAR;
        let arena = self.carriers.open_arena().filter(|_| !near);
        let (mut sessions, mut sum) = (Vec::new(), Measured::default());
        for info in core.sessions().filter(|info| info.outgoing > 0) {
            let mut own = Measured::default();
            if let Some(arena) = &arena {
                for file in core.files(info.id).filter(|file| file.side == Side::Outgoing) {
                    let place = FileKey { session: info.id, side: file.side, token: file.token };
                    let kept = core.file_record(place).map(|record| record.kept);
                    for handle in kept.unwrap_or_default() {
                        own = own.and(arena.arena().takes(handle));
                    }
                }
            }
            sum = sum.and(own);
            sessions.push(SessionNeeds { session: info.name.to_string(), bytes: own.bytes() });
        }
        let room = self.carriers.room().filter(|_| !near);
        Needs {
            carrier: self.carriers.name(core.carrier()).to_owned(),
            bytes: if arena.is_some() { sum.whole() } else { 0 },
            free: room.map(|room| room.free),
            size: room.map(|room| room.size),
            sessions,
        }
    }

    /// A refusal for want of room in the arena says how much the whole update needs.
    pub(crate) async fn with_needs(self: &Rc<Self>, refusal: Refusal) -> Refusal {
        let Some(room) = self.carriers.room() else { return refusal };
        if refusal.errno() != Errno::NoSpc.name() {
            return refusal;
        }
        let files = self.kept_in_arena();
        let count = files.len();
        let measured = tokio::task::spawn_blocking(move || measure(&files)).await;
        let needed = match measured {
            Ok(Ok(measured)) => measured.whole(),
            Ok(Err(failure)) => {
                tracing::debug!(reason = failure.reason(), "what is needed was not measured");
                return refusal;
            }
            Err(_) => return refusal,
        };
        let Refusal(mut failure) = refusal;
        failure.reason = format!(
            "{}; the whole update, {count} files, needs {needed} bytes in the arena, and {} of {} \
             were free",
            failure.reason, room.free, room.size
        );
        Refusal(failure)
    }

    /// All outgoing files that a handler keeps in the arena.
    fn kept_in_arena(&self) -> Vec<Kept> {
        let core = self.core.borrow();
        let mut found = Vec::new();
        for info in core.sessions() {
            for file in core.files(info.id).filter(|file| file.side == Side::Outgoing) {
                let place = FileKey { session: info.id, side: file.side, token: file.token };
                let Some(file) = core.file_ref(place) else { continue };
                let handler = core.handlers().find(|handler| {
                    ARENA_CAPS.contains(handler.requires()) && handler.can_preserve(&file)
                });
                if let Some(handler) = handler {
                    let handler = Arc::clone(handler);
                    found.push((file, handler));
                }
            }
        }
        found
    }
}

/// What these files would take.
fn measure(files: &[Kept]) -> Result<Measured, Failure> {
    let mut sum = Measured::default();
    for (file, handler) in files {
        let measure = Measure::new();
        let data = handler.prepare(file, &measure)?;
        handler.freeze(file, data, &measure)?;
        sum = sum.and(measure.measured());
    }
    Ok(sum)
}
