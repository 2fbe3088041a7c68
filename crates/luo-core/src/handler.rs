//! Handlers: the code that knows one type of file.
//!
//! This is the trait that the author of a file type implements, and the only thing that author
//! has to understand. Its counterpart in the kernel is `struct liveupdate_file_ops`.
//!
//! Invariants:
//! - `can_preserve`, `prepare`, `retrieve` and `finish` have no default: forgetting one does not
//!   compile. The defaults that exist do what is right for a handler that keeps all it needs in
//!   `prepare`: `freeze` has nothing to add, and what `prepare` kept is forgotten by the framework
//!   on `cancel`.
//! - A handler never sees the state machine; it is called in an order that the framework
//!   guarantees: `prepare`, then `freeze` or `cancel`, on the other side `retrieve` at most once
//!   successfully, then `can_finish`, `finish`. What a file [needs](Keep::need) is retrieved
//!   before it and finished after it.

use crate::{Caps, Failure, File, Identity, Keep, Recall};

/// Knows one type of file. `F` is the host's file type.
pub trait Handler<F: File>: Send + Sync {
    /// The `compatible` string: names this type and the layout of its record, `memfd-v1` for
    /// example. 1 to 47 bytes of `a-z A-Z 0-9 , . _ + -`. A changed layout is a new string.
    fn compatible(&self) -> &str;

    /// What the handler needs of a carrier. A carrier without it is not offered the file: the
    /// next handler is asked.
    fn requires(&self) -> Caps;

    /// Whether this handler takes the file. Cheap and without side effects: it is asked for every
    /// file that any client gives.
    fn can_preserve(&self, file: &F) -> bool;

    /// An identity of the handler's own, for files where the host's is not the right one (two
    /// descriptors of one device that may be preserved only once, say). `None`: the host's.
    fn identity(&self, _file: &F) -> Option<Identity> {
        None
    }

    /// Whether files of this type refer to others of their session: only then does
    /// [`Keep::find`] find any.
    fn refers(&self) -> bool {
        false
    }

    /// Keeps what can be kept while the workload still runs; gives the file's `data`.
    ///
    /// # Errors
    /// Any; what was kept up to there is forgotten by the framework.
    fn prepare(&self, file: &F, keep: &dyn Keep<F>) -> Result<u64, Failure>;

    /// Keeps the rest. From here nothing of the file changes. Gives the `data` that will be
    /// handed over.
    ///
    /// # Errors
    /// Any; the file is cancelled then.
    fn freeze(&self, _file: &F, data: u64, _keep: &dyn Keep<F>) -> Result<u64, Failure> {
        Ok(data)
    }

    /// Undoes `prepare` and `freeze`. What was kept is forgotten by the framework afterwards; this
    /// is for what the handler did elsewhere.
    fn cancel(&self, _file: &F, _data: u64, _keep: &dyn Keep<F>) {}

    /// Makes the file again from its `data`.
    ///
    /// # Errors
    /// Any; remembered by the framework and given again to whoever asks for this file.
    fn retrieve(&self, data: u64, recall: &dyn Recall<F>) -> Result<F, Failure>;

    /// Whether `finish` may be called now; asked of every file before any is finished.
    fn can_finish(&self, _file: Option<&F>, _data: u64, _recall: &dyn Recall<F>) -> bool {
        true
    }

    /// Ends the file's live update: releases every handle that hangs on its `data`. `file` is
    /// there if it was retrieved, `reclaimed` says whether its owner has taken it.
    fn finish(&self, file: Option<&F>, data: u64, reclaimed: bool, recall: &dyn Recall<F>);

    /// Whether none of the calls above does more than ask the carrier and the kernel for what they
    /// have at hand: nothing is copied, and nobody is waited for. Where the carrier is
    /// [quick](crate::Carrier::is_quick) too, a driver may run them without a thread of their own.
    fn is_quick(&self) -> bool {
        false
    }

    /// Whether a file is retrieved as soon as the machine has arrived, and not only when its owner
    /// asks: where the world around may not meet this system without it. A peer that sends to a
    /// connection which is not back yet is told that there is none.
    fn retrieves_on_arrival(&self) -> bool {
        false
    }

    /// A file that was [retrieved on arrival](Self::retrieves_on_arrival) is kept where it outlives
    /// who has retrieved it, or goes to its owner: whatever `retrieve` has held back may begin, and
    /// what comes of it is lost no more. May be called more than once.
    fn let_live(&self, _file: &F) {}

    /// State that the handler shares among its files: there while at least one of them is
    /// preserved. The kernel calls it FLB, file-lifecycle-bound data.
    fn shared(&self) -> Option<&dyn SharedState<F>> {
        None
    }
}

/// State shared by all files of one handler: kept before the first of them, finished after the
/// last.
pub trait SharedState<F>: Send + Sync {
    /// Before the first file of the handler is prepared. Gives the state's `data`.
    ///
    /// # Errors
    /// Any; the file whose `prepare` asked for it fails with it.
    fn prepare(&self, keep: &dyn Keep<F>) -> Result<u64, Failure>;

    /// After the last file of the handler was frozen; where a session goes ahead alone, after the
    /// last one of that session. May be called again, with the data it gave, when further files
    /// of the handler were prepared and frozen since.
    ///
    /// # Errors
    /// Any; the update is cancelled.
    fn freeze(&self, data: u64, _keep: &dyn Keep<F>) -> Result<u64, Failure> {
        Ok(data)
    }

    /// After the last prepared file of the handler was cancelled. What was kept is forgotten by
    /// the framework.
    fn cancel(&self, _data: u64, _keep: &dyn Keep<F>) {}

    /// Before the first file of the handler is retrieved.
    ///
    /// # Errors
    /// Any; every file of the handler fails to be retrieved with it.
    fn retrieve(&self, data: u64, recall: &dyn Recall<F>) -> Result<(), Failure>;

    /// After the last file of the handler was finished.
    fn finish(&self, data: u64, recall: &dyn Recall<F>);
}
