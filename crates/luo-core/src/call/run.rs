//! Running a call: the handler or subsystem is called, and what it keeps is noted.
//!
//! Invariants: whatever was kept for something that is not kept any more has been forgotten when
//! `run` returns, whether or not the handler did so; nothing is forgotten or released twice, since
//! its handle may be somebody else's by then.

use alloc::{format, sync::Arc, vec::Vec};
use core::{
    cell::RefCell,
    cmp::Ordering,
    ops::{ControlFlow, RangeInclusive},
};

use super::{Answer, Bound, Call, Outcome, Phase, Target, Task};
use crate::{
    Bond, Caps, Carrier, Errno, Failure, File, Handle, Handler, Identity, Keep, Recall,
    SharedState, Token, peers::Peers, tree,
};

/// A carrier that notes what is kept.
struct Noted<'a, F> {
    keep: &'a dyn Keep<F>,
    kept: RefCell<Vec<Handle>>,
    /// The file it is called for, where it is one.
    own: Option<Token>,
    peers: Option<&'a Peers<F>>,
    bond: RefCell<Bond>,
}

impl<'a, F: File> Noted<'a, F> {
    fn new(keep: &'a dyn Keep<F>, kept: &[Handle]) -> Self {
        Self {
            keep,
            kept: RefCell::new(kept.to_vec()),
            own: None,
            peers: None,
            bond: RefCell::default(),
        }
    }

    fn tie(&self, other: Token, pick: fn(&mut Bond) -> &mut Vec<Token>) -> Result<(), Failure> {
        let Some(own) = self.own else {
            return Err(Failure::new(Errno::OpNotSupp, "only a file is bound to files"));
        };
        if own == other {
            let reason = format!("the file was found to be bound to itself, token {own}");
            return Err(Failure::new(Errno::Inval, reason));
        }
        let mut bond = self.bond.borrow_mut();
        if bond.needs.len() + bond.with.len() >= Bond::MAX {
            let reason = format!("the file is bound to more than {} others", Bond::MAX);
            return Err(Failure::new(Errno::TooBig, reason));
        }
        pick(&mut bond).push(other);
        Ok(())
    }

    fn note(&self, handle: Handle) -> Handle {
        self.kept.borrow_mut().push(handle);
        handle
    }

    /// Forgets all that is noted and was not there before.
    fn forget_all_but(self, before: &[Handle]) -> Vec<Handle> {
        let mut kept = self.kept.into_inner();
        kept.retain(|handle| {
            let old = before.contains(handle);
            if !old {
                self.keep.forget(*handle);
            }
            old
        });
        kept
    }
}

impl<F: File> Keep<F> for Noted<'_, F> {
    fn caps(&self) -> Caps {
        self.keep.caps()
    }

    fn keep_memory(&self, memory: &F, len: u64) -> Result<Handle, Failure> {
        self.keep.keep_memory(memory, len).map(|handle| self.note(handle))
    }

    fn refresh_memory(&self, handle: Handle, memory: &F, len: u64) -> Result<(), Failure> {
        self.keep.refresh_memory(handle, memory, len)
    }

    fn keep_resident(&self, memory: &F) -> Result<Handle, Failure> {
        self.keep.keep_resident(memory).map(|handle| self.note(handle))
    }

    fn keep_bytes(&self, bytes: &[u8]) -> Result<Handle, Failure> {
        self.keep.keep_bytes(bytes).map(|handle| self.note(handle))
    }

    fn keep_live(&self, file: &F) -> Result<Handle, Failure> {
        self.keep.keep_live(file).map(|handle| self.note(handle))
    }

    fn forget(&self, handle: Handle) {
        self.kept.borrow_mut().retain(|kept| *kept != handle);
        self.keep.forget(handle);
    }

    fn token(&self) -> Option<Token> {
        self.own
    }

    fn find(&self, identity: Identity, order: &dyn Fn(&F) -> Ordering) -> Option<Token> {
        self.peers?.find(identity, order)
    }

    fn each_within(
        &self,
        identities: RangeInclusive<Identity>,
        visit: &mut dyn FnMut(Token, &F) -> ControlFlow<()>,
    ) {
        if let Some(peers) = self.peers {
            peers.each_within(&identities, visit);
        }
    }

    fn need(&self, token: Token) -> Result<(), Failure> {
        self.tie(token, |bond| &mut bond.needs)
    }

    fn bind(&self, token: Token) -> Result<(), Failure> {
        self.tie(token, |bond| &mut bond.with)
    }

    fn progress(&self, done: u64, total: u64) -> Result<(), Failure> {
        self.keep.progress(done, total)
    }
}

/// A carrier that notes what is released of what was kept on this side.
struct Released<'a, F> {
    recall: &'a dyn Recall<F>,
    kept: RefCell<Vec<Handle>>,
    /// Of a retrieval, what it is bound to.
    bound: Option<&'a Bound<F>>,
    given: RefCell<Vec<(Token, F)>>,
}

