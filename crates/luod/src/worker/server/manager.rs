//! The interface `io.luo`: luod as a whole.
//!
//! Invariants:
//! - What is for operators is refused to others before anything is looked at.
//! - An event of the machine goes on when the client that asked for it has gone.

mod sessions;
mod state;
mod streams;

use std::fs::File;
use std::future::Future;
use std::io::Write;
use std::rc::Rc;
use std::time::Duration;

use luo::protocol::{
    FinishMachine, Handover, MANAGER, Nothing, ReleaseSession, Report, Reported, Through, Upgrade,
};
use luo_core::{CarrierId, Errno, Event, FinishOptions, Scope};
use rustix::fs::{MemfdFlags, memfd_create};

use super::connection::{Given, Service};
use super::introspect::{self, Call};
use super::session::unclaimed_files;
use super::{Descriptor, Pending, Reply};
use crate::worker::access::Peer;
use crate::worker::carriers::LIVEUPDATE;
use crate::worker::host::Host;
use crate::worker::refusal::Refusal;
use crate::worker::upgrade::LAST_WORDS;
use sessions::first_connection;

/// Deadline of an upgrade unless one is asked for, in milliseconds.
const UPGRADE_DEADLINE: u64 = 10_000;
/// The longest deadline that the keeper takes; what is asked for beyond it is this.
const UPGRADE_DEADLINE_MAX: u64 = 3_600_000;

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

async fn event(host: Rc<Host>, event: Event) -> Result<Report, Refusal> {
    host.run(|core| core.begin(Scope::Machine, event)).await?.to_protocol()
}

fn or_refused(answer: Result<Reply, Refusal>) -> Reply {
    answer.unwrap_or_else(Reply::refused_by_manager)
}

fn later(answer: impl Future<Output = Result<Reply, Refusal>> + 'static) -> Pending {
    Pending::later(async move { or_refused(answer.await) })
}
