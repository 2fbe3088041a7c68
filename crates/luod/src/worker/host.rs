//! The worker's one state, and how calls of the framework are run and its transitions awaited.
//!
//! Everything here lives on one thread and is borrowed for moments only: no borrow is held across
//! an await. Handlers run on other threads, but for those that are quick; participants run in other
//! processes. Their outcomes come back here.
//!
//! Invariants:
//! - Whoever changes the framework's state calls [`Host::pump`] afterwards, and [`Host::commit`]
//!   before it tells anybody.
//! - A transition's end is told only after the keeper has its records, but for a
//!   [step](Host::run_step), whose end is told to nobody but the one who commits it.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use luo::protocol::{self, Event};
use luo_abi::TimelinePhase;
use luo_carriers::HostFile;
use luo_core::{
    Call, CallId, CallKind, CarrierId, Error, Event as CycleEvent, Failure, FinishOptions,
    Location, Notice, Orchestrator, Outcome, Owner, Phase, Report, Scope, SessionId, SessionInfo,
    TransitionId,
};
use tokio::sync::{Notify, broadcast, mpsc, oneshot};
use tokio::task::AbortHandle;

use super::access::Access;
use super::carriers::{Carriers, Shared};
use super::clients::Clients;
use super::custody::{Custody, Ticket, space};
use super::moments;
use super::participants::Participants;
use super::persist::Persisted;
use super::refusal::Refusal;
use super::sessions::Holders;
use super::timeline::{self, Timeline};
use super::timing::{Timings, micros};
use super::upgrade::Upgrades;
use crate::config::Config;

/// Handler calls that are run here before everybody else has a turn.
const QUICK_CALLS: usize = 512;
/// Handler calls that one thread gets at a time.
const CALLS_PER_THREAD: usize = 512;
/// How long a handler may take without a sign of life before its call counts as late.
const HANDLER_DEADLINE: Duration = Duration::from_secs(60);
/// Between two words on how far copying is.
const PROGRESS: Duration = Duration::from_millis(250);
/// Events that a slow watcher may be behind before it loses some.
const EVENT_BACKLOG: usize = 256;

/// How a transition ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) report: Report,
    pub(crate) total: Duration,
    pub(crate) timings: RefCell<Option<Timings>>,
}

impl Ended {
    /// Whether it was stopped in the middle, by a cancel, and undone.
    fn was_cancelled(&self) -> bool {
        self.report.state == luo_core::State::Normal
            && matches!(&self.report.result, Err(error) if error.errno() == luo_core::Errno::Canceled)
    }

    /// As the interface tells it.
    pub(crate) fn to_protocol(&self) -> Result<protocol::Report, Refusal> {
        if let Err(error) = &self.report.result {
            return Err(error.into());
        }
        Ok(self.told_as(self.report.event.name()))
    }

    /// As the interface tells it to who has cancelled it.
    pub(crate) fn told_as(&self, event: &str) -> protocol::Report {
        let timings = self.timings.borrow_mut().take();
        protocol::Report {
            event: event.to_owned(),
            state: state(self.report.state),
            microseconds: micros(self.total),
            timings: timings.map(Timings::into_protocol).unwrap_or_default(),
            left_out: self.report.left_out.iter().map(|error| *Refusal::from(error).0).collect(),
            needs: None,
        }
    }
}

/// The framework's state in the words of the interface.
pub(crate) fn state(state: luo_core::State) -> protocol::State {
    match state {
        luo_core::State::Normal => protocol::State::Normal,
        luo_core::State::Prepared => protocol::State::Prepared,
        luo_core::State::Frozen => protocol::State::Frozen,
        luo_core::State::Updated => protocol::State::Updated,
    }
}

/// A transition that has begun.
#[derive(Debug)]
pub(crate) struct Awaited(oneshot::Receiver<Result<Rc<Ended>, Refusal>>);

impl Awaited {
    /// Its end, once the keeper has its records.
    pub(crate) async fn end(self) -> Result<Rc<Ended>, Refusal> {
        self.0.await.unwrap_or_else(|_| {
            Err(Refusal::new(luo_core::Errno::Canceled, "luod is being stopped; ask again"))
        })
    }
}

