//! What a connection has under way, kept in the store's memory: input that is no whole request yet, and replies
//! that are not sent yet. Written before the server turns to another connection, so that whoever takes over,
//! after an update or after a kill, has the bytes.
//!
//! The bytes of a direction are numbered from the connection's first. They are kept in chunks of 64 KiB by that
//! number, so that a long request that arrives in pieces, or a long reply that leaves in pieces, is written once.
//!
//! Entries of the store's journal table:
//!
//! | key | value |
//! | --- | --- |
//! | token, 0 | first and last number of input and of output, flags (five words) |
//! | token, 1 (input) or 2 (output), chunk | number of the first byte, the bytes |
//!
//! Invariants:
//! - Where nothing is under way there is no entry, and saving costs nothing.
//! - A kill between two writes here leaves entries that do not fit each other; the store's note of the busy
//!   connection names it, and it is not resumed.

use std::collections::HashMap;

use crate::store::{Region, Store, StoreError, corrupt};

const CHUNK: u64 = 64 << 10;
const HEAD: u8 = 0;
/// The connection ends once its replies are sent.
const CLOSING: u64 = 1;

/// Which way bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Direction {
    Input = 1,
    Output = 2,
}

/// Bytes that came and are not yet used up, numbered from the first that ever came.
#[derive(Debug, Default)]
pub(crate) struct Stream {
    /// Number of the first byte that is not used up.
    first: u64,
    buffer: Vec<u8>,
    /// How much of `buffer` is used up.
    used: usize,
    /// Numbers of the bytes that the journal holds.
    saved: std::ops::Range<u64>,
}

impl Stream {
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.buffer[self.used..]
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.used == self.buffer.len()
    }

    pub(crate) fn len(&self) -> usize {
        self.buffer.len() - self.used
    }

    /// The buffer to append to.
    pub(crate) fn tail(&mut self) -> &mut Vec<u8> {
        &mut self.buffer
    }

    /// Uses up bytes from the front.
    pub(crate) fn consume(&mut self, count: usize) {
        self.used = (self.used + count).min(self.buffer.len());
        self.first += count as u64;
        if self.used == self.buffer.len() {
            self.buffer.clear();
            self.used = 0;
            // What one long request or reply needed is not held for ever.
            self.buffer.shrink_to(CHUNK as usize * 2);
        } else if self.used > CHUNK as usize && self.used > self.buffer.len() / 2 {
            self.buffer.drain(..self.used);
            self.used = 0;
        }
    }

    fn end(&self) -> u64 {
        self.first + self.len() as u64
    }

    fn restore(first: u64, buffer: Vec<u8>) -> Self {
        let saved = first..first + buffer.len() as u64;
        Self { first, buffer, used: 0, saved }
    }

    /// Makes the journal hold what is in the stream; whether it had to be changed.
    fn save<R: Region>(
        &mut self,
        store: &mut Store<R>,
        token: u64,
        direction: Direction,
        buffer: &mut Vec<u8>,
    ) -> Result<bool, StoreError> {
        let wanted = self.first..self.end();
        if wanted == self.saved || (wanted.is_empty() && self.saved.is_empty()) {
            return Ok(false);
        }
        for chunk in chunks(&self.saved) {
            if wanted.is_empty() || (chunk + 1) * CHUNK <= wanted.start {
                store.delete_journal(&key(token, direction as u8, chunk))?;
            }
        }
        let new =
            if self.saved.is_empty() { wanted.start } else { self.saved.end.max(wanted.start) };
        for chunk in chunks(&(new..wanted.end)) {
            // A chunk that was begun is written anew with what it had.
            let start = (chunk * CHUNK).max(wanted.start);
            let end = ((chunk + 1) * CHUNK).min(wanted.end);
            buffer.clear();
            buffer.extend_from_slice(&start.to_ne_bytes());
            let bytes =
                self.bytes().get((start - wanted.start) as usize..(end - wanted.start) as usize);
            buffer.extend_from_slice(bytes.unwrap_or_default());
            store.put_journal(&key(token, direction as u8, chunk), buffer)?;
        }
        self.saved = wanted;
        Ok(true)
    }

    /// Forgets what the journal holds, because all of it is being erased.
    fn erase<R: Region>(
        &mut self,
        store: &mut Store<R>,
        token: u64,
        direction: Direction,
    ) -> Result<(), StoreError> {
        for chunk in chunks(&self.saved) {
            store.delete_journal(&key(token, direction as u8, chunk))?;
        }
        self.saved = 0..0;
        Ok(())
    }
}

fn chunks(range: &std::ops::Range<u64>) -> std::ops::Range<u64> {
    if range.is_empty() { 0..0 } else { range.start / CHUNK..range.end.div_ceil(CHUNK) }
}

fn key(token: u64, kind: u8, chunk: u64) -> [u8; 17] {
    let mut key = [0; 17];
    key[..8].copy_from_slice(&token.to_ne_bytes());
    key[8] = kind;
    key[9..].copy_from_slice(&chunk.to_ne_bytes());
    key
}

fn word(bytes: &[u8], index: usize) -> Option<u64> {
    bytes.get(index * 8..index * 8 + 8)?.try_into().ok().map(u64::from_ne_bytes)
}

/// What a connection has under way.
#[derive(Debug, Default)]
pub(crate) struct UnderWay {
    pub(crate) input: Stream,
    pub(crate) output: Stream,
    /// The connection ends once `output` is sent.
    pub(crate) closing: bool,
    /// `closing` as in the head that the journal has of this connection, if it has one.
    headed: Option<bool>,
    buffer: Vec<u8>,
}

