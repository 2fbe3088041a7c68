//! Single entries: find, read, put, append, delete.

use super::hash::siphash13;
use super::heap::{Block, Purpose};
use super::layout::{
    CLASSES, ENTRY_HEADER, EXPIRING, LIVE_BYTES, MAX_BLOCK, Table, bucket_of, class_size,
};
use super::region::Region;
use super::tables::MAX_CHAIN;
use super::{MAX_KEY, MAX_VALUE, Store, StoreError, corrupt};

/// When a key ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Expiry {
    /// Not by itself.
    #[default]
    Never,
    /// At this time, in milliseconds since 1970.
    At(u64),
    /// As the value that is being replaced.
    Keep,
}

/// An entry that was found. Valid until the store is changed.
#[derive(Debug, Clone, Copy)]
pub struct Entry {
    offset: u64,
    pub(super) next: u64,
    key_len: u64,
    value_len: u64,
    pub(super) class: u64,
    expires: u64,
}

impl Entry {
    /// Length of the value in bytes.
    #[allow(clippy::len_without_is_empty, reason = "an entry is no container")]
    pub fn len(&self) -> usize {
        self.value_len as usize
    }

    /// When it expires, in milliseconds since 1970.
    pub fn expires(&self) -> Option<u64> {
        Some(self.expires).filter(|at| *at != 0)
    }

    pub(super) fn expired(&self, now_ms: u64) -> bool {
        self.expires != 0 && self.expires <= now_ms
    }

    fn value_offset(&self) -> u64 {
        self.offset + ENTRY_HEADER + self.key_len.next_multiple_of(8)
    }

    fn capacity(&self) -> u64 {
        class_size(self.class) - ENTRY_HEADER - self.key_len.next_multiple_of(8)
    }
}

/// An entry and the word that refers to it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Link {
    pub(super) word: u64,
    pub(super) entry: Entry,
}

/// The word with an entry's lengths and class.
fn pack(key_len: u64, value_len: u64, class: u64) -> u64 {
    value_len | key_len << 32 | class << 56
}

impl<R: Region> Store<R> {
    /// Finds a client's key that has not expired.
    ///
    /// # Errors
    /// [`StoreError::Region`], [`StoreError::Corrupt`].
    pub fn get(&mut self, key: &[u8], now_ms: u64) -> Result<Option<Entry>, StoreError> {
        let hash = siphash13(self.hash_key, key);
        let link = self.find(Table::Data, hash, key)?;
        Ok(link.map(|link| link.entry).filter(|entry| !entry.expired(now_ms)))
    }

    /// Appends an entry's value to `out`.
    ///
    /// # Errors
    /// [`StoreError::Region`]; `out` is then as before.
    pub fn read_value(&self, entry: &Entry, out: &mut Vec<u8>) -> Result<(), StoreError> {
        let start = out.len();
        out.resize(start + entry.len(), 0);
        let read = self.region.read_at(entry.value_offset(), &mut out[start..]);
        if read.is_err() {
            out.truncate(start);
        }
        Ok(read?)
    }

    /// Sets a client's key.
    ///
    /// # Errors
    /// [`StoreError::Full`], [`StoreError::KeyTooLong`], [`StoreError::ValueTooLong`]: nothing changed.
    /// [`StoreError::Region`], [`StoreError::Corrupt`].
    pub fn set(&mut self, key: &[u8], value: &[u8], expiry: Expiry) -> Result<(), StoreError> {
        self.put(Table::Data, key, value, expiry)
    }

    /// Deletes a client's key; whether it was there.
    ///
    /// # Errors
    /// [`StoreError::Region`], [`StoreError::Corrupt`].
    pub fn delete(&mut self, key: &[u8], now_ms: u64) -> Result<bool, StoreError> {
        let hash = siphash13(self.hash_key, key);
        let Some(link) = self.find(Table::Data, hash, key)? else { return Ok(false) };
        self.remove(Table::Data, link)?;
        Ok(!link.entry.expired(now_ms))
    }

