//! The machine's record.

use alloc::{borrow::ToOwned, collections::BTreeSet, string::String, vec::Vec};
use core::mem::offset_of;
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use super::{RecordError, RecordErrorKind as Kind, open, pad, padded, raw, reserved, seal};
use crate::{Phase, check_name};

/// The version of the machine's record that is written.
pub const MACHINE_RECORD: &str = "machine-record-v1";

/// What a subsystem returned last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubsystemData {
    /// Its name; see [`check_name`].
    pub name: String,
    /// Its data.
    pub data: u64,
}

/// The machine, as the daemon's keeper holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MachineRecord {
    /// Where the machine is in the cycle.
    pub state: Phase,
    /// How many live updates were completed.
    pub liveupdate_number: u64,
    /// The subsystems that have data, at most [`SUBSYSTEMS_MAX`](Self::SUBSYSTEMS_MAX), each name
    /// once.
    pub subsystems: Vec<SubsystemData>,
    /// The handle under which the handover is kept; never zero.
    pub handover: Option<u64>,
}

impl MachineRecord {
    /// How many subsystems a record can hold.
    pub const SUBSYSTEMS_MAX: usize = 1024;

    /// The size of the largest record, in bytes.
    pub const MAX_SIZE: usize =
        size_of::<raw::Machine>() + Self::SUBSYSTEMS_MAX * size_of::<raw::Subsystem>();

    fn check(&self) -> Result<(), RecordError> {
        if self.handover == Some(0) {
            return Err(Kind::Handle.at(offset_of!(raw::Machine, handover)));
        }
        let (found, max) = (self.subsystems.len(), Self::SUBSYSTEMS_MAX);
        if found > max {
            return Err(Kind::TooMany { found, max }.at(offset_of!(raw::Machine, subsystems)));
        }
        let mut names = BTreeSet::new();
        for (subsystem, at) in self.subsystems.iter().zip(entries()) {
            check_name(subsystem.name.as_bytes()).map_err(|error| Kind::Name(error).at(at))?;
            if !names.insert(subsystem.name.as_str()) {
                return Err(Kind::Duplicate.at(at));
            }
        }
        Ok(())
    }

    /// The record's bytes.
    ///
    /// # Errors
    /// [`Kind::Handle`], [`Kind::TooMany`], [`Kind::Name`], [`Kind::Duplicate`].
    pub fn encode(&self) -> Result<Vec<u8>, RecordError> {
        self.check()?;
        let mut raw = raw::Machine::new_zeroed();
        raw.liveupdate_number.set(self.liveupdate_number);
        raw.handover.set(self.handover.unwrap_or(0));
        raw.subsystems.set(self.subsystems.len() as u32);
        raw.state = self.state.raw();
        let subsystems: Vec<raw::Subsystem> = self
            .subsystems
            .iter()
            .map(|subsystem| raw::Subsystem {
                name: pad(subsystem.name.as_bytes()),
                data: subsystem.data.into(),
            })
            .collect();
        Ok(seal(&mut raw, MACHINE_RECORD, &[subsystems.as_bytes()]))
    }

    /// Decodes a record of any version that was ever written.
    ///
    /// # Errors
    /// [`RecordError`] with the first thing that is wrong.
    pub fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        let (raw, rest): (&raw::Machine, _) = open(bytes, &[MACHINE_RECORD])?;
        let (found, max) = (raw.subsystems.get() as usize, Self::SUBSYSTEMS_MAX);
        if found > max {
            return Err(Kind::TooMany { found, max }.at(offset_of!(raw::Machine, subsystems)));
        }
        let size = size_of::<raw::Machine>() + found * size_of::<raw::Subsystem>();
        if size != bytes.len() {
            let kind = Kind::Length { claimed: size as u32, found: bytes.len() };
            return Err(kind.at(raw::VERSION_SIZE));
        }
        let state = Phase::from_raw(raw.state)
            .ok_or(Kind::Word { field: "state", found: raw.state })
            .map_err(|kind| kind.at(offset_of!(raw::Machine, state)))?;
        reserved(&raw.reserved, offset_of!(raw::Machine, reserved))?;
        let Ok(entries_raw) = <[raw::Subsystem]>::ref_from_bytes(rest) else {
            return Err(Kind::Short.at(bytes.len()));
        };
        let mut subsystems = Vec::with_capacity(found);
        for (entry, at) in entries_raw.iter().zip(entries()) {
            let name = padded(&entry.name, at)?;
            check_name(name).map_err(|error| Kind::Name(error).at(at))?;
            let name = core::str::from_utf8(name).map_err(|_| Kind::Text.at(at))?;
            subsystems.push(SubsystemData { name: name.to_owned(), data: entry.data.get() });
        }
        let handover = Some(raw.handover.get()).filter(|&handle| handle != 0);
        let record =
            Self { state, liveupdate_number: raw.liveupdate_number.get(), subsystems, handover };
        record.check()?;
        Ok(record)
    }
}

/// Where the subsystems lie.
fn entries() -> impl Iterator<Item = usize> {
    (size_of::<raw::Machine>()..).step_by(size_of::<raw::Subsystem>())
}
