//! The writer: streams a tree in one pass into one buffer.
//!
//! Invariants: a call that is refused has changed nothing; what [`Writer::finish`] gives passes
//! [`Blob::validate`](super::Blob::validate).

use alloc::{borrow::ToOwned, collections::BTreeMap, string::String, vec::Vec};

use super::{
    error::WriteError,
    layout::{
        self, BEGIN_NODE, END, END_NODE, HEADER_SIZE, LAST_COMPATIBLE, MAGIC, MAX_DEPTH, MAX_NAME,
        MAX_SIZE, PROPERTY, RESERVATIONS_SIZE, VERSION, align4,
    },
    siblings::{Family, Name, Siblings},
};

/// A property's name that a [`Writer`] knows; spares it the look-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PropertyName(u32);

/// One property name in the strings block.
#[derive(Debug)]
struct Interned {
    start: u32,
    len: u32,
    /// The number of the node that last had a property of this name.
    last_node: u32,
}

/// Writes a flattened device tree.
///
/// ```
/// use luo_abi::fdt::{Blob, Writer};
///
/// let mut writer = Writer::new();
/// writer.begin_node("")?;
/// writer.property_str("compatible", "luo-v1")?;
/// writer.property_u64("liveupdate-number", 3)?;
/// writer.end_node()?;
/// let blob = writer.finish()?;
/// let tree = Blob::validate(&blob)?;
/// assert_eq!(tree.root().property("compatible").and_then(|p| p.as_str()), Some("luo-v1"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Writer {
    /// Header, reservations and the structure so far.
    out: Vec<u8>,
    strings: Vec<u8>,
    names: Vec<Interned>,
    by_name: BTreeMap<Vec<u8>, PropertyName>,
    /// The nodes that are open, the root first.
    open: Vec<Family>,
    siblings: Siblings,
    /// How many nodes have begun.
    nodes: u32,
    /// Whether the innermost open node may still get properties.
    properties: bool,
}

/// How many names are looked through before the map is asked.
const NEAR: usize = 8;

impl Default for Writer {
    fn default() -> Self {
        Self::new()
    }
}

impl Writer {
    /// An empty tree.
    #[must_use]
    pub fn new() -> Self {
        Self::with_capacity(256)
    }

    /// An empty tree with room for `bytes` bytes of blob.
    #[must_use]
    pub fn with_capacity(bytes: usize) -> Self {
        Self::with_buffer(Vec::with_capacity(bytes.max(HEADER_SIZE + RESERVATIONS_SIZE)))
    }

    /// An empty tree that is written into `buffer`, whose content is discarded.
    #[must_use]
    pub fn with_buffer(mut buffer: Vec<u8>) -> Self {
        buffer.clear();
        buffer.resize(HEADER_SIZE + RESERVATIONS_SIZE, 0);
        Self {
            out: buffer,
            strings: Vec::new(),
            names: Vec::new(),
            by_name: BTreeMap::new(),
            open: Vec::with_capacity(4),
            siblings: Siblings::new(),
            nodes: 0,
            properties: false,
        }
    }

    /// Makes a property's name known, for [`put`](Self::put).
    ///
    /// # Errors
    /// [`WriteError::EmptyName`], [`WriteError::NameTooLong`], [`WriteError::NameByte`].
    pub fn intern(&mut self, name: &str) -> Result<PropertyName, WriteError> {
        for (id, known) in self.names.iter().take(NEAR).enumerate() {
            if known.len as usize == name.len() && self.name_bytes(known) == name.as_bytes() {
                return Ok(PropertyName(id as u32));
            }
        }
        self.intern_far(name)
    }

    fn name_bytes(&self, name: &Interned) -> &[u8] {
        let start = name.start as usize;
        self.strings.get(start..start + name.len as usize).unwrap_or_default()
    }

    #[inline(never)]
    fn intern_far(&mut self, name: &str) -> Result<PropertyName, WriteError> {
        if let Some(&id) = self.by_name.get(name.as_bytes()) {
            return Ok(id);
        }
        check_length(name)?;
        if let Some(at) = layout::bad_property_byte(name.as_bytes()) {
            return Err(WriteError::NameByte { name: name.to_owned(), at });
        }
        self.check_room(name.len() + 1)?;
        let id = PropertyName(self.names.len() as u32);
        let start = self.strings.len() as u32;
        self.names.push(Interned { start, len: name.len() as u32, last_node: 0 });
        self.strings.extend_from_slice(name.as_bytes());
        self.strings.push(0);
        if self.names.len() > NEAR {
            self.by_name.insert(name.as_bytes().to_vec(), id);
        }
        Ok(id)
    }

