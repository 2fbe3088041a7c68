//! Any bytes as they could come from clients: no panic, and a state that can be kept.
#![no_main]

use libfuzzer_sys::fuzz_target;
use luod::worker::fuzzing::Server;

fuzz_target!(|inputs: Vec<Vec<u8>>| {
    let server = Server::new().expect("a worker's state");
    for input in &inputs {
        for reply in server.take(input).expect("a socket pair") {
            assert!(reply.starts_with(b"{") && !reply.contains(&0));
        }
    }
    assert!(server.is_sound());
});