impl<'a, F: File> Released<'a, F> {
    fn new(recall: &'a dyn Recall<F>, kept: &[Handle]) -> Self {
        let kept = RefCell::new(kept.to_vec());
        Self { recall, kept, bound: None, given: RefCell::default() }
    }
}

impl<F: File> Recall<F> for Released<'_, F> {
    fn caps(&self) -> Caps {
        self.recall.caps()
    }

    fn memory(&self, handle: Handle) -> Result<F, Failure> {
        self.recall.memory(handle)
    }

    fn resident(&self, handle: Handle) -> Result<F, Failure> {
        self.recall.resident(handle)
    }

    fn bytes(&self, handle: Handle) -> Result<Vec<u8>, Failure> {
        self.recall.bytes(handle)
    }

    fn live(&self, handle: Handle) -> Result<F, Failure> {
        self.recall.live(handle)
    }

    fn release(&self, handle: Handle) {
        self.kept.borrow_mut().retain(|kept| *kept != handle);
        self.recall.release(handle);
    }

    fn file(&self, token: Token) -> Result<F, Failure> {
        let needs = self.bound.map_or(&[][..], |bound| &bound.needs);
        match needs.binary_search_by_key(&token, |(other, _)| *other) {
            Ok(at) => needs.get(at).map(|(_, file)| file.clone()),
            Err(_) => None,
        }
        .ok_or_else(|| {
            Failure::new(Errno::NoEnt, format!("the file was not kept as one that needs {token}"))
        })
    }

    fn give(&self, token: Token, file: F) -> Result<(), Failure> {
        let waiting = self.bound.is_some_and(|bound| bound.needed_by.binary_search(&token).is_ok());
        if !waiting {
            let reason = format!("{token} does not need this file, or is there already");
            return Err(Failure::new(Errno::NoEnt, reason));
        }
        self.given.borrow_mut().push((token, file));
        Ok(())
    }

    fn progress(&self, done: u64, total: u64) -> Result<(), Failure> {
        self.recall.progress(done, total)
    }
}

/// Something that keeps: `prepare` and `freeze`.
fn keeping<F: File>(
    carrier: &dyn Keep<F>,
    before: &[Handle],
    keep: impl FnOnce(&dyn Keep<F>) -> Result<u64, Failure>,
) -> Outcome<F> {
    keeping_noted(Noted::new(carrier, before), before, keep)
}

fn keeping_noted<'a, F: File>(
    noted: Noted<'a, F>,
    before: &[Handle],
    keep: impl FnOnce(&dyn Keep<F>) -> Result<u64, Failure>,
) -> Outcome<F> {
    match keep(&noted) {
        Ok(data) => {
            let bond = noted.bond.take();
            let kept = Some(noted.kept.into_inner());
            Outcome { bond, ..Outcome::of(Ok(Answer::Data(data)), kept) }
        }
        Err(failure) => {
            let kept = noted.forget_all_but(before);
            Outcome::of(Err(failure), Some(kept))
        }
    }
}

/// Something that undoes: `cancel`.
fn undoing<F: File>(
    carrier: &dyn Keep<F>,
    kept: &[Handle],
    undo: impl FnOnce(&dyn Keep<F>),
) -> Outcome<F> {
    let noted = Noted::new(carrier, kept);
    undo(&noted);
    noted.forget_all_but(&[]);
    Outcome::of(Ok(Answer::Done), Some(Vec::new()))
}

/// Something that recalls: `retrieve`, `can_finish`, `boot`.
fn recalling<F: File>(
    carrier: &dyn Carrier<F>,
    kept: &[Handle],
    recall: impl FnOnce(&dyn Recall<F>) -> Result<Answer<F>, Failure>,
) -> Outcome<F> {
    recalling_bound(Released::new(carrier, kept), recall)
}

fn recalling_bound<'a, F: File>(
    released: Released<'a, F>,
    recall: impl FnOnce(&dyn Recall<F>) -> Result<Answer<F>, Failure>,
) -> Outcome<F> {
    let result = recall(&released);
    // What was made along with a file that was not made has no use.
    let given = if result.is_ok() { released.given.take() } else { Vec::new() };
    Outcome { given, ..Outcome::of(result, Some(released.kept.into_inner())) }
}

/// Something that ends: `finish`.
fn ending<F: File>(
    carrier: &dyn Carrier<F>,
    kept: &[Handle],
    end: impl FnOnce(&dyn Recall<F>),
) -> Outcome<F> {
    let released = Released::new(carrier, kept);
    end(&released);
    for handle in released.kept.into_inner() {
        carrier.release(handle);
    }
    Outcome::of(Ok(Answer::Done), Some(Vec::new()))
}

fn cannot<F: File>(reason: &str) -> Outcome<F> {
    Outcome::failed(Failure::new(Errno::OpNotSupp, reason))
}

/// The shared state that a handler had when it was registered.
fn shared<F: File>(handler: &Arc<dyn Handler<F>>) -> Result<&dyn SharedState<F>, Failure> {
    handler.shared().ok_or_else(|| {
        Failure::new(Errno::Inval, "the handler had shared state when it was registered")
    })
}

