//! An update through the arena writes nothing of memory that is there already. By itself, since
//! what ended processes have written is told for all children of a process together.

mod common;

use std::sync::Arc;

use common::Luod;
use luo_carriers::arena::{self, Arena, FileMedium};

const MIB: u64 = 1 << 20;

/// Bytes that a process, and the children it has waited for, have passed to `write` and its like.
fn written(process: &str) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{process}/io")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("wchar: ")).unwrap();
    line.parse().unwrap()
}

#[test]
fn an_update_of_resident_memory_writes_metadata_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("arena");
    let medium = FileMedium::create(&path, 160 * MIB).unwrap();
    Arena::create(Arc::new(medium), arena::machine_id().unwrap(), false).unwrap();
    let start = written("self");
    let mut luod = Luod::start_with(&format!("arena = {path:?}"));
    let shop = luod.session("shop");
    let memory = shop.allocate(1, 64 * MIB).unwrap();
    assert!(memory.is_resident());
    let pattern: Vec<u8> = (0..MIB).map(|at| ((at * at) >> 5) as u8 | 1).collect();
    for at in (0..64 * MIB).step_by(MIB as usize) {
        memory.write_at(at, &pattern).unwrap();
    }
    let worker = luod.worker().as_raw_nonzero().to_string();
    let keeper = luod.keeper().as_raw_nonzero().to_string();
    let before = written(&worker) + written(&keeper);
    let manager = luod.manager();
    manager.prepare_through("arena").unwrap();
    // Until everything stands still it is written, and all of that is there afterwards.
    memory.write_at(0, b"the last word").unwrap();
    manager.freeze().unwrap();
    let frozen = written(&worker) + written(&keeper) - before;
    manager.depart().unwrap();
    luod.wait_for_end();
    assert_eq!(luod.exit_status(), Some(3), "{}", luod.log());
    let log = luod.log().len() as u64;
    drop((manager, memory, shop, luod));
    // Both processes have been waited for: what they wrote in all their lives is told here.
    let all = written("self") - start - before;
    println!("prepare and freeze wrote {frozen} bytes, with depart {all}, {log} of log in all");
    assert!(frozen < 64 << 10, "{frozen}");
    assert!(all < 256 << 10, "{all}");

    let luod = Luod::start_with(&format!("arena = {path:?}"));
    let shop = luod.session("shop");
    let memory = shop.retrieve_memory(1).unwrap();
    let mut found = vec![0; MIB as usize];
    for at in (0..64 * MIB).step_by(MIB as usize) {
        memory.read_at(at, &mut found).unwrap();
        let (same, from) = if at == 0 { (&b"the last word"[..], 13) } else { (&[][..], 0) };
        assert!(found[..from] == *same && found[from..] == pattern[from..], "MiB at {at}");
    }
}
