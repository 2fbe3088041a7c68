//! An assembler of blobs that knows no rules, so that tests can break each of them.
#![allow(dead_code, reason = "each test file uses a part of it")]

/// Where the structure of an assembled blob begins.
pub(crate) const STRUCTURE: usize = 56;

/// Offsets of the header's fields.
pub(crate) mod field {
    pub(crate) const TOTAL_SIZE: usize = 4;
    pub(crate) const OFF_STRUCT: usize = 8;
    pub(crate) const OFF_STRINGS: usize = 12;
    pub(crate) const OFF_RESERVATIONS: usize = 16;
    pub(crate) const VERSION: usize = 20;
    pub(crate) const LAST_COMPATIBLE: usize = 24;
    pub(crate) const SIZE_STRINGS: usize = 32;
    pub(crate) const SIZE_STRUCT: usize = 36;
}

#[derive(Default, Clone)]
pub(crate) struct Asm {
    structure: Vec<u8>,
    pub(crate) strings: Vec<u8>,
}

impl Asm {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Where the next byte of the structure will lie in the blob.
    pub(crate) fn at(&self) -> usize {
        STRUCTURE + self.structure.len()
    }

    pub(crate) fn word(&mut self, word: u32) -> &mut Self {
        self.structure.extend(word.to_be_bytes());
        self
    }

    pub(crate) fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.structure.extend(bytes);
        self
    }

    pub(crate) fn padded(&mut self, bytes: &[u8]) -> &mut Self {
        self.bytes(bytes);
        while !self.structure.len().is_multiple_of(4) {
            self.structure.push(0);
        }
        self
    }

    pub(crate) fn begin(&mut self, name: &str) -> &mut Self {
        self.word(1).bytes(name.as_bytes()).padded(b"\0")
    }

    pub(crate) fn end(&mut self) -> &mut Self {
        self.word(2)
    }

    /// A property whose name lies at `name` in the strings block.
    pub(crate) fn property(&mut self, name: u32, value: &[u8]) -> &mut Self {
        self.word(3).word(value.len() as u32).word(name).padded(value)
    }

    /// A property of that name, which is added to the strings block.
    pub(crate) fn named(&mut self, name: &str, value: &[u8]) -> &mut Self {
        let start = self.strings.len() as u32;
        self.strings.extend(name.as_bytes());
        self.strings.push(0);
        self.property(start, value)
    }

    /// The blob, with the end of the structure as it stands.
    pub(crate) fn open_blob(&self) -> Vec<u8> {
        let strings = STRUCTURE + self.structure.len();
        let total = strings + self.strings.len();
        let header = [
            0xd00d_feed,
            total,
            STRUCTURE,
            strings,
            40,
            17,
            16,
            0,
            self.strings.len(),
            self.structure.len(),
        ];
        let mut blob: Vec<u8> = header.iter().flat_map(|&w| (w as u32).to_be_bytes()).collect();
        blob.extend([0; 16]);
        blob.extend(&self.structure);
        blob.extend(&self.strings);
        blob
    }

    /// The blob, with the token that ends the structure.
    pub(crate) fn blob(&self) -> Vec<u8> {
        let mut asm = self.clone();
        asm.word(9).open_blob()
    }
}

/// `blob` with one word of its header changed.
pub(crate) fn with_field(blob: &[u8], field: usize, value: u32) -> Vec<u8> {
    let mut blob = blob.to_vec();
    blob[field..field + 4].copy_from_slice(&value.to_be_bytes());
    blob
}

/// A small generator of numbers with a seed (xorshift), so that a failing case can be found again.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub(crate) fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }

    /// A byte string with one to three changes: bits flipped, bytes or words set, bytes taken out,
    /// put in or doubled, the end cut off, a piece of `other` put in.
    pub(crate) fn mutate(&mut self, bytes: &[u8], other: &[u8]) -> Vec<u8> {
        let mut bytes = bytes.to_vec();
        for _ in 0..=self.below(3) {
            let at = self.below(bytes.len());
            let room = bytes.len() - at;
            match self.below(8) {
                0 if room > 0 => bytes[at] ^= 1 << self.below(8),
                1 if room > 0 => bytes[at] = self.next() as u8,
                2 if room > 4 => {
                    let word = [0, 1, 2, 3, 4, 9, 0xff, self.next() as u32][self.below(8)];
                    let at = at & !3;
                    bytes[at..at + 4].copy_from_slice(&word.to_be_bytes());
                }
                3 => bytes.truncate(at),
                4 => {
                    bytes.drain(at..at + self.below(room.min(16) + 1));
                }
                5 => {
                    let new: Vec<u8> = (0..self.below(16)).map(|_| self.next() as u8).collect();
                    bytes.splice(at..at, new);
                }
                6 => {
                    let piece = bytes[at..at + self.below(room.min(64) + 1)].to_vec();
                    let to = self.below(bytes.len());
                    bytes.splice(to..to, piece);
                }
                _ if !other.is_empty() => {
                    let from = self.below(other.len());
                    let piece = &other[from..from + self.below((other.len() - from).min(64) + 1)];
                    let end = (at + piece.len()).min(bytes.len());
                    bytes.splice(at..end, piece.iter().copied());
                }
                _ => {}
            }
        }
        bytes
    }
}
