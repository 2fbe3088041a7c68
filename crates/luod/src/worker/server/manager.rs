//! The interface `io.luo`: luod as a whole.

use std::fs::File;
use std::future::Future;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::rc::Rc;
use std::time::Duration;

use luo::protocol::{
    self, Answer, ClaimSession, CreateSession, FileInfo, FileList, FinishMachine, HandlerInfo,
    HandlerList, Handover, LastTimeline, ListFiles, MANAGER, Nothing, OwnKernelSession,
    Participate, ReleaseSession, Report, Reported, SessionGiven, SessionInfo, SessionList, Status,
    SubsystemInfo, Through, Upgrade, Watched,
};
use luo_core::{
    CarrierId, Criticality, Errno, Event, FileKey, FinishOptions, Incoming, OnClose, Policy, Scope,
    SessionId, Side, State, SubsystemKind, SubsystemOptions, Token,
};
use rustix::fs::{MemfdFlags, memfd_create};
use tokio::sync::{broadcast, mpsc};

use super::connection::{Given, Service};
use super::introspect::{self, Call};
use super::session::unclaimed_files;
use super::{Descriptor, Pending, Reply};
use crate::worker::access::Peer;
use crate::worker::carriers::LIVEUPDATE;
use crate::worker::host::{Host, Told, state};
use crate::worker::refusal::Refusal;
use crate::worker::sessions::{is_stream, now_seconds};
use crate::worker::timeline::measure::measure;
use crate::worker::upgrade::LAST_WORDS;

/// Files in one part of a list.
const FILES_PER_PART: usize = 1_000;
/// The longest a client may wait for a session, in milliseconds.
const LONGEST_WAIT: u64 = 3_600_000;
/// Deadline of an upgrade unless one is asked for, in milliseconds.
const UPGRADE_DEADLINE: u64 = 10_000;
/// The longest deadline that the keeper takes; what is asked for beyond it is this.
const UPGRADE_DEADLINE_MAX: u64 = 3_600_000;

/// How far a list of files has been read.
#[derive(Debug, Default)]
struct Place {
    session: usize,
    last: Option<(Side, Token)>,
}

impl Host {
    /// The next files of these sessions: at most one more than a part has, which tells that there
    /// is another part. The place is after the last file of the part.
    fn part(&self, sessions: &[(SessionId, String)], place: &mut Place) -> Vec<FileInfo> {
        let core = self.core.borrow();
        let mut part = Vec::new();
        while let Some((id, name)) = sessions.get(place.session) {
            for file in core.files_after(*id, place.last) {
                part.push(describe_file(&core, *id, name, &file));
                if part.len() > FILES_PER_PART {
                    return part;
                }
                place.last = Some((file.side, file.token));
            }
            place.session += 1;
            place.last = None;
        }
        part
    }
}

fn describe_file(
    core: &luo_core::Orchestrator<luo_carriers::HostFile>,
    id: SessionId,
    name: &str,
    file: &luo_core::FileInfo,
) -> FileInfo {
    let key = FileKey { session: id, side: file.side, token: file.token };
    let failure = match &file.incoming {
        Some(Incoming::Failed(error)) => Some(*Refusal::from(error).0),
        _ => file.left_out.as_ref().map(|error| *Refusal::from(error).0),
    };
    let phase = match &file.incoming {
        Some(Incoming::Failed(_)) => "failed",
        _ if file.reclaimed => "reclaimed",
        Some(Incoming::Retrieved) => "retrieved",
        Some(_) => "incoming",
        None => match file.state {
            State::Prepared => "prepared",
            State::Frozen => "frozen",
            _ => "registered",
        },
    };
    FileInfo {
        session: name.to_owned(),
        token: file.token.0,
        handler: file.compatible.to_string(),
        required: file.criticality == Criticality::Required,
        phase: phase.to_owned(),
        what: core.file_ref(key).map_or_else(|| "not retrieved".to_owned(), |file| what(&file)),
        pinned: file.pinned,
        failure,
    }
}

