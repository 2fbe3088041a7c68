//! Participants: clients that take part in the cycle, each behind a subsystem of its name.
//!
//! Invariants:
//! - A participant is there as long as the connection of its subscription; when that ends, the
//!   framework is told and its open calls fail with its name.
//! - A call is answered once; an answer to a call that is not open is ENOENT.

use std::collections::HashMap;
use std::time::Duration;

use luo::protocol::{Answer, ParticipantCall, ParticipantPhase};
use luo_carriers::HostFile;
use luo_core::{CallId, Errno, Failure, Outcome, Phase};
use tokio::sync::mpsc;

use super::access::Peer;
use super::refusal::Refusal;
use super::server::Reply;

/// Participants of one user, where that user is no operator.
const PER_USER: usize = 16;
/// Participants altogether: the machine's record has a place for each, and some to spare.
const ALL: usize = 200;

/// Calls that may wait for a participant to read them. The framework has one open at a time;
/// what comes on top are the `cancel` of a late one and the notice of the subscription.
const BACKLOG: usize = 16;

#[derive(Debug)]
struct Participant {
    name: String,
    uid: u32,
    deadline: Duration,
    calls: mpsc::Sender<Reply>,
    /// Calls without an answer, with the data to assume where the answer has none.
    open: HashMap<u64, (Phase, u64)>,
}

/// All participants.
#[derive(Debug, Default)]
pub(crate) struct Participants {
    next: u64,
    all: HashMap<u64, Participant>,
}

impl Participants {
    /// Whether one more of this user may take part.
    ///
    /// # Errors
    /// ENOSPC, with the limit.
    pub(crate) fn room_for(&self, peer: Peer, is_operator: bool) -> Result<(), Refusal> {
        let theirs = self.all.values().filter(|participant| participant.uid == peer.uid).count();
        let reason = if self.all.len() >= ALL {
            format!("luod has {ALL} participants, and that is its limit; let one of them leave")
        } else if theirs >= PER_USER && !is_operator {
            format!(
                "uid {} has all of the {PER_USER} participants that one user may have; let one of \
                 them leave",
                peer.uid
            )
        } else {
            return Ok(());
        };
        Err(Refusal::new(Errno::NoSpc, reason))
    }

    /// A new participant; gives its number and where its calls come out.
    pub(crate) fn join(
        &mut self,
        name: String,
        peer: Peer,
        deadline: Duration,
    ) -> (u64, mpsc::Receiver<Reply>) {
        self.next += 1;
        let (calls, receiver) = mpsc::channel(BACKLOG);
        let told = calls.try_send(message(self.next, 0, ParticipantPhase::Subscribed, 0));
        debug_assert!(told.is_ok(), "a new channel has room");
        let participant =
            Participant { name, uid: peer.uid, deadline, calls, open: HashMap::new() };
        self.all.insert(self.next, participant);
        (self.next, receiver)
    }

    /// The participant has gone; gives its name.
    pub(crate) fn leave(&mut self, number: u64) -> Option<String> {
        self.all.remove(&number).map(|participant| participant.name)
    }

    /// Sends a call to the participant of this name; gives how long it may take.
    pub(crate) fn call(
        &mut self,
        name: &str,
        id: CallId,
        phase: Phase,
        data: u64,
    ) -> Result<Duration, Failure> {
        let Some((number, participant)) =
            self.all.iter_mut().find(|(_, participant)| participant.name == name)
        else {
            return Err(Failure::new(
                Errno::NotConn,
                format!(
                    "participant {name} has not come back since luod's worker was replaced; start \
                     it, or wait until luod does without it (participants.return_milliseconds)"
                ),
            ));
        };
        let asked = match phase {
            Phase::Prepare => ParticipantPhase::Prepare,
            Phase::Freeze => ParticipantPhase::Freeze,
            Phase::Boot => ParticipantPhase::Boot,
            Phase::Finish => ParticipantPhase::Finish,
            _ => ParticipantPhase::Cancel,
        };
        participant.calls.try_send(message(*number, id.0, asked, data)).map_err(|_| {
            Failure::new(Errno::TimedOut, format!("participant {name} does not read its calls"))
        })?;
        participant.open.insert(id.0, (phase, data));
        Ok(participant.deadline)
    }