/// What a transition is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    /// Itself.
    Own,
    /// One step of several, which are kept together: its end is told at once.
    Step,
    /// To finish a session, as this request asks.
    Finish(SessionId, u64),
}

#[derive(Debug)]
struct Transition {
    timings: Timings,
    waiters: Vec<oneshot::Sender<Result<Rc<Ended>, Refusal>>>,
    purpose: Purpose,
}

/// A participant's call that is on its way.
#[derive(Debug)]
struct Remote {
    phase: Phase,
    location: Location,
    transition: Option<TransitionId>,
    start: Instant,
}

/// What one handler call gave, from its thread.
struct Done {
    id: CallId,
    outcome: Outcome<HostFile>,
    start: Instant,
    end: Instant,
}

/// Copying is told of as long as this is there.
pub(crate) struct Ticking(AbortHandle);

impl Drop for Ticking {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// An event, and whom it concerns.
#[derive(Debug, Clone)]
pub(crate) struct Told {
    pub(crate) event: Event,
    /// The owner of the event's session, which may have ended since.
    pub(crate) owner: Option<Owner>,
}

/// The worker's state.
pub(crate) struct Host {
    pub(crate) config: Config,
    pub(crate) access: Access,
    pub(crate) core: RefCell<Orchestrator<HostFile>>,
    pub(crate) custody: Custody,
    pub(crate) carriers: Carriers,
    pub(crate) persisted: RefCell<Persisted>,
    pub(crate) timeline: Timeline,
    pub(crate) holders: RefCell<Holders>,
    pub(crate) participants: RefCell<Participants>,
    pub(crate) clients: Clients,
    pub(crate) upgrades: Upgrades,
    /// Something about sessions has changed: claims look again.
    pub(crate) sessions_changed: Notify,
    /// Files were retrieved: who waits for one looks again.
    pub(crate) retrieved: Notify,
    events: broadcast::Sender<Told>,
    transitions: RefCell<HashMap<TransitionId, Transition>>,
    remote: RefCell<HashMap<CallId, Remote>>,
    /// [`Host::pump`] will be called soon.
    pumping: Cell<bool>,
    /// Threads that run handlers, and a pump that is to come.
    pub(crate) running: Cell<usize>,
    pub(crate) idle: Notify,
    /// The machine had departed, through that carrier, when this worker began.
    pub(crate) departed: Option<CarrierId>,
}

impl std::fmt::Debug for Host {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Host").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Host {
    pub(crate) fn new(
        config: Config,
        core: Orchestrator<HostFile>,
        custody: Custody,
        carriers: Carriers,
        persisted: Persisted,
        departed: Option<CarrierId>,
        timeline: Timeline,
    ) -> Rc<Self> {
        let (events, _) = broadcast::channel(EVENT_BACKLOG);
        let clients = Clients::new(config.clients.connections_per_user);
        Rc::new(Self {
            config,
            access: Access { own_uid: rustix::process::geteuid().as_raw() },
            core: RefCell::new(core),
            custody,
            carriers,
            persisted: RefCell::new(persisted),
            timeline,
            holders: RefCell::default(),
            participants: RefCell::default(),
            clients,
            upgrades: Upgrades::default(),
            sessions_changed: Notify::new(),
            retrieved: Notify::new(),
            events,
            transitions: RefCell::default(),
            remote: RefCell::default(),
            pumping: Cell::new(false),
            running: Cell::new(0),
            idle: Notify::new(),
            departed,
        })
    }

    /// Events from now on.
    pub(crate) fn watch(&self) -> broadcast::Receiver<Told> {
        self.events.subscribe()
    }

    /// Tells watchers and the log.
    pub(crate) fn tell(&self, kind: &str, session: Option<String>, text: String) {
        let owner = session.as_ref().and_then(|name| {
            let core = self.core.borrow();
            core.session_by_name(name).and_then(|id| core.session(id)).map(|info| info.owner)
        });
        self.tell_owner(kind, session, owner, text);
    }

    /// As [`tell`](Self::tell), of a session that has ended.
    pub(crate) fn tell_end(&self, kind: &str, ended: &SessionInfo, text: String) {
        self.tell_owner(kind, Some(ended.name.to_string()), Some(ended.owner), text);
    }

