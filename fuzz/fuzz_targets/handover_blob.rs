//! Any bytes as a handover: no panic, no long run, and whatever is taken for valid can be walked
//! through in whole and written again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use luo_abi::{
    fdt::{Blob, Event, Writer},
    handover::{FilesTree, FilesWriter, MachineTree},
};

fuzz_target!(|bytes: &[u8]| {
    let Ok(tree) = Blob::validate(bytes) else {
        assert!(FilesTree::read(bytes).is_err() && MachineTree::read(bytes).is_err());
        return;
    };
    let mut writer = Writer::new();
    for event in tree.events() {
        match event {
            Event::Begin { name, .. } => writer.begin_node(name),
            Event::Property(property) => writer.property(property.name(), property.value()),
            Event::End => writer.end_node(),
        }
        .expect("what was valid can be written");
    }
    let again = writer.finish().expect("what was valid can be written");
    let copy = Blob::validate(&again).expect("what was written is valid");
    let shape = |event: Event<'_>| match event {
        Event::Begin { name, .. } => (1, name.to_owned(), Vec::new()),
        Event::Property(property) => (2, property.name().to_owned(), property.value().to_vec()),
        Event::End => (3, String::new(), Vec::new()),
    };
    assert!(tree.events().map(shape).eq(copy.events().map(shape)));

    if let Ok(machine) = MachineTree::read(bytes) {
        machine.subsystems().for_each(drop);
    }
    if let Ok(files) = FilesTree::read(bytes) {
        // Several damaged entries aside, the tree is written again as it was read.
        let mut writer = FilesWriter::new();
        for session in files.sessions().flatten() {
            writer.session(&session).expect("what was read can be written");
            for file in session.files().flatten() {
                writer.file(&file).expect("what was read can be written");
            }
        }
        let again = writer.finish().expect("what was read can be written");
        let copy = FilesTree::read(&again).expect("what was written can be read");
        for (a, b) in files.sessions().flatten().zip(copy.sessions()) {
            let b = b.expect("what was written can be read");
            assert_eq!(*a, *b);
            assert!(a.files().flatten().eq(b.files().flatten()));
        }
    }
});
