//! Records: what the worker lays down in the keeper, so that the next worker can rebuild itself.
//!
//! The framework's records become the bytes of `docs/abi.md` here, together with what the daemon
//! notes beside them, and come back. One is written for every file that is preserved, so writing
//! a file's record allocates nothing for up to [`FEW`] handles.
//!
//! Invariants:
//! - What is read is what was written: every field comes back the same, except that the reason of
//!   a failure that is longer than a record can hold was cut, and ends with `…`.
//! - Bytes that are not such a record are refused whole: nothing is guessed, and every name has
//!   passed the framework's own check.
//! - Each record fits one message of the keeper.

use luo_abi::{
    record as abi,
    record::{Incoming, RememberedFailure},
};
use luo_core::{
    Bond, CarrierId, Compatible, Criticality, Errno, Event, Failure, FileRecord, Handle,
    IncomingRecord, Level, MachineRecord, OnClose, Owner, Policy, SessionId, SessionName,
    SessionRecord, SharedRecord, Side, State, SubsystemName, SubsystemRecord, Token,
};

/// So many handles of a file are written without an allocation.
const FEW: usize = 8;

const _: () = assert!(abi::MachineRecord::MAX_SIZE <= luo_abi::keeper::MAX_RECORD);
const _: () = assert!(abi::SessionRecord::MAX_SIZE <= luo_abi::keeper::MAX_RECORD);
const _: () = assert!(abi::FileRecord::BONDS_MAX == Bond::MAX);
const _: () = assert!(abi::FileRecord::MAX_SIZE <= luo_abi::keeper::MAX_RECORD);

/// Why a record could not be written or read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RecordError {
    /// Its bytes are damaged, or of a version that is not known here; or what is to be written
    /// does not fit.
    #[error(transparent)]
    Layout(#[from] abi::RecordError),
    /// It holds a name that the framework refuses.
    #[error(transparent)]
    Name(Failure),
}

/// What the daemon notes of a session.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct SessionExtra {
    /// The request that created it; 0 if none did.
    pub(crate) created_by: u64,
    /// The request that finished it; 0 if none did.
    pub(crate) finished_by: u64,
}

/// What the daemon notes of a file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct FileExtra {
    /// The request that it was preserved with; 0 if none.
    pub(crate) request: u64,
    /// Which of that request's files it is, from 0.
    pub(crate) index: u32,
}

/// The words of the framework, and the same words of the records.
macro_rules! words {
    ($($write:ident, $read:ident: $type:ident { $($variant:ident)* })*) => {
        $(
            const fn $write(word: $type) -> luo_abi::$type {
                match word { $($type::$variant => luo_abi::$type::$variant,)* }
            }

            const fn $read(word: luo_abi::$type) -> $type {
                match word { $(luo_abi::$type::$variant => $type::$variant,)* }
            }
        )*
    };
}

words! {
    put_state, get_state: State { Normal Prepared Frozen Updated }
    put_event, get_event: Event { Prepare Freeze Depart Arrive Finish Cancel }
    put_level, get_level: Level { File Session Machine }
    put_criticality, get_criticality: Criticality { Required Optional }
    put_side, get_side: Side { Outgoing Incoming }
}

fn put_handles(kept: &[Handle]) -> Vec<u64> {
    kept.iter().map(|handle| handle.0).collect()
}

fn get_handles(kept: &[u64]) -> Vec<Handle> {
    kept.iter().copied().map(Handle).collect()
}

fn get_subsystem_name(name: &str) -> Result<SubsystemName, RecordError> {
    SubsystemName::new(name).map_err(RecordError::Name)
}