    /// Begins a node within the innermost open one; the first one is the root, whose name is empty.
    ///
    /// # Errors
    /// [`WriteError::SecondRoot`], [`WriteError::RootName`], [`WriteError::EmptyName`],
    /// [`WriteError::NameTooLong`], [`WriteError::NameByte`], [`WriteError::TooDeep`],
    /// [`WriteError::TooLarge`]. A name that is taken is found by [`end_node`](Self::end_node).
    #[inline]
    pub fn begin_node(&mut self, name: &str) -> Result<(), WriteError> {
        if self.open.is_empty() {
            if self.nodes > 0 {
                return Err(WriteError::SecondRoot);
            }
            if !name.is_empty() {
                return Err(WriteError::RootName);
            }
        } else {
            check_length(name)?;
            if let Some(at) = layout::bad_node_byte(name.as_bytes()) {
                return Err(WriteError::NameByte { name: name.to_owned(), at });
            }
            if self.open.len() >= MAX_DEPTH {
                return Err(WriteError::TooDeep);
            }
        }
        // The token, the name, and the node's own end.
        self.check_room(8 + align4(name.len() + 1))?;
        let start = self.out.len() + 4;
        self.out.extend_from_slice(&BEGIN_NODE.to_be_bytes());
        self.push_padded(name.as_bytes(), 1);
        if let Some(parent) = self.open.last_mut() {
            let name = Name::new(&self.out, start, name.len());
            self.siblings.add(parent, &self.out, name);
        }
        self.open.push(self.siblings.open());
        self.nodes += 1;
        self.properties = true;
        Ok(())
    }

    /// Writes a property of the innermost open node.
    ///
    /// # Errors
    /// Those of [`intern`](Self::intern) and [`put`](Self::put).
    #[inline]
    pub fn property(&mut self, name: &str, value: &[u8]) -> Result<(), WriteError> {
        let name = self.intern(name)?;
        self.put(name, value)
    }

    /// Writes a property of the innermost open node under an interned name.
    ///
    /// # Errors
    /// [`WriteError::OutsideNode`], [`WriteError::PropertyAfterNode`],
    /// [`WriteError::DuplicateProperty`], [`WriteError::ForeignName`], [`WriteError::TooLarge`].
    #[inline]
    pub fn put(&mut self, name: PropertyName, value: &[u8]) -> Result<(), WriteError> {
        self.begin_property(name, value.len())?;
        self.push_padded(value, 0);
        Ok(())
    }

    /// Writes a property of four bytes, big-endian.
    ///
    /// # Errors
    /// As [`property`](Self::property).
    pub fn property_u32(&mut self, name: &str, value: u32) -> Result<(), WriteError> {
        self.property(name, &value.to_be_bytes())
    }

    /// Writes a property of eight bytes, big-endian.
    ///
    /// # Errors
    /// As [`property`](Self::property).
    pub fn property_u64(&mut self, name: &str, value: u64) -> Result<(), WriteError> {
        let name = self.intern(name)?;
        self.put_u64(name, value)
    }

    /// As [`property_u64`](Self::property_u64), under an interned name.
    ///
    /// # Errors
    /// As [`put`](Self::put).
    #[inline]
    pub fn put_u64(&mut self, name: PropertyName, value: u64) -> Result<(), WriteError> {
        self.begin_property(name, 8)?;
        self.out.extend_from_slice(&value.to_be_bytes());
        Ok(())
    }

    /// Writes a property of text, with a zero byte behind it. Text with a zero byte within is a
    /// list of strings to other readers.
    ///
    /// # Errors
    /// As [`property`](Self::property).
    pub fn property_str(&mut self, name: &str, value: &str) -> Result<(), WriteError> {
        let name = self.intern(name)?;
        self.put_str(name, value)
    }

    /// As [`property_str`](Self::property_str), under an interned name.
    ///
    /// # Errors
    /// As [`put`](Self::put).
    #[inline]
    pub fn put_str(&mut self, name: PropertyName, value: &str) -> Result<(), WriteError> {
        self.begin_property(name, value.len().saturating_add(1))?;
        self.push_padded(value.as_bytes(), 1);
        Ok(())
    }