/// Serves one client's connection to luod itself.
pub(crate) struct ManagerService {
    host: Rc<Host>,
    peer: Peer,
}

impl ManagerService {
    pub(super) fn new(host: Rc<Host>, peer: Peer) -> Self {
        Self { host, peer }
    }

    fn answer(&self, call: &Call<'_>, descriptors: Given) -> Result<Pending, Reply> {
        let Some(method) = call.method.strip_prefix(MANAGER).and_then(|m| m.strip_prefix('.'))
        else {
            return Ok(
                introspect::answer(call).map_or_else(|| introspect::unknown(call), Pending::Ready)
            );
        };
        let host = Rc::clone(&self.host);
        Ok(match method {
            "GetStatus" => Pending::Ready(Reply::new(&self.status())),
            "GetTimeline" => Pending::Ready(Reply::new(&self.timeline())),
            "ListHandlers" => Pending::Ready(Reply::new(&self.handlers())),
            "ListSessions" => Pending::Ready(Reply::new(&self.sessions())),
            "ListFiles" => self.files(&call.parameters()?, call.more),
            "CreateSession" => self.create(call.parameters()?, first_connection(descriptors)?),
            "ClaimSession" => self.claim(call.parameters()?, first_connection(descriptors)?),
            "ReleaseSession" => {
                let ReleaseSession { name } = call.parameters()?;
                let peer = self.peer;
                later(async move {
                    let _busy = host.busy_when_resumed().await;
                    let info = host.session_for(&name, peer)?;
                    host.release(info.id).await?;
                    host.tell_end("session", &info, format!("released by uid {}", peer.uid));
                    Ok(Reply::new(&Nothing {}))
                })
            }
            "Prepare" => {
                let Through { carrier } = call.parameters()?;
                self.event("prepare", |host| async move {
                    let carrier = host.carriers.asked_for(carrier.as_deref())?;
                    host.run_through(Event::Prepare, carrier).await?.to_protocol()
                })
            }
            "Freeze" => {
                self.event("freeze", |host| async move { host.freeze().await?.to_protocol() })
            }
            "Cancel" => self.event("cancel", |host| async move {
                let _busy = host.busy_when_resumed().await;
                Ok(host.cancel(Scope::Machine).await?.told_as("cancel"))
            }),
            "Depart" => self.depart(),
            "Finish" => {
                let FinishMachine { unclaimed } = call.parameters()?;
                let options = FinishOptions {
                    unclaimed: unclaimed_files(unclaimed.unwrap_or_default()),
                    carry_reclaimed: false,
                };
                self.event("finish", move |host| async move {
                    host.participants_have_booted().await;
                    host.run(|core| core.finish(Scope::Machine, options)).await?.to_protocol()
                })
            }
            "Rehearse" => {
                let Through { carrier } = call.parameters()?;
                self.event("rehearse", |host| async move {
                    let carrier = host.carriers.asked_for(carrier.as_deref())?;
                    host.rehearse(carrier).await
                })
            }
            "Upgrade" => self.upgrade(call.parameters()?, descriptors),
            "GetHandover" => Pending::Ready(or_refused(self.handover())),
            "Watch" if call.more => self.watch(),
            "Participate" if call.more => self.participate(call.parameters()?),
            "Watch" | "Participate" => {
                Pending::Ready(Reply::service_error("ExpectedMore", "method", &call.method))
            }
            "Answer" => Pending::Ready(or_refused(self.take_answer(call.parameters()?))),
            _ => introspect::unknown(call),
        })
    }

