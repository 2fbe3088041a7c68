//! Reading a validated tree.
//!
//! Invariants: nothing here allocates, fails or panics. The structure has been validated, so
//! "there is no next token" is the only answer that is left where a byte is missing.

use core::fmt;

use super::layout::{BEGIN_NODE, END_NODE, NOP, PROPERTY, align4};

/// A name that was found to be ASCII.
#[inline]
fn text(name: &[u8]) -> &str {
    core::str::from_utf8(name).unwrap_or_default()
}

/// A validated tree. [`Blob::validate`](super::Blob::validate) makes it.
#[derive(Clone, Copy)]
pub struct Tree<'a> {
    /// The blob up to the end of the structure.
    blob: &'a [u8],
    /// Where the structure begins.
    start: usize,
    strings: &'a [u8],
}

impl fmt::Debug for Tree<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tree").field("bytes", &self.blob.len()).finish_non_exhaustive()
    }
}

impl<'a> Tree<'a> {
    pub(super) const fn new(blob: &'a [u8], start: usize, strings: &'a [u8]) -> Self {
        Self { blob, start, strings }
    }

    /// The root.
    #[must_use]
    pub fn root(&self) -> Node<'a> {
        let mut events = self.events();
        while let Some(event) = events.next() {
            if let Event::Begin { name, offset } = event {
                return Node { name: name.as_bytes(), offset, body: events };
            }
        }
        Node { name: b"", offset: self.start, body: events }
    }

    /// Every node and property in the order in which they lie: one pass, the cheapest way to read
    /// a whole tree.
    #[must_use]
    pub const fn events(&self) -> Events<'a> {
        Events { tree: *self, at: self.start }
    }
}

/// One step through a tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event<'a> {
    /// A node begins. What follows up to its end is its content.
    Begin {
        /// Its name, empty for the root.
        name: &'a str,
        /// Where its token lies in the blob.
        offset: usize,
    },
    /// A property of the innermost node that has begun.
    Property(Property<'a>),
    /// The innermost node ends.
    End,
}

/// Iterates over [`Event`]s.
#[derive(Debug, Clone, Copy)]
pub struct Events<'a> {
    tree: Tree<'a>,
    at: usize,
}

impl<'a> Events<'a> {
    #[inline]
    fn word(&self, at: usize) -> Option<u32> {
        self.tree.blob.get(at..).and_then(<[u8]>::first_chunk).map(|word| u32::from_be_bytes(*word))
    }

    /// The next token that is no NOP, and where it lies; the position stays at it.
    #[inline]
    fn token(&mut self) -> Option<u32> {
        loop {
            match self.word(self.at)? {
                NOP => self.at += 4,
                token => return Some(token),
            }
        }
    }

    #[inline]
    fn begin(&mut self) -> Option<(&'a [u8], usize)> {
        let offset = self.at;
        self.at = self.name_end(offset + 4);
        let name = self.tree.blob.get(offset + 4..self.at)?;
        // Zeros fill up the last word, and at least one ends the name.
        let filled = name.last_chunk::<4>()?;
        let zeros = u32::from_be_bytes(*filled).trailing_zeros() / 8;
        Some((name.get(..name.len() - zeros as usize)?, offset))
    }

    /// Behind the name at `at`: the word with its end is the first one whose last byte is zero.
    #[inline]
    fn name_end(&self, mut at: usize) -> usize {
        while self.word(at).is_some_and(|word| word & 0xff != 0) {
            at += 4;
        }
        at + 4
    }

    #[inline]
    fn property(&mut self) -> Option<Property<'a>> {
        let offset = self.at;
        let len = self.word(offset + 4)? as usize;
        let name_offset = self.word(offset + 8)?;
        let value = self.tree.blob.get(offset + 12..)?.get(..len)?;
        self.at = align4(offset + 12 + len);
        Some(Property { strings: self.tree.strings, name_offset, value, offset })
    }

    /// Goes on behind the end of the innermost node that has begun, whatever is left of it.
    pub fn skip_node(&mut self) {
        let mut depth = 1_usize;
        while depth > 0 {
            match self.token() {
                Some(BEGIN_NODE) => {
                    self.at = self.name_end(self.at + 4);
                    depth += 1;
                }
                Some(PROPERTY) => {
                    let Some(len) = self.word(self.at + 4) else { return };
                    self.at = align4(self.at + 12 + len as usize);
                }
                Some(END_NODE) => {
                    self.at += 4;
                    depth -= 1;
                }
                _ => return,
            }
        }
    }
}

impl<'a> Iterator for Events<'a> {
    type Item = Event<'a>;

    #[inline]
    fn next(&mut self) -> Option<Event<'a>> {
        match self.token()? {
            BEGIN_NODE => {
                self.begin().map(|(name, offset)| Event::Begin { name: text(name), offset })
            }
            PROPERTY => self.property().map(Event::Property),
            END_NODE => {
                self.at += 4;
                Some(Event::End)
            }
            _ => None,
        }
    }
}

/// A node.
#[derive(Debug, Clone, Copy)]
pub struct Node<'a> {
    name: &'a [u8],
    offset: usize,
    /// Behind the node's name.
    body: Events<'a>,
}

