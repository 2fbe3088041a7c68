//! The machine's record.

use alloc::{borrow::Cow, collections::BTreeSet, vec::Vec};
use core::mem::offset_of;
use zerocopy::{
    FromBytes, IntoBytes,
    little_endian::{U32, U64},
};

use super::{
    RecordError, RecordErrorKind as Kind, check_handles, flag, header, name, open, optional_word,
    pad, put_handles, raw, reserved, word,
};
use crate::{Criticality, Event, NameError, State, check_compatible, check_name};

/// The version of the machine's record that is written.
pub const MACHINE_RECORD: &str = "machine-record-v1";

const VERSION: [u8; raw::VERSION_SIZE] = pad(MACHINE_RECORD.as_bytes());

/// Data that arrived for a subsystem.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubsystemData<'a> {
    /// Its name; see [`check_name`].
    pub name: Cow<'a, str>,
    /// Its data.
    pub data: u64,
}

/// A subsystem.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubsystemRecord<'a> {
    /// Its name; see [`check_name`].
    pub name: Cow<'a, str>,
    /// What its failure means.
    pub criticality: Criticality,
    /// Whether it is called side by side with concurrent neighbours.
    pub concurrent: bool,
    /// Where it is in the cycle.
    pub state: State,
    /// What it returned last.
    pub data: u64,
    /// What was kept for it, none of them zero.
    pub handles: Cow<'a, [u64]>,
}

/// What a handler's files share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SharedRecord<'a> {
    /// The handler; see [`check_compatible`].
    pub compatible: Cow<'a, str>,
    /// What the handler returned last for it.
    pub data: u64,
    /// It was frozen, and nothing has joined since.
    pub frozen: bool,
    /// Files of it have arrived.
    pub arrived: bool,
    /// It was retrieved.
    pub retrieved: bool,
    /// What was kept for it, none of them zero.
    pub handles: Cow<'a, [u64]>,
}

/// The machine, as the daemon's keeper holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MachineRecord<'a> {
    /// Where the machine is in the cycle.
    pub state: State,
    /// The event that was going on.
    pub transition: Option<Event>,
    /// The handover was committed, or may have been.
    pub departed: bool,
    /// The carrier that the machine's update goes through, by its place among the daemon's; zero
    /// is the keeper.
    pub carrier: u8,
    /// How many live updates were completed.
    pub liveupdate_number: u64,
    /// The number that the next session will get.
    pub next_session: u64,
    /// Data that arrived for subsystems, at most [`SUBSYSTEMS_MAX`](Self::SUBSYSTEMS_MAX), each
    /// name once.
    pub boot_data: Vec<SubsystemData<'a>>,
    /// The subsystems in their order, at most [`SUBSYSTEMS_MAX`](Self::SUBSYSTEMS_MAX), each name
    /// once.
    pub subsystems: Vec<SubsystemRecord<'a>>,
    /// What handlers' files share, at most [`SHARED_MAX`](Self::SHARED_MAX), each handler once.
    pub shared: Vec<SharedRecord<'a>>,
}

/// Where the lists lie in a record.
struct Places {
    boot_data: usize,
    subsystems: usize,
    shared: usize,
    handles: usize,
}

impl Places {
    fn new(boot_data: usize, subsystems: usize, shared: usize) -> Self {
        let boot_at = size_of::<raw::Machine>();
        let subsystems_at = boot_at + boot_data * size_of::<raw::BootData>();
        let shared_at = subsystems_at + subsystems * size_of::<raw::Subsystem>();
        let handles = shared_at + shared * size_of::<raw::Shared>();
        Self { boot_data: boot_at, subsystems: subsystems_at, shared: shared_at, handles }
    }
}

/// Refuses lists that are too long.
fn check_counts(boot_data: usize, subsystems: usize, shared: usize) -> Result<(), RecordError> {
    for (found, max, offset) in [
        (boot_data, MachineRecord::SUBSYSTEMS_MAX, offset_of!(raw::Machine, boot_data)),
        (subsystems, MachineRecord::SUBSYSTEMS_MAX, offset_of!(raw::Machine, subsystems)),
        (shared, MachineRecord::SHARED_MAX, offset_of!(raw::Machine, shared)),
    ] {
        if found > max {
            return Err(Kind::TooMany { found, max }.at(offset));
        }
    }
    Ok(())
}

/// Checks the names of a list whose entries begin at `first` and lie `step` apart.
fn check_names<'n>(
    names: impl Iterator<Item = &'n str>,
    check: fn(&[u8]) -> Result<(), NameError>,
    first: usize,
    step: usize,
) -> Result<(), RecordError> {
    let mut seen = BTreeSet::new();
    for (name, at) in names.zip((first..).step_by(step)) {
        check(name.as_bytes()).map_err(|error| Kind::Name(error).at(at))?;
        if !seen.insert(name) {
            return Err(Kind::Duplicate.at(at));
        }
    }
    Ok(())
}

impl<'a> MachineRecord<'a> {
    /// How many subsystems a record can hold, and of how many the data that arrived.
    pub const SUBSYSTEMS_MAX: usize = 256;

