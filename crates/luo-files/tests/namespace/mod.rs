//! A network namespace of a test's own: the test runs itself again in one.
#![allow(dead_code, reason = "each test program uses a part of it")]

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::process::Command;

/// Says to the test that it is in one.
const INSIDE: &str = "LUO_TEST_NAMESPACE";

/// Runs the body of the test of that name, once, in a network namespace in which nothing but the
/// loopback device is there. Where this user may not have one it says so, loudly.
pub(crate) fn in_network_namespace(name: &str, body: impl FnOnce()) {
    in_namespace(name, "ip link set lo up && exec \"$@\"", body);
}

/// The same, and not even the loopback device is up.
pub(crate) fn without_any_network(name: &str, body: impl FnOnce()) {
    in_namespace(name, "exec \"$@\"", body);
}

fn in_namespace(name: &str, script: &str, body: impl FnOnce()) {
    if std::env::var_os(INSIDE).is_some() {
        return body();
    }
    let mut command = Command::new("unshare");
    command.arg("--net");
    if !rustix::process::geteuid().is_root() {
        command.arg("--map-root-user");
    }
    let test = std::env::current_exe().expect("the test's own path");
    command.args(["sh", "-c", script, "sh"]).arg(test).args([name, "--exact", "--nocapture"]);
    let output = match command.env(INSIDE, "1").output() {
        Ok(output) => output,
        Err(error) => return println!("SKIPPED: `unshare` cannot be run: {error}"),
    };
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    print!("{text}{errors}");
    if !text.contains("running 1 test") {
        return println!("SKIPPED: no network namespace for a test: {errors}");
    }
    assert!(output.status.success(), "it failed in its namespace");
    assert!(text.contains("1 passed"), "no test of the name {name}");
}

/// Whether any route leads there.
pub(crate) fn is_reachable(ip: IpAddr) -> bool {
    let any: IpAddr = if ip.is_ipv4() { [0; 4].into() } else { [0_u16; 8].into() };
    let socket = UdpSocket::bind(SocketAddr::new(any, 0)).expect("a socket");
    // Nothing is sent.
    socket.connect(SocketAddr::new(ip, 9)).is_ok()
}

/// Whether everything that is sent gets lost, as while a machine is away; or nothing.
pub(crate) fn cut_off(cut: bool) {
    let (verb, queue) = if cut { ("add", &["pfifo", "limit", "0"][..]) } else { ("del", &[][..]) };
    let ran = Command::new("tc")
        .args(["qdisc", verb, "dev", "lo", "root"])
        .args(queue)
        .output()
        .expect("tc, which comes with ip");
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
}
