//! The one pass over an untrusted blob that makes a [`Tree`] of it.
//!
//! Invariants: every byte that a [`Tree`] will read has been looked at; the pass ends after at
//! most O(n log n) steps, and needs memory in proportion to the number of nodes.

use alloc::vec::Vec;

use super::{
    error::{Block, DecodeError, DecodeErrorKind as Kind},
    layout::{
        self, BEGIN_NODE, END, END_NODE, HEADER_SIZE, LAST_COMPATIBLE, MAGIC, MAX_DEPTH, MAX_NAME,
        MAX_SIZE, NOP, PROPERTY, RESERVATIONS_SIZE, VERSION, align4, field,
    },
    siblings::{Family, Name, Siblings},
    strings::Strings,
    tree::Tree,
};

/// An untrusted blob. It has no accessors: [`validate`](Self::validate) it.
#[derive(Debug)]
pub struct Blob;

impl Blob {
    /// Validates the whole blob and gives the tree that it holds.
    ///
    /// # Errors
    /// The first thing that is wrong, and where.
    pub fn validate(blob: &[u8]) -> Result<Tree<'_>, DecodeError> {
        let header = Header::read(blob)?;
        let structure = blob.get(..header.structure.1).unwrap_or_default();
        let strings = blob.get(header.strings.0..header.strings.1).unwrap_or_default();
        let mut pass = Pass {
            blob: structure,
            at: header.structure.0,
            open: Vec::with_capacity(4),
            siblings: Siblings::new(),
            strings: Strings::new(strings, header.strings.0),
            nodes: 0,
            properties: false,
        };
        if let Err(error) = pass.run() {
            // A duplicate among nodes that were still open lies before any other error.
            let pending = pass.siblings.pending(pass.open.iter().copied(), structure);
            return Err(match pending {
                Some(offset) if offset < error.offset || error.kind == Kind::DuplicateNode => {
                    fail(Kind::DuplicateNode, offset)
                }
                _ => error,
            });
        }
        header.check_gaps(blob)?;
        Ok(Tree::new(structure, header.structure.0, strings))
    }
}

const fn fail(kind: Kind, offset: usize) -> DecodeError {
    DecodeError { kind, offset }
}

/// The four bytes at `at`, big-endian.
#[inline]
fn word(blob: &[u8], at: usize) -> Option<u32> {
    blob.get(at..).and_then(<[u8]>::first_chunk).map(|chunk| u32::from_be_bytes(*chunk))
}

/// Where the blocks lie, from and up to.
struct Header {
    reservations: (usize, usize),
    structure: (usize, usize),
    strings: (usize, usize),
}

impl Header {
    fn read(blob: &[u8]) -> Result<Self, DecodeError> {
        if blob.len() < HEADER_SIZE {
            return Err(fail(Kind::ShortHeader, blob.len()));
        }
        let read = |at| word(blob, at).unwrap_or(0);
        if read(field::MAGIC) != MAGIC {
            return Err(fail(Kind::Magic, field::MAGIC));
        }
        if read(field::VERSION) < VERSION {
            let found = read(field::VERSION);
            return Err(fail(Kind::Version { found }, field::VERSION));
        }
        if !(LAST_COMPATIBLE..=VERSION).contains(&read(field::LAST_COMPATIBLE)) {
            let found = read(field::LAST_COMPATIBLE);
            return Err(fail(Kind::LastCompatible { found }, field::LAST_COMPATIBLE));
        }
        let total = read(field::TOTAL_SIZE) as usize;
        if total < HEADER_SIZE + RESERVATIONS_SIZE {
            return Err(fail(Kind::TotalSize, field::TOTAL_SIZE));
        }
        if total > MAX_SIZE {
            return Err(fail(Kind::TooLarge, field::TOTAL_SIZE));
        }
        if blob.len() < total {
            return Err(fail(Kind::Truncated, blob.len()));
        }
        if blob.len() > total {
            return Err(fail(Kind::TrailingBytes, total));
        }
        let block = |block, offset_field, size: usize, align: usize| {
            let start = read(offset_field) as usize;
            if !start.is_multiple_of(align) {
                return Err(fail(Kind::Alignment(block), offset_field));
            }
            match start.checked_add(size) {
                Some(end) if end <= total => Ok((start, end)),
                _ => Err(fail(Kind::OutOfBounds(block), offset_field)),
            }
        };
        let header = Self {
            structure: block(
                Block::Structure,
                field::OFF_STRUCT,
                read(field::SIZE_STRUCT) as usize,
                4,
            )?,
            strings: block(
                Block::Strings,
                field::OFF_STRINGS,
                read(field::SIZE_STRINGS) as usize,
                1,
            )?,
            reservations: block(
                Block::Reservations,
                field::OFF_RESERVATIONS,
                RESERVATIONS_SIZE,
                8,
            )?,
        };
        let mut end = HEADER_SIZE;
        for (block, (start, block_end)) in header.blocks() {
            if start < end {
                return Err(fail(Kind::Overlap(block), start));
            }
            end = block_end;
        }
        let (start, end) = header.reservations;
        match blob.get(start..end).and_then(|bytes| bytes.iter().position(|&byte| byte != 0)) {
            Some(at) => Err(fail(Kind::Reservation, start + at)),
            None => Ok(header),
        }
    }