    /// Of how many handlers a record can hold what their files share.
    pub const SHARED_MAX: usize = 256;

    /// How many handles a record can hold, those of all its subsystems and handlers together.
    pub const HANDLES_MAX: usize = 8192;

    /// The size of the largest record, in bytes.
    pub const MAX_SIZE: usize = size_of::<raw::Machine>()
        + Self::SUBSYSTEMS_MAX * (size_of::<raw::BootData>() + size_of::<raw::Subsystem>())
        + Self::SHARED_MAX * size_of::<raw::Shared>()
        + 8 * Self::HANDLES_MAX;

    fn places(&self) -> Places {
        Places::new(self.boot_data.len(), self.subsystems.len(), self.shared.len())
    }

    /// The handles of each entry that can have some, in their order, each with where the record
    /// counts them.
    fn handles(&self) -> impl Iterator<Item = (&[u64], usize)> {
        let places = self.places();
        let subsystem = places.subsystems + offset_of!(raw::Subsystem, handles);
        let shared = places.shared + offset_of!(raw::Shared, handles);
        let subsystems = self.subsystems.iter().map(|subsystem| &*subsystem.handles);
        let shareds = self.shared.iter().map(|shared| &*shared.handles);
        subsystems
            .zip((subsystem..).step_by(size_of::<raw::Subsystem>()))
            .chain(shareds.zip((shared..).step_by(size_of::<raw::Shared>())))
    }

    fn size(&self) -> usize {
        self.places().handles + 8 * self.handles().map(|(handles, _)| handles.len()).sum::<usize>()
    }

    fn check(&self) -> Result<(), RecordError> {
        check_counts(self.boot_data.len(), self.subsystems.len(), self.shared.len())?;
        let places = self.places();
        let boot_data = self.boot_data.iter().map(|data| &*data.name);
        check_names(boot_data, check_name, places.boot_data, size_of::<raw::BootData>())?;
        let subsystems = self.subsystems.iter().map(|subsystem| &*subsystem.name);
        check_names(subsystems, check_name, places.subsystems, size_of::<raw::Subsystem>())?;
        let shared = self.shared.iter().map(|shared| &*shared.compatible);
        check_names(shared, check_compatible, places.shared, size_of::<raw::Shared>())?;
        let (mut before, max) = (0, Self::HANDLES_MAX);
        for (handles, count) in self.handles() {
            let found = before + handles.len();
            if found > max {
                return Err(Kind::TooMany { found, max }.at(count));
            }
            check_handles(handles, max, count, places.handles + 8 * before)?;
            before = found;
        }
        Ok(())
    }

    /// The record's bytes.
    ///
    /// # Errors
    /// [`Kind::TooMany`], [`Kind::Name`], [`Kind::Duplicate`], [`Kind::Handle`].
    pub fn encode(&self) -> Result<Vec<u8>, RecordError> {
        let mut out = Vec::with_capacity(self.size());
        self.encode_into(&mut out)?;
        Ok(out)
    }

    /// Appends the record's bytes, or nothing where it is refused.
    ///
    /// # Errors
    /// Those of [`encode`](Self::encode).
    pub fn encode_into(&self, out: &mut Vec<u8>) -> Result<(), RecordError> {
        self.check()?;
        let size = self.size();
        let raw = raw::Machine {
            header: header(&VERSION, size),
            liveupdate_number: self.liveupdate_number.into(),
            next_session: self.next_session.into(),
            boot_data: (self.boot_data.len() as u32).into(),
            subsystems: (self.subsystems.len() as u32).into(),
            shared: (self.shared.len() as u32).into(),
            state: self.state.raw(),
            transition: self.transition.map_or(0, Event::raw),
            departed: u8::from(self.departed),
            carrier: self.carrier,
        };
        out.reserve(size);
        out.extend_from_slice(raw.as_bytes());
        for data in &self.boot_data {
            let raw = raw::BootData { name: pad(data.name.as_bytes()), data: data.data.into() };
            out.extend_from_slice(raw.as_bytes());
        }
        for subsystem in &self.subsystems {
            let raw = raw::Subsystem {
                name: pad(subsystem.name.as_bytes()),
                data: subsystem.data.into(),
                handles: (subsystem.handles.len() as u32).into(),
                criticality: subsystem.criticality.raw(),
                concurrent: u8::from(subsystem.concurrent),
                state: subsystem.state.raw(),
                reserved: [0],
            };
            out.extend_from_slice(raw.as_bytes());
        }
        for shared in &self.shared {
            let raw = raw::Shared {
                compatible: pad(shared.compatible.as_bytes()),
                data: shared.data.into(),
                handles: (shared.handles.len() as u32).into(),
                frozen: u8::from(shared.frozen),
                arrived: u8::from(shared.arrived),
                retrieved: u8::from(shared.retrieved),
                reserved: [0],
            };
            out.extend_from_slice(raw.as_bytes());
        }
        self.handles().for_each(|(handles, _)| put_handles(out, handles));
        Ok(())
    }

