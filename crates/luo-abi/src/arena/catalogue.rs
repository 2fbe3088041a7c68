//! The catalogue: which objects an arena holds, and where.
//!
//! Invariants: decoding allocates no more than a small multiple of the bytes given.

use alloc::{borrow::Cow, vec::Vec};
use zerocopy::{FromBytes, IntoBytes};

use super::{
    ArenaError, BLOCK, CHUNK, CatalogueError as Error, CataloguePlace, DATA_START, SPACE,
    Superblock, VERSION, VERSION_PLAIN, VERSION_RESIDENT, blocks, checksum, chunk_sum, raw,
};
use crate::keeper::key;

const MAGIC: [u8; 8] = *b"luocatlg";

mod kind {
    pub(super) const MEMORY: u32 = 1;
    pub(super) const BYTES: u32 = 2;
    pub(super) const INLINE: u32 = 3;
    /// Since version 2.
    pub(super) const RESIDENT: u32 = 4;
}

/// A piece of an object, and where it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placed {
    /// Where it begins within the object, in bytes: a multiple of [`BLOCK`].
    pub logical: u64,
    /// Where it begins within the arena, in bytes: a multiple of [`BLOCK`].
    pub offset: u64,
    /// How long it is; never zero.
    pub len: u64,
}

/// What an object is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind<'a> {
    /// Memory; what no piece has is zero.
    Memory,
    /// Bytes, in pieces without holes.
    Bytes,
    /// Bytes that are in the catalogue itself. With a checksum in [`Object::sums`] (since version 3)
    /// they may be damaged while the catalogue is whole; [`Object::inline`] tells.
    Inline(Cow<'a, [u8]>),
    /// Memory that a service writes where it lies: one piece, all of it, without checksums.
    Resident,
}

/// A kept object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Object<'a> {
    /// Its handle, of the space [`SPACE`].
    pub handle: u64,
    /// What it is.
    pub kind: Kind<'a>,
    /// Its length in bytes.
    pub len: u64,
    /// Where its pieces are, in the order of the object. The last may reach beyond its end, to
    /// the end of the block.
    pub pieces: Cow<'a, [Placed]>,
    /// The checksum of each chunk of [`CHUNK`] bytes of the object in which there is a piece, in
    /// their order. It covers the whole chunk (or what there is of it, at the end of the object),
    /// holes as zeros. Of bytes that are in the catalogue, the one of all of them, or none where the
    /// catalogue's own covers them. One that would be 0 or 1 is 2 more.
    pub sums: Cow<'a, [u64]>,
}

impl Object<'_> {
    /// Bytes for the catalogue itself, with a checksum of their own.
    #[must_use]
    pub fn new_inline(handle: u64, bytes: Vec<u8>) -> Object<'static> {
        Object {
            handle,
            len: bytes.len() as u64,
            pieces: Cow::Borrowed(&[]),
            sums: Cow::Owned([chunk_sum(&bytes)].to_vec()),
            kind: Kind::Inline(Cow::Owned(bytes)),
        }
    }

    /// The bytes, where they are in the catalogue; `Err` where their checksum is wrong.
    #[must_use]
    pub fn inline(&self) -> Option<Result<&[u8], Damaged>> {
        let Kind::Inline(bytes) = &self.kind else { return None };
        let whole = self.sums.first().is_none_or(|sum| *sum == chunk_sum(bytes));
        Some(if whole { Ok(bytes) } else { Err(Damaged) })
    }

    /// How many bytes of the catalogue it takes.
    #[must_use]
    pub fn encoded_len(&self) -> u64 {
        let inline = match &self.kind {
            Kind::Inline(bytes) => bytes.len(),
            _ => 0,
        };
        encoded_len(self.pieces.len(), self.sums.len(), inline)
    }
}

/// The checksum of an object's bytes is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Damaged;

/// How many bytes of the catalogue an object takes that has so many pieces, checksums and bytes.
#[must_use]
pub const fn encoded_len(pieces: usize, sums: usize, inline: usize) -> u64 {
    let fixed = size_of::<raw::Object>() as u64;
    let pieces = (pieces as u64).saturating_mul(size_of::<raw::Extent>() as u64);
    fixed.saturating_add(pieces).saturating_add(sums as u64 * 8).saturating_add(inline as u64)
}

