//! The numbers of the Devicetree Specification 0.4, chapter 5, and this crate's limits.

/// The largest blob that is written or read: 256 MiB, some four million files.
pub const MAX_SIZE: usize = 256 << 20;

/// The deepest nesting: the root is at depth 1.
pub const MAX_DEPTH: usize = 32;

/// The longest name of a node or a property, in bytes. The specification's 31 is too short for
/// sessions' names, and neither libfdt nor dtc nor the kernel insists on it.
pub const MAX_NAME: usize = 255;

/// First four bytes of a blob.
pub const MAGIC: u32 = 0xd00d_feed;
/// The version that is written; older ones are refused.
pub const VERSION: u32 = 17;
/// The oldest version whose readers understand what is written.
pub const LAST_COMPATIBLE: u32 = 16;

pub(super) const HEADER_SIZE: usize = 40;
pub(super) const RESERVATIONS_SIZE: usize = 16;

pub(super) const BEGIN_NODE: u32 = 1;
pub(super) const END_NODE: u32 = 2;
pub(super) const PROPERTY: u32 = 3;
pub(super) const NOP: u32 = 4;
pub(super) const END: u32 = 9;

/// Offsets of the header's fields.
pub(super) mod field {
    pub(crate) const MAGIC: usize = 0;
    pub(crate) const TOTAL_SIZE: usize = 4;
    pub(crate) const OFF_STRUCT: usize = 8;
    pub(crate) const OFF_STRINGS: usize = 12;
    pub(crate) const OFF_RESERVATIONS: usize = 16;
    pub(crate) const VERSION: usize = 20;
    pub(crate) const LAST_COMPATIBLE: usize = 24;
    pub(crate) const SIZE_STRINGS: usize = 32;
    pub(crate) const SIZE_STRUCT: usize = 36;
}

/// Whether a node's name may hold this byte, apart from the `@` before a unit address.
pub(super) const fn is_node_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b',' | b'.' | b'_' | b'+' | b'-')
}

/// Whether a property's name may hold this byte.
pub(super) const fn is_property_byte(byte: u8) -> bool {
    is_node_byte(byte) || matches!(byte, b'?' | b'#')
}

const NODE: u8 = 1;
const PROP: u8 = 2;

static CLASSES: [u8; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        if is_node_byte(byte as u8) {
            table[byte] |= NODE;
        }
        if is_property_byte(byte as u8) {
            table[byte] |= PROP;
        }
        byte += 1;
    }
    table
};

/// The index of the first byte that a node's name may not hold: one `@` is allowed, behind at
/// least one other byte.
#[inline]
pub(super) fn bad_node_byte(name: &[u8]) -> Option<usize> {
    let first = name.iter().position(|&b| CLASSES[usize::from(b)] & NODE == 0)?;
    if first == 0 || name.get(first) != Some(&b'@') {
        return Some(first);
    }
    let rest = name.get(first + 1..)?;
    rest.iter().position(|&b| CLASSES[usize::from(b)] & NODE == 0).map(|at| first + 1 + at)
}

/// The index of the first byte that a property's name may not hold.
#[inline]
pub(super) fn bad_property_byte(name: &[u8]) -> Option<usize> {
    name.iter().position(|&b| CLASSES[usize::from(b)] & PROP == 0)
}

/// Rounds up to the structure block's alignment of four bytes.
#[inline]
pub(super) const fn align4(offset: usize) -> usize {
    offset.wrapping_add(3) & !3
}
