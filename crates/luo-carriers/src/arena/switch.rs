//! Commit and retire: one atomic step from one state of the arena to the next.
//!
//! ```text
//!  write the catalogue into free space ── flush ── write one superblock ── flush ══ switched
//!                                                                                       │
//!                          space of the old state is free ── flush ── write the other ──┘
//! ```
//!
//! Invariants:
//! - A superblock is written only when everything it leads to is durable.
//! - Space of the old state becomes free only when no superblock on the medium leads to it.
//! - After an error before the switch the old state stands, for certain: the superblock that may
//!   or may not have been written is written over with the old one. Where the medium refuses that
//!   too, the error says so, and the space of both states is kept.

use std::sync::{Arc, PoisonError};

use luo_abi::arena::{Catalogue, CataloguePlace, Object, SUPERBLOCKS, Superblock, handle};
use luo_core::{Errno, Failure};

use super::object::Stored;
use super::space::Region;
use super::store::{Arena, Live, Standing, lost, seconds};
use crate::io_failure;

impl Arena {
    /// Makes `handover` and all objects the state of the arena, in one atomic step.
    ///
    /// # Errors
    /// ENOSPC, EIO; EBUSY while an object is being brought up to date. After an error the state
    /// before still stands; where the medium is so broken that this is not certain, the error says
    /// so.
    pub fn commit(&self, handover: &[u8]) -> Result<(), Failure> {
        let _switching = self.switching.lock().unwrap_or_else(PoisonError::into_inner);
        let mut state = self.state();
        let mut objects = Vec::with_capacity(state.live.len() + 1);
        for live in state.live.values() {
            match live {
                Live::Here(stored) if stored.is_spoiled() => return Err(lost()),
                Live::Here(stored) => objects.push(Arc::clone(stored)),
                Live::Busy => {
                    return Err(Failure::new(
                        Errno::Busy,
                        "a kept object is being brought up to date: commit when that is done",
                    ));
                }
            }
        }
        let named = handle(state.next);
        let object = Object::new_inline(named, handover.to_vec());
        let object = Stored::new(object, Region::empty(&self.space));
        let needed = state.needed.saturating_add(object.object.encoded_len());
        if state.reserve.len() < needed {
            state.reserve = self.space.allocate_whole(needed)?;
        }
        objects.push(Arc::new(object));
        state.next += 1;
        state.generation += 1;
        let empty = Region::empty(&self.space);
        let mut region = std::mem::replace(&mut state.reserve, empty);
        let mut superblock = Superblock {
            generation: state.generation,
            written: seconds(),
            next_handle: state.next,
            ..state.superblock
        };
        drop(state);

        let written = self.write_catalogue(&objects, &mut region, named, &mut superblock);
        if let Err(failure) = written {
            let mut state = self.state();
            if state.reserve.is_empty() {
                state.reserve = region;
            }
            return Err(failure);
        }
        objects.iter().for_each(|stored| stored.settle());
        self.switch(superblock, Standing { objects, catalogue: Some(region) })
    }

    /// Writes the catalogue and makes everything durable that was written so far.
    fn write_catalogue(
        &self,
        objects: &[Arc<Stored>],
        region: &mut Region,
        handover: u64,
        superblock: &mut Superblock,
    ) -> Result<(), Failure> {
        let list = objects.iter().map(|stored| &stored.object);
        let bytes = Catalogue::encode(superblock.arena, superblock.generation, list.clone());
        let len = bytes.len() as u64;
        let Some(extent) = region.extents().first().copied().filter(|whole| whole.len >= len)
        else {
            return Err(Failure::new(Errno::NoSpc, "the catalogue has outgrown its room"));
        };
        let version = Catalogue::version(list);
        superblock.catalogue = Some(CataloguePlace {
            offset: extent.offset,
            len,
            checksum: Catalogue::checksum(&bytes, version),
            handover,
            version,
        });
        // What cannot be read back is not committed: better no update than one without a way on.
        Catalogue::decode(&bytes, superblock).map_err(|error| {
            Failure::new(Errno::Inval, "the arena's new catalogue is wrong").because(error)
        })?;
        let written =
            self.medium.write_at(extent.offset, &bytes).and_then(|()| self.medium.flush());
        written.map_err(|error| {
            self.unsettle();
            io_failure(error, "the handover was not written, the one before still stands")
        })?;
        let used = super::Extent { offset: extent.offset, len };
        region.keep_only([used].into_iter())
    }

    /// Ends the handover: the arena is empty. Objects that are live can be recalled until the
    /// process ends.
    ///
    /// # Errors
    /// As [`commit`](Self::commit).
    pub fn retire(&self) -> Result<(), Failure> {
        let _switching = self.switching.lock().unwrap_or_else(PoisonError::into_inner);
        let mut state = self.state();
        if state.superblock.catalogue.is_none() && state.mirrored {
            return Ok(());
        }
        state.generation += 1;
        let superblock = Superblock {
            generation: state.generation,
            written: seconds(),
            next_handle: state.next,
            catalogue: None,
            ..state.superblock
        };
        drop(state);
        self.switch(superblock, Standing::default())?;
        *self.found.lock().unwrap_or_else(PoisonError::into_inner) = None;
        Ok(())
    }

    /// Writes the superblock at the place that does not count, and so makes it count.
    fn switch(&self, superblock: Superblock, standing: Standing) -> Result<(), Failure> {
        let (before, place) = {
            let state = self.state();
            (state.superblock, 1 - state.place)
        };
        if let Err(error) = self.write_superblock(place, &superblock) {
            self.unsettle();
            let back = self.write_superblock(place, &before);
            let mut state = self.state();
            state.mirrored = back.is_ok();
            return Err(match back {
                Ok(()) => io_failure(error, "the state of the arena before still stands"),
                Err(_) => {
                    state.held.push(standing);
                    io_failure(
                        error,
                        "the arena cannot be written: whether it holds the state before or the new \
                         one shows when it is opened again; each of them is whole",
                    )
                }
            });
        }
        let mut state = self.state();
        let old = std::mem::replace(&mut state.standing, standing);
        state.held.push(old);
        state.superblock = superblock;
        state.place = place;
        state.mirrored = false;
        drop(state);
        // The switch is done. Where the other superblock cannot be written, the old state keeps
        // its space, and the next switch writes there.
        self.mirror().or(Ok(()))
    }

    /// Writes the superblock at the other place too, and frees what the one there led to.
    pub(super) fn mirror(&self) -> Result<(), Failure> {
        let (superblock, place, mirrored) = {
            let state = self.state();
            (state.superblock, 1 - state.place, state.mirrored)
        };
        if !mirrored {
            self.write_superblock(place, &superblock).map_err(|error| {
                self.unsettle();
                io_failure(error, "the second superblock of the arena cannot be written")
            })?;
        }
        let mut state = self.state();
        state.mirrored = true;
        let held = std::mem::take(&mut state.held);
        drop(state);
        drop(held);
        Ok(())
    }

    fn write_superblock(&self, place: usize, superblock: &Superblock) -> std::io::Result<()> {
        let offset = SUPERBLOCKS.get(place).copied().unwrap_or_default();
        self.medium.write_at(offset, &superblock.encode())?;
        self.medium.flush()
    }
}
