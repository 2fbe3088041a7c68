//! What the numbers of a handover mean, in words, by where they lie in the blob.
//!
//! Invariants: only what luo-abi's typed reader accepts is explained; what it refuses is
//! marked as damaged at its place, and the rest is explained all the same.

use std::collections::{HashMap, HashSet};

use luo_abi::fdt::{Node, Property, Tree};
use luo_abi::handover::{
    EntryError, FILES_COMPATIBLE, FilesTree, HandoverError, MACHINE_COMPATIBLE, MachineTree,
    SessionNode, Subsystem,
};
use luo_abi::{Criticality, OnClose};

use crate::format;

/// Comments and hints on one tree.
#[derive(Debug, Default)]
pub(crate) struct Notes {
    comments: HashMap<usize, String>,
    numbers: HashSet<usize>,
    damage: Vec<String>,
}

impl Notes {
    /// Looks at a tree; `blob` is its bytes.
    pub(crate) fn of(blob: &[u8], tree: &Tree<'_>) -> Self {
        let mut notes = Self::default();
        let root = tree.root();
        match root.property("compatible").and_then(|property| property.as_str()) {
            Some(MACHINE_COMPATIBLE) => match MachineTree::read(blob) {
                Ok(machine) => notes.machine(&root, &machine),
                Err(error) => notes.refused(&root, &error),
            },
            Some(FILES_COMPATIBLE) => match FilesTree::read(blob) {
                Ok(files) => notes.files(&root, &files),
                Err(error) => notes.refused(&root, &error),
            },
            _ => notes.say(root.offset(), "no handover that this luo reads".to_owned()),
        }
        notes
    }

    /// The comment on what begins at this byte.
    pub(crate) fn at(&self, offset: usize) -> Option<&str> {
        self.comments.get(&offset).map(String::as_str)
    }

    /// Whether the property at this byte is a number of eight bytes, whatever it looks like.
    pub(crate) fn is_number(&self, offset: usize) -> bool {
        self.numbers.contains(&offset)
    }

    /// Entries that cannot be used, each as a sentence.
    pub(crate) fn damage(&self) -> &[String] {
        &self.damage
    }

    fn say(&mut self, offset: usize, comment: String) {
        self.comments.insert(offset, comment);
    }

    fn number(&mut self, property: &Property<'_>, comment: String) {
        self.numbers.insert(property.offset());
        self.say(property.offset(), comment);
    }

    fn refused(&mut self, root: &Node<'_>, error: &HandoverError) {
        self.say(root.offset(), format!("DAMAGED: {error}"));
        self.damage.push(error.to_string());
    }

    fn damaged(&mut self, offset: usize, error: &EntryError) {
        self.say(offset, format!("DAMAGED: {} (at byte {})", error.kind, error.offset));
        self.damage.push(error.to_string());
    }

    fn machine(&mut self, root: &Node<'_>, machine: &MachineTree<'_>) {
        self.say(root.offset(), "the machine's handover".to_owned());
        if let Some(property) = root.property("liveupdate-number") {
            let updates = format::count(machine.liveupdate_number(), "live update");
            self.number(&property, format!("{updates} completed"));
        }
        let Some(list) = root.child("subsystems") else { return };
        self.say(list.offset(), "what each subsystem kept, by its own account".to_owned());
        let properties = list.properties().filter(|property| !property.is("compatible"));
        for (property, subsystem) in properties.zip(machine.subsystems()) {
            match subsystem {
                Ok(Subsystem { name, data }) if name == property.name() => {
                    self.number(&property, format!("data {data}"));
                }
                Ok(Subsystem { name, data }) => {
                    self.number(&property, format!("subsystem {name:?}: data {data}"));
                }
                Err(error) => self.damaged(property.offset(), &error),
            }
        }
    }

    fn files(&mut self, root: &Node<'_>, files: &FilesTree<'_>) {
        let mut sessions = 0_u64;
        for (node, session) in root.children().zip(files.sessions()) {
            sessions += 1;
            match session {
                Ok(session) => self.session(&node, &session),
                Err(error) => self.damaged(node.offset(), &error),
            }
        }
        let sessions = format::count(sessions, "session");
        self.say(root.offset(), format!("the files' handover: {sessions}"));
    }

    fn session(&mut self, node: &Node<'_>, session: &SessionNode<'_>) {
        for property in node.properties() {
            self.session_property(&property, session);
        }
        let (mut count, mut optional, mut damaged) = (0_u64, 0_u64, 0_u64);
        for (node, file) in node.children().zip(session.files()) {
            count += 1;
            match file {
                Ok(file) => {
                    let criticality = match file.criticality {
                        Criticality::Required => "required",
                        Criticality::Optional => {
                            optional += 1;
                            "optional"
                        }
                    };
                    self.say(node.offset(), format!("file {}, {criticality}", file.token));
                    if let Some(property) = node.property("data") {
                        self.number(&property, format!("{}", file.data));
                    }
                }
                Err(error) => {
                    damaged += 1;
                    self.damaged(node.offset(), &error);
                }
            }
        }
        let mut comment = format!("session {:?}: {}", session.name, format::count(count, "file"));
        for (number, word) in [(optional, "optional"), (damaged, "damaged")] {
            if number > 0 {
                comment.push_str(&format!(", {number} {word}"));
            }
        }
        self.say(node.offset(), comment);
    }

    fn session_property(&mut self, property: &Property<'_>, session: &SessionNode<'_>) {
        let owner = session.owner;
        let text = match property.name() {
            // The two halves are two numbers: cells show them best.
            "owner" => {
                return self
                    .say(property.offset(), format!("uid {}, gid {}", owner.uid, owner.gid));
            }
            "on-close" => {
                let meaning = match session.on_close {
                    OnClose::Release => "ends when its last holder closes it",
                    OnClose::Keep => "waits to be claimed when its last holder closes it",
                };
                return self.say(property.offset(), meaning.to_owned());
            }
            "ttl" => session.ttl.map(|ttl| format!("waits {} at most", format::seconds(ttl))),
            "expiry" => {
                session.expiry.map(|at| format!("nobody holds it; ends at {}", format::moment(at)))
            }
            "next-token" => session.next_token.map(|next| format!("assigned next: {next}")),
            _ => None,
        };
        if let Some(text) = text {
            self.number(property, text);
        }
    }
}
