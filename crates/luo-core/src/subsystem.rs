//! Subsystems: the parts of the host that take part in the cycle.
//!
//! Files are one subsystem among others; a participant is a client process that takes part
//! through the subsystem of its name. A subsystem inside the host implements [`Subsystem`]; the
//! calls of a participant's are answered by whoever drives the framework.

use crate::{Failure, Keep, Recall};

/// A part of the host that takes part in the cycle, with one `u64` of its own data.
pub trait Subsystem<F>: Send + Sync {
    /// The workload still runs. Gives the subsystem's `data`.
    ///
    /// # Errors
    /// Any; cancels the update.
    fn prepare(&self, keep: &dyn Keep<F>) -> Result<u64, Failure>;

    /// From here nothing may change. Gives the `data` that will be handed over.
    ///
    /// # Errors
    /// Any; cancels the update.
    fn freeze(&self, data: u64, keep: &dyn Keep<F>) -> Result<u64, Failure>;

    /// Undoes `prepare` and `freeze`.
    fn cancel(&self, data: u64, keep: &dyn Keep<F>);

    /// The other side has begun; `data` is what `freeze` gave on the side before.
    ///
    /// # Errors
    /// Any; reported, and harms no other subsystem.
    fn boot(&self, data: u64, recall: &dyn Recall<F>) -> Result<(), Failure>;

    /// The live update is over.
    fn finish(&self, data: u64, recall: &dyn Recall<F>);
}
