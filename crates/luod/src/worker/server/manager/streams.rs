//! Calls that go on for as long as the client stays: who watches, and who takes part.
//!
//! Invariants:
//! - Events of a session reach its owner and operators, nobody else.
//! - A participant is there for as long as its connection; its name is free then, but for that of a
//!   required one.

use std::rc::Rc;
use std::time::Duration;

use luo::protocol::{self, Answer, Nothing, Participate, Watched};
use luo_core::{Criticality, SubsystemKind, SubsystemOptions};
use tokio::sync::{broadcast, mpsc};

use super::ManagerService;
use crate::worker::access::Peer;
use crate::worker::host::{Host, Told};
use crate::worker::refusal::Refusal;
use crate::worker::server::{Pending, Reply};

impl ManagerService {
    pub(super) fn watch(&self) -> Pending {
        let (sender, receiver) = mpsc::channel(1);
        let mut events = self.host.watch();
        let (host, peer) = (Rc::clone(&self.host), self.peer);
        tokio::task::spawn_local(async move {
            loop {
                let event = tokio::select! {
                    event = events.recv() => event,
                    () = sender.closed() => return,
                };
                let told = match event {
                    Ok(told) => told,
                    Err(broadcast::error::RecvError::Lagged(missed)) => {
                        let text = format!("{missed} events were not read in time");
                        let (kind, state) = ("lost".to_owned(), String::new());
                        let event = protocol::Event {
                            kind,
                            state,
                            session: None,
                            text,
                            done: None,
                            total: None,
                        };
                        Told { event, owner: None }
                    }
                    Err(broadcast::error::RecvError::Closed) => return,
                };
                let wanted = told_to(&host, peer, &told);
                let reply = Reply::part(&Watched { event: told.event }, true);
                if wanted && sender.send(reply).await.is_err() {
                    return;
                }
            }
        });
        Pending::Stream(receiver)
    }

    pub(super) fn participate(&self, parameters: Participate) -> Pending {
        let longest = self.host.config.participants.deadline_milliseconds;
        let deadline = parameters.deadline_milliseconds.unwrap_or(longest).clamp(1, longest);
        let criticality = match self.host.access.participation(self.peer, parameters.required) {
            Ok(criticality) => criticality,
            Err(refusal) => return Pending::Ready(Reply::refused_by_manager(refusal)),
        };
        let (host, peer) = (Rc::clone(&self.host), self.peer);
        let name = parameters.name;
        if let Err(refusal) =
            host.participants.borrow().room_for(peer, host.access.is_operator(peer))
        {
            return Pending::Ready(Reply::refused_by_manager(refusal));
        }
        // The place of a required participant of the worker before is not for everybody.
        let required = host.core.borrow().subsystems().any(|info| {
            info.remote && info.options.criticality == Criticality::Required && *info.name == *name
        });
        if required && !host.participants.borrow().is_there(&name) {
            let what = format!("the name {name}, which is kept for a required participant,");
            if let Err(refusal) = host.access.operator(peer, &what) {
                return Pending::Ready(Reply::refused_by_manager(refusal));
            }
        }
        let options = SubsystemOptions { criticality, concurrent: true, last: false };
        let registered =
            host.core.borrow_mut().register_subsystem(&name, SubsystemKind::Remote, options);
        if let Err(error) = registered {
            return Pending::Ready(Reply::refused_by_manager(error.into()));
        }
        let (number, mut calls) = host.participants.borrow_mut().join(
            name.clone(),
            peer,
            Duration::from_millis(deadline),
        );
        host.tell("participant", None, format!("{name} takes part, process {}", peer.pid));
        host.pump();
        host.commit();
        let (sender, receiver) = mpsc::channel(1);
        tokio::task::spawn_local(async move {
            loop {
                let call = tokio::select! {
                    call = calls.recv() => call,
                    () = sender.closed() => None,
                };
                let Some(call) = call else { break };
                if sender.send(call).await.is_err() {
                    break;
                }
            }
            let _busy = host.busy_when_resumed().await;
            host.participants.borrow_mut().leave(number);
            if let Err(error) = host.core.borrow_mut().subsystem_gone(&name) {
                tracing::debug!(%error, "a participant left that was not there any more");
            }
            host.pump();
            host.commit();
            host.idle.notify_waiters();
        });
        Pending::Stream(receiver)
    }

    pub(super) fn take_answer(&self, answer: Answer) -> Result<Reply, Refusal> {
        let (id, outcome) = self.host.participants.borrow_mut().answer(answer, self.peer)?;
        self.host.answered(id, outcome);
        self.host.pump();
        self.host.commit();
        self.host.idle.notify_waiters();
        Ok(Reply::new(&Nothing {}))
    }
}

/// What goes on in others' sessions is not for everybody; and what failed without being of one
/// session may still name several.
fn told_to(host: &Host, peer: Peer, told: &Told) -> bool {
    match (told.owner, &told.event.session) {
        (Some(owner), _) => host.access.may_use(peer, owner),
        (None, None) if told.event.kind != "failure" => true,
        (None, _) => host.access.is_operator(peer),
    }
}
