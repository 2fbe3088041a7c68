//! The record of FIFOs: which one it is, and what a pipe's record tells.

use alloc::vec::Vec;
use core::mem::offset_of;
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use super::{Kind, PathRecord, PipeMaker, PipeRecord, RecordError};
use crate::record::{flag, raw, reserved};

/// An open file description of a FIFO, as its handler keeps it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FifoRecord {
    /// The one that opens the FIFO.
    Maker(FifoMaker),
    /// One that is opened along with another one.
    Along {
        /// The token of the maker.
        maker: u64,
    },
}

/// A FIFO, with everything that is in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FifoMaker {
    /// The number of the device that it is on: the major one in the upper half.
    pub device: u64,
    /// The number of its inode.
    pub inode: u64,
    /// The id of its file system; zero where it has none.
    pub filesystem: u64,
    /// When it was made; zero where that is not known.
    pub born: u64,
    /// Nobody has it open for writing any more, and somebody had: its readers are told so.
    pub hung_up: bool,
    /// Its absolute path, at most [`PathRecord::PATH_MAX`] bytes.
    pub path: Vec<u8>,
    /// The rest.
    pub pipe: PipeMaker,
}

impl FifoMaker {
    fn check(&self) -> Result<(), RecordError> {
        let (found, max) = (self.path.len(), PathRecord::PATH_MAX);
        if found > max {
            return Err(Kind::TooLong { found, max }.at(offset_of!(raw::Fifo, path_length)));
        }
        if self.path.first() != Some(&b'/') || self.path.contains(&0) {
            return Err(Kind::Text.at(size_of::<raw::Fifo>()));
        }
        Ok(())
    }
}

impl FifoRecord {
    /// The record's bytes.
    ///
    /// # Errors
    /// As [`PipeRecord::encode`]; [`Kind::TooLong`], and [`Kind::Text`] for a path that is not
    /// absolute.
    pub fn encode(&self) -> Result<Vec<u8>, RecordError> {
        let mut raw = raw::Fifo::new_zeroed();
        let (path, pipe) = match self {
            Self::Along { maker } => (&[][..], PipeRecord::Along { maker: *maker }),
            Self::Maker(maker) => {
                maker.check()?;
                raw.device.set(maker.device);
                raw.inode.set(maker.inode);
                raw.filesystem.set(maker.filesystem);
                raw.born.set(maker.born);
                raw.path_length.set(maker.path.len() as u16);
                raw.hung_up = u8::from(maker.hung_up);
                (maker.path.as_slice(), PipeRecord::Maker(maker.pipe.clone()))
            }
        };
        let mut bytes = raw.as_bytes().to_vec();
        bytes.extend_from_slice(path);
        bytes.extend_from_slice(&pipe.encode().map_err(behind(bytes.len()))?);
        Ok(bytes)
    }

    /// Decodes a record of this version.
    ///
    /// # Errors
    /// [`RecordError`] with the first thing that is wrong.
    pub fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        let (raw, rest) =
            raw::Fifo::ref_from_prefix(bytes).map_err(|_| Kind::Short.at(bytes.len()))?;
        reserved(&raw.reserved, offset_of!(raw::Fifo, reserved))?;
        let Some((path, rest)) = rest.split_at_checked(raw.path_length.get().into()) else {
            return Err(Kind::Short.at(bytes.len()));
        };
        let at = size_of::<raw::Fifo>() + path.len();
        match PipeRecord::decode(rest).map_err(behind(at))? {
            PipeRecord::Along { maker } => {
                // Nothing else has a meaning then.
                reserved(raw.as_bytes(), 0)?;
                Ok(Self::Along { maker })
            }
            PipeRecord::Maker(pipe) => {
                let maker = FifoMaker {
                    device: raw.device.get(),
                    inode: raw.inode.get(),
                    filesystem: raw.filesystem.get(),
                    born: raw.born.get(),
                    hung_up: flag(raw.hung_up, "hung_up", offset_of!(raw::Fifo, hung_up))?,
                    path: path.to_vec(),
                    pipe,
                };
                maker.check()?;
                Ok(Self::Maker(maker))
            }
        }
    }
}

/// Where something is wrong, from the beginning of the whole.
fn behind(at: usize) -> impl Fn(RecordError) -> RecordError {
    move |error| RecordError { offset: error.offset + at, ..error }
}