    /// Tells watchers how far copying is, until it is dropped. Not the log: it is no news later.
    pub(crate) fn tell_progress(self: &Rc<Self>) -> Ticking {
        let host = Rc::clone(self);
        let ticking = tokio::task::spawn_local(async move {
            let mut before = host.carriers.copying.bytes();
            let mut beats = host.carriers.copying.beats();
            loop {
                tokio::time::sleep(PROGRESS).await;
                let copying = &host.carriers.copying;
                let (now, bytes) = (copying.beats(), copying.bytes());
                if now == beats {
                    continue;
                }
                beats = now;
                // An arena that was opened meanwhile counts from zero.
                if bytes < before {
                    before = 0;
                }
                let done = bytes - before;
                let (total, state) = {
                    let core = host.core.borrow();
                    (core.pinned().max(done), core.status().state.name().to_owned())
                };
                let event = Event {
                    kind: "progress".to_owned(),
                    state,
                    session: None,
                    text: format!("{done} of {total} bytes"),
                    done: Some(done),
                    total: Some(total),
                };
                // Nobody may be watching.
                let _ = host.events.send(Told { event, owner: None });
            }
        });
        Ticking(ticking.abort_handle())
    }

    fn tell_owner(&self, kind: &str, session: Option<String>, owner: Option<Owner>, text: String) {
        tracing::info!(kind, session = session.as_deref(), "{text}");
        let state = self.core.borrow().status().state.name().to_owned();
        let event = Event { kind: kind.to_owned(), state, session, text, done: None, total: None };
        // Nobody may be watching.
        let _ = self.events.send(Told { event, owner });
    }

    /// Begins a transition; what comes out is told once the keeper has its records.
    fn begin(
        self: &Rc<Self>,
        purpose: Purpose,
        start: impl FnOnce(&mut Orchestrator<HostFile>) -> Result<TransitionId, Error>,
    ) -> Result<Awaited, Refusal> {
        let id = start(&mut self.core.borrow_mut())?;
        self.time_machine(id);
        let (waiter, waiting) = oneshot::channel();
        // A cancel of what is going on is that transition: both wait for its end.
        self.transitions
            .borrow_mut()
            .entry(id)
            .or_insert_with(|| Transition {
                timings: Timings::new(Instant::now()),
                waiters: Vec::new(),
                purpose,
            })
            .waiters
            .push(waiter);
        self.pump();
        Ok(Awaited(waiting))
    }

    /// The machine's own transitions are timed for both sides of its update.
    fn time_machine(&self, id: TransitionId) {
        if self.transitions.borrow().contains_key(&id) {
            return;
        }
        let core = self.core.borrow();
        let (number, carrier) = (core.number() + 1, self.carriers.name(core.carrier()));
        match core.status().transition {
            Some(CycleEvent::Prepare) => self.timeline.prepares(number, carrier),
            Some(CycleEvent::Freeze) => self.timeline.freezes(number, carrier),
            _ => {}
        }
    }

    /// Before the call that writes the times down: what was timed so far goes along.
    fn note_times(&self, call: &Call<HostFile>) {
        let is_it = call.phase() == Phase::Freeze
            && call.location().subsystem.as_ref().is_some_and(|name| **name == *timeline::NAME);
        let transitions = self.transitions.borrow();
        let transition = call.transition().filter(|_| is_it).and_then(|id| transitions.get(&id));
        if let Some(transition) = transition {
            self.timeline.frozen(transition.timings.parts());
        }
    }

    /// A transition has ended: what of it belongs to a live update's times.
    fn time_ended(&self, report: &Report, timings: Option<&Timings>, total: Duration) {
        let began = timings.map_or_else(Instant::now, Timings::began);
        let done = report.result.is_ok();
        let (event, scope) = (report.event, report.scope);
        match (event, scope) {
            (CycleEvent::Prepare, Scope::Machine) if done => {
                self.timeline.prepared(timings.map(Timings::parts).unwrap_or_default());
            }
            (CycleEvent::Prepare | CycleEvent::Freeze, Scope::Machine) if !done => {
                self.timeline.cancelled();
            }
            (CycleEvent::Cancel, Scope::Machine) => self.timeline.cancelled(),
            (CycleEvent::Arrive, Scope::Machine) if done => {
                self.timeline.took(TimelinePhase::Arrive, None, began, total);
            }
            (CycleEvent::Finish, Scope::Machine) if done => {
                self.timeline.took(TimelinePhase::Finish, None, began, total);
            }
            (CycleEvent::Finish, Scope::Session(id)) if done => {
                self.time_session(TimelinePhase::Finish, id, began);
            }
            _ => {}
        }
    }

