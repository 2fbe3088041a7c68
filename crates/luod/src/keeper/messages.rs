//! What workers say, and what is done then.
//!
//! Invariants:
//! - Only the worker that serves changes slots, and none does once it is quiesced.
//! - Every message is answered, in the order of their arrival, but for those that break the protocol:
//!   these end their worker.
//! - Descriptors that came along and were not taken are closed.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use luo_abi::keeper::{Message, flag, op};
use luo_carriers::closer;
use rustix::io::Errno;

use super::kernel;
use super::peer::{Breach, Peer};
use super::slots::{Fds, Slot};
use super::wire::Received;
use super::{Keeper, TURN, Who};

/// A worker that has closed its socket ends so soon by itself, or is killed.
const CLOSING: Duration = Duration::from_secs(1);

impl Keeper {
    fn peer(&mut self, who: Who) -> Option<&mut Peer> {
        match who {
            Who::Worker => self.worker.as_mut(),
            Who::Candidate => self.upgrade.as_mut().map(|upgrade| &mut upgrade.candidate),
            Who::Retiring => self.retiring.as_mut().map(|(peer, _)| peer),
            _ => None,
        }
    }

    pub(super) fn breach(&mut self, who: Who, breach: &Breach) {
        if let (Breach::Closed, Some(peer)) = (breach, self.peer(who)) {
            peer.closed = Some(Instant::now() + CLOSING);
            return;
        }
        match who {
            Who::Worker => self.kill_worker(&breach.to_string()),
            Who::Candidate => self.fail_upgrade(&format!("the new worker {breach}")),
            // It is to exit, and will be killed if it does not.
            _ => {}
        }
    }

    pub(super) fn flush(&mut self, who: Who) {
        let result = match who {
            Who::Worker => self.worker.as_mut().map(|peer| peer.flush(&self.slots)),
            Who::Candidate => {
                self.upgrade.as_mut().map(|upgrade| upgrade.candidate.flush(&self.slots))
            }
            Who::Retiring => self.retiring.as_mut().map(|(peer, _)| peer.flush(&self.slots)),
            _ => None,
        };
        if let Some(Err(errno)) = result {
            self.breach(who, &errno.into());
        }
    }

    /// Takes what a worker says, some messages of it, and answers.
    pub(super) fn hear(&mut self, who: Who) {
        let mut scratch = std::mem::take(&mut self.scratch);
        for _ in 0..TURN {
            let Some(peer) = self.peer(who).filter(|peer| peer.listens()) else { break };
            let result = match scratch.receive(&peer.socket) {
                Ok(Received::Message(bytes, fds)) => match peer.check(bytes, fds.len()) {
                    Ok(message) => {
                        self.obey(who, &message, fds);
                        continue;
                    }
                    Err(breach) => Err(breach),
                },
                Ok(Received::NoRoom(bytes)) => peer.refuse_unread(bytes),
                Ok(Received::TooLong) => Err(Breach::TooLong),
                Ok(Received::Empty) => break,
                Ok(Received::Closed) => Err(Breach::Closed),
                Err(errno) => Err(errno.into()),
            };
            if let Err(breach) = result {
                self.breach(who, &breach);
                break;
            }
        }
        closer::close_all(scratch.fds.drain(..));
        self.scratch = scratch;
        self.flush(who);
    }

    /// Does what a message asks for.
    fn obey(&mut self, who: Who, message: &Message<'_>, fds: &mut Vec<OwnedFd>) {
        let (op, flags) = (message.header.op.get(), message.header.flags.get());
        let allowed = match op {
            op::CHANGE => flag::MORE,
            op::UPGRADE => flag::WORKER | flag::KEEPER,
            _ => 0,
        };
        let plain = flags & !allowed == 0
            && (op == op::UPGRADE || message.header.argument.get() == 0)
            && (matches!(op, op::CHANGE | op::RETRIEVE) || message.entries.is_empty());
        let result = match op {
            op::CHANGE => self.change(who, message, fds, plain),
            _ if !plain => Err(Errno::INVAL),
            op::ATTACH => Ok(()),
            op::LOAD => {
                if let Some(upgrade) = self.upgrade.as_mut().filter(|_| who == Who::Candidate) {
                    upgrade.loading();
                }
                if let Some(peer) = self.peer(who) {
                    peer.send_all();
                }
                return;
            }
            op::READY if who == Who::Candidate => return self.candidate_ready(),
            op::READY => {
                if let Some(worker) = &mut self.worker {
                    worker.ready.get_or_insert_with(Instant::now);
                }
                Ok(())
            }
            op::UPGRADE if who == Who::Worker => match self.check_upgrade(message.header, fds) {
                Ok((program, deadline)) => {
                    // First the answer, then what comes of it.
                    if let Some(worker) = &mut self.worker {
                        worker.acknowledge(Ok(()));
                    }
                    return self.begin_upgrade(flags, program, deadline);
                }
                Err(errno) => Err(errno),
            },
            op::QUIESCED if who == Who::Worker => self.worker_quiesced(),
            op::RETRIEVE => self.retrieve(who, message, fds),
            op::LEAVE if who == Who::Worker => {
                self.departed = true;
                self.stop("the machine has departed");
                Ok(())
            }
            op::REFUSE => {
                let reason = String::from_utf8_lossy(message.body);
                let reason = format!("cannot take over: {}", reason.trim());
                match who {
                    Who::Candidate => self.fail_upgrade(&format!("the new worker {reason}")),
                    _ => self.kill_worker(&reason),
                }
                return;
            }
            _ => Err(Errno::OPNOTSUPP),
        };
        if let Some(peer) = self.peer(who) {
            peer.acknowledge(result);
        }
    }

    fn change(
        &mut self,
        who: Who,
        message: &Message<'_>,
        fds: &mut Vec<OwnedFd>,
        plain: bool,
    ) -> Result<(), Errno> {
        let Some(peer) = self.worker.as_mut().filter(|peer| who == Who::Worker && !peer.quiesced)
        else {
            return Err(Errno::BUSY);
        };
        if plain {
            self.slots.stage(&mut peer.staged, message, fds);
        } else {
            peer.staged.fail(Errno::INVAL);
        }
        if message.header.flags.get() & flag::MORE != 0 {
            return Ok(());
        }
        match &mut self.upgrade {
            None => self.slots.apply(&mut peer.staged, |_| {}),
            Some(upgrade) => self.slots.apply(&mut peer.staged, |key| upgrade.note(key)),
        }
    }

    /// Retrieves a kernel session into a slot. From its retrieval on it ends with its last
    /// descriptor, so it must not be in a worker alone for a moment.
    fn retrieve(
        &mut self,
        who: Who,
        message: &Message<'_>,
        fds: &mut Vec<OwnedFd>,
    ) -> Result<(), Errno> {
        let may = self.worker.as_ref().is_some_and(|peer| !peer.quiesced && who == Who::Worker);
        if !may {
            return Err(Errno::BUSY);
        }
        let (Some((entry, record)), 1, Some(device)) =
            (message.slots().next(), message.entries.len(), fds.pop())
        else {
            return Err(Errno::INVAL);
        };
        let name = kernel::session_name(record)?;
        let key = entry.key.get();
        if self.slots.get(key).is_some() {
            return Err(Errno::EXIST);
        }
        if !self.slots.has_room(record.len()) {
            return Err(Errno::NOSPC);
        }
        let session = kernel::retrieve(device, name)?;
        self.slots.insert(key, Slot { record: record.into(), fds: Fds::One(session) });
        if let Some(upgrade) = &mut self.upgrade {
            upgrade.note(key);
        }
        Ok(())
    }
}
