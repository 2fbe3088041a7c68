//! The files' tree: sessions, and the files within them.

use alloc::{borrow::Cow, borrow::ToOwned, string::String, vec::Vec};

use super::{
    error::{EntryError, EntryErrorKind, HandoverError, WriteError},
    escape::{TokenName, escape, parse_token, unescape},
};
use crate::{
    Criticality, OnClose, Owner, check_compatible, check_name,
    fdt::{self, Blob, Children, Node, Properties, Property, PropertyName},
};

/// The version of the files' tree that is written.
pub const FILES_COMPATIBLE: &str = "file-descriptors-v1";

/// The versions that are read.
const KNOWN: &[&str] = &[FILES_COMPATIBLE];

/// A session as it is handed over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Session<'a> {
    /// Its name; see [`check_name`].
    pub name: Cow<'a, str>,
    /// Whose it is.
    pub owner: Owner,
    /// What happens when the last copy of its socket is closed. A tree that does not say so means
    /// [`OnClose::Keep`].
    pub on_close: OnClose,
    /// How long it is kept unclaimed, in seconds; `None` is for ever.
    pub ttl: Option<u64>,
    /// When it ends unless it is claimed, in seconds since 1970; `None` while it is claimed, or
    /// has no limit.
    pub expiry: Option<u64>,
    /// The next token to be assigned, where the session assigns tokens.
    pub next_token: Option<u64>,
}

/// A file as it is handed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct File<'a> {
    /// Its token within the session.
    pub token: u64,
    /// Which handler's it is, and of which layout; see [`check_compatible`].
    pub compatible: &'a str,
    /// What the handler returned.
    pub data: u64,
    /// What its failure means.
    pub criticality: Criticality,
    /// The files of its session that it needs: they are retrieved before it. A reader who ignores
    /// this does no harm: then its handler finds what it needs, or fails.
    pub needs: Tokens<'a>,
}

/// Tokens, as they lie in a tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tokens<'a>(&'a [[u8; 8]]);

impl<'a> Tokens<'a> {
    /// No tokens.
    pub const NONE: Self = Self(&[]);

    /// Tokens, each big-endian.
    #[must_use]
    pub const fn new(tokens: &'a [[u8; 8]]) -> Self {
        Self(tokens)
    }

    /// No token is there.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The tokens, in the order in which they were written.
    pub fn iter(&self) -> impl Iterator<Item = u64> + use<'a> {
        self.0.iter().map(|token| u64::from_be_bytes(*token))
    }
}

/// The names of a files' tree, once interned.
#[derive(Debug, Clone, Copy)]
struct Names {
    compatible: PropertyName,
    data: PropertyName,
}

/// Streams a files' tree: [`session`](Self::session), then each of its files with
/// [`file`](Self::file), and so on. Cheapest when a session's tokens ascend.
///
/// ```
/// use luo_abi::{
///     Criticality, OnClose, Owner, handover::{File, FilesTree, FilesWriter, Session, Tokens},
/// };
///
/// let mut writer = FilesWriter::new();
/// writer.session(&Session {
///     name: "kv".into(),
///     owner: Owner { uid: 1000, gid: 1000 },
///     on_close: OnClose::Release,
///     ttl: None,
///     expiry: None,
///     next_token: None,
/// })?;
/// let (compatible, criticality) = ("memfd-v1", Criticality::Required);
/// let file = File { token: 0x1a, compatible, data: 7, criticality, needs: Tokens::NONE };
/// writer.file(&file)?;
/// let blob = writer.finish()?;
///
/// for session in FilesTree::read(&blob)?.sessions() {
///     let session = session?;
///     assert_eq!(session.name, "kv");
///     assert_eq!(session.files().next(), Some(Ok(file)));
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Default)]
pub struct FilesWriter {
    tree: fdt::Writer,
    names: Option<Names>,
    in_session: bool,
}

impl FilesWriter {
    /// A tree without sessions.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A tree without sessions, with room for `files` files.
    #[must_use]
    pub fn with_capacity(files: usize) -> Self {
        let tree = fdt::Writer::with_capacity(files.saturating_mul(64).min(fdt::MAX_SIZE));
        Self { tree, ..Self::default() }
    }

    fn start(&mut self) -> Result<Names, WriteError> {
        if let Some(names) = self.names {
            return Ok(names);
        }
        let names =
            Names { compatible: self.tree.intern("compatible")?, data: self.tree.intern("data")? };
        self.tree.begin_node("")?;
        self.tree.put_str(names.compatible, FILES_COMPATIBLE)?;
        self.names = Some(names);
        Ok(names)
    }

    fn end_session(&mut self) -> Result<(), WriteError> {
        if self.in_session {
            self.tree.end_node()?;
            self.in_session = false;
        }
        Ok(())
    }

