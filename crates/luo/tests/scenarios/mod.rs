//! What must hold for both APIs alike. Each test is compiled once for each.

mod batches;
mod broken;
mod feeds;
mod manager;
mod one_by_one;
mod opening;
mod repeating;

use std::os::fd::OwnedFd;
use std::thread;
use std::time::Duration;

use crate::api::{Session, run};
use crate::fake::*;

/// A deadline that passes in a test, long enough for every answer that is not withheld, also on a
/// busy machine.
const SHORT: Duration = Duration::from_millis(1500);

/// A test of one session. `server` gets luod's end and the session's first connection.
fn with_session(
    server: impl FnOnce(SessionEnd, Peer) + Send + 'static,
    client: impl AsyncFnOnce(Session),
) {
    with_options(patient(), server, client);
}

fn with_options(
    options: luo::Options,
    server: impl FnOnce(SessionEnd, Peer) + Send + 'static,
    client: impl AsyncFnOnce(Session),
) {
    let (end, descriptor) = SessionEnd::pair();
    let server = thread::spawn(move || {
        let mut peer = end.accept();
        peer.take("io.luo.Session.GetInfo");
        peer.reply(info("normal"));
        server(end, peer);
    });
    run(async {
        let session = wait!(Session::from_descriptor_with(descriptor, options)).unwrap();
        client(session).await;
    });
    server.join().unwrap();
}

fn inode(file: &OwnedFd) -> u64 {
    rustix::fs::fstat(file).unwrap().st_ino
}
