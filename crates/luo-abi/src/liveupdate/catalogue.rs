//! The catalogue of everything that luod keeps in kernel sessions, and the handover.
//!
//! Invariants: see [`super`]; what is decoded borrows nothing, and an object whose own entry is
//! sound can be had whatever became of the bytes of another one.

use alloc::{collections::BTreeSet, vec::Vec};
use core::fmt;

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, IntoBytes};

use super::ioctl::Name;
use super::raw;
use super::{CATALOGUE_MAX, MAGIC, SPACE, VERSION};
use crate::arena::checksum;
use crate::keeper::key;

const MEMORY: u32 = 1;
const LIVE: u32 = 2;
const BYTES: u32 = 3;
/// Where the checksum is in the header.
const CHECKSUM: core::ops::Range<usize> = 16..24;

/// Where an object is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// A memory file, of which the first `length` bytes are kept.
    Memory {
        /// The index of its kernel session.
        session: u32,
        /// Its token there.
        token: u64,
        /// In bytes.
        length: u64,
    },
    /// An open file.
    Live {
        /// The index of its kernel session.
        session: u32,
        /// Its token there.
        token: u64,
    },
    /// In the file of bytes.
    Bytes {
        /// Where they begin there.
        offset: u64,
        /// How many.
        length: u64,
        /// Their CRC-64/NVME.
        checksum: u64,
    },
}

/// One kept object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Object {
    /// Its handle.
    pub handle: u64,
    /// Where it is.
    pub place: Place,
}

/// Everything that was kept.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Catalogue {
    /// The kernel sessions, but for that of the catalogue itself.
    pub sessions: Vec<Name>,
    /// The objects, in any order.
    pub objects: Vec<Object>,
    /// The length of the file of bytes; zero: there is none.
    pub bytes: u64,
    /// The handover.
    pub handover: Vec<u8>,
}

/// Why bytes are no catalogue that can be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum CatalogueError {
    /// Not luo's.
    Magic,
    /// Of another version.
    Version(u32),
    /// Shorter than it says, or longer than any may be.
    Length,
    /// Its checksum is wrong.
    Checksum,
    /// An object names a session, a kind or a place that there is not.
    Object(u64),
    /// A handle is there twice, or is none of this carrier's.
    Handle(u64),
    /// A session's name is none.
    Name,
}

impl fmt::Display for CatalogueError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Magic => f.write_str("it does not begin like one of luo's"),
            Self::Version(found) => {
                write!(f, "it is of version {found}, this luo reads version {VERSION}")
            }
            Self::Length => f.write_str("its length is wrong"),
            Self::Checksum => f.write_str("its checksum is wrong"),
            Self::Object(handle) => write!(f, "the entry of object {handle:#x} is damaged"),
            Self::Handle(handle) => write!(f, "the handle {handle:#x} is wrong or there twice"),
            Self::Name => f.write_str("the name of a kernel session is damaged"),
        }
    }
}

impl core::error::Error for CatalogueError {}

