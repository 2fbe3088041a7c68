//! What the store needs of the memory below it, as a trait, so that tests can stop it after any single write.

use std::error::Error;

use luo_sys::Memory;

/// The memory's own error; the store passes it on as a cause.
pub type RegionError = Box<dyn Error + Send + Sync>;

/// Memory that outlives the process.
///
/// Whoever opens it after the writer was killed sees the writes up to some point in program order, and none
/// after; words are never torn.
pub trait Region {
    /// Length in bytes.
    fn len(&self) -> u64;

    /// Makes it `new_len` bytes long.
    ///
    /// # Errors
    /// The memory's own; it is then as before.
    fn grow(&mut self, new_len: u64) -> Result<(), RegionError>;

    /// Copies bytes out.
    ///
    /// # Errors
    /// When the range does not lie within the memory.
    fn read_at(&self, offset: u64, out: &mut [u8]) -> Result<(), RegionError>;

    /// Copies bytes in; may be torn at any word.
    ///
    /// # Errors
    /// When the range does not lie within the memory.
    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<(), RegionError>;

    /// Reads an aligned word.
    ///
    /// # Errors
    /// When the offset is misaligned or out of range.
    fn load_u64(&self, offset: u64) -> Result<u64, RegionError>;

    /// Publishes an aligned word after all earlier writes.
    ///
    /// # Errors
    /// When the offset is misaligned or out of range.
    fn store_u64(&self, offset: u64, value: u64) -> Result<(), RegionError>;

    /// Whether it has no bytes.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Region for Memory {
    fn len(&self) -> u64 {
        Memory::len(self)
    }

    fn grow(&mut self, new_len: u64) -> Result<(), RegionError> {
        Ok(Memory::grow(self, new_len)?)
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> Result<(), RegionError> {
        Ok(Memory::read_at(self, offset, out)?)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<(), RegionError> {
        Ok(Memory::write_at(self, offset, bytes)?)
    }

    fn load_u64(&self, offset: u64) -> Result<u64, RegionError> {
        Ok(Memory::load_u64(self, offset)?)
    }

    fn store_u64(&self, offset: u64, value: u64) -> Result<(), RegionError> {
        Ok(Memory::store_u64(self, offset, value)?)
    }
}