/// A catalogue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Catalogue {
    /// The objects, by rising handles.
    pub objects: Vec<Object<'static>>,
}

impl Catalogue {
    /// How many bytes a catalogue takes beside its objects.
    pub const FIXED_LEN: u64 = size_of::<raw::Catalogue>() as u64;

    /// The version of a catalogue of these objects: the oldest that can say all of it.
    pub fn version<'a>(objects: impl Iterator<Item = &'a Object<'a>>) -> u32 {
        objects.fold(VERSION_PLAIN, |version, object| {
            version.max(match &object.kind {
                Kind::Inline(_) if !object.sums.is_empty() => VERSION,
                Kind::Resident => VERSION_RESIDENT,
                _ => VERSION_PLAIN,
            })
        })
    }

    /// The checksum of a catalogue of that version for its superblock. Bytes that have one of their
    /// own are not in it.
    #[must_use]
    pub fn checksum(bytes: &[u8], version: u32) -> u64 {
        let inline = match raw::Catalogue::ref_from_prefix(bytes) {
            Ok((header, _)) if version >= VERSION => header.inline.get(),
            _ => 0,
        };
        let head = usize::try_from(inline).ok().and_then(|len| bytes.len().checked_sub(len));
        // Where it claims more than there is, all of it counts, and nothing of it is of use.
        checksum(head.and_then(|len| bytes.get(..len)).unwrap_or(bytes))
    }

    /// The bytes of the catalogue of these objects, by rising handles, for the superblock with
    /// this arena and generation. Whether the objects are right is for the reader to check.
    pub fn encode<'a, I>(arena: [u8; 16], generation: u64, objects: I) -> Vec<u8>
    where
        I: Iterator<Item = &'a Object<'a>> + Clone,
    {
        let (mut pieces, mut sums, mut inline) = (0, 0, 0);
        let (mut count, mut len) = (0_u64, Self::FIXED_LEN);
        for object in objects.clone() {
            count += 1;
            len += object.encoded_len();
            pieces += object.pieces.len() as u64;
            sums += object.sums.len() as u64;
            inline += inline_bytes(object).len() as u64;
        }
        let mut bytes = Vec::with_capacity(usize::try_from(len).unwrap_or(0));
        let header = raw::Catalogue {
            magic: MAGIC,
            arena,
            generation: generation.into(),
            objects: count.into(),
            extents: pieces.into(),
            sums: sums.into(),
            inline: inline.into(),
        };
        bytes.extend_from_slice(header.as_bytes());
        for object in objects.clone() {
            let raw = raw::Object {
                handle: object.handle.into(),
                length: object.len.into(),
                extents: (object.pieces.len() as u64).into(),
                sums: (object.sums.len() as u64).into(),
                kind: match object.kind {
                    Kind::Memory => kind::MEMORY,
                    Kind::Bytes => kind::BYTES,
                    Kind::Inline(_) => kind::INLINE,
                    Kind::Resident => kind::RESIDENT,
                }
                .into(),
                reserved: 0.into(),
            };
            bytes.extend_from_slice(raw.as_bytes());
        }
        for piece in objects.clone().flat_map(|object| object.pieces.iter()) {
            let raw = raw::Extent {
                logical: piece.logical.into(),
                offset: piece.offset.into(),
                length: piece.len.into(),
            };
            bytes.extend_from_slice(raw.as_bytes());
        }
        for sum in objects.clone().flat_map(|object| object.sums.iter()) {
            bytes.extend_from_slice(&sum.to_le_bytes());
        }
        for object in objects {
            bytes.extend_from_slice(inline_bytes(object));
        }
        bytes
    }

    /// Decodes the catalogue that `superblock` leads to.
    ///
    /// # Errors
    /// [`ArenaError::Catalogue`] with the first thing that is wrong.
    pub fn decode(bytes: &[u8], superblock: &Superblock) -> Result<Self, ArenaError> {
        let Some(place) = &superblock.catalogue else {
            return if bytes.is_empty() {
                Ok(Self { objects: Vec::new() })
            } else {
                Err(Error::Length.at(0))
            };
        };
        if bytes.len() as u64 != place.len {
            return Err(Error::Length.at(bytes.len()));
        }
        if Self::checksum(bytes, place.version) != place.checksum {
            return Err(Error::Checksum.at(0));
        }
        let tables = Tables::cut(bytes)?;
        if tables.header.arena != superblock.arena
            || tables.header.generation.get() != superblock.generation
        {
            return Err(Error::Foreign.at(8));
        }
        let objects = tables.objects(superblock, place)?;
        let handover = objects
            .binary_search_by_key(&place.handover, |object| object.handle)
            .ok()
            .and_then(|index| objects.get(index));
        if !handover.is_some_and(|object| matches!(object.kind, Kind::Bytes | Kind::Inline(_))) {
            return Err(Error::Handover.at(0));
        }
        check_overlaps(&objects, place.offset, place.len)?;
        Ok(Self { objects })
    }

    /// The object of that handle.
    #[must_use]
    pub fn get(&self, handle: u64) -> Option<&Object<'static>> {
        let index = self.objects.binary_search_by_key(&handle, |object| object.handle).ok()?;
        self.objects.get(index)
    }
}