    /// Appends to a client's value, or sets it, and returns its new length in bytes.
    ///
    /// # Errors
    /// As [`set`](Self::set).
    pub fn append(&mut self, key: &[u8], suffix: &[u8], now_ms: u64) -> Result<usize, StoreError> {
        let Some(entry) = self.get(key, now_ms)? else {
            self.set(key, suffix, Expiry::Never)?;
            return Ok(suffix.len());
        };
        let len = entry.len() + suffix.len();
        if len > MAX_VALUE {
            return Err(StoreError::ValueTooLong);
        }
        if len as u64 <= entry.capacity() {
            if self.poisoned {
                return Err(StoreError::Poisoned);
            }
            // Bytes beyond the value's end are nobody's until the one word with its length is stored.
            self.region.write_at(entry.value_offset() + entry.value_len, suffix)?;
            self.region
                .store_u64(entry.offset + 16, pack(entry.key_len, len as u64, entry.class))?;
            return Ok(len);
        }
        // With room for as much again, so that many appends do not copy the value each time.
        let mut value = std::mem::take(&mut self.scratch);
        value.clear();
        let room = (len + len / 2).min(MAX_VALUE);
        let result = self.read_value(&entry, &mut value).and_then(|()| {
            value.extend_from_slice(suffix);
            match self.put_sized(Table::Data, key, &value, room, Expiry::Keep) {
                Err(StoreError::Full { .. }) => self.set(key, &value, Expiry::Keep),
                result => result,
            }
        });
        self.scratch = value;
        result.map(|()| len)
    }

    /// Changes when a client's key ends; whether it was there.
    ///
    /// # Errors
    /// [`StoreError::Region`], [`StoreError::Corrupt`].
    pub fn expire(&mut self, key: &[u8], at: Option<u64>, now_ms: u64) -> Result<bool, StoreError> {
        let Some(entry) = self.get(key, now_ms)? else { return Ok(false) };
        self.begin()?;
        let (old, new) = (u64::from(entry.expires != 0), u64::from(at.is_some()));
        self.log.add(&self.region, EXPIRING, new.wrapping_sub(old))?;
        self.log.store(entry.offset + 24, at.unwrap_or(0));
        self.commit()?;
        Ok(true)
    }

    /// Writes an entry of the journal.
    pub(crate) fn put_journal(&mut self, key: &[u8], value: &[u8]) -> Result<(), StoreError> {
        self.put(Table::Journal, key, value, Expiry::Never)
    }

    /// Removes an entry of the journal if it is there.
    pub(crate) fn delete_journal(&mut self, key: &[u8]) -> Result<(), StoreError> {
        let hash = siphash13(self.hash_key, key);
        match self.find(Table::Journal, hash, key)? {
            Some(link) => self.remove(Table::Journal, link),
            None => Ok(()),
        }
    }

    fn put(
        &mut self,
        table: Table,
        key: &[u8],
        value: &[u8],
        expiry: Expiry,
    ) -> Result<(), StoreError> {
        self.put_sized(table, key, value, value.len(), expiry)
    }

    /// Puts a value into a block with room for `room` bytes of value.
    fn put_sized(
        &mut self,
        table: Table,
        key: &[u8],
        value: &[u8],
        room: usize,
        expiry: Expiry,
    ) -> Result<(), StoreError> {
        if key.len() > MAX_KEY {
            return Err(StoreError::KeyTooLong);
        }
        if value.len() > MAX_VALUE {
            return Err(StoreError::ValueTooLong);
        }
        loop {
            match self.try_put(table, key, value, room, expiry) {
                Err(StoreError::Full { .. }) if self.reclaim(64)? => {}
                Err(error) => return Err(error),
                Ok(()) => return self.grow_table(table),
            }
        }
    }

