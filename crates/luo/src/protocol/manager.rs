//! Types of the interface `io.luo`.

use serde::{Deserialize, Serialize};

use super::{Policy, State, Unclaimed};

/// Why something was refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// The kernel ABI's name for it, `EBUSY` for example.
    pub errno: String,
    /// A sentence a person understands.
    pub reason: String,
    /// The phase in which it happened.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<String>,
    /// The subsystem or participant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subsystem: Option<String>,
    /// The session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<String>,
    /// The file's token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<u64>,
    /// The handler's `compatible` string.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub handler: Option<String>,
}

/// Parameters of the error `io.luo.Failed`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Failed {
    /// What failed, where and why.
    pub failure: Failure,
}

/// Parameters of the error `io.luo.WorkerFailed`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct WorkerFailed {
    /// Why luod cannot serve.
    pub reason: String,
}

/// A handler of luod's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HandlerInfo {
    /// Its `compatible` string.
    pub compatible: String,
    /// The carriers of this luod through which it can take files.
    pub carriers: Vec<String>,
}

/// Reply of `ListHandlers`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HandlerList {
    /// In the order in which they are asked.
    pub handlers: Vec<HandlerInfo>,
}

/// One session as luod sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionInfo {
    /// Its number, unique as long as luod holds its state.
    pub id: u64,
    /// Its name, 1 to 63 bytes.
    pub name: String,
    /// The user that made it.
    pub uid: u32,
    /// That user's group.
    pub gid: u32,
    /// What becomes of it when nobody holds it.
    pub policy: Policy,
    /// Where it is in the cycle.
    pub state: State,
    /// Whether any process holds its descriptor.
    pub held: bool,
    /// Files that go along in the next update.
    pub files: u64,
    /// Files that came over.
    pub incoming: u64,
    /// How many of those were retrieved.
    pub retrieved: u64,
    /// Memory in bytes that its files keep in use.
    pub pinned: u64,
    /// Seconds until it is released because nobody holds it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_in_seconds: Option<u64>,
    /// Kernel sessions that its owner fills by itself, or has filled in the kernel before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub own_kernel_session: Option<OwnKernelSession>,
}

/// Where a kernel session is that the owner of a session fills by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OwnKernelSession {
    /// It goes along in the next kexec.
    Outgoing,
    /// It came from the kernel before. The machine's `finish` frees what its owner did not fetch.
    Incoming,
    /// One came, and another one goes along.
    Both,
}

/// One file as luod sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileInfo {
    /// The name of its session.
    pub session: String,
    /// Its token.
    pub token: u64,
    /// The `compatible` string of its handler.
    pub handler: String,
    /// Whether its failure cancels an update.
    pub required: bool,
    /// `registered`, `prepared`, `frozen`, `incoming`, `retrieved`, `reclaimed` or `failed`.
    pub phase: String,
    /// What the descriptor is, as `/proc` names it.
    pub what: String,
    /// Memory in bytes that it keeps in use.
    pub pinned: u64,
    /// Why it cannot be retrieved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<Failure>,
}

/// A part of the system that takes part in the cycle.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SubsystemInfo {
    /// Its name.
    pub name: String,
    /// Whether a client process stands behind it.
    pub participant: bool,
    /// Whether its failure cancels an update.
    pub required: bool,
    /// Where it is in the cycle.
    pub phase: String,
}

/// What one user may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Sessions.
    pub sessions: u64,
    /// Files in all sessions together.
    pub files: u64,
    /// Bytes of memory that these files keep in use.
    pub bytes: u64,
}

/// How long one part of a phase took.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timing {
    /// The phase.
    pub phase: String,
    /// The subsystem or participant.
    pub subsystem: String,
    /// The session, where it is about one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<String>,
    /// Calls made in it.
    pub calls: u64,
    /// Its length in microseconds.
    pub microseconds: u64,
}

/// What a session needs in the carrier.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionNeeds {
    /// Its name.
    pub session: String,
    /// How many bytes. Holes, and pages of zeros, need none.
    pub bytes: u64,
}

/// What an update needs in the carrier.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Needs {
    /// The carrier.
    pub carrier: String,
    /// How many bytes in all: what the sessions need, and what the carrier itself does.
    pub bytes: u64,
    /// How many bytes of the carrier were free before. Missing where it copies nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub free: Option<u64>,
    /// How many bytes it has. Missing where it copies nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// What each session with files needs.
    pub sessions: Vec<SessionNeeds>,
}

/// What an event of the cycle did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The event.
    pub event: String,
    /// The state after it.
    pub state: State,
    /// How long it took in microseconds.
    pub microseconds: u64,
    /// How long its parts took.
    pub timings: Vec<Timing>,
    /// What failed and was optional.
    pub left_out: Vec<Failure>,
    /// Of a rehearsal, what the update needs in the carrier.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub needs: Option<Needs>,
}

/// Something happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// What kind of thing: `state`, `session`, `participant`, `upgrade`, `expired`, `progress`,
    /// `failure`.
    pub kind: String,
    /// The machine's state after it.
    pub state: String,
    /// The session it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<String>,
    /// A sentence.
    pub text: String,
    /// Of `progress`: bytes that were copied so far.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub done: Option<u64>,
    /// Of `progress`: bytes that there are to copy, as far as is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total: Option<u64>,
}

