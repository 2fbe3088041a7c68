//! `luoctl run` against a real luod, with a client of our own and with programs that know nothing of
//! luo: dbus-daemon, systemd-journald, systemd-notify.

mod luod;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::Instant;

use luo::Manager;
use luod::{Luod, PATIENCE};
use rustix::process::{Pid, Signal, kill_process};

/// A service for systemd's descriptor store, with nothing but the words of `sd_notify(3)`.
const SERVICE: &str = r#"
import array, os, socket, sys, signal
def notify(text, fds=()):
    s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    s.connect(os.environ["NOTIFY_SOCKET"])
    socket.send_fds(s, [text.encode()], list(fds)) if fds else s.send(text.encode())
def barrier():
    r, w = os.pipe()
    notify("BARRIER=1", [w]); os.close(w)
    assert os.read(r, 1) == b""
def given():
    if os.environ.get("LISTEN_PID") != str(os.getpid()): return []
    names = os.environ["LISTEN_FDNAMES"].split(":")
    assert len(names) == int(os.environ["LISTEN_FDS"])
    return [(name, 3 + at) for at, name in enumerate(names)]
def say(*words): print(*words, flush=True)
"#;

fn needs(program: &str) -> bool {
    let found = std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|at| at.join(program).exists()));
    if !found {
        println!("SKIPPED: {program} is missing");
    }
    found
}

fn command(luod: &Luod, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_luoctl"));
    command.arg("--socket").arg(luod.socket()).args(["--deadline", "60", "run"]).args(arguments);
    command.stdin(Stdio::null()).env_remove("NOTIFY_SOCKET");
    command
}

fn python(luod: &Luod, options: &[&str], body: &str) -> Command {
    let script = format!("{SERVICE}{body}");
    command(luod, &[&["--session", "s"], options, &["--", "python3", "-c", &script]].concat())
}

fn texts(output: &Output) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (text(&output.stdout), text(&output.stderr))
}

/// Runs it to its end; it must be well.
fn done(mut command: Command) -> (String, String) {
    let output = command.output().unwrap();
    let texts = texts(&output);
    assert!(output.status.success(), "{:?}\n{}\n{}", output.status, texts.0, texts.1);
    texts
}

/// A program that goes on until it is told to end.
struct Running(Child, BufReader<std::process::ChildStdout>);