    /// Begins a session and ends the one before.
    ///
    /// # Errors
    /// [`WriteError::Name`] if the name is not allowed; [`WriteError::Tree`] if two files of the
    /// session before have the same token, or the tree becomes too large.
    pub fn session(&mut self, session: &Session<'_>) -> Result<(), WriteError> {
        check_name(session.name.as_bytes())
            .map_err(|error| WriteError::Name { name: session.name.as_ref().to_owned(), error })?;
        self.start()?;
        self.end_session()?;
        self.tree.begin_node(&escape(&session.name))?;
        self.in_session = true;
        let Owner { uid, gid } = session.owner;
        self.tree.property_u64("owner", u64::from(uid) << 32 | u64::from(gid))?;
        self.tree.property_str("on-close", session.on_close.as_str())?;
        for (name, value) in
            [("ttl", session.ttl), ("expiry", session.expiry), ("next-token", session.next_token)]
        {
            if let Some(value) = value {
                self.tree.property_u64(name, value)?;
            }
        }
        Ok(())
    }

    /// Writes a file of the session that was begun last.
    ///
    /// # Errors
    /// [`WriteError::NoSession`], [`WriteError::Compatible`]; [`WriteError::Tree`] if the tree
    /// becomes too large. A token that is taken is found when the session ends.
    pub fn file(&mut self, file: &File<'_>) -> Result<(), WriteError> {
        let Some(names) = self.names.filter(|_| self.in_session) else {
            return Err(WriteError::NoSession);
        };
        check_compatible(file.compatible.as_bytes()).map_err(|error| WriteError::Compatible {
            token: file.token,
            compatible: file.compatible.to_owned(),
            error,
        })?;
        self.tree.begin_node(TokenName::new(file.token).as_str())?;
        self.tree.put_str(names.compatible, file.compatible)?;
        self.tree.put_u64(names.data, file.data)?;
        if file.criticality == Criticality::Optional {
            self.tree.property("optional", &[])?;
        }
        if !file.needs.is_empty() {
            self.tree.property("needs", file.needs.0.as_flattened())?;
        }
        self.tree.end_node()?;
        Ok(())
    }

    /// Ends the tree and gives its bytes.
    ///
    /// # Errors
    /// [`WriteError::Tree`] if two sessions have the same name, or two files of the last one the
    /// same token.
    pub fn finish(mut self) -> Result<Vec<u8>, WriteError> {
        self.start()?;
        self.end_session()?;
        self.tree.end_node()?;
        Ok(self.tree.finish()?)
    }
}

/// Writes a files' tree from sessions and their files.
///
/// # Errors
/// Those of [`FilesWriter`].
pub fn write_files<'a, S, F>(sessions: S) -> Result<Vec<u8>, WriteError>
where
    S: IntoIterator<Item = (Session<'a>, F)>,
    F: IntoIterator<Item = File<'a>>,
{
    let mut writer = FilesWriter::new();
    for (session, files) in sessions {
        writer.session(&session)?;
        for file in files {
            writer.file(&file)?;
        }
    }
    writer.finish()
}

/// A files' tree that was found valid as a whole.
#[derive(Debug, Clone, Copy)]
pub struct FilesTree<'a> {
    root: Node<'a>,
}

impl<'a> FilesTree<'a> {
    /// Validates the blob.
    ///
    /// # Errors
    /// [`HandoverError`]: nothing of it can be used.
    pub fn read(blob: &'a [u8]) -> Result<Self, HandoverError> {
        let root = Blob::validate(blob)?.root();
        check_version(&root, KNOWN)?;
        Ok(Self { root })
    }

    /// Its sessions in the order in which they were written.
    #[must_use]
    pub fn sessions(&self) -> Sessions<'a> {
        Sessions { children: self.root.children() }
    }
}

/// Refuses a node whose `compatible` is missing or not known.
pub(super) fn check_version(
    node: &Node<'_>,
    known: &'static [&'static str],
) -> Result<(), HandoverError> {
    let header = |kind, offset| Err(HandoverError::Header { kind, offset });
    let Some(version) = node.property("compatible") else {
        return header(EntryErrorKind::Missing { property: "compatible" }, node.offset());
    };
    let Some(found) = version.as_str() else {
        return header(EntryErrorKind::Value { property: "compatible" }, version.value_offset());
    };
    if known.contains(&found) {
        return Ok(());
    }
    Err(HandoverError::Version { found: found.into(), known, offset: version.value_offset() })
}

/// What is wrong, and where, before it is known with what.
type Damage = (EntryErrorKind, usize);

#[cold]
fn damaged(name: &str, token: Option<u64>, (kind, offset): Damage) -> EntryError {
    EntryError { name: String::from(name), token, kind, offset }
}

/// The `u64` that a property holds.
#[inline]
pub(super) fn number(property: &Property<'_>, name: &'static str) -> Result<u64, Damage> {
    property.as_u64().ok_or_else(|| {
        let kind =
            EntryErrorKind::Size { property: name, found: property.value().len(), expected: 8 };
        (kind, property.value_offset())
    })
}

/// The tokens that a property holds, at least one.
fn tokens<'a>(property: &Property<'a>) -> Result<Tokens<'a>, Damage> {
    let (tokens, rest) = property.value().as_chunks();
    if tokens.is_empty() || !rest.is_empty() {
        let found = property.value().len();
        let expected = (tokens.len() + 1) * 8;
        let kind = EntryErrorKind::Size { property: "needs", found, expected };
        return Err((kind, property.value_offset()));
    }
    Ok(Tokens(tokens))
}

