//! The interface `io.luo.Session`: one session, for whoever holds its descriptor.

use std::future::Future;
use std::rc::Rc;
use std::time::Duration;

use luo::protocol::{
    Allocate, Allocated, Duplicate, Duplicated, Finish, GetKernelSession, Info, KernelSessionGiven,
    MAX_DESCRIPTORS, Nothing, Preserve, Preserved, Range, Refused, Retrieve, Retrieved, SESSION,
    Unclaimed, Unpreserve, Unpreserved,
};
use luo_abi::TimelinePhase;
use luo_abi::liveupdate::OWN_TOKENS;
use luo_carriers::HostFile;
use luo_core::{
    Criticality, Errno, Event, FileKey, FinishOptions, Retrieval, Scope, SessionId, Side, Token,
    UnclaimedFiles,
};
use tokio::time::Instant;

use super::connection::{Given, Service};
use super::introspect::{self, Call};
use super::{Descriptor, Pending, Reply};
use crate::worker::host::{Host, state};
use crate::worker::records::FileExtra;
use crate::worker::refusal::Refusal;

/// How long retrieving the files of one request may take.
const RETRIEVE_DEADLINE: Duration = Duration::from_secs(120);

/// Serves one connection of a session.
pub(crate) struct SessionService {
    host: Rc<Host>,
    id: SessionId,
    /// The process that made the connection may have descriptors of the arena, which reach all of
    /// it.
    may_reach_arena: bool,
}

impl SessionService {
    pub(super) fn new(host: Rc<Host>, id: SessionId, may_reach_arena: bool) -> Self {
        Self { host, id, may_reach_arena }
    }

    fn answer(&self, call: &Call<'_>, descriptors: Given) -> Result<Pending, Reply> {
        let Some(method) = call.method.strip_prefix(SESSION).and_then(|m| m.strip_prefix('.'))
        else {
            return Ok(
                introspect::answer(call).map_or_else(|| introspect::unknown(call), Pending::Ready)
            );
        };
        Ok(match method {
            "GetInfo" => Pending::Ready(or_refused(self.info())),
            "Preserve" => self.preserve(&call.parameters()?, descriptors),
            "Duplicate" => self.duplicate(call.parameters()?),
            "Allocate" => self.allocate(call.parameters()?),
            "Unpreserve" => self.unpreserve(&call.parameters()?),
            "Retrieve" => self.retrieve(call.parameters()?),
            "Prepare" => self.event(Event::Prepare),
            "Freeze" => self.event(Event::Freeze),
            "Cancel" => {
                let (host, id) = (Rc::clone(&self.host), self.id);
                later(async move {
                    let _busy = host.busy_when_resumed().await;
                    host.cancel(Scope::Session(id)).await?;
                    Ok(Reply::new(&Nothing {}))
                })
            }
            "GetKernelSession" => self.kernel_session(call.parameters()?),
            "ReleaseKernelSession" => {
                let (host, id) = (Rc::clone(&self.host), self.id);
                later(async move {
                    let _busy = host.busy_when_resumed().await;
                    host.release_kernel_session(id).await?;
                    Ok(Reply::new(&Nothing {}))
                })
            }
            "Finish" => self.finish(call.parameters()?),
            "Release" => {
                let (host, id) = (Rc::clone(&self.host), self.id);
                // The session's connections end with it: this one's answer goes first.
                later(async move {
                    let _busy = host.busy_when_resumed().await;
                    let info = host.session_info(id)?;
                    host.end_session(id).await?;
                    host.tell_end("session", &info, "released by who holds it".to_owned());
                    Ok(Reply::new(&Nothing {}))
                })
            }
            _ => introspect::unknown(call),
        })
    }

    fn info(&self) -> Result<Reply, Refusal> {
        let info = self.host.session_info(self.id)?;
        let core = self.host.core.borrow();
        let (mut files, mut incoming) = (Vec::new(), Vec::new());
        for file in core.files(self.id) {
            match file.side {
                Side::Outgoing => files.push(file.token.0),
                Side::Incoming => incoming.push(file.token.0),
            }
        }
        let name = info.name.to_string();
        Ok(Reply::new(&Info { name, state: state(info.status.state), files, incoming }))
    }

