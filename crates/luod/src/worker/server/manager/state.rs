//! What there is: luod itself, its handlers, its sessions and their files.
//!
//! Invariants:
//! - Nothing is changed here.
//! - Nobody is told of others' sessions but operators.
//! - A client that does not read makes luod hold two parts of a list, not all of it.

use std::os::fd::{AsFd, AsRawFd};
use std::rc::Rc;

use luo::protocol::{
    self, FileInfo, FileList, HandlerInfo, HandlerList, LastTimeline, ListFiles, OwnKernelSession,
    SessionInfo, SessionList, Status, SubsystemInfo,
};
use luo_core::{Criticality, Errno, FileKey, Incoming, OnClose, SessionId, Side, State, Token};
use tokio::sync::mpsc;

use super::ManagerService;
use crate::worker::host::{Host, state};
use crate::worker::refusal::Refusal;
use crate::worker::server::{Pending, Reply};
use crate::worker::sessions::now_seconds;
use crate::worker::timeline::measure::measure;

/// Files in one part of a list.
const FILES_PER_PART: usize = 1_000;

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

impl ManagerService {
    pub(super) fn status(&self) -> Status {
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
    pub(super) fn timeline(&self) -> LastTimeline {
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

    pub(super) fn handlers(&self) -> HandlerList {
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

    pub(super) fn sessions(&self) -> SessionList {
        let core = self.host.core.borrow();
        let sessions = core
            .sessions()
            .filter(|info| self.host.access.may_use(self.peer, info.owner))
            .map(|info| describe(&self.host, &core, &info))
            .collect();
        SessionList { sessions }
    }

    pub(super) fn describe(&self, id: SessionId) -> Result<SessionInfo, Refusal> {
        let info = self.host.session_info(id)?;
        Ok(describe(&self.host, &self.host.core.borrow(), &info))
    }

    pub(super) fn files(&self, parameters: &ListFiles, more: bool) -> Pending {
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