fn inline_bytes<'a>(object: &'a Object<'_>) -> &'a [u8] {
    match &object.kind {
        Kind::Inline(bytes) => bytes,
        _ => &[],
    }
}

/// The four tables of a catalogue, which together have its length.
struct Tables<'a> {
    header: &'a raw::Catalogue,
    objects: &'a [raw::Object],
    extents: &'a [raw::Extent],
    sums: &'a [zerocopy::little_endian::U64],
    inline: &'a [u8],
}

impl<'a> Tables<'a> {
    fn cut(bytes: &'a [u8]) -> Result<Self, ArenaError> {
        let short = || Error::Length.at(bytes.len());
        let (header, rest) = raw::Catalogue::ref_from_prefix(bytes).map_err(|_| short())?;
        if header.magic != MAGIC {
            return Err(Error::Magic.at(0));
        }
        let count = |count: u64| usize::try_from(count).map_err(|_| short());
        let (objects, rest) =
            <[raw::Object]>::ref_from_prefix_with_elems(rest, count(header.objects.get())?)
                .map_err(|_| short())?;
        let (extents, rest) =
            <[raw::Extent]>::ref_from_prefix_with_elems(rest, count(header.extents.get())?)
                .map_err(|_| short())?;
        let (sums, inline) = <[zerocopy::little_endian::U64]>::ref_from_prefix_with_elems(
            rest,
            count(header.sums.get())?,
        )
        .map_err(|_| short())?;
        if inline.len() as u64 != header.inline.get() {
            return Err(short());
        }
        Ok(Self { header, objects, extents, sums, inline })
    }

    /// Where the object of that index lies in the catalogue.
    const fn object_at(index: usize) -> usize {
        size_of::<raw::Catalogue>() + index * size_of::<raw::Object>()
    }