impl<F: File> Call<F> {
    /// Runs the call through `carrier` and tells how it ended. It may block for as long as the
    /// handler or subsystem takes. Run it once only.
    ///
    /// A [`CallKind::Remote`](super::CallKind::Remote) call cannot be run: it gives EOPNOTSUPP.
    #[must_use]
    pub fn run(&self, carrier: &dyn Carrier<F>) -> Outcome<F> {
        match &self.target {
            Target::Outgoing { handler, file, data, kept, peers } => {
                let session = self.location.session.as_ref();
                let own = session.and_then(|(_, name)| carrier.for_session(name));
                let carrier: &dyn Keep<F> = match &own {
                    Some(own) => &**own,
                    None => carrier,
                };
                let noted = || Noted {
                    own: self.location.token,
                    peers: peers.as_deref(),
                    ..Noted::new(carrier, kept)
                };
                match (handler, self.phase) {
                    (Some(handler), Phase::Prepare) => {
                        keeping_noted(noted(), kept, |keep| handler.prepare(file, keep))
                    }
                    (Some(handler), Phase::Freeze) => {
                        keeping_noted(noted(), kept, |keep| handler.freeze(file, *data, keep))
                    }
                    (Some(handler), _) => {
                        undoing(carrier, kept, |keep| handler.cancel(file, *data, keep))
                    }
                    (None, _) => undoing(carrier, kept, |_| {}),
                }
            }
            Target::Incoming { handler, file, data, kept, reclaimed, bound } => {
                let Some(handler) = handler else { return ending(carrier, kept, |_| {}) };
                match self.phase {
                    Phase::Retrieve => {
                        let released =
                            Released { bound: Some(bound), ..Released::new(carrier, kept) };
                        recalling_bound(released, |recall| {
                            handler.retrieve(*data, recall).map(Answer::File)
                        })
                    }
                    Phase::CanFinish => recalling(carrier, kept, |recall| {
                        Ok(Answer::May(handler.can_finish(file.as_ref(), *data, recall)))
                    }),
                    _ => ending(carrier, kept, |recall| {
                        handler.finish(file.as_ref(), *data, *reclaimed, recall);
                    }),
                }
            }
            Target::Shared { handler, data, kept } => match (shared(handler), self.phase) {
                (Err(failure), _) => Outcome::failed(failure),
                (Ok(shared), Phase::Prepare) => keeping(carrier, kept, |keep| shared.prepare(keep)),
                (Ok(shared), Phase::Freeze) => {
                    keeping(carrier, kept, |keep| shared.freeze(*data, keep))
                }
                (Ok(shared), Phase::Retrieve) => recalling(carrier, kept, |recall| {
                    shared.retrieve(*data, recall).map(|()| Answer::Done)
                }),
                (Ok(shared), Phase::Finish) => {
                    ending(carrier, kept, |recall| shared.finish(*data, recall))
                }
                (Ok(shared), _) => undoing(carrier, kept, |keep| shared.cancel(*data, keep)),
            },
            Target::Local { subsystem, data, kept } => match self.phase {
                Phase::Prepare => keeping(carrier, kept, |keep| subsystem.prepare(keep)),
                Phase::Freeze => keeping(carrier, kept, |keep| subsystem.freeze(*data, keep)),
                Phase::Boot => recalling(carrier, kept, |recall| {
                    subsystem.boot(*data, recall).map(|()| Answer::Done)
                }),
                Phase::Finish => ending(carrier, kept, |recall| subsystem.finish(*data, recall)),
                _ => undoing(carrier, kept, |keep| subsystem.cancel(*data, keep)),
            },
            Target::Remote => cannot("the call of a participant is answered by its driver"),
            Target::Task(task) => self.run_task(task, carrier),
        }
    }

    fn run_task(&self, task: &Task, carrier: &dyn Carrier<F>) -> Outcome<F> {
        let result = match task {
            Task::KeepTree(sessions) => tree::write_files(sessions)
                .and_then(|blob| carrier.keep_bytes(&blob))
                .map(|handle| Answer::Data(handle.0)),
            Task::ForgetTree(handle) => {
                carrier.forget(*handle);
                Ok(Answer::Done)
            }
            Task::ReadTree(handle) => {
                carrier.bytes(*handle).and_then(|blob| tree::read_files(&blob)).map(Answer::Files)
            }
            Task::ReleaseTree(handle) => {
                carrier.release(*handle);
                Ok(Answer::Done)
            }
            Task::Find => carrier.committed().map(Answer::Handover),
            Task::Commit(handover) => match handover {
                Ok(handover) => carrier.commit(handover).map(|()| Answer::Done),
                Err(reason) => Err(Failure::new(Errno::Inval, reason.as_str())),
            },
            Task::Retire => carrier.retire().map(|()| Answer::Done),
        };
        Outcome::of(result, None)
    }
}