    /// Something was done for a session, from `began` to now: told of the machine's update alone.
    pub(crate) fn time_session(&self, phase: TimelinePhase, id: SessionId, began: Instant) {
        let core = self.core.borrow();
        if core.status().state != luo_core::State::Updated {
            return;
        }
        if let Some(info) = core.session(id) {
            self.timeline.took(phase, Some(&info.name), began, began.elapsed());
        }
    }

    /// Finishes a session's live update. The request is noted with the records of its end, and
    /// neither sooner nor later: a repetition is known by it.
    pub(crate) async fn finish_session(
        self: &Rc<Self>,
        id: SessionId,
        options: FinishOptions,
        request: u64,
    ) -> Result<(), Refusal> {
        let start =
            |core: &mut Orchestrator<HostFile>| core.finish(luo_core::Scope::Session(id), options);
        succeeded(self.begin(Purpose::Finish(id, request), start)?.end().await?).map(drop)
    }

    /// A participant that has just come may be taking its boot data: who finishes now waits for that, as
    /// long as the participant may take for it, and is refused then.
    pub(crate) async fn participants_have_booted(&self) {
        let wait = Duration::from_millis(self.config.participants.deadline_milliseconds);
        let booted = async {
            loop {
                let changed = self.idle.notified();
                tokio::pin!(changed);
                // From here on no change is missed.
                changed.as_mut().enable();
                if !self.core.borrow().is_booting() {
                    return;
                }
                changed.await;
            }
        };
        // What is refused then says who is late.
        let _ = tokio::time::timeout(wait, booted).await;
    }

    /// Begins a transition and waits for its end; a failed one is a refusal.
    pub(crate) async fn run(
        self: &Rc<Self>,
        start: impl FnOnce(&mut Orchestrator<HostFile>) -> Result<TransitionId, Error>,
    ) -> Result<Rc<Ended>, Refusal> {
        succeeded(self.begin(Purpose::Own, start)?.end().await?)
    }

    /// Cancels what is going on or what was reached; the end of either is what was asked for.
    pub(crate) async fn cancel(
        self: &Rc<Self>,
        scope: luo_core::Scope,
    ) -> Result<Rc<Ended>, Refusal> {
        let start = |core: &mut Orchestrator<HostFile>| core.begin(scope, luo_core::Event::Cancel);
        if scope == luo_core::Scope::Machine {
            self.take_departure_back().await?;
        }
        let cancelling = self.begin(Purpose::Own, start)?;
        if scope == luo_core::Scope::Machine {
            // Not before it is allowed: what arrived would not be copied back any more.
            self.carriers.copying.cancel();
        }
        let ended = cancelling.end().await?;
        if ended.was_cancelled() { Ok(ended) } else { succeeded(ended) }
    }

    /// As [`run`](Self::run), for one step of several: the keeper gets its records with those of
    /// the steps after it. Whoever asks for it commits before anybody is told.
    pub(crate) async fn run_step(
        self: &Rc<Self>,
        start: impl FnOnce(&mut Orchestrator<HostFile>) -> Result<TransitionId, Error>,
    ) -> Result<Rc<Ended>, Refusal> {
        succeeded(self.begin(Purpose::Step, start)?.end().await?)
    }