    fn try_put(
        &mut self,
        table: Table,
        key: &[u8],
        value: &[u8],
        room: usize,
        expiry: Expiry,
    ) -> Result<(), StoreError> {
        self.begin()?;
        let purpose = if table == Table::Journal { Purpose::Journal } else { Purpose::Data };
        if self.region.load_u64(table.buckets())? == 0 {
            self.stage_empty(table, purpose)?;
            self.commit()?;
            self.begin()?;
        }
        let hash = siphash13(self.hash_key, key);
        let old = self.find(table, hash, key)?;
        let key_len = key.len() as u64;
        let block = self.take(ENTRY_HEADER + key_len.next_multiple_of(8) + room as u64, purpose)?;
        let expires = match (expiry, old) {
            (Expiry::At(at), _) => at,
            (Expiry::Keep, Some(link)) => link.entry.expires,
            _ => 0,
        };
        self.region.store_u64(block.offset + 8, hash)?;
        self.region.store_u64(block.offset + 16, pack(key_len, value.len() as u64, block.class))?;
        self.region.store_u64(block.offset + 24, expires)?;
        self.region.write_at(block.offset + ENTRY_HEADER, key)?;
        self.region.write_at(block.offset + ENTRY_HEADER + key_len.next_multiple_of(8), value)?;

        let (word, next, old_expires) = match old {
            Some(link) => {
                self.give(Block { offset: link.entry.offset, class: link.entry.class })?;
                self.log.add(
                    &self.region,
                    LIVE_BYTES,
                    class_size(link.entry.class).wrapping_neg(),
                )?;
                (link.word, link.entry.next, link.entry.expires)
            }
            None => {
                self.log.add(&self.region, table.entries(), 1)?;
                let word = self.bucket_of_hash(table, hash)?;
                (word, self.region.load_u64(word)?, 0)
            }
        };
        self.log.store(block.offset, next);
        self.log.store(word, block.offset);
        self.log.add(&self.region, LIVE_BYTES, class_size(block.class))?;
        let delta = u64::from(expires != 0).wrapping_sub(u64::from(old_expires != 0));
        if delta != 0 {
            self.log.add(&self.region, EXPIRING, delta)?;
        }
        self.commit()
    }

    /// Unlinks an entry and frees its block.
    pub(super) fn remove(&mut self, table: Table, link: Link) -> Result<(), StoreError> {
        self.begin()?;
        self.log.store(link.word, link.entry.next);
        self.log.add(&self.region, table.entries(), 1_u64.wrapping_neg())?;
        self.log.add(&self.region, LIVE_BYTES, class_size(link.entry.class).wrapping_neg())?;
        if link.entry.expires != 0 {
            self.log.add(&self.region, EXPIRING, 1_u64.wrapping_neg())?;
        }
        self.give(Block { offset: link.entry.offset, class: link.entry.class })?;
        self.commit()
    }

    fn bucket_of_hash(&self, table: Table, hash: u64) -> Result<u64, StoreError> {
        let buckets = self.region.load_u64(table.buckets())?;
        self.bucket_word(table, bucket_of(hash, buckets.max(1)))
    }

    fn find(&mut self, table: Table, hash: u64, key: &[u8]) -> Result<Option<Link>, StoreError> {
        if self.region.load_u64(table.buckets())? == 0 {
            return Ok(None);
        }
        let mut word = self.bucket_of_hash(table, hash)?;
        for _ in 0..MAX_CHAIN {
            let at = self.region.load_u64(word)?;
            if at == 0 {
                return Ok(None);
            }
            if self.region.load_u64(at + 8)? == hash {
                let entry = self.entry_at(at)?;
                let mut stored = std::mem::take(&mut self.scratch);
                let same = self.read_key(&entry, &mut stored).map(|()| stored == key);
                self.scratch = stored;
                if same? {
                    return Ok(Some(Link { word, entry }));
                }
            }
            word = at;
        }
        Err(corrupt("a bucket's chain does not end"))
    }

    /// Reads an entry's words and checks them against each other.
    pub(super) fn entry_at(&self, offset: u64) -> Result<Entry, StoreError> {
        let packed = self
            .region
            .load_u64(offset.checked_add(16).ok_or(corrupt("an entry lies outside the memory"))?)?;
        let (value_len, key_len, class) =
            (packed & 0xffff_ffff, packed >> 32 & 0xff_ffff, packed >> 56);
        let size = ENTRY_HEADER + key_len.next_multiple_of(8) + value_len;
        if class >= CLASSES || size > class_size(class).min(MAX_BLOCK) {
            return Err(corrupt("an entry is longer than its block"));
        }
        Ok(Entry {
            offset,
            next: self.region.load_u64(offset)?,
            key_len,
            value_len,
            class,
            expires: self.region.load_u64(offset + 24)?,
        })
    }

    pub(super) fn read_key(&self, entry: &Entry, out: &mut Vec<u8>) -> Result<(), StoreError> {
        out.resize(entry.key_len as usize, 0);
        Ok(self.region.read_at(entry.offset + ENTRY_HEADER, out)?)
    }
}
