//! What can be wrong with a blob, and with the calls of a writer.

use alloc::string::String;
use core::fmt;

use super::layout::{MAX_DEPTH, MAX_NAME, MAX_SIZE, VERSION};

/// The first thing that is wrong with a blob, and where.
///
/// The header is looked at first, then the memory reservations, the structure from its beginning
/// to its end, and last the space between the blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DecodeError {
    /// What is wrong.
    pub kind: DecodeErrorKind,
    /// The byte of the blob where it is.
    pub offset: usize,
}

/// The header's fields that can be wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Block {
    /// The memory reservations.
    Reservations,
    /// The structure.
    Structure,
    /// The strings.
    Strings,
}

impl fmt::Display for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Reservations => "memory reservation block",
            Self::Structure => "structure block",
            Self::Strings => "strings block",
        })
    }
}

/// What can be wrong with a blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum DecodeErrorKind {
    /// It is shorter than a header. The offset is its length.
    ShortHeader,
    /// It does not begin with the magic number.
    Magic,
    /// Its total size is less than what the header and the reservations need.
    TotalSize,
    /// It is larger than [`MAX_SIZE`].
    TooLarge,
    /// It is shorter than its total size says. The offset is its length.
    Truncated,
    /// Bytes follow after its total size. The offset is that of the first of them.
    TrailingBytes,
    /// Its version is older than 17.
    Version {
        /// The version it has.
        found: u32,
    },
    /// It is for readers of versions newer than 17 only.
    LastCompatible {
        /// The oldest version that could read it.
        found: u32,
    },
    /// A block is not aligned: reservations to 8 bytes, the structure to 4. The offset is that of
    /// the header's field.
    Alignment(Block),
    /// A block lies partly outside the blob. The offset is that of the header's field.
    OutOfBounds(Block),
    /// A block lies over the header or over another block. The offset is where it begins.
    Overlap(Block),
    /// It reserves memory, which a handover never does.
    Reservation,
    /// The space between two blocks is not zero.
    Gap,
    /// The structure ends in the middle of a token. The offset is where the structure ends.
    UnexpectedEnd,
    /// No such token exists.
    Token {
        /// The number found.
        found: u32,
    },
    /// A property, or the end of a node, outside of any node.
    OutsideNode,
    /// A second node at the level of the root.
    SecondRoot,
    /// The root has a name.
    RootName,
    /// A property behind a node, within their parent.
    PropertyAfterNode,
    /// The blob ends inside a node, or before there is any.
    Unbalanced,
    /// The structure goes on behind its end.
    TrailingStructure,
    /// Nodes lie deeper than [`MAX_DEPTH`].
    TooDeep,
    /// A node has no name.
    EmptyNodeName,
    /// A node's name has no end, or is longer than [`MAX_NAME`].
    NodeNameLength,
    /// A node's name has a byte that is not allowed.
    NodeNameByte {
        /// The byte.
        byte: u8,
    },
    /// The bytes that fill up a name or value to four are not zero.
    Padding,
    /// A property is longer than the rest of the structure. The offset is that of its length.
    PropertyLength {
        /// The length it claims.
        len: u32,
    },
    /// A property's name lies outside the strings block. The offset is that of the property's
    /// name offset.
    NameOffset {
        /// The name offset.
        found: u32,
    },
    /// A property's name has no end within the strings block, or is longer than [`MAX_NAME`].
    PropertyNameLength,
    /// A property has no name.
    EmptyPropertyName,
    /// A property's name has a byte that is not allowed. The offset lies in the strings block.
    PropertyNameByte {
        /// The byte.
        byte: u8,
    },
    /// Two nodes under one parent have the same name. The offset is that of the second name.
    DuplicateNode,
    /// Two properties of one node have the same name. The offset is that of the second token.
    DuplicateProperty,
}