    /// Starts what can start and tells what has ended.
    pub(crate) fn pump(self: &Rc<Self>) {
        let quick = self.carriers.near().is_quick();
        let mut left = if quick { QUICK_CALLS } else { 0 };
        let mut retrieved = false;
        loop {
            let mut local = Vec::new();
            let mut busy = false;
            while left > 0 || !quick {
                let call = self.core.borrow_mut().next_call();
                match call {
                    Some(call) if call.kind() == CallKind::Remote => {
                        busy = true;
                        self.call_participant(&call);
                    }
                    Some(call)
                        if left > 0 && call.is_quick() && call.carrier() == CarrierId::NEAR =>
                    {
                        busy = true;
                        left -= 1;
                        self.call_quickly(&call);
                    }
                    Some(call) => {
                        self.note_times(&call);
                        local.push(call);
                    }
                    None => break,
                }
            }
            while !local.is_empty() {
                let rest = local.split_off(local.len().min(CALLS_PER_THREAD));
                self.call_handlers(std::mem::replace(&mut local, rest));
            }
            loop {
                let notice = self.core.borrow_mut().take_notice();
                let Some(notice) = notice else { break };
                busy = true;
                retrieved |= matches!(notice, Notice::Retrieved { .. });
                self.notice(notice);
            }
            if !busy {
                break;
            }
            if left == 0 && quick {
                self.pump_later();
                break;
            }
        }
        if retrieved {
            self.retrieved.notify_waiters();
        }
    }

    /// Goes on with what is left once everybody else has had a turn.
    fn pump_later(self: &Rc<Self>) {
        if self.pumping.replace(true) {
            return;
        }
        let host = Rc::clone(self);
        self.running.set(self.running.get() + 1);
        tokio::task::spawn_local(async move {
            tokio::task::yield_now().await;
            host.pumping.set(false);
            host.running.set(host.running.get() - 1);
            host.pump();
            host.idle.notify_waiters();
        });
    }

    /// Writes what has changed to the keeper; the ticket says when the keeper has it.
    pub(crate) fn commit(&self) -> Ticket {
        let mut core = self.core.borrow_mut();
        let mut holders = self.holders.borrow_mut();
        self.persisted.borrow_mut().write(&mut core, &mut holders, &self.custody);
        if let Some(bytes) = self.timeline.take_changed() {
            let key = self.custody.keys(space::TIMELINE).first().copied();
            let key = key.unwrap_or_else(|| self.custody.allocate(space::TIMELINE));
            self.custody.put(key, &bytes, &[]);
        }
        self.custody.commit()
    }

    fn call_participant(self: &Rc<Self>, call: &Call<HostFile>) {
        let name = call.location().subsystem.as_ref().map(ToString::to_string).unwrap_or_default();
        let (id, phase) = (call.id(), call.phase());
        let remote = Remote {
            phase,
            location: call.location().clone(),
            transition: call.transition(),
            start: Instant::now(),
        };
        self.remote.borrow_mut().insert(id, remote);
        let called =
            self.participants.borrow_mut().call(&name, id, phase, call.data().unwrap_or(0));
        match called {
            Err(failure) => self.answered(id, Outcome::failed(failure)),
            Ok(deadline) => {
                let host = Rc::clone(self);
                tokio::task::spawn_local(async move {
                    tokio::time::sleep(deadline).await;
                    if host.participants.borrow().is_open(id) {
                        let reason = format!(
                            "participant {name} did not answer {phase} within {} ms",
                            deadline.as_millis()
                        );
                        host.answered(id, Outcome::late(reason));
                        host.pump();
                        host.commit();
                    }
                });
            }
        }
    }

    /// A participant's call has ended, or is late.
    pub(crate) fn answered(&self, id: CallId, outcome: Outcome<HostFile>) {
        if let Some(remote) = self.remote.borrow_mut().remove(&id) {
            self.time(
                remote.transition,
                remote.phase,
                &remote.location,
                remote.start,
                Instant::now(),
            );
        }
        // An answer to a call that the framework has given up is no error of anybody's.
        if let Err(error) = self.core.borrow_mut().complete(id, outcome) {
            tracing::debug!(%error, "an answer came too late");
        }
    }

    /// Runs a handler call that waits for nobody.
    fn call_quickly(&self, call: &Call<HostFile>) {
        // Only what a transition takes is told to anybody.
        let start = call.transition().map(|_| Instant::now());
        let carrier = self.carriers.through(call.carrier());
        let ran = std::panic::catch_unwind(AssertUnwindSafe(|| run(call, &*carrier)));
        let outcome = ran.unwrap_or_else(|_| Outcome::failed(no_result()));
        if let Some(start) = start {
            self.time(call.transition(), call.phase(), call.location(), start, Instant::now());
        }
        if let Err(error) = self.core.borrow_mut().complete(call.id(), outcome) {
            tracing::debug!(%error, "a call ended that was not open any more");
        }
    }