impl Catalogue {
    /// Its bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let total = size_of::<raw::Header>()
            + self.sessions.len() * size_of::<raw::Session>()
            + self.objects.len() * size_of::<raw::Object>()
            + self.handover.len();
        let header = raw::Header {
            magic: MAGIC,
            version: U32::new(VERSION),
            length: U32::new(size_of::<raw::Header>() as u32),
            checksum: U64::new(0),
            total: U64::new(total as u64),
            sessions: U64::new(self.sessions.len() as u64),
            objects: U64::new(self.objects.len() as u64),
            bytes: U64::new(self.bytes),
            handover: U64::new(self.handover.len() as u64),
        };
        let mut bytes = Vec::with_capacity(total);
        bytes.extend_from_slice(header.as_bytes());
        for name in &self.sessions {
            bytes.extend_from_slice(name.as_bytes());
        }
        for object in &self.objects {
            let (kind, session, place, length, checksum) = match object.place {
                Place::Memory { session, token, length } => (MEMORY, session, token, length, 0),
                Place::Live { session, token } => (LIVE, session, token, 0, 0),
                Place::Bytes { offset, length, checksum } => (BYTES, 0, offset, length, checksum),
            };
            let object = raw::Object {
                handle: U64::new(object.handle),
                kind: U32::new(kind),
                session: U32::new(session),
                place: U64::new(place),
                length: U64::new(length),
                checksum: U64::new(checksum),
            };
            bytes.extend_from_slice(object.as_bytes());
        }
        bytes.extend_from_slice(&self.handover);
        let sum = checksum(&bytes);
        if let Some(place) = bytes.get_mut(CHECKSUM) {
            place.copy_from_slice(&sum.to_le_bytes());
        }
        bytes
    }

    /// Reads a catalogue; what follows it is ignored.
    ///
    /// # Errors
    /// [`CatalogueError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, CatalogueError> {
        let (header, rest) =
            raw::Header::read_from_prefix(bytes).map_err(|_| CatalogueError::Length)?;
        if header.magic != MAGIC {
            return Err(CatalogueError::Magic);
        }
        let total = header.total.get();
        let whole = usize::try_from(total)
            .ok()
            .filter(|_| total <= CATALOGUE_MAX)
            .and_then(|total| bytes.get(..total))
            .ok_or(CatalogueError::Length)?;
        let mut copy = whole.to_vec();
        if let Some(place) = copy.get_mut(CHECKSUM) {
            place.fill(0);
        }
        if checksum(&copy) != header.checksum.get() {
            return Err(CatalogueError::Checksum);
        }
        if header.version.get() != VERSION {
            return Err(CatalogueError::Version(header.version.get()));
        }
        let count = |number: U64| usize::try_from(number.get()).map_err(|_| CatalogueError::Length);
        let rest = rest
            .get(..whole.len().saturating_sub(size_of::<raw::Header>()))
            .ok_or(CatalogueError::Length)?;
        let (names, rest) =
            <[raw::Session]>::ref_from_prefix_with_elems(rest, count(header.sessions)?)
                .map_err(|_| CatalogueError::Length)?;
        let (objects, handover) =
            <[raw::Object]>::ref_from_prefix_with_elems(rest, count(header.objects)?)
                .map_err(|_| CatalogueError::Length)?;
        if header.length.get() as usize != size_of::<raw::Header>()
            || handover.len() as u64 != header.handover.get()
        {
            return Err(CatalogueError::Length);
        }
        let sessions = names
            .iter()
            .map(|session| {
                let end = session.name.iter().position(|byte| *byte == 0);
                let name = end.and_then(|end| session.name.get(..end)).and_then(Name::new);
                name.filter(|name| name.as_bytes() == session.name).ok_or(CatalogueError::Name)
            })
            .collect::<Result<Vec<_>, _>>()?;
        let mut handles = BTreeSet::new();
        let objects = objects
            .iter()
            .map(|object| {
                let handle = object.handle.get();
                if key::space(handle) != SPACE || !handles.insert(handle) {
                    return Err(CatalogueError::Handle(handle));
                }
                let place = read_place(object, sessions.len(), header.bytes.get());
                Ok(Object { handle, place: place.ok_or(CatalogueError::Object(handle))? })
            })
            .collect::<Result<Vec<_>, _>>()?;
        let bytes = header.bytes.get();
        Ok(Self { sessions, objects, bytes, handover: handover.to_vec() })
    }
}

fn read_place(object: &raw::Object, sessions: usize, bytes: u64) -> Option<Place> {
    let (session, place) = (object.session.get(), object.place.get());
    let (length, checksum) = (object.length.get(), object.checksum.get());
    let known = (session as usize) < sessions && checksum == 0;
    match object.kind.get() {
        MEMORY if known => Some(Place::Memory { session, token: place, length }),
        LIVE if known && length == 0 => Some(Place::Live { session, token: place }),
        BYTES if session == 0 && place.checked_add(length).is_some_and(|end| end <= bytes) => {
            Some(Place::Bytes { offset: place, length, checksum })
        }
        _ => None,
    }
}
