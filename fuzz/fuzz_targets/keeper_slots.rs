//! Any messages of a worker: what the keeper holds afterwards is what it has counted, within its
//! limits, and a refused batch has changed nothing.
#![no_main]

use std::os::fd::OwnedFd;

use libfuzzer_sys::fuzz_target;
use luod::keeper::fuzzing::Held;

fuzz_target!(|messages: Vec<Vec<u8>>| {
    let null = OwnedFd::from(std::fs::File::open("/dev/null").expect("/dev/null"));
    let mut held = Held::default();
    for message in &messages {
        held.take(message, &null);
    }
});