/// The bytes of the machine's record.
///
/// # Errors
/// More subsystems, handlers or handles than a record holds; a handle that is zero; two entries
/// of one name.
pub(crate) fn machine(record: &MachineRecord) -> Result<Vec<u8>, RecordError> {
    let boot_data = record.boot_data.iter();
    let record = abi::MachineRecord {
        state: put_state(record.state),
        transition: record.transition.map(put_event),
        departed: record.departed,
        carrier: record.carrier.0,
        liveupdate_number: record.number,
        next_session: record.next_session,
        boot_data: boot_data
            .map(|(name, data)| abi::SubsystemData { name: name.as_str().into(), data: *data })
            .collect(),
        subsystems: record
            .subsystems
            .iter()
            .map(|subsystem| abi::SubsystemRecord {
                name: subsystem.name.as_str().into(),
                criticality: put_criticality(subsystem.criticality),
                concurrent: subsystem.concurrent,
                state: put_state(subsystem.state),
                data: subsystem.data,
                handles: put_handles(&subsystem.kept).into(),
            })
            .collect(),
        shared: record
            .shared
            .iter()
            .map(|shared| abi::SharedRecord {
                compatible: shared.compatible.as_str().into(),
                data: shared.data,
                frozen: shared.frozen,
                arrived: shared.arrived,
                retrieved: shared.retrieved,
                handles: put_handles(&shared.kept).into(),
            })
            .collect(),
    };
    Ok(record.encode()?)
}

/// Reads the machine's record.
///
/// # Errors
/// [`RecordError`]; nothing of the record may be used then.
pub(crate) fn read_machine(bytes: &[u8]) -> Result<MachineRecord, RecordError> {
    let record = abi::MachineRecord::decode(bytes)?;
    Ok(MachineRecord {
        state: get_state(record.state),
        transition: record.transition.map(get_event),
        departed: record.departed,
        carrier: CarrierId(record.carrier),
        number: record.liveupdate_number,
        next_session: record.next_session,
        boot_data: record
            .boot_data
            .iter()
            .map(|entry| Ok((get_subsystem_name(&entry.name)?, entry.data)))
            .collect::<Result<_, RecordError>>()?,
        subsystems: record
            .subsystems
            .iter()
            .map(|subsystem| {
                Ok(SubsystemRecord {
                    name: get_subsystem_name(&subsystem.name)?,
                    criticality: get_criticality(subsystem.criticality),
                    concurrent: subsystem.concurrent,
                    state: get_state(subsystem.state),
                    data: subsystem.data,
                    kept: get_handles(&subsystem.handles),
                })
            })
            .collect::<Result<_, RecordError>>()?,
        shared: record
            .shared
            .into_iter()
            .map(|shared| {
                Compatible::new(&shared.compatible).map_err(RecordError::Name)?;
                Ok(SharedRecord {
                    compatible: shared.compatible.into_owned(),
                    data: shared.data,
                    frozen: shared.frozen,
                    arrived: shared.arrived,
                    retrieved: shared.retrieved,
                    kept: get_handles(&shared.handles),
                })
            })
            .collect::<Result<_, RecordError>>()?,
    })
}

/// The bytes of a session's record.
///
/// # Errors
/// None for a record of the framework; the layout's checks are made all the same.
pub(crate) fn session(
    record: &SessionRecord,
    extra: &SessionExtra,
) -> Result<Vec<u8>, RecordError> {
    let (on_close, ttl) = match record.policy.on_close {
        OnClose::Release => (luo_abi::OnClose::Release, None),
        OnClose::Keep { ttl_seconds } => (luo_abi::OnClose::Keep, ttl_seconds),
    };
    let record = abi::SessionRecord {
        id: record.id.0,
        name: record.name.as_str().into(),
        owner: luo_abi::Owner { uid: record.owner.uid, gid: record.owner.gid },
        on_close,
        ttl,
        state: put_state(record.state),
        transition: record.transition.map(put_event),
        level: put_level(record.level),
        next_token: record.next_token,
        unclaimed: record.unclaimed,
        expires: record.expires,
        created_by: extra.created_by,
        finished_by: extra.finished_by,
    };
    Ok(record.encode()?)
}

/// Reads a session's record.
///
/// # Errors
/// [`RecordError`]; nothing of the record may be used then.
pub(crate) fn read_session(bytes: &[u8]) -> Result<(SessionRecord, SessionExtra), RecordError> {
    let record = abi::SessionRecord::decode(bytes)?;
    let on_close = match record.on_close {
        luo_abi::OnClose::Release => OnClose::Release,
        luo_abi::OnClose::Keep => OnClose::Keep { ttl_seconds: record.ttl },
    };
    let extra = SessionExtra { created_by: record.created_by, finished_by: record.finished_by };
    let record = SessionRecord {
        id: SessionId(record.id),
        name: SessionName::new(&record.name).map_err(RecordError::Name)?,
        owner: Owner { uid: record.owner.uid, gid: record.owner.gid },
        policy: Policy { on_close },
        state: get_state(record.state),
        transition: record.transition.map(get_event),
        level: get_level(record.level),
        next_token: record.next_token,
        unclaimed: record.unclaimed,
        expires: record.expires,
    };
    Ok((record, extra))
}