    /// Runs handler calls on a thread of their own.
    fn call_handlers(self: &Rc<Self>, calls: Vec<Call<HostFile>>) {
        let mut open: HashMap<CallId, (Phase, Location, Option<TransitionId>)> = calls
            .iter()
            .map(|call| (call.id(), (call.phase(), call.location().clone(), call.transition())))
            .collect();
        let calls: Vec<(Call<HostFile>, Arc<Shared>)> = calls
            .into_iter()
            .map(|call| {
                let carrier = self.carriers.through(call.carrier());
                (call, carrier)
            })
            .collect();
        // A handover that outlives this worker is noted before it is laid down: the next one looks for
        // it only where it was noted.
        let commits = |(call, _): &(Call<_>, _)| {
            call.phase() == Phase::Depart && call.carrier() != CarrierId::NEAR
        };
        let noted = calls.iter().any(commits).then(|| self.commit());
        let (sender, mut receiver) = mpsc::unbounded_channel();
        self.running.set(self.running.get() + 1);
        let run = move || {
            for (call, carrier) in calls {
                let start = Instant::now();
                let outcome = run(&call, &*carrier);
                let done = Done { id: call.id(), outcome, start, end: Instant::now() };
                // Who learns of the end may open the arena again at once: it is let go of before.
                drop(carrier);
                if sender.send(done).is_err() {
                    return;
                }
            }
        };
        let host = Rc::clone(self);
        let waiting = match noted {
            Some(ticket) => Some((ticket, run)),
            None => {
                tokio::task::spawn_blocking(run);
                None
            }
        };
        tokio::task::spawn_local(async move {
            if let Some((ticket, run)) = waiting {
                match ticket.await {
                    Ok(()) => {
                        tokio::task::spawn_blocking(run);
                    }
                    Err(refusal) => {
                        // With it goes what would tell of an outcome.
                        drop(run);
                        for (id, _) in open.drain() {
                            let reason = format!("it cannot be noted: {}", refusal.reason());
                            let failure = Failure::new(luo_core::Errno::Io, reason);
                            host.answered(id, Outcome::failed(failure));
                        }
                    }
                }
            }
            let copying = Arc::clone(&host.carriers.copying);
            let mut beats = copying.beats();
            loop {
                match tokio::time::timeout(HANDLER_DEADLINE, receiver.recv()).await {
                    Ok(Some(done)) => {
                        host.handled(&mut open, done);
                        while let Ok(done) = receiver.try_recv() {
                            host.handled(&mut open, done);
                        }
                    }
                    Ok(None) => break,
                    Err(_) if copying.beats() != beats => beats = copying.beats(),
                    Err(_) => {
                        for (id, (phase, location, _)) in open.drain() {
                            let reason = format!(
                                "{phase} of {location} did not end within {} s",
                                HANDLER_DEADLINE.as_secs()
                            );
                            let late = Outcome::late(reason);
                            if let Err(error) = host.core.borrow_mut().complete(id, late) {
                                tracing::debug!(%error, "a late call was not open any more");
                            }
                        }
                    }
                }
                host.pump();
            }
            // A handler that panicked takes its thread along: its calls have failed.
            for (id, _) in open.drain() {
                let outcome = Outcome::failed(no_result());
                if let Err(error) = host.core.borrow_mut().complete(id, outcome) {
                    tracing::debug!(%error, "a failed call was not open any more");
                }
            }
            host.running.set(host.running.get() - 1);
            host.pump();
            host.commit();
            host.idle.notify_waiters();
        });
    }

    fn handled(
        &self,
        open: &mut HashMap<CallId, (Phase, Location, Option<TransitionId>)>,
        done: Done,
    ) {
        if let Some((phase, location, transition)) = open.remove(&done.id) {
            self.time(transition, phase, &location, done.start, done.end);
        }
        if let Err(error) = self.core.borrow_mut().complete(done.id, done.outcome) {
            tracing::debug!(%error, "a call ended that was not open any more");
        }
    }

    fn time(
        &self,
        transition: Option<TransitionId>,
        phase: Phase,
        location: &Location,
        start: Instant,
        end: Instant,
    ) {
        let mut transitions = self.transitions.borrow_mut();
        if let Some(transition) = transition.and_then(|id| transitions.get_mut(&id)) {
            transition.timings.add(phase, location, start, end);
        }
    }

