//! Any bytes as a message between keeper and worker: what is taken for one adds up.
#![no_main]

use libfuzzer_sys::fuzz_target;
use luo_abi::keeper::{Message, entry_flag};

fuzz_target!(|input: (Vec<u8>, u8)| {
    let (bytes, fds) = (input.0, usize::from(input.1));
    let Ok(message) = Message::parse(&bytes, fds) else { return };
    let (mut length, mut carried) = (0, 0);
    for (entry, record) in message.slots() {
        assert_ne!(entry.key.get(), 0);
        assert_eq!(record.len(), entry.length.get() as usize);
        if entry.flags.get() & entry_flag::DELETE != 0 {
            assert!(record.is_empty() && entry.fds.get() == 0);
        }
        length += record.len();
        carried += usize::from(entry.fds.get());
    }
    if !message.entries.is_empty() {
        assert_eq!((length, carried), (message.body.len(), fds));
    }
});