    fn objects(
        &self,
        superblock: &Superblock,
        place: &CataloguePlace,
    ) -> Result<Vec<Object<'static>>, ArenaError> {
        let (mut extents, mut sums, mut inline) = (self.extents, self.sums, self.inline);
        let mut objects = Vec::with_capacity(self.objects.len());
        let mut before = 0;
        for (index, raw) in self.objects.iter().enumerate() {
            let at = Self::object_at(index);
            let handle = raw.handle.get();
            let number = key::number(handle);
            if key::space(handle) != SPACE || number == 0 || number >= superblock.next_handle {
                return Err(Error::Handle.at(at));
            }
            if handle <= before {
                return Err(Error::Order.at(at));
            }
            before = handle;
            if raw.reserved.get() != 0 {
                return Err(Error::Reserved.at(at));
            }
            let len = raw.length.get();
            let own = |count: u64| usize::try_from(count).map_err(|_| Error::Count.at(at));
            let wrong = || Error::Count.at(at);
            let (mine, rest) =
                extents.split_at_checked(own(raw.extents.get())?).ok_or_else(wrong)?;
            extents = rest;
            let first = Self::object_at(self.objects.len())
                + (self.extents.len() - extents.len() - mine.len()) * size_of::<raw::Extent>();
            let (pieces, touched) = check_pieces(mine, len, superblock.size, first)?;
            let chunks = match raw.kind.get() {
                kind::RESIDENT => 0,
                kind::INLINE => u64::from(place.version >= VERSION),
                _ => touched,
            };
            if chunks != raw.sums.get() {
                return Err(Error::Count.at(at));
            }
            let (mine, rest) = sums.split_at_checked(own(chunks)?).ok_or_else(wrong)?;
            sums = rest;
            let kind = match raw.kind.get() {
                kind::MEMORY => Kind::Memory,
                kind::BYTES => {
                    // No hole before, between, or after the pieces.
                    let end = pieces.iter().try_fold(0, |end, piece| {
                        (piece.logical == end).then(|| piece.logical + piece.len)
                    });
                    if end.is_none_or(|end| end < len) {
                        return Err(Error::Hole.at(at));
                    }
                    Kind::Bytes
                }
                kind::INLINE => {
                    if !pieces.is_empty() {
                        return Err(Error::Count.at(at));
                    }
                    let (mine, rest) = inline.split_at_checked(own(len)?).ok_or_else(wrong)?;
                    inline = rest;
                    Kind::Inline(Cow::Owned(mine.to_vec()))
                }
                kind::RESIDENT if place.version >= VERSION_RESIDENT => match pieces.as_slice() {
                    [piece] if piece.logical == 0 && piece.len == len => Kind::Resident,
                    _ => return Err(Error::Hole.at(at)),
                },
                _ => return Err(Error::Kind.at(at)),
            };
            let sums = Cow::Owned(mine.iter().map(|sum| sum.get()).collect());
            objects.push(Object { handle, kind, len, pieces: Cow::Owned(pieces), sums });
        }
        if !(extents.is_empty() && sums.is_empty() && inline.is_empty()) {
            return Err(Error::Count.at(Self::object_at(self.objects.len())));
        }
        Ok(objects)
    }
}

/// The pieces of an object of `len` bytes in an arena of `size`, and how many chunks they touch.
/// `first` is where the first of them lies in the catalogue.
fn check_pieces(
    extents: &[raw::Extent],
    len: u64,
    size: u64,
    first: usize,
) -> Result<(Vec<Placed>, u64), ArenaError> {
    let mut pieces = Vec::with_capacity(extents.len());
    let (mut end, mut chunks, mut next_chunk) = (0, 0, 0);
    for (index, raw) in extents.iter().enumerate() {
        let at = first + index * size_of::<raw::Extent>();
        let piece =
            Placed { logical: raw.logical.get(), offset: raw.offset.get(), len: raw.length.get() };
        let wrong = || Error::Piece.at(at);
        if piece.len == 0
            || !piece.logical.is_multiple_of(BLOCK)
            || !piece.offset.is_multiple_of(BLOCK)
            || piece.logical < end
        {
            return Err(wrong());
        }
        end = piece.logical.checked_add(piece.len).ok_or_else(wrong)?;
        if piece.logical >= len || end > blocks(len).ok_or_else(wrong)? {
            return Err(wrong());
        }
        let room = blocks(piece.len).and_then(|len| piece.offset.checked_add(len));
        if piece.offset < DATA_START || room.is_none_or(|end| end > size) {
            return Err(Error::Range.at(at));
        }
        let last = (end - 1) / CHUNK;
        let from = (piece.logical / CHUNK).max(next_chunk);
        if from <= last {
            chunks += last - from + 1;
            next_chunk = last + 1;
        }
        pieces.push(piece);
    }
    Ok((pieces, chunks))
}

/// Refuses pieces that share a block, with one another or with the catalogue.
fn check_overlaps(objects: &[Object<'_>], offset: u64, len: u64) -> Result<(), ArenaError> {
    let mut taken: Vec<(u64, u64)> = objects
        .iter()
        .flat_map(|object| object.pieces.iter())
        .map(|piece| (piece.offset, piece.len))
        .collect();
    taken.push((offset, len));
    taken.sort_unstable();
    let mut end = 0;
    for (offset, len) in taken {
        if offset < end {
            return Err(Error::Overlap.at(0));
        }
        // Every piece has been found to end within the arena, whose size is a multiple of blocks.
        end = blocks(offset.saturating_add(len)).unwrap_or(u64::MAX);
    }
    Ok(())
}
