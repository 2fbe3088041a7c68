//! An object as it lies in the arena.

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use luo_abi::arena::{CHUNK, Damaged, Kind, Object, Placed, chunk_sum};
use luo_core::{Errno, Failure};

use super::copy::Chunks;
use super::medium::{Extent, Medium};
use super::space::Region;
use crate::io_failure;

/// An object, and the space that it takes up for as long as somebody needs it.
#[derive(Debug)]
pub(super) struct Stored {
    pub(super) object: Object<'static>,
    pub(super) region: Region,
    /// Of resident memory, what it takes up, shared with whoever knows that it is lent.
    pub(super) lent: Option<Arc<Region>>,
    /// A flush has succeeded since it was written.
    durable: AtomicBool,
    /// Nobody knows what of it is on the medium.
    spoiled: AtomicBool,
}

impl Stored {
    pub(super) fn new(object: Object<'static>, region: Region) -> Self {
        Self {
            object,
            region,
            lent: None,
            durable: AtomicBool::new(false),
            spoiled: AtomicBool::new(false),
        }
    }

    /// Resident memory: all of these blocks.
    pub(super) fn resident(object: Object<'static>, none: Region, lent: Arc<Region>) -> Self {
        Self { lent: Some(lent), ..Self::new(object, none) }
    }

    /// Everything that was written so far is durable.
    pub(super) fn settle(&self) {
        self.durable.store(true, Ordering::Relaxed);
    }

    /// What was written and not flushed may be lost.
    pub(super) fn unsettle(&self) {
        if !self.durable.load(Ordering::Relaxed) {
            self.spoil();
        }
    }

    pub(super) fn spoil(&self) {
        self.spoiled.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_spoiled(&self) -> bool {
        self.spoiled.load(Ordering::Relaxed)
    }

    /// What is stored of memory, for the copying engine.
    pub(super) fn chunks(&self) -> Chunks {
        chunks(&self.object)
    }
}

/// What is stored of memory, for the copying engine.
pub(super) fn chunks(object: &Object<'_>) -> Chunks {
    let extents = object
        .pieces
        .iter()
        .map(|piece| (piece.logical, Extent { offset: piece.offset, len: piece.len }))
        .collect();
    Chunks { len: object.len, extents, sums: object.sums.to_vec() }
}

/// Memory as it comes from the copying engine.
pub(super) fn memory(handle: u64, chunks: Chunks) -> Object<'static> {
    let pieces = chunks
        .extents
        .into_iter()
        .map(|(logical, extent)| Placed { logical, offset: extent.offset, len: extent.len })
        .collect();
    Object { handle, kind: Kind::Memory, len: chunks.len, pieces, sums: Cow::Owned(chunks.sums) }
}

/// Writes bytes into a region that has room for them.
pub(super) fn write_bytes(
    medium: &dyn Medium,
    region: &Region,
    bytes: &[u8],
) -> Result<(Vec<Placed>, Vec<u64>), Failure> {
    let mut pieces = Vec::new();
    let mut rest = bytes;
    for extent in region.extents() {
        let len = usize::try_from(extent.len).unwrap_or(usize::MAX).min(rest.len());
        let (piece, after) = rest.split_at(len);
        if piece.is_empty() {
            break;
        }
        medium.write_at(extent.offset, piece).map_err(|error| {
            io_failure(error, &format!("the arena cannot be written at {}", extent.offset))
        })?;
        let logical = (bytes.len() - rest.len()) as u64;
        pieces.push(Placed { logical, offset: extent.offset, len: len as u64 });
        rest = after;
    }
    if !rest.is_empty() {
        return Err(Failure::new(Errno::Inval, "the region is shorter than the bytes"));
    }
    Ok((pieces, bytes.chunks(CHUNK as usize).map(chunk_sum).collect()))
}

/// Reads an object of bytes, and verifies it.
pub(super) fn read_bytes(medium: &dyn Medium, object: &Object<'_>) -> Result<Vec<u8>, Failure> {
    if let Some(inline) = object.inline() {
        return inline.map(<[u8]>::to_vec).map_err(|Damaged| damaged(object.handle, 0));
    }
    let len = usize::try_from(object.len).map_err(|error| {
        Failure::new(Errno::NoMem, "kept bytes do not fit into memory").because(error)
    })?;
    let mut bytes = vec![0; len];
    let mut rest = bytes.as_mut_slice();
    for piece in object.pieces.iter() {
        let len = usize::try_from(piece.len).unwrap_or(usize::MAX).min(rest.len());
        let (part, after) = rest.split_at_mut(len);
        read_at(medium, piece.offset, part)?;
        rest = after;
    }
    for (index, (chunk, sum)) in bytes.chunks(CHUNK as usize).zip(object.sums.iter()).enumerate() {
        if chunk_sum(chunk) != *sum {
            return Err(damaged(object.handle, index as u64 * CHUNK));
        }
    }
    Ok(bytes)
}

/// Reads memory chunk by chunk, and verifies it. Calls `each` with the bytes verified so far.
pub(super) fn verify_memory(
    medium: &dyn Medium,
    object: &Object<'_>,
    each: &mut dyn FnMut(u64) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let mut sums = object.sums.iter();
    let mut buffer = vec![0_u8; CHUNK as usize];
    let mut pieces = object.pieces.iter().peekable();
    let mut next = 0;
    let mut done = 0;
    while let Some(first) = pieces.peek() {
        // The next chunk in which there is a piece; a long piece is in several.
        let start = (first.logical / CHUNK * CHUNK).max(next);
        let end = start.saturating_add(CHUNK);
        let len = object.len.saturating_sub(start).min(CHUNK) as usize;
        buffer.fill(0);
        while let Some(piece) = pieces.peek().filter(|piece| piece.logical < end) {
            let from = piece.logical.max(start);
            let piece_end = piece.logical + piece.len;
            let to = piece_end.min(end);
            let range = (from - start) as usize..(to - start) as usize;
            let part = buffer.get_mut(range).unwrap_or_default();
            read_at(medium, piece.offset + (from - piece.logical), part)?;
            done += to - from;
            if piece_end > end {
                break;
            }
            pieces.next();
        }
        next = end;
        let chunk = buffer.get(..len).unwrap_or_default();
        if sums.next() != Some(&chunk_sum(chunk)) {
            return Err(damaged(object.handle, start));
        }
        each(done)?;
    }
    Ok(())
}

fn read_at(medium: &dyn Medium, offset: u64, buffer: &mut [u8]) -> Result<(), Failure> {
    medium
        .read_at(offset, buffer)
        .map_err(|error| io_failure(error, &format!("the arena cannot be read at {offset}")))
}

fn damaged(handle: u64, at: u64) -> Failure {
    Failure::new(
        Errno::Io,
        format!("kept object {handle:#x} is damaged in the {CHUNK} bytes at {at}: wrong checksum"),
    )
}