    fn status(&self) -> Status {
        let core = self.host.core.borrow();
        let machine = core.status();
        let (mut files, mut unclaimed, mut unclaimed_pinned, mut sessions) = (0, 0, 0, 0);
        for session in core.sessions() {
            sessions += 1;
            files += (session.outgoing + session.incoming) as u64;
            if session.unclaimed {
                unclaimed += 1;
                unclaimed_pinned += session.pinned;
            }
        }
        let subsystems = core
            .subsystems()
            .map(|info| SubsystemInfo {
                name: info.name.to_string(),
                participant: info.remote,
                required: info.options.criticality == Criticality::Required,
                phase: info.state.name().to_owned(),
            })
            .collect();
        let limits = self.host.config.limits;
        let carrier = self.host.custody.carrier();
        Status {
            version: self.host.upgrades.version().to_owned(),
            pid: u64::from(std::process::id()),
            incarnation: self.host.custody.incarnation(),
            keeper: self.host.config.keeper.name().to_owned(),
            carrier: carrier.name().to_owned(),
            carriers: self.host.carriers.names().into_iter().map(str::to_owned).collect(),
            reach: carrier.reach().name().to_owned(),
            through: (machine.state != State::Normal || machine.transition.is_some())
                .then(|| self.host.carriers.name(core.carrier()).to_owned()),
            arena: self.host.config.arena.as_ref().map(|path| path.display().to_string()),
            arena_failure: self.host.carriers.arena_failure(),
            arena_room: self.host.carriers.usage().map(|usage| protocol::ArenaRoom {
                size: usage.size,
                used: usage.used,
                lent: usage.lent,
                free: usage.free,
            }),
            state: state(machine.state),
            transition: machine.transition.map(|event| event.name().to_owned()),
            liveupdate_number: core.number(),
            measured: self.host.timeline.record().map(|record| record.number),
            sessions,
            files,
            pinned: core.pinned(),
            unclaimed,
            unclaimed_pinned,
            subsystems,
            limits: protocol::Limits {
                sessions: limits.sessions,
                files: limits.files,
                bytes: limits.bytes,
            },
        }
    }

    /// Others' sessions are told to nobody but operators.
    fn timeline(&self) -> LastTimeline {
        let mut timeline = self.host.timeline.record().as_ref().and_then(measure);
        if !self.host.access.is_operator(self.peer)
            && let Some(timeline) = &mut timeline
        {
            let may_see = |name: &str| self.host.session_for(name, self.peer).is_ok();
            timeline.spans.retain(|span| span.session.as_deref().is_none_or(may_see));
            if let Some(blackout) = &mut timeline.blackout
                && !may_see(&blackout.session)
            {
                blackout.session.clear();
            }
        }
        LastTimeline { timeline }
    }

    fn handlers(&self) -> HandlerList {
        let core = self.host.core.borrow();
        let carriers = self.host.carriers.abilities();
        let handlers = core.handlers().map(|handler| {
            let can = carriers.iter().filter(|(_, caps)| caps.contains(handler.requires()));
            HandlerInfo {
                compatible: handler.compatible().to_owned(),
                carriers: can.map(|(name, _)| (*name).to_owned()).collect(),
            }
        });
        HandlerList { handlers: handlers.collect() }
    }

    fn sessions(&self) -> SessionList {
        let core = self.host.core.borrow();
        let sessions = core
            .sessions()
            .filter(|info| self.host.access.may_use(self.peer, info.owner))
            .map(|info| describe(&self.host, &core, &info))
            .collect();
        SessionList { sessions }
    }

    fn describe(&self, id: SessionId) -> Result<SessionInfo, Refusal> {
        let info = self.host.session_info(id)?;
        Ok(describe(&self.host, &self.host.core.borrow(), &info))
    }

