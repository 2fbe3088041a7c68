//! An arena is made, or found and read: from there on it is in use.
//!
//! Invariants: what a superblock on the medium leads to has its space before anything else gets any.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use luo_abi::arena::{BLOCK, Catalogue, Found, Kind, Object, SIZE_MIN, SUPERBLOCKS, Superblock};
use luo_abi::keeper::key;
use luo_core::{Errno, Failure};

use super::{Arena, Live, Standing, State, microseconds, seconds};
use crate::arena::medium::{Extent, Medium};
use crate::arena::object::Stored;
use crate::arena::space::{Region, Space};
use crate::arena::view::{self, View};
use crate::io_failure;

impl Arena {
    /// Makes an empty arena of a medium, which belongs to that machine from then on.
    ///
    /// # Errors
    /// EEXIST where there is an arena already, whole or damaged, of any version, unless `force` is
    /// given; EINVAL where the medium is too small; EIO.
    pub fn create(
        medium: Arc<dyn Medium>,
        machine: [u8; 16],
        force: bool,
    ) -> Result<Self, Failure> {
        let size = medium.size() - medium.size() % BLOCK;
        if size < SIZE_MIN {
            return Err(Failure::new(
                Errno::Inval,
                format!("an arena has at least {SIZE_MIN} bytes, and this would have {size}"),
            ));
        }
        let before = view::superblock(&*medium, None);
        let never = before.as_ref().err().and_then(view::cause)
            == Some(&luo_abi::arena::ArenaError::NeverFormatted);
        if !never && !force {
            let what = match &before {
                Ok(found) if found.superblock.catalogue.is_some() => "that holds a handover".into(),
                Ok(_) => "that is empty".into(),
                Err(error) => format!("that cannot be used: {}", error.reason()),
            };
            return Err(Failure::new(
                Errno::Exist,
                format!("there is an arena already, {what}; add --force to discard it"),
            ));
        }
        // One that is newer than what is there, so that each of the two writes is a switch.
        let generation = before.map_or(0, |found| found.superblock.generation).saturating_add(1);
        let superblock = Superblock {
            arena: random_id()?,
            machine,
            generation,
            size,
            written: seconds(),
            next_handle: 1,
            catalogue: None,
        };
        let bytes = superblock.encode();
        for place in SUPERBLOCKS.iter().rev() {
            medium
                .write_at(*place, &bytes)
                .and_then(|()| medium.flush())
                .map_err(|error| io_failure(error, "the arena cannot be created"))?;
        }
        Self::open(medium, machine)
    }

    /// Opens an arena of that machine, to change it.
    ///
    /// # Errors
    /// As [`View::read`].
    pub fn open(medium: Arc<dyn Medium>, machine: [u8; 16]) -> Result<Self, Failure> {
        let view = View::read(&*medium, Some(&machine))?;
        let found = view.handover(&*medium)?;
        let space = Space::new(view.superblock().size);
        let Found { superblock, place, mirrored } = view.found;
        let mut standing = Standing::default();
        if let Some(place) = &superblock.catalogue {
            let extent = Extent { offset: place.offset, len: place.len };
            standing.catalogue = Some(space.claim(&[extent])?);
        }
        let (mut live, mut needed) = (BTreeMap::new(), Catalogue::FIXED_LEN);
        for object in view.catalogue.objects {
            // Read from an older arena, whose catalogue's checksum was that of its bytes too; the
            // next one is written in the version of today.
            let object = match object {
                Object { kind: Kind::Inline(bytes), handle, sums, .. } if sums.is_empty() => {
                    Object::new_inline(handle, bytes.into_owned())
                }
                object => object,
            };
            let extents: Vec<Extent> = object
                .pieces
                .iter()
                .map(|piece| Extent { offset: piece.offset, len: piece.len })
                .collect();
            let handle = object.handle;
            let region = space.claim(&extents)?;
            let stored = if object.kind == Kind::Resident {
                Stored::resident(object, Region::empty(&space), Arc::new(region))
            } else {
                Stored::new(object, region)
            };
            let stored = Arc::new(stored);
            stored.settle();
            standing.objects.push(Arc::clone(&stored));
            // The handover is nobody's object: the next one takes its place.
            if superblock.catalogue.is_none_or(|place| place.handover != handle) {
                needed += stored.object.encoded_len();
                live.insert(handle, Live::Here(stored));
            }
        }
        let state = State {
            place,
            mirrored,
            generation: superblock.generation,
            standing,
            held: Vec::new(),
            live,
            needed,
            reserve: Region::empty(&space),
            // What was never committed may still be named by somebody who outlived the process:
            // numbers that follow the clock are not given out again.
            next: superblock.next_handle.max(microseconds() << 2).min(key::number(u64::MAX) >> 1),
            failures: 0,
            lent: BTreeMap::new(),
            superblock,
        };
        let arena = Self {
            medium,
            space,
            state: Mutex::new(state),
            switching: Mutex::new(()),
            found: Mutex::new(found),
        };
        arena.leave_what_is_lent()?;
        // What the other superblock leads to is free space here, so it must not count any more
        // when that is written over.
        arena.mirror()?;
        Ok(arena)
    }
}

fn random_id() -> Result<[u8; 16], Failure> {
    let mut id = [0; 16];
    let flags = rustix::rand::GetRandomFlags::empty();
    match rustix::rand::getrandom(&mut id, flags) {
        Ok(16) => Ok(id),
        Ok(_) => Err(Failure::new(Errno::Io, "the kernel gave too little randomness")),
        Err(error) => Err(io_failure(error.into(), "no randomness")),
    }
}
