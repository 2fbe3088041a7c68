//! Files that are made anew from a description of a few bytes, and need no other file: what the
//! handlers of all these types have in common.
//!
//! Invariants:
//! - The file is described in `prepare` only to refuse what `freeze` would refuse; the record is
//!   that of `freeze`, and the file's data is its handle.
//! - A record is decoded whole before anything is made of it.

use std::fmt;
use std::marker::PhantomData;

use luo_abi::record::RecordError;
use luo_carriers::HostFile;
use luo_core::{Caps, Errno, Failure, Handle, Handler, Keep, Recall};

/// A type of file that is made anew from a description.
pub trait Described: Send + Sync + 'static {
    /// The `compatible` string.
    const COMPATIBLE: &'static str;

    /// Whether the file is of this type, those too that it will refuse with a reason.
    fn takes(file: &HostFile) -> bool;

    /// The record of the file as it is now.
    ///
    /// # Errors
    /// Why it cannot be kept.
    fn describe(file: &HostFile) -> Result<Vec<u8>, Failure>;

    /// The file that a record describes.
    ///
    /// # Errors
    /// EINVAL for a damaged record; why the file cannot be made.
    fn make(record: &[u8]) -> Result<HostFile, Failure>;
}

/// The handler of one such type.
pub struct Anew<T>(PhantomData<fn() -> T>);

impl<T> Anew<T> {
    /// The handler; it has no state.
    #[must_use]
    pub const fn new() -> Self {
        Self(PhantomData)
    }
}

impl<T> Default for Anew<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T: Described> fmt::Debug for Anew<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Anew({})", T::COMPATIBLE)
    }
}

impl<T: Described> Handler<HostFile> for Anew<T> {
    fn compatible(&self) -> &str {
        T::COMPATIBLE
    }

    fn requires(&self) -> Caps {
        Caps::BYTES
    }

    fn can_preserve(&self, file: &HostFile) -> bool {
        T::takes(file)
    }

    fn prepare(&self, file: &HostFile, _keep: &dyn Keep<HostFile>) -> Result<u64, Failure> {
        T::describe(file).map(|_| 0)
    }

    fn freeze(
        &self,
        file: &HostFile,
        _data: u64,
        keep: &dyn Keep<HostFile>,
    ) -> Result<u64, Failure> {
        keep.keep_bytes(&T::describe(file)?).map(|handle| handle.0)
    }

    fn retrieve(&self, data: u64, recall: &dyn Recall<HostFile>) -> Result<HostFile, Failure> {
        T::make(&recall.bytes(Handle(data))?)
    }

    fn finish(
        &self,
        _file: Option<&HostFile>,
        data: u64,
        _reclaimed: bool,
        recall: &dyn Recall<HostFile>,
    ) {
        recall.release(Handle(data));
    }
}

/// For the errors of decoding: the record of such a `file` is damaged.
pub(crate) fn damaged(file: &'static str) -> impl Fn(RecordError) -> Failure {
    move |error| {
        let reason = format!("the record of {file} is damaged: {error}");
        Failure::new(Errno::Inval, reason).because(error)
    }
}

/// For the errors of encoding: the file is something that no record can tell.
pub(crate) fn indescribable(file: &'static str) -> impl Fn(RecordError) -> Failure {
    move |error| {
        let reason = format!("{file} cannot be described: {error}");
        Failure::new(Errno::OpNotSupp, reason).because(error)
    }
}