    fn files(&self, parameters: &ListFiles, more: bool) -> Pending {
        let listed = match &parameters.session {
            Some(name) => match self.host.session_for(name, self.peer) {
                Ok(info) => vec![(info.id, info.name.to_string())],
                Err(refusal) => return Pending::Ready(Reply::refused_by_manager(refusal)),
            },
            None => self
                .host
                .core
                .borrow()
                .sessions()
                .filter(|info| self.host.access.may_use(self.peer, info.owner))
                .map(|info| (info.id, info.name.to_string()))
                .collect(),
        };
        if !more {
            let part = self.host.part(&listed, &mut Place::default());
            if part.len() > FILES_PER_PART {
                let reason = format!(
                    "more than {FILES_PER_PART} files, too long a list for one reply; call it with \
                     `more`, or ask for one session"
                );
                return Pending::Ready(Reply::refused_by_manager(Refusal::new(
                    Errno::TooBig,
                    reason,
                )));
            }
            return Pending::Ready(Reply::new(&FileList { files: part }));
        }
        // A client that does not read makes luod hold two parts, not the whole list.
        let (sender, receiver) = mpsc::channel(1);
        let host = Rc::clone(&self.host);
        tokio::task::spawn_local(async move {
            let mut place = Place::default();
            loop {
                // The client may have gone.
                let Ok(permit) = sender.reserve().await else { return };
                let mut files = host.part(&listed, &mut place);
                let more = files.len() > FILES_PER_PART;
                files.truncate(FILES_PER_PART);
                permit.send(Reply::part(&FileList { files }, more));
                if !more {
                    return;
                }
                // Others have their turn.
                tokio::task::yield_now().await;
            }
        });
        Pending::Stream(receiver)
    }

    fn create(&self, parameters: CreateSession, connection: Option<OwnedFd>) -> Pending {
        let CreateSession { name, policy, request } = parameters;
        let policy = policy.unwrap_or_default();
        let policy = Policy {
            on_close: match policy.on_close {
                protocol::OnClose::Release => OnClose::Release,
                protocol::OnClose::Keep => OnClose::Keep { ttl_seconds: policy.ttl_seconds },
            },
        };
        let request = request.unwrap_or(0);
        let (host, peer) = (Rc::clone(&self.host), self.peer);
        let service = Self::new(Rc::clone(&self.host), self.peer);
        later(async move {
            let _busy = host.busy_when_resumed().await;
            let made = host.core.borrow_mut().create_session(&name, peer.owner(), policy);
            let id = match made {
                Ok(id) => id,
                Err(error) => service
                    .made_by_this_request(&name, request)
                    .ok_or_else(|| service.taken(&name, error.into()))?,
            };
            host.persisted.borrow_mut().session_extra(id).created_by = request;
            let client = match host.hold(id) {
                Ok(client) => client,
                Err(refusal) => {
                    host.core.borrow_mut().owner_gone(id, now_seconds())?;
                    host.release(id).await?;
                    return Err(refusal);
                }
            };
            if let Err(refusal) = host.commit().await {
                host.release(id).await?;
                return Err(refusal);
            }
            host.sessions_changed.notify_waiters();
            host.tell("session", Some(name), format!("created by process {}", peer.pid));
            service.give(id, client, connection)
        })
    }

    /// The session that a request has made before its connection broke.
    fn made_by_this_request(&self, name: &str, request: u64) -> Option<SessionId> {
        let info = self.host.session_for(name, self.peer).ok()?;
        let created_by = self.host.persisted.borrow_mut().session_extra(info.id).created_by;
        if request == 0 || created_by != request {
            return None;
        }
        self.host.core.borrow_mut().owner_back(info.id).ok()?;
        Some(info.id)
    }

    /// A taken name is told apart from another user's.
    fn taken(&self, name: &str, refusal: Refusal) -> Refusal {
        match self.host.session_for(name, self.peer) {
            Err(other) if other.errno() == "EPERM" => other,
            _ => refusal,
        }
    }

    fn give(
        &self,
        id: SessionId,
        client: OwnedFd,
        connection: Option<OwnedFd>,
    ) -> Result<Reply, Refusal> {
        let session = self.describe(id)?;
        if let Some(connection) = connection {
            self.host.connect_session(id, connection);
        }
        Ok(Reply::new(&SessionGiven { session }).with(vec![Descriptor::Own(client)]))
    }

