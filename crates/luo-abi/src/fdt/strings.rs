//! The names of properties while a blob is validated: each name is checked once, and two equal
//! ones get the same number, however the strings block spells them.
//!
//! Invariants: a name's number stands for its bytes, not for its offset, since blobs may hold a
//! name twice, or as the end of a longer one.

use alloc::{collections::BTreeMap, vec::Vec};

use super::{
    error::{DecodeError, DecodeErrorKind},
    layout::{self, MAX_NAME},
};

/// Offsets below this are looked up in an array, the others in a map: blobs of luo have a few
/// names only.
const NEAR: usize = 256;

#[derive(Debug)]
pub(super) struct Strings<'a> {
    block: &'a [u8],
    /// Where the block lies in the blob.
    offset: usize,
    /// A name's number plus one, by its offset in the block; zero where it is not known.
    near: [u32; NEAR],
    by_name: BTreeMap<&'a [u8], u32>,
    /// By a name's number: the number of the last node that had a property of this name.
    last_node: Vec<u32>,
}

impl<'a> Strings<'a> {
    pub(super) fn new(block: &'a [u8], offset: usize) -> Self {
        Self { block, offset, near: [0; NEAR], by_name: BTreeMap::new(), last_node: Vec::new() }
    }

    /// Notes that node number `node` (from 1) has a property whose name lies at `start`; `field`
    /// is where the blob says so. Gives whether the node has one of that name already.
    ///
    /// # Errors
    /// When there is no such name.
    #[inline]
    pub(super) fn note(
        &mut self,
        start: u32,
        node: u32,
        field: usize,
    ) -> Result<bool, DecodeError> {
        let known = self.near.get(start as usize).copied().unwrap_or(0);
        let id = if known > 0 { known - 1 } else { self.resolve(start, field)? };
        let Some(last) = self.last_node.get_mut(id as usize) else { return Ok(false) };
        Ok(core::mem::replace(last, node) == node)
    }

    #[inline(never)]
    fn resolve(&mut self, start: u32, field: usize) -> Result<u32, DecodeError> {
        let name = self.name(start, field)?;
        let next = self.last_node.len() as u32;
        let id = *self.by_name.entry(name).or_insert(next);
        if id == next {
            self.last_node.push(0);
        }
        if let Some(near) = self.near.get_mut(start as usize) {
            *near = id + 1;
        }
        Ok(id)
    }

    fn name(&self, start: u32, field: usize) -> Result<&'a [u8], DecodeError> {
        let fail = |kind, offset| Err(DecodeError { kind, offset });
        let rest = match self.block.get(start as usize..) {
            Some(rest) if !rest.is_empty() => rest,
            _ => return fail(DecodeErrorKind::NameOffset { found: start }, field),
        };
        let Some(len) = rest.iter().take(MAX_NAME + 1).position(|&byte| byte == 0) else {
            return fail(DecodeErrorKind::PropertyNameLength, field);
        };
        let name = rest.get(..len).unwrap_or_default();
        if name.is_empty() {
            return fail(DecodeErrorKind::EmptyPropertyName, field);
        }
        if let Some(at) = layout::bad_property_byte(name) {
            let byte = name.get(at).copied().unwrap_or(0);
            let offset = self.offset + start as usize + at;
            return fail(DecodeErrorKind::PropertyNameByte { byte }, offset);
        }
        Ok(name)
    }
}