impl Running {
    fn start(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        Self(child, lines)
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.1.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    fn end(mut self) -> Option<i32> {
        kill_process(Pid::from_child(&self.0), Signal::TERM).unwrap();
        self.0.wait().unwrap().code()
    }
}

#[test]
fn what_a_program_stores_comes_back_under_its_name_and_what_it_removes_does_not() {
    let (true, Some(luod)) = (needs("python3"), Luod::start()) else { return };
    let body = r#"
assert given() == [] and os.environ["FDSTORE"] == "4096"
l = socket.create_server(("127.0.0.1", 0))
a, b = socket.socketpair()
m = os.memfd_create("state"); os.write(m, b"page 3")
notify("FDSTORE=1\nFDNAME=web", [l.fileno()])
notify("FDSTORE=1\nFDNAME=web", [os.dup(l.fileno())])
notify("FDSTORE=1\nFDNAME=pair", [a.fileno(), b.fileno()])
notify("FDSTORE=1", [m])
notify("FDSTORE=1\nFDNAME=gone", [os.memfd_create("x")])
notify("FDSTOREREMOVE=1\nFDNAME=gone")
barrier()
say(l.getsockname()[1])
"#;
    let (port, errors) = done(python(&luod, &[], body));
    assert_eq!(errors, "");
    let body = r#"
names = [name for name, _ in given()]
assert names == ["web", "pair", "pair", "stored"], names
fds = dict(given())
l = socket.socket(fileno=3)
a, b = socket.socket(fileno=4), socket.socket(fileno=5)
a.send(b"x"); assert b.recv(1) == b"x"
assert os.pread(6, 9, 0) == b"page 3"
notify("FDSTOREREMOVE=1\nFDNAME=pair")
say(l.getsockname()[1])
"#;
    assert_eq!(done(python(&luod, &[], body)).0, port);
    let names = "say(*[name for name, _ in given()])";
    assert_eq!(done(python(&luod, &["--finish", "success"], names)).0, "web stored\n");
    assert_eq!(done(python(&luod, &[], names)).0, "\n");
}

#[test]
fn a_descriptor_that_is_hung_up_is_dropped_unless_it_is_not_to_be_looked_after() {
    let (true, Some(luod)) = (needs("python3"), Luod::start()) else { return };
    let body = r#"
pairs = [socket.socketpair() for _ in range(2)]
notify("FDSTORE=1\nFDNAME=watched", [pairs[0][0].fileno()])
notify("FDSTORE=1\nFDNAME=kept\nFDPOLL=0", [pairs[1][0].fileno()])
barrier()
for _, other in pairs: other.close()
say("closed")
signal.pause()
"#;
    let mut running = Running::start(python(&luod, &[], body));
    assert_eq!(running.line(), "closed");
    let start = Instant::now();
    let tokens = || Manager::connect(luod.options()).unwrap().files(Some("s")).unwrap().len();
    while tokens() != 2 {
        assert!(start.elapsed() < PATIENCE, "it is still there");
    }
    assert_eq!(running.end(), Some(128 + 15));
    let (names, _) = done(python(&luod, &[], "say(*[name for name, _ in given()])"));
    assert_eq!(names, "kept\n");
}

#[test]
fn the_limit_is_kept_and_said() {
    let (true, Some(luod)) = (needs("python3"), Luod::start()) else { return };
    let body = r#"notify("FDSTORE=1", [os.memfd_create(str(at)) for at in range(5)])"#;
    let (_, errors) = done(python(&luod, &["--store-max", "3"], body));
    assert_eq!(errors.matches("is not kept: there are 3 already").count(), 2, "{errors}");
    assert_eq!(done(python(&luod, &[], "say(len(given()))")).0, "3\n");
}

#[test]
fn stores_go_on_over_an_upgrade_and_wait_while_an_update_is_prepared() {
    let (true, Some(luod)) = (needs("python3"), Luod::start()) else { return };
    let body = r#"
for line in sys.stdin:
    notify("FDSTORE=1\nFDNAME=" + line.strip(), [os.memfd_create(line.strip())])
    if not line.startswith("late"): barrier()
    say("stored")
"#;
    let mut asked = python(&luod, &[], body);
    asked.stdin(Stdio::piped());
    let mut running = Running::start(asked);
    let mut input = running.0.stdin.take().unwrap();
    writeln!(input, "one").unwrap();
    assert_eq!(running.line(), "stored");
    luod.run(&["upgrade"], 0);
    writeln!(input, "two").unwrap();
    assert_eq!(running.line(), "stored");
    luod.run(&["prepare"], 0);
    writeln!(input, "late").unwrap();
    assert_eq!(running.line(), "stored");
    luod.run(&["cancel"], 0);
    writeln!(input, "three").unwrap();
    assert_eq!(running.line(), "stored");
    drop(input);
    assert_eq!(running.0.wait().unwrap().code(), Some(0));
    let (names, _) = done(python(&luod, &[], "say(*[name for name, _ in given()])"));
    assert_eq!(names, "one two late three\n");
}

#[test]
fn an_outer_service_manager_hears_the_rest() {
    let (true, Some(luod)) = (needs("systemd-notify"), Luod::start()) else { return };
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("outer");
    let outer = UnixDatagram::bind(&path).unwrap();
    outer.set_read_timeout(Some(PATIENCE)).unwrap();
    // systemd's own tool: it sends, and waits for a barrier.
    let mut asked = command(
        &luod,
        &["--session", "s", "--", "systemd-notify", "--ready", "--status=at work", "--pid=42"],
    );
    asked.env("NOTIFY_SOCKET", &path);
    done(asked);
    let mut bytes = [0; 4096];
    let size = outer.recv(&mut bytes).unwrap();
    let mut lines: Vec<&str> = std::str::from_utf8(&bytes[..size]).unwrap().lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["READY=1", "STATUS=at work"]);
}

#[test]
fn the_status_is_the_programs() {
    let Some(luod) = Luod::start() else { return };
    let code = |arguments: &[&str]| {
        let output = command(&luod, arguments).output().unwrap();
        (output.status.code().unwrap(), texts(&output).1)
    };
    let sh = |script| code(&["--session", "s", "--", "sh", "-c", script]);
    assert_eq!(sh("exit 7").0, 7);
    assert_eq!(sh("kill -KILL $$").0, 128 + 9);
    let (status, text) = code(&["--session", "s", "--", "/nonexistent/program"]);
    assert_eq!(status, 6);
    assert!(text.contains("/nonexistent/program cannot be started"), "{text}");
    let listens =
        ["--session", "t", "--listen", "127.0.0.1:0", "--listen", "[::1]:0", "--", "true"];
    assert_eq!(code(&listens).0, 2);
    let other = luo::Session::open_with("other", luod.options()).unwrap();
    other.preserve(1, std::fs::File::open("/dev/null").unwrap()).unwrap();
    drop(other);
    let (status, text) = code(&["--session", "other", "--", "true"]);
    assert_eq!(status, 5);
    assert!(text.contains("no program that luoctl ran has stored"), "{text}");
}

#[test]
fn a_program_that_names_another_process_has_ended_when_that_has() {
    let (true, Some(luod)) = (needs("python3"), Luod::start()) else { return };
    let body = r#"
r, w = os.pipe()
if os.fork():
    os.read(r, 1)
    sys.exit(0)
notify("MAINPID=%d" % os.getpid()); barrier()
os.write(w, b"x")
while os.getppid() != int(os.environ["RUN"]): pass
notify("FDSTORE=1\nFDNAME=late", [os.memfd_create("late")])
sys.exit(9)
"#;
    let mut asked = python(&luod, &[], body);
    // The one that takes up orphans.
    let script = "export RUN=$$; exec \"$@\"";
    let mut through = Command::new("sh");
    through.args(["-c", script, "sh"]).arg(asked.get_program()).args(asked.get_args());
    through.env_remove("NOTIFY_SOCKET");
    assert_eq!(through.output().unwrap().status.code(), Some(9));
    asked = python(&luod, &[], "say(*[name for name, _ in given()])");
    assert_eq!(done(asked).0, "late\n");
}