    fn claim(&self, parameters: ClaimSession, connection: Option<OwnedFd>) -> Pending {
        let wait = parameters.wait_milliseconds.unwrap_or(0).min(LONGEST_WAIT);
        let service = Self::new(Rc::clone(&self.host), self.peer);
        later(async move {
            let wait = Duration::from_millis(wait);
            let (id, client) = service.host.claim(&parameters.name, service.peer, wait).await?;
            service.give(id, client, connection)
        })
    }

    /// An event of the machine, for operators.
    fn event<W>(&self, what: &str, run: impl FnOnce(Rc<Host>) -> W) -> Pending
    where
        W: Future<Output = Result<Report, Refusal>> + 'static,
    {
        if let Err(refusal) = self.host.access.operator(self.peer, what) {
            return Pending::Ready(Reply::refused_by_manager(refusal));
        }
        let running = run(Rc::clone(&self.host));
        let busy = self.host.busy();
        let progress = self.host.tell_progress();
        // It goes on when the client that asked for it has gone.
        let task = tokio::task::spawn_local(async move {
            let (_busy, _progress) = (busy, progress);
            running.await
        });
        later(async move {
            let report = task
                .await
                .map_err(|_| Refusal::new(Errno::Canceled, "luod is being stopped; ask again"))??;
            Ok(Reply::new(&Reported { report }))
        })
    }

    /// Commits the handover. Then this worker ends; where the carrier reaches no farther the next
    /// one arrives, and the client hears of it there if its answer was lost. With an arena luod
    /// ends, and the client hears of it first. With kernel sessions it stays: somebody must hold
    /// them until the next kernel is started.
    fn depart(&self) -> Pending {
        let host = Rc::clone(&self.host);
        let departing = self.event("depart", |host| async move {
            let report = event(Rc::clone(&host), Event::Depart).await?;
            let carrier = host.core.borrow().carrier();
            if carrier == CarrierId::NEAR {
                host.upgrades.depart();
            } else if carrier != LIVEUPDATE {
                // Also when nobody is there to hear it.
                tokio::task::spawn_local(async move {
                    tokio::time::sleep(LAST_WORDS).await;
                    host.upgrades.depart();
                });
            }
            Ok(report)
        });
        let Pending::Later(reply) = departing else { return departing };
        Pending::later(async move {
            let reply = reply.await;
            let core = host.core.borrow();
            let stays = core.carrier() == LIVEUPDATE;
            if stays || !core.status().departed {
                drop(core);
                return reply;
            }
            drop(core);
            reply.when_delivered(move || host.upgrades.depart())
        })
    }

    fn upgrade(&self, parameters: Upgrade, mut descriptors: Given) -> Pending {
        if let Err(refusal) = self.host.access.operator(self.peer, "upgrade") {
            return Pending::Ready(Reply::refused_by_manager(refusal));
        }
        let limit = Duration::from_millis(
            parameters
                .deadline_milliseconds
                .unwrap_or(UPGRADE_DEADLINE)
                .clamp(1, UPGRADE_DEADLINE_MAX),
        );
        let keeper = parameters.keeper.unwrap_or(false);
        let binary = descriptors.0.pop();
        let host = Rc::clone(&self.host);
        later(async move {
            let upgraded = host.upgrade(binary, limit, keeper).await?;
            let told = Rc::clone(&host);
            Ok(Reply::new(&upgraded).when_delivered(move || told.upgrades.told()))
        })
    }

    fn handover(&self) -> Result<Reply, Refusal> {
        self.host.access.operator(self.peer, "the handover")?;
        let blob = self.host.core.borrow().files_tree()?;
        let failed = |error: std::io::Error| {
            let errno = error.raw_os_error().map_or(Errno::Io, Errno::from_raw);
            Refusal::new(errno, format!("no memory for the handover: {error}"))
        };
        let memory = memfd_create("luo-handover", MemfdFlags::CLOEXEC)
            .map_err(|error| failed(error.into()))?;
        let mut file = File::from(memory);
        file.write_all(&blob).map_err(failed)?;
        let size = blob.len() as u64;
        Ok(Reply::new(&Handover { size }).with(vec![Descriptor::Own(file.into())]))
    }