    fn preserve(&self, parameters: &Preserve, mut descriptors: Given) -> Pending {
        let count = descriptors.0.len();
        let wrong = |reason: String| {
            Pending::Ready(Reply::refused_by_session(Refusal::new(Errno::Inval, reason)))
        };
        if parameters.count != count {
            return wrong(format!("{count} descriptors came with it, not {}", parameters.count));
        }
        if let Some(tokens) = &parameters.tokens
            && tokens.len() != count
        {
            return wrong(format!("{} tokens for {count} descriptors", tokens.len()));
        }
        let criticality = match parameters.required {
            Some(false) => Criticality::Optional,
            _ => Criticality::Required,
        };
        let request = parameters.request.unwrap_or(0);
        let mut made = Vec::with_capacity(count);
        let mut reply = Preserved { tokens: Vec::with_capacity(count), refused: Vec::new() };
        {
            let mut core = self.host.core.borrow_mut();
            let mut persisted = self.host.persisted.borrow_mut();
            let repeated = persisted.made_before(self.id, request);
            let files: Vec<HostFile> = descriptors.0.drain(..).map(HostFile::from).collect();
            let _ahead = HostFile::look_ahead(&files);
            for (index, file) in files.into_iter().enumerate() {
                let place = u32::try_from(index).unwrap_or(u32::MAX);
                if let Some(token) = repeated.as_ref().and_then(|tokens| tokens.get(&place)) {
                    reply.tokens.push(token.0);
                    continue;
                }
                let wanted = parameters.tokens.as_ref().map(|tokens| Token(tokens[index]));
                match core.preserve(self.id, wanted, file, criticality) {
                    Ok(token) => {
                        let key = FileKey { session: self.id, side: Side::Outgoing, token };
                        persisted.made_by(key, FileExtra { request, index: place });
                        made.push(token);
                        reply.tokens.push(token.0);
                    }
                    Err(error) => {
                        reply.tokens.push(wanted.map_or(0, |token| token.0));
                        reply.refused.push(refused(index, wanted, error.into()));
                    }
                }
            }
        }
        let ticket = self.host.commit();
        let (host, id) = (Rc::clone(&self.host), self.id);
        later(async move {
            if let Err(refusal) = ticket.await {
                // luod never holds a file of a refused request.
                for token in made {
                    if let Err(error) = host.core.borrow_mut().unpreserve(id, token) {
                        tracing::warn!(%error, "a file that could not be kept stays");
                    }
                }
                host.commit();
                return Err(refusal);
            }
            Ok(Reply::new(&reply))
        })
    }

    fn duplicate(&self, parameters: Duplicate) -> Pending {
        let (host, id) = (Rc::clone(&self.host), self.id);
        let request = parameters.request.unwrap_or(0);
        let criticality = match parameters.required {
            Some(false) => Criticality::Optional,
            _ => Criticality::Required,
        };
        let made_before = host.persisted.borrow().made_before(id, request);
        let repeated = made_before.and_then(|tokens| tokens.get(&0).copied());
        let made = match repeated {
            Some(token) => Ok(token),
            None => {
                let (original, token) = (Token(parameters.original), parameters.token.map(Token));
                host.core.borrow_mut().preserve_duplicate(id, token, original, criticality)
            }
        };
        let token = match made {
            Ok(token) => token,
            Err(error) => return Pending::Ready(Reply::refused_by_session(error.into())),
        };
        let key = FileKey { session: id, side: Side::Outgoing, token };
        host.persisted.borrow_mut().made_by(key, FileExtra { request, index: 0 });
        let ticket = host.commit();
        later(async move {
            if let Err(refusal) = ticket.await {
                // luod never holds a file of a refused request.
                if repeated.is_none()
                    && let Err(error) = host.core.borrow_mut().unpreserve(id, token)
                {
                    tracing::warn!(%error, "a duplicate that could not be kept stays");
                }
                host.commit();
                return Err(refusal);
            }
            Ok(Reply::new(&Duplicated { token: token.0 }))
        })
    }