impl<'a> Node<'a> {
    /// Its name, empty for the root.
    #[must_use]
    pub fn name(&self) -> &'a str {
        text(self.name)
    }

    /// Its name as bytes: cheaper than [`name`](Self::name).
    #[must_use]
    pub(crate) const fn name_bytes(&self) -> &'a [u8] {
        self.name
    }

    /// Where its token lies in the blob.
    #[must_use]
    pub const fn offset(&self) -> usize {
        self.offset
    }

    /// Where its name lies in the blob.
    #[must_use]
    pub const fn name_offset(&self) -> usize {
        self.offset + 4
    }

    /// Its properties in the order in which they lie.
    #[must_use]
    pub const fn properties(&self) -> Properties<'a> {
        Properties { events: self.body }
    }

    /// Its property of that name.
    #[must_use]
    pub fn property(&self, name: &str) -> Option<Property<'a>> {
        self.properties().find(|property| property.is(name))
    }

    /// Its children in the order in which they lie.
    #[must_use]
    pub fn children(&self) -> Children<'a> {
        self.properties().children()
    }

    /// Its child of that name. Looks through all of them.
    #[must_use]
    pub fn child(&self, name: &str) -> Option<Node<'a>> {
        self.children().find(|child| child.name == name.as_bytes())
    }
}

/// Iterates over a node's properties.
#[derive(Debug, Clone, Copy)]
pub struct Properties<'a> {
    events: Events<'a>,
}

impl<'a> Properties<'a> {
    /// The node's children, without walking through the properties again that have been given.
    #[must_use]
    pub fn children(mut self) -> Children<'a> {
        while self.next().is_some() {}
        Children { events: self.events }
    }
}

impl<'a> Iterator for Properties<'a> {
    type Item = Property<'a>;

    #[inline]
    fn next(&mut self) -> Option<Property<'a>> {
        match self.events.token()? {
            PROPERTY => self.events.property(),
            _ => None,
        }
    }
}

/// Iterates over a node's children. Each step walks over what lies within the child before.
#[derive(Debug, Clone, Copy)]
pub struct Children<'a> {
    /// At the token of the next child, or at the parent's end.
    events: Events<'a>,
}

impl<'a> Children<'a> {
    /// The next child's name, where its token lies, and what lies within it. Unless
    /// [`entered`](Self::entered) follows, the next step walks over that.
    #[inline]
    pub(crate) fn enter(&mut self) -> Option<(Node<'a>, Properties<'a>)> {
        if self.events.token()? != BEGIN_NODE {
            return None;
        }
        let (name, offset) = self.events.begin()?;
        let node = Node { name, offset, body: self.events };
        Some((node, node.properties()))
    }

    /// Goes on behind the node that was entered, from where its properties have been read to.
    #[inline]
    pub(crate) fn leave(&mut self, read: &Properties<'a>) {
        self.events = read.events;
        self.events.skip_node();
    }
}

impl<'a> Iterator for Children<'a> {
    type Item = Node<'a>;

    #[inline]
    fn next(&mut self) -> Option<Node<'a>> {
        let (node, properties) = self.enter()?;
        self.leave(&properties);
        Some(node)
    }
}

/// A property.
#[derive(Clone, Copy)]
pub struct Property<'a> {
    strings: &'a [u8],
    name_offset: u32,
    value: &'a [u8],
    offset: usize,
}

impl<'a> Property<'a> {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &'a str {
        let rest = self.strings.get(self.name_offset as usize..).unwrap_or_default();
        let len = rest.iter().position(|&byte| byte == 0).unwrap_or(0);
        text(rest.get(..len).unwrap_or_default())
    }

    /// Whether it has that name: cheaper than [`name`](Self::name).
    #[inline]
    #[must_use]
    pub fn is(&self, name: &str) -> bool {
        let rest = self.strings.get(self.name_offset as usize..).unwrap_or_default();
        rest.strip_prefix(name.as_bytes()).is_some_and(|rest| rest.first() == Some(&0))
    }

    /// Its value.
    #[must_use]
    pub const fn value(&self) -> &'a [u8] {
        self.value
    }

    /// The value as a number of four bytes, big-endian; `None` if it has another size.
    #[must_use]
    pub fn as_u32(&self) -> Option<u32> {
        self.value.try_into().ok().map(u32::from_be_bytes)
    }

    /// The value as a number of eight bytes, big-endian; `None` if it has another size.
    #[inline]
    #[must_use]
    pub fn as_u64(&self) -> Option<u64> {
        self.value.try_into().ok().map(u64::from_be_bytes)
    }

    /// The value as one text with a zero byte behind it; `None` if it is anything else.
    #[inline]
    #[must_use]
    pub fn as_str(&self) -> Option<&'a str> {
        match self.value.split_last() {
            Some((0, text)) if !text.contains(&0) => core::str::from_utf8(text).ok(),
            _ => None,
        }
    }

    /// Where its token lies in the blob.
    #[must_use]
    pub const fn offset(&self) -> usize {
        self.offset
    }

    /// Where its value lies in the blob.
    #[must_use]
    pub const fn value_offset(&self) -> usize {
        self.offset + 12
    }
}

impl PartialEq for Property<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.name() == other.name() && self.value == other.value && self.offset == other.offset
    }
}

impl Eq for Property<'_> {}

impl fmt::Debug for Property<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Property")
            .field("name", &self.name())
            .field("value", &self.value)
            .field("offset", &self.offset)
            .finish()
    }
}
