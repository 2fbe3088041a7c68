//! Any bytes as they could come from clients: no panic, and a state that can be kept.
#![no_main]

use std::cell::RefCell;

use libfuzzer_sys::fuzz_target;
use luod::worker::fuzzing::Server;

/// Inputs that one server takes: making one takes longer than an input.
const IN_A_ROW: usize = 256;

thread_local! {
    static SERVER: RefCell<Option<(Server, usize)>> = const { RefCell::new(None) };
}

fuzz_target!(|input: &[u8]| {
    SERVER.with_borrow_mut(|place| {
        let (server, taken) =
            place.get_or_insert_with(|| (Server::new().expect("a worker's state"), 0));
        for reply in server.take(input).expect("a socket pair") {
            assert!(reply.starts_with(b"{") && !reply.contains(&0));
        }
        *taken += 1;
        if *taken == IN_A_ROW {
            assert!(server.is_sound());
            *place = None;
        }
    });
});