    fn allocate(&self, parameters: Allocate) -> Pending {
        let (host, id, may_reach_arena) = (Rc::clone(&self.host), self.id, self.may_reach_arena);
        later(async move {
            let _busy = host.busy_when_resumed().await;
            let none = |reason: &str| {
                let reason = Some(reason.to_owned());
                Ok(Reply::new(&Allocated { range: None, reason }))
            };
            if !host.carriers.has_arena() {
                return none("luod has no arena");
            }
            if !may_reach_arena {
                return none("the arena is for luod's own user and root only");
            }
            let token = Token(parameters.token);
            let key = FileKey { session: id, side: Side::Outgoing, token };
            let request = parameters.request.unwrap_or(0);
            let repeated = host.persisted.borrow_mut().made_before(id, request);
            let made_before = repeated.is_some_and(|tokens| tokens.values().any(|t| *t == token));
            let file = if made_before { host.core.borrow().file_ref(key) } else { None };
            let file = match file {
                Some(file) => file,
                None => {
                    let lent = host.carriers.lend(parameters.length).await;
                    host.close_arena_after_use();
                    let file = match lent {
                        Ok(file) => file,
                        Err(failure) => {
                            tracing::info!(reason = failure.reason(), "no memory in the arena");
                            return none(failure.reason());
                        }
                    };
                    let criticality = match parameters.required {
                        Some(false) => Criticality::Optional,
                        _ => Criticality::Required,
                    };
                    host.core.borrow_mut().preserve(id, Some(token), file.clone(), criticality)?;
                    let extra = FileExtra { request, index: 0 };
                    host.persisted.borrow_mut().made_by(key, extra);
                    file
                }
            };
            let Some(range) = file.lent() else {
                return Err(Refusal::new(Errno::Io, "the memory does not tell where it is"));
            };
            if let Err(refusal) = host.commit().await {
                // luod never holds a file of a refused request.
                if !made_before && let Err(error) = host.core.borrow_mut().unpreserve(id, token) {
                    tracing::warn!(%error, "memory that could not be kept stays");
                }
                host.commit();
                return Err(refusal);
            }
            let range = Range { offset: range.offset, length: range.len };
            let reply = Allocated { range: Some(range), reason: None };
            Ok(Reply::new(&reply).with(vec![Descriptor::Shared(file)]))
        })
    }

    fn kernel_session(&self, parameters: GetKernelSession) -> Pending {
        let (host, id) = (Rc::clone(&self.host), self.id);
        later(async move {
            let _busy = host.busy_when_resumed().await;
            let (name, descriptor) = match parameters.arrived {
                Some(true) => host.arrived_kernel_session(id)?,
                _ => host.kernel_session(id).await?,
            };
            let name = String::from_utf8_lossy(name.as_bytes_without_nul()).into_owned();
            let reply = KernelSessionGiven { name, last_token: OWN_TOKENS - 1 };
            Ok(Reply::new(&reply).with(vec![Descriptor::Own(descriptor)]))
        })
    }

    fn unpreserve(&self, parameters: &Unpreserve) -> Pending {
        let mut core = self.host.core.borrow_mut();
        let mut tries: Vec<(usize, Token)> =
            parameters.tokens.iter().map(|token| Token(*token)).enumerate().collect();
        let mut reply = Unpreserved::default();
        // An original stays while it has duplicates, which may be among those behind it.
        for _ in 0..2 {
            reply.refused.clear();
            let tried = tries.len();
            tries.retain(|(index, token)| match core.unpreserve(self.id, *token) {
                Ok(()) => false,
                Err(error) => {
                    reply.refused.push(refused(*index, Some(*token), error.into()));
                    true
                }
            });
            if tries.is_empty() || tries.len() == tried {
                break;
            }
        }
        drop(core);
        let ticket = self.host.commit();
        later(async move {
            ticket.await?;
            Ok(Reply::new(&reply))
        })
    }

