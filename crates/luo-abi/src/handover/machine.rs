//! The machine's tree: the live-update number, and each subsystem's data.

use alloc::{borrow::Cow, borrow::ToOwned, string::String, vec::Vec};

use super::{
    error::{EntryError, EntryErrorKind, HandoverError, WriteError},
    escape::{escape, unescape},
    files::{check_version, number},
};
use crate::{
    check_name,
    fdt::{self, Blob, Properties},
};

/// The version of the machine's tree that is written.
pub const MACHINE_COMPATIBLE: &str = "luo-v1";

/// The version of its list of subsystems that is written.
pub const SUBSYSTEMS_COMPATIBLE: &str = "subsystems-v1";

/// A subsystem as it is handed over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subsystem<'a> {
    /// Its name; see [`check_name`].
    pub name: Cow<'a, str>,
    /// What it returned.
    pub data: u64,
}

/// Writes a machine's tree: `number` counts the live updates that were completed.
///
/// # Errors
/// [`WriteError::Name`] if a name is not allowed; [`WriteError::Tree`] if two subsystems have the
/// same name, or there are too many.
pub fn write_machine<'a>(
    number: u64,
    subsystems: impl IntoIterator<Item = (&'a str, u64)>,
) -> Result<Vec<u8>, WriteError> {
    let mut tree = fdt::Writer::new();
    tree.begin_node("")?;
    tree.property_str("compatible", MACHINE_COMPATIBLE)?;
    tree.property_u64("liveupdate-number", number)?;
    tree.begin_node("subsystems")?;
    tree.property_str("compatible", SUBSYSTEMS_COMPATIBLE)?;
    for (name, data) in subsystems {
        check_name(name.as_bytes())
            .map_err(|error| WriteError::Name { name: name.to_owned(), error })?;
        tree.property_u64(&escape(name), data)?;
    }
    tree.end_node()?;
    tree.end_node()?;
    Ok(tree.finish()?)
}

/// A machine's tree that was found valid as a whole.
#[derive(Debug, Clone, Copy)]
pub struct MachineTree<'a> {
    liveupdate_number: u64,
    subsystems: Properties<'a>,
}

impl<'a> MachineTree<'a> {
    /// Validates the blob.
    ///
    /// # Errors
    /// [`HandoverError`]: nothing of it can be used.
    pub fn read(blob: &'a [u8]) -> Result<Self, HandoverError> {
        let root = Blob::validate(blob)?.root();
        check_version(&root, &[MACHINE_COMPATIBLE])?;
        let header = |(kind, offset)| HandoverError::Header { kind, offset };
        let missing = EntryErrorKind::Missing { property: "liveupdate-number" };
        let found = root.property("liveupdate-number").ok_or(header((missing, root.offset())))?;
        let liveupdate_number = number(&found, "liveupdate-number").map_err(header)?;
        let missing = EntryErrorKind::MissingNode { node: "subsystems" };
        let subsystems = root.child("subsystems").ok_or(header((missing, root.offset())))?;
        check_version(&subsystems, &[SUBSYSTEMS_COMPATIBLE])?;
        Ok(Self { liveupdate_number, subsystems: subsystems.properties() })
    }

    /// How many live updates were completed when it was written.
    #[must_use]
    pub const fn liveupdate_number(&self) -> u64 {
        self.liveupdate_number
    }

    /// Its subsystems in the order in which they were written.
    #[must_use]
    pub const fn subsystems(&self) -> Subsystems<'a> {
        Subsystems { properties: self.subsystems }
    }
}

/// Iterates over the subsystems of a [`MachineTree`].
#[derive(Debug, Clone, Copy)]
pub struct Subsystems<'a> {
    properties: Properties<'a>,
}

impl<'a> Iterator for Subsystems<'a> {
    type Item = Result<Subsystem<'a>, EntryError>;

    fn next(&mut self) -> Option<Self::Item> {
        let property = self.properties.find(|property| !property.is("compatible"))?;
        let name = unescape(property.name()).ok_or((EntryErrorKind::Name, property.offset()));
        let entry = name.and_then(|name| Ok(Subsystem { name, data: number(&property, "data")? }));
        Some(entry.map_err(|(kind, offset)| EntryError {
            name: String::from(property.name()),
            token: None,
            kind,
            offset,
        }))
    }
}
