//! What the framework has to know of the host's file type.

use core::cmp::Ordering;

use crate::Failure;

/// Tells files apart cheaply: files with different identities are different open file
/// descriptions. Files with equal ones may still be different.
///
/// In a daemon this is the device and inode number of `fstat`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Identity(pub [u64; 2]);

/// An open file description of the host. Cloning it makes another reference to the same one.
pub trait File: Clone + Send + Sync + 'static {
    /// A cheap identity; must stay the same as long as the file is open.
    fn identity(&self) -> Identity;

    /// Orders two files whose identities are equal; `Equal` means the same open file description.
    /// The order must be total and stay the same as long as both are open (`kcmp` gives one).
    fn order(&self, other: &Self) -> Ordering;

    /// Memory in bytes that stays in use while this file is preserved, as far as the host can
    /// tell. It counts against its owner's limit.
    fn pinned(&self) -> u64;

    /// Another reference to the same open file description that the host can keep apart from this
    /// one: of a daemon, a descriptor of its own. [`order`](Self::order) says `Equal` of both.
    ///
    /// # Errors
    /// EMFILE where the host can have no more.
    fn twin(&self) -> Result<Self, Failure> {
        Ok(self.clone())
    }
}