/// Iterates over the sessions of a [`FilesTree`].
#[derive(Debug, Clone, Copy)]
pub struct Sessions<'a> {
    children: Children<'a>,
}

impl<'a> Iterator for Sessions<'a> {
    type Item = Result<SessionNode<'a>, EntryError>;

    fn next(&mut self) -> Option<Self::Item> {
        let (node, mut properties) = self.children.enter()?;
        let session = read_session(&node, &mut properties);
        self.children.leave(&properties);
        let files = Files { children: properties.children() };
        Some(match session {
            Ok(session) => Ok(SessionNode { session, files, offset: node.offset() }),
            Err(damage) => Err(damaged(node.name(), None, damage)),
        })
    }
}

fn read_session<'a>(
    node: &Node<'a>,
    properties: &mut Properties<'a>,
) -> Result<Session<'a>, Damage> {
    let name = unescape(node.name()).ok_or((EntryErrorKind::Name, node.name_offset()))?;
    let mut owner = None;
    let mut on_close = OnClose::Keep;
    let [mut ttl, mut expiry, mut next_token] = [None; 3];
    for property in properties {
        if property.is("owner") {
            let both = number(&property, "owner")?;
            owner = Some(Owner { uid: (both >> 32) as u32, gid: both as u32 });
        } else if property.is("on-close") {
            on_close = property
                .as_str()
                .and_then(OnClose::from_word)
                .ok_or((EntryErrorKind::Value { property: "on-close" }, property.value_offset()))?;
        } else if property.is("ttl") {
            ttl = Some(number(&property, "ttl")?);
        } else if property.is("expiry") {
            expiry = Some(number(&property, "expiry")?);
        } else if property.is("next-token") {
            next_token = Some(number(&property, "next-token")?);
        }
    }
    let owner = owner.ok_or((EntryErrorKind::Missing { property: "owner" }, node.offset()))?;
    Ok(Session { name, owner, on_close, ttl, expiry, next_token })
}

/// A session of a [`FilesTree`]; dereferences to [`Session`].
#[derive(Debug, Clone)]
pub struct SessionNode<'a> {
    session: Session<'a>,
    files: Files<'a>,
    offset: usize,
}

impl<'a> SessionNode<'a> {
    /// Its files in the order in which they were written.
    #[must_use]
    pub const fn files(&self) -> Files<'a> {
        self.files
    }

    /// The session without its files.
    #[must_use]
    pub fn into_session(self) -> Session<'a> {
        self.session
    }

    /// Where its node lies in the blob.
    #[must_use]
    pub const fn offset(&self) -> usize {
        self.offset
    }
}

impl<'a> core::ops::Deref for SessionNode<'a> {
    type Target = Session<'a>;

    fn deref(&self) -> &Session<'a> {
        &self.session
    }
}

/// Iterates over the files of a session.
#[derive(Debug, Clone, Copy)]
pub struct Files<'a> {
    children: Children<'a>,
}

impl<'a> Iterator for Files<'a> {
    type Item = Result<File<'a>, EntryError>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        let (node, mut properties) = self.children.enter()?;
        let token = parse_token(node.name_bytes());
        let file = read_file(&node, token, &mut properties);
        self.children.leave(&properties);
        Some(file.map_err(|damage| damaged(node.name(), token, damage)))
    }
}

/// The only `compatible` string of a property's value.
#[inline]
fn one_compatible(value: &[u8]) -> Option<&str> {
    let text = value.strip_suffix(&[0])?;
    check_compatible(text).ok()?;
    core::str::from_utf8(text).ok()
}

#[inline]
fn read_file<'a>(
    node: &Node<'a>,
    token: Option<u64>,
    properties: &mut Properties<'a>,
) -> Result<File<'a>, Damage> {
    let token = token.ok_or((EntryErrorKind::Token, node.name_offset()))?;
    let mut compatible = None;
    let mut data = None;
    let mut criticality = Criticality::Required;
    let mut needs = Tokens::NONE;
    for property in properties {
        if property.is("compatible") {
            let value = one_compatible(property.value()).ok_or((
                EntryErrorKind::Value { property: "compatible" },
                property.value_offset(),
            ))?;
            compatible = Some(value);
        } else if property.is("data") {
            data = Some(number(&property, "data")?);
        } else if property.is("optional") {
            if !property.value().is_empty() {
                let found = property.value().len();
                let kind = EntryErrorKind::Size { property: "optional", found, expected: 0 };
                return Err((kind, property.value_offset()));
            }
            criticality = Criticality::Optional;
        } else if property.is("needs") {
            needs = tokens(&property)?;
        }
    }
    let missing = |property| (EntryErrorKind::Missing { property }, node.offset());
    let compatible = compatible.ok_or_else(|| missing("compatible"))?;
    let data = data.ok_or_else(|| missing("data"))?;
    Ok(File { token, compatible, data, criticality, needs })
}