    /// The blocks in the order in which they lie.
    fn blocks(&self) -> [(Block, (usize, usize)); 3] {
        let mut blocks = [
            (Block::Reservations, self.reservations),
            (Block::Structure, self.structure),
            (Block::Strings, self.strings),
        ];
        blocks.sort_by_key(|&(_, range)| range);
        blocks
    }

    fn check_gaps(&self, blob: &[u8]) -> Result<(), DecodeError> {
        let mut end = HEADER_SIZE;
        let ranges = self.blocks().map(|(_, range)| range);
        for (start, next) in ranges.into_iter().chain([(blob.len(), blob.len())]) {
            let gap = blob.get(end..start).unwrap_or_default();
            if let Some(at) = gap.iter().position(|&byte| byte != 0) {
                return Err(fail(Kind::Gap, end + at));
            }
            end = next;
        }
        Ok(())
    }
}

/// The walk through the structure block.
struct Pass<'a> {
    /// The blob up to the end of the structure, so that offsets are the blob's.
    blob: &'a [u8],
    at: usize,
    /// The nodes that are open, the root first.
    open: Vec<Family>,
    siblings: Siblings,
    strings: Strings<'a>,
    /// How many nodes have begun.
    nodes: u32,
    /// Whether a property may come next.
    properties: bool,
}

impl Pass<'_> {
    fn run(&mut self) -> Result<(), DecodeError> {
        loop {
            let at = self.at;
            let token = self.word(at)?;
            self.at = at + 4;
            match token {
                BEGIN_NODE => self.begin_node(at)?,
                PROPERTY => self.property(at)?,
                END_NODE => {
                    let Some(family) = self.open.last() else {
                        return Err(fail(Kind::OutsideNode, at));
                    };
                    if let Some(offset) = self.siblings.close(family, self.blob) {
                        return Err(fail(Kind::DuplicateNode, offset));
                    }
                    self.open.pop();
                    self.properties = false;
                }
                NOP => {}
                END => {
                    if !self.open.is_empty() || self.nodes == 0 {
                        return Err(fail(Kind::Unbalanced, at));
                    }
                    if self.at != self.blob.len() {
                        return Err(fail(Kind::TrailingStructure, self.at));
                    }
                    return Ok(());
                }
                found => return Err(fail(Kind::Token { found }, at)),
            }
        }
    }

    #[inline]
    fn begin_node(&mut self, token: usize) -> Result<(), DecodeError> {
        if self.open.len() >= MAX_DEPTH {
            return Err(fail(Kind::TooDeep, token));
        }
        let start = self.at;
        let rest = self.blob.get(start..).unwrap_or_default();
        let Some(len) = rest.iter().take(MAX_NAME + 1).position(|&byte| byte == 0) else {
            return Err(if rest.len() > MAX_NAME {
                fail(Kind::NodeNameLength, start)
            } else {
                fail(Kind::UnexpectedEnd, self.blob.len())
            });
        };
        let name = rest.get(..len).unwrap_or_default();
        match self.open.last_mut() {
            None if self.nodes > 0 => return Err(fail(Kind::SecondRoot, token)),
            None if len > 0 => return Err(fail(Kind::RootName, start)),
            None => {}
            Some(parent) => {
                if len == 0 {
                    return Err(fail(Kind::EmptyNodeName, start));
                }
                if let Some(at) = layout::bad_node_byte(name) {
                    let byte = name.get(at).copied().unwrap_or(0);
                    return Err(fail(Kind::NodeNameByte { byte }, start + at));
                }
                let name = Name::new(self.blob, start, len);
                self.siblings.add(parent, self.blob, name);
            }
        }
        self.skip_padding(start + len + 1)?;
        self.open.push(self.siblings.open());
        self.nodes += 1;
        self.properties = true;
        Ok(())
    }

    #[inline]
    fn property(&mut self, token: usize) -> Result<(), DecodeError> {
        if !self.properties {
            return Err(if self.open.is_empty() {
                fail(Kind::OutsideNode, token)
            } else {
                fail(Kind::PropertyAfterNode, token)
            });
        }
        let len = self.word(token + 4)?;
        let name = self.word(token + 8)?;
        let value = token + 12;
        if len as usize > self.blob.len() - value {
            return Err(fail(Kind::PropertyLength { len }, token + 4));
        }
        if self.strings.note(name, self.nodes, token + 8)? {
            return Err(fail(Kind::DuplicateProperty, token));
        }
        self.skip_padding(value + len as usize)
    }

    #[inline]
    fn word(&self, at: usize) -> Result<u32, DecodeError> {
        word(self.blob, at).ok_or(fail(Kind::UnexpectedEnd, self.blob.len()))
    }

    /// Goes on at the next multiple of four from `from`.
    #[inline]
    fn skip_padding(&mut self, from: usize) -> Result<(), DecodeError> {
        let to = align4(from);
        let Some(padding) = self.blob.get(from..to) else {
            return Err(fail(Kind::UnexpectedEnd, self.blob.len()));
        };
        if let Some(at) = padding.iter().position(|&byte| byte != 0) {
            return Err(fail(Kind::Padding, from + at));
        }
        self.at = to;
        Ok(())
    }
}
