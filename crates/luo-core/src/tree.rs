//! The trees of a handover: from the framework's view of things to `luo-abi`'s, and back.
//!
//! State that a handler shares among its files travels beside the subsystems, under the name
//! `files:` and the handler's string; no subsystem can be registered by such a name.
//!
//! Invariants: a tree is read whole before anything of it is used; a damaged file keeps its token
//! and becomes that file's failure.

use alloc::{
    collections::BTreeMap,
    format,
    string::{String, ToString},
    vec::Vec,
};

use luo_abi::handover::{self, EntryError, FilesTree, FilesWriter, MachineTree};

use crate::{
    Compatible, Criticality, Errno, Failure, OnClose, Owner, Policy, SessionName, SubsystemName,
    Token,
};

/// What stands before a handler's string where its shared state travels.
const SHARED: &str = "files:";

/// One session to be handed over.
pub(crate) struct SessionOut {
    pub(crate) name: SessionName,
    pub(crate) owner: Owner,
    pub(crate) policy: Policy,
    pub(crate) expires: Option<u64>,
    pub(crate) next_token: u64,
    pub(crate) files: Vec<FileOut>,
}

/// One file to be handed over.
pub(crate) struct FileOut {
    pub(crate) token: Token,
    pub(crate) compatible: Compatible,
    pub(crate) data: u64,
    pub(crate) criticality: Criticality,
    pub(crate) needs: Vec<Token>,
}

/// One session as it arrived.
pub(crate) struct SessionIn {
    pub(crate) name: SessionName,
    pub(crate) owner: Owner,
    pub(crate) policy: Policy,
    pub(crate) expires: Option<u64>,
    pub(crate) next_token: u64,
    pub(crate) files: Vec<(Token, Result<FileIn, Failure>)>,
}

/// One file as it arrived.
pub(crate) struct FileIn {
    pub(crate) compatible: Compatible,
    pub(crate) data: u64,
    pub(crate) criticality: Criticality,
    pub(crate) needs: Vec<Token>,
}

/// The files' tree as it arrived.
pub(crate) struct FilesIn {
    pub(crate) sessions: Vec<SessionIn>,
    /// What is damaged without belonging to a token.
    pub(crate) damaged: Vec<Failure>,
}

/// The machine's tree as it arrived.
pub(crate) struct MachineIn {
    pub(crate) number: u64,
    pub(crate) subsystems: BTreeMap<SubsystemName, u64>,
    pub(crate) shared: Vec<(Compatible, u64)>,
    pub(crate) damaged: Vec<Failure>,
}

fn damage(error: EntryError) -> Failure {
    Failure::new(Errno::Inval, error.to_string()).because(error)
}

/// Builds the files' tree.
pub(crate) fn write_files(sessions: &[SessionOut]) -> Result<Vec<u8>, Failure> {
    let failed =
        |error: handover::WriteError| Failure::new(Errno::Inval, error.to_string()).because(error);
    let mut writer = FilesWriter::new();
    for session in sessions {
        let (on_close, ttl) = match session.policy.on_close {
            OnClose::Release => (luo_abi::OnClose::Release, None),
            OnClose::Keep { ttl_seconds } => (luo_abi::OnClose::Keep, ttl_seconds),
        };
        writer
            .session(&handover::Session {
                name: session.name.as_str().into(),
                owner: luo_abi::Owner { uid: session.owner.uid, gid: session.owner.gid },
                on_close,
                ttl,
                expiry: session.expires,
                next_token: Some(session.next_token),
            })
            .map_err(failed)?;
        for file in &session.files {
            let needs: Vec<[u8; 8]> =
                file.needs.iter().map(|token| token.0.to_be_bytes()).collect();
            writer
                .file(&handover::File {
                    needs: handover::Tokens::new(&needs),
                    token: file.token.0,
                    compatible: &file.compatible,
                    data: file.data,
                    criticality: match file.criticality {
                        Criticality::Required => luo_abi::Criticality::Required,
                        Criticality::Optional => luo_abi::Criticality::Optional,
                    },
                })
                .map_err(failed)?;
        }
    }
    writer.finish().map_err(failed)
}

/// Reads the files' tree.
pub(crate) fn read_files(blob: &[u8]) -> Result<FilesIn, Failure> {
    let tree = FilesTree::read(blob)
        .map_err(|error| Failure::new(Errno::Inval, error.to_string()).because(error))?;
    let mut arrived = FilesIn { sessions: Vec::new(), damaged: Vec::new() };
    for session in tree.sessions() {
        let session = match session {
            Ok(session) => session,
            Err(error) => {
                arrived.damaged.push(damage(error));
                continue;
            }
        };
        let name = match SessionName::new(&session.name) {
            Ok(name) => name,
            Err(failure) => {
                arrived.damaged.push(failure);
                continue;
            }
        };
        let mut files = Vec::new();
        for file in session.files() {
            match file {
                Ok(file) => {
                    let record = Compatible::new(file.compatible).map(|compatible| FileIn {
                        compatible,
                        data: file.data,
                        needs: file.needs.iter().map(Token).collect(),
                        criticality: match file.criticality {
                            luo_abi::Criticality::Required => Criticality::Required,
                            luo_abi::Criticality::Optional => Criticality::Optional,
                        },
                    });
                    files.push((Token(file.token), record));
                }
                Err(error) => match error.token {
                    Some(token) => files.push((Token(token), Err(damage(error)))),
                    None => arrived.damaged.push(damage(error)),
                },
            }
        }
        let on_close = match session.on_close {
            luo_abi::OnClose::Release => OnClose::Release,
            luo_abi::OnClose::Keep => OnClose::Keep { ttl_seconds: session.ttl },
        };
        arrived.sessions.push(SessionIn {
            name,
            owner: Owner { uid: session.owner.uid, gid: session.owner.gid },
            policy: Policy { on_close },
            expires: session.expiry,
            next_token: session.next_token.unwrap_or(1),
            files,
        });
    }
    Ok(arrived)
}

/// Builds the handover.
pub(crate) fn write_machine(
    number: u64,
    subsystems: &[(SubsystemName, u64)],
    shared: &[(Compatible, u64)],
) -> Result<Vec<u8>, Failure> {
    let shared: Vec<(String, u64)> =
        shared.iter().map(|(name, data)| (format!("{SHARED}{name}"), *data)).collect();
    let all = subsystems
        .iter()
        .map(|(name, data)| (name.as_str(), *data))
        .chain(shared.iter().map(|(name, data)| (name.as_str(), *data)));
    handover::write_machine(number, all)
        .map_err(|error| Failure::new(Errno::Inval, error.to_string()).because(error))
}

/// Reads the handover.
pub(crate) fn read_machine(blob: &[u8]) -> Result<MachineIn, Failure> {
    let tree = MachineTree::read(blob)
        .map_err(|error| Failure::new(Errno::Inval, error.to_string()).because(error))?;
    let mut arrived = MachineIn {
        number: tree.liveupdate_number(),
        subsystems: BTreeMap::new(),
        shared: Vec::new(),
        damaged: Vec::new(),
    };
    for subsystem in tree.subsystems() {
        let named = subsystem.map_err(damage).and_then(|subsystem| {
            match subsystem.name.strip_prefix(SHARED) {
                Some(compatible) => {
                    arrived.shared.push((Compatible::new(compatible)?, subsystem.data));
                }
                None => {
                    let name = SubsystemName::new(&subsystem.name)?;
                    arrived.subsystems.insert(name, subsystem.data);
                }
            }
            Ok(())
        });
        if let Err(failure) = named {
            arrived.damaged.push(failure);
        }
    }
    Ok(arrived)
}