impl UnderWay {
    /// Makes the journal hold what is under way.
    pub(crate) fn save<R: Region>(
        &mut self,
        store: &mut Store<R>,
        token: u64,
    ) -> Result<(), StoreError> {
        let mut buffer = std::mem::take(&mut self.buffer);
        let result = self.save_with(store, token, &mut buffer);
        self.buffer = buffer;
        self.buffer.shrink_to(0);
        result
    }

    fn save_with<R: Region>(
        &mut self,
        store: &mut Store<R>,
        token: u64,
        buffer: &mut Vec<u8>,
    ) -> Result<(), StoreError> {
        let changed = self.input.save(store, token, Direction::Input, buffer)?
            | self.output.save(store, token, Direction::Output, buffer)?;
        let needed = !self.input.is_empty() || !self.output.is_empty();
        if needed && (changed || self.headed != Some(self.closing)) {
            buffer.clear();
            let numbers =
                [self.input.first, self.input.end(), self.output.first, self.output.end()];
            for value in numbers.into_iter().chain([if self.closing { CLOSING } else { 0 }]) {
                buffer.extend_from_slice(&value.to_ne_bytes());
            }
            store.put_journal(&key(token, HEAD, 0), buffer)?;
            self.headed = Some(self.closing);
        } else if !needed && self.headed.is_some() {
            store.delete_journal(&key(token, HEAD, 0))?;
            self.headed = None;
        }
        Ok(())
    }

    /// Removes all that the journal holds of the connection.
    pub(crate) fn erase<R: Region>(
        &mut self,
        store: &mut Store<R>,
        token: u64,
    ) -> Result<(), StoreError> {
        self.input.erase(store, token, Direction::Input)?;
        self.output.erase(store, token, Direction::Output)?;
        if self.headed.take().is_some() {
            store.delete_journal(&key(token, HEAD, 0))?;
        }
        Ok(())
    }
}

/// What the journal holds of one connection, as found.
#[derive(Debug, Default)]
struct Found {
    head: Option<[u64; 5]>,
    pieces: Vec<(u8, u64, u64, Vec<u8>)>,
}

/// What a process before left under way.
#[derive(Debug, Default)]
pub(crate) struct Inheritance {
    found: HashMap<u64, Found>,
}

impl Inheritance {
    /// Reads the journal, in time proportional to what is under way.
    pub(crate) fn read<R: Region>(store: &mut Store<R>) -> Result<Self, StoreError> {
        let mut found: HashMap<u64, Found> = HashMap::new();
        let mut damaged = false;
        store.scan_journal(&mut |key, value| {
            let parts = (word(key, 0), key.get(8), key.get(9..).and_then(|rest| word(rest, 0)));
            let (Some(token), Some(kind), Some(chunk)) = parts else {
                damaged = true;
                return;
            };
            let entry = found.entry(token).or_default();
            if *kind == HEAD {
                let words: Vec<u64> = (0..5).filter_map(|index| word(value, index)).collect();
                entry.head = words.try_into().ok();
                damaged |= entry.head.is_none();
            } else if let Some(start) = word(value, 0) {
                entry.pieces.push((
                    *kind,
                    chunk,
                    start,
                    value.get(8..).unwrap_or_default().to_vec(),
                ));
            } else {
                damaged = true;
            }
        })?;
        if damaged {
            Err(corrupt("the journal has an entry of unknown form"))
        } else {
            Ok(Self { found })
        }
    }

    /// Takes what one connection has under way; nothing where the journal has nothing.
    ///
    /// Pieces that do not fit each other are an error of this connection alone.
    pub(crate) fn take(&mut self, token: u64) -> Result<UnderWay, StoreError> {
        let Some(found) = self.found.get_mut(&token) else { return Ok(UnderWay::default()) };
        let [input_first, input_end, output_first, output_end, flags] =
            found.head.ok_or(corrupt("the journal lacks the head of a connection"))?;
        found.pieces.sort_by_key(|piece| (piece.0, piece.2));
        let input = assemble(&found.pieces, Direction::Input, input_first..input_end)?;
        let output = assemble(&found.pieces, Direction::Output, output_first..output_end)?;
        self.found.remove(&token);
        let closing = flags & CLOSING != 0;
        Ok(UnderWay { input, output, closing, headed: Some(closing), buffer: Vec::new() })
    }

    /// Removes the entries of connections that were not taken.
    pub(crate) fn erase_rest<R: Region>(self, store: &mut Store<R>) -> Result<(), StoreError> {
        for (token, found) in self.found {
            for (kind, chunk, ..) in found.pieces {
                store.delete_journal(&key(token, kind, chunk))?;
            }
            store.delete_journal(&key(token, HEAD, 0))?;
        }
        Ok(())
    }
}

/// Puts the pieces of one direction together.
fn assemble(
    pieces: &[(u8, u64, u64, Vec<u8>)],
    direction: Direction,
    range: std::ops::Range<u64>,
) -> Result<Stream, StoreError> {
    let broken = || corrupt("the journal's pieces of a connection do not fit");
    let mut bytes = Vec::new();
    let mut at = range.start;
    for (_, _, start, piece) in pieces.iter().filter(|piece| piece.0 == direction as u8) {
        // The first piece may begin with bytes that were used up since it was written.
        let skip = at
            .checked_sub(*start)
            .and_then(|skip| usize::try_from(skip).ok())
            .ok_or_else(broken)?;
        bytes.extend_from_slice(piece.get(skip..).ok_or_else(broken)?);
        at = range.start + bytes.len() as u64;
    }
    if at == range.end || (range.is_empty() && bytes.is_empty()) {
        Ok(Stream::restore(range.start, bytes))
    } else {
        Err(broken())
    }
}

#[cfg(test)]
mod tests;