#[test]
fn dbus_daemon_keeps_its_listener_over_restarts() {
    let (true, true, Some(luod)) = (needs("dbus-daemon"), needs("dbus-send"), Luod::start()) else {
        return;
    };
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("bus");
    let listen = format!("bus={}", path.display());
    let start = || {
        let arguments = [
            "--session",
            "bus",
            "--listen",
            &listen,
            "--",
            "dbus-daemon",
            "--session",
            "--nofork",
            "--address=systemd:",
            "--print-address",
        ];
        let mut running = Running::start(command(&luod, &arguments));
        assert!(running.line().contains("bus"), "it names its address");
        running
    };
    let asks = || {
        Command::new("dbus-send")
            .arg(format!("--bus=unix:path={}", path.display()))
            .args([
                "--print-reply",
                "--dest=org.freedesktop.DBus",
                "/",
                "org.freedesktop.DBus.GetId",
            ])
            .output()
            .unwrap()
            .status
            .success()
    };
    let running = start();
    assert!(asks());
    running.end();
    // Nobody accepts, and nobody is refused: luod has the listener.
    let waiting = std::os::unix::net::UnixStream::connect(&path).unwrap();
    let running = start();
    assert!(asks());
    drop(waiting);
    running.end();
}

#[test]
fn journald_gets_the_streams_of_its_clients_back() {
    const JOURNALD: &str = "/lib/systemd/systemd-journald";
    let Some(luod) = Luod::start() else { return };
    if !rustix::process::geteuid().is_root() || !Path::new(JOURNALD).exists() || !needs("unshare") {
        println!("SKIPPED: {JOURNALD} and root are needed");
        return;
    }
    // A /run of its own: journald's places are fixed.
    let directory = tempfile::tempdir().unwrap();
    let script = r#"
set -e
mount -t tmpfs none /run && mount -t tmpfs none /var/log || exit 77
mkdir -p /run/systemd/journal /run/log/journal
journald() { "$LUOCTL" --socket "$SOCKET" run --session journal --store-max 4224 -- "$JOURNALD" 9>&- & }
await() { until "$@"; do sleep 0.05; done; }
journald
await test -S /run/systemd/journal/stdout
mkfifo "$DIR/words"
systemd-cat -t luo-test cat "$DIR/words" &
cat=$!
exec 9> "$DIR/words"
echo before >&9
said() { journalctl -D /run/log/journal -o cat -t luo-test 2> /dev/null | grep -qx "$1"; }
await said before
kept() { "$LUOCTL" --socket "$SOCKET" files journal | grep -q socket; }
await kept
pid=$(jobs -p | head -n 1)
kill -TERM "$pid"; wait "$pid" || true
echo between >&9
journald
await said between
echo after >&9
await said after
exec 9>&-
wait "$cat"
pid=$!
kill -TERM "$pid"; wait "$pid" || true
"#;
    let output = Command::new("timeout")
        .args(["60", "unshare", "--mount", "bash", "-c", script])
        .env("LUOCTL", env!("CARGO_BIN_EXE_luoctl"))
        .env("SOCKET", luod.socket())
        .env("JOURNALD", JOURNALD)
        .env("DIR", directory.path())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let (text, errors) = texts(&output);
    if output.status.code() == Some(77) {
        println!("SKIPPED: nothing can be mounted here: {errors}");
        return;
    }
    assert!(output.status.success(), "{:?}\n{text}\n{errors}", output.status);
}

#[test]
fn descriptors_of_an_outer_service_manager_come_first() {
    let (true, true, Some(luod)) =
        (needs("systemd-socket-activate"), needs("python3"), Luod::start())
    else {
        return;
    };
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let script = format!(
        "{SERVICE}
say(*[name for name, _ in given()])
notify('FDSTORE=1\\nFDNAME=mine', [os.memfd_create('x')])
socket.socket(fileno=3).accept()[0].send(b'hello')"
    );
    for names in ["outer", "outer mine"] {
        let mut asked = Command::new("systemd-socket-activate");
        asked.args([&format!("--listen=127.0.0.1:{port}"), "--fdname=outer"]);
        asked.arg(env!("CARGO_BIN_EXE_luoctl")).arg("--socket").arg(luod.socket());
        asked.args(["run", "--session", "s", "--", "python3", "-c", &script]);
        let mut running = Running::start(asked);
        let start = Instant::now();
        let mut stream = loop {
            match TcpStream::connect(("127.0.0.1", port)) {
                Ok(stream) => break stream,
                Err(error) => assert!(start.elapsed() < PATIENCE, "{error}"),
            }
        };
        assert_eq!(running.line(), names);
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        assert_eq!(text, "hello");
        assert_eq!(running.0.wait().unwrap().code(), Some(0));
    }
}