    fn watch(&self) -> Pending {
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

    fn participate(&self, parameters: Participate) -> Pending {
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

    fn take_answer(&self, answer: Answer) -> Result<Reply, Refusal> {
        let (id, outcome) = self.host.participants.borrow_mut().answer(answer, self.peer)?;
        self.host.answered(id, outcome);
        self.host.pump();
        self.host.commit();
        self.host.idle.notify_waiters();
        Ok(Reply::new(&Nothing {}))
    }
}

impl Service for ManagerService {
    fn call(&mut self, text: &[u8], descriptors: Given) -> Pending {
        let call = match Call::read(text) {
            Ok(call) => call,
            Err(reply) => return Pending::Ready(reply),
        };
        if super::is_pointless(&call) {
            return Pending::None;
        }
        let answer = self.answer(&call, descriptors).unwrap_or_else(Pending::Ready);
        super::silence(answer, call.oneway)
    }

    fn is_paused(&self) -> bool {
        self.host.upgrades.is_paused()
    }

    async fn resumed(&self) {
        self.host.upgrades.resumed().await;
    }
}

/// luod's end of a session's first connection, where one came with the call for the session.
fn first_connection(mut descriptors: Given) -> Result<Option<OwnedFd>, Reply> {
    if descriptors.0.is_empty() {
        return Ok(None);
    }
    match (descriptors.0.pop(), descriptors.0.is_empty()) {
        (Some(connection), true) if is_stream(&connection) => Ok(Some(connection)),
        (other, _) => {
            descriptors.0.extend(other);
            let reason = "one connected Unix stream socket may come with it, and nothing else";
            Err(Reply::refused_by_manager(Refusal::new(Errno::Inval, reason)))
        }
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

async fn event(host: Rc<Host>, event: Event) -> Result<Report, Refusal> {
    host.run(|core| core.begin(Scope::Machine, event)).await?.to_protocol()
}

fn describe(
    host: &Host,
    core: &luo_core::Orchestrator<luo_carriers::HostFile>,
    info: &luo_core::SessionInfo,
) -> SessionInfo {
    let retrieved = core
        .files(info.id)
        .filter(|file| matches!(file.incoming, Some(Incoming::Retrieved)))
        .count() as u64;
    let (on_close, ttl_seconds) = match info.policy.on_close {
        OnClose::Release => (protocol::OnClose::Release, None),
        OnClose::Keep { ttl_seconds } => (protocol::OnClose::Keep, ttl_seconds),
    };
    SessionInfo {
        id: info.id.0,
        name: info.name.to_string(),
        uid: info.owner.uid,
        gid: info.owner.gid,
        policy: protocol::Policy { on_close, ttl_seconds },
        state: state(info.status.state),
        held: !info.unclaimed,
        files: info.outgoing as u64,
        incoming: info.incoming as u64,
        retrieved,
        pinned: info.pinned,
        expires_in_seconds: info.expires.map(|at| at.saturating_sub(now_seconds())),
        own_kernel_session: match host.has_kernel_session(info) {
            (true, true) => Some(OwnKernelSession::Both),
            (true, false) => Some(OwnKernelSession::Outgoing),
            (false, true) => Some(OwnKernelSession::Incoming),
            (false, false) => None,
        },
    }
}

/// What a descriptor is, as `/proc` names it.
fn what(file: &impl AsFd) -> String {
    let link = format!("/proc/self/fd/{}", file.as_fd().as_raw_fd());
    std::fs::read_link(link).map_or_else(|_| "?".to_owned(), |path| path.display().to_string())
}

fn or_refused(answer: Result<Reply, Refusal>) -> Reply {
    answer.unwrap_or_else(Reply::refused_by_manager)
}

fn later(answer: impl Future<Output = Result<Reply, Refusal>> + 'static) -> Pending {
    Pending::later(async move { or_refused(answer.await) })
}