    /// An answer of a participant to one of its calls.
    pub(crate) fn answer(
        &mut self,
        answer: Answer,
        peer: Peer,
    ) -> Result<(CallId, Outcome<HostFile>), Refusal> {
        let gone = || {
            let reason = "nobody waits for this answer: the call was late, or its update is over";
            Refusal::new(Errno::NoEnt, reason)
        };
        let participant = self.all.get_mut(&answer.participant).ok_or_else(gone)?;
        if participant.uid != peer.uid {
            let reason = format!("participant {} belongs to another user", participant.name);
            return Err(Refusal::new(Errno::Perm, reason));
        }
        let (phase, data) = participant.open.remove(&answer.call).ok_or_else(gone)?;
        let outcome = match answer.veto {
            Some(reason) => {
                let reason = format!("participant {} says no: {reason}", participant.name);
                Outcome::failed(Failure::new(Errno::Canceled, reason))
            }
            None => match phase {
                Phase::Prepare | Phase::Freeze => Outcome::data(answer.data.unwrap_or(data)),
                _ => Outcome::done(),
            },
        };
        Ok((CallId(answer.call), outcome))
    }

    /// Whether a participant of this name is connected.
    pub(crate) fn is_there(&self, name: &str) -> bool {
        self.all.values().any(|participant| participant.name == name)
    }

    /// Whether this call is still open.
    pub(crate) fn is_open(&self, id: CallId) -> bool {
        self.all.values().any(|participant| participant.open.contains_key(&id.0))
    }
}

fn message(participant: u64, call: u64, phase: ParticipantPhase, data: u64) -> Reply {
    Reply::part(&ParticipantCall { participant, call, phase, data }, true)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEER: Peer = Peer { uid: 1000, gid: 1000, pid: 1 };

    fn answer(participant: u64, call: u64) -> Answer {
        Answer { participant, call, data: Some(5), veto: None }
    }

    #[test]
    fn a_call_is_answered_once_and_by_its_user_alone() {
        let mut all = Participants::default();
        let (number, _calls) = all.join("db".into(), PEER, Duration::from_secs(1));
        all.call("db", CallId(9), Phase::Prepare, 0).unwrap();
        assert!(all.is_open(CallId(9)));
        let other = Peer { uid: 1001, ..PEER };
        assert_eq!(all.answer(answer(number, 9), other).unwrap_err().errno(), "EPERM");
        assert!(all.answer(answer(number, 9), PEER).is_ok());
        assert!(!all.is_open(CallId(9)));
        assert_eq!(all.answer(answer(number, 9), PEER).unwrap_err().errno(), "ENOENT");
    }

    #[test]
    fn one_who_has_gone_or_does_not_read_fails_with_its_name() {
        let mut all = Participants::default();
        let (number, calls) = all.join("db".into(), PEER, Duration::from_secs(1));
        let failure = (0..)
            .find_map(|id| all.call("db", CallId(id), Phase::Cancel, 0).err())
            .expect("the backlog is bounded");
        assert_eq!(failure.errno(), Errno::TimedOut);
        drop(calls);
        assert_eq!(all.leave(number).as_deref(), Some("db"));
        let failure = all.call("db", CallId(1), Phase::Prepare, 0).unwrap_err();
        assert!(failure.errno() == Errno::NotConn && failure.reason().contains("db"));
    }

    #[test]
    fn a_veto_keeps_its_reason() {
        let mut all = Participants::default();
        let (number, _calls) = all.join("db".into(), PEER, Duration::from_secs(1));
        all.call("db", CallId(9), Phase::Freeze, 0).unwrap();
        let veto = Answer { veto: Some("checkpoint runs".into()), ..answer(number, 9) };
        let (_, outcome) = all.answer(veto, PEER).unwrap();
        let failure = outcome.result().unwrap_err();
        assert!(failure.reason().contains("db") && failure.reason().contains("checkpoint runs"));
    }
}