impl fmt::Display for DecodeErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ShortHeader => f.write_str("the blob is shorter than a device tree's header"),
            Self::Magic => f.write_str("this is no flattened device tree"),
            Self::TotalSize => f.write_str("the total size is too small for any tree"),
            Self::TooLarge => write!(f, "the blob is larger than {MAX_SIZE} bytes"),
            Self::Truncated => f.write_str("the blob is shorter than its header says"),
            Self::TrailingBytes => f.write_str("bytes follow behind the blob"),
            Self::Version { found } => {
                write!(f, "device tree version {found} is too old, {VERSION} is read")
            }
            Self::LastCompatible { found } => {
                write!(
                    f,
                    "only readers of device tree version {found} can read it, {VERSION} is read"
                )
            }
            Self::Alignment(block) => write!(f, "the {block} is not aligned"),
            Self::OutOfBounds(block) => write!(f, "the {block} lies outside the blob"),
            Self::Overlap(block) => write!(f, "the {block} lies over something else"),
            Self::Reservation => f.write_str("memory is reserved, which a handover never does"),
            Self::Gap => f.write_str("the space between two blocks is not zero"),
            Self::UnexpectedEnd => f.write_str("the structure ends in the middle of a token"),
            Self::Token { found } => write!(f, "{found:#x} is no token"),
            Self::OutsideNode => f.write_str("a property or an end lies outside of any node"),
            Self::SecondRoot => f.write_str("there is a second root"),
            Self::RootName => f.write_str("the root has a name"),
            Self::PropertyAfterNode => f.write_str("a property follows behind a node"),
            Self::Unbalanced => f.write_str("the tree ends inside a node or has none"),
            Self::TrailingStructure => f.write_str("the structure goes on behind its end"),
            Self::TooDeep => write!(f, "nodes lie deeper than {MAX_DEPTH}"),
            Self::EmptyNodeName => f.write_str("a node has no name"),
            Self::NodeNameLength => {
                write!(f, "a node's name has no end within {MAX_NAME} bytes")
            }
            Self::NodeNameByte { byte } => {
                write!(f, "'{}' is not allowed in a node's name", byte.escape_ascii())
            }
            Self::Padding => f.write_str("padding is not zero"),
            Self::PropertyLength { len } => {
                write!(f, "a property of {len} bytes does not fit into the structure")
            }
            Self::NameOffset { found } => {
                write!(f, "the property name at {found} lies outside the strings block")
            }
            Self::PropertyNameLength => {
                write!(f, "a property's name has no end within {MAX_NAME} bytes")
            }
            Self::EmptyPropertyName => f.write_str("a property has no name"),
            Self::PropertyNameByte { byte } => {
                write!(f, "'{}' is not allowed in a property's name", byte.escape_ascii())
            }
            Self::DuplicateNode => f.write_str("two nodes under one parent have the same name"),
            Self::DuplicateProperty => f.write_str("two properties of one node have the same name"),
        }
    }
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (at byte {})", self.kind, self.offset)
    }
}

impl core::error::Error for DecodeError {}

/// Why a writer refused a call. The writer is as it was before that call.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum WriteError {
    /// A property, or an end, outside of any node.
    OutsideNode,
    /// A second node at the level of the root.
    SecondRoot,
    /// A name for the root, or none for another node or a property.
    EmptyName,
    /// The root's name must be empty.
    RootName,
    /// The name is longer than [`MAX_NAME`].
    NameTooLong {
        /// Its length in bytes.
        len: usize,
    },
    /// The name has a byte that is not allowed.
    NameByte {
        /// The name.
        name: String,
        /// The byte's index within it.
        at: usize,
    },
    /// A property behind a node, within their parent.
    PropertyAfterNode,
    /// The node has a property of that name.
    DuplicateProperty {
        /// The name.
        name: String,
    },
    /// The node that was to be ended has two children of that name.
    DuplicateNode {
        /// The name.
        name: String,
    },
    /// The name was interned by another writer.
    ForeignName,
    /// Nodes would lie deeper than [`MAX_DEPTH`].
    TooDeep,
    /// The blob would be larger than [`MAX_SIZE`].
    TooLarge,
    /// The tree was to be finished with nodes open, or without any.
    Unbalanced {
        /// How many nodes are open.
        open: usize,
    },
}

impl fmt::Display for WriteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OutsideNode => f.write_str("a property or an end needs an open node"),
            Self::SecondRoot => f.write_str("a tree has one root only"),
            Self::EmptyName => f.write_str("the name is empty"),
            Self::RootName => f.write_str("the root must not have a name"),
            Self::NameTooLong { len } => {
                write!(f, "the name has {len} bytes, at most {MAX_NAME} are allowed")
            }
            Self::NameByte { name, at } => {
                write!(f, "the name {name:?} has a byte at index {at} that is not allowed")
            }
            Self::PropertyAfterNode => {
                f.write_str("a node's properties must be written before its children")
            }
            Self::DuplicateProperty { name } => {
                write!(f, "the node already has a property {name:?}")
            }
            Self::DuplicateNode { name } => write!(f, "the node has two children {name:?}"),
            Self::ForeignName => f.write_str("the property name was interned by another writer"),
            Self::TooDeep => write!(f, "nodes cannot lie deeper than {MAX_DEPTH}"),
            Self::TooLarge => write!(f, "a tree cannot be larger than {MAX_SIZE} bytes"),
            Self::Unbalanced { open: 0 } => f.write_str("the tree has no root"),
            Self::Unbalanced { open } => write!(f, "{open} nodes are still open"),
        }
    }
}

impl core::error::Error for WriteError {}