    #[inline]
    fn begin_property(&mut self, name: PropertyName, len: usize) -> Result<(), WriteError> {
        if !self.properties {
            return Err(if self.open.is_empty() {
                WriteError::OutsideNode
            } else {
                WriteError::PropertyAfterNode
            });
        }
        self.check_room(align4(len.min(MAX_SIZE)) + 12)?;
        let known = self.names.get_mut(name.0 as usize).ok_or(WriteError::ForeignName)?;
        if known.last_node == self.nodes {
            return Err(self.duplicate_property(name));
        }
        known.last_node = self.nodes;
        let mut head = [0; 12];
        let [token, size, start] = [PROPERTY, len as u32, known.start].map(u32::to_be_bytes);
        head[..4].copy_from_slice(&token);
        head[4..8].copy_from_slice(&size);
        head[8..].copy_from_slice(&start);
        self.out.extend_from_slice(&head);
        Ok(())
    }

    #[cold]
    fn duplicate_property(&self, name: PropertyName) -> WriteError {
        let bytes = self.names.get(name.0 as usize).map_or(&[][..], |known| self.name_bytes(known));
        WriteError::DuplicateProperty { name: text(bytes) }
    }

    /// Ends the innermost open node.
    ///
    /// # Errors
    /// [`WriteError::OutsideNode`]; [`WriteError::DuplicateNode`] if two of its children have the
    /// same name: this tree cannot be finished any more.
    #[inline]
    pub fn end_node(&mut self) -> Result<(), WriteError> {
        let Some(family) = self.open.last() else {
            return Err(WriteError::OutsideNode);
        };
        if let Some(start) = self.siblings.close(family, &self.out) {
            return Err(self.duplicate_node(start));
        }
        self.open.pop();
        self.properties = false;
        self.out.extend_from_slice(&END_NODE.to_be_bytes());
        Ok(())
    }

    #[cold]
    fn duplicate_node(&self, start: usize) -> WriteError {
        let rest = self.out.get(start..).unwrap_or_default();
        let len = rest.iter().position(|&byte| byte == 0).unwrap_or(rest.len());
        WriteError::DuplicateNode { name: text(rest.get(..len).unwrap_or_default()) }
    }

    /// Ends the tree and gives the blob.
    ///
    /// # Errors
    /// [`WriteError::Unbalanced`], [`WriteError::TooLarge`].
    pub fn finish(mut self) -> Result<Vec<u8>, WriteError> {
        if !self.open.is_empty() || self.nodes == 0 {
            return Err(WriteError::Unbalanced { open: self.open.len() });
        }
        self.check_room(0)?;
        self.out.extend_from_slice(&END.to_be_bytes());
        let off_struct = HEADER_SIZE + RESERVATIONS_SIZE;
        let off_strings = self.out.len();
        self.out.extend_from_slice(&self.strings);
        let header = [
            MAGIC,
            self.out.len() as u32,
            off_struct as u32,
            off_strings as u32,
            HEADER_SIZE as u32,
            VERSION,
            LAST_COMPATIBLE,
            0,
            self.strings.len() as u32,
            (off_strings - off_struct) as u32,
        ];
        for (field, value) in self.out.chunks_exact_mut(4).zip(header) {
            field.copy_from_slice(&value.to_be_bytes());
        }
        Ok(self.out)
    }

    /// Whether `more` bytes still fit, with the end of the tree behind them.
    #[inline]
    fn check_room(&self, more: usize) -> Result<(), WriteError> {
        let size = self.out.len() + self.strings.len();
        // Every open node still needs its end, the tree one more.
        let ends = 4 * self.open.len() + 4;
        if size.saturating_add(more).saturating_add(ends) > MAX_SIZE {
            return Err(WriteError::TooLarge);
        }
        Ok(())
    }

    /// Writes `bytes` and `zeros` zero bytes, and fills up to four.
    #[inline]
    fn push_padded(&mut self, bytes: &[u8], zeros: usize) {
        let len = bytes.len() + zeros;
        self.out.extend_from_slice(bytes);
        let fill = align4(len) - bytes.len();
        self.out.extend_from_slice([0; 4].get(..fill).unwrap_or_default());
    }
}

fn check_length(name: &str) -> Result<(), WriteError> {
    match name.len() {
        0 => Err(WriteError::EmptyName),
        1..=MAX_NAME => Ok(()),
        len => Err(WriteError::NameTooLong { len }),
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