    fn retrieve(&self, parameters: Retrieve) -> Pending {
        if parameters.tokens.len() > MAX_DESCRIPTORS {
            let reason = format!(
                "{} files at once, and a message carries {MAX_DESCRIPTORS}; split the request",
                parameters.tokens.len()
            );
            return Pending::Ready(Reply::refused_by_session(Refusal::new(Errno::TooBig, reason)));
        }
        let (host, id, may_reach_arena) = (Rc::clone(&self.host), self.id, self.may_reach_arena);
        later(async move {
            let _busy = host.busy_when_resumed().await;
            let deadline = Instant::now() + RETRIEVE_DEADLINE;
            let began = std::time::Instant::now();
            let mut answers: Vec<Option<Result<HostFile, Refusal>>> = Vec::new();
            answers.resize_with(parameters.tokens.len(), || None);
            loop {
                let changed = host.retrieved.notified();
                if ask(&host, id, &parameters.tokens, &mut answers) {
                    break;
                }
                host.pump();
                // What is quick is here already.
                if ask(&host, id, &parameters.tokens, &mut answers) {
                    break;
                }
                if tokio::time::timeout_at(deadline, changed).await.is_err() {
                    let reason = "the files were not restored in time; ask again";
                    return Err(Refusal::new(Errno::TimedOut, reason));
                }
            }
            let mut reply = Retrieved::default();
            let mut given = Vec::with_capacity(answers.len());
            for (index, (token, answer)) in parameters.tokens.iter().zip(answers).enumerate() {
                match answer {
                    Some(Ok(file)) if file.lent().is_some() && !may_reach_arena => {
                        let reason = "it is memory in the arena, whose descriptor reaches all of \
                                      the arena: it is given to luod's own user and root only";
                        let refusal = Refusal::new(Errno::Perm, reason);
                        reply.refused.push(refused(index, Some(Token(*token)), refusal));
                    }
                    Some(Ok(file)) => {
                        // Noted, and the note kept, before they are sent: a client that has them
                        // may finish, whichever worker it comes to. One that did not get them asks
                        // again.
                        host.core.borrow_mut().mark_reclaimed(id, Token(*token))?;
                        reply.tokens.push(*token);
                        given.push(Descriptor::Shared(file));
                    }
                    Some(Err(refusal)) => {
                        reply.refused.push(refused(index, Some(Token(*token)), refusal));
                    }
                    None => {}
                }
            }
            if !given.is_empty() {
                host.time_session(TimelinePhase::Retrieve, id, began);
            }
            if let Err(refusal) = host.commit().await {
                // They are its files all the same; the worse is that it has to ask once more.
                tracing::warn!(reason = refusal.reason(), "not noted that files were given");
            }
            Ok(Reply::new(&reply).with(given))
        })
    }

    fn event(&self, event: Event) -> Pending {
        let (host, id) = (Rc::clone(&self.host), self.id);
        later(async move {
            let _busy = host.busy_when_resumed().await;
            host.run(|core| core.begin(Scope::Session(id), event)).await?;
            Ok(Reply::new(&Nothing {}))
        })
    }

    fn finish(&self, parameters: Finish) -> Pending {
        let (host, id) = (Rc::clone(&self.host), self.id);
        later(async move {
            let _busy = host.busy_when_resumed().await;
            let request = parameters.request.unwrap_or(0);
            if request != 0 && host.persisted.borrow_mut().session_extra(id).finished_by == request
            {
                return Ok(Reply::new(&Nothing {}));
            }
            let options = FinishOptions {
                unclaimed: unclaimed_files(parameters.unclaimed.unwrap_or_default()),
                carry_reclaimed: parameters.carry_reclaimed.unwrap_or(false),
            };
            host.finish_session(id, options, request).await?;
            Ok(Reply::new(&Nothing {}))
        })
    }
}

impl Service for SessionService {
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

/// Asks for the files that are not answered yet; `true`: now all are.
fn ask(
    host: &Host,
    id: SessionId,
    tokens: &[u64],
    answers: &mut [Option<Result<HostFile, Refusal>>],
) -> bool {
    let mut core = host.core.borrow_mut();
    let mut all = true;
    for (token, answer) in tokens.iter().zip(answers) {
        if answer.is_some() {
            continue;
        }
        *answer = match core.retrieve(id, Token(*token)) {
            Ok(Retrieval::Ready(file)) => Some(Ok(file)),
            Ok(Retrieval::Failed(error)) => Some(Err(error.into())),
            Ok(Retrieval::Pending) => None,
            Err(error) => Some(Err(error.into())),
        };
        all &= answer.is_some();
    }
    all
}

/// What the interface says about files that nobody retrieved, in the framework's words.
pub(super) fn unclaimed_files(unclaimed: Unclaimed) -> UnclaimedFiles {
    match unclaimed {
        Unclaimed::Refuse => UnclaimedFiles::Refuse,
        Unclaimed::Release => UnclaimedFiles::Release,
        Unclaimed::Carry => UnclaimedFiles::Carry,
    }
}

fn refused(index: usize, token: Option<Token>, refusal: Refusal) -> Refused {
    Refused {
        index,
        token: token.map(|token| token.0),
        errno: refusal.0.errno,
        reason: refusal.0.reason,
    }
}

fn or_refused(answer: Result<Reply, Refusal>) -> Reply {
    answer.unwrap_or_else(Reply::refused_by_session)
}

fn later(answer: impl Future<Output = Result<Reply, Refusal>> + 'static) -> Pending {
    Pending::later(async move { or_refused(answer.await) })
}
