//! What an arena holds, read and validated whole.
//!
//! Invariants: looking changes nothing, and needs no lock: a commit in between is seen as the old
//! or the new state, or as an error that a second look does not give.

use std::fmt;

use luo_abi::arena::{
    ArenaError, Catalogue, Found, Kind, Object, SUPERBLOCK_SIZE, SUPERBLOCKS, Superblock, find,
};
use luo_core::Failure;

use super::medium::Medium;
use super::{object, refused};
use crate::io_failure;

/// What an arena holds.
#[derive(Debug)]
pub struct View {
    /// The superblock that counts.
    pub found: Found,
    /// Its catalogue.
    pub catalogue: Catalogue,
}

/// What a check has looked at.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Checked {
    /// How many objects.
    pub objects: u64,
    /// How many bytes of memory and of kept bytes were verified.
    pub bytes: u64,
    /// How many bytes of memory were not, since only a full check reads them, and resident memory
    /// has no checksums.
    pub skipped: u64,
}

impl View {
    /// Reads and validates an arena. `ours` is this machine; `None` takes an arena of any.
    ///
    /// # Errors
    /// EINVAL, EOPNOTSUPP (another version), EPERM (another machine), each with the [`ArenaError`]
    /// as its cause; EIO.
    pub fn read(medium: &dyn Medium, ours: Option<&[u8; 16]>) -> Result<Self, Failure> {
        let found = superblock(medium, ours)?;
        let mut bytes = Vec::new();
        if let Some(place) = &found.superblock.catalogue {
            // It has been found to lie within the arena.
            bytes.resize(usize::try_from(place.len).unwrap_or(0), 0);
            medium
                .read_at(place.offset, &mut bytes)
                .map_err(|error| io_failure(error, "the catalogue of the arena cannot be read"))?;
        }
        let catalogue = Catalogue::decode(&bytes, &found.superblock).map_err(refused)?;
        Ok(Self { found, catalogue })
    }

    /// The superblock that counts.
    #[must_use]
    pub const fn superblock(&self) -> &Superblock {
        &self.found.superblock
    }

    /// The handover, `None` where there is none.
    ///
    /// # Errors
    /// EIO where it is damaged.
    pub fn handover(&self, medium: &dyn Medium) -> Result<Option<Vec<u8>>, Failure> {
        let Some(place) = &self.found.superblock.catalogue else { return Ok(None) };
        let Some(object) = self.catalogue.get(place.handover) else { return Ok(None) };
        object::read_bytes(medium, object).map(Some)
    }

    /// Verifies the bytes of all objects; those of memory only in a `full` check. `progress` is
    /// told how many bytes of how many are done.
    ///
    /// # Errors
    /// EIO with the first object that is damaged, and what `progress` answers.
    pub fn check(
        &self,
        medium: &dyn Medium,
        full: bool,
        progress: &dyn Fn(u64, u64) -> Result<(), Failure>,
    ) -> Result<Checked, Failure> {
        let read = |object: &&Object<'_>| match object.kind {
            Kind::Memory => full,
            Kind::Bytes | Kind::Inline(_) => true,
            // Whoever writes it where it lies leaves no checksum.
            Kind::Resident => false,
        };
        let total = self.catalogue.objects.iter().filter(read).map(stored).sum();
        let mut checked = Checked::default();
        for object in &self.catalogue.objects {
            checked.objects += 1;
            if !read(&object) {
                checked.skipped += stored(object);
                continue;
            }
            if matches!(object.kind, Kind::Memory) {
                let before = checked.bytes;
                object::verify_memory(medium, object, &mut |done| progress(before + done, total))?;
            } else {
                object::read_bytes(medium, object)?;
            }
            checked.bytes += stored(object);
            progress(checked.bytes, total)?;
        }
        Ok(checked)
    }
}

/// The superblock that counts.
pub(super) fn superblock(medium: &dyn Medium, ours: Option<&[u8; 16]>) -> Result<Found, Failure> {
    let size = medium.size();
    let read = SUPERBLOCKS.map(|offset| {
        let len = size.saturating_sub(offset).min(SUPERBLOCK_SIZE as u64);
        let mut bytes = vec![0; len as usize];
        medium.read_at(offset, &mut bytes).map(|()| bytes)
    });
    // One that cannot be read is as good as damaged, if the other one is whole.
    let [first, second] = match read {
        [Err(error), Err(_)] => {
            return Err(io_failure(error, "the superblocks of the arena cannot be read"));
        }
        read => read.map(Result::unwrap_or_default),
    };
    find(&first, &second, size, ours).map_err(refused)
}

/// How many bytes of the arena an object takes up.
#[must_use]
pub fn stored(object: &Object<'_>) -> u64 {
    match &object.kind {
        Kind::Inline(bytes) => bytes.len() as u64,
        _ => object.pieces.iter().map(|piece| piece.len).sum(),
    }
}

/// The [`ArenaError`] that caused a failure, where one did.
#[must_use]
pub fn cause(failure: &Failure) -> Option<&ArenaError> {
    std::error::Error::source(failure)?.downcast_ref()
}

fn id(bytes: [u8; 16]) -> String {
    format!("{:032x}", u128::from_be_bytes(bytes))
}

/// What there is to know of an arena in a few lines.
impl fmt::Display for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let superblock = self.superblock();
        let used: u64 = self.catalogue.objects.iter().map(stored).sum();
        let state = if superblock.catalogue.is_some() { "holds a handover" } else { "empty" };
        writeln!(f, "arena       {}", id(superblock.arena))?;
        writeln!(f, "machine     {}", id(superblock.machine))?;
        writeln!(f, "version     {}", superblock.version())?;
        writeln!(f, "size        {} bytes", superblock.size)?;
        writeln!(f, "state       {state}")?;
        writeln!(f, "generation  {}", superblock.generation)?;
        writeln!(f, "written     {} (seconds since 1970)", superblock.written)?;
        writeln!(f, "objects     {}", self.catalogue.objects.len())?;
        writeln!(f, "stored      {used} bytes")?;
        if !self.found.mirrored {
            writeln!(
                f,
                "superblock  only one is current; the next luod to start writes the other"
            )?;
        }
        Ok(())
    }
}

/// Everything that there is to know of an arena but the kept bytes themselves.
#[derive(Debug)]
pub struct Dump<'a>(pub &'a View);

impl fmt::Display for Dump<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let superblock = self.0.superblock();
        let Some(place) = &superblock.catalogue else { return Ok(()) };
        writeln!(
            f,
            "catalogue   {} bytes at {}, checksum {:#018x}",
            place.len, place.offset, place.checksum
        )?;
        for object in &self.0.catalogue.objects {
            let what = match &object.kind {
                _ if object.handle == place.handover => "handover",
                Kind::Memory => "memory",
                Kind::Resident => "resident memory",
                Kind::Bytes | Kind::Inline(_) => "bytes",
            };
            writeln!(f, "{:#x}  {what}, {} bytes", object.handle, object.len)?;
            for piece in object.pieces.iter() {
                writeln!(f, "    {} .. at {}, {} bytes", piece.logical, piece.offset, piece.len)?;
            }
        }
        Ok(())
    }
}