/// How full an arena is, in bytes, as it was when luod had it open last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArenaRoom {
    /// All of it.
    pub size: u64,
    /// What is kept, and what the arena itself needs.
    pub used: u64,
    /// What services write where it lies.
    pub lent: u64,
    /// The rest.
    pub free: u64,
}

/// Reply of `GetStatus`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// luod's version.
    pub version: String,
    /// The worker's process.
    pub pid: u64,
    /// How many workers this keeper has started.
    pub incarnation: u64,
    /// What keeps descriptors when the worker is gone: `builtin` or `systemd`.
    pub keeper: String,
    /// The carrier in use.
    pub carrier: String,
    /// The carriers that `Prepare` can name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub carriers: Vec<String>,
    /// How far it reaches.
    pub reach: String,
    /// The carrier that the machine's update goes through, where one is under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub through: Option<String>,
    /// Where the arena is, where luod has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub arena: Option<String>,
    /// Why the arena could not be read when luod tried last, where it could not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub arena_failure: Option<String>,
    /// How full it is; missing until luod has read it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub arena_room: Option<ArenaRoom>,
    /// The machine's state.
    pub state: State,
    /// The event that is under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transition: Option<String>,
    /// Completed live updates.
    pub liveupdate_number: u64,
    /// The one that `GetTimeline` tells of, where one was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub measured: Option<u64>,
    /// Sessions.
    pub sessions: u64,
    /// Files in them.
    pub files: u64,
    /// Memory in bytes that these keep in use.
    pub pinned: u64,
    /// Sessions that nobody holds.
    pub unclaimed: u64,
    /// Memory in bytes that those pin.
    pub unclaimed_pinned: u64,
    /// Who takes part in the cycle, in the order of the calls.
    pub subsystems: Vec<SubsystemInfo>,
    /// What one user may have.
    pub limits: Limits,
}

/// Reply of `ListSessions`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionList {
    /// All sessions that the caller may see.
    pub sessions: Vec<SessionInfo>,
}

/// Parameters of `ListFiles`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct ListFiles {
    /// Of this session alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<String>,
}

/// Reply of `ListFiles`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileList {
    /// Files, by session and token.
    pub files: Vec<FileInfo>,
}

/// Parameters of `CreateSession`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CreateSession {
    /// 1 to 63 printable bytes without `/`.
    pub name: String,
    /// What becomes of it when nobody holds it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<Policy>,
    /// Names the request, so that it can be sent again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<u64>,
}

/// Parameters of `ClaimSession`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ClaimSession {
    /// The session's name.
    pub name: String,
    /// How long to wait until its holder has gone. Default 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wait_milliseconds: Option<u64>,
    /// Names the request, so that it can be sent again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<u64>,
}

/// Reply of `CreateSession` and `ClaimSession`; the session's descriptor comes along.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SessionGiven {
    /// The session.
    pub session: SessionInfo,
}

/// Parameters of `ReleaseSession`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ReleaseSession {
    /// The session's name.
    pub name: String,
}

/// Parameters of `Prepare` and `Rehearse`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Through {
    /// The carrier. Default `keeper`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub carrier: Option<String>,
}

/// Reply of the events of the cycle.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Reported {
    /// What the event did.
    pub report: Report,
}

/// Parameters of `Finish`.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub struct FinishMachine {
    /// What becomes of files that nobody retrieved. Default refuse.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unclaimed: Option<Unclaimed>,
}

/// Parameters of `Upgrade`.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub struct Upgrade {
    /// How long each side may take. Default 10,000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline_milliseconds: Option<u64>,
    /// Whether the keeper is replaced, and not the worker. Default false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keeper: Option<bool>,
}

/// Reply of `Upgrade`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Upgraded {
    /// Version that served until now.
    pub before: String,
    /// Version that serves from now on.
    pub after: String,
}

/// Reply of `GetHandover`; a memory file comes along.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Handover {
    /// Bytes in the memory file.
    pub size: u64,
}

/// Reply of `Watch`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Watched {
    /// What happened.
    pub event: Event,
}

/// Parameters of `Participate`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Participate {
    /// The subsystem's name, 1 to 63 letters, digits and `,._+-`.
    pub name: String,
    /// Whether its failure cancels an update. Default true.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub required: Option<bool>,
    /// How long each call may take. Default and limit are luod's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline_milliseconds: Option<u64>,
}

/// What a participant is called for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ParticipantPhase {
    /// The subscription stands; not to be answered.
    Subscribed,
    /// The workload still runs; answer with data.
    Prepare,
    /// From here nothing may change; answer with data.
    Freeze,
    /// The update does not take place.
    Cancel,
    /// The other side has begun.
    Boot,
    /// The update is over.
    Finish,
}

/// Reply of `Participate`: one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ParticipantCall {
    /// Names the subscription in `Answer`.
    pub participant: u64,
    /// Names the call in `Answer`.
    pub call: u64,
    /// What to do.
    pub phase: ParticipantPhase,
    /// The participant's data, as it last gave it; 0 before.
    pub data: u64,
}

/// Parameters of `Answer`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Answer {
    /// The subscription.
    pub participant: u64,
    /// The call.
    pub call: u64,
    /// The participant's data, in `prepare` and `freeze`. Default: as before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<u64>,
    /// The call failed, for this reason.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub veto: Option<String>,
}
