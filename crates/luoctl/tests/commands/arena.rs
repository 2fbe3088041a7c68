use std::path::Path;

use serde_json::Value;

use crate::run::alone;

fn path_in(directory: &tempfile::TempDir) -> String {
    directory.path().join("arena").to_str().unwrap().to_owned()
}

#[test]
fn an_arena_is_made_looked_at_and_made_again() {
    let directory = tempfile::tempdir().unwrap();
    let path = path_in(&directory);
    let made = alone(&["arena", "create", &path, "--size", "1M"]).good();
    assert!(made.contains("1 MiB") && made.contains("arena = "), "{made}");
    assert_eq!(std::fs::metadata(&path).unwrap().len(), 1 << 20);
    let info = alone(&["arena", "info", &path]).good();
    assert!(info.contains("empty") && info.contains("1 MiB"), "{info}");
    let json = alone(&["--json", "arena", "info", &path]).json();
    assert_eq!(
        (&json["size"], &json["holds_handover"]),
        (&Value::from(1 << 20), &Value::from(false))
    );
    let checked = alone(&["arena", "check", "--full", &path]).good();
    assert!(checked.contains("whole"), "{checked}");
    let json = alone(&["--json", "arena", "dump", &path]).json();
    assert_eq!(json["objects"], Value::Array(Vec::new()));
    // What is there is not discarded by accident.
    let again = alone(&["arena", "create", &path]).bad(1);
    assert!(again.contains("--force"), "{again}");
    alone(&["arena", "create", "--force", &path]).good();
    alone(&["arena", "dump", "--handover", &path]).bad(6);
}

#[test]
fn what_is_no_arena_is_told_as_what_it_is() {
    let directory = tempfile::tempdir().unwrap();
    let path = path_in(&directory);
    alone(&["arena", "info", &path]).bad(6);
    std::fs::write(&path, vec![0; 1 << 20]).unwrap();
    let never = alone(&["arena", "check", &path]).bad(1);
    assert!(never.contains("create"), "{never}");
    alone(&["arena", "create", &path]).good();
    truncate(&path, 512 << 10);
    let short = alone(&["arena", "info", &path]).bad(1);
    assert_ne!(short, never);
    alone(&["arena", "info", "/dev/null"]).bad(1);
    alone(&["arena", "create", &path, "--size", "many"]).bad(2);
    alone(&["arena", "create", &path, "--size", "99999999999T"]).bad(2);
}

fn truncate(path: impl AsRef<Path>, len: u64) {
    std::fs::OpenOptions::new().write(true).open(path).unwrap().set_len(len).unwrap();
}
