//! luod's command line.

mod common;

use std::process::{Command, Output};

fn luod(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_luod")).args(arguments).output().unwrap()
}

#[test]
fn a_configuration_is_checked_without_starting_anything() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("luod.toml");
    let path = file.to_str().unwrap();
    let runtime = directory.path().join("run");
    let check =
        || luod(&["--config", path, "--runtime-dir", runtime.to_str().unwrap(), "--check-config"]);
    std::fs::write(&file, "[limits]\nsessions = 7\n").unwrap();
    let output = check();
    assert!(output.status.success(), "{output:?}");
    assert!(!runtime.exists());
    std::fs::write(&file, "[limits]\nsesions = 7\n").unwrap();
    let output = check();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("sesions"));
}

#[test]
fn a_directory_whose_socket_nobody_could_bind_is_no_right_configuration() {
    let directory = format!("/tmp/{}", "x".repeat(107 - "/tmp/".len() - "/io.luo.sock".len()));
    assert!(luod(&["--runtime-dir", &directory, "--check-config"]).status.success());
    let output = luod(&["--runtime-dir", &format!("{directory}x"), "--check-config"]);
    assert_eq!(output.status.code(), Some(2));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("107") && text.contains("--runtime-dir"), "{text}");
}

#[test]
fn a_log_that_is_no_terminal_has_no_colours() {
    let luod = common::Luod::start();
    luod.wait("it has said something", || luod.log().contains("serves"));
    assert!(!luod.log().contains('\u{1b}'), "{}", luod.log());
}

#[test]
fn what_it_can_read_is_listed() {
    let output = luod(&["--print-compatible"]);
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    for known in ["luo-v1", "file-descriptors-v1", "live-v1", "memfd-v1", "session-record-v1"] {
        assert!(text.lines().any(|line| line == known), "{known}\n{text}");
    }
}

#[test]
fn a_second_luod_in_the_same_directory_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("io.luo.sock");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let output = luod(&["--runtime-dir", directory.path().to_str().unwrap()]);
    assert!(!output.status.success());
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("another luod") && text.contains("--runtime-dir"), "{text}");
    assert!(socket.exists());
}
