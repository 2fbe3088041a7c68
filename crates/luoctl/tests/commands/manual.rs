use std::fs;

use crate::run::alone;

const COMMANDS: [&str; 20] = [
    "status",
    "sessions",
    "files",
    "inspect",
    "prepare",
    "freeze",
    "cancel",
    "depart",
    "finish",
    "rehearse",
    "upgrade",
    "watch",
    "release",
    "arena",
    "kexec",
    "reboot",
    "report",
    "run",
    "scan",
    "completions",
];

#[test]
fn every_shells_completions_know_every_command() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = alone(&["completions", shell]).good();
        for command in COMMANDS {
            assert!(script.contains(command), "{shell} {command}");
        }
    }
}

#[test]
fn every_command_has_a_page() {
    let directory = tempfile::tempdir().unwrap();
    let pages = directory.path().join("made/man1");
    let said = alone(&["man", pages.to_str().unwrap()]).good();
    assert_eq!(said, format!("28 man pages written to {}.\n", pages.display()));
    let mut names: Vec<String> = fs::read_dir(&pages)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    let mut expected: Vec<String> = COMMANDS
        .iter()
        .chain(&["man", "arena-create", "arena-info", "arena-check", "arena-dump"])
        .chain(&["kexec-load", "kexec-unload"])
        .map(|command| format!("luoctl-{command}.1"))
        .chain(["luoctl.1".to_owned()])
        .collect();
    expected.sort();
    assert_eq!(names, expected);
    for name in &names {
        let page = fs::read_to_string(pages.join(name)).unwrap();
        assert!(page.contains(".SH \"EXIT STATUS\""), "{name}");
        assert!(page.contains("\\-\\-socket"), "{name}");
        assert!(page.contains("\\fBLUO_SOCKET\\fR"), "{name}");
        assert_eq!(page.matches("luod cannot be reached").count(), 1, "{name}");
    }
    let finish = fs::read_to_string(pages.join("luoctl-finish.1")).unwrap();
    assert!(finish.contains("\\-\\-unclaimed"), "{finish}");
    assert!(finish.contains("luoctl finish"), "{finish}");
}

#[test]
fn the_main_page_goes_to_stdout() {
    let page = alone(&["man"]).good();
    assert!(page.contains(".TH luoctl 1"), "{page}");
    for command in COMMANDS {
        let name = format!("luoctl\\-{command}(1)");
        assert!(page.contains(&name), "{name}: {page}");
    }
}

#[test]
fn a_directory_that_cannot_be_made_is_said() {
    let run = alone(&["man", "/dev/null/man"]);
    let stderr = run.bad(1);
    assert!(stderr.starts_with("luoctl: /dev/null/man cannot be written to: Not a directory"));
}