    fn notice(self: &Rc<Self>, notice: Notice) {
        match notice {
            Notice::Ended(report) => self.ended(report),
            Notice::Retrieved { .. } => {}
            Notice::Booted { subsystem, result } => {
                let text = match result {
                    Ok(()) => format!("{subsystem} has got its data"),
                    Err(error) => format!("{subsystem} could not take its data: {error}"),
                };
                self.tell("participant", None, text);
            }
            Notice::Undone(error) => self.tell("failure", None, format!("undone: {error}")),
            Notice::Removed(subsystem) => {
                self.tell("participant", None, format!("{subsystem} has gone"));
            }
            _ => {}
        }
    }

    fn ended(self: &Rc<Self>, report: Report) {
        let transition = self.transitions.borrow_mut().remove(&report.id);
        let (total, timings, waiters, purpose) = match transition {
            Some(Transition { timings, waiters, purpose }) => {
                (timings.total(Instant::now()), Some(timings), waiters, purpose)
            }
            None => (Duration::ZERO, None, Vec::new(), Purpose::Own),
        };
        self.time_ended(&report, timings.as_ref(), total);
        if let (Purpose::Finish(id, request), Ok(())) = (purpose, &report.result) {
            self.persisted.borrow_mut().session_extra(id).finished_by = request;
        }
        let (session, what) = match report.scope {
            luo_core::Scope::Machine => (None, Some("machine".to_owned())),
            luo_core::Scope::Session(id) | luo_core::Scope::File(id, _) => {
                let name = self.core.borrow().session(id).map(|info| info.name.to_string());
                let what = name.as_ref().map(|name| format!("session {name}"));
                (name, what)
            }
        };
        // That a session has ended is told by whoever ended it.
        if let Some(what) = what {
            self.tell_ended(&report, session, &what, total);
        }
        if report.scope == luo_core::Scope::Machine {
            self.close_arena_after_use();
        }
        self.sessions_changed.notify_waiters();
        let ended = Rc::new(Ended { report, total, timings: RefCell::new(timings) });
        if purpose == Purpose::Step {
            for waiter in waiters {
                // Who asked may have gone.
                let _ = waiter.send(Ok(Rc::clone(&ended)));
            }
            return;
        }
        let event = ended.report.event.name();
        moments::reach("ended", event);
        self.note_departure(&ended.report);
        let ticket = self.commit();
        let host = Rc::clone(self);
        tokio::task::spawn_local(async move {
            let kept = ticket.await.map(|()| ended);
            moments::reach("kept", event);
            if kept.is_ok() {
                host.end_arrival().await;
            }
            if let Err(refusal) = &kept {
                let reason = refusal.reason();
                tracing::error!(reason, "the keeper did not take the records of a transition");
            }
            for waiter in waiters {
                // Who asked may have gone.
                let _ = waiter.send(kept.clone());
            }
        });
    }

    fn tell_ended(&self, report: &Report, session: Option<String>, what: &str, total: Duration) {
        let text = match &report.result {
            Ok(()) => format!(
                "{what}: {} done in {} us, state {}",
                report.event,
                micros(total),
                report.state
            ),
            Err(error) => format!("{what}: {} failed: {error}", report.event),
        };
        self.tell(if report.result.is_ok() { "state" } else { "failure" }, session, text);
        for error in &report.left_out {
            self.tell("failure", None, format!("{} goes on without: {error}", report.event));
        }
    }
}

/// Runs a handler call.
fn run(call: &Call<HostFile>, carrier: &Shared) -> Outcome<HostFile> {
    moments::reach("call", call.phase().name());
    let outcome = call.run(carrier);
    moments::reach("called", call.phase().name());
    outcome
}

/// A failed transition is a refusal.
fn succeeded(ended: Rc<Ended>) -> Result<Rc<Ended>, Refusal> {
    match &ended.report.result {
        Ok(()) => Ok(ended),
        Err(error) => Err(error.into()),
    }
}

/// A handler panicked.
fn no_result() -> Failure {
    let reason = "the handler ended without a result; this is a bug of the handler";
    Failure::new(luo_core::Errno::Io, reason)
}