    /// Decodes a record of any version that was ever written.
    ///
    /// # Errors
    /// [`RecordError`] with the first thing that is wrong.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, RecordError> {
        let (raw, rest): (&raw::Machine, _) = open(bytes, &[MACHINE_RECORD])?;
        let counts = (raw.boot_data.get(), raw.subsystems.get(), raw.shared.get());
        let counts = (counts.0 as usize, counts.1 as usize, counts.2 as usize);
        check_counts(counts.0, counts.1, counts.2)?;
        let places = Places::new(counts.0, counts.1, counts.2);
        let length = |size: usize| {
            let claimed = u32::try_from(size).unwrap_or(u32::MAX);
            Kind::Length { claimed, found: bytes.len() }.at(raw::VERSION_SIZE)
        };
        let short = || length(places.handles);
        let (boot_data, rest) =
            <[raw::BootData]>::ref_from_prefix_with_elems(rest, counts.0).map_err(|_| short())?;
        let (subsystems, rest) =
            <[raw::Subsystem]>::ref_from_prefix_with_elems(rest, counts.1).map_err(|_| short())?;
        let (shared, rest) =
            <[raw::Shared]>::ref_from_prefix_with_elems(rest, counts.2).map_err(|_| short())?;
        let counted = subsystems.iter().map(|entry| entry.handles.get());
        let counted = counted.chain(shared.iter().map(|entry| entry.handles.get()));
        let total = counted.fold(0_usize, |sum, count| sum.saturating_add(count as usize));
        let size = places.handles.saturating_add(total.saturating_mul(8));
        let Some(handles) = <[U64]>::ref_from_bytes(rest).ok().filter(|all| all.len() == total)
        else {
            return Err(length(size));
        };
        let mut handles = Handles { all: handles };
        let departed = flag(raw.departed, "departed", offset_of!(raw::Machine, departed))?;
        let state = word(raw.state, State::from_raw, "state", offset_of!(raw::Machine, state))?;
        let at = offset_of!(raw::Machine, transition);
        let transition = optional_word(raw.transition, Event::from_raw, "transition", at)?;
        let record = Self {
            state,
            transition,
            departed,
            carrier: raw.carrier,
            liveupdate_number: raw.liveupdate_number.get(),
            next_session: raw.next_session.get(),
            boot_data: boot_data
                .iter()
                .zip((places.boot_data..).step_by(size_of::<raw::BootData>()))
                .map(|(entry, at)| {
                    let name = name(&entry.name, check_name, at)?.into();
                    Ok(SubsystemData { name, data: entry.data.get() })
                })
                .collect::<Result<_, _>>()?,
            subsystems: subsystems
                .iter()
                .zip((places.subsystems..).step_by(size_of::<raw::Subsystem>()))
                .map(|(entry, at)| subsystem(entry, at, &mut handles))
                .collect::<Result<_, _>>()?,
            shared: shared
                .iter()
                .zip((places.shared..).step_by(size_of::<raw::Shared>()))
                .map(|(entry, at)| shared_state(entry, at, &mut handles))
                .collect::<Result<_, _>>()?,
        };
        record.check()?;
        Ok(record)
    }
}

/// The handles of a record that no entry has taken yet.
struct Handles<'a> {
    all: &'a [U64],
}

impl Handles<'_> {
    fn take(&mut self, count: U32) -> Vec<u64> {
        let (first, rest) = self.all.split_at_checked(count.get() as usize).unwrap_or_default();
        self.all = rest;
        first.iter().map(|handle| handle.get()).collect()
    }
}

fn subsystem<'a>(
    raw: &'a raw::Subsystem,
    at: usize,
    handles: &mut Handles<'_>,
) -> Result<SubsystemRecord<'a>, RecordError> {
    let word_at = at + offset_of!(raw::Subsystem, criticality);
    let concurrent_at = at + offset_of!(raw::Subsystem, concurrent);
    let state_at = at + offset_of!(raw::Subsystem, state);
    reserved(&raw.reserved, at + offset_of!(raw::Subsystem, reserved))?;
    Ok(SubsystemRecord {
        name: name(&raw.name, check_name, at)?.into(),
        criticality: word(raw.criticality, Criticality::from_raw, "criticality", word_at)?,
        concurrent: flag(raw.concurrent, "concurrent", concurrent_at)?,
        state: word(raw.state, State::from_raw, "state", state_at)?,
        data: raw.data.get(),
        handles: handles.take(raw.handles).into(),
    })
}

fn shared_state<'a>(
    raw: &'a raw::Shared,
    at: usize,
    handles: &mut Handles<'_>,
) -> Result<SharedRecord<'a>, RecordError> {
    reserved(&raw.reserved, at + offset_of!(raw::Shared, reserved))?;
    Ok(SharedRecord {
        compatible: name(&raw.compatible, check_compatible, at)?.into(),
        data: raw.data.get(),
        frozen: flag(raw.frozen, "frozen", at + offset_of!(raw::Shared, frozen))?,
        arrived: flag(raw.arrived, "arrived", at + offset_of!(raw::Shared, arrived))?,
        retrieved: flag(raw.retrieved, "retrieved", at + offset_of!(raw::Shared, retrieved))?,
        handles: handles.take(raw.handles).into(),
    })
}