/// The bytes of a file's record, into a buffer that may have been used before. The reason of a failure that is longer than
/// [`RememberedFailure::REASON_MAX`] is cut between two characters.
///
/// # Errors
/// A `compatible` string that is not allowed; more handles than
/// [`HANDLES_MAX`](abi::FileRecord::HANDLES_MAX), or one that is zero.
pub(crate) fn file(
    record: &FileRecord,
    extra: &FileExtra,
    bytes: &mut Vec<u8>,
) -> Result<(), RecordError> {
    let mut few = [0; FEW];
    let many;
    let handles = match few.get_mut(..record.kept.len()) {
        Some(few) => {
            few.iter_mut().zip(&record.kept).for_each(|(to, handle)| *to = handle.0);
            &*few
        }
        None => {
            many = put_handles(&record.kept);
            &many
        }
    };
    let incoming = record.incoming.as_ref().map(|incoming| match incoming {
        IncomingRecord::Waiting => Incoming::Waiting,
        IncomingRecord::Retrieved => Incoming::Retrieved,
        IncomingRecord::Failed { errno, reason, told } => {
            let errno = errno.raw().unsigned_abs();
            Incoming::Failed(RememberedFailure::new(errno, reason, *told))
        }
    });
    let record = abi::FileRecord {
        session: record.session.0,
        side: put_side(record.side),
        token: record.token.0,
        compatible: (&*record.compatible).into(),
        criticality: put_criticality(record.criticality),
        state: put_state(record.state),
        level: put_level(record.level),
        data: record.data,
        handles: handles.into(),
        incoming,
        reclaimed: record.reclaimed,
        pinned: record.pinned,
        request: extra.request,
        index: extra.index,
        needs: put_tokens(&record.bond.needs).into(),
        with: put_tokens(&record.bond.with).into(),
    };
    bytes.clear();
    Ok(record.encode_into(bytes)?)
}

/// Reads a file's record. An error number that luo has no word for is [`Errno::Io`].
///
/// # Errors
/// [`RecordError`]; nothing of the record may be used then.
pub(crate) fn read_file(bytes: &[u8]) -> Result<(FileRecord, FileExtra), RecordError> {
    let record = abi::FileRecord::decode(bytes)?;
    Compatible::new(&record.compatible).map_err(RecordError::Name)?;
    let incoming = record.incoming.map(|incoming| match incoming {
        Incoming::Waiting => IncomingRecord::Waiting,
        Incoming::Retrieved => IncomingRecord::Retrieved,
        Incoming::Failed(RememberedFailure { errno, reason, told }) => {
            let errno = i32::try_from(errno).map_or(Errno::Io, Errno::from_raw);
            IncomingRecord::Failed { errno, reason: reason.into_owned(), told }
        }
    });
    let extra = FileExtra { request: record.request, index: record.index };
    let record = FileRecord {
        session: SessionId(record.session),
        side: get_side(record.side),
        token: Token(record.token),
        compatible: record.compatible.into(),
        criticality: get_criticality(record.criticality),
        state: get_state(record.state),
        level: get_level(record.level),
        data: record.data,
        kept: get_handles(&record.handles),
        incoming,
        reclaimed: record.reclaimed,
        pinned: record.pinned,
        bond: Bond { needs: get_tokens(&record.needs), with: get_tokens(&record.with) },
    };
    Ok((record, extra))
}

/// Of most files none, which allocates nothing.
fn put_tokens(tokens: &[Token]) -> Vec<u64> {
    tokens.iter().map(|token| token.0).collect()
}

fn get_tokens(tokens: &[u64]) -> Vec<Token> {
    tokens.iter().copied().map(Token).collect()
}

#[cfg(test)]
mod tests;
