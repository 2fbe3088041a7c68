//! `luoctl scan`, with a real luod and without one.

mod luod;

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Output, Stdio};

use luod::Luod;
use serde_json::Value;

/// Has one descriptor of many types open, and waits.
const PROGRAM: &str = r#"
import ctypes, os, socket, sys
libc = ctypes.CDLL(None)
m = os.memfd_create("state"); os.pwrite(m, b"x" * 4096, 1 << 20)
libc.eventfd(3, 0); libc.timerfd_create(1, 0); libc.epoll_create1(0); libc.inotify_init1(0)
libc.signalfd(-1, ctypes.create_string_buffer(128), 0)
pipe = os.pipe(); os.write(pipe[1], b"unread")
l = socket.create_server(("127.0.0.1", 0))
c = socket.create_connection(l.getsockname()); a = l.accept()[0]; a.send(b"12345")
u = socket.socket(socket.AF_UNIX); u.bind("\0luo-scan-%d" % os.getpid()); u.listen()
pair = socket.socketpair()
d = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); d.bind(("127.0.0.1", 0))
f = os.open("/proc/self/exe", os.O_RDONLY)
print("ready", flush=True)
sys.stdin.read()
"#;

/// `None`, loudly, where there is no such interpreter.
fn program() -> Option<Child> {
    let started = Command::new("python3")
        .args(["-c", PROGRAM])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn();
    let Ok(mut child) = started else {
        println!("SKIPPED: python3 is missing");
        return None;
    };
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");
    Some(child)
}

fn without_luod(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_luoctl"))
        .args(["--socket", "/nonexistent/socket"])
        .args(arguments)
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn every_type_is_named_with_its_reach_and_the_process_notices_nothing() {
    let (Some(mut child), Some(luod)) = (program(), Luod::start()) else { return };
    let pid = child.id().to_string();
    let fds = || {
        let mut fds: Vec<_> = std::fs::read_dir(format!("/proc/{pid}/fd"))
            .unwrap()
            .map(|fd| std::fs::read_link(fd.unwrap().path()).unwrap())
            .collect();
        fds.sort();
        fds
    };
    let before = fds();
    let told: Value = serde_json::from_str(&luod.run(&["--json", "scan", &pid], 0)).unwrap();
    assert_eq!(before, fds());
    assert_eq!(told["luod"], true);
    let descriptors = told["processes"][0]["descriptors"].as_array().unwrap();
    let find = |kind: &str| {
        descriptors
            .iter()
            .find(|its| its["kind"] == kind)
            .unwrap_or_else(|| panic!("{kind}: {told}"))
    };
    for kind in [
        "memfd",
        "eventfd",
        "timerfd",
        "epoll",
        "inotify",
        "signalfd",
        "pipe",
        "tcp listener",
        "tcp connection",
        "unix listener",
        "unix connection",
        "udp socket",
        "file",
    ] {
        let found = find(kind);
        assert_ne!(found["reach"], "none", "{found}");
        assert!(found["handler"].is_string(), "{found}");
        // This luod has no carrier to another kernel, unless the kernel itself is one.
        assert!(found["reach"] != "agent" || found["advice"].is_string(), "{found}");
    }
    assert_eq!(find("memfd")["size"], 4096);
    let queued: u64 = descriptors
        .iter()
        .filter(|its| its["kind"] == "tcp connection")
        .map(|its| its["size"].as_u64().unwrap())
        .sum();
    assert_eq!(queued, 5);
    let count = descriptors.len() as u64;
    assert_eq!(told["summary"]["descriptors"], count);
    let table = luod.run(&["scan", &pid], 0);
    assert!(table.contains(&format!("{count} descriptors: ")), "{table}");
    assert!(table.contains("tcp listener") && table.contains("live-v1"), "{table}");
    drop(child.stdin.take());
    assert!(child.wait().unwrap().success());
}

#[test]
fn without_luod_it_is_what_this_version_can_keep() {
    let Some(mut child) = program() else { return };
    let pid = child.id().to_string();
    let told: Value =
        serde_json::from_str(&text(&without_luod(&["--json", "scan", &pid]).stdout)).unwrap();
    assert_eq!(told["luod"], false);
    let memfd = &told["processes"][0]["descriptors"][3];
    assert_eq!((&memfd["kind"], &memfd["reach"]), (&"memfd".into(), &"power".into()));
    let all = without_luod(&["scan", "--all"]);
    let lines = text(&all.stdout);
    assert!(lines.contains(&format!("{pid} (python3")) && lines.contains("No luod runs here"));
    drop(child.stdin.take());
    child.wait().unwrap();
}

#[test]
fn what_is_not_there_is_said() {
    for (arguments, status) in [
        (&["scan", "4194999"][..], 6),
        (&["scan", "no-such-unit-of-anybody"], 6),
        (&["scan"], 2),
        (&["scan", "1", "--all"], 2),
    ] {
        let output = without_luod(arguments);
        assert_eq!(output.status.code(), Some(status), "{arguments:?}");
        assert!(!output.stderr.is_empty() && output.stdout.is_empty());
    }
}
